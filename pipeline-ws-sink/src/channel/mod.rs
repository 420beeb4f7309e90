//! Channels: one value for each topic that a client has joined.

mod actor;
mod context;
mod handle;
mod mailbox;
mod reply;
mod route;
mod timers;

use std::{future::Future, time::Duration};

use pipeline_core::ExitReason;
use serde_json::json;

pub(crate) use self::{
    actor::{Instance, Join, Replaced},
    mailbox::{ChannelMessage, Intercepted, Mailbox, Room},
    route::{ChannelRoute, ErasedChannel, Route},
};
pub use self::{
    context::{ChannelContext, JoinContext, PushError},
    handle::{ChannelHandle, HandleMessage, SendError},
    reply::{JoinError, NoReplyExpected, Reply, SocketRef, Stop},
    timers::TooManyTimers,
};
pub use crate::protocol::reference::Ref;
use crate::{
    payload::Payload,
    pubsub::{broadcast::Broadcast, topic::Topic},
    socket::Socket,
    telemetry::short_type_name,
};

/// The server's side of one topic that a client has joined.
///
/// Each join creates a value, which lives in a task of its own until the client leaves, the socket
/// closes, or the channel stops. Its callbacks never overlap; other channels run concurrently.
///
/// An error or a panic in a callback ends only this channel: the client receives `phx_error`, and
/// the official client joins again.
///
/// The callbacks are those of `Phoenix.Channel`.
///
/// ```
/// use pipeline_ws_sink::{
///     Channel, Payload, Socket, Topic,
///     channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
///     socket::{ConnectError, ConnectInfo, Params},
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
    /// The kind of socket that the channel is joined on.
    type Socket: Socket;

    /// The configuration that the route passes to every join; `()` if there is none. See
    /// [`Mount::channel_with`](crate::Mount::channel_with).
    type Config: Send + Sync + 'static;

    /// Broadcasts of these events are passed to [`handle_out`](Self::handle_out) instead of the
    /// client. None by default.
    ///
    /// A channel that has not handled 256 of them, or 16 MiB, crashes with the next one. With
    /// [`WhenFull::Block`](crate::mount::WhenFull::Block),
    /// [`broadcast_when_ready`](crate::PubSub::broadcast_when_ready) waits instead, and so does a
    /// [`broadcast_worker`](crate::PubSub::broadcast_worker) while all its events are for one topic; with several, see
    /// [`max_waiting`](crate::pubsub::BroadcastWorker::max_waiting).
    const INTERCEPT: &'static [&'static str] = &[];

    /// The channel's name in metrics. Default: the name of the type.
    #[must_use]
    fn name() -> &'static str {
        short_type_name::<Self>()
    }

    /// Accepts or refuses a client's join.
    ///
    /// On success the client receives `{}`, or the response set with [`JoinContext::reply`]. After
    /// a panic, or an error that is not a refusal, it receives `{"reason":"join crashed"}`.
    fn join(
        topic: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> impl Future<Output = Result<Self, JoinError>> + Send;

    /// Handles an event from the client. The default handles none: it crashes the channel, so that
    /// the mistake is noticed.
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
    /// [subscribed](ChannelContext::subscribe). The default handles none: it crashes the channel,
    /// so that the mistake is noticed.
    fn handle_broadcast(
        &mut self,
        broadcast: Broadcast,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        let _ = cx;
        let unknown = Stop::unknown_broadcast(broadcast.topic());
        async { Err(unknown) }
    }

    /// Called some time before the socket's [end](Socket::expires_at), on each of its channels:
    /// [`Mount::expiry_warning`](crate::Mount::expiry_warning) says when. `left` is the time until
    /// the end. A channel that is joined later is warned after its join.
    ///
    /// The default pushes the event `socket_expiring` to the client, with the time in milliseconds:
    /// `{"expires_in": 60000}`. The client listens to it on any of its channels, and answers with an
    /// event of the application's that carries a new token;
    /// [`ChannelContext::set_expires_at`] has an example.
    fn handle_expiring(
        &mut self,
        left: Duration,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        async move {
            let milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            Ok(cx.push("socket_expiring", json!({ "expires_in": milliseconds }))?)
        }
    }

    /// Called last, unless the channel is replaced by a new join of the same topic. It has five
    /// seconds.
    ///
    /// When the socket has ended, the five seconds begin at that moment. The client's pending
    /// events are handled before, for up to a second; the rest is dropped. So there are at least
    /// four seconds, minus the time that the running callback takes.
    ///
    /// The reason is `shutdown: left` when the client left, `shutdown: closed` when the socket has
    /// ended (`draining`, `disconnected` and `expired` if the server closed it), the reason given to [`Stop`],
    /// or the reason of a crash.
    fn terminate(
        &mut self,
        reason: &ExitReason,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (reason, cx);
        async {}
    }
}
