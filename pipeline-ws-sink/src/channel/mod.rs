//! Channels: one value for each topic that a client has joined.

mod actor;
mod context;
mod info;
mod mailbox;
mod push_error;
mod reply;
mod route;
mod socket_ref;
mod timers;

use std::future::Future;

use pipeline_core::ExitReason;

pub(crate) use self::{
    actor::{Join, Life, Replaced},
    mailbox::{Intercepted, Letter, Mailbox, Room},
    route::{ChannelRoute, ErasedChannel, Route},
};
pub use self::{
    context::{ChannelContext, JoinContext},
    info::{ChannelHandle, HandleInfo, SendError},
    push_error::PushError,
    reply::{JoinError, Reply, Stop},
    socket_ref::{NoReference, SocketRef},
    timers::TooManyTimers,
};
use crate::{
    broadcast::Broadcast, payload::Payload, socket::Socket, telemetry::short_type_name,
    topic::Topic,
};

/// The server's side of one topic that a client has joined.
///
/// Each join makes a value of its own, which lives in a task of its own until the client leaves, the
/// socket closes, or the channel stops. Its callbacks never overlap; other channels go on meanwhile.
///
/// An error or a panic in a callback ends this channel and nothing else: the client is told
/// `phx_error`, and the official client joins again.
///
/// The callbacks are those of `Phoenix.Channel`.
///
/// ```
/// use pipeline_ws_sink::{
///     Channel, ChannelContext, ConnectError, ConnectInfo, JoinContext, JoinError, Params, Payload,
///     Reply, Socket, Stop, Topic,
/// };
/// use serde_json::json;
///
/// struct UserSocket;
///
/// impl Socket for UserSocket {
///     type Assigns = u64;
///
///     async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
///         Ok(params.get("user").unwrap_or_default().parse()?)
///     }
/// }
///
/// struct UserChannel {
///     messages: usize,
/// }
///
/// impl Channel for UserChannel {
///     type Socket = UserSocket;
///     type Config = ();
///
///     async fn join(
///         topic: &Topic,
///         _: Payload,
///         cx: &mut JoinContext<'_, Self>,
///     ) -> Result<Self, JoinError> {
///         if topic.rest().parse() != Ok(*cx.assigns()) {
///             return Err(JoinError::unauthorized());
///         }
///         Ok(UserChannel { messages: 0 })
///     }
///
///     async fn handle_in(
///         &mut self,
///         event: &str,
///         payload: Payload,
///         cx: &ChannelContext<Self>,
///     ) -> Result<Reply, Stop> {
///         match event {
///             "shout" => {
///                 self.messages += 1;
///                 cx.broadcast("shouted", &payload)?;
///                 Ok(Reply::ok().with(json!({ "messages": self.messages })))
///             }
///             "bye" => Err(Stop::normal().reply(Reply::ok())),
///             other => Err(Stop::unknown_event(other)),
///         }
///     }
/// }
/// ```
pub trait Channel: Send + Sized + 'static {
    /// The kind of socket that it is joined on.
    type Socket: Socket;

    /// What its route gives to every join; `()` if nothing. See
    /// [`Mount::channel_with`](crate::Mount::channel_with).
    type Config: Send + Sync + 'static;

    /// Broadcasts of these events are not sent to the client as they are, but go through
    /// [`handle_out`](Self::handle_out). None by default.
    const INTERCEPT: &'static [&'static str] = &[];

    /// What the channel is called in metrics: the name of the type, unless told otherwise.
    #[must_use]
    fn name() -> &'static str {
        short_type_name::<Self>()
    }

    /// Lets a client in, or refuses it.
    ///
    /// What the client is told on success is `{}`, or what was given to
    /// [`JoinContext::reply`]. A panic, or an error that is not a refusal, tells it
    /// `{"reason":"join crashed"}`.
    fn join(
        topic: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> impl Future<Output = Result<Self, JoinError>> + Send;

    /// Handles an event of the client. The default knows no event: it crashes the channel, so that
    /// the mistake is seen.
    fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<Reply, Stop>> + Send {
        let _ = (payload, cx);
        let unknown = Stop::unknown_event(event);
        async { Err(unknown) }
    }

    /// Handles a broadcast of one of the [`INTERCEPT`](Self::INTERCEPT)ed events, instead of the
    /// client. The default pushes it to the client unchanged.
    fn handle_out(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        async move { Ok(cx.push(event, payload)?) }
    }

    /// Handles a broadcast on another topic, to which the channel has
    /// [subscribed](ChannelContext::subscribe). The default knows none: it crashes the channel, so
    /// that the mistake is seen.
    fn handle_broadcast(
        &mut self,
        broadcast: Broadcast,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        let _ = cx;
        let unknown = Stop::unknown_broadcast(broadcast.topic());
        async { Err(unknown) }
    }

    /// Called last, unless the channel is replaced by a new join of the same topic. It has five
    /// seconds.
    ///
    /// When the socket is gone, they begin then. What the client had said is handled before, for up to a
    /// second; what still waits after that is dropped. So there are four seconds at least, without the time
    /// that the callback takes that is running.
    ///
    /// The reason is `shutdown: left` when the client left, `shutdown: closed` when the socket is
    /// gone (`draining` and `disconnected` if the server closed it), the one given to [`Stop`], or
    /// that of a crash.
    fn terminate(
        &mut self,
        reason: &ExitReason,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (reason, cx);
        async {}
    }
}
