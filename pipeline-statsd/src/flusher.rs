//! Sending: the flush itself, and the one thread that does it on time.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cadence::MetricSink;
use parking_lot::Mutex;

use crate::aggregate::Aggregate;

pub(crate) type BoxSink = Box<dyn MetricSink + Send + Sync>;

/// Sends what a [`StatsdRecorder`](crate::StatsdRecorder) has gathered, once per interval, from a
/// thread of its own.
///
/// Keep it for as long as metrics are to be sent. Dropping it sends what is left, stops the thread
/// and waits for it, then drops the sink.
///
/// A sink that fails stops nothing. The first failing flush is logged as a warning, the first good
/// one after it as information, and nothing in between.
#[must_use = "dropping the flusher stops it"]
pub struct StatsdFlusher {
    exporter: Arc<Exporter>,
    /// Nothing is ever sent: that it is gone tells the thread to end.
    alive: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// What one flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Lines that the sink took.
    pub lines: u64,
    /// The bytes of those lines, without the newlines a sink may put between them.
    pub bytes: u64,
    /// Samples that were left out because the dialect has no line for them, such as negative
    /// timings in [`Dialect::StatsD`](crate::Dialect::StatsD).
    pub skipped: u64,
    /// Calls to the sink that failed: each lost the text it was given, except that of flushing
    /// the sink at the end, after which a buffering sink keeps what it holds and tries again.
    pub errors: u64,
}

impl StatsdFlusher {
    pub(crate) fn start(
        aggregate: Arc<Aggregate>,
        sink: BoxSink,
        interval: Duration,
    ) -> io::Result<Self> {
        let exporter = Arc::new(Exporter::new(aggregate, sink));
        let (alive, stop) = mpsc::channel();
        let thread = thread::Builder::new().name("statsd-flush".to_owned()).spawn({
            let exporter = Arc::clone(&exporter);
            move || flush_until_stopped(&exporter, &stop, interval)
        })?;
        Ok(Self { exporter, alive: Some(alive), thread: Some(thread) })
    }

    /// Sends now, on the calling thread, what there is to send. The thread goes on as before.
    ///
    /// Waits for a flush that is under way. It takes as long as the sink takes; UDP sinks don't
    /// wait for anything.
    ///
    /// # Examples
    ///
    /// ```
    /// use pipeline_statsd::{StatsdRecorder, cadence::NopMetricSink};
    ///
    /// # fn main() -> Result<(), pipeline_statsd::BuildError> {
    /// let (recorder, flusher) = StatsdRecorder::sink(NopMetricSink).build()?;
    /// metrics::with_local_recorder(&recorder, || metrics::gauge!("sockets").set(3));
    ///
    /// let report = flusher.flush();
    /// assert_eq!((report.lines, report.bytes), (1, "sockets:3|g".len() as u64));
    /// # Ok(())
    /// # }
    /// ```
    #[expect(clippy::must_use_candidate, reason = "flushing is the point, the report is extra")]
    pub fn flush(&self) -> FlushReport {
        self.exporter.flush()
    }
}

impl Drop for StatsdFlusher {
    fn drop(&mut self) {
        drop(self.alive.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("statsd flush thread had panicked");
        }
    }
}

impl fmt::Debug for StatsdFlusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsdFlusher").finish_non_exhaustive()
    }
}

fn flush_until_stopped(exporter: &Exporter, stop: &Receiver<Infallible>, interval: Duration) {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(interval) {
        exporter.flush();
    }
    exporter.flush();
}

/// One aggregate, one sink, one flush at a time.
struct Exporter {
    aggregate: Arc<Aggregate>,
    output: Mutex<Output>,
}

struct Output {
    sink: BoxSink,
    /// Reused for every line of every flush.
    line: String,
    health: Health,
}

impl Exporter {
    fn new(aggregate: Arc<Aggregate>, sink: BoxSink) -> Self {
        let output = Output { sink, line: String::new(), health: Health::Good };
        Self { aggregate, output: Mutex::new(output) }
    }

    fn flush(&self) -> FlushReport {
        let mut output = self.output.lock();
        let Output { sink, line, health } = &mut *output;
        let mut report = FlushReport::default();
        let mut first_error = None;

        report.skipped = self.aggregate.drain(line, |text| match sink.emit(text) {
            Ok(_) => {
                report.lines += text.split('\n').count() as u64;
                report.bytes += text.len() as u64;
            }
            Err(error) => {
                report.errors += 1;
                first_error.get_or_insert(error);
            }
        });
        // Even with no line: a buffering sink may hold what it could not send the last time.
        if let Err(error) = sink.flush() {
            report.errors += 1;
            first_error.get_or_insert(error);
        }

        let change = health.observe(&report);
        drop(output); // a subscriber of the log may take its time
        match (change, first_error) {
            (Some(Change::Failed), Some(error)) => {
                let FlushReport { lines, errors, .. } = report;
                tracing::warn!(%error, errors, lines, "statsd sink is failing");
            }
            (Some(Change::Recovered { failed_flushes }), _) => {
                tracing::info!(failed_flushes, "statsd sink has recovered");
            }
            _ => {}
        }
        report
    }
}

/// Whether the sink worked the last time there was something to tell.
#[derive(Clone, Copy, Debug)]
enum Health {
    Good,
    Failing { flushes: u64 },
}

/// A turn worth logging.
#[derive(Debug, PartialEq)]
enum Change {
    Failed,
    Recovered { failed_flushes: u64 },
}

impl Health {
    fn observe(&mut self, report: &FlushReport) -> Option<Change> {
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
            // Failing => Good, on evidence: a flush without a line proves nothing.
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

    #[test]
    fn an_episode_of_failing_is_told_once_at_each_end() {
        let report = |lines, errors| FlushReport { lines, errors, ..FlushReport::default() };
        let mut health = Health::Good;
        let mut observe = |lines, errors| health.observe(&report(lines, errors));
        assert_eq!(observe(3, 0), None);
        assert_eq!(observe(0, 2), Some(Change::Failed));
        assert_eq!(observe(2, 1), None);
        assert_eq!(observe(0, 0), None); // nothing was tried
        assert_eq!(observe(1, 0), Some(Change::Recovered { failed_flushes: 2 }));
        assert_eq!(observe(0, 0), None);
        assert_eq!(observe(0, 1), Some(Change::Failed));
    }
}
