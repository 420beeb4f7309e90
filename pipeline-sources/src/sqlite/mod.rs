//! A durable queue in a SQLite file, which any process and any operator can open.
//!
//! ```
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{Item, SourceOptions, sqlite::SqliteQueue};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("orders.db");
//! let queue = SqliteQueue::open(path, "orders").await?;
//!
//! // When it returns, the item is on the disk.
//! queue.push(Item::new(r#"{"id": 7}"#)).await?;
//!
//! let handle = async |order: &mut Message<serde_json::Value>| {
//!     println!("order {}", order["id"]);
//!     Ok(())
//! };
//! let pipeline = Pipeline::of_messages("orders")
//!     .source(queue.source(SourceOptions::new()).json::<serde_json::Value>())
//!     .processors(Processors::from_fn(handle))
//!     .start()?;
//! # while queue.backlog().await?.items != Some(0) { tokio::task::yield_now().await; }
//! pipeline.drain(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The tables are `pipeline_items`, `pipeline_dead_letters` and `pipeline_queues`. A program may insert an
//! item in its own transaction, with [`push_in`] or with a plain `INSERT`: the queue and the payload are
//! enough.

mod ahead;
mod file;
mod room;
mod row;
mod schema;
mod watch;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::telemetry::Telemetry;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ToSql, Transaction, params};
use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use self::{ahead::Clock, file::File, room::lacks_room, row::RawValue};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    item::{DeadLetter, Delivery, Item, QueuedItem},
    metrics::Refusals,
    options::SourceOptions,
    random::random_i64,
    reason::cut,
    replaying::{CHOSEN, PAGE_BYTES, Page, drop_all, replay_all},
    source::Source,
    unix_ms::{from_ms, ms, now_ms},
};

/// A queue in a SQLite file.
///
/// Cheap to clone. Many queues may be in one file, and many processes may open it. What different tasks
/// push at the same time is committed together, so that they share the wait for the disk.
///
/// Items are delivered in the order of their ids. After a retry, and with several processors, an item
/// may be handled after a later one, unless the queue is [ordered by key](SqliteOptions::ordered_by_key).
/// Those that are to be delivered again, and those of processes that have died, come first when it is time,
/// whatever backlog there is; but at least every second item is a new one, if there are any.
///
/// In the same folder is another file of 4.5 MB, whose name has `-reserve` at its end. It keeps room on the disk: when that
/// is full the reserve is given up, and [items are refused](SqliteError::Full), but those that are there are
/// delivered and done. When there is room again, or a part of the file is free, items are added again.
///
/// A file that is deleted, moved or replaced while it is open [fails](SqliteError::Replaced) all calls, on Unix, until
/// it is at its path again. A deleted log (`-wal`) is not noticed.
///
/// A call waits for other processes that write to the file, up to ten seconds, and fails then. A file system
/// that does not answer cannot be interrupted.
#[derive(Clone, Debug)]
pub struct SqliteQueue {
    file: File,
    queue: Arc<str>,
    options: SqliteOptions,
    /// Wakes sources in this process.
    added: Arc<Notify>,
    clock: Arc<Mutex<Clock>>,
    refusals: Refusals,
}

/// The options of a queue in a SQLite file.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SqliteOptions {
    lease: Duration,
    poll: Duration,
    ordered: Option<bool>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        let (lease, poll) = (Duration::from_secs(30), Duration::from_millis(100));
        Self { lease, poll, ordered: None }
    }
}

impl SqliteOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long after the death of a process its items are delivered again. Default 30 seconds. It is
    /// renewed while an item is handled.
    ///
    /// Leases and delays are measured by the wall clock: if it is set forward, items may be delivered twice. If
    /// it is set back, what it had set while it was ahead ends when it has taken as long as it was to take since
    /// then. A clock that is behind for a while makes nothing end sooner.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// How often a waiting source looks for items of other processes, and for those whose time has
    /// come. Default 100 milliseconds. Items that the same process [pushes](SqliteQueue::push) wake it at once, and so does
    /// [`SqliteQueue::wake`].
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// Items with the same key are delivered in their order, one at a time: the next one when the one
    /// before was handled or given up. It is a property of the queue in the file, which stays as it is where
    /// this is not called, and is not ordered at first. The last process that calls it decides.
    pub fn ordered_by_key(mut self, ordered: bool) -> Self {
        self.ordered = Some(ordered);
        self
    }
}

/// How many queues an error names that says which there are.
const NAMED: u32 = 20;

/// Why a call of a SQLite queue failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// The file could not be opened, or its tables could not be created.
    #[error("cannot open the queue in {path}", path = path.display())]
    Open {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The tables of the file are not those of a queue. Nothing was changed in it.
    #[error("cannot open the queue in {path}: {why}", path = path.display())]
    NotAQueue {
        /// The path of the file.
        path: PathBuf,
        /// Which table or column is not as it was expected.
        why: String,
    },
    /// The file has no queue of this name.
    #[error("there is no queue {queue:?} in {path}, but {there:?}", path = path.display())]
    UnknownQueue {
        /// The path of the file.
        path: PathBuf,
        /// The name that was asked for.
        queue: Arc<str>,
        /// The names of the queues that there are, up to twenty.
        there: Vec<String>,
    },
    /// A statement or a transaction failed.
    #[error("a statement of the queue failed: {0}")]
    Statement(#[source] Arc<rusqlite::Error>),
    /// A call failed, and SQLite has rolled back what was written with it.
    #[error("the transaction of the queue was rolled back, because a statement of it failed")]
    RolledBack,
    /// The file was deleted, moved or replaced while it was open, so that nothing that is written to it would
    /// be found again. Nothing is added, delivered or done until the same file is at its path again; what is
    /// there instead is not opened.
    ///
    /// Move the file back. If that is not possible, end all programs that have it open, remove the files next
    /// to it whose names have `-wal` and `-shm` at their ends, as they belong to the old file, and start the programs
    /// again.
    #[error(
        "the file {path} was deleted or replaced while it was open: {advice}",
        path = path.display(),
        advice = what_to_do(log_of.as_deref())
    )]
    Replaced {
        /// The path of the file, as it was given.
        path: PathBuf,
        /// The path where the file was, without links: the names of `-wal` and `-shm` are made of this one. `None` if the
        /// file is still there, because a link that leads to it was changed: then they belong to it, and have to stay.
        log_of: Option<PathBuf>,
    },
    /// The disk is full. What room is left is kept for what becomes of the items that are there.
    #[error("there is no room on the disk for more items")]
    Full,
    /// No id is left for a new item, because a program has chosen an id that is as large as ids can be.
    ///
    /// Close the file in all programs. If there is an item with that id, give it one that follows the
    /// others, and let SQLite count from there: `UPDATE pipeline_items SET id = ... WHERE id = ...` and `UPDATE
    /// sqlite_sequence SET seq = (SELECT coalesce(max(id), 0) FROM pipeline_items) WHERE name =
    /// 'pipeline_items'`.
    #[error(
        "no id is left for new items, because one has or had the id {last}: give it a lower one if it is there, \
         and then lower the number of pipeline_items in sqlite_sequence"
    )]
    IdsUsedUp {
        /// The largest id that an item has or had.
        last: i64,
    },
    /// The thread of the file could not be started.
    #[error("cannot start the thread of the queue")]
    Thread(#[source] Arc<std::io::Error>),
    /// The thread of the file has ended.
    #[error("the thread of the queue has ended")]
    Closed,
}

/// What to do about a file that was replaced, and its log if that is in the way.
fn what_to_do(log_of: Option<&Path>) -> String {
    match log_of.map(Path::display) {
        Some(log_of) => format!(
            "move it back, or end the program, remove {log_of}-wal and {log_of}-shm, and start it again"
        ),
        None => "a link leads elsewhere now: put it back, or start the program again".to_owned(),
    }
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Statement(Arc::new(error))
    }
}

impl SqliteError {
    /// Why an item could not be added.
    fn of_adding(connection: &Connection, error: rusqlite::Error) -> Self {
        match schema::used_up_by(connection, &error) {
            Some(last) => Self::IdsUsedUp { last },
            None => error.into(),
        }
    }
}

impl From<SqliteError> for BrokerError {
    fn from(error: SqliteError) -> Self {
        Self::new(Box::<dyn Error + Send + Sync>::from(error))
    }
}

/// Adds an item to a queue in a transaction of the program. It returns the item's id.
///
/// The tables exist once a [`SqliteQueue`] was opened in the file. Sources of other processes see the
/// item after their [poll interval](SqliteOptions::poll_interval); those of this one too, unless the program calls
/// [`SqliteQueue::wake`] after its commit.
///
/// # Errors
///
/// The error of SQLite.
pub fn push_in(connection: &Connection, queue: &str, item: &Item) -> rusqlite::Result<i64> {
    let headers = if item.headers.is_empty() {
        None
    } else {
        serde_json::to_string(
            &item.headers.iter().map(|(k, v)| (&**k, &**v)).collect::<BTreeMap<_, _>>(),
        )
        .ok()
    };
    let trace = item.trace.map(|trace| trace.to_string());
    let mut statement = connection.prepare_cached(schema::PUSH)?;
    statement.insert(params![
        queue,
        item.key.as_deref(),
        &item.payload[..],
        headers,
        trace,
        now_ms()
    ])
}

/// Adds an item to a queue, and removes the item of another queue that it was made of, in a transaction of
/// the program. It returns the id of the new item, or `None` if the other is gone, because it was handled
/// elsewhere meanwhile. Then nothing is added.
///
/// The id is that in the [metadata](pipeline_core::processing::Metadata::id) of a message of
/// [`from`](SqliteQueue). When it is acknowledged after that, nothing more happens.
///
/// # Errors
///
/// The error of SQLite.
pub fn forward_in(
    transaction: &Transaction<'_>,
    from: &str,
    id: &str,
    to: &str,
    item: &Item,
) -> rusqlite::Result<Option<i64>> {
    forward(transaction, from, id, to, item)
}

fn forward(
    connection: &Connection,
    from: &str,
    id: &str,
    to: &str,
    item: &Item,
) -> rusqlite::Result<Option<i64>> {
    // What is no number is no item of this queue.
    let Ok(id) = id.parse::<i64>() else { return Ok(None) };
    if connection.prepare_cached(schema::REMOVE)?.execute(params![from, id])? == 0 {
        return Ok(None);
    }
    push_in(connection, to, item).map(Some)
}

impl SqliteQueue {
    /// Opens a queue in a file, with default options. Creates the file and its tables if there are
    /// none.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file cannot be opened.
    pub async fn open(
        path: impl Into<PathBuf>,
        queue: impl Into<Arc<str>>,
    ) -> Result<Self, SqliteError> {
        Self::open_with(path, queue, SqliteOptions::new()).await
    }

    /// Opens a queue in a file.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file cannot be opened.
    pub async fn open_with(
        path: impl Into<PathBuf>,
        queue: impl Into<Arc<str>>,
        options: SqliteOptions,
    ) -> Result<Self, SqliteError> {
        let file = File::open(path.into()).await?;
        let queue = Self { options, ..Self::of(file, queue.into()) };
        let Some(ordered) = options.ordered else { return Ok(queue) };
        let name = queue.queue.clone();
        let declare = move |connection: &Connection| {
            let changed = connection.execute(schema::DECLARE, params![&*name, ordered])?;
            if changed > 0 {
                let arrange = if ordered { schema::BLOCK } else { schema::UNBLOCK };
                connection.execute(arrange, [&*name])?;
            }
            Ok(())
        };
        queue.file.call(declare, |()| {}).await?;
        Ok(queue)
    }

    /// Opens a queue that is there: a file with the tables, in which items of this name were added or the queue was
    /// declared ordered. It creates nothing, in the file or next to it, and changes nothing until it is asked
    /// to. So it is for tools that look at a queue; a program that adds items [opens](Self::open) it.
    ///
    /// While it is open, SQLite has its `-wal` and `-shm` next to it. They are removed when the last program closes the file,
    /// which moves what the log has into it. A tool [waits](Self::close) for that before it ends.
    ///
    /// # Errors
    ///
    /// [`SqliteError::Open`] if there is no file or it is no database, [`SqliteError::NotAQueue`] if it is that of
    /// another program, and [`SqliteError::UnknownQueue`], with the names of those that there are.
    pub async fn open_existing(
        path: impl Into<PathBuf>,
        queue: impl Into<Arc<str>>,
    ) -> Result<Self, SqliteError> {
        let (path, name) = (path.into(), queue.into());
        let queue = Self::of(File::open_existing(path.clone()).await?, name.clone());
        let look = move |connection: &Connection| {
            if connection.query_row(schema::IS_THERE, [&*name], |row| row.get(0))? {
                return Ok(());
            }
            let mut statement = connection.prepare(schema::QUEUES)?;
            let there =
                statement.query_map([NAMED], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Err(SqliteError::UnknownQueue { path, queue: name, there })
        };
        if let Err(error) = queue.file.call(look, |()| {}).await {
            queue.close().await;
            return Err(error);
        }
        Ok(queue)
    }

    /// Closes the file. Returns when it is closed: when all clones of this handle, and all sources of it, are gone too.
    ///
    /// A handle that is dropped closes the file soon, by a thread which nothing waits for. If the process ends before, the
    /// `-wal` and `-shm` of SQLite stay next to it until a program opens it again.
    pub async fn close(self) {
        self.file.close().await;
    }

    fn of(file: File, queue: Arc<str>) -> Self {
        let clock = Arc::new(Mutex::new(Clock::new(now_ms(), Instant::now())));
        let refusals = Refusals::register("sqlite", &queue);
        Self { file, queue, options: SqliteOptions::new(), added: Arc::default(), clock, refusals }
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    ///
    /// An item that [`push_in`] or a statement of the program adds is in a transaction of the program, whose error the program
    /// gets, and is not counted.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "sqlite", &self.queue);
        Self { refusals, ..self }
    }

    /// The name of the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.queue
    }

    /// Adds an item. When it returns the item's id, the item is on the disk.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if it could not be stored.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<i64, SqliteError> {
        let queue = self.queue.clone();
        let push = move |connection: &Connection| {
            push_in(connection, &queue, &item)
                .map_err(|error| SqliteError::of_adding(connection, error))
        };
        let id = self.counted(1, self.file.add_by_one_statement(push).await)?;
        self.wake();
        Ok(id)
    }

    /// Adds items, all of them or none. When it returns their ids, they are on the disk.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if they could not be stored.
    pub async fn push_all(&self, items: Vec<Item>) -> Result<Vec<i64>, SqliteError> {
        let (queue, number) = (self.queue.clone(), items.len());
        let push = move |connection: &Connection| {
            let pushed = items.iter().map(|item| push_in(connection, &queue, item));
            let pushed: Result<Vec<_>, _> = pushed.collect();
            pushed.map_err(|error| SqliteError::of_adding(connection, error))
        };
        let ids = self.counted(number, self.file.add(push).await)?;
        self.wake();
        Ok(ids)
    }

    /// Counts items that were not added.
    fn counted<R>(&self, items: usize, added: Result<R, SqliteError>) -> Result<R, SqliteError> {
        if let Err(error) = &added {
            match error {
                SqliteError::Replaced { .. } => self.refusals.count_replaced(items),
                SqliteError::Full => self.refusals.count(items, true),
                error => self.refusals.count(items, lacks_room(error)),
            }
        }
        added
    }

    /// Removes an item of this queue that is being handled, and adds one to another queue in the file, in one
    /// transaction, so that a death between the two steps of a program neither loses nor doubles it. It
    /// returns the id of the new item, or `None` if the other is gone, because it was handled elsewhere
    /// meanwhile; then nothing is added. [`forward_in`] does it in a transaction of the program. Sources of
    /// the other queue see the item after their [poll interval](SqliteOptions::poll_interval).
    ///
    /// ```
    /// # use pipeline_core::processing::{Failure, Message};
    /// # use pipeline_sources::{Item, sqlite::SqliteQueue};
    /// # fn enrich(item: &Item) -> Item { item.clone() }
    /// # fn handler(orders: SqliteQueue) {
    /// let handle = async move |order: &mut Message<Item>| {
    ///     let id = order.metadata().id.clone().unwrap_or_default();
    ///     orders.forward(&id, "pushes", enrich(order)).await?;
    ///     // The order is gone. To acknowledge it changes nothing more.
    ///     Ok::<_, Failure>(())
    /// };
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if it could not be stored.
    pub async fn forward(
        &self,
        id: &str,
        to: &str,
        item: Item,
    ) -> Result<Option<i64>, SqliteError> {
        let (from, id, to) = (self.queue.clone(), id.to_owned(), to.to_owned());
        let forward = move |connection: &Connection| {
            forward(connection, &from, &id, &to, &item)
                .map_err(|error| SqliteError::of_adding(connection, error))
        };
        let new = self.counted(1, self.file.call(forward, |_| {}).await)?;
        // It may be the turn of the next item of its key.
        self.wake();
        Ok(new)
    }

    /// Wakes the sources of this queue in this process: of this value and of its clones. They look for items at once,
    /// and not after their [poll interval](SqliteOptions::poll_interval).
    ///
    /// It is for what has added items without [`push`](Self::push): a transaction of the program
    /// ([`push_in`], a plain `INSERT`), a trigger, or [`forward`](Self::forward) to this queue. Call it after the
    /// commit. Without an item, a call costs each source one look.
    ///
    /// ```
    /// # use pipeline_sources::{Item, sqlite::{SqliteQueue, push_in}};
    /// # fn place(db: &mut rusqlite::Connection, pushes: &SqliteQueue) -> rusqlite::Result<()> {
    /// let transaction = db.transaction()?;
    /// transaction.execute("INSERT INTO orders (user) VALUES ('ada')", [])?;
    /// push_in(&transaction, pushes.name(), &Item::new("{}").key("ada"))?;
    /// transaction.commit()?;
    /// pushes.wake();
    /// # Ok(())
    /// # }
    /// ```
    pub fn wake(&self) {
        self.added.notify_waiters();
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item
    /// is delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items there are that are not done, and when the first of them was added.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be read.
    pub async fn backlog(&self) -> Result<Backlog, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let counts = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
            let counts = connection.prepare_cached(schema::COUNTS)?.query_row([&*queue], counts);
            let (items, dead_letters) = counts.optional()?.unwrap_or_default();
            let oldest = connection
                .prepare_cached(schema::OLDEST)?
                .query_row([&*queue], row::first_integer)
                .optional()?;
            Ok(Backlog {
                items: u64::try_from(items).ok(),
                oldest: oldest.flatten().and_then(from_ms),
                dead_letters: u64::try_from(dead_letters).ok(),
                ..Backlog::default()
            })
        };
        self.file.call(read, |_| {}).await
    }

    /// Up to `limit` items that are not done, by id, after the one with this id. They are in work or wait:
    /// [`QueuedItem::state`].
    ///
    /// With 16 MiB a page is full and ends, so there may be more behind one of fewer than `limit`: not behind an empty one,
    /// unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be read.
    pub async fn items(&self, after: i64, limit: u32) -> Result<Vec<QueuedItem>, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(schema::ITEMS)?;
            let mut rows = statement.query(params![&*queue, after, limit])?;
            let (mut items, mut bytes) = (Vec::new(), 0_usize);
            while bytes < PAGE_BYTES
                && let Some(row) = rows.next()?
            {
                let item = row::queued(row)?;
                bytes = bytes.saturating_add(item.item.bytes());
                items.push(item);
            }
            Ok(items)
        };
        self.file.call(read, |_| {}).await
    }

    /// Up to `limit` items that were given up, by id, after the one with this id. They keep the ids which
    /// they had in the queue, unless there was a dead letter with that id already.
    ///
    /// With 16 MiB a page is full and ends, so there may be more behind one of fewer than `limit`: not behind an empty one,
    /// unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be read.
    pub async fn dead_letters(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, SqliteError> {
        self.page(after, i64::MAX, Page::of(limit)).await
    }

    /// Fills a page with the dead letters after an id, up to another.
    async fn page(
        &self,
        after: i64,
        last: i64,
        mut page: Page<i64>,
    ) -> Result<Vec<DeadLetter>, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(schema::DEAD_LETTERS)?;
            let limit = i64::try_from(page.limit()).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![&*queue, after, limit, last])?;
            while !page.is_full()
                && let Some(row) = rows.next()?
            {
                page.push(row::dead_letter(row)?);
            }
            Ok(page.into_letters())
        };
        self.file.call(read, |_| {}).await
    }

    /// Adds an item that was given up to the queue again, as a new item, whose age begins now. Returns its
    /// new id, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be written.
    pub async fn replay(&self, id: i64) -> Result<Option<i64>, SqliteError> {
        let queue = self.queue.clone();
        let replay = move |connection: &Connection| {
            let added = connection.execute(schema::REPLAY, params![&*queue, id, now_ms()]);
            if added.map_err(|error| SqliteError::of_adding(connection, error))? == 0 {
                return Ok(None);
            }
            // The triggers may have written other tables, but no other item.
            let new = connection.last_insert_rowid();
            connection.execute(schema::DROP, params![&*queue, id])?;
            Ok(Some(new))
        };
        let new = self.file.call(replay, |_| {}).await?;
        self.added.notify_waiters();
        Ok(new)
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, however many, and not those that fail again meanwhile. Of others that are given up while it
    /// chooses, it takes those with a lower id than the last one. Returns how many there were.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::sqlite::SqliteQueue) -> Result<(), Box<dyn std::error::Error>> {
    /// let replayed = queue.replay_all(|dead| !dead.reason.starts_with("not valid JSON")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`dead_letters`](Self::dead_letters) and of [`replay`](Self::replay). Those before it are replayed.
    pub async fn replay_all(
        &self,
        mut which: impl FnMut(&DeadLetter) -> bool,
    ) -> Result<u64, SqliteError> {
        let Some(last) = self.last_dead_letter().await? else { return Ok(0) };
        replay_all!(
            which,
            after => self.page(after.copied().unwrap_or(i64::MIN), last, Page::next()),
            id => self.replay(*id)
        )
    }

    /// Removes an item that was given up. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be written.
    pub async fn drop_dead_letter(&self, id: i64) -> Result<bool, SqliteError> {
        let queue = self.queue.clone();
        let drop = move |connection: &Connection| {
            Ok(connection.execute(schema::DROP, params![&*queue, id])? > 0)
        };
        self.file.call(drop, |_| {}).await
    }

    /// Removes the items that were given up and for which the function says so. It takes those that are there when it
    /// begins, however many, and not those that are given up meanwhile. Of more than a million, later
    /// ones are chosen when those before them are removed. Returns
    /// how many there were. Those of a page are removed in one transaction.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be read or written. Those before it are removed.
    pub async fn drop_all_dead_letters(
        &self,
        mut which: impl FnMut(&DeadLetter) -> bool,
    ) -> Result<u64, SqliteError> {
        let Some(last) = self.last_dead_letter().await? else { return Ok(0) };
        let (mut after, mut dropped) = (i64::MIN, 0_u64);
        loop {
            let there = self.dead_letter_ids(after, last).await?;
            let Some(end) = there.last().copied() else { return Ok(dropped) };
            // One that is given up meanwhile may have an id between theirs.
            let mut chosen =
                |dead: &DeadLetter| there.binary_search(&dead.id).is_ok() && which(dead);
            let more: Result<u64, SqliteError> = drop_all!(
                chosen,
                from => self.page(from.copied().unwrap_or(after), end, Page::next()),
                ids => self.drop_dead_letters(ids)
            );
            dropped = dropped.saturating_add(more?);
            after = end;
        }
    }

    /// The id of the last dead letter.
    async fn last_dead_letter(&self) -> Result<Option<i64>, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(schema::LAST_DEAD_LETTER)?;
            Ok(statement.query_row([&*queue], |row| row.get(0))?)
        };
        self.file.call(read, |_| {}).await
    }

    /// The ids of the dead letters after one, up to another, in their order, and no more than are chosen at once.
    async fn dead_letter_ids(&self, after: i64, last: i64) -> Result<Vec<i64>, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(schema::DEAD_IDS)?;
            let limit = i64::try_from(CHOSEN).unwrap_or(i64::MAX);
            let ids =
                statement.query_map(params![&*queue, after, last, limit], |row| row.get(0))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        };
        self.file.call(read, |_| {}).await
    }

    /// Removes dead letters. Returns how many of them there were.
    async fn drop_dead_letters(&self, ids: Vec<i64>) -> Result<u64, SqliteError> {
        let queue = self.queue.clone();
        let drop = move |connection: &Connection| {
            let (mut statement, mut dropped) = (connection.prepare_cached(schema::DROP)?, 0);
            for id in ids {
                dropped += statement.execute(params![&*queue, id])?;
            }
            Ok(u64::try_from(dropped).unwrap_or(u64::MAX))
        };
        self.file.call(drop, |_| {}).await
    }
}

/// What identifies a delivery: the item, and its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SqliteReceipt {
    id: i64,
    lease: i64,
}

impl Broker for SqliteQueue {
    type Receipt = SqliteReceipt;
    type Fetch = SqliteFetch;
    type Settle = SqliteSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the queue {} in a SQLite file", self.queue).into()
    }

    async fn connect(&self) -> Result<(SqliteFetch, SqliteSettle), BrokerError> {
        // Otherwise a source would be connected for a moment, again and again.
        self.file.is_there().await?;
        let brought_forward = Arc::<AtomicU64>::default();
        let sweep = Sweep { brought_forward: brought_forward.clone(), ..Sweep::default() };
        let fetch = SqliteFetch { queue: self.clone(), again_first: false, sweep };
        Ok((fetch, SqliteSettle { queue: self.clone(), brought_forward }))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.options.lease)
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct SqliteFetch {
    queue: SqliteQueue,
    /// Whether of an odd number there is one more of those that are delivered again.
    again_first: bool,
    sweep: Sweep,
}

/// When it is looked for items whose turn has come unnoticed, and for those that wait for a time which a clock
/// that was ahead has set.
#[derive(Clone, Debug, Default)]
struct Sweep {
    last: Option<Instant>,
    /// The key after which it looks next.
    after: Option<RawValue>,
    /// The time and the id of the item before which it looks next.
    before: Option<(RawValue, i64)>,
    /// How many items it has brought forward and not reported.
    brought_forward: Arc<AtomicU64>,
}

/// With so many bytes a fetch has enough items, however many are asked for.
const FETCHED_BYTES: usize = 16 * 1024 * 1024;

/// The time between two sweeps.
const SWEEP: Duration = Duration::from_secs(1);

/// At how many keys or items a sweep looks.
const SWEPT: usize = 500;

impl Fetch for SqliteFetch {
    type Receipt = SqliteReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<SqliteReceipt>>, BrokerError> {
        loop {
            // Before the look, so that no item is missed.
            let queue = self.queue.clone();
            let added = queue.added.notified();
            if self.sweep.last.is_none_or(|last| last.elapsed() >= SWEEP) {
                self.sweep.last = Some(Instant::now());
                self.sweep.after = queue.sweep(self.sweep.after.take()).await?;
                let (before, brought) = queue.bring_forward(self.sweep.before.take()).await?;
                self.sweep.before = before;
                if brought > 0 {
                    self.sweep.brought_forward.fetch_add(brought, Relaxed);
                    // There are more of them where these were.
                    self.sweep.last = None;
                }
            }
            self.again_first = !self.again_first;
            let fetched = queue.take(max, self.again_first).await?;
            if !fetched.is_empty() {
                return Ok(fetched);
            }
            // What other processes add, and what is available later, is found by looking.
            let _ = timeout(queue.options.poll, added).await;
        }
    }
}

impl SqliteQueue {
    /// Leases up to `max` items that are available.
    async fn take(
        &self,
        max: usize,
        again_first: bool,
    ) -> Result<Vec<Delivery<SqliteReceipt>>, SqliteError> {
        let (queue, lease) = (self.queue.clone(), self.options.lease);
        let take = move |connection: &Connection| {
            let ids = available(connection, &queue, max, again_first)?;
            lease_items(connection, &queue, ids, lease)
        };
        let file = self.file.clone();
        // Nothing waits for the items any more.
        let unheard = move |taken: Vec<Delivery<SqliteReceipt>>| {
            let release = move |connection: &Connection| {
                taken
                    .iter()
                    .try_for_each(|taken| release(connection, taken.receipt, Duration::ZERO))
            };
            file.call_later(release);
        };
        self.file.call(take, unheard).await
    }

    /// Frees items whose turn has come unnoticed: in an ordered queue, of some keys after this one. Returns the
    /// key after which there are more to look at.
    async fn sweep(&self, after: Option<RawValue>) -> Result<Option<RawValue>, SqliteError> {
        let queue = self.queue.clone();
        let sweep = move |connection: &Connection| {
            if !is_ordered(connection, &queue)? {
                // Such as those of a queue that an operator has made one without an order.
                let some = params![&*queue, i64::try_from(SWEPT).unwrap_or(i64::MAX)];
                connection.prepare_cached(schema::UNBLOCK_SOME)?.execute(some)?;
                return Ok(None);
            }
            let mut key = after;
            for _ in 0..SWEPT {
                let next = match key {
                    None => connection
                        .prepare_cached(schema::FIRST_KEY)?
                        .query_row(params![&*queue], |row| row.get(0))?,
                    Some(key) => connection
                        .prepare_cached(schema::NEXT_KEY)?
                        .query_row(params![&*queue, key], |row| row.get(0))?,
                };
                if next == RawValue::Null {
                    return Ok(None);
                }
                let free = params![&*queue, next, now_ms()];
                connection.prepare_cached(schema::FREE)?.execute(free)?;
                key = Some(next);
            }
            Ok(key)
        };
        self.file.call(sweep, |_| {}).await
    }
}

/// Where the next look begins, and how many items were brought forward.
type BroughtForward = (Option<(RawValue, i64)>, u64);

impl SqliteQueue {
    /// Looks at some of the items that are available later, from this one on to earlier ones. One that waits
    /// since a time that is still to come is available once it has waited as long as it was to wait.
    async fn bring_forward(
        &self,
        before: Option<(RawValue, i64)>,
    ) -> Result<BroughtForward, SqliteError> {
        let queue = self.queue.clone();
        let (now, clock) = {
            let mut clock = self.clock.lock();
            let now = now_ms();
            clock.read(now, Instant::now());
            (now, *clock)
        };
        let bring = move |connection: &Connection| {
            let (at, id) = before.unwrap_or((RawValue::Integer(schema::NEVER), i64::MIN));
            let limit = i64::try_from(SWEPT).unwrap_or(i64::MAX);
            let mut later = connection.prepare_cached(schema::LATER)?;
            let values = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let found = later.query_map(params![&*queue, at, id, now, limit], values)?;
            let found = found.collect::<rusqlite::Result<Vec<(i64, RawValue, RawValue)>>>()?;
            let mut brought = 0;
            for (id, at, since) in &found {
                if let (RawValue::Integer(at), RawValue::Integer(since)) = (at, since)
                    && clock.is_over(*at, *since)
                {
                    connection.prepare_cached(schema::WAIT_UNTIL)?.execute([*id, now, now])?;
                    brought += 1;
                }
            }
            let more = found.len() == SWEPT;
            let last = found.into_iter().next_back().filter(|_| more);
            Ok((last.map(|(id, at, _)| (at, id)), brought))
        };
        self.file.call(bring, |_| {}).await
    }
}

fn is_ordered(connection: &Connection, queue: &str) -> rusqlite::Result<bool> {
    connection.prepare_cached(schema::IS_ORDERED)?.query_row([queue], |row| row.get(0))
}

/// The ids of up to `max` items that are available. Those that are delivered again come first, and take half
/// of the places if there are others.
fn available(
    connection: &Connection,
    queue: &str,
    max: usize,
    again_first: bool,
) -> rusqlite::Result<Vec<i64>> {
    let limit = |items: usize| i64::try_from(items).unwrap_or(i64::MAX);
    let ids = |statement: &str, parameters: &[&dyn ToSql]| {
        let mut statement = connection.prepare_cached(statement)?;
        let ids = statement.query_map(parameters, |row| row.get(0))?;
        ids.collect::<rusqlite::Result<Vec<i64>>>()
    };
    let mut found = ids(schema::AGAIN, &[&queue, &limit(max), &now_ms()])?;
    let share = if again_first { max.div_ceil(2) } else { max / 2 };
    let new = ids(schema::NEW, &[&queue, &limit(max - found.len().min(share))])?;
    found.truncate(max - new.len());
    found.extend(new);
    if found.len() < max {
        found.extend(ids(schema::ODD, &[&queue, &limit(max - found.len())])?);
    }
    Ok(found)
}

fn lease_items(
    connection: &Connection,
    queue: &str,
    ids: Vec<i64>,
    lease: Duration,
) -> Result<Vec<Delivery<SqliteReceipt>>, SqliteError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let is_ordered = is_ordered(connection, queue)?;
    let now = now_ms();
    let until = later(now, lease);
    let token = random_i64();
    let mut statement = connection.prepare_cached(schema::LEASE)?;
    let (mut leased, mut bytes) = (Vec::with_capacity(ids.len()), 0_usize);
    for id in ids {
        // The next fetch takes the others.
        if bytes >= FETCHED_BYTES {
            break;
        }
        let receipt = SqliteReceipt { id, lease: token };
        let delivery = statement.query_row(params![id, until, token, is_ordered, now], |row| {
            row::delivery(row, receipt)
        });
        match delivery.optional()? {
            Some(delivery) => {
                bytes = bytes.saturating_add(delivery.item.bytes());
                leased.push(delivery);
            }
            None => wait(connection, queue, id, now)?,
        }
    }
    Ok(leased)
}

/// Notes that it is not an item's turn, and sees to it that it is the turn of the first of its key.
fn wait(connection: &Connection, queue: &str, id: i64, now: i64) -> Result<(), SqliteError> {
    let key = connection
        .prepare_cached(schema::WAIT)?
        .query_row([id], |row| row.get::<_, RawValue>(0))
        .optional()?;
    connection.prepare_cached(schema::FREE)?.execute(params![queue, key, now])?;
    Ok(())
}

fn release(
    connection: &Connection,
    receipt: SqliteReceipt,
    after: Duration,
) -> Result<(), SqliteError> {
    let SqliteReceipt { id, lease } = receipt;
    let now = now_ms();
    let at = if after.is_zero() { 0 } else { later(now, after) };
    connection.prepare_cached(schema::RELEASE)?.execute([id, lease, at, now])?;
    Ok(())
}

/// The time after a delay. It comes, if only after a century.
fn later(now: i64, delay: Duration) -> i64 {
    now.saturating_add(ms(delay)).min(schema::NEVER - 1)
}

/// Stores the outcomes of a queue's items.
#[derive(Debug)]
pub struct SqliteSettle {
    queue: SqliteQueue,
    brought_forward: Arc<AtomicU64>,
}

impl Settle for SqliteSettle {
    type Receipt = SqliteReceipt;

    const WAKES: bool = true;

    async fn settle(
        &self,
        settlements: &[Settlement<SqliteReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let Self { queue, .. } = self;
        let settlements = settlements.to_vec();
        let name = queue.queue.clone();
        let settle = move |connection: &Connection| {
            let mut not_stored = Vec::new();
            for (index, settlement) in settlements.iter().enumerate() {
                if let Some(error) = settle_one(connection, settlement)? {
                    not_stored.push(NotStored::new(index, error));
                }
            }
            Ok((not_stored, is_ordered(connection, &name)?))
        };
        let (not_stored, is_ordered) = queue.file.call(settle, |_| {}).await?;
        // It may be the turn of the next item of a key.
        if is_ordered {
            queue.wake();
        }
        Ok(not_stored)
    }

    async fn wake(&self, receipts: &[SqliteReceipt]) -> Result<(), BrokerError> {
        let receipts = receipts.to_vec();
        let wake = move |connection: &Connection| {
            let now = now_ms();
            let mut statement = connection.prepare_cached(schema::WAKE)?;
            for SqliteReceipt { id, .. } in receipts {
                statement.execute([id, now])?;
            }
            Ok(())
        };
        self.queue.file.call(wake, |()| {}).await?;
        self.queue.wake();
        Ok(())
    }

    async fn renew(&self, receipts: &[SqliteReceipt]) -> Result<(), BrokerError> {
        let (receipts, lease) = (receipts.to_vec(), self.queue.options.lease);
        let renew = move |connection: &Connection| {
            let now = now_ms();
            let until = later(now, lease);
            let mut statement = connection.prepare_cached(schema::RENEW)?;
            for SqliteReceipt { id, lease } in receipts {
                statement.execute([id, lease, until, now])?;
            }
            Ok(())
        };
        Ok(self.queue.file.call(renew, |()| {}).await?)
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let backlog = self.queue.backlog().await?;
        Ok(Backlog { brought_forward: self.brought_forward.swap(0, Relaxed), ..backlog })
    }
}

/// Stores an outcome. Returns the error of a dead letter that cannot be stored, which concerns no other.
fn settle_one(
    connection: &Connection,
    settlement: &Settlement<SqliteReceipt>,
) -> Result<Option<SqliteError>, SqliteError> {
    let SqliteReceipt { id, lease } = settlement.receipt;
    match &settlement.outcome {
        Outcome::Done => {
            connection.prepare_cached(schema::DONE)?.execute([id])?;
        }
        Outcome::Retry { after, failures } => {
            let now = now_ms();
            let retry = [id, lease, later(now, *after), now, i64::from(*failures)];
            connection.prepare_cached(schema::RETRY)?.execute(retry)?;
        }
        Outcome::Release { after } => release(connection, settlement.receipt, *after)?,
        Outcome::GiveUp { reason } => {
            let mut give_up = connection.prepare_cached(schema::GIVE_UP)?;
            match give_up.execute(params![id, lease, cut(reason), now_ms()]) {
                Ok(0) => {}
                Ok(_) => {
                    connection.prepare_cached(schema::DONE)?.execute([id])?;
                }
                // The statement was undone. A full disk and the like end the transaction instead.
                Err(error) if is_refused(&error) => return Ok(Some(error.into())),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(None)
}

/// Whether a trigger or a constraint has refused what a statement writes.
fn is_refused(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}
