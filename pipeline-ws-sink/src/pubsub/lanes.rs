//! Lanes: in which order pushes are sent to a topic.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    hash::BuildHasher,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How many parts the lanes have, so that few senders meet at one lock.
const SHARDS: usize = 16;

/// The topics to which something is being sent. The others take no memory.
#[derive(Default)]
pub(super) struct Lanes {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    lanes: HashMap<Arc<str>, Lane, RandomState>,
    /// The number of the next place. No two places have the same, in any lane of the shard.
    next: u64,
}

/// Those who send to one topic: one has its turn, and the others stand behind it in their order.
struct Lane {
    /// Whose turn it is.
    first: u64,
    behind: VecDeque<Behind>,
    /// The first could not be sent, and is tried again later. No place has its turn meanwhile.
    rests: bool,
    /// From now on nobody in it waits for slow clients.
    hurries: bool,
    /// Tells the first, while it waits for them.
    hurry: Option<Arc<Notify>>,
}

struct Behind {
    number: u64,
    /// Its task, once that waits for its turn.
    task: Option<Waker>,
    who: Who,
}

/// Who stands in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// An event of a pipeline, which keeps its order with the others of that pipeline.
    Ordered,
    /// One that goes before an event that rests, and before those that stand behind that.
    Overtaking,
    /// An event that rests, and that has been overtaken.
    Resting,
}

/// A place in the lane of a topic. The next in line has its turn when it is dropped.
pub(super) struct Place {
    lanes: Arc<Lanes>,
    topic: Arc<str>,
    /// In which part of the lanes its lane is.
    shard: usize,
    number: u64,
    /// Whether it was its turn at once.
    began: bool,
}

impl Lanes {
    /// Takes the last place in the lane of a topic, unless it overtakes one that rests.
    pub(super) fn enter(self: &Arc<Self>, topic: &Arc<str>, who: Who) -> Place {
        let at = self.shard_of(topic);
        let mut shard = self.shards[at].lock();
        let number = shard.next;
        shard.next += 1;
        let began = if let Some(lane) = shard.lanes.get_mut(topic) {
            lane.behind.push_back(Behind { number, task: None, who });
            lane.pass();
            lane.first == number
        } else {
            let (behind, hurry) = (VecDeque::new(), None);
            let lane = Lane { first: number, behind, rests: false, hurries: false, hurry };
            shard.lanes.insert(topic.clone(), lane);
            true
        };
        drop(shard);
        Place { lanes: self.clone(), topic: topic.clone(), shard: at, number, began }
    }

    fn shard_of(&self, topic: &str) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let hash = self.hasher.hash_one(topic) as usize;
        hash % SHARDS
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().lanes.len()).sum()
    }
}

impl Lane {
    /// The next one has its turn, if there is one. Returns its task, once that waits.
    fn advance(&mut self) -> Option<Option<Waker>> {
        let next = self.behind.pop_front()?;
        (self.first, self.rests) = (next.number, next.who == Who::Resting);
        Some(if self.rests { self.pass() } else { next.task })
    }

    /// If the first rests, the next one that may pass it has its turn. Returns its task, once that waits.
    ///
    /// In a lane that hurries, all may, and the first is out of the lane with that. Otherwise it stands at
    /// the front of the others.
    fn pass(&mut self) -> Option<Waker> {
        if !self.rests {
            return None;
        }
        let mut behind = self.behind.iter();
        let at = behind.position(|behind| self.hurries || behind.who == Who::Overtaking)?;
        let next = self.behind.remove(at)?;
        if !self.hurries {
            let number = self.first;
            self.behind.push_front(Behind { number, task: None, who: Who::Resting });
        }
        (self.first, self.rests) = (next.number, false);
        next.task
    }

    /// The place of this number, if it is not the first.
    fn behind(&mut self, number: u64) -> Option<&mut Behind> {
        let at = self.behind.binary_search_by_key(&number, |behind| behind.number).ok()?;
        self.behind.get_mut(at)
    }
}

impl Place {
    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Waits for its turn.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the place is kept.
    pub(super) async fn turn(&self) {
        if !self.began {
            poll_fn(|cx| self.poll_turn(cx)).await;
        }
    }

    fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.in_lane(|lane| {
            let Some(behind) = lane.behind(self.number) else { return Poll::Ready(()) };
            match &mut behind.task {
                Some(known) => known.clone_from(cx.waker()),
                unknown => *unknown = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
    }

    /// How many stand behind the one whose turn it is.
    pub(super) fn waiting(&self) -> usize {
        self.in_lane(|lane| lane.behind.len())
    }

    /// Has those in the lane stop waiting for slow clients, and for one that [rests](Self::rest), until
    /// the lane is empty.
    pub(super) fn hurry(&self) {
        let task = self.in_lane(|lane| {
            lane.hurries = true;
            if let Some(hurry) = &lane.hurry {
                hurry.notify_one();
            }
            lane.pass()
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Its event could not be sent, and is tried again later. The others of its pipeline wait for it
    /// meanwhile, unless the lane hurries: then they pass it.
    pub(super) fn rest(&self) {
        let task = self.in_lane(|lane| {
            if lane.first != self.number {
                return None;
            }
            lane.rests = true;
            lane.pass()
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Its event is tried again after it has [rested](Self::rest). Returns the place, unless it has been
    /// passed and is in its lane no longer.
    pub(super) fn goes_on(mut self) -> Option<Self> {
        let mut shard = self.lanes.shards[self.shard].lock();
        let lane = shard.lanes.get_mut(&self.topic)?;
        self.began = lane.first == self.number;
        let is_in_lane = if self.began {
            lane.rests = false;
            true
        } else {
            lane.behind(self.number).map(|behind| behind.who = Who::Ordered).is_some()
        };
        drop(shard);
        is_in_lane.then_some(self)
    }

    /// Waits until the lane has to [hurry](Self::hurry). For the one whose turn it is.
    pub(super) async fn hurried(&self) {
        loop {
            let told = self.in_lane(|lane| {
                (!lane.hurries).then(|| lane.hurry.get_or_insert_default().clone())
            });
            let Some(told) = told else { return };
            told.notified().await;
        }
    }

    fn in_lane<T>(&self, look: impl FnOnce(&mut Lane) -> T) -> T {
        let mut shard = self.lanes.shards[self.shard].lock();
        look(shard.lanes.get_mut(&self.topic).expect("a lane is there for as long as its places"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.lanes.shards[self.shard].lock();
        let Some(lane) = shard.lanes.get_mut(&self.topic) else { return };
        if lane.first != self.number {
            if let Ok(at) = lane.behind.binary_search_by_key(&self.number, |behind| behind.number) {
                lane.behind.remove(at);
            }
            return;
        }
        let Some(task) = lane.advance() else {
            shard.lanes.remove(&self.topic);
            return;
        };
        drop(shard);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("topic", &self.topic).field("number", &self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn turns_come_in_the_order_of_the_places_however_late_their_tasks_are() {
        let lanes = Arc::new(Lanes::default());
        let [first, second, third] = [(); 3].map(|()| lanes.enter(&"t".into(), Who::Ordered));
        let other = lanes.enter(&"another".into(), Who::Ordered);
        assert!(poll!(pin!(other.turn())).is_ready());
        assert!(poll!(pin!(third.turn())).is_pending());
        assert!(poll!(pin!(first.turn())).is_ready());
        drop(first);
        assert!(poll!(pin!(third.turn())).is_pending(), "it was behind the second");
        assert!(poll!(pin!(second.turn())).is_ready());
        assert_eq!(third.waiting(), 1);
        drop(second);
        third.turn().await;
        drop((third, other));
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn a_lane_that_hurries_does_so_until_it_is_empty() {
        let lanes = Arc::new(Lanes::default());
        let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into(), Who::Ordered));
        let mut hurried = Box::pin(first.hurried());
        assert!(poll!(&mut hurried).is_pending());
        second.hurry();
        hurried.await;
        drop(first);
        second.hurried().await;
        drop(second);
        let third = lanes.enter(&"t".into(), Who::Ordered);
        assert!(poll!(pin!(third.hurried())).is_pending());
    }

    #[tokio::test]
    async fn one_that_rests_is_passed_by_its_own_pipeline_only_in_a_lane_that_hurries() {
        for hurries_before in [true, false] {
            let lanes = Arc::new(Lanes::default());
            let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into(), Who::Ordered));
            first.rest();
            assert!(poll!(pin!(second.turn())).is_pending());
            let first = first.goes_on().unwrap();
            if hurries_before {
                second.hurry();
                assert!(poll!(pin!(second.turn())).is_pending(), "the first has its turn");
                first.rest();
            } else {
                first.rest();
                second.hurry();
            }
            assert!(poll!(pin!(second.turn())).is_ready());
            assert!(first.goes_on().is_none());
            drop(second);
            assert_eq!(lanes.open(), 0);
        }
    }

    #[tokio::test]
    async fn a_place_that_was_passed_is_none_in_a_lane_that_begins_anew() {
        let lanes = Arc::new(Lanes::default());
        let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into(), Who::Ordered));
        first.rest();
        second.hurry();
        drop(second);
        let third = lanes.enter(&"t".into(), Who::Ordered);
        assert!(first.goes_on().is_none());
        assert!(third.goes_on().is_some());
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn one_that_rests_is_overtaken_and_keeps_its_place_before_the_others() {
        for entered_before in [true, false] {
            for goes_on_meanwhile in [true, false] {
                let lanes = Arc::new(Lanes::default());
                let enter = |who| lanes.enter(&"t".into(), who);
                let [first, second] = [(); 2].map(|()| enter(Who::Ordered));
                let early = entered_before.then(|| enter(Who::Overtaking));
                first.rest();
                let overtaking = early.unwrap_or_else(|| enter(Who::Overtaking));
                assert!(poll!(pin!(overtaking.turn())).is_ready());
                let another = enter(Who::Overtaking);
                assert!(poll!(pin!(another.turn())).is_pending(), "one after the other");
                if goes_on_meanwhile {
                    let first = first.goes_on().unwrap();
                    assert!(poll!(pin!(first.turn())).is_pending());
                    drop(overtaking);
                    assert!(poll!(pin!(first.turn())).is_ready());
                    assert!(poll!(pin!(another.turn())).is_pending(), "it rests no longer");
                    first.rest();
                    assert!(poll!(pin!(another.turn())).is_ready());
                    drop((another, first));
                } else {
                    drop(overtaking);
                    assert!(poll!(pin!(another.turn())).is_ready());
                    drop(another);
                    assert!(poll!(pin!(second.turn())).is_pending());
                    let first = first.goes_on().unwrap();
                    assert!(poll!(pin!(first.turn())).is_ready());
                    drop(first);
                }
                assert!(poll!(pin!(second.turn())).is_ready());
                drop(second);
                assert_eq!(lanes.open(), 0);
            }
        }
    }

    #[tokio::test]
    async fn one_that_rests_and_is_overtaken_is_passed_when_its_lane_hurries() {
        let lanes = Arc::new(Lanes::default());
        let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into(), Who::Ordered));
        first.rest();
        let overtaking = lanes.enter(&"t".into(), Who::Overtaking);
        second.hurry();
        assert!(poll!(pin!(second.turn())).is_pending());
        drop(overtaking);
        assert!(poll!(pin!(second.turn())).is_ready());
        assert!(first.goes_on().is_none());
        drop(second);
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn the_next_event_passes_one_that_rests_alone_in_a_lane_that_hurries() {
        let lanes = Arc::new(Lanes::default());
        let first = lanes.enter(&"t".into(), Who::Ordered);
        first.hurry();
        first.rest();
        let second = lanes.enter(&"t".into(), Who::Ordered);
        assert!(poll!(pin!(second.turn())).is_ready());
        drop((first, second));
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn a_sender_that_gives_up_leaves_nothing_behind() {
        let lanes = Arc::new(Lanes::default());
        for gives_up in [0, 1, 2] {
            let mut places = [(); 3].map(|()| Some(lanes.enter(&"t".into(), Who::Ordered)));
            places[gives_up] = None;
            for place in places.iter_mut().filter_map(Option::take) {
                place.turn().await;
            }
            assert_eq!(lanes.open(), 0, "{gives_up}");
        }
    }
}
