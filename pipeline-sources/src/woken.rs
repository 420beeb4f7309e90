//! The items that are postponed until a signal, and those whose delays are to be ended, kept until their broker has
//! ended them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::processing::WaitsForWake;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// How many items may wait for signals, and how many for a call of the broker. The delays of others end by themselves.
const MOST_WAITING: usize = 100_000;

/// How often the broker is called for the same items. After that their delays end by themselves.
const MOST_TRIES: u32 = 5;

/// How long after the first call that has failed the next one is made. After each further one it is twice as long.
const PAUSE: Duration = Duration::from_secs(1);

/// A delay without an end, as far as one can be reckoned.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A postponed item whose signal was given: its id, and the number of the delay.
pub(crate) type Signal = (Arc<str>, u64);

/// The items that are postponed until a signal. Of each item there is the last delay, until it is over or the item is
/// delivered again: a signal that is used for many deliveries ends no delay that is not its own.
#[derive(Debug)]
pub(crate) struct Postponed<R>(Mutex<Table<R>>);

#[derive(Debug)]
struct Table<R> {
    items: HashMap<Arc<str>, Delayed<R>>,
    /// When each delay is over.
    ends: BTreeMap<(Instant, u64), Arc<str>>,
    last: u64,
    most: usize,
}

#[derive(Debug)]
struct Delayed<R> {
    receipt: R,
    number: u64,
    end: Instant,
    /// What waits for the signal. `None` while it is being made.
    waits: Option<WaitsForWake>,
}

impl<R> Default for Postponed<R> {
    fn default() -> Self {
        Self::with_most(MOST_WAITING)
    }
}

impl<R> Postponed<R> {
    fn with_most(most: usize) -> Self {
        Self(Mutex::new(Table { items: HashMap::new(), ends: BTreeMap::new(), last: 0, most }))
    }

    /// An item was postponed for so long, until a signal for which `wait` waits. Returns how many items had to be
    /// forgotten, which are those whose delays end first.
    pub(crate) fn keep(
        &self,
        id: &Arc<str>,
        receipt: R,
        delay: Duration,
        now: Instant,
        wait: impl FnOnce(Signal) -> WaitsForWake,
    ) -> u64 {
        let Some(end) = now.checked_add(delay.min(CENTURY)) else { return 1 };
        let mut table = self.0.lock();
        // Dropped when the lock is free, as what waits for a signal locks that.
        let mut gone = table.until(now);
        gone.extend(table.remove(id));
        table.last = table.last.wrapping_add(1);
        let number = table.last;
        table.ends.insert((end, number), id.clone());
        table.items.insert(id.clone(), Delayed { receipt, number, end, waits: None });
        let mut forgotten = 0;
        while table.items.len() > table.most {
            gone.extend(table.remove_first());
            forgotten += 1;
        }
        drop(table);
        drop(gone);
        let waits = wait((id.clone(), number));
        let mut table = self.0.lock();
        match table.items.get_mut(id) {
            Some(delayed) if delayed.number == number => delayed.waits = Some(waits),
            _ => {
                drop(table);
                drop(waits);
            }
        }
        forgotten
    }

    /// An item is delivered again.
    pub(crate) fn delivered(&self, id: &str) {
        let removed = self.0.lock().remove(id);
        drop(removed);
    }

    /// Forgets all of them, because they are delivered again.
    pub(crate) fn clear(&self) {
        let mut table = self.0.lock();
        table.ends.clear();
        let removed = std::mem::take(&mut table.items);
        drop(table);
        drop(removed);
    }

    /// The deliveries whose delays are not over, of these. The others are removed from them.
    fn waiting(&self, signals: &mut Vec<Signal>, now: Instant) -> Vec<R>
    where
        R: Clone,
    {
        let table = self.0.lock();
        let mut receipts = Vec::with_capacity(signals.len());
        signals.retain(|(id, number)| {
            let delayed = table.items.get(id).filter(|it| it.number == *number && it.end > now);
            receipts.extend(delayed.map(|it| it.receipt.clone()));
            delayed.is_some()
        });
        receipts
    }

    /// These delays are over, unless others have followed.
    fn ended(&self, signals: &[Signal]) {
        let mut table = self.0.lock();
        let mut gone = Vec::new();
        for (id, number) in signals {
            if table.items.get(id).is_some_and(|it| it.number == *number) {
                gone.extend(table.remove(id));
            }
        }
        drop(table);
        drop(gone);
    }
}

impl<R> Table<R> {
    fn remove(&mut self, id: &str) -> Option<WaitsForWake> {
        let removed = self.items.remove(id)?;
        self.ends.remove(&(removed.end, removed.number));
        removed.waits
    }

    /// Removes the one whose delay ends first.
    fn remove_first(&mut self) -> Option<WaitsForWake> {
        let (_, id) = self.ends.pop_first()?;
        self.items.remove(&id)?.waits
    }

    /// Removes those whose delay is over.
    fn until(&mut self, now: Instant) -> Vec<WaitsForWake> {
        let mut gone = Vec::new();
        while self.ends.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            gone.extend(self.remove_first());
        }
        gone
    }
}

/// The items whose delays are to be ended. They outlive sessions.
#[derive(Debug)]
pub(crate) struct Woken<R> {
    waiting: mpsc::Receiver<Signal>,
    /// Those that the broker is called for, and how many calls have failed.
    group: Vec<Signal>,
    receipts: Vec<R>,
    tries: u32,
    /// When it may be called again.
    next: Option<Instant>,
}

impl<R: Clone> Woken<R> {
    /// The place where items wait, which are none yet, and what adds some.
    pub(crate) fn new() -> (mpsc::Sender<Signal>, Self) {
        let (sender, waiting) = mpsc::channel(MOST_WAITING);
        let (group, receipts) = (Vec::new(), Vec::new());
        (sender, Self { waiting, group, receipts, tries: 0, next: None })
    }

    /// Waits for items that are still postponed, and returns them, at most `most` at a time, and after a call that has
    /// failed not before its pause is over. They are the same until [`done`](Self::done) is called or they are
    /// given up. None, if no more come.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no item is lost.
    pub(crate) async fn next(&mut self, most: usize, postponed: &Postponed<R>) -> &[R] {
        loop {
            if self.group.is_empty() && self.waiting.recv_many(&mut self.group, most).await == 0 {
                return &[];
            }
            if let Some(next) = self.next {
                sleep_until(next).await;
            }
            self.receipts = postponed.waiting(&mut self.group, Instant::now());
            if !self.receipts.is_empty() {
                return &self.receipts;
            }
            self.done(postponed);
        }
    }

    /// The call for the items that were returned last has failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.next = now.checked_add(PAUSE.saturating_mul(1 << self.tries.min(MOST_TRIES)));
        self.tries += 1;
    }

    /// The delays of the items that were returned last are ended.
    pub(crate) fn done(&mut self, postponed: &Postponed<R>) {
        postponed.ended(&self.group);
        self.group.clear();
        (self.tries, self.next) = (0, None);
    }

    /// Gives up items for which too many calls have failed. Returns how many.
    pub(crate) fn give_up(&mut self, postponed: &Postponed<R>) -> usize {
        if self.tries < MOST_TRIES {
            return 0;
        }
        let count = self.group.len();
        self.done(postponed);
        count
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use pipeline_core::processing::Wake;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Postpones an item for an hour until a signal. Returns how many were forgotten.
    fn postpone(
        postponed: &Postponed<u32>,
        sender: &mpsc::Sender<Signal>,
        (id, receipt): (&str, u32),
        wake: &Wake,
    ) -> u64 {
        let sender = sender.clone();
        postponed.keep(&id.into(), receipt, HOUR, Instant::now(), |signal| {
            wake.on_wake(move || sender.try_send(signal).unwrap())
        })
    }

    /// Postpones items with the ids and receipts 1 to `last`, and gives their signal.
    fn woken(last: u32) -> (Postponed<u32>, mpsc::Sender<Signal>, Woken<u32>) {
        let (postponed, wake) = (Postponed::default(), Wake::new());
        let (sender, woken) = Woken::new();
        for n in 1..=last {
            postpone(&postponed, &sender, (&n.to_string(), n), &wake);
        }
        wake.wake();
        (postponed, sender, woken)
    }

    #[tokio::test(start_paused = true)]
    async fn items_are_returned_until_they_are_done_or_given_up_and_the_others_after_them() {
        let (postponed, sender, mut woken) = woken(5);
        for _ in 0..2 * MOST_TRIES {
            // A session that ends for another reason is no try.
            assert_eq!(woken.next(2, &postponed).now_or_never(), Some(&[1, 2][..]));
            assert_eq!(woken.give_up(&postponed), 0);
        }
        woken.failed(Instant::now());
        woken.done(&postponed);
        let begun = Instant::now();
        for _ in 0..MOST_TRIES {
            assert_eq!(woken.give_up(&postponed), 0);
            assert_eq!(woken.next(2, &postponed).await, [3, 4]);
            woken.failed(Instant::now());
        }
        assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 4 + 8, "each pause is twice as long");
        assert_eq!(woken.give_up(&postponed), 2);
        assert_eq!(woken.next(2, &postponed).now_or_never(), Some(&[5][..]));
        woken.done(&postponed);
        for _ in 0..2 * MOST_TRIES {
            assert_eq!(woken.give_up(&postponed), 0);
            assert_eq!(
                woken.next(2, &postponed).now_or_never(),
                None,
                "to wait for some is no try"
            );
        }
        drop(sender);
        assert_eq!(woken.next(2, &postponed).now_or_never(), Some(&[][..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_ends_the_last_delay_of_an_item_alone_and_none_that_is_over() {
        let (postponed, wake) = (Postponed::default(), Wake::new());
        let (sender, mut woken) = Woken::new();
        // The same signal for many deliveries of some items.
        for receipt in 0..10 {
            for id in ["a", "b", "c"] {
                postpone(&postponed, &sender, (id, receipt), &wake);
            }
        }
        postponed.delivered("b");
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 2 }");
        wake.wake();
        assert_eq!(woken.next(10, &postponed).now_or_never(), Some(&[9, 9][..]));
        // It is delivered again while the call for it is made, which fails.
        postponed.delivered("a");
        woken.failed(Instant::now());
        assert_eq!(woken.next(10, &postponed).await, [9]);
        woken.done(&postponed);
        assert!(postponed.0.lock().items.is_empty());
        assert!(postponed.0.lock().ends.is_empty());

        let late = Wake::new();
        postpone(&postponed, &sender, ("d", 1), &late);
        tokio::time::advance(HOUR).await;
        late.wake();
        assert_eq!(woken.next(10, &postponed).now_or_never(), None, "its delay is over");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_items_wait_than_may_and_those_of_delays_that_are_over_are_forgotten() {
        let (postponed, wake) = (Postponed::with_most(10), Wake::new());
        let (sender, _woken) = Woken::<u32>::new();
        let waiting = || postponed.0.lock().items.len();
        let mut forgotten = 0;
        for n in 0..15 {
            forgotten += postpone(&postponed, &sender, (&n.to_string(), n), &wake);
        }
        assert_eq!((waiting(), forgotten), (10, 5));
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 10 }");
        tokio::time::advance(HOUR).await;
        assert_eq!(postpone(&postponed, &sender, ("next", 1), &wake), 0);
        assert_eq!(waiting(), 1);
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 1 }");
    }
}
