//! The sink behind `StatsdRecorder::udp`.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use cadence::MetricSink;
use parking_lot::Mutex;

use crate::error::UdpError;
use crate::pace::Pace;

/// What an Ethernet frame of 1500 bytes holds after IP and UDP, with room for a tunnel's headers.
pub(crate) const PACKET_BYTES: usize = 1432;

/// How long an address is believed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The same, as long as there is none.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// How long a packet may wait for the system's own buffer.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Sends to a receiver by its name, which it looks up again and again.
pub(crate) struct UdpSink {
    resolve: Box<dyn Fn() -> io::Result<Vec<SocketAddr>> + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    receiver: Option<Receiver>,
    looked_at: Instant,
    /// Why there is no receiver.
    because: Option<UdpError>,
    pace: Pace,
    began: Instant,
}

#[derive(Debug)]
struct Receiver {
    address: SocketAddr,
    /// Connected, so that it is told when nobody listens there.
    socket: UdpSocket,
}

impl UdpSink {
    /// Looks up the receiver for the first time. That its name is not known yet is no error.
    pub(crate) fn new(
        receiver: impl ToSocketAddrs + Send + Sync + 'static,
    ) -> Result<Self, UdpError> {
        let resolve = move || receiver.to_socket_addrs().map(Iterator::collect);
        Self::resolving(resolve, Instant::now())
    }

    fn resolving(
        resolve: impl Fn() -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
        now: Instant,
    ) -> Result<Self, UdpError> {
        let found = find(&resolve);
        let (receiver, because) = match found {
            Ok(receiver) => (Some(receiver), None),
            Err(UdpError::Resolve(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(UdpError::Invalid(error));
            }
            Err(error @ UdpError::Bind(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(
                    error = error.in_full(),
                    "statsd has no receiver yet, looking for it again"
                );
                (None, Some(error))
            }
        };
        let pace = Pace::new(Duration::ZERO);
        let state = State { receiver, looked_at: now, because, pace, began: now };
        Ok(Self { resolve: Box::new(resolve), state: Mutex::new(state) })
    }

    /// How long a flush may wait for its receiver, all pauses together.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        self.state.lock().pace = Pace::new(patience);
        self
    }

    fn send(&self, text: &str, now: Instant) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.look(&*self.resolve, now);
        let State { receiver, because, .. } = &*state;
        let Some(Receiver { socket, .. }) = receiver else {
            let because = because.as_ref().map_or_else(String::new, UdpError::in_full);
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, because));
        };
        // An answer to an earlier packet: this one is in its stead, so that the count is right. It is
        // sent all the same, for the receiver may be back.
        let earlier = socket.take_error()?;
        let sent = socket.send(text.as_bytes())?;
        match socket.take_error()?.or(earlier) {
            Some(error) => Err(error),
            None => Ok(sent),
        }
    }

    /// Waits if there have been many packets in a short time.
    fn pause(&self) {
        let mut state = self.state.lock();
        let now = state.began.elapsed();
        let pause = state.pace.pause(now);
        drop(state);
        if !pause.is_zero() {
            sleep(pause);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "flushes have a thread of their own")]
fn sleep(pause: Duration) {
    thread::sleep(pause);
}

impl MetricSink for UdpSink {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        self.pause();
        self.send(metric, Instant::now())
    }

    fn flush(&self) -> io::Result<()> {
        self.state.lock().pace.rest();
        Ok(())
    }
}

impl fmt::Debug for UdpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSink").field("state", &self.state).finish_non_exhaustive()
    }
}

impl State {
    /// Looks the receiver up, if it is time. What was known is kept while its name cannot be resolved.
    fn look(&mut self, resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>, now: Instant) {
        let known_for = if self.receiver.is_some() { LOOK_AGAIN } else { TRY_AGAIN };
        if now.saturating_duration_since(self.looked_at) < known_for {
            return;
        }
        self.looked_at = now;
        match find(resolve) {
            Ok(found) => {
                let known = self.receiver.as_ref().map(|receiver| receiver.address);
                if known != Some(found.address) {
                    tracing::info!(address = %found.address, "statsd has found its receiver");
                }
                // A new socket each time: the way to the receiver may have changed as well.
                self.receiver = Some(found);
                self.because = None;
            }
            Err(error) => self.because = Some(error),
        }
    }
}

/// A socket that is connected to the first address for which there is one. IPv4 comes first.
fn find(resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>) -> Result<Receiver, UdpError> {
    let mut addresses = resolve().map_err(UdpError::Resolve)?;
    addresses.sort_by_key(SocketAddr::is_ipv6); // stable: the resolver's order within a family
    let mut failed = UdpError::NoAddress;
    for address in addresses {
        match connect(address) {
            Ok(socket) => return Ok(Receiver { address, socket }),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn connect(receiver: SocketAddr) -> Result<UdpSocket, UdpError> {
    let socket = match receiver {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket.map_err(UdpError::Bind)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT)).map_err(UdpError::Bind)?;
    socket.connect(receiver).map_err(UdpError::Connect)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A name whose addresses the test changes.
    type Name = Arc<Mutex<Vec<SocketAddr>>>;

    fn sink(name: &Name, now: Instant) -> UdpSink {
        let name = name.clone();
        let resolve = move || match &name.lock()[..] {
            [] => Err(io::Error::other("no such name")),
            addresses => Ok(addresses.to_vec()),
        };
        UdpSink::resolving(resolve, now).unwrap()
    }

    fn receiver() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn received(socket: &UdpSocket) -> String {
        let mut packet = [0; 100];
        let length = socket.recv(&mut packet).unwrap();
        String::from_utf8(packet[..length].to_vec()).unwrap()
    }

    #[test]
    fn what_is_no_address_is_an_error_with_its_cause() {
        let error = UdpSink::new("no port").unwrap_err();
        assert!(matches!(error, UdpError::Invalid(_)), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_receiver_whose_name_is_not_known_yet_is_found_later() {
        let (name, start) = (Name::default(), Instant::now());
        let sink = sink(&name, start);
        let error = sink.send("lost", start).unwrap_err();
        assert!(error.to_string().ends_with("statsd receiver: no such name"), "{error}");
        let (socket, address) = receiver();
        name.lock().push(address);
        assert!(sink.send("lost", start + TRY_AGAIN / 2).is_err(), "it does not look all the time");
        assert!(sink.send("found", start + TRY_AGAIN).is_ok());
        assert_eq!(received(&socket), "found");
    }

    #[test]
    fn a_receiver_that_moves_is_followed_and_kept_while_its_name_is_gone() {
        let ((old, old_address), (new, new_address)) = (receiver(), receiver());
        let (name, start) = (Name::new(Mutex::new(vec![old_address])), Instant::now());
        let sink = sink(&name, start);
        sink.send("first", start).unwrap();
        assert_eq!(received(&old), "first");
        name.lock().clear();
        sink.send("second", start + LOOK_AGAIN).unwrap();
        assert_eq!(received(&old), "second");
        name.lock().push(new_address);
        sink.send("third", start + LOOK_AGAIN * 2).unwrap();
        assert_eq!(received(&new), "third");
    }

    #[test]
    fn a_port_where_nobody_listens_is_told_and_found_again_when_somebody_does() {
        let (socket, address) = receiver();
        drop(socket);
        let (name, now) = (Name::new(Mutex::new(vec![address])), Instant::now());
        let sink = sink(&name, now);
        let told = (0..2).filter_map(|_| sink.send("lost", now).err()).next().unwrap();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionRefused);
        // The port may be somebody else's by now; then there is nothing to see.
        let Ok(socket) = UdpSocket::bind(address) else { return };
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = sink.send("found", now);
        assert_eq!(received(&socket), "found");
    }
}
