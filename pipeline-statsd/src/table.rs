//! Series by their keys: found quickly, made while there is room, let go when nobody needs them.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;

use metrics::Key;
use parking_lot::RwLock;

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
        if self.room.is_full() {
            self.room.refuse();
            return None;
        }
        let mut shard = shard.write();
        if let Some(series) = shard.get(key) {
            return Some(Arc::clone(series));
        }
        if !self.room.take() {
            self.room.refuse();
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
    pub(crate) fn sweep(&self, may_leave: impl Fn(&S) -> bool) {
        for shard in &self.shards {
            // A handle comes from another handle or from the shard. So while the shard is ours
            // alone, a series without a handle gets none.
            shard.write().retain(|_, series| {
                if Arc::strong_count(series) > 1 {
                    return true;
                }
                // What the last handle did before it was dropped is to be seen by `may_leave`.
                fence(Ordering::Acquire);
                let leaves = may_leave(series);
                if leaves {
                    self.room.give_back();
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
    used: AtomicUsize,
    refused: AtomicU64,
}

// Relaxed throughout: the numbers publish nothing.
impl Room {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, used: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How often a series was refused since the last call.
    pub(crate) fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.used() >= self.max
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        let one_more = |used: usize| (used < self.max).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
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
        let room = Arc::new(Room::new(max));
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
        assert_eq!((room.used(), room.take_refused(), room.take_refused()), (2, 3, 0));
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
        table.sweep(|n| *n != 2);
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
        assert_eq!((made, room.used(), room.take_refused()), (MAX, MAX, 700));
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
