//! Options of a recorder, and bringing it to life.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::aggregate::Aggregate;
use crate::dialect::Dialect;
use crate::error::{BuildError, InstallError};
use crate::flusher::{BoxSink, StatsdFlusher};
use crate::name::Naming;
use crate::recorder::StatsdRecorder;

/// Options of a [`StatsdRecorder`], from [`StatsdRecorder::udp`] or [`StatsdRecorder::sink`].
#[must_use = "a builder does nothing until `install` or `build`"]
pub struct StatsdBuilder {
    sink: BoxSink,
    dialect: Dialect,
    prefix: String,
    tags: Vec<(String, String)>,
    flush_every: Duration,
    histogram_samples: usize,
}

impl StatsdBuilder {
    pub(crate) fn new(sink: BoxSink) -> Self {
        Self {
            sink,
            dialect: Dialect::default(),
            prefix: String::new(),
            tags: Vec::new(),
            flush_every: Duration::from_secs(10),
            histogram_samples: 1024,
        }
    }

    /// Whose lines to write. Default: [`Dialect::DogStatsD`].
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// What every name begins with; a dot is put between. Default: nothing.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Adds a tag to every line. A label with the same key wins over it. Default: none.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((key.into(), value.into()));
        self
    }

    /// How long to wait between two flushes. Default: 10 s, the interval in which both the
    /// original daemon and the Datadog agent sum up by themselves.
    ///
    /// Shorter makes a dashboard that watches the wire livelier; it costs a line per gauge and per
    /// active counter each time.
    pub fn flush_every(mut self, interval: Duration) -> Self {
        self.flush_every = interval;
        self
    }

    /// How many samples a histogram keeps (and sends, a line each) between two flushes.
    /// Default: 1024, which is 8 KiB while they are held.
    ///
    /// The count stays exact above it; percentiles become estimates.
    pub fn histogram_samples(mut self, samples: usize) -> Self {
        self.histogram_samples = samples;
        self
    }

    /// Starts the flush thread and gives back the recorder, for programs that combine several or
    /// hand one to a library explicitly.
    ///
    /// # Errors
    ///
    /// The flush interval or the number of histogram samples is zero, or the thread can't be
    /// started.
    ///
    /// # Examples
    ///
    /// ```
    /// use pipeline_statsd::{StatsdRecorder, cadence::NopMetricSink};
    ///
    /// # fn main() -> Result<(), pipeline_statsd::BuildError> {
    /// let (recorder, flusher) = StatsdRecorder::sink(NopMetricSink).prefix("push").build()?;
    /// # drop((recorder, flusher));
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(self) -> Result<(StatsdRecorder, StatsdFlusher), BuildError> {
        if self.flush_every.is_zero() {
            return Err(BuildError::ZeroInterval);
        }
        if self.histogram_samples == 0 {
            return Err(BuildError::ZeroSamples);
        }
        let naming = Naming::new(self.dialect, &self.prefix, &self.tags);
        let aggregate = Arc::new(Aggregate::new(naming, self.histogram_samples));
        let flusher = StatsdFlusher::start(Arc::clone(&aggregate), self.sink, self.flush_every)
            .map_err(BuildError::Thread)?;
        Ok((StatsdRecorder::new(aggregate), flusher))
    }

    /// Starts the flush thread and makes the recorder the one of the whole process. Keep what is
    /// returned until the end of the program: dropping it sends what is left and stops the thread.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), or the process already has a recorder.
    pub fn install(self) -> Result<StatsdFlusher, InstallError> {
        let (recorder, flusher) = self.build()?;
        metrics::set_global_recorder(recorder).map_err(|_| InstallError::AlreadyInstalled)?;
        Ok(flusher)
    }
}

impl fmt::Debug for StatsdBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsdBuilder")
            .field("dialect", &self.dialect)
            .field("prefix", &self.prefix)
            .field("tags", &self.tags)
            .field("flush_every", &self.flush_every)
            .field("histogram_samples", &self.histogram_samples)
            .finish_non_exhaustive()
    }
}
