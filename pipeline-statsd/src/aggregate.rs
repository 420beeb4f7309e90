//! All series of a recorder, and turning what they hold into lines.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use metrics::{Key, KeyName, Unit};
use metrics_util::registry::{Registry, Storage};
use parking_lot::RwLock;

use crate::histogram::HistogramSeries;
use crate::line::SampleKind;
use crate::name::{Naming, SeriesName};
use crate::series::{CounterSeries, GaugeSeries};

/// Where recording and flushing meet.
pub(crate) struct Aggregate {
    registry: Registry<Key, SeriesStorage>,
    /// Histograms that were described as times. Looked up at each flush, so that a description
    /// counts whether it comes before or after the first handle.
    time_units: RwLock<HashMap<KeyName, TimeUnit>>,
}

impl Aggregate {
    pub(crate) fn new(naming: Naming, histogram_samples: usize) -> Self {
        Self {
            registry: Registry::new(SeriesStorage { naming, histogram_samples }),
            time_units: RwLock::default(),
        }
    }

    pub(crate) fn counter(&self, key: &Key) -> Arc<CounterSeries> {
        self.registry.get_or_create_counter(key, Arc::clone)
    }

    pub(crate) fn gauge(&self, key: &Key) -> Arc<GaugeSeries> {
        self.registry.get_or_create_gauge(key, Arc::clone)
    }

    pub(crate) fn histogram(&self, key: &Key) -> Arc<HistogramSeries> {
        self.registry.get_or_create_histogram(key, Arc::clone)
    }

    pub(crate) fn describe_histogram(&self, name: KeyName, unit: Unit) {
        let mut time_units = self.time_units.write();
        match TimeUnit::of(unit) {
            Some(time_unit) => time_units.insert(name, time_unit),
            None => time_units.remove(&name),
        };
    }

    /// Hands everything there is to say since the last time to `emit`, in `line`, whose contents
    /// are replaced. Returns how many samples the dialect had no line for.
    ///
    /// `emit` is called with no lock held, so it may be slow, and may record.
    pub(crate) fn drain(&self, line: &mut String, mut emit: impl FnMut(&str)) -> u64 {
        let dialect = self.registry.storage().naming.dialect();
        let mut skipped = 0_u64;

        for counter in self.counters() {
            let grown = counter.take();
            if grown > 0 {
                line.clear();
                dialect.write_counter(line, counter.name(), grown);
                emit(line);
            }
        }

        for gauge in self.gauges() {
            line.clear();
            if gauge.value().is_some_and(|value| dialect.write_gauge(line, gauge.name(), value)) {
                emit(line);
            }
        }

        for (histogram, time_unit) in self.histograms() {
            let kind = time_unit.map_or(SampleKind::Plain, |_| SampleKind::Timing);
            for (value, weight) in histogram.take().weighted() {
                let value = time_unit.map_or(value, |unit| unit.to_millis(value));
                line.clear();
                if dialect.write_sample(line, histogram.name(), kind, value, weight) {
                    emit(line);
                } else {
                    skipped = skipped.saturating_add(weight);
                }
            }
        }
        skipped
    }

    // The registry locks a shard while it visits it, which keeps new series out: hence the copies.

    fn counters(&self) -> Vec<Arc<CounterSeries>> {
        let mut all = Vec::new();
        self.registry.visit_counters(|_, series| all.push(Arc::clone(series)));
        all
    }

    fn gauges(&self) -> Vec<Arc<GaugeSeries>> {
        let mut all = Vec::new();
        self.registry.visit_gauges(|_, series| all.push(Arc::clone(series)));
        all
    }

    fn histograms(&self) -> Vec<(Arc<HistogramSeries>, Option<TimeUnit>)> {
        let mut all = Vec::new();
        let time_units = self.time_units.read();
        self.registry.visit_histograms(|key, series| {
            all.push((Arc::clone(series), time_units.get(key.name()).copied()));
        });
        all
    }
}

impl fmt::Debug for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregate")
            .field("storage", self.registry.storage())
            .finish_non_exhaustive()
    }
}

/// Makes a series for a key; its name is put together here, once.
#[derive(Debug)]
struct SeriesStorage {
    naming: Naming,
    histogram_samples: usize,
}

impl SeriesStorage {
    fn name(&self, key: &Key) -> SeriesName {
        self.naming.series(key.name(), key.labels().map(|label| (label.key(), label.value())))
    }
}

impl Storage<Key> for SeriesStorage {
    type Counter = Arc<CounterSeries>;
    type Gauge = Arc<GaugeSeries>;
    type Histogram = Arc<HistogramSeries>;

    fn counter(&self, key: &Key) -> Self::Counter {
        Arc::new(CounterSeries::new(self.name(key)))
    }

    fn gauge(&self, key: &Key) -> Self::Gauge {
        Arc::new(GaugeSeries::new(self.name(key)))
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        let seed = key.get_hash();
        Arc::new(HistogramSeries::new(self.name(key), self.histogram_samples, seed))
    }
}

/// The unit of a histogram of times.
#[derive(Clone, Copy, Debug)]
enum TimeUnit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl TimeUnit {
    fn of(unit: Unit) -> Option<Self> {
        match unit {
            Unit::Seconds => Some(Self::Seconds),
            Unit::Milliseconds => Some(Self::Milliseconds),
            Unit::Microseconds => Some(Self::Microseconds),
            Unit::Nanoseconds => Some(Self::Nanoseconds),
            _ => None,
        }
    }

    fn to_millis(self, value: f64) -> f64 {
        match self {
            Self::Seconds => value * 1e3,
            Self::Milliseconds => value,
            Self::Microseconds => value / 1e3,
            Self::Nanoseconds => value / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use metrics::{CounterFn as _, GaugeFn as _, HistogramFn as _, Label};

    fn aggregate(dialect: Dialect) -> Aggregate {
        Aggregate::new(Naming::new(dialect, "", &[]), 4)
    }

    fn lines(aggregate: &Aggregate) -> Vec<String> {
        let mut lines = Vec::new();
        aggregate.drain(&mut String::from("left over"), |line| {
            lines.push(line.to_owned());
        });
        lines.sort();
        lines
    }

    fn key(name: &'static str) -> Key {
        Key::from_static_name(name)
    }

    #[test]
    fn a_drain_says_what_is_new_and_repeats_gauges() {
        let aggregate = aggregate(Dialect::DogStatsD);
        aggregate.counter(&key("c")).increment(2);
        aggregate.gauge(&key("g")).set(1.5);
        aggregate.histogram(&key("h")).record(3.0);
        assert_eq!(lines(&aggregate), ["c:2|c", "g:1.5|g", "h:3|h"]);
        assert_eq!(lines(&aggregate), ["g:1.5|g"]);
    }

    #[test]
    fn a_series_that_was_only_registered_says_nothing() {
        let aggregate = aggregate(Dialect::DogStatsD);
        aggregate.counter(&key("c")).increment(0);
        let _ = aggregate.gauge(&key("g"));
        let _ = aggregate.histogram(&key("h"));
        assert!(lines(&aggregate).is_empty());
    }

    #[test]
    fn handles_of_one_key_share_a_series_whatever_the_order_of_labels() {
        let aggregate = aggregate(Dialect::StatsD);
        let (a, b) = (Label::new("a", "1"), Label::new("b", "2"));
        aggregate.counter(&Key::from_parts("c", vec![a.clone(), b.clone()])).increment(1);
        aggregate.counter(&Key::from_parts("c", vec![b, a])).increment(1);
        assert_eq!(lines(&aggregate), ["c;a=1;b=2:2|c"]);
    }

    #[test]
    fn times_are_sent_in_milliseconds_whatever_their_unit() {
        let table = [
            (Unit::Seconds, 0.000_75),
            (Unit::Milliseconds, 0.75),
            (Unit::Microseconds, 750.0),
            (Unit::Nanoseconds, 750_000.0),
        ];
        for (unit, value) in table {
            let aggregate = aggregate(Dialect::DogStatsD);
            aggregate.describe_histogram("t".into(), unit);
            aggregate.histogram(&key("t")).record(value);
            assert_eq!(lines(&aggregate), ["t:0.75|ms"], "{unit:?}");
        }
    }

    #[test]
    fn a_description_counts_from_the_next_drain_on() {
        let aggregate = aggregate(Dialect::DogStatsD);
        aggregate.histogram(&key("t")).record(2.0);
        aggregate.describe_histogram("t".into(), Unit::Seconds);
        assert_eq!(lines(&aggregate), ["t:2000|ms"]);
        aggregate.describe_histogram("t".into(), Unit::Bytes);
        aggregate.histogram(&key("t")).record(2.0);
        assert_eq!(lines(&aggregate), ["t:2|h"]);
    }

    #[test]
    fn samples_without_a_line_are_counted_with_their_weight() {
        let aggregate = aggregate(Dialect::StatsD);
        aggregate.histogram(&key("t")).record_many(-1.0, 10);
        let skipped = aggregate.drain(&mut String::new(), |line| panic!("{line}"));
        assert_eq!(skipped, 10);
    }

    #[test]
    fn recording_while_draining_is_not_locked_out() {
        let aggregate = aggregate(Dialect::DogStatsD);
        aggregate.counter(&key("c")).increment(1);
        aggregate.drain(&mut String::new(), |_| {
            // A series that does not exist yet needs its shard for itself.
            aggregate.counter(&key("emitted")).increment(1);
            aggregate.describe_histogram("t".into(), Unit::Seconds);
        });
        assert_eq!(lines(&aggregate), ["emitted:1|c"]);
    }
}
