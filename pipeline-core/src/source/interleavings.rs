//! Queues whose ends meet in every possible order, up to a number of preemptions. A lost wakeup
//! shows as a deadlock.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use loom::{
    future::block_on,
    model::Builder,
    thread::{self, JoinHandle},
};

use super::{
    Closed, FairQueue, FairQueueOptions, OfferOutcome, Queue, QueueOptions, TryPushError,
    fair_queue, queue,
};
use crate::stage::{BufferKeep, Emitter, Producer};

/// How often a task may be preempted at a point where it need not wait. Most faults need one or
/// two.
const PREEMPTIONS: usize = 2;

/// The pushing end of either queue.
trait Pushing: Clone + Send + Sync + 'static {
    fn push(&self, item: u32) -> impl Future<Output = Result<(), Closed<u32>>> + Send + 'static;
    fn try_push(&self, item: u32) -> Result<(), TryPushError<u32>>;
    fn offer(&self, item: u32) -> Result<OfferOutcome, Closed<u32>>;
    fn close(&self);
    fn closed(&self) -> impl Future<Output = ()> + Send + 'static;
    fn is_closed(&self) -> bool;
    fn discarded(&self) -> u64;
}

impl Pushing for Queue<u32> {
    fn push(&self, item: u32) -> impl Future<Output = Result<(), Closed<u32>>> + Send + 'static {
        self.push(item)
    }

    fn try_push(&self, item: u32) -> Result<(), TryPushError<u32>> {
        self.try_push(item)
    }

    fn offer(&self, item: u32) -> Result<OfferOutcome, Closed<u32>> {
        self.offer(item)
    }

    fn close(&self) {
        self.close();
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed()
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn discarded(&self) -> u64 {
        self.discarded()
    }
}

/// Ten items belong to one key each: 10 to 19, 20 to 29.
impl Pushing for FairQueue<u32, u32> {
    fn push(&self, item: u32) -> impl Future<Output = Result<(), Closed<u32>>> + Send + 'static {
        self.push(item / 10, item)
    }

    fn try_push(&self, item: u32) -> Result<(), TryPushError<u32>> {
        self.try_push(item / 10, item)
    }

    fn offer(&self, item: u32) -> Result<OfferOutcome, Closed<u32>> {
        self.offer(item / 10, item)
    }

    fn close(&self) {
        self.close();
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed()
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn discarded(&self) -> u64 {
        self.discarded()
    }
}

/// The capacities and the policy of a queue.
#[derive(Clone, Copy)]
struct Room {
    all: usize,
    key: usize,
    keep: BufferKeep,
}

/// Room for one item.
const ONE: Room = Room { all: 1, key: 1, keep: BufferKeep::Last };

fn plain(room: Room) -> (Queue<u32>, impl Producer<Event = u32>) {
    queue(QueueOptions::new().capacity(room.all).keep(room.keep))
}

fn fair(room: Room) -> (FairQueue<u32, u32>, impl Producer<Event = u32>) {
    let options = FairQueueOptions::new().capacity(room.all).key_capacity(room.key);
    fair_queue(options.keep(room.keep))
}

/// Runs a case in every order.
fn in_every_order(case: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(case);
}

/// A task that pushes items one after the other. Returns the items that went in.
fn pusher(queue: &impl Pushing, items: &'static [u32]) -> JoinHandle<Vec<u32>> {
    let queue = queue.clone();
    thread::spawn(move || {
        let mut pushed = Vec::new();
        for item in items {
            match block_on(queue.push(*item)) {
                Ok(()) => pushed.push(*item),
                Err(Closed(back)) => assert_eq!(back, *item, "the item comes back"),
            }
        }
        pushed
    })
}

/// A stage with demand for one event at a time, until the queue ends. Returns the taken items.
fn take_all(producer: &mut impl Producer<Event = u32>) -> Vec<u32> {
    let mut taken = VecDeque::new();
    loop {
        block_on(producer.ready());
        let owed = taken.len() + 1;
        let mut out = Emitter::new(&mut taken, owed);
        block_on(producer.handle_ready(&mut out)).unwrap();
        if out.finishes() {
            break;
        }
    }
    assert_eq!(producer.pending(), 0);
    taken.into()
}

/// Polls once and drops the future.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn sorted(mut items: Vec<u32>) -> Vec<u32> {
    items.sort_unstable();
    items
}

/// The items of one pusher, in order.
fn of(items: &[u32], ten: u32) -> Vec<u32> {
    items.iter().copied().filter(|item| item / 10 == ten).collect()
}

/// Two tasks push more items than there is room for, and one stage takes them.
fn all_comes_out_in_order<Q: Pushing, P: Producer<Event = u32>>((queue, mut producer): (Q, P)) {
    let pushers = [pusher(&queue, &[10, 11]), pusher(&queue, &[20])];
    drop(queue);
    let taken = take_all(&mut producer);
    let pushed: usize = pushers.into_iter().map(|pusher| pusher.join().unwrap().len()).sum();
    assert_eq!((of(&taken, 1), of(&taken, 2)), (vec![10, 11], vec![20]));
    assert_eq!((taken.len(), pushed), (3, 3));
}

/// A pusher that gives up, in the wait list before another.
fn giving_up_affects_no_other_item<Q: Pushing, P: Producer<Event = u32>>(
    (queue, mut producer): (Q, P),
) {
    queue.try_push(10).unwrap();
    let impatient = {
        let queue = queue.clone();
        thread::spawn(move || poll_once(queue.push(11)).is_ready())
    };
    let patient = pusher(&queue, &[12, 20]);
    drop(queue);
    let taken = sorted(take_all(&mut producer));
    assert_eq!(patient.join().unwrap(), [12, 20]);
    let impatient_is_done = impatient.join().unwrap();
    // An item that had moved up when its pusher gave up stays.
    let is_in = taken.contains(&11);
    assert!(is_in || !impatient_is_done, "the pushed items are in the queue");
    let all: &[u32] = if is_in { &[10, 11, 12, 20] } else { &[10, 12, 20] };
    assert_eq!(taken, all);
}

/// A stage that is interrupted while it waits, and waits again.
fn an_interrupted_taker_is_woken<Q: Pushing, P: Producer<Event = u32>>(
    (queue, mut producer): (Q, P),
) {
    let pusher = pusher(&queue, &[10, 20]);
    drop(queue);
    let _ = poll_once(producer.ready());
    let taken = take_all(&mut producer);
    assert_eq!(sorted(taken), pusher.join().unwrap());
}

/// A queue that is closed while some tasks wait for room, and one for items.
fn closing_wakes_all<Q: Pushing, P: Producer<Event = u32> + 'static>(
    (queue, mut producer): (Q, P),
) {
    let pushers = [pusher(&queue, &[10]), pusher(&queue, &[11, 20])];
    let reader = thread::spawn(move || take_all(&mut producer));
    queue.close();
    let pushed: Vec<u32> = pushers.into_iter().flat_map(|pusher| pusher.join().unwrap()).collect();
    assert_eq!(sorted(reader.join().unwrap()), sorted(pushed));
}

/// A stage that ends or panics while some tasks wait for room.
fn no_pusher_waits_for_a_dropped_taker<Q: Pushing, P: Producer<Event = u32>>(
    (queue, producer): (Q, P),
) {
    let pushers = [pusher(&queue, &[10, 11]), pusher(&queue, &[12])];
    drop(producer);
    let pushed: usize = pushers.into_iter().map(|pusher| pusher.join().unwrap().len()).sum();
    assert!(pushed <= 1, "there was room for one");
    assert_eq!(block_on(queue.push(13)), Err(Closed(13)));
}

/// Tasks that wait for a queue to close, one of which gives up, and a stage that ends.
fn a_dropped_taker_completes_every_wait_for_the_end<Q: Pushing, P: Producer<Event = u32>>(
    (queue, producer): (Q, P),
) {
    let waiting = {
        let queue = queue.clone();
        thread::spawn(move || {
            block_on(queue.closed());
            assert!(queue.is_closed() && queue.try_push(10).is_err());
        })
    };
    let impatient = {
        let queue = queue.clone();
        thread::spawn(move || poll_once(queue.closed()).is_ready() <= queue.is_closed())
    };
    drop(producer);
    block_on(queue.closed());
    waiting.join().unwrap();
    assert!(impatient.join().unwrap(), "the wait ended before the queue was closed");
}

/// A stage that drains while others push: it takes the pushed items, and no more go in.
fn draining_takes_the_pushed_items<Q: Pushing, P: Producer<Event = u32>>(
    (queue, mut producer): (Q, P),
) {
    let pushers = [pusher(&queue, &[10]), pusher(&queue, &[11, 20])];
    let mut taken = VecDeque::new();
    let mut out = Emitter::new(&mut taken, 1);
    block_on(producer.handle_drain(&mut out)).unwrap();
    let mut taken: Vec<u32> = taken.into();
    taken.extend(take_all(&mut producer));
    let pushed: Vec<u32> = pushers.into_iter().flat_map(|pusher| pusher.join().unwrap()).collect();
    assert_eq!(sorted(taken), sorted(pushed));
}

/// Some tasks offer, and one waits for room: items that do not come out were counted.
fn discarded_items_are_counted<Q: Pushing, P: Producer<Event = u32>>(
    (queue, mut producer): (Q, P),
) {
    let offerer = {
        let queue = queue.clone();
        thread::spawn(move || {
            let kept = |item| matches!(queue.offer(item), Ok(OfferOutcome::Kept));
            [10, 11, 12].into_iter().filter(|item| !kept(*item)).count() as u64
        })
    };
    let pusher = pusher(&queue, &[13]);
    let counting = queue.clone();
    drop(queue);
    let reader = thread::spawn(move || take_all(&mut producer));
    let not_kept = offerer.join().unwrap();
    assert_eq!(pusher.join().unwrap(), [13]);
    let discarded = counting.discarded();
    drop(counting);
    assert_eq!(discarded, not_kept);
    assert_eq!(reader.join().unwrap().len() as u64 + discarded, 4);
}

/// A test of either queue with room for one item.
macro_rules! tests {
    ($($name:ident)*) => {
        mod a_queue {
            $(#[test]
            fn $name() {
                super::in_every_order(|| super::$name(super::plain(super::ONE)));
            })*
        }

        mod a_fair_queue {
            $(#[test]
            fn $name() {
                super::in_every_order(|| super::$name(super::fair(super::ONE)));
            })*
        }
    };
}

tests! {
    all_comes_out_in_order
    giving_up_affects_no_other_item
    an_interrupted_taker_is_woken
    closing_wakes_all
    no_pusher_waits_for_a_dropped_taker
    a_dropped_taker_completes_every_wait_for_the_end
    draining_takes_the_pushed_items
    discarded_items_are_counted
}
