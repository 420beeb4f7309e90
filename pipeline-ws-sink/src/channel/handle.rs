//! Messages to a channel from the server's own tasks and timers.

use std::{any::Any, fmt, future::Future, marker::PhantomData, sync::Arc};

use futures::future::BoxFuture;
use thiserror::Error;

use super::{
    Channel, ChannelContext, Stop,
    mailbox::{ChannelMessage, Mailbox, NotSent},
};

/// A channel that handles messages of this type from the server's own tasks and timers, sent
/// through a [`ChannelHandle`] or [`ChannelContext::send_after`].
///
/// It is `handle_info` of `Phoenix.Channel`, implemented once for each type of message.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::{
///     Channel, Payload, Socket, Topic,
///     channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
///     socket::{ConnectError, ConnectInfo, Params},
/// };
/// use serde_json::json;
/// # struct UserSocket;
/// # impl Socket for UserSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
///
/// struct ClockChannel;
///
/// struct Tick;
///
/// impl Channel for ClockChannel {
///     type Socket = UserSocket;
///     type Config = ();
///
///     async fn join(
///         _: &Topic,
///         _: Payload,
///         cx: &mut JoinContext<'_, Self>,
///     ) -> Result<Self, JoinError> {
///         // The message arrives after the join has succeeded.
///         cx.send_after(Duration::ZERO, Tick)?;
///         Ok(ClockChannel)
///     }
/// }
///
/// impl HandleMessage<Tick> for ClockChannel {
///     async fn handle_message(&mut self, _: Tick, cx: &ChannelContext<Self>) -> Result<(), Stop> {
///         cx.push("tick", json!({}))?;
///         Ok(cx.send_after(Duration::from_secs(1), Tick)?)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "the channel `{Self}` does not handle messages of the type `{M}`",
    label = "needs `impl HandleMessage<{M}> for {Self}`"
)]
pub trait HandleMessage<M>: Channel {
    /// Handles a message.
    fn handle_message(
        &mut self,
        message: M,
        cx: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send;
}

/// A handle that sends messages to one channel. Cheap to clone; it does not keep the channel alive.
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::{ChannelContext, HandleMessage}};
///
/// fn look_up<C: HandleMessage<String>>(cx: &ChannelContext<C>) {
///     let channel = cx.handle();
///     tokio::spawn(async move {
///         let found = "what a database has found".to_owned();
///         // The channel may have ended meanwhile.
///         let _ = channel.send(found).await;
///     });
/// }
/// ```
pub struct ChannelHandle<C> {
    mailbox: Arc<Mailbox>,
    channel: PhantomData<fn(C)>,
}

impl<C: Channel> ChannelHandle<C> {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, channel: PhantomData }
    }

    /// Sends a message. It waits while 256 messages from tasks are pending for the channel.
    ///
    /// # Errors
    ///
    /// [`SendError::Ended`] when the channel has ended.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the message is not sent.
    pub async fn send<M>(&self, message: M) -> Result<(), SendError>
    where
        C: HandleMessage<M>,
        M: Send + 'static,
    {
        Ok(self.mailbox.send(ChannelMessage::Internal(boxed::<C, M>(message))).await?)
    }

    /// Sends a message if there is room for it.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the channel has ended or its mailbox is full.
    pub fn try_send<M>(&self, message: M) -> Result<(), SendError>
    where
        C: HandleMessage<M>,
        M: Send + 'static,
    {
        Ok(self.mailbox.try_send(ChannelMessage::Internal(boxed::<C, M>(message)))?)
    }
}

impl<C> Clone for ChannelHandle<C> {
    fn clone(&self) -> Self {
        Self { mailbox: self.mailbox.clone(), channel: PhantomData }
    }
}

impl<C> fmt::Debug for ChannelHandle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelHandle").finish_non_exhaustive()
    }
}

/// A message was not sent to a channel.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The channel has ended.
    #[error("the channel has ended")]
    Ended,
    /// 256 messages from tasks are pending for the channel.
    #[error("too many messages wait for the channel")]
    Full,
}

impl From<NotSent> for SendError {
    fn from(error: NotSent) -> Self {
        match error {
            NotSent::Closed => Self::Ended,
            NotSent::Full => Self::Full,
        }
    }
}

/// A message with its type erased. Only a channel of the kind that it was sent to can handle it.
pub(super) type BoxedMessage = Box<dyn Any + Send>;

/// A message that a channel can handle.
trait Deliver<C: Channel>: Send {
    fn deliver<'a>(
        self: Box<Self>,
        channel: &'a mut C,
        cx: &'a ChannelContext<C>,
    ) -> BoxFuture<'a, Result<(), Stop>>;
}

struct Typed<M>(M);

impl<C: HandleMessage<M>, M: Send + 'static> Deliver<C> for Typed<M> {
    fn deliver<'a>(
        self: Box<Self>,
        channel: &'a mut C,
        cx: &'a ChannelContext<C>,
    ) -> BoxFuture<'a, Result<(), Stop>> {
        Box::pin(channel.handle_message(self.0, cx))
    }
}

pub(super) fn boxed<C, M>(message: M) -> BoxedMessage
where
    C: HandleMessage<M>,
    M: Send + 'static,
{
    let boxed: Box<dyn Deliver<C>> = Box::new(Typed(message));
    Box::new(boxed)
}

pub(super) async fn deliver<C: Channel>(
    message: BoxedMessage,
    channel: &mut C,
    cx: &ChannelContext<C>,
) -> Result<(), Stop> {
    let boxed: Box<Box<dyn Deliver<C>>> =
        message.downcast().expect("a channel's mailbox takes only messages of its kind");
    boxed.deliver(channel, cx).await
}
