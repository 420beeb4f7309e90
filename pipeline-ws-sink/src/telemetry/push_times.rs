//! The measured parts of a push's time.

use std::time::Duration;

use pipeline_core::{
    telemetry::{Telemetry, milliseconds},
    timed::TraceContext,
};

use super::{LatencyHistogram, log_line, shown};
use crate::protocol::message::Encoded;

/// Histograms of the parts of a push's time: those up to the broadcast, the write, and the whole.
pub(crate) struct PushTimes {
    pub(crate) queued: LatencyHistogram,
    pub(crate) waited: LatencyHistogram,
    pub(crate) worked: LatencyHistogram,
    pub(crate) written: LatencyHistogram,
    pub(crate) delivered: LatencyHistogram,
}

impl PushTimes {
    pub(super) fn register(telemetry: &Telemetry) -> Self {
        let histogram =
            |name, description| LatencyHistogram::from(telemetry.timer(name, description, []));
        Self {
            queued: histogram(
                "pipeline.push_queued",
                "Time from the enqueue of an item until it left its queue",
            ),
            waited: histogram(
                "pipeline.push_waited",
                "Time from the dequeue of an item to the start of its worker",
            ),
            worked: histogram(
                "pipeline.push_worked",
                "Time from the start of an item's worker to the broadcast",
            ),
            written: histogram(
                "pipeline.push_written",
                "Time from the broadcast of an item until it was written to a socket",
            ),
            delivered: histogram(
                "pipeline.push_delivered",
                "Time from the enqueue of an item until it was written to a socket",
            ),
        }
    }

    /// Records a broadcast, if it is timed: the parts that are known.
    pub(crate) fn record_broadcast(&self, event: &Encoded) {
        let Some(timeline) = event.timeline() else { return };
        let (queued, waited) = (timeline.queue_time(), timeline.dispatch_time());
        let worked = timeline.broadcast_at().and_then(|at| timeline.work_time(at));
        let legs = [(&self.queued, queued), (&self.waited, waited), (&self.worked, worked)];
        for (histogram, leg) in legs {
            if let Some(leg) = leg {
                histogram.record(milliseconds(leg));
            }
        }
        if let Some(trace) = timeline.trace() {
            log_line!(
                TRACE,
                trace_id = %trace.trace_id(),
                topic = shown(event.topic()),
                event = shown(event.event()),
                queued_ms = queued.map(milliseconds),
                waited_ms = waited.map(milliseconds),
                worked_ms = worked.map(milliseconds),
                "broadcast"
            );
        }
    }

    /// Records a write to one socket: its own time, and that of the whole push.
    pub(crate) fn record_write(
        &self,
        written: Option<Duration>,
        delivered: Duration,
        trace: Option<TraceContext>,
    ) {
        let (written, delivered) = (written.map(milliseconds), milliseconds(delivered));
        if let Some(written) = written {
            self.written.record(written);
        }
        self.delivered.record(delivered);
        if let Some(trace) = trace {
            log_line!(
                TRACE,
                trace_id = %trace.trace_id(),
                written_ms = written,
                delivered_ms = delivered,
                "written to a socket"
            );
        }
    }
}

/// The timeline of an event that is enqueued and broadcast now.
#[cfg(test)]
pub(crate) fn broadcast_now() -> pipeline_core::timed::Timeline {
    let now = tokio::time::Instant::now();
    pipeline_core::timed::Timeline::from(now).with_broadcast_at(now)
}
