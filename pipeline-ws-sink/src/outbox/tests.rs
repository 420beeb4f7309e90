//! The outbox over real TCP and over memory.

use std::{collections::BTreeSet, future::poll_fn, io::Read, pin::pin};

use futures::poll;
use pipeline_test_support::Recorded;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpSocket, TcpStream},
    time::{Duration, advance},
};

use super::*;
use crate::telemetry::{LockProbe, push_times::broadcast_now};

const ROOMY: OutboxLimits = OutboxLimits { frames: 1000, bytes: 1 << 30 };

fn outbox(writer: Writer, limits: OutboxLimits) -> (Arc<Outbox>, Recorded) {
    let (telemetry, recorded) = Recorded::new();
    let metrics = Arc::new(SocketMetrics::register(&telemetry));
    (Arc::new(Outbox::new(writer, limits, metrics)), recorded)
}

/// A frame of this length, including the header, at most 127.
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

async fn tcp() -> (TcpStream, TcpStream) {
    connection(16_384).await
}

/// The two ends of a connection. The first can be written to, and the system buffers little.
pub(super) async fn connection(buffer: u32) -> (TcpStream, TcpStream) {
    between(buffer, buffer).await
}

/// A connection with these buffers of the writing and the reading end.
async fn between(writing: u32, reading: u32) -> (TcpStream, TcpStream) {
    let (ours, theirs) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    ours.set_send_buffer_size(writing).unwrap();
    theirs.set_recv_buffer_size(reading).unwrap();
    theirs.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = theirs.listen(1).unwrap();
    let ours = ours.connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    ours.writable().await.unwrap();
    (ours, theirs)
}

/// Polls the socket's task.
fn turn(outbox: &Outbox) -> Poll<SocketEnd> {
    outbox.poll_write(&mut Context::from_waker(Waker::noop()))
}

fn waiting(outbox: &Outbox) -> usize {
    outbox.state.lock().backlog.as_ref().map_or(0, |backlog| backlog.len())
}

fn end(outbox: &Outbox) -> Option<SocketEnd> {
    outbox.ended()
}

#[tokio::test]
async fn nothing_goes_out_behind_the_last_frame() {
    let (ours, mut theirs) = tcp().await;
    let (outbox, _) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
    let last = Frame::close(1000);
    outbox.finish(SocketEnd::Disconnected, &last);
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
async fn a_completely_written_frame_needs_no_task() {
    let (ours, mut theirs) = tcp().await;
    let (outbox, recorded) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
    outbox.send(&small(10), Some(broadcast_now()));
    assert_eq!(recorded.samples("pipeline.push_delivered").len(), 1);
    assert_eq!(waiting(&outbox), 0);
    let mut received = [0; 10];
    theirs.read_exact(&mut received).await.unwrap();
    assert_eq!(received, small(10).bytes()[..]);
}

#[tokio::test]
async fn a_partly_written_frame_is_delivered_with_its_last_byte() {
    let (ours, mut theirs) = tcp().await;
    let (outbox, recorded) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
    let (large, next) = (text(1 << 19), small(10));
    outbox.send(&large, Some(broadcast_now()));
    outbox.send(&next, None);
    let written = outbox.state.lock().backlog.as_ref().unwrap().written();
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
    outbox.send(&small(10), Some(broadcast_now()));
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

fn send_event(outbox: &Arc<Outbox>, length: usize) {
    let frame = SharedFrame::new(small(length), EventKey::new("t", "e"));
    outbox.send_and_record(&frame, WriteMode::Inline);
}

#[tokio::test]
async fn exactly_the_limit_of_bytes_may_wait_behind_the_first() {
    let limits = OutboxLimits { frames: 1000, bytes: 20 };
    let (ours, _theirs) = duplex(1);
    let (outbox, recorded) = outbox(Writer::Task(Box::pin(ours)), limits);
    (0..3).for_each(|_| send_event(&outbox, 10));
    assert_eq!((waiting(&outbox), end(&outbox)), (3, None));
    send_event(&outbox, 2);
    assert_eq!(
        (waiting(&outbox), end(&outbox)),
        (1, Some(SocketEnd::Overflow)),
        "one is partly written"
    );
    let dropped = recorded.counters("socket.frames_dropped");
    assert_eq!(dropped, [("reason=overflow".to_owned(), 3)]);
}

#[tokio::test]
async fn exactly_the_limit_of_frames_may_wait() {
    let limits = OutboxLimits { frames: 2, bytes: 1000 };
    let (ours, _theirs) = duplex(1);
    let (outbox, _) = outbox(Writer::Task(Box::pin(ours)), limits);
    (0..2).for_each(|_| send_event(&outbox, 10));
    assert_eq!((waiting(&outbox), end(&outbox)), (2, None));
    send_event(&outbox, 10);
    assert_eq!(
        (waiting(&outbox), end(&outbox)),
        (1, Some(SocketEnd::Overflow)),
        "one is partly written"
    );
}

#[tokio::test]
async fn written_frames_make_room_for_others() {
    let limits = OutboxLimits { frames: 1000, bytes: 30 };
    let (ours, _theirs) = duplex(10);
    let (outbox, _) = outbox(Writer::Task(Box::pin(ours)), limits);
    (0..4).for_each(|_| send_event(&outbox, 10));
    assert!(turn(&outbox).is_pending());
    assert_eq!(waiting(&outbox), 3, "the first frame has been written");
    send_event(&outbox, 10);
    assert_eq!((waiting(&outbox), end(&outbox)), (4, None));
    send_event(&outbox, 2);
    assert_eq!(end(&outbox), Some(SocketEnd::Overflow));
}

/// A writer that takes everything when polled.
fn swallowing() -> Writer {
    Writer::Task(Box::pin(tokio::io::sink()))
}

#[tokio::test]
async fn a_sender_that_finds_the_outbox_full_writes_first() {
    let limits = OutboxLimits { frames: 4, bytes: 1000 };
    let (ours, mut theirs) = tcp().await;
    for writer in [swallowing(), Writer::Tcp(Arc::new(ours))] {
        for when_full in [WhenFull::Disconnect, WhenFull::DropOldest, WhenFull::KeepLatest] {
            let (telemetry, recorded) = Recorded::new();
            let metrics = Arc::new(SocketMetrics::register(&telemetry));
            let writer = match &writer {
                Writer::Tcp(stream) => Writer::Tcp(stream.clone()),
                _ => swallowing(),
            };
            let outbox = Arc::new(Outbox::new(writer, limits, metrics).when_full(when_full));
            // Neither the socket's task nor a flusher is ever polled.
            outbox.state.lock().backlog(limits, 0).push(Arc::new(Outgoing::alone(
                small(10),
                None,
                FrameKind::Essential,
            )));
            for _ in 0..100 {
                send_event(&outbox, 10);
                outbox.send(&small(10), None);
            }
            assert_eq!(end(&outbox), None, "{when_full:?}");
            assert!(recorded.counters("socket.frames_dropped").is_empty(), "{when_full:?}");
        }
    }
    let mut received = vec![0; 10];
    theirs.read_exact(&mut received).await.unwrap();
    assert_eq!(received, small(10).bytes()[..]);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_nothing_is_closed_after_a_while_and_one_that_takes_a_little_is_not() {
    let (telemetry, recorded) = Recorded::new();
    let metrics = Arc::new(SocketMetrics::register(&telemetry));
    let (ours, mut theirs) = duplex(10);
    let outbox = Outbox::new(Writer::Task(Box::pin(ours)), ROOMY, metrics)
        .send_timeout(Duration::from_secs(30));
    let outbox = Arc::new(outbox);
    let opened = Instant::now();
    let writing = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.write().await }
    });
    (0..10).for_each(|_| send_event(&outbox, 10));
    for _ in 0..5 {
        time::sleep(Duration::from_secs(25)).await;
        theirs.read_exact(&mut [0; 10]).await.unwrap();
    }
    assert_eq!(writing.await.unwrap(), SocketEnd::Overflow);
    assert_eq!(opened.elapsed().as_secs(), 5 * 25 + 30);
    assert_eq!(recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
}

#[tokio::test]
async fn a_connection_ends_with_its_task_although_its_outbox_is_held() {
    let (ours, mut theirs) = tcp().await;
    let (outbox, _) = outbox(Writer::Tcp(Arc::new(ours)), ROOMY);
    outbox.send(&small(10), None);
    outbox.release();
    outbox.send(&small(10), None);
    let mut received = vec![];
    theirs.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, small(10).bytes()[..]);
    assert!(outbox.has_ended());
}

#[tokio::test]
async fn an_outbox_that_has_caught_up_holds_no_memory_for_frames() {
    let (ours, _theirs) = duplex(1000);
    let (outbox, _) = outbox(Writer::Task(Box::pin(ours)), ROOMY);
    (0..3).for_each(|_| outbox.send(&small(10), None));
    assert!(outbox.state.lock().backlog.is_some());
    assert!(turn(&outbox).is_pending());
    assert!(outbox.state.lock().backlog.is_none());
}

#[tokio::test]
async fn frames_that_are_compressed_or_large_or_have_to_wait_cost_more() {
    let (telemetry, _) = Recorded::new();
    let metrics = Arc::new(SocketMetrics::register(&telemetry));
    let new = |writer| Outbox::new(writer, ROOMY, metrics.clone());
    let (ours, _theirs) = connection(1 << 20).await;
    let plain = Arc::new(new(Writer::Tcp(Arc::new(ours))));
    let (ours, _theirs) = connection(1 << 20).await;
    let compressing = Arc::new(new(Writer::Tcp(Arc::new(ours))).compressing(true));
    for (length, price, compressed) in [(100, 0, 0), (5 << 10, 0, 10), (64 << 10, 8, 128)] {
        plain.send(&text(length), None);
        assert_eq!(plain.take_unpaid(), price, "{length}");
        compressing.send(&text(length), None);
        assert_eq!(compressing.take_unpaid(), compressed, "{length}");
    }
    assert_eq!(plain.take_unpaid(), 0, "it is paid once");
    let behind = Arc::new(new(Writer::Task(Box::pin(tokio::io::empty()))));
    for price in [0, 4, 4] {
        behind.send(&text(100), None);
        assert_eq!(behind.take_unpaid(), price);
    }
}

#[tokio::test(start_paused = true)]
async fn received_data_counts_as_activity() {
    let (outbox, _) = outbox(Writer::Task(Box::pin(tokio::io::sink())), ROOMY);
    let opened = Instant::now();
    advance(Duration::from_secs(40)).await;
    assert_eq!(outbox.last_active(), opened);
    outbox.heard();
    assert_eq!(outbox.last_active(), opened + Duration::from_secs(40));
}

#[test]
fn an_empty_outbox_is_small() {
    assert!(size_of::<Outbox>() <= 200, "{}", size_of::<Outbox>());
}

/// A frame for many sockets.
fn shared(length: usize) -> SharedFrame {
    SharedFrame::new(text(length), EventKey::new("t", "e"))
}

/// An outbox whose client takes nothing, among these.
fn stuck(all: &Arc<Outboxes>, when_full: WhenFull) -> Arc<Outbox> {
    let limits = OutboxLimits { frames: 100_000, bytes: 1 << 20 };
    let metrics = Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
    let outbox = Outbox::new(Writer::Fetched, limits, metrics);
    Arc::new(outbox.among(all).when_full(when_full))
}

#[tokio::test]
async fn waiting_answers_count_for_their_memory() {
    let all = Arc::new(Outboxes::new(usize::MAX));
    let outbox = stuck(&all, WhenFull::Disconnect);
    while end(&outbox).is_none() {
        outbox.send(&small(66), None);
        // A frame of 66 bytes has a buffer of 256.
        assert!(waiting(&outbox) * (256 + 150) < 2 << 20, "more memory than twice the limit");
    }
}

#[tokio::test]
async fn a_frame_for_many_sockets_counts_once_for_the_endpoint() {
    let all = Arc::new(Outboxes::new(usize::MAX));
    let outboxes = [(); 3].map(|()| stuck(&all, WhenFull::Disconnect));
    let little = shared(outboxes::SHARE / 2);
    outboxes.iter().for_each(|outbox| outbox.send_and_record(&little, WriteMode::Inline));
    assert_eq!(all.bytes(), 0, "each has its share");
    for _ in 0..3 {
        let news = shared(100_000);
        outboxes.iter().for_each(|outbox| outbox.send_and_record(&news, WriteMode::Inline));
    }
    let bytes = all.bytes();
    assert!((300_000..900_000).contains(&bytes), "{bytes}");
    let [first, second, third] = outboxes;
    drop(first);
    second.release();
    assert!(all.bytes() >= 300_000, "one of the outboxes still holds it");
    third.end(SocketEnd::Lost);
    third.release();
    assert_eq!(all.bytes(), 0);
}

#[tokio::test]
async fn written_frames_no_longer_count_although_their_times_are_not_recorded_yet() {
    let all = Arc::new(Outboxes::new(usize::MAX));
    let metrics = Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
    let writer = Writer::Task(Box::pin(tokio::io::sink()));
    let outbox = Arc::new(Outbox::new(writer, ROOMY, metrics.clone()).among(&all));
    for _ in 0..5 {
        let news = shared(outboxes::SHARE).timed(Some(broadcast_now()));
        outbox.send_and_record(&news, WriteMode::Deferred);
    }
    assert!(all.bytes() >= 4 * outboxes::SHARE, "they wait until their task is polled");
    let mut unrecorded = PendingMetrics::default();
    let context = &mut Context::from_waker(Waker::noop());
    let flushed = outbox.poll_flush(&mut outbox.state.lock(), context, &mut unrecorded);
    assert!(flushed.is_ready());
    assert_eq!(all.bytes(), 0);
    unrecorded.record(&metrics);
}

#[tokio::test]
async fn small_broadcasts_count_for_the_endpoint_by_their_memory() {
    const LIMIT: usize = 1 << 20;
    // A frame of 44 bytes has a buffer of 256, and no other socket has it.
    const MEMORY: usize = 256 + 150;
    let all = Arc::new(Outboxes::new(LIMIT));
    let outboxes: Vec<_> = (0..200).map(|_| stuck(&all, WhenFull::DropOldest)).collect();
    for outbox in &outboxes {
        (0..300).for_each(|_| outbox.send_and_record(&shared(40), WriteMode::Inline));
    }
    let frames: usize = outboxes.iter().map(|outbox| waiting(outbox)).sum();
    let (held, share) = (frames * MEMORY, outboxes.len() * outboxes::SHARE);
    assert!(all.are_full());
    assert!(held <= LIMIT + share, "{held} bytes, {} counted", all.bytes());
    drop(outboxes);
    assert_eq!(all.bytes(), 0);
}

#[tokio::test]
async fn when_the_outboxes_are_full_each_socket_has_its_share() {
    let all = Arc::new(Outboxes::new(500_000));
    let greedy = stuck(&all, WhenFull::Disconnect);
    let calm = stuck(&all, WhenFull::Disconnect);
    let dropping = stuck(&all, WhenFull::DropOldest);
    let waited_for = stuck(&all, WhenFull::block());
    for _ in 0..5 {
        dropping.send_and_record(&shared(10_000), WriteMode::Inline);
    }
    while !all.are_full() {
        greedy.send(&text(50_000), None);
    }
    assert_eq!(end(&greedy), None);
    for _ in 0..10 {
        calm.send(&small(66), None);
        calm.send_and_record(&shared(100), WriteMode::Inline);
    }
    assert_eq!(end(&calm), None);
    dropping.send_and_record(&shared(1000), WriteMode::Inline);
    assert_eq!((end(&dropping), waiting(&dropping)), (None, 3), "one frame is being written");
    let offered = (0..20)
        .take_while(|_| waited_for.offer_and_record(&shared(2000), WriteMode::Inline).is_ok());
    // Each takes 2,266 bytes of memory, and the first is being written.
    assert_eq!(offered.count(), 9, "further senders wait");
    greedy.send(&small(66), None);
    assert_eq!(end(&greedy), Some(SocketEnd::Overflow));
    assert!(!all.are_full());
    assert!(waited_for.offer_and_record(&shared(2000), WriteMode::Inline).is_ok());
}

#[tokio::test]
async fn a_waiting_sender_is_notified_when_the_outboxes_of_the_endpoint_have_room() {
    let all = Arc::new(Outboxes::new(500_000));
    let greedy = stuck(&all, WhenFull::Disconnect);
    let waited_for = stuck(&all, WhenFull::block());
    while !all.are_full() {
        greedy.send(&text(50_000), None);
    }
    while waited_for.offer_and_record(&shared(2000), WriteMode::Inline).is_ok() {}
    let mut room = pin!(waited_for.room());
    assert!(poll!(&mut room).is_pending());
    greedy.release();
    assert!(poll!(&mut room).is_ready(), "although its own client has taken nothing");
}

#[tokio::test(start_paused = true)]
async fn a_writable_socket_is_not_closed_although_the_runtime_has_not_noticed() {
    const SEND_TIMEOUT: Duration = Duration::from_secs(30);
    let (ours, theirs) = tcp().await;
    let (chunk, mut sent) = ([0; 65_536], 0);
    while let Ok(count) = ours.try_write(&chunk) {
        sent += count;
    }
    let metrics = Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
    let outbox =
        Outbox::new(Writer::Tcp(Arc::new(ours)), ROOMY, metrics).send_timeout(SEND_TIMEOUT);
    let outbox = Arc::new(outbox);
    outbox.send(&small(10), None);
    let mut writing = pin!(outbox.write());
    assert!(poll!(&mut writing).is_pending());
    advance(SEND_TIMEOUT).await;
    // The client reads everything, and the runtime does not poll before the deadline is noticed.
    let mut theirs = theirs.into_std().unwrap();
    theirs.set_nonblocking(false).unwrap();
    theirs.read_exact(&mut vec![0; sent]).unwrap();
    assert!(poll!(&mut writing).is_pending());
    assert_eq!((waiting(&outbox), end(&outbox)), (0, None));
    let mut received = [0; 10];
    theirs.read_exact(&mut received).unwrap();
    assert_eq!(received, small(10).bytes()[..]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_more_is_closed_although_the_system_has_some_room() {
    const SEND_TIMEOUT: Duration = Duration::from_secs(30);
    let (ours, theirs) = between(1 << 20, 16_384).await;
    let (chunk, mut sent) = ([0; 65_536], 0);
    // The system says that there is room while it passes on what it has.
    for _ in 0..100 {
        while let Ok(count) = ours.try_write(&chunk) {
            sent += count;
        }
        tokio::task::yield_now().await;
    }
    let metrics = Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global()));
    let outbox =
        Outbox::new(Writer::Tcp(Arc::new(ours)), ROOMY, metrics).send_timeout(SEND_TIMEOUT);
    let outbox = Arc::new(outbox);
    let mut writing = pin!(outbox.write());
    assert!(poll!(&mut writing).is_pending());
    // The system has room again, and too little to say so.
    let mut theirs = theirs.into_std().unwrap();
    theirs.set_nonblocking(false).unwrap();
    theirs.read_exact(&mut vec![0; sent / 16]).unwrap();
    let mut taken = 0;
    while end(&outbox).is_none() {
        // A pipeline whose next push waits until this one is written.
        outbox.send(&small(10), None);
        assert!(poll!(&mut writing).is_pending());
        assert_eq!(waiting(&outbox), 1, "the runtime takes the socket for blocked");
        advance(SEND_TIMEOUT + Duration::from_millis(1)).await;
        let _ = poll!(&mut writing);
        taken += usize::from(waiting(&outbox) == 0 && end(&outbox).is_none());
        assert!(taken <= 3, "it is taken for a client that reads");
    }
    assert_eq!((taken, end(&outbox)), (3, Some(SocketEnd::Overflow)));
}

#[tokio::test]
async fn nothing_is_recorded_while_the_outbox_is_locked() {
    let limits = OutboxLimits { frames: 4, bytes: 1000 };
    let mut all = BTreeSet::new();
    for when_full in
        [WhenFull::Disconnect, WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepLatest]
    {
        let recorder = LockProbe::default();
        let telemetry = pipeline_core::telemetry::Telemetry::with_recorder(recorder.clone());
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        let (ours, mut theirs) = duplex(200);
        let outbox = Outbox::new(Writer::Task(Box::pin(ours)), limits, metrics);
        let outbox = Arc::new(outbox.when_full(when_full));
        let watched = Arc::downgrade(&outbox);
        recorder.watch(move || {
            let Some(outbox) = watched.upgrade() else { return false };
            outbox.state.try_lock().is_none() || outbox.flushing.try_lock().is_none()
        });
        for _ in 0..40 {
            // Refreshes the task's budget.
            tokio::task::yield_now().await;
            // Recorded by the socket's task, and by a sender that finds no room.
            outbox.send(&small(10), Some(broadcast_now()));
            let _ = turn(&outbox);
            (0..6).for_each(|_| outbox.send(&small(10), Some(broadcast_now())));
            let _ = turn(&outbox);
            theirs.read_exact(&mut [0; 70]).await.unwrap();
        }
        (0..100).for_each(|_| send_event(&outbox, 10));
        let _ = poll!(pin!(poll_fn(|cx| outbox.poll_close(cx))));
        outbox.close_slow();
        all.append(&mut recorder.names());
    }
    let expected = [
        "pipeline.push_delivered",
        "pipeline.push_written",
        "socket.closed_slow",
        "socket.frames_dropped drop_newest",
        "socket.frames_dropped drop_oldest",
        "socket.frames_dropped overflow",
        "socket.frames_dropped superseded",
        "socket.frames_out",
        "socket.write_time",
    ];
    assert_eq!(Vec::from_iter(all), expected);
}
