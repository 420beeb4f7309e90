//! The sink behind `StatsdRecorder::unix`.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cadence::MetricSink;
use parking_lot::Mutex;

/// The default read size of the Datadog agent.
pub(crate) const PACKET_BYTES: usize = 8192;

/// Sends to a datagram socket by path, and waits for room in its queue.
///
/// Each packet is sent to the path, so a restarted server is found again.
#[derive(Debug)]
pub(crate) struct UnixSink {
    path: PathBuf,
    socket: UnixDatagram,
    /// How long a flush may wait for room, over all packets.
    patience: Duration,
    /// The rest of it.
    left: Mutex<Duration>,
}

impl UnixSink {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let left = Mutex::new(Duration::ZERO);
        Ok(Self { path: path.to_owned(), socket, patience: Duration::ZERO, left })
    }

    /// Sets how long a flush may wait for its receiver.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        *self.left.get_mut() = patience;
        self
    }
}

impl MetricSink for UnixSink {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let mut left = self.left.lock();
        if left.is_zero() {
            // The time is over: packets that find no room now are lost.
            self.socket.set_nonblocking(true)?;
            return self.socket.send_to(metric.as_bytes(), &self.path);
        }
        self.socket.set_nonblocking(false)?;
        self.socket.set_write_timeout(Some(*left))?;
        let began = Instant::now();
        let sent = self.socket.send_to(metric.as_bytes(), &self.path);
        *left = left.saturating_sub(began.elapsed());
        sent
    }

    fn flush(&self) -> io::Result<()> {
        *self.left.lock() = self.patience;
        Ok(())
    }
}
