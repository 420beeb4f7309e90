//! A test's client.

use std::{
    future::Future,
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pipeline_core::{Deadline, ExitReason};
use thiserror::Error;
use tokio::{sync::mpsc, time::timeout};

use super::{
    channel::TestChannel,
    connection::Command,
    inbox::{ChannelKey, TestInbox},
    message::{Content, Recipient, WireFrame, client_frame},
    topic::TestTopic,
};
use crate::{
    endpoint::Endpoint,
    payload::{IntoPayload, Payload},
    protocol::reference::{Ref, quoted},
};

/// The time limit of a join, of a channel's end and of a frame: the timeout of the official client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connected client: see [`TestEndpoint`](super::TestEndpoint).
///
/// Cheap to clone; all clones are the same client. It closes its connection when its last clone and
/// its last [`TestChannel`] are dropped. It never times out, however far the test advances the
/// clock.
#[derive(Clone, Debug)]
pub struct TestSocket {
    line: Arc<Line>,
}

/// The connection to a socket's task.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) inbox: Arc<TestInbox>,
    pub(super) number: u64,
    /// Keeps the endpoint alive: without it, the socket would be disconnected.
    endpoint: Endpoint,
    commands: mpsc::Sender<Command>,
    references: AtomicU64,
    id: Option<String>,
}

/// A client's join was refused.
///
/// ```
/// use pipeline_ws_sink::channel_test::{JoinRefused, TestSocket};
/// use serde_json::{Value, json};
///
/// # async fn test(socket: TestSocket) {
/// let refused = socket.join("room:secret", json!({})).await.unwrap_err();
/// assert_eq!(refused.json(), json!({ "reason": "unauthorized" }));
/// # }
/// ```
#[derive(Clone, Debug, Error)]
#[error("the join was refused with {response:?}{}", because(crash.as_ref()))]
#[non_exhaustive]
pub struct JoinRefused {
    /// The response to the client.
    pub response: Payload,
    /// The reason of the crash, if the join crashed.
    pub crash: Option<ExitReason>,
}

fn because(crash: Option<&ExitReason>) -> String {
    crash.map(|reason| format!(", because it {reason}")).unwrap_or_default()
}

impl JoinRefused {
    /// The response as JSON; null if it was binary.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        self.response.parse().unwrap_or_default()
    }
}

impl TestSocket {
    pub(super) fn new(
        inbox: Arc<TestInbox>,
        number: u64,
        commands: mpsc::Sender<Command>,
        endpoint: Endpoint,
        id: Option<String>,
    ) -> Self {
        let references = AtomicU64::new(1);
        Self { line: Arc::new(Line { inbox, number, endpoint, commands, references, id }) }
    }

    /// The socket's id, if it has one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.line.id.as_deref()
    }

    /// Joins a topic by the socket's routes, and subscribes to its broadcasts: the counterpart of
    /// `subscribe_and_join` of `Phoenix.ChannelTest`.
    ///
    /// Give the socket one route for `*` to join any topic with one kind of channel.
    ///
    /// # Errors
    ///
    /// [`JoinRefused`] holds the response to the client.
    ///
    /// # Panics
    ///
    /// If there is no answer within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the client may have joined, and receives its messages.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::{JoinRefused, TestSocket};
    /// # use serde_json::json;
    /// # async fn test(socket: TestSocket) -> Result<(), JoinRefused> {
    /// let room = socket.join("room:1", json!({ "since": 7 })).await?;
    /// assert_eq!(room.joined().json(), Some(r#"{"messages":[]}"#));
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn join(
        &self,
        topic: &str,
        payload: impl IntoPayload,
    ) -> impl Future<Output = Result<TestChannel, JoinRefused>> {
        let payload = payload.into_payload().expect("the payload has a JSON form");
        self.line.clone().join(topic.to_owned(), payload, Location::caller())
    }

    /// Sends a frame as it is. The answer is a [`frame`](Self::frame) too.
    ///
    /// # Panics
    ///
    /// If 1024 messages are already waiting for the socket.
    #[track_caller]
    pub fn send(&self, frame: impl Into<WireFrame>) {
        self.line.send(frame.into());
    }

    /// Takes the next frame: the oldest that no assertion has taken.
    ///
    /// # Panics
    ///
    /// If no frame arrives within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::TestSocket;
    /// # use serde_json::json;
    /// # async fn test(socket: TestSocket) {
    /// socket.send(json!([null, "1", "phoenix", "heartbeat", {}]));
    /// let answer = json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]);
    /// assert_eq!(socket.frame().await.json(), answer);
    /// # }
    /// ```
    #[track_caller]
    pub fn frame(&self) -> impl Future<Output = WireFrame> {
        let (line, at) = (self.line.clone(), Location::caller());
        async move { line.until(Line::take_frame, "no frame arrived", at).await }
    }

    /// Takes all frames that have arrived, without waiting.
    #[must_use]
    pub fn frames(&self) -> Vec<WireFrame> {
        std::iter::from_fn(|| self.line.take_frame()).collect()
    }

    /// Closes the connection as a client or a network failure does, and waits until all channels
    /// have ended.
    ///
    /// Channels that have not ended after five seconds are aborted.
    ///
    /// # Panics
    ///
    /// If it takes ten seconds.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the connection may stay open.
    #[track_caller]
    pub fn close(&self) -> impl Future<Output = ()> {
        let (line, at) = (self.line.clone(), Location::caller());
        async move { line.close(at).await }
    }

    /// Waits until the connection is closed. Returns the close code: 1001 after a disconnect, 1012
    /// if the endpoint drains, 1011 if the client has sent an invalid message.
    ///
    /// # Panics
    ///
    /// If it is not closed within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::{TestEndpoint, TestSocket};
    /// # async fn test(kit: TestEndpoint, socket: TestSocket) {
    /// kit.endpoint().disconnect("users_socket:42");
    /// assert_eq!(socket.closed().await, Some(1001));
    /// # }
    /// ```
    #[track_caller]
    pub fn closed(&self) -> impl Future<Output = Option<u16>> {
        let (line, at) = (self.line.clone(), Location::caller());
        let is_open = "the connection is still open";
        async move { line.until(|line| line.inbox.close_code(line.number), is_open, at).await }
    }
}

impl Line {
    async fn join(
        self: Arc<Self>,
        topic: String,
        payload: Payload,
        at: &'static Location<'static>,
    ) -> Result<TestChannel, JoinRefused> {
        let join_ref = self.reference();
        let listening = TestTopic::new(&self.inbox, self.endpoint.pubsub(), &topic);
        let (socket, shared) = (self.number, topic.as_str().into());
        let key = ChannelKey { socket, topic: shared, join_ref: join_ref.clone() };
        self.inbox.follow(key.clone());
        self.send(client_frame(&join_ref, &join_ref, &topic, "phx_join", &payload));
        let no_answer = format!("the join of {topic} is not answered");
        let (status, response) =
            self.until(|line| line.take_reply(&topic, &join_ref), &no_answer, at).await;
        if status != "ok" {
            let crash = self.inbox.forget(&key);
            return Err(JoinRefused { response, crash });
        }
        self.inbox.link(&key, true);
        Ok(TestChannel::new(self, key, listening, response))
    }

    pub(super) async fn close(&self, at: &'static Location<'static>) {
        // If the receiver is gone, the connection is already closed.
        let _ = self.commands.send(Command::Close).await;
        // The socket's task drops its receiver when everything else is done.
        let gone = timeout(PATIENCE, self.commands.closed()).await;
        assert!(gone.is_ok(), "the connection has not ended within {PATIENCE:?}, at {at}");
    }

    #[track_caller]
    pub(super) fn send(&self, frame: WireFrame) {
        match self.commands.try_send(Command::Send(frame)) {
            Ok(()) => {}
            // As on the wire, messages to a closed connection are lost.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                panic!(
                    "too many messages are waiting for the socket: await an answer before sending more"
                )
            }
        }
    }

    pub(super) fn reference(&self) -> Ref {
        let number = self.references.fetch_add(1, Ordering::Relaxed);
        Ref::new(&quoted(&number.to_string()))
    }

    /// Waits until a message or a state is found.
    pub(super) async fn until<T>(
        &self,
        mut look: impl FnMut(&Self) -> Option<T>,
        what_not: &str,
        at: &'static Location<'static>,
    ) -> T {
        let deadline = Deadline::from_now(PATIENCE);
        let mut watching = self.inbox.watch();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if deadline.limit(watching.changed()).await.is_err() {
                let listing = self.inbox.listing();
                panic!("{what_not} within {PATIENCE:?}, at {at}\n{listing}");
            }
        }
    }

    fn take_reply(&self, topic: &str, to: &Ref) -> Option<(String, Payload)> {
        self.inbox.take(|message| match &message.content {
            Content::Reply { reference, status, response }
                if message.to == Recipient::Socket(self.number)
                    && message.topic == topic
                    && reference == to =>
            {
                Some((status.clone(), response.clone()))
            }
            _ => None,
        })
    }

    fn take_frame(&self) -> Option<WireFrame> {
        self.inbox.take(|message| match message.to {
            Recipient::Socket(number) if number == self.number => message.frame.clone(),
            _ => None,
        })
    }
}
