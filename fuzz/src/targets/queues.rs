//! The queue and the fair queue against plain lists: bounds, order, waiting pushes and their wakers, discards.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake},
};

use pipeline_core::{
    fuzzing::demand,
    source::{
        Closed, FairQueue, FairQueueOptions, FairQueueProducer, OfferOutcome, Queue, QueueOptions,
        QueueProducer, TryPushError, fair_queue, queue,
    },
    stage::BufferKeep,
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[];

/// A key and a number.
type Item = (u8, u32);

const KEYS: usize = 4;

/// Whether a waiting push was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Push = Pin<Box<dyn Future<Output = Result<(), Closed<Item>>> + Send>>;

/// A push that waits for room. The queue has its item.
struct Waiting {
    push: Push,
    item: Item,
    woken: Arc<Woken>,
}

enum Ends {
    Plain(Queue<Item>, QueueProducer<Item>),
    Fair(FairQueue<u8, Item>, FairQueueProducer<u8, Item>),
}

struct Model {
    ends: Ends,
    capacity: usize,
    key_capacity: usize,
    keep: BufferKeep,
    /// The items in the queue, in the order of their arrival.
    held: VecDeque<Item>,
    waiting: Vec<Waiting>,
    closed: bool,
    next: u32,
    discarded: u64,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let is_fair = input.flag();
    let keep = if input.flag() { BufferKeep::First } else { BufferKeep::Last };
    let capacity = 1 + input.below(8);
    let key_capacity = if is_fair { 1 + input.below(5) } else { usize::MAX };
    let ends = if is_fair {
        let quantum = 1 + u32::from(input.byte() % 4);
        let (weight, cost) = (1 + u32::from(input.byte() % 3), 1 + u32::from(input.byte() % 5));
        let options = FairQueueOptions::new()
            .capacity(capacity)
            .key_capacity(key_capacity)
            .keep(keep)
            .quantum(quantum)
            .weight(move |key: &u8| 1 + u32::from(*key) % weight)
            .cost(move |item: &Item| 1 + item.1 % cost);
        let (queue, producer) = fair_queue(options);
        Ends::Fair(queue, producer)
    } else {
        let (queue, producer) = queue(QueueOptions::new().capacity(capacity).keep(keep));
        Ends::Plain(queue, producer)
    };
    let mut model = Model {
        ends,
        capacity,
        key_capacity,
        keep,
        held: VecDeque::new(),
        waiting: Vec::new(),
        closed: false,
        next: 0,
        discarded: 0,
    };
    while !input.is_empty() {
        let key = u8::try_from(input.below(KEYS)).unwrap_or_default();
        match input.below(8) {
            0 => model.try_push(key),
            1 => model.offer(key),
            2..=4 => model.push(key),
            5 => model.leave(input.below(8)),
            6 if input.below(32) == 0 => model.close(),
            _ => model.take(input.below(12)),
        }
        model.check();
    }
    // A plain queue lets waiting items move up only when others have left.
    for _ in 0..24 {
        model.take(usize::MAX >> 1);
        model.check();
    }
    assert!(model.held.is_empty() && model.waiting.is_empty(), "something is left");
}

impl Model {
    fn item(&mut self, key: u8) -> Item {
        self.next += 1;
        (key, self.next)
    }

    fn of_key(&self, key: u8) -> usize {
        self.held.iter().filter(|item| item.0 == key).count()
    }

    fn is_full(&self, key: u8) -> bool {
        self.held.len() == self.capacity || self.of_key(key) == self.key_capacity
    }

    fn try_push(&mut self, key: u8) {
        let item = self.item(key);
        let pushed = match &self.ends {
            Ends::Plain(queue, _) => queue.try_push(item),
            Ends::Fair(queue, _) => queue.try_push(key, item),
        };
        match pushed {
            Ok(()) => {
                assert!(!self.is_full(key) && !self.closed, "{item:?} is beyond the bound");
                self.held.push_back(item);
            }
            Err(TryPushError::Full(back)) => {
                assert!(back == item && self.held.len() == self.capacity, "{item:?} is refused");
            }
            Err(TryPushError::KeyFull(back)) => {
                let of_key = self.of_key(key);
                assert!(back == item && of_key == self.key_capacity, "{item:?} is refused");
            }
            Err(TryPushError::Closed(back)) => assert!(back == item && self.closed, "{item:?}"),
            Err(_) => unreachable!("an unknown error"),
        }
    }

    fn offer(&mut self, key: u8) {
        let item = self.item(key);
        let offered = match &self.ends {
            Ends::Plain(queue, _) => queue.offer(item),
            Ends::Fair(queue, _) => queue.offer(key, item),
        };
        let full = self.is_full(key);
        match offered {
            Ok(OfferOutcome::Kept) => {
                assert!(!full && !self.closed, "{item:?} is beyond the bound");
                self.held.push_back(item);
            }
            Ok(OfferOutcome::Discarded) => {
                assert!(full && self.keep == BufferKeep::First, "{item:?} is discarded");
                self.discarded += 1;
            }
            Ok(OfferOutcome::DisplacedOldest) => {
                assert!(full && self.keep == BufferKeep::Last, "{item:?} displaces");
                self.discarded += 1;
                let oldest = self.displaced(key);
                self.held.remove(oldest);
                self.held.push_back(item);
            }
            Err(Closed(back)) => assert!(back == item && self.closed, "{item:?}"),
        }
    }

    /// The place of the item that was displaced for one of this key.
    fn displaced(&self, key: u8) -> usize {
        let queue = match &self.ends {
            Ends::Plain(..) => return 0,
            Ends::Fair(queue, _) => queue,
        };
        // Only the queue knows which of the longest keys it was.
        let payer = (0..).take(KEYS).find(|of| {
            let after = queue.len_of(of);
            let before = self.of_key(*of) + usize::from(*of == key);
            after + 1 == before
        });
        let payer = payer.expect("a key has lost an item");
        let most = (0..).take(KEYS).map(|key| self.of_key(key)).max();
        let own_is_full = self.of_key(key) == self.key_capacity || Some(self.of_key(key)) == most;
        if own_is_full {
            assert_eq!(payer, key, "another key pays");
        } else {
            assert_eq!(Some(self.of_key(payer)), most, "a key pays that is not the longest");
        }
        self.held.iter().position(|item| item.0 == payer).expect("it had an item")
    }

    fn push(&mut self, key: u8) {
        if self.waiting.len() > 20 {
            return;
        }
        let item = self.item(key);
        let mut push: Push = match &self.ends {
            Ends::Plain(queue, _) => Box::pin(queue.push(item)),
            Ends::Fair(queue, _) => Box::pin(queue.push(key, item)),
        };
        let woken = Arc::new(Woken::default());
        let polled = push.as_mut().poll(&mut Context::from_waker(&woken.clone().into()));
        match polled {
            Poll::Ready(Ok(())) => {
                assert!(!self.is_full(key) && !self.closed, "{item:?} is beyond the bound");
                self.held.push_back(item);
            }
            Poll::Ready(Err(Closed(back))) => assert!(back == item && self.closed, "{item:?}"),
            Poll::Pending => {
                assert!(self.is_full(key) && !self.closed, "{item:?} waits while there is room");
                self.waiting.push(Waiting { push, item, woken });
            }
        }
    }

    /// A waiting push is dropped, and its item with it.
    fn leave(&mut self, which: usize) {
        if which < self.waiting.len() {
            self.waiting.remove(which);
        }
    }

    fn close(&mut self) {
        self.closed = true;
        match &self.ends {
            Ends::Plain(queue, _) => queue.close(),
            Ends::Fair(queue, _) => queue.close(),
        }
        for Waiting { mut push, item, woken } in self.waiting.drain(..) {
            assert!(woken.0.load(Ordering::Relaxed), "{item:?} is not woken by the end");
            let polled = push.as_mut().poll(&mut Context::from_waker(&woken.into()));
            assert_eq!(polled, Poll::Ready(Err(Closed(item))));
        }
    }

    fn take(&mut self, count: usize) {
        let answer = match &mut self.ends {
            Ends::Plain(_, producer) => demand(producer, count),
            Ends::Fair(_, producer) => demand(producer, count),
        };
        let (items, finishes) = answer.expect("a queue does not fail");
        assert!(items.len() <= count, "{} items for a demand of {count}", items.len());
        let is_fair = matches!(self.ends, Ends::Fair(..));
        let mut moved = self.woken();
        for item in &items {
            // An item leaves before all later ones of its key. One that has just moved up may leave, too.
            let at = self.held.iter().position(|held| held.0 == item.0 || !is_fair);
            match at {
                Some(at) => assert_eq!(self.held.remove(at), Some(*item), "the next item"),
                None => {
                    let at = moved.iter().position(|moved| moved.0 == item.0);
                    let at = at.expect("an item of this key has moved up");
                    assert_eq!(moved.remove(at), *item, "the next item");
                }
            }
        }
        self.held.extend(moved);
        let all = self.held.is_empty() && items.len() < count;
        assert!(!finishes || self.closed && self.held.is_empty(), "it finishes too early");
        assert!(finishes || !self.closed || !all, "it does not finish");
        let untaken = if is_fair { self.held.len() + self.waiting.len() } else { self.held.len() };
        assert!(items.len() == count || untaken == 0 || !is_fair, "{untaken} items stay");
    }

    /// The items of the pushes that were woken, and only of these, have moved up.
    fn woken(&mut self) -> Vec<Item> {
        let mut moved = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            let waker = waiting.woken.clone().into();
            let polled = waiting.push.as_mut().poll(&mut Context::from_waker(&waker));
            let is_woken = waiting.woken.0.load(Ordering::Relaxed);
            assert_eq!(polled.is_ready(), is_woken, "{:?}", waiting.item);
            match polled {
                Poll::Pending => self.waiting.push(waiting),
                Poll::Ready(result) => {
                    assert_eq!(result, Ok(()), "{:?}", waiting.item);
                    moved.push(waiting.item);
                }
            }
        }
        moved
    }

    fn check(&self) {
        let (len, discarded, is_closed) = match &self.ends {
            Ends::Plain(queue, _) => (queue.len(), queue.discarded(), queue.is_closed()),
            Ends::Fair(queue, _) => (queue.len(), queue.discarded(), queue.is_closed()),
        };
        let expected = (self.held.len(), self.discarded, self.closed);
        assert_eq!((len, discarded, is_closed), expected, "the items, the discarded ones, the end");
        assert!(len <= self.capacity, "{len} items, {} have room", self.capacity);
        if let Ends::Fair(queue, _) = &self.ends {
            for key in (0..).take(KEYS) {
                assert_eq!(queue.len_of(&key), self.of_key(key), "the items of {key}");
                assert!(self.of_key(key) <= self.key_capacity);
            }
        }
        for waiting in &self.waiting {
            assert!(self.is_full(waiting.item.0), "{:?} waits while there is room", waiting.item);
        }
    }
}
