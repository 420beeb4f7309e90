//! Whether anybody listens to a topic, and a stage that asks.

use std::{fmt, marker::PhantomData};

use pipeline_core::{Emitter, ExitReason, ProducerConsumer, Subscription};

use super::PubSub;

impl PubSub {
    /// Whether anybody listens to a topic: a client that has joined it, or a channel or task that has
    /// subscribed to it.
    ///
    /// With an [`Adapter`](crate::Adapter), others may listen on other nodes. Which topics these are is
    /// known where all nodes [share it](crate::EndpointBuilder::share_online), a moment late. What is not
    /// known counts as somebody. So the answer is `true` for every topic
    ///
    /// - where nodes do not share it,
    /// - on a node that has just started, until the others have answered it: for three
    ///   [periods](crate::TrackerOptions::broadcast_period),
    /// - while another node is silent that has not said that it ends, until it is
    ///   [forgotten](crate::TrackerOptions::permdown_period),
    /// - while something that another node has told is still on its way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pipeline_ws_sink::Endpoint;
    /// let endpoint = Endpoint::builder().build()?;
    /// assert!(!endpoint.pubsub().is_online("user:1"));
    /// let listening = endpoint.pubsub().subscribe("user:1");
    /// assert!(endpoint.pubsub().is_online("user:1"));
    /// drop(listening);
    /// assert!(!endpoint.pubsub().is_online("user:1"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_online(&self, topic: &str) -> bool {
        self.shared.table.has(topic) || self.is_online_elsewhere(topic)
    }

    /// A stage that passes on only those events whose topic somebody [listens to](Self::is_online), so
    /// that what comes behind it does no work for people who are away.
    ///
    /// The events of the others are dropped, and counted in `pipeline.events_offline`; whoever comes
    /// later would not have got them either. Demand for them stays: the stage goes on to take events
    /// until it is met.
    ///
    /// ```
    /// use pipeline_core::{ConsumerSupervisor, Pipeline, SubscribeOptions, from_iter, map};
    /// use pipeline_ws_sink::{Endpoint, Push};
    /// use serde_json::json;
    ///
    /// /// What takes long.
    /// fn enriched(user: u64) -> (u64, String) {
    ///     (user, format!("news for {user}"))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let pubsub = endpoint.pubsub();
    /// let pusher = pubsub.pusher(|(user, text): &(u64, String)| {
    ///     Push::new(&format!("user:{user}"), "news", json!({ "text": text }))
    /// });
    /// let mut pipeline = Pipeline::builder("news")
    ///     .producer(from_iter(0..100))
    ///     .producer_consumer(
    ///         pubsub.only_online(|user| format!("user:{user}")),
    ///         SubscribeOptions::new(),
    ///     )
    ///     .producer_consumer(map(enriched), SubscribeOptions::new())
    ///     .consumer_supervisor(ConsumerSupervisor::new(pusher), SubscribeOptions::new())
    ///     .start()?;
    /// # pipeline.ended().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn only_online<E, T, F>(&self, topic: F) -> OnlyOnline<E, F>
    where
        T: AsRef<str>,
        F: FnMut(&E) -> T,
    {
        OnlyOnline { pubsub: self.clone(), topic, event: PhantomData }
    }
}

impl PubSub {
    /// What is not known counts as somebody.
    fn is_online_elsewhere(&self, topic: &str) -> bool {
        match &self.shared.topics {
            Some(topics) => topics.may_have(topic),
            None => self.shared.adapter.is_some(),
        }
    }
}

/// A stage that passes on what is for those who are there. Made by [`PubSub::only_online`].
#[must_use]
pub struct OnlyOnline<E, F> {
    pubsub: PubSub,
    topic: F,
    event: PhantomData<fn(E)>,
}

impl<E, T, F> ProducerConsumer for OnlyOnline<E, F>
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
        events.retain(|event| self.pubsub.is_online((self.topic)(event).as_ref()));
        let offline = before - events.len();
        if offline > 0 {
            self.pubsub.shared.table.metrics().events_offline.increment(offline as u64);
        }
        out.emit_all(events);
        Ok(())
    }
}

impl<E, F> fmt::Debug for OnlyOnline<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnlyOnline").field("pubsub", &self.pubsub).finish_non_exhaustive()
    }
}
