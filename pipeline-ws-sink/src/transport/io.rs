//! The two ends of an upgraded connection.

use std::{io, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf},
    net::TcpStream,
    task::coop::consume_budget,
};

use crate::outbox::Writer;

/// An upgraded connection, after HTTP.
pub(crate) struct Io {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// The bytes that the client sent along with its handshake.
    pub(crate) received: Bytes,
}

/// The reading end of a connection.
pub(crate) enum Reader {
    Tcp(Arc<TcpStream>),
    Task(ReadHalf<Box<dyn Duplex>>),
}

/// A stream that can be read from and written to.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Io {
    /// Takes a plain TCP stream out of its wrappers, so that any task may write to it. Any other
    /// stream stays as it is, and only the socket's own task writes to it.
    pub(crate) fn of(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(Parts { io, read_buf, .. }) => return Self::tcp(io.into_inner(), read_buf),
            Err(upgraded) => upgraded,
        };
        // Servers that detect HTTP/1 or HTTP/2, such as axum's, wrap the stream once more.
        match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => Self::tcp(parts.io.into_inner(), parts.read_buf),
            Err(upgraded) => Self::duplex(TokioIo::new(upgraded)),
        }
    }

    fn tcp(stream: TcpStream, received: Bytes) -> Self {
        // Pushes are sent without delay. If the option cannot be set, they are only slower.
        let _ = stream.set_nodelay(true);
        // The server may have set a timeout for its answers; the outbox has its own for frames.
        #[cfg(any(target_os = "android", target_os = "linux"))]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(None);
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
    /// Reads at most this number of bytes to the end of the buffer. 0 is the end of the stream.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn read(
        &mut self,
        buffer: &mut BytesMut,
        at_most: usize,
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => loop {
                // Reading the stream like this does not use the budget by itself.
                consume_budget().await;
                stream.readable().await?;
                // Reserved only now, so that a quiet connection holds no memory.
                buffer.reserve(at_most);
                match stream.try_read_buf(&mut buffer.limit(at_most)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // A stream counts as readable after each read until this error. A connection that is
                        // quiet from here on holds no memory either.
                        if buffer.is_empty() {
                            *buffer = BytesMut::new();
                        }
                    }
                    read => return read,
                }
            },
            Self::Task(reader) => {
                buffer.reserve(at_most);
                reader.read_buf(&mut buffer.limit(at_most)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;
    use http::{Request, Response, StatusCode};
    use http_body_util::Empty;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use tokio::{io::AsyncWriteExt, net::TcpListener, sync::mpsc};

    use super::*;

    /// Accepts the upgrade, and sends the resulting connection.
    fn switch(request: Request<Incoming>, to: mpsc::Sender<Io>) -> Response<Empty<Bytes>> {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            to.send(Io::of(upgraded)).await.unwrap();
        });
        let switching = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        switching.header("connection", "upgrade").header("upgrade", "x").body(Empty::new()).unwrap()
    }

    /// The resulting connection of a server of this kind.
    async fn upgraded(by_auto: bool) -> Io {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nmore";
        client.write_all(request).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (to, mut from) = mpsc::channel(1);
        let service = service_fn(move |request| {
            let answer = switch(request, to.clone());
            async { Ok::<_, std::convert::Infallible>(answer) }
        });
        let stream = TokioIo::new(stream);
        if by_auto {
            let builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            builder.serve_connection_with_upgrades(stream, service).await.unwrap();
        } else {
            let connection = http1::Builder::new().serve_connection(stream, service);
            connection.with_upgrades().await.unwrap();
        }
        from.recv().await.unwrap()
    }

    #[tokio::test]
    async fn a_tcp_stream_is_found_below_the_wrappers_of_servers() {
        for by_auto in [false, true] {
            let io = upgraded(by_auto).await;
            assert!(matches!(io.reader, Reader::Tcp(_)), "{by_auto}");
            assert!(matches!(io.writer, Writer::Tcp(_)), "{by_auto}");
            assert_eq!(io.received, "more", "bytes sent along with the request are not lost");
        }
    }

    #[tokio::test]
    async fn a_connection_that_becomes_quiet_holds_no_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut io = Io::tcp(listener.accept().await.unwrap().0, Bytes::new());
        client.write_all(b"hello").await.unwrap();
        let mut buffer = BytesMut::new();
        io.reader.read(&mut buffer, 4096).await.unwrap();
        assert_eq!(buffer.split(), "hello");
        assert!(poll!(pin!(io.reader.read(&mut buffer, 4096))).is_pending());
        assert_eq!(buffer.capacity(), 0);
    }
}
