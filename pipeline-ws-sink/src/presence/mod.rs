//! Presence: who is on a topic, on which device, on all nodes.

mod builder;
mod diff_sender;
mod list;
mod pending;
mod phx_ref;
mod shared;
mod shared_lists;
pub(crate) mod tracker;

use std::{fmt, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use self::shared::{Shared, object};
pub use self::{
    builder::PresenceBuilder,
    list::{PresenceDiff, PresenceList},
    tracker::{TrackerOptions, TrackerOptionsError},
};
use crate::{
    channel::{Channel, ChannelContext},
    pubsub::{PubSub, SubscriberId},
};

/// Tracks who is on a topic. A presence has a key, usually a user's id, and a meta, a JSON object
/// that holds the device, for instance. A key has one meta for each channel or task that tracks it.
///
/// All clients on the topic receive changes as the event `presence_diff`. A channel that tracks its
/// client sends it the current presences, as `presence_state`. The official client's `Presence`
/// merges the two. A tracked client leaves when its channel ends, for any reason.
///
/// With an [`Adapter`](crate::pubsub::Adapter), presences are replicated between the nodes of a
/// cluster; nothing else changes. Replication messages use topics of their own, which begin with
/// `phx_presence:` and which no client can join.
///
/// Create a presence before the endpoint, [attach](crate::endpoint::EndpointBuilder::presence) it
/// to the endpoint, and pass it to the channels that use it, for instance as their configuration.
/// Cheap to clone. It is the counterpart of a module that uses `Phoenix.Presence`.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::{
///     Channel, Endpoint, Mount, Payload, Presence, Socket, Topic,
///     channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
///     endpoint::BuildError,
///     socket::{ConnectError, ConnectInfo, Params},
/// };
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
/// impl HandleMessage<Joined> for Room {
///     async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
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
    /// A presence with the default options and the name `presence`.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Builds a presence with a name, with added data, or with a callback for diffs.
    pub fn builder() -> PresenceBuilder {
        PresenceBuilder::new()
    }

    /// Tracks a channel's client on the channel's topic, under this key. It leaves when the channel
    /// ends. Returns the meta's reference, which is added to the meta as `phx_ref`.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if this channel already tracks the key, if the meta is not a JSON object,
    /// or if the presence is not attached to an endpoint.
    pub fn track<C: Channel>(
        &self,
        cx: &ChannelContext<C>,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<String, PresenceError> {
        // Recorded before the client is tracked, so that it is certain to leave.
        cx.is_present_in(self);
        self.shared.track(cx.id(), cx.topic().shared(), &key.into(), object(meta)?)
    }

    /// Replaces the meta of a key. Clients see both metas in one diff; the new meta has the
    /// reference of the old one as `phx_ref_prev`. Returns the reference of the new meta.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if this channel does not track the key, or if the meta is not a JSON
    /// object.
    pub fn update<C: Channel>(
        &self,
        cx: &ChannelContext<C>,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<String, PresenceError> {
        self.shared.update(cx.id(), cx.topic().shared(), &key.into(), object(meta)?, None)
    }

    /// Replaces the meta of a key with a function that changes the old one. The function may use
    /// the presence, except to change this key.
    ///
    /// # Errors
    ///
    /// [`PresenceError::NotTracked`] if this channel does not track the key.
    /// [`PresenceError::ChangedMeanwhile`] if the key was given another meta while the function
    /// ran; it keeps that meta.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, Presence, channel::ChannelContext, presence::PresenceError};
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
        // The user's function runs outside the lock.
        let (topic, key) = (cx.topic().shared(), key.into());
        let old = self.shared.meta(cx.id(), topic, &key)?;
        let mut meta = (*old).clone();
        change(&mut meta);
        self.shared.update(cx.id(), topic, &key, meta, Some(&old))
    }

    /// Stops tracking a channel's client under this key. Does nothing if it was not tracked.
    pub fn untrack<C: Channel>(&self, cx: &ChannelContext<C>, key: &str) {
        self.shared.untrack(cx.id(), cx.topic().shared(), &key.into());
    }

    /// Tracks a presence without a channel: a bot, or a device with another kind of connection. It
    /// leaves when the returned value is dropped.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if the meta is not a JSON object, or if the presence is not attached to an
    /// endpoint.
    pub fn track_detached(
        &self,
        topic: &str,
        key: &str,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<PresenceGuard, PresenceError> {
        let (actor, topic, key) = (SubscriberId::new(), topic.into(), key.into());
        self.shared.track(actor, &topic, &key, object(meta)?)?;
        Ok(PresenceGuard { presence: self.clone(), actor, topic, key })
    }

    /// Lists who is on a topic, with the data that [`fetch`](PresenceBuilder::fetch) adds.
    ///
    /// If a topic has more than 100 presences, tasks that list it at the same time share one list,
    /// and only a few at a time receive it. So when many clients join such a topic at once, other
    /// clients are served meanwhile.
    ///
    /// A client may be sent the list: with the diffs after it, the client knows the present state. While
    /// more than 10,000 presences that came, were listed and left wait for their diffs, which only a
    /// slow `fetch` or `on_diff` can cause, a list is as of the last diffs.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn list(&self, topic: &str) -> PresenceList {
        self.shared.list(topic).await
    }

    /// The entry of one key, with the data that [`fetch`](PresenceBuilder::fetch) adds; `None` if
    /// the key is not present. A client may be sent the entry as it may be sent a [list](Self::list).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_by_key(&self, topic: &str, key: &str) -> Option<Map<String, Value>> {
        self.shared.get_by_key(topic, key).await
    }

    /// The number of tracked presences, on all topics and nodes.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.shared.len()
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Checks that its tracker options are consistent.
    pub(crate) fn checked(&self) -> Result<(), TrackerOptionsError> {
        self.shared.options.check()
    }

    /// Whether it is or was attached to an endpoint.
    pub(crate) fn is_attached(&self) -> bool {
        self.shared.is_attached()
    }

    /// Attaches it to an endpoint. Returns whether it was not attached before.
    pub(crate) fn attach(&self, pubsub: &PubSub) -> bool {
        self.shared.attach(pubsub)
    }

    /// Starts its background tasks, if they are not running.
    pub(crate) fn begin(&self) {
        self.shared.begin();
    }

    pub(crate) fn end(&self) {
        self.shared.end();
    }

    /// Removes a channel that has ended.
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

/// A presence that lasts until this value is dropped. Made by [`Presence::track_detached`].
#[must_use = "the presence leaves when this is dropped"]
pub struct PresenceGuard {
    presence: Presence,
    actor: SubscriberId,
    topic: Arc<str>,
    key: Arc<str>,
}

impl PresenceGuard {
    /// Replaces the meta.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if it is not a JSON object, or if the endpoint is gone.
    pub fn update(&self, meta: &(impl Serialize + ?Sized)) -> Result<String, PresenceError> {
        let meta = object(meta)?;
        self.presence.shared.update(self.actor, &self.topic, &self.key, meta, None)
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        self.presence.shared.untrack(self.actor, &self.topic, &self.key);
    }
}

impl fmt::Debug for PresenceGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceGuard")
            .field("topic", &self.topic)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A presence could not be tracked or updated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The same channel or task already tracks this key on this topic. Use
    /// [`update`](crate::Presence::update) to change its meta.
    #[error("{key:?} is tracked on {topic:?} already")]
    AlreadyTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The key is not tracked, so there is nothing to update.
    #[error("{key:?} is not tracked on {topic:?} by this channel")]
    NotTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The meta was changed while the function of [`update_with`](crate::Presence::update_with)
    /// ran, for instance by the function itself.
    #[error("the meta of {key:?} on {topic:?} was changed while update_with ran")]
    ChangedMeanwhile {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// A meta is a JSON object, to which its reference is added.
    #[error("a meta has to be a JSON object")]
    NotAnObject,
    /// The meta has no JSON form.
    #[error("the meta cannot be encoded as JSON")]
    Encode(#[source] serde_json::Error),
    /// The presence is not attached to an endpoint, or the endpoint is gone.
    #[error("the presence is not attached to an endpoint: pass it to EndpointBuilder::presence")]
    NotAttached,
}
