//! A connection for one request after the other.

use std::{io, net::SocketAddr};

use pipeline_load::frame;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::websocket::{read, reset};

/// A connection that is kept open between requests.
#[derive(Debug)]
pub(crate) struct Http {
    stream: TcpStream,
    host: String,
    received: Vec<u8>,
    /// Whether a request has not been answered yet.
    pub(crate) is_pending: bool,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (host, received) = (address.to_string(), Vec::new());
        Ok(Self { stream, host, received, is_pending: false })
    }

    /// Sends a request, and waits for the answer. Returns its status and its body.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> io::Result<(u16, Vec<u8>)> {
        self.send(method, path, body).await?;
        self.answer().await
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let (host, length) = (&self.host, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.is_pending = true;
        self.stream.write_all(request.as_bytes()).await
    }

    /// Waits for the answer to the request that was sent. Cancel safe.
    pub(crate) async fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        loop {
            if let Some((status, head, length)) = parse(&self.received)?
                && self.received.len() >= head + length
            {
                let body = self.received[head..head + length].to_vec();
                self.received.drain(..head + length);
                self.is_pending = false;
                return Ok((status, body));
            }
            read(&mut self.stream, &mut self.received).await?;
        }
    }

    pub(super) fn reset(self) {
        reset(&self.stream);
    }
}

/// The status, the length of the head, and that of the body, once the head is complete.
fn parse(received: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let Some(length) = frame::head(received) else { return Ok(None) };
    let head = String::from_utf8_lossy(&received[..length]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let body = body.map_or(Some(0), |length| length.trim().parse().ok());
    match (status, body) {
        (Some(status), Some(body)) => Ok(Some((status, length, body))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an invalid HTTP head")),
    }
}
