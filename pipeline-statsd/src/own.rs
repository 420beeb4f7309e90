//! The recorder's own counters: what flushes did, told by the flushes after them. Pure.

use crate::dialect::Dialect;
use crate::name::{Naming, SeriesName};
use crate::report::FlushReport;

/// What a counter counts of a flush.
type Counted = fn(&FlushReport) -> u64;

const COUNTERS: [(&str, Counted); 9] = [
    ("statsd.client.lines", |report| report.lines),
    ("statsd.client.packets", |report| report.packets),
    ("statsd.client.bytes", |report| report.bytes),
    ("statsd.client.errors", |report| report.errors),
    ("statsd.client.lines_lost", |report| report.lines_lost),
    ("statsd.client.lines_oversized", |report| report.lines_oversized),
    ("statsd.client.samples_skipped", |report| report.samples_skipped),
    ("statsd.client.events_dropped", |report| report.events_dropped),
    ("statsd.client.series_refused", |report| report.series_refused),
];

const SERIES: &str = "statsd.client.series";

/// What was counted and is not yet told.
#[derive(Debug)]
pub(crate) struct OwnCounters {
    dialect: Dialect,
    counters: [(SeriesName, u64); COUNTERS.len()],
    series: SeriesName,
}

impl OwnCounters {
    pub(crate) fn new(naming: &Naming) -> Self {
        Self {
            dialect: naming.dialect(),
            counters: COUNTERS.map(|(name, _)| (naming.series(name, []), 0)),
            series: naming.series(SERIES, []),
        }
    }

    /// Hands a line for each counter that grew, and if any did, one for the gauge of series, to
    /// `emit`, with a mark for what it tells.
    pub(crate) fn tell(&self, series: usize, line: &mut String, mut emit: impl FnMut(&str, u16)) {
        if self.counters.iter().all(|(_, untold)| *untold == 0) {
            return;
        }
        for (n, (name, untold)) in self.counters.iter().enumerate().filter(|(_, (_, n))| *n > 0) {
            line.clear();
            self.dialect.write_counter(line, name, *untold, 1);
            emit(line, 1 << n);
        }
        line.clear();
        if self.dialect.write_gauge(line, &self.series, series as f64) {
            emit(line, 0);
        }
    }

    /// What these marks stand for has been sent.
    pub(crate) fn told(&mut self, marks: u16) {
        for (n, (_, untold)) in self.counters.iter_mut().enumerate() {
            if marks & (1 << n) != 0 {
                *untold = 0;
            }
        }
    }

    /// What a flush did, own lines and all, is told by the next ones.
    pub(crate) fn count(&mut self, report: &FlushReport) {
        for ((_, untold), (_, counted)) in self.counters.iter_mut().zip(COUNTERS) {
            *untold = untold.saturating_add(counted(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnCounters {
        OwnCounters::new(&Naming::new(Dialect::DogStatsD, "app", &[("env".into(), "dev".into())]))
    }

    fn lines(own: &OwnCounters) -> (Vec<String>, u16) {
        let (mut lines, mut all) = (Vec::new(), 0);
        own.tell(7, &mut String::new(), |line, marks| {
            lines.push(line.to_owned());
            all |= marks;
        });
        (lines, all)
    }

    #[test]
    fn what_grew_is_told_with_the_prefix_and_the_tags_of_all_series() {
        let mut own = own();
        let series = "app.statsd.client.series:7|g|#env:dev";
        assert_eq!(lines(&own), (vec![], 0));
        own.count(&FlushReport { lines: 3, bytes: 30, packets: 1, ..FlushReport::default() });
        own.count(&FlushReport { lines: 2, bytes: 20, packets: 1, ..FlushReport::default() });
        let (told, marks) = lines(&own);
        assert_eq!(
            told,
            [
                "app.statsd.client.lines:5|c|#env:dev",
                "app.statsd.client.packets:2|c|#env:dev",
                "app.statsd.client.bytes:50|c|#env:dev",
                series,
            ]
        );
        own.told(marks);
        assert_eq!(lines(&own), (vec![], 0));
    }

    #[test]
    fn what_was_not_sent_is_told_again() {
        let mut own = own();
        own.count(&FlushReport { lines: 3, errors: 1, ..FlushReport::default() });
        own.told(0b1); // the first packet got through, with the lines
        own.count(&FlushReport { errors: 1, ..FlushReport::default() });
        let errors = "app.statsd.client.errors:2|c|#env:dev";
        assert_eq!(lines(&own).0[0], errors);
    }

    #[test]
    fn each_counter_counts_what_its_name_says() {
        let report = FlushReport {
            lines: 1,
            packets: 2,
            bytes: 3,
            errors: 4,
            lines_lost: 5,
            lines_oversized: 6,
            samples_skipped: 7,
            events_dropped: 8,
            series_refused: 9,
            series: 10,
        };
        let debug = format!("{report:?}");
        for (name, counted) in COUNTERS {
            let field = name.rsplit('.').next().unwrap();
            assert!(debug.contains(&format!(" {field}: {}", counted(&report))), "{name}");
        }
    }
}
