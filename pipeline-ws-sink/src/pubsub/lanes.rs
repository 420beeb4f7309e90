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
    /// The first could not be sent, and is tried again later.
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
    /// Takes the last place in the lane of a topic.
    pub(super) fn enter(self: &Arc<Self>, topic: &Arc<str>) -> Place {
        let at = self.shard_of(topic);
        let mut shard = self.shards[at].lock();
        let number = shard.next;
        shard.next += 1;
        let began = if let Some(lane) = shard.lanes.get_mut(topic) {
            lane.behind.push_back(Behind { number, task: None });
            false
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
        (self.first, self.rests) = (next.number, false);
        Some(next.task)
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
            let Ok(at) = lane.behind.binary_search_by_key(&self.number, |behind| behind.number)
            else {
                return Poll::Ready(());
            };
            match &mut lane.behind[at].task {
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
            if lane.rests { lane.advance().flatten() } else { None }
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Its event could not be sent, and is tried again later. The others wait for it meanwhile, unless the
    /// lane hurries: then they pass it.
    pub(super) fn rest(&self) {
        let task = self.in_lane(|lane| {
            if lane.first != self.number {
                return None;
            }
            lane.rests = true;
            if lane.hurries { lane.advance().flatten() } else { None }
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Whether it still is in its lane after it has [rested](Self::rest).
    pub(super) fn goes_on(&self) -> bool {
        let mut shard = self.lanes.shards[self.shard].lock();
        let lane = shard.lanes.get_mut(&self.topic).filter(|lane| lane.first == self.number);
        lane.map(|lane| lane.rests = false).is_some()
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
        let [first, second, third] = [(); 3].map(|()| lanes.enter(&"t".into()));
        let other = lanes.enter(&"another".into());
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
        let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into()));
        let mut hurried = Box::pin(first.hurried());
        assert!(poll!(&mut hurried).is_pending());
        second.hurry();
        hurried.await;
        drop(first);
        second.hurried().await;
        drop(second);
        let third = lanes.enter(&"t".into());
        assert!(poll!(pin!(third.hurried())).is_pending());
    }

    #[tokio::test]
    async fn one_that_rests_is_passed_only_in_a_lane_that_hurries() {
        for hurries_before in [true, false] {
            let lanes = Arc::new(Lanes::default());
            let [first, second] = [(); 2].map(|()| lanes.enter(&"t".into()));
            first.rest();
            assert!(poll!(pin!(second.turn())).is_pending());
            assert!(first.goes_on());
            if hurries_before {
                second.hurry();
                assert!(poll!(pin!(second.turn())).is_pending(), "the first has its turn");
                first.rest();
            } else {
                first.rest();
                second.hurry();
            }
            assert!(poll!(pin!(second.turn())).is_ready());
            assert!(!first.goes_on());
            drop(second);
            assert_eq!(lanes.open(), 0);
            // A lane that begins anew is not the one that it was in.
            let third = lanes.enter(&"t".into());
            assert!(!first.goes_on());
            drop(first);
            assert!(third.goes_on());
        }
    }

    #[tokio::test]
    async fn a_sender_that_gives_up_leaves_nothing_behind() {
        let lanes = Arc::new(Lanes::default());
        for gives_up in [0, 1, 2] {
            let mut places = [(); 3].map(|()| Some(lanes.enter(&"t".into())));
            places[gives_up] = None;
            for place in places.iter_mut().filter_map(Option::take) {
                place.turn().await;
            }
            assert_eq!(lanes.open(), 0, "{gives_up}");
        }
    }
}
