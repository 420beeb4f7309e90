//! What waits to be written to one socket.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::{io::AsyncWrite, net::TcpStream, time::Instant};

use crate::{end::SocketEnd, protocol::frame::Frame, telemetry::SocketMetrics};

/// How many frames go into one write.
const GATHER: usize = 64;

/// How much may wait for one socket before it is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxLimits {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The one way out to a socket: whatever is sent through here leaves in this order.
///
/// A frame is written at once, by the task that sends it, when nothing waits for the socket and the
/// socket is a plain TCP stream. Otherwise it waits, and the socket's own task writes it when there
/// is room. When too much waits, the client is too slow: what waits is dropped and counted, and the
/// socket is closed.
pub(crate) struct Outbox {
    state: Mutex<State>,
    limits: OutboxLimits,
    metrics: Arc<SocketMetrics>,
}

struct State {
    writer: Writer,
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    /// How much of the first frame in the queue has been written.
    written: usize,
    /// The socket's task, while it waits.
    task: Option<Waker>,
    /// Why the socket has to end, once it has to.
    end: Option<SocketEnd>,
    /// The last frame has been sent; nothing goes behind it.
    finished: bool,
    last_active: Instant,
}

/// Where the bytes go.
pub(crate) enum Writer {
    /// A TCP stream, which any task may write to.
    Tcp(Arc<TcpStream>),
    /// Something that only the socket's task writes to.
    Task(Pin<Box<dyn AsyncWrite + Send>>),
}

struct Outgoing {
    frame: Frame,
    /// When what it carries was enqueued, if its way is timed.
    since: Option<Instant>,
}

impl Outbox {
    pub(crate) fn new(writer: Writer, limits: OutboxLimits, metrics: Arc<SocketMetrics>) -> Self {
        let state = State {
            writer,
            queue: VecDeque::new(),
            queued_bytes: 0,
            written: 0,
            task: None,
            end: None,
            finished: false,
            last_active: Instant::now(),
        };
        Self { state: Mutex::new(state), limits, metrics }
    }

    /// Sends a frame. If `since` is given, the time from then until the operating system has taken
    /// the frame's last byte is recorded.
    pub(crate) fn send(&self, frame: &Frame, since: Option<Instant>) {
        let mut state = self.state.lock();
        if state.finished || state.end.is_some() {
            return;
        }
        let mut written = 0;
        if state.queue.is_empty() {
            match state.writer.write_now(frame.bytes()) {
                Ok(count) if count == frame.len() => {
                    let now = Instant::now();
                    state.last_active = now;
                    drop(state);
                    self.delivered(since, now);
                    return;
                }
                Ok(count) => written = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return state.end_with(SocketEnd::Lost),
            }
        } else if state.queue.len() >= self.limits.frames
            || state.queued_bytes + frame.len() > self.limits.bytes
        {
            let dropped = state.drop_waiting() + 1;
            self.metrics.dropped_by_overflow.increment(dropped as u64);
            return state.end_with(SocketEnd::Overflow);
        } else {
            // The queue is not empty, so the task is on its way already.
            state.enqueue(frame, since);
            return;
        }
        state.written = written;
        state.enqueue(frame, since);
        state.wake();
    }

    /// Sends the last frame. It goes behind what waits, and nothing goes behind it.
    pub(crate) fn finish(&self, frame: &Frame) {
        let mut state = self.state.lock();
        if !state.finished {
            state.enqueue(frame, None);
            state.finished = true;
            state.wake();
        }
    }

    /// Has the socket closed. The first reason counts.
    pub(crate) fn end(&self, end: SocketEnd) {
        self.state.lock().end_with(end);
    }

    /// Takes note that something was received.
    pub(crate) fn heard(&self) {
        self.state.lock().last_active = Instant::now();
    }

    /// When something was last received or written.
    pub(crate) fn last_active(&self) -> Instant {
        self.state.lock().last_active
    }

    /// Writes what waits, for as long as the socket lives. Completes when the socket has to end. For
    /// the socket's task only.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<SocketEnd> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        if let Poll::Ready(Err(_)) = self.poll_flush(&mut state, cx) {
            state.end_with(SocketEnd::Lost);
        }
        match state.end {
            Some(end) => Poll::Ready(end),
            None => Poll::Pending,
        }
    }

    /// Writes what waits to the last byte, then ends the stream. For the socket's task only.
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        ready!(self.poll_flush(&mut state, cx))?;
        match &mut state.writer {
            // Dropped at the end of the task, which closes it.
            Writer::Tcp(_) => Poll::Ready(Ok(())),
            Writer::Task(writer) => writer.as_mut().poll_shutdown(cx),
        }
    }

    fn poll_flush(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !state.queue.is_empty() {
            let count = ready!(state.poll_write_some(cx))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let now = Instant::now();
            state.last_active = now;
            state.written += count;
            while let Some(first) = state.queue.front()
                && state.written >= first.frame.len()
            {
                let (length, since) = (first.frame.len(), first.since);
                state.queue.pop_front();
                state.written -= length;
                state.queued_bytes -= length;
                self.delivered(since, now);
            }
        }
        if state.queue.capacity() > 0 {
            // A socket that has caught up holds no memory for having been behind.
            state.queue = VecDeque::new();
        }
        match &mut state.writer {
            Writer::Tcp(_) => Poll::Ready(Ok(())),
            Writer::Task(writer) => writer.as_mut().poll_flush(cx),
        }
    }

    fn delivered(&self, since: Option<Instant>, now: Instant) {
        if let Some(since) = since {
            let milliseconds = now.saturating_duration_since(since).as_secs_f64() * 1e3;
            self.metrics.push_delivered.record(milliseconds);
        }
    }
}

impl State {
    fn enqueue(&mut self, frame: &Frame, since: Option<Instant>) {
        self.queued_bytes += frame.len();
        self.queue.push_back(Outgoing { frame: frame.clone(), since });
    }

    /// Drops what waits, but for a frame that has been written in part. Returns how many frames.
    fn drop_waiting(&mut self) -> usize {
        let keep = usize::from(self.written > 0);
        let dropped = self.queue.len() - keep;
        self.queue.truncate(keep);
        self.queued_bytes = self.queue.iter().map(|outgoing| outgoing.frame.len()).sum();
        dropped
    }

    fn end_with(&mut self, end: SocketEnd) {
        if self.end.is_none() {
            self.end = Some(end);
            self.wake();
        }
    }

    fn remember(&mut self, task: &Waker) {
        match &mut self.task {
            Some(known) => known.clone_from(task),
            None => self.task = Some(task.clone()),
        }
    }

    fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Writes some of what waits, as many frames at once as fit into one call.
    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let mut count = 0;
        for (slice, outgoing) in slices.iter_mut().zip(&self.queue) {
            let skip = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&outgoing.frame.bytes()[skip..]);
            count += 1;
        }
        let slices = &slices[..count];
        match &mut self.writer {
            Writer::Tcp(stream) => loop {
                ready!(stream.poll_write_ready(cx))?;
                match stream.try_write_vectored(slices) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            },
            Writer::Task(writer) => writer.as_mut().poll_write_vectored(cx, slices),
        }
    }
}

impl Writer {
    /// Writes as much as can be written without waiting.
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Task(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use pipeline_test_support::Recorded;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        net::TcpSocket,
        time::{Duration, advance},
    };

    use super::*;

    const ROOMY: OutboxLimits = OutboxLimits { frames: 1000, bytes: 1 << 30 };

    fn outbox(writer: Writer, limits: OutboxLimits) -> (Outbox, Recorded) {
        let (telemetry, recorded) = Recorded::new();
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        (Outbox::new(writer, limits, metrics), recorded)
    }

    /// A frame of so many bytes, header and all, of 127 at most.
    fn small(length: usize) -> Frame {
        let frame = text(length - 2);
        assert_eq!(frame.len(), length);
        frame
    }

    fn text(length: usize) -> Frame {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend(std::iter::repeat_n(b'x', length));
            Ok::<_, ()>(())
        };
        Frame::text(write).unwrap()
    }

    /// The two ends of a connection. The first can be written to, and the system takes little.
    async fn tcp() -> (TcpStream, TcpStream) {
        let (ours, theirs) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
        ours.set_send_buffer_size(16_384).unwrap();
        theirs.set_recv_buffer_size(16_384).unwrap();
        theirs.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = theirs.listen(1).unwrap();
        let ours = ours.connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        ours.writable().await.unwrap();
        (ours, theirs)
    }

    /// The socket's task has a turn.
    fn turn(outbox: &Outbox) -> Poll<SocketEnd> {
        outbox.poll_write(&mut Context::from_waker(Waker::noop()))
    }

    fn waiting(outbox: &Outbox) -> usize {
        outbox.state.lock().queue.len()
    }

    fn end(outbox: &Outbox) -> Option<SocketEnd> {
        outbox.state.lock().end
    }

    #[tokio::test]
    async fn nothing_goes_out_behind_the_last_frame() {
        let (ours, mut theirs) = tcp().await;
        let (outbox, _) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        let last = Frame::close(1000);
        outbox.finish(&last);
        outbox.send(&small(10), None);
        poll_fn(|cx| outbox.poll_close(cx)).await.unwrap();
        drop(outbox);
        let mut received = vec![];
        theirs.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, *last.bytes());
    }

    #[tokio::test]
    async fn nothing_goes_out_once_the_socket_has_to_end() {
        let (ours, mut theirs) = tcp().await;
        let (outbox, _) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        outbox.end(SocketEnd::Disconnected);
        outbox.send(&small(10), None);
        assert_eq!(waiting(&outbox), 0);
        drop(outbox);
        assert_eq!(theirs.read_to_end(&mut vec![]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_frame_that_is_taken_whole_needs_no_task() {
        let (ours, mut theirs) = tcp().await;
        let (outbox, recorded) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        outbox.send(&small(10), Some(Instant::now()));
        assert_eq!(recorded.samples("pipeline.push_delivered").len(), 1);
        assert_eq!(waiting(&outbox), 0);
        let mut received = [0; 10];
        theirs.read_exact(&mut received).await.unwrap();
        assert_eq!(received, small(10).bytes()[..]);
    }

    #[tokio::test]
    async fn a_frame_that_is_taken_in_part_is_delivered_with_its_last_byte() {
        let (ours, mut theirs) = tcp().await;
        let (outbox, recorded) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        let (large, next) = (text(1 << 19), small(10));
        outbox.send(&large, Some(Instant::now()));
        outbox.send(&next, None);
        let written = outbox.state.lock().written;
        assert!((1..large.len()).contains(&written), "{written}");
        assert_eq!(recorded.samples("pipeline.push_delivered").len(), 0);

        let mut received = vec![0; large.len() + next.len()];
        let closing = poll_fn(|cx| outbox.poll_close(cx));
        let (closed, read) = tokio::join!(closing, theirs.read_exact(&mut received));
        closed.unwrap();
        read.unwrap();
        assert!(received == [&large.bytes()[..], next.bytes()].concat());
        assert_eq!(recorded.samples("pipeline.push_delivered").len(), 1);
    }

    #[tokio::test]
    async fn a_frame_waits_when_the_system_takes_nothing() {
        let (ours, _theirs) = tcp().await;
        let chunk = [0; 65_536];
        while ours.try_write(&chunk).is_ok() {}
        let (outbox, recorded) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        outbox.send(&small(10), Some(Instant::now()));
        assert_eq!((waiting(&outbox), end(&outbox)), (1, None));
        assert!(turn(&outbox).is_pending());
        assert_eq!(recorded.samples("pipeline.push_delivered").len(), 0);
    }

    #[tokio::test]
    async fn a_frame_for_a_broken_connection_ends_the_socket_and_does_not_wait() {
        let (mut ours, _theirs) = tcp().await;
        ours.shutdown().await.unwrap();
        let (outbox, _) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
        outbox.send(&small(10), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (0, Some(SocketEnd::Lost)));
        assert_eq!(turn(&outbox), Poll::Ready(SocketEnd::Lost));
    }

    #[tokio::test]
    async fn as_many_bytes_as_the_limit_may_wait_and_not_one_more() {
        let limits = OutboxLimits { frames: 1000, bytes: 20 };
        let (outbox, recorded) = outbox(Writer::Task(Box::pin(duplex(1).0)), limits);
        outbox.send(&small(10), None);
        outbox.send(&small(10), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (2, None));
        outbox.send(&small(2), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (0, Some(SocketEnd::Overflow)));
        let dropped = recorded.counters("socket.frames_dropped");
        assert_eq!(dropped, [("reason=overflow".to_owned(), 3)]);
    }

    #[tokio::test]
    async fn as_many_frames_as_the_limit_may_wait_and_not_one_more() {
        let limits = OutboxLimits { frames: 2, bytes: 1000 };
        let (outbox, _) = outbox(Writer::Task(Box::pin(duplex(1).0)), limits);
        outbox.send(&small(10), None);
        outbox.send(&small(10), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (2, None));
        outbox.send(&small(10), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (0, Some(SocketEnd::Overflow)));
    }

    #[tokio::test]
    async fn what_is_written_makes_room_for_as_much() {
        let limits = OutboxLimits { frames: 1000, bytes: 30 };
        let (ours, _theirs) = duplex(10);
        let (outbox, _) = outbox(Writer::Task(Box::pin(ours)), limits);
        (0..3).for_each(|_| outbox.send(&small(10), None));
        assert!(turn(&outbox).is_pending());
        assert_eq!(waiting(&outbox), 2, "the first has been taken");
        outbox.send(&small(10), None);
        assert_eq!((waiting(&outbox), end(&outbox)), (3, None));
        outbox.send(&small(2), None);
        assert_eq!(end(&outbox), Some(SocketEnd::Overflow));
    }

    #[tokio::test]
    async fn an_outbox_that_has_caught_up_holds_no_memory_for_frames() {
        let (ours, _theirs) = duplex(1000);
        let (outbox, _) = outbox(Writer::Task(Box::pin(ours)), ROOMY);
        (0..3).for_each(|_| outbox.send(&small(10), None));
        assert!(outbox.state.lock().queue.capacity() > 0);
        assert!(turn(&outbox).is_pending());
        assert_eq!(outbox.state.lock().queue.capacity(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_counts_as_activity() {
        let (outbox, _) = outbox(Writer::Task(Box::pin(tokio::io::sink())), ROOMY);
        let opened = Instant::now();
        advance(Duration::from_secs(40)).await;
        assert_eq!(outbox.last_active(), opened);
        outbox.heard();
        assert_eq!(outbox.last_active(), opened + Duration::from_secs(40));
    }
}
