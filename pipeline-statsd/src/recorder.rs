//! The recorder for the `metrics` facade.

#[cfg(unix)]
use std::io;
use std::net::ToSocketAddrs;
#[cfg(unix)]
use std::path::Path;
use std::sync::{Arc, Weak};

use cadence::MetricSink;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

#[cfg(unix)]
use crate::unix::{self, UnixSink};
use crate::{
    builder::{Sink, StatsdBuilder},
    error::UdpError,
    exporter::Exporter,
    immediate::Immediate,
    store::Store,
    udp::{self, UdpSink},
};

/// A [`metrics::Recorder`] that aggregates recorded values until a
/// [`StatsdFlusher`](crate::StatsdFlusher) sends them.
///
/// Clones share their series. Most programs never hold a recorder: they [`install`] it and keep the
/// flusher. Once the flusher is dropped, the recorder still accepts values, in bounded memory, but they
/// are never sent.
///
/// [`install`]: StatsdBuilder::install
///
/// A recorder for one thread, as a test would use it:
///
/// ```
/// use metrics::counter;
/// use pipeline_statsd::{StatsdRecorder, cadence::SpyMetricSink};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sent, sink) = SpyMetricSink::new();
/// let (recorder, flusher) = StatsdRecorder::sink(sink).build()?;
///
/// metrics::with_local_recorder(&recorder, || counter!("joins", "result" => "ok").increment(2));
/// flusher.flush();
/// assert_eq!(sent.recv()?, b"joins:2|c|#result:ok");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StatsdRecorder {
    store: Arc<Store>,
    /// Where each value is sent at once, if it is.
    immediate: Option<Weak<Exporter>>,
}

impl StatsdRecorder {
    /// Creates a recorder that sends over UDP to `addr`.
    ///
    /// Lines are packed into datagrams of at most 1432 bytes, which fit into an Ethernet frame
    /// ([`packet_bytes`](StatsdBuilder::packet_bytes)). A flush of many packets sends them in bursts
    /// with pauses, so that they fit into the receiver's buffer; the pauses take up to half the
    /// [interval](StatsdBuilder::flush_every), and five seconds at most.
    ///
    /// The name is resolved here, and again every minute, on a separate thread, so that the recorder
    /// follows a receiver that moves. Of several addresses, the one in use is kept while it is among
    /// them. A name that cannot be resolved yet is logged and retried every ten seconds; lines flushed
    /// until then are lost, and counted. If the name has addresses of both families, the IPv4 ones are
    /// tried first, because StatsD receivers listen there by default.
    ///
    /// # Errors
    ///
    /// `addr` is not a valid address, for instance without a port, or no socket can be bound. A receiver
    /// that does not listen is no error: where the system reports it, packets are counted as lost.
    ///
    /// ```no_run
    /// use pipeline_statsd::StatsdRecorder;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let _statsd = StatsdRecorder::udp("127.0.0.1:8125")?.prefix("push").install()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn udp(
        addr: impl ToSocketAddrs + Send + Sync + 'static,
    ) -> Result<StatsdBuilder, UdpError> {
        let sink = UdpSink::new(addr)?;
        Ok(StatsdBuilder::new(Sink::Udp(sink), Some(udp::PACKET_BYTES)))
    }

    /// Creates a recorder that sends to the Unix datagram socket at `path`.
    ///
    /// Lines are packed into datagrams of at most 8192 bytes
    /// ([`packet_bytes`](StatsdBuilder::packet_bytes)). If the server's queue is full, which on Linux
    /// takes ten datagrams, a flush waits for room: up to half the
    /// [interval](StatsdBuilder::flush_every), and five seconds at most. Datagrams that find no room by
    /// then, or are sent while no server listens, are lost, and counted in
    /// [`FlushReport::errors`](crate::FlushReport::errors). The server may start later, and may be
    /// restarted.
    ///
    /// # Errors
    ///
    /// The system cannot create a socket.
    ///
    /// ```no_run
    /// use pipeline_statsd::StatsdRecorder;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let _statsd = StatsdRecorder::unix("/var/run/datadog/dsd.socket")?.install()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(unix)]
    #[cfg_attr(docsrs, doc(cfg(unix)))]
    pub fn unix(path: impl AsRef<Path>) -> io::Result<StatsdBuilder> {
        let sink = UnixSink::new(path.as_ref())?;
        Ok(StatsdBuilder::new(Sink::Unix(sink), Some(unix::PACKET_BYTES)))
    }

    /// Creates a recorder that sends through any sink of [`cadence`], or a custom one.
    ///
    /// The sink receives one line at a time, without a trailing newline (a negative gauge in
    /// [`Dialect::StatsD`](crate::Dialect::StatsD) is two lines in one text), or packets of lines if
    /// [`packet_bytes`](StatsdBuilder::packet_bytes) is set. It is flushed after the last one, and
    /// called by one thread at a time. A panic of the sink counts as an error. A sink that blocks delays
    /// the flush, and with it the drop of the flusher, but never recording.
    ///
    /// [`cadence::QueuingMetricSink`] is not needed to keep recording fast, because recording never
    /// calls the sink. It hides errors, and does not wait for its queue when it is dropped.
    ///
    /// For a network of jumbo frames:
    ///
    /// ```no_run
    /// use pipeline_statsd::{StatsdRecorder, cadence::UdpMetricSink};
    /// use std::net::UdpSocket;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let socket = UdpSocket::bind("0.0.0.0:0")?;
    /// socket.set_nonblocking(true)?;
    /// let sink = UdpMetricSink::from("statsd.internal:8125", socket)?;
    /// let _statsd = StatsdRecorder::sink(sink).packet_bytes(8932).install()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sink(sink: impl MetricSink + Send + Sync + 'static) -> StatsdBuilder {
        StatsdBuilder::new(Sink::Given(Box::new(sink)), None)
    }

    pub(crate) fn new(store: Arc<Store>, immediate: Option<Weak<Exporter>>) -> Self {
        Self { store, immediate }
    }
}

impl Recorder for StatsdRecorder {
    /// Does nothing: StatsD has no descriptions.
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    /// Does nothing: StatsD has no descriptions.
    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    /// Stores the unit: a histogram of times is sent as `ms`. It applies from the next flush on, for all
    /// labels of the name. A description without a unit changes nothing.
    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, _description: SharedString) {
        if let Some(unit) = unit {
            self.store.config().describe_histogram(key, unit);
        }
    }

    // A refused series has a handle without effect.

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        match (self.store.counter(key), &self.immediate) {
            (None, _) => Counter::noop(),
            (Some(series), None) => Counter::from_arc(series),
            (Some(series), Some(to)) => {
                Counter::from_arc(Arc::new(Immediate::new(series, key, to)))
            }
        }
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        match (self.store.gauge(key), &self.immediate) {
            (None, _) => Gauge::noop(),
            (Some(series), None) => Gauge::from_arc(series),
            (Some(series), Some(to)) => Gauge::from_arc(Arc::new(Immediate::new(series, key, to))),
        }
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        match (self.store.histogram(key), &self.immediate) {
            (None, _) => Histogram::noop(),
            (Some(series), None) => Histogram::from_arc(series),
            (Some(series), Some(to)) => {
                Histogram::from_arc(Arc::new(Immediate::new(series, key, to)))
            }
        }
    }
}
