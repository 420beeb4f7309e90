//! Looking up the sockets of an id, and ending one of them or a channel.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::join_all;
use pipeline_core::{Deadline, shown::shown};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::yield_now};

use super::{
    Inner,
    sockets::{Found, MostWaiting},
};
use crate::{session::question::Question, telemetry::log_line};

/// How many sockets of an id are described.
const MOST: usize = 100;

/// How long a socket may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Looks up the open sockets of an id on this node, and ends them or their channels: for an operator, or
/// an application's own administration. Made by [`Endpoint::operator`](crate::Endpoint::operator); cheap
/// to clone, and it does not keep the endpoint alive.
///
/// It shows the topics that a user has joined, and it disconnects users. So protect whatever gives
/// access to it.
///
/// ```
/// use pipeline_ws_sink::Endpoint;
///
/// /// Which topics has this user joined, on which devices?
/// async fn print(endpoint: &Endpoint, user: u64) {
///     let found = endpoint.operator().find(&format!("users_socket:{user}")).await;
///     for socket in found.sockets {
///         println!("{} for {} s: {:?}", socket.transport, socket.open_seconds, socket.topics);
///     }
/// }
/// ```
#[derive(Clone)]
pub struct EndpointOperator(Weak<Inner>);

/// The open sockets of an id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FoundSockets {
    /// At most 100 of them, the oldest first.
    pub sockets: Vec<SocketSnapshot>,
    /// How many more there are.
    pub more: usize,
}

/// A socket at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SocketSnapshot {
    /// The socket's number on this node. No other socket ever has it.
    pub number: u64,
    /// Its [id](crate::Socket::id), if it has one.
    pub id: Option<String>,
    /// The socket's [name](crate::Socket::name) in metrics.
    pub socket: String,
    /// The transport: `websocket` or `longpoll`.
    pub transport: String,
    /// How long it has been open.
    pub open_seconds: f64,
    /// The time since its client was last heard.
    pub silent_seconds: f64,
    /// The time until its [end](crate::Socket::expires_at), if it has one.
    pub expires_in_seconds: Option<f64>,
    /// Frames that wait to be written.
    pub frames_waiting: usize,
    /// The bytes of these frames.
    pub bytes_waiting: usize,
    /// The topics that it has joined, in order. None if the socket does not answer within a second,
    /// because it is ending.
    pub topics: Option<Vec<String>>,
}

impl EndpointOperator {
    pub(super) fn of(endpoint: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(endpoint))
    }

    /// The open sockets with this [id](crate::Socket::id) on this node. It takes a second at most.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn find(&self, id: &str) -> FoundSockets {
        let Some(inner) = self.0.upgrade() else { return FoundSockets::default() };
        let (found, more) = inner.state.sockets.find(id, MOST);
        // An endpoint that is about to end does not wait for this.
        drop(inner);
        FoundSockets { sockets: describe_all(found).await, more }
    }

    /// The sockets of this node for which the most bytes wait, the one with the most first: `most` of them at most, and
    /// never more than 100. Sockets without waiting bytes are left out. It looks at each open socket, and takes a second
    /// at most after that.
    ///
    /// What the operating system has taken and the client has not read does not wait here. Frames wait when
    /// its buffer is full, which may be some MiB later.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn most_waiting(&self, most: usize) -> Vec<SocketSnapshot> {
        let mut waiting = MostWaiting::new(most.min(MOST));
        let found = loop {
            let Some(inner) = self.0.upgrade() else { return Vec::new() };
            if !waiting.look(&inner.state.sockets) {
                break waiting.found(&inner.state.sockets);
            }
            drop(inner);
            yield_now().await;
        };
        describe_all(found).await
    }

    /// Ends the channel of a topic that a socket has joined: with `phx_close`, so that the official client
    /// does not join again by itself. Its `terminate` gets `shutdown: ended by an operator`. The channel ends
    /// when it has handled the messages before. Returns false if it was not joined, and if its socket was
    /// too busy to look within a second or has too many questions: then it stays.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the channel may have ended or not, which is not logged.
    pub async fn end_channel(&self, id: &str, number: u64, topic: &str) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let found = inner.state.sockets.find_one(id, number);
        let metrics = inner.state.metrics.clone();
        drop(inner);
        let Some(found) = found else { return false };
        let (answer, answered) = oneshot::channel();
        found.ask(Question::End(topic.into(), answer));
        let answered = Deadline::from_now(ANSWERED_WITHIN).limit(answered).await;
        let ended = matches!(answered, Ok(Ok(true)));
        if ended {
            metrics.channels_ended.increment(1);
            log_line!(
                WARN,
                id = shown(id),
                number,
                topic = shown(topic),
                "an operator has ended a channel"
            );
        }
        ended
    }

    /// Closes the socket with this id, or the one without an id, and this number, as
    /// [`Endpoint::disconnect`](crate::Endpoint::disconnect) closes all of an id. The official client connects again.
    /// Returns whether it was open. Without an id, it looks at each open socket.
    #[expect(clippy::must_use_candidate, reason = "the result is optional information")]
    pub fn end_socket(&self, id: Option<&str>, number: u64) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        let sockets = &inner.state.sockets;
        let found = match id {
            Some(id) => sockets.find_one(id, number),
            None => sockets.find_without_id(number),
        };
        let Some(found) = found else { return false };
        found.end();
        inner.state.metrics.sockets_ended.increment(1);
        log_line!(WARN, id = id.map(shown), number, "an operator has closed a socket");
        true
    }

    /// Closes all sockets of an id, on all nodes: [`Endpoint::disconnect`](crate::Endpoint::disconnect).
    /// Returns their number on this node.
    #[expect(clippy::must_use_candidate, reason = "the count is optional information")]
    pub fn end_sockets(&self, id: &str) -> usize {
        let Some(inner) = self.0.upgrade() else { return 0 };
        let count = inner.state.pubsub.disconnect(id);
        inner.state.metrics.ids_ended.increment(1);
        log_line!(WARN, id = shown(id), count, "an operator has closed all sockets of an id");
        count
    }
}

/// Asks all of them at once for their topics.
async fn describe_all(found: Vec<Found>) -> Vec<SocketSnapshot> {
    let until = Deadline::from_now(ANSWERED_WITHIN);
    let described = found.into_iter().map(async |found| {
        let (answer, answered) = oneshot::channel();
        found.ask(Question::Joined(answer));
        let topics = until.limit(answered).await.ok().and_then(Result::ok);
        describe(&found, topics)
    });
    join_all(described).await
}

fn describe(found: &Found, topics: Option<Vec<Arc<str>>>) -> SocketSnapshot {
    let load = found.load();
    let topics = topics.map(|topics| {
        let mut topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
        topics.sort();
        topics
    });
    SocketSnapshot {
        number: found.number,
        id: found.id.as_deref().map(ToOwned::to_owned),
        socket: found.socket.to_owned(),
        transport: found.transport().to_owned(),
        open_seconds: found.opened_at.elapsed().as_secs_f64(),
        silent_seconds: found.silence().as_secs_f64(),
        expires_in_seconds: found.expires_in().map(|left| left.as_secs_f64()),
        frames_waiting: load.frames,
        bytes_waiting: load.bytes,
        topics,
    }
}

impl fmt::Debug for EndpointOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = self.0.strong_count() == 0;
        f.debug_struct("EndpointOperator").field("gone", &gone).finish()
    }
}
