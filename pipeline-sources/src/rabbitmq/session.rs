//! A session of a source: a consumer for as many items as are asked for, and outcomes.

use std::{
    borrow::Cow,
    collections::{
        HashMap,
        btree_map::{BTreeMap, Entry},
    },
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared as SharedFuture, join_all, try_join, try_join_all},
};
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    message::Delivery as Delivered,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::{FieldTable, ShortString},
};
use parking_lot::Mutex as Lock;
use tokio::{runtime::Handle, sync::Mutex, time::timeout};

use super::{
    RabbitError, RabbitQueue, Shared,
    format::{self, Counts, Death},
    link::{ADDING, Publisher, declared, prepare, within},
    random_id,
};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    clock::now,
    item::Delivery,
};

/// How long a consumer that has got items waits for more of those that are there.
const GATHER: Duration = Duration::from_millis(3);

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
    /// What the server is asked on. It closes it if a queue is missing, and then another is opened.
    asking: Mutex<Channel>,
    /// The messages that are added again, by the tags of their deliveries. One whose confirmation takes long
    /// is waited for the next time, for it may have been stored.
    adding: Lock<HashMap<u64, Adding>>,
    connection: Option<Connection>,
}

/// A message that is added again.
type Adding = SharedFuture<BoxFuture<'static, Result<(), RabbitError>>>;

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(connection), Ok(runtime)) = (self.connection.take(), Handle::try_current())
        else {
            return;
        };
        // The library may keep a connection that is only dropped.
        let limit = self.shared.options.timeout;
        runtime.spawn(async move { timeout(limit, connection.close(200, "done".into())).await });
    }
}

impl Broker for RabbitQueue {
    type Receipt = RabbitReceipt;
    type Fetch = RabbitFetch;
    type Settle = RabbitSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the queue {} of RabbitMQ", self.name()).into()
    }

    async fn connect(&self) -> Result<(RabbitFetch, RabbitSettle), BrokerError> {
        let shared = self.shared.clone();
        let connection = shared.dialer.connect().await?;
        prepare(&connection, &shared.names, &shared.options).await?;
        let open =
            || within(shared.options.timeout, "opening a channel", connection.create_channel());
        let (channel, asking) = (open().await?, open().await?);
        let number = shared.sessions.fetch_add(1, SeqCst);
        let session = Arc::new(Session {
            shared,
            number,
            channel,
            asking: Mutex::new(asking),
            adding: Lock::default(),
            connection: Some(connection),
        });
        Ok((RabbitFetch { session: session.clone(), consumers: 0 }, RabbitSettle(session)))
    }

    fn lease(&self) -> Option<Duration> {
        None
    }

    fn outlives_sessions(&self) -> bool {
        false
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct RabbitFetch {
    session: Arc<Session>,
    /// How many consumers there were in this session.
    consumers: u64,
}

impl Fetch for RabbitFetch {
    type Receipt = RabbitReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<RabbitReceipt>>, BrokerError> {
        let session = self.session.clone();
        // One of the items may be what the client library cannot read. The others are not delivered with it.
        let careful = session.shared.careful.load(SeqCst);
        let max = if careful > 0 { 1 } else { max };
        self.consumers += 1;
        let taken = session.consume(max, self.consumers).await;
        let taken = taken.map_err(|error| session.explained(error));
        match &taken {
            Ok(_) if careful > 0 => session.shared.careful.store(careful - 1, SeqCst),
            Ok(_) => {}
            Err(_) => session.shared.careful.store(CAREFUL, SeqCst),
        }
        Ok(taken?)
    }
}

/// A consumer that is open. If it is dropped, it is cancelled, and what arrives yet is given back.
struct OpenConsumer<'a> {
    session: &'a Arc<Session>,
    consumer: Option<Consumer>,
    taken: Vec<Delivered>,
}

impl Drop for OpenConsumer<'_> {
    fn drop(&mut self) {
        let (Some(mut consumer), Ok(runtime)) = (self.consumer.take(), Handle::try_current())
        else {
            return;
        };
        let (session, taken) = (self.session.clone(), std::mem::take(&mut self.taken));
        let limit = session.shared.options.timeout;
        let give_back = async move {
            let tag = consumer.tag();
            let cancelled = session.channel.basic_cancel(tag, BasicCancelOptions::default());
            if cancelled.await.is_err() {
                return;
            }
            let mut taken: Vec<_> = taken.into_iter().map(|it| it.delivery_tag).collect();
            while let Some(Ok(delivered)) = consumer.next().await {
                taken.push(delivered.delivery_tag);
            }
            for tag in taken {
                let _ = session.channel.basic_nack(tag, REQUEUE).await;
            }
        };
        runtime.spawn(async move { timeout(limit, give_back).await });
    }
}

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

impl Session {
    /// The error of a call of the channel, or why it was closed while the connection is still there.
    fn explained(&self, error: RabbitError) -> RabbitError {
        let is_there = self.connection.as_ref().is_some_and(|it| it.status().connected());
        let is_closed = !self.channel.status().connected();
        if is_there && is_closed && error.is_of_a_closed_channel() {
            return RabbitError::ConsumerTimeout;
        }
        error
    }

    /// Consumes up to `max` items, and waits until there is at least one.
    ///
    /// Items that are acknowledged while a consumer is open are of others before it, so the server delivers
    /// no more to it than its limit.
    async fn consume(
        self: &Arc<Self>,
        max: usize,
        nth: u64,
    ) -> Result<Vec<Delivery<RabbitReceipt>>, RabbitError> {
        const WHAT: &str = "consuming items";
        let limit = self.shared.options.timeout;
        // 0 would be no limit.
        let prefetch = u16::try_from(max).unwrap_or(u16::MAX).max(1);
        let tag = ShortString::from(format!("pipeline-{nth}"));
        // The limit is sent first, and its answer is not waited for before the consumer is opened.
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        let options = BasicConsumeOptions::default();
        let queue = self.shared.names.queue.clone();
        let consumer =
            self.channel.basic_consume(queue, tag.clone(), options, FieldTable::default());
        let (_, consumer) = within(limit, WHAT, try_join(qos, consumer)).await?;
        let mut open = OpenConsumer { session: self, consumer: Some(consumer), taken: Vec::new() };
        let OpenConsumer { consumer: Some(consumer), taken, .. } = &mut open else {
            return Ok(Vec::new());
        };
        let delivered = |delivered: Option<lapin::Result<Delivered>>| match delivered {
            Some(Ok(delivered)) => Ok(delivered),
            Some(Err(error)) => Err(RabbitError::new(WHAT, error)),
            // The queue was deleted, or the server ends.
            None => Err(RabbitError::Closed),
        };
        taken.push(delivered(consumer.next().await)?);
        while taken.len() < usize::from(prefetch) {
            let Ok(next) = timeout(GATHER, consumer.next()).await else { break };
            taken.push(delivered(next)?);
        }
        let cancelled = self.channel.basic_cancel(tag, BasicCancelOptions::default());
        within(limit, WHAT, cancelled).await?;
        // The server confirms it behind what it has delivered.
        while let Some(last) = timeout(limit, consumer.next()).await.unwrap_or_default() {
            taken.push(delivered(Some(last))?);
        }
        open.consumer = None;
        let taken = std::mem::take(&mut open.taken);
        Ok(taken.into_iter().map(|delivered| self.delivery(delivered)).collect())
    }

    fn delivery(&self, delivered: Delivered) -> Delivery<RabbitReceipt> {
        let payload = Bytes::from(delivered.data);
        let told = format::told(&delivered.properties, payload.clone(), delivered.redelivered);
        let id = delivered.properties.message_id().as_ref().map(|id| Arc::from(id.as_str()));
        let id = id.unwrap_or_else(random_id);
        let kept = Kept {
            id: id.clone(),
            properties: delivered.properties,
            payload,
            counts: told.counts,
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
            enqueued_at: told.enqueued_at,
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
        for failed in failed {
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
        match timeout(self.shared.options.timeout, adding).await {
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
        let Kept { id, properties, payload, .. } = &*self.message;
        let properties = format::for_retry(properties, id, counts, delay_ms(delay));
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
        let Kept { id, properties, payload, counts, dead_id } = &**message;
        let dead_id = dead_id.get_or_init(random_id);
        let death = Death { deliveries: counts.deliveries, reason, now: now(), dead_id };
        let limit = publisher.largest_properties();
        let properties = format::for_dead_letter(properties, id, &death, limit);
        let to = (&shared.names.dead, &shared.names.queue);
        match publisher.push_again(to, properties.clone(), payload).await {
            Err(RabbitError::Unroutable) => {
                shared.prepare(publisher).await?;
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

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let Session { shared, asking, connection, .. } = &*self.0;
        let mut asking = asking.lock().await;
        if let (false, Some(connection)) = (asking.status().connected(), connection) {
            let opened = connection.create_channel();
            *asking = within(shared.options.timeout, "opening a channel", opened).await?;
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
        const WHAT: &str = "storing outcomes";
        let limit = self.shared.options.timeout;
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
        // A server that takes no messages reads these nevertheless.
        let ack = |tag| self.channel.basic_ack(tag, BasicAckOptions::default());
        within(limit, WHAT, try_join_all(acked.into_iter().map(ack))).await?;
        let nacks = again.into_iter().map(|tag| self.channel.basic_nack(tag, REQUEUE));
        within(limit, WHAT, try_join_all(nacks)).await?;
        let mut not_stored = Vec::new();
        if !failed.is_empty() {
            let added = self.add_again(&failed).await;
            let mut acked = Vec::with_capacity(added.len());
            for (Failed { index, receipt, .. }, added) in failed.iter().zip(added) {
                match added {
                    Ok(()) => acked.push(receipt.tag),
                    Err(error) => not_stored.push(NotStored::new(*index, error)),
                }
            }
            within(limit, WHAT, try_join_all(acked.into_iter().map(ack))).await?;
        }
        // Its answer comes behind what was sent before, so the server has read it.
        declared(&self.channel, &self.shared.names.queue, limit).await?;
        Ok(not_stored)
    }
}
