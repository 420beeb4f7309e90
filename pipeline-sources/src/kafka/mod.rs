//! A topic of Kafka as a durable queue, read by a group of consumers.
//!
//! ```no_run
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Message, Processors},
//! };
//! use pipeline_sources::{Item, SourceOptions, kafka::KafkaQueue};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The topics `orders` and `orders.dead-letters` exist.
//! let queue = KafkaQueue::open("localhost:9092", "orders", "billing").await?;
//!
//! // When it returns, all replicas in sync have the item.
//! queue.push(Item::new(r#"{"id": 7}"#).key("customer 12")).await?;
//!
//! let handle = async |order: &mut Message<serde_json::Value>| {
//!     println!("order {}", order["id"]);
//!     Ok(())
//! };
//! let pipeline = Pipeline::of_messages("orders")
//!     .source(queue.source(SourceOptions::new()).json::<serde_json::Value>())
//!     .processors(Processors::from_fn(handle))
//!     .start()?;
//! # pipeline.drain(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Offsets
//!
//! Kafka keeps one number for each partition and group: the offset up to which everything is done. So
//! items may be handled in any order, and the offset follows as far as everything before it is done. What
//! was done beyond it is delivered again after the death of the process. It is at most
//! [`max_uncommitted`](KafkaOptions::max_uncommitted) items for each partition, and those that are not done
//! have at most [`max_uncommitted_bytes`](KafkaOptions::max_uncommitted_bytes).
//!
//! An item that has failed is kept in the process and delivered again from there after its delay. Until
//! then its partition's offset stays before it, while later items are handled. So nothing is lost and no
//! other topic is needed, but a partition with an item that waits for its fifth try for minutes has much to
//! deliver again if its process dies meanwhile. A retry topic would let the offset go on, and would cost
//! the order of the items, two more writes, and a topic for each delay.
//!
//! Kafka does not count deliveries. The count is the one of the process that has the partition, and begins
//! anew after a rebalance or a death. So an item that kills its process each time is never given up.
//!
//! # Groups
//!
//! Any number of sources share a topic, each with some of its partitions. When a partition goes to another
//! source, the first one delivers nothing more of it, waits for the outcomes of what is in work as long as
//! [`revoke_wait`](KafkaOptions::revoke_wait) says, commits, and gives it up then. Outcomes that come later
//! change nothing: the other source delivers the items again.
//!
//! There is no lease. A source has its partitions as long as its process lives, also while a handler takes
//! hours. A drain waits until it has left the group, five seconds at most, and others get its partitions at once. When
//! a process dies, or ends without a drain, they get them after the group's session timeout, which is 45 seconds by
//! default. (The mock cluster of the client library lets the next member wait for as long, also when the last one has
//! left.)
//!
//! # Records
//!
//! | item | record |
//! | --- | --- |
//! | payload | value. A record without one is malformed |
//! | key | key, as UTF-8. Another one is malformed. Kafka chooses the partition by it |
//! | headers | headers, as UTF-8. Others are left out of the item |
//! | trace | the header `traceparent` |
//! | when it was added | timestamp |
//!
//! Another program can add a record with a value only. Names of headers that begin with `pipeline-` are the
//! library's.
//!
//! # Dead letters
//!
//! An item that is given up is written to another topic, `<topic>.dead-letters` if the options name none,
//! and only then counts as done. The record has the item's value and headers, its key in `pipeline-key`,
//! and `pipeline-reason`, `pipeline-deliveries`, `pipeline-enqueued-at`, `pipeline-given-up-at` (in
//! milliseconds since 1970) and `pipeline-from`. If it is too large with them, the value is left out, and
//! is still at the place that `pipeline-from` names; if it is too large without, the headers are left out too.
//! The reason says so.
//!
//! While it cannot be written, as when the topic is gone, the offset of the item's partition stays before it.
//! Later items are handled as far as [`max_uncommitted`](KafkaOptions::max_uncommitted) allows, and other
//! partitions are not concerned. A source does not need the topic to begin.
//!
//! Kafka removes no single record. A dead letter that was replayed or dropped is marked by a record of the
//! same key without a value, and no longer listed. In a topic with `cleanup.policy=compact` Kafka then
//! removes both. Without it, dead letters end with the topic's retention, whether they were looked at or
//! not. A listing reads the topic to its end, because the marks are there.
//!
//! # Building
//!
//! The client is librdkafka, in C, built with `make` and a C compiler; it reads what was compressed with
//! gzip, snappy or LZ4. A program that needs TLS, SASL or Zstandard adds `rdkafka` to its own dependencies
//! with `ssl`, `sasl` or `zstd`, and the settings with [`KafkaOptions::set`].

mod broker;
mod consumer;
mod dead_letters;
mod format;
mod options;
mod tracker;

use std::{
    fmt,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use pipeline_core::telemetry::Telemetry;
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    client::Client,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer},
};
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

pub use self::{
    broker::{KafkaBroker, KafkaFetch, KafkaSettle},
    format::{KafkaId, NoKafkaId},
    options::KafkaOptions,
    tracker::KafkaReceipt,
};
use self::{
    consumer::Setup,
    format::{ToWrite, own_header, to_write},
};
use crate::{
    broker::{Backlog, BrokerError},
    item::Item,
    metrics::Refusals,
    options::SourceOptions,
    source::Source,
};

/// How many items of a call are under way together.
const PUSHED_AT_ONCE: usize = 10_000;

/// Why a call of a Kafka queue failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// The client or a broker refused it, or could not be reached.
    #[error("Kafka: {0}")]
    Client(#[source] ClientError),
    /// A topic cannot be used.
    #[error("the topic {topic} cannot be used: {code}")]
    Topic {
        /// The topic.
        topic: Arc<str>,
        /// Why.
        code: RDKafkaErrorCode,
    },
    /// There was no answer in time.
    #[error("Kafka has not answered within {0:?}")]
    Timeout(Duration),
    /// The name of an item's header is one of the library's.
    #[error("the header {0} is the library's")]
    OwnHeader(Arc<str>),
    /// The thread of a consumer could not be started.
    #[error("cannot start the thread of the consumer")]
    Thread(#[source] Arc<std::io::Error>),
    /// The consumer has ended.
    #[error("the consumer has ended")]
    Ended,
}

impl From<ClientError> for KafkaError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<KafkaError> for BrokerError {
    fn from(error: KafkaError) -> Self {
        Self::new(Box::<dyn std::error::Error + Send + Sync>::from(error))
    }
}

/// A topic, and the group of consumers that reads it.
///
/// Cheap to clone. Items of a partition are delivered in their order; those of a key are in one partition.
/// With several processors they may be handled in another order, and after a retry, unless the queue is
/// [ordered by key](KafkaOptions::ordered_by_key).
#[derive(Clone)]
pub struct KafkaQueue(Arc<Inner>, Refusals);

struct Inner {
    servers: String,
    topic: Arc<str>,
    group: String,
    options: KafkaOptions,
    dead_topic: Arc<str>,
    producer: Mutex<Option<Writer>>,
    /// A consumer that asks for offsets and joins no group.
    viewer: Mutex<Option<Arc<Viewer>>>,
}

type Writer = FutureProducer<Quiet>;
type Viewer = BaseConsumer<Quiet>;

impl fmt::Debug for KafkaQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { servers, topic, group, .. } = &*self.0;
        f.debug_struct("KafkaQueue")
            .field("servers", servers)
            .field("topic", topic)
            .field("group", group)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let clients = (self.producer.get_mut().take(), self.viewer.get_mut().take());
        // The client's threads are waited for. If there can be no thread, the clients end here.
        let _ = thread::Builder::new().name("kafka-end".into()).spawn(move || drop(clients));
    }
}

/// Logs what a client says.
#[derive(Clone, Debug)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        consumer::log(level, facility, message);
    }

    fn error(&self, _: ClientError, reason: &str) {
        consumer::log(RDKafkaLogLevel::Debug, "error", reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

impl KafkaQueue {
    /// Opens the queue of a topic and a group with default options. The servers are written as `host:port`,
    /// with commas between them.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if no server answers, or the topic or the one of its dead letters does not exist.
    pub async fn open(
        servers: impl Into<String>,
        topic: impl Into<Arc<str>>,
        group: impl Into<String>,
    ) -> Result<Self, KafkaError> {
        Self::open_with(servers, topic, group, KafkaOptions::new()).await
    }

    /// Opens the queue of a topic and a group.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), or if the client refuses a setting.
    pub async fn open_with(
        servers: impl Into<String>,
        topic: impl Into<Arc<str>>,
        group: impl Into<String>,
        options: KafkaOptions,
    ) -> Result<Self, KafkaError> {
        let queue = Self::new(servers, topic, group, options);
        queue.probe(true).await?;
        Ok(queue)
    }

    /// The queue of a topic and a group, without a look at whether it is there. A source connects when the
    /// servers can be reached.
    #[must_use]
    pub fn new(
        servers: impl Into<String>,
        topic: impl Into<Arc<str>>,
        group: impl Into<String>,
        options: KafkaOptions,
    ) -> Self {
        let topic = topic.into();
        let dead_topic = options.dead_letters.clone();
        let dead_topic = dead_topic.unwrap_or_else(|| format!("{topic}.dead-letters").into());
        let refusals = Refusals::register("kafka", &topic);
        let inner = Inner {
            servers: servers.into(),
            topic,
            group: group.into(),
            options,
            dead_topic,
            producer: Mutex::new(None),
            viewer: Mutex::new(None),
        };
        Self(Arc::new(inner), refusals)
    }

    /// Counts what this handle, and clones of it, cannot add at this recorder, as `pipeline.source.refused`.
    /// Default: the global recorder, as there is one when the queue is opened.
    #[must_use]
    pub fn telemetry(self, telemetry: &Telemetry) -> Self {
        let refusals = Refusals::at(telemetry, "kafka", &self.0.topic);
        Self(self.0, refusals)
    }

    /// The name of the topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// Adds an item. When it returns the item's place, all replicas in sync have it. Many items may be
    /// pushed at the same time, and are then written together.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if it could not be stored, or was not confirmed in time: then it may be added later.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the item may be added or not.
    pub async fn push(&self, item: Item) -> Result<KafkaId, KafkaError> {
        let pushed = self.push_item(item).await;
        if let Err(error) = &pushed {
            self.1.count(1, is_full(error));
        }
        pushed
    }

    async fn push_item(&self, item: Item) -> Result<KafkaId, KafkaError> {
        if let Some(name) = own_header(&item) {
            return Err(KafkaError::OwnHeader(name));
        }
        self.write(&self.0.topic, None, &to_write(&item)).await
    }

    /// Adds items, written together. Those of a key keep their order. If it fails, some may be added.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub async fn push_all(&self, items: Vec<Item>) -> Result<Vec<KafkaId>, KafkaError> {
        let (number, mut ids) = (items.len(), Vec::with_capacity(items.len()));
        let mut pushing =
            stream::iter(items).map(|item| self.push_item(item)).buffered(PUSHED_AT_ONCE);
        while let Some(pushed) = pushing.next().await {
            match pushed {
                Ok(id) => ids.push(id),
                Err(error) => {
                    // Whether those behind it are added is not known.
                    self.1.count(number.saturating_sub(ids.len()), is_full(&error));
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }

    /// A source of the queue's items. A queue may have several, in any number of processes, up to one for
    /// each partition.
    #[must_use]
    pub fn source(&self, options: SourceOptions) -> Source<KafkaBroker> {
        Source::new(self.broker(), options)
    }

    /// What a source reads from. Each is one consumer of the group.
    #[must_use]
    pub fn broker(&self) -> KafkaBroker {
        KafkaBroker::new(self.clone())
    }

    /// How many items there are that are not done. After transactions of other programs there seem to be a
    /// few more. Kafka does not tell how old they are, nor how many dead letters there are. A source knows how
    /// old the oldest item is that it has read and that is not done, and shows this.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if the servers do not answer.
    pub async fn backlog(&self) -> Result<Backlog, KafkaError> {
        let items = self.waiting(None).await?;
        Ok(Backlog { items, ..Backlog::default() })
    }

    /// How many items of these partitions, or of all, are not committed. `None` if a broker does not tell.
    async fn waiting(&self, partitions: Option<Vec<i32>>) -> Result<Option<u64>, KafkaError> {
        self.blocking(move |queue| queue.count_waiting(partitions)).await
    }

    fn count_waiting(&self, partitions: Option<Vec<i32>>) -> Result<Option<u64>, KafkaError> {
        let Inner { topic, options, .. } = &*self.0;
        let viewer = self.viewer()?;
        let partitions = match partitions {
            Some(partitions) => partitions,
            None => self.partitions(viewer.client(), topic)?,
        };
        if partitions.is_empty() {
            return Ok(Some(0));
        }
        let list = |offset| {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            let add = |it: &i32| list.add_partition_offset(topic, *it, offset);
            partitions.iter().try_for_each(add).map(|()| list)
        };
        let time = options.call_timeout;
        let ends = viewer.offsets_for_times(list(Offset::End)?, time)?;
        let done = viewer.committed_offsets(list(Offset::Invalid)?, time)?;
        let begun = viewer.offsets_for_times(list(Offset::Beginning)?, time)?;
        let offset = |list: &TopicPartitionList, partition| {
            let one = list.find_partition(topic, partition)?;
            one.error().ok()?;
            one.offset().to_raw().filter(|offset| *offset >= 0)
        };
        let waiting = partitions.iter().map(|partition| {
            let begun = offset(&begun, *partition)?;
            let done = offset(&done, *partition).unwrap_or(begun).max(begun);
            u64::try_from(offset(&ends, *partition)? - done).ok()
        });
        Ok(waiting.sum())
    }

    /// Whether the servers answer, and the topic is there, and that of the dead letters if it is asked for.
    async fn probe(&self, dead: bool) -> Result<(), KafkaError> {
        let look = move |queue: Self| {
            let writer = queue.writer()?;
            queue.partitions(writer.client(), &queue.0.topic)?;
            if dead {
                queue.partitions(writer.client(), &queue.0.dead_topic)?;
            }
            Ok(())
        };
        self.blocking(look).await
    }

    /// The numbers of a topic's partitions.
    fn partitions<C: ClientContext>(
        &self,
        client: &Client<C>,
        topic: &Arc<str>,
    ) -> Result<Vec<i32>, KafkaError> {
        let metadata = client.fetch_metadata(Some(topic), self.0.options.call_timeout)?;
        let found = metadata.topics().iter().find(|it| *it.name() == **topic);
        let unknown = RDKafkaErrorCode::UnknownTopicOrPartition;
        let refused = |code| KafkaError::Topic { topic: topic.clone(), code };
        let found = found.ok_or_else(|| refused(unknown))?;
        if let Some(code) = found.error() {
            return Err(refused(code.into()));
        }
        Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
    }

    /// Writes a record, and waits until it is durable.
    async fn write(
        &self,
        topic: &str,
        partition: Option<i32>,
        record: &ToWrite,
    ) -> Result<KafkaId, KafkaError> {
        let (writer, time) = (self.writer()?, self.0.options.push_timeout);
        let to_send = FutureRecord {
            topic,
            partition,
            payload: record.payload.as_deref(),
            key: record.key.as_deref(),
            timestamp: None,
            headers: Some(record.headers.clone()),
        };
        // The client waits for room in its queue, and then for the servers, each that long.
        let longest = time.saturating_mul(2).saturating_add(Duration::from_secs(1));
        let sent = timeout(longest, writer.send(to_send, time)).await;
        match sent {
            Ok(Ok(written)) => Ok(KafkaId { partition: written.partition, offset: written.offset }),
            Ok(Err((error, _))) => {
                if writer.client().fatal_error().is_some() {
                    *self.0.producer.lock() = None;
                }
                Err(error.into())
            }
            Err(_) => Err(KafkaError::Timeout(longest)),
        }
    }

    fn writer(&self) -> Result<Writer, KafkaError> {
        let mut producer = self.0.producer.lock();
        if let Some(writer) = &*producer {
            return Ok(writer.clone());
        }
        let mut config = self.config();
        let time = self.0.options.push_timeout.as_millis().max(10).to_string();
        config.set("acks", "all").set("enable.idempotence", "true");
        config.set("message.timeout.ms", time).set("linger.ms", "1");
        let writer = Writer::from_config_and_context(&config, Quiet)?;
        *producer = Some(writer.clone());
        Ok(writer)
    }

    fn viewer(&self) -> Result<Arc<Viewer>, KafkaError> {
        let mut viewer = self.0.viewer.lock();
        let open = match &*viewer {
            Some(open) => open.clone(),
            None => {
                let open = Arc::new(Viewer::from_config_and_context(&self.viewer_config(), Quiet)?);
                *viewer = Some(open.clone());
                open
            }
        };
        drop(viewer);
        // Errors that nothing else reads.
        while open.poll(Duration::ZERO).is_some() {}
        Ok(open)
    }

    /// The settings of every client.
    fn config(&self) -> ClientConfig {
        let Inner { servers, options, .. } = &*self.0;
        let mut config = ClientConfig::new();
        let time = options.call_timeout.as_millis().max(10).to_string();
        config.set("bootstrap.servers", servers).set("socket.timeout.ms", time);
        config.set("log_level", "6");
        for (name, value) in &options.settings {
            config.set(name, value);
        }
        config
    }

    /// The settings of a consumer that joins no group. It needs one to ask for its offsets.
    fn viewer_config(&self) -> ClientConfig {
        let mut config = self.config();
        for of_members in ["group.protocol", "group.instance.id", "group.remote.assignor"] {
            config.remove(of_members);
        }
        config.set("group.id", &self.0.group).set("enable.auto.commit", "false");
        config
    }

    /// The settings of a consumer of the group.
    fn consumer_config(&self) -> ClientConfig {
        let Inner { group, options, .. } = &*self.0;
        let mut config = ClientConfig::new();
        // In kibibytes. The client keeps as many for each partition, and asks for no more at a time.
        let ahead = options.prefetch.div_ceil(1024).max(1);
        config.set("queued.max.messages.kbytes", ahead.to_string());
        config.set("fetch.message.max.bytes", (ahead * 1024).to_string());
        config.set("fetch.wait.max.ms", "100").set("fetch.error.backoff.ms", "100");
        // How long the client waits with the next fetch when it holds that much, a second by default.
        config.set("fetch.queue.backoff.ms", "10");
        let by_server = options.settings.get("group.protocol").is_some_and(|it| it == "consumer");
        if !by_server {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        for (name, value) in self.config().config_map() {
            config.set(name, value);
        }
        // What the source's promises depend on.
        config.set("group.id", group).set("auto.offset.reset", "earliest");
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "false");
        config
    }

    fn setup(&self) -> Setup {
        let Inner { topic, options, .. } = &*self.0;
        Setup {
            topic: topic.clone(),
            max_uncommitted: options.max_uncommitted,
            max_bytes: options.max_uncommitted_bytes,
            call_timeout: options.call_timeout,
            revoke_wait: options.revoke_wait,
        }
    }

    /// Calls a function that blocks, where it may.
    async fn blocking<R: Send + 'static>(
        &self,
        call: impl FnOnce(Self) -> Result<R, KafkaError> + Send + 'static,
    ) -> Result<R, KafkaError> {
        let queue = self.clone();
        spawn_blocking(move || call(queue)).await.unwrap_or(Err(KafkaError::Ended))
    }
}

/// The wall clock, where it is written down.
fn now() -> SystemTime {
    crate::clock::now()
}

/// Whether there is no room for a record in the client, which waits for the servers.
fn is_full(error: &KafkaError) -> bool {
    let KafkaError::Client(error) = error else { return false };
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
}

/// Whether a record is larger than the client or a server accepts.
fn is_too_large(error: &KafkaError) -> bool {
    let KafkaError::Client(error) = error else { return false };
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

/// A deadline, as far as it can be reckoned.
fn deadline(after: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(after).unwrap_or(now)
}
