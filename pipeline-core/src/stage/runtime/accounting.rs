//! What a stage counts: in its report, its gauges, its metrics, and the log.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::super::{StageContext, gauges::Gauges};
use crate::{
    discarding::{Discarding, Seldom},
    exit::ExitReason,
    report::StageReport,
    shown::shown,
    snapshot::StageKind,
    telemetry::{BatchTimer, Discard, StageMetrics},
    wiring::Unprocessed,
};

/// The counts of a stage.
pub(super) struct Accounting {
    pub(super) report: StageReport,
    pub(super) gauges: Arc<Gauges>,
    metrics: StageMetrics,
    /// Unused by supervisors, which time each worker.
    pub(super) timer: BatchTimer,
    /// The number of events in the current callback.
    in_callback: usize,
    /// The number of events behind them in the same message.
    rest_of_message: usize,
    /// Whether the full buffer is discarding events.
    overflowing: Discarding,
    /// Selects which discards of unroutable events are logged.
    unroutable: Seldom,
    /// Selects which warnings of the dispatcher are logged.
    warnings: Seldom,
}

impl Accounting {
    pub(super) fn new<H>(kind: StageKind, context: &StageContext<H>) -> Self {
        let labels = context.labels();
        Self {
            report: StageReport::new(context.stage.clone(), ExitReason::Normal),
            gauges: context.gauges.clone(),
            metrics: StageMetrics::register(&context.telemetry, &labels),
            timer: match kind {
                StageKind::ConsumerSupervisor => BatchTimer::none(),
                _ => BatchTimer::register(&context.telemetry, &labels),
            },
            in_callback: 0,
            rest_of_message: 0,
            overflowing: Discarding::default(),
            unroutable: Seldom::default(),
            warnings: Seldom::default(),
        }
    }

    /// The name of the stage.
    pub(super) fn stage(&self) -> &Arc<str> {
        &self.report.stage
    }

    #[inline]
    pub(super) fn count_received(&self, events: usize) {
        self.metrics.events_in.increment(events as u64);
        self.gauges.events_in.add(events);
    }

    #[inline]
    pub(super) fn count_sent(&self, events: usize) {
        self.metrics.events_out.increment(events as u64);
        self.gauges.events_out.add(events);
    }

    /// Counts events that the stage has and will not deliver.
    pub(super) fn count_pending(&mut self, events: usize) {
        self.report.pending += events;
    }

    /// Counts discarded events that are a loss.
    pub(super) fn count_discarded(&mut self, why: Discard, events: usize) {
        self.report.discarded += events;
        self.gauges.discarded(why, events);
        self.metrics.discarded(why, events as u64);
    }

    /// Counts events that no consumer wants, which are no loss.
    pub(super) fn count_filtered(&self, events: usize) {
        self.gauges.discarded(Discard::Filtered, events);
        self.metrics.discarded(Discard::Filtered, events as u64);
    }

    /// Records that a callback receives a chunk of a message. `rest` events are behind it in the message,
    /// and `inlet` in the inlet.
    #[inline]
    pub(super) fn chunk_begins(&mut self, kind: StageKind, size: usize, rest: usize, inlet: usize) {
        self.rest_of_message = rest;
        self.in_callback = size;
        if kind == StageKind::ConsumerSupervisor {
            // The stage counts the events it takes itself.
            self.gauges.waiting.store(inlet + rest, Relaxed);
        } else {
            // For the report, if the callback does not return.
            self.gauges.set_in_callback(size, inlet + rest);
        }
    }

    /// Records that the callback has returned, and whether it has handled its events.
    #[inline]
    pub(super) fn chunk_ended(&mut self, kind: StageKind, handled: bool, inlet: usize) {
        if handled {
            self.in_callback = 0;
        }
        if kind != StageKind::ConsumerSupervisor {
            self.gauges.set_in_callback(self.in_callback, inlet + self.rest_of_message);
        }
    }

    /// Counts the events that the stage has when it ends: those that it knows of itself, or else
    /// those of the current callback, and those that wait.
    pub(super) fn count_unprocessed(&mut self, known: Option<Unprocessed>, waiting: usize) {
        // The stage may have a more exact count than the number of events given to a failed
        // callback.
        let unprocessed =
            known.unwrap_or(Unprocessed { pending: 0, in_progress: self.in_callback });
        self.report.in_progress += unprocessed.in_progress;
        self.report.pending += unprocessed.pending + self.rest_of_message + waiting;
    }

    /// Logs that the buffer has begun to discard events.
    pub(super) fn log_overflow(&mut self, discarded: usize) {
        if self.overflowing.add(discarded) {
            tracing::warn!(stage = %self.stage(), discarded, "the buffer is full, discarding");
        }
    }

    /// Logs that the buffer has stopped discarding events, if it had begun.
    #[inline]
    pub(super) fn log_room(&mut self, has_room: bool) {
        let discarded = self.overflowing.over(has_room);
        if discarded > 0 {
            tracing::warn!(stage = %self.stage(), discarded, "the buffer has room again");
        }
    }

    pub(super) fn log_unroutable(&mut self, events: usize) {
        if let Some(discarded) = self.unroutable.log(events) {
            let stage = self.stage();
            tracing::warn!(%stage, discarded, "discarded events for an unknown partition");
        }
    }

    pub(super) fn log_warnings(&mut self, warnings: Vec<Cow<'static, str>>) {
        for warning in warnings {
            if let Some(times) = self.warnings.log(1) {
                tracing::warn!(stage = %self.stage(), warning = shown(&warning), times, "dispatcher warning");
            }
        }
    }
}
