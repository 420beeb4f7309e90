//! The sink behind `StatsdRecorder::udp`.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use cadence::MetricSink;
use parking_lot::Mutex;

use crate::{error::UdpError, pace::Pace};

/// The payload of an Ethernet frame of 1500 bytes after IP and UDP, with room for a tunnel's headers.
pub(crate) const PACKET_BYTES: usize = 1432;

/// How often a known address is resolved again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How often resolution is retried while there is no address.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// How long a packet may wait for the system's send buffer.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

type Resolve = dyn Fn() -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Sends to a receiver by name, which it resolves periodically.
pub(crate) struct UdpSink {
    resolve: Arc<Resolve>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    receiver: Option<Receiver>,
    /// The result of a lookup in progress. The lookup has its own thread, so that a slow resolver delays
    /// neither flushes nor the end of the program.
    looking: Option<mpsc::Receiver<io::Result<Vec<SocketAddr>>>>,
    looked_at: Instant,
    /// Why there is no receiver.
    because: Option<UdpError>,
    pace: Pace,
    began: Instant,
}

#[derive(Debug)]
struct Receiver {
    address: SocketAddr,
    /// Connected, so that the system reports a closed port.
    socket: UdpSocket,
    /// Whether the system has reported one.
    refused: bool,
    /// Whether packets fail instead of waiting for the system's send buffer.
    nonblocking: bool,
}

impl UdpSink {
    /// Resolves the receiver for the first time. An unresolved name is no error.
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
        let found = resolve().map_err(UdpError::Resolve).and_then(|found| find(found, None));
        let (receiver, because) = match found {
            Ok(receiver) => (Some(receiver), None),
            Err(UdpError::Resolve(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(UdpError::Invalid(error));
            }
            Err(error @ UdpError::Bind(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(error = error.in_full(), "statsd receiver not found, retrying");
                (None, Some(error))
            }
        };
        let pace = Pace::new(Duration::ZERO);
        let looking = None;
        let state = State { receiver, looking, looked_at: now, because, pace, began: now };
        Ok(Self { resolve: Arc::new(resolve), state: Mutex::new(state) })
    }

    /// Sets how long a flush may wait: for its receiver, for the system's send buffer and for a lookup.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        self.state.lock().pace = Pace::new(patience);
        self
    }

    fn send(&self, text: &str, now: Instant) -> io::Result<usize> {
        let mut state = self.state.lock();
        state.look(&self.resolve, now);
        let State { receiver, because, pace, .. } = &mut *state;
        let Some(receiver) = receiver else {
            let because = because.as_ref().map_or_else(String::new, UdpError::in_full);
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, because));
        };
        // The error belongs to an earlier packet. It is reported for this one, so that the count is
        // right. This one is sent anyway, because the receiver may be back.
        let earlier = receiver.socket.take_error()?;
        receiver.set_nonblocking(pace.left().is_zero())?;
        let began = Instant::now();
        let sent = receiver.socket.send(text.as_bytes());
        pace.spend(began.elapsed());
        let sent = sent?;
        match receiver.socket.take_error()?.or(earlier) {
            Some(error) => {
                receiver.refused = true;
                Err(error)
            }
            None => Ok(sent),
        }
    }

    /// Pauses if many packets were sent in a short time.
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
    /// Resolves the receiver if it is due. The known address is kept until another is found.
    fn look(&mut self, resolve: &Arc<Resolve>, now: Instant) {
        let known_for = if self.receiver.is_some() { LOOK_AGAIN } else { TRY_AGAIN };
        if self.looking.is_none() && now.saturating_duration_since(self.looked_at) >= known_for {
            self.looked_at = now;
            let (found, looking) = mpsc::sync_channel(1);
            let resolve = resolve.clone();
            let look = move || drop(found.send(resolve()));
            match thread::Builder::new().name("statsd-resolve".to_owned()).spawn(look) {
                Ok(_) => self.looking = Some(looking),
                Err(error) => self.because = Some(UdpError::Resolve(error)),
            }
            self.take_found(self.pace.left() / 2);
        } else {
            self.take_found(Duration::ZERO);
        }
    }

    /// Takes the result of a lookup, if it completes within this time.
    fn take_found(&mut self, within: Duration) {
        let Some(looking) = &self.looking else { return };
        let began = Instant::now();
        let found = looking.recv_timeout(within);
        self.pace.spend(began.elapsed());
        let found = match found {
            Err(mpsc::RecvTimeoutError::Timeout) => return,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the resolver panicked"))
            }
            Ok(found) => found,
        };
        self.looking = None;
        // An address that has refused packets is not preferred to the others.
        let known = self.receiver.as_ref();
        let kept = known.filter(|receiver| !receiver.refused).map(|receiver| receiver.address);
        match found.map_err(UdpError::Resolve).and_then(|found| find(found, kept)) {
            Ok(found) => {
                if known.map(|receiver| receiver.address) != Some(found.address) {
                    tracing::info!(address = %found.address, "statsd receiver found");
                }
                // A new socket each time: the route to the receiver may have changed.
                self.receiver = Some(found);
                self.because = None;
            }
            Err(error) => self.because = Some(error),
        }
    }
}

impl Receiver {
    /// Sets whether packets fail instead of waiting for the system's send buffer.
    fn set_nonblocking(&mut self, nonblocking: bool) -> io::Result<()> {
        if nonblocking != self.nonblocking {
            self.socket.set_nonblocking(nonblocking)?;
            self.nonblocking = nonblocking;
        }
        Ok(())
    }
}

/// A socket connected to the first address that works. The known address comes first, because the order
/// of a name's addresses changes; then IPv4.
fn find(mut addresses: Vec<SocketAddr>, known: Option<SocketAddr>) -> Result<Receiver, UdpError> {
    // Stable: keeps the resolver's order within a family.
    addresses.sort_by_key(|address| (Some(*address) != known, address.is_ipv6()));
    let mut failed = UdpError::NoAddress;
    for address in addresses {
        match connect(address) {
            Ok(socket) => {
                return Ok(Receiver { address, socket, refused: false, nonblocking: false });
            }
            Err(error) => failed = of_both(failed, error),
        }
    }
    Err(failed)
}

/// The error of two addresses. A missing route may be temporary, whatever the other error is.
fn of_both(one: UdpError, other: UdpError) -> UdpError {
    if matches!(one, UdpError::Connect(_)) { one } else { other }
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
        UdpSink::resolving(resolve, now).unwrap().patience(PATIENCE)
    }

    /// How long a test waits for an expected event. A lookup gets half of it.
    const PATIENCE: Duration = Duration::from_secs(120);

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
    fn an_invalid_address_is_an_error_with_its_cause() {
        let error = UdpSink::new("no port").unwrap_err();
        assert!(matches!(error, UdpError::Invalid(_)), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_receiver_whose_name_does_not_resolve_yet_is_found_later() {
        let (name, start) = (Name::default(), Instant::now());
        let sink = sink(&name, start);
        let error = sink.send("lost", start).unwrap_err();
        assert!(error.to_string().ends_with("statsd receiver: no such name"), "{error}");
        let (socket, address) = receiver();
        name.lock().push(address);
        assert!(
            sink.send("lost", start + TRY_AGAIN / 2).is_err(),
            "it does not resolve at each packet"
        );
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
    fn a_closed_port_is_reported_and_found_again_when_it_opens() {
        let (socket, address) = receiver();
        drop(socket);
        let (name, now) = (Name::new(Mutex::new(vec![address])), Instant::now());
        let sink = sink(&name, now);
        let error = (0..2).filter_map(|_| sink.send("lost", now).err()).next().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // The port may be in use by another program now; then there is nothing to test.
        let Ok(socket) = UdpSocket::bind(address) else { return };
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = sink.send("found", now);
        assert_eq!(received(&socket), "found");
    }

    #[test]
    fn the_address_in_use_is_kept_while_it_is_listed_and_answers() {
        let ((one, first), (other, second)) = (receiver(), receiver());
        let (name, start) = (Name::new(Mutex::new(vec![first, second])), Instant::now());
        let sink = sink(&name, start);
        let later = |minutes| start + LOOK_AGAIN * minutes;
        for minute in 0..4 {
            // As a round-robin name server does.
            name.lock().rotate_left(1);
            sink.send("kept", later(minute)).unwrap();
            assert_eq!(received(&one), "kept");
        }
        *name.lock() = vec![second];
        sink.send("moved", later(4)).unwrap();
        assert_eq!(received(&other), "moved");
        *name.lock() = vec![first, second];
        drop(other);
        let refused = (0..2).any(|_| sink.send("lost", later(4)).is_err());
        assert!(refused);
        let _ = sink.send("back", later(5));
        assert_eq!(received(&one), "back");
    }

    #[test]
    fn a_resolver_that_does_not_answer_blocks_nothing() {
        let ((socket, address), start) = (receiver(), Instant::now());
        let (answer, answered) = mpsc::sync_channel::<SocketAddr>(2);
        let answered = Mutex::new(answered);
        answer.send(address).unwrap();
        let resolve = move || Ok(vec![answered.lock().recv().map_err(io::Error::other)?]);
        // The flush may not wait.
        let sink = UdpSink::resolving(resolve, start).unwrap().patience(Duration::ZERO);
        for text in ["one", "two"] {
            sink.send(text, start + LOOK_AGAIN).unwrap();
            assert_eq!(received(&socket), text);
        }
        // A late answer is used.
        let (other, found) = receiver();
        answer.send(found).unwrap();
        other.set_nonblocking(true).unwrap();
        let mut packet = [0; 100];
        let has_come = (0..1_000_000).any(|_| {
            let _ = sink.send("found", start + LOOK_AGAIN);
            thread::yield_now();
            other.recv(&mut packet).is_ok()
        });
        assert!(has_come);
    }

    #[test]
    fn a_resolver_that_panics_costs_its_lookup_and_the_known_address_is_kept() {
        let ((old, old_address), (new, new_address)) = (receiver(), receiver());
        let (lookups, start) = (Mutex::new(0), Instant::now());
        let resolve = move || {
            let mut lookups = lookups.lock();
            *lookups += 1;
            match *lookups {
                1 => Ok(vec![old_address]),
                2 | 3 => panic!("lookup {lookups} fails"),
                _ => Ok(vec![new_address]),
            }
        };
        let patience = Duration::from_secs(60);
        let sink = UdpSink::resolving(resolve, start).unwrap().patience(patience);
        for minute in 0..3 {
            sink.send("kept", start + LOOK_AGAIN * minute).unwrap();
            assert_eq!(received(&old), "kept", "after {minute} lookups that panicked");
        }
        sink.send("moved", start + LOOK_AGAIN * 3).unwrap();
        assert_eq!(received(&new), "moved");
    }

    #[test]
    fn an_address_without_a_route_is_retried_though_another_has_no_socket() {
        let error = || io::Error::other("no");
        let (no_way, no_socket) = (UdpError::Connect, UdpError::Bind);
        assert!(matches!(of_both(no_way(error()), no_socket(error())), UdpError::Connect(_)));
        assert!(matches!(of_both(no_socket(error()), no_way(error())), UdpError::Connect(_)));
        assert!(matches!(of_both(UdpError::NoAddress, no_socket(error())), UdpError::Bind(_)));
    }
}
