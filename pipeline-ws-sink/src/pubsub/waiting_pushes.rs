//! The pushes of messages that wait for their outcome, or for their turn, and how many there may be.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::yield_now};

use crate::telemetry::PushMetrics;

/// The part of the free room that one topic may have. So a topic does not fill a large room: it takes a ninth of
/// all at most.
const SHARE: usize = 8;

/// How many pushes of a topic may wait however little is free: one that is sent, and one behind it.
const OWN: usize = 2;

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

/// The pushes of a topic.
#[derive(Default)]
struct OfTopic {
    /// Those that have begun, whether they wait or not.
    begun: usize,
    /// Those that wait, in the room or in their work places.
    waiting: Size,
    /// How many wait for their turn in their work places.
    in_place: usize,
    /// Whether the push that has its turn waits for its next try.
    rests: bool,
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
    /// Whether it is among the waiting ones of its topic.
    is_waiting: bool,
    /// Whether it waits in the room for all.
    has_room: bool,
    turn: Turn,
}

/// Whether a push may be sent.
enum Turn {
    Any,
    Own,
    Later(oneshot::Receiver<()>),
    /// A turn that has come, and that is not used yet.
    Came,
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

    /// Whether a topic has its share.
    fn have_shared(self, waiting: Size, of_topic: Size, bytes: usize) -> bool {
        let share = |limit: usize, waiting| limit.saturating_sub(waiting) / SHARE;
        of_topic.pushes >= OWN
            && (of_topic.pushes >= share(self.pushes, waiting.pushes)
                || of_topic.bytes.saturating_add(bytes) > share(self.bytes, waiting.bytes))
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
        let known = topics.get_key_value(topic);
        let (begun, of_topic, rests) =
            known.map(|(_, known)| (known.begun, known.waiting, known.rests)).unwrap_or_default();
        // The one that rests may need the work place of this one for its next try.
        let needs_room = needs_room || (in_order && rests);
        if self.limits.have_shared(*waiting, of_topic, bytes)
            || (needs_room && !self.limits.have_room(*waiting, bytes))
        {
            return Err(Crowded);
        }
        let topic = known.map_or_else(|| topic.into(), |(topic, _)| topic.clone());
        let of_topic = topics.entry(topic.clone()).or_default();
        of_topic.begun = of_topic.begun.saturating_add(1);
        let turn = if in_order && begun > 0 {
            let (begin, turn) = oneshot::channel();
            of_topic.turns.push_back(begin);
            Turn::Later(turn)
        } else if in_order {
            Turn::Own
        } else {
            Turn::Any
        };
        let (is_waiting, has_room) = (false, false);
        let mut push = BegunPush { all: self.clone(), topic, bytes, is_waiting, has_room, turn };
        if !push.has_turn() {
            let has_room = push.wait_in(&mut state);
            if !has_room && let Some(of_topic) = state.topics.get_mut(&push.topic) {
                of_topic.in_place = of_topic.in_place.saturating_add(1);
            }
        }
        drop(state);
        Ok(push)
    }
}

impl BegunPush {
    /// Whether there is room for it outside its work place.
    pub(super) fn has_room(&self) -> bool {
        self.has_room
    }

    /// Whether it may be sent.
    pub(super) fn has_turn(&self) -> bool {
        matches!(self.turn, Turn::Any | Turn::Own)
    }

    /// Waits for its turn.
    pub(super) async fn turn(&mut self) {
        if let Turn::Later(turn) = &mut self.turn {
            // Whatever is before it says so when it ends.
            let _ = turn.await;
            self.turn = Turn::Came;
            if !self.has_room
                && let Some(of_topic) = self.all.state.lock().topics.get_mut(&self.topic)
            {
                of_topic.in_place = of_topic.in_place.saturating_sub(1);
            }
        }
        if matches!(self.turn, Turn::Came) {
            // If its time is over too, it is not sent at the last moment.
            yield_now().await;
            self.turn = Turn::Own;
        }
    }

    /// Whether it may keep its room and its turn until its next try. It may not while others wait for their turn in
    /// their work places, one of which it may need.
    pub(super) fn rest(&mut self) -> bool {
        let mut state = self.all.state.lock();
        let Some(of_topic) = state.topics.get_mut(&self.topic) else { return false };
        if matches!(self.turn, Turn::Own) {
            of_topic.rests = of_topic.in_place == 0;
            return of_topic.rests;
        }
        true
    }

    /// Begins with the next try of the same push. Returns whether it is the same.
    pub(super) fn resume(&mut self, all: &Arc<WaitingPushes>, topic: &str) -> bool {
        let is_same = Arc::ptr_eq(&self.all, all) && *self.topic == *topic;
        if is_same
            && matches!(self.turn, Turn::Own)
            && let Some(of_topic) = self.all.state.lock().topics.get_mut(topic)
        {
            of_topic.rests = false;
        }
        is_same
    }

    /// Counts it as waiting. Returns whether there is room for it outside its work place.
    pub(super) fn wait(&mut self) -> bool {
        let all = self.all.clone();
        self.wait_in(&mut all.state.lock())
    }

    fn wait_in(&mut self, state: &mut State) -> bool {
        let Self { all, bytes, has_room, .. } = self;
        if !*has_room && all.limits.have_room(state.waiting, *bytes) {
            state.waiting.add(*bytes);
            *has_room = true;
            all.metrics.waits(*bytes);
        }
        self.count(state);
        self.has_room
    }

    /// Counts it as waiting in its work place.
    pub(super) fn keep_place(&mut self) {
        let all = self.all.clone();
        self.count(&mut all.state.lock());
    }

    fn count(&mut self, state: &mut State) {
        let Self { all, topic, bytes, is_waiting, has_room, .. } = self;
        if !*is_waiting && let Some(of_topic) = state.topics.get_mut(topic) {
            of_topic.waiting.add(*bytes);
            *is_waiting = true;
            if !*has_room {
                all.metrics.crowded.increment(1);
            }
        }
    }
}

impl Drop for BegunPush {
    fn drop(&mut self) {
        let Self { all, topic, bytes, is_waiting, has_room, turn } = self;
        let mut state = all.state.lock();
        let State { waiting, topics } = &mut *state;
        if *has_room {
            waiting.remove(*bytes);
            all.metrics.waits_no_more(*bytes);
        }
        // Its turn may have come without being noticed.
        let waits_in_place = matches!(turn, Turn::Later(_)) && !*has_room;
        let has_turn = match turn {
            Turn::Any => false,
            Turn::Own | Turn::Came => true,
            Turn::Later(turn) => {
                let has_come = turn.try_recv().is_ok();
                turn.close();
                has_come
            }
        };
        let Some(of_topic) = topics.get_mut(topic) else { return };
        of_topic.begun = of_topic.begun.saturating_sub(1);
        of_topic.rests &= !has_turn;
        if waits_in_place {
            of_topic.in_place = of_topic.in_place.saturating_sub(1);
        }
        if *is_waiting {
            of_topic.waiting.remove(*bytes);
        }
        // Those that were dropped before their turn are passed over.
        while has_turn && let Some(next) = of_topic.turns.pop_front() {
            if next.send(()).is_ok() {
                break;
            }
        }
        if of_topic.begun == 0 {
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
        let (first, second) = (one(30).unwrap(), one(30).unwrap());
        assert_eq!(one(60).err(), Some(Crowded), "a topic has its share");
        let third = one(30).unwrap();
        let mut large = all.begin("large", 711, false, false).unwrap();
        assert!(!large.wait(), "it is too large for what is free");
        drop((first, second, third));
        assert!(large.wait());
        drop(large);
        let mut alone = all.begin("larger than all", 5_000, false, true).unwrap();
        assert!(alone.wait());
    }

    #[test]
    fn the_share_of_a_topic_counts_what_waits_and_is_two_pushes_at_least() {
        // Nothing waits, in however small a room.
        let small = room(4, 1000);
        let begun: Vec<_> = (0..10).map(|_| small.begin("one", 1, false, true)).collect();
        assert!(begun.iter().all(Result::is_ok));
        // Little is free, and another user has one push that is sent and one behind it.
        let all = room(30, 1000);
        let others: Vec<_> = (0..25).map(|n| waits(&all, &n.to_string()).unwrap()).collect();
        let kept = (waits(&all, "one").unwrap(), waits(&all, "one").unwrap());
        assert_eq!(waits(&all, "one").err(), Some(Crowded));
        drop((others, kept, begun));
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    #[tokio::test]
    async fn the_pushes_of_a_topic_have_their_turns_in_order_and_no_other_waits() {
        let all = room(90, 1000);
        let begin = |topic| all.begin(topic, 1, true, false).unwrap();
        let (first, mut second, third, mut last) =
            (begin("one"), begin("one"), begin("one"), begin("one"));
        assert_eq!(begin("other").turn().now_or_never(), Some(()));
        assert_eq!((first.has_room(), second.has_room(), size(&all).pushes), (false, true, 3));
        {
            let turn = second.turn();
            pin!(turn);
            assert!(poll!(&mut turn).is_pending());
            drop(first);
            turn.await;
        }
        // One that is dropped before its turn is passed over.
        drop(third);
        assert_eq!(last.turn().now_or_never(), None);
        drop(second);
        last.turn().await;
        // One whose turn has come passes it on, although it has not noticed.
        let (unnoticed, mut after) = (begin("one"), begin("one"));
        drop(last);
        assert_eq!(after.turn().now_or_never(), None);
        drop(unnoticed);
        after.turn().await;
        drop(after);
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }
}
