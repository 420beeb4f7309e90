//! How many events pass through stages in a second: those of the library, and what one would write by
//! hand instead.

pub(crate) mod by_hand;
pub(crate) mod library;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pipeline_core::{Consumer, Emitter, ExitReason, Producer, Subscription};
use tokio::time::{Instant, sleep};

/// How long events flow before they are counted, and how long they are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) counted: Duration,
}

/// Emits numbers, as many as are asked for.
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

/// Counts what it receives.
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

    /// How many are counted in a second.
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
