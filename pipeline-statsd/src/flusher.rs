//! The thread that flushes once per interval.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    exporter::{Exporter, message},
    report::FlushReport,
};

/// A handle of the thread that sends what a [`StatsdRecorder`](crate::StatsdRecorder) has recorded, once
/// per interval.
///
/// Keep it for as long as metrics are to be sent. Dropping it sends the remaining values, stops the
/// thread, waits for it, and drops the sink.
///
/// A sink that fails or panics does not stop the thread. The first failing flush is logged as a warning,
/// the first successful one after it as information, and none in between.
#[must_use = "dropping the flusher stops it"]
pub struct StatsdFlusher {
    exporter: Arc<Exporter>,
    /// Its drop ends the thread.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatsdFlusher {
    pub(crate) fn start(exporter: Arc<Exporter>, interval: Duration) -> io::Result<Self> {
        let (running, dropped) = mpsc::channel();
        let thread = thread::Builder::new().name("statsd-flush".to_owned()).spawn({
            let exporter = Arc::clone(&exporter);
            move || flush_until_dropped(&exporter, &dropped, interval)
        })?;
        Ok(Self { exporter, running: Some(running), thread: Some(thread) })
    }

    /// Flushes now, on the calling thread. The thread's own flushes are not affected.
    ///
    /// Waits for a flush in progress. A flush takes as long as the sink does. UDP and Unix sockets wait
    /// for their receiver: half the [interval](crate::StatsdBuilder::flush_every), and five seconds at
    /// most. In async code, call it in `spawn_blocking`.
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
        drop(self.running.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("statsd flush thread panicked");
        }
    }
}

impl fmt::Debug for StatsdFlusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsdFlusher").finish_non_exhaustive()
    }
}

fn flush_until_dropped(exporter: &Exporter, dropped: &Receiver<()>, interval: Duration) {
    let mut has_panicked = false;
    // The exporter handles a sink that panics. Any other panic, for instance in a log subscriber, costs
    // one flush.
    let mut flush = || {
        let flushed = catch_unwind(AssertUnwindSafe(|| exporter.flush()));
        if let Err(panic) = flushed
            && !std::mem::replace(&mut has_panicked, true)
        {
            tracing::error!(panic = message(&*panic), "statsd flush panicked");
        }
    };
    while let Err(RecvTimeoutError::Timeout) = dropped.recv_timeout(interval) {
        flush();
    }
    flush();
}
