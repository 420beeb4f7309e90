//! Series by their keys: found quickly, made while there is room, let go when nobody needs them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;

use metrics::Key;
use parking_lot::{Mutex, RwLock};

/// The series of one kind.
///
/// In parts with a lock each, so that threads that look up different series seldom meet.
pub(crate) struct Table<S> {
    shards: Box<[RwLock<Shard<S>>]>,
    room: Arc<Room>,
}

type Shard<S> = HashMap<Key, Arc<S>, BuildHasherDefault<KnownHash>>;

impl<S> Table<S> {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores).map(|_| RwLock::default()).collect();
        Self { shards, room }
    }

    /// The series of a key, made if there is none. Nothing if there is no room for another; that
    /// is counted, and costs no more than having looked.
    pub(crate) fn get_or_make(&self, key: &Key, make: impl FnOnce() -> S) -> Option<Arc<S>> {
        let shard = self.shard(key);
        if let Some(series) = shard.read().get(key) {
            return Some(Arc::clone(series));
        }
        if self.room.refuses(key.name()) {
            return None;
        }
        let mut shard = shard.write();
        if let Some(series) = shard.get(key) {
            return Some(Arc::clone(series));
        }
        if !self.room.take(key.name()) {
            return None;
        }
        let series = Arc::new(make());
        shard.insert(key.clone(), Arc::clone(&series));
        Some(series)
    }

    /// Every series, and whether anybody holds a handle of it. No lock is held any more when this
    /// returns.
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

    /// Lets go of every series that nobody holds and that `may_leave`.
    pub(crate) fn sweep(&self, may_leave: impl Fn(&Key, &S) -> bool) {
        for shard in &self.shards {
            // A handle comes from another handle or from the shard. So while the shard is ours
            // alone, a series without a handle gets none.
            shard.write().retain(|key, series| {
                if Arc::strong_count(series) > 1 {
                    return true;
                }
                // What the last handle did before it was dropped is to be seen by `may_leave`.
                fence(Ordering::Acquire);
                let leaves = may_leave(key, series);
                if leaves {
                    self.room.give_back(key.name());
                }
                !leaves
            });
        }
    }

    fn shard(&self, key: &Key) -> &RwLock<Shard<S>> {
        // The map uses both ends of the hash itself.
        let [_, _, _, low, high, ..] = key.get_hash().to_le_bytes();
        let middle = usize::from(u16::from_le_bytes([low, high]));
        &self.shards[middle % self.shards.len()]
    }
}

impl<S> fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("room", &self.room).finish_non_exhaustive()
    }
}

/// How many series there may be, in all tables of a recorder together.
#[derive(Debug)]
pub(crate) struct Room {
    max: usize,
    max_per_name: usize,
    /// Changed only under the lock of the names.
    used: AtomicUsize,
    full_names: AtomicUsize,
    names: Mutex<Names>,
}

/// Touched when series are made, refused or let go, and not when they are recorded into.
#[derive(Debug, Default)]
struct Names {
    used: HashMap<Box<str>, usize>,
    refused: Refused,
}

/// How often a series was refused, by the name of its metric.
pub(crate) type Refused = BTreeMap<Box<str>, u64>;

/// How many names there may be in [`Refused`]. What is beyond them is counted under [`OTHERS`].
pub(crate) const MAX_NAMES: usize = 64;

/// A name for all the others.
pub(crate) const OTHERS: &str = "_others";

/// The names that have no room for another series.
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

impl Room {
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

    /// Which series were refused since the last call, and how often.
    pub(crate) fn take_refused(&self) -> Refused {
        std::mem::take(&mut self.names.lock().refused)
    }

    /// Of which names the next series would be refused.
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

    /// Whether there is no room for another series of this name. That is counted.
    fn refuses(&self, name: &str) -> bool {
        let mut names = self.names.lock();
        let refuses = self.is_full(&names, name);
        if refuses {
            names.refuse(name);
        }
        refuses
    }

    /// Takes a place, or counts that there is none.
    fn take(&self, name: &str) -> bool {
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

    fn give_back(&self, name: &str) {
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

/// The hash that a key brings along.
#[derive(Debug, Default)]
struct KnownHash(u64);

impl Hasher for KnownHash {
    fn finish(&self) -> u64 {
        self.0
    }

    /// What a key's `Hash` calls, and once.
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::Label;

    fn table(max: usize) -> (Table<u64>, Arc<Room>) {
        let room = Arc::new(Room::new(max, usize::MAX));
        (Table::new(Arc::clone(&room)), room)
    }

    fn key(n: u64) -> Key {
        Key::from_parts("n", vec![Label::new("n", n.to_string())])
    }

    #[test]
    fn a_key_has_one_series_which_is_made_once() {
        let (table, room) = table(10);
        let first = table.get_or_make(&key(1), || 7).unwrap();
        let again = table.get_or_make(&key(1), || panic!("there is one")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!((*first, room.used()), (7, 1));
    }

    #[test]
    fn beyond_its_room_it_refuses_what_is_new_and_nothing_else() {
        let (table, room) = table(2);
        assert!((0..2).all(|n| table.get_or_make(&key(n), || n).is_some()));
        assert!((2..5).all(|n| table.get_or_make(&key(n), || panic!("{n}")).is_none()));
        assert!(table.get_or_make(&key(1), || panic!("there is one")).is_some());
        assert_eq!((room.used(), refused(&room), refused(&room)), (2, 3, 0));
    }

    fn refused(room: &Room) -> u64 {
        room.take_refused().values().sum()
    }

    #[test]
    fn one_name_with_too_many_labels_leaves_room_for_others_and_is_named() {
        let room = Arc::new(Room::new(10, 3));
        let table = Table::new(Arc::clone(&room));
        let made = (0..8).filter(|n| table.get_or_make(&key(*n), || *n).is_some()).count();
        assert_eq!((made, room.full()), (3, Full::Names(["n".into()].into())));
        assert!(table.get_or_make(&Key::from_name("other"), || 0).is_some());
        assert_eq!(room.take_refused(), Refused::from([("n".into(), 5)]));
        table.sweep(|_, n| *n == 1);
        assert_eq!((room.used(), room.full()), (3, Full::Names(HashSet::new())));
        assert!(table.get_or_make(&key(7), || 7).is_some());
    }

    #[test]
    fn refusals_of_more_names_than_are_kept_apart_are_counted_together() {
        let room = Room::new(1, 1);
        assert!(room.take("first"));
        for n in 0..MAX_NAMES + 10 {
            assert!(room.refuses(&n.to_string()));
        }
        let refused = room.take_refused();
        assert_eq!((refused.len(), refused[OTHERS]), (MAX_NAMES + 1, 10));
    }

    #[test]
    fn room_is_shared_between_tables() {
        let (one, room) = table(2);
        let other = Table::new(Arc::clone(&room));
        assert!(one.get_or_make(&key(1), || 1).is_some());
        assert!(other.get_or_make(&key(1), || "1").is_some());
        assert!(one.get_or_make(&key(2), || 2).is_none());
    }

    #[test]
    fn what_is_held_stays_and_what_leaves_makes_room() {
        let (table, room) = table(3);
        let held = table.get_or_make(&key(0), || 0);
        (1..3).for_each(|n| drop(table.get_or_make(&key(n), || n)));
        table.sweep(|_, n| *n != 2);
        assert_eq!(room.used(), 2);
        assert!(table.get_or_make(&key(1), || 10).is_some_and(|n| *n == 10), "it is a new one");
        assert!(table.get_or_make(&key(2), || 20).is_some_and(|n| *n == 2), "it may not leave");
        assert!(held.is_some_and(|held| *held == 0));
    }

    #[test]
    fn however_many_come_at_once_there_are_never_more_than_there_is_room_for() {
        const MAX: usize = 100;
        let (table, room) = table(MAX);
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
        assert_eq!((made, room.used(), refused(&room)), (MAX, MAX, 700));
        assert_eq!(table.all(|_, _, _| ()).len(), MAX);
    }

    #[test]
    fn it_knows_which_series_are_held() {
        let (table, _) = table(10);
        let _held = table.get_or_make(&key(1), || 1);
        drop(table.get_or_make(&key(2), || 2));
        let mut all = table.all(|_, series, is_held| (*series, is_held));
        all.sort_unstable();
        assert_eq!(all, [(1, true), (2, false)]);
    }
}
