//! Waiting for room in an outbox.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use parking_lot::MutexGuard;
use pipeline_core::Deadline;
use tokio::time::Instant;

use super::{
    CurrentLimits, GATHER, Outbox, PendingMetrics, SharedFrame, State, WhenFull, WriteMode,
    late::{RECOVERY, is_late},
};

/// There is no room, and the sender is to wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl Outbox {
    /// Sends an event that other sockets receive too, unless the sender is to [wait](Self::room)
    /// for room first: then nothing is sent. For senders that can wait; with another policy, it is
    /// the same as [`send_shared`](Self::send_shared).
    pub(crate) fn offer_shared(
        self: &Arc<Self>,
        frame: &SharedFrame,
        mode: WriteMode,
        unrecorded: &mut PendingMetrics,
    ) -> Result<(), NoRoom> {
        let outgoing = frame.get(self.compresses);
        let mut state = self.state.lock();
        if !self.makes_room(&mut state, unrecorded) {
            return Err(NoRoom);
        }
        self.accept_in(state, outgoing, mode, unrecorded);
        Ok(())
    }

    /// Like [`offer_shared`](Self::offer_shared), and records the metrics.
    pub(crate) fn offer_and_record(
        self: &Arc<Self>,
        frame: &SharedFrame,
        mode: WriteMode,
    ) -> Result<(), NoRoom> {
        let mut unrecorded = PendingMetrics::default();
        let offered = self.offer_shared(frame, mode, &mut unrecorded);
        unrecorded.record(&self.metrics);
        offered
    }

    /// How long a sender waits for room, if the policy is to wait.
    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        match self.when_full {
            WhenFull::Block { timeout } => Some(timeout),
            _ => None,
        }
    }

    /// Waits until there is room, or until the socket ends. Returns at once if the policy is not to
    /// wait.
    ///
    /// Others may take the room before the caller does: see [`offer_shared`](Self::offer_shared).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        let Some(room) = &self.room else { return };
        loop {
            // Registered before the check, so that no notification is missed. There is also more
            // room as soon as the outboxes of the endpoint are no longer full together.
            let (notified, widened) = (room.notified(), self.all.room());
            if self.state.lock().takes_more(self.wait_limits()) {
                return;
            }
            tokio::select! {
                () = notified => {}
                () = widened => {}
            }
        }
    }

    /// Waits for room as a sender does, or until the client has been too slow for too long: then
    /// the socket is closed. Returns at once if the policy is not to wait.
    pub(crate) async fn wait_for_room(&self) {
        let Some(limit) = self.wait_limit() else { return };
        let has_room = || {
            let mut unrecorded = PendingMetrics::default();
            let has_room = self.makes_room(&mut self.state.lock(), &mut unrecorded);
            unrecorded.record(&self.metrics);
            has_room
        };
        if !has_room() {
            let deadline = Deadline::after(Instant::now(), limit).min(self.full_until());
            self.or_close_slow(deadline, &mut None, self.room(), has_room).await;
        }
    }

    /// Waits for an operation that a slow client delays, until a deadline at most. Then it is tried
    /// once more, and if that fails, the client is too slow and the socket is closed.
    ///
    /// A process that was suspended notices the deadline before it has seen what the client has
    /// taken meanwhile, and waits a little longer: until `recovery`, which is set then. A sender
    /// that waits for several clients in turn passes the same `recovery` for all of them.
    pub(crate) async fn or_close_slow(
        &self,
        deadline: Deadline,
        recovery: &mut Option<Deadline>,
        waiting: impl Future<Output = ()>,
        once_more: impl Fn() -> bool,
    ) {
        let begun = Instant::now();
        let mut deadline = recovery.map_or(deadline, |until| deadline.max(until));
        let mut waiting = pin!(waiting);
        loop {
            let has_room = tokio::select! {
                biased;
                () = &mut waiting => true,
                () = deadline.passed() => once_more(),
            };
            let now = Instant::now();
            // A deadline that had passed before the wait says nothing about the process.
            let was_stopped = deadline.instant().is_some_and(|at| is_late(at.max(begun), now));
            if was_stopped {
                deadline = Deadline::after(now, RECOVERY);
                *recovery = Some(deadline);
            }
            match (has_room, &recovery) {
                (true, None) => return,
                (true, Some(_)) => return self.is_full_anew(now),
                (false, _) if was_stopped => {}
                (false, _) => return self.close_slow(),
            }
        }
    }

    /// The process was suspended while there was no room. The client's time to catch up starts now.
    fn is_full_anew(&self, now: Instant) {
        if let Some(backlog) = &mut self.state.lock().backlog {
            backlog.is_full_anew(now);
        }
    }

    /// The deadline for this client over all senders: by then half of its outbox has to be free.
    pub(crate) fn full_until(&self) -> Deadline {
        let mut state = self.state.lock();
        let Some(backlog) = &mut state.backlog else { return Deadline::NEVER };
        backlog.full_until(self.send_timeout, Instant::now())
    }

    /// Closes the socket because its client has been too slow for too long.
    pub(crate) fn close_slow(&self) {
        let mut unrecorded = PendingMetrics::default();
        let mut state = self.state.lock();
        if state.is_open() {
            self.drop_slow(&mut state, 0, &mut unrecorded);
        }
        drop(state);
        unrecorded.record(&self.metrics);
    }

    /// Whether there is room after writing the waiting frames.
    fn makes_room(
        &self,
        state: &mut MutexGuard<'_, State>,
        unrecorded: &mut PendingMetrics,
    ) -> bool {
        while !state.takes_more(self.wait_limits()) {
            if !self.write_first(state, GATHER, unrecorded) {
                if let Some(backlog) = state.waiting() {
                    backlog.found_full(Instant::now());
                }
                return false;
            }
        }
        true
    }

    /// The limits that apply to senders that wait, if the policy is to wait.
    fn wait_limits(&self) -> Option<CurrentLimits> {
        self.room.is_some().then(|| self.limits())
    }
}

impl State {
    /// Whether a sender need not wait: there is room, or no more frames are accepted.
    fn takes_more(&self, limits: Option<CurrentLimits>) -> bool {
        match (&self.backlog, limits) {
            (Some(backlog), Some(limits)) if self.is_open() => {
                backlog.is_empty() || !backlog.is_full(limits)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use pipeline_test_support::{PATIENCE, Recorded, settle};
    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        time::{advance, timeout},
    };

    use super::{
        super::{OutboxLimits, Writer},
        *,
    };
    use crate::{
        outbox::EventKey, protocol::frame::Frame, session::end::SocketEnd, telemetry::SocketMetrics,
    };

    const LIMITS: OutboxLimits = OutboxLimits { frames: 2, bytes: 1000 };

    /// An outbox whose client has room for one frame of [`news`] in transit, and two that wait.
    fn outbox(when_full: WhenFull) -> (Arc<Outbox>, DuplexStream, Recorded) {
        let (telemetry, recorded) = Recorded::new();
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        let (ours, theirs) = duplex(12);
        let outbox = Outbox::new(Writer::Task(Box::pin(ours)), LIMITS, metrics);
        (Arc::new(outbox.when_full(when_full)), theirs, recorded)
    }

    /// A frame of 12 bytes.
    fn news() -> SharedFrame {
        let write = |out: &mut Vec<u8>| {
            out.extend([b'x'; 10]);
            Ok::<_, ()>(())
        };
        SharedFrame::new(Frame::text(write).unwrap(), EventKey::new("t", "e"))
    }

    /// Polls the socket's task.
    fn turn(outbox: &Outbox) {
        let waker = futures::task::noop_waker();
        let _ = outbox.poll_write(&mut Context::from_waker(&waker));
    }

    fn end(outbox: &Outbox) -> Option<SocketEnd> {
        outbox.ended()
    }

    #[tokio::test]
    async fn a_waiting_sender_gets_room_when_a_frame_is_written() {
        let (outbox, mut client, recorded) = outbox(WhenFull::block());
        assert_eq!(outbox.wait_limit(), Some(Duration::from_secs(5)));
        for _ in 0..3 {
            outbox.offer_and_record(&news(), WriteMode::Inline).unwrap();
        }
        assert_eq!(outbox.offer_and_record(&news(), WriteMode::Inline), Err(NoRoom));
        let sent = Arc::new(parking_lot::Mutex::new(0));
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (outbox, sent) = (outbox.clone(), sent.clone());
                tokio::spawn(async move {
                    while outbox.offer_and_record(&news(), WriteMode::Inline).is_err() {
                        outbox.room().await;
                    }
                    *sent.lock() += 1;
                })
            })
            .collect();
        // A cancelled waiter does not take the place of another.
        let gone = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.room().await }
        });
        settle().await;
        gone.abort();
        settle().await;
        assert_eq!(*sent.lock(), 0);
        for round in 1..=3 {
            client.read_exact(&mut [0; 12]).await.unwrap();
            turn(&outbox);
            settle().await;
            assert_eq!(*sent.lock(), round, "as many as there was room for");
        }
        for sender in senders {
            timeout(PATIENCE, sender).await.unwrap().unwrap();
        }
        assert_eq!(end(&outbox), None);
        assert!(recorded.counters("socket.frames_dropped").is_empty());
    }

    #[tokio::test]
    async fn a_waiting_sender_is_notified_when_the_socket_ends() {
        for close in [
            |outbox: &Outbox| outbox.end(SocketEnd::Lost),
            |outbox: &Outbox| outbox.finish(SocketEnd::Disconnected, &Frame::close(1001)),
            |outbox: &Outbox| outbox.close_slow(),
        ] {
            let (outbox, _client, _) = outbox(WhenFull::block());
            (0..2).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
            let waiting = tokio::spawn({
                let outbox = outbox.clone();
                async move { outbox.room().await }
            });
            settle().await;
            assert!(!waiting.is_finished());
            close(&outbox);
            timeout(PATIENCE, waiting).await.unwrap().unwrap();
            assert_eq!(
                outbox.offer_and_record(&news(), WriteMode::Inline),
                Ok(()),
                "the frame is discarded"
            );
        }
    }

    #[tokio::test]
    async fn a_sender_that_cannot_wait_may_send_twice_as_much() {
        let (outbox, _client, recorded) = outbox(WhenFull::block());
        // One frame is in transit.
        (0..5).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
        assert_eq!(end(&outbox), None);
        outbox.send_and_record(&news(), WriteMode::Inline);
        assert_eq!(end(&outbox), Some(SocketEnd::Overflow));
        let dropped = recorded.counters("socket.frames_dropped");
        assert_eq!(dropped, [("reason=overflow".to_owned(), 5)]);
        assert_eq!(recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
    }

    #[tokio::test]
    async fn a_socket_that_is_closed_as_slow_is_counted_once() {
        let (outbox, _client, recorded) = outbox(WhenFull::block());
        (0..4).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
        outbox.close_slow();
        outbox.close_slow();
        assert_eq!(end(&outbox), Some(SocketEnd::Overflow));
        assert_eq!(recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
        let dropped = recorded.counters("socket.frames_dropped");
        assert_eq!(dropped, [("reason=overflow".to_owned(), 3)]);
    }

    #[tokio::test]
    async fn an_empty_outbox_accepts_a_frame_although_the_limit_is_zero() {
        let metrics =
            Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
        let (ours, _theirs) = duplex(12);
        let limits = OutboxLimits { frames: 0, bytes: 0 };
        let outbox = Outbox::new(Writer::Task(Box::pin(ours)), limits, metrics);
        let outbox = Arc::new(outbox.when_full(WhenFull::block()));
        // The previous frame has been written, and the memory of the backlog is kept.
        outbox.state.lock().keep_buffer = true;
        for _ in 0..2 {
            outbox.offer_and_record(&news(), WriteMode::Inline).unwrap();
        }
        assert_eq!(outbox.offer_and_record(&news(), WriteMode::Inline), Err(NoRoom));
    }

    /// A task that waits for room for five seconds, and then has the socket closed.
    async fn waiting(outbox: &Arc<Outbox>) -> tokio::task::JoinHandle<()> {
        (0..3).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
        let outbox = outbox.clone();
        let waiting = tokio::spawn(async move { outbox.wait_for_room().await });
        settle().await;
        assert!(!waiting.is_finished());
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_read_is_not_closed_because_its_task_was_not_polled() {
        let (outbox, mut client, _) = outbox(WhenFull::block());
        let waiting = waiting(&outbox).await;
        client.read_exact(&mut [0; 12]).await.unwrap();
        advance(Duration::from_secs(5)).await;
        waiting.await.unwrap();
        assert_eq!(end(&outbox), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_process_gives_clients_time_to_read() {
        for reads in [true, false] {
            let (outbox, mut client, _) = outbox(WhenFull::block());
            let waiting = waiting(&outbox).await;
            advance(Duration::from_secs(60)).await;
            settle().await;
            assert!(!waiting.is_finished());
            if reads {
                client.read_exact(&mut [0; 12]).await.unwrap();
            }
            waiting.await.unwrap();
            assert_eq!(end(&outbox), (!reads).then_some(SocketEnd::Overflow));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_was_full_during_a_suspension_has_to_catch_up_from_then_on() {
        let metrics =
            Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
        let (ours, mut client) = duplex(12);
        let limits = OutboxLimits { frames: 4, bytes: 1000 };
        let outbox = Outbox::new(Writer::Task(Box::pin(ours)), limits, metrics);
        let outbox = outbox.when_full(WhenFull::block()).send_timeout(Duration::from_secs(30));
        let outbox = Arc::new(outbox);
        (0..5).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
        let wait = || {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.wait_for_room().await })
        };
        let waiting = wait();
        settle().await;
        assert!(!waiting.is_finished());
        client.read_exact(&mut [0; 12]).await.unwrap();
        advance(Duration::from_secs(60)).await;
        waiting.await.unwrap();
        // There is room for one frame, and less than half is free.
        outbox.offer_and_record(&news(), WriteMode::Inline).unwrap();
        let waiting = wait();
        settle().await;
        assert!(!waiting.is_finished());
        client.read_exact(&mut [0; 12]).await.unwrap();
        waiting.await.unwrap();
        assert_eq!(end(&outbox), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspension_is_noticed_by_the_sender_if_it_runs_before_the_task_of_the_socket() {
        let (outbox, mut client, _) = outbox(WhenFull::block());
        let outbox = Arc::into_inner(outbox).unwrap().send_timeout(Duration::from_secs(30));
        let outbox = Arc::new(outbox);
        while outbox.offer_and_record(&news(), WriteMode::Inline).is_ok() {}
        advance(Duration::from_secs(60)).await;
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.wait_for_room().await }
        });
        settle().await;
        assert!(!waiting.is_finished());
        client.read_exact(&mut [0; 12]).await.unwrap();
        waiting.await.unwrap();
        assert_eq!(end(&outbox), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_takes_bytes_at_its_deadline_is_not_closed() {
        for (stopped, reads) in [(false, true), (true, true), (true, false)] {
            let (outbox, mut client, _) = outbox(WhenFull::block());
            let outbox = Arc::into_inner(outbox).unwrap().send_timeout(Duration::from_secs(30));
            let outbox = Arc::new(outbox);
            (0..3).for_each(|_| outbox.send_and_record(&news(), WriteMode::Inline));
            let writing = tokio::spawn({
                let outbox = outbox.clone();
                async move { outbox.write().await }
            });
            settle().await;
            advance(Duration::from_secs(if stopped { 60 } else { 29 })).await;
            settle().await;
            if reads {
                client.read_exact(&mut [0; 12]).await.unwrap();
            }
            advance(Duration::from_secs(4)).await;
            settle().await;
            assert_eq!(end(&outbox), None);
            if !reads {
                assert_eq!(writing.await.unwrap(), SocketEnd::Overflow);
            } else {
                writing.abort();
            }
        }
    }

    #[tokio::test]
    async fn without_the_policy_senders_do_not_wait() {
        let (outbox, _client, _) = outbox(WhenFull::DropOldest);
        for _ in 0..5 {
            outbox.offer_and_record(&news(), WriteMode::Inline).unwrap();
            outbox.room().await;
        }
        assert_eq!((outbox.wait_limit(), end(&outbox)), (None, None));
    }
}
