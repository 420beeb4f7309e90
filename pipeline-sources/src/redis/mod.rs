//! A durable queue in a stream of Redis, or of a server that speaks its protocol.
//!
//! ```no_run
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{Item, SourceOptions, redis::RedisQueue};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queue = RedisQueue::open("redis://127.0.0.1/", "orders")?;
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
//! # Ok(())
//! # }
//! ```
//!
//! # What is at the server
//!
//! | key | what |
//! | --- | --- |
//! | `NAME` | the stream of the items, with a consumer group, `pipeline` |
//! | `NAME:GROUP:later` | a sorted set: the ids of items that are delivered again, and when |
//! | `NAME:GROUP:failures` | a hash: how often items have failed that are not done |
//! | `NAME:GROUP:dead` | a stream of the items that were given up |
//!
//! An item that is done is removed from the stream, so what is in it is not done. Any program may add an
//! item: `XADD orders * payload '{"id": 7}'`. These are the fields:
//!
//! | field | what |
//! | --- | --- |
//! | `payload` | the payload, in any bytes. It must be there |
//! | `key` | the key, in UTF-8 |
//! | `headers` | a JSON object of texts |
//! | `trace` | a `traceparent` of W3C |
//! | `enqueued_at` | when it was added, in milliseconds since 1970, if the time in its id is not right |
//! | any other | a header, in UTF-8 |
//!
//! An item without a payload, or with something that is not as said here, is given up with its reason. A
//! dead letter has the fields of its item, and `dead:id`, `dead:reason`, `dead:deliveries` and `dead:at`. Of an
//! item with more than 2,000 fields it has those, and the reason says how many it lacks.
//!
//! # What is promised
//!
//! A [push](RedisQueue::push) that has returned was accepted by the server. Whether the item survives the
//! death of the server is its configuration: with `appendonly yes` and `appendfsync always` it is on the
//! disk, with `everysec` the last second may be lost, and without `appendonly` all. A replica that takes
//! over may lack the last items too. The same holds for outcomes: what is lost of them is delivered again.
//! Set `maxmemory-policy noeviction`, with which a full server refuses a push instead of removing items. It
//! takes outcomes nevertheless, dead letters included, which need little or free as much as they need.
//!
//! Items are delivered in the order in which they were added. An item that was delivered before may come
//! after later ones, and so may one of several sources or processors: there is no order by key.
//!
//! The server is one, of version 6.2 or newer, in its own words "standalone", or the primary one of
//! several. In a cluster a name in braces keeps the keys together, but the address must be that of their
//! node. For TLS, use the crate `redis` with the feature `tokio-rustls-comp` in the program, and an address
//! that begins with `rediss`.

mod entry;
mod link;
mod scripts;
mod session;

use std::{error::Error, fmt, sync::Arc, time::Duration};

use pipeline_core::telemetry::Telemetry;
use redis::{Client, RedisError};
use thiserror::Error;
use tokio::{sync::Mutex, time::timeout};

pub use self::session::{RedisFetch, RedisReceipt, RedisSettle};
use self::{
    entry::Entry,
    link::{Link, Script},
};
use crate::{
    broker::{Backlog, BrokerError},
    item::{DeadLetter, Item},
    metrics::Refusals,
    options::SourceOptions,
    replaying::{ANSWER_BYTES, ANSWER_LETTERS, PAGE, drop_all, replay_all},
    source::Source,
    unix_ms::from_ms,
};

/// How many values are sent in one call. The server takes 1,048,576.
const MOST_VALUES: usize = 1_000_000;

/// A queue in a stream of Redis.
///
/// Cheap to clone. What different tasks push at the same time goes over one connection, without waiting
/// for each other's answers. The queue connects when it is used, and again after a call has failed.
#[derive(Clone)]
pub struct RedisQueue(Arc<Inner>, Refusals);

struct Inner {
    client: Client,
    stream: String,
    later: String,
    /// How often items have failed.
    failures: String,
    dead: String,
    options: RedisOptions,
    /// The connection for what is not of a source, and how many there were.
    link: Mutex<(u64, Option<Link>)>,
}

/// The options of a queue in a stream of Redis.
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisOptions {
    lease: Duration,
    poll: Duration,
    call_timeout: Duration,
    group: String,
    shared: bool,
    max_items: Option<u64>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            poll: Duration::from_millis(200),
            call_timeout: Duration::from_secs(10),
            group: "pipeline".to_owned(),
            shared: false,
            max_items: None,
        }
    }
}

impl RedisOptions {
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

    /// How often a waiting source looks for items whose time has come and for those of dead processes.
    /// Default 200 milliseconds. New items wake it at once.
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

    /// The consumer group. Default `pipeline`.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Whether several groups read the stream, each of which gets each item. Default no: an item that is
    /// done is removed. Otherwise it stays until it is done in all groups of the stream, and is removed
    /// within a second then. All groups have to exist before an item is added that they are to get.
    ///
    /// A dead letter that is replayed goes to all groups.
    pub fn shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// How many items there may be. A push beyond it is refused, with [`RedisQueueError::Full`]; nothing
    /// that is not done is ever removed to make space. Default no limit but the server's memory.
    pub fn max_items(mut self, items: u64) -> Self {
        self.max_items = Some(items.max(1));
        self
    }
}

/// Why a call of a queue in Redis failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RedisQueueError {
    /// The address is not valid.
    #[error("the address of the server is not valid")]
    Address(#[source] RedisError),
    /// The server could not be reached, or has refused a command.
    #[error("a call of the queue failed: {0}")]
    Call(#[source] RedisError),
    /// The server did not answer in time.
    #[error("the server of the queue does not answer")]
    TimedOut,
    /// There are as many items as there may be.
    #[error("the queue has its {max} items")]
    Full {
        /// How many there may be.
        max: u64,
    },
    /// The items of a call are more than the server takes in one.
    #[error("the items have {values} values, more than the {max} of a call")]
    TooMany {
        /// How many values they have: the names and the values of their fields, and one for each item.
        values: usize,
        /// How many there may be.
        max: usize,
    },
    /// The server has no stream of this name, and no dead letters of one.
    #[error("there is no stream {queue:?} at the server")]
    UnknownQueue {
        /// The name that was asked for.
        queue: Arc<str>,
    },
    /// An outcome could not be stored.
    #[error("an outcome could not be stored: {0}")]
    NotStored(Arc<str>),
    /// The runtime has ended.
    #[error("the task of the call has ended")]
    Closed,
}

impl From<RedisError> for RedisQueueError {
    fn from(error: RedisError) -> Self {
        Self::Call(error)
    }
}

impl From<RedisQueueError> for BrokerError {
    fn from(error: RedisQueueError) -> Self {
        Self::new(Box::<dyn Error + Send + Sync>::from(error))
    }
}

impl RedisQueue {
    /// A queue at this address, with default options. Its name is that of the stream. The server need not
    /// be there yet.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError::Address`] if the address is not valid.
    pub fn open(address: &str, name: impl Into<String>) -> Result<Self, RedisQueueError> {
        Self::open_with(address, name, RedisOptions::new())
    }

    /// A queue at this address, such as `redis://user:password@host:6379/0`.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError::Address`] if the address is not valid.
    pub fn open_with(
        address: &str,
        name: impl Into<String>,
        options: RedisOptions,
    ) -> Result<Self, RedisQueueError> {
        let client = Client::open(address).map_err(RedisQueueError::Address)?;
        let (stream, group) = (name.into(), &options.group);
        let later = format!("{stream}:{group}:later");
        let failures = format!("{stream}:{group}:failures");
        let dead = format!("{stream}:{group}:dead");
        let link = Mutex::default();
        let refusals = Refusals::register("redis", &stream);
        let inner = Inner { client, stream, later, failures, dead, options, link };
        Ok(Self(Arc::new(inner), refusals))
    }

    /// Opens a queue that is there: one to which an item was added, or from which a source has read. It creates nothing.
    /// So it is for tools that look at a queue; a program that adds items [opens](Self::open) it.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError::UnknownQueue`] if there is none of this name, and the other errors of a call.
    pub async fn open_existing(
        address: &str,
        name: impl Into<String>,
        options: RedisOptions,
    ) -> Result<Self, RedisQueueError> {
        let queue = Self::open_with(address, name, options)?;
        let Inner { stream, dead, .. } = &*queue.0;
        let mut exists = redis::cmd("EXISTS");
        exists.arg(stream).arg(dead);
        let found: u64 = queue.call(async |link| link.query(&exists).await).await?;
        if found == 0 {
            return Err(RedisQueueError::UnknownQueue { queue: stream.as_str().into() });
        }
        Ok(queue)
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "redis", &self.0.stream);
        Self(self.0, refusals)
    }

    /// The name of the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.stream
    }

    /// Adds an item. When it returns the item's id, the server has accepted it.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if it could not be added. If the server has not answered, the item may have
    /// been added all the same.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<Arc<str>, RedisQueueError> {
        let ids = self.push_counted(&[item]).await?;
        // One was added.
        ids.into_iter().next().ok_or(RedisQueueError::Closed)
    }

    /// Adds items, all of them or none. When it returns their ids, the server has accepted them. One call is for
    /// some 300,000 at most, and the server does nothing else meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    pub async fn push_all(&self, items: Vec<Item>) -> Result<Vec<Arc<str>>, RedisQueueError> {
        self.push_counted(&items).await
    }

    async fn push_counted(&self, items: &[Item]) -> Result<Vec<Arc<str>>, RedisQueueError> {
        let pushed = self.push_items(items).await;
        if let Err(error) = &pushed {
            let is_full = matches!(error, RedisQueueError::Full { .. });
            self.1.count(items.len(), is_full);
        }
        pushed
    }

    async fn push_items(&self, items: &[Item]) -> Result<Vec<Arc<str>>, RedisQueueError> {
        let Inner { stream, options, .. } = &*self.0;
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let items: Vec<_> = items.iter().map(entry::fields).collect();
        let values = items.iter().map(|fields| fields.len() + 1).sum();
        if values > MOST_VALUES {
            return Err(RedisQueueError::TooMany { values, max: MOST_VALUES });
        }
        let ids: Vec<String> = self
            .call(async |link| {
                let mut push = link.script(Script::Push, &[stream]);
                push.arg(options.max_items.unwrap_or(0)).arg(u8::from(options.shared));
                for fields in &items {
                    push.arg(fields.len());
                    fields.iter().for_each(|field| {
                        push.arg(&field[..]);
                    });
                }
                link.query(&push).await
            })
            .await?;
        match options.max_items {
            Some(max) if ids.is_empty() => Err(RedisQueueError::Full { max }),
            _ => Ok(ids.into_iter().map(Into::into).collect()),
        }
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item is
    /// delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items there are, and when the oldest was added that is not done, whether it waits, is in work
    /// or waits for a retry.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if the server does not say it.
    pub async fn backlog(&self) -> Result<Backlog, RedisQueueError> {
        self.call(async |link| self.0.backlog(&link).await).await
    }

    /// Up to `limit` items that were given up, by id, after the one with this id, or from the first one
    /// if it is empty. They have ids of their own.
    ///
    /// With 4 MiB or 1,000 of them a page is full and ends, so there may be more behind one of fewer than `limit`: not behind
    /// an empty one, unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if the server does not say them.
    pub async fn dead_letters(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<DeadLetter<Arc<str>>>, RedisQueueError> {
        let after = (!after.is_empty()).then_some(after);
        self.page(after, &mut "+".to_owned(), limit).await
    }

    /// Adds an item that was given up to the queue again, as a new item whose age begins now. Returns its new
    /// id, or `None` if there is none with this id. It is added also if there are [`RedisOptions::max_items`].
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if the server does not do it.
    pub async fn replay(&self, id: &str) -> Result<Option<Arc<str>>, RedisQueueError> {
        let Inner { stream, dead, .. } = &*self.0;
        let new: Option<String> = self
            .call(async |link| {
                let mut replay = link.script(Script::Replay, &[stream, dead]);
                link.query(replay.arg(id)).await
            })
            .await?;
        Ok(new.map(Into::into))
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, however many, and not those that fail again meanwhile. Returns how many there were.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::redis::RedisQueue) -> Result<(), Box<dyn std::error::Error>> {
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
        mut which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
    ) -> Result<u64, RedisQueueError> {
        let mut last = String::new();
        replay_all!(
            which,
            after => self.page(after.map(|id: &Arc<str>| &**id), &mut last, PAGE),
            id => self.replay(id)
        )
    }

    /// The dead letters after an id, up to another, as far as they are on a page. Without the other, it becomes the last
    /// one that there is.
    async fn page(
        &self,
        after: Option<&str>,
        last: &mut String,
        limit: u32,
    ) -> Result<Vec<DeadLetter<Arc<str>>>, RedisQueueError> {
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let (bytes, end) = (ANSWER_BYTES, last.clone());
        let (end, entries): (String, Vec<Entry>) = self
            .call(async |link| {
                let mut read = link.script(Script::Dead, &[&self.0.dead]);
                link.query(read.arg(&from).arg(&end).arg(limit.min(ANSWER_LETTERS)).arg(bytes))
                    .await
            })
            .await?;
        *last = end;
        Ok(entries.into_iter().map(entry::dead_letter).collect())
    }

    /// Removes an item that was given up. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if the server does not do it.
    pub async fn drop_dead_letter(&self, id: &str) -> Result<bool, RedisQueueError> {
        Ok(self.drop_dead_letters(&[id.into()]).await? > 0)
    }

    /// Removes the items that were given up and for which the function says so. It takes those that are there when it
    /// begins, however many, and not those that are given up meanwhile. Returns
    /// how many there were. Those of a page are removed by one call.
    ///
    /// # Errors
    ///
    /// [`RedisQueueError`] if the server does not do it. Those before it are removed.
    pub async fn drop_all_dead_letters(
        &self,
        mut which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
    ) -> Result<u64, RedisQueueError> {
        let mut last = String::new();
        drop_all!(
            which,
            after => self.page(after.map(|id: &Arc<str>| &**id), &mut last, PAGE),
            ids => self.drop_dead_letters(&ids)
        )
    }

    /// Removes dead letters. Returns how many of them there were.
    async fn drop_dead_letters(&self, ids: &[Arc<str>]) -> Result<u64, RedisQueueError> {
        let mut drop = redis::cmd("XDEL");
        drop.arg(&self.0.dead);
        ids.iter().for_each(|id| {
            drop.arg(&**id);
        });
        self.call(async |link| link.query(&drop).await).await
    }

    /// Makes a call on the connection of the queue, and connects first if there is none.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(Link) -> Result<T, RedisError>,
    ) -> Result<T, RedisQueueError> {
        let mut used = None;
        let called = async {
            let (number, link) = self.link().await?;
            used = Some(number);
            Ok(call(link).await?)
        };
        let called = timeout(self.0.options.call_timeout, called).await;
        let answer = called.unwrap_or(Err(RedisQueueError::TimedOut));
        if let (Err(_), Some(number)) = (&answer, used) {
            self.disconnect(number);
        }
        answer
    }

    /// The connection, and its number.
    async fn link(&self) -> Result<(u64, Link), RedisError> {
        let mut slot = self.0.link.lock().await;
        let (number, link) = &mut *slot;
        if let Some(link) = link {
            return Ok((*number, link.clone()));
        }
        let opened = Link::open(&self.0.client, self.0.options.call_timeout).await?;
        *number += 1;
        *link = Some(opened.clone());
        Ok((*number, opened))
    }

    /// Drops the connection with this number, so that the next call connects again.
    fn disconnect(&self, failed: u64) {
        // If it is locked by a call that connects, that one has seen that there is none.
        if let Ok(mut slot) = self.0.link.try_lock()
            && slot.0 == failed
        {
            slot.1 = None;
        }
    }
}

impl Inner {
    async fn backlog(&self, link: &Link) -> Result<Backlog, RedisError> {
        let mut backlog = link.script(Script::Backlog, &[&self.stream, &self.dead]);
        backlog.arg(&self.options.group).arg(u8::from(self.options.shared));
        let (items, oldest, dead): (i64, i64, i64) = link.query(&backlog).await?;
        let items = u64::try_from(items).ok();
        Ok(Backlog {
            items,
            oldest: from_ms(oldest).filter(|_| oldest >= 0 && items != Some(0)),
            dead_letters: u64::try_from(dead).ok(),
            ..Backlog::default()
        })
    }
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may have a password in it.
        f.debug_struct("RedisQueue")
            .field("name", &self.stream)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
