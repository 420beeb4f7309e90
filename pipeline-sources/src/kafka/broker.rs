//! A consumer of the group, as a broker of a source.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::timeout;

use super::{
    KafkaError, KafkaQueue,
    consumer::{self, Shared},
    format::{KafkaId, Record, dead_letter},
    is_too_large, now,
    tracker::{KafkaReceipt, Taken},
};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    item::Delivery,
};

/// The longest text of a reason that is kept.
const MAX_REASON: usize = 4096;

/// A consumer of the queue's group: what a [`Source`](crate::Source) reads from.
///
/// It joins the group when it connects, and leaves it when it is dropped. When a call has failed, and the
/// source connects again, it is still the same member and has the same partitions.
#[derive(Debug)]
pub struct KafkaBroker {
    queue: KafkaQueue,
    shared: Arc<Shared>,
}

impl KafkaBroker {
    pub(super) fn new(queue: KafkaQueue) -> Self {
        let shared = Arc::new(Shared::new(queue.0.options.ordered));
        Self { queue, shared }
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.wake();
    }
}

impl Broker for KafkaBroker {
    type Receipt = KafkaReceipt;
    type Fetch = KafkaFetch;
    type Settle = KafkaSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the topic {} of Kafka", self.queue.topic()).into()
    }

    async fn connect(&self) -> Result<(KafkaFetch, KafkaSettle), BrokerError> {
        self.queue.probe().await?;
        let shared = self.shared.clone();
        let start = move |queue: KafkaQueue| {
            consumer::start(&queue.consumer_config(), queue.setup(), &shared)
        };
        self.queue.blocking(start).await?;
        self.shared.state.lock().failure = None;
        let (queue, shared) = (self.queue.clone(), self.shared.clone());
        Ok((KafkaFetch(shared.clone()), KafkaSettle { queue, shared }))
    }

    fn lease(&self) -> Option<Duration> {
        None
    }
}

/// Takes items of the consumer's partitions.
#[derive(Debug)]
pub struct KafkaFetch(Arc<Shared>);

impl Fetch for KafkaFetch {
    type Receipt = KafkaReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<KafkaReceipt>>, BrokerError> {
        let Self(shared) = self;
        loop {
            // Before the look, so that no item is missed.
            let arrived = shared.arrived.notified();
            let taken = shared.take(max)?;
            if !taken.is_empty() {
                return Ok(taken.into_iter().map(delivery).collect());
            }
            shared.wake();
            arrived.await;
        }
    }
}

fn delivery(taken: Taken<Arc<Record>>) -> Delivery<KafkaReceipt> {
    let Taken { receipt, deliveries, item: record } = taken;
    let id = KafkaId { partition: receipt.partition, offset: receipt.offset };
    Delivery {
        receipt,
        id: id.to_string().into(),
        item: record.item.clone(),
        enqueued_at: record.enqueued_at,
        deliveries,
        malformed: record.malformed.clone(),
    }
}

/// Commits what is done, and keeps what has failed.
#[derive(Debug)]
pub struct KafkaSettle {
    queue: KafkaQueue,
    shared: Arc<Shared>,
}

impl Settle for KafkaSettle {
    type Receipt = KafkaReceipt;

    async fn settle(
        &self,
        settlements: &[Settlement<KafkaReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        // A dead letter is durable before its item counts as done.
        let given_up = settlements.iter().filter_map(|it| match &it.outcome {
            Outcome::GiveUp { reason } => Some(self.give_up(&it.receipt, reason)),
            _ => None,
        });
        try_join_all(given_up).await?;
        let outcomes = settlements.iter().map(|it| (&it.receipt, &it.outcome));
        let mut owed = self.shared.settle(outcomes);
        let committed = async {
            loop {
                // Before the look, so that no change is missed.
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.shared.is_committed(&mut owed)? {
                    return Ok(());
                }
                changed.await;
            }
        };
        let time = self.queue.0.options.call_timeout;
        let in_time = timeout(time, committed).await;
        in_time.unwrap_or(Err(KafkaError::Timeout(time)))?;
        Ok(Vec::new())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let (assigned, oldest) = self.shared.assigned();
        let items = self.queue.waiting(Some(assigned)).await?;
        Ok(Backlog { items, oldest, ..Backlog::default() })
    }
}

impl KafkaSettle {
    /// Writes a dead letter, unless the delivery is no longer this consumer's.
    async fn give_up(&self, receipt: &KafkaReceipt, reason: &str) -> Result<(), KafkaError> {
        let in_work = self.shared.state.lock().tracker.in_work(receipt);
        let Some((record, deliveries)) = in_work else { return Ok(()) };
        let inner = &self.queue.0;
        let id = KafkaId { partition: receipt.partition, offset: receipt.offset };
        let reason = shortened(reason);
        let mut letter = dead_letter(&record, &inner.topic, id, deliveries, reason, now());
        match self.queue.write(&inner.dead_topic, None, &letter).await {
            Err(error) if is_too_large(&error) => {
                letter.payload = Some(Bytes::new());
                self.queue.write(&inner.dead_topic, None, &letter).await?;
            }
            written => drop(written?),
        }
        Ok(())
    }
}

/// The beginning of a long text.
fn shortened(text: &str) -> &str {
    let end = (0..=MAX_REASON.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}
