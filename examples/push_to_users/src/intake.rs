//! Where accepted pushes wait for a worker: in memory, or in a durable queue.

use std::{error::Error, future::Future, pin::Pin, sync::Arc, time::Duration};

use pipeline::{
    Pipeline,
    snapshot::{PipelineObserver, PipelinePhase, SourceSnapshot},
    source::{TimedQueue, TryPushError},
    timed::Timed,
    ws::{PubSub, pubsub::Acknowledge},
};
use thiserror::Error;
use tokio::time::sleep;

use crate::{
    args::{Broker, QueueAt},
    push::Push,
};

/// How long a source of pushes waits before it offers a push again that could not be stored.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Accepts pushes.
#[derive(Clone)]
pub enum Intake {
    /// They are lost when the process is killed.
    Memory(TimedQueue<Push>),
    /// They survive the process.
    Durable(Arc<dyn Durable>, PipelineObserver),
}

/// A queue that survives the process.
pub trait Durable: Send + Sync {
    /// Stores pushes. When it returns, the queue has confirmed all of them. If it fails, none is stored in a
    /// database; in a stream or a queue some may be, and come twice if they are posted again.
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a>;

    /// Starts the pipeline that reads the queue.
    fn start(&self, pushing: Pushing) -> Started;
}

/// How pushes out of a durable queue reach their users.
#[cfg_attr(not(feature = "durable"), expect(dead_code, reason = "there are no durable queues"))]
pub struct Pushing {
    pub pubsub: PubSub,
    /// How far a push has to come before the queue forgets it.
    pub acknowledge: Acknowledge,
    /// For how long a push for a user who is not there is kept.
    pub keep_for: Duration,
    /// How long each worker waits before it pushes.
    pub delay: Duration,
    pub max_demand: usize,
    pub min_demand: usize,
}

/// The pipeline that reads a queue, or why there is none.
pub type Started = Result<Pipeline, Box<dyn Error>>;

/// The future of [`Durable::store`].
pub type Storing<'a> =
    Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send + 'a>>;

/// Why pushes were not accepted.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("the server is shutting down")]
    Closed,
    #[error("the queue is full")]
    Full,
    #[error("the queue cannot store it: {0}")]
    NotStored(Box<dyn Error + Send + Sync>),
}

impl Intake {
    /// How many pushes should be accepted at once, if there are so many. A durable queue stores them
    /// together.
    pub fn at_once(&self) -> usize {
        match self {
            Self::Memory(_) => 1,
            Self::Durable(..) => 256,
        }
    }

    /// Accepts pushes, all of them or none.
    pub async fn accept(&self, pushes: Vec<Timed<Push>>) -> Result<(), Refusal> {
        match self {
            Self::Memory(queue) => pushes.into_iter().try_for_each(|push| {
                queue.try_push(push).map_err(|error| match error {
                    TryPushError::Closed(_) => Refusal::Closed,
                    _ => Refusal::Full,
                })
            }),
            Self::Durable(..) if self.is_closed() => Err(Refusal::Closed),
            Self::Durable(queue, _) => queue.store(&pushes).await.map_err(Refusal::NotStored),
        }
    }

    /// Accepts a push as soon as it can be. Returns whether it was; if not, the server is shutting
    /// down. A failure is reported once.
    pub async fn accept_when_possible(&self, push: Timed<Push>, report: impl Fn(&Refusal)) -> bool {
        let queue = match self {
            Self::Memory(queue) => return queue.push(push).await.is_ok(),
            Self::Durable(queue, _) => queue,
        };
        let mut reported = false;
        let pushes = [push];
        while !self.is_closed() {
            match queue.store(&pushes).await.map_err(Refusal::NotStored) {
                Ok(()) => return true,
                Err(refusal) if !reported => {
                    report(&refusal);
                    reported = true;
                }
                Err(_) => {}
            }
            sleep(TRY_AGAIN).await;
        }
        false
    }

    /// Whether no more pushes are accepted.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Memory(queue) => queue.is_closed(),
            Self::Durable(_, pipeline) => {
                let phase = pipeline.snapshot().phase;
                matches!(phase, PipelinePhase::Draining | PipelinePhase::Ended)
            }
        }
    }

    /// The state of the durable queue, if it is one: at most a second old.
    pub fn queue(&self) -> Option<SourceSnapshot> {
        match self {
            Self::Memory(_) => None,
            Self::Durable(_, pipeline) => {
                pipeline.snapshot().stages.into_iter().find_map(|stage| stage.source)
            }
        }
    }

    /// Waits until no more pushes are accepted.
    pub async fn closed(&self) {
        match self {
            Self::Memory(queue) => queue.closed().await,
            Self::Durable(_, pipeline) => pipeline.draining().await,
        }
    }
}

/// Opens a durable queue, whose pushes are delivered again so long after the death of their process.
pub async fn open(at: &QueueAt, lease: Duration) -> Result<Arc<dyn Durable>, String> {
    #[cfg(feature = "durable")]
    {
        Ok(crate::queues::open(at, lease).await?)
    }
    #[cfg(not(feature = "durable"))]
    {
        let _ = lease;
        Err(missing(at.broker()?))
    }
}

/// The advice for a queue whose feature this program was built without.
pub fn missing(broker: Broker) -> String {
    let (feature, flag) = (broker.feature(), broker.flag());
    format!(
        "this program was built without the feature `{feature}`: build it with \
         `cargo run --release -p push_to_users --features {feature} -- {flag}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_without_its_feature_is_answered_with_the_feature_to_add() {
        let server =
            |address: &str| QueueAt::Server { address: address.to_owned(), name: "p".to_owned() };
        let secret = "user:MARK@127.0.0.1:1";
        let file = QueueAt::File { path: "unused".into(), name: "p".to_owned() };
        let cases = [
            (file, "sqlite", cfg!(feature = "sqlite")),
            (server(&format!("redis://{secret}")), "redis", cfg!(feature = "redis")),
            (server(&format!("nats://{secret}")), "nats", cfg!(feature = "nats")),
            (server(&format!("postgres://{secret}/d")), "postgres", cfg!(feature = "postgres")),
            (server(&format!("amqp://{secret}")), "rabbitmq", cfg!(feature = "rabbitmq")),
            (server("kafka://127.0.0.1:1"), "kafka", cfg!(feature = "kafka")),
        ];
        for (at, feature, is_there) in cases {
            if !is_there {
                let advice = open(&at, TRY_AGAIN).await.err().unwrap();
                let without = format!("without the feature `{feature}`: ");
                assert!(advice.contains(&without), "{advice}");
                assert!(advice.contains(&format!("--features {feature} -- --")), "{advice}");
                assert!(!advice.contains("MARK"), "{advice}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_is_not_valid_is_refused_without_its_password() {
        for address in [
            "http://user:MARK@host",
            "user:MARK@host",
            "redis://user:MA/RK@host:port",
            "nats://user:MA/RK@host:4222",
            "postgres://user:MARK@host:port/d",
            "amqp://user:MARK@host:port/%zz",
        ] {
            let at = QueueAt::Server { address: address.to_owned(), name: "p".to_owned() };
            if let Err(error) = open(&at, TRY_AGAIN).await {
                assert!(!error.contains("MA"), "{address}: {error}");
            } else {
                panic!("{address} was accepted");
            }
        }
    }
}
