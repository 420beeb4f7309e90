//! The builder of a recorder.

use std::{fmt, sync::Arc, time::Duration};

#[cfg(unix)]
use crate::unix::UnixSink;
use crate::{
    config::{Limits, SampleRates, SharedConfig},
    error::{BuildError, InstallError},
    exporter::{BoxSink, Exporter},
    flusher::StatsdFlusher,
    line::Dialect,
    name::Naming,
    recorder::StatsdRecorder,
    store::Store,
    udp::{self, UdpSink},
};

/// Options of a [`StatsdRecorder`], from [`StatsdRecorder::udp`] or [`StatsdRecorder::sink`].
#[must_use = "a builder does nothing until `install` or `build`"]
pub struct StatsdBuilder {
    sink: Sink,
    dialect: Dialect,
    prefix: String,
    tags: Vec<(String, String)>,
    flush_every: Duration,
    packet_bytes: Option<usize>,
    own_counters: bool,
    packed_values: bool,
    per_event: bool,
    sample_rate: f64,
    sample_rates: Vec<(String, f64)>,
    limits: Limits,
}

/// Where lines are sent.
pub(crate) enum Sink {
    Given(BoxSink),
    Udp(UdpSink),
    #[cfg(unix)]
    Unix(UnixSink),
}

impl Sink {
    /// The sink, with a limit on the time that a flush may wait for its receiver.
    fn waiting(self, patience: Duration) -> BoxSink {
        match self {
            Self::Given(sink) => sink,
            Self::Udp(sink) => Box::new(sink.patience(patience)),
            #[cfg(unix)]
            Self::Unix(sink) => Box::new(sink.patience(patience)),
        }
    }
}

/// The longest time that a flush may wait for its receiver: a program should not take longer to exit.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

impl StatsdBuilder {
    pub(crate) fn new(sink: Sink, packet_bytes: Option<usize>) -> Self {
        Self {
            sink,
            dialect: Dialect::default(),
            prefix: String::new(),
            tags: Vec::new(),
            flush_every: Duration::from_secs(10),
            packet_bytes,
            own_counters: true,
            packed_values: false,
            per_event: false,
            sample_rate: 1.0,
            sample_rates: Vec::new(),
            limits: Limits {
                max_series: 10_000,
                max_series_per_name: 1_000,
                histogram_samples: 256,
                idle_after: Duration::from_secs(600),
            },
        }
    }

    /// The format of the lines. Default: [`Dialect::DogStatsD`].
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// A prefix for every name, followed by a dot. Default: none.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Adds a tag to every line. A label with the same key overrides it. Default: none.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((key.into(), value.into()));
        self
    }

    /// The time between two flushes. Default: 10 s, the interval at which both the original daemon and
    /// the Datadog agent aggregate.
    ///
    /// A shorter interval updates a dashboard that reads the lines more often; it costs a line per gauge
    /// and per active counter each time.
    pub fn flush_every(mut self, interval: Duration) -> Self {
        self.flush_every = interval;
        self
    }

    /// Maximum size of a packet in bytes. Default: 1432 over UDP, which fits into an Ethernet frame with
    /// room for a tunnel's headers, and 8192 over a Unix socket, which is the size that the Datadog
    /// agent reads at once.
    ///
    /// Each packet contains as many lines as fit, separated by newlines. A line is never split over two
    /// packets, and neither are the two lines of a negative gauge in [`Dialect::StatsD`]. A line longer
    /// than a packet is dropped and counted in [`FlushReport::lines_oversized`].
    ///
    /// Any other [`sink`](StatsdRecorder::sink) receives one line at a time unless this is set.
    ///
    /// [`FlushReport::lines_oversized`]: crate::FlushReport::lines_oversized
    pub fn packet_bytes(mut self, bytes: usize) -> Self {
        self.packet_bytes = Some(bytes);
        self
    }

    /// Whether the recorder sends its own counters, which the [documentation of the
    /// crate](crate#its-own-counters) lists. Default: true.
    pub fn own_counters(mut self, enabled: bool) -> Self {
        self.own_counters = enabled;
        self
    }

    /// Whether samples of a histogram share a line, as many as fit into a packet: `name:1:2:3|ms|#k:v`.
    /// Default: false, one line for each sample.
    ///
    /// Packed lines need a fifth of the bytes, and a receiver that supports them: the Datadog agent from
    /// 7.25 on (version 1.1 of DogStatsD's protocol) and Prometheus's `statsd_exporter` do. Other
    /// receivers take the first sample for all of them. It has no effect in [`Dialect::StatsD`], which
    /// has no such lines.
    pub fn packed_values(mut self, packed: bool) -> Self {
        self.packed_values = packed;
        self
    }

    /// Maximum number of samples that a histogram keeps between two flushes, each of which is sent in
    /// its own line. Default: 256, which is 2 KiB while they are held.
    ///
    /// Above it, the count stays exact and percentiles become estimates. With 256 samples, the p99 that
    /// a receiver computes is between the true p97.5 and p99.7 nine times in ten.
    pub fn histogram_samples(mut self, samples: usize) -> Self {
        self.limits.histogram_samples = samples;
        self
    }

    /// The fraction of a histogram's samples that is sent: `0.1` is one in ten. Default: 1.0, which is
    /// all of them, up to [`histogram_samples`](Self::histogram_samples).
    ///
    /// Samples are chosen at random. Lines carry the rate (`|@0.1`), and the count that a receiver
    /// computes from them is exact. The rate is rounded to one divided by a whole number, as Datadog's
    /// agent does: 0.3 becomes a third.
    ///
    /// It does not apply to counters, which are aggregated before they are sent, nor to gauges.
    ///
    /// ```
    /// use metrics::{histogram, with_local_recorder};
    /// use pipeline_statsd::{StatsdRecorder, cadence::SpyMetricSink};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (sent, sink) = SpyMetricSink::new();
    /// let statsd = StatsdRecorder::sink(sink).sample_rate(0.5).sample_rate_of("rare", 1.0);
    /// let (recorder, flusher) = statsd.build()?;
    /// with_local_recorder(&recorder, || {
    ///     (0..10).for_each(|_| histogram!("bytes").record(512));
    ///     histogram!("rare").record(1);
    /// });
    /// assert_eq!(flusher.flush().lines, 5 + 1);
    /// assert!(sent.try_iter().any(|line| line == b"bytes:512|h|@0.5"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn sample_rate(mut self, rate: f64) -> Self {
        self.sample_rate = rate;
        self
    }

    /// Sets the [`sample_rate`](Self::sample_rate) of one metric, by its name as recorded, for all its
    /// labels.
    pub fn sample_rate_of(mut self, name: impl Into<String>, rate: f64) -> Self {
        self.sample_rates.push((name.into(), rate));
        self
    }

    /// Sends every recorded value at once, in a line of its own, for development and tests. Default:
    /// values are aggregated.
    ///
    /// Counters send each increment, gauges each change of their value, histograms each sample, whatever
    /// their [`sample_rate`](Self::sample_rate). Flushes do not repeat gauges.
    ///
    /// The recording thread calls the sink, one thread at a time. UDP and Unix sockets then do not wait
    /// for their receiver: what finds no room is lost, and counted in [`FlushReport::lines_lost`]. A sink
    /// of your own that blocks blocks recording. Values that the sink itself records are sent with the
    /// next value of their series, or the next flush. Flushes report all values since the last one.
    ///
    /// [`FlushReport::lines_lost`]: crate::FlushReport::lines_lost
    ///
    /// ```
    /// use metrics::{counter, with_local_recorder};
    /// use pipeline_statsd::{StatsdRecorder, cadence::SpyMetricSink};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (sent, sink) = SpyMetricSink::new();
    /// let (recorder, _flusher) = StatsdRecorder::sink(sink).per_event().build()?;
    /// with_local_recorder(&recorder, || {
    ///     counter!("joins").increment(1);
    ///     counter!("joins").increment(2);
    /// });
    /// assert_eq!(sent.try_recv()?, b"joins:1|c"); // without a flush
    /// assert_eq!(sent.try_recv()?, b"joins:2|c");
    /// # Ok(())
    /// # }
    /// ```
    pub fn per_event(mut self) -> Self {
        self.per_event = true;
        self
    }

    /// The time after which a series without a handle is removed if no value is recorded. Default: ten
    /// minutes.
    ///
    /// Removing a series frees its memory. The next value creates it again, and no value is lost. For
    /// that reason, two kinds of series are kept: a counter that was set to totals
    /// ([`absolute`](metrics::Counter::absolute)), and a gauge that was incremented or decremented,
    /// until it is back at zero. Without the old value, the next total or step would have another
    /// meaning.
    ///
    /// A gauge that was only [`set`](metrics::Gauge::set) is kept, too, and repeated at every flush: it
    /// may hold a constant, as `build_info` does. When the limit of series, or of series of its name, is
    /// reached, it is removed once it is idle, unless its handle is held.
    pub fn idle_after(mut self, time: Duration) -> Self {
        self.limits.idle_after = time;
        self
    }

    /// Maximum number of series: counters, gauges and histograms together. Default: 10,000.
    ///
    /// Further series are refused: values recorded into them are dropped at no cost, and a handle of a
    /// refused series stays without effect. Each refusal is counted in [`FlushReport::series_refused`],
    /// by name in `statsd.client.series_refused`, and the first one of each name is logged as a warning.
    /// Removed series make room for others.
    ///
    /// [`FlushReport::series_refused`]: crate::FlushReport::series_refused
    pub fn max_series(mut self, series: usize) -> Self {
        self.limits.max_series = series;
        self
    }

    /// Maximum number of series of one name, over all labels. Default: 1,000.
    ///
    /// A label with too many values therefore affects its own metric only. Further series are refused,
    /// as with [`max_series`](Self::max_series).
    pub fn max_series_per_name(mut self, series: usize) -> Self {
        self.limits.max_series_per_name = series;
        self
    }

    /// Starts the flush thread and returns the recorder, for programs that combine several recorders or
    /// pass one to a library.
    ///
    /// # Errors
    ///
    /// A sample rate is not above 0 and at most 1, another option is zero, or the thread cannot be
    /// started.
    ///
    /// # Examples
    pub fn build(self) -> Result<(StatsdRecorder, StatsdFlusher), BuildError> {
        let flush_every = self.flush_every;
        let (recorder, exporter) = self.without_thread()?;
        let flusher = StatsdFlusher::start(exporter, flush_every).map_err(BuildError::Thread)?;
        Ok((recorder, flusher))
    }

    /// Like [`build`](Self::build), for a caller that flushes itself.
    pub(crate) fn without_thread(self) -> Result<(StatsdRecorder, Arc<Exporter>), BuildError> {
        if self.flush_every.is_zero() {
            return Err(BuildError::ZeroInterval);
        }
        if self.packet_bytes == Some(0) {
            return Err(BuildError::ZeroPacket);
        }
        if self.limits.histogram_samples == 0 {
            return Err(BuildError::ZeroSamples);
        }
        if self.limits.idle_after.is_zero() {
            return Err(BuildError::ZeroIdle);
        }
        if self.limits.max_series == 0 || self.limits.max_series_per_name == 0 {
            return Err(BuildError::ZeroSeries);
        }
        let rates =
            SampleRates::new(self.sample_rate, &self.sample_rates).ok_or(BuildError::SampleRate)?;
        let naming = Naming::new(self.dialect, &self.prefix, &self.tags);
        let mut config = SharedConfig::new(naming, self.limits, rates);
        if self.packed_values && self.dialect == Dialect::DogStatsD {
            config = config.packed(self.packet_bytes.unwrap_or(udp::PACKET_BYTES));
        }
        config.repeats_gauges = !self.per_event;
        let store = Arc::new(Store::new(config));
        // Half the interval, so that flushes are on time. A thread that records must not wait.
        let patience = if self.per_event { Duration::ZERO } else { self.flush_every / 2 };
        let sink = self.sink.waiting(patience.min(LONGEST_WAIT));
        let exporter =
            Exporter::new(Arc::clone(&store), sink, self.packet_bytes, self.own_counters);
        let exporter = Arc::new(exporter);
        let immediate = self.per_event.then(|| Arc::downgrade(&exporter));
        Ok((StatsdRecorder::new(store, immediate), exporter))
    }

    /// Starts the flush thread and installs the recorder for the whole process. Keep the returned
    /// flusher until the end of the program: dropping it sends the remaining values and stops the
    /// thread.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build), or a recorder is already installed in the process.
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
            .field("packed_values", &self.packed_values)
            .field("per_event", &self.per_event)
            .field("sample_rate", &self.sample_rate)
            .field("sample_rates", &self.sample_rates)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
