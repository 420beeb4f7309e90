//! Throughput of stages per second: those of the library, and hand-written equivalents.

pub(crate) mod baseline;
pub(crate) mod library;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pipeline_core::{
    ExitReason,
    stage::{Consumer, Emitter, Producer},
    subscription::Subscription,
};
use tokio::time::{Instant, sleep};

/// The warm-up and the duration of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) counted: Duration,
}

/// Emits numbers on demand.
#[derive(Default)]
struct Numbers(u64);

impl Producer for Numbers {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        let end = self.0 + demand as u64;
        out.emit_all(self.0..end);
        self.0 = end;
        Ok(())
    }
}

/// Counts the events that it receives.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn add(&self, events: Vec<u64>) {
        let events = black_box(events);
        self.0.fetch_add(events.len() as u64, Ordering::Relaxed);
    }

    fn add_one(&self, event: u64) {
        black_box(event);
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The number of events counted per second.
    async fn per_second(&self, window: Window) -> f64 {
        sleep(window.warm_up).await;
        let (before, began) = (self.get(), Instant::now());
        sleep(window.counted).await;
        (self.get() - before) as f64 / began.elapsed().as_secs_f64()
    }
}

impl Consumer for Count {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        self.add(events);
        Ok(())
    }
}
