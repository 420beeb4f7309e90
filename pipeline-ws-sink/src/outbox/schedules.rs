//! An outbox whose writers meet in random orders, on several threads: senders that write at once,
//! senders that leave it to the flusher, senders that find no room, and the socket's own task.

use std::{collections::HashMap, future::poll_fn, ops::RangeInclusive};

use futures::FutureExt;
use pipeline_test_support::{PATIENCE, Recorded, Schedule, eventually, on_any_schedule};
use tokio::{
    io::{AsyncRead, AsyncReadExt, duplex},
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};

use super::{tests::connection, *};
use crate::telemetry::{Tally, push_times::broadcast_now};

const SENDERS: u8 = 3;

/// The number of frames of each sender.
const FRAMES: RangeInclusive<usize> = 1..=30;

/// The room of an outbox, and its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Room for all frames.
    Enough,
    /// Senders of events wait for room.
    Waits { frames: usize, all: usize },
    /// Events are dropped.
    Drops(WhenFull),
    /// The client is closed as too slow.
    Closes,
}

/// How the socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// A close when all frames have been sent.
    Afterwards,
    /// A close while frames are sent.
    Meanwhile,
    /// A last frame while others are sent.
    LastFrame,
    /// The loss of its task while frames are sent.
    Aborted,
}

const ENDINGS: [Ending; 5] =
    [Ending::Afterwards, Ending::Afterwards, Ending::Meanwhile, Ending::LastFrame, Ending::Aborted];

/// The numbers of frames that an outbox has accepted, at least and at most.
#[derive(Clone, Copy, Debug, Default)]
struct Accepted {
    least: u64,
    most: u64,
}

/// The outcomes of frames, each with its sender and its number.
type Outcomes = Vec<(u8, u32, PushOutcome)>;

/// The frames that a client has received.
#[derive(Debug, Default)]
struct Received {
    /// The numbers of the frames of each sender, in the order in which they arrived.
    numbers: HashMap<u8, Vec<u32>>,
    is_closed: bool,
}

impl Room {
    fn any(schedule: &mut Schedule) -> Self {
        match schedule.pick(..7) {
            0 | 1 => Self::Enough,
            2 => Self::Waits { frames: schedule.one_of(&[1, 4, 16]), all: usize::MAX },
            3 => Self::Waits { frames: 100, all: schedule.one_of(&[1, 20_000, 50_000]) },
            4 => Self::Drops(schedule.one_of(&[
                WhenFull::DropOldest,
                WhenFull::DropNewest,
                WhenFull::KeepLatest,
            ])),
            5 => Self::Closes,
            _ => Self::Waits { frames: 2, all: 1 },
        }
    }

    fn frames(self) -> usize {
        match self {
            Self::Enough => 1_000,
            Self::Waits { frames, .. } => frames,
            // Twice this many frames that must not be dropped may wait.
            Self::Drops(_) => 30,
            Self::Closes => 10,
        }
    }

    fn when_full(self) -> WhenFull {
        match self {
            Self::Enough | Self::Closes => WhenFull::Disconnect,
            Self::Waits { .. } => WhenFull::Block { timeout: Duration::MAX },
            Self::Drops(when_full) => when_full,
        }
    }

    /// One in this number of frames is none that may be dropped. Nothing limits these but the
    /// client.
    fn essential(self) -> usize {
        match self {
            Self::Enough | Self::Closes => 3,
            Self::Drops(_) => 8,
            Self::Waits { .. } => usize::MAX,
        }
    }
}

/// A frame with its sender, its number, and more bytes, which depend on both.
fn frame(sender: u8, number: u32, length: usize) -> Frame {
    Frame::text(|out| {
        out.push(sender);
        out.extend(number.to_be_bytes());
        out.resize(out.len() + length, fill(sender, number));
        Ok::<_, ()>(())
    })
    .unwrap()
}

fn fill(sender: u8, number: u32) -> u8 {
    number.to_le_bytes()[0] ^ sender
}

/// Sends frames of one sender in every way. Returns how many of them were accepted, and the outcomes
/// of those that may be dropped.
async fn send(
    outbox: Arc<Outbox>,
    sender: u8,
    room: Room,
    mut schedule: Schedule,
) -> (Accepted, Outcomes) {
    let mut outcomes = Outcomes::new();
    let (mut accepted, largest) =
        (Accepted::default(), schedule.one_of(&[10, 1_000, 1_000, 20_000]));
    let gives_up = schedule.once_in(3);
    for number in 0..u32::try_from(schedule.pick(FRAMES)).unwrap() {
        let frame = frame(sender, number, schedule.pick(..largest));
        accepted.most += u64::from(!outbox.has_ended());
        if schedule.once_in(room.essential()) {
            if schedule.once_in(2) {
                outbox.send(&frame, Some(broadcast_now()));
            } else {
                // As the reply to a join, behind which others send before it is written.
                let (timeline, kind) = (Some(broadcast_now()), FrameKind::Essential);
                let ready = ReadyFrame(Arc::new(Outgoing::alone(frame, timeline, kind)));
                let mut unrecorded = PendingMetrics::default();
                outbox.queue(&ready, &mut unrecorded);
                (0..schedule.pick(..20)).for_each(|_| schedule.hesitate());
                outbox.write_queued(unrecorded);
            }
        } else {
            let key = EventKey::new("topic", &sender.to_string());
            let shared = SharedFrame::new(frame, key).timed(Some(broadcast_now()));
            let (push, outcome) = CountedPush::new();
            push.addressed(1);
            outcomes.push((sender, number, outcome));
            let shared = shared.counted(Some(push));
            let mode = schedule.one_of(&[WriteMode::Inline, WriteMode::Deferred]);
            while outbox.offer_and_record(&shared, mode).is_err() {
                schedule.pause().await;
                // A sender that gives up its wait takes the room of no other.
                tokio::select! {
                    biased;
                    () = outbox.room() => {}
                    () = schedule.pause(), if gives_up => {}
                }
            }
        }
        accepted.least += u64::from(!outbox.has_ended());
        schedule.pause().await;
    }
    (accepted, outcomes)
}

/// Releases the stream of an outbox, also when its task is aborted.
struct Stream(Arc<Outbox>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The socket's own task, as that of a WebSocket: it writes, sends a last frame, and closes.
async fn live(stream: Stream) {
    let end = stream.0.write().await;
    stream.0.finish(end, &Frame::close(1001));
    poll_fn(|cx| stream.0.poll_close(cx)).await.unwrap();
}

/// Writes as the flusher does, with time for others in between.
fn flush_slowly(outbox: &Arc<Outbox>, schedule: &mut Schedule) {
    let mut slow = || (0..schedule.pick(..20)).for_each(|_| schedule.hesitate());
    let (mut batch, writing) = (WriteBatch::default(), outbox.flushing.lock());
    let Some((stream, _)) = outbox.begin_write(&mut batch) else { return };
    slow();
    let mut slices = [IoSlice::new(&[]); GATHER];
    let count = batch.slices(&mut slices);
    let written = stream.try_write_vectored(&slices[..count]);
    slow();
    let (now, mut unrecorded) = (Instant::now(), PendingMetrics::default());
    let has_more = outbox.finish_write(&mut batch, written, now, &mut unrecorded);
    drop(writing);
    if let Some(slot) = outbox.flush_slot.as_ref().filter(|_| has_more) {
        slot.enqueue(outbox);
    }
    outbox.complete(&mut batch, now);
    unrecorded.record(&outbox.metrics);
}

/// A second flusher, until the socket ends. It pauses between its steps, so that the others meet it
/// there.
async fn flush(outbox: Arc<Outbox>, mut schedule: Schedule) {
    while !outbox.has_ended() {
        flush_slowly(&outbox, &mut schedule);
        yield_now().await;
    }
    outbox.shrink();
}

/// Reads frames until the connection is closed, and asserts that each is whole.
async fn receive(mut stream: impl AsyncRead + Unpin, mut schedule: Schedule) -> Received {
    let (mut received, mut buffer) = (Received::default(), Vec::new());
    let most = schedule.one_of(&[2_000, 20_000, 100_000]);
    loop {
        let mut some = vec![0; schedule.pick(1..most)];
        let count = stream.read(&mut some).await.unwrap();
        if count == 0 {
            // The rest of a frame that was cut by the end is at most one frame.
            return received;
        }
        buffer.extend_from_slice(&some[..count]);
        while let Some((is_close, payload, length)) = next_frame(&buffer) {
            assert!(!received.is_closed, "a frame arrives behind the last one");
            if is_close {
                received.is_closed = true;
            } else {
                let (sender, number) = (payload[0], payload[1..5].try_into().unwrap());
                let (number, rest) = (u32::from_be_bytes(number), &payload[5..]);
                let is_whole = rest == vec![fill(sender, number); rest.len()];
                assert!(is_whole, "frame {number} of sender {sender} has bytes of another");
                received.numbers.entry(sender).or_default().push(number);
            }
            buffer.drain(..length);
        }
        if schedule.once_in(20) {
            sleep(Duration::from_millis(1)).await;
        }
        schedule.pause().await;
    }
}

/// The first frame: whether it is the last of its connection, its payload, and its whole length.
fn next_frame(bytes: &[u8]) -> Option<(bool, &[u8], usize)> {
    let [first, length, rest @ ..] = bytes else { return None };
    let (length, rest) = match length {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        length @ ..126 => (usize::from(*length), rest),
        _ => panic!("no frame begins with {first} and {length}"),
    };
    assert!([0x81, 0x88].contains(first), "no frame begins with {first}");
    let header = bytes.len() - rest.len();
    rest.get(..length).map(|payload| (*first == 0x88, payload, header + length))
}

/// Sends to a client in a random way, and asserts that every frame is accounted for.
async fn case(flusher: Arc<Flusher>, seed: u64) {
    let mut schedule = Schedule::new(seed);
    let (room, ending) = (Room::any(&mut schedule), schedule.one_of(&ENDINGS));
    let (telemetry, recorded) = Recorded::new();
    let metrics = Arc::new(SocketMetrics::register(&telemetry));
    let limits = OutboxLimits { frames: room.frames(), bytes: 1 << 30 };
    let all = match room {
        Room::Waits { all, .. } => all,
        _ => usize::MAX,
    };
    let all = Arc::new(Outboxes::new(all));
    let outbox = |writer| {
        let outbox = Outbox::new(writer, limits, metrics.clone()).when_full(room.when_full());
        Arc::new(outbox.among(&all).flushed_by(flusher.slot()))
    };
    let (outbox, client) = if schedule.once_in(4) {
        let (ours, theirs) = duplex(schedule.one_of(&[100, 1_000, 100_000]));
        let client = tokio::spawn(receive(theirs, schedule.fork()));
        (outbox(Writer::Task(Box::pin(ours))), client)
    } else {
        let (ours, theirs) = connection(schedule.one_of(&[16_384, 1_000_000, 1_000_000])).await;
        let client = tokio::spawn(receive(theirs, schedule.fork()));
        (outbox(Writer::Tcp(Arc::new(ours))), client)
    };
    let task = tokio::spawn(live(Stream(outbox.clone())));
    let mut send = |sender| tokio::spawn(send(outbox.clone(), sender, room, schedule.fork()));
    let senders: Vec<JoinHandle<(Accepted, Outcomes)>> = (0..SENDERS).map(&mut send).collect();

    let flushing = schedule.once_in(2).then(|| schedule.fork());
    let flushing = flushing.map(|schedule| tokio::spawn(flush(outbox.clone(), schedule)));

    if ending != Ending::Afterwards {
        for _ in 0..schedule.pick(..50) {
            yield_now().await;
        }
    }
    match ending {
        Ending::Afterwards => {}
        Ending::Meanwhile => outbox.end(SocketEnd::Disconnected),
        Ending::LastFrame => outbox.finish(SocketEnd::Disconnected, &Frame::close(1001)),
        Ending::Aborted => task.abort(),
    }
    let stuck = |which: &str| {
        let State { flush, phase, backlog, last_active, .. } = &*outbox.state.lock();
        let waiting = backlog.as_ref().map_or_else(Load::default, |backlog| backlog.load());
        let idle = last_active.elapsed();
        format!(
            "{which} does not end: {room:?}, {ending:?}, {flush:?}, {phase:?}, {waiting:?}, \
             idle for {idle:?}",
        )
    };
    let (mut accepted, mut outcomes) = (Accepted::default(), Outcomes::new());
    for sender in senders {
        let sender =
            timeout(PATIENCE, sender).await.unwrap_or_else(|_| panic!("{}", stuck("sender")));
        let (Accepted { least, most }, of_sender) = sender.unwrap();
        outcomes.extend(of_sender);
        accepted = Accepted { least: accepted.least + least, most: accepted.most + most };
    }
    let writing = eventually(|| outbox.load() == Load::default() || outbox.has_ended());
    timeout(PATIENCE / 2, writing).await.unwrap_or_else(|_| panic!("{}", stuck("write")));
    outbox.end(SocketEnd::Disconnected);
    if let Some(flushing) = flushing {
        flushing.await.unwrap();
    }
    let closes =
        timeout(PATIENCE, task).await.unwrap_or_else(|_| panic!("{}", stuck("task"))).is_ok();
    let received =
        timeout(PATIENCE, client).await.unwrap_or_else(|_| panic!("{}", stuck("client"))).unwrap();

    let is_slow = metrics.closed_slow.get() > 0;
    let about = format!("{room:?}, {ending:?}, slow: {is_slow}, {accepted:?}");
    for (sender, numbers) in &received.numbers {
        let mut in_order = numbers.windows(2).map(|pair| pair[0] < pair[1]);
        assert!(in_order.all(|so| so), "sender {sender}: {numbers:?}: {about}");
        if !matches!(room, Room::Drops(_)) {
            let last = numbers.last().map(|last| *last as usize + 1);
            assert_eq!(last, Some(numbers.len()), "sender {sender} misses frames: {about}");
        }
    }
    assert_eq!(received.is_closed, closes, "the last frame: {about}");
    let frames: usize = received.numbers.values().map(Vec::len).sum();
    let (frames, closing) = (frames as u64, u64::from(closes));
    // Recorded after the write.
    eventually(|| metrics.frames_out.get() >= frames + closing).await;
    assert_eq!(metrics.frames_out.get(), frames + closing, "frames written: {about}");
    eventually(|| Arc::strong_count(&outbox) == 1).await;
    let dropped: u64 = metrics.dropped().iter().map(|(_, count)| count).sum();
    let total = frames + dropped;
    // The last frame of a slow client whose task is aborted waits, and counts as dropped.
    let closing = u64::from(is_slow && !closes);
    let range = accepted.least..=accepted.most + closing;
    assert!(range.contains(&total), "{frames} and {dropped} dropped: {about}");
    if closes && !is_slow && !matches!(room, Room::Drops(_)) {
        assert_eq!(dropped, 0, "{about}");
    }
    let mut dropped_by_policy = 0;
    for (sender, number, outcome) in outcomes {
        let delivered = outcome.now_or_never();
        let delivered = delivered.unwrap_or_else(|| panic!("{sender} {number} is lost: {about}"));
        let is_received =
            received.numbers.get(&sender).is_some_and(|numbers| numbers.contains(&number));
        assert_eq!(delivered.written, usize::from(is_received), "{sender} {number}: {about}");
        let Delivered { written, dropped, closed, .. } = delivered;
        assert_eq!(written + dropped + closed, 1, "{sender} {number}: {about}");
        dropped_by_policy += dropped as u64;
    }
    let counters = [&metrics.dropped_oldest, &metrics.dropped_newest, &metrics.dropped_superseded];
    let counted: u64 = counters.into_iter().map(Tally::get).sum();
    assert_eq!(dropped_by_policy, counted, "{about}");
    assert_eq!(recorded.samples("pipeline.push_delivered").len() as u64, frames, "times: {about}");
    assert_eq!((outbox.load(), all.bytes()), (Load::default(), 0), "at rest: {about}");
}

#[test]
fn every_frame_leaves_once_whole_and_in_order_or_is_counted_whichever_task_writes() {
    let flusher = Arc::new(Flusher::new());
    on_any_schedule(400, |seed| case(flusher.clone(), seed));
}
