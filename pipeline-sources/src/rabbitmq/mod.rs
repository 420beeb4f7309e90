//! A durable queue of RabbitMQ.
//!
//! ```no_run
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{Item, SourceOptions, rabbitmq::RabbitQueue};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queue = RabbitQueue::new("amqp://localhost", "orders")?;
//!
//! // When it returns, the server has confirmed the item.
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
//! What is missing at the server is made: a [queue](RabbitQueueKind), and an exchange and a queue for dead letters
//! of its name with `.dead`. What is there is used as it is. It needs a server of version 3.10 or later.
//!
//! # How it works
//!
//! - A source has one consumer, which stays open while it fetches. Its prefetch is as large as what is in work when
//!   the pipeline has got all that it asks for, so each acknowledgement lets the next item come. There is no
//!   lease: the items of a connection that is closed are delivered again at once.
//! - An item that is to be delivered again later waits in a queue `<name>.later.<n>ms`, from where the server
//!   moves it back when its time is over. There is such a queue for each power of two, so an item waits for at
//!   most twice its delay. It is then behind the other items. These queues stay, 32 of them at most, also when the queue
//!   is deleted.
//! - An item that is given up is added to the exchange of dead letters, with headers that say why. The server
//!   itself adds those that were delivered [too often](RabbitOptions::delivery_limit).
//! - Each outcome is stored on its own, but items that are done one after the other are acknowledged together. An item whose headers are so large that those of a retry do not fit
//!   is given up, and of a dead letter that is too large, the largest headers are left out. The reason says so.
//! - Pushes, retries and dead letters are persistent, and are confirmed by the server. They have a connection
//!   of their own, for a server that is short of memory or disk takes nothing from it: a push waits then, and
//!   fails with [`RabbitError::Blocked`] when its time is over. Items are handled and acknowledged meanwhile. Those
//!   that fail then keep their places until they can be added again, and the prefetch is raised by their number, up to
//!   [`max_prefetch`](RabbitOptions::max_prefetch).
//!
//! # Messages of other programs
//!
//! Any program may publish to the queue; a payload is enough. Headers of the message that are text or numbers
//! are those of the item, except
//!
//! | property or header | what it is |
//! | --- | --- |
//! | `message-id` | the id of the item; one without gets one |
//! | `timestamp` | when it was added, in seconds or milliseconds; without one, it counts as added when it is first delivered, and anew when it is delivered again without a retry, as after a drain or a lost connection |
//! | `pipeline-key` | the key |
//! | `traceparent` | the trace, as the W3C has defined it |
//! | `pipeline-item` | a JSON object with `headers`, for those whose names are taken or longer than 255 bytes |
//! | `pipeline-deliveries`, `pipeline-failures` | how often it was delivered, and has failed, before its last retry |
//! | `x-…` | of the server, and no part of the item |
//!
//! The protocol has no other time of a message that was not added again. So that the age of messages without one counts from
//! when they were added, the server can give each the time at which it has come. Of version 3.12 or later it does so with
//! `message_interceptors.incoming.set_header_timestamp.overwrite = false` in `rabbitmq.conf`, and before with the plugin
//! `rabbitmq_message_timestamp`. Each then has a header `timestamp_in_ms` too.
//!
//! A message whose key is not text, or whose `pipeline-item` is not valid, is given up.
//!
//! So is a message whose properties the client library could not read: with headers that are more than 32 tables or lists in
//! each other, larger than 1 MiB, of a type that is not known, or with a text or a name that is not UTF-8. They are
//! replaced, before the library reads them, by a header `pipeline-unreadable` that says why. The dead letter has the
//! payload and this reason, and nothing else of the message. When it is replayed, it is an item without headers.
//!
//! # What RabbitMQ promises
//!
//! - Items are delivered in the order in which they were added, unless they are delivered again. A queue that has
//!   just been made may refuse an item for a moment. It is added again, behind others that were added at the same time.
//! - The prefetch follows what is asked for: it is raised when it is too small, and lowered when less than half of it
//!   was of use for ten seconds. A server fixes the prefetch of a consumer when this is opened (it can change that
//!   of a whole channel, but not with quorum queues), so another one is opened then, after the last item of the one
//!   before. This is why items may be delivered before they are asked for: as many as were in work at one time, at most,
//!   and no more together with those in work than [`max_prefetch`](RabbitOptions::max_prefetch), 1,000 items, and
//!   [`max_prefetch_bytes`](RabbitOptions::max_prefetch_bytes), 256 MiB, say; 100 items more for a moment when
//!   the prefetch is raised. They wait in the source, other sources do not get them meanwhile, the
//!   backlog does not count them, and a drain gives them back at once. What [`max_unsettled_bytes`](crate::SourceOptions::max_unsettled_bytes)
//!   allows does not count them; the gauges `pipeline.source.ahead` and `pipeline.source.ahead_bytes` show them.
//! - A quorum queue counts each delivery, also one that was given back by a drain. Where drains are frequent,
//!   [`max_unfinished`](crate::SourceOptions::max_unfinished) has to allow for them. One that was
//!   [postponed](pipeline_core::processing::Failure::later) is not counted. A classic queue that is
//!   there tells only whether an item was delivered before.
//! - Acknowledgements are not confirmed. A source makes sure that the server has read them, but one that is
//!   killed may deliver again what was done in its last moments. The answer of the server comes behind the items that
//!   it has delivered, and is not waited for where these take longer than [`timeout`](RabbitOptions::timeout), unless the
//!   source ends.
//! - It tells how many items wait, and not how many are being handled or wait for a retry, nor how old any of
//!   them is: [`Backlog::oldest`] is `None`, so an alert on the age never fires.
//!
//! # Long work
//!
//! The server closes the channel of a source when an item that it has delivered is not acknowledged within
//! `consumer_timeout`, half an hour if its configuration does not say otherwise. The time begins with the
//! delivery, so it has to be enough for the item and for those that wait before it: as many as
//! [`max_demand`](pipeline_core::processing::Processors::max_demand) says, and as many again that were delivered
//! before they were asked for. Then
//! everything that the source has in work is delivered again, the outcomes of these deliveries are not stored,
//! and the source shows [`RabbitError::ConsumerTimeout`]. A server of version 4.3 or later cancels the consumer instead,
//! and the source connects again and shows [`RabbitError::Cancelled`]. Work that takes longer each time is given up after
//! [`max_deliveries`](crate::SourceOptions::max_deliveries). There is nothing that a client could renew. So
//! where work may take that long, set `consumer_timeout` in `rabbitmq.conf` to more, in milliseconds, or
//! [for the queue](RabbitOptions::consumer_timeout).

//!
//! # The log
//!
//! The client library writes each refusal of the server as an error, also when a source only looks whether its
//! queues are there: three at the first start. What concerns a program is returned, or logged by the source, so
//! a filter may leave out the target `lapin`, such as `RUST_LOG=info,lapin=off`.

mod dead_ids;
mod flow;
mod format;
mod headers;
mod link;
mod session;
mod transport;

use std::{
    error::Error,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, ErrorKind,
    message::BasicGetMessage,
    options::{BasicAckOptions, BasicGetOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::ShortString,
    uri::AMQPUri,
};
use pipeline_core::telemetry::Telemetry;
use thiserror::Error;
use tokio::{sync::Mutex, time::timeout};

pub use self::session::{RabbitFetch, RabbitReceipt, RabbitSettle};
use self::{
    dead_ids::Walk,
    link::{Dialer, Names, Publisher, declared, is_there, within},
};
use crate::{
    broker::{Backlog, BrokerError},
    clock::now,
    item::{DeadLetter, Item},
    metrics::Refusals,
    options::SourceOptions,
    replaying::{CHOSEN, Page},
    source::Source,
};

/// The longest name of a queue, in bytes. Those that are made of it are longer.
const LONGEST_NAME: usize = 200;

/// How many dead letters are looked at in a call.
const MOST_DEAD: usize = 10_000;

/// How many dead letters are walked through when all are taken. Their ids are kept until then, and the server keeps those
/// that stay.
const MOST_WALKED: u64 = CHOSEN as u64;

/// What becomes of dead letters that are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Replayed,
    Dropped,
}

/// A queue of RabbitMQ.
///
/// Cheap to clone. It connects when it is used first. Pushes share one connection, and each source has one
/// of its own. What different tasks push at the same time is under way together.
#[derive(Clone, Debug)]
pub struct RabbitQueue {
    shared: Arc<Shared>,
    refusals: Refusals,
}

#[derive(Debug)]
struct Shared {
    names: Names,
    options: RabbitOptions,
    /// Opens the connections of sources.
    dialer: Dialer,
    /// Opens the connection of pushes.
    publisher_dialer: Dialer,
    publisher: Mutex<Option<Arc<Publisher>>>,
    /// Numbers the sessions of sources.
    sessions: AtomicU64,
    /// How many fetches are made for one item only.
    careful: AtomicUsize,
    /// The mean size of the items that sources had last.
    mean: AtomicUsize,
}

/// The kind of a queue of RabbitMQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RabbitQueueKind {
    /// On several servers of a cluster. It counts deliveries, and keeps an item that waits for a retry until
    /// it is back in its queue.
    ///
    /// A server of version 3.10 that is alone and is killed may have no leader for it when it is started
    /// again (issue 10070 of rabbitmq-server). Calls end with an error in time then, until an operator
    /// triggers an election.
    #[default]
    Quorum,
    /// On one server. It tells whether an item was delivered before, and does not count, so an item whose
    /// process dies each time comes again and again. An item that waits for a retry may be lost if the
    /// server dies at the moment at which its time is over.
    Classic,
}

/// The options of a queue of RabbitMQ. Those of the queue concern one that is made.
#[derive(Clone, Debug)]
#[must_use]
pub struct RabbitOptions {
    kind: RabbitQueueKind,
    dead_letters: Option<Box<str>>,
    timeout: Duration,
    max_items: Option<u64>,
    delivery_limit: u32,
    consumer_timeout: Option<Duration>,
    max_prefetch: u16,
    max_prefetch_bytes: usize,
    /// Whether a call makes what is missing.
    creates: bool,
}

impl Default for RabbitOptions {
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        let kind = RabbitQueueKind::Quorum;
        Self {
            kind,
            dead_letters: None,
            timeout,
            max_items: None,
            delivery_limit: 100,
            consumer_timeout: None,
            max_prefetch: 1000,
            max_prefetch_bytes: 256 * 1024 * 1024,
            creates: true,
        }
    }
}

impl RabbitOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The kind of the queue. Default a quorum queue.
    pub fn kind(mut self, kind: RabbitQueueKind) -> Self {
        self.kind = kind;
        self
    }

    /// The exchange and the queue of the dead letters. Default the name of the queue with `.dead`.
    pub fn dead_letters(mut self, name: impl Into<Box<str>>) -> Self {
        self.dead_letters = Some(name.into());
        self
    }

    /// How long the server may take for an answer, and a push in all. Default 5 seconds. It is also the
    /// interval of heartbeats, in whole seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// How many items may wait in the queue. Beyond it a push is refused, and no item is lost. Default as many as the server
    /// has space for.
    ///
    /// What comes back is not refused: after a retry, from a drain, or from the dead letters. A limit at the server
    /// (`x-max-length`, or a policy) would refuse that too, and then a classic queue loses items, and a quorum queue gets
    /// them minutes later. So the queue is made without one, and a push counts what is there: each process may add up to
    /// 64 more, if several push at the same time, and other programs are not bound by it. A classic queue that
    /// was made with a limit is [not used](RabbitError::HasLimit) with this option.
    pub fn max_items(mut self, items: u64) -> Self {
        self.max_items = Some(items);
        self
    }

    /// How long an item may be in work, for a server of version 3.12 or later. Default as the server has it,
    /// which is half an hour. An older server has one time for all its queues, `consumer_timeout` in its
    /// configuration, and nothing else changes it. See [long work](self#long-work).
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = Some(timeout.max(Duration::from_secs(1)));
        self
    }

    /// The largest prefetch of a source: how many items the server has delivered to it that are not acknowledged,
    /// in work and before they are asked for. Default 1,000. No more can be in work at the same time, and those whose
    /// outcomes the server refuses are among them. For a moment, when the prefetch is raised, a source may have 100 more, and no more than twice as many.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_prefetch(mut self, items: u16) -> Self {
        assert!(items > 0, "max_prefetch must be at least 1");
        self.max_prefetch = items;
        self
    }

    /// How many bytes the items may have that the server has delivered to a source and that are not acknowledged, in
    /// work and before they are asked for. Default 256 MiB.
    ///
    /// A server of RabbitMQ cannot limit bytes, so the prefetch is made such that as many items as it allows have
    /// about this size, if they are as large as the last ones were. When larger ones come, it is lowered at once,
    /// and until that has reached the server, those of the prefetch before may come. Before any item
    /// has come, 64 KiB are expected of each. One item may always be delivered, whatever its size. The gauges
    /// `pipeline.source.held_bytes` and `pipeline.source.ahead_bytes` show how many there are.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_prefetch_bytes(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "max_prefetch_bytes must be at least 1");
        self.max_prefetch_bytes = bytes;
        self
    }

    /// How often a quorum queue delivers an item without an outcome before the server gives it up. Default 100.
    /// This happens to an item that ends its process each time.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn delivery_limit(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "an item must be delivered at least once");
        self.delivery_limit = deliveries;
        self
    }
}

/// Why a call of a queue of RabbitMQ failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RabbitError {
    /// The address of the server is not valid. It is not shown, because it may have a password.
    #[error(
        "the address of the server is not valid, expected amqp://USER:PASSWORD@HOST:PORT/VHOST"
    )]
    Address,
    /// The name of a queue is not valid.
    #[error("{0:?} is no name for a queue")]
    Name(Arc<str>),
    /// The server did not answer in time.
    #[error("{0}: the server has not answered in time")]
    Timeout(&'static str),
    /// The server is short of memory or disk, and takes no items now.
    #[error("the server is short of memory or disk, and takes no items now")]
    Blocked,
    /// The queue has refused the item, because it is full or cannot store it.
    #[error("the queue has refused the item, because it is full or cannot store it")]
    Refused,
    /// The server has no queue of this name.
    #[error("there is no queue {queue:?} at the server")]
    UnknownQueue {
        /// The name that was asked for, or that of the dead letters.
        queue: Arc<str>,
    },
    /// A classic queue that is there was made with a limit at the server, by a program or an earlier version. The server would
    /// drop what comes back from a retry while the queue is full.
    #[error(
        "the classic queue {queue:?} was made with a limit (x-max-length), and the server would drop what comes back from \
         a retry while it is full: delete it when it is empty, so that it is made without one, or leave out max_items to \
         use it as it is"
    )]
    HasLimit {
        /// Its name.
        queue: Arc<str>,
    },
    /// The queue is missing, and could not be made.
    #[error("the queue is missing")]
    Unroutable,
    /// The headers of the item are too large.
    #[error("headers of {size} bytes are too large, more than {limit}")]
    TooLarge {
        /// Their size.
        size: usize,
        /// The largest.
        limit: usize,
    },
    /// A call has failed, or the connection was lost.
    #[error("{what}: {source}")]
    Client {
        /// What was asked for.
        what: &'static str,
        /// The error of the client library.
        source: lapin::Error,
    },
    /// The server has closed the channel of the deliveries, and delivers again what was in work. It does so
    /// when an item was in work for longer than its `consumer_timeout`.
    #[error(
        "the server has closed the channel, as when an item is in work for longer than its consumer_timeout"
    )]
    ConsumerTimeout,
    /// The server has cancelled the consumer, because the queue was deleted, has moved to another server, or, with
    /// version 4.3 and later, because an item was in work for longer than its `consumer_timeout`.
    #[error(
        "the server cancelled the consumer, as when the queue was deleted, or an item was in work for longer than \
         its consumer_timeout"
    )]
    Cancelled,
    /// The connection opens no channel any more, because the server has closed one of each number.
    #[error("the connection opens no channel any more, because the server has closed too many")]
    NoChannel,
    /// The connection was closed.
    #[error("the connection was closed")]
    Closed,
    /// The dead letter behind which a page was to begin was not found: it was taken away meanwhile, another program reads
    /// it at this moment, or it is behind those that are looked at.
    #[error(
        "no dead letter has the id {after:?} among the first {looked}: it was taken away, or another program reads it at \
         this moment"
    )]
    NotAmongDead {
        /// The id.
        after: Arc<str>,
        /// How many were looked at.
        looked: usize,
    },
    /// A page was to begin behind the last dead letter that can be looked at, and there are others.
    #[error(
        "there are more dead letters than the first {looked}, and no others are looked at: replay or drop some of these first"
    )]
    TooManyDead {
        /// How many are looked at.
        looked: usize,
    },
    /// Some of the dead letters were replayed or dropped, and then a request failed.
    #[error("{taken} dead letters were replayed or dropped, and then it failed: {source}")]
    Stopped {
        /// How many were replayed or dropped.
        taken: u64,
        /// Why the others were not.
        source: Box<Self>,
    },
}

impl RabbitError {
    const fn new(what: &'static str, source: lapin::Error) -> Self {
        Self::Client { what, source }
    }

    /// Whether it tells no more than that a channel is closed, or that an item was in work for too long.
    fn is_of_a_closed_channel(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Client { source, .. } => match source.kind() {
                ErrorKind::InvalidChannelState(..) => true,
                ErrorKind::ProtocolError(error) => {
                    *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                        && error.get_message().as_str().contains("delivery acknowledgement")
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the server has refused a request with these words.
    fn is_about(&self, words: &str) -> bool {
        match self {
            Self::Client { source, .. } => match source.kind() {
                ErrorKind::ProtocolError(error) => error.get_message().as_str().contains(words),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether it is for want of a queue or an exchange.
    fn is_missing(&self) -> bool {
        match self {
            Self::Unroutable => true,
            Self::Client { source, .. } => match source.kind() {
                ErrorKind::ProtocolError(error) => {
                    *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl From<RabbitError> for BrokerError {
    fn from(error: RabbitError) -> Self {
        Self::new(Box::<dyn Error + Send + Sync>::from(error))
    }
}

/// A random name for an item.
fn random_id() -> Arc<str> {
    let [first, second] = [(); 2].map(|()| RandomState::new().hash_one(0));
    format!("{first:016x}{second:016x}").into()
}

fn name(name: &str) -> Result<ShortString, RabbitError> {
    let is_name = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !name.starts_with("amq.")
        && !name.contains(char::is_control);
    let name = is_name.then(|| ShortString::try_new(name).ok()).flatten().ok_or(name);
    name.map_err(|name| RabbitError::Name(name.into()))
}

impl RabbitQueue {
    /// A queue of this name, with default options. The address is such as `amqp://user:password@host/vhost`.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if the address or the name is not valid. It does not connect yet.
    pub fn new(address: &str, queue: &str) -> Result<Self, RabbitError> {
        Self::with(address, queue, RabbitOptions::new())
    }

    /// A queue of this name.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if the address or a name is not valid. It does not connect yet.
    pub fn with(address: &str, queue: &str, options: RabbitOptions) -> Result<Self, RabbitError> {
        let uri: AMQPUri = address.parse().map_err(|_: String| RabbitError::Address)?;
        let dead = options.dead_letters.as_deref().map(name).transpose()?;
        let queue_name = name(queue)?;
        let dead = dead.map_or_else(|| name(&format!("{queue}.dead")), Ok)?;
        let shared = Shared {
            names: Names { queue: queue_name, dead },
            dialer: Dialer::new(uri.clone(), options.timeout),
            publisher_dialer: Dialer::new(uri, options.timeout),
            options,
            publisher: Mutex::default(),
            sessions: AtomicU64::new(0),
            careful: AtomicUsize::new(0),
            mean: AtomicUsize::new(flow::UNKNOWN),
        };
        Ok(Self { shared: Arc::new(shared), refusals: Refusals::register("rabbitmq", queue) })
    }

    /// Opens a queue that is there, with the one of its dead letters. Calls of this value make nothing that is missing. So
    /// it is for tools that look at a queue; a program that adds items makes one [with](Self::with) the name.
    ///
    /// # Errors
    ///
    /// [`RabbitError::UnknownQueue`] if one of the queues is not there, and the other errors of a call.
    pub async fn open_existing(
        address: &str,
        queue: &str,
        options: RabbitOptions,
    ) -> Result<Self, RabbitError> {
        let queue = Self::with(address, queue, RabbitOptions { creates: false, ..options })?;
        let shared = &queue.shared;
        for name in [&shared.names.queue, &shared.names.dead] {
            // The server closes a channel on which something is missing.
            let (_publisher, channel) = shared.channel().await?;
            if !is_there(declared(&channel, name, shared.options.timeout).await)? {
                return Err(RabbitError::UnknownQueue { queue: name.as_str().into() });
            }
            shared.close(channel).await?;
        }
        Ok(queue)
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "rabbitmq", self.name());
        Self { refusals, ..self }
    }

    /// The name of the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.names.queue.as_str()
    }

    /// Adds an item. When it returns the item's id, the server has confirmed it.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if it was not confirmed. After a [time-out](RabbitError::Timeout) or when the
    /// connection was lost it may be there nevertheless.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<Arc<str>, RabbitError> {
        let pushed = self.push_item(item).await;
        if let Err(error) = &pushed {
            self.refusals.count(1, matches!(error, RabbitError::Refused));
        }
        pushed
    }

    async fn push_item(&self, item: Item) -> Result<Arc<str>, RabbitError> {
        let id = random_id();
        let properties = format::to_properties(&item, &id, now());
        let queue = &self.shared.names.queue;
        let publisher = self.shared.publisher().await?;
        match publisher.push(queue, properties.clone(), &item.payload).await {
            Err(RabbitError::Unroutable) => {
                let publisher = self.shared.prepare(publisher).await?;
                publisher.push(queue, properties, &item.payload).await?;
            }
            pushed => pushed?,
        }
        Ok(id)
    }

    /// A source of the queue's items. A queue may have several, in any number of processes; each item is
    /// delivered to one of them at a time.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<Self> {
        Source::new(self.clone(), options)
    }

    /// How many items wait to be delivered, and how many dead letters there are. Items that are being
    /// handled or that wait for a retry are not counted, for the server does not tell.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if the server did not tell.
    pub async fn backlog(&self) -> Result<Backlog, RabbitError> {
        let (publisher, channel) = self.shared.channel().await?;
        match self.shared.backlog(&channel).await {
            Err(error) if error.is_missing() => {
                self.shared.prepare(publisher).await?;
                let (_publisher, channel) = self.shared.channel().await?;
                self.shared.backlog(&channel).await
            }
            backlog => backlog,
        }
    }

    /// Up to `limit` items that were given up, in their order, after the one with this id or from the first
    /// one on.
    ///
    /// With 16 MiB a page is full and ends, so there may be more behind one of fewer than `limit`: not behind an empty one,
    /// unless `limit` is 0.
    ///
    /// The server has no other way to look at them than to take them and to give them back, so pages take
    /// the longer the further back they are, and other calls find fewer meanwhile. At most 10,000 are
    /// looked at: to see the others, replay or drop some of these.
    ///
    /// Those that the server itself has moved are named by the id and the payload of their messages. If several have the
    /// same, those behind the first get a number, such as `~2`, which becomes smaller when one before them is taken away: so
    /// take several of them from the last to the first. An empty page is the answer where `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`RabbitError::NotAmongDead`] if there is no letter with the id `after` among the first 10,000, and
    /// [`RabbitError::TooManyDead`] if it is the 10,000th and not the last one. Another [`RabbitError`] if the server did not tell.
    pub async fn dead_letters(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DeadLetter<Arc<str>>>, RabbitError> {
        self.page(after, Page::of(limit)).await
    }

    /// The dead letters after an id, as far as they are on a page.
    async fn page(
        &self,
        after: Option<&str>,
        mut page: Page<Arc<str>>,
    ) -> Result<Vec<DeadLetter<Arc<str>>>, RabbitError> {
        if page.limit() == 0 {
            return Ok(page.into_letters());
        }
        // They are given back when it is closed.
        let (_publisher, channel) = self.shared.channel().await?;
        let mut walk = Walk::to(after);
        let (mut looked, mut is_end) = (0, false);
        while !page.is_full() && looked < MOST_DEAD {
            let Some(got) = self.shared.get_dead(&channel).await? else {
                is_end = true;
                break;
            };
            looked += 1;
            let (properties, payload) = (&got.delivery.properties, &got.delivery.data);
            if let Some(id) = walk.step(&format::dead_id(properties, payload)) {
                page.push(format::dead_letter(id, properties, got.delivery.data.into()));
            }
        }
        let letters = page.into_letters();
        let awaited = walk.awaited();
        // The 10,000th may be the last one.
        let others_follow = awaited.is_none()
            && !is_end
            && looked == MOST_DEAD
            && letters.is_empty()
            && self.shared.get_dead(&channel).await?.is_some();
        self.shared.close(channel).await?;
        match awaited {
            Some(after) => Err(RabbitError::NotAmongDead { after, looked }),
            None if others_follow => Err(RabbitError::TooManyDead { looked }),
            None => Ok(letters),
        }
    }

    /// Adds an item that was given up to the queue again, as a new item whose age begins now. Returns its id, or `None` if there
    /// is no dead letter with this one. It looks for it as [`dead_letters`](RabbitQueue::dead_letters) does.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if a request failed. The item may then be both in the queue and among the dead
    /// letters.
    pub async fn replay(&self, id: &str) -> Result<Option<Arc<str>>, RabbitError> {
        let (publisher, channel) = self.shared.channel().await?;
        let found = self.shared.find_dead(&channel, id).await?;
        let mut new = None;
        if let Some(found) = found {
            let message = &found.delivery;
            new =
                Some(self.shared.push_again(&publisher, &message.properties, &message.data).await?);
            self.shared.ack(&channel, message.delivery_tag).await?;
        }
        self.shared.close(channel).await?;
        Ok(new)
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, and not those that fail again meanwhile. Returns how many there were.
    ///
    /// It takes one after the other from the queue of dead letters, and gives back those that stay at its end. So
    /// another program sees fewer meanwhile. If one takes dead letters at the same time, later ones may be among them, and
    /// those that another program looks at when this one comes to the end are left out.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::rabbitmq::RabbitQueue) -> Result<(), Box<dyn std::error::Error>> {
    /// let replayed = queue.replay_all(|dead| !dead.reason.starts_with("not valid JSON")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if a request failed, or if there are more than a million: [`RabbitError::Stopped`] if some were
    /// replayed before it. One item may then be both in the queue and among the dead letters.
    pub async fn replay_all(
        &self,
        which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
    ) -> Result<u64, RabbitError> {
        self.take_all(Fate::Replayed, which).await
    }

    /// Removes the items that were given up and for which the function says so. It takes them as
    /// [`replay_all`](Self::replay_all) does. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if a request failed, or if there are more than a million: [`RabbitError::Stopped`] if some were
    /// removed before it.
    pub async fn drop_all_dead_letters(
        &self,
        which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
    ) -> Result<u64, RabbitError> {
        self.take_all(Fate::Dropped, which).await
    }

    async fn take_all(
        &self,
        fate: Fate,
        which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
    ) -> Result<u64, RabbitError> {
        let there = self.backlog().await?.dead_letters.unwrap_or_default();
        let (publisher, channel) = self.shared.channel().await?;
        let mut taken = 0;
        let walked = self.shared.take_dead((&publisher, &channel), there, fate, which, &mut taken);
        let walked = walked.await;
        let closed = self.shared.close(channel).await;
        match walked.and(closed) {
            Err(source) if taken > 0 => {
                Err(RabbitError::Stopped { taken, source: Box::new(source) })
            }
            done => done.map(|()| taken),
        }
    }

    /// Removes an item that was given up. Returns whether there was one with this id. It looks for it as
    /// [`dead_letters`](RabbitQueue::dead_letters) does.
    ///
    /// # Errors
    ///
    /// [`RabbitError`] if a request failed.
    pub async fn drop_dead_letter(&self, id: &str) -> Result<bool, RabbitError> {
        let (_publisher, channel) = self.shared.channel().await?;
        let found = self.shared.find_dead(&channel, id).await?;
        if let Some(found) = &found {
            self.shared.ack(&channel, found.delivery.delivery_tag).await?;
        }
        self.shared.close(channel).await?;
        Ok(found.is_some())
    }
}

impl Shared {
    /// The connection of pushes.
    async fn publisher(&self) -> Result<Arc<Publisher>, RabbitError> {
        let limit = self.options.timeout;
        let kept = timeout(limit.saturating_mul(2), self.publisher.lock());
        let mut kept = kept.await.map_err(|_| RabbitError::Timeout("connecting"))?;
        if let Some(publisher) = kept.as_ref().filter(|publisher| publisher.is_open()) {
            return Ok(publisher.clone());
        }
        // The old one is closed before, so that there are never two.
        *kept = None;
        let opened = Publisher::connect(&self.publisher_dialer, &self.names, &self.options).await?;
        Ok(kept.insert(opened).clone())
    }

    /// Makes what is missing at the server. Returns the connection of pushes, which is another one if this one opens no
    /// channel any more.
    async fn prepare(&self, publisher: Arc<Publisher>) -> Result<Arc<Publisher>, RabbitError> {
        match publisher.prepare(&self.names, &self.options).await {
            // A new one begins with it.
            Err(RabbitError::NoChannel) => self.publisher().await,
            prepared => prepared.map(|()| publisher),
        }
    }

    /// The connection of pushes, and a channel on it. It connects anew when the connection opens none any more.
    async fn channel(&self) -> Result<(Arc<Publisher>, Channel), RabbitError> {
        let mut publisher = self.publisher().await?;
        let channel = match publisher.open_channel().await {
            Err(RabbitError::NoChannel) => {
                publisher = self.publisher().await?;
                publisher.open_channel().await?
            }
            opened => opened?,
        };
        Ok((publisher, channel))
    }

    async fn close(&self, channel: Channel) -> Result<(), RabbitError> {
        let closed = channel.close(200, "done".into());
        within(self.options.timeout, "closing a channel", closed).await
    }

    async fn backlog(&self, channel: &Channel) -> Result<Backlog, RabbitError> {
        let limit = self.options.timeout;
        let items = declared(channel, &self.names.queue, limit).await?;
        let dead_letters = declared(channel, &self.names.dead, limit).await?;
        Ok(Backlog {
            items: Some(items.into()),
            oldest: None,
            dead_letters: Some(dead_letters.into()),
            ..Backlog::default()
        })
    }

    /// Takes the next dead letter.
    async fn get_dead(&self, channel: &Channel) -> Result<Option<BasicGetMessage>, RabbitError> {
        let got = channel.basic_get(self.names.dead.clone(), BasicGetOptions { no_ack: false });
        within(self.options.timeout, "reading dead letters", got).await
    }

    /// Takes the dead letters away for which the function says so, of as many as are there. The others are given back when
    /// the channel is closed.
    async fn take_dead(
        &self,
        (publisher, channel): (&Publisher, &Channel),
        there: u64,
        fate: Fate,
        mut which: impl FnMut(&DeadLetter<Arc<str>>) -> bool,
        taken: &mut u64,
    ) -> Result<(), RabbitError> {
        let mut walk = Walk::default();
        for looked in 0..there {
            let Some(got) = self.get_dead(channel).await? else { break };
            if looked >= MOST_WALKED {
                return Err(RabbitError::TooManyDead { looked: CHOSEN });
            }
            let message = got.delivery;
            let name = walk.name(&format::dead_id(&message.properties, &message.data));
            let dead = format::dead_letter(name, &message.properties, message.data.into());
            if !which(&dead) {
                continue;
            }
            if fate == Fate::Replayed {
                let payload = &dead.item.payload;
                self.push_again(publisher, &message.properties, payload).await?;
            }
            self.ack(channel, message.delivery_tag).await?;
            *taken += 1;
        }
        Ok(())
    }

    /// Adds a dead letter to the queue as a new item. Returns its id.
    async fn push_again(
        &self,
        publisher: &Publisher,
        properties: &BasicProperties,
        payload: &[u8],
    ) -> Result<Arc<str>, RabbitError> {
        let properties = format::for_replay(properties, &random_id(), now());
        let id = properties.message_id().as_ref().map(ToString::to_string);
        let to = (&ShortString::default(), &self.names.queue);
        publisher.push_again(to, properties, payload).await?;
        Ok(id.unwrap_or_default().into())
    }

    async fn find_dead(
        &self,
        channel: &Channel,
        id: &str,
    ) -> Result<Option<BasicGetMessage>, RabbitError> {
        let mut walk = Walk::default();
        for _ in 0..MOST_DEAD {
            let Some(got) = self.get_dead(channel).await? else { break };
            let name = walk.name(&format::dead_id(&got.delivery.properties, &got.delivery.data));
            if &*name == id {
                return Ok(Some(got));
            }
        }
        Ok(None)
    }

    /// Acknowledges a dead letter.
    async fn ack(&self, channel: &Channel, tag: u64) -> Result<(), RabbitError> {
        let acked = channel.basic_ack(tag, BasicAckOptions::default());
        within(self.options.timeout, "removing a dead letter", acked).await
    }
}
