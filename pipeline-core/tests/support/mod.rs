//! What the stage tests share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests too")]

use std::sync::Arc;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use pipeline_core::{
    ConsumerSupervisor, ExitReason, Pipeline, Producer, SubscribeOptions, Telemetry, Worker,
};
use tokio::sync::{Semaphore, mpsc};

/// A pipeline of a producer and supervised workers.
pub fn supervised<P, W>(
    producer: P,
    supervisor: ConsumerSupervisor<P::Event, W>,
    max_demand: usize,
    min_demand: usize,
) -> Pipeline
where
    P: Producer<Event: Sync>,
    W: Worker<P::Event>,
{
    let options = SubscribeOptions::new().max_demand(max_demand).min_demand(min_demand);
    Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(supervisor, options)
        .start()
        .unwrap()
}

/// Workers that say when they start, and end when they are let go.
#[derive(Clone)]
pub struct Gate {
    started: mpsc::Sender<u64>,
    leave: Arc<Semaphore>,
}

/// The test's side of a [`Gate`].
pub struct Keeper {
    started: mpsc::Receiver<u64>,
    leave: Arc<Semaphore>,
}

pub fn gate() -> (Gate, Keeper) {
    let (sender, started) = mpsc::channel(1000);
    let leave = Arc::new(Semaphore::new(0));
    (Gate { started: sender, leave: leave.clone() }, Keeper { started, leave })
}

impl Gate {
    pub async fn pass(&self, event: u64) -> Result<(), ExitReason> {
        self.started.send(event).await?;
        self.leave.acquire().await?.forget();
        Ok(())
    }
}

impl Keeper {
    /// Waits for so many workers to start; their events.
    pub async fn started(&mut self, count: usize) -> Vec<u64> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.started.recv().await.unwrap());
        }
        events
    }

    /// Lets so many workers end.
    pub fn let_go(&self, count: usize) {
        self.leave.add_permits(count);
    }

    /// Asserts that no further worker starts, having given every task the time to start one. Needs
    /// a current-thread runtime.
    pub async fn assert_none_starts(&mut self) {
        settle().await;
        assert_eq!(self.started.try_recv().ok(), None);
    }
}

/// Runs all other tasks of a current-thread runtime until they wait for something.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// A recorder to look into.
pub struct Recorded(Snapshotter);

pub fn recorder() -> (Telemetry, Recorded) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    (Telemetry::to(recorder), Recorded(snapshotter))
}

impl Recorded {
    /// The sum of a counter over all its series with this label, since the last look.
    pub fn counter(&self, name: &str, label: (&str, &str)) -> u64 {
        let values = self.0.snapshot().into_vec().into_iter();
        values
            .filter(|(key, ..)| {
                let key = key.key();
                let labelled = |(k, v)| key.labels().any(|l| (l.key(), l.value()) == (k, v));
                key.name() == name && labelled(label)
            })
            .map(|(.., value)| match value {
                DebugValue::Counter(count) => count,
                other => panic!("{name} is {other:?}"),
            })
            .sum()
    }

    /// The samples of a histogram since the last look.
    pub fn samples(&self, name: &str) -> Vec<f64> {
        let values = self.0.snapshot().into_vec().into_iter();
        values
            .filter(|(key, ..)| key.key().name() == name)
            .flat_map(|(.., value)| match value {
                DebugValue::Histogram(samples) => samples,
                other => panic!("{name} is {other:?}"),
            })
            .map(f64::from)
            .collect()
    }
}
