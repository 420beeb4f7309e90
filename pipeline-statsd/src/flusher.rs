//! The one thread that flushes on time.

#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::event_queue::{EventQueue, Woken};
use crate::exporter::{Exporter, message};
use crate::report::FlushReport;
use crate::store::Occasion;

/// Sends what a [`StatsdRecorder`](crate::StatsdRecorder) has gathered, once per interval, from a
/// thread of its own.
///
/// Keep it for as long as metrics are to be sent. Dropping it sends what is left, stops the thread
/// and waits for it, then drops the sink.
///
/// A sink that fails, or panics, stops nothing. The first failing flush is logged as a warning, the first
/// good one after it as information, and nothing in between.
#[must_use = "dropping the flusher stops it"]
pub struct StatsdFlusher {
    exporter: Arc<Exporter>,
    /// Wakes the thread, and tells it to end when it is closed.
    queue: Arc<EventQueue>,
    thread: Option<JoinHandle<()>>,
}

impl StatsdFlusher {
    pub(crate) fn start(
        exporter: Exporter,
        queue: Arc<EventQueue>,
        interval: Duration,
    ) -> io::Result<Self> {
        let exporter = Arc::new(exporter);
        let thread = thread::Builder::new().name("statsd-flush".to_owned()).spawn({
            let (exporter, queue) = (Arc::clone(&exporter), Arc::clone(&queue));
            move || flush_until_closed(&exporter, &queue, interval)
        })?;
        Ok(Self { exporter, queue, thread: Some(thread) })
    }

    /// Sends now, on the calling thread, what there is to send. The thread goes on as before.
    ///
    /// Waits for a flush that is under way. It takes as long as the sink takes. UDP and Unix sockets give
    /// their receiver time to read: half the [interval](crate::StatsdBuilder::flush_every) and five
    /// seconds at most. In a task, `spawn_blocking` is the place for that.
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
        self.exporter.flush(Occasion::Due)
    }
}

impl Drop for StatsdFlusher {
    fn drop(&mut self) {
        self.queue.close();
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

fn flush_until_closed(exporter: &Exporter, queue: &EventQueue, interval: Duration) {
    // An interval without an end in time never comes to one.
    let next = || Instant::now().checked_add(interval);
    let mut due = next();
    let mut has_panicked = false;
    // A sink that panics is the exporter's affair. Whatever else does, in a subscriber of the log for
    // instance, costs one flush.
    let mut flush = |occasion| {
        let flushed = catch_unwind(AssertUnwindSafe(|| exporter.flush(occasion)));
        if let Err(panic) = flushed
            && !std::mem::replace(&mut has_panicked, true)
        {
            tracing::error!(panic = message(&*panic), "statsd flush panicked");
        }
    };
    loop {
        match queue.wait(due) {
            Woken::Event if due.is_none_or(|due| Instant::now() < due) => flush(Occasion::Event),
            // However many events there are, it is also on time.
            Woken::Event | Woken::Due => {
                flush(Occasion::Due);
                due = next();
            }
            Woken::Closed => break,
        }
    }
    flush(Occasion::Due);
}
