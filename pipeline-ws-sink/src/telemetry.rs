//! What the endpoint measures.

use metrics::{Counter, Histogram};
use pipeline_core::Telemetry;

/// The handles that all sockets of an endpoint share.
pub(crate) struct SocketMetrics {
    /// From when an item was enqueued until the operating system had the last byte of its frame;
    /// one sample per socket.
    pub(crate) push_delivered: Histogram,
    /// They waited for a client that was closed for being too slow.
    pub(crate) dropped_by_overflow: Counter,
    /// They had waited longest, and made room for another.
    pub(crate) dropped_oldest: Counter,
    /// There was no room for them, or they had waited shortest and made room for an answer.
    pub(crate) dropped_newest: Counter,
    /// A later one of the same topic and event took their place.
    pub(crate) dropped_superseded: Counter,
    /// They waited for a channel that intercepts them and was too slow.
    pub(crate) dropped_by_mailbox: Counter,
    /// Sockets that were closed because their client was too slow.
    pub(crate) closed_slow: Counter,
}

impl SocketMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let dropped = |reason: &str| {
            telemetry.counter(
                "socket.frames_dropped",
                "Frames thrown away instead of written, by reason",
                [("reason", reason.to_owned())],
            )
        };
        Self {
            push_delivered: telemetry.milliseconds(
                "pipeline.push_delivered",
                "From the moment an item was enqueued to the moment it was written to a socket",
                [],
            ),
            dropped_by_overflow: dropped("overflow"),
            dropped_oldest: dropped("drop_oldest"),
            dropped_newest: dropped("drop_newest"),
            dropped_superseded: dropped("superseded"),
            dropped_by_mailbox: dropped("mailbox"),
            closed_slow: telemetry.counter(
                "socket.closed_slow",
                "Sockets closed because the client read too slowly",
                [],
            ),
        }
    }
}

/// How often something was tried, by how it went.
#[derive(Clone)]
pub(crate) struct Attempts {
    success: Counter,
    fail: Counter,
}

impl Attempts {
    /// Connections to a kind of socket.
    pub(crate) fn connects(telemetry: &Telemetry, socket: &str) -> Self {
        Self::register(
            telemetry,
            "socket_connect",
            "Connections, by how they went",
            ("socket", socket),
        )
    }

    /// Joins of a kind of channel.
    pub(crate) fn joins(telemetry: &Telemetry, channel: &str) -> Self {
        Self::register(telemetry, "channel_join", "Joins, by how they went", ("channel", channel))
    }

    fn register(
        telemetry: &Telemetry,
        name: &'static str,
        description: &'static str,
        (kind, of): (&'static str, &str),
    ) -> Self {
        let counter = |status: &str| {
            let labels = [("status", status.to_owned()), (kind, of.to_owned())];
            telemetry.counter(name, description, labels)
        };
        Self { success: counter("success"), fail: counter("fail") }
    }

    pub(crate) fn count(&self, success: bool) {
        if success { &self.success } else { &self.fail }.increment(1);
    }
}

/// A type's own name, without its path and its parameters: a name from a closed set, fit for a tag.
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
