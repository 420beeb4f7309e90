//! References to messages that are answered later.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::reply::Reply;
use crate::{
    outbox::Outbox,
    payload::PayloadError,
    protocol::{
        message::Address,
        reference::{Ref, quoted},
        version::Version,
    },
    pubsub::topic::Topic,
};

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
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::{ChannelContext, NoReplyExpected}};
///
/// fn wants_an_answer<C: Channel>(cx: &ChannelContext<C>) -> bool {
///     !matches!(cx.socket_ref(), Err(NoReplyExpected))
/// }
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("there is no message to answer: none is being handled, or the client gave it no reference")]
pub struct NoReplyExpected;
