//! Who is on a topic, on which device, on whichever node.

mod builder;
mod diff;
mod error;
mod lists;
mod phx_ref;
mod presences;
mod shared;
mod telling;
mod tracked;
mod waiting;

use std::{fmt, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value};

use self::shared::{Shared, object};
pub use self::{
    builder::PresenceBuilder, diff::PresenceDiff, error::PresenceError, presences::Presences,
    tracked::Tracked,
};
use crate::{
    channel::{Channel, ChannelContext},
    pubsub::{PubSub, SubscriberId},
    tracker::TrackerOptionsError,
};

/// Knows who is on a topic. Somebody is there under a key, usually a user's id, as often as a channel or
/// task tracks the key; each time with a meta, a JSON object that says on which device, for instance.
///
/// Whoever has joined the topic is told of changes, by the event `presence_diff`. A channel that tracks
/// its client tells it who is there already, as `presence_state`. The official client's `Presence` puts
/// the two together. Who is tracked leaves when the channel ends, for whatever reason.
///
/// With an [`Adapter`](crate::Adapter), the nodes of a cluster tell each other; nothing else changes. What
/// they say goes by the adapter on topics of their own, which begin with `phx_presence:`, and which no
/// client can join.
///
/// It is made before the endpoint, [given](crate::EndpointBuilder::presence) to it, and to the channels
/// that use it, for instance as their configuration. Cheap to clone. It is what a module that uses
/// `Phoenix.Presence` is.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::*;
/// use serde_json::json;
///
/// # struct UserSocket;
/// # impl Socket for UserSocket {
/// #     type Assigns = String;
/// #     async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
/// #         Ok(params.require("name")?.to_owned())
/// #     }
/// # }
/// struct Room(Presence);
///
/// struct Joined;
///
/// impl Channel for Room {
///     type Socket = UserSocket;
///     type Config = Presence;
///
///     async fn join(
///         _: &Topic,
///         _: Payload,
///         cx: &mut JoinContext<'_, Self>,
///     ) -> Result<Self, JoinError> {
///         cx.send_after(Duration::ZERO, Joined)?;
///         Ok(Room(cx.config().clone()))
///     }
/// }
///
/// impl HandleInfo<Joined> for Room {
///     async fn handle_info(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
///         self.0.track(cx, cx.assigns(), &json!({ "device": "phone" }))?;
///         cx.push("presence_state", self.0.list(cx.topic()).await)?;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BuildError> {
/// let presence = Presence::new();
/// let sockets = Mount::new(UserSocket).channel_with::<Room>("room:*", presence.clone());
/// let endpoint = Endpoint::builder().presence(&presence).mount("/socket", sockets).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Presence {
    shared: Arc<Shared>,
}

impl Presence {
    /// One with the default options, called `presence`.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Puts one together that has a name, enriches what it tells, or is listened to.
    pub fn builder() -> PresenceBuilder {
        PresenceBuilder::new()
    }

    /// A channel's client is here, on the channel's topic, under this key. It leaves when the channel
    /// ends. Returns the meta's reference, which is added to it as `phx_ref`.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if this channel tracks the key already, if the meta is no JSON object, or if the
    /// presence belongs to no endpoint.
    pub fn track<C: Channel>(
        &self,
        cx: &ChannelContext<C>,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<String, PresenceError> {
        // Before it is there, so that it leaves for certain.
        cx.is_present_in(self);
        self.shared.track(cx.id(), cx.topic().shared(), &key.into(), object(meta)?)
    }

    /// Puts another meta in the place of the old one. Clients see both in one diff; the new meta names
    /// the reference of the old one as `phx_ref_prev`. Returns its own.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if this channel does not track the key, or if the meta is no JSON object.
    pub fn update<C: Channel>(
        &self,
        cx: &ChannelContext<C>,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<String, PresenceError> {
        self.shared.update(cx.id(), cx.topic().shared(), &key.into(), object(meta)?, None)
    }

    /// The same with a function that changes the old meta. It may use the presence for anything but a
    /// change of this key.
    ///
    /// # Errors
    ///
    /// [`PresenceError::NotTracked`] if this channel does not track the key.
    /// [`PresenceError::ChangedMeanwhile`] if the key has been given another meta while the function ran.
    /// It keeps that one then.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, ChannelContext, Presence, PresenceError};
    /// # fn away<C: Channel>(presence: &Presence, cx: &ChannelContext<C>) -> Result<(), PresenceError> {
    /// presence.update_with(cx, "ada", |meta| {
    ///     meta.insert("status".to_owned(), "away".into());
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_with<C: Channel>(
        &self,
        cx: &ChannelContext<C>,
        key: &str,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<String, PresenceError> {
        // The user's function runs under no lock.
        let (topic, key) = (cx.topic().shared(), key.into());
        let old = self.shared.meta(cx.id(), topic, &key)?;
        let mut meta = (*old).clone();
        change(&mut meta);
        self.shared.update(cx.id(), topic, &key, meta, Some(&old))
    }

    /// A channel's client is here no longer under this key. Does nothing if it was not.
    pub fn untrack<C: Channel>(&self, cx: &ChannelContext<C>, key: &str) {
        self.shared.untrack(cx.id(), cx.topic().shared(), &key.into());
    }

    /// Somebody without a channel is on a topic: a bot, or a device that is connected otherwise. It
    /// leaves when the value is dropped.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if the meta is no JSON object, or if the presence belongs to no endpoint.
    pub fn enter(
        &self,
        topic: &str,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<Tracked, PresenceError> {
        let (actor, topic, key) = (SubscriberId::new(), topic.into(), key.into());
        self.shared.track(actor, &topic, &key, object(meta)?)?;
        Ok(Tracked { presence: self.clone(), actor, topic, key })
    }

    /// Who is on a topic, with what [`fetch`](PresenceBuilder::fetch) adds.
    ///
    /// Of a topic with more than 100 presences, tasks that ask at the same time share one list, and a few
    /// at a time are given it. So when many clients join such a topic at once, other clients are served
    /// meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn list(&self, topic: &str) -> Presences {
        self.shared.list(topic).await
    }

    /// What is told of one key, with what [`fetch`](PresenceBuilder::fetch) adds; `None` if it is not
    /// there.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_by_key(&self, topic: &str, key: &str) -> Option<Map<String, Value>> {
        self.shared.get_by_key(topic, key).await
    }

    /// How many are tracked, on all topics and nodes.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.shared.len()
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether its options can be kept together.
    pub(crate) fn checked(&self) -> Result<(), TrackerOptionsError> {
        self.shared.options.check()
    }

    /// Whether it belongs to an endpoint, or did.
    pub(crate) fn is_attached(&self) -> bool {
        self.shared.is_attached()
    }

    /// Has it belong to an endpoint. Returns whether it belonged to none.
    pub(crate) fn attach(&self, pubsub: &PubSub) -> bool {
        self.shared.attach(pubsub)
    }

    /// Starts what runs beside it, if it has not been yet.
    pub(crate) fn begin(&self) {
        self.shared.begin();
    }

    pub(crate) fn end(&self) {
        self.shared.end();
    }

    /// A channel has ended.
    pub(crate) fn leave(&self, who: SubscriberId) {
        self.shared.leave(who);
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
