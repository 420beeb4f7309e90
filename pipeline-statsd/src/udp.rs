//! The sink behind `StatsdRecorder::udp`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use cadence::UdpMetricSink;

use crate::error::UdpError;

/// What an Ethernet frame of 1500 bytes holds after IP and UDP, with room for a tunnel's headers.
pub(crate) const PACKET_BYTES: usize = 1432;

pub(crate) fn sink(addr: impl ToSocketAddrs) -> Result<UdpMetricSink, UdpError> {
    let mut receivers: Vec<_> = addr.to_socket_addrs().map_err(UdpError::Resolve)?.collect();
    receivers.sort_by_key(SocketAddr::is_ipv6); // stable: the resolver's order within a family

    let mut failed = UdpError::NoAddress;
    for receiver in receivers {
        match bind_for(receiver) {
            Ok(socket) => {
                return UdpMetricSink::from(receiver, socket).map_err(UdpError::Sink);
            }
            Err(error) => failed = UdpError::Bind(error),
        }
    }
    Err(failed)
}

fn bind_for(receiver: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match receiver {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    // A full send buffer costs lines, which are counted, rather than time.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_does_not_resolve_is_an_error_with_its_cause() {
        let error = sink("no port").unwrap_err();
        assert!(matches!(error, UdpError::Resolve(_)), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn the_socket_never_waits() {
        let socket = bind_for(([127, 0, 0, 1], 8125).into()).unwrap();
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_name_without_addresses_is_an_error() {
        let none: &[SocketAddr] = &[];
        assert!(matches!(sink(none), Err(UdpError::NoAddress)));
    }
}
