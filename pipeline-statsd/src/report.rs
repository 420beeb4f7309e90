//! The report of a flush. Pure.

/// The result of one flush, with the counts since the flush before it.
///
/// The same numbers are sent as counters, unless [`own_counters`](crate::StatsdBuilder::own_counters) is
/// off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Lines that the sink accepted.
    pub lines: u64,
    /// Calls that the sink accepted: datagrams, if the recorder packs lines, otherwise lines.
    pub packets: u64,
    /// Bytes in these calls, without overhead of the sink or the network.
    pub bytes: u64,
    /// Calls to the sink that failed. Each lost its lines, except the final flush of the sink, after
    /// which a buffering sink keeps its lines and tries again.
    pub errors: u64,
    /// Lines in the failed calls.
    pub lines_lost: u64,
    /// Lines that were dropped because they are longer than [a
    /// packet](crate::StatsdBuilder::packet_bytes).
    pub lines_oversized: u64,
    /// Samples that were dropped because the dialect has no line for them, such as negative timings in
    /// [`Dialect::StatsD`](crate::Dialect::StatsD).
    pub samples_skipped: u64,
    /// Values that were dropped since the last flush because the queue of
    /// [`per_event`](crate::StatsdBuilder::per_event) was full.
    pub events_dropped: u64,
    /// Series refused since the last flush because of [`max_series`](crate::StatsdBuilder::max_series)
    /// or [`max_series_per_name`](crate::StatsdBuilder::max_series_per_name). A recording macro looks up
    /// its series each time and counts each time; a handle counts once, when it is made.
    pub series_refused: u64,
    /// The number of series, including unused ones that are not idle for long enough.
    pub series: usize,
}
