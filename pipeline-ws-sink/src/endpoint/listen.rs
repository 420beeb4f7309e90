//! A TCP listener for many clients at once.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, ToSocketAddrs, lookup_host};

/// How many connections may wait to be accepted. The default of 128 overflows when a server
/// restarts and all its clients connect again; connections over the limit are retried after a
/// second.
const BACKLOG: u32 = 4096;

/// Listens at an address, with a backlog for many clients that connect at once.
///
/// # Errors
///
/// Errors of the address lookup, and of binding to the address.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let listener = pipeline_ws_sink::listen("127.0.0.1:0").await?;
/// println!("listening on {}", listener.local_addr()?);
/// # Ok(())
/// # }
/// ```
pub async fn listen(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let mut last =
        io::Error::new(io::ErrorKind::InvalidInput, "address did not resolve to any host");
    for address in lookup_host(address).await? {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server can bind its port although old connections linger.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
