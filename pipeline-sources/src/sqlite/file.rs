//! The thread that has a SQLite file open, and groups what is written into transactions.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{SqliteError, schema};
use crate::heard::{Answer, heard};

/// How many calls wait for the thread at most. More callers wait for a place.
const CALLS: usize = 1024;

/// How long a transaction waits for one of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A call on the file, which is executed in a transaction with others.
trait Call: Send {
    /// Whether it writes by one statement, which SQLite executes as a whole or not at all.
    fn is_one_statement(&self) -> bool;

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
    is_one_statement: bool,
}

impl<R, F, U> Call for Calling<R, F, U>
where
    R: Send,
    F: FnOnce(&Connection) -> Result<R, SqliteError> + Send,
    U: FnOnce(Result<R, SqliteError>) + Send,
{
    fn is_one_statement(&self) -> bool {
        self.is_one_statement
    }

    fn execute(&mut self, connection: &Connection) -> bool {
        let call = self.call.take();
        self.result = call.map(|call| call(connection));
        self.result.as_ref().is_some_and(Result::is_ok)
    }

    fn answer(self: Box<Self>, committed: Result<(), &SqliteError>) {
        let result = self.result.unwrap_or(Err(SqliteError::Closed));
        self.answer.send(committed.map_err(Clone::clone).and(result));
    }
}

/// An open file. Its thread ends when the last handle is gone.
#[derive(Clone, Debug)]
pub(super) struct File {
    calls: mpsc::Sender<Box<dyn Call>>,
}

impl File {
    /// Opens a file, creates it and its tables if there are none, and runs its thread.
    pub(super) async fn open(path: PathBuf) -> Result<Self, SqliteError> {
        let (calls, waiting) = mpsc::channel::<Box<dyn Call>>(CALLS);
        let (opened, answer) = oneshot::channel();
        let serve = move || match open(&path) {
            Ok(connection) => {
                let _ = opened.send(Ok(()));
                run(connection, waiting);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        };
        let spawned = thread::Builder::new().name("sqlite-queue".to_owned()).spawn(serve);
        spawned.map_err(|error| SqliteError::Thread(Arc::new(error)))?;
        answer.await.map_err(|_| SqliteError::Closed)??;
        Ok(Self { calls })
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
        self.send(call, unheard, false).await
    }

    /// The same for a call that executes one statement. It needs no savepoint, so it costs less.
    pub(super) async fn call_statement<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
    ) -> Result<R, SqliteError> {
        self.send(call, |_| {}, true).await
    }

    async fn send<R: Send + 'static>(
        &self,
        call: impl FnOnce(&Connection) -> Result<R, SqliteError> + Send + 'static,
        unheard: impl FnOnce(R) + Clone + Send + Unpin + 'static,
        is_one_statement: bool,
    ) -> Result<R, SqliteError> {
        let unheard = |result: Result<R, _>| result.map_or((), unheard);
        let (answer, heard) = heard(unheard);
        let call = Calling { call: Some(call), result: None, answer, is_one_statement };
        self.calls.send(Box::new(call)).await.map_err(|_| SqliteError::Closed)?;
        heard.await.unwrap_or(Err(SqliteError::Closed))
    }

    /// Executes a call soon, without waiting for its result. If too many calls wait, it is dropped.
    pub(super) fn call_later(
        &self,
        call: impl FnOnce(&Connection) -> Result<(), SqliteError> + Send + 'static,
    ) {
        let (answer, _) = heard(|_| {});
        let call = Calling { call: Some(call), result: None, answer, is_one_statement: false };
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
        Ok(connection)
    };
    prepare()
        .map_err(|source| SqliteError::Open { path: path.to_owned(), source: Arc::new(source) })
}

/// Executes calls until the last handle is gone.
fn run(mut connection: Connection, mut calls: mpsc::Receiver<Box<dyn Call>>) {
    while let Some(first) = calls.blocking_recv() {
        let mut group = vec![first];
        let committed = execute(&mut connection, &mut group, &mut calls);
        for call in group {
            call.answer(committed.as_ref().copied());
        }
    }
}

/// Executes the calls that wait in one transaction. All of them are in the group then, executed or not.
fn execute(
    connection: &mut Connection,
    group: &mut Vec<Box<dyn Call>>,
    calls: &mut mpsc::Receiver<Box<dyn Call>>,
) -> Result<(), SqliteError> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    loop {
        if let Some(call) = group.last_mut() {
            if call.is_one_statement() {
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
        if group.len() == CALLS {
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
    use super::*;

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
                file.call_statement(push).await
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
