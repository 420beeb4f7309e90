//! The stream of a connection, whose bytes are checked before the client library reads them.
//!
//! The library takes its stream from a runtime. [`Kit`] is tokio with a stream of this module, over which that of the
//! library is, plain or with TLS.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_rs::{
    Runtime, Tokio,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, tcp::AMQPUriTcpExt, uri::AMQPUri};
use tokio::time::timeout;

use super::headers::Filter;

/// The most that is read at once, in bytes.
const MOST_READ: usize = 256 * 1024;

/// The bytes of messages that a connection has received.
#[derive(Clone, Debug, Default)]
pub(super) struct Received(Arc<AtomicUsize>);

impl Received {
    /// How many there are.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Relaxed);
    }

    /// Waits for what the server sends behind messages: as long as these arrive, and up to twice the limit more. `None` if it
    /// has not come by then.
    pub(super) async fn then<T>(
        &self,
        limit: Duration,
        awaited: impl Future<Output = T>,
    ) -> Option<T> {
        let mut awaited = pin!(awaited);
        loop {
            let before = self.bytes();
            match timeout(limit, &mut awaited).await {
                Ok(it) => return Some(it),
                Err(_) if self.bytes() == before => return None,
                Err(_) => {}
            }
        }
    }
}

/// A connection, and the bytes of messages that it has received.
pub(super) type Connected = (Connection, Received);

/// Connects to a server. The address says whether with TLS.
pub(super) async fn connect(uri: AMQPUri) -> lapin::Result<Connected> {
    let (tokio, received) = (Tokio::current(), Received::default());
    let kit = Runtime::new(Kit(tokio.clone(), received.clone()));
    let tokio = Runtime::new(tokio);
    let count = received.clone();
    let connect = async move |uri: AMQPUri, _| {
        let stream = uri.connect_async(&tokio).await?;
        Ok(AsyncTcpStream::Plain(Checked::new(stream, count.clone())))
    };
    let properties = ConnectionProperties::default();
    let connection = Connection::connector(uri, kit, connect, properties).await?;
    Ok((connection, received))
}

/// The library's stream over one of tokio, plain or with TLS.
type TokioStream = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio, with streams whose bytes are checked.
#[derive(Clone, Debug)]
struct Kit(Tokio, Received);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        f: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        f: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for Kit {
    type TcpStream = Checked<TokioStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // The library asks for no other sockets than those of its connections.
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    #[expect(clippy::disallowed_types, reason = "the trait has it")]
    fn interval(&self, dur: Duration) -> impl Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(dur)
    }

    fn tcp_connect_addr(
        &self,
        addr: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, received) = (self.0.tcp_connect_addr(addr), self.1.clone());
        async move { Ok(Checked::new(AsyncTcpStream::Plain(connecting.await?), received)) }
    }
}

/// A stream whose received bytes are checked.
struct Checked<S> {
    stream: S,
    filter: Filter,
    received: Received,
    /// What is to be read before more is received, from this place on.
    ready: Vec<u8>,
    at: usize,
}

impl<S> fmt::Debug for Checked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").finish_non_exhaustive()
    }
}

impl<S> Checked<S> {
    fn new(stream: S, received: Received) -> Self {
        Self { stream, filter: Filter::default(), received, ready: Vec::new(), at: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, filter, received, ready, at } = self.get_mut();
        let most = buf.len().min(MOST_READ);
        let buf = &mut buf[..most];
        // It ends when bytes may be read, or when none has arrived.
        loop {
            if *at < ready.len() {
                let count = (ready.len() - *at).min(buf.len());
                buf[..count].copy_from_slice(&ready[*at..*at + count]);
                *at += count;
                return Poll::Ready(Ok(count));
            }
            if *at > 0 {
                // It is rarely needed, and may be large.
                *ready = Vec::new();
                *at = 0;
            }
            let count = ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            let passed = filter.check(&buf[..count], ready);
            received.add(filter.take_bodies());
            if passed > 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_awaited_as_long_as_messages_arrive_before_it() {
        let second = Duration::from_secs(1);
        let received = Received::default();
        assert_eq!(received.then(5 * second, sleep(4 * second)).await, Some(()));
        let begun = Instant::now();
        assert_eq!(received.then(5 * second, sleep(6 * second)).await, None);
        assert_eq!(begun.elapsed().as_secs(), 5);
        // A message takes a minute.
        let arriving = async {
            for _ in 0..20 {
                sleep(3 * second).await;
                received.add(1);
            }
        };
        let (answer, ()) = tokio::join!(received.then(5 * second, sleep(62 * second)), arriving);
        assert_eq!(answer, Some(()));
        let begun = Instant::now();
        received.add(1);
        assert_eq!(received.then(5 * second, sleep(60 * second)).await, None);
        assert_eq!(begun.elapsed().as_secs(), 5, "what came before counts no more");
    }
}
