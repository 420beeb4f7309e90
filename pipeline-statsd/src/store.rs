//! All series of a recorder. A drain turns their values into lines.

use std::{sync::Arc, time::Duration};

use metrics::Key;

use crate::{
    config::{SharedConfig, TimeUnit},
    histogram::{HistogramSeries, Samples},
    name::within_bounds,
    series::{CounterSeries, GaugeSeries},
    table::{Full, Idle, Table},
};

/// The store of recorded values: handles record into its series, flushes drain them.
#[derive(Debug)]
pub(crate) struct Store {
    config: SharedConfig,
    counters: Table<CounterSeries>,
    gauges: Table<GaugeSeries>,
    histograms: Table<HistogramSeries>,
}

impl Store {
    pub(crate) fn new(config: SharedConfig) -> Self {
        let (counters, gauges, histograms) = (config.table(), config.table(), config.table());
        Self { config, counters, gauges, histograms }
    }

    pub(crate) fn config(&self) -> &SharedConfig {
        &self.config
    }

    // None if there are too many series. Names and labels are truncated before they are stored.

    pub(crate) fn counter(&self, key: &Key) -> Option<Arc<CounterSeries>> {
        let key = &*within_bounds(key);
        self.counters.get_or_make(key, || CounterSeries::new(self.config.naming.of(key)))
    }

    pub(crate) fn gauge(&self, key: &Key) -> Option<Arc<GaugeSeries>> {
        let key = &*within_bounds(key);
        self.gauges.get_or_make(key, || GaugeSeries::new(self.config.naming.of(key)))
    }

    pub(crate) fn histogram(&self, key: &Key) -> Option<Arc<HistogramSeries>> {
        let key = &*within_bounds(key);
        let samples = self.config.limits.histogram_samples;
        let make = || {
            let one_in = self.config.rates.one_in(key.name());
            HistogramSeries::new(self.config.naming.of(key), samples, one_in, key.get_hash())
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
        emit: &mut dyn FnMut(&str),
    ) -> u64 {
        let mut drain = self.begin_drain(now, line, emit);
        let mut longest_idle = Duration::ZERO;

        // A table locks a shard while it iterates over it, which blocks new series. Hence the copies.
        for (counter, is_held) in self.counters.all(|_, series, is_held| (series, is_held)) {
            drain.counter(&counter, is_held);
            longest_idle = longest_idle.max(counter.idle().time(now));
        }

        let full = self.config.limit.full();
        let gauges = |key: &Key, series: Arc<GaugeSeries>, is_held| {
            let may_leave = may_leave_when_idle(&full, key, &series);
            (series, is_held, may_leave)
        };
        for (gauge, is_held, may_leave) in self.gauges.all(gauges) {
            drain.gauge(&gauge, is_held);
            if may_leave {
                longest_idle = longest_idle.max(gauge.idle().time(now));
            }
        }

        for (histogram, is_held, time_unit) in self.histograms() {
            drain.histogram(&histogram, time_unit, is_held);
            longest_idle = longest_idle.max(histogram.idle().time(now));
        }

        let skipped = drain.samples_skipped;
        if longest_idle >= self.config.limits.idle_after {
            self.sweep(&full, now);
        }
        skipped
    }

    /// A drain of single series.
    pub(crate) fn begin_drain<'a>(
        &'a self,
        now: Duration,
        line: &'a mut String,
        emit: &'a mut dyn FnMut(&str),
    ) -> Drain<'a> {
        Drain { config: &self.config, now, line, emit, samples_skipped: 0 }
    }

    fn histograms(&self) -> Vec<(Arc<HistogramSeries>, bool, Option<TimeUnit>)> {
        let time_unit = |key: &Key| self.config.time_units.of(key.name());
        self.histograms.all(|key, series, is_held| (series, is_held, time_unit(key)))
    }

    fn sweep(&self, full: &Full, now: Duration) {
        let is_idle = |idle: &Idle| idle.time(now) >= self.config.limits.idle_after;
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

/// A drain in progress: it takes the values of series, and emits their lines.
pub(crate) struct Drain<'a> {
    config: &'a SharedConfig,
    now: Duration,
    line: &'a mut String,
    emit: &'a mut dyn FnMut(&str),
    pub(crate) samples_skipped: u64,
}

impl Drain<'_> {
    pub(crate) fn time_unit(&self, metric: &str) -> Option<TimeUnit> {
        self.config.time_units.of(metric)
    }

    pub(crate) fn counter(&mut self, counter: &CounterSeries, is_held: bool) {
        let grown = counter.take();
        counter.idle().note(is_held || grown > 0, self.now);
        if grown > 0 {
            self.line.clear();
            self.config.naming.dialect().write_counter(self.line, counter.name(), grown);
            (self.emit)(self.line);
        }
    }

    pub(crate) fn gauge(&mut self, gauge: &GaugeSeries, is_held: bool) {
        let touched = gauge.take_touched();
        gauge.idle().note(is_held || touched, self.now);
        if !touched && !self.config.repeats_gauges {
            return;
        }
        self.line.clear();
        let dialect = self.config.naming.dialect();
        let value = gauge.value();
        if value.is_some_and(|value| dialect.write_gauge(self.line, gauge.name(), value)) {
            (self.emit)(self.line);
        }
    }

    pub(crate) fn histogram(
        &mut self,
        histogram: &HistogramSeries,
        time_unit: Option<TimeUnit>,
        is_held: bool,
    ) {
        let samples = histogram.take();
        histogram.idle().note(is_held || !samples.is_empty(), self.now);
        if let Some(limit) = self.config.packed {
            return self.packed(histogram, &samples, time_unit, limit);
        }
        let dialect = self.config.naming.dialect();
        for (value, weight) in samples.weighted() {
            let (kind, value) = TimeUnit::sent(time_unit, value);
            self.line.clear();
            if dialect.write_sample(self.line, histogram.name(), kind, value, weight) {
                (self.emit)(self.line);
            } else {
                self.samples_skipped = self.samples_skipped.saturating_add(weight);
            }
        }
    }

    /// Emits the samples of a histogram, many in a line.
    fn packed(
        &mut self,
        histogram: &HistogramSeries,
        samples: &Samples,
        time_unit: Option<TimeUnit>,
        limit: usize,
    ) {
        let dialect = self.config.naming.dialect();
        let kind = TimeUnit::kind(time_unit);
        for (values, weight) in samples.parts() {
            let sent = values.iter().map(|value| TimeUnit::sent(time_unit, *value).1);
            let sent: Vec<_> = sent.filter(|value| value.is_finite()).collect();
            let missing = values.len().abs_diff(sent.len()) as u64;
            self.samples_skipped =
                self.samples_skipped.saturating_add(missing.saturating_mul(weight));
            let mut rest = &sent[..];
            while !rest.is_empty() {
                self.line.clear();
                let name = histogram.name();
                let written = dialect.write_samples(self.line, name, kind, rest, weight, limit);
                (self.emit)(self.line);
                rest = &rest[written..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Limits, SampleRates},
        line::Dialect,
        name::Naming,
    };
    use std::{cell::Cell, ops::Deref};

    use metrics::{CounterFn as _, GaugeFn as _, HistogramFn as _, Label, Unit};

    /// In seconds; the tests drain once a second.
    const IDLE_AFTER: u64 = 3;

    /// A store with a clock that each drain advances by a second.
    struct Clocked {
        store: Store,
        now: Cell<Duration>,
    }

    impl Clocked {
        fn drain(&self, mut emit: impl FnMut(&str)) -> u64 {
            self.now.set(self.now.get() + Duration::from_secs(1));
            self.store.drain(self.now.get(), &mut String::from("left over"), &mut emit)
        }
    }

    impl Deref for Clocked {
        type Target = Store;

        fn deref(&self) -> &Store {
            &self.store
        }
    }

    fn config(dialect: Dialect) -> SharedConfig {
        let limits = Limits {
            max_series: 100,
            max_series_per_name: 10,
            histogram_samples: 4,
            idle_after: Duration::from_secs(IDLE_AFTER),
        };
        let rates = SampleRates::new(1.0, &[]).unwrap();
        SharedConfig::new(Naming::new(dialect, "", &[]), limits, rates)
    }

    fn store(dialect: Dialect) -> Clocked {
        Clocked { store: Store::new(config(dialect)), now: Cell::default() }
    }

    fn counter(store: &Store, key: &Key) -> Arc<CounterSeries> {
        store.counter(key).unwrap()
    }

    fn gauge(store: &Store, key: &Key) -> Arc<GaugeSeries> {
        store.gauge(key).unwrap()
    }

    fn histogram(store: &Store, key: &Key) -> Arc<HistogramSeries> {
        store.histogram(key).unwrap()
    }

    fn lines(store: &Clocked) -> Vec<String> {
        let mut lines = Vec::new();
        store.drain(|line| lines.push(line.to_owned()));
        lines.sort();
        lines
    }

    fn key(name: &'static str) -> Key {
        Key::from_static_name(name)
    }

    #[test]
    fn a_drain_emits_changes_and_repeats_gauges() {
        let store = store(Dialect::DogStatsD);
        counter(&store, &key("c")).increment(2);
        gauge(&store, &key("g")).set(1.5);
        histogram(&store, &key("h")).record(3.0);
        assert_eq!(lines(&store), ["c:2|c", "g:1.5|g", "h:3|h"]);
        assert_eq!(lines(&store), ["g:1.5|g"]);
    }

    #[test]
    fn a_series_that_was_only_registered_emits_nothing() {
        let store = store(Dialect::DogStatsD);
        counter(&store, &key("c")).increment(0);
        let _ = gauge(&store, &key("g"));
        let _ = histogram(&store, &key("h"));
        assert!(lines(&store).is_empty());
    }

    #[test]
    fn handles_of_one_key_share_a_series_whatever_the_order_of_labels() {
        let store = store(Dialect::StatsD);
        let (a, b) = (Label::new("a", "1"), Label::new("b", "2"));
        counter(&store, &Key::from_parts("c", vec![a.clone(), b.clone()])).increment(1);
        counter(&store, &Key::from_parts("c", vec![b, a])).increment(1);
        assert_eq!(lines(&store), ["c;a=1;b=2:2|c"]);
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
            let store = store(Dialect::DogStatsD);
            store.config().describe_histogram("t".into(), unit);
            histogram(&store, &key("t")).record(value);
            assert_eq!(lines(&store), ["t:0.75|ms"], "{unit:?}");
        }
    }

    #[test]
    fn a_description_applies_from_the_next_drain_on() {
        let store = store(Dialect::DogStatsD);
        histogram(&store, &key("t")).record(2.0);
        store.config().describe_histogram("t".into(), Unit::Seconds);
        assert_eq!(lines(&store), ["t:2000|ms"]);
        store.config().describe_histogram("t".into(), Unit::Bytes);
        histogram(&store, &key("t")).record(2.0);
        assert_eq!(lines(&store), ["t:2|h"]);
    }

    #[test]
    fn samples_without_a_line_are_counted_with_their_weight() {
        let store = store(Dialect::StatsD);
        histogram(&store, &key("t")).record_many(-1.0, 10);
        let skipped = store.drain(|line| panic!("{line}"));
        assert_eq!(skipped, 10);
    }

    #[test]
    fn recording_while_draining_is_not_locked_out() {
        let store = store(Dialect::DogStatsD);
        counter(&store, &key("c")).increment(1);
        store.drain(|_| {
            // Creating a series takes the shard's write lock.
            counter(&store, &key("emitted")).increment(1);
            store.config().describe_histogram("t".into(), Unit::Seconds);
        });
        assert_eq!(lines(&store), ["emitted:1|c"]);
    }

    /// The number of series after this many drains without a change.
    fn left(store: &Clocked, drains: u64) -> usize {
        for _ in 0..drains {
            store.drain(|_| ());
        }
        store.config().limit.used()
    }

    #[test]
    fn idle_series_without_a_handle_are_removed() {
        let store = store(Dialect::DogStatsD);
        counter(&store, &key("c")).increment(1);
        histogram(&store, &key("h")).record(1.0);
        // The first drain counts as a use.
        assert_eq!(left(&store, 1 + IDLE_AFTER - 1), 2);
        assert_eq!(left(&store, 1), 0);

        counter(&store, &key("c")).increment(2);
        histogram(&store, &key("h")).record(2.0);
        assert_eq!(lines(&store), ["c:2|c", "h:2|h"]);
    }

    #[test]
    fn a_gauge_that_was_set_once_is_repeated_until_its_slot_is_needed() {
        let store = store(Dialect::DogStatsD);
        gauge(&store, &key("build_info")).set(1.0);
        assert_eq!(left(&store, 1000), 1);
        assert_eq!(lines(&store), ["build_info:1|g"]);
        let tenant = |n: usize| {
            store.gauge(&Key::from_parts("tenants", vec![Label::new("id", n.to_string())]))
        };
        let set = |n: &usize| tenant(*n).map(|gauge| gauge.set(1.0)).is_some();
        assert_eq!((0..20).filter(set).count(), 10);
        assert_eq!(left(&store, 1 + IDLE_AFTER), 1, "the other name has room");
        assert!(set(&20));
    }

    #[test]
    fn samples_share_lines_if_they_may() {
        let config = config(Dialect::DogStatsD).packed(20);
        let store = Clocked { store: Store::new(config), now: Cell::default() };
        store.config().describe_histogram("t".into(), Unit::Seconds);
        (1..=4).for_each(|n| histogram(&store, &key("t")).record(f64::from(n)));
        assert_eq!(lines(&store), ["t:1000:2000:3000|ms", "t:4000|ms"]);
        (1..=5).for_each(|_| histogram(&store, &key("t")).record(1.0));
        assert_eq!(lines(&store), ["t:1000:1000:1000|ms", "t:1000|ms|@0.5"]);
    }

    #[test]
    fn series_in_occasional_use_are_kept() {
        let store = store(Dialect::DogStatsD);
        for _ in 0..3 {
            counter(&store, &key("c")).increment(1);
            gauge(&store, &key("g")).set(1.0); // setting the same value counts as a change
            histogram(&store, &key("h")).record(1.0);
            assert_eq!(left(&store, IDLE_AFTER), 3);
        }
    }

    #[test]
    fn series_with_a_handle_are_kept_and_gauges_repeated() {
        let store = store(Dialect::DogStatsD);
        let counter = counter(&store, &key("c"));
        let gauge = gauge(&store, &key("g"));
        let histogram = histogram(&store, &key("h"));
        gauge.set(1.0);
        assert_eq!(left(&store, 2 * IDLE_AFTER), 3);
        counter.increment(7);
        histogram.record(3.0);
        assert_eq!(lines(&store), ["c:7|c", "g:1|g", "h:3|h"]);
        assert_eq!(left(&store, 2 * IDLE_AFTER), 3);
        drop((counter, gauge, histogram));
        assert_eq!(left(&store, IDLE_AFTER - 1), 3, "they are idle from now on");
        assert_eq!(left(&store, 1), 1, "the gauge was only set");
    }

    #[test]
    fn a_counter_of_totals_is_kept_as_the_base_of_the_next_difference() {
        let store = store(Dialect::DogStatsD);
        counter(&store, &key("c")).absolute(100);
        assert_eq!(left(&store, 2 * IDLE_AFTER), 1);
        counter(&store, &key("c")).absolute(105);
        assert_eq!(lines(&store), ["c:5|c"]);
    }

    #[test]
    fn a_gauge_with_increments_is_kept_until_it_is_back_at_zero() {
        let store = store(Dialect::DogStatsD);
        gauge(&store, &key("g")).increment(2.0);
        assert_eq!(left(&store, 2 * IDLE_AFTER), 1);
        gauge(&store, &key("g")).decrement(1.0);
        assert_eq!(lines(&store), ["g:1|g"]);
        gauge(&store, &key("g")).decrement(1.0);
        assert_eq!(left(&store, 1 + IDLE_AFTER), 0);
    }

    #[test]
    fn the_number_of_descriptions_is_bounded_by_max_series() {
        let store = store(Dialect::DogStatsD);
        for n in 0..101 {
            store.config().describe_histogram(format!("t{n}").into(), Unit::Seconds);
        }
        store.config().describe_histogram("t0".into(), Unit::Nanoseconds);
        histogram(&store, &key("t0")).record(1e6);
        histogram(&store, &key("t99")).record(1.0);
        histogram(&store, &key("t100")).record(1.0);
        assert_eq!(lines(&store), ["t0:1|ms", "t100:1|h", "t99:1000|ms"]);
    }
}
