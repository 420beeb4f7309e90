//! A test's subscription to a topic.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{
    inbox::TestInbox,
    message::{ExpectedKind, Recipient, TestMessage},
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
    inbox: Arc<TestInbox>,
    number: u64,
    topic: String,
    id: SubscriberId,
    pubsub: PubSub,
    hearing: JoinHandle<()>,
}

impl TestTopic {
    pub(super) fn new(inbox: &Arc<TestInbox>, pubsub: &PubSub, topic: &str) -> Self {
        let subscription = pubsub.subscribe(topic);
        let (number, id) = (inbox.number(), subscription.id());
        let hearing = tokio::spawn(hear(inbox.clone(), number, subscription));
        let (inbox, pubsub, topic) = (inbox.clone(), pubsub.clone(), topic.to_owned());
        Self { inbox, number, topic, id, pubsub, hearing }
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
        let kind = ExpectedKind::Broadcast { event: event.to_owned() };
        Search::new(&self.inbox, Recipient::Listener(self.number), &self.topic, kind)
    }
}

impl Drop for TestTopic {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// Records the topic's broadcasts for the test.
async fn hear(inbox: Arc<TestInbox>, number: u64, mut subscription: TopicSubscription) {
    loop {
        match subscription.recv().await {
            Ok(broadcast) => inbox.put([TestMessage::to_listener(number, &broadcast)]),
            Err(Lagged(count)) => inbox.lose(count),
        }
    }
}
