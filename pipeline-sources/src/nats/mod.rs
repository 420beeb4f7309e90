//! A durable queue in a stream of NATS JetStream.
//!
//! ```no_run
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{Item, SourceOptions, nats::NatsQueue};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queue = NatsQueue::new("nats://localhost", "orders")?;
//!
//! // When it returns, the server has stored the item.
//! queue.push(Item::new(r#"{"id": 7}"#)).await?;
//!
//! let handle = async |order: &mut Message<serde_json::Value>| {
//!     println!("order {}", order["id"]);
//!     Ok(())
//! };
//! let mut pipeline = Pipeline::of_messages("orders")
//!     .source(queue.source(SourceOptions::new()).json::<serde_json::Value>())
//!     .processors(Processors::from_fn(handle))
//!     .start()?;
//! pipeline.join().await;
//! # Ok(())
//! # }
//! ```
//!
//! The stream and its consumer are made if they are missing, also after the server has lost them. A stream
//! that is there is used as it is; the consumer gets the lease of the last source that connects. A program that
//! only pushes, or looks at the backlog or the dead letters, changes nothing of a consumer that is there. It needs
//! a server of version 2.9 or later.
//!
//! # Messages of other programs
//!
//! Any program may publish to the queue's subject; a payload is enough. Headers of the message are those of
//! the item, except
//!
//! | header | what it is |
//! | --- | --- |
//! | `Pipeline-Key` | the key |
//! | `traceparent` | the trace, as the W3C has defined it |
//! | `Pipeline-Item` | a JSON object with `key` and `headers`, for those that cannot be headers of NATS: with line ends, with space around them, or of a name that is taken |
//! | `Nats-…` | read by the server, and no part of the item |
//!
//! The time at which an item was added is the one of the message. A message whose `Pipeline-Item` is not
//! valid is given up, and so is one with headers that are not text. If a dead letter with its reason is too
//! large for the server, its largest headers or the end of its payload are left out, and the reason says so.
//!
//! # What JetStream promises
//!
//! - A message is stored when it is confirmed. The server leaves it to the system when its disk is
//!   synchronized (`sync_interval`, two minutes): it survives the death of the server, and a loss of power
//!   with [replicas](NatsOptions::replicas) on other machines.
//! - An outcome is taken over when it is confirmed. The server writes outcomes to its disk a little later:
//!   one that is killed may deliver again what was done in its last seconds.
//! - Items are delivered in the order in which they were added; after a retry or a lease that is over, later
//!   ones may have been handled before.
//! - The server delivers what is due again before what is new. So that many postponed items leave new ones half of the
//!   places, a source makes their delays longer while the server has more items than the pipeline takes: as long
//!   as the pipeline needs for twice as many items as it has postponed, and an hour at most. The delays of items that
//!   have failed stay as they are.
//!   Each of them counts as delivered, and the server delivers no new ones when there are
//!   [`max_pending`](NatsOptions::max_pending), 100,000, say. A source does not raise that by itself, since each costs the
//!   server memory, and a part of all that it writes about the consumer. Nor does it add a postponed item again as a new one,
//!   since NATS does both only one after the other, and an item could be there twice.
//! - A dead letter that cannot be stored, as when the server has no space, is tried again and holds up nothing
//!   else. What is done frees space meanwhile.
//! - JetStream counts each delivery, also one that was given back by a drain or
//!   [postponed](pipeline_core::processing::Failure::later), and has no place for how often an item has failed. A
//!   source counts failures and what it has given back itself, as long as its process lives: for each item that is held
//!   back, 100 bytes or so. When it postpones an item, what other sources have given back before counts no more. What an earlier
//!   process has given back or failed, and what other sources have since, counts as delivered without an outcome: where that
//!   is frequent, as with many nodes, [`max_unfinished`](crate::SourceOptions::max_unfinished) has to allow for it.

mod format;
mod link;
mod session;
mod share;

use std::{
    error::Error,
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use async_nats::{ConnectError, ConnectOptions, RequestError, ServerAddr};
use futures::future::try_join_all;
use pipeline_core::telemetry::Telemetry;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{sync::Mutex, time::timeout};

use self::link::{Link, RESERVED, Stream, nanoseconds};
pub use self::session::{NatsFetch, NatsReceipt, NatsSettle};
use crate::{
    broker::{Backlog, BrokerError},
    item::{DeadLetter, Item},
    metrics::Refusals,
    options::SourceOptions,
    replaying::{Page, replay_all},
    source::Source,
};

/// Why the server delivers nothing more.
const STALLED: &str = "as many items are in work or postponed as max_pending of NatsOptions allows (max_ack_pending of the \
                       consumer), and the server delivers no others until some of them are done";

/// A queue in a stream of NATS JetStream.
///
/// Cheap to clone. It connects when it is used first. Pushes share one connection, and each source has one
/// of its own. What different tasks push at the same time is under way together.
#[derive(Clone, Debug)]
pub struct NatsQueue {
    shared: Arc<Shared>,
    refusals: Refusals,
}

struct Shared {
    servers: Vec<ServerAddr>,
    stream: Box<str>,
    subject: Box<str>,
    dead_stream: Box<str>,
    dead_subject: Box<str>,
    options: NatsOptions,
    /// The connection of pushes and of calls about dead letters.
    link: Mutex<Option<Link>>,
    /// Whether a connection was lost while messages were on their way, so that one of them may be what the
    /// client library cannot read.
    suspect: AtomicBool,
}

impl fmt::Debug for Shared {
    /// Without the addresses, which may have passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, subject, .. } = self;
        f.debug_struct("Shared")
            .field("stream", stream)
            .field("subject", subject)
            .finish_non_exhaustive()
    }
}

/// Where a stream is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NatsStorage {
    /// In files of the server.
    #[default]
    File,
    /// In the server's memory. It is lost with the server, unless there are replicas.
    Memory,
}

/// The options of a queue in a stream of NATS JetStream. Those of the stream concern one that is made.
#[derive(Clone, Debug)]
#[must_use]
pub struct NatsOptions {
    subject: Option<Box<str>>,
    consumer: Box<str>,
    dead_letters: Option<Box<str>>,
    domain: Option<Box<str>>,
    lease: Duration,
    timeout: Duration,
    storage: NatsStorage,
    replicas: usize,
    max_bytes: Option<u64>,
    duplicate_window: Duration,
    max_pending: u32,
    connect: ConnectOptions,
    /// Whether a call makes what is missing.
    creates: bool,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            subject: None,
            consumer: "pipeline".into(),
            dead_letters: None,
            domain: None,
            lease: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            storage: NatsStorage::File,
            replicas: 1,
            max_bytes: None,
            duplicate_window: Duration::from_secs(120),
            max_pending: 100_000,
            connect: ConnectOptions::new(),
            creates: true,
        }
    }
}

impl NatsOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The subject of the items. Default the name of the stream.
    pub fn subject(mut self, subject: impl Into<Box<str>>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// The name of the durable consumer. Sources with the same consumer share the items. Default
    /// `pipeline`.
    pub fn consumer(mut self, consumer: impl Into<Box<str>>) -> Self {
        self.consumer = consumer.into();
        self
    }

    /// The stream of the dead letters, and their subject. Default the name of the stream with `_dead`. It
    /// has no limit.
    pub fn dead_letters(mut self, stream: impl Into<Box<str>>) -> Self {
        self.dead_letters = Some(stream.into());
        self
    }

    /// The domain of JetStream. Default that of the server.
    pub fn domain(mut self, domain: impl Into<Box<str>>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// How long after the death of a process its items are delivered again. Default 30 seconds. It is
    /// renewed while an item is handled. The last source that connects decides.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// How long the server may take for an answer. Default 5 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// Where the stream is kept. Default in files.
    pub fn storage(mut self, storage: NatsStorage) -> Self {
        self.storage = storage;
        self
    }

    /// On how many servers of a cluster the stream is kept. Default 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// How large the stream may become. Beyond it a push is refused, and no item is lost. Default as large
    /// as the server allows.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// How long the server remembers the ids of [`push_with_id`](NatsQueue::push_with_id). Default two
    /// minutes.
    pub fn duplicate_window(mut self, window: Duration) -> Self {
        self.duplicate_window = window.max(Duration::from_millis(100));
        self
    }

    /// How many items may be delivered and not done, in all sources together and with those that wait for
    /// a retry or are [postponed](pipeline_core::processing::Failure::later), such as pushes that are kept for users who are
    /// not there. Beyond it none are delivered, new ones neither. If that lasts for some seconds although items wait, the gauge
    /// `pipeline.source.stalled` is 1, and a line of the log says so. So it has to be larger than the number of items that may be
    /// postponed at one time and those in work together, such as ten times the pushes that are kept at the worst hour. An
    /// operator may raise it while sources run (`nats consumer edit --max-pending`), until one connects again. Each costs the
    /// server some memory. Default 100,000. The last source that connects decides.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_pending(mut self, items: u32) -> Self {
        assert!(items > 0, "at least one item must be delivered");
        self.max_pending = items;
        self
    }

    /// How connections are made: users, tokens, TLS. A user and a password in the address replace those here.
    /// What concerns reconnecting has no effect, for the source connects again. The type is of the crate
    /// `async-nats`, which has features for other ways to authenticate.
    pub fn connect_options(mut self, options: ConnectOptions) -> Self {
        self.connect = options;
        self
    }

    fn api(&self) -> Arc<str> {
        let domain = self.domain.as_deref().map(|domain| format!("$JS.{domain}.API"));
        domain.as_deref().unwrap_or("$JS.API").into()
    }
}

/// Why a call of a queue of NATS failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum NatsError {
    /// The address of a server is not valid. It is not shown, because it may have a password.
    #[error("an address is not valid, expected nats://HOST:PORT, or several with commas")]
    Address,
    /// A name of a stream, a consumer or a subject is not valid.
    #[error("{0:?} is no name for a stream, a consumer or a subject")]
    Name(Arc<str>),
    /// No server could be connected to.
    #[error("cannot connect: {0}")]
    Connect(#[source] Arc<ConnectError>),
    /// The connection was lost.
    #[error("the connection to the server was lost")]
    Lost,
    /// The server did not answer in time.
    #[error("{0}: the server has not answered in time")]
    Timeout(&'static str),
    /// The server has no stream of this name.
    #[error("there is no stream {stream:?} at the server")]
    UnknownStream {
        /// The name that was asked for, or that of the dead letters' stream.
        stream: Arc<str>,
    },
    /// The stream or the consumer is missing, or the server has no JetStream.
    #[error("{0}: nothing has answered")]
    NotThere(&'static str),
    /// The item is too large for the server.
    #[error("an item of {size} bytes is too large for the server, which takes {limit}")]
    TooLarge {
        /// Its size with its headers.
        size: usize,
        /// The largest.
        limit: usize,
    },
    /// The server has refused a request, such as a push to a stream that is full.
    #[error("{what}: {description} (code {code})")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The server's code.
        code: u64,
        /// The server's words.
        description: Arc<str>,
    },
    /// A request could not be sent.
    #[error("a request failed: {0}")]
    Request(#[source] Arc<RequestError>),
    /// The server has answered something else.
    #[error("{0}: an unexpected answer: {1}")]
    Unexpected(&'static str, Arc<str>),
}

impl NatsError {
    /// Whether it is for want of a stream or its consumer.
    const fn is_missing(&self) -> bool {
        let code = match self {
            Self::NotThere(_) => return true,
            Self::Refused { code, .. } => *code,
            _ => return false,
        };
        matches!(code, link::STREAM_NOT_FOUND | link::CONSUMER_NOT_FOUND)
    }

    fn json(what: &'static str, error: &serde_json::Error) -> Self {
        Self::Unexpected(what, error.to_string().into())
    }
}

impl From<NatsError> for BrokerError {
    fn from(error: NatsError) -> Self {
        Self::new(Box::<dyn Error + Send + Sync>::from(error))
    }
}

/// What becomes of a consumer that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consumer {
    /// The consumer gets the lease and the limit of this queue, which a source takes items from.
    Changed,
    /// The consumer stays as the sources want it.
    AsItIs,
}

/// Makes a call on the connection of pushes. If a stream is missing, makes it and calls again.
macro_rules! on_link {
    ($shared:expr, $link:ident => $call:expr) => {{
        let $link = $shared.connected().await?;
        match { $call }.await {
            Err(error) if error.is_missing() && $shared.options.creates => {
                $shared.prepare(&$link, Consumer::AsItIs).await?;
                { $call }.await
            }
            answered => answered,
        }
    }};
}

/// Whether it may be the name of a stream or a consumer.
fn is_name(name: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    !name.is_empty() && !name.contains(is_odd)
}

/// Whether items can be published to it.
fn is_subject(subject: &str) -> bool {
    subject.split('.').all(is_name)
}

impl NatsQueue {
    /// A queue in the stream of this name, with default options. Several servers are separated by commas.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if the address or the name is not valid. It does not connect yet.
    pub fn new(servers: &str, stream: &str) -> Result<Self, NatsError> {
        Self::with(servers, stream, NatsOptions::new())
    }

    /// A queue in the stream of this name.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if the address or a name is not valid. It does not connect yet.
    pub fn with(servers: &str, stream: &str, options: NatsOptions) -> Result<Self, NatsError> {
        let servers = servers
            .split(',')
            .map(|server| server.trim().parse().map_err(|_| NatsError::Address))
            .collect::<Result<Vec<ServerAddr>, _>>()?;
        let subject = options.subject.clone().unwrap_or_else(|| stream.into());
        let dead = options.dead_letters.clone().unwrap_or_else(|| format!("{stream}_dead").into());
        let names =
            [stream, &options.consumer, &dead].into_iter().map(|name| (name, is_name(name)));
        let subjects = [(&*subject, is_subject(&subject))];
        for (name, is_valid) in names.chain(subjects) {
            if !is_valid {
                return Err(NatsError::Name(name.into()));
            }
        }
        let refusals = Refusals::register("nats", stream);
        let shared = Shared {
            servers,
            stream: stream.into(),
            subject,
            dead_subject: dead.clone(),
            dead_stream: dead,
            options,
            link: Mutex::default(),
            suspect: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), refusals })
    }

    /// Opens a queue that is there: its stream and the one of its dead letters. Calls of this value make nothing that is
    /// missing. So it is for tools that look at a queue; a program that adds items makes one [with](Self::with) the name.
    ///
    /// # Errors
    ///
    /// [`NatsError::UnknownStream`] if one of the streams is not there, and the other errors of a call.
    pub async fn open_existing(
        servers: &str,
        stream: &str,
        options: NatsOptions,
    ) -> Result<Self, NatsError> {
        let queue = Self::with(servers, stream, NatsOptions { creates: false, ..options })?;
        let shared = &queue.shared;
        let link = shared.connected().await?;
        for name in [&shared.stream, &shared.dead_stream] {
            let subject = format!("STREAM.INFO.{name}");
            match link.api::<Value>("looking for the stream", &subject, &json!({})).await {
                Err(NatsError::Refused { code: link::STREAM_NOT_FOUND, .. }) => {
                    return Err(NatsError::UnknownStream { stream: (&**name).into() });
                }
                answered => answered?,
            };
        }
        Ok(queue)
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "nats", self.name());
        Self { refusals, ..self }
    }

    /// The name of the stream.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.stream
    }

    /// Adds an item. When it returns the item's sequence in the stream, the server has stored it.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if it was not confirmed. After a [time-out](NatsError::Timeout) or a
    /// [lost connection](NatsError::Lost) it may be there nevertheless; an
    /// [id](NatsQueue::push_with_id) makes it safe to push it again.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<u64, NatsError> {
        self.publish(&item, None).await
    }

    /// Adds an item, unless one with this id was added in the
    /// [last two minutes](NatsOptions::duplicate_window). Returns the sequence of the one that is there.
    ///
    /// # Errors
    ///
    /// As of [`push`](NatsQueue::push).
    pub async fn push_with_id(&self, item: Item, id: &str) -> Result<u64, NatsError> {
        if id.is_empty() || id.trim() != id || id.contains(char::is_control) {
            return Err(NatsError::Name(id.into()));
        }
        self.publish(&item, Some(id)).await
    }

    async fn publish(&self, item: &Item, id: Option<&str>) -> Result<u64, NatsError> {
        let published = self.publish_item(item, id).await;
        if let Err(error) = &published {
            let is_full = matches!(error, NatsError::Refused { code: link::NOT_STORED, .. });
            self.refusals.count(1, is_full);
        }
        published
    }

    async fn publish_item(&self, item: &Item, id: Option<&str>) -> Result<u64, NatsError> {
        let headers = format::to_headers(item);
        let size = item.payload.len() + format::size_of_headers(&headers);
        on_link!(self.shared, link => {
            let limit = link.client().max_payload().saturating_sub(RESERVED);
            if size > limit {
                return Err(NatsError::TooLarge { size, limit });
            }
            link.publish(&self.shared.subject, headers.clone(), item.payload.clone(), id)
        })
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item is
    /// delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items there are, and when the oldest was added, whether it waits, is in work or waits for a
    /// retry. Of a stream that keeps what is done, it is `None`.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if the server did not tell.
    pub async fn backlog(&self) -> Result<Backlog, NatsError> {
        let (backlog, ..) = on_link!(self.shared, link => self.shared.backlog(&link))?;
        Ok(backlog)
    }

    /// Up to `limit` items that were given up, in their order, after the one with this id.
    ///
    /// With 16 MiB a page is full and ends, so there may be more behind one of fewer than `limit`: not behind an empty one,
    /// unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if the server did not tell.
    pub async fn dead_letters(
        &self,
        after: u64,
        limit: u32,
    ) -> Result<Vec<DeadLetter<u64>>, NatsError> {
        self.page(after, u64::MAX, Page::of(limit)).await
    }

    /// The dead letters after an id, up to another, as far as they are on a page.
    async fn page(
        &self,
        after: u64,
        last: u64,
        page: Page<u64>,
    ) -> Result<Vec<DeadLetter<u64>>, NatsError> {
        on_link!(self.shared, link => self.shared.dead_letters(&link, after, last, page.clone()))
    }

    /// Adds an item that was given up to the queue again, as a new item whose age begins now. Returns its new
    /// sequence, or `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if a request failed. The item may then be both in the queue and among the dead
    /// letters.
    pub async fn replay(&self, id: u64) -> Result<Option<u64>, NatsError> {
        on_link!(self.shared, link => self.shared.replay(&link, id))
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, however many, and not those that fail again meanwhile. Returns how many there were.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::nats::NatsQueue) -> Result<(), Box<dyn std::error::Error>> {
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
        mut which: impl FnMut(&DeadLetter<u64>) -> bool,
    ) -> Result<u64, NatsError> {
        let last = on_link!(self.shared, link => self.shared.last_dead_letter(&link))?;
        replay_all!(
            which,
            after => self.page(after.copied().unwrap_or(0), last, Page::next()),
            id => self.replay(*id)
        )
    }

    /// Removes an item that was given up. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if a request failed.
    pub async fn drop_dead_letter(&self, id: u64) -> Result<bool, NatsError> {
        on_link!(self.shared, link => link.remove(&self.shared.dead_stream, id))
    }

    /// Removes the items that were given up and for which the function says so. It takes those that are there when it
    /// begins, however many, and not those that are given up meanwhile. Returns
    /// how many there were. As long as it takes all, those of a page are removed by one
    /// call, and otherwise by one for each.
    ///
    /// # Errors
    ///
    /// [`NatsError`] if a request failed. Those before it are removed.
    pub async fn drop_all_dead_letters(
        &self,
        mut which: impl FnMut(&DeadLetter<u64>) -> bool,
    ) -> Result<u64, NatsError> {
        let last = on_link!(self.shared, link => self.shared.last_dead_letter(&link))?;
        let (mut after, mut some_stay, mut dropped) = (0, false, 0_u64);
        loop {
            let page = self.page(after, last, Page::next()).await?;
            let Some(end) = page.last() else { return Ok(dropped) };
            after = end.id;
            let chosen = page.iter().filter(|dead| which(dead));
            let ids: Vec<_> = chosen.map(|dead| dead.id).collect();
            some_stay |= ids.len() < page.len();
            if !ids.is_empty() {
                let more = self.drop_dead_letters(&ids, some_stay).await?;
                dropped = dropped.saturating_add(more);
            }
        }
    }

    /// Removes dead letters, with all before them unless some of those stay. Returns how many there were.
    async fn drop_dead_letters(&self, ids: &[u64], some_stay: bool) -> Result<u64, NatsError> {
        on_link!(self.shared, link => self.shared.drop_dead_letters(&link, ids, some_stay))
    }
}

fn dead_letter(stored: link::Stored) -> DeadLetter<u64> {
    let headers = format::parse_headers(&stored.headers);
    let death = format::death(&headers);
    let headers = format::without_death(&headers);
    let item = format::to_item(Some(&headers), stored.payload).unwrap_or_else(|(item, _)| item);
    DeadLetter {
        id: stored.sequence,
        item,
        enqueued_at: death.enqueued_at(),
        given_up_at: death.given_up_at(),
        deliveries: death.deliveries,
        reason: death.reason.into(),
    }
}

impl Shared {
    /// The connection of pushes.
    async fn connected(&self) -> Result<Link, NatsError> {
        // Waiting for others that connect counts too.
        let link = timeout(self.options.timeout.saturating_mul(2), self.link());
        link.await.map_err(|_| NatsError::Timeout("connecting"))?
    }

    async fn link(&self) -> Result<Link, NatsError> {
        let mut kept = self.link.lock().await;
        if let Some(link) = kept.as_ref().filter(|link| !link.is_lost()) {
            return Ok(link.clone());
        }
        let link = Link::connect(&self.servers, &self.options).await?;
        if self.options.creates {
            self.prepare(&link, Consumer::AsItIs).await?;
        }
        Ok(kept.insert(link).clone())
    }

    /// Makes what is missing. Returns what the server tells about the stream and its consumer.
    async fn prepare(&self, link: &Link, consumer: Consumer) -> Result<[Value; 2], NatsError> {
        let options = &self.options;
        let max_bytes = options.max_bytes;
        let (name, subject) = (&*self.stream, &*self.subject);
        let stream =
            link.stream(&Stream { name, subject, is_queue: true, max_bytes, options }).await?;
        let (name, subject) = (&*self.dead_stream, &*self.dead_subject);
        link.stream(&Stream { name, subject, is_queue: false, max_bytes: None, options }).await?;
        Ok([stream, self.consumer(link, consumer).await?])
    }

    /// Makes the consumer, or gives it the options of this queue, unless it is to stay as it is.
    async fn consumer(&self, link: &Link, consumer: Consumer) -> Result<Value, NatsError> {
        let options = &self.options;
        let is_kept = consumer == Consumer::AsItIs;
        if is_kept {
            match self.consumer_info(link).await {
                Err(NatsError::Refused { code: link::CONSUMER_NOT_FOUND, .. }) => {}
                answered => return answered,
            }
        }
        let wanted = json!({
            "stream_name": self.stream,
            // Servers before version 2.10 know no action, and change a consumer that was made meanwhile.
            "action": if is_kept { "create" } else { "" },
            "config": {
                "durable_name": options.consumer,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": nanoseconds(options.lease),
                "max_deliver": -1,
                "max_ack_pending": options.max_pending,
                "filter_subject": self.subject,
                "replay_policy": "instant",
            },
        });
        let api = format!("CONSUMER.DURABLE.CREATE.{}.{}", self.stream, options.consumer);
        let made = link.api("making the consumer", &api, &wanted).await;
        match made {
            // Another process was faster.
            Err(NatsError::Refused { .. }) if is_kept => self.consumer_info(link).await.or(made),
            made => made,
        }
    }

    async fn dead_letters(
        &self,
        link: &Link,
        mut after: u64,
        last: u64,
        mut page: Page<u64>,
    ) -> Result<Vec<DeadLetter<u64>>, NatsError> {
        while !page.is_full() && after < last {
            let wanted = json!({ "seq": after + 1, "next_by_subj": self.dead_subject });
            let stored = link.stored(&self.dead_stream, &wanted).await?;
            let Some(stored) = stored.filter(|stored| stored.sequence <= last) else { break };
            after = stored.sequence;
            page.push(dead_letter(stored));
        }
        Ok(page.into_letters())
    }

    /// The sequence of the last message in the stream of dead letters.
    async fn last_dead_letter(&self, link: &Link) -> Result<u64, NatsError> {
        let (what, api) =
            ("asking for the dead letters", format!("STREAM.INFO.{}", self.dead_stream));
        let stream = link.api::<Value>(what, &api, &json!({})).await?;
        let last = stream["state"]["last_seq"].as_u64();
        last.ok_or_else(|| NatsError::Unexpected(what, stream.to_string().into()))
    }

    async fn drop_dead_letters(
        &self,
        link: &Link,
        ids: &[u64],
        some_stay: bool,
    ) -> Result<u64, NatsError> {
        let Self { dead_stream, dead_subject, .. } = self;
        if let Some(last) = ids.last().filter(|_| !some_stay) {
            match link.remove_up_to(dead_stream, dead_subject, *last).await {
                // A stream may allow that of single ones only.
                Err(error @ NatsError::Refused { .. }) if !error.is_missing() => {}
                answered => return answered,
            }
        }
        let removed = try_join_all(ids.iter().map(|id| link.remove(dead_stream, *id))).await?;
        Ok(removed.into_iter().map(u64::from).sum())
    }

    async fn replay(&self, link: &Link, id: u64) -> Result<Option<u64>, NatsError> {
        let stored = link.stored(&self.dead_stream, &json!({ "seq": id })).await?;
        let Some(stored) = stored else { return Ok(None) };
        let headers = format::parse_headers(&stored.headers);
        // If the dead letter cannot be removed, another replay soon after adds no second item.
        let replayed = headers.get(format::MESSAGE_ID).map(|id| format!("replay.{}", id.as_str()));
        let before = format::without_death(&headers);
        let new = link.publish(&self.subject, before, stored.payload, replayed.as_deref()).await?;
        link.remove(&self.dead_stream, id).await?;
        Ok(Some(new))
    }

    async fn consumer_info(&self, link: &Link) -> Result<Value, NatsError> {
        let consumer = format!("CONSUMER.INFO.{}.{}", self.stream, self.options.consumer);
        link.api("asking for the consumer", &consumer, &json!({})).await
    }

    /// The backlog, how many of its items were delivered, and the last that was delivered for the first time.
    async fn backlog(&self, link: &Link) -> Result<(Backlog, Option<u64>, Option<u64>), NatsError> {
        let what = "asking for the backlog";
        let (none, dead) = (json!({}), format!("STREAM.INFO.{}", self.dead_stream));
        let stream = format!("STREAM.INFO.{}", self.stream);
        let (consumer, stream, dead) = tokio::try_join!(
            self.consumer_info(link),
            link.api::<Value>(what, &stream, &none),
            link.api::<Value>(what, &dead, &none),
        )?;
        let count = |value: &Value| value.as_u64();
        let pending = count(&consumer["num_pending"]);
        let delivered = count(&consumer["num_ack_pending"]);
        let items = pending.zip(delivered).map(|(pending, delivered)| pending + delivered);
        // Of other streams, the first message may be done.
        let is_queue = stream["config"]["retention"] == "workqueue";
        let oldest = stream["state"]["first_ts"].as_str().filter(|_| is_queue && items != Some(0));
        let limit = consumer["config"]["max_ack_pending"].as_u64().filter(|limit| *limit > 0);
        let is_full = limit.is_some_and(|limit| delivered >= Some(limit));
        let backlog = Backlog {
            stalled: (is_full && pending > Some(0)).then_some(STALLED),
            items,
            oldest: oldest.and_then(format::from_rfc3339),
            dead_letters: count(&dead["state"]["messages"]),
            ..Backlog::default()
        };
        Ok((backlog, delivered, count(&consumer["delivered"]["stream_seq"])))
    }
}
