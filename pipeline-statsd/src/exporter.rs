//! The flush: recorded values become lines, lines become packets, packets go to the sink.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::{
    any::Any,
    cell::Cell,
    collections::HashSet,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use cadence::MetricSink;
use parking_lot::Mutex;

use crate::{
    packet::{self, Packet, Place},
    report::{Change, FlushReport, Health, SelfMetrics},
    store::{Drain, Store},
    table::{MAX_NAMES, Refused},
};

pub(crate) type BoxSink = Box<dyn MetricSink + Send + Sync>;

/// A store and a sink, with one flush at a time.
pub(crate) struct Exporter {
    store: Arc<Store>,
    output: Mutex<Output>,
    began: Instant,
}

/// The state that flushes share.
struct Output {
    sink: BoxSink,
    /// None if the sink receives one line at a time, and may pack lines itself.
    packet: Option<Packet>,
    /// None if own counters are turned off.
    own: Option<SelfMetrics>,
    /// Reused for every line of every flush.
    line: String,
    /// Whether lines were sent since own counters were: those are sent only together with others.
    has_sent: bool,
    health: Health,
    /// The metrics for which refused series have been logged.
    warned_of: HashSet<Box<str>>,
    /// The values that were sent by themselves since the last flush.
    unreported: FlushReport,
    /// The first error since the last flush.
    failure: Option<io::Error>,
}

thread_local! {
    /// Whether this thread is sending.
    static SENDS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is sending. A value that the sink itself records must not be sent at once: that
/// would wait for its own thread.
pub(crate) fn sends_here() -> bool {
    SENDS_HERE.get()
}

/// A guard: while it lives, its thread is sending.
struct SendsHere {
    before: bool,
}

impl SendsHere {
    fn begin() -> Self {
        Self { before: SENDS_HERE.replace(true) }
    }
}

impl Drop for SendsHere {
    fn drop(&mut self) {
        SENDS_HERE.set(self.before);
    }
}

impl Exporter {
    pub(crate) fn new(
        store: Arc<Store>,
        sink: BoxSink,
        packet_bytes: Option<usize>,
        own_counters: bool,
    ) -> Self {
        let output = Output {
            sink,
            packet: packet_bytes.map(Packet::new),
            own: own_counters.then(|| SelfMetrics::new(&store.config().naming)),
            line: String::new(),
            has_sent: false,
            health: Health::Good,
            warned_of: HashSet::new(),
            unreported: FlushReport::default(),
            failure: None,
        };
        Self { store, output: Mutex::new(output), began: Instant::now() }
    }

    /// Sends the values of all series, and the recorder's own counters.
    pub(crate) fn flush(&self) -> FlushReport {
        self.send(true, |now, line, emit| self.store.drain(now, line, emit))
    }

    /// Sends the values that `take` drains. The next flush reports them.
    pub(crate) fn send_value(&self, take: impl FnOnce(&mut Drain<'_>)) {
        self.send(false, |now, line, emit| {
            let mut drain = self.store.begin_drain(now, line, emit);
            take(&mut drain);
            drain.samples_skipped
        });
    }

    /// Sends the lines that `drain` emits. It returns the number of samples without a line.
    fn send(
        &self,
        flushes: bool,
        drain: impl FnOnce(Duration, &mut String, &mut dyn FnMut(&str)) -> u64,
    ) -> FlushReport {
        let _sends = SendsHere::begin();
        let mut output = self.output.lock();
        let Output { sink, packet, own, line, has_sent, health, warned_of, unreported, failure } =
            &mut *output;
        let mut sending = Sending::new(&**sink, packet.as_mut());

        let samples_skipped = drain(self.began.elapsed(), line, &mut |text| sending.push(text, 0));
        let limit = &self.store.config().limit;
        let refused = if flushes { limit.take_refused() } else { Refused::default() };
        let series_refused = refused.values().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let series = limit.used();
        *has_sent |= sending.has_begun;
        if let Some(own) = own.as_ref().filter(|_| *has_sent && flushes) {
            own.write(series, line, |text, marks| sending.push(text, marks));
            *has_sent = false;
        }
        let Sent { report, sent, error } = sending.finish();
        let report = FlushReport { samples_skipped, series_refused, series, ..report };
        if let Some(own) = own {
            own.mark_sent(sent);
            own.count(&report, &refused);
        }
        unreported.add(report);
        *failure = failure.take().or(error);
        if !flushes {
            return report;
        }

        let (report, error) = (mem::take(unreported), failure.take());
        let change = health.observe(&report);
        let news = news(&refused, warned_of);
        drop(output); // a log subscriber may be slow
        match (change, error) {
            (Some(Change::Failed), Some(error)) => {
                let FlushReport { lines, errors, .. } = report;
                tracing::warn!(error = error.to_string(), errors, lines, "statsd sink is failing");
            }
            (Some(Change::Recovered { failed_flushes }), _) => {
                tracing::info!(failed_flushes, "statsd sink has recovered");
            }
            _ => {}
        }
        for metric in news {
            let (max_series, max_per_name) = (limit.max(), limit.max_per_name());
            tracing::warn!(
                metric = &*metric,
                series,
                max_series,
                max_per_name,
                "statsd series refused: too many series"
            );
        }
        report
    }
}

/// The metrics that have not been logged yet.
fn news(refused: &Refused, warned_of: &mut HashSet<Box<str>>) -> Vec<Box<str>> {
    let mut news: Vec<Box<str>> = Vec::new();
    for metric in refused.keys() {
        if warned_of.len() < MAX_NAMES && warned_of.insert(metric.clone()) {
            news.push(metric.clone());
        }
    }
    news
}

/// A flush in progress.
struct Sending<'a> {
    sink: &'a (dyn MetricSink + Send + Sync),
    packet: Option<&'a mut Packet>,
    /// Whether there was anything to send.
    has_begun: bool,
    report: FlushReport,
    /// Marks of the counters in sent packets, and of those in lost ones.
    sent: u16,
    lost: u16,
    /// The first error.
    error: Option<io::Error>,
}

/// The result of a flush.
struct Sent {
    report: FlushReport,
    /// Marks of the counters of which all lines were sent.
    sent: u16,
    error: Option<io::Error>,
}

impl<'a> Sending<'a> {
    fn new(sink: &'a (dyn MetricSink + Send + Sync), packet: Option<&'a mut Packet>) -> Self {
        let report = FlushReport::default();
        Self { sink, packet, has_begun: false, report, sent: 0, lost: 0, error: None }
    }

    /// Adds a line, or several that must stay in one packet.
    fn push(&mut self, text: &str, marks: u16) {
        self.has_begun = true;
        let Some(packet) = self.packet.take() else {
            return self.emit(text, packet::lines(text), marks);
        };
        match packet.place_for(text) {
            Place::Here => packet.push(text, marks),
            Place::Next => {
                self.emit(packet.text(), packet.lines(), packet.marks());
                packet.clear();
                packet.push(text, marks);
            }
            Place::Nowhere => self.report.lines_oversized += packet::lines(text),
        }
        self.packet = Some(packet);
    }

    fn finish(mut self) -> Sent {
        if let Some(packet) = self.packet.take().filter(|packet| packet.lines() > 0) {
            self.emit(packet.text(), packet.lines(), packet.marks());
            packet.clear();
        }
        // Even without lines: a buffering sink may hold lines of an earlier flush.
        if let Err(error) = unless_it_panics(|| self.sink.flush()) {
            self.failed(error);
        }
        Sent { report: self.report, sent: self.sent & !self.lost, error: self.error }
    }

    fn emit(&mut self, text: &str, lines: u64, marks: u16) {
        match unless_it_panics(|| self.sink.emit(text)) {
            Ok(_) => {
                self.report.lines += lines;
                self.report.packets += 1;
                self.report.bytes += text.len() as u64;
                self.sent |= marks;
            }
            Err(error) => {
                self.report.lines_lost += lines;
                self.lost |= marks;
                self.failed(error);
            }
        }
    }

    fn failed(&mut self, error: io::Error) {
        self.report.errors += 1;
        self.error.get_or_insert(error);
    }
}

/// Calls the sink. A panic counts as an error, and the sink is used again.
fn unless_it_panics<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(io::Error::other(format!("the sink panicked: {}", message(&*panic))))
    })
}

/// The message of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
