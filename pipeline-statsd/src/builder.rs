//! Options of a recorder, and bringing it to life.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::aggregate::{Aggregate, Limits};
use crate::dialect::Dialect;
use crate::error::{BuildError, InstallError};
use crate::exporter::{BoxSink, Exporter};
use crate::flusher::StatsdFlusher;
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
    packet_bytes: Option<usize>,
    own_counters: bool,
    limits: Limits,
}

impl StatsdBuilder {
    pub(crate) fn new(sink: BoxSink, packet_bytes: Option<usize>) -> Self {
        Self {
            sink,
            dialect: Dialect::default(),
            prefix: String::new(),
            tags: Vec::new(),
            flush_every: Duration::from_secs(10),
            packet_bytes,
            own_counters: true,
            limits: Limits { max_series: 10_000, histogram_samples: 1024, idle_after: 60 },
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

    /// How many bytes a packet may have. Default: 1432 over UDP, which passes an Ethernet with room
    /// for a tunnel's headers, and 8192 over a Unix socket, which is what the Datadog agent reads
    /// at once.
    ///
    /// As many lines as fit go into a packet, separated by newlines. None is ever parted, nor are
    /// the two lines of a negative gauge in [`Dialect::StatsD`]; one that doesn't fit into a packet
    /// of its own is left out, and counted in [`FlushReport::lines_oversized`].
    ///
    /// Any other [`sink`](StatsdRecorder::sink) gets line by line unless this is set.
    ///
    /// [`FlushReport::lines_oversized`]: crate::FlushReport::lines_oversized
    pub fn packet_bytes(mut self, bytes: usize) -> Self {
        self.packet_bytes = Some(bytes);
        self
    }

    /// Whether flushes tell of themselves, by the counters that the
    /// [documentation of the crate](crate#its-own-counters) names. Default: true.
    pub fn own_counters(mut self, told: bool) -> Self {
        self.own_counters = told;
        self
    }

    /// How many samples a histogram keeps (and sends, a line each) between two flushes.
    /// Default: 1024, which is 8 KiB while they are held.
    ///
    /// The count stays exact above it; percentiles become estimates.
    pub fn histogram_samples(mut self, samples: usize) -> Self {
        self.limits.histogram_samples = samples;
        self
    }

    /// After how many flushes a series leaves that nobody holds a handle of, and nobody records
    /// into. Default: 60, which is ten minutes at the default interval.
    ///
    /// It takes its memory with it, and a gauge is no longer repeated. When it is recorded into
    /// again, it is there again, and nothing is lost. For that, two kinds of series stay for good:
    /// a counter that is told totals ([`absolute`](metrics::Counter::absolute)), and a gauge that
    /// is counted up and down, until it is back at zero; the next total, the next step would
    /// otherwise mean something else.
    ///
    /// A gauge whose handle is held is repeated for as long: it may well be that it has not
    /// changed.
    pub fn idle_after(mut self, flushes: u32) -> Self {
        self.limits.idle_after = flushes;
        self
    }

    /// How many series there may be, counters, gauges and histograms together. Default: 10,000.
    ///
    /// A series too many is refused: what is recorded into it goes nowhere and costs nothing, and
    /// a handle of it remains like this. Each refusal is counted in [`FlushReport::series_refused`],
    /// and the first is logged as a warning. Series that leave make room.
    ///
    /// [`FlushReport::series_refused`]: crate::FlushReport::series_refused
    pub fn max_series(mut self, series: usize) -> Self {
        self.limits.max_series = series;
        self
    }

    /// Starts the flush thread and gives back the recorder, for programs that combine several or
    /// hand one to a library explicitly.
    ///
    /// # Errors
    ///
    /// An option is zero that can't be, or the thread can't be started.
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
        if self.packet_bytes == Some(0) {
            return Err(BuildError::ZeroPacket);
        }
        if self.limits.histogram_samples == 0 {
            return Err(BuildError::ZeroSamples);
        }
        if self.limits.idle_after == 0 {
            return Err(BuildError::ZeroIdle);
        }
        if self.limits.max_series == 0 {
            return Err(BuildError::ZeroSeries);
        }
        let naming = Naming::new(self.dialect, &self.prefix, &self.tags);
        let aggregate = Arc::new(Aggregate::new(naming, self.limits));
        let exporter =
            Exporter::new(Arc::clone(&aggregate), self.sink, self.packet_bytes, self.own_counters);
        let flusher =
            StatsdFlusher::start(exporter, self.flush_every).map_err(BuildError::Thread)?;
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
            .field("packet_bytes", &self.packet_bytes)
            .field("own_counters", &self.own_counters)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
