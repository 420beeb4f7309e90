//! The recorder's own counters: each flush sends the results of the flushes before it. Pure.

use std::collections::BTreeMap;

use crate::name::{Naming, SeriesName};
use crate::report::FlushReport;
use crate::table::{MAX_NAMES, OTHERS, Refused};

/// Reads a counter's value from a report.
type Counted = fn(&FlushReport) -> u64;

const COUNTERS: [(&str, Counted); 8] = [
    ("statsd.client.lines", |report| report.lines),
    ("statsd.client.packets", |report| report.packets),
    ("statsd.client.bytes", |report| report.bytes),
    ("statsd.client.errors", |report| report.errors),
    ("statsd.client.lines_lost", |report| report.lines_lost),
    ("statsd.client.lines_oversized", |report| report.lines_oversized),
    ("statsd.client.samples_skipped", |report| report.samples_skipped),
    ("statsd.client.events_dropped", |report| report.events_dropped),
];

/// Sent for each metric with refused series, with its name as a tag.
const REFUSED: &str = "statsd.client.series_refused";

/// The mark of the lines of refused series.
const REFUSED_MARK: u16 = 1 << COUNTERS.len();

const SERIES: &str = "statsd.client.series";

/// Counted and not yet sent.
#[derive(Debug)]
pub(crate) struct OwnCounters {
    naming: Naming,
    counters: [(SeriesName, u64); COUNTERS.len()],
    /// Bounded by the number of names that the table tracks.
    refused: BTreeMap<Box<str>, (SeriesName, u64)>,
    series: SeriesName,
}

impl OwnCounters {
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
    pub(crate) fn tell(&self, series: usize, line: &mut String, mut emit: impl FnMut(&str, u16)) {
        let refused = self.refused.values().filter(|(_, untold)| *untold > 0);
        if self.counters.iter().all(|(_, untold)| *untold == 0) && refused.clone().count() == 0 {
            return;
        }
        let dialect = self.naming.dialect();
        for (n, (name, untold)) in self.counters.iter().enumerate().filter(|(_, (_, n))| *n > 0) {
            line.clear();
            dialect.write_counter(line, name, *untold, 1);
            emit(line, 1 << n);
        }
        for (name, untold) in refused {
            line.clear();
            dialect.write_counter(line, name, *untold, 1);
            emit(line, REFUSED_MARK);
        }
        line.clear();
        if dialect.write_gauge(line, &self.series, series as f64) {
            emit(line, 0);
        }
    }

    /// Resets the counters of these marks: their lines have been sent.
    pub(crate) fn told(&mut self, marks: u16) {
        for (n, (_, untold)) in self.counters.iter_mut().enumerate() {
            if marks & (1 << n) != 0 {
                *untold = 0;
            }
        }
        if marks & REFUSED_MARK != 0 {
            self.refused.values_mut().for_each(|(_, untold)| *untold = 0);
        }
    }

    /// Adds the results of a flush, including its own lines, for the next flush to send.
    pub(crate) fn count(&mut self, report: &FlushReport, refused: &Refused) {
        for (metric, count) in refused {
            let is_known = self.refused.contains_key(metric) || self.refused.len() < MAX_NAMES;
            let metric = if is_known { &**metric } else { OTHERS };
            let (_, untold) = self
                .refused
                .entry(metric.into())
                .or_insert_with(|| (self.naming.series(REFUSED, [("metric", metric)]), 0));
            *untold = untold.saturating_add(*count);
        }
        for ((_, untold), (_, counted)) in self.counters.iter_mut().zip(COUNTERS) {
            *untold = untold.saturating_add(counted(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;

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
    fn unsent_counters_are_sent_again() {
        let mut own = own();
        own.count(&FlushReport { lines: 3, errors: 1, ..FlushReport::default() }, &Refused::new());
        own.told(0b1); // the first packet got through, with the lines
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
        let (told, marks) = lines(&own);
        assert_eq!(
            told[..2],
            [
                "app.statsd.client.series_refused:6|c|#env:dev,metric:orders",
                "app.statsd.client.series_refused:8|c|#env:dev,metric:users"
            ]
        );
        own.told(marks);
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
