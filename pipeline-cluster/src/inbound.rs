//! What has arrived on this node and is not delivered yet.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

use crate::{core::Core, frame::frames, metrics::Reason};

/// The most messages that wait to be delivered, and the most bytes.
const WAITING: (usize, usize) = (65_536, 64 << 20);

/// How often it is said how many were dropped, while more are.
const SAID: Duration = Duration::from_secs(1);

/// A subscription to a channel, which has ended once this node is not subscribed to it any more.
///
/// The node may subscribe to the channel again while messages of the earlier subscription wait. What was sent between the
/// two is not missing, so no message of the earlier one may be compared with those of the later one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscription(Arc<AtomicBool>);

impl Subscription {
    /// The node has unsubscribed: what has arrived and waits is not delivered.
    pub(crate) fn end(&self) {
        self.0.store(true, Relaxed);
    }

    fn has_ended(&self) -> bool {
        self.0.load(Relaxed)
    }
}

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
    messages: VecDeque<Message>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
    /// What the server had sent by this moment is here, or was.
    read_until: Instant,
    /// How many broadcasts were dropped since it was said last, and when that was.
    dropped: usize,
    said: Option<Instant>,
    is_closed: bool,
}

/// A message that waits.
#[derive(Debug)]
struct Message {
    bytes: Bytes,
    of: Subscription,
    /// A moment before the server has sent it. It may have been on the way for long: that is before it has arrived.
    since: Instant,
}

/// What is not delivered in the end.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// How many broadcasts were dropped, which was not said yet.
    dropped: usize,
    /// How many broadcasts still wait.
    waiting: usize,
    /// What the server had sent by this moment is delivered, or dropped.
    delivered_until: Instant,
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

    /// Adds messages of subscriptions that have arrived. A single message of any length may wait.
    pub(crate) fn push(&self, messages: impl IntoIterator<Item = (Subscription, Bytes)>) {
        {
            let mut waiting = self.waiting.lock();
            for (of, message) in messages {
                waiting.push(of, message);
            }
        }
        self.arrived.notify_one();
    }

    /// All that the server had sent by this moment was added.
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

    /// The oldest message of a subscription that has not ended. Those before it are dropped.
    pub(crate) fn take(&self) -> Option<Bytes> {
        let mut waiting = self.waiting.lock();
        // No more than have room here.
        while let Some(Message { bytes, of, .. }) = waiting.pop() {
            if !of.has_ended() {
                return Some(bytes);
            }
        }
        None
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

    /// The connection has ended: what waits is not delivered any more, and is counted.
    pub(crate) fn end(&self, core: &Core) {
        let Left { dropped, waiting, delivered_until } = self.close();
        if dropped > 0 {
            core.overrun(dropped);
        }
        if waiting > 0 {
            core.metrics.dropped(Reason::NotConnected, waiting);
        }
        core.last_heard.only_until(delivered_until);
    }

    fn close(&self) -> Left {
        let (messages, dropped, read_until) = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            waiting.bytes = 0;
            let dropped = std::mem::take(&mut waiting.dropped);
            (std::mem::take(&mut waiting.messages), dropped, waiting.read_until)
        };
        let mut left = messages.iter().filter(|it| !it.of.has_ended()).peekable();
        let delivered_until = left.peek().map_or(read_until, |it| it.since);
        let waiting = left.map(|it| broadcasts(&it.bytes)).sum();
        Left { dropped, waiting, delivered_until }
    }
}

impl Waiting {
    fn push(&mut self, of: Subscription, bytes: Bytes) {
        if self.is_closed {
            return;
        }
        while (self.messages.len() >= self.max_messages
            || self.bytes + bytes.len() > self.max_bytes)
            && let Some(oldest) = self.pop()
        {
            if !oldest.of.has_ended() {
                self.dropped += broadcasts(&oldest.bytes);
            }
        }
        self.bytes += bytes.len();
        self.messages.push_back(Message { bytes, of, since: self.read_until });
    }

    fn pop(&mut self) -> Option<Message> {
        let oldest = self.messages.pop_front()?;
        self.bytes -= oldest.bytes.len();
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

    fn push(inbound: &Inbound, messages: impl IntoIterator<Item = Bytes>) {
        let of = Subscription::default();
        inbound.push(messages.into_iter().map(|message| (of.clone(), message)));
    }

    fn lengths(inbound: &Inbound) -> Vec<usize> {
        std::iter::from_fn(|| inbound.take()).map(|message| message.len()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_messages_are_dropped_beyond_a_number_and_beyond_bytes_and_it_is_said() {
        let (inbound, now) = (Inbound::with(3, 100), Instant::now());
        push(&inbound, (1..=4).map(message));
        assert_eq!((inbound.dropped(now), inbound.dropped(now)), (Some(1), None));
        push(&inbound, [message(95)]);
        assert_eq!(inbound.dropped(now), None, "it was said just now");
        assert_eq!(inbound.dropped(now + SAID), Some(2));
        assert_eq!(lengths(&inbound), [4, 95]);
        push(&inbound, [message(1), message(500)]);
        assert_eq!(lengths(&inbound), [500], "a single message may be longer");
        assert_eq!(inbound.dropped(now + SAID), Some(1), "nothing waits");
        inbound.missed();
        inbound.ready().await;
        assert_eq!(inbound.dropped(now + SAID), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_broadcast_of_a_message_that_is_not_delivered_is_counted() {
        let (inbound, now) = (Inbound::with(2, 100), Instant::now());
        push(&inbound, [group(5), group(3), group(4)]);
        assert_eq!(inbound.dropped(now), Some(5));
        let left = Left { dropped: 0, waiting: 7, delivered_until: now };
        assert_eq!(inbound.close(), left);
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_end_what_was_dropped_and_what_is_left_are_counted_apart_and_since_when() {
        let (inbound, now) = (Inbound::with(3, 100), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        push(&inbound, [message(1)]);
        inbound.read_until(later(1));
        push(&inbound, (1..=3).map(message));
        inbound.read_until(later(2));
        let left = Left { dropped: 1, waiting: 3, delivered_until: later(1) };
        assert_eq!(inbound.close(), left, "those that wait were sent after it");
        push(&inbound, [message(1)]);
        let left = Left { dropped: 0, waiting: 0, delivered_until: later(2) };
        assert_eq!((inbound.take(), inbound.close()), (None, left));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_of_a_subscription_that_has_ended_is_neither_delivered_nor_counted() {
        let (inbound, now) = (Inbound::with(4, 100), Instant::now());
        let [earlier, other, later] = [1, 2, 3].map(|_| Subscription::default());
        inbound.push([(earlier.clone(), message(1)), (other.clone(), message(2))]);
        inbound.push([(earlier.clone(), message(3))]);
        earlier.end();
        inbound.push([(later.clone(), message(4))]);
        assert_eq!(lengths(&inbound), [2, 4]);
        // There is no room for the first two, one of which is of no interest any more.
        inbound.push([(earlier.clone(), message(1)), (later.clone(), message(2))]);
        inbound.push([1, 2, 3, 4].map(|length| (later.clone(), message(length))));
        assert_eq!(inbound.dropped(now), Some(1));
        later.end();
        inbound.push([(other, message(5))]);
        let left = Left { dropped: 0, waiting: 1, delivered_until: now };
        assert_eq!(inbound.close(), left);
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
                    push(&inbound, [Bytes::from(vec![number; length + 1])]);
                    pushed += 1;
                } else {
                    taken.extend(inbound.take().map(|message| message[0]));
                }
                dropped += inbound.dropped(now + SAID).unwrap_or_default();
                let waiting = inbound.waiting.lock();
                prop_assert!(waiting.messages.len() <= 5 && waiting.bytes <= 100);
                let bytes: usize = waiting.messages.iter().map(|it| it.bytes.len()).sum();
                prop_assert_eq!(waiting.bytes, bytes);
            }
            prop_assert!(taken.is_sorted_by(|one, next| one < next));
            let left = inbound.close();
            prop_assert_eq!(taken.len() + dropped + left.dropped + left.waiting, pushed);
        }
    }
}
