//! A long-polling session whose polls meet senders, each other and the end in random orders, on
//! several threads.

use std::{collections::HashMap, ops::Range};

use pipeline_test_support::{PATIENCE, Recorded, Schedule, eventually, on_any_schedule};
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Mount,
    endpoint::state::{EndpointLimits, EndpointState},
    handshake::{connect_info::ConnectInfo, params::Params},
    outbox::{EventKey, Load, OutboxLimits, SharedFrame, WhenFull, WriteMode, Writer},
    protocol::{frame::Frame, version::Version},
    session::{Connection, SessionEvents, expiry::Expiry},
    socket::ConnectError,
};

const SENDERS: u8 = 3;

/// The sender of the session's own replies.
const SESSION: u8 = SENDERS;

/// No poll waits this long.
const WINDOW: Duration = Duration::from_secs(120);

struct AnySocket;

impl Socket for AnySocket {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        unreachable!("no client connects")
    }
}

/// How the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// When all frames have been fetched.
    Afterwards,
    /// While frames are sent.
    Meanwhile,
    /// By the loss of its task while frames are sent.
    Aborted,
}

/// The numbers of frames that an outbox has accepted, at least and at most.
#[derive(Clone, Copy, Debug, Default)]
struct Accepted {
    least: u64,
    most: u64,
}

/// A frame with its sender and its number.
fn frame(sender: u8, number: u32) -> Frame {
    let text = json!([null, null, "t", "news", { "sender": sender, "number": number }]);
    Frame::text(|out| serde_json::to_writer(out, &text)).unwrap()
}

/// The sender and the number of a frame.
fn read(frame: &Frame) -> (u8, u32) {
    let message: serde_json::Value = serde_json::from_slice(&frame.body()).unwrap();
    match (&message[1], &message[4]) {
        (serde_json::Value::String(reference), _) => (SESSION, reference.parse().unwrap()),
        (_, news) => {
            let number = |name| news[name].as_u64().and_then(|number| u32::try_from(number).ok());
            (u8::try_from(number("sender").unwrap()).unwrap(), number("number").unwrap())
        }
    }
}

/// Sends frames of one sender in every way.
async fn send(outbox: Arc<Outbox>, sender: u8, essential: usize, mut s: Schedule) -> Accepted {
    let (mut accepted, gives_up) = (Accepted::default(), s.once_in(3));
    for number in 0..30 {
        let frame = frame(sender, number);
        accepted.most += u64::from(!outbox.has_ended());
        if s.once_in(essential) {
            outbox.send(&frame, None);
        } else {
            let shared = SharedFrame::new(frame, EventKey::new("t", &sender.to_string()));
            let mode = s.one_of(&[WriteMode::Inline, WriteMode::Deferred]);
            while outbox.offer_and_record(&shared, mode).is_err() {
                tokio::select! {
                    biased;
                    () = outbox.room() => {}
                    () = s.pause(), if gives_up => {}
                }
            }
        }
        accepted.least += u64::from(!outbox.has_ended());
        s.pause().await;
    }
    accepted
}

/// Sends heartbeats, which the session answers.
async fn beat(handle: SessionHandle, numbers: Range<u32>, mut schedule: Schedule) -> Accepted {
    let mut accepted = Accepted::default();
    for number in numbers {
        let heartbeat = json!([null, number.to_string(), "phoenix", "heartbeat", {}]);
        accepted.most += 1;
        let posted = handle.post(Received::Text(heartbeat.to_string().into())).await;
        accepted.least += u64::from(posted.is_ok() && !handle.outbox.has_ended());
        schedule.pause().await;
    }
    accepted
}

/// Polls again and again until it is over. Returns the answers. With `is_slow`, some of them are
/// written only when the next one has been fetched.
async fn poll(
    handle: SessionHandle,
    is_slow: bool,
    gives_up: bool,
    over: CancellationToken,
    mut schedule: Schedule,
) -> Vec<Vec<(u8, u32)>> {
    let mut answers = Vec::new();
    let mut written = None;
    let mut is_over = false;
    while !is_over {
        let mut polling = Box::pin(handle.poll(WINDOW));
        let fetched = tokio::select! {
            biased;
            fetched = &mut polling => Some(fetched),
            () = async { while !schedule.once_in(4) { schedule.pause().await } }, if gives_up => None,
            () = over.cancelled() => {
                is_over = true;
                // Frames may have been passed to it at the last moment.
                polling.now_or_never()
            }
        };
        let Some(fetched) = fetched else { continue };
        answers.push(fetched.frames.iter().map(read).collect());
        let body = handle.counted(fetched, Bytes::from_static(b"an answer"));
        written = (is_slow && schedule.once_in(2)).then_some(body);
        schedule.pause().await;
    }
    drop(written);
    answers
}

async fn case(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let ending = schedule.one_of(&[
        Ending::Afterwards,
        Ending::Afterwards,
        Ending::Meanwhile,
        Ending::Aborted,
    ]);
    let gives_up = schedule.once_in(2);
    let (frames, when_full, essential) = match schedule.pick(..4) {
        0 => (1_000, WhenFull::Disconnect, 3),
        1 => (30, WhenFull::DropOldest, 8),
        2 => (30, WhenFull::KeepLatest, 8),
        _ => (schedule.one_of(&[1, 4]), WhenFull::Block { timeout: Duration::MAX }, usize::MAX),
    };
    let about = format!("{ending:?}, {frames} with {when_full:?}, gives up: {gives_up}");

    let (telemetry, _) = Recorded::new();
    let limits = EndpointLimits {
        sockets: 8,
        inboxes: 1 << 20,
        outboxes: 1 << 30,
        confirmations: 8,
        tell_refused: None,
        connects: None,
        joins: None,
    };
    let state = EndpointState::new(&telemetry, None, None, vec![], limits, None);
    let metrics = state.metrics.clone();
    let outbox =
        Outbox::new(Writer::Fetched, OutboxLimits { frames, bytes: 1 << 20 }, metrics.clone());
    let outbox = Arc::new(outbox.when_full(when_full).among(&state.outboxes));
    let (_, routes) = Mount::new(AnySocket).into_routes(&telemetry).unwrap();
    let connection = Connection {
        socket: Arc::new(AnySocket),
        assigns: (),
        id: None,
        version: Version::V2,
        transport: "longpoll",
        outbox: outbox.clone(),
        inbox: Arc::new(inbox::Inbox::new(1 << 20, state.inboxes.clone())),
        pubsub: state.pubsub.clone(),
        events: SessionEvents::default(),
        expiry: Expiry::new(None, Duration::ZERO),
        metrics: metrics.clone(),
    };
    let session = Session::new(Arc::new(connection), Arc::new(routes));
    let sessions = LongPollSessions::new(&LongPoll::new()).unwrap();
    let bodies = Arc::new(inbox::Inbox::new(1 << 20, state.inboxes.clone()));
    let (token, requests) = sessions.enter(&outbox, bodies, Instant::now());
    let handle = sessions.find(&token, Instant::now()).unwrap();

    let living = {
        let outbox = outbox.clone();
        let endings = Endings::new();
        let live =
            async move { live(session, requests, &outbox, WINDOW, u32::MAX, &endings).await };
        tokio::spawn(live)
    };
    let over = CancellationToken::new();
    // A session with two answers that are not written answers no further poll.
    let polls: Vec<_> = (0..schedule.pick(1..=3))
        .map(|n| poll(handle.clone(), n == 0, gives_up, over.clone(), schedule.fork()))
        .map(tokio::spawn)
        .collect();
    // A session that has not begun has no frames.
    let mut accepted = beat(handle.clone(), 0..1, schedule.fork()).await;
    let mut sending: Vec<JoinHandle<Accepted>> = (0..SENDERS)
        .map(|sender| tokio::spawn(send(outbox.clone(), sender, essential, schedule.fork())))
        .collect();
    // A reply waits for no room.
    let beats = if frames == 1_000 { schedule.pick(1..8) } else { 1 };
    let beats = 1..u32::try_from(beats).unwrap();
    sending.push(tokio::spawn(beat(handle.clone(), beats, schedule.fork())));

    if ending != Ending::Afterwards {
        for _ in 0..schedule.pick(..60) {
            schedule.pause().await;
        }
    }
    match ending {
        Ending::Afterwards => {}
        Ending::Meanwhile => outbox.end(SocketEnd::Disconnected),
        Ending::Aborted => living.abort(),
    }
    for sender in sending {
        let sent = timeout(PATIENCE, sender).await;
        let sent = sent.unwrap_or_else(|_| panic!("a sender waits forever: {about}")).unwrap();
        accepted.least += sent.least;
        accepted.most += sent.most;
    }
    if ending == Ending::Afterwards {
        eventually(|| outbox.load() == Load::default()).await;
        outbox.end(SocketEnd::Disconnected);
    }
    let all_fetched = timeout(PATIENCE, living).await;
    let all_fetched = all_fetched.unwrap_or_else(|_| panic!("the session does not end: {about}"));
    over.cancel();
    let (mut numbers, mut received) = (HashMap::<u8, Vec<u32>>::new(), 0);
    for poll in polls {
        let mut last = HashMap::new();
        for (sender, number) in poll.await.unwrap().into_iter().flatten() {
            let before = last.insert(sender, number);
            assert!(before < Some(number), "{number} of {sender} after {before:?}: {about}");
            numbers.entry(sender).or_default().push(number);
            received += 1;
        }
    }
    for (sender, numbers) in &mut numbers {
        numbers.sort_unstable();
        let is_once = numbers.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(is_once, "{numbers:?} of {sender} arrived twice: {about}");
        let last = numbers.last().map(|last| *last as usize + 1);
        let is_whole = last == Some(numbers.len());
        // Frames that were passed to a poll that had been given up are lost.
        let loses = gives_up || matches!(when_full, WhenFull::DropOldest | WhenFull::KeepLatest);
        assert!(is_whole || loses, "{numbers:?} of {sender}: {about}");
    }
    let fetched = metrics.frames_out.get();
    let dropped: u64 = metrics.dropped().iter().map(|(_, count)| count).sum();
    assert!(received <= fetched, "{received} of {fetched} fetched: {about}");
    if !gives_up && ending != Ending::Aborted {
        assert_eq!(received, fetched, "{about}");
    }
    if ending == Ending::Afterwards {
        assert!(gives_up || all_fetched.unwrap(), "all frames were fetched: {about}");
        assert_eq!(fetched + dropped, accepted.most, "{about}");
    }
    let total = fetched + dropped;
    let possible = accepted.least..=accepted.most;
    assert!(possible.contains(&total), "{fetched} and {dropped}, {accepted:?}: {about}");
    assert_eq!(metrics.closed_slow.get(), 0, "{about}");
    assert_eq!((outbox.load(), state.outboxes.bytes()), (Load::default(), 0), "{about}");
    assert!(sessions.open.table.lock().sessions.is_empty(), "{about}");
}

#[test]
fn every_frame_is_fetched_once_and_in_order_or_is_counted_however_a_client_polls() {
    on_any_schedule(400, case);
}
