//! The task of a test's socket: like the task of a WebSocket, without the WebSocket.

use std::{future::poll_fn, sync::Arc};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::{
    inbox::{Probe, TestInbox},
    message::{TestMessage, WireFrame},
};
use crate::{
    endpoint::{sockets::Entrant, state::EndpointState},
    handshake::{Connected, Mounted, WEBSOCKET},
    outbox::{FetchedFrames, Outbox, Writer},
    protocol::version::Version,
    session::{Session, end::SocketEnd},
    socket::Socket,
};

/// How many messages of the test may wait for the socket.
const WAITING: usize = 1024;

/// A command from the test to its socket.
#[derive(Debug)]
pub(super) enum Command {
    Send(WireFrame),
    Close,
}

/// A socket's connection to the kit.
#[derive(Debug)]
pub(crate) struct TestConnection {
    inbox: Arc<TestInbox>,
    number: u64,
    commands: mpsc::Receiver<Command>,
}

impl TestConnection {
    /// A new connection, its number, and the sender of its commands.
    pub(super) fn new(inbox: &Arc<TestInbox>) -> (Self, u64, mpsc::Sender<Command>) {
        let (sender, commands) = mpsc::channel(WAITING);
        let number = inbox.number();
        (Self { inbox: inbox.clone(), number, commands }, number, sender)
    }

    /// Runs a connected socket, until the test or the endpoint ends it.
    pub(crate) fn run<S: Socket>(
        self,
        mounted: Arc<Mounted<S>>,
        state: &Arc<EndpointState>,
        entrant: Entrant,
        connected: Connected<S>,
    ) {
        let outbox = Outbox::new(Writer::Fetched, mounted.options.outbox, state.metrics.clone())
            .among(&state.outboxes)
            .when_full(mounted.options.when_full)
            .send_timeout(mounted.options.send_timeout);
        let outbox = Arc::new(outbox);
        let registration = entrant.register(&outbox, connected.id.as_deref(), &mounted.drainer);
        let probe = Probe { inbox: self.inbox.clone(), socket: self.number };
        state.begin();
        let identity = connected.by(WEBSOCKET, Version::V2);
        let session = mounted.session(state, &outbox, identity).probed_by(probe);
        registration.answered_by(session.questioned());
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
        let Self { inbox, number, commands } = &mut self;
        let connection = session.connection().clone();
        let end = tokio::select! {
            end = listen(&mut session, commands) => end,
            end = deliver(inbox, *number, outbox) => end,
            end = outbox.write() => end,
            end = connection.expired() => end,
        };
        outbox.end(end);
        // Frames that were sent before the end arrive, as on the wire.
        if let Some(fetched) = poll_fn(|cx| outbox.poll_fetch(cx)).now_or_never() {
            put(inbox, *number, fetched);
        }
        inbox.closed(*number, end.close_code());
        session.end(&end.reason()).await;
    }
}

impl Drop for TestConnection {
    fn drop(&mut self) {
        // A socket that ended by itself has already recorded its code.
        self.inbox.closed(self.number, None);
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
                Some(Command::Send(frame)) => {
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
async fn deliver(inbox: &TestInbox, number: u64, outbox: &Outbox) -> SocketEnd {
    loop {
        let fetched = poll_fn(|cx| outbox.poll_fetch(cx)).await;
        put(inbox, number, fetched);
    }
}

fn put(inbox: &TestInbox, number: u64, mut fetched: FetchedFrames) {
    fetched.were_written();
    inbox.put(fetched.iter().map(|frame| TestMessage::to_socket(number, frame)));
}
