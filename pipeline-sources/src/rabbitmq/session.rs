//! A session of a source: a consumer that stays open, and outcomes.

use std::{
    borrow::Cow,
    collections::{
        HashMap, VecDeque,
        btree_map::{BTreeMap, Entry},
    },
    convert::Infallible,
    fmt,
    hash::{Hash, Hasher},
    mem::replace,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared as SharedFuture, join_all, try_join, try_join_all},
    stream::BoxStream,
};
use lapin::{
    BasicProperties, Channel, Consumer, Event,
    message::Delivery as Delivered,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::{FieldTable, ShortString},
};
use parking_lot::Mutex as Lock;
use pipeline_core::Deadline;
use tokio::{
    sync::{Mutex, Notify},
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    RabbitError, RabbitQueue, Shared,
    flow::{Flow, Limits, Need},
    format::{self, Counts, Death},
    link::{ADDING, Owned, Publisher, declared, open_channel, prepare, within},
    random_id,
    transport::Received,
};
use crate::{
    broker::{
        Ahead, Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement, Wanted,
    },
    clock::now,
    item::Delivery,
};

/// How long a fetch that has got items waits for more of those that are there.
const GATHER: Duration = Duration::from_millis(3);

/// How long a fetch waits for an acknowledgement when the server may deliver nothing more to the consumer.
const FULL: Duration = Duration::from_millis(100);

const CONSUMING: &str = "consuming items";

/// How many fetches are for one item after a connection was lost while items were delivered.
const CAREFUL: usize = 20;

/// The longest delay of a retry, in milliseconds: 30 days.
const LONGEST_DELAY: u64 = 30 * 24 * 3600 * 1000;

/// What identifies a delivery: its tag in its session. It has the message too, for the server cannot be asked
/// for it again.
#[derive(Clone)]
pub struct RabbitReceipt {
    session: u64,
    tag: u64,
    message: Arc<Kept>,
}

/// The message of a delivery.
struct Kept {
    id: Arc<str>,
    properties: BasicProperties,
    payload: Bytes,
    counts: Counts,
    /// When it was added, or was first delivered if its message does not tell.
    added: SystemTime,
    /// Its id as a dead letter, also if it has to be added as one several times.
    dead_id: OnceLock<Arc<str>>,
}

impl PartialEq for RabbitReceipt {
    fn eq(&self, other: &Self) -> bool {
        (self.session, self.tag) == (other.session, other.tag)
    }
}

impl Eq for RabbitReceipt {}

impl Hash for RabbitReceipt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.session, self.tag).hash(state);
    }
}

impl fmt::Debug for RabbitReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitReceipt")
            .field("session", &self.session)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// What the halves of a session share. The connection is closed when it is dropped, and the server delivers
/// again what was not acknowledged.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    number: u64,
    /// What items are delivered and acknowledged on.
    channel: Channel,
    /// The items that are not acknowledged.
    flow: Lock<Flow>,
    /// Says that items were acknowledged.
    acknowledged: Notify,
    /// Held while the server learns what became of items.
    telling: Mutex<()>,
    /// What the server is asked on. It closes it if a queue is missing, and then another is opened.
    asking: Mutex<Channel>,
    /// The messages that are added again, by the tags of their deliveries. One whose confirmation takes long
    /// is waited for the next time, for it may have been stored.
    adding: Lock<HashMap<u64, Adding>>,
    connection: Owned,
    /// What the connection has received.
    received: Received,
    /// Whether the source takes nothing more, and ends when all outcomes are stored.
    is_ending: AtomicBool,
}

/// A message that is added again.
type Adding = SharedFuture<BoxFuture<'static, Result<(), RabbitError>>>;

impl Broker for RabbitQueue {
    type Receipt = RabbitReceipt;
    type Fetch = RabbitFetch;
    type Settle = RabbitSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the queue {} of RabbitMQ", self.name()).into()
    }

    async fn connect(&self) -> Result<(RabbitFetch, RabbitSettle), BrokerError> {
        let shared = self.shared.clone();
        let (connection, received) = shared.dialer.connect().await?;
        let connection = Owned::new(connection, shared.options.timeout);
        prepare(&connection, &shared.names, &shared.options).await?;
        let open = || open_channel(&connection, shared.options.timeout);
        let (channel, asking) = (open().await?, open().await?);
        let number = shared.sessions.fetch_add(1, SeqCst);
        let limits =
            Limits { items: shared.options.max_prefetch, bytes: shared.options.max_prefetch_bytes };
        let flow = Flow::new(limits, Instant::now()).expecting(shared.mean.load(SeqCst));
        let events = connection.events_listener().boxed();
        let connection = connection.with_consumers(channel.clone());
        let session = Arc::new(Session {
            shared,
            number,
            channel,
            flow: Lock::new(flow),
            acknowledged: Notify::new(),
            telling: Mutex::new(()),
            asking: Mutex::new(asking),
            adding: Lock::default(),
            connection,
            received,
            is_ending: AtomicBool::new(false),
        });
        let fetch = RabbitFetch {
            session: session.clone(),
            consumers: 0,
            feed: Feed::Closed,
            events,
            need: None,
            taken: VecDeque::new(),
        };
        Ok((fetch, RabbitSettle(session)))
    }

    fn lease(&self) -> Option<Duration> {
        None
    }

    fn outlives_sessions(&self) -> bool {
        false
    }
}

/// Takes items from a queue.
pub struct RabbitFetch {
    session: Arc<Session>,
    /// How many consumers there were in this session.
    consumers: u64,
    feed: Feed,
    /// The events of the connection.
    events: BoxStream<'static, Event>,
    /// What is needed, as the source has said before a fetch.
    need: Option<Need>,
    /// What was taken and not returned yet.
    taken: VecDeque<Delivered>,
}

/// What items are delivered to. It is kept between fetches, and nothing is lost when one is dropped.
enum Feed {
    Closed,
    Opening(BoxFuture<'static, Result<Consumer, RabbitError>>),
    Open(Consumer),
    /// The server has been told to deliver nothing more. What it had delivered before is still to be taken.
    Cancelled(Consumer),
}

impl fmt::Debug for RabbitFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitFetch").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Drop for RabbitFetch {
    fn drop(&mut self) {
        let mean = self.session.flow.lock().mean();
        self.session.shared.mean.store(mean, SeqCst);
        let is_lost = !self.session.is_connected();
        if is_lost && matches!(self.feed, Feed::Open(_) | Feed::Cancelled(_)) {
            self.session.shared.careful.store(CAREFUL, SeqCst);
        }
    }
}

impl Fetch for RabbitFetch {
    type Receipt = RabbitReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<RabbitReceipt>>, BrokerError> {
        let session = self.session.clone();
        // One of the items may be what the client library cannot read. The others are not delivered with it.
        let careful = session.shared.careful.load(SeqCst);
        let max = if careful > 0 { 1 } else { max };
        let taken = self.take(max, careful > 0).await;
        let taken = taken.map_err(|error| session.explained(error));
        match &taken {
            Ok(_) if careful > 0 => session.shared.careful.store(careful - 1, SeqCst),
            // These are of no item that cannot be read.
            Ok(_) | Err(RabbitError::Cancelled | RabbitError::ConsumerTimeout) => {}
            Err(_) => session.shared.careful.store(CAREFUL, SeqCst),
        }
        Ok(taken?)
    }

    fn wanted(&mut self, wanted: Wanted) {
        let in_work = wanted.in_work.saturating_add(wanted.items);
        self.need = Some(Need { in_work, set_aside: wanted.set_aside });
    }

    async fn idle(&mut self) -> BrokerError {
        let Err(error) = self.watch().await;
        self.session.explained(error).into()
    }

    async fn stop(&mut self) {
        self.session.is_ending.store(true, SeqCst);
        // What cannot be given back now is so when the connection is closed.
        let _ = timeout(self.session.shared.options.timeout, self.give_back()).await;
    }
}

impl RabbitFetch {
    /// Takes up to `max` items, and waits until there is at least one. It returns none when the server delivers
    /// nothing more, so that it is called again with what is asked for then.
    async fn take(
        &mut self,
        max: usize,
        is_careful: bool,
    ) -> Result<Vec<Delivery<RabbitReceipt>>, RabbitError> {
        let session = self.session.clone();
        session.check()?;
        // The task of the source takes outcomes that have come before the demand.
        yield_now().await;
        let need = self.need.take().unwrap_or_else(|| {
            let in_work = session.flow.lock().held().saturating_add(max);
            Need { in_work, set_aside: 0 }
        });
        if !is_careful && matches!(self.feed, Feed::Open(_)) {
            let is_replaced = session.flow.lock().replaces(need, Instant::now());
            if is_replaced {
                self.cancel()?;
            }
        }
        let patience = Deadline::from_now(FULL);
        let mut gathering = None;
        while self.taken.len() < max {
            let first = self.taken.is_empty();
            let consumer = match &mut self.feed {
                Feed::Closed if !first => break,
                Feed::Closed if !session.flow.lock().may_open() => {
                    if patience.limit(session.acknowledged.notified()).await.is_err() {
                        break;
                    }
                    session.check()?;
                    continue;
                }
                Feed::Closed => {
                    let now = Instant::now();
                    let mut flow = session.flow.lock();
                    let prefetch =
                        if is_careful { flow.open_with(1, now) } else { flow.open(need, now) };
                    drop(flow);
                    self.open(prefetch);
                    continue;
                }
                Feed::Opening(_) => {
                    self.opened().await?;
                    continue;
                }
                Feed::Cancelled(_) if first => {
                    self.take_last().await?;
                    continue;
                }
                Feed::Open(consumer) | Feed::Cancelled(consumer) => consumer,
            };
            let next = match consumer.next().now_or_never() {
                Some(next) => next,
                None if first && session.flow.lock().is_full() => {
                    // Items that are done are acknowledged soon.
                    if patience.limit(session.acknowledged.notified()).await.is_ok() {
                        continue;
                    }
                    break;
                }
                None if first => next_delivery(consumer, &mut self.events).await,
                None if session.flow.lock().is_full() => break,
                None => {
                    let gathering = *gathering.get_or_insert_with(|| Deadline::from_now(GATHER));
                    let Ok(next) = gathering.limit(consumer.next()).await else { break };
                    next
                }
            };
            self.taken(next)?;
        }
        if is_careful && matches!(self.feed, Feed::Open(_)) {
            self.cancel()?;
        }
        let count = self.taken.len().min(max);
        let taken: Vec<_> = self.taken.drain(..count).collect();
        let mut flow = session.flow.lock();
        taken.iter().for_each(|delivered| flow.returned(delivered.delivery_tag));
        drop(flow);
        Ok(taken.into_iter().map(|delivered| session.delivery(delivered)).collect())
    }

    /// Takes items that nothing asks for yet, and returns the error with which the session has ended.
    async fn watch(&mut self) -> Result<Infallible, RabbitError> {
        loop {
            self.session.check()?;
            let is_too_large = self.session.flow.lock().is_too_large();
            if is_too_large && matches!(self.feed, Feed::Open(_)) {
                self.cancel()?;
            }
            match &mut self.feed {
                Feed::Closed => match self.events.next().await {
                    Some(Event::Error(error)) if self.session.check().is_err() => {
                        return Err(RabbitError::new(CONSUMING, error));
                    }
                    // It is of another channel.
                    Some(_) => {}
                    None => return Err(RabbitError::Closed),
                },
                Feed::Opening(_) => self.opened().await?,
                Feed::Cancelled(_) => self.take_last().await?,
                Feed::Open(consumer) => {
                    let next = next_delivery(consumer, &mut self.events).await;
                    self.taken(next)?;
                }
            }
        }
    }

    /// Takes an item of a cancelled consumer, or closes it after its last one.
    async fn take_last(&mut self) -> Result<(), RabbitError> {
        let Feed::Cancelled(consumer) = &mut self.feed else { return Ok(()) };
        let Session { shared, received, .. } = &*self.session;
        // The server confirms it behind what it has delivered, which may be much.
        let next = received.then(shared.options.timeout, consumer.next()).await;
        self.taken(next.ok_or(RabbitError::Timeout(CONSUMING))?)
    }

    /// Begins to open a consumer with this prefetch.
    fn open(&mut self, prefetch: u16) {
        self.consumers += 1;
        let tag = ShortString::from(format!("pipeline-{}", self.consumers));
        let Session { shared, channel, .. } = &*self.session;
        let (limit, queue, channel) =
            (shared.options.timeout, shared.names.queue.clone(), channel.clone());
        self.feed = Feed::Opening(Box::pin(async move {
            // The limit is sent first, and its answer is not waited for before the consumer is opened.
            let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue, tag, options, FieldTable::default());
            let (_, consumer) = within(limit, CONSUMING, try_join(qos, consumer)).await?;
            Ok(consumer)
        }));
    }

    /// Waits until a consumer that is being opened is open.
    async fn opened(&mut self) -> Result<(), RabbitError> {
        if let Feed::Opening(opening) = &mut self.feed {
            let opened = opening.await;
            self.feed = Feed::Closed;
            self.feed = Feed::Open(opened?);
        }
        Ok(())
    }

    /// Says that nothing more is to be delivered to the open consumer. It ends when the server has confirmed this.
    fn cancel(&mut self) -> Result<(), RabbitError> {
        self.feed = match replace(&mut self.feed, Feed::Closed) {
            Feed::Open(consumer) => Feed::Cancelled(consumer),
            other => other,
        };
        let Feed::Cancelled(consumer) = &self.feed else { return Ok(()) };
        let channel = &self.session.channel;
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        // It is on its way when it has been polled.
        let sent = cancelled.now_or_never().unwrap_or(Ok(()));
        sent.map_err(|error| RabbitError::new(CONSUMING, error))
    }

    /// Something was delivered, or nothing more is.
    fn taken(&mut self, next: Option<lapin::Result<Delivered>>) -> Result<(), RabbitError> {
        match next {
            Some(Ok(delivered)) => {
                let bytes =
                    format::size(&delivered.properties).saturating_add(delivered.data.len());
                self.session.flow.lock().delivered(delivered.delivery_tag, bytes);
                self.taken.push_back(delivered);
                Ok(())
            }
            Some(Err(error)) => Err(RabbitError::new(CONSUMING, error)),
            None => match replace(&mut self.feed, Feed::Closed) {
                Feed::Cancelled(_) => Ok(()),
                _ => {
                    self.session.check()?;
                    Err(RabbitError::Cancelled)
                }
            },
        }
    }

    /// Closes the consumer, and gives back what was delivered and not returned.
    async fn give_back(&mut self) -> Result<(), RabbitError> {
        loop {
            match &mut self.feed {
                Feed::Closed => break,
                Feed::Opening(_) => self.opened().await?,
                Feed::Open(_) => self.cancel()?,
                Feed::Cancelled(_) => self.take_last().await?,
            }
        }
        let tags: Vec<_> = self.taken.drain(..).map(|it| it.delivery_tag).collect();
        self.session.tell(Vec::new(), tags).await
    }
}

/// Waits for a delivery, or the end of the consumer. Events are forgotten meanwhile: the consumer ends with its
/// channel and its connection.
async fn next_delivery(
    consumer: &mut Consumer,
    events: &mut BoxStream<'static, Event>,
) -> Option<lapin::Result<Delivered>> {
    loop {
        tokio::select! {
            biased;
            next = consumer.next() => return next,
            Some(_) = events.next() => {}
        }
    }
}

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

impl Session {
    fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// An error if the connection or the channel of deliveries is closed.
    fn check(&self) -> Result<(), RabbitError> {
        let is_open = self.is_connected() && self.channel.status().connected();
        if is_open { Ok(()) } else { Err(RabbitError::Closed) }
    }

    /// The error of a call of the channel, or why it was closed while the connection is still there.
    fn explained(&self, error: RabbitError) -> RabbitError {
        let is_closed = !self.channel.status().connected();
        if self.is_connected() && is_closed && error.is_of_a_closed_channel() {
            return RabbitError::ConsumerTimeout;
        }
        error
    }

    fn delivery(&self, delivered: Delivered) -> Delivery<RabbitReceipt> {
        let payload = Bytes::from(delivered.data);
        let told = format::told(&delivered.properties, payload.clone(), delivered.redelivered);
        let id = delivered.properties.message_id().as_ref().map(|id| Arc::from(id.as_str()));
        let id = id.unwrap_or_else(random_id);
        let added = told.enqueued_at.unwrap_or_else(now);
        let kept = Kept {
            id: id.clone(),
            properties: delivered.properties,
            payload,
            counts: told.counts,
            added,
            dead_id: OnceLock::new(),
        };
        let receipt = RabbitReceipt {
            session: self.number,
            tag: delivered.delivery_tag,
            message: Arc::new(kept),
        };
        Delivery {
            receipt,
            id,
            item: told.item,
            enqueued_at: Some(added),
            deliveries: told.counts.deliveries,
            failures: Some(told.counts.failures),
            malformed: told.malformed,
        }
    }

    /// Adds items that have failed where they belong, each on its own. Returns what became of each.
    async fn add_again(&self, failed: &[Failed<'_>]) -> Vec<Result<(), RabbitError>> {
        let publisher = match self.shared.publisher().await {
            Ok(publisher) => publisher,
            Err(error) => return failed.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut queues = BTreeMap::new();
        // The server answers nothing on a connection that it has blocked.
        let failed_now = if publisher.is_blocked() { &[] } else { failed };
        for failed in failed_now {
            let is_added = self.adding.lock().contains_key(&failed.receipt.tag);
            let Some((_, delay)) = failed.again().filter(|_| !is_added) else { continue };
            let group = format::group_of(delay_ms(delay));
            if let Entry::Vacant(queue) = queues.entry(group) {
                queue.insert(publisher.retries(&self.shared.names, group).await);
            }
        }
        let added = failed.iter().map(|failed| self.add_one_again(failed, &publisher, &queues));
        join_all(added).await
    }

    async fn add_one_again(
        &self,
        failed: &Failed<'_>,
        publisher: &Arc<Publisher>,
        queues: &BTreeMap<u64, Result<ShortString, RabbitError>>,
    ) -> Result<(), RabbitError> {
        let tag = failed.receipt.tag;
        let adding = self.adding.lock().get(&tag).cloned();
        let adding = match adding {
            Some(adding) => adding,
            None => {
                if publisher.is_blocked() {
                    return Err(RabbitError::Blocked);
                }
                let again = Again {
                    shared: self.shared.clone(),
                    publisher: publisher.clone(),
                    message: failed.receipt.message.clone(),
                };
                let adding = match (failed.outcome, failed.again()) {
                    (Outcome::GiveUp { reason }, _) => {
                        let reason = reason.clone();
                        async move { again.bury(&reason).await }.boxed().shared()
                    }
                    (_, Some((counts, delay))) => {
                        let queue = queues.get(&format::group_of(delay_ms(delay)));
                        let queue = queue.cloned().unwrap_or(Err(RabbitError::Closed))?;
                        async move { again.retry(counts, delay, &queue).await }.boxed().shared()
                    }
                    (_, None) => return Ok(()),
                };
                self.adding.lock().insert(tag, adding.clone());
                adding
            }
        };
        let is_blocked = publisher.is_blocked();
        let limit = if is_blocked { Duration::ZERO } else { self.shared.options.timeout };
        match timeout(limit, adding).await {
            Ok(added) => {
                self.adding.lock().remove(&tag);
                added
            }
            Err(_) if publisher.is_blocked() => Err(RabbitError::Blocked),
            Err(_) => Err(RabbitError::Timeout(ADDING)),
        }
    }
}

/// What it takes to add a message again.
struct Again {
    shared: Arc<Shared>,
    publisher: Arc<Publisher>,
    message: Arc<Kept>,
}

impl Again {
    /// Adds an item to the queue of retries for this delay, or to the dead letters if it does not fit.
    async fn retry(
        &self,
        counts: Counts,
        delay: Duration,
        queue: &ShortString,
    ) -> Result<(), RabbitError> {
        let Kept { id, properties, payload, added, .. } = &*self.message;
        let properties = format::for_retry(properties, id, counts, *added, delay_ms(delay));
        let to = (&ShortString::default(), queue);
        match self.publisher.push_again(to, properties, payload).await {
            Err(error @ RabbitError::TooLarge { .. }) => {
                let reason = format!("it has failed, and cannot be added again: {error}");
                self.bury(&reason).await
            }
            added => added,
        }
    }

    /// Adds an item to the dead letters.
    async fn bury(&self, reason: &str) -> Result<(), RabbitError> {
        let Self { shared, publisher, message } = self;
        let Kept { id, properties, payload, counts, dead_id, .. } = &**message;
        let dead_id = dead_id.get_or_init(random_id);
        let death = Death { deliveries: counts.deliveries, reason, now: now(), dead_id };
        let limit = publisher.largest_properties();
        let properties = format::for_dead_letter(properties, id, &death, limit);
        let to = (&shared.names.dead, &shared.names.queue);
        match publisher.push_again(to, properties.clone(), payload).await {
            Err(RabbitError::Unroutable) => {
                let publisher = shared.prepare(publisher.clone()).await?;
                publisher.push_again(to, properties, payload).await
            }
            added => added,
        }
    }
}

/// An item that has failed, and is to be added again or to the dead letters.
struct Failed<'a> {
    /// The place of its outcome among those to be stored.
    index: usize,
    receipt: &'a RabbitReceipt,
    outcome: &'a Outcome,
}

impl Failed<'_> {
    /// What counts of an item that is delivered again, and after how long it is.
    fn again(&self) -> Option<(Counts, Duration)> {
        let Counts { deliveries, failures } = self.receipt.message.counts;
        match self.outcome {
            Outcome::Retry { after, failures } => {
                Some((Counts { deliveries, failures: *failures }, *after))
            }
            // As if it had not been delivered.
            Outcome::Release { after } => {
                Some((Counts { deliveries: deliveries.saturating_sub(1), failures }, *after))
            }
            _ => None,
        }
    }
}

fn delay_ms(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).min(LONGEST_DELAY)
}

/// Stores the outcomes of a queue's items.
#[derive(Debug)]
pub struct RabbitSettle(Arc<Session>);

impl Settle for RabbitSettle {
    type Receipt = RabbitReceipt;

    async fn settle(
        &self,
        settlements: &[Settlement<RabbitReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let stored = self.0.settle(settlements).await;
        Ok(stored.map_err(|error| self.0.explained(error))?)
    }

    fn ahead(&self) -> Ahead {
        self.0.flow.lock().ahead()
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let Session { shared, asking, connection, .. } = &*self.0;
        let mut asking = asking.lock().await;
        if !asking.status().connected() {
            let limit = shared.options.timeout;
            let opened = open_channel(connection, limit).await;
            if matches!(opened, Err(RabbitError::NoChannel)) {
                // It would never be counted again. The source connects anew.
                let _ = timeout(limit, connection.close(200, "no channel is left".into())).await;
            }
            *asking = opened?;
        }
        Ok(shared.backlog(&asking).await?)
    }
}

impl Session {
    /// Stores outcomes, each on its own. Returns those that could not be stored.
    async fn settle(
        &self,
        settlements: &[Settlement<RabbitReceipt>],
    ) -> Result<Vec<NotStored>, RabbitError> {
        // The server has delivered those of other sessions again.
        let known = settlements
            .iter()
            .enumerate()
            .filter(|(_, known)| known.receipt.session == self.number);
        let (mut acked, mut again, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (index, Settlement { receipt, outcome }) in known {
            match outcome {
                Outcome::Done => acked.push(receipt.tag),
                Outcome::Release { after: Duration::ZERO } => again.push(receipt.tag),
                Outcome::Retry { .. } | Outcome::Release { .. } | Outcome::GiveUp { .. } => {
                    failed.push(Failed { index, receipt, outcome });
                }
            }
        }
        let mut not_stored = Vec::new();
        if !failed.is_empty() {
            // A server that takes no messages reads these nevertheless.
            self.tell(acked, again).await?;
            (acked, again) = (Vec::with_capacity(failed.len()), Vec::new());
            let added = self.add_again(&failed).await;
            for (Failed { index, receipt, .. }, added) in failed.iter().zip(added) {
                match added {
                    Ok(()) => acked.push(receipt.tag),
                    Err(error) => not_stored.push(NotStored::new(*index, error)),
                }
            }
        }
        let _turn = self.telling.lock().await;
        try_join(self.send(acked, again), self.read()).await?;
        Ok(not_stored)
    }

    /// Waits until the server has read what was sent to it, which is so when it answers. Its answer comes behind the
    /// items that it has delivered before. Where these take longer, they show that it is there, and it reads
    /// meanwhile. When the source ends, no more come, and a connection that is closed before they were read could take
    /// the outcomes with it, so the answer is waited for.
    async fn read(&self) -> Result<(), RabbitError> {
        let Shared { names, options, .. } = &*self.shared;
        if self.is_ending.load(SeqCst) {
            let asked = declared(&self.channel, &names.queue, Duration::MAX);
            let answer = self.received.then(options.timeout, asked).await;
            return answer.unwrap_or(Err(RabbitError::Timeout("storing outcomes"))).map(drop);
        }
        let before = self.received.bytes();
        match declared(&self.channel, &names.queue, options.timeout).await {
            Err(RabbitError::Timeout(_)) if self.received.bytes() != before => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Tells the server which items are done and which are given back. It does not answer.
    async fn tell(&self, done: Vec<u64>, again: Vec<u64>) -> Result<(), RabbitError> {
        let _turn = self.telling.lock().await;
        self.send(done, again).await
    }

    /// Sends which items are done and which are given back, as soon as it is polled. By one task at a time: what
    /// is said of several items at once must not overtake what is said of one of them, or an item that is given
    /// back would count as done.
    async fn send(&self, done: Vec<u64>, again: Vec<u64>) -> Result<(), RabbitError> {
        let acknowledged = {
            let mut flow = self.flow.lock();
            // Those that are given back are still there, so no acknowledgement is for them too.
            let acknowledged = flow.acknowledge(done);
            again.iter().for_each(|tag| flow.forget(*tag));
            acknowledged
        };
        self.acknowledged.notify_one();
        let nacks = again.into_iter().map(|tag| {
            let given_back = self.channel.basic_nack(tag, REQUEUE);
            given_back.left_future()
        });
        let acks = acknowledged.into_iter().map(|(tag, multiple)| {
            self.channel.basic_ack(tag, BasicAckOptions { multiple }).right_future()
        });
        let sent = async {
            // Each is on its way when it has been polled, so all are, in this order, before anything else.
            let mut waiting = Vec::new();
            for mut sending in nacks.chain(acks).map(Box::pin) {
                match (&mut sending).now_or_never() {
                    Some(sent) => sent?,
                    None => waiting.push(sending),
                }
            }
            try_join_all(waiting).await
        };
        within(self.shared.options.timeout, "storing outcomes", sent).await.map(drop)
    }
}
