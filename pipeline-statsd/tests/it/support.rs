//! A sink that collects lines, and helpers that parse them.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_statsd::{StatsdBuilder, StatsdRecorder, cadence::MetricSink};

/// How long to wait for an expected event before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A sink that collects lines, reports each, and can be set to fail.
#[derive(Clone)]
pub(crate) struct Collector {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    emit_fails: bool,
    flush_fails: bool,
    attempts: Option<Sender<()>>,
}

impl Collector {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default() }
    }

    /// Also reports every call of emit or flush, successful or not.
    pub(crate) fn watched() -> (Self, Receiver<()>) {
        let collector = Self::new();
        let (attempts, watch) = mpsc::channel();
        collector.state.lock().attempts = Some(attempts);
        (collector, watch)
    }

    pub(crate) fn fail(&self, emit: bool, flush: bool) {
        let mut state = self.state.lock();
        state.emit_fails = emit;
        state.flush_fails = flush;
    }

    /// The lines since the last call, sorted: the order of series is undefined.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.state.lock().lines);
        lines.sort();
        lines
    }

    /// The number of lines since the last `take`.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().lines.len()
    }

    /// The number of handles to this collector; the sink holds one.
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.state)
    }
}

/// A recorder that sends only the test's own metrics to the collector.
pub(crate) fn quiet(collector: &Collector) -> StatsdBuilder {
    StatsdRecorder::sink(collector.clone()).own_counters(false)
}

impl State {
    fn attempt(&self, fails: bool) -> io::Result<()> {
        if let Some(attempts) = &self.attempts {
            let _ = attempts.send(()); // the test may not watch
        }
        if fails { Err(io::Error::from(io::ErrorKind::ConnectionRefused)) } else { Ok(()) }
    }
}

impl MetricSink for Collector {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.attempt(state.emit_fails)?;
        state.lines.extend(metric.split('\n').map(str::to_owned));
        Ok(metric.len())
    }

    fn flush(&self) -> io::Result<()> {
        let state = self.state.lock();
        state.attempt(state.flush_fails)
    }
}

/// The number of samples that a line represents: the integer part of one divided by its rate.
pub(crate) fn weight(line: &str) -> u64 {
    let rate = line.split('|').find_map(|field| field.strip_prefix('@'));
    let Some(rate) = rate else { return 1 };
    let rate: f64 = rate.parse().expect("a rate is a number");
    format!("{:.0}", (1.0 / rate).trunc()).parse().expect("a weight is a whole number")
}

/// The value of a line, between the first `:` and the first `|`.
pub(crate) fn value(line: &str) -> &str {
    let (_, rest) = line.split_once(':').expect("a line has a value");
    rest.split_once('|').expect("a line has a type").0
}
