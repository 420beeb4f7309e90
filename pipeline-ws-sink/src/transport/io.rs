//! The two ends of an upgraded connection.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf},
    net::TcpStream,
};

use crate::outbox::Writer;

/// How much is read at once, when there is something to read.
const CHUNK: usize = 4096;

/// A connection without its HTTP.
pub(crate) struct Io {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// What the client sent along with its handshake.
    pub(crate) received: Bytes,
}

/// Where the bytes come from.
pub(crate) enum Reader {
    Tcp(Arc<TcpStream>),
    Task(ReadHalf<Box<dyn Duplex>>),
}

/// A stream that can be read and written.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Io {
    /// Takes a plain TCP stream out of its wrapping, so that any task may write to it. Anything else
    /// is left as it is, and only the socket's own task writes to it.
    pub(crate) fn of(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(Parts { io, read_buf, .. }) => Self::tcp(io.into_inner(), read_buf),
            Err(upgraded) => Self::duplex(TokioIo::new(upgraded)),
        }
    }

    fn tcp(stream: TcpStream, received: Bytes) -> Self {
        // A push is to be on its way at once. If it cannot be set, it is only slower.
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        Self { reader: Reader::Tcp(stream.clone()), writer: Writer::Tcp(stream), received }
    }

    pub(crate) fn duplex(stream: impl Duplex + 'static) -> Self {
        let (reader, writer) = tokio::io::split(Box::new(stream) as Box<dyn Duplex>);
        let (reader, writer) = (Reader::Task(reader), Writer::Task(Box::pin(writer)));
        Self { reader, writer, received: Bytes::new() }
    }
}

impl Reader {
    /// Reads some bytes to the end of the buffer. 0 is the end of the stream.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => loop {
                stream.readable().await?;
                // Only now, so that a connection that is quiet holds no memory.
                buffer.reserve(CHUNK);
                match stream.try_read_buf(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            },
            Self::Task(reader) => {
                buffer.reserve(CHUNK);
                reader.read_buf(buffer).await
            }
        }
    }
}
