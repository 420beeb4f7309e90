//! The pushes of messages that wait for their outcome, or for their turn, and how many there may be.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::push_messages::WhenCrowded;
use crate::telemetry::PushMetrics;

/// The part of the free room that one topic may have. So a topic does not fill a large room: it takes a ninth of
/// all at most.
const SHARE: usize = 8;

/// How many pushes of a topic may wait however little is free: one that is sent, and one behind it.
const OWN: usize = 2;

/// The pushes of a pipeline's messages.
///
/// What waits in its work place for a turn that only another push can pass on must not hold a place that this one
/// needs. So a push keeps its turn while it is sent, and between its tries only as long as no push of its topic waits
/// in a work place: then its next try may need this one.
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
    /// The number of the last push.
    last: u64,
    /// What has not been recorded yet.
    changes: Changes,
}

/// What is recorded when the lock is free, as a program's recorder may take long.
#[derive(Default)]
struct Changes {
    /// The sizes of pushes that begin to wait, and of those that wait no more.
    waits: Option<usize>,
    waits_no_more: Option<usize>,
    crowded: u64,
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
    /// The push that has its turn.
    current: Option<u64>,
    /// Whether it waits for its next try.
    rests: bool,
    /// Those whose turn has not come, in their order, which is that of their numbers.
    turns: VecDeque<(u64, oneshot::Sender<()>)>,
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
    number: u64,
    bytes: usize,
    /// Whether it is among the waiting ones of its topic.
    is_waiting: bool,
    /// Whether it waits in the room for all.
    has_room: bool,
    /// Whether it waits for its turn in its work place.
    waits_in_place: bool,
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

    /// Whether a topic has its share.
    fn have_shared(self, waiting: Size, of_topic: Size, bytes: usize) -> bool {
        let share = |limit: usize, waiting| limit.saturating_sub(waiting) / SHARE;
        of_topic.pushes >= OWN
            && (of_topic.pushes >= share(self.pushes, waiting.pushes)
                || of_topic.bytes.saturating_add(bytes) > share(self.bytes, waiting.bytes))
    }

    /// Whether another push of a topic may begin.
    fn allow(
        self,
        waiting: Size,
        of_topic: Size,
        bytes: usize,
        when: WhenCrowded,
    ) -> Result<(), Crowded> {
        let is_crowded = match when {
            WhenCrowded::KeepPlace => false,
            WhenCrowded::GiveBackBusyTopics => self.have_shared(waiting, of_topic, bytes),
            WhenCrowded::GiveBack => {
                self.have_shared(waiting, of_topic, bytes) || !self.have_room(waiting, bytes)
            }
        };
        if is_crowded { Err(Crowded) } else { Ok(()) }
    }
}

impl OfTopic {
    /// The next push has its turn.
    fn pass_on(&mut self) {
        (self.current, self.rests) = (None, false);
        if let Some((number, next)) = self.turns.pop_front() {
            self.current = Some(number);
            // One that is dropped leaves the line before it stops listening.
            let _ = next.send(());
        }
    }

    /// A push whose turn has not come is dropped.
    fn leave_line(&mut self, number: u64) {
        if let Ok(at) = self.turns.binary_search_by_key(&number, |(number, _)| *number) {
            self.turns.remove(at);
        }
    }
}

impl Changes {
    fn record(self, metrics: &PushMetrics) {
        if let Some(bytes) = self.waits {
            metrics.waits(bytes);
        }
        if let Some(bytes) = self.waits_no_more {
            metrics.waits_no_more(bytes);
        }
        if self.crowded > 0 {
            metrics.crowded.increment(self.crowded);
        }
    }
}

impl WaitingPushes {
    pub(super) fn new(limits: Limits, metrics: Arc<PushMetrics>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, metrics })
    }

    /// Changes the state, and records the changes afterwards.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let changes = mem::take(&mut state.changes);
        drop(state);
        changes.record(&self.metrics);
        result
    }

    /// Begins a push, which waits for its turn if the pushes of its topic are to be in order and there is one
    /// before it.
    ///
    /// It fails if `when` says so: its topic has its share of the room, or there is no room at all.
    pub(super) fn begin(
        self: &Arc<Self>,
        topic: &str,
        bytes: usize,
        in_order: bool,
        when: WhenCrowded,
    ) -> Result<BegunPush, Crowded> {
        self.change(|state| self.begin_in(state, topic, bytes, in_order, when))
    }

    fn begin_in(
        self: &Arc<Self>,
        state: &mut State,
        topic: &str,
        bytes: usize,
        in_order: bool,
        when: WhenCrowded,
    ) -> Result<BegunPush, Crowded> {
        let State { waiting, topics, last, .. } = state;
        let known = topics.get_key_value(topic);
        let of_topic = known.map(|(_, known)| known.waiting).unwrap_or_default();
        self.limits.allow(*waiting, of_topic, bytes, when)?;
        let topic = known.map_or_else(|| topic.into(), |(topic, _)| topic.clone());
        let of_topic = topics.entry(topic.clone()).or_default();
        of_topic.begun = of_topic.begun.saturating_add(1);
        *last = last.wrapping_add(1);
        let number = *last;
        let turn = if !in_order {
            Turn::Any
        } else if of_topic.current.is_some() {
            let (begin, turn) = oneshot::channel();
            of_topic.turns.push_back((number, begin));
            Turn::Later(turn)
        } else {
            of_topic.current = Some(number);
            Turn::Own
        };
        let mut push = BegunPush {
            all: self.clone(),
            topic,
            number,
            bytes,
            is_waiting: false,
            has_room: false,
            waits_in_place: false,
            turn,
        };
        if !push.has_turn()
            && !push.wait_in(state)
            && let Some(of_topic) = state.topics.get_mut(&push.topic)
        {
            of_topic.in_place = of_topic.in_place.saturating_add(1);
            push.waits_in_place = true;
            if of_topic.rests {
                of_topic.pass_on();
            }
        }
        Ok(push)
    }

    /// Begins the next try of a push that an earlier one has kept, or another push.
    pub(super) fn begin_again(
        self: &Arc<Self>,
        kept: Option<BegunPush>,
        topic: &str,
        bytes: usize,
        in_order: bool,
        when: WhenCrowded,
    ) -> Result<BegunPush, Crowded> {
        if let Some(mut kept) = kept
            && Arc::ptr_eq(&kept.all, self)
            && *kept.topic == *topic
            && kept.resume(bytes, when)?
        {
            return Ok(kept);
        }
        self.begin(topic, bytes, in_order, when)
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
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn turn(&mut self) {
        if let Turn::Later(turn) = &mut self.turn {
            // Whatever is before it says so when it ends.
            let _ = turn.await;
            self.turn = Turn::Own;
            self.all.clone().change(|state| self.waits_in_place_no_more(state));
        }
    }

    fn waits_in_place_no_more(&mut self, state: &mut State) {
        if mem::take(&mut self.waits_in_place)
            && let Some(of_topic) = state.topics.get_mut(&self.topic)
        {
            of_topic.in_place = of_topic.in_place.saturating_sub(1);
        }
    }

    /// Whether it may keep its room and its turn until its next try. It may not while others wait for their turn in
    /// their work places, one of which it may need.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.all.state.lock();
        let Some(of_topic) = state.topics.get_mut(&self.topic) else { return false };
        if matches!(self.turn, Turn::Own) {
            of_topic.rests = of_topic.in_place == 0;
            return of_topic.rests;
        }
        true
    }

    /// Begins with the next try of the same push, which may have another size. Returns whether it still has its
    /// turn.
    fn resume(&mut self, bytes: usize, when: WhenCrowded) -> Result<bool, Crowded> {
        self.all.clone().change(|state| self.resume_in(state, bytes, when))
    }

    fn resume_in(
        &mut self,
        state: &mut State,
        bytes: usize,
        when: WhenCrowded,
    ) -> Result<bool, Crowded> {
        if matches!(self.turn, Turn::Own) {
            let Some(of_topic) = state.topics.get_mut(&self.topic) else { return Ok(false) };
            if of_topic.current != Some(self.number) {
                return Ok(false);
            }
            of_topic.rests = false;
        }
        if self.bytes != bytes {
            self.leave_room(state);
            self.bytes = bytes;
            let of_topic = state.topics.get(&self.topic).map(|known| known.waiting);
            self.all.limits.allow(state.waiting, of_topic.unwrap_or_default(), bytes, when)?;
        }
        Ok(true)
    }

    /// Counts it as waiting. Returns whether there is room for it outside its work place.
    pub(super) fn wait(&mut self) -> bool {
        self.all.clone().change(|state| self.wait_in(state))
    }

    fn wait_in(&mut self, state: &mut State) -> bool {
        let Self { all, bytes, has_room, .. } = self;
        if !*has_room && all.limits.have_room(state.waiting, *bytes) {
            state.waiting.add(*bytes);
            *has_room = true;
            state.changes.waits = Some(*bytes);
        }
        self.count(state);
        self.has_room
    }

    /// Counts it as waiting in its work place.
    pub(super) fn keep_place(&mut self) {
        self.all.clone().change(|state| self.count(state));
    }

    fn count(&mut self, state: &mut State) {
        let Self { topic, bytes, is_waiting, has_room, .. } = self;
        if !*is_waiting && let Some(of_topic) = state.topics.get_mut(topic) {
            of_topic.waiting.add(*bytes);
            *is_waiting = true;
            if !*has_room {
                state.changes.crowded = 1;
            }
        }
    }

    /// Counts it as waiting no more.
    fn leave_room(&mut self, state: &mut State) {
        let Self { topic, bytes, is_waiting, has_room, .. } = self;
        if mem::take(has_room) {
            state.waiting.remove(*bytes);
            state.changes.waits_no_more = Some(*bytes);
        }
        if mem::take(is_waiting)
            && let Some(of_topic) = state.topics.get_mut(topic)
        {
            of_topic.waiting.remove(*bytes);
        }
    }
}

impl Drop for BegunPush {
    fn drop(&mut self) {
        self.all.clone().change(|state| self.end_in(state));
    }
}

impl BegunPush {
    fn end_in(&mut self, state: &mut State) {
        self.leave_room(state);
        self.waits_in_place_no_more(state);
        let Some(of_topic) = state.topics.get_mut(&self.topic) else { return };
        of_topic.begun = of_topic.begun.saturating_sub(1);
        // Its turn may have come without being noticed.
        if of_topic.current == Some(self.number) {
            of_topic.pass_on();
        } else if matches!(self.turn, Turn::Later(_)) {
            of_topic.leave_line(self.number);
        }
        if of_topic.begun == 0 {
            state.topics.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};
    use pipeline_core::telemetry::Telemetry;
    use tokio::pin;

    use super::*;
    use crate::telemetry::LockProbe;

    fn room(pushes: usize, bytes: usize) -> Arc<WaitingPushes> {
        recorded(&Telemetry::global(), pushes, bytes)
    }

    fn recorded(telemetry: &Telemetry, pushes: usize, bytes: usize) -> Arc<WaitingPushes> {
        let metrics = Arc::new(PushMetrics::register(telemetry));
        WaitingPushes::new(Limits { pushes, bytes }, metrics)
    }

    const BUSY: WhenCrowded = WhenCrowded::GiveBackBusyTopics;

    /// A push of a byte that waits.
    fn waits(all: &Arc<WaitingPushes>, topic: &str) -> Result<BegunPush, Crowded> {
        let mut push = all.begin(topic, 1, false, WhenCrowded::GiveBack)?;
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
        let mut late = all.begin("late", 1, false, BUSY).unwrap();
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
            let mut push = all.begin("one", bytes, false, BUSY)?;
            push.wait();
            Ok(push)
        };
        let (first, second) = (one(30).unwrap(), one(30).unwrap());
        assert_eq!(one(60).err(), Some(Crowded), "a topic has its share");
        let third = one(30).unwrap();
        let mut large = all.begin("large", 711, false, BUSY).unwrap();
        assert!(!large.wait(), "it is too large for what is free");
        drop((first, second, third));
        assert!(large.wait());
        drop(large);
        let mut alone = all.begin("larger than all", 5_000, false, WhenCrowded::GiveBack).unwrap();
        assert!(alone.wait());
    }

    #[test]
    fn the_share_of_a_topic_counts_what_waits_and_is_two_pushes_at_least() {
        // Nothing waits, in however small a room.
        let small = room(4, 1000);
        let begun: Vec<_> =
            (0..10).map(|_| small.begin("one", 1, false, WhenCrowded::GiveBack)).collect();
        assert!(begun.iter().all(Result::is_ok));
        // Little is free, and another user has one push that is sent and one behind it.
        let all = room(30, 1000);
        let others: Vec<_> = (0..25).map(|n| waits(&all, &n.to_string()).unwrap()).collect();
        let kept = (waits(&all, "one").unwrap(), waits(&all, "one").unwrap());
        assert_eq!(waits(&all, "one").err(), Some(Crowded));
        // A pipeline that gives nothing back has no shares.
        let more = all.begin("one", 1, false, WhenCrowded::KeepPlace).unwrap();
        drop((others, kept, begun, more));
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    #[tokio::test]
    async fn the_pushes_of_a_topic_have_their_turns_in_order_and_no_other_waits() {
        let all = room(90, 1000);
        let begin = |topic| all.begin(topic, 1, true, BUSY).unwrap();
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
        // One that is dropped before its turn leaves the line.
        drop(third);
        assert_eq!(all.state.lock().topics["one"].turns.len(), 1);
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

    #[test]
    fn pushes_that_are_dropped_before_their_turn_leave_the_line_at_once() {
        let all = room(90, 1000);
        let begin = || all.begin("one", 1, true, WhenCrowded::KeepPlace).unwrap();
        let line = || all.state.lock().topics["one"].turns.len();
        let first = begin();
        // A worker whose time is over begins again while the one before it waits.
        (0..1000).for_each(|_| drop(begin()));
        assert_eq!(line(), 0);
        let mut others: Vec<_> = (0..9).map(|_| begin()).collect();
        assert_eq!(line(), 9);
        for (at, left) in [(4, 8), (7, 7), (0, 6)] {
            drop(others.remove(at));
            assert_eq!(line(), left);
        }
        drop(first);
        for mut next in others {
            assert_eq!(next.turn().now_or_never(), Some(()));
        }
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    #[test]
    fn metrics_are_recorded_without_the_lock() {
        let recorder = LockProbe::default();
        let all = recorded(&Telemetry::with_recorder(recorder.clone()), 2, 1000);
        let watched = Arc::downgrade(&all);
        recorder.watch(move || watched.upgrade().is_some_and(|all| all.state.try_lock().is_none()));
        let keeps = WhenCrowded::KeepPlace;
        let mut pushes: Vec<_> =
            (0..4).map(|n| all.begin("one", n, true, keeps).unwrap()).collect();
        let outside: Vec<_> = pushes.iter_mut().map(BegunPush::wait).collect();
        assert_eq!(outside, [false, true, true, false]);
        drop(pushes.pop());
        let first = pushes.remove(0);
        assert!(first.rest());
        let again = all.begin_again(Some(first), "one", 900, true, keeps);
        drop((again, pushes));
        assert_eq!(size(&all), Size::default());
        let names =
            ["socket.messages_crowded", "socket.messages_waiting", "socket.messages_waiting_bytes"];
        assert_eq!(Vec::from_iter(recorder.names()), names);
    }

    #[tokio::test]
    async fn a_push_that_rests_passes_its_turn_on_when_another_waits_in_its_work_place() {
        let all = room(1, 1000);
        let keeps = WhenCrowded::KeepPlace;
        let begin = || all.begin("one", 1, true, keeps).unwrap();
        let again = |kept| all.begin_again(Some(kept), "one", 1, true, keeps).unwrap();
        let mut first = begin();
        assert!(first.wait());
        // Nothing waits in a place.
        assert!(first.rest());
        let first = again(first);
        assert!(first.has_turn() && first.rest());
        // Its next try may need this place.
        let mut second = begin();
        assert!(!second.has_room());
        assert_eq!(second.turn().now_or_never(), Some(()));
        let mut first = again(first);
        assert!(!first.has_turn() && first.has_room());
        // What waits outside holds no place.
        assert!(second.rest());
        let second = again(second);
        let third = begin();
        assert!(second.has_turn() && !third.has_room());
        assert!(!second.rest(), "one waits in its place already");
        drop(second);
        assert_eq!(first.turn().now_or_never(), Some(()));
        assert!(!first.rest());
        drop(third);
        assert!(first.rest());
        drop(first);
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    #[test]
    fn the_next_try_of_a_push_counts_with_its_own_size_and_keeps_its_turn() {
        let all = room(10, 1000);
        let mut push = all.begin("one", 10, true, BUSY).unwrap();
        assert!(push.wait() && push.rest());
        let mut push = all.begin_again(Some(push), "one", 900, true, BUSY).unwrap();
        assert!(push.has_turn() && push.wait());
        assert_eq!(size(&all), Size { pushes: 1, bytes: 900 });
        let other = waits(&all, "other").unwrap();
        // There is no room for it now.
        assert!(push.rest());
        let mut push = all.begin_again(Some(push), "one", 1000, true, BUSY).unwrap();
        assert!(push.has_turn() && !push.wait() && push.rest());
        assert_eq!(size(&all), Size { pushes: 1, bytes: 1 });
        let crowded = all.begin_again(Some(push), "one", 1001, true, WhenCrowded::GiveBack);
        assert_eq!(crowded.err(), Some(Crowded));
        drop(other);
        assert_eq!((size(&all), all.state.lock().topics.len()), (Size::default(), 0));
    }

    proptest::proptest! {
        #[test]
        fn one_push_of_a_topic_has_its_turn_and_nothing_is_left(
            steps in proptest::collection::vec((0..4u8, 0..6usize), 1..80),
        ) {
            // Nothing is given back, so that some wait in their work places.
            let (all, keeps) = (room(2, 100), WhenCrowded::KeepPlace);
            let mut pushes: Vec<BegunPush> = Vec::new();
            let mut resting: Vec<BegunPush> = Vec::new();
            for (what, which) in steps {
                match what {
                    0 => pushes.extend(all.begin("one", which * 10, true, keeps)),
                    1 if !pushes.is_empty() => drop(pushes.remove(which % pushes.len())),
                    2 if !pushes.is_empty() => {
                        let push = pushes.remove(which % pushes.len());
                        if push.has_turn() && push.rest() {
                            resting.push(push);
                        }
                    }
                    3 if !resting.is_empty() => {
                        let push = resting.remove(which % resting.len());
                        pushes.extend(all.begin_again(Some(push), "one", which, true, keeps));
                    }
                    _ => {}
                }
                for push in &mut pushes {
                    let _ = push.turn().now_or_never();
                }
                let with_turn = pushes.iter().filter(|push| push.has_turn()).count();
                let in_place = pushes.iter().any(|push| push.waits_in_place);
                let later = pushes.iter().filter(|push| !push.has_turn()).count();
                let line = all.state.lock().topics.get("one").map_or(0, |one| one.turns.len());
                proptest::prop_assert_eq!(line, later);
                let rests = all.state.lock().topics.get("one").is_some_and(|one| one.rests);
                proptest::prop_assert_eq!(with_turn, usize::from(!pushes.is_empty() && !rests));
                proptest::prop_assert!(!(in_place && rests));
            }
            drop((pushes, resting));
            proptest::prop_assert_eq!(size(&all), Size::default());
            proptest::prop_assert!(all.state.lock().topics.is_empty());
        }
    }
}
