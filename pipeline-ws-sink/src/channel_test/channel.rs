//! A channel that a test has joined.

use std::{future::Future, panic::Location, sync::Arc};

use pipeline_core::ExitReason;

use super::{
    inbox::ChannelKey,
    message::{ExpectedKind, Recipient, client_frame},
    search::Search,
    socket::Line,
    topic::TestTopic,
};
use crate::{
    channel::{Channel, ChannelHandle},
    payload::{IntoPayload, Payload},
    protocol::reference::Ref,
};

/// A channel that a test has joined: see [`TestSocket::join`](super::TestSocket::join).
///
/// It is linked to the test: when the channel crashes, the next assertion fails, whatever it looks
/// for, unless the channel has been [unlinked](Self::unlink) or its end [awaited](Self::exit_reason).
///
/// Dropping it does not make the client leave; it only stops recording the topic's broadcasts.
#[derive(Debug)]
pub struct TestChannel {
    line: Arc<Line>,
    key: ChannelKey,
    listening: TestTopic,
    joined: Payload,
}

impl TestChannel {
    pub(super) fn new(
        line: Arc<Line>,
        key: ChannelKey,
        listening: TestTopic,
        joined: Payload,
    ) -> Self {
        Self { line, key, listening, joined }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.key.topic
    }

    /// The join reference, which is in the frames of the channel.
    #[must_use]
    pub fn join_ref(&self) -> &Ref {
        &self.key.join_ref
    }

    /// The response to the join: `{}`, or the response set with
    /// [`JoinContext::reply`](crate::channel::JoinContext::reply).
    #[must_use]
    pub fn joined(&self) -> &Payload {
        &self.joined
    }

    /// Sends the channel an event from its client. Returns the reference of the message, which is
    /// in its [reply](super::assert_reply).
    ///
    /// It does not wait for the channel: to know that an event has been handled, wait for its
    /// reply. Binary payloads are sent in binary frames.
    ///
    /// # Panics
    ///
    /// If the payload has no JSON form, or if 1024 messages are already waiting for the socket.
    #[track_caller]
    pub fn push(&self, event: &str, payload: impl IntoPayload) -> Ref {
        let payload = payload.into_payload().expect("the payload has a JSON form");
        let reference = self.line.reference();
        self.line.send(client_frame(&self.key.join_ref, &reference, self.topic(), event, &payload));
        reference
    }

    /// Makes the client leave. Returns the reference of the message, which is in its reply.
    ///
    /// # Panics
    ///
    /// If 1024 messages are already waiting for the socket.
    #[track_caller]
    pub fn leave(&self) -> Ref {
        self.push("phx_leave", Payload::empty())
    }

    /// Closes the client's connection, with all its channels: see
    /// [`TestSocket::close`](super::TestSocket::close). Returns when they have ended.
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

    /// Sends an event to all subscribers of the topic except this test: to the channel, and so to
    /// its client.
    ///
    /// # Panics
    ///
    /// If the payload is not a JSON object or binary.
    #[track_caller]
    pub fn broadcast_from(&self, event: &str, payload: impl IntoPayload) {
        self.listening.broadcast_from(event, payload);
    }

    /// A handle that sends the channel messages: those that it
    /// [handles](crate::channel::HandleMessage).
    ///
    /// # Panics
    ///
    /// If the channel is of another kind, or has ended.
    ///
    /// ```
    /// # use pipeline_ws_sink::{
    /// #     channel::{HandleMessage, SendError},
    /// #     channel_test::{TestChannel, assert_push},
    /// # };
    /// # async fn test<RoomChannel: HandleMessage<u64>>(room: TestChannel) -> Result<(), SendError> {
    /// room.handle::<RoomChannel>().send(42).await?;
    /// assert_push!(room, "number", { "n": 42 });
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    #[track_caller]
    pub fn handle<C: Channel>(&self) -> ChannelHandle<C> {
        let handle = self.line.inbox.handle::<C>(&self.key);
        let Some(handle) = handle else {
            panic!("there is no channel {} on {}, or it has ended", C::name(), self.topic())
        };
        handle
    }

    /// Allows the channel to crash without failing the test. Call it before the crash: afterwards,
    /// the next assertion fails.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::{TestChannel, assert_push, assert_reply};
    /// # use serde_json::json;
    /// # async fn test(room: TestChannel) {
    /// room.unlink();
    /// let nonsense = room.push("nonsense", json!({}));
    /// assert_reply!(room, nonsense, "error");
    /// assert_push!(room, "phx_error");
    /// # }
    /// ```
    pub fn unlink(&self) {
        self.line.inbox.link(&self.key, false);
    }

    /// Waits until the channel has ended, including its `terminate`, and returns the reason. The
    /// channel may crash: see [`unlink`](Self::unlink).
    ///
    /// [`ExitReason::Killed`] means that it was replaced by another join of its topic, or that it
    /// has not ended in time.
    ///
    /// # Panics
    ///
    /// If it has not ended within ten seconds.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; the channel stays unlinked.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::TestChannel;
    /// # use serde_json::json;
    /// # async fn test(room: TestChannel) {
    /// room.push("nonsense", json!({}));
    /// assert_eq!(room.exit_reason().await.to_string(), "failed: the channel has no event \"nonsense\"");
    /// # }
    /// ```
    #[track_caller]
    pub fn exit_reason(&self) -> impl Future<Output = ExitReason> {
        self.unlink();
        let at = Location::caller();
        let lives = format!("the channel on {} has not ended", self.topic());
        let (line, key) = (self.line.clone(), self.key.clone());
        async move { line.until(|line| line.inbox.end_of(&key), &lives, at).await }
    }

    #[doc(hidden)]
    pub fn pushes(&self, event: &str) -> Search {
        let join_ref = self.key.join_ref.clone();
        self.search(ExpectedKind::Push { join_ref, event: event.to_owned() })
    }

    #[doc(hidden)]
    pub fn replies(&self, reference: &Ref, status: &str) -> Search {
        self.search(ExpectedKind::Reply { reference: reference.clone(), status: status.to_owned() })
    }

    #[doc(hidden)]
    pub fn broadcasts(&self, event: &str) -> Search {
        self.listening.broadcasts(event)
    }

    fn search(&self, kind: ExpectedKind) -> Search {
        let to = Recipient::Socket(self.line.number);
        Search::new(&self.line.inbox, to, self.topic(), kind)
    }
}
