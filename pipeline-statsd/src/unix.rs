//! The sink behind `StatsdRecorder::unix`.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cadence::MetricSink;
use parking_lot::Mutex;

/// What the Datadog agent reads at once, unless told otherwise.
pub(crate) const PACKET_BYTES: usize = 8192;

/// Sends to a datagram socket by its path, and waits for room in its queue.
///
/// It names the server by its path for each packet, so a server that is started again is found again.
#[derive(Debug)]
pub(crate) struct UnixSink {
    path: PathBuf,
    socket: UnixDatagram,
    /// How long a flush may wait for room, all packets together.
    patience: Duration,
    /// What is left of it.
    left: Mutex<Duration>,
}

impl UnixSink {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let left = Mutex::new(Duration::ZERO);
        Ok(Self { path: path.to_owned(), socket, patience: Duration::ZERO, left })
    }

    /// How long a flush may wait for its receiver.
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
            // It had its time: what finds no room now is lost.
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
