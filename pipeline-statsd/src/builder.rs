//! Options of a recorder, and bringing it to life.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::aggregate::Aggregate;
use crate::common::{Common, Limits};
use crate::dialect::Dialect;
use crate::error::{BuildError, InstallError};
use crate::event_queue::EventQueue;
use crate::exporter::{BoxSink, Exporter};
use crate::flusher::StatsdFlusher;
use crate::name::Naming;
use crate::per_event::PerEvent;
use crate::recorder::StatsdRecorder;
use crate::sample_rate::SampleRates;
use crate::store::Store;
use crate::udp::{self, UdpSink};
#[cfg(unix)]
use crate::unix::UnixSink;

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

/// Where lines go.
pub(crate) enum Sink {
    Given(BoxSink),
    Udp(UdpSink),
    #[cfg(unix)]
    Unix(UnixSink),
}

impl Sink {
    /// How long a flush may wait for its receiver: half the interval, so that flushes are on time, and no
    /// longer than a program may take to end.
    fn waiting(self, interval: Duration) -> BoxSink {
        let patience = (interval / 2).min(LONGEST_WAIT);
        match self {
            Self::Given(sink) => sink,
            Self::Udp(sink) => Box::new(sink.patience(patience)),
            #[cfg(unix)]
            Self::Unix(sink) => Box::new(sink.patience(patience)),
        }
    }
}

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

    /// Whether samples of a histogram share a line, as many as fit into a packet:
    /// `name:1:2:3|ms|#k:v`. Default: false, a line for each.
    ///
    /// That is a fifth of the bytes, and needs a receiver that understands it: the Datadog agent does
    /// from 7.25 on (version 1.1 of DogStatsD's protocol), and so does Prometheus's `statsd_exporter`.
    /// One that does not takes the first sample for all of them. It has no effect in
    /// [`Dialect::StatsD`], which has no such lines, and [`per_event`](Self::per_event).
    pub fn packed_values(mut self, packed: bool) -> Self {
        self.packed_values = packed;
        self
    }

    /// How many samples a histogram keeps (and sends, a line each) between two flushes.
    /// Default: 256, which is 2 KiB while they are held.
    ///
    /// The count stays exact above it; percentiles become estimates. Of 256 samples, the p99 that a
    /// receiver reckons is between the true p97.5 and p99.7 nine times in ten.
    pub fn histogram_samples(mut self, samples: usize) -> Self {
        self.limits.histogram_samples = samples;
        self
    }

    /// How many of a histogram's samples are sent: `0.1` is one in ten. Default: 1.0, which is all
    /// of them, up to [`histogram_samples`](Self::histogram_samples).
    ///
    /// Which ones is left to chance. Lines carry the rate (`|@0.1`), and the count that a receiver
    /// recovers from them is exact. The rate is taken as one divided by a whole number, the
    /// nearest: Datadog's agent does so, and 0.3 is a third.
    ///
    /// Counters are added up before they are sent, which no rate can better. They have one only
    /// [`per_event`](Self::per_event); gauges never have one.
    ///
    /// # Examples
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

    /// The same for the metric of this name, as it is recorded, whatever its labels.
    pub fn sample_rate_of(mut self, name: impl Into<String>, rate: f64) -> Self {
        self.sample_rates.push((name.into(), rate));
        self
    }

    /// Sends every value that is recorded, at once, in a line of its own: for development and
    /// tests, where one wants to see what happens. Default: values are aggregated.
    ///
    /// Counters send each step, gauges each level and nothing when they don't change, histograms
    /// each sample. Still nobody waits who records: 10,000 values can wait for the flush thread,
    /// and what is too much is dropped and counted in [`FlushReport::events_dropped`]. With a
    /// [`sample_rate`](Self::sample_rate), one of so many values in a row is sent, counters
    /// included.
    ///
    /// [`FlushReport::events_dropped`]: crate::FlushReport::events_dropped
    ///
    /// # Examples
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
    /// assert_eq!(sent.recv()?, b"joins:1|c"); // without being asked
    /// assert_eq!(sent.recv()?, b"joins:2|c");
    /// # Ok(())
    /// # }
    /// ```
    pub fn per_event(mut self) -> Self {
        self.per_event = true;
        self
    }

    /// After how long a series leaves that has no handle and is not recorded into. Default: ten
    /// minutes.
    ///
    /// It takes its memory with it. When it is recorded into again, it is there again, and nothing is
    /// lost. For that, two kinds of series stay for good: a counter that is told totals
    /// ([`absolute`](metrics::Counter::absolute)), and a gauge that is counted up and down, until it is
    /// back at zero; the next total, the next step would otherwise mean something else.
    ///
    /// A gauge that is only [`set`](metrics::Gauge::set) stays as well, and is repeated at every flush:
    /// it may have been set once for all, as `build_info` is. When there is no room for another series,
    /// or for another of its name, it leaves once it is idle, unless its handle is held.
    pub fn idle_after(mut self, time: Duration) -> Self {
        self.limits.idle_after = time;
        self
    }

    /// How many series there may be, counters, gauges and histograms together. Default: 10,000.
    ///
    /// A series too many is refused: what is recorded into it goes nowhere and costs nothing, and
    /// a handle of it remains like this. Each refusal is counted in [`FlushReport::series_refused`], by
    /// name in `statsd.client.series_refused`, and the first of each name is logged as a warning. Series
    /// that leave make room.
    ///
    /// [`FlushReport::series_refused`]: crate::FlushReport::series_refused
    pub fn max_series(mut self, series: usize) -> Self {
        self.limits.max_series = series;
        self
    }

    /// How many series of one name there may be, whatever their labels. Default: 1,000.
    ///
    /// So a label with too many values costs its own metric, and no other. A series too many is refused,
    /// as one of [`max_series`](Self::max_series).
    pub fn max_series_per_name(mut self, series: usize) -> Self {
        self.limits.max_series_per_name = series;
        self
    }

    /// Starts the flush thread and gives back the recorder, for programs that combine several or
    /// hand one to a library explicitly.
    ///
    /// # Errors
    ///
    /// An option is zero that can't be, a sample rate is not above 0 and up to 1, or the thread
    /// can't be started.
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
        if self.limits.idle_after.is_zero() {
            return Err(BuildError::ZeroIdle);
        }
        if self.limits.max_series == 0 || self.limits.max_series_per_name == 0 {
            return Err(BuildError::ZeroSeries);
        }
        let rates =
            SampleRates::new(self.sample_rate, &self.sample_rates).ok_or(BuildError::SampleRate)?;
        let naming = Naming::new(self.dialect, &self.prefix, &self.tags);
        let mut common = Common::new(naming, self.limits, rates);
        if self.packed_values && self.dialect == Dialect::DogStatsD {
            common = common.packed(self.packet_bytes.unwrap_or(udp::PACKET_BYTES));
        }
        let queue = Arc::new(EventQueue::default());
        let store = Arc::new(if self.per_event {
            Store::PerEvent(PerEvent::new(common, Arc::clone(&queue)))
        } else {
            Store::Aggregate(Aggregate::new(common))
        });
        let sink = self.sink.waiting(self.flush_every);
        let exporter =
            Exporter::new(Arc::clone(&store), sink, self.packet_bytes, self.own_counters);
        let flusher =
            StatsdFlusher::start(exporter, queue, self.flush_every).map_err(BuildError::Thread)?;
        Ok((StatsdRecorder::new(store), flusher))
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
            .field("packed_values", &self.packed_values)
            .field("per_event", &self.per_event)
            .field("sample_rate", &self.sample_rate)
            .field("sample_rates", &self.sample_rates)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
