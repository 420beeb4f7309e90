//! All series of a recorder. A drain turns their values into lines.

use std::sync::Arc;
use std::time::Duration;

use metrics::Key;

use crate::common::Common;
use crate::histogram::{HistogramSeries, Samples};
use crate::idle::Idle;
use crate::series::{CounterSeries, GaugeSeries};
use crate::table::{Full, Table};
use crate::time_unit::TimeUnit;

/// The aggregating store: handles record into its series, flushes drain them.
#[derive(Debug)]
pub(crate) struct Aggregate {
    common: Common,
    counters: Table<CounterSeries>,
    gauges: Table<GaugeSeries>,
    histograms: Table<HistogramSeries>,
}

impl Aggregate {
    pub(crate) fn new(common: Common) -> Self {
        let (counters, gauges, histograms) = (common.table(), common.table(), common.table());
        Self { common, counters, gauges, histograms }
    }

    pub(crate) fn common(&self) -> &Common {
        &self.common
    }

    // None if there are too many series.

    pub(crate) fn counter(&self, key: &Key) -> Option<Arc<CounterSeries>> {
        self.counters.get_or_make(key, || CounterSeries::new(self.common.naming.of(key)))
    }

    pub(crate) fn gauge(&self, key: &Key) -> Option<Arc<GaugeSeries>> {
        self.gauges.get_or_make(key, || GaugeSeries::new(self.common.naming.of(key)))
    }

    pub(crate) fn histogram(&self, key: &Key) -> Option<Arc<HistogramSeries>> {
        let samples = self.common.limits.histogram_samples;
        let make = || {
            let one_in = self.common.rates.one_in(key.name());
            HistogramSeries::new(self.common.naming.of(key), samples, one_in, key.get_hash())
        };
        self.histograms.get_or_make(key, make)
    }

    /// Writes each change since the last drain into `line`, whose contents are replaced, passes it to
    /// `emit`, and removes idle series. Returns the number of samples for which the dialect has no line.
    /// Call it from one thread at a time. `now` is the time since the recorder was created.
    ///
    /// `emit` is called without a lock held, so it may block, and may record.
    pub(crate) fn drain(
        &self,
        now: Duration,
        line: &mut String,
        mut emit: impl FnMut(&str),
    ) -> u64 {
        let dialect = self.common.naming.dialect();
        let mut skipped = 0_u64;
        let mut longest_idle = Duration::ZERO;

        // A table locks a shard while it iterates over it, which blocks new series. Hence the copies.
        for (counter, is_held) in self.counters.all(|_, series, is_held| (series, is_held)) {
            let grown = counter.take();
            counter.idle().note(is_held || grown > 0, now);
            longest_idle = longest_idle.max(counter.idle().time(now));
            if grown > 0 {
                line.clear();
                dialect.write_counter(line, counter.name(), grown, 1);
                emit(line);
            }
        }

        let full = self.common.room.full();
        let gauges = |key: &Key, series: Arc<GaugeSeries>, is_held| {
            let may_leave = may_leave_when_idle(&full, key, &series);
            (series, is_held, may_leave)
        };
        for (gauge, is_held, may_leave) in self.gauges.all(gauges) {
            let touched = gauge.take_touched();
            gauge.idle().note(is_held || touched, now);
            if may_leave {
                longest_idle = longest_idle.max(gauge.idle().time(now));
            }
            line.clear();
            if gauge.value().is_some_and(|value| dialect.write_gauge(line, gauge.name(), value)) {
                emit(line);
            }
        }

        for (histogram, is_held, time_unit) in self.histograms() {
            let samples = histogram.take();
            histogram.idle().note(is_held || !samples.is_empty(), now);
            longest_idle = longest_idle.max(histogram.idle().time(now));
            if let Some(limit) = self.common.packed {
                skipped = skipped.saturating_add(
                    self.pack(&histogram, &samples, time_unit, limit, line, &mut emit),
                );
                continue;
            }
            for (value, weight) in samples.weighted() {
                let (kind, value) = TimeUnit::sent(time_unit, value);
                line.clear();
                if dialect.write_sample(line, histogram.name(), kind, value, weight) {
                    emit(line);
                } else {
                    skipped = skipped.saturating_add(weight);
                }
            }
        }

        if longest_idle >= self.common.limits.idle_after {
            self.sweep(&full, now);
        }
        skipped
    }

    /// Passes the samples of a histogram to `emit`, many in a line. Returns how many were skipped.
    fn pack(
        &self,
        histogram: &HistogramSeries,
        samples: &Samples,
        time_unit: Option<TimeUnit>,
        limit: usize,
        line: &mut String,
        emit: &mut impl FnMut(&str),
    ) -> u64 {
        let dialect = self.common.naming.dialect();
        let kind = TimeUnit::kind(time_unit);
        let mut skipped = 0_u64;
        for (values, weight) in samples.parts() {
            let sent = values.iter().map(|value| TimeUnit::sent(time_unit, *value).1);
            let sent: Vec<_> = sent.filter(|value| value.is_finite()).collect();
            let missing = values.len().abs_diff(sent.len()) as u64;
            skipped = skipped.saturating_add(missing.saturating_mul(weight));
            let mut rest = &sent[..];
            while !rest.is_empty() {
                line.clear();
                let name = histogram.name();
                let written = dialect.write_samples(line, name, kind, rest, weight, limit);
                emit(line);
                rest = &rest[written..];
            }
        }
        skipped
    }

    fn histograms(&self) -> Vec<(Arc<HistogramSeries>, bool, Option<TimeUnit>)> {
        let time_unit = |key: &Key| self.common.time_units.of(key.name());
        self.histograms.all(|key, series, is_held| (series, is_held, time_unit(key)))
    }

    fn sweep(&self, full: &Full, now: Duration) {
        let is_idle = |idle: &Idle| idle.time(now) >= self.common.limits.idle_after;
        self.counters.sweep(|_, series| is_idle(series.idle()) && series.may_leave());
        self.gauges.sweep(|key, series| {
            is_idle(series.idle()) && series.may_leave() && may_leave_when_idle(full, key, series)
        });
        self.histograms.sweep(|_, series| is_idle(series.idle()) && series.may_leave());
    }
}

/// Whether an idle gauge is removed. A gauge that was only set may hold a constant, and is repeated
/// while there is room.
fn may_leave_when_idle(full: &Full, key: &Key, gauge: &GaugeSeries) -> bool {
    !gauge.is_only_set() || gauge.value().is_none() || full.has(key.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Limits;
    use crate::dialect::Dialect;
    use crate::name::Naming;
    use crate::sample_rate::SampleRates;
    use std::cell::Cell;
    use std::ops::Deref;

    use metrics::{CounterFn as _, GaugeFn as _, HistogramFn as _, Label, Unit};

    /// In seconds; the tests drain once a second.
    const IDLE_AFTER: u64 = 3;

    /// An `Aggregate` with a clock that each drain advances by a second.
    struct Clocked {
        aggregate: Aggregate,
        now: Cell<Duration>,
    }

    impl Clocked {
        fn drain(&self, emit: impl FnMut(&str)) -> u64 {
            self.now.set(self.now.get() + Duration::from_secs(1));
            self.aggregate.drain(self.now.get(), &mut String::from("left over"), emit)
        }
    }

    impl Deref for Clocked {
        type Target = Aggregate;

        fn deref(&self) -> &Aggregate {
            &self.aggregate
        }
    }

    fn common(dialect: Dialect) -> Common {
        let limits = Limits {
            max_series: 100,
            max_series_per_name: 10,
            histogram_samples: 4,
            idle_after: Duration::from_secs(IDLE_AFTER),
        };
        let rates = SampleRates::new(1.0, &[]).unwrap();
        Common::new(Naming::new(dialect, "", &[]), limits, rates)
    }

    fn aggregate(dialect: Dialect) -> Clocked {
        Clocked { aggregate: Aggregate::new(common(dialect)), now: Cell::default() }
    }

    fn counter(aggregate: &Aggregate, key: &Key) -> Arc<CounterSeries> {
        aggregate.counter(key).unwrap()
    }

    fn gauge(aggregate: &Aggregate, key: &Key) -> Arc<GaugeSeries> {
        aggregate.gauge(key).unwrap()
    }

    fn histogram(aggregate: &Aggregate, key: &Key) -> Arc<HistogramSeries> {
        aggregate.histogram(key).unwrap()
    }

    fn lines(aggregate: &Clocked) -> Vec<String> {
        let mut lines = Vec::new();
        aggregate.drain(|line| lines.push(line.to_owned()));
        lines.sort();
        lines
    }

    fn key(name: &'static str) -> Key {
        Key::from_static_name(name)
    }

    #[test]
    fn a_drain_emits_changes_and_repeats_gauges() {
        let aggregate = aggregate(Dialect::DogStatsD);
        counter(&aggregate, &key("c")).increment(2);
        gauge(&aggregate, &key("g")).set(1.5);
        histogram(&aggregate, &key("h")).record(3.0);
        assert_eq!(lines(&aggregate), ["c:2|c", "g:1.5|g", "h:3|h"]);
        assert_eq!(lines(&aggregate), ["g:1.5|g"]);
    }

    #[test]
    fn a_series_that_was_only_registered_emits_nothing() {
        let aggregate = aggregate(Dialect::DogStatsD);
        counter(&aggregate, &key("c")).increment(0);
        let _ = gauge(&aggregate, &key("g"));
        let _ = histogram(&aggregate, &key("h"));
        assert!(lines(&aggregate).is_empty());
    }

    #[test]
    fn handles_of_one_key_share_a_series_whatever_the_order_of_labels() {
        let aggregate = aggregate(Dialect::StatsD);
        let (a, b) = (Label::new("a", "1"), Label::new("b", "2"));
        counter(&aggregate, &Key::from_parts("c", vec![a.clone(), b.clone()])).increment(1);
        counter(&aggregate, &Key::from_parts("c", vec![b, a])).increment(1);
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
            aggregate.common().describe_histogram("t".into(), unit);
            histogram(&aggregate, &key("t")).record(value);
            assert_eq!(lines(&aggregate), ["t:0.75|ms"], "{unit:?}");
        }
    }

    #[test]
    fn a_description_applies_from_the_next_drain_on() {
        let aggregate = aggregate(Dialect::DogStatsD);
        histogram(&aggregate, &key("t")).record(2.0);
        aggregate.common().describe_histogram("t".into(), Unit::Seconds);
        assert_eq!(lines(&aggregate), ["t:2000|ms"]);
        aggregate.common().describe_histogram("t".into(), Unit::Bytes);
        histogram(&aggregate, &key("t")).record(2.0);
        assert_eq!(lines(&aggregate), ["t:2|h"]);
    }

    #[test]
    fn samples_without_a_line_are_counted_with_their_weight() {
        let aggregate = aggregate(Dialect::StatsD);
        histogram(&aggregate, &key("t")).record_many(-1.0, 10);
        let skipped = aggregate.drain(|line| panic!("{line}"));
        assert_eq!(skipped, 10);
    }

    #[test]
    fn recording_while_draining_is_not_locked_out() {
        let aggregate = aggregate(Dialect::DogStatsD);
        counter(&aggregate, &key("c")).increment(1);
        aggregate.drain(|_| {
            // Creating a series takes the shard's write lock.
            counter(&aggregate, &key("emitted")).increment(1);
            aggregate.common().describe_histogram("t".into(), Unit::Seconds);
        });
        assert_eq!(lines(&aggregate), ["emitted:1|c"]);
    }

    /// The number of series after this many drains without a change.
    fn left(aggregate: &Clocked, drains: u64) -> usize {
        for _ in 0..drains {
            aggregate.drain(|_| ());
        }
        aggregate.common().room.used()
    }

    #[test]
    fn idle_series_without_a_handle_are_removed() {
        let aggregate = aggregate(Dialect::DogStatsD);
        counter(&aggregate, &key("c")).increment(1);
        histogram(&aggregate, &key("h")).record(1.0);
        // The first drain counts as a use.
        assert_eq!(left(&aggregate, 1 + IDLE_AFTER - 1), 2);
        assert_eq!(left(&aggregate, 1), 0);

        counter(&aggregate, &key("c")).increment(2);
        histogram(&aggregate, &key("h")).record(2.0);
        assert_eq!(lines(&aggregate), ["c:2|c", "h:2|h"]);
    }

    #[test]
    fn a_gauge_that_was_set_once_is_repeated_until_its_slot_is_needed() {
        let aggregate = aggregate(Dialect::DogStatsD);
        gauge(&aggregate, &key("build_info")).set(1.0);
        assert_eq!(left(&aggregate, 1000), 1);
        assert_eq!(lines(&aggregate), ["build_info:1|g"]);
        let tenant = |n: usize| {
            aggregate.gauge(&Key::from_parts("tenants", vec![Label::new("id", n.to_string())]))
        };
        let set = |n: &usize| tenant(*n).map(|gauge| gauge.set(1.0)).is_some();
        assert_eq!((0..20).filter(set).count(), 10);
        assert_eq!(left(&aggregate, 1 + IDLE_AFTER), 1, "the other name has room");
        assert!(set(&20));
    }

    #[test]
    fn samples_share_lines_if_they_may() {
        let common = common(Dialect::DogStatsD).packed(20);
        let aggregate = Clocked { aggregate: Aggregate::new(common), now: Cell::default() };
        aggregate.common().describe_histogram("t".into(), Unit::Seconds);
        (1..=4).for_each(|n| histogram(&aggregate, &key("t")).record(f64::from(n)));
        assert_eq!(lines(&aggregate), ["t:1000:2000:3000|ms", "t:4000|ms"]);
        (1..=5).for_each(|_| histogram(&aggregate, &key("t")).record(1.0));
        assert_eq!(lines(&aggregate), ["t:1000:1000:1000|ms", "t:1000|ms|@0.5"]);
    }

    #[test]
    fn series_in_occasional_use_are_kept() {
        let aggregate = aggregate(Dialect::DogStatsD);
        for _ in 0..3 {
            counter(&aggregate, &key("c")).increment(1);
            gauge(&aggregate, &key("g")).set(1.0); // setting the same value counts as a change
            histogram(&aggregate, &key("h")).record(1.0);
            assert_eq!(left(&aggregate, IDLE_AFTER), 3);
        }
    }

    #[test]
    fn series_with_a_handle_are_kept_and_gauges_repeated() {
        let aggregate = aggregate(Dialect::DogStatsD);
        let counter = counter(&aggregate, &key("c"));
        let gauge = gauge(&aggregate, &key("g"));
        let histogram = histogram(&aggregate, &key("h"));
        gauge.set(1.0);
        assert_eq!(left(&aggregate, 2 * IDLE_AFTER), 3);
        counter.increment(7);
        histogram.record(3.0);
        assert_eq!(lines(&aggregate), ["c:7|c", "g:1|g", "h:3|h"]);
        assert_eq!(left(&aggregate, 2 * IDLE_AFTER), 3);
        drop((counter, gauge, histogram));
        assert_eq!(left(&aggregate, IDLE_AFTER - 1), 3, "they are idle from now on");
        assert_eq!(left(&aggregate, 1), 1, "the gauge was only set");
    }

    #[test]
    fn a_counter_of_totals_is_kept_as_the_base_of_the_next_difference() {
        let aggregate = aggregate(Dialect::DogStatsD);
        counter(&aggregate, &key("c")).absolute(100);
        assert_eq!(left(&aggregate, 2 * IDLE_AFTER), 1);
        counter(&aggregate, &key("c")).absolute(105);
        assert_eq!(lines(&aggregate), ["c:5|c"]);
    }

    #[test]
    fn a_gauge_with_increments_is_kept_until_it_is_back_at_zero() {
        let aggregate = aggregate(Dialect::DogStatsD);
        gauge(&aggregate, &key("g")).increment(2.0);
        assert_eq!(left(&aggregate, 2 * IDLE_AFTER), 1);
        gauge(&aggregate, &key("g")).decrement(1.0);
        assert_eq!(lines(&aggregate), ["g:1|g"]);
        gauge(&aggregate, &key("g")).decrement(1.0);
        assert_eq!(left(&aggregate, 1 + IDLE_AFTER), 0);
    }

    #[test]
    fn the_number_of_descriptions_is_bounded_by_max_series() {
        let aggregate = aggregate(Dialect::DogStatsD);
        for n in 0..101 {
            aggregate.common().describe_histogram(format!("t{n}").into(), Unit::Seconds);
        }
        aggregate.common().describe_histogram("t0".into(), Unit::Nanoseconds);
        histogram(&aggregate, &key("t0")).record(1e6);
        histogram(&aggregate, &key("t99")).record(1.0);
        histogram(&aggregate, &key("t100")).record(1.0);
        assert_eq!(lines(&aggregate), ["t0:1|ms", "t100:1|h", "t99:1000|ms"]);
    }
}
