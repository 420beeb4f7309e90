//! The room on the disk of a SQLite file. A part of it is kept for leases and outcomes, so that what is in the
//! file can leave it although the disk is full.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, ffi};
use tokio::time::Instant;

use super::SqliteError;
use crate::log::LineLimit;

/// The size of the reserve. What is in the log of SQLite may have no place in the file yet, and the log has up
/// to 4 MB, unless one transaction has more.
const RESERVE: usize = 4 * 1024 * 1024 + 512 * 1024;

/// How much room there has to be besides the reserve before items are added again.
const SLACK: u64 = 1024 * 1024;

/// How many free pages of the file are kept for leases and outcomes while it cannot grow, and by how many it may
/// grow for them.
const FREE_PAGES: i64 = 64;

/// No limit of a file's pages but that of SQLite.
const ANY_PAGES: i64 = 4_294_967_294;

/// The first and the longest time between two looks whether there is room again.
const LOOK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Whether there is room for more items.
#[derive(Debug)]
pub(super) struct Room {
    /// The file that holds the reserve, which has no content of use. A database without a file has none.
    reserve: Option<PathBuf>,
    has_reserve: bool,
    /// Whether only leases and outcomes are stored, as far as no page of the file is free.
    is_used_up: bool,
    /// When it is looked for room again, and how long after that.
    look: Instant,
    pause: Duration,
    lines: LineLimit,
}

impl Room {
    /// The room of an open file.
    pub(super) fn of(connection: &Connection, path: &Path) -> Self {
        // That with which SQLite names its log: the reserve has to be on the same disk.
        let path = connection.path().map_or(path, Path::new);
        let has_file = !path.as_os_str().is_empty() && path != Path::new(":memory:");
        let reserve = has_file.then(|| reserve_of(path));
        let mut room = Self { reserve, ..Self::without_reserve() };
        match room.make() {
            Ok(()) => room.has_reserve = room.reserve.is_some(),
            Err(error) if is_full(&error) => room.use_up(connection),
            Err(_) => {}
        }
        room
    }

    /// The room of a file next to which nothing is to be made.
    pub(super) fn without_reserve() -> Self {
        Self {
            reserve: None,
            has_reserve: false,
            is_used_up: false,
            look: Instant::now(),
            pause: LOOK[0],
            lines: LineLimit::default(),
        }
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.is_used_up
    }

    /// Whether items may be added in this transaction.
    pub(super) fn takes_items(&self, transaction: &Connection) -> bool {
        !self.is_used_up || free_pages(transaction) >= FREE_PAGES
    }

    /// Gives up the reserve, because something could not be written.
    pub(super) fn use_up(&mut self, connection: &Connection) {
        self.use_up_for(connection, "the disk of a SQLite queue is full");
    }

    fn use_up_for(&mut self, connection: &Connection, why: &str) {
        if !self.is_used_up {
            self.is_used_up = true;
            self.pause = LOOK[0];
            if let Some(skipped) = self.lines.line(Instant::now()) {
                tracing::warn!(why, skipped, "no items are added until there is room");
            }
            // It may be gone.
            let _ = self.reserve.as_ref().map(fs::remove_file);
            self.has_reserve = false;
            grow_to(connection, pages(connection).saturating_add(FREE_PAGES));
            // Not again at each failure: a program that tries often would never get room.
            self.look = later(self.pause);
        }
        move_log(connection);
    }

    /// Looks whether there is room again, if it is time, or whether there is still room.
    pub(super) fn look(&mut self, connection: &Connection) {
        // Another process may have found that there is none, and has given up the reserve.
        if self.has_reserve && !self.reserve.as_ref().is_some_and(|it| it.exists()) {
            let why = "the reserve of a SQLite queue is gone: another process may have found its disk full";
            return self.use_up_for(connection, why);
        }
        if !self.is_used_up || Instant::now() < self.look {
            return;
        }
        self.pause = self.pause.saturating_mul(2).min(LOOK[1]);
        self.look = later(self.pause);
        match self.make() {
            Ok(()) => self.has_reserve = self.reserve.is_some(),
            // Such as a limit of each file's size. Only the next item tells.
            Err(error) if !is_full(&error) => {}
            Err(_) => return,
        }
        self.is_used_up = false;
        grow_to(connection, ANY_PAGES);
    }

    /// Makes the reserve, or finds it.
    fn make(&self) -> io::Result<()> {
        let Some(reserve) = &self.reserve else { return Ok(()) };
        let size = RESERVE as u64;
        if fs::metadata(reserve).is_ok_and(|it| it.is_file() && it.len() == size) {
            return Ok(());
        }
        // To fill the disk as a trial would be at the cost of others.
        if available(reserve)?.is_some_and(|bytes| bytes < size + SLACK) {
            return Err(ErrorKind::StorageFull.into());
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(reserve)?;
        let made = file.write_all(&incompressible(RESERVE));
        if made.is_err() {
            let _ = fs::remove_file(reserve);
        }
        made
    }
}

/// Gives up the reserve of a file that cannot be opened for want of room.
pub(super) fn give_up(path: &Path) {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let _ = fs::remove_file(reserve_of(&path));
}

fn reserve_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-reserve");
    name.into()
}

/// Whether something could not be written, for want of room or for another reason.
pub(super) fn lacks_room(error: &SqliteError) -> bool {
    let (SqliteError::Statement(error) | SqliteError::Open { source: error, .. }) = error else {
        return false;
    };
    // A quota, and a limit of a file's size, are errors of input and output.
    let codes = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_SHMSIZE];
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|it| codes.contains(&it.extended_code))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The bytes that are free on a file's disk, if the system tells.
#[cfg(unix)]
fn available(file: &Path) -> io::Result<Option<u64>> {
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty());
    let of = rustix::fs::statvfs(folder.unwrap_or(Path::new(".")))?;
    // Some file systems do not say how large they are.
    if of.f_blocks == 0 {
        return Ok(None);
    }
    Ok(Some(of.f_bavail.saturating_mul(of.f_frsize)))
}

#[cfg(not(unix))]
fn available(_file: &Path) -> io::Result<Option<u64>> {
    Ok(None)
}

/// Bytes that a file system does not store in fewer.
fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(bytes).collect()
}

fn later(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or(now)
}

fn number(connection: &Connection, pragma: &str) -> i64 {
    connection.pragma_query_value(None, pragma, |row| row.get(0)).unwrap_or_default()
}

/// The pages of the file and its log.
fn pages(connection: &Connection) -> i64 {
    number(connection, "page_count")
}

/// The pages of the file that are not used.
fn free_pages(connection: &Connection) -> i64 {
    number(connection, "freelist_count")
}

fn grow_to(connection: &Connection, pages: i64) {
    // Without it, what frees room may be refused sooner.
    let _ = connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
}

/// Moves what is in the log to its place in the file, as far as there is room, so that the log begins anew.
fn move_log(connection: &Connection) {
    let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, Connection, Room) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE items (payload BLOB)").unwrap();
        let room = Room::of(&connection, &path);
        (folder, connection, room)
    }

    fn add(connection: &Connection, bytes: u32) -> Result<(), SqliteError> {
        connection.execute("INSERT INTO items VALUES (zeroblob(?1))", [bytes])?;
        Ok(())
    }

    fn reserved(folder: &tempfile::TempDir) -> Option<u64> {
        fs::metadata(folder.path().join("queue.db-reserve")).ok().map(|it| it.len())
    }

    #[test]
    fn what_frees_room_has_some_while_items_have_none() {
        let (folder, connection, mut room) = opened();
        assert_eq!(reserved(&folder), Some(RESERVE as u64));
        add(&connection, 1_000_000).unwrap();
        assert!(room.takes_items(&connection));

        room.use_up(&connection);
        assert_eq!(reserved(&folder), None);
        assert!(!room.takes_items(&connection));
        add(&connection, 10_000).unwrap();
        let error = add(&connection, 1_000_000).unwrap_err();
        assert!(lacks_room(&error), "{error}");
        // It is not yet time to look. Failures do not put it off.
        let look = room.look;
        room.use_up(&connection);
        assert_eq!(room.look, look);
        room.look(&connection);
        assert!(!room.takes_items(&connection));

        // What is done leaves pages that nothing uses.
        connection.execute("DELETE FROM items", []).unwrap();
        assert!(room.takes_items(&connection) && room.is_used_up());

        room.look = Instant::now();
        room.look(&connection);
        assert!(!room.is_used_up());
        assert_eq!(reserved(&folder), Some(RESERVE as u64));
        add(&connection, 5_000_000).unwrap();
    }

    #[test]
    fn a_reserve_that_another_process_has_given_up_is_missed() {
        let (folder, connection, mut room) = opened();
        fs::remove_file(folder.path().join("queue.db-reserve")).unwrap();
        room.look(&connection);
        assert!(!room.takes_items(&connection) && room.is_used_up());
    }

    #[test]
    fn a_database_without_a_file_leaves_none() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE items (payload BLOB)").unwrap();
        let mut room = Room::of(&connection, Path::new(":memory:"));
        assert_eq!(room.reserve, None);
        room.look(&connection);
        assert!(room.takes_items(&connection));
        room.use_up(&connection);
        assert!(!room.takes_items(&connection));
        room.look = Instant::now();
        room.look(&connection);
        assert!(room.takes_items(&connection) && !room.is_used_up());
        assert!(!Path::new(":memory:-reserve").exists());
    }

    #[test]
    fn other_errors_give_up_no_room() {
        let (_folder, connection, _room) = opened();
        let error = connection.execute("INSERT INTO nothing VALUES (1)", []).unwrap_err();
        assert!(!lacks_room(&error.into()));
        assert!(!lacks_room(&SqliteError::Full));
    }
}
