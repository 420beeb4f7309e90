//! A WebSocket.

use std::{io, net::SocketAddr, time::Duration};

use pipeline_load::frame::{self, CLOSE, Frame, PING, PONG, TEXT};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::Ended;

/// The size of the buffer for received bytes in the operating system. It is small, so that a client that does not
/// read is noticed.
pub(crate) const RECEIVE_BUFFER: u32 = 64 << 10;

/// How long to wait for the server's answer to a close.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct WebSocket {
    stream: TcpStream,
    received: Vec<u8>,
    /// Where the next frame begins in `received`.
    at: usize,
}

impl WebSocket {
    pub(super) async fn connect(address: SocketAddr, name: &str) -> Result<Self, Ended> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let path = format!("/socket/websocket?vsn=2.0.0&client={name}");
        stream.write_all(frame::upgrade(&address.to_string(), &path).as_bytes()).await?;
        let mut received = Vec::with_capacity(4096);
        let length = loop {
            if let Some(length) = frame::head(&received) {
                break length;
            }
            read(&mut stream, &mut received).await?;
        };
        if !received.starts_with(b"HTTP/1.1 101") {
            return Err(Ended::Refused);
        }
        Ok(Self { stream, received, at: length })
    }

    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, Ended> {
        loop {
            while let Some((frame, length)) = Frame::first(&self.received[self.at..]) {
                let (opcode, body) = (frame.opcode, frame.body.to_vec());
                self.at += length;
                match opcode {
                    TEXT => return Ok(body),
                    CLOSE => {
                        let code = body.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                        return Err(Ended::Closed(code));
                    }
                    PING => self.stream.write_all(&frame::client(PONG, &body)).await?,
                    PONG => {}
                    other => return Err(Ended::Invalid(format!("a frame with opcode {other}"))),
                }
            }
            self.received.drain(..self.at);
            self.at = 0;
            read(&mut self.stream, &mut self.received).await?;
        }
    }

    pub(super) async fn send(&mut self, text: &str) -> Result<(), Ended> {
        Ok(self.stream.write_all(&frame::client(TEXT, text.as_bytes())).await?)
    }

    pub(super) fn reset(self) {
        reset(&self.stream);
    }

    pub(super) async fn close(mut self) {
        let closing = async {
            self.stream.write_all(&frame::client(CLOSE, &1000_u16.to_be_bytes())).await?;
            while self.receive().await.is_ok() {}
            io::Result::Ok(())
        };
        // The server may have closed at the same time.
        let _ = timeout(CLOSED_WITHIN, closing).await;
    }
}

/// Makes the end of a connection an RST.
pub(super) fn reset(stream: &TcpStream) {
    // The connection may be over.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Reads more bytes. Cancel safe.
pub(super) async fn read(stream: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<()> {
    into.reserve(16 << 10);
    match stream.read_buf(into).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
