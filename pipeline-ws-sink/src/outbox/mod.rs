//! What waits to be written to one socket.

mod backlog;
mod kind;
mod room;
mod shared_frame;
#[cfg(test)]
mod tests;
mod when_full;
mod writer;

use std::{
    borrow::Cow,
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

use self::backlog::{Backlog, Dropped, Outgoing, TooSlow};
pub use self::when_full::WhenFull;
pub(crate) use self::{
    backlog::OutboxLimits,
    kind::{EventKey, Kind},
    shared_frame::SharedFrame,
    writer::Writer,
};
use crate::{end::SocketEnd, protocol::frame::Frame, telemetry::SocketMetrics};

/// How many frames go into one write.
const GATHER: usize = 64;

/// Who writes a frame for which nothing has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The task that sends it, at once.
    Direct,
    /// The socket's task, together with what comes meanwhile.
    Queued,
}

/// The one way out to a socket: whatever is sent through here leaves in this order.
///
/// A frame is written at once, by the task that sends it, when nothing waits for the socket, the
/// socket is a plain TCP stream, and the sender wants it [so](Way). Otherwise it waits, and the socket's own task writes it when there
/// is room. What happens when too much waits is decided by [`WhenFull`]; when nothing else helps, the
/// client is too slow: what waits is dropped and counted, and the socket is closed.
pub(crate) struct Outbox {
    state: Mutex<State>,
    limits: OutboxLimits,
    when_full: WhenFull,
    /// Whether the client has agreed to compressed messages.
    compresses: bool,
    /// How many channels the client has: draining counts them, and finds the socket by its outbox.
    channels: AtomicUsize,
    /// Those who wait for room, where senders do.
    room: Option<Box<Notify>>,
    metrics: Arc<SocketMetrics>,
}

struct State {
    writer: Writer,
    /// What waits. Nothing does for most sockets most of the time, and they hold no memory for it.
    backlog: Option<Box<Backlog>>,
    /// The socket's task, while it waits.
    task: Option<Waker>,
    /// Why the socket has to end, once it has to.
    end: Option<SocketEnd>,
    /// The last frame has been sent; nothing goes behind it.
    finished: bool,
    last_active: Instant,
}

impl Outbox {
    pub(crate) fn new(writer: Writer, limits: OutboxLimits, metrics: Arc<SocketMetrics>) -> Self {
        let state = State {
            writer,
            backlog: None,
            task: None,
            end: None,
            finished: false,
            last_active: Instant::now(),
        };
        Self {
            state: Mutex::new(state),
            limits,
            when_full: WhenFull::default(),
            compresses: false,
            channels: AtomicUsize::new(0),
            room: None,
            metrics,
        }
    }

    /// Sets what happens when too much waits.
    pub(crate) fn when_full(mut self, when_full: WhenFull) -> Self {
        self.room = matches!(when_full, WhenFull::Wait { .. }).then(Box::default);
        Self { when_full, ..self }
    }

    /// Sets whether the client has agreed to compressed messages.
    pub(crate) fn compressing(self, compresses: bool) -> Self {
        Self { compresses, ..self }
    }

    /// Whether messages are compressed on their way out.
    pub(crate) fn compresses(&self) -> bool {
        self.compresses
    }

    /// Sends a frame that is never dropped. If `since` is given, the time from then until the
    /// operating system has taken the frame's last byte is recorded.
    pub(crate) fn send(&self, frame: &Frame, since: Option<Instant>) {
        self.accept(&self.compressed(frame), Kind::Essential, since);
    }

    /// Sends an event to this socket alone. It may be dropped if the client is behind.
    pub(crate) fn send_event(&self, frame: &Frame, key: EventKey, since: Option<Instant>) {
        self.accept(&self.compressed(frame), Kind::Event(key), since);
    }

    /// Sends an event that others get too. It may be dropped if the client is behind.
    pub(crate) fn send_shared(&self, frame: &SharedFrame, since: Option<Instant>, way: Way) {
        let (plain_or_deflated, kind) = (frame.get(self.compresses), Kind::Event(frame.key()));
        self.accept_in(self.state.lock(), plain_or_deflated, kind, since, way);
    }

    /// Sends the last frame. It goes behind what waits, and nothing goes behind it.
    pub(crate) fn finish(&self, frame: &Frame) {
        let mut state = self.state.lock();
        if !state.finished {
            let last = Outgoing { frame: frame.clone(), since: None, kind: Kind::Essential };
            state.backlog.get_or_insert_default().push(last);
            state.finished = true;
            state.wake();
            self.tell_of_room();
        }
    }

    /// Has the socket closed. The first reason counts.
    pub(crate) fn end(&self, end: SocketEnd) {
        self.end_in(&mut self.state.lock(), end);
    }

    /// Takes note that something was received.
    pub(crate) fn heard(&self) {
        self.state.lock().last_active = Instant::now();
    }

    /// When something was last received or written.
    pub(crate) fn last_active(&self) -> Instant {
        self.state.lock().last_active
    }

    /// Takes note of how many channels the client has.
    pub(crate) fn set_channels(&self, count: usize) {
        self.channels.store(count, Ordering::Relaxed);
    }

    /// How many channels the client has.
    pub(crate) fn channels(&self) -> usize {
        self.channels.load(Ordering::Relaxed)
    }

    /// Writes what waits, for as long as the socket lives. Completes when the socket has to end. For
    /// the socket's task only.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<SocketEnd> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        if let Poll::Ready(Err(_)) = self.poll_flush(&mut state, cx) {
            self.end_in(&mut state, SocketEnd::Lost);
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
        state.writer.poll_shutdown(cx)
    }

    /// Takes all that waits, once something does: for a client that fetches its messages. What it
    /// carries has then been delivered.
    #[cfg_attr(not(test), expect(dead_code, reason = "for long polling, which is yet to come"))]
    pub(crate) fn poll_fetch(&self, cx: &mut Context<'_>) -> Poll<Vec<Frame>> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        let Some(backlog) = state.backlog.take() else { return Poll::Pending };
        let now = Instant::now();
        state.last_active = now;
        drop(state);
        self.tell_of_room();
        Poll::Ready(backlog.take(|since| self.delivered(since, now)))
    }

    /// A frame for this socket alone, compressed if that is agreed and worth it.
    fn compressed<'a>(&self, frame: &'a Frame) -> Cow<'a, Frame> {
        let deflated = if self.compresses { frame.deflated() } else { None };
        deflated.map_or(Cow::Borrowed(frame), Cow::Owned)
    }

    fn accept(&self, frame: &Frame, kind: Kind, since: Option<Instant>) {
        self.accept_in(self.state.lock(), frame, kind, since, Way::Direct);
    }

    /// Writes a frame if nothing waits, or has it wait.
    fn accept_in(
        &self,
        mut state: MutexGuard<'_, State>,
        frame: &Frame,
        kind: Kind,
        since: Option<Instant>,
        way: Way,
    ) {
        if !state.is_open() {
            return;
        }
        if let Some(backlog) = &mut state.backlog {
            // The socket's task is on its way already.
            let outgoing = Outgoing { frame: frame.clone(), since, kind };
            match backlog.admit(outgoing, self.limits, self.when_full) {
                Ok(dropped) => self.count(dropped),
                Err(TooSlow) => self.too_slow(&mut state, 1),
            }
            return;
        }
        let written = match way {
            Way::Direct => state.writer.write_now(frame.bytes()),
            Way::Queued => Ok(0),
        };
        let written = match written {
            Ok(count) if count == frame.len() => {
                let now = Instant::now();
                state.last_active = now;
                drop(state);
                self.delivered(since, now);
                return;
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.end_in(&mut state, SocketEnd::Lost),
        };
        let backlog = state.backlog.insert(Box::default());
        backlog.push(Outgoing { frame: frame.clone(), since, kind });
        backlog.wrote(written, |_| {});
        state.wake();
    }

    /// Closes the socket because its client is too slow. What waits is dropped, and so many frames
    /// more.
    fn too_slow(&self, state: &mut State, more: usize) {
        let dropped = more + state.drop_waiting();
        self.metrics.dropped_by_overflow.increment(dropped as u64);
        self.metrics.closed_slow.increment(1);
        self.end_in(state, SocketEnd::Overflow);
    }

    fn end_in(&self, state: &mut State, end: SocketEnd) {
        if state.end.is_none() {
            state.end = Some(end);
            state.wake();
            self.tell_of_room();
        }
    }

    fn tell_of_room(&self) {
        if let Some(room) = &self.room {
            room.notify_waiters();
        }
    }

    fn poll_flush(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(backlog) = &mut state.backlog {
            let mut slices = [IoSlice::new(&[]); GATHER];
            let count = backlog.slices(&mut slices);
            let written = ready!(state.writer.poll_write(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let now = Instant::now();
            state.last_active = now;
            let was_full = backlog.is_full(self.limits);
            backlog.wrote(written, |since| self.delivered(since, now));
            let is_full = backlog.is_full(self.limits);
            if backlog.is_empty() {
                // A socket that has caught up holds no memory for having been behind.
                state.backlog = None;
            }
            if was_full && !is_full {
                self.tell_of_room();
            }
        }
        state.writer.poll_flush(cx)
    }

    fn delivered(&self, since: Option<Instant>, now: Instant) {
        if let Some(since) = since {
            let milliseconds = now.saturating_duration_since(since).as_secs_f64() * 1e3;
            self.metrics.push_delivered.record(milliseconds);
        }
    }

    fn count(&self, dropped: Dropped) {
        if !dropped.is_none() {
            self.metrics.dropped_oldest.increment(dropped.oldest as u64);
            self.metrics.dropped_newest.increment(dropped.newest as u64);
            self.metrics.dropped_superseded.increment(dropped.superseded as u64);
        }
    }
}

impl State {
    /// Whether frames are still taken.
    fn is_open(&self) -> bool {
        !self.finished && self.end.is_none()
    }

    /// Drops what waits, but for a frame that has been written in part. Returns how many frames.
    fn drop_waiting(&mut self) -> usize {
        let Some(backlog) = &mut self.backlog else { return 0 };
        let dropped = backlog.clear();
        if backlog.is_empty() {
            self.backlog = None;
        }
        dropped
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
}
