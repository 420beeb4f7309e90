//! The task of one WebSocket.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use pipeline_core::Deadline;
use tokio::{task::coop, time};

use super::io::Reader;
use crate::{
    end::SocketEnd,
    mount::MountOptions,
    outbox::Outbox,
    protocol::{
        connection::{Decoder, Incoming},
        frame::Frame,
    },
    session::Session,
    socket::Socket,
};

/// How long the closing of a connection may take: to write what waits, and to hear the client close.
const CLOSING: Duration = Duration::from_secs(5);

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

/// Lives on a connection until it ends, then closes it and ends its channels.
pub(crate) async fn live<S: Socket>(
    reader: Reader,
    received: Bytes,
    mut session: Session<S>,
    outbox: &Arc<Outbox>,
    options: &MountOptions,
) {
    let mut stream = Stream { reader, outbox };
    let mut decoder = Decoder::new(options.limits, received).inflating(outbox.compresses());
    // Each is a loop of its own, because none of them may wait for another: while a message waits
    // for room in a channel, frames still go out.
    let end = tokio::select! {
        end = listen(&mut stream.reader, &mut decoder, &mut session, outbox) => end,
        end = outbox.write() => end,
        () = silence(outbox, options.timeout) => SocketEnd::Idle,
    };
    tracing::debug!(?end, "a socket ends");
    let reason = end.reason();
    let closing = async move {
        if let Some(code) = end.close_code() {
            outbox.finish(&Frame::close(code));
            let _ = time::timeout(CLOSING, close(&mut stream.reader, decoder, outbox, end)).await;
        }
        // As soon as it is closed, however long the channels take to end.
        drop(stream);
    };
    tokio::join!(closing, session.end(&reason));
}

/// Handles what the client sends, one message after the other.
async fn listen<S: Socket>(
    reader: &mut Reader,
    decoder: &mut Decoder,
    session: &mut Session<S>,
    outbox: &Arc<Outbox>,
) -> SocketEnd {
    loop {
        loop {
            let incoming = match decoder.next() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                Err(error) => return SocketEnd::Protocol(error),
            };
            session.metrics().frames_in.increment(1);
            match incoming {
                Incoming::Message(message) => {
                    if let Err(end) = session.receive(message).await {
                        return end;
                    }
                }
                Incoming::Ping(payload) => outbox.send(&Frame::pong(&payload), None),
                Incoming::Pong => {}
                Incoming::Close => return SocketEnd::Closed,
            }
        }
        decoder.release();
        tokio::select! {
            () = session.changed() => session.catch_up().await,
            read = reader.read(decoder.buffer()) => match read {
                Ok(0) | Err(_) => return SocketEnd::Lost,
                Ok(_) => outbox.heard(),
            }
        }
    }
}

/// Waits until nothing was received or written for too long.
pub(super) async fn silence(outbox: &Outbox, timeout: Duration) {
    let mut last = outbox.last_active();
    loop {
        Deadline::after(last, timeout).passed().await;
        let now = outbox.last_active();
        if now == last {
            return;
        }
        last = now;
    }
}

/// Writes what is left, and waits for the client to close its side too, unless it has.
async fn close(reader: &mut Reader, mut decoder: Decoder, outbox: &Outbox, end: SocketEnd) {
    if poll_fn(|cx| outbox.poll_close(cx)).await.is_err() || end == SocketEnd::Closed {
        return;
    }
    // What follows an error of the protocol cannot be understood.
    let understood = !matches!(end, SocketEnd::Protocol(_));
    if !(understood && close_is_heard(reader, &mut decoder).await) {
        linger(reader, outbox).await;
    }
}

/// Waits until the client has closed its side, or is gone. False if it cannot be understood any more.
async fn close_is_heard(reader: &mut Reader, decoder: &mut Decoder) -> bool {
    loop {
        coop::consume_budget().await;
        match decoder.next() {
            Ok(Some(Incoming::Close)) => return true,
            Ok(Some(_)) => {}
            Ok(None) => match reader.read(decoder.buffer()).await {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
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
async fn linger(reader: &mut Reader, outbox: &Outbox) {
    if outbox.end_writing().is_err() {
        return;
    }
    let mut unread = BytesMut::new();
    while let Ok(1..) = reader.read(&mut unread).await {
        unread.clear();
        coop::consume_budget().await;
    }
}
