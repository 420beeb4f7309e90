//! The turns in which the processes of one machine write to a SQLite file.
//!
//! SQLite's own lock knows no order: who waits for it asks ten times a second at most, and a process that has much to write
//! takes it again within microseconds. So one node may sell for seconds while the others wait.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// How long a process waits for its turn. Then it leaves the order to SQLite: another one that has the turn may be frozen.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it looks.
const LOOKS: Duration = Duration::from_millis(1);

/// Two files that processes lock. They are empty, and stay next to the database.
#[derive(Debug)]
pub(super) struct Turns {
    /// Locked by the process whose turn is next.
    next: File,
    /// Locked by the process whose turn it is. It has to be the next one first, so one that has just had a turn and wants
    /// another does not get it before a process that waits.
    now: File,
}

/// The turn of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        unlock(&self.0.now);
    }
}

impl Turns {
    /// The turns of a database.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let open = |ending: &str| {
            let mut path: OsString = database.as_os_str().to_owned();
            path.push(ending);
            OpenOptions::new().create(true).truncate(false).write(true).open(path)
        };
        Ok(Self { next: open(".next")?, now: open(".now")? })
    }

    /// Waits for the turn, which is held by one process at a time. None if it does not come, or the system has no such locks.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let began = Instant::now();
        lock(&self.next, began).then_some(())?;
        let turn = lock(&self.now, began).then(|| Turn(self));
        unlock(&self.next);
        turn
    }
}

#[expect(clippy::disallowed_methods, reason = "the database has a thread of its own")]
fn lock(file: &File, began: Instant) -> bool {
    loop {
        match file.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => thread::sleep(LOOKS),
            Err(_) => return false,
        }
    }
}

fn unlock(file: &File) {
    if let Err(error) = file.unlock() {
        // The others wait no longer than their patience.
        tracing::warn!(error = error.to_string(), "the turn at the database was not given back");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the turns of two threads")]
    fn a_process_that_waits_has_its_turn_although_another_takes_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let of = || Turns::of(&folder.path().join("store.db")).unwrap();
        let (busy, waits) = (of(), of());
        let (turns, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let takes = scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    let turn = busy.take();
                    assert!(turn.is_some());
                    turns.fetch_add(1, SeqCst);
                    thread::sleep(Duration::from_millis(5));
                }
            });
            while turns.load(SeqCst) == 0 && !takes.is_finished() {
                thread::sleep(LOOKS);
            }
            let before = turns.load(SeqCst);
            let had: Vec<bool> = (0..20).map(|_| waits.take().is_some()).collect();
            let between = turns.load(SeqCst) - before;
            is_over.store(true, SeqCst);
            assert_eq!(had, [true; 20]);
            // One or two for each, and some more where a thread is not run in time.
            assert!(between < 200, "{between} turns of the other");
        });
    }
}
