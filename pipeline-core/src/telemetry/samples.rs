//! Metrics that are sampled from a stage's gauges.

use std::time::Duration;

use metrics::{Counter, Gauge};

use super::{StageLabels, Telemetry};
use crate::snapshot::StageSnapshot;

/// The metrics of one stage that are sampled from its gauges, at no cost to the stage.
pub(crate) struct StageSamples {
    demand_pending: Gauge,
    events_buffered: Gauge,
    events_waiting: Gauge,
    subscriptions: Gauge,
    /// Only for a supervisor.
    workers: Option<Gauge>,
    /// Only for a stage with a queue.
    queued: Option<Gauge>,
    restarts: Growing,
    failures: Growing,
    busy: Growing,
    waiting_for_events: Growing,
    waiting_for_demand: Growing,
}

/// A counter of a value that is known as a total. Several pipelines may have the same name; then it
/// is a sum of totals.
struct Growing {
    counter: Counter,
    counted: u64,
}

impl StageSamples {
    /// Registers the metrics of a stage with this snapshot.
    pub(crate) fn register(
        telemetry: &Telemetry,
        labels: &StageLabels,
        seen: &StageSnapshot,
    ) -> Self {
        let gauge = |name, description| telemetry.gauge(name, description, labels.clone());
        let growing = |name, description| Growing {
            counter: telemetry.counter(name, description, labels.clone()),
            counted: 0,
        };
        Self {
            demand_pending: gauge(
                "pipeline.demand_pending",
                "Events that a stage's consumers have asked for and not been sent",
            ),
            events_buffered: gauge(
                "pipeline.events_buffered",
                "Events that a stage has emitted and that wait for demand",
            ),
            events_waiting: gauge(
                "pipeline.events_waiting",
                "Events that have arrived at a stage and wait to be handled",
            ),
            subscriptions: gauge(
                "pipeline.subscriptions",
                "How many consumers have subscribed to a stage",
            ),
            workers: seen
                .workers
                .map(|_| gauge("pipeline.workers", "How many children of a supervisor are alive")),
            queued: seen.queue_capacity.map(|_| {
                gauge("pipeline.events_queued", "Items that wait in the queue before a stage")
            }),
            restarts: growing("pipeline.stage.restarts", "How often a stage was started again"),
            failures: growing(
                "pipeline.stage.failures",
                "How often a stage failed, whether it was started again or not",
            ),
            busy: growing("pipeline.stage.busy_time", "Milliseconds in which a stage worked"),
            waiting_for_events: growing(
                "pipeline.stage.event_wait_time",
                "Milliseconds in which a stage waited for events",
            ),
            waiting_for_demand: growing(
                "pipeline.stage.demand_wait_time",
                "Milliseconds in which a stage waited for demand",
            ),
        }
    }

    pub(crate) fn record(&mut self, seen: &StageSnapshot) {
        let pending: usize =
            seen.subscriptions.iter().map(|to| to.pending).fold(0, usize::saturating_add);
        self.demand_pending.set(pending as f64);
        self.events_buffered.set(seen.buffered as f64);
        self.events_waiting.set(seen.waiting as f64);
        self.subscriptions.set(seen.subscriptions.len() as f64);
        if let (Some(gauge), Some(workers)) = (&self.workers, seen.workers) {
            gauge.set(workers as f64);
        }
        if let Some(gauge) = &self.queued {
            gauge.set(seen.queued as f64);
        }
        self.restarts.reach(seen.restarts);
        self.failures.reach(seen.failures);
        self.busy.reach(milliseconds(seen.busy));
        self.waiting_for_events.reach(milliseconds(seen.waiting_for_events));
        self.waiting_for_demand.reach(milliseconds(seen.waiting_for_demand));
    }
}

impl Growing {
    fn reach(&mut self, sum: u64) {
        self.counter.increment(sum.saturating_sub(self.counted));
        self.counted = self.counted.max(sum);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
