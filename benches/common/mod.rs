//! Source and sink of the measured pipelines.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use pipeline::{
    ExitReason,
    stage::{Consumer, Emitter, Producer},
    subscription::Subscription,
};

/// Events per measurement.
pub(crate) const EVENTS: u64 = 100_000;

/// A producer that emits this many numbers, on demand, and ends.
#[derive(Default)]
pub(crate) struct Numbers {
    next: u64,
}

impl Producer for Numbers {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        let end = EVENTS.min(self.next + demand as u64);
        out.emit_all(self.next..end);
        self.next = end;
        if end == EVENTS {
            out.finish();
        }
        Ok(())
    }
}

/// A consumer that counts events.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    pub(crate) fn add(&self, events: Vec<u64>) {
        let events = black_box(events);
        self.0.fetch_add(events.len() as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
