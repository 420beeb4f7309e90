//! A session of a source: a consumer for as many items as are asked for, and outcomes.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{BoxFuture, try_join_all},
};
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    message::Delivery as Delivered,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::{runtime::Handle, time::timeout};

use super::{
    RabbitError, RabbitQueue, Shared, format,
    link::{Publisher, declared, prepare, within},
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
    deliveries: u32,
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
    /// What the server is asked on. It closes it if the queue is missing.
    asking: Channel,
    connection: Option<Connection>,
}

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

    async fn connect(&self) -> Result<(RabbitFetch, RabbitSettle), BrokerError> {
        let shared = self.shared.clone();
        let connection = shared.dialer.connect().await?;
        prepare(&connection, &shared.names, &shared.options).await?;
        let open =
            || within(shared.options.timeout, "opening a channel", connection.create_channel());
        let (channel, asking) = (open().await?, open().await?);
        let number = shared.sessions.fetch_add(1, SeqCst);
        let session =
            Arc::new(Session { shared, number, channel, asking, connection: Some(connection) });
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
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        within(limit, WHAT, qos).await?;
        let tag = ShortString::from(format!("pipeline-{nth}"));
        let options = BasicConsumeOptions::default();
        let queue = self.shared.names.queue.clone();
        let consumer =
            self.channel.basic_consume(queue, tag.clone(), options, FieldTable::default());
        let consumer = within(limit, WHAT, consumer).await?;
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
            deliveries: told.deliveries,
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
            deliveries: told.deliveries,
            malformed: told.malformed,
        }
    }

    /// Adds an item to the queue of retries for this delay.
    async fn retry(
        &self,
        publisher: &Publisher,
        message: &Kept,
        deliveries: u32,
        delay: Duration,
        queue: &ShortString,
    ) -> Result<(), RabbitError> {
        let Kept { id, properties, payload, .. } = message;
        let properties = format::for_retry(properties, id, deliveries, delay_ms(delay));
        publisher.publish(&ShortString::default(), queue, properties, payload).await
    }

    /// Adds an item to the dead letters.
    async fn bury(
        &self,
        publisher: &Publisher,
        message: &Kept,
        reason: &str,
    ) -> Result<(), RabbitError> {
        let Kept { id, properties, payload, deliveries } = message;
        let dead_id = random_id();
        let properties =
            format::for_dead_letter(properties, id, *deliveries, reason, now(), &dead_id);
        let names = &self.shared.names;
        publisher.publish(&names.dead, &names.queue, properties, payload).await
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
        const WHAT: &str = "storing outcomes";
        let session = &self.0;
        let limit = session.shared.options.timeout;
        // The server has delivered those of other sessions again.
        let known = settlements.iter().filter(|known| known.receipt.session == session.number);
        let (mut acked, mut again) = (Vec::new(), Vec::new());
        let (mut retried, mut given_up) = (Vec::new(), Vec::new());
        for Settlement { receipt, outcome } in known {
            match outcome {
                Outcome::Done => acked.push(receipt.tag),
                Outcome::Release { after } if after.is_zero() => again.push(receipt.tag),
                Outcome::Retry(delay) => {
                    retried.push((receipt, *delay, receipt.message.deliveries));
                }
                // As if it had not been delivered.
                Outcome::Release { after } => {
                    let before = receipt.message.deliveries.saturating_sub(1);
                    retried.push((receipt, *after, before));
                }
                Outcome::GiveUp { reason } => given_up.push((receipt, reason)),
            }
        }
        // A server that takes no messages reads these nevertheless.
        let acks =
            acked.into_iter().map(|tag| session.channel.basic_ack(tag, BasicAckOptions::default()));
        within(limit, WHAT, try_join_all(acks)).await?;
        let nacks = again.into_iter().map(|tag| session.channel.basic_nack(tag, REQUEUE));
        within(limit, WHAT, try_join_all(nacks)).await?;
        if !retried.is_empty() || !given_up.is_empty() {
            let publisher = session.shared.publisher().await?;
            let mut groups: Vec<_> =
                retried.iter().map(|(_, delay, _)| format::group_of(delay_ms(*delay))).collect();
            groups.sort_unstable();
            groups.dedup();
            let mut queues = Vec::with_capacity(groups.len());
            for group in groups {
                queues.push((group, publisher.retries(&session.shared.names, group).await?));
            }
            let queue_of = |delay: Duration| {
                let group = format::group_of(delay_ms(delay));
                queues.iter().find(|(of, _)| *of == group).map(|(_, queue)| queue)
            };
            let mut added: Vec<BoxFuture<'_, Result<(), RabbitError>>> = Vec::new();
            for (receipt, delay, deliveries) in &retried {
                if let Some(queue) = queue_of(*delay) {
                    added.push(Box::pin(session.retry(
                        &publisher,
                        &receipt.message,
                        *deliveries,
                        *delay,
                        queue,
                    )));
                }
            }
            for (receipt, reason) in &given_up {
                added.push(Box::pin(session.bury(&publisher, &receipt.message, reason)));
            }
            try_join_all(added).await?;
            let tags =
                retried.iter().map(|(it, ..)| it.tag).chain(given_up.iter().map(|(it, _)| it.tag));
            let acks = tags.map(|tag| session.channel.basic_ack(tag, BasicAckOptions::default()));
            within(limit, WHAT, try_join_all(acks)).await?;
        }
        // Its answer comes behind what was sent before, so the server has read it.
        declared(&session.channel, &session.shared.names.queue, limit).await?;
        Ok(Vec::new())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        Ok(self.0.shared.backlog(&self.0.asking).await?)
    }
}
