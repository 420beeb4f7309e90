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

mod file;
mod schema;

use std::{
    borrow::Cow, collections::BTreeMap, error::Error, path::PathBuf, sync::Arc, time::Duration,
};

use bytes::Bytes;
use pipeline_core::timed::TraceContext;
use rusqlite::{Connection, OptionalExtension, Row, params, types::ValueRef};
use thiserror::Error;
use tokio::{sync::Notify, time::timeout};

use self::file::File;
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    item::{DeadLetter, Delivery, Item},
    options::SourceOptions,
    random::random_i64,
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
#[derive(Clone, Debug)]
pub struct SqliteQueue {
    file: File,
    queue: Arc<str>,
    options: SqliteOptions,
    /// Wakes sources in this process.
    added: Arc<Notify>,
}

/// The options of a queue in a SQLite file.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SqliteOptions {
    lease: Duration,
    poll: Duration,
    ordered: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        let (lease, poll) = (Duration::from_secs(30), Duration::from_millis(100));
        Self { lease, poll, ordered: false }
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
    /// Leases are measured by the wall clock: if it is set forward, items may be delivered twice.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// How often a waiting source looks for items of other processes, and for those whose time has
    /// come. Default 100 milliseconds. Items of the same process wake it at once.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// Items with the same key are delivered in their order, one at a time: the next one when the one
    /// before was handled or given up. It is a property of the queue in the file, and the last process
    /// that opens it decides. Default no.
    pub fn ordered_by_key(mut self, ordered: bool) -> Self {
        self.ordered = ordered;
        self
    }
}

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
    /// A statement or a transaction failed.
    #[error("a statement of the queue failed: {0}")]
    Statement(#[source] Arc<rusqlite::Error>),
    /// A call failed, and SQLite has rolled back what was written with it.
    #[error("the transaction of the queue was rolled back, because a statement of it failed")]
    RolledBack,
    /// The thread of the file could not be started.
    #[error("cannot start the thread of the queue")]
    Thread(#[source] Arc<std::io::Error>),
    /// The thread of the file has ended.
    #[error("the thread of the queue has ended")]
    Closed,
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Statement(Arc::new(error))
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
/// item after their [poll interval](SqliteOptions::poll_interval).
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
        let queue = Self { file, queue: queue.into(), options, added: Arc::default() };
        let (name, ordered) = (queue.queue.clone(), options.ordered);
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
        let push = move |connection: &Connection| Ok(push_in(connection, &queue, &item)?);
        let id = self.file.call_statement(push).await?;
        self.added.notify_waiters();
        Ok(id)
    }

    /// Adds items, all of them or none. When it returns their ids, they are on the disk.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if they could not be stored.
    pub async fn push_all(&self, items: Vec<Item>) -> Result<Vec<i64>, SqliteError> {
        let queue = self.queue.clone();
        let push = move |connection: &Connection| {
            let pushed = items.iter().map(|item| push_in(connection, &queue, item));
            Ok(pushed.collect::<Result<Vec<_>, _>>()?)
        };
        let ids = self.file.call(push, |_| {}).await?;
        self.added.notify_waiters();
        Ok(ids)
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item
    /// is delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items there are, and how old the next one is.
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
                .query_row(params![&*queue, now_ms()], |row| row.get::<_, i64>(0))
                .optional()?;
            Ok(Backlog {
                items: u64::try_from(items).ok(),
                oldest: oldest.and_then(from_ms),
                dead_letters: u64::try_from(dead_letters).ok(),
            })
        };
        self.file.call(read, |_| {}).await
    }

    /// Up to `limit` items that were given up, by id, after the one with this id. They keep the ids which
    /// they had in the queue.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be read.
    pub async fn dead_letters(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, SqliteError> {
        let queue = self.queue.clone();
        let read = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(schema::DEAD_LETTERS)?;
            let rows = statement.query_map(params![&*queue, after, limit], |row| {
                Ok(DeadLetter {
                    id: row.get(0)?,
                    item: item(row, 1)?,
                    enqueued_at: from_ms(row.get(5)?),
                    deliveries: row.get(6)?,
                    reason: row.get::<_, String>(7)?.into(),
                    given_up_at: from_ms(row.get(8)?),
                })
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        };
        self.file.call(read, |_| {}).await
    }

    /// Adds an item that was given up to the queue again, as a new item that keeps the time at which it
    /// was added first. Returns its new id, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// [`SqliteError`] if the file could not be written.
    pub async fn replay(&self, id: i64) -> Result<Option<i64>, SqliteError> {
        let queue = self.queue.clone();
        let replay = move |connection: &Connection| {
            if connection.execute(schema::REPLAY, params![&*queue, id])? == 0 {
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
        Ok((SqliteFetch(self.clone()), SqliteSettle(self.clone())))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.options.lease)
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct SqliteFetch(SqliteQueue);

impl Fetch for SqliteFetch {
    type Receipt = SqliteReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<SqliteReceipt>>, BrokerError> {
        let Self(queue) = self;
        loop {
            // Before the look, so that no item is missed.
            let added = queue.added.notified();
            let fetched = queue.take(max).await?;
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
    async fn take(&self, max: usize) -> Result<Vec<Delivery<SqliteReceipt>>, SqliteError> {
        let (queue, lease) = (self.queue.clone(), self.options.lease);
        let take = move |connection: &Connection| lease_items(connection, &queue, max, lease);
        let file = self.file.clone();
        // Nothing waits for the items any more.
        let unheard = move |taken: Vec<Delivery<SqliteReceipt>>| {
            let release = move |connection: &Connection| {
                taken.iter().try_for_each(|taken| release(connection, taken.receipt, 0))
            };
            file.call_later(release);
        };
        self.file.call(take, unheard).await
    }
}

fn lease_items(
    connection: &Connection,
    queue: &str,
    max: usize,
    lease: Duration,
) -> Result<Vec<Delivery<SqliteReceipt>>, SqliteError> {
    let now = now_ms();
    let limit = i64::try_from(max).unwrap_or(i64::MAX);
    let ids = connection
        .prepare_cached(schema::AVAILABLE)?
        .query_map(params![queue, now, limit], |row| row.get(0))?
        .collect::<Result<Vec<i64>, _>>()?;
    let until = now.saturating_add(ms(lease));
    let token = random_i64();
    let mut statement = connection.prepare_cached(schema::LEASE)?;
    let leased = ids.into_iter().map(|id| {
        let receipt = SqliteReceipt { id, lease: token };
        Ok(statement.query_row(params![id, until, token], |row| {
            Ok(Delivery {
                receipt,
                id: id.to_string().into(),
                item: item(row, 0)?,
                enqueued_at: from_ms(row.get(4)?),
                deliveries: row.get(5)?,
                malformed: None,
            })
        })?)
    });
    leased.collect()
}

/// An item in the columns `key`, `payload`, `headers` and `trace`, from this one on.
///
/// An operator may have inserted it: a payload may be text, and headers or a trace that cannot be read
/// are left out.
fn item(row: &Row<'_>, first: usize) -> rusqlite::Result<Item> {
    let bytes = |column| -> rusqlite::Result<Option<Vec<u8>>> {
        Ok(match row.get_ref(column)? {
            ValueRef::Null => None,
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.to_vec()),
            ValueRef::Integer(number) => Some(number.to_string().into_bytes()),
            ValueRef::Real(number) => Some(number.to_string().into_bytes()),
        })
    };
    let text = |column| -> rusqlite::Result<Option<String>> {
        Ok(bytes(column)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let headers: BTreeMap<String, String> = text(first + 2)?
        .and_then(|headers| serde_json::from_str(&headers).ok())
        .unwrap_or_default();
    Ok(Item {
        key: text(first)?.map(Into::into),
        payload: bytes(first + 1)?.map(Bytes::from).unwrap_or_default(),
        headers: headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        trace: text(first + 3)?.and_then(|trace| trace.parse::<TraceContext>().ok()),
    })
}

fn release(connection: &Connection, receipt: SqliteReceipt, at: i64) -> Result<(), SqliteError> {
    let SqliteReceipt { id, lease } = receipt;
    connection.prepare_cached(schema::RELEASE)?.execute([id, lease, at])?;
    Ok(())
}

/// Stores the outcomes of a queue's items.
#[derive(Debug)]
pub struct SqliteSettle(SqliteQueue);

impl Settle for SqliteSettle {
    type Receipt = SqliteReceipt;

    async fn settle(
        &self,
        settlements: &[Settlement<SqliteReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let settlements = settlements.to_vec();
        let settle = move |connection: &Connection| {
            settlements.iter().try_for_each(|settlement| settle_one(connection, settlement))
        };
        self.0.file.call(settle, |()| {}).await?;
        // An ordered queue may have the next item of a key now.
        if self.0.options.ordered {
            self.0.added.notify_waiters();
        }
        Ok(Vec::new())
    }

    async fn renew(&self, receipts: &[SqliteReceipt]) -> Result<(), BrokerError> {
        let (receipts, lease) = (receipts.to_vec(), self.0.options.lease);
        let renew = move |connection: &Connection| {
            let until = now_ms().saturating_add(ms(lease));
            let mut statement = connection.prepare_cached(schema::RENEW)?;
            for SqliteReceipt { id, lease } in receipts {
                statement.execute([id, lease, until])?;
            }
            Ok(())
        };
        Ok(self.0.file.call(renew, |()| {}).await?)
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        Ok(self.0.backlog().await?)
    }
}

fn settle_one(
    connection: &Connection,
    settlement: &Settlement<SqliteReceipt>,
) -> Result<(), SqliteError> {
    let SqliteReceipt { id, lease } = settlement.receipt;
    match &settlement.outcome {
        Outcome::Done => {
            connection.prepare_cached(schema::DONE)?.execute([id])?;
        }
        Outcome::Retry(delay) => {
            let at = now_ms().saturating_add(ms(*delay));
            connection.prepare_cached(schema::RETRY)?.execute([id, lease, at])?;
        }
        Outcome::Release { after } => {
            // What is not delayed comes before what was added meanwhile.
            let at = if after.is_zero() { 0 } else { now_ms().saturating_add(ms(*after)) };
            release(connection, settlement.receipt, at)?;
        }
        Outcome::GiveUp { reason } => {
            let mut give_up = connection.prepare_cached(schema::GIVE_UP)?;
            if give_up.execute(params![id, lease, &**reason, now_ms()])? > 0 {
                connection.prepare_cached(schema::DONE)?.execute([id])?;
            }
        }
    }
    Ok(())
}
