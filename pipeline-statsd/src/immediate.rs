//! Handles that send each value as soon as it is recorded, for development and tests.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName};

use crate::{
    exporter::{Exporter, sends_here},
    histogram::HistogramSeries,
    name,
    series::{CounterSeries, GaugeSeries},
    store::Drain,
};

/// A handle of a series that sends each value at once.
pub(crate) struct Immediate<S> {
    series: Arc<S>,
    /// The name of the metric, to look up its time unit.
    name: KeyName,
    /// None once the flusher is dropped: values are recorded then, and never sent.
    exporter: Weak<Exporter>,
}

impl<S> Immediate<S> {
    pub(crate) fn new(series: Arc<S>, key: &Key, exporter: &Weak<Exporter>) -> Self {
        Self { series, name: name::cut(key.name()).into(), exporter: exporter.clone() }
    }

    /// Records a value and sends it. No other value is recorded or sent meanwhile, so that each has a
    /// line, and lines are in the order of recording.
    fn send(&self, record: impl FnOnce(&S), take: impl FnOnce(&mut Drain<'_>, &S)) {
        match self.exporter.upgrade() {
            Some(exporter) if !sends_here() => exporter.send_value(|drain| {
                record(&self.series);
                take(drain, &self.series);
            }),
            // A value that the sink or its log lines record is sent with the next value or flush.
            _ => record(&self.series),
        }
    }
}

impl CounterFn for Immediate<CounterSeries> {
    fn increment(&self, value: u64) {
        self.send(
            |counter| counter.increment(value),
            |drain, counter| drain.counter(counter, true),
        );
    }

    fn absolute(&self, value: u64) {
        self.send(|counter| counter.absolute(value), |drain, counter| drain.counter(counter, true));
    }
}

impl GaugeFn for Immediate<GaugeSeries> {
    fn increment(&self, value: f64) {
        self.send(|gauge| gauge.increment(value), |drain, gauge| drain.gauge(gauge, true));
    }

    fn decrement(&self, value: f64) {
        self.send(|gauge| gauge.decrement(value), |drain, gauge| drain.gauge(gauge, true));
    }

    fn set(&self, value: f64) {
        self.send(|gauge| gauge.set(value), |drain, gauge| drain.gauge(gauge, true));
    }
}

impl HistogramFn for Immediate<HistogramSeries> {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.send(
            |histogram| histogram.record_many(value, count),
            |drain, histogram| {
                let time_unit = drain.time_unit(self.name.as_str());
                drain.histogram(histogram, time_unit, true);
            },
        );
    }
}

impl<S> fmt::Debug for Immediate<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Immediate").field("name", &self.name).finish_non_exhaustive()
    }
}
