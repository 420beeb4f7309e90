//! Whether a topic has subscribers, and a stage that filters events by it.

use std::{fmt, marker::PhantomData};

use pipeline_core::{
    ExitReason,
    stage::{Emitter, ProducerConsumer},
    subscription::Subscription,
};

use super::PubSub;

impl PubSub {
    /// Whether a topic has subscribers: a client that has joined it, or a channel or task that has
    /// subscribed to it.
    ///
    /// With an [`Adapter`](crate::pubsub::Adapter), there may be subscribers on other nodes. They
    /// are known, a moment late, if all nodes [share
    /// them](crate::endpoint::EndpointBuilder::sync_subscriptions). An unknown topic counts as
    /// subscribed. The answer is therefore `true` for every topic
    ///
    /// - if the nodes do not share their topics,
    /// - on a node that has just started, until the others have answered it: for three
    ///   [periods](crate::presence::TrackerOptions::broadcast_period),
    /// - while another node is silent without having announced its shutdown, until it is
    ///   [removed](crate::presence::TrackerOptions::permdown_period),
    /// - while a message of another node is still missing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pipeline_ws_sink::Endpoint;
    /// let endpoint = Endpoint::builder().build()?;
    /// assert!(!endpoint.pubsub().has_subscribers("user:1"));
    /// let listening = endpoint.pubsub().subscribe("user:1");
    /// assert!(endpoint.pubsub().has_subscribers("user:1"));
    /// drop(listening);
    /// assert!(!endpoint.pubsub().has_subscribers("user:1"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn has_subscribers(&self, topic: &str) -> bool {
        self.shared.table.has(topic) || self.has_subscribers_elsewhere(topic)
    }

    /// Whether a topic has subscribers on this node: a client that has joined it, or a channel or task that has subscribed
    /// to it.
    ///
    /// It is for what is sent [here only](crate::pubsub::PreparedBroadcast::here_only), which
    /// subscribers of other nodes do not receive. They do not count, whatever is known of them.
    #[must_use]
    pub fn has_subscribers_here(&self, topic: &str) -> bool {
        self.shared.table.has(topic)
    }

    /// A stage that drops events whose topic has [no subscribers](Self::has_subscribers), so that
    /// expensive stages downstream do no work for topics without subscribers.
    ///
    /// Dropped events are counted in `pipeline.events_without_subscribers`; later subscribers would
    /// not have received them either. They do not use up demand: the stage takes further events
    /// until the demand is met.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, step::map, subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    /// };
    /// use pipeline_ws_sink::{Endpoint, pubsub::PreparedBroadcast};
    /// use serde_json::json;
    ///
    /// /// An expensive step.
    /// fn enriched(user: u64) -> (u64, String) {
    ///     (user, format!("news for {user}"))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let pubsub = endpoint.pubsub();
    /// let worker = pubsub.broadcast_worker(|(user, text): &(u64, String)| {
    ///     PreparedBroadcast::new(&format!("user:{user}"), "news", json!({ "text": text }))
    /// });
    /// let mut pipeline = Pipeline::builder("news")
    ///     .producer(from_iter(0..100))
    ///     .producer_consumer(
    ///         pubsub.filter_subscribed(|user| format!("user:{user}")),
    ///         SubscribeOptions::new(),
    ///     )
    ///     .producer_consumer(map(enriched), SubscribeOptions::new())
    ///     .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
    ///     .start()?;
    /// # pipeline.join().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn filter_subscribed<E, T, F>(&self, topic: F) -> FilterSubscribed<E, F>
    where
        T: AsRef<str>,
        F: FnMut(&E) -> T,
    {
        FilterSubscribed { pubsub: self.clone(), topic, here_only: false, event: PhantomData }
    }

    /// The same for events that are sent here only: those whose topic has [no subscribers on this
    /// node](Self::has_subscribers_here) are dropped.
    pub fn filter_subscribed_here<E, T, F>(&self, topic: F) -> FilterSubscribed<E, F>
    where
        T: AsRef<str>,
        F: FnMut(&E) -> T,
    {
        FilterSubscribed { pubsub: self.clone(), topic, here_only: true, event: PhantomData }
    }
}

impl PubSub {
    /// Whether clients have joined a topic, here or, as far as is known, elsewhere.
    pub(super) fn may_have_clients(&self, topic: &str) -> bool {
        self.has_clients_here(topic) || self.has_subscribers_elsewhere(topic)
    }

    /// Whether clients of this node have joined a topic.
    pub(super) fn has_clients_here(&self, topic: &str) -> bool {
        self.shared.table.has_clients(topic)
    }

    /// Whether this node has no client, and knows that another node may have some.
    pub(super) fn has_clients_elsewhere_only(&self, topic: &str) -> bool {
        !self.has_clients_here(topic)
            && self.shared.topics.as_ref().is_some_and(|topics| topics.may_have(topic))
    }

    /// Whether it can be known whether other nodes have subscribers: they share them, or there are none.
    pub(super) fn knows_elsewhere(&self) -> bool {
        self.shared.topics.is_some() || self.shared.adapter.is_none()
    }

    /// Whether another node may have subscribers. An unknown state counts as one.
    pub(super) fn has_subscribers_elsewhere(&self, topic: &str) -> bool {
        match &self.shared.topics {
            Some(topics) => topics.may_have(topic),
            None => self.shared.adapter.is_some(),
        }
    }
}

/// A stage that drops events whose topic has no subscribers. Made by [`PubSub::filter_subscribed`] and
/// [`PubSub::filter_subscribed_here`].
#[must_use]
pub struct FilterSubscribed<E, F> {
    pubsub: PubSub,
    topic: F,
    here_only: bool,
    event: PhantomData<fn(E)>,
}

impl<E, T, F> ProducerConsumer for FilterSubscribed<E, F>
where
    E: Send + 'static,
    T: AsRef<str>,
    F: FnMut(&E) -> T + Send + 'static,
{
    type In = E;
    type Out = E;

    async fn handle_events(
        &mut self,
        mut events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        let before = events.len();
        events.retain(|event| {
            let topic = (self.topic)(event);
            if self.here_only {
                self.pubsub.has_subscribers_here(topic.as_ref())
            } else {
                self.pubsub.has_subscribers(topic.as_ref())
            }
        });
        let dropped = before - events.len();
        if dropped > 0 {
            self.pubsub.shared.table.metrics().events_without_subscribers.increment(dropped as u64);
        }
        out.emit_all(events);
        Ok(())
    }
}

impl<E, F> fmt::Debug for FilterSubscribed<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterSubscribed").field("pubsub", &self.pubsub).finish_non_exhaustive()
    }
}
