//! The task of one WebSocket.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use pipeline_core::Deadline;
use tokio::{
    task::coop::consume_budget,
    time::{self, Instant},
};

use super::{
    io::Reader,
    read_pace::{ReadPace, cost, cost_of},
};
use crate::{
    end::SocketEnd,
    endings::Endings,
    inbox::Inbox,
    late::{RECOVERY, is_late},
    mount::MountOptions,
    outbox::Outbox,
    protocol::{
        connection::{CHUNK, Decoder, Incoming, Passed, Rest},
        frame::Frame,
    },
    session::{PATIENCE, Session},
    socket::Socket,
};

/// How long the closing of a connection may take: to write what waits, and to hear the client close.
const CLOSING: Duration = Duration::from_secs(5);

/// How long a socket that seems to be silent is listened to once more.
const ONCE_MORE: Duration = Duration::from_millis(10);

/// How long a client is not read from before that counts as a sign of life once more: it is not silent, it
/// is not heard.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The two ends of a connection, which is closed when this is dropped: whoever else has the outbox,
/// such as an answer that comes later, does not keep it open.
struct Stream<'a> {
    reader: Reader,
    outbox: &'a Arc<Outbox>,
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.outbox.release();
    }
}

/// Lives on a connection until it ends, then closes it and ends its channels. False if the client has not
/// taken all that was meant for it, the close frame last.
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
    let pace = ReadPace::new(options.max_frames, Instant::now());
    let due = || {
        let heard = Deadline::after(outbox.last_heard(), options.heard_within());
        heard.min(Deadline::after(outbox.last_active(), options.timeout))
    };
    // Each is a loop of its own, because none of them may wait for another: while a message waits
    // for room, frames still go out. In this order, because each may use up the task's budget and what
    // has arrived is read before the socket is called silent.
    let end = tokio::select! {
        biased;
        end = outbox.write() => end,
        end = listen(&mut stream.reader, &mut decoder, &mut session, outbox, pace) => end,
        () = silence(due) => SocketEnd::Idle,
    };
    tracing::debug!(?end, "a socket ends");
    // Channels that push hear of it.
    outbox.end(end);
    let reason = end.reason();
    // In boxes, so that a socket that is open is no larger for its end.
    let closing = Box::pin(async move {
        let mut is_taken = true;
        if let Some(code) = end.close_code() {
            is_taken = false;
            outbox.finish(&Frame::close_because(code, end.explanation()));
            // What comes from here on is read at the client's rate as well. It costs less than what is
            // handled, so a client that was too fast already is not held back for that.
            let pace = ReadPace::new(options.max_frames, Instant::now());
            let rest = decoder.into_rest();
            let closed = close(&mut stream.reader, rest, pace, outbox, end, &mut is_taken);
            let _ = time::timeout(CLOSING, closed).await;
        }
        // As soon as it is closed, however long the channels take to end.
        drop(stream);
        is_taken
    });
    tokio::join!(closing, Box::pin(endings.in_turn(session.end(&reason)))).0
}

/// Handles what the client sends, one message after the other.
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
            // All of it counts before anything is waited for.
            let held = match &incoming {
                Incoming::Message(message) => Some(session.hold(message)),
                _ => None,
            };
            part.resize(decoder.held());
            let cost = cost_of(&incoming);
            pay(cost).await;
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
                // Some time has passed since the last read.
                now = Instant::now();
                if pace.wait(now).is_some() {
                    session.metrics().reads_paused_by_rate.increment(1);
                    // In a box, so that a socket that never waits is no larger for it.
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

/// Waits until the client has no longer been faster than it may be.
async fn pause(pace: &ReadPace, outbox: &Outbox) {
    while let Some(wait) = pace.wait(Instant::now()) {
        time::sleep(wait.min(LONGEST_PAUSE)).await;
        outbox.heard();
    }
}

/// Waits for something while the session goes on.
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

/// Reads on. A message of which there is a part waits for room until the deadline, if all sockets together
/// hold too much.
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
    // What is waited for is in a box, so that a socket that never waits is no larger for it.
    if decoder.held() > 0 && !inbox.has_shared_room() {
        Box::pin(room_for_part(inbox, until)).await?;
    }
    let wants = decoder.wants();
    match reader.read(decoder.buffer(), wants).await {
        Ok(0) | Err(_) => Err(SocketEnd::Lost),
        Ok(_) => Ok(()),
    }
}

/// Waits until a message of which there is a part may become larger.
async fn room_for_part(inbox: &Inbox, until: Deadline) -> Result<(), SocketEnd> {
    tokio::select! {
        biased;
        () = inbox.shared_room() => Ok(()),
        () = until.passed() => Err(SocketEnd::Overloaded),
    }
}

/// Pays for what is handled out of the task's budget, and gives way to others once that is used up: a client
/// that sends without a pause must not keep a thread for itself.
pub(super) async fn pay(cost: u64) {
    for _ in 0..cost {
        consume_budget().await;
    }
}

/// Waits until the deadline has passed that each sign of life puts off.
///
/// A process that was stopped and goes on finds that deadlines have passed, and has not read yet what has
/// arrived meanwhile. So the socket is listened to once more before it counts as silent.
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

/// Writes what is left, says when that has been taken, and waits for the client to close its side too, unless
/// it has.
async fn close(
    reader: &mut Reader,
    mut rest: Rest,
    mut pace: ReadPace,
    outbox: &Outbox,
    end: SocketEnd,
    is_taken: &mut bool,
) {
    let written = poll_fn(|cx| outbox.poll_close(cx)).await;
    // A client that is gone takes nothing, and is waited for no longer.
    *is_taken = true;
    if written.is_err() || end == SocketEnd::Closed {
        return;
    }
    // What follows an error of the protocol cannot be understood.
    let understood = !matches!(end, SocketEnd::Protocol(_));
    if !(understood && close_is_heard(reader, &mut rest, &mut pace, outbox).await) {
        linger(reader, &mut pace, outbox).await;
    }
}

/// Waits until the client has closed its side, or is gone. False if it cannot be understood any more.
async fn close_is_heard(
    reader: &mut Reader,
    rest: &mut Rest,
    pace: &mut ReadPace,
    outbox: &Outbox,
) -> bool {
    loop {
        match rest.next() {
            Ok(Some(Passed::Close)) => return true,
            Ok(Some(Passed::Frame)) => keep_pace(pace, cost(0), outbox).await,
            Ok(None) => match reader.read(rest.buffer(), CHUNK).await {
                Ok(0) | Err(_) => return true,
                Ok(bytes) => keep_pace(pace, cost(bytes), outbox).await,
            },
            Err(_) => return false,
        }
    }
}

/// Tells a client that cannot be understood that nothing more comes, and reads on until it closes its
/// side too.
///
/// Where bytes are left unread when a connection is closed, the system resets it, and the client may
/// lose the close frame that is on its way to it.
async fn linger(reader: &mut Reader, pace: &mut ReadPace, outbox: &Outbox) {
    if outbox.end_writing().is_err() {
        return;
    }
    let mut unread = BytesMut::new();
    while let Ok(bytes @ 1..) = reader.read(&mut unread, CHUNK).await {
        unread.clear();
        keep_pace(pace, cost(bytes), outbox).await;
    }
}

/// Pays for what was read and is of no interest any more, and waits where the client is too fast.
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
    use crate::late::LATE;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_sign_of_life_puts_silence_off() {
        let heard = Cell::new(Instant::now());
        let mut silence = pin!(silence(|| Deadline::after(heard.get(), MINUTE)));
        assert!(poll!(&mut silence).is_pending());
        time::sleep(MINUTE / 2).await;
        heard.set(Instant::now());
        silence.await;
        assert_eq!(heard.get().elapsed(), MINUTE + ONCE_MORE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_reads_what_has_arrived_before_it_calls_a_socket_silent() {
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
    async fn a_socket_may_be_silent_for_ever() {
        let due = || Deadline::after(Instant::now(), Duration::MAX);
        let year = Duration::from_secs(365 * 24 * 3600);
        assert!(time::timeout(year, silence(due)).await.is_err());
    }
}
