//! The outbox: the frames that wait to be written to one socket.

mod backlog;
mod flusher;
pub(crate) mod late;
mod outboxes;
mod outcome;
#[cfg(test)]
mod outcome_tests;
mod pacer;
mod pending_metrics;
mod room;
#[cfg(test)]
mod schedules;
mod shared_frame;
#[cfg(test)]
mod tests;
mod when_full;
mod writer;

use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use pipeline_core::{Deadline, timed::Timeline};
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{self, Instant, Sleep},
};

use self::{
    backlog::{Backlog, CurrentLimits, TooSlow, WriteBatch},
    late::{RECOVERY, is_late},
};
pub(crate) use self::{
    backlog::{Load, OutboxLimits, Outgoing},
    flusher::{FlushSlot, Flusher},
    outboxes::{OutboxBytes, Outboxes},
    outcome::{CountedPush, FetchedFrames},
    pending_metrics::PendingMetrics,
    shared_frame::SharedFrame,
    when_full::{EventKey, FrameKind},
    writer::Writer,
};
pub use self::{
    outcome::{Delivered, PushOutcome},
    when_full::WhenFull,
};
use crate::{protocol::frame::Frame, session::end::SocketEnd, telemetry::SocketMetrics};

/// The maximum number of frames in one write.
const GATHER: usize = 64;

/// How many deadlines in a row may pass at which the system takes bytes of a socket that it has not called writable.
const LOOKS: u8 = 3;

/// The expected number of frames in a write when frames come fast.
const IN_A_WRITE: usize = 16;

/// How many bytes take as long to compress as a small frame takes to handle.
const COMPRESSED_A_UNIT: usize = 512;

/// How many bytes of a frame for one socket cost as much as a small frame.
const BYTES_A_UNIT: usize = 8 << 10;

/// The cost of a frame that waits behind others: it takes memory of its own, and if the outbox is
/// full, an attempt to write.
const WAITING: usize = 4;

/// Which task writes a frame, if no earlier frame waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    /// The task that sends it, at once.
    Inline,
    /// A task that [goes from socket to socket](Flusher), together with later frames.
    Deferred,
    /// The task that sends it, [later](Outbox::write_queued).
    Queued,
}

/// A frame for one socket, ready to be [queued](Outbox::queue).
pub(crate) struct ReadyFrame(Arc<Outgoing>);

/// The outbox of a socket: all frames to it are sent through here, and leave in this order.
///
/// A frame is written at once, by the task that sends it, if no frame waits for the socket, the
/// socket is a plain TCP stream, and the sender asks for [that](WriteMode). Otherwise it waits, and
/// the socket's own task writes it when there is room.
///
/// A client is slow when its socket takes no more, and not when no task has been scheduled to
/// write. So a sender that finds the outbox full first writes the pending frames. Only if the
/// socket takes nothing does [`WhenFull`] decide; when nothing else helps, the client is too slow:
/// its frames are dropped and counted, and the socket is closed. The same happens when the socket
/// takes nothing for too long, however few frames wait.
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Held by the flusher while it writes, for senders that need the result of the write.
    flushing: Mutex<()>,
    limits: OutboxLimits,
    /// The outboxes of the endpoint, among which its memory counts.
    all: Arc<Outboxes>,
    when_full: WhenFull,
    /// How long the client may be behind.
    send_timeout: Duration,
    /// Whether compression was negotiated with the client.
    compresses: bool,
    /// The number of the client's channels: draining counts them, and finds the socket by its
    /// outbox.
    channels: AtomicU32,
    /// What frames to this client have cost of a task's budget, besides that of the messages that
    /// caused them. The client's own tasks pay it before they handle its next message.
    unpaid: AtomicU16,
    /// Notifies senders that wait for room, if the policy is to wait.
    room: Option<Box<Notify>>,
    /// The slot at the flusher, unless only the socket's own task writes.
    flush_slot: Option<FlushSlot>,
    metrics: Arc<SocketMetrics>,
}

/// The deadlines of a client that is behind.
#[derive(Default)]
struct SlowDeadlines {
    /// The deadline of a blocked socket, if there is one.
    blocked_until: Option<Instant>,
    /// The deadline of a full outbox, if there is one.
    full_until: Option<Instant>,
}

/// What the [`Flusher`] does for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushState {
    /// Nothing: senders and the socket's own task write.
    Idle,
    /// The socket is queued, so no task has to be woken for new frames.
    Queued,
    /// The flusher is writing, and no other task may.
    Writing,
}

/// How far the socket is in its life. Frames are accepted while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The socket has to end, for this reason.
    Ending(SocketEnd),
    /// The socket has to end, and its last frame has been sent.
    Finished(SocketEnd),
}

struct State {
    writer: Writer,
    /// The waiting frames. Usually there are none, and most sockets hold no memory for them.
    backlog: Option<Box<Backlog>>,
    /// The socket's task, while it waits.
    task: Option<Waker>,
    flush: FlushState,
    /// Whether it is written to again and again, so it keeps its memory.
    keep_buffer: bool,
    phase: Phase,
    /// How many deadlines in a row have passed at which the system took bytes, without having said before that the
    /// socket is writable.
    looks: u8,
    last_active: Instant,
    last_heard: Instant,
}

impl Outbox {
    pub(crate) fn new(writer: Writer, limits: OutboxLimits, metrics: Arc<SocketMetrics>) -> Self {
        let now = Instant::now();
        let state = State {
            writer,
            backlog: None,
            task: None,
            flush: FlushState::Idle,
            keep_buffer: false,
            phase: Phase::Open,
            looks: 0,
            last_active: now,
            last_heard: now,
        };
        Self {
            state: Mutex::new(state),
            flushing: Mutex::new(()),
            limits,
            all: Arc::new(Outboxes::new(usize::MAX)),
            when_full: WhenFull::default(),
            send_timeout: Duration::MAX,
            compresses: false,
            channels: AtomicU32::new(0),
            unpaid: AtomicU16::new(0),
            room: None,
            flush_slot: None,
            metrics,
        }
    }

    /// Sets the policy of a full outbox.
    pub(crate) fn when_full(mut self, when_full: WhenFull) -> Self {
        self.room = matches!(when_full, WhenFull::Block { .. }).then(Box::default);
        Self { when_full, ..self }
    }

    /// Sets how long the client may be behind. By default there is no limit.
    pub(crate) fn send_timeout(self, send_timeout: Duration) -> Self {
        Self { send_timeout, ..self }
    }

    /// Sets the outboxes among which it counts. By default it counts alone, without a limit.
    pub(crate) fn among(self, all: &Arc<Outboxes>) -> Self {
        Self { all: all.clone(), ..self }
    }

    /// Sets its slot at the flusher, which writes when frames come faster than single writes.
    pub(crate) fn flushed_by(self, slot: FlushSlot) -> Self {
        Self { flush_slot: Some(slot), ..self }
    }

    /// Sets whether compression was negotiated with the client.
    pub(crate) fn compressing(self, compresses: bool) -> Self {
        Self { compresses, ..self }
    }

    /// Whether messages are compressed.
    pub(crate) fn compresses(&self) -> bool {
        self.compresses
    }

    /// Sends a frame that is never dropped. If `timeline` is set, the time from then until the
    /// operating system has taken the frame's last byte is recorded.
    pub(crate) fn send(self: &Arc<Self>, frame: &Frame, timeline: Option<Timeline>) {
        let frame = self.compressed(frame).into_owned();
        self.accept(Outgoing::alone(frame, timeline, FrameKind::Essential));
    }

    /// Makes a frame ready, which is never dropped.
    pub(crate) fn ready(&self, frame: &Frame) -> ReadyFrame {
        let frame = self.compressed(frame).into_owned();
        self.owes(frame.len() / BYTES_A_UNIT);
        ReadyFrame(Arc::new(Outgoing::alone(frame, None, FrameKind::Essential)))
    }

    /// Queues a frame. It is not written, unless the outbox is full.
    ///
    /// The caller, who may hold a lock, [writes](Self::write_queued) after that.
    pub(crate) fn queue(
        self: &Arc<Self>,
        ReadyFrame(outgoing): &ReadyFrame,
        unrecorded: &mut PendingMetrics,
    ) {
        let mut state = self.state.lock();
        if state.waiting().is_some() {
            self.owes(WAITING);
        }
        self.accept_in(state, outgoing, WriteMode::Queued, unrecorded);
    }

    /// Writes the frames that were queued, and records the metrics.
    pub(crate) fn write_queued(&self, mut unrecorded: PendingMetrics) {
        let mut state = self.state.lock();
        if state.is_open() && state.waiting().is_some() && !state.is_flushing() {
            if state.writer.is_shared() {
                self.write_first(&mut state, GATHER, &mut unrecorded);
            }
            // The rest is left to the socket's task.
            if state.waiting().is_some() {
                state.wake();
            }
        }
        drop(state);
        unrecorded.record(&self.metrics);
    }

    /// Sends an event to this socket alone. It may be dropped if the client is behind.
    pub(crate) fn send_event(
        self: &Arc<Self>,
        frame: &Frame,
        key: EventKey,
        timeline: Option<Timeline>,
        push: Option<&Arc<CountedPush>>,
    ) {
        let mut outgoing =
            Outgoing::alone(self.compressed(frame).into_owned(), timeline, FrameKind::Event(key));
        outgoing.counted = push.cloned();
        self.accept(outgoing);
    }

    /// Sends an event that other sockets receive too. It may be dropped if the client is behind.
    ///
    /// The caller, who may hold a lock, records the metrics.
    pub(crate) fn send_shared(
        self: &Arc<Self>,
        frame: &SharedFrame,
        mode: WriteMode,
        unrecorded: &mut PendingMetrics,
    ) {
        // Compression takes too long to hold the lock.
        let outgoing = frame.get(self.compresses);
        self.accept_in(self.state.lock(), outgoing, mode, unrecorded);
    }

    /// Like [`send_shared`](Self::send_shared), and records the metrics.
    pub(crate) fn send_and_record(self: &Arc<Self>, frame: &SharedFrame, mode: WriteMode) {
        let mut unrecorded = PendingMetrics::default();
        self.send_shared(frame, mode, &mut unrecorded);
        unrecorded.record(&self.metrics);
    }

    /// Sends the last frame, behind all waiting frames, and closes the socket. No frame is accepted
    /// after it. The first reason and the first last frame count.
    pub(crate) fn finish(&self, end: SocketEnd, frame: &Frame) {
        let mut state = self.state.lock();
        self.end_in(&mut state, end);
        if let Phase::Ending(end) = state.phase {
            let last = Outgoing::alone(frame.clone(), None, FrameKind::Essential);
            state.backlog(self.limits, 0).push(Arc::new(last));
            state.phase = Phase::Finished(end);
            state.wake();
        }
    }

    /// Closes the socket. The first reason counts.
    pub(crate) fn end(&self, end: SocketEnd) {
        self.end_in(&mut self.state.lock(), end);
    }

    /// Whether the socket is ending or has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended().is_some()
    }

    /// The reason of the socket's end, if it is ending or has ended.
    pub(crate) fn ended(&self) -> Option<SocketEnd> {
        self.state.lock().phase.end()
    }

    /// Records that data was received.
    pub(crate) fn heard(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        (state.last_active, state.last_heard) = (now, now);
    }

    /// When data was last received.
    pub(crate) fn last_heard(&self) -> Instant {
        self.state.lock().last_heard
    }

    /// When data was last received or written.
    pub(crate) fn last_active(&self) -> Instant {
        self.state.lock().last_active
    }

    /// Sets the number of the client's channels.
    pub(crate) fn set_channels(&self, count: usize) {
        self.channels.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The number of the client's channels.
    pub(crate) fn channels(&self) -> usize {
        self.channels.load(Ordering::Relaxed) as usize
    }

    /// The waiting frames.
    pub(crate) fn load(&self) -> Load {
        self.state.lock().backlog.as_ref().map_or_else(Load::default, |backlog| backlog.load())
    }

    /// Writes the waiting frames, for as long as the socket lives. Completes when the socket has to
    /// end, which includes a socket that takes nothing for longer than the client may be behind.
    /// For the socket's task only.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn write(&self) -> SocketEnd {
        // Most sockets are never behind, and have no timer.
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let mut full: Option<Pin<Box<Sleep>>> = None;
        let mut recovers = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(end) = self.poll_write(cx) {
                    return Poll::Ready(end);
                }
                let SlowDeadlines { blocked_until, full_until } = self.watch();
                match full_until {
                    None => full = None,
                    Some(until) => {
                        let timer = full.get_or_insert_with(|| Box::pin(time::sleep_until(until)));
                        if timer.as_mut().poll(cx).is_ready() {
                            // The timer may be set for an earlier deadline: the next iteration checks.
                            timer.as_mut().reset(until);
                            continue;
                        }
                    }
                }
                let Some(until) = blocked_until else {
                    (timer, recovers) = (None, false);
                    return Poll::Pending;
                };
                // The timer is not reset each time the socket takes bytes, but only when it fires:
                // the deadline may have moved since.
                let timer = timer.get_or_insert_with(|| Box::pin(time::sleep_until(until)));
                ready!(timer.as_mut().poll(cx));
                let now = Instant::now();
                if until > now {
                    timer.as_mut().reset(until);
                    recovers = false;
                } else if self.takes_something() {
                    // The socket is writable, and the runtime has not noticed yet.
                } else if !recovers && is_late(until, now) {
                    timer.set(time::sleep(RECOVERY));
                    recovers = true;
                } else {
                    self.close_slow();
                }
            }
        })
        .await
    }

    /// Whether the socket takes some of the waiting bytes now. Asks the system.
    ///
    /// A system says that a socket is writable when a third of its buffer is free, and takes bytes as long as any of it is:
    /// also from a buffer that it has made larger, for a client that reads nothing. So this is no more than
    /// [`LOOKS`] times a sign that the client reads. It writes one frame and not all, so that what a slow client reads in
    /// that time makes room.
    fn takes_something(&self) -> bool {
        let mut unrecorded = PendingMetrics::default();
        let mut state = self.state.lock();
        if state.looks == LOOKS && state.writer.is_shared() {
            return false;
        }
        let takes_something = self.write_first(&mut state, 1, &mut unrecorded);
        state.looks += u8::from(takes_something && state.writer.is_shared());
        drop(state);
        unrecorded.record(&self.metrics);
        takes_something
    }

    /// The deadlines that the socket's task waits for. A passed deadline of a full outbox is
    /// recorded here, for the next sender that finds no room.
    fn watch(&self) -> SlowDeadlines {
        let mut state = self.state.lock();
        let Some(backlog) = state.waiting() else { return SlowDeadlines::default() };
        let blocked_until = backlog.blocked_until(self.send_timeout).and_then(Deadline::instant);
        let full_until = backlog.watch_full(self.send_timeout, Instant::now());
        SlowDeadlines { blocked_until, full_until }
    }

    /// Writes the waiting frames. Completes when the socket has to end. For the socket's task only.
    fn poll_write(&self, cx: &mut Context<'_>) -> Poll<SocketEnd> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        let mut unrecorded = PendingMetrics::default();
        match self.poll_flush(&mut state, cx, &mut unrecorded) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => self.end_in(&mut state, SocketEnd::Lost),
            Poll::Pending if !state.is_flushing() => state.is_blocked(),
            Poll::Pending => {}
        }
        let end = state.phase.end();
        drop(state);
        unrecorded.record(&self.metrics);
        end.map_or(Poll::Pending, Poll::Ready)
    }

    /// Writes the waiting frames to the last byte, then ends the stream. For the socket's task
    /// only.
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        let mut unrecorded = PendingMetrics::default();
        let flushed = self.poll_flush(&mut state, cx, &mut unrecorded);
        if !unrecorded.is_empty() {
            MutexGuard::unlocked(&mut state, || unrecorded.record(&self.metrics));
        }
        ready!(flushed)?;
        state.writer.poll_shutdown(cx)
    }

    /// Shuts down the write half, once everything has been [written](Self::poll_close). For the
    /// socket's task only.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        self.state.lock().writer.end_writing()
    }

    /// Releases the stream, which closes it once its reader is gone too: references to the outbox
    /// do not keep it open. Waiting frames are dropped and counted, and no more are accepted.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock();
        self.end_in(&mut state, SocketEnd::Lost);
        let writer = mem::replace(&mut state.writer, Writer::Gone);
        // Frames that the flusher is writing come back to the backlog first.
        let backlog = if state.is_flushing() { None } else { state.backlog.take() };
        drop(state);
        let dropped = backlog.as_ref().map_or(0, |backlog| backlog.load().frames);
        if dropped > 0 {
            self.metrics.dropped_by_end.increment(dropped as u64);
        }
        drop((writer, backlog));
    }

    /// Takes out the next frames to write: no other task writes until the write is
    /// [finished](Self::finish_write). Returns the stream, and whether the socket has to be
    /// [shrunk](Self::shrink) later. For the [`Flusher`] only.
    fn begin_write(&self, batch: &mut WriteBatch) -> Option<(Arc<TcpStream>, bool)> {
        let mut state = self.state.lock();
        state.flush = FlushState::Idle;
        // A socket that has to end is left to its own task.
        let (Phase::Open, Writer::Tcp(stream)) = (state.phase, &state.writer) else { return None };
        let stream = stream.clone();
        state.waiting()?.begin_write(GATHER, batch);
        state.flush = FlushState::Writing;
        let is_new = !mem::replace(&mut state.keep_buffer, true);
        Some((stream, is_new))
    }

    /// Takes back the frames that have not been written, with the result of the write. Returns
    /// whether to visit the socket again.
    fn finish_write(
        &self,
        batch: &mut WriteBatch,
        written: io::Result<usize>,
        now: Instant,
        unrecorded: &mut PendingMetrics,
    ) -> bool {
        let limits = self.limits();
        let mut state = self.state.lock();
        state.flush = FlushState::Idle;
        if let Ok(count) = written {
            batch.wrote(count);
        }
        if let Some(backlog) = &mut state.backlog {
            backlog.finish_write(batch);
            if let Ok(1..) = written {
                backlog.has_moved(limits);
            }
        }
        if matches!(state.writer, Writer::Gone) {
            let backlog = state.backlog.take();
            drop(state);
            unrecorded.dropped_by_end += backlog.map_or(0, |backlog| backlog.load().frames);
            return false;
        }
        match written {
            Ok(1..) => {
                (state.last_active, state.looks) = (now, 0);
                if state.waiting().is_some() && state.is_open() {
                    state.flush = FlushState::Queued;
                }
            }
            // The socket's task waits until there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => state.wake(),
            Ok(0) | Err(_) => self.end_in(&mut state, SocketEnd::Lost),
        }
        if !state.is_open() {
            // The socket's task could not write meanwhile.
            state.wake();
        }
        if !state.is_full(limits) {
            self.notify_room();
        }
        state.flush == FlushState::Queued
    }

    /// Records the frames that this write completed.
    fn complete(&self, batch: &mut WriteBatch, now: Instant) {
        self.metrics.frames_out.increment(batch.done() as u64);
        batch.complete(|timeline| self.delivered(timeline, now));
    }

    /// Frees the memory that was kept while frames came fast. For the [`Flusher`] only.
    fn shrink(&self) {
        let mut state = self.state.lock();
        state.keep_buffer = false;
        state.free_backlog();
    }

    /// Takes all waiting frames, once there are some: for a long-polling client. The frames then
    /// count as delivered.
    pub(crate) fn poll_fetch(&self, cx: &mut Context<'_>) -> Poll<FetchedFrames> {
        let mut state = self.state.lock();
        state.remember(cx.waker());
        let Some(backlog) = state.backlog.take_if(|backlog| !backlog.is_empty()) else {
            return Poll::Pending;
        };
        let now = Instant::now();
        state.last_active = now;
        drop(state);
        self.notify_room();
        self.metrics.frames_out.increment(backlog.load().frames as u64);
        Poll::Ready(backlog.take(|timeline| self.delivered(timeline, now)))
    }

    /// Counts bytes of frames that were [fetched](Self::poll_fetch), until they have been written.
    pub(crate) fn count_outside(&self, bytes: usize) -> OutboxBytes {
        OutboxBytes::new(&self.all, bytes)
    }

    /// A frame for this socket alone, compressed if that was negotiated and makes it smaller.
    fn compressed<'a>(&self, frame: &'a Frame) -> Cow<'a, Frame> {
        if !self.compresses {
            return Cow::Borrowed(frame);
        }
        self.owes(frame.len() / COMPRESSED_A_UNIT);
        frame.deflated().map_or(Cow::Borrowed(frame), Cow::Owned)
    }

    fn owes(&self, units: usize) {
        if units > 0 {
            let units = u16::try_from(units).unwrap_or(u16::MAX);
            let add = |unpaid: u16| Some(unpaid.saturating_add(units));
            let _ = self.unpaid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// What frames to this client have cost of a task's budget since the last call.
    pub(crate) fn take_unpaid(&self) -> u64 {
        // Usually nothing, and a load is cheaper than a swap.
        match self.unpaid.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.unpaid.swap(0, Ordering::Relaxed).into(),
        }
    }

    fn accept(self: &Arc<Self>, outgoing: Outgoing) {
        let (length, outgoing) = (outgoing.frame.len(), Arc::new(outgoing));
        let mut unrecorded = PendingMetrics::default();
        let mut state = self.state.lock();
        let waits = state.waiting().is_some();
        self.owes(length / BYTES_A_UNIT + if waits { WAITING } else { 0 });
        self.accept_in(state, &outgoing, WriteMode::Inline, &mut unrecorded);
        unrecorded.record(&self.metrics);
    }

    /// Writes a frame if no frame waits, or queues it.
    fn accept_in(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        outgoing: &Arc<Outgoing>,
        mode: WriteMode,
        unrecorded: &mut PendingMetrics,
    ) {
        loop {
            if !state.is_open() {
                return;
            }
            let Some(backlog) = state.waiting() else { break };
            let limits = self.limits();
            if !backlog.has_room_for(outgoing, limits)
                && self.write_first(&mut state, GATHER, unrecorded)
            {
                continue;
            }
            let Some(backlog) = state.waiting() else { break };
            match backlog.admit(outgoing.clone(), limits, self.when_full) {
                Ok(dropped) => {
                    backlog.count_in(&self.all);
                    unrecorded.dropped(dropped);
                }
                Err(TooSlow) => self.drop_slow(&mut state, 1, unrecorded),
            }
            return;
        }
        if mode == WriteMode::Queued {
            let backlog = state.backlog(self.limits, 0);
            backlog.push(outgoing.clone());
            backlog.count_in(&self.all);
            return;
        }
        if let (WriteMode::Deferred, Some(slot), true) =
            (mode, &self.flush_slot, state.writer.is_shared())
        {
            let backlog = state.backlog(self.limits, IN_A_WRITE);
            backlog.push(outgoing.clone());
            backlog.count_in(&self.all);
            if state.flush == FlushState::Idle {
                state.flush = FlushState::Queued;
                drop(state);
                slot.enqueue(self);
            }
            return;
        }
        let begun = self.metrics.write_time.begin();
        let written = match mode {
            WriteMode::Inline => state.writer.write_now(outgoing.bytes()),
            WriteMode::Deferred | WriteMode::Queued => Ok(0),
        };
        let written = match written {
            Ok(count) if count == outgoing.bytes().len() => {
                let now = Instant::now();
                (state.last_active, state.looks) = (now, 0);
                drop(state);
                unrecorded.wrote(begun, now);
                unrecorded.frame(outgoing, now);
                return;
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.end_in(&mut state, SocketEnd::Lost),
        };
        let backlog = state.backlog(self.limits, 0);
        backlog.push(outgoing.clone());
        backlog.count_in(&self.all);
        backlog.wrote(written, |_| {});
        state.wake();
    }

    /// Writes some of the waiting frames, `most` of them, for a sender that finds no room. Returns whether to check
    /// for room again, which is false only if the socket takes nothing. The lock may have been
    /// released meanwhile.
    fn write_first(
        &self,
        state: &mut MutexGuard<'_, State>,
        most: usize,
        unrecorded: &mut PendingMetrics,
    ) -> bool {
        if state.is_flushing() {
            // The flusher is writing. It holds this lock for the time of one write.
            MutexGuard::unlocked(state, || drop(self.flushing.lock()));
            return true;
        }
        let State { writer, backlog, task, .. } = &mut **state;
        let Some(backlog) = backlog.as_ref().filter(|backlog| !backlog.is_empty()) else {
            return true;
        };
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = backlog.slices(&mut slices).min(most);
        let begun = self.metrics.write_time.begin();
        match writer.write_for(task.as_ref(), &slices[..count]) {
            Ok(written @ 1..) => self.wrote(state, written, begun, unrecorded),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                state.is_blocked();
                state.wake();
                return false;
            }
            Ok(0) | Err(_) => self.end_in(state, SocketEnd::Lost),
        }
        true
    }

    /// Closes the socket because its client is too slow. The waiting frames are dropped, and `more`
    /// frames with them.
    fn drop_slow(&self, state: &mut State, more: usize, unrecorded: &mut PendingMetrics) {
        unrecorded.dropped_by_overflow += more + state.drop_waiting();
        unrecorded.closed_slow += 1;
        self.end_in(state, SocketEnd::Overflow);
    }

    fn end_in(&self, state: &mut State, end: SocketEnd) {
        if state.is_open() {
            state.phase = Phase::Ending(end);
            state.wake();
            self.notify_room();
        }
    }

    fn notify_room(&self) {
        if let Some(room) = &self.room {
            room.notify_waiters();
        }
    }

    fn poll_flush(
        &self,
        state: &mut State,
        cx: &mut Context<'_>,
        unrecorded: &mut PendingMetrics,
    ) -> Poll<io::Result<()>> {
        while let Some(backlog) = state.backlog.as_ref().filter(|backlog| !backlog.is_empty()) {
            if state.is_flushing() {
                // The flusher wakes the task if there is work left.
                return Poll::Pending;
            }
            let mut slices = [IoSlice::new(&[]); GATHER];
            let count = backlog.slices(&mut slices);
            let begun = self.metrics.write_time.begin();
            let written = ready!(state.writer.poll_write(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.looks = 0;
            self.wrote(state, written, begun, unrecorded);
        }
        state.writer.poll_flush(cx)
    }

    /// Removes written bytes from the backlog.
    fn wrote(
        &self,
        state: &mut State,
        written: usize,
        begun: Option<Instant>,
        unrecorded: &mut PendingMetrics,
    ) {
        let Some(backlog) = &mut state.backlog else { return };
        let now = Instant::now();
        state.last_active = now;
        let limits = self.limits();
        unrecorded.wrote(begun, now);
        backlog.wrote(written, |outgoing| unrecorded.frame(&outgoing, now));
        backlog.has_moved(limits);
        let is_full = backlog.is_full(limits);
        state.free_backlog();
        if !is_full {
            self.notify_room();
        }
    }

    /// The limits at this moment: narrower while the outboxes of the endpoint together hold too
    /// much.
    fn limits(&self) -> CurrentLimits {
        let limits = CurrentLimits::from(self.limits);
        if self.all.are_full() { limits.of_share() } else { limits }
    }

    fn delivered(&self, timeline: Option<&Timeline>, now: Instant) {
        if let Some(timeline) = timeline {
            let (written, delivered) = (timeline.write_time(now), timeline.total_time(now));
            self.metrics.push_times.record_write(written, delivered, timeline.trace());
        }
    }
}

impl Phase {
    /// The reason of the socket's end, if it has to end.
    fn end(self) -> Option<SocketEnd> {
        match self {
            Self::Open => None,
            Self::Ending(end) | Self::Finished(end) => Some(end),
        }
    }
}

impl State {
    /// Whether frames are still accepted.
    fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the flusher is writing.
    fn is_flushing(&self) -> bool {
        self.flush == FlushState::Writing
    }

    /// Frees the backlog of a socket that has caught up, unless it will be needed again soon.
    fn free_backlog(&mut self) {
        if !self.keep_buffer && self.waiting().is_none() {
            self.backlog = None;
        }
    }

    /// The backlog, created if there is none.
    fn backlog(&mut self, limits: OutboxLimits, frames: usize) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| Box::new(Backlog::new(limits, frames)))
    }

    /// Records that the socket is blocked now. Unknown for a long-polling client.
    fn is_blocked(&mut self) {
        if matches!(self.writer, Writer::Fetched) {
            return;
        }
        if let Some(backlog) = self.waiting() {
            backlog.is_blocked(Instant::now());
        }
    }

    /// Whether another frame may have to wait for room.
    fn is_full(&self, limits: CurrentLimits) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.is_full(limits))
    }

    /// The waiting frames, if there are any.
    fn waiting(&mut self) -> Option<&mut Backlog> {
        self.backlog.as_deref_mut().filter(|backlog| !backlog.is_empty())
    }

    /// Drops the waiting frames, except one that has been partly written. Returns their number.
    fn drop_waiting(&mut self) -> usize {
        let Some(backlog) = self.waiting() else { return 0 };
        let dropped = backlog.clear();
        self.free_backlog();
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
