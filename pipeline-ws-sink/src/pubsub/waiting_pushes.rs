//! The pushes of messages that wait for their outcome, or for their turn, and how many there may be.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::telemetry::PushMetrics;

/// The part of the free room that one topic may have. So one topic takes a ninth of all at most, and however
/// many have their share, some room is left for the others.
const SHARE: usize = 8;

/// The pushes of a pipeline's messages.
pub(super) struct WaitingPushes {
    state: Mutex<State>,
    limits: Limits,
    metrics: Arc<PushMetrics>,
}

/// How many pushes may wait, and how large they may be together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) pushes: usize,
    pub(super) bytes: usize,
}

#[derive(Default)]
struct State {
    /// The pushes that wait, and their bytes.
    waiting: Size,
    topics: HashMap<Arc<str>, OfTopic>,
}

/// The pushes of a topic that have begun, whether they wait or not.
#[derive(Default)]
struct OfTopic {
    size: Size,
    /// Those whose turn has not come, in their order.
    turns: VecDeque<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    pushes: usize,
    bytes: usize,
}

/// A push that has begun, until it is dropped.
pub(super) struct BegunPush {
    all: Arc<WaitingPushes>,
    topic: Arc<str>,
    bytes: usize,
    is_waiting: bool,
    turn: Turn,
}

/// Whether a push may be sent.
enum Turn {
    Any,
    Own,
    Later(oneshot::Receiver<()>),
}

/// There is no room for another push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowded;

impl Size {
    fn add(&mut self, bytes: usize) {
        self.pushes = self.pushes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn remove(&mut self, bytes: usize) {
        self.pushes = self.pushes.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Limits {
    /// Whether there is room for one more of this size.
    fn have_room(self, waiting: Size, bytes: usize) -> bool {
        // One that is larger than all of the room may wait alone.
        let fits = waiting.bytes.saturating_add(bytes) <= self.bytes;
        waiting.pushes < self.pushes && (fits || waiting.pushes == 0)
    }

    /// Whether a topic has its share. It may always have one push.
    fn have_shared(self, waiting: Size, topic: Size, bytes: usize) -> bool {
        let share = |limit: usize, waiting| limit.saturating_sub(waiting) / SHARE;
        topic.pushes > 0
            && (topic.pushes >= share(self.pushes, waiting.pushes)
                || topic.bytes.saturating_add(bytes) > share(self.bytes, waiting.bytes))
    }
}

impl WaitingPushes {
    pub(super) fn new(limits: Limits, metrics: Arc<PushMetrics>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, metrics })
    }

    /// Begins a push, which waits for its turn if the pushes of its topic are to be in order and there is one
    /// before it.
    ///
    /// It fails if its topic has its share of the room; also if there is no room at all and the push
    /// `needs_room`.
    pub(super) fn begin(
        self: &Arc<Self>,
        topic: &str,
        bytes: usize,
        in_order: bool,
        needs_room: bool,
    ) -> Result<BegunPush, Crowded> {
        let mut state = self.state.lock();
        let State { waiting, topics } = &mut *state;
        let of_topic = topics.get_key_value(topic);
        let size = of_topic.map(|(_, of_topic)| of_topic.size).unwrap_or_default();
        let is_next = in_order && size.pushes > 0;
        let has_room = self.limits.have_room(*waiting, bytes);
        if self.limits.have_shared(*waiting, size, bytes) || ((needs_room || is_next) && !has_room)
        {
            return Err(Crowded);
        }
        let topic = of_topic.map_or_else(|| topic.into(), |(topic, _)| topic.clone());
        let of_topic = topics.entry(topic.clone()).or_default();
        of_topic.size.add(bytes);
        let turn = if is_next {
            let (begin, turn) = oneshot::channel();
            of_topic.turns.push_back(begin);
            Turn::Later(turn)
        } else if in_order {
            Turn::Own
        } else {
            Turn::Any
        };
        if is_next {
            self.metrics.waits(bytes);
            waiting.add(bytes);
        }
        drop(state);
        Ok(BegunPush { all: self.clone(), topic, bytes, is_waiting: is_next, turn })
    }
}

impl BegunPush {
    /// Whether it counts as waiting.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Waits for its turn.
    pub(super) async fn turn(&mut self) {
        if let Turn::Later(turn) = &mut self.turn {
            // Whatever is before it says so when it ends.
            let _ = turn.await;
            self.turn = Turn::Own;
        }
    }

    /// Counts it as waiting, if there is room. Returns whether there is.
    pub(super) fn wait(&mut self) -> bool {
        if !self.is_waiting {
            let mut state = self.all.state.lock();
            if self.all.limits.have_room(state.waiting, self.bytes) {
                state.waiting.add(self.bytes);
                self.is_waiting = true;
                self.all.metrics.waits(self.bytes);
            }
        }
        self.is_waiting
    }
}

impl Drop for BegunPush {
    fn drop(&mut self) {
        let Self { all, topic, bytes, is_waiting, turn } = self;
        let mut state = all.state.lock();
        let State { waiting, topics } = &mut *state;
        if *is_waiting {
            waiting.remove(*bytes);
            all.metrics.waits_no_more(*bytes);
        }
        // Its turn may have come without being noticed.
        let has_turn = match turn {
            Turn::Any => false,
            Turn::Own => true,
            Turn::Later(turn) => {
                let has_come = turn.try_recv().is_ok();
                turn.close();
                has_come
            }
        };
        let Some(of_topic) = topics.get_mut(topic) else { return };
        of_topic.size.remove(*bytes);
        // Those that were dropped before their turn are passed over.
        while has_turn && let Some(next) = of_topic.turns.pop_front() {
            if next.send(()).is_ok() {
                break;
            }
        }
        if of_topic.size.pushes == 0 {
            topics.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};
    use pipeline_core::telemetry::Telemetry;
    use tokio::pin;

    use super::*;

    fn room(pushes: usize, bytes: usize) -> Arc<WaitingPushes> {
        let metrics = Arc::new(PushMetrics::register(&Telemetry::global()));
        WaitingPushes::new(Limits { pushes, bytes }, metrics)
    }

    /// A push of a byte that waits.
    fn waits(all: &Arc<WaitingPushes>, topic: &str) -> Result<BegunPush, Crowded> {
        let mut push = all.begin(topic, 1, false, true)?;
        push.wait().then_some(push).ok_or(Crowded)
    }

    fn size(all: &WaitingPushes) -> Size {
        all.state.lock().waiting
    }

    #[test]
    fn one_topic_has_its_share_and_leaves_room_for_the_others() {
        let all = room(90, 1000);
        let of_one: Vec<_> = (0..90).map_while(|_| waits(&all, "one").ok()).collect();
        assert_eq!(of_one.len(), 10);
        // All others have something, and the later ones less.
        let others: Vec<_> = (0..60)
            .map(|n| {
                (0..90).map_while(|_| waits(&all, &n.to_string()).ok()).collect::<Vec<_>>().len()
            })
            .collect();
        assert_eq!(others.iter().min(), Some(&9));
        let kept: Vec<_> = (0..80).map(|n| waits(&all, &format!("other {n}")).unwrap()).collect();
        assert_eq!((kept.len(), waits(&all, "late").err()), (80, Some(Crowded)));
        // A push that can do without room is begun, and does not wait.
        let mut late = all.begin("late", 1, false, false).unwrap();
        assert!(!late.wait());
        drop(of_one);
        assert!(late.wait());
        drop((kept, late));
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    #[test]
    fn bytes_are_shared_in_the_same_way() {
        let all = room(1000, 800);
        let one = |bytes| {
            let mut push = all.begin("one", bytes, false, false)?;
            push.wait();
            Ok(push)
        };
        let first = one(60).unwrap();
        assert_eq!(one(60).err(), Some(Crowded), "a topic has its share");
        let second = one(30).unwrap();
        let mut large = all.begin("large", 711, false, false).unwrap();
        assert!(!large.wait(), "it is too large for what is free");
        drop((first, second));
        assert!(large.wait());
        drop(large);
        let mut alone = all.begin("larger than all", 5_000, false, true).unwrap();
        assert!(alone.wait());
    }

    #[tokio::test]
    async fn the_pushes_of_a_topic_have_their_turns_in_order_and_no_other_waits() {
        let all = room(90, 1000);
        let begin = |topic| all.begin(topic, 1, true, false).unwrap();
        let (first, mut second, third, mut last) =
            (begin("one"), begin("one"), begin("one"), begin("one"));
        assert_eq!(begin("other").turn().now_or_never(), Some(()));
        assert_eq!((first.is_waiting(), second.is_waiting(), size(&all).pushes), (false, true, 3));
        {
            let turn = second.turn();
            pin!(turn);
            assert!(poll!(&mut turn).is_pending());
            drop(first);
            assert!(poll!(&mut turn).is_ready());
        }
        // One that is dropped before its turn is passed over.
        drop(third);
        assert_eq!(last.turn().now_or_never(), None);
        drop(second);
        assert_eq!(last.turn().now_or_never(), Some(()));
        // One whose turn has come passes it on, although it has not noticed.
        let (unnoticed, mut after) = (begin("one"), begin("one"));
        drop(last);
        assert_eq!(after.turn().now_or_never(), None);
        drop(unnoticed);
        assert_eq!(after.turn().now_or_never(), Some(()));
        drop(after);
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }
}
