//! The queue in a topic of Kafka, and the same reads and commits by the bare client, on the client's own mock
//! cluster, in this process.

use std::{hint::black_box, sync::mpsc, thread, time::Duration};

use pipeline_sources::kafka::{KafkaOptions, KafkaQueue};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    mocking::MockCluster,
};
use tokio::{task::spawn_blocking, time::Instant};

use super::{PATIENCE, failed, handled, new_name, pushed};
use crate::error::LoadError;

/// Both consumers join by the protocol in which the broker assigns the partitions, for the mock cluster lets
/// those of the other one wait for seconds.
const PROTOCOL: (&str, &str) = ("group.protocol", "consumer");

/// A cluster on a thread of its own, which it does not leave.
pub(crate) struct Cluster {
    servers: String,
    topics: mpsc::Sender<(String, mpsc::Sender<()>)>,
}

impl Cluster {
    pub(crate) fn start() -> Result<Self, LoadError> {
        let (topics, wanted) = mpsc::channel::<(String, mpsc::Sender<()>)>();
        let (started, servers) = mpsc::channel();
        thread::spawn(move || {
            let Ok(cluster) = MockCluster::new(1) else { return };
            // What waits for it is gone otherwise.
            let _ = started.send(cluster.bootstrap_servers());
            for (name, created) in wanted {
                let both = [name.clone(), format!("{name}.dead-letters")];
                if both.iter().all(|name| cluster.create_topic(name, 1, 1).is_ok()) {
                    let _ = created.send(());
                }
            }
        });
        Ok(Self { servers: servers.recv().map_err(failed)?, topics })
    }

    async fn filled(&self, items: u64) -> Result<KafkaQueue, LoadError> {
        let (name, (created, is_created)) = (new_name(), mpsc::channel());
        self.topics.send((name.clone(), created)).map_err(|_| LoadError::Stage(name.clone()))?;
        is_created.recv().map_err(failed)?;
        let options = KafkaOptions::new().set(PROTOCOL.0, PROTOCOL.1);
        let queue = KafkaQueue::new(&self.servers, &*name, name.clone(), options);
        let adding = queue.clone();
        pushed(items, move |item| {
            let queue = adding.clone();
            async move { queue.push(item).await.map(drop) }
        })
        .await?;
        Ok(queue)
    }

    /// Handles items by a source.
    pub(crate) async fn source(&self, at_once: usize, items: u64) -> Result<f64, LoadError> {
        handled(self.filled(items).await?.broker(), at_once, items).await
    }

    /// Reads items and commits after each batch by the bare client.
    pub(crate) async fn bare(&self, at_once: usize, items: u64) -> Result<f64, LoadError> {
        let queue = self.filled(items).await?;
        let (servers, topic) = (self.servers.clone(), queue.topic().to_owned());
        let read = spawn_blocking(move || read(&servers, &topic, at_once, items));
        read.await.map_err(failed)?
    }
}

fn read(servers: &str, topic: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    let began = Instant::now();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", format!("{topic}-bare"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set(PROTOCOL.0, PROTOCOL.1)
        .create()
        .map_err(failed)?;
    consumer.subscribe(&[topic]).map_err(failed)?;
    let (mut handled, mut in_batch) = (0, 0);
    while handled < items {
        // It returns without a message when partitions are assigned.
        let Some(message) = consumer.poll(Duration::from_secs(1)) else {
            if began.elapsed() < PATIENCE {
                continue;
            }
            return Err(LoadError::Missing { arrived: handled, of: items });
        };
        let message = message.map_err(failed)?;
        black_box(message.payload());
        (handled, in_batch) = (handled + 1, in_batch + 1);
        if in_batch == at_once || handled == items {
            let mut list = TopicPartitionList::new();
            let next = Offset::Offset(message.offset() + 1);
            list.add_partition_offset(topic, message.partition(), next).map_err(failed)?;
            consumer.commit(&list, CommitMode::Sync).map_err(failed)?;
            in_batch = 0;
        }
    }
    // It leaves its group, as a source does at the end of a drain.
    drop(consumer);
    Ok(items as f64 / began.elapsed().as_secs_f64())
}
