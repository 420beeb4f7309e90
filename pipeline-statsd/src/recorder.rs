//! The face of the crate towards the `metrics` facade.

#[cfg(unix)]
use std::io;
use std::net::ToSocketAddrs;
#[cfg(unix)]
use std::path::Path;
use std::sync::Arc;

use cadence::MetricSink;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::builder::{Sink, StatsdBuilder};
use crate::error::UdpError;
use crate::store::Store;
use crate::udp::{self, UdpSink};
#[cfg(unix)]
use crate::unix::{self, UnixSink};

/// A [`metrics::Recorder`] that aggregates what is recorded until a
/// [`StatsdFlusher`](crate::StatsdFlusher) sends it.
///
/// Clones share their series. Most programs never hold one: they [`install`] it and keep the
/// flusher. After the flusher is gone a recorder goes on accepting values, in bounded memory, and
/// nothing sends them.
///
/// [`install`]: StatsdBuilder::install
///
/// # Examples
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
}

impl StatsdRecorder {
    /// Starts a recorder that sends over UDP to `addr`.
    ///
    /// Lines are packed into datagrams of at most 1432 bytes, which pass an Ethernet in one piece
    /// ([`packet_bytes`](StatsdBuilder::packet_bytes)). A flush of many sends them in bursts with pauses
    /// between, so that they find room in the receiver's buffer; the pauses take up to half the
    /// [interval](StatsdBuilder::flush_every), and five seconds at most.
    ///
    /// The name is resolved here, and again every minute, on a thread of its own, so a receiver that moves
    /// is followed. Of several addresses the one in use is kept, while it is among them. A name that
    /// cannot be resolved yet is logged, and tried again every ten seconds; what is flushed until then is
    /// lost, and counted. Where the name has addresses of both families the IPv4 ones are tried first,
    /// because that is where StatsD receivers listen unless told otherwise.
    ///
    /// # Errors
    ///
    /// `addr` is no address, having no port for instance, or no socket can be bound. That nothing
    /// listens there is no error: where the system learns of it, packets are counted as lost.
    ///
    /// # Examples
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

    /// Starts a recorder that sends to the Unix datagram socket at `path`.
    ///
    /// Lines are packed into datagrams of at most 8192 bytes
    /// ([`packet_bytes`](StatsdBuilder::packet_bytes)). Where the server's queue is full, which on Linux
    /// it is with ten of them, a flush waits for room: up to half the
    /// [interval](StatsdBuilder::flush_every), and five seconds at most. What finds none by then, or is
    /// sent while nothing listens, is counted in [`FlushReport::errors`](crate::FlushReport::errors) and
    /// gone. A server need not be there yet, and may be started again.
    ///
    /// # Errors
    ///
    /// The system has no socket to give.
    ///
    /// # Examples
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

    /// Starts a recorder that sends through any sink of [`cadence`], or one of your own.
    ///
    /// The sink gets one line at a time, without a newline at its end (a negative gauge in
    /// [`Dialect::StatsD`](crate::Dialect::StatsD) is two lines in one text), or packets of lines
    /// if [`packet_bytes`](StatsdBuilder::packet_bytes) says how long, and is flushed after the
    /// last one. It is called by one thread at a time. A sink that panics counts as one that fails. A
    /// sink that blocks holds up the flush, and
    /// with it the drop of the flusher, but never what is being recorded.
    ///
    /// [`cadence::QueuingMetricSink`] is not needed to keep recording fast, since recording never
    /// meets the sink. It hides errors, and doesn't wait for its queue when it is dropped.
    ///
    /// # Examples
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

    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

impl Recorder for StatsdRecorder {
    /// Does nothing: StatsD has no place for descriptions.
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    /// Does nothing: StatsD has no place for descriptions.
    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    /// Notes the unit: a histogram of times is sent as `ms`. It counts from the next flush on, for
    /// all labels of the name. A description without a unit changes nothing.
    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, _description: SharedString) {
        if let Some(unit) = unit {
            self.store.common().describe_histogram(key, unit);
        }
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        self.store.counter(key)
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        self.store.gauge(key)
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        self.store.histogram(key)
    }
}
