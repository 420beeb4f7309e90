//! The two ways to write StatsD. Pure.

/// The format of the lines, by the receiver.
///
/// # Characters
///
/// ASCII letters and digits, `_`, `-` and `.` stay in every position. Any other character becomes
/// one `_`, except those that the dialect can carry there:
///
/// | position | [`StatsD`](Self::StatsD) | [`DogStatsD`](Self::DogStatsD) |
/// | --- | --- | --- |
/// | name, prefix | – | – |
/// | tag key | – | `/` |
/// | tag value | – | `/` `:` |
///
/// An empty name becomes `_`. A tag with an empty key or value is omitted. Series whose names become
/// equal are sent under one name, and the receiver treats them as one series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// The original daemon (npm `statsd`) and receivers modelled on it.
    ///
    /// - Tags are part of the name, as graphite writes them: `name;k=v;k2=v2:1|c`.
    /// - Every histogram is sent as `ms`, because this daemon takes `h` for a counter.
    /// - It has no negative timings: negative samples are dropped and counted in
    ///   [`FlushReport::samples_skipped`](crate::FlushReport::samples_skipped).
    /// - A leading minus means "less than now" in a gauge, so a gauge below zero is sent as two
    ///   lines, `name:0|g` and `name:-3|g`. They are handed to the sink as one text, and so
    ///   travel in one datagram.
    StatsD,

    /// The Datadog agent and receivers that understand its tags: `name:1|c|#k:v,k2:v2`.
    ///
    /// Histograms with a time unit are sent as `ms`, others as `h`. A gauge below zero is sent
    /// unchanged. A receiver that treats a leading minus as a decrement, such as netdata, misreads it.
    #[default]
    DogStatsD,
}
