//! A consumer of the group, as a broker of a source.

use std::{borrow::Cow, sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use tokio::time::timeout;

use super::{
    KafkaError, KafkaQueue,
    consumer::{self, Shared},
    format::{KafkaId, Kept, Record, dead_letter},
    is_too_large, now,
    tracker::{KafkaReceipt, Taken},
};
use crate::{
    broker::{Ahead, Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    item::Delivery,
};

/// How long the other outcomes wait for a dead letter that is being written.
const BURIAL: Duration = Duration::from_secs(1);

/// A consumer of the queue's group: what a [`Source`](crate::Source) reads from.
///
/// It joins the group when it connects. When a call has failed, and the source connects again, it is still the
/// same member and has the same partitions. A drain of the pipeline waits until it has left the group, so a process
/// that ends after it leaves its partitions to others at once. One that is dropped without a drain leaves soon after,
/// if the process continues.
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
        self.shared.stop();
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
        // Without the topic of the dead letters, all that is not given up is handled.
        self.queue.probe(false).await?;
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

    async fn close(&self) {
        let shared = self.shared.clone();
        let stop = move |_| {
            shared.stop();
            // A call that starts the thread may have been left behind.
            drop(shared.starting.lock());
            Ok(())
        };
        // It fails when the runtime ends, and with it all that waits.
        let _ = self.queue.blocking(stop).await;
        loop {
            // Before the look, so that no change is missed.
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.shared.state.lock().running {
                return;
            }
            changed.await;
        }
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
    let Taken { receipt, deliveries, failures, item: record } = taken;
    let id = KafkaId { partition: receipt.partition, offset: receipt.offset };
    Delivery {
        receipt,
        id: id.to_string().into(),
        item: record.item.clone(),
        enqueued_at: record.enqueued_at,
        deliveries,
        failures: Some(failures),
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
        // What is done goes first: it does not wait for a dead letter that cannot be stored.
        let (given_up, others): (Vec<_>, Vec<_>) = settlements
            .iter()
            .enumerate()
            .partition(|(_, it)| matches!(it.outcome, Outcome::GiveUp { .. }));
        let others = others.into_iter().map(|(_, it)| (&it.receipt, &it.outcome));
        self.store(others).await?;
        let buried = given_up.iter().map(|(_, it)| self.give_up(it));
        let buried = join_all(buried).await;
        let (mut stored, mut not_stored) = (Vec::new(), Vec::new());
        for ((index, settlement), buried) in given_up.into_iter().zip(buried) {
            match buried {
                Ok(()) => stored.push((&settlement.receipt, &settlement.outcome)),
                Err(error) => not_stored.push(NotStored::new(index, error)),
            }
        }
        self.store(stored.into_iter()).await?;
        Ok(not_stored)
    }

    fn ahead(&self) -> Ahead {
        self.shared.state.lock().tracker.ahead()
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let (assigned, oldest) = self.shared.assigned();
        let items = self.queue.waiting(Some(assigned)).await?;
        Ok(Backlog { items, oldest, ..Backlog::default() })
    }
}

impl KafkaSettle {
    /// Takes note of outcomes, and waits until what follows of them is committed.
    async fn store<'a>(
        &self,
        outcomes: impl Iterator<Item = (&'a KafkaReceipt, &'a Outcome)>,
    ) -> Result<(), KafkaError> {
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
        timeout(time, committed).await.unwrap_or(Err(KafkaError::Timeout(time)))
    }

    /// Writes a dead letter, unless the delivery is no longer this consumer's. A write that takes long
    /// continues when this has returned an error, and is waited for the next time.
    async fn give_up(&self, settlement: &Settlement<KafkaReceipt>) -> Result<(), KafkaError> {
        let Settlement { receipt, outcome } = settlement;
        let in_work = self.shared.state.lock().tracker.in_work(receipt);
        let (Some((record, deliveries)), Outcome::GiveUp { reason }) = (in_work, outcome) else {
            self.shared.burials.lock().remove(receipt);
            return Ok(());
        };
        let burial = self.shared.burials.lock().get(receipt).cloned();
        let burial = burial.unwrap_or_else(|| {
            let (queue, reason) = (self.queue.clone(), reason.clone());
            let id = KafkaId { partition: receipt.partition, offset: receipt.offset };
            let task =
                tokio::spawn(async move { queue.bury(&record, id, deliveries, &reason).await });
            let burial = task.map(|ended| ended.unwrap_or(Err(KafkaError::Ended)));
            let burial = burial.boxed().shared();
            self.shared.burials.lock().insert(*receipt, burial.clone());
            burial
        });
        match timeout(BURIAL, burial).await {
            Ok(buried) => {
                self.shared.burials.lock().remove(receipt);
                buried
            }
            Err(_) => Err(KafkaError::Timeout(BURIAL)),
        }
    }
}

impl KafkaQueue {
    /// Writes a dead letter. What is too large is left out, and the reason says so.
    async fn bury(
        &self,
        record: &Record,
        id: KafkaId,
        deliveries: u32,
        reason: &str,
    ) -> Result<(), KafkaError> {
        let now = now();
        let topic = &self.0.topic;
        let of = |kept| dead_letter(record, topic, id, deliveries, reason, now, kept);
        for kept in [Kept::All, Kept::Headers] {
            match self.write(&self.0.dead_topic, None, &of(kept)).await {
                Err(error) if is_too_large(&error) => {}
                written => return written.map(drop),
            }
        }
        self.write(&self.0.dead_topic, None, &of(Kept::Nothing)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use pipeline_core::{
        Pipeline,
        processing::{Message, Processors},
    };
    use rdkafka::mocking::MockCluster;
    use tokio::time::sleep;

    use super::*;
    use crate::{Item, Source, SourceOptions, kafka::KafkaOptions};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The thread of the consumer ends when it has left. A process may end right after the drain.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_drain_waits_until_the_consumer_has_left_its_group() {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["numbers", "numbers.dead-letters"] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let options = KafkaOptions::new().set("group.protocol", "consumer");
        let queue = KafkaQueue::new(cluster.bootstrap_servers(), "numbers", "test", options);
        let broker = queue.broker();
        let shared = broker.shared.clone();
        let pipeline = Pipeline::of_messages("test")
            .source(Source::new(broker, SourceOptions::new()))
            .processors(Processors::from_fn(async |_: &mut Message<Item>| Ok(())))
            .start()
            .unwrap();
        let is_member = async {
            while shared.assigned().0.is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, is_member).await.unwrap();
        assert!(shared.state.lock().running);
        assert!(pipeline.drain(PATIENCE).await.is_clean());
        assert!(!shared.state.lock().running, "it is still a member");
    }
}
