//! A store that sends every value in its own line, for development and tests.

use std::sync::Arc;
use std::time::Duration;

use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName};
use parking_lot::Mutex;

use crate::common::Common;
use crate::event_queue::{Event, EventQueue, Value};
use crate::idle::Idle;
use crate::name::SeriesName;
use crate::sample_rate::Thinning;
use crate::table::Table;
use crate::time_unit::TimeUnit;

/// The non-aggregating store: handles put values into its queue, flushes drain it.
#[derive(Debug)]
pub(crate) struct PerEvent {
    common: Common,
    counters: Table<EventSeries>,
    gauges: Table<EventSeries>,
    histograms: Table<EventSeries>,
    queue: Arc<EventQueue>,
}

impl PerEvent {
    pub(crate) fn new(common: Common, queue: Arc<EventQueue>) -> Self {
        let (counters, gauges, histograms) = (common.table(), common.table(), common.table());
        Self { common, counters, gauges, histograms, queue }
    }

    pub(crate) fn common(&self) -> &Common {
        &self.common
    }

    pub(crate) fn counter(&self, key: &Key) -> Option<Arc<EventHandle>> {
        self.handle(&self.counters, key, self.common.rates.one_in(key.name()))
    }

    /// A gauge has no rate: after a skipped value the receiver would keep a wrong one.
    pub(crate) fn gauge(&self, key: &Key) -> Option<Arc<EventHandle>> {
        self.handle(&self.gauges, key, 1)
    }

    pub(crate) fn histogram(&self, key: &Key) -> Option<Arc<EventHandle>> {
        self.handle(&self.histograms, key, self.common.rates.one_in(key.name()))
    }

    fn handle(
        &self,
        table: &Table<EventSeries>,
        key: &Key,
        one_in: u64,
    ) -> Option<Arc<EventHandle>> {
        let series = table.get_or_make(key, || EventSeries {
            key: KeyName::from(key.name().to_owned()),
            name: self.common.naming.of(key),
            state: Mutex::new(State {
                total: 0,
                level: 0.0,
                is_base: false,
                touched: false,
                thinning: Thinning::new(one_in, key.get_hash()),
            }),
            idle: Idle::default(),
        })?;
        Some(Arc::new(EventHandle { series, queue: Arc::clone(&self.queue) }))
    }

    /// Passes a line for each queued value to `emit`, in the order of recording. Returns the number of
    /// samples for which the dialect has no line, and the number of dropped values.
    pub(crate) fn drain(&self, line: &mut String, mut emit: impl FnMut(&str)) -> (u64, u64) {
        let dialect = self.common.naming.dialect();
        let mut skipped = 0_u64;
        let (events, dropped) = self.queue.take();
        for Event { series, value } in events {
            line.clear();
            let name = &series.name;
            match value {
                Value::Growth { by, weight } => dialect.write_counter(line, name, by, weight),
                Value::Level(level) => {
                    // The value is finite, so there is a line for it.
                    let _ = dialect.write_gauge(line, name, level);
                }
                Value::Sample { value, weight } => {
                    let unit = self.common.time_units.of(series.key.as_str());
                    let (kind, value) = TimeUnit::sent(unit, value);
                    if !dialect.write_sample(line, name, kind, value, weight) {
                        skipped = skipped.saturating_add(weight);
                        continue;
                    }
                }
            }
            emit(line);
        }
        (skipped, dropped)
    }

    /// Removes idle series. Called at every flush.
    pub(crate) fn sweep(&self, now: Duration) {
        for table in [&self.counters, &self.gauges, &self.histograms] {
            let note = |series: &EventSeries, is_held| {
                let touched = std::mem::take(&mut series.state.lock().touched);
                series.idle.note(is_held || touched, now);
                series.idle.time(now) >= self.common.limits.idle_after
            };
            let idle = table.all(|_, series, is_held| note(&series, is_held));
            if idle.contains(&true) {
                table.sweep(|_, series| {
                    let is_idle = series.idle.time(now) >= self.common.limits.idle_after;
                    is_idle && series.state.lock().may_leave()
                });
            }
        }
    }
}

/// A counter, a gauge or a histogram.
#[derive(Debug)]
pub(crate) struct EventSeries {
    key: KeyName,
    name: SeriesName,
    /// Locked while a value is put into the queue, so that the values of one series stay in order.
    state: Mutex<State>,
    idle: Idle,
}

#[derive(Debug)]
struct State {
    /// A counter's last total, from which the next difference is computed.
    total: u64,
    /// A gauge's value, to which the next step is added.
    level: f64,
    /// Whether the next total or step depends on these.
    is_base: bool,
    touched: bool,
    thinning: Thinning,
}

impl State {
    fn may_leave(&self) -> bool {
        !self.touched && !(self.is_base && (self.total > 0 || self.level != 0.0))
    }
}

/// The implementation of the facade's handles.
#[derive(Debug)]
pub(crate) struct EventHandle {
    series: Arc<EventSeries>,
    queue: Arc<EventQueue>,
}

impl EventHandle {
    /// Queues the value that results from the state, if the sample rate chooses it.
    fn note(&self, value: impl FnOnce(&mut State) -> Option<Value>) {
        let mut state = self.series.state.lock();
        state.touched = true;
        let value = value(&mut state);
        if let Some(value) = value.filter(|_| state.thinning.chooses()) {
            self.queue.push(Event { series: Arc::clone(&self.series), value });
        }
    }

    fn step(&self, change: f64) {
        self.note(|state| {
            let level = state.level + change;
            state.is_base = true;
            level.is_finite().then(|| {
                state.level = level;
                Value::Level(level)
            })
        });
    }
}

impl CounterFn for EventHandle {
    fn increment(&self, by: u64) {
        self.note(|state| {
            state.total = state.total.wrapping_add(by);
            Some(Value::Growth { by, weight: state.thinning.one_in() })
        });
    }

    fn absolute(&self, total: u64) {
        self.note(|state| {
            let by = total.saturating_sub(state.total);
            state.total += by;
            state.is_base = true;
            Some(Value::Growth { by, weight: state.thinning.one_in() })
        });
    }
}

impl GaugeFn for EventHandle {
    fn increment(&self, value: f64) {
        self.step(value);
    }

    fn decrement(&self, value: f64) {
        self.step(-value);
    }

    fn set(&self, value: f64) {
        if value.is_finite() {
            self.note(|state| {
                state.level = value;
                Some(Value::Level(value))
            });
        }
    }
}

impl HistogramFn for EventHandle {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        if value.is_finite() && count > 0 {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.note(|state| {
                let weight = count.saturating_mul(state.thinning.one_in());
                Some(Value::Sample { value, weight })
            });
        }
    }
}
