//! The outcome of a push, on every way out of an outbox.

use std::{future::poll_fn, sync::Arc, time::Duration};

use futures::FutureExt;
use pipeline_test_support::Recorded;
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    net::TcpStream,
};

use super::{
    CountedPush, Delivered, EventKey, Flusher, Outbox, OutboxLimits, PushOutcome, SharedFrame,
    WhenFull, WriteMode, Writer, tests::connection,
};
use crate::{
    protocol::frame::Frame,
    session::end::SocketEnd,
    telemetry::{SocketMetrics, push_times::broadcast_now},
};

const NOTHING: Delivered = Delivered {
    written: 0,
    dropped: 0,
    closed: 0,
    pending: 0,
    intercepted: 0,
    unsupported: 0,
    elsewhere: false,
};

fn outbox(writer: Writer, frames: usize) -> Outbox {
    let metrics = Arc::new(SocketMetrics::register(&Recorded::new().0));
    Outbox::new(writer, OutboxLimits { frames, bytes: 1 << 30 }, metrics)
}

/// An outbox of a stream that is not shared, and that takes one frame of [`news`] unread.
fn narrow(when_full: WhenFull) -> (Arc<Outbox>, DuplexStream) {
    let (ours, theirs) = duplex(12);
    (Arc::new(outbox(Writer::Task(Box::pin(ours)), 2).when_full(when_full)), theirs)
}

async fn tcp() -> (Arc<Outbox>, TcpStream) {
    let (ours, theirs) = connection(16_384).await;
    (Arc::new(outbox(Writer::Tcp(Arc::new(ours)), 1000)), theirs)
}

/// A frame with this many bytes of payload for this many sockets, and its outcome.
fn counted(length: usize, sockets: usize, event: &str) -> (SharedFrame, PushOutcome) {
    let frame = Frame::text(|out| {
        out.resize(out.len() + length, b'x');
        Ok::<_, ()>(())
    });
    counted_frame(frame.unwrap(), sockets, event)
}

fn counted_frame(frame: Frame, sockets: usize, event: &str) -> (SharedFrame, PushOutcome) {
    let (push, outcome) = CountedPush::new();
    push.addressed(sockets);
    let frame = SharedFrame::new(frame, EventKey::new("t", event)).timed(Some(broadcast_now()));
    (frame.counted(Some(push)), outcome)
}

/// A frame of 12 bytes to one socket, sent. Returns its outcome.
fn news(outbox: &Arc<Outbox>, event: &str) -> PushOutcome {
    let (frame, outcome) = counted(10, 1, event);
    outbox.send_and_record(&frame, WriteMode::Inline);
    outcome
}

/// Polls the socket's task once.
async fn turn(outbox: &Outbox) {
    let _ = futures::poll!(std::pin::pin!(outbox.write()));
}

fn known(outcome: &mut PushOutcome) -> Option<Delivered> {
    outcome.now_or_never()
}

#[tokio::test]
async fn a_frame_that_is_written_at_once_is_counted_at_once() {
    let (outbox, _client) = tcp().await;
    let mut outcome = news(&outbox, "news");
    assert_eq!(known(&mut outcome), Some(Delivered { written: 1, ..NOTHING }));
}

#[tokio::test]
async fn a_frame_that_the_task_of_its_socket_writes_is_counted_with_its_last_byte() {
    let (outbox, mut client) = narrow(WhenFull::Disconnect);
    let (first, mut second) = (news(&outbox, "news"), news(&outbox, "news"));
    turn(&outbox).await;
    assert_eq!(first.await, Delivered { written: 1, ..NOTHING });
    for read in [5, 7] {
        assert_eq!(known(&mut second), None);
        client.read_exact(&mut vec![0; read]).await.unwrap();
        turn(&outbox).await;
    }
    assert_eq!(second.await, Delivered { written: 1, ..NOTHING });
}

#[tokio::test]
async fn a_frame_that_the_flusher_writes_is_counted() {
    let (flusher, (ours, mut client)) = (Flusher::new(), connection(16_384).await);
    let outbox = outbox(Writer::Tcp(Arc::new(ours)), 1000).flushed_by(flusher.slot());
    let outbox = Arc::new(outbox);
    let (frame, outcome) = counted(10, 3, "news");
    for _ in 0..3 {
        outbox.send_and_record(&frame, WriteMode::Deferred);
    }
    drop(frame);
    assert_eq!(outcome.await, Delivered { written: 3, ..NOTHING });
    client.read_exact(&mut [0; 36]).await.unwrap();
}

#[tokio::test]
async fn plain_and_compressed_copies_belong_to_one_push() {
    let ((plain, _client), (ours, _other)) = (tcp().await, connection(16_384).await);
    let compressing = Arc::new(outbox(Writer::Tcp(Arc::new(ours)), 1000).compressing(true));
    let (frame, mut outcome) = counted(1000, 2, "news");
    for outbox in [&plain, &compressing] {
        assert_eq!(known(&mut outcome), None);
        outbox.send_and_record(&frame, WriteMode::Inline);
    }
    drop(frame);
    assert_eq!(known(&mut outcome), Some(Delivered { written: 2, ..NOTHING }));
}

#[tokio::test]
async fn fetched_frames_are_written_when_they_are_in_an_answer_and_not_before() {
    let polled = Arc::new(outbox(Writer::Fetched, 10));
    for answered in [true, false] {
        let (text, mut outcome) = counted(10, 1, "news");
        let bytes = Frame::binary(|out| {
            out.push(1);
            Ok::<_, ()>(())
        });
        let (bytes, mut other) = counted_frame(bytes.unwrap(), 1, "bytes");
        for frame in [text, bytes] {
            polled.send_and_record(&frame, WriteMode::Inline);
        }
        let mut fetched = poll_fn(|cx| polled.poll_fetch(cx)).await;
        assert_eq!((known(&mut outcome), known(&mut other)), (None, None));
        if answered {
            fetched.were_answered();
        }
        drop(fetched);
        let (written, carried) = match answered {
            true => (Delivered { written: 1, ..NOTHING }, Delivered { unsupported: 1, ..NOTHING }),
            false => (Delivered { closed: 1, ..NOTHING }, Delivered { closed: 1, ..NOTHING }),
        };
        assert_eq!((known(&mut outcome), known(&mut other)), (Some(written), Some(carried)));
    }
}

#[tokio::test]
async fn a_frame_that_a_policy_drops_is_counted_as_dropped() {
    let dropped = Some(Delivered { dropped: 1, ..NOTHING });
    for (policy, event, first_of_these) in [
        (WhenFull::DropOldest, "news", 1),
        (WhenFull::DropNewest, "news", 3),
        (WhenFull::KeepLatest, "news", 1),
        (WhenFull::KeepLatest, "other", 1),
    ] {
        let (outbox, _client) = narrow(policy);
        let mut outcomes: Vec<_> = ["0", "news", "2"].map(|event| news(&outbox, event)).into();
        turn(&outbox).await;
        assert_eq!(known(&mut outcomes[0]), Some(Delivered { written: 1, ..NOTHING }));
        outcomes.push(news(&outbox, event));
        for (at, outcome) in outcomes.iter_mut().enumerate().skip(1) {
            let expected = if at == first_of_these { dropped } else { None };
            assert_eq!(known(outcome), expected, "{policy:?}, {event}, {at}");
        }
    }
}

#[tokio::test]
async fn a_reply_that_needs_room_counts_the_events_that_it_costs() {
    let (outbox, _client) = narrow(WhenFull::DropNewest);
    let mut outcomes = ["0", "1", "2"].map(|event| news(&outbox, event));
    turn(&outbox).await;
    outbox.send(&Frame::pong(b""), None);
    assert_eq!(known(&mut outcomes[2]), Some(Delivered { dropped: 1, ..NOTHING }));
    assert_eq!(known(&mut outcomes[1]), None);
}

#[tokio::test]
async fn a_client_that_is_closed_because_it_is_too_slow_has_not_taken_what_waited() {
    for policy in [WhenFull::Disconnect, WhenFull::Block { timeout: Duration::ZERO }] {
        let (outbox, _client) = narrow(policy);
        let (frame, mut outcome) = counted(10, 10, "news");
        for _ in 0..10 {
            outbox.send_and_record(&frame, WriteMode::Inline);
        }
        drop(frame);
        assert_eq!(outbox.ended(), Some(SocketEnd::Overflow));
        outbox.release();
        // The stream has taken one.
        let expected = Delivered { written: 1, closed: 9, ..NOTHING };
        assert_eq!(known(&mut outcome), Some(expected), "{policy:?}");
    }
}

#[tokio::test]
async fn a_socket_that_has_ended_before_takes_nothing() {
    let (outbox, _client) = tcp().await;
    outbox.end(SocketEnd::Disconnected);
    let mut outcome = news(&outbox, "news");
    assert_eq!(known(&mut outcome), Some(Delivered { closed: 1, ..NOTHING }));
}

#[tokio::test]
async fn a_partly_written_frame_is_not_written_if_its_socket_ends() {
    let (outbox, _client) = tcp().await;
    let (large, mut outcome) = counted(1 << 20, 1, "news");
    outbox.send_and_record(&large, WriteMode::Inline);
    drop(large);
    assert_eq!(known(&mut outcome), None);
    assert_eq!(outcome.so_far(), Delivered { pending: 1, ..NOTHING });
    outbox.release();
    assert_eq!(known(&mut outcome), Some(Delivered { closed: 1, ..NOTHING }));
}

#[tokio::test]
async fn an_outcome_that_is_not_awaited_holds_no_frame() {
    let (outbox, _client) = tcp().await;
    let (frame, outcome) = counted(10, 1, "news");
    let copy = Arc::downgrade(frame.get(false));
    outbox.send_and_record(&frame, WriteMode::Inline);
    drop(frame);
    assert!(copy.upgrade().is_none());
    assert_eq!(outcome.so_far().written, 1);
}
