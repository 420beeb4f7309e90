//! The metrics and log lines of the endpoint.

pub(crate) mod contained;
mod filter;
pub(crate) mod latencies;
mod latency_histogram;
mod line_limit;
#[cfg(test)]
mod lock_probe;
pub(crate) mod log;
mod mount_metrics;
mod push_metrics;
pub(crate) mod push_times;
mod tally;
mod timers;

use std::sync::Arc;

use metrics::Counter;
pub(crate) use pipeline_core::shown::{described, shown};
use pipeline_core::telemetry::Telemetry;

pub use self::filter::ParamFilter;
#[cfg(test)]
pub(crate) use self::lock_probe::LockProbe;
pub(crate) use self::{
    contained::{ContainedSpan, InSpan, log_enabled, log_line},
    latency_histogram::LatencyHistogram,
    line_limit::{LineLimit, limited},
    mount_metrics::{LimitMetrics, MountMetrics, RouteMetrics},
    push_metrics::{PushMetrics, WakeMetrics},
    tally::{Level, Tally},
    timers::{Outcome, begin_event},
};
use self::{push_times::PushTimes, timers::WriteTime};

// The reasons for which frames are dropped.
const OVERFLOW: &str = "overflow";
const OLDEST: &str = "drop_oldest";
const NEWEST: &str = "drop_newest";
const SUPERSEDED: &str = "superseded";
const MAILBOX: &str = "mailbox";
const ENDED: &str = "ended";

/// The metrics that all sockets of an endpoint share.
pub(crate) struct SocketMetrics {
    /// Frames from clients, including control frames.
    pub(crate) frames_in: Tally,
    /// Frames whose last byte was written.
    pub(crate) frames_out: Tally,
    /// The time of a write to the system, for any number of frames.
    pub(crate) write_time: WriteTime,
    /// Events that were broadcast on this node, with or without subscribers.
    pub(crate) broadcasts: Tally,
    /// Events of pipelines that were dropped because their topic has no subscribers.
    pub(crate) events_without_subscribers: Counter,
    /// The parts of a push's time.
    pub(crate) push_times: PushTimes,
    /// Frames that waited for a client that was closed as too slow.
    pub(crate) dropped_by_overflow: Tally,
    /// The oldest frames, dropped to make room for another.
    pub(crate) dropped_oldest: Tally,
    /// New frames without room, or the newest waiting ones, dropped for an answer.
    pub(crate) dropped_newest: Tally,
    /// Frames replaced by a later one of the same topic and event.
    pub(crate) dropped_superseded: Tally,
    /// Frames that waited for a channel that intercepts them and was too slow.
    pub(crate) dropped_by_mailbox: Tally,
    /// Frames that waited for a client whose connection has ended, for any reason.
    pub(crate) dropped_by_end: Tally,
    /// How often reading from a client paused because its inbox was full.
    pub(crate) reads_paused_by_inbox: Counter,
    /// How often reading from a client paused because too much waited for its joins.
    pub(crate) reads_paused_by_joins: Counter,
    /// How often reading from a client paused because it exceeded its rate.
    pub(crate) reads_paused_by_rate: Counter,
    /// Sockets that were closed because their client was too slow.
    pub(crate) closed_slow: Tally,
    /// Channels that an operator has ended.
    pub(crate) channels_ended: Counter,
    /// Sockets that an operator has closed, one by one.
    pub(crate) sockets_ended: Counter,
    /// How often an operator has closed all sockets of an id.
    pub(crate) ids_ended: Counter,
    /// Sockets whose client was told that their end is near.
    pub(crate) expiries_warned: Counter,
    /// Ends that channels have set.
    pub(crate) expiries_renewed: Counter,
    /// Sockets that were closed because their end had come.
    pub(crate) expiries_ended: Counter,
    /// Sockets that were closed so that their clients connect to another node.
    pub(crate) shed: Counter,
    /// Messages that pipelines have pushed.
    pub(crate) pushes: Arc<PushMetrics>,
    /// The messages that are kept until a client joins.
    pub(crate) kept: WakeMetrics,
    /// Pushes that a client has confirmed.
    pub(crate) confirmed: Counter,
    /// Pushes that no client has confirmed in time.
    pub(crate) confirmations_late: Counter,
    /// Pushes that were not confirmed before the last client had left.
    pub(crate) confirmations_left: Counter,
    /// Pushes that were not sent because too many wait to be confirmed.
    pub(crate) confirmations_refused: Counter,
    /// Confirmations of nothing that is waited for.
    pub(crate) confirmations_unknown: Counter,
}

impl SocketMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let counter = |name, description| Tally::from(telemetry.counter(name, description, []));
        let dropped = |reason: &str| {
            Tally::from(telemetry.counter(
                "socket.frames_dropped",
                "Frames dropped instead of written, by reason",
                [("reason", reason.to_owned())],
            ))
        };
        let paused = |reason: &str| {
            let labels = [("reason", reason.to_owned())];
            telemetry.counter(
                "socket.reads_paused",
                "Pauses in reading from a client, by reason",
                labels,
            )
        };
        let confirmations = |outcome: &str| {
            let labels = [("outcome", outcome.to_owned())];
            telemetry.counter(
                "socket.confirmations",
                "Pushes that clients were to confirm, and confirmations of nothing, by outcome",
                labels,
            )
        };
        let expiries = |outcome: &str| {
            let labels = [("outcome", outcome.to_owned())];
            telemetry.counter(
                "socket.expiries",
                "Sockets with an end: told that it is near, given another, and ended by it",
                labels,
            )
        };
        let ended = |what: &str| {
            telemetry.counter(
                "socket.ended_by_operator",
                "Channels and sockets that an operator has ended, one by one or by their id",
                [("what", what.to_owned())],
            )
        };
        Self {
            channels_ended: ended("channel"),
            sockets_ended: ended("socket"),
            ids_ended: ended("id"),
            expiries_warned: expiries("warned"),
            expiries_renewed: expiries("renewed"),
            expiries_ended: expiries("ended"),
            pushes: Arc::new(PushMetrics::register(telemetry)),
            kept: WakeMetrics::register(telemetry),
            confirmed: confirmations("confirmed"),
            confirmations_late: confirmations("late"),
            confirmations_left: confirmations("left"),
            confirmations_refused: confirmations("refused"),
            confirmations_unknown: confirmations("unknown"),
            reads_paused_by_inbox: paused("inbox"),
            reads_paused_by_joins: paused("join"),
            reads_paused_by_rate: paused("rate"),
            frames_in: counter("socket.frames_in", "Frames received from clients"),
            frames_out: counter("socket.frames_out", "Frames written to sockets"),
            write_time: WriteTime::from(telemetry.timer(
                "socket.write_time",
                "Time of a write to a socket; one in sixteen is timed",
                [],
            )),
            broadcasts: counter("socket.broadcasts", "Events broadcast on this node"),
            events_without_subscribers: telemetry.counter(
                "pipeline.events_without_subscribers",
                "Events that a stage dropped because their topic has no subscribers",
                [],
            ),
            push_times: PushTimes::register(telemetry),
            dropped_by_overflow: dropped(OVERFLOW),
            dropped_oldest: dropped(OLDEST),
            dropped_newest: dropped(NEWEST),
            dropped_superseded: dropped(SUPERSEDED),
            dropped_by_mailbox: dropped(MAILBOX),
            dropped_by_end: dropped(ENDED),
            shed: telemetry.counter(
                "socket.shed",
                "Sockets closed so that their clients connect to another node",
                [],
            ),
            closed_slow: counter(
                "socket.closed_slow",
                "Sockets closed because the client read too slowly",
            ),
        }
    }

    /// The number of dropped frames, by reason.
    pub(crate) fn dropped(&self) -> [(&'static str, u64); 6] {
        [
            (OVERFLOW, self.dropped_by_overflow.get()),
            (OLDEST, self.dropped_oldest.get()),
            (NEWEST, self.dropped_newest.get()),
            (SUPERSEDED, self.dropped_superseded.get()),
            (MAILBOX, self.dropped_by_mailbox.get()),
            (ENDED, self.dropped_by_end.get()),
        ]
    }
}

/// A type's name, without its path and its parameters: from a closed set, so it can be a tag.
pub(crate) fn short_type_name<T: ?Sized>() -> &'static str {
    let full = std::any::type_name::<T>();
    let end = full.find('<').unwrap_or(full.len());
    let start = full[..end].rfind(':').map_or(0, |colon| colon + 1);
    &full[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_type_name_is_the_last_part_without_parameters() {
        assert_eq!(short_type_name::<SocketMetrics>(), "SocketMetrics");
        assert_eq!(short_type_name::<Option<std::collections::HashMap<u8, u8>>>(), "Option");
        assert_eq!(short_type_name::<u64>(), "u64");
    }
}
