//! The task of one WebSocket.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use pipeline_core::Deadline;
use tokio::time::{self, Instant};

use super::{
    endings::Endings,
    io::Reader,
    read_pace::{ReadPace, cost_of},
};
use crate::{
    endpoint::mount::MountOptions,
    outbox::{
        Outbox,
        late::{RECOVERY, is_late},
    },
    protocol::{
        connection::{CHUNK, Decoder, Incoming, Passed, Rest},
        frame::Frame,
    },
    session::{PATIENCE, Session, cost, end::SocketEnd, inbox::Inbox, pay},
    socket::Socket,
    telemetry::log_line,
};

/// How long closing a connection may take: writing the pending frames, and waiting for the client's
/// close.
const CLOSING: Duration = Duration::from_secs(5);

/// How long a seemingly silent socket is read from once more.
const ONCE_MORE: Duration = Duration::from_millis(10);

/// The longest pause in reading before the pause counts as a sign of life: the client is not
/// silent, it is not read from.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The two ends of a connection, which is closed when this is dropped: other owners of the outbox,
/// such as a later answer, do not keep it open.
struct Stream<'a> {
    reader: Reader,
    outbox: &'a Arc<Outbox>,
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.outbox.release();
    }
}

/// Serves a connection until it ends, then closes it and ends its channels. Returns false if the
/// client has not taken all of its frames, including the close frame.
pub(crate) async fn live<S: Socket>(
    reader: Reader,
    received: Bytes,
    mut session: Session<S>,
    outbox: &Arc<Outbox>,
    options: &MountOptions,
    endings: &Endings,
) -> bool {
    let mut stream = Stream { reader, outbox };
    let mut decoder = Decoder::new(options.limits, received).inflating(outbox.compresses());
    let pace = ReadPace::new(options.frame_rate_limit, Instant::now());
    let due = || {
        let heard = Deadline::after(outbox.last_heard(), options.receive_timeout());
        heard.min(Deadline::after(outbox.last_active(), options.idle_timeout))
    };
    let connection = session.connection().clone();
    // Each is a loop of its own, because none of them may wait for another: while a message waits
    // for room, frames are still written. In this order, because each may use up the task's budget
    // and received data is read before the socket counts as silent.
    let end = tokio::select! {
        biased;
        end = outbox.write() => end,
        end = listen(&mut stream.reader, &mut decoder, &mut session, outbox, pace) => end,
        end = connection.expired() => end,
        () = silence(due) => SocketEnd::Idle,
    };
    drop(connection);
    log_line!(DEBUG, ?end, "closing socket");
    if end == SocketEnd::Overflow {
        session.is_too_slow();
    }
    // Pushes of channels fail from here on.
    outbox.end(end);
    let reason = end.reason();
    // Boxed, so that an open socket is no larger.
    let closing = Box::pin(async move {
        let mut is_taken = true;
        if let Some(code) = end.close_code() {
            is_taken = false;
            outbox.finish(end, &Frame::close_because(code, end.explanation()));
            // Data from here on is read at the client's rate as well. Skipping it costs less than
            // handling it, so the pace starts afresh for a client that was too fast already.
            let pace = ReadPace::new(options.frame_rate_limit, Instant::now());
            let rest = decoder.into_rest();
            let closed = close(&mut stream.reader, rest, pace, outbox, end, &mut is_taken);
            let _ = time::timeout(CLOSING, closed).await;
        }
        // Dropped as soon as it is closed, however long the channels take to end.
        drop(stream);
        is_taken
    });
    tokio::join!(closing, Box::pin(endings.in_turn(session.end(&reason)))).0
}

/// The end of a connection that became no socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// The frame has been written.
    Told,
    /// The client did not take it in time.
    Late,
    /// The client was gone before.
    Gone,
}

/// Closes a connection that is no socket: skips what the client sends until `due`, sends this frame, sets
/// `parting`, and waits for the client to close its side too.
pub(crate) async fn refuse(
    reader: Reader,
    received: Bytes,
    outbox: &Arc<Outbox>,
    last: &Frame,
    options: &MountOptions,
    due: impl Future<Output = ()>,
    parting: &mut Parting,
) {
    let mut stream = Stream { reader, outbox };
    let mut pace = ReadPace::new(options.frame_rate_limit, Instant::now());
    let mut rest = Decoder::new(options.limits, received).into_rest();
    // A client that leaves gives its place back at once, so its side is read from meanwhile.
    let mut due = pin!(due);
    let mut parted = false;
    let heard = tokio::select! {
        biased;
        heard = skip(&mut stream.reader, &mut rest, &mut pace, outbox) => Some(heard),
        () = &mut due => None,
    };
    match heard {
        Some(Heard::End) => parted = true,
        // Such a client would come again without a pause. It may leave meanwhile.
        Some(Heard::Nonsense) => tokio::select! {
            biased;
            () = discard(&mut stream.reader, &mut pace, outbox) => parted = true,
            () = &mut due => {}
        },
        Some(Heard::Close) | None => {}
    }
    if parted {
        *parting = Parting::Gone;
        return;
    }
    outbox.finish(SocketEnd::Refused, last);
    let closed = async {
        if poll_fn(|cx| outbox.poll_close(cx)).await.is_err() {
            *parting = Parting::Gone;
            return;
        }
        *parting = Parting::Told;
        if heard != Some(Heard::Close) {
            let understood = heard != Some(Heard::Nonsense);
            hear_close(&mut stream.reader, rest, pace, outbox, understood).await;
        }
    };
    let _ = time::timeout(CLOSING, closed).await;
}

/// Handles the client's messages, one after the other.
async fn listen<S: Socket>(
    reader: &mut Reader,
    decoder: &mut Decoder,
    session: &mut Session<S>,
    outbox: &Arc<Outbox>,
    mut pace: ReadPace,
) -> SocketEnd {
    let inbox = session.inbox().clone();
    let mut part = inbox.hold(0);
    loop {
        let mut now = Instant::now();
        loop {
            if decoder.is_inflating() && !inbox.has_shared_room() {
                let room = Box::pin(room_for_part(&inbox, Deadline::from_now(PATIENCE)));
                if let Err(end) = meanwhile(session, room).await {
                    return end;
                }
            }
            let incoming = match decoder.next() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                Err(error) => return SocketEnd::Protocol(error),
            };
            // All data counts before any wait.
            let held = match &incoming {
                Incoming::Message(message) => Some(session.hold(message)),
                _ => None,
            };
            part.resize(decoder.held());
            let cost = cost_of(&incoming);
            pay(cost + session.unpaid()).await;
            if !matches!(incoming, Incoming::Inflated(_)) {
                session.metrics().frames_in.increment(1);
            }
            match (incoming, held) {
                (Incoming::Message(message), Some(held)) => {
                    if let Err(end) = session.receive(message, held).await {
                        return end;
                    }
                }
                (Incoming::Ping(payload), _) => outbox.send(&Frame::pong(&payload), None),
                (Incoming::Close, _) => return SocketEnd::Closed,
                _ => {}
            }
            pace.took(cost, now);
            if pace.wait(now).is_some() {
                // The last read was some time ago.
                now = Instant::now();
                if pace.wait(now).is_some() {
                    session.metrics().reads_paused_by_rate.increment(1);
                    // Boxed, so that a socket that never waits is no larger.
                    meanwhile(session, Box::pin(pause(&pace, outbox))).await;
                    now = Instant::now();
                }
            }
        }
        decoder.release();
        part.resize(decoder.held());
        let until = Deadline::from_now(PATIENCE);
        loop {
            tokio::select! {
                () = session.changed() => session.catch_up().await,
                read = read(reader, decoder, &inbox, until) => match read {
                    Ok(()) => {
                        outbox.heard();
                        break;
                    }
                    Err(end) => return end,
                }
            }
        }
    }
}

/// Waits until the client is within its rate again.
async fn pause(pace: &ReadPace, outbox: &Outbox) {
    while let Some(wait) = pace.wait(Instant::now()) {
        time::sleep(wait.min(LONGEST_PAUSE)).await;
        outbox.heard();
    }
}

/// Waits for a future while the session handles its channels' events.
async fn meanwhile<S: Socket, T>(
    session: &mut Session<S>,
    mut waiting: Pin<Box<impl Future<Output = T>>>,
) -> T {
    loop {
        tokio::select! {
            biased;
            done = &mut waiting => return done,
            () = session.changed() => session.catch_up().await,
        }
    }
}

/// Reads more data. An incomplete message waits for room until the deadline, if all sockets
/// together hold too much.
///
/// # Cancel safety
///
/// Cancel safe.
async fn read(
    reader: &mut Reader,
    decoder: &mut Decoder,
    inbox: &Inbox,
    until: Deadline,
) -> Result<(), SocketEnd> {
    // The wait is boxed, so that a socket that never waits is no larger.
    if decoder.held() > 0 && !inbox.has_shared_room() {
        Box::pin(room_for_part(inbox, until)).await?;
    }
    let wants = decoder.wants();
    match reader.read(decoder.buffer(), wants).await {
        Ok(0) | Err(_) => Err(SocketEnd::Lost),
        Ok(_) => Ok(()),
    }
}

/// Waits until an incomplete message may grow.
async fn room_for_part(inbox: &Inbox, until: Deadline) -> Result<(), SocketEnd> {
    tokio::select! {
        biased;
        () = inbox.shared_room() => Ok(()),
        () = until.passed() => Err(SocketEnd::Overloaded),
    }
}

/// Waits until the deadline has passed, which each sign of life postpones.
///
/// A process that was suspended finds that deadlines have passed before it has read the data that
/// arrived meanwhile. So the socket is read from once more before it counts as silent.
pub(super) async fn silence(due: impl Fn() -> Deadline) {
    loop {
        let deadline = due();
        deadline.passed().await;
        if due() > deadline {
            continue;
        }
        let late = deadline.instant().is_some_and(|at| is_late(at, Instant::now()));
        time::sleep(if late { RECOVERY } else { ONCE_MORE }).await;
        if due() <= deadline {
            return;
        }
    }
}

/// Writes the pending frames, sets `is_taken` when they have been written, and waits for the client
/// to close its side too, unless it has.
async fn close(
    reader: &mut Reader,
    rest: Rest,
    pace: ReadPace,
    outbox: &Outbox,
    end: SocketEnd,
    is_taken: &mut bool,
) {
    let written = poll_fn(|cx| outbox.poll_close(cx)).await;
    // A client that is gone takes nothing, so the wait ends here.
    *is_taken = true;
    if written.is_err() || end == SocketEnd::Closed {
        return;
    }
    // Data after a protocol error cannot be decoded.
    let understood = !matches!(end, SocketEnd::Protocol(_));
    hear_close(reader, rest, pace, outbox, understood).await;
}

/// Waits for the client to close its side, after the close frame has been written.
async fn hear_close(
    reader: &mut Reader,
    mut rest: Rest,
    mut pace: ReadPace,
    outbox: &Outbox,
    understood: bool,
) {
    if understood && skip(reader, &mut rest, &mut pace, outbox).await != Heard::Nonsense {
        return;
    }
    linger(reader, &mut pace, outbox).await;
}

/// What ends the data that is skipped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// The client's close frame.
    Close,
    /// The end of the stream.
    End,
    /// Data that cannot be decoded.
    Nonsense,
}

/// Skips what the client sends, until it has closed its side or is gone, or its data cannot be decoded any
/// more.
///
/// # Cancel safety
///
/// Cancel safe: the next call continues with the same frame.
async fn skip(reader: &mut Reader, rest: &mut Rest, pace: &mut ReadPace, outbox: &Outbox) -> Heard {
    loop {
        match rest.next() {
            Ok(Some(Passed::Close)) => return Heard::Close,
            Ok(Some(Passed::Frame)) => keep_pace(pace, cost(0), outbox).await,
            Ok(None) => match reader.read(rest.buffer(), CHUNK).await {
                Ok(0) | Err(_) => return Heard::End,
                Ok(bytes) => keep_pace(pace, cost(bytes), outbox).await,
            },
            Err(_) => return Heard::Nonsense,
        }
    }
}

/// Shuts down the write half for a client whose data cannot be decoded, and reads on until it
/// closes its side too.
///
/// Where bytes are left unread when a connection is closed, the system resets it, and the client may
/// lose the close frame that is on its way to it.
async fn linger(reader: &mut Reader, pace: &mut ReadPace, outbox: &Outbox) {
    if outbox.end_writing().is_ok() {
        discard(reader, pace, outbox).await;
    }
}

/// Reads on, and keeps nothing, until the client has closed its side or is gone.
async fn discard(reader: &mut Reader, pace: &mut ReadPace, outbox: &Outbox) {
    let mut unread = BytesMut::new();
    while let Ok(bytes @ 1..) = reader.read(&mut unread, CHUNK).await {
        unread.clear();
        keep_pace(pace, cost(bytes), outbox).await;
    }
}

/// Pays for skipped data, and waits where the client is too fast.
async fn keep_pace(pace: &mut ReadPace, cost: u64, outbox: &Outbox) {
    pay(cost).await;
    pace.took(cost, Instant::now());
    pause(pace, outbox).await;
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin};

    use futures::poll;

    use super::*;
    use crate::outbox::late::LATE;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_sign_of_life_postpones_silence() {
        let heard = Cell::new(Instant::now());
        let mut silence = pin!(silence(|| Deadline::after(heard.get(), MINUTE)));
        assert!(poll!(&mut silence).is_pending());
        time::sleep(MINUTE / 2).await;
        heard.set(Instant::now());
        silence.await;
        assert_eq!(heard.get().elapsed(), MINUTE + ONCE_MORE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_process_reads_received_data_before_a_socket_counts_as_silent() {
        let heard = Cell::new(Instant::now());
        let mut silence = pin!(silence(|| Deadline::after(heard.get(), MINUTE)));
        assert!(poll!(&mut silence).is_pending());
        time::advance(MINUTE + LATE).await;
        assert!(poll!(&mut silence).is_pending());
        time::sleep(RECOVERY / 2).await;
        heard.set(Instant::now());
        silence.await;
        assert_eq!(heard.get().elapsed(), MINUTE + ONCE_MORE);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_without_a_limit_never_ends_a_socket() {
        let due = || Deadline::after(Instant::now(), Duration::MAX);
        let year = Duration::from_secs(365 * 24 * 3600);
        assert!(time::timeout(year, silence(due)).await.is_err());
    }
}
