//! The results of a channel's callbacks, and replies that are sent later.

use std::{borrow::Cow, fmt, sync::Arc};

use pipeline_core::ExitReason;
use serde_json::json;

use crate::{
    outbox::Outbox,
    payload::{IntoPayload, Payload, PayloadError},
    protocol::{
        message::Address,
        reference::{Ref, quoted},
        version::Version,
    },
    pubsub::topic::Topic,
};

/// The answer to a client's event: none, or a status with a response.
///
/// ```
/// use pipeline_ws_sink::channel::Reply;
/// use serde_json::json;
///
/// let nothing = Reply::none();
/// let done = Reply::ok();
/// let found = Reply::ok().with(json!({ "name": "Ada" }));
/// let wrong = Reply::error().with(json!({ "reason": "no such name" }));
/// let later = Reply::status("later");
/// ```
#[derive(Debug)]
#[must_use]
pub struct Reply(Option<Answer>);

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: Cow<'static, str>,
    pub(super) response: Result<Payload, PayloadError>,
}

impl Reply {
    /// No answer. A client that waits for one runs into its timeout.
    pub fn none() -> Self {
        Self(None)
    }

    /// Status `ok`, response `{}`.
    pub fn ok() -> Self {
        Self::status("ok")
    }

    /// Status `error`, response `{}`.
    pub fn error() -> Self {
        Self::status("error")
    }

    /// Any status, which the client can listen for by name; response `{}`.
    pub fn status(status: impl Into<Cow<'static, str>>) -> Self {
        Self(Some(Answer { status: status.into(), response: Ok(Payload::empty()) }))
    }

    /// Sets the response, which may be any JSON value, or bytes.
    ///
    /// A response that cannot be encoded crashes the channel. It has no effect on
    /// [`none`](Self::none).
    pub fn with(mut self, response: impl IntoPayload) -> Self {
        if let Some(answer) = &mut self.0 {
            answer.response = response.into_payload();
        }
        self
    }

    pub(super) fn into_answer(self) -> Option<Answer> {
        self.0
    }
}

/// The reason why a channel stops, and its last answer.
///
/// After a graceful reason the client receives `phx_close`, and does not join again. After any
/// other it receives `phx_error`, and joins again. Any error converts with `?`, also a boxed one, an
/// `anyhow::Error` and a text.
///
/// ```
/// use pipeline_ws_sink::{Payload, channel::{Reply, Stop}};
///
/// fn order(payload: &Payload) -> Result<Reply, Stop> {
///     let amount: u64 = payload.parse()?; // phx_error, if it is not a number
///     match amount {
///         0 => Err(Stop::normal().reply(Reply::error())),
///         1_000.. => Err("no such amount")?, // phx_error too
///         _ => Ok(Reply::ok()),
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Stop {
    pub(super) reason: ExitReason,
    pub(super) reply: Reply,
}

impl Stop {
    /// Stops with this reason.
    pub fn because(reason: ExitReason) -> Self {
        Self { reason, reply: Reply::none() }
    }

    /// Stops normally: the channel is done.
    pub fn normal() -> Self {
        Self::because(ExitReason::Normal)
    }

    /// Stops because the client sent an unknown event.
    pub fn unknown_event(event: &str) -> Self {
        Self::because(ExitReason::failed(format!("the channel has no event {event:?}")))
    }

    /// Stops because of a broadcast on a subscribed topic without a handler.
    pub(super) fn unknown_broadcast(topic: &str) -> Self {
        Self::because(ExitReason::failed(format!(
            "the channel has subscribed to {topic:?} and does not handle its broadcasts"
        )))
    }

    /// Answers the event before the channel stops.
    pub fn reply(mut self, reply: Reply) -> Self {
        self.reply = reply;
        self
    }
}

impl<E> From<E> for Stop
where
    E: Into<ExitReason>,
{
    fn from(error: E) -> Self {
        Self::because(error.into())
    }
}

/// Why a join is refused.
///
/// Any error converts with `?`, also a boxed one, an `anyhow::Error` and a text. It is then not a refusal but a crash: the client receives
/// `{"reason":"join crashed"}`, and the error is logged.
///
/// ```
/// use pipeline_ws_sink::channel::JoinError;
/// use serde_json::json;
///
/// let simple = JoinError::reason("the room is full");
/// let crashed = JoinError::from("the database is away");
/// let detailed = JoinError::with(json!({ "reason": "full", "retry_after": 30 }));
/// ```
#[derive(Debug)]
pub struct JoinError(pub(super) Refusal);

#[derive(Debug)]
pub(super) enum Refusal {
    Refused(Payload),
    Crashed(ExitReason),
}

impl JoinError {
    /// Refuses with `{"reason":"unauthorized"}`.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::reason("unauthorized")
    }

    /// Refuses with `{"reason": ..}`.
    #[must_use]
    pub fn reason(reason: &str) -> Self {
        Self::with(json!({ "reason": reason }))
    }

    /// Refuses with this response.
    #[must_use]
    pub fn with(response: impl IntoPayload) -> Self {
        Self(match response.into_payload() {
            Ok(response) => Refusal::Refused(response),
            Err(error) => Refusal::Crashed(error.into()),
        })
    }
}

impl<E> From<E> for JoinError
where
    E: Into<ExitReason>,
{
    fn from(error: E) -> Self {
        Self(Refusal::Crashed(error.into()))
    }
}

/// A reference to a client's message, to answer it later: from the channel or from any task, any
/// number of times.
///
/// Created by [`ChannelContext::socket_ref`](super::ChannelContext::socket_ref), like
/// `socket_ref/1` of `Phoenix.Channel`. Answers are sent in the order in which they are given. An
/// answer is sent even after the channel has ended, as long as the socket is open; the official
/// client ignores an answer to an earlier join.
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::{ChannelContext, Reply, Stop}};
/// use serde_json::json;
///
/// fn answer_later<C: Channel>(cx: &ChannelContext<C>) -> Result<Reply, Stop> {
///     let question = cx.socket_ref()?;
///     tokio::spawn(async move {
///         let answer = Reply::ok().with(json!({ "answer": 42 }));
///         question.reply(answer)
///     });
///     Ok(Reply::none())
/// }
/// ```
#[derive(Clone)]
pub struct SocketRef {
    outbox: Arc<Outbox>,
    version: Version,
    topic: Topic,
    join_ref: Ref,
    reference: Ref,
}

impl SocketRef {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        version: Version,
        topic: Topic,
        join_ref: Ref,
        reference: Ref,
    ) -> Result<Self, NoReplyExpected> {
        if reference.is_null() {
            return Err(NoReplyExpected);
        }
        Ok(Self { outbox, version, topic, join_ref, reference })
    }

    /// Answers the message. It never waits; once the socket has ended, it does nothing.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the response cannot be encoded for this client.
    pub fn reply(&self, reply: Reply) -> Result<(), PayloadError> {
        let Some(answer) = reply.into_answer() else { return Ok(()) };
        let topic = quoted(&self.topic);
        let address = Address { version: self.version, join_ref: &self.join_ref, topic: &topic };
        let frame = address.reply(&self.reference, &answer.status, &answer.response?)?;
        self.outbox.send(&frame, None);
        Ok(())
    }
}

impl fmt::Debug for SocketRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketRef")
            .field("topic", &self.topic)
            .field("join_ref", &self.join_ref)
            .field("ref", &self.reference)
            .finish_non_exhaustive()
    }
}

/// There is no message to answer: none is being handled, or the client gave it no reference.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no message to answer: none is being handled, or the client gave it no reference")]
pub struct NoReplyExpected;
