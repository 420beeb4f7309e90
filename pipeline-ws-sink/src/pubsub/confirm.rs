//! Confirmations: clients say that they have got a push.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::Deadline;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::PubSub;
use crate::telemetry::SocketMetrics;

/// The confirmations that are waited for on this node, by topic.
///
/// An entry is removed by whatever comes first: its client's confirmation, the end of the last
/// channel of its topic, or the end of the wait.
pub(crate) struct Confirmations {
    state: Mutex<State>,
    limit: usize,
    /// A permit for each that may still be waited for. What waits for one gets it in its order, and nothing that comes
    /// later takes it before.
    free: Arc<Semaphore>,
    /// Distinguishes the ids of this process from those of an earlier one, which late clients
    /// may still send.
    prefix: u64,
    metrics: Arc<SocketMetrics>,
}

#[derive(Default)]
struct State {
    topics: HashMap<Arc<str>, HashMap<u64, Expected>>,
    waiting: usize,
    last: u64,
}

/// A confirmation that is waited for.
struct Expected {
    confirm: oneshot::Sender<()>,
    /// Another one may be waited for when it is dropped.
    _permit: OwnedSemaphorePermit,
}

/// A confirmation that a client is to send: see [`PubSub::confirmation`].
///
/// Dropping it ends the wait.
#[must_use = "a confirmation has to be awaited"]
pub struct Confirmation {
    all: Arc<Confirmations>,
    topic: Arc<str>,
    number: u64,
    id: Box<str>,
    confirmed: oneshot::Receiver<()>,
}

/// No client has confirmed a push.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotConfirmed {
    /// None has done so in time.
    #[error("no client has confirmed the push in time")]
    Late,
    /// The last client has left the topic.
    #[error("the last client has left before it has confirmed the push")]
    Left,
}

/// Too many pushes wait to be confirmed:
/// [`EndpointBuilder::max_confirmations`](crate::endpoint::EndpointBuilder::max_confirmations).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("too many pushes wait to be confirmed: {limit}")]
pub struct TooManyConfirmations {
    /// The maximum number.
    pub limit: usize,
}

impl PubSub {
    /// Waits for a client on a topic to confirm a push.
    ///
    /// Send its [id](Confirmation::id) with the push. The client sends it back, on the same channel:
    ///
    /// ```js
    /// channel.on("ticket", payload => {
    ///   print(payload.seat)
    ///   channel.push("ack", {id: payload.ack})
    /// })
    /// ```
    ///
    /// and the channel passes it to
    /// [`ChannelContext::confirm`](crate::channel::ChannelContext::confirm). The first confirmation
    /// counts, if several clients have joined the topic. A confirmation on another topic does not.
    ///
    /// Confirmations are known to their own node alone: the client has to be connected to it.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_ws_sink::{PubSub, pubsub::PreparedBroadcast};
    /// use serde_json::json;
    ///
    /// async fn hand_over(pubsub: &PubSub) -> Result<(), Box<dyn std::error::Error>> {
    ///     let confirmation = pubsub.confirmation("user:7")?;
    ///     let payload = json!({ "seat": 12, "ack": confirmation.id() });
    ///     pubsub.deliver(PreparedBroadcast::new("user:7", "ticket", payload)?).await?;
    ///     Ok(confirmation.within(Duration::from_secs(10)).await?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TooManyConfirmations`] if the maximum number is waited for already.
    pub fn confirmation(&self, topic: &str) -> Result<Confirmation, TooManyConfirmations> {
        self.shared.table.confirmations().expect(topic.into())
    }

    /// Waits for a client on a topic to confirm a push, if another one may be waited for.
    pub(super) fn confirmation_if_free(&self, topic: &str) -> Option<Confirmation> {
        self.shared.table.confirmations().expect_if_free(topic.into())
    }

    /// The same as soon as another one may be waited for. It fails if none ever may.
    pub(super) async fn confirmation_once_free(
        &self,
        topic: &str,
    ) -> Result<Confirmation, TooManyConfirmations> {
        self.shared.table.confirmations().expect_once_free(topic.into()).await
    }
}

impl Confirmations {
    pub(super) fn new(limit: usize, metrics: Arc<SocketMetrics>) -> Self {
        // The hash of anything with random keys.
        let prefix = RandomState::new().hash_one(0);
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { state: Mutex::default(), limit, free, prefix, metrics }
    }

    /// The number of pushes that wait to be confirmed.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    fn expect(self: &Arc<Self>, topic: Arc<str>) -> Result<Confirmation, TooManyConfirmations> {
        self.expect_if_free(topic).ok_or_else(|| {
            self.metrics.confirmations_refused.increment(1);
            TooManyConfirmations { limit: self.limit }
        })
    }

    async fn expect_once_free(
        self: &Arc<Self>,
        topic: Arc<str>,
    ) -> Result<Confirmation, TooManyConfirmations> {
        if self.limit == 0 {
            return Err(TooManyConfirmations { limit: 0 });
        }
        // The semaphore is never closed.
        let permit = self.free.clone().acquire_owned().await;
        let permit = permit.map_err(|_| TooManyConfirmations { limit: self.limit })?;
        Ok(self.expect_with(permit, topic))
    }

    fn expect_if_free(self: &Arc<Self>, topic: Arc<str>) -> Option<Confirmation> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(self.expect_with(permit, topic))
    }

    fn expect_with(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        topic: Arc<str>,
    ) -> Confirmation {
        let mut state = self.state.lock();
        let (confirm, confirmed) = oneshot::channel();
        state.last = state.last.wrapping_add(1);
        state.waiting = state.waiting.saturating_add(1);
        let number = state.last;
        let expected = Expected { confirm, _permit: permit };
        state.topics.entry(topic.clone()).or_default().insert(number, expected);
        drop(state);
        let id = format!("{:016x}-{number:x}", self.prefix).into();
        Confirmation { all: self.clone(), topic, number, id, confirmed }
    }

    /// Confirms a push. Returns whether it was waited for on this topic.
    pub(crate) fn confirm(&self, topic: &str, id: &str) -> bool {
        let number = self.number(id);
        let confirmed = number.and_then(|number| self.state.lock().remove(topic, number));
        match &confirmed {
            Some(_) => self.metrics.confirmed.increment(1),
            None => self.metrics.confirmations_unknown.increment(1),
        }
        // The wait may have ended at this moment.
        confirmed.is_some_and(|expected| expected.confirm.send(()).is_ok())
    }

    /// Ends all waits of a topic, whose last channel has ended.
    pub(super) fn end(&self, topic: &str) {
        let mut state = self.state.lock();
        if state.waiting == 0 {
            return;
        }
        let ended = state.topics.remove(topic);
        let count = ended.as_ref().map_or(0, HashMap::len);
        state.waiting = state.waiting.saturating_sub(count);
        drop(state);
        // Waking the tasks needs no lock.
        drop(ended);
    }

    /// The number in an id of this process.
    fn number(&self, id: &str) -> Option<u64> {
        let (prefix, number) = id.split_once('-')?;
        let is_own = u64::from_str_radix(prefix, 16) == Ok(self.prefix);
        is_own.then(|| u64::from_str_radix(number, 16).ok())?
    }
}

impl State {
    fn remove(&mut self, topic: &str, number: u64) -> Option<Expected> {
        let waits = self.topics.get_mut(topic)?;
        let expected = waits.remove(&number)?;
        if waits.is_empty() {
            self.topics.remove(topic);
        }
        self.waiting = self.waiting.saturating_sub(1);
        Some(expected)
    }
}

impl Confirmation {
    /// What the client has to send back.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The topic on which the client has to confirm.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Waits until a client has confirmed the push, for this time at most.
    ///
    /// # Errors
    ///
    /// [`NotConfirmed`] if the time is over, or if the last client has left the topic meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait: a later confirmation is unknown.
    pub async fn within(mut self, limit: Duration) -> Result<(), NotConfirmed> {
        let metrics = &self.all.metrics;
        match Deadline::from_now(limit).limit(&mut self.confirmed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                metrics.confirmations_left.increment(1);
                Err(NotConfirmed::Left)
            }
            Err(_) => {
                metrics.confirmations_late.increment(1);
                Err(NotConfirmed::Late)
            }
        }
    }
}

impl Drop for Confirmation {
    fn drop(&mut self) {
        let removed = self.all.state.lock().remove(&self.topic, self.number);
        drop(removed);
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirmation")
            .field("topic", &self.topic)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::poll;
    use pipeline_core::telemetry::Telemetry;

    use super::*;

    #[tokio::test]
    async fn what_waits_for_a_confirmation_has_it_in_its_order_and_before_what_comes_later() {
        let metrics = Arc::new(SocketMetrics::register(&Telemetry::global()));
        let all = Arc::new(Confirmations::new(1, metrics));
        let mut has_it = all.expect("user:ada".into()).unwrap();
        let mut line: Vec<_> =
            (0..5).map(|_| Box::pin(all.expect_once_free("user:ada".into()))).collect();
        for waits in &mut line {
            assert!(poll!(waits).is_pending());
        }
        for nth in 0..5 {
            // A client says what it likes, and a new push comes when one is free.
            assert!(!all.confirm("user:ada", "unknown"));
            if nth % 2 == 0 {
                assert!(all.confirm("user:ada", has_it.id()));
            } else {
                drop(has_it);
            }
            assert!(all.expect_if_free("user:joe".into()).is_none());
            for waits in line.iter_mut().skip(1).rev() {
                assert!(poll!(waits).is_pending());
            }
            let Poll::Ready(next) = poll!(&mut line[0]) else { panic!("it is its turn") };
            has_it = next.unwrap();
            drop(line.remove(0));
        }
        drop(has_it);
        assert!(all.expect_if_free("user:joe".into()).is_some());
        assert_eq!(all.waiting(), 0);
    }
}
