//! Metrics and log lines that are recorded once no lock is held.

use std::{cell::Cell, mem, thread, time::Duration};

use pipeline_core::timed::TraceContext;
use tokio::time::Instant;

use super::backlog::{Dropped, Outgoing};
use crate::telemetry::SocketMetrics;

/// How many entries a thread keeps memory for.
const KEPT: usize = 4096;

thread_local! {
    /// Memory for the next use on this thread, so that a broadcast does not allocate per socket.
    static SPARE: Cell<Vec<Timed>> = const { Cell::new(Vec::new()) };
}

/// The writes to sockets of an endpoint, and the dropped frames, until they are
/// [recorded](Self::record).
///
/// The recorder and the log's subscribers are code of the application: they may broadcast or block. So
/// nothing is recorded while an outbox is locked, or the topic of a broadcast.
#[derive(Default)]
#[must_use]
pub(crate) struct PendingMetrics {
    /// The number of completed frames.
    frames: u64,
    timed: Vec<Timed>,
    dropped: Dropped,
    /// Frames that waited for a client that was too slow.
    pub(super) dropped_by_overflow: usize,
    /// Frames that waited for a client whose connection has ended.
    pub(super) dropped_by_end: usize,
    /// The number of sockets closed because their client was too slow.
    pub(super) closed_slow: u64,
}

/// A duration to record.
enum Timed {
    /// A write, with its start and its end.
    Write(Instant, Instant),
    /// A completed frame: the time of its write, and of its whole push. Not the frame itself: as
    /// long as it is kept, it counts for the endpoint's outboxes.
    Frame { written: Option<Duration>, delivered: Duration, trace: Option<TraceContext> },
}

impl PendingMetrics {
    /// Adds a completed frame.
    pub(super) fn frame(&mut self, outgoing: &Outgoing, now: Instant) {
        self.frames += 1;
        outgoing.was_written();
        if let Some(timeline) = &outgoing.timeline {
            let (written, delivered) = (timeline.write_time(now), timeline.total_time(now));
            self.push(Timed::Frame { written, delivered, trace: timeline.trace() });
        }
    }

    /// Adds a write that has ended, if its start is known.
    pub(super) fn wrote(&mut self, begun: Option<Instant>, now: Instant) {
        if let Some(begun) = begun {
            self.push(Timed::Write(begun, now));
        }
    }

    /// Adds the frames that were dropped to make room.
    pub(super) fn dropped(&mut self, dropped: Dropped) {
        self.dropped = self.dropped.plus(dropped);
    }

    fn push(&mut self, timed: Timed) {
        if self.timed.capacity() == 0 {
            self.timed = SPARE.try_with(Cell::take).unwrap_or_default();
        }
        self.timed.push(timed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
            && self.timed.is_empty()
            && self.dropped.is_none()
            && self.dropped_by_overflow + self.dropped_by_end == 0
            && self.closed_slow == 0
    }

    /// Records everything. The caller holds no lock.
    pub(crate) fn record(mut self, metrics: &SocketMetrics) {
        let Dropped { oldest, newest, superseded } = mem::take(&mut self.dropped);
        let counts = [
            (&metrics.frames_out, mem::take(&mut self.frames)),
            (&metrics.dropped_oldest, oldest as u64),
            (&metrics.dropped_newest, newest as u64),
            (&metrics.dropped_superseded, superseded as u64),
            (&metrics.dropped_by_overflow, mem::take(&mut self.dropped_by_overflow) as u64),
            (&metrics.dropped_by_end, mem::take(&mut self.dropped_by_end) as u64),
            (&metrics.closed_slow, mem::take(&mut self.closed_slow)),
        ];
        for (counter, count) in counts {
            if count > 0 {
                counter.increment(count);
            }
        }
        for timed in self.timed.drain(..) {
            match timed {
                Timed::Write(begun, ended) => metrics.write_time.end(Some(begun), ended),
                Timed::Frame { written, delivered, trace } => {
                    metrics.push_times.record_write(written, delivered, trace);
                }
            }
        }
    }
}

impl Drop for PendingMetrics {
    fn drop(&mut self) {
        debug_assert!(thread::panicking() || self.is_empty(), "dropped without being recorded");
        let mut timed = mem::take(&mut self.timed);
        if (1..=KEPT).contains(&timed.capacity()) {
            timed.clear();
            // A thread that is ending keeps nothing.
            let _ = SPARE.try_with(|spare| spare.set(timed));
        }
    }
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::Recorded;

    use super::*;

    #[test]
    fn a_metric_whose_recorder_panics_takes_no_other_with_it() {
        let (telemetry, recorded) = Recorded::new();
        let metrics = SocketMetrics::register(&telemetry);
        recorded.panic_at("socket.frames_out");
        let mut pending = PendingMetrics::default();
        (pending.frames, pending.dropped_by_overflow, pending.closed_slow) = (1, 10, 1);
        let (written, delivered) = (Some(Duration::ZERO), Duration::ZERO);
        pending.timed.push(Timed::Frame { written, delivered, trace: None });
        pending.record(&metrics);
        assert_eq!(recorded.panics(), 1);
        assert_eq!(metrics.frames_out.get(), 1);
        assert_eq!((metrics.closed_slow.get(), metrics.dropped_by_overflow.get()), (1, 10));
        assert_eq!(recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
        let overflow = "reason=overflow".to_owned();
        assert_eq!(recorded.counters("socket.frames_dropped"), [(overflow, 10)]);
        assert_eq!(recorded.samples("pipeline.push_delivered").len(), 1);
    }
}
