//! A test's subscription to a topic.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{
    mail::{Kind, Mail, Recipient},
    mailroom::Mailroom,
    search::Search,
};
use crate::{
    payload::IntoPayload,
    pubsub::{Lagged, PubSub, SubscriberId, TopicSubscription},
};

/// A test's subscription to a topic, until it is dropped: see
/// [`TestEndpoint::subscribe`](super::TestEndpoint::subscribe).
///
/// [`assert_broadcast!`](super::assert_broadcast) and
/// [`refute_broadcast!`](super::refute_broadcast) search its broadcasts.
#[derive(Debug)]
pub struct TestTopic {
    mailroom: Arc<Mailroom>,
    number: u64,
    topic: String,
    id: SubscriberId,
    pubsub: PubSub,
    hearing: JoinHandle<()>,
}

impl TestTopic {
    pub(super) fn new(mailroom: &Arc<Mailroom>, pubsub: &PubSub, topic: &str) -> Self {
        let subscription = pubsub.subscribe(topic);
        let (number, id) = (mailroom.number(), subscription.id());
        let hearing = tokio::spawn(hear(mailroom.clone(), number, subscription));
        let (mailroom, pubsub, topic) = (mailroom.clone(), pubsub.clone(), topic.to_owned());
        Self { mailroom, number, topic, id, pubsub, hearing }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Sends an event to all subscribers of the topic except this test: its channels, and their
    /// clients.
    ///
    /// # Panics
    ///
    /// If the payload is not a JSON object or binary.
    #[track_caller]
    pub fn broadcast_from(&self, event: &str, payload: impl IntoPayload) {
        let sent = self.pubsub.broadcast_from(self.id, &self.topic, event, payload);
        sent.expect("the payload is a JSON object or binary");
    }

    #[doc(hidden)]
    pub fn broadcasts(&self, event: &str) -> Search {
        let kind = Kind::Broadcast { event: event.to_owned() };
        Search::new(&self.mailroom, Recipient::Listener(self.number), &self.topic, kind)
    }
}

impl Drop for TestTopic {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// Records the topic's broadcasts for the test.
async fn hear(mailroom: Arc<Mailroom>, number: u64, mut subscription: TopicSubscription) {
    loop {
        match subscription.recv().await {
            Ok(broadcast) => mailroom.put([Mail::to_listener(number, &broadcast)]),
            Err(Lagged(count)) => mailroom.lose(count),
        }
    }
}
