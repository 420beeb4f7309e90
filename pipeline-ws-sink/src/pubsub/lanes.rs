//! Lanes: the order in which pushes are sent to a topic.

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

/// The number of shards, which reduces lock contention between senders.
const SHARDS: usize = 16;

/// The topics with a push in progress. Other topics take no memory.
#[derive(Default)]
pub(super) struct Lanes {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    lanes: HashMap<Arc<str>, Lane, RandomState>,
    /// The number of the next place. Numbers are unique in a shard.
    next: u64,
}

/// The senders of one topic: one is being served, and the others wait behind it in order.
struct Lane {
    /// The number of the place that is being served.
    first: u64,
    behind: VecDeque<Behind>,
    /// The first place could not be sent and is retried later. Meanwhile no place is served.
    rests: bool,
    /// From now on, no sender in this lane waits for slow clients.
    hurries: bool,
    /// Notifies the first place while it waits for slow clients.
    hurry: Option<Arc<Notify>>,
}

struct Behind {
    number: u64,
    /// Its task, once it waits to be served.
    task: Option<Waker>,
    who: Who,
}

/// The kinds of places in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A pipeline's event, which keeps its order with the pipeline's other events.
    Ordered,
    /// An event that overtakes a resting event and the events behind it.
    Overtaking,
    /// A resting event that has been overtaken.
    Resting,
}

/// A place in the lane of a topic. Dropping it serves the next place.
pub(super) struct Place {
    lanes: Arc<Lanes>,
    topic: Arc<str>,
    /// The shard of its lane.
    shard: usize,
    number: u64,
    /// Whether it was served at once.
    began: bool,
}

impl Lanes {
    /// Enters the lane of a topic at its end, unless the event overtakes a resting one.
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
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let hash = self.hasher.hash_one(topic) as usize;
        hash % SHARDS
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().lanes.len()).sum()
    }
}

impl Lane {
    /// Serves the next place, if there is one. Returns its task, if that waits.
    fn advance(&mut self) -> Option<Option<Waker>> {
        let next = self.behind.pop_front()?;
        (self.first, self.rests) = (next.number, next.who == Who::Resting);
        Some(if self.rests { self.pass() } else { next.task })
    }

    /// If the first place rests, serves the next place that may pass it. Returns its task, if that
    /// waits.
    ///
    /// In a hurrying lane every place may pass, and the first place leaves the lane. Otherwise it
    /// stays in front of the others.
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

    /// The place with this number, if it is not the first.
    fn behind(&mut self, number: u64) -> Option<&mut Behind> {
        let at = self.behind.binary_search_by_key(&number, |behind| behind.number).ok()?;
        self.behind.get_mut(at)
    }
}

impl Place {
    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Waits until this place is served.
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

    /// The number of places that wait behind the first.
    pub(super) fn waiting(&self) -> usize {
        self.in_lane(|lane| lane.behind.len())
    }

    /// Makes the senders in the lane stop waiting for slow clients, and for a place that
    /// [rests](Self::rest), until the lane is empty.
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

    /// Marks the place as resting: its event could not be sent and is retried later. The other
    /// events of its pipeline wait for it meanwhile, unless the lane hurries: then they pass it.
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

    /// Retries the event after it has [rested](Self::rest). Returns the place, or `None` if it was
    /// passed and has left its lane.
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

    /// Waits until the lane has to [hurry](Self::hurry). Called by the place that is being served.
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
        look(shard.lanes.get_mut(&self.topic).expect("a lane exists as long as its places"))
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
    async fn places_are_served_in_order_however_late_their_tasks_are() {
        let lanes = Arc::new(Lanes::default());
        let [first, second, third] = [(); 3].map(|()| lanes.enter(&"t".into(), Who::Ordered));
        let other = lanes.enter(&"another".into(), Who::Ordered);
        assert!(poll!(pin!(other.turn())).is_ready());
        assert!(poll!(pin!(third.turn())).is_pending());
        assert!(poll!(pin!(first.turn())).is_ready());
        drop(first);
        assert!(poll!(pin!(third.turn())).is_pending(), "it waits behind the second");
        assert!(poll!(pin!(second.turn())).is_ready());
        assert_eq!(third.waiting(), 1);
        drop(second);
        third.turn().await;
        drop((third, other));
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn a_lane_hurries_until_it_is_empty() {
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
    async fn a_resting_place_is_passed_by_its_own_pipeline_only_in_a_hurrying_lane() {
        for hurries_before in [true, false] {
            let lanes = Arc::new(Lanes::default());
            let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into(), Who::Ordered));
            first.rest();
            assert!(poll!(pin!(second.turn())).is_pending());
            let first = first.goes_on().unwrap();
            if hurries_before {
                second.hurry();
                assert!(poll!(pin!(second.turn())).is_pending(), "the first is being served");
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
    async fn a_passed_place_is_gone_when_its_lane_is_created_again() {
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
    async fn a_resting_place_is_overtaken_and_stays_ahead_of_the_others() {
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
                    assert!(poll!(pin!(another.turn())).is_pending(), "the first no longer rests");
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
    async fn an_overtaken_resting_place_is_passed_when_its_lane_hurries() {
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
    async fn the_next_event_passes_a_place_that_rests_alone_in_a_hurrying_lane() {
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
    async fn a_cancelled_sender_leaves_no_place_behind() {
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
