//! The results of flushes: the report of each, the counters that the next one sends, and the state of the
//! sink. Pure.

use std::collections::BTreeMap;

use crate::{
    name::{Naming, SeriesName},
    table::{MAX_NAMES, OTHERS, Refused},
};

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
    /// Series refused since the last flush because of [`max_series`](crate::StatsdBuilder::max_series)
    /// or [`max_series_per_name`](crate::StatsdBuilder::max_series_per_name). A recording macro looks up
    /// its series each time and counts each time; a handle counts once, when it is made.
    pub series_refused: u64,
    /// The number of series, including unused ones that are not idle for long enough.
    pub series: usize,
}

impl FlushReport {
    /// Adds the numbers of a later report.
    pub(crate) fn add(&mut self, later: Self) {
        let sum = |one: u64, other: u64| one.saturating_add(other);
        *self = Self {
            lines: sum(self.lines, later.lines),
            packets: sum(self.packets, later.packets),
            bytes: sum(self.bytes, later.bytes),
            errors: sum(self.errors, later.errors),
            lines_lost: sum(self.lines_lost, later.lines_lost),
            lines_oversized: sum(self.lines_oversized, later.lines_oversized),
            samples_skipped: sum(self.samples_skipped, later.samples_skipped),
            series_refused: sum(self.series_refused, later.series_refused),
            series: later.series,
        };
    }
}

/// Reads a counter's value from a report.
type Counted = fn(&FlushReport) -> u64;

const COUNTERS: [(&str, Counted); 7] = [
    ("statsd.client.lines", |report| report.lines),
    ("statsd.client.packets", |report| report.packets),
    ("statsd.client.bytes", |report| report.bytes),
    ("statsd.client.errors", |report| report.errors),
    ("statsd.client.lines_lost", |report| report.lines_lost),
    ("statsd.client.lines_oversized", |report| report.lines_oversized),
    ("statsd.client.samples_skipped", |report| report.samples_skipped),
];

/// Sent for each metric with refused series, with its name as a tag.
const REFUSED: &str = "statsd.client.series_refused";

/// The mark of the lines of refused series.
const REFUSED_MARK: u16 = 1 << COUNTERS.len();

const SERIES: &str = "statsd.client.series";

/// The recorder's own counters: results of flushes that are not sent yet.
#[derive(Debug)]
pub(crate) struct SelfMetrics {
    naming: Naming,
    counters: [(SeriesName, u64); COUNTERS.len()],
    /// Bounded by the number of names that the table tracks.
    refused: BTreeMap<Box<str>, (SeriesName, u64)>,
    series: SeriesName,
}

impl SelfMetrics {
    pub(crate) fn new(naming: &Naming) -> Self {
        Self {
            naming: naming.clone(),
            counters: COUNTERS.map(|(name, _)| (naming.series(name, []), 0)),
            refused: BTreeMap::new(),
            series: naming.series(SERIES, []),
        }
    }

    /// Passes a line for each counter that grew to `emit`, and if any did, one for the gauge of series.
    /// Each comes with the mark of its counter.
    pub(crate) fn write(&self, series: usize, line: &mut String, mut emit: impl FnMut(&str, u16)) {
        let refused = self.refused.values().filter(|(_, unsent)| *unsent > 0);
        if self.counters.iter().all(|(_, unsent)| *unsent == 0) && refused.clone().count() == 0 {
            return;
        }
        let dialect = self.naming.dialect();
        for (n, (name, unsent)) in self.counters.iter().enumerate().filter(|(_, (_, n))| *n > 0) {
            line.clear();
            dialect.write_counter(line, name, *unsent);
            emit(line, 1 << n);
        }
        for (name, unsent) in refused {
            line.clear();
            dialect.write_counter(line, name, *unsent);
            emit(line, REFUSED_MARK);
        }
        line.clear();
        if dialect.write_gauge(line, &self.series, series as f64) {
            emit(line, 0);
        }
    }

    /// Resets the counters of these marks: their lines have been sent.
    pub(crate) fn mark_sent(&mut self, marks: u16) {
        for (n, (_, unsent)) in self.counters.iter_mut().enumerate() {
            if marks & (1 << n) != 0 {
                *unsent = 0;
            }
        }
        if marks & REFUSED_MARK != 0 {
            self.refused.values_mut().for_each(|(_, unsent)| *unsent = 0);
        }
    }

    /// Adds the results of a flush, including its own lines, for the next flush to send.
    pub(crate) fn count(&mut self, report: &FlushReport, refused: &Refused) {
        for (metric, count) in refused {
            let is_known = self.refused.contains_key(metric) || self.refused.len() < MAX_NAMES;
            let metric = if is_known { &**metric } else { OTHERS };
            let (_, unsent) = self
                .refused
                .entry(metric.into())
                .or_insert_with(|| (self.naming.series(REFUSED, [("metric", metric)]), 0));
            *unsent = unsent.saturating_add(*count);
        }
        for ((_, unsent), (_, counted)) in self.counters.iter_mut().zip(COUNTERS) {
            *unsent = unsent.saturating_add(counted(report));
        }
    }
}

/// The state of the sink after the last flush that sent anything.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Health {
    Good,
    Failing { flushes: u64 },
}

/// A change that is logged.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    Failed,
    Recovered { failed_flushes: u64 },
}

impl Health {
    pub(crate) fn observe(&mut self, report: &FlushReport) -> Option<Change> {
        match *self {
            // Good => Failing
            Self::Good if report.errors > 0 => {
                *self = Self::Failing { flushes: 1 };
                Some(Change::Failed)
            }
            Self::Failing { flushes } if report.errors > 0 => {
                *self = Self::Failing { flushes: flushes.saturating_add(1) };
                None
            }
            // Failing => Good, only with evidence: a flush without a line proves nothing.
            Self::Failing { flushes } if report.lines > 0 => {
                *self = Self::Good;
                Some(Change::Recovered { failed_flushes: flushes })
            }
            Self::Good | Self::Failing { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Dialect;

    fn own() -> SelfMetrics {
        SelfMetrics::new(&Naming::new(Dialect::DogStatsD, "app", &[("env".into(), "dev".into())]))
    }

    fn lines(own: &SelfMetrics) -> (Vec<String>, u16) {
        let (mut lines, mut all) = (Vec::new(), 0);
        own.write(7, &mut String::new(), |line, marks| {
            lines.push(line.to_owned());
            all |= marks;
        });
        (lines, all)
    }

    #[test]
    fn growing_counters_are_sent_with_the_prefix_and_the_tags_of_all_series() {
        let mut own = own();
        let series = "app.statsd.client.series:7|g|#env:dev";
        assert_eq!(lines(&own), (vec![], 0));
        own.count(
            &FlushReport { lines: 3, bytes: 30, packets: 1, ..FlushReport::default() },
            &Refused::new(),
        );
        own.count(
            &FlushReport { lines: 2, bytes: 20, packets: 1, ..FlushReport::default() },
            &Refused::new(),
        );
        let (sent, marks) = lines(&own);
        assert_eq!(
            sent,
            [
                "app.statsd.client.lines:5|c|#env:dev",
                "app.statsd.client.packets:2|c|#env:dev",
                "app.statsd.client.bytes:50|c|#env:dev",
                series,
            ]
        );
        own.mark_sent(marks);
        assert_eq!(lines(&own), (vec![], 0));
    }

    #[test]
    fn unsent_counters_are_sent_again() {
        let mut own = own();
        own.count(&FlushReport { lines: 3, errors: 1, ..FlushReport::default() }, &Refused::new());
        own.mark_sent(0b1); // the first packet got through, with the lines
        own.count(&FlushReport { errors: 1, ..FlushReport::default() }, &Refused::new());
        let errors = "app.statsd.client.errors:2|c|#env:dev";
        assert_eq!(lines(&own).0[0], errors);
    }

    #[test]
    fn refused_series_are_counted_by_metric() {
        let mut own = own();
        let refused = Refused::from([("orders".into(), 3), ("users".into(), 4)]);
        own.count(&FlushReport::default(), &refused);
        own.count(&FlushReport::default(), &refused);
        let (sent, marks) = lines(&own);
        assert_eq!(
            sent[..2],
            [
                "app.statsd.client.series_refused:6|c|#env:dev,metric:orders",
                "app.statsd.client.series_refused:8|c|#env:dev,metric:users"
            ]
        );
        own.mark_sent(marks);
        assert_eq!(lines(&own), (vec![], 0));
    }

    #[test]
    fn each_counter_counts_the_field_of_its_name() {
        let report = FlushReport {
            lines: 1,
            packets: 2,
            bytes: 3,
            errors: 4,
            lines_lost: 5,
            lines_oversized: 6,
            samples_skipped: 7,
            series_refused: 8,
            series: 9,
        };
        let debug = format!("{report:?}");
        for (name, counted) in COUNTERS {
            let field = name.rsplit('.').next().unwrap();
            assert!(debug.contains(&format!(" {field}: {}", counted(&report))), "{name}");
        }
    }

    #[test]
    fn an_episode_of_failures_is_reported_once_at_each_end() {
        let report = |lines, errors| FlushReport { lines, errors, ..FlushReport::default() };
        let mut health = Health::Good;
        let mut observe = |lines, errors| health.observe(&report(lines, errors));
        assert_eq!(observe(3, 0), None);
        assert_eq!(observe(0, 2), Some(Change::Failed));
        assert_eq!(observe(2, 1), None);
        assert_eq!(observe(0, 0), None); // nothing was sent
        assert_eq!(observe(1, 0), Some(Change::Recovered { failed_flushes: 2 }));
        assert_eq!(observe(0, 0), None);
        assert_eq!(observe(0, 1), Some(Change::Failed));
    }
}
