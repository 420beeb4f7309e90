//! A connection for one request after the other.

use std::{io, net::SocketAddr};

use pipeline_load::frame;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::websocket::{read, reset};

/// A connection that is kept open between requests.
#[derive(Debug)]
pub(crate) struct Http {
    stream: TcpStream,
    address: SocketAddr,
    /// What is left of the request.
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// Whether a request has not been answered yet.
    pub(crate) is_pending: bool,
    /// Whether the server closes the connection after its last answer.
    is_closing: bool,
}

/// The head of an answer.
struct Head {
    status: u16,
    length: usize,
    body: usize,
    closes: bool,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (unsent, received) = (Vec::new(), Vec::new());
        Ok(Self { stream, address, unsent, received, is_pending: false, is_closing: false })
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

    /// Sends a request, on a new connection if the server closes this one. If it is cancelled once the request
    /// is pending, the rest of it is sent with the wait for the answer.
    pub(crate) async fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        if self.is_closing {
            *self = Self::connect(self.address).await?;
        }
        let (host, length) = (self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.unsent.extend_from_slice(request.as_bytes());
        self.is_pending = true;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let written = self.stream.write(&self.unsent).await?;
            self.unsent.drain(..written);
        }
        Ok(())
    }

    /// Waits for the answer to the request that was sent. Cancel safe.
    pub(crate) async fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        self.flush().await?;
        loop {
            if let Some(Head { status, length, body, closes }) = parse(&self.received)?
                && self.received.len() >= length + body
            {
                let text = self.received[length..length + body].to_vec();
                self.received.drain(..length + body);
                (self.is_pending, self.is_closing) = (false, closes);
                return Ok((status, text));
            }
            read(&mut self.stream, &mut self.received).await?;
        }
    }

    pub(super) fn reset(self) {
        reset(&self.stream);
    }
}

/// The head of an answer, once it is complete.
fn parse(received: &[u8]) -> io::Result<Option<Head>> {
    let Some(length) = frame::head(received) else { return Ok(None) };
    let head = String::from_utf8_lossy(&received[..length]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let body = body.map_or(Some(0), |length| length.trim().parse().ok());
    let closes = head.lines().any(|line| line == "connection: close");
    match (status, body) {
        (Some(status), Some(body)) => Ok(Some(Head { status, length, body, closes })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an invalid HTTP head")),
    }
}
