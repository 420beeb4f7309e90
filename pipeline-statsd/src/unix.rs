//! The sink behind `StatsdRecorder::unix`.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use cadence::UnixMetricSink;

/// What the Datadog agent reads at once, unless told otherwise.
pub(crate) const PACKET_BYTES: usize = 8192;

/// Names the server by its path for each packet, so a server that is started again is found again.
pub(crate) fn sink(path: &Path) -> io::Result<UnixMetricSink> {
    let socket = UnixDatagram::unbound()?;
    // A server that doesn't keep up costs lines, which are counted, rather than time.
    socket.set_nonblocking(true)?;
    Ok(UnixMetricSink::from(path, socket))
}
