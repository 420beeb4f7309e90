//! The durable queues: a SQLite file, or a queue of a server.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{sync::Arc, time::Duration};

use crate::{
    args::{Broker, QueueAt},
    dead_letters::Graves,
    intake::{Durable, missing},
};

/// A durable queue, and what it has given up.
pub trait Queue: Durable + Graves {}

impl<Q: Durable + Graves> Queue for Q {}

/// The queue that this makes, if the program was built with this feature.
macro_rules! built_with {
    ($feature:literal, $broker:expr, $open:expr) => {{
        #[cfg(feature = $feature)]
        {
            $open.map(|queue| Arc::new(queue) as Arc<dyn Queue>)
        }
        #[cfg(not(feature = $feature))]
        {
            Err(missing($broker))
        }
    }};
}

/// Opens a queue. A server need not be there yet. The lease is of no use to RabbitMQ and Kafka, which notice
/// the death of a process.
pub async fn open(at: &QueueAt, _lease: Duration) -> Result<Arc<dyn Queue>, String> {
    let broker = at.broker()?;
    match (broker, at) {
        (_, QueueAt::File { path: _path, name: _name }) => {
            built_with!(
                "sqlite",
                broker,
                sqlite::open(_path, _name, _lease).await.map_err(explained)
            )
        }
        (Broker::Redis, QueueAt::Server { address: _address, name: _name }) => {
            built_with!("redis", broker, redis::open(_address, _name, _lease).map_err(explained))
        }
        (Broker::Nats, QueueAt::Server { address: _address, name: _name }) => {
            built_with!("nats", broker, nats::open(_address, _name, _lease).map_err(explained))
        }
        (Broker::Postgres, QueueAt::Server { address: _address, name: _name }) => {
            built_with!(
                "postgres",
                broker,
                postgres::open(_address, _name, _lease).map_err(explained)
            )
        }
        (Broker::RabbitMq, QueueAt::Server { address: _address, name: _name }) => {
            built_with!("rabbitmq", broker, rabbitmq::open(_address, _name).map_err(explained))
        }
        (Broker::Kafka, QueueAt::Server { address: _address, name: _name }) => {
            built_with!("kafka", broker, Ok(kafka::open(_address, _name)))
        }
        (Broker::Sqlite, QueueAt::Server { .. }) => Err(missing(broker)),
    }
}

/// Opens a queue for a command. The queue has to be there, and nothing is made. In Kafka, each call says that the topic is
/// missing.
pub async fn open_for_command(at: &QueueAt) -> Result<Arc<dyn Queue>, String> {
    let broker = at.broker()?;
    match (broker, at) {
        (_, QueueAt::File { path: _path, name: _name }) => {
            built_with!(
                "sqlite",
                broker,
                sqlite::open_existing(_path, _name).await.map_err(explained)
            )
        }
        (Broker::Redis, QueueAt::Server { address: _address, name: _name }) => {
            built_with!(
                "redis",
                broker,
                redis::open_existing(_address, _name).await.map_err(explained)
            )
        }
        (Broker::Nats, QueueAt::Server { address: _address, name: _name }) => {
            built_with!(
                "nats",
                broker,
                nats::open_existing(_address, _name).await.map_err(explained)
            )
        }
        (Broker::Postgres, QueueAt::Server { address: _address, name: _name }) => {
            built_with!(
                "postgres",
                broker,
                postgres::open_existing(_address, _name).await.map_err(explained)
            )
        }
        (Broker::RabbitMq, QueueAt::Server { address: _address, name: _name }) => {
            built_with!(
                "rabbitmq",
                broker,
                rabbitmq::open_existing(_address, _name).await.map_err(explained)
            )
        }
        (Broker::Kafka | Broker::Sqlite, QueueAt::Server { .. }) => {
            open(at, Duration::from_secs(30)).await
        }
    }
}

/// The error of an address or a file.
#[cfg(any(
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
fn explained(error: impl std::error::Error) -> String {
    crate::durable::with_cause(&error)
}
