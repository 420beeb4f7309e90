//! The measured parts of a push's time, and the stamp that its frames carry.

use std::time::Duration;

use metrics::Histogram;
use pipeline_core::{
    telemetry::Telemetry,
    timed::{Timeline, TraceContext},
};
use tokio::time::Instant;

use super::{Deliveries, log_line, shown};
use crate::protocol::message::Encoded;

/// The start time of a timed event, and its trace: the data that is needed once its frame has been
/// written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PushStamp {
    /// When its item was enqueued.
    pub(crate) enqueued_at: Instant,
    pub(crate) broadcast_at: Instant,
    pub(crate) trace: Option<TraceContext>,
}

impl PushStamp {
    pub(crate) fn new(timeline: &Timeline, broadcast_at: Instant) -> Self {
        Self { enqueued_at: timeline.enqueued_at(), broadcast_at, trace: timeline.trace() }
    }
}

/// The parts up to the broadcast.
pub(crate) struct BroadcastTimes {
    queued: Histogram,
    waited: Histogram,
    worked: Histogram,
}

/// The write, and the whole push.
pub(crate) struct WriteTimes {
    written: Histogram,
    pub(crate) delivered: Deliveries,
}

impl BroadcastTimes {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let histogram = |name, description| telemetry.timer(name, description, []);
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
        }
    }

    /// Records a broadcast: the parts that are known.
    pub(crate) fn record(&self, event: &Encoded, timeline: &Timeline, broadcast_at: Instant) {
        let (queued, waited) = (timeline.queue_time(), timeline.dispatch_time());
        let worked = timeline.work_time(broadcast_at);
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
}

impl WriteTimes {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let histogram = |name, description| telemetry.timer(name, description, []);
        Self {
            written: histogram(
                "pipeline.push_written",
                "Time from the broadcast of an item until it was written to a socket",
            ),
            delivered: Deliveries::from(histogram(
                "pipeline.push_delivered",
                "Time from the enqueue of an item until it was written to a socket",
            )),
        }
    }

    /// Records a write to one socket.
    pub(crate) fn record(&self, stamp: &PushStamp, now: Instant) {
        let written = milliseconds(now.saturating_duration_since(stamp.broadcast_at));
        let delivered = milliseconds(now.saturating_duration_since(stamp.enqueued_at));
        self.written.record(written);
        self.delivered.record(delivered);
        if let Some(trace) = stamp.trace {
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

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
impl PushStamp {
    pub(crate) fn now() -> Self {
        Self::new(&Instant::now().into(), Instant::now())
    }
}
