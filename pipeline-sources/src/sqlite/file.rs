//! The thread that has a SQLite file open, and groups what is written into transactions.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
};

use super::{
    SqliteError,
    room::{self, Room, lacks_room},
    schema,
    watch::{Before, Watch},
};
use crate::heard::{Answer, heard};

/// How many calls wait for the thread at most. More callers wait for a place.
const CALLS: usize = 1024;

/// How long a transaction waits for one of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Adds an item, by one statement, which SQLite executes as a whole or not at all.
    AddsOne,
    /// Adds items.
    Adds,
    /// Reads, or stores what becomes of items.
    Other,
}

/// A call on the file, which is executed in a transaction with others.
trait Call: Send {
    fn kind(&self) -> Kind;

    /// Answers that there is no room for more items.
    fn refuse(&mut self);

    /// Whether it has failed because something could not be written.
    fn lacks_room(&self) -> bool;

    /// Executes it. Returns whether what it has written stays.
    fn execute(&mut self, connection: &Connection) -> bool;

    /// Sends its result, once its transaction was committed or has failed.
    fn answer(self: Box<Self>, committed: Result<(), &SqliteError>);
}

/// A call with a result of type `R`.
struct Calling<R, F, U> {
    call: Option<F>,
    result: Option<Result<R, SqliteError>>,
    answer: Answer<Result<R, SqliteError>, U>,
    kind: Kind,
}

impl<R, F, U> Call for Calling<R, F, U>
where
    R: Send,
    F: FnOnce(&Connection) -> Result<R, SqliteError> + Send,
    U: FnOnce(Result<R, SqliteError>) + Send,
{
    fn kind(&self) -> Kind {
        self.kind
    }

    fn refuse(&mut self) {
        self.result = Some(Err(SqliteError::Full));
    }

    fn lacks_room(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if lacks_room(error))
    }

    fn execute(&mut self, connection: &Connection) -> bool {
        let call = self.call.take();
        self.result = call.map(|call| call(connection));
        self.result.as_ref().is_some_and(Result::is_ok)
    }

    fn answer(self: Box<Self>, committed: Result<(), &SqliteError>) {
        let committed = committed.map_err(Clone::clone);
        let result = match (self.result, committed) {
            // Nothing that a file which is gone has answered counts, not even that it is full.
            (_, Err(gone @ SqliteError::Replaced { .. })) => Err(gone),
            // What it has failed of itself says more than how the transaction ended.
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (Some(done), Ok(())) => done,
            (None, Ok(())) => Err(SqliteError::Closed),
        };
        self.answer.send(result);
    }
}

/// What is created where it is not there.
#[derive(Clone, Copy, Debug)]
enum Creates {
    /// The file, its tables, and what is next to it.
    Missing,
    Nothing,
}

/// An open file. Its thread ends when the last handle is gone.
#[derive(Clone, Debug)]
pub(super) struct File {
    calls: mpsc::Sender<Box<dyn Call>>,
    watch: Watch,
    /// Ends when the thread has closed the file.
    closed: watch::Receiver<()>,
}

impl File {
    /// Opens a file, creates it and its tables if there are none, and runs its thread.
    pub(super) async fn open(path: PathBuf) -> Result<Self, SqliteError> {
        Self::opened(path, Creates::Missing).await
    }

    /// Opens a file that has the tables, and changes nothing in it.
    pub(super) async fn open_existing(path: PathBuf) -> Result<Self, SqliteError> {
        Self::opened(path, Creates::Nothing).await
    }

    async fn opened(path: PathBuf, creates: Creates) -> Result<Self, SqliteError> {
        let (calls, waiting) = mpsc::channel::<Box<dyn Call>>(CALLS);
        let (opened, answer) = oneshot::channel::<Result<Watch, SqliteError>>();
        // SQLite needs room to open a file whose log is empty.
        let again = |path: &Path| {
            room::give_up(path);
            open(path)
        };
        let opening = move |path: &Path| match creates {
            Creates::Nothing => open_existing(path),
            Creates::Missing => match open(path) {
                Err(error) if lacks_room(&error) => again(path),
                opened => opened,
            },
        };
        let opening = move |path: &Path| {
            let before = Before::at(path);
            let connection = opening(path)?;
            let watch = Watch::of(&connection, path, &before)?;
            Ok::<_, SqliteError>((connection, watch))
        };
        let (open_until, closed) = watch::channel(());
        let serve = move || match opening(&path) {
            Ok((connection, watch)) => {
                let room = match creates {
                    Creates::Missing => Room::of(&connection, &path),
                    Creates::Nothing => Room::without_reserve(),
                };
                let _ = opened.send(Ok(watch.clone()));
                run(connection, room, &watch, waiting);
                drop(open_until);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        };
        let spawned = thread::Builder::new().name("sqlite-queue".to_owned()).spawn(serve);
        spawned.map_err(|error| SqliteError::Thread(Arc::new(error)))?;
        let watch = answer.await.map_err(|_| SqliteError::Closed)??;
        Ok(Self { calls, watch, closed })
    }

    /// Returns when the file is closed, which it is when all other handles are gone.
    pub(super) async fn close(self) {
        let Self { calls, watch: _, mut closed } = self;
        drop(calls);
        // Nothing is sent: the sender is dropped.
        while closed.changed().await.is_ok() {}
    }

    /// Fails if the file is not at its path any more.
    pub(super) async fn is_there(&self) -> Result<(), SqliteError> {
        let watch = self.watch.clone();
        // A file system that does not answer must not hold up a thread of the runtime.
        spawn_blocking(move || watch.check()).await.map_err(|_| SqliteError::Closed)?
    }

    /// Executes a call, together with other calls that wait. When it returns, what was written is on
    /// the disk.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the call may be executed all the same. Then `unheard` gets its result.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
        unheard: impl FnOnce(R) + Clone + Send + Unpin + 'static,
    ) -> Result<R, SqliteError> {
        self.send(call, unheard, Kind::Other).await
    }

    /// The same for a call that adds items. It is refused while there is room for what frees room only.
    pub(super) async fn add<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
    ) -> Result<R, SqliteError> {
        self.send(call, |_| {}, Kind::Adds).await
    }

    /// The same for a call that executes one statement. It needs no savepoint, so it costs less.
    pub(super) async fn add_by_one_statement<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
    ) -> Result<R, SqliteError> {
        self.send(call, |_| {}, Kind::AddsOne).await
    }

    async fn send<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
        unheard: impl FnOnce(R) + Clone + Send + Unpin + 'static,
        kind: Kind,
    ) -> Result<R, SqliteError> {
        let unheard = |result: Result<R, _>| result.map_or((), unheard);
        let (answer, heard) = heard(unheard);
        let call = Calling { call: Some(call), result: None, answer, kind };
        self.calls.send(Box::new(call)).await.map_err(|_| SqliteError::Closed)?;
        heard.await.unwrap_or(Err(SqliteError::Closed))
    }

    /// Executes a call soon, without waiting for its result. If too many calls wait, it is dropped.
    pub(super) fn call_later(
        &self,
        call: impl FnOnce(&Connection) -> Result<(), SqliteError> + Send + 'static,
    ) {
        let (answer, _) = heard(|_| {});
        let call = Calling { call: Some(call), result: None, answer, kind: Kind::Other };
        let _ = self.calls.try_send(Box::new(call));
    }
}

/// Opens a connection that waits for other processes, and whose commits are on the disk.
fn open(path: &Path) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let prepare = || {
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Before anything is changed in the file.
        if let Some(why) = schema::is_foreign(&connection, false)? {
            return Ok(Err(why));
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // What a savepoint would restore. In a file, it costs as much as the log.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(64);
        let lacks = |connection: &Connection, column: &str| {
            connection
                .query_row(schema::HAS_COLUMN, [column], |row| row.get::<_, bool>(0))
                .map(|has| !has)
        };
        let is_current: bool = connection.query_row(schema::IS_CURRENT, [], |row| row.get(0))?;
        let mut is_old = !is_current;
        for (column, _) in schema::NEW_COLUMNS {
            is_old |= lacks(&connection, column)?;
        }
        if is_old {
            // At once, as another process may use the file.
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(schema::TABLES)?;
            for (column, add) in schema::NEW_COLUMNS {
                if lacks(&transaction, column)? {
                    transaction.execute_batch(add)?;
                }
            }
            transaction.commit()?;
        }
        Ok(Ok(connection))
    };
    explained(path, prepare())
}

/// Opens a connection to a file that has the tables of a queue, and changes nothing in it.
fn open_existing(path: &Path) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let prepare = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        if let Some(why) = schema::is_foreign(&connection, true)? {
            return Ok(Err(why));
        }
        // These are of the connection alone.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(Ok(connection))
    };
    explained(path, prepare())
}

/// The connection, or why the file could not be opened, or is not that of a queue.
fn explained(
    path: &Path,
    opened: rusqlite::Result<Result<Connection, String>>,
) -> Result<Connection, SqliteError> {
    let path = path.to_owned();
    match opened {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(why)) => Err(SqliteError::NotAQueue { path, why }),
        Err(source) => Err(SqliteError::Open { path, source: Arc::new(source) }),
    }
}

/// Executes calls until the last handle is gone.
///
/// While the file is not at its path, calls fail. The file stays open: it may be moved back, and the last
/// handle of a deleted file is all that is left of its items. What is at the path now is not opened, as
/// SQLite would take the log of the old file for its own.
fn run(
    mut connection: Connection,
    mut room: Room,
    watch: &Watch,
    mut calls: mpsc::Receiver<Box<dyn Call>>,
) {
    let mut is_gone = false;
    while let Some(first) = calls.blocking_recv() {
        let mut group = vec![first];
        if is_gone && let Err(gone) = watch.check() {
            take_waiting(&mut group, &mut calls);
            answer(group, Err(&gone));
            continue;
        }
        room.look(&connection);
        let committed = execute(&mut connection, &mut room, &mut group, &mut calls);
        if committed.as_ref().is_err_and(lacks_room) || group.iter().any(|call| call.lacks_room()) {
            room.use_up(&connection);
        }
        // Before anything is confirmed. It costs one look for all that was committed together.
        let there = watch.check();
        is_gone = there.is_err();
        answer(group, there.as_ref().copied().and(committed.as_ref().copied()));
    }
}

/// Answers the calls of a group.
fn answer(group: Vec<Box<dyn Call>>, committed: Result<(), &SqliteError>) {
    for call in group {
        call.answer(committed);
    }
}

/// Adds the calls that wait to a group.
fn take_waiting(group: &mut Vec<Box<dyn Call>>, calls: &mut mpsc::Receiver<Box<dyn Call>>) {
    while group.len() < CALLS
        && let Ok(call) = calls.try_recv()
    {
        group.push(call);
    }
}

/// Executes the calls that wait in one transaction. All of them are in the group then, executed or not.
fn execute(
    connection: &mut Connection,
    room: &mut Room,
    group: &mut Vec<Box<dyn Call>>,
    calls: &mut mpsc::Receiver<Box<dyn Call>>,
) -> Result<(), SqliteError> {
    let mut transaction = match connection.transaction_with_behavior(TransactionBehavior::Immediate)
    {
        Ok(transaction) => transaction,
        Err(error) => {
            // The others would wait as long, one after the other, for a file that another process has locked.
            take_waiting(group, calls);
            return Err(error.into());
        }
    };
    loop {
        if let Some(call) = group.last_mut() {
            let kind = call.kind();
            if kind != Kind::Other && !room.takes_items(&transaction) {
                call.refuse();
            } else if kind == Kind::AddsOne {
                // Some errors end the transaction. What follows would be written for itself.
                if !call.execute(&transaction) && transaction.is_autocommit() {
                    return Err(SqliteError::RolledBack);
                }
            } else {
                let mut savepoint = transaction.savepoint()?;
                if !call.execute(&savepoint) {
                    // The others are kept.
                    savepoint.rollback()?;
                }
                savepoint.commit()?;
            }
        }
        // Where there is little room, one that lacks it is to end no other.
        if group.len() == CALLS || room.is_used_up() {
            break;
        }
        let Ok(call) = calls.try_recv() else { break };
        group.push(call);
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn calls_at_a_locked_file_fail_together_and_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let file = File::open(path.clone()).await.unwrap();
        let short =
            |connection: &Connection| Ok(connection.busy_timeout(Duration::from_millis(300))?);
        file.call(short, |()| {}).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        // The first waits alone, and all the others behind it.
        let begun = Instant::now();
        file.call(|_| Ok(()), |()| {}).await.unwrap_err();
        let alone = begun.elapsed();
        let calls = (0..20).map(|_| {
            let file = file.clone();
            tokio::spawn(async move { file.call(|_| Ok(()), |()| {}).await })
        });
        let begun = Instant::now();
        for call in calls.collect::<Vec<_>>() {
            let error = call.await.unwrap().unwrap_err().to_string();
            assert!(error.contains("locked"), "{error}");
        }
        // Two waits, as one call may come before the others, and not twenty.
        assert!(begun.elapsed() < alone * 8, "{:?}, and {alone:?} alone", begun.elapsed());
        other.execute_batch("ROLLBACK").unwrap();
        file.call(|_| Ok(()), |()| {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_statement_that_ends_the_transaction_is_an_error_of_all_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(folder.path().join("queue.db")).await.unwrap();
        let trigger = |connection: &Connection| {
            Ok(connection.execute_batch(
                "CREATE TRIGGER refused BEFORE INSERT ON pipeline_items WHEN NEW.key = '5'
                 BEGIN SELECT RAISE(ROLLBACK, 'refused'); END",
            )?)
        };
        file.call(trigger, |()| {}).await.unwrap();
        let pushes = (0..100).map(|n: usize| {
            let file = file.clone();
            tokio::spawn(async move {
                let push = move |connection: &Connection| {
                    let item = crate::Item::new("").key(n.to_string());
                    Ok(super::super::push_in(connection, "queue", &item)?)
                };
                file.add_by_one_statement(push).await
            })
        });
        let mut stored = 0;
        for push in pushes.collect::<Vec<_>>() {
            stored += i64::from(push.await.unwrap().is_ok());
        }
        assert!(stored < 100, "one is refused");
        let count = |connection: &Connection| {
            let count = "SELECT count(*) FROM pipeline_items";
            Ok(connection.query_row(count, [], |row| row.get::<_, i64>(0))?)
        };
        assert_eq!(file.call(count, |_| {}).await.unwrap(), stored);
    }

    #[tokio::test]
    async fn a_full_file_gives_up_its_reserve_until_there_is_room_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(folder.path().join("queue.db")).await.unwrap();
        let reserve = folder.path().join("queue.db-reserve");
        assert!(reserve.exists());
        let limit = |connection: &Connection| {
            Ok(connection.pragma_update_and_check(None, "max_page_count", 100, |_| Ok(()))?)
        };
        file.call(limit, |()| {}).await.unwrap();
        let push = async || {
            let push = |connection: &Connection| {
                let item = crate::Item::new(vec![0; 5000]);
                Ok(super::super::push_in(connection, "queue", &item)?)
            };
            file.add_by_one_statement(push).await
        };
        let error = loop {
            if let Err(error) = push().await {
                break error;
            }
        };
        assert!(lacks_room(&error), "{error}");
        // The thread looks for room when there is a call.
        assert!(!reserve.exists());
        let began = Instant::now();
        while let Err(error) = push().await {
            assert!(matches!(error, SqliteError::Full), "{error}");
            assert!(began.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(reserve.exists());
    }

    #[tokio::test]
    async fn a_commit_is_synchronized_with_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(folder.path().join("queue.db")).await.unwrap();
        let pragmas = |connection: &Connection| {
            let mode: String =
                connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
            let level: u8 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
            Ok((mode, level))
        };
        // With FULL, which is 2, the log is written to the disk at each commit.
        assert_eq!(file.call(pragmas, |_| {}).await.unwrap(), ("wal".to_owned(), 2));
    }
}
