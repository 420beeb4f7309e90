//! The builder of a presence.

use std::{fmt, future::Future, sync::Arc};

use super::{
    Presence, PresenceDiff, PresenceList,
    shared::{Fetch, OnDiff, Shared},
    tracker::TrackerOptions,
};

/// Builds a [`Presence`]. Made by [`Presence::builder`].
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

    /// The name of the presence. Presences with the same name on the nodes of a cluster are
    /// replicas of one; those of one endpoint have different names. Default `presence`.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The options of replication between nodes. Without an [`Adapter`](crate::pubsub::Adapter),
    /// this node is alone.
    pub fn tracker(mut self, options: TrackerOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds data to each key: a user's name, for instance, from a database. The function is called
    /// with many keys at once: with all that are [listed](Presence::list), with all joins of a
    /// diff, and with all its leaves; also when there are none. It can only add data; it cannot
    /// change who is present.
    ///
    /// Diffs wait until it is done, and are sent in order. Pending diffs of one topic are merged,
    /// so however slow the function is, no more changes wait than there are presences. Diffs that
    /// are pending when the endpoint ends are not sent. If the function panics, the panic is
    /// logged, and the diff is sent without added data.
    ///
    /// This is `fetch/2` of `Phoenix.Presence`.
    ///
    /// ```
    /// use pipeline_ws_sink::{Presence, presence::PresenceList};
    /// use serde_json::json;
    ///
    /// let presence = Presence::builder()
    ///     .fetch(async |_topic, mut who: PresenceList| {
    ///         // One query for all keys.
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
        F: Fn(Arc<str>, PresenceList) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = PresenceList> + Send + 'static,
    {
        self.fetch = Some(Box::new(move |topic, who| Box::pin(fetch(topic, who))));
        self
    }

    /// A callback for each diff of this node, called one after the other, after the diff has been
    /// sent to the clients. It must not block: to do more, pass the diff on, to a bounded queue for
    /// instance. A panic is logged.
    ///
    /// This is `handle_metas/4` of `Phoenix.Presence`.
    ///
    /// ```
    /// use pipeline_core::source::{QueueOptions, queue};
    /// use pipeline_ws_sink::{Presence, presence::PresenceDiff};
    ///
    /// // The start of a pipeline that handles arrivals.
    /// let (arrivals, producer) = queue(QueueOptions::new());
    /// let presence = Presence::builder()
    ///     .on_diff(move |diff: &PresenceDiff| {
    ///         // Not for a second tab.
    ///         for user in &diff.first_joins {
    ///             arrivals.offer((diff.topic.clone(), user.clone()));
    ///         }
    ///     })
    ///     .build();
    /// # drop(producer);
    /// ```
    pub fn on_diff(mut self, on_diff: impl Fn(&PresenceDiff) + Send + Sync + 'static) -> Self {
        self.on_diff = Some(Box::new(on_diff));
        self
    }

    /// Builds the presence. It does nothing before it is
    /// [attached](crate::endpoint::EndpointBuilder::presence) to an endpoint.
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
