//! Series by key: sharded lookup, creation within limits, removal when idle.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
    time::Duration,
};

use metrics::Key;
use parking_lot::{Mutex, RwLock};

/// The series of one kind.
///
/// Sharded with a lock per shard, so that threads that look up different series seldom contend.
pub(crate) struct Table<S> {
    shards: Box<[RwLock<Shard<S>>]>,
    limit: Arc<SeriesLimit>,
}

type Shard<S> = HashMap<Key, Arc<S>, BuildHasherDefault<KnownHash>>;

impl<S> Table<S> {
    pub(crate) fn new(limit: Arc<SeriesLimit>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores).map(|_| RwLock::default()).collect();
        Self { shards, limit }
    }

    /// The series of a key, created if necessary. None if a limit is reached; that is counted, and costs
    /// no more than a lookup.
    pub(crate) fn get_or_make(&self, key: &Key, make: impl FnOnce() -> S) -> Option<Arc<S>> {
        let shard = self.shard(key);
        if let Some(series) = shard.read().get(key) {
            return Some(Arc::clone(series));
        }
        if self.limit.refuses(key.name()) {
            return None;
        }
        let mut shard = shard.write();
        if let Some(series) = shard.get(key) {
            return Some(Arc::clone(series));
        }
        if !self.limit.reserve(key.name()) {
            return None;
        }
        let series = Arc::new(make());
        shard.insert(key.clone(), Arc::clone(&series));
        Some(series)
    }

    /// Every series, and whether a handle of it is held. No lock is held when this returns.
    pub(crate) fn all<T>(&self, mut entry: impl FnMut(&Key, Arc<S>, bool) -> T) -> Vec<T> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            all.extend(shard.iter().map(|(key, series)| {
                let is_held = Arc::strong_count(series) > 1;
                entry(key, Arc::clone(series), is_held)
            }));
        }
        all
    }

    /// Removes every series without a handle for which `may_leave` is true.
    pub(crate) fn sweep(&self, may_leave: impl Fn(&Key, &S) -> bool) {
        for shard in &self.shards {
            // A handle is made from another handle or from the shard. While the shard is locked, a
            // series without a handle gets none.
            shard.write().retain(|key, series| {
                if Arc::strong_count(series) > 1 {
                    return true;
                }
                // `may_leave` has to see the writes of the last handle before its drop.
                fence(Ordering::Acquire);
                let leaves = may_leave(key, series);
                if leaves {
                    self.limit.release(key.name());
                }
                !leaves
            });
        }
    }

    fn shard(&self, key: &Key) -> &RwLock<Shard<S>> {
        // The map itself uses the bits at both ends of the hash.
        let [_, _, _, low, high, ..] = key.get_hash().to_le_bytes();
        let middle = usize::from(u16::from_le_bytes([low, high]));
        &self.shards[middle % self.shards.len()]
    }
}

impl<S> fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// The limits of series, for all tables of a recorder together.
#[derive(Debug)]
pub(crate) struct SeriesLimit {
    max: usize,
    max_per_name: usize,
    /// Changed only under the lock of the names.
    used: AtomicUsize,
    full_names: AtomicUsize,
    names: Mutex<Names>,
}

/// Accessed when series are created, refused or removed, and not when values are recorded.
#[derive(Debug, Default)]
struct Names {
    used: HashMap<Box<str>, usize>,
    refused: Refused,
}

/// The number of refusals, by metric name.
pub(crate) type Refused = BTreeMap<Box<str>, u64>;

/// Maximum number of names in [`Refused`]. Further ones are counted under [`OTHERS`].
pub(crate) const MAX_NAMES: usize = 64;

/// The name under which all further names are counted.
pub(crate) const OTHERS: &str = "_others";

/// The names without room for another series.
#[derive(Debug, PartialEq)]
pub(crate) enum Full {
    All,
    Names(HashSet<Box<str>>),
}

impl Full {
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }
}

impl SeriesLimit {
    pub(crate) fn new(max: usize, max_per_name: usize) -> Self {
        Self {
            max,
            max_per_name,
            used: AtomicUsize::new(0),
            full_names: AtomicUsize::new(0),
            names: Mutex::default(),
        }
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn max_per_name(&self) -> usize {
        self.max_per_name
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The series refused since the last call.
    pub(crate) fn take_refused(&self) -> Refused {
        std::mem::take(&mut self.names.lock().refused)
    }

    /// The names for which the next series would be refused.
    pub(crate) fn full(&self) -> Full {
        if self.used() >= self.max {
            return Full::All;
        }
        if self.full_names.load(Ordering::Relaxed) == 0 {
            return Full::Names(HashSet::new());
        }
        let names = self.names.lock();
        let full = names.used.iter().filter(|(_, used)| **used >= self.max_per_name);
        Full::Names(full.map(|(name, _)| name.clone()).collect())
    }

    /// Whether a new series of this name is refused. A refusal is counted.
    fn refuses(&self, name: &str) -> bool {
        let mut names = self.names.lock();
        let refuses = self.is_full(&names, name);
        if refuses {
            names.refuse(name);
        }
        refuses
    }

    /// Takes a slot, or counts the refusal.
    fn reserve(&self, name: &str) -> bool {
        let mut names = self.names.lock();
        if self.is_full(&names, name) {
            names.refuse(name);
            return false;
        }
        let used = match names.used.get_mut(name) {
            Some(used) => used,
            None => names.used.entry(name.into()).or_default(),
        };
        *used += 1;
        if *used == self.max_per_name {
            self.full_names.fetch_add(1, Ordering::Relaxed);
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn release(&self, name: &str) {
        let mut names = self.names.lock();
        if let Some(used) = names.used.get_mut(name) {
            if *used == self.max_per_name {
                self.full_names.fetch_sub(1, Ordering::Relaxed);
            }
            *used -= 1;
            if *used == 0 {
                names.used.remove(name);
            }
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_full(&self, names: &Names, name: &str) -> bool {
        self.used() >= self.max
            || names.used.get(name).is_some_and(|used| *used >= self.max_per_name)
    }
}

impl Names {
    fn refuse(&mut self, name: &str) {
        let is_known = self.refused.contains_key(name) || self.refused.len() < MAX_NAMES;
        let name = if is_known { name } else { OTHERS };
        match self.refused.get_mut(name) {
            Some(count) => *count = count.saturating_add(1),
            None => drop(self.refused.insert(name.into(), 1)),
        }
    }
}

/// A hasher for keys, which contain their hash.
#[derive(Debug, Default)]
struct KnownHash(u64);

impl Hasher for KnownHash {
    fn finish(&self) -> u64 {
        self.0
    }

    /// Called once by a key's `Hash`.
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// The time of a series' last use, as a duration since the recorder was created. Only flushes access it,
/// one at a time.
#[derive(Debug)]
pub(crate) struct Idle(AtomicU64);

/// No flush has seen the series yet.
const NEVER: u64 = u64::MAX;

impl Idle {
    /// Records whether the series is held or was recorded into. The first call counts as a use.
    pub(crate) fn note(&self, in_use: bool, now: Duration) {
        if in_use || self.0.load(Ordering::Relaxed) == NEVER {
            self.0.store(nanos(now), Ordering::Relaxed);
        }
    }

    /// How long the series has been unused.
    pub(crate) fn time(&self, now: Duration) -> Duration {
        let since = self.0.load(Ordering::Relaxed);
        Duration::from_nanos(nanos(now).saturating_sub(since))
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self(AtomicU64::new(NEVER))
    }
}

/// Enough for five hundred years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::Label;

    fn table(max: usize) -> (Table<u64>, Arc<SeriesLimit>) {
        let limit = Arc::new(SeriesLimit::new(max, usize::MAX));
        (Table::new(Arc::clone(&limit)), limit)
    }

    fn key(n: u64) -> Key {
        Key::from_parts("n", vec![Label::new("n", n.to_string())])
    }

    #[test]
    fn a_key_has_one_series_which_is_created_once() {
        let (table, limit) = table(10);
        let first = table.get_or_make(&key(1), || 7).unwrap();
        let again = table.get_or_make(&key(1), || panic!("the series exists")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!((*first, limit.used()), (7, 1));
    }

    #[test]
    fn at_its_limit_it_refuses_new_series_only() {
        let (table, limit) = table(2);
        assert!((0..2).all(|n| table.get_or_make(&key(n), || n).is_some()));
        assert!((2..5).all(|n| table.get_or_make(&key(n), || panic!("{n}")).is_none()));
        assert!(table.get_or_make(&key(1), || panic!("the series exists")).is_some());
        assert_eq!((limit.used(), refused(&limit), refused(&limit)), (2, 3, 0));
    }

    fn refused(limit: &SeriesLimit) -> u64 {
        limit.take_refused().values().sum()
    }

    #[test]
    fn a_name_with_too_many_labels_leaves_room_for_others_and_is_reported() {
        let limit = Arc::new(SeriesLimit::new(10, 3));
        let table = Table::new(Arc::clone(&limit));
        let made = (0..8).filter(|n| table.get_or_make(&key(*n), || *n).is_some()).count();
        assert_eq!((made, limit.full()), (3, Full::Names(["n".into()].into())));
        assert!(table.get_or_make(&Key::from_name("other"), || 0).is_some());
        assert_eq!(limit.take_refused(), Refused::from([("n".into(), 5)]));
        table.sweep(|_, n| *n == 1);
        assert_eq!((limit.used(), limit.full()), (3, Full::Names(HashSet::new())));
        assert!(table.get_or_make(&key(7), || 7).is_some());
    }

    #[test]
    fn refusals_of_further_names_are_counted_together() {
        let limit = SeriesLimit::new(1, 1);
        assert!(limit.reserve("first"));
        for n in 0..MAX_NAMES + 10 {
            assert!(limit.refuses(&n.to_string()));
        }
        let refused = limit.take_refused();
        assert_eq!((refused.len(), refused[OTHERS]), (MAX_NAMES + 1, 10));
    }

    #[test]
    fn the_limits_are_shared_between_tables() {
        let (one, limit) = table(2);
        let other = Table::new(Arc::clone(&limit));
        assert!(one.get_or_make(&key(1), || 1).is_some());
        assert!(other.get_or_make(&key(1), || "1").is_some());
        assert!(one.get_or_make(&key(2), || 2).is_none());
    }

    #[test]
    fn held_series_are_kept_and_removed_ones_make_room() {
        let (table, limit) = table(3);
        let held = table.get_or_make(&key(0), || 0);
        (1..3).for_each(|n| drop(table.get_or_make(&key(n), || n)));
        table.sweep(|_, n| *n != 2);
        assert_eq!(limit.used(), 2);
        assert!(table.get_or_make(&key(1), || 10).is_some_and(|n| *n == 10), "a new series");
        assert!(table.get_or_make(&key(2), || 20).is_some_and(|n| *n == 2), "it was not removed");
        assert!(held.is_some_and(|held| *held == 0));
    }

    #[test]
    fn concurrent_creation_never_exceeds_the_limit() {
        const MAX: usize = 100;
        let (table, limit) = table(MAX);
        let made: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u64)
                .map(|thread| {
                    let table = &table;
                    let made =
                        move |n: &u64| table.get_or_make(&key(thread * 1000 + n), || *n).is_some();
                    scope.spawn(move || (0..200).filter(made).count())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((made, limit.used(), refused(&limit)), (MAX, MAX, 700));
        assert_eq!(table.all(|_, _, _| ()).len(), MAX);
    }

    #[test]
    fn it_reports_which_series_are_held() {
        let (table, _) = table(10);
        let _held = table.get_or_make(&key(1), || 1);
        drop(table.get_or_make(&key(2), || 2));
        let mut all = table.all(|_, series, is_held| (*series, is_held));
        all.sort_unstable();
        assert_eq!(all, [(1, true), (2, false)]);
    }

    #[test]
    fn idle_time_starts_at_the_last_use_and_the_first_call_is_one() {
        let (idle, at) = (Idle::default(), Duration::from_secs);
        assert_eq!(idle.time(at(100)), Duration::ZERO);
        idle.note(false, at(100));
        idle.note(false, at(130));
        assert_eq!(idle.time(at(130)), at(30));
        idle.note(true, at(150));
        assert_eq!(idle.time(at(160)), at(10));
    }
}
