//! The writing end of a socket.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::Shutdown,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use socket2::SockRef;
use tokio::{io::AsyncWrite, net::TcpStream, task::unconstrained};

/// The writing end of a socket.
pub(crate) enum Writer {
    /// A TCP stream, which any task may write to.
    Tcp(Arc<TcpStream>),
    /// A stream that only the socket's task writes to.
    Task(Pin<Box<dyn AsyncWrite + Send>>),
    /// None: a long-polling client [fetches](super::Outbox::poll_fetch) the waiting frames.
    Fetched,
    /// None: the socket's task has released the stream.
    Gone,
}

impl Writer {
    /// Writes as much as can be written without waiting.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Task(_) | Self::Fetched => Err(io::ErrorKind::WouldBlock.into()),
            Self::Gone => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Writes some bytes, from a task that is not the socket's. If nothing can be written now, the
    /// socket's own task, whose waker this is, is woken when that changes.
    ///
    /// It asks the operating system, and not the runtime: a runtime that has no time to poll,
    /// because the calling task does not yield, takes a writable socket for blocked.
    pub(super) fn write_for(
        &mut self,
        task: Option<&Waker>,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => SockRef::from(&**stream).send_vectored(slices),
            Self::Task(writer) => {
                // The caller may have used up its share of the runtime, which says nothing about
                // the socket.
                let writing =
                    unconstrained(poll_fn(|cx| writer.as_mut().poll_write_vectored(cx, slices)));
                let waker = task.unwrap_or(Waker::noop());
                match pin!(writing).poll(&mut Context::from_waker(waker)) {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Self::Fetched => Err(io::ErrorKind::WouldBlock.into()),
            Self::Gone => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Whether any task may write.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Writes some bytes. For the socket's task only, like the following functions.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => loop {
                ready!(stream.poll_write_ready(cx))?;
                match stream.try_write_vectored(slices) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            },
            Self::Task(writer) => writer.as_mut().poll_write_vectored(cx, slices),
            Self::Fetched => Poll::Pending,
            Self::Gone => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Fetched | Self::Gone => Poll::Ready(Ok(())),
            Self::Task(writer) => writer.as_mut().poll_flush(cx),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // The stream is closed when the task releases it; see `Outbox::release`.
            Self::Tcp(_) | Self::Fetched | Self::Gone => Poll::Ready(Ok(())),
            Self::Task(writer) => writer.as_mut().poll_shutdown(cx),
        }
    }

    /// Shuts down the write half, while the client may still be read from.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => SockRef::from(&**stream).shutdown(Shutdown::Write),
            // `poll_shutdown` has done so.
            Self::Task(_) | Self::Fetched | Self::Gone => Ok(()),
        }
    }
}
