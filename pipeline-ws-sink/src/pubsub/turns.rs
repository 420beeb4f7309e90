//! Turns: the order in which pushes are sent to a topic.

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
pub(super) struct TopicTurns {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    queues: HashMap<Arc<str>, TurnQueue, RandomState>,
    /// The number of the next turn. Numbers are unique in a shard.
    next: u64,
}

/// The senders of one topic: one is being served, and the others wait behind it in order.
struct TurnQueue {
    /// The number of the turn that is being served.
    first: u64,
    behind: VecDeque<Waiter>,
    /// The first turn could not be sent and is retried later. Meanwhile no turn is served.
    rests: bool,
    /// From now on, no sender in this queue waits for slow clients.
    waits_ended: bool,
    /// Notifies the first turn while it waits for slow clients.
    end_notify: Option<Arc<Notify>>,
}

struct Waiter {
    number: u64,
    /// Its task, once it waits to be served.
    task: Option<Waker>,
    kind: TurnKind,
}

/// The kinds of turns in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnKind {
    /// A pipeline's event, which keeps its order with the pipeline's other events.
    Ordered,
    /// An event that overtakes a resting event and the events behind it.
    Overtaking,
    /// A resting event that has been overtaken.
    Resting,
}

/// A turn in the queue of a topic. Dropping it serves the next turn.
pub(super) struct Turn {
    queues: Arc<TopicTurns>,
    topic: Arc<str>,
    /// The shard of its queue.
    shard: usize,
    number: u64,
    /// Whether it was served at once.
    is_first: bool,
}

impl TopicTurns {
    /// Enters the queue of a topic at its end, unless the event overtakes a resting one.
    pub(super) fn enter(self: &Arc<Self>, topic: &Arc<str>, kind: TurnKind) -> Turn {
        let at = self.shard_of(topic);
        let mut shard = self.shards[at].lock();
        let number = shard.next;
        shard.next += 1;
        let is_first = if let Some(queue) = shard.queues.get_mut(topic) {
            queue.behind.push_back(Waiter { number, task: None, kind });
            queue.pass();
            queue.first == number
        } else {
            let (behind, end_notify) = (VecDeque::new(), None);
            let queue =
                TurnQueue { first: number, behind, rests: false, waits_ended: false, end_notify };
            shard.queues.insert(topic.clone(), queue);
            true
        };
        drop(shard);
        Turn { queues: self.clone(), topic: topic.clone(), shard: at, number, is_first }
    }

    fn shard_of(&self, topic: &str) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let hash = self.hasher.hash_one(topic) as usize;
        hash % SHARDS
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().queues.len()).sum()
    }
}

impl TurnQueue {
    /// Serves the next turn, if there is one. Returns its task, if that waits.
    fn advance(&mut self) -> Option<Option<Waker>> {
        let next = self.behind.pop_front()?;
        (self.first, self.rests) = (next.number, next.kind == TurnKind::Resting);
        Some(if self.rests { self.pass() } else { next.task })
    }

    /// If the first turn rests, serves the next turn that may pass it. Returns its task, if that
    /// waits.
    ///
    /// Once waits have ended, every turn may pass, and the first turn leaves the queue. Otherwise it
    /// stays in front of the others.
    fn pass(&mut self) -> Option<Waker> {
        if !self.rests {
            return None;
        }
        let mut behind = self.behind.iter();
        let at =
            behind.position(|behind| self.waits_ended || behind.kind == TurnKind::Overtaking)?;
        let next = self.behind.remove(at)?;
        if !self.waits_ended {
            let number = self.first;
            self.behind.push_front(Waiter { number, task: None, kind: TurnKind::Resting });
        }
        (self.first, self.rests) = (next.number, false);
        next.task
    }

    /// The turn with this number, if it is not the first.
    fn behind(&mut self, number: u64) -> Option<&mut Waiter> {
        let at = self.behind.binary_search_by_key(&number, |behind| behind.number).ok()?;
        self.behind.get_mut(at)
    }
}

impl Turn {
    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Waits until this turn is served.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the turn is kept.
    pub(super) async fn wait(&self) {
        if !self.is_first {
            poll_fn(|cx| self.poll_wait(cx)).await;
        }
    }

    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.in_queue(|queue| {
            let Some(behind) = queue.behind(self.number) else { return Poll::Ready(()) };
            match &mut behind.task {
                Some(known) => known.clone_from(cx.waker()),
                unknown => *unknown = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
    }

    /// The number of turns that wait behind the first.
    pub(super) fn waiting(&self) -> usize {
        self.in_queue(|queue| queue.behind.len())
    }

    /// Makes the senders in the queue stop waiting for slow clients, and for a turn that
    /// [rests](Self::rest), until the queue is empty.
    pub(super) fn end_waits(&self) {
        let task = self.in_queue(|queue| {
            queue.waits_ended = true;
            if let Some(end_notify) = &queue.end_notify {
                end_notify.notify_one();
            }
            queue.pass()
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Marks the turn as resting: its event could not be sent and is retried later. The other
    /// events of its pipeline wait for it meanwhile, unless waits have ended: then they pass it.
    pub(super) fn rest(&self) {
        let task = self.in_queue(|queue| {
            if queue.first != self.number {
                return None;
            }
            queue.rests = true;
            queue.pass()
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Retries the event after it has [rested](Self::rest). Returns the turn, or `None` if it was
    /// passed and has left its queue.
    pub(super) fn resume(mut self) -> Option<Self> {
        let mut shard = self.queues.shards[self.shard].lock();
        let queue = shard.queues.get_mut(&self.topic)?;
        self.is_first = queue.first == self.number;
        let is_queued = if self.is_first {
            queue.rests = false;
            true
        } else {
            queue.behind(self.number).map(|behind| behind.kind = TurnKind::Ordered).is_some()
        };
        drop(shard);
        is_queued.then_some(self)
    }

    /// Completes when [`end_waits`](Self::end_waits) has been called. For the turn that is being served.
    pub(super) async fn waits_ended(&self) {
        loop {
            let notify = self.in_queue(|queue| {
                (!queue.waits_ended).then(|| queue.end_notify.get_or_insert_default().clone())
            });
            let Some(notify) = notify else { return };
            notify.notified().await;
        }
    }

    fn in_queue<T>(&self, look: impl FnOnce(&mut TurnQueue) -> T) -> T {
        let mut shard = self.queues.shards[self.shard].lock();
        look(shard.queues.get_mut(&self.topic).expect("a queue exists as long as its turns"))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut shard = self.queues.shards[self.shard].lock();
        let Some(queue) = shard.queues.get_mut(&self.topic) else { return };
        if queue.first != self.number {
            if let Ok(at) = queue.behind.binary_search_by_key(&self.number, |behind| behind.number)
            {
                queue.behind.remove(at);
            }
            return;
        }
        let Some(task) = queue.advance() else {
            shard.queues.remove(&self.topic);
            return;
        };
        drop(shard);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("topic", &self.topic).field("number", &self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn turns_are_served_in_order_however_late_their_tasks_are() {
        let queues = Arc::new(TopicTurns::default());
        let [first, second, third] = [(); 3].map(|()| queues.enter(&"t".into(), TurnKind::Ordered));
        let other = queues.enter(&"another".into(), TurnKind::Ordered);
        assert!(poll!(pin!(other.wait())).is_ready());
        assert!(poll!(pin!(third.wait())).is_pending());
        assert!(poll!(pin!(first.wait())).is_ready());
        drop(first);
        assert!(poll!(pin!(third.wait())).is_pending(), "it waits behind the second");
        assert!(poll!(pin!(second.wait())).is_ready());
        assert_eq!(third.waiting(), 1);
        drop(second);
        third.wait().await;
        drop((third, other));
        assert_eq!(queues.open(), 0);
    }

    #[tokio::test]
    async fn waits_stay_ended_until_the_queue_is_empty() {
        let queues = Arc::new(TopicTurns::default());
        let [first, second] = [(); 2].map(|()| queues.enter(&"t".into(), TurnKind::Ordered));
        let mut ended = Box::pin(first.waits_ended());
        assert!(poll!(&mut ended).is_pending());
        second.end_waits();
        ended.await;
        drop(first);
        second.waits_ended().await;
        drop(second);
        let third = queues.enter(&"t".into(), TurnKind::Ordered);
        assert!(poll!(pin!(third.waits_ended())).is_pending());
    }

    #[tokio::test]
    async fn a_resting_turn_is_passed_by_its_own_pipeline_only_once_waits_have_ended() {
        for ended_before in [true, false] {
            let queues = Arc::new(TopicTurns::default());
            let [first, second] = [(); 2].map(|()| queues.enter(&"t".into(), TurnKind::Ordered));
            first.rest();
            assert!(poll!(pin!(second.wait())).is_pending());
            let first = first.resume().unwrap();
            if ended_before {
                second.end_waits();
                assert!(poll!(pin!(second.wait())).is_pending(), "the first is being served");
                first.rest();
            } else {
                first.rest();
                second.end_waits();
            }
            assert!(poll!(pin!(second.wait())).is_ready());
            assert!(first.resume().is_none());
            drop(second);
            assert_eq!(queues.open(), 0);
        }
    }

    #[tokio::test]
    async fn a_passed_turn_is_gone_when_its_queue_is_created_again() {
        let queues = Arc::new(TopicTurns::default());
        let [first, second] = [(); 2].map(|()| queues.enter(&"t".into(), TurnKind::Ordered));
        first.rest();
        second.end_waits();
        drop(second);
        let third = queues.enter(&"t".into(), TurnKind::Ordered);
        assert!(first.resume().is_none());
        assert!(third.resume().is_some());
        assert_eq!(queues.open(), 0);
    }

    #[tokio::test]
    async fn a_resting_turn_is_overtaken_and_stays_ahead_of_the_others() {
        for entered_before in [true, false] {
            for continues_meanwhile in [true, false] {
                let queues = Arc::new(TopicTurns::default());
                let enter = |kind| queues.enter(&"t".into(), kind);
                let [first, second] = [(); 2].map(|()| enter(TurnKind::Ordered));
                let early = entered_before.then(|| enter(TurnKind::Overtaking));
                first.rest();
                let overtaking = early.unwrap_or_else(|| enter(TurnKind::Overtaking));
                assert!(poll!(pin!(overtaking.wait())).is_ready());
                let another = enter(TurnKind::Overtaking);
                assert!(poll!(pin!(another.wait())).is_pending(), "one after the other");
                if continues_meanwhile {
                    let first = first.resume().unwrap();
                    assert!(poll!(pin!(first.wait())).is_pending());
                    drop(overtaking);
                    assert!(poll!(pin!(first.wait())).is_ready());
                    assert!(poll!(pin!(another.wait())).is_pending(), "the first no longer rests");
                    first.rest();
                    assert!(poll!(pin!(another.wait())).is_ready());
                    drop((another, first));
                } else {
                    drop(overtaking);
                    assert!(poll!(pin!(another.wait())).is_ready());
                    drop(another);
                    assert!(poll!(pin!(second.wait())).is_pending());
                    let first = first.resume().unwrap();
                    assert!(poll!(pin!(first.wait())).is_ready());
                    drop(first);
                }
                assert!(poll!(pin!(second.wait())).is_ready());
                drop(second);
                assert_eq!(queues.open(), 0);
            }
        }
    }

    #[tokio::test]
    async fn an_overtaken_resting_turn_is_passed_when_waits_end() {
        let queues = Arc::new(TopicTurns::default());
        let [first, second] = [(); 2].map(|()| queues.enter(&"t".into(), TurnKind::Ordered));
        first.rest();
        let overtaking = queues.enter(&"t".into(), TurnKind::Overtaking);
        second.end_waits();
        assert!(poll!(pin!(second.wait())).is_pending());
        drop(overtaking);
        assert!(poll!(pin!(second.wait())).is_ready());
        assert!(first.resume().is_none());
        drop(second);
        assert_eq!(queues.open(), 0);
    }

    #[tokio::test]
    async fn the_next_event_passes_a_turn_that_rests_alone_once_waits_have_ended() {
        let queues = Arc::new(TopicTurns::default());
        let first = queues.enter(&"t".into(), TurnKind::Ordered);
        first.end_waits();
        first.rest();
        let second = queues.enter(&"t".into(), TurnKind::Ordered);
        assert!(poll!(pin!(second.wait())).is_ready());
        drop((first, second));
        assert_eq!(queues.open(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_sender_leaves_no_turn_behind() {
        let queues = Arc::new(TopicTurns::default());
        for gives_up in [0, 1, 2] {
            let mut turns = [(); 3].map(|()| Some(queues.enter(&"t".into(), TurnKind::Ordered)));
            turns[gives_up] = None;
            for turn in turns.iter_mut().filter_map(Option::take) {
                turn.wait().await;
            }
            assert_eq!(queues.open(), 0, "{gives_up}");
        }
    }
}
