//! What a flush tells of itself. Pure.

/// What one flush did, and what happened since the one before.
///
/// The same numbers are sent as counters, unless that is
/// [turned off](crate::StatsdBuilder::own_counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Lines that the sink took.
    pub lines: u64,
    /// Pieces in which it took them: datagrams, if the recorder packs lines, or else lines.
    pub packets: u64,
    /// The bytes of those pieces, without what the sink or the network adds.
    pub bytes: u64,
    /// Calls to the sink that failed: each lost the piece that it was given, except that of
    /// flushing the sink at the end, after which a buffering sink keeps what it holds and tries
    /// again.
    pub errors: u64,
    /// Lines that were in the pieces that the sink did not take.
    pub lines_lost: u64,
    /// Lines that were left out because they alone are longer than
    /// [a packet may be](crate::StatsdBuilder::packet_bytes).
    pub lines_oversized: u64,
    /// Samples that were left out because the dialect has no line for them, such as negative
    /// timings in [`Dialect::StatsD`](crate::Dialect::StatsD).
    pub samples_skipped: u64,
    /// Values that were dropped since the last flush because the queue was full, which only
    /// [`per_event`](crate::StatsdBuilder::per_event) has.
    pub events_dropped: u64,
    /// How often a series was refused since the last flush, because there were
    /// [`max_series`](crate::StatsdBuilder::max_series) already, or
    /// [`max_series_per_name`](crate::StatsdBuilder::max_series_per_name) of its name. A macro that records asks for its
    /// series each time; a handle asked once, when it was made.
    pub series_refused: u64,
    /// Series that there were: those in use, and those not yet idle for long enough.
    pub series: usize,
}
