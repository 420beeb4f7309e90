//! The metrics of stages and of consumer supervisors: those that they record, and those sampled
//! from their gauges.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use super::{StageLabels, Telemetry, milliseconds};
use crate::snapshot::StageSnapshot;

/// Why events were discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// The stage's buffer was full.
    BufferFull,
    /// The queue was full.
    QueueFull,
    /// The items waited in the queue for longer than its `max_age`.
    TooOld,
    /// There were no subscribers, and the stage keeps no events for later.
    Unsubscribed,
    /// The dispatcher found no subscriber that wants them.
    Filtered,
    /// The dispatcher does not know their destination.
    Unroutable,
}

impl Discard {
    /// A reason's number is its index here.
    pub(crate) const ALL: [Self; 6] = [
        Self::BufferFull,
        Self::QueueFull,
        Self::TooOld,
        Self::Unsubscribed,
        Self::Filtered,
        Self::Unroutable,
    ];

    /// The reasons that a stage's report counts: the others are no loss of accepted events, or the
    /// queue's own.
    pub(crate) const REPORTED: [Self; 3] = [Self::BufferFull, Self::Unsubscribed, Self::Unroutable];

    /// The name of the reason in metrics and snapshots.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::QueueFull => "queue_full",
            Self::TooOld => "too_old",
            Self::Unsubscribed => "unsubscribed",
            Self::Filtered => "filtered",
            Self::Unroutable => "unroutable",
        }
    }
}

/// Why an item was not pushed into a queue, although the queue was open. Its sender still has it, or has dropped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue was full.
    QueueFull,
    /// The queue was full for the item's key.
    KeyFull,
    /// The sender waited for room, and has stopped waiting.
    GaveUp,
}

impl Refusal {
    /// A reason's number is its index here.
    pub(crate) const ALL: [Self; 3] = [Self::QueueFull, Self::KeyFull, Self::GaveUp];

    /// The name of the reason in metrics and snapshots.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::KeyFull => "key_full",
            Self::GaveUp => "gave_up",
        }
    }
}

/// Why a supervisor gave an event up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// Its workers failed too often, its worker did not start, or its key could not be found.
    Failed,
    /// Its worker said that another try would not help.
    Final,
    /// Too many events of its key waited.
    KeyFull,
}

impl GivenUp {
    /// A reason's number is its index here.
    pub(crate) const ALL: [Self; 3] = [Self::Failed, Self::Final, Self::KeyFull];

    /// The name of the reason in metrics.
    const fn reason(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Final => "final",
            Self::KeyFull => "key_full",
        }
    }
}

/// The metrics of one stage.
#[derive(Clone, Debug)]
pub(crate) struct StageMetrics {
    pub(crate) events_in: Counter,
    pub(crate) events_out: Counter,
    /// By reason.
    discarded: [Counter; Discard::ALL.len()],
}

impl StageMetrics {
    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let discarded = |why: Discard| {
            telemetry.counter(
                "pipeline.events_discarded",
                "Events thrown away, by reason",
                labels.iter().cloned().chain([("reason", why.reason().to_owned())]),
            )
        };
        let events = |name, description| telemetry.counter(name, description, labels.clone());
        Self {
            events_in: events("pipeline.events_in", "Events that arrived at a stage"),
            events_out: events("pipeline.events_out", "Events that a stage sent to its consumers"),
            discarded: Discard::ALL.map(discarded),
        }
    }

    pub(crate) fn discarded(&self, why: Discard, events: u64) {
        self.discarded[why as usize].increment(events);
    }
}

/// The metrics of one consumer supervisor.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    /// The time from the start of a worker to its end, separately for each attempt.
    pub(crate) process_time: Histogram,
    pub(crate) failed: Counter,
    pub(crate) restarted: Counter,
    /// By reason.
    given_up: [Counter; GivenUp::ALL.len()],
    /// The current limit of children, for an adaptive supervisor.
    pub(crate) limit: Gauge,
}

impl WorkerMetrics {
    /// Records nothing.
    pub(crate) fn none() -> Self {
        let nothing = Counter::noop();
        Self {
            process_time: Histogram::noop(),
            failed: nothing.clone(),
            restarted: nothing.clone(),
            given_up: GivenUp::ALL.map(|_| nothing.clone()),
            limit: Gauge::noop(),
        }
    }

    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let given_up = |why: GivenUp| {
            telemetry.counter(
                "pipeline.worker.given_up",
                "Events that were given up, by reason",
                labels.iter().cloned().chain([("reason", why.reason().to_owned())]),
            )
        };
        Self {
            process_time: telemetry.timer(
                "pipeline.worker.process_time",
                "From the start of a worker to its end",
                labels.clone(),
            ),
            failed: telemetry.counter(
                "pipeline.worker.failures",
                "Workers that ended with an error or a panic",
                labels.clone(),
            ),
            restarted: telemetry.counter(
                "pipeline.worker.restarts",
                "Workers started again with the same event",
                labels.clone(),
            ),
            given_up: GivenUp::ALL.map(given_up),
            limit: telemetry.gauge(
                "pipeline.worker.limit",
                "How many workers an adaptive supervisor lets run at once",
                labels.clone(),
            ),
        }
    }

    pub(crate) fn given_up(&self, why: GivenUp) {
        self.given_up[why as usize].increment(1);
    }
}

/// A batch that takes less is short: reading the clock twice would be a large part of it.
const SHORT: Duration = Duration::from_micros(20);

/// How many batches are not timed after a short one.
const SKIP: usize = 15;

/// Times batches: all of them while they are long, and one in 16 while they are short, which then
/// counts for the untimed ones as well.
#[derive(Debug)]
pub(crate) struct BatchTimer {
    time: Histogram,
    /// How many batches have not been timed since the last timed one.
    untimed: usize,
    /// How many are to be skipped.
    skip: usize,
}

impl BatchTimer {
    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let time = telemetry.timer(
            "pipeline.stage.handle_time",
            "How long a stage took for a batch of events, or for a demand",
            labels.clone(),
        );
        Self { time, untimed: 0, skip: 0 }
    }

    /// A timer that times nothing.
    pub(crate) fn none() -> Self {
        Self { time: Histogram::noop(), untimed: 0, skip: usize::MAX }
    }

    /// Begins a batch. The result has to be passed to [`end`](Self::end).
    #[inline]
    pub(crate) fn begin(&mut self) -> Option<Instant> {
        if self.untimed < self.skip {
            self.untimed += 1;
            return None;
        }
        Some(Instant::now())
    }

    /// Ends a batch.
    #[inline]
    pub(crate) fn end(&mut self, begun: Option<Instant>) {
        if let Some(begun) = begun {
            self.record(begun.elapsed());
        }
    }

    fn record(&mut self, took: Duration) {
        self.time.record_many(milliseconds(took), 1 + self.untimed);
        self.untimed = 0;
        self.skip = if took < SHORT { SKIP } else { 0 };
    }
}

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
    /// By reason, and only for a stage with a queue.
    refused: Option<[Growing; Refusal::ALL.len()]>,
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
        let refused = |why: Refusal| Growing {
            counter: telemetry.counter(
                "pipeline.events_refused",
                "Items that a queue did not take, by reason",
                labels.iter().cloned().chain([("reason", why.reason().to_owned())]),
            ),
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
            refused: seen.queue_capacity.map(|_| Refusal::ALL.map(refused)),
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
            seen.subscriptions.iter().map(|to| to.pending_demand).fold(0, usize::saturating_add);
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
        for (counter, why) in self.refused.iter_mut().flatten().zip(Refusal::ALL) {
            counter.reach(seen.refused_by.get(why.reason()).copied().unwrap_or_default());
        }
        self.restarts.reach(seen.restarts);
        self.failures.reach(seen.failures);
        self.busy.reach(whole_milliseconds(seen.busy));
        self.waiting_for_events.reach(whole_milliseconds(seen.waiting_for_events));
        self.waiting_for_demand.reach(whole_milliseconds(seen.waiting_for_demand));
    }
}

impl Growing {
    fn reach(&mut self, sum: u64) {
        self.counter.increment(sum.saturating_sub(self.counted));
        self.counted = self.counted.max(sum);
    }
}

fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_number() {
        for why in Discard::ALL {
            assert_eq!(Discard::ALL[why as usize], why);
        }
    }
}
