//! What has arrived on this node and is not delivered yet.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

use crate::frame::frames;

/// The most messages that wait to be delivered, and the most bytes.
const WAITING: (usize, usize) = (65_536, 64 << 20);

/// How often it is said how many were dropped, while more are.
const SAID: Duration = Duration::from_secs(1);

/// What has arrived and is not delivered yet, bounded in number and in bytes. The oldest messages are dropped for new
/// ones.
///
/// A client of NATS reads all that its server sends, however slowly it is delivered: what waits for that is here.
#[derive(Debug)]
pub(crate) struct Inbound {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug)]
struct Waiting {
    /// Each with a moment before it has arrived.
    messages: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
    /// What had arrived by this moment is here, or was.
    read_until: Instant,
    /// How many broadcasts were dropped since it was said last, and when that was.
    dropped: usize,
    said: Option<Instant>,
    is_closed: bool,
}

/// What is not delivered in the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// How many broadcasts were dropped, which was not said yet.
    pub(crate) dropped: usize,
    /// How many broadcasts still wait.
    pub(crate) waiting: usize,
    /// What had arrived by this moment is delivered, or dropped.
    pub(crate) delivered_until: Instant,
}

impl Inbound {
    pub(crate) fn new() -> Self {
        Self::with(WAITING.0, WAITING.1)
    }

    fn with(max_messages: usize, max_bytes: usize) -> Self {
        let waiting = Waiting {
            messages: VecDeque::new(),
            bytes: 0,
            max_messages,
            max_bytes,
            read_until: Instant::now(),
            dropped: 0,
            said: None,
            is_closed: false,
        };
        Self { waiting: Mutex::new(waiting), arrived: Notify::new() }
    }

    /// Adds messages that have arrived. A single message of any length may wait.
    pub(crate) fn push(&self, messages: impl IntoIterator<Item = Bytes>) {
        {
            let mut waiting = self.waiting.lock();
            for message in messages {
                waiting.push(message);
            }
        }
        self.arrived.notify_one();
    }

    /// All that had arrived by this moment was added.
    pub(crate) fn read_until(&self, moment: Instant) {
        let mut waiting = self.waiting.lock();
        waiting.read_until = moment.max(waiting.read_until);
    }

    /// Counts a message that was dropped before it could be added, as one broadcast.
    pub(crate) fn missed(&self) {
        self.waiting.lock().dropped += 1;
        self.arrived.notify_one();
    }

    /// Waits until there is a message, or one was dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn ready(&self) {
        while self.is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Whether there is no message, and it was said how many were dropped.
    pub(crate) fn is_empty(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.messages.is_empty() && waiting.dropped == 0
    }

    /// The oldest message.
    pub(crate) fn take(&self) -> Option<Bytes> {
        Some(self.waiting.lock().pop()?.1)
    }

    /// How many broadcasts were dropped, if it is to be said now: once in a while, and when no more wait.
    pub(crate) fn dropped(&self, now: Instant) -> Option<usize> {
        let mut waiting = self.waiting.lock();
        let is_soon = waiting.said.is_some_and(|at| now.saturating_duration_since(at) < SAID);
        if waiting.dropped == 0 || is_soon && !waiting.messages.is_empty() {
            return None;
        }
        waiting.said = Some(now);
        Some(std::mem::take(&mut waiting.dropped))
    }

    /// Nothing is delivered any more.
    pub(crate) fn close(&self) -> Left {
        let (messages, dropped, read_until) = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            waiting.bytes = 0;
            let dropped = std::mem::take(&mut waiting.dropped);
            (std::mem::take(&mut waiting.messages), dropped, waiting.read_until)
        };
        let delivered_until = messages.front().map_or(read_until, |(before, _)| *before);
        let waiting = messages.iter().map(|(_, message)| broadcasts(message)).sum();
        Left { dropped, waiting, delivered_until }
    }
}

impl Waiting {
    fn push(&mut self, message: Bytes) {
        if self.is_closed {
            return;
        }
        while (self.messages.len() >= self.max_messages
            || self.bytes + message.len() > self.max_bytes)
            && let Some((_, dropped)) = self.pop()
        {
            self.dropped += broadcasts(&dropped);
        }
        self.bytes += message.len();
        self.messages.push_back((self.read_until, message));
    }

    fn pop(&mut self) -> Option<(Instant, Bytes)> {
        let oldest = self.messages.pop_front()?;
        self.bytes -= oldest.1.len();
        Some(oldest)
    }
}

/// How many broadcasts a message has. What is none counts as one.
fn broadcasts(message: &Bytes) -> usize {
    frames(message).count()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::frame::{GROUP, VERSION, append_to_group};

    fn message(length: usize) -> Bytes {
        vec![VERSION; length].into()
    }

    fn group(broadcasts: usize) -> Bytes {
        let mut group = vec![GROUP];
        (0..broadcasts).for_each(|_| append_to_group(&mut group, &[VERSION]));
        group.into()
    }

    fn lengths(inbound: &Inbound) -> Vec<usize> {
        std::iter::from_fn(|| inbound.take()).map(|message| message.len()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_messages_are_dropped_beyond_a_number_and_beyond_bytes_and_it_is_said() {
        let (inbound, now) = (Inbound::with(3, 100), Instant::now());
        inbound.push((1..=4).map(message));
        assert_eq!((inbound.dropped(now), inbound.dropped(now)), (Some(1), None));
        inbound.push([message(95)]);
        assert_eq!(inbound.dropped(now), None, "it was said just now");
        assert_eq!(inbound.dropped(now + SAID), Some(2));
        assert_eq!(lengths(&inbound), [4, 95]);
        inbound.push([message(1), message(500)]);
        assert_eq!(lengths(&inbound), [500], "a single message may be longer");
        assert_eq!(inbound.dropped(now + SAID), Some(1), "nothing waits");
        inbound.missed();
        inbound.ready().await;
        assert_eq!(inbound.dropped(now + SAID), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_broadcast_of_a_message_that_is_not_delivered_is_counted() {
        let (inbound, now) = (Inbound::with(2, 100), Instant::now());
        inbound.push([group(5), group(3), group(4)]);
        assert_eq!(inbound.dropped(now), Some(5));
        let left = Left { dropped: 0, waiting: 7, delivered_until: now };
        assert_eq!(inbound.close(), left);
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_end_what_was_dropped_and_what_is_left_are_counted_apart_and_since_when() {
        let (inbound, now) = (Inbound::with(3, 100), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        inbound.push([message(1)]);
        inbound.read_until(later(1));
        inbound.push((1..=3).map(message));
        inbound.read_until(later(2));
        let left = Left { dropped: 1, waiting: 3, delivered_until: later(1) };
        assert_eq!(inbound.close(), left, "those that wait have arrived after it");
        inbound.push([message(1)]);
        let left = Left { dropped: 0, waiting: 0, delivered_until: later(2) };
        assert_eq!((inbound.take(), inbound.close()), (None, left));
    }

    proptest! {
        /// Whatever arrives and is taken: what waits is within its bounds, in order, and all are taken or counted.
        #[test]
        fn what_waits_is_bounded_and_nothing_is_lost_uncounted(
            steps in vec((any::<bool>(), 0..60usize), 0..100),
        ) {
            let (inbound, now) = (Inbound::with(5, 100), Instant::now());
            let (mut pushed, mut taken, mut dropped) = (0, Vec::new(), 0);
            for (adds, length) in steps {
                if adds {
                    // None of them is a group.
                    let number = u8::try_from(pushed).unwrap() + 10;
                    inbound.push([Bytes::from(vec![number; length + 1])]);
                    pushed += 1;
                } else {
                    taken.extend(inbound.take().map(|message| message[0]));
                }
                dropped += inbound.dropped(now + SAID).unwrap_or_default();
                let waiting = inbound.waiting.lock();
                prop_assert!(waiting.messages.len() <= 5 && waiting.bytes <= 100);
                let bytes: usize = waiting.messages.iter().map(|(_, it)| it.len()).sum();
                prop_assert_eq!(waiting.bytes, bytes);
            }
            prop_assert!(taken.is_sorted_by(|one, next| one < next));
            let left = inbound.close();
            prop_assert_eq!(taken.len() + dropped + left.dropped + left.waiting, pushed);
        }
    }
}
