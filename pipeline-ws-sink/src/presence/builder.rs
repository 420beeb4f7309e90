//! How a presence is put together.

use std::{fmt, future::Future, sync::Arc};

use super::{
    Presence, PresenceDiff, Presences,
    shared::{Fetch, OnDiff, Shared},
};
use crate::tracker::TrackerOptions;

/// Puts a [`Presence`] together. Made by [`Presence::builder`].
#[must_use]
pub struct PresenceBuilder {
    name: String,
    options: TrackerOptions,
    fetch: Option<Fetch>,
    on_diff: Option<OnDiff>,
}

impl PresenceBuilder {
    pub(super) fn new() -> Self {
        let name = "presence".to_owned();
        Self { name, options: TrackerOptions::new(), fetch: None, on_diff: None }
    }

    /// What it is called. Presences of one name on the nodes of a cluster are one; those of an endpoint
    /// have different names. Default `presence`.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// When nodes tell each other. Without an [`Adapter`](crate::Adapter), there is only this one.
    pub fn tracker(mut self, options: TrackerOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds something to what is told of each key: a user's name, for instance, from a database. It is
    /// asked for many keys at once: for all that are [listed](Presence::list), for all that came in a
    /// diff, and for all that went; also when there are none. What it returns is only added; who is
    /// there is not for it to say.
    ///
    /// Diffs wait until it is done, and are told in their order. Those of one topic that wait together
    /// are told as one, so however slow it is, no more waits than there are presences. What still waits
    /// when the endpoint ends is not told. If it panics, that is logged, and the diff goes out with
    /// nothing added.
    ///
    /// This is `fetch/2` of `Phoenix.Presence`.
    ///
    /// ```
    /// use pipeline_ws_sink::{Presence, Presences};
    /// use serde_json::json;
    ///
    /// let presence = Presence::builder()
    ///     .fetch(async |_topic, mut who: Presences| {
    ///         // One query for all.
    ///         let keys: Vec<_> = who.keys().map(str::to_owned).collect();
    ///         for key in keys {
    ///             who.add(&key, "user", json!({ "name": key.to_uppercase() }));
    ///         }
    ///         who
    ///     })
    ///     .build();
    /// ```
    pub fn fetch<F, Fut>(mut self, fetch: F) -> Self
    where
        F: Fn(Arc<str>, Presences) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Presences> + Send + 'static,
    {
        self.fetch = Some(Box::new(move |topic, who| Box::pin(fetch(topic, who))));
        self
    }

    /// Is told of each diff of this node after the clients have been, one after the other. It must not
    /// wait: to do more, it hands on what it is told, to a bounded queue for instance. A panic is
    /// logged.
    ///
    /// This is `handle_metas/4` of `Phoenix.Presence`.
    ///
    /// ```
    /// use pipeline_core::{QueueOptions, queue};
    /// use pipeline_ws_sink::{Presence, PresenceDiff};
    ///
    /// // Begins the pipeline of what is done for those who come.
    /// let (arrivals, producer) = queue(QueueOptions::new());
    /// let presence = Presence::builder()
    ///     .on_diff(move |diff: &PresenceDiff| {
    ///         for key in diff.joins.keys() {
    ///             arrivals.offer((diff.topic.clone(), key.to_owned()));
    ///         }
    ///     })
    ///     .build();
    /// # drop(producer);
    /// ```
    pub fn on_diff(mut self, on_diff: impl Fn(&PresenceDiff) + Send + Sync + 'static) -> Self {
        self.on_diff = Some(Box::new(on_diff));
        self
    }

    /// Makes the presence. It does nothing before it is [given](crate::EndpointBuilder::presence) to an
    /// endpoint.
    #[must_use]
    pub fn build(self) -> Presence {
        let Self { name, options, fetch, on_diff } = self;
        Presence { shared: Arc::new(Shared::new(name, options, fetch, on_diff)) }
    }
}

impl fmt::Debug for PresenceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
