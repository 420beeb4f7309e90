//! A task's subscription to a topic.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{Stream, future::poll_fn};
use parking_lot::Mutex;
use thiserror::Error;

use super::{
    broadcast::Broadcast,
    table::{Subscriber, SubscriberId, SubscriberTable, SubscriptionGuard},
};

/// How many broadcasts may wait for a task. Beyond that, the oldest are dropped and counted.
const CAPACITY: usize = 1024;

/// How many bytes the waiting broadcasts may have together. A single broadcast of any size may
/// wait.
const BYTES: usize = 16 << 20;

/// A subscription to a topic, until it is dropped; see
/// [`PubSub::subscribe`](super::PubSub::subscribe).
///
/// A task that reads too slowly never delays a broadcast: beyond 1024 waiting broadcasts, or 16
/// MiB, the oldest are dropped, and the next [`recv`](Self::recv) returns their number.
///
/// It is also a [`Stream`].
///
/// ```
/// # use pipeline_ws_sink::Endpoint;
/// # use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let endpoint = Endpoint::builder().build()?;
/// let mut room = endpoint.subscribe("room:1");
/// let mut other = endpoint.subscribe("room:1");
/// endpoint.broadcast_from(room.id(), "room:1", "shouted", json!({ "text": "hello" }))?;
/// assert_eq!(other.recv().await?.payload().json(), Some(r#"{"text":"hello"}"#));
/// # Ok(())
/// # }
/// ```
pub struct TopicSubscription {
    inbox: Arc<BroadcastQueue>,
    listening: SubscriptionGuard,
}

/// The broadcasts that wait for a task.
#[derive(Default)]
pub(crate) struct BroadcastQueue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Broadcast>,
    /// The bytes of the waiting broadcasts.
    bytes: usize,
    dropped: u64,
    task: Option<Waker>,
}

impl TopicSubscription {
    pub(super) fn new(table: &Arc<SubscriberTable>, topic: &str) -> Self {
        let inbox = Arc::new(BroadcastQueue::default());
        let listening =
            table.subscribe(&topic.into(), SubscriberId::new(), Subscriber::Task(inbox.clone()));
        Self { inbox, listening }
    }

    /// Receives the next broadcast.
    ///
    /// # Errors
    ///
    /// [`Lagged`] if broadcasts were dropped before it. The next call continues with those that are
    /// left.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Result<Broadcast, Lagged> {
        poll_fn(|cx| self.inbox.poll(cx)).await
    }

    /// The subscriber's id, for [`broadcast_from`](super::PubSub::broadcast_from).
    #[must_use]
    pub fn id(&self) -> SubscriberId {
        self.listening.id()
    }

    /// The topic of the subscription.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.listening.topic()
    }
}

impl Stream for TopicSubscription {
    type Item = Result<Broadcast, Lagged>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inbox.poll(cx).map(Some)
    }
}

impl BroadcastQueue {
    pub(super) fn put(&self, broadcast: Broadcast) {
        let mut state = self.state.lock();
        let new = broadcast.payload().bytes().len();
        let mut dropped = Vec::new();
        while state.waiting.len() >= CAPACITY || state.bytes + new > BYTES {
            let Some(oldest) = state.take() else { break };
            dropped.push(oldest);
        }
        state.dropped += dropped.len() as u64;
        state.bytes += new;
        state.waiting.push_back(broadcast);
        let task = state.task.take();
        drop(state);
        drop(dropped);
        if let Some(task) = task {
            task.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Broadcast, Lagged>> {
        let mut state = self.state.lock();
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            return Poll::Ready(Err(Lagged(dropped)));
        }
        match state.take() {
            Some(broadcast) => Poll::Ready(Ok(broadcast)),
            None => {
                state.task = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl State {
    /// Removes the oldest broadcast.
    fn take(&mut self) -> Option<Broadcast> {
        let oldest = self.waiting.pop_front()?;
        self.bytes -= oldest.payload().bytes().len();
        Some(oldest)
    }
}

impl fmt::Debug for TopicSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicSubscription").field("topic", &self.topic()).finish_non_exhaustive()
    }
}

/// A task read too slowly, and this number of broadcasts was dropped.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the subscriber lagged: {0} broadcasts were dropped")]
pub struct Lagged(pub u64);

#[cfg(test)]
impl TopicSubscription {
    /// Unsubscribes, and keeps the broadcasts that wait.
    pub(super) fn cancel(&mut self) {
        self.listening.cancel();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::message::Encoded;

    fn broadcast(table: &SubscriberTable, n: usize) {
        let encoded = Encoded::new("t", "e", json!({ "n": n })).unwrap();
        table.dispatch(&encoded, None, None);
    }

    #[tokio::test]
    async fn a_task_that_reads_too_slowly_loses_the_oldest_and_receives_their_number() {
        let table = Arc::new(SubscriberTable::silent());
        let mut subscription = TopicSubscription::new(&table, "t");
        (0..CAPACITY + 3).for_each(|n| broadcast(&table, n));
        assert_eq!(subscription.recv().await, Err(Lagged(3)));
        let next = subscription.recv().await.unwrap();
        assert_eq!(next.payload().json(), Some(r#"{"n":3}"#));
        for _ in 1..CAPACITY {
            assert!(subscription.recv().await.is_ok());
        }
        let nothing = futures::poll!(std::pin::pin!(subscription.recv()));
        assert!(nothing.is_pending());
    }

    #[tokio::test]
    async fn waiting_broadcasts_are_bounded_in_bytes() {
        let table = Arc::new(SubscriberTable::silent());
        let mut subscription = TopicSubscription::new(&table, "t");
        let large = |bytes| {
            let payload = json!({ "padding": "x".repeat(bytes) });
            table.dispatch(&Encoded::new("t", "e", payload).unwrap(), None, None);
        };
        (0..20).for_each(|_| large(1 << 20));
        assert_eq!(subscription.recv().await, Err(Lagged(5)));
        large(2 * BYTES);
        assert_eq!(subscription.recv().await, Err(Lagged(15)));
        assert!(subscription.recv().await.is_ok(), "a single broadcast of any size may wait");
        assert_eq!(subscription.inbox.state.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_task_is_woken_by_a_broadcast() {
        let table = Arc::new(SubscriberTable::silent());
        let mut subscription = TopicSubscription::new(&table, "t");
        let receiving = tokio::spawn(async move { subscription.recv().await });
        tokio::task::yield_now().await;
        broadcast(&table, 7);
        assert_eq!(receiving.await.unwrap().unwrap().event(), "e");
    }
}
