//! The task of a test's socket: like the task of a WebSocket, without the WebSocket.

use std::{future::poll_fn, sync::Arc};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::{
    mail::{Mail, WireFrame},
    mailroom::{Mailroom, Witness},
};
use crate::{
    endpoint::state::EndpointState,
    handshake::{Identity, Mounted, WEBSOCKET},
    outbox::{Outbox, Writer},
    protocol::{frame::Frame, version::Version},
    session::{Session, end::SocketEnd},
    socket::Socket,
};

/// How many messages of the test may wait for the socket.
const WAITING: usize = 1024;

/// A command from the test to its socket.
#[derive(Debug)]
pub(super) enum Command {
    Say(WireFrame),
    Close,
}

/// A socket's connection to the kit.
#[derive(Debug)]
pub(crate) struct Seat {
    mailroom: Arc<Mailroom>,
    number: u64,
    commands: mpsc::Receiver<Command>,
}

impl Seat {
    /// A new seat, its number, and the sender of its commands.
    pub(super) fn new(mailroom: &Arc<Mailroom>) -> (Self, u64, mpsc::Sender<Command>) {
        let (sender, commands) = mpsc::channel(WAITING);
        let number = mailroom.number();
        (Self { mailroom: mailroom.clone(), number, commands }, number, sender)
    }

    /// Runs a connected socket, until the test or the endpoint ends it.
    pub(crate) fn take<S: Socket>(
        self,
        mounted: Arc<Mounted<S>>,
        state: &Arc<EndpointState>,
        assigns: S::Assigns,
        id: Option<String>,
    ) {
        let outbox = Outbox::new(Writer::Fetched, mounted.options.outbox, state.metrics.clone())
            .among(&state.outboxes)
            .when_full(mounted.options.when_full)
            .send_timeout(mounted.options.send_timeout);
        let outbox = Arc::new(outbox);
        let registration = state.sockets.register(&outbox, id.as_deref(), &mounted.drainer);
        let witness = Witness { mailroom: self.mailroom.clone(), socket: self.number };
        state.begin();
        let identity = Identity { assigns, id, version: Version::V2, transport: WEBSOCKET };
        let session = mounted.session(state, &outbox, identity).watched_by(witness);
        let abort = state.abort.clone();
        state.tasks.spawn(async move {
            let open = mounted.metrics.open.hold();
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = self.live(session, &outbox) => {}
            }
            drop((registration, open));
        });
    }

    async fn live<S: Socket>(mut self, mut session: Session<S>, outbox: &Arc<Outbox>) {
        let Self { mailroom, number, commands } = &mut self;
        let end = tokio::select! {
            end = listen(&mut session, commands) => end,
            end = deliver(mailroom, *number, outbox) => end,
            end = outbox.write() => end,
        };
        outbox.end(end);
        // Frames that were sent before the end arrive, as on the wire.
        if let Some(frames) = poll_fn(|cx| outbox.poll_fetch(cx)).now_or_never() {
            put(mailroom, *number, &frames);
        }
        mailroom.closed(*number, end.close_code());
        session.end(&end.reason()).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A socket that ended by itself has already recorded its code.
        self.mailroom.closed(self.number, None);
    }
}

/// Handles the test's messages, one after the other.
async fn listen<S: Socket>(
    session: &mut Session<S>,
    commands: &mut mpsc::Receiver<Command>,
) -> SocketEnd {
    loop {
        tokio::select! {
            () = session.changed() => session.catch_up().await,
            command = commands.recv() => match command {
                Some(Command::Say(frame)) => {
                    session.metrics().frames_in.increment(1);
                    let received = frame.received();
                    let held = session.hold(&received);
                    if let Err(end) = session.receive(received, held).await {
                        return end;
                    }
                }
                Some(Command::Close) | None => return SocketEnd::Closed,
            }
        }
    }
}

/// Delivers the socket's frames to the test.
async fn deliver(mailroom: &Mailroom, number: u64, outbox: &Outbox) -> SocketEnd {
    loop {
        let frames = poll_fn(|cx| outbox.poll_fetch(cx)).await;
        put(mailroom, number, &frames);
    }
}

fn put(mailroom: &Mailroom, number: u64, frames: &[Frame]) {
    mailroom.put(frames.iter().map(|frame| Mail::to_socket(number, frame)));
}
