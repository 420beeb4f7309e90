//! A durable queue in a table of PostgreSQL: an outbox, to which programs add items in their own
//! transactions.
//!
//! ```no_run
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{
//!     Item, SourceOptions,
//!     postgres::{PostgresQueue, push_in, tokio_postgres},
//! };
//!
//! # async fn order(
//! #     client: &mut tokio_postgres::Client,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let queue = PostgresQueue::open("postgres://user@127.0.0.1/shop", "orders")?;
//! queue.prepare().await?;
//!
//! // The item is there if the order is, and only then.
//! let transaction = client.transaction().await?;
//! transaction.execute("INSERT INTO orders VALUES (7)", &[]).await?;
//! push_in(&transaction, "orders", &Item::new(r#"{"id": 7}"#)).await?;
//! transaction.commit().await?;
//!
//! let handle = async |order: &mut Message<serde_json::Value>| {
//!     println!("order {}", order["id"]);
//!     Ok(())
//! };
//! let pipeline = Pipeline::of_messages("orders")
//!     .source(queue.source(SourceOptions::new()).json::<serde_json::Value>())
//!     .processors(Processors::from_fn(handle))
//!     .start()?;
//! # Ok(())
//! # }
//! ```
//!
//! # The tables
//!
//! They are `pipeline_items` and `pipeline_dead_letters`, with the version in `pipeline_schema`, in the
//! first schema of the user's search path. They are created when a queue is used for the first time, or by
//! an operator with the text of [`SCHEMA`]. Any program in any language may add an item:
//!
//! ```sql
//! INSERT INTO pipeline_items (queue, payload) VALUES ('orders', '{"id": 7}');
//! INSERT INTO pipeline_items (queue, payload, key, headers, trace)
//!     VALUES ('orders', '{"id": 7}', 'customer 12', '{"kind": "order"}',
//!         '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
//! ```
//!
//! A payload is bytes, so a text with backslashes in it is written as `convert_to('...', 'UTF8')`. `headers`
//! is an object of texts, and `trace` a `traceparent` of W3C. An item with other headers, or with values that
//! cannot be read, is given up with its reason. A text with a zero in it cannot be stored.
//!
//! A transaction that adds items tells it to the sources when it is committed. `NOTIFY` lets transactions
//! commit one after the other; where that is too slow, `ALTER TABLE pipeline_items DISABLE TRIGGER
//! pipeline_items_added` leaves it to the sources to look for items, at their
//! [interval](PostgresOptions::poll_interval).
//!
//! # What is promised
//!
//! A [push](PostgresQueue::push) that has returned is committed. With `synchronous_commit = on`, which is
//! the default, it is on the disk then. New items are delivered in the order of their ids, which is that in which they
//! were inserted. Items that were delivered before, or were added for later, come in the order of their times. Each kind has
//! half of the places of a fetch, if there are so many, so one may overtake the other, unless the queue is
//! [ordered by key](PostgresOptions::ordered_by_key).
//!
//! An item that is done is deleted, so the table stays as small as what is not done, if it is vacuumed.
//! A transaction that stays open for minutes, anywhere in the database, prevents that meanwhile: after one minute a busy
//! queue was a third as fast.
//!
//! The server is of version 11 or newer. Connections have TLS where the address says `sslmode=require`, which needs the
//! feature `postgres-tls`, and have none otherwise. The server's certificate has to be for the name in the address,
//! and to be signed by one that the system trusts, or that is in the file that the variable `SSL_CERT_FILE` names. These
//! are read once.

mod link;
mod row;
mod schema;
mod session;
mod tls;

use std::{collections::BTreeMap, error::Error, fmt, sync::Arc, time::Duration};

use pipeline_core::{shown::shown, telemetry::Telemetry};
use thiserror::Error;
pub use tls::connect;
use tokio::{sync::Mutex, time::timeout};
/// The client library. A program that calls [`push_in`] needs it in this version.
pub use tokio_postgres;
use tokio_postgres::{Config, GenericClient, Row, error::SqlState, types::Type};

use self::link::Link;
pub use self::{
    schema::SCHEMA,
    session::{PostgresFetch, PostgresReceipt, PostgresSettle},
};
use crate::{
    broker::{Backlog, BrokerError},
    item::{DeadLetter, Item, QueuedItem},
    metrics::Refusals,
    options::SourceOptions,
    replaying::{CHOSEN, PAGE, Page, drop_all, replay_all},
    source::Source,
    unix_ms::from_ms,
};

/// How far items are counted. Beyond it, the server's estimate for the whole table is used.
const COUNTED: i64 = 10_000;

/// A queue in a table of PostgreSQL.
///
/// Cheap to clone. It connects when it is used, and again after a call has failed. What different tasks
/// push at the same time goes over one connection, without waiting for each other's answers.
#[derive(Clone)]
pub struct PostgresQueue(Arc<Inner>, Refusals);

struct Inner {
    config: Config,
    name: String,
    options: PostgresOptions,
    /// The connection for what is not of a source.
    link: Mutex<Option<Arc<Link>>>,
}

/// The options of a queue in PostgreSQL.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct PostgresOptions {
    lease: Duration,
    poll: Duration,
    call_timeout: Duration,
    ordered: Option<bool>,
    creates: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            poll: Duration::from_millis(500),
            call_timeout: Duration::from_secs(10),
            ordered: None,
            creates: true,
        }
    }
}

impl PostgresOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long after the death of a process its items are delivered again. Default 30 seconds. It is
    /// renewed while an item is handled. The server's clock measures it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// How often a waiting source looks for items whose time has come, and for those of dead processes.
    /// Default half a second. New items wake it at once.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// How long the server may take to connect or to answer. Default 10 seconds. Later the call has
    /// failed, and a source connects again.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// Items with the same key are delivered in their order, one at a time: the next one when the one
    /// before was handled or given up. It is a property of the queue in the database, which stays as it is
    /// where this is not called, and is not ordered at first. All that call it have to agree.
    ///
    /// The order is that of the items' ids, as far as their transactions are committed. Programs that add
    /// items do not wait for each other; only sources do, for the time of a statement. An operator may
    /// delete and change items: the next one of a key is found within some
    /// [intervals](Self::poll_interval).
    pub fn ordered_by_key(mut self, ordered: bool) -> Self {
        self.ordered = Some(ordered);
        self
    }

    /// Whether the tables are created if there are none. Default yes.
    pub fn create_tables(mut self, creates: bool) -> Self {
        self.creates = creates;
        self
    }
}

/// Why a call of a queue in PostgreSQL failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The address is not valid.
    #[error("the address of the server is not valid")]
    Address(#[source] Arc<tokio_postgres::Error>),
    /// The server could not be reached, or has refused a statement.
    #[error("a call of the queue failed: {}", in_full(.0))]
    Call(#[source] Arc<tokio_postgres::Error>),
    /// The server did not answer in time.
    #[error("the server of the queue does not answer")]
    TimedOut,
    /// The tables are missing and may not be created, or are of a newer version.
    #[error("the tables are of version {version}, and not of version {}", schema::VERSION)]
    Version {
        /// Their version, or 0 if there are none.
        version: i32,
    },
    /// The database has no queue of this name.
    #[error("there is no queue {queue:?} in the database")]
    UnknownQueue {
        /// The name that was asked for.
        queue: Arc<str>,
    },
    /// The runtime has ended.
    #[error("the task of the call has ended")]
    Closed,
}

/// An error with what the server says.
fn in_full(error: &tokio_postgres::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl From<tokio_postgres::Error> for PostgresError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Call(Arc::new(error))
    }
}

impl From<PostgresError> for BrokerError {
    fn from(error: PostgresError) -> Self {
        Self::new(Box::<dyn Error + Send + Sync>::from(error))
    }
}

/// Adds an item to a queue in a transaction of the program, or with a client of its own. It returns the
/// item's id. The tables must be there: [`PostgresQueue::prepare`].
///
/// # Errors
///
/// The error of the statement.
pub async fn push_in(
    client: &impl GenericClient,
    queue: &str,
    item: &Item,
) -> Result<i64, tokio_postgres::Error> {
    let (headers, trace) = (headers(item), item.trace.map(|trace| trace.to_string()));
    let (key, payload) = (item.key.as_deref(), &item.payload[..]);
    let parameters: link::Parameters<'_> = &[
        (&queue, Type::TEXT),
        (&key, Type::TEXT),
        (&payload, Type::BYTEA),
        (&headers, Type::TEXT),
        (&trace, Type::TEXT),
    ];
    client.query_typed_one(schema::PUSH, parameters).await?.try_get(0)
}

/// Adds an item to a queue, and removes the item of another queue that it was made of, in a transaction of
/// the program, or with a client of its own. It returns the id of the new item, or `None` if the other is
/// gone, because it was handled elsewhere meanwhile. Then nothing is added.
///
/// The id is that in the [metadata](pipeline_core::processing::Metadata::id) of a message of
/// [`from`](PostgresQueue). When it is acknowledged after that, nothing more happens.
///
/// The transaction may go on after that; other items are handled meanwhile. The lease of this one cannot be
/// renewed until the transaction ends. If that takes longer than the [lease](PostgresOptions::lease) and is
/// rolled back, the item may be delivered again while it is handled.
///
/// # Errors
///
/// The error of the statement.
pub async fn forward_in(
    client: &impl GenericClient,
    from: &str,
    id: &str,
    to: &str,
    item: &Item,
) -> Result<Option<i64>, tokio_postgres::Error> {
    // What is no number is no item of this queue.
    let Ok(id) = id.parse::<i64>() else { return Ok(None) };
    let (headers, trace) = (headers(item), item.trace.map(|trace| trace.to_string()));
    let (key, payload) = (item.key.as_deref(), &item.payload[..]);
    let parameters: link::Parameters<'_> = &[
        (&from, Type::TEXT),
        (&id, Type::INT8),
        (&to, Type::TEXT),
        (&key, Type::TEXT),
        (&payload, Type::BYTEA),
        (&headers, Type::TEXT),
        (&trace, Type::TEXT),
    ];
    client.query_typed_one(schema::FORWARD, parameters).await?.try_get(0)
}

/// The headers of an item as JSON.
fn headers(item: &Item) -> Option<String> {
    let headers: BTreeMap<&str, &str> = item.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
    // Text is always valid JSON.
    (!headers.is_empty()).then(|| serde_json::to_string(&headers).ok()).flatten()
}

impl PostgresQueue {
    /// A queue at this address, with default options. The server need not be there yet.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Address`] if the address is not valid.
    pub fn open(address: &str, name: impl Into<String>) -> Result<Self, PostgresError> {
        Self::open_with(address, name, PostgresOptions::new())
    }

    /// A queue at this address, such as `postgres://user:password@host:5432/database`.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Address`] if the address is not valid.
    pub fn open_with(
        address: &str,
        name: impl Into<String>,
        options: PostgresOptions,
    ) -> Result<Self, PostgresError> {
        let config: Config =
            address.parse().map_err(|error| PostgresError::Address(Arc::new(error)))?;
        let (name, link) = (name.into(), Mutex::default());
        let refusals = Refusals::register("postgres", &name);
        Ok(Self(Arc::new(Inner { config, name, options, link }), refusals))
    }

    /// Opens a queue that is there: one that has items or dead letters, or that a program has declared
    /// [ordered or not](PostgresOptions::ordered_by_key). It creates no tables, and leaves the order as it is. So it is for
    /// tools that look at a queue; a program that adds items [opens](Self::open) it.
    ///
    /// # Errors
    ///
    /// [`PostgresError::UnknownQueue`] if there is none of this name or there are no tables, and the other errors of a
    /// call.
    pub async fn open_existing(
        address: &str,
        name: impl Into<String>,
        options: PostgresOptions,
    ) -> Result<Self, PostgresError> {
        let queue = Self::open_with(
            address,
            name,
            PostgresOptions { creates: false, ordered: None, ..options },
        )?;
        let name = [(&queue.0.name as _, Type::TEXT)];
        let found = queue.call(async |link| link.one(schema::IS_THERE, &name).await).await;
        let is_there = match found {
            Err(PostgresError::Version { version: 0 }) => false,
            found => found?.try_get(0)?,
        };
        if !is_there {
            return Err(PostgresError::UnknownQueue { queue: queue.name().into() });
        }
        Ok(queue)
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    ///
    /// An item that [`push_in`] or a statement of the program adds is in a transaction of the program, whose error the program
    /// gets, and is not counted.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "postgres", &self.0.name);
        Self(self.0, refusals)
    }

    /// The name of the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Connects, and creates the tables if there are none. Otherwise it is done when the queue is used for
    /// the first time.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if it could not connect or create them.
    pub async fn prepare(&self) -> Result<(), PostgresError> {
        self.call(async |_| Ok(())).await
    }

    /// Adds an item. When it returns the item's id, the item is committed.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if it could not be added. If the server has not answered, the item may have been
    /// added all the same.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<i64, PostgresError> {
        let push = async |link: Arc<Link>| Ok(push_in(link.client(), &self.0.name, &item).await?);
        self.counted(1, self.call(push).await)
    }

    /// Adds items in one transaction. When it returns their ids, they are committed.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    pub async fn push_all(&self, items: Vec<Item>) -> Result<Vec<i64>, PostgresError> {
        let keys: Vec<_> = items.iter().map(|item| item.key.as_deref()).collect();
        let payloads: Vec<_> = items.iter().map(|item| &item.payload[..]).collect();
        let headers: Vec<_> = items.iter().map(headers).collect();
        let traces: Vec<_> =
            items.iter().map(|item| item.trace.map(|trace| trace.to_string())).collect();
        let push = async |link: Arc<Link>| {
            let parameters: link::Parameters<'_> = &[
                (&self.0.name, Type::TEXT),
                (&keys, Type::TEXT_ARRAY),
                (&payloads, Type::BYTEA_ARRAY),
                (&headers, Type::TEXT_ARRAY),
                (&traces, Type::TEXT_ARRAY),
            ];
            let rows = link.query(schema::PUSH_ALL, parameters).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
        };
        self.counted(items.len(), self.call(push).await)
    }

    /// Counts items that were not added.
    fn counted<R>(
        &self,
        items: usize,
        added: Result<R, PostgresError>,
    ) -> Result<R, PostgresError> {
        if let Err(error) = &added {
            let is_full = matches!(error, PostgresError::Call(error)
                if error.code() == Some(&SqlState::DISK_FULL));
            self.1.count(items, is_full);
        }
        added
    }

    /// Removes an item of this queue that is being handled, and adds one to another queue, in one transaction,
    /// so that a death between the two steps of a program neither loses nor doubles it: [`forward_in`]. It
    /// returns the id of the new item, or `None` if the other is gone, and then nothing is added.
    ///
    /// ```no_run
    /// # use pipeline_core::processing::{Failure, Message};
    /// # use pipeline_sources::{Item, postgres::PostgresQueue};
    /// # fn enrich(item: &Item) -> Item { item.clone() }
    /// # let orders = PostgresQueue::open("postgres://localhost/shop", "orders").unwrap();
    /// let handle = async move |order: &mut Message<Item>| {
    ///     let id = order.metadata().id.clone().unwrap_or_default();
    ///     orders.forward(&id, "pushes", enrich(order)).await?;
    ///     Ok::<_, Failure>(())
    /// };
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    pub async fn forward(
        &self,
        id: &str,
        to: &str,
        item: Item,
    ) -> Result<Option<i64>, PostgresError> {
        let from = &self.0.name;
        let forward =
            async |link: Arc<Link>| Ok(forward_in(link.client(), from, id, to, &item).await?);
        self.counted(1, self.call(forward).await)
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item is
    /// delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items there are that are not done, and when the first of them was added. They are counted up to 10,000; if there are
    /// more, it is the server's estimate of all items in the table.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not say it.
    pub async fn backlog(&self) -> Result<Backlog, PostgresError> {
        self.call(async |link| self.0.backlog(&link).await).await
    }

    /// Up to `limit` items that are not done, by id, after the one with this id. They are in work or wait:
    /// [`QueuedItem::state`].
    ///
    /// With 4 MiB or 1,000 of them a page is full and ends, so there may be more behind one of fewer than `limit`: not behind
    /// an empty one, unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not say them.
    pub async fn items(&self, after: i64, limit: u32) -> Result<Vec<QueuedItem>, PostgresError> {
        let page = Page::<i64>::of_an_answer(limit);
        let rows = self.page(schema::ITEMS, after, i64::MAX, &page).await?;
        rows.iter().map(row::queued).collect()
    }

    /// Up to `limit` items that were given up, by id, after the one with this id. They keep the ids which
    /// they had in the queue, unless there was a dead letter with that id already.
    ///
    /// With 4 MiB or 1,000 of them a page is full and ends, so there may be more behind one of fewer than `limit`: not behind
    /// an empty one, unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not say them.
    pub async fn dead_letters(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, PostgresError> {
        self.dead_letter_page(after, i64::MAX, Page::of_an_answer(limit)).await
    }

    /// Adds an item that was given up to the queue again, as a new item, whose age begins now. Returns its
    /// new id, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not do it.
    pub async fn replay(&self, id: i64) -> Result<Option<i64>, PostgresError> {
        let replayed = self
            .call(async |link| {
                let parameters = [(&self.0.name as _, Type::TEXT), (&id as _, Type::INT8)];
                link.query(schema::REPLAY, &parameters).await
            })
            .await?;
        replayed.first().map(|row| Ok(row.try_get(0)?)).transpose()
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, however many, and not those that fail again meanwhile. Of others that are given up while it
    /// chooses, it takes those with a lower id than the last one. Returns how many there were.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::postgres::PostgresQueue) -> Result<(), Box<dyn std::error::Error>> {
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
    ) -> Result<u64, PostgresError> {
        let Some(last) = self.last_dead_letter().await? else { return Ok(0) };
        replay_all!(
            which,
            after => self.dead_letter_page(after.copied().unwrap_or(i64::MIN), last, Page::of_an_answer(PAGE)),
            id => self.replay(*id)
        )
    }

    /// Removes an item that was given up. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not do it.
    pub async fn drop_dead_letter(&self, id: i64) -> Result<bool, PostgresError> {
        Ok(self.drop_dead_letters(vec![id]).await? > 0)
    }

    /// Removes the items that were given up and for which the function says so. It takes those that are there when it
    /// begins, however many, and not those that are given up meanwhile. Of more than a million, later
    /// ones are chosen when those before them are removed. Returns
    /// how many there were. Those of a page are removed by one statement.
    ///
    /// # Errors
    ///
    /// [`PostgresError`] if the server does not do it. Those before it are removed.
    pub async fn drop_all_dead_letters(
        &self,
        mut which: impl FnMut(&DeadLetter) -> bool,
    ) -> Result<u64, PostgresError> {
        let Some(last) = self.last_dead_letter().await? else { return Ok(0) };
        let (mut after, mut dropped) = (i64::MIN, 0_u64);
        loop {
            let there = self.dead_letter_ids(after, last).await?;
            let Some(end) = there.last().copied() else { return Ok(dropped) };
            // One that is given up meanwhile may have an id between theirs.
            let mut chosen =
                |dead: &DeadLetter| there.binary_search(&dead.id).is_ok() && which(dead);
            let more: Result<u64, PostgresError> = drop_all!(
                chosen,
                from => self.dead_letter_page(from.copied().unwrap_or(after), end, Page::of_an_answer(PAGE)),
                ids => self.drop_dead_letters(ids)
            );
            dropped = dropped.saturating_add(more?);
            after = end;
        }
    }

    /// The id of the last dead letter.
    async fn last_dead_letter(&self) -> Result<Option<i64>, PostgresError> {
        let name = [(&self.0.name as _, Type::TEXT)];
        let last = self.call(async |link| link.one(schema::LAST_DEAD_LETTER, &name).await);
        Ok(last.await?.try_get(0)?)
    }

    /// The ids of the dead letters after one, up to another, in their order, and no more than are chosen at once.
    async fn dead_letter_ids(&self, after: i64, last: i64) -> Result<Vec<i64>, PostgresError> {
        let limit = i64::try_from(CHOSEN).unwrap_or(i64::MAX);
        let ids = self.call(async |link| {
            let name = (&self.0.name as _, Type::TEXT);
            let ids = [&after, &last, &limit].map(|number| (number as _, Type::INT8));
            let [after, last, limit] = ids;
            link.one(schema::DEAD_IDS, &[name, after, last, limit]).await
        });
        Ok(ids.await?.try_get::<_, Option<Vec<i64>>>(0)?.unwrap_or_default())
    }

    /// Removes dead letters. Returns how many of them there were.
    async fn drop_dead_letters(&self, ids: Vec<i64>) -> Result<u64, PostgresError> {
        self.call(async |link| {
            let parameters = [(&self.0.name as _, Type::TEXT), (&ids as _, Type::INT8_ARRAY)];
            link.change(schema::DROP, &parameters).await
        })
        .await
    }

    /// The dead letters after an id, up to another, as far as they are on a page.
    async fn dead_letter_page(
        &self,
        after: i64,
        last: i64,
        page: Page<i64>,
    ) -> Result<Vec<DeadLetter>, PostgresError> {
        let rows = self.page(schema::DEAD_LETTERS, after, last, &page).await?;
        rows.iter().map(row::dead_letter).collect()
    }

    /// The rows of a statement for a page.
    async fn page(
        &self,
        statement: &str,
        after: i64,
        last: i64,
        page: &Page<i64>,
    ) -> Result<Vec<Row>, PostgresError> {
        let limit = i64::try_from(page.limit()).unwrap_or(i64::MAX);
        let most_bytes = i64::try_from(page.most_bytes()).unwrap_or(i64::MAX);
        self.call(async |link| {
            let name = (&self.0.name as _, Type::TEXT);
            let ids =
                [(&after as _, Type::INT8), (&limit as _, Type::INT8), (&last as _, Type::INT8)];
            let [after, limit, last] = ids;
            let parameters = [name, after, limit, last, (&most_bytes as _, Type::INT8)];
            link.query(statement, &parameters).await
        })
        .await
    }

    /// Makes a call on the connection of the queue, and connects first if there is none.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(Arc<Link>) -> Result<T, PostgresError>,
    ) -> Result<T, PostgresError> {
        let mut used = None;
        // It is large, and a handler that makes calls would have it in it several times.
        let called = Box::pin(async {
            let link = self.0.shared_link().await?;
            used = Some(link.clone());
            call(link).await
        });
        let called = timeout(self.0.options.call_timeout, called).await;
        let answer = called.unwrap_or(Err(PostgresError::TimedOut));
        if let (Err(_), Some(used)) = (&answer, used) {
            self.0.disconnect(&used);
        }
        answer
    }
}

impl Inner {
    /// A new connection.
    async fn link(&self, notified: impl Fn(&str) + Send + 'static) -> Result<Link, PostgresError> {
        let PostgresOptions { call_timeout, creates, ordered, .. } = self.options;
        let link = Link::open(&self.config, call_timeout, creates, notified).await?;
        if let Some(ordered) = ordered {
            let name = (&self.name as _, Type::TEXT);
            let is_so: bool =
                link.one(schema::IS_ORDERED, std::slice::from_ref(&name)).await?.try_get(0)?;
            if is_so != ordered {
                link.change(schema::DECLARE, &[name, (&ordered, Type::BOOL)]).await?;
            }
        }
        Ok(link)
    }

    /// Makes the queue ordered again if this program says so and what is said of it is gone.
    async fn declare_again(&self, link: &Link) -> Result<(), PostgresError> {
        if self.options.ordered != Some(true) {
            return Ok(());
        }
        let name = (&self.name as _, Type::TEXT);
        let is_declared = link.one(schema::IS_DECLARED, std::slice::from_ref(&name)).await?;
        if !is_declared.try_get::<_, bool>(0)? {
            link.change(schema::DECLARE, &[name, (&true, Type::BOOL)]).await?;
            tracing::error!(
                queue = shown(&self.name),
                "a queue in PostgreSQL was not ordered by key any more, because its row in pipeline_queues \
                 was gone, and is ordered again"
            );
        }
        Ok(())
    }

    /// The connection for what is not of a source.
    async fn shared_link(&self) -> Result<Arc<Link>, PostgresError> {
        let mut slot = self.link.lock().await;
        // The server, or what is between, may have closed it while it was idle.
        if let Some(link) = slot.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        let link = Arc::new(self.link(|_| {}).await?);
        *slot = Some(link.clone());
        Ok(link)
    }

    /// Drops a connection whose call has failed, so that the next call connects again.
    fn disconnect(&self, failed: &Arc<Link>) {
        // If it is locked by a call that connects, that one has seen that there is none.
        if let Ok(mut slot) = self.link.try_lock()
            && slot.as_ref().is_some_and(|link| Arc::ptr_eq(link, failed))
        {
            *slot = None;
        }
    }

    async fn backlog(&self, link: &Link) -> Result<Backlog, PostgresError> {
        let limit = COUNTED + 1;
        let parameters = [(&self.name as _, Type::TEXT), (&limit as _, Type::INT8)];
        let row = link.one(schema::BACKLOG, &parameters).await?;
        let count = |counted: usize, estimated: usize| -> Result<Option<u64>, PostgresError> {
            let (counted, estimated) = (row.try_get(counted)?, row.try_get::<_, i64>(estimated)?);
            let count = if counted < limit { counted } else { estimated.max(counted) };
            Ok(u64::try_from(count).ok())
        };
        Ok(Backlog {
            items: count(0, 3)?,
            oldest: row.try_get::<_, Option<i64>>(2)?.and_then(from_ms),
            dead_letters: count(1, 4)?,
            ..Backlog::default()
        })
    }
}

impl fmt::Debug for PostgresQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresQueue")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
