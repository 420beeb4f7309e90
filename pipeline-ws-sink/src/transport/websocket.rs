//! The task of one WebSocket.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time;

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

/// Lives on a connection until it ends, then closes it and ends its channels.
pub(crate) async fn live<S: Socket>(
    mut reader: Reader,
    received: Bytes,
    mut session: Session<S>,
    outbox: &Arc<Outbox>,
    options: &MountOptions,
) {
    let mut decoder = Decoder::new(options.limits, received).inflating(outbox.compresses());
    // Each is a loop of its own, because none of them may wait for another: while a message waits
    // for room in a channel, frames still go out.
    let end = tokio::select! {
        end = listen(&mut reader, &mut decoder, &mut session, outbox) => end,
        end = poll_fn(|cx| outbox.poll_write(cx)) => end,
        () = silence(outbox, options.timeout) => SocketEnd::Idle,
    };
    tracing::debug!(?end, "a socket ends");
    let reason = end.reason();
    let closing = async {
        if let Some(code) = end.close_code() {
            outbox.finish(&Frame::close(code));
            let closed = close(&mut reader, &mut decoder, outbox, end);
            let _ = time::timeout(CLOSING, closed).await;
        }
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
        time::sleep_until(last + timeout).await;
        let now = outbox.last_active();
        if now == last {
            return;
        }
        last = now;
    }
}

/// Writes what is left, and waits for the client to close its side too, unless it has.
async fn close(reader: &mut Reader, decoder: &mut Decoder, outbox: &Outbox, end: SocketEnd) {
    if poll_fn(|cx| outbox.poll_close(cx)).await.is_err() || end == SocketEnd::Closed {
        return;
    }
    loop {
        match decoder.next() {
            Ok(Some(Incoming::Close)) | Err(_) => return,
            Ok(Some(_)) => {}
            Ok(None) => match reader.read(decoder.buffer()).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
        }
    }
}
