//! Where accepted pushes wait for a worker: in memory, or in a durable queue.

use std::{error::Error, future::Future, pin::Pin, sync::Arc, time::Duration};

use pipeline::{
    Pipeline,
    builder::StartError,
    snapshot::{PipelineObserver, PipelinePhase, SourceSnapshot},
    source::{TimedQueue, TryPushError},
    subscription::SubscribeOptions,
    timed::Timed,
};
use thiserror::Error;
use tokio::time::sleep;

use crate::{push::Push, users::PushToUser};

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
    /// Stores pushes, all of them or none.
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a>;

    /// Starts the pipeline that reads the queue.
    fn start(&self, work: PushToUser, demand: SubscribeOptions) -> Result<Pipeline, StartError>;
}

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

/// Opens the durable queue of the arguments, if they name one.
pub async fn open(durable: Option<&std::path::Path>) -> Result<Option<Arc<dyn Durable>>, String> {
    let Some(path) = durable else { return Ok(None) };
    #[cfg(feature = "sqlite")]
    {
        Ok(Some(Arc::new(crate::durable::open(path).await?)))
    }
    #[cfg(not(feature = "sqlite"))]
    {
        let _ = path;
        Err(missing("--durable", "sqlite"))
    }
}

/// The advice for a flag whose feature this program was built without.
#[cfg(any(test, not(feature = "sqlite")))]
pub fn missing(flag: &str, feature: &str) -> String {
    format!(
        "this program was built without {flag}: build it with \
         `cargo run --release -p push_to_users --features {feature} -- {flag} ..`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flag_without_its_feature_is_answered_with_the_feature_to_add() {
        let advice = missing("--durable", "sqlite");
        assert!(advice.contains("--features sqlite -- --durable"), "{advice}");
        if cfg!(not(feature = "sqlite")) {
            let opened = open(Some("unused".as_ref())).await;
            assert_eq!(opened.err(), Some(advice));
        }
    }
}
