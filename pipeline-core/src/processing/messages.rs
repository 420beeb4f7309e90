//! The handle of a running pipeline's sources.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::{sync::mpsc, time::Instant};

use super::{
    acknowledge::Acknowledger,
    failure::Failure,
    message::{BatchMode, Message},
};
use crate::stage::{
    CallError, Producer, ProducerHandle, RateLimit, SharedLimiter, StageHandle, Target,
    random_below,
};

/// A handle of a pipeline of messages: it pushes messages into it, and changes its rate limit.
///
/// Cheap to clone. The functions are those of the module `Broadway`.
pub struct MessagesHandle<T> {
    sources: Arc<[Arc<dyn SourceHandle<T>>]>,
    limiter: Option<SharedLimiter>,
}

/// A source in a graph.
pub(super) trait SourceHandle<T>: Send + Sync {
    fn target(&self) -> Arc<dyn Target<Message<T>>>;

    fn push(&self, messages: Vec<Message<T>>) -> BoxFuture<'_, Result<(), CallError>>;

    fn limit_has_changed(&self);

    fn is_running(&self) -> bool;
}

impl<T: Send + 'static, S: Producer<Event = Message<T>>> SourceHandle<T> for ProducerHandle<S> {
    fn target(&self) -> Arc<dyn Target<Message<T>>> {
        self.slot.clone()
    }

    fn push(&self, messages: Vec<Message<T>>) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(self.emit(messages))
    }

    fn limit_has_changed(&self) {
        StageHandle::limit_has_changed(self);
    }

    fn is_running(&self) -> bool {
        StageHandle::is_running(self)
    }
}

/// The error of a rate limit that a pipeline does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("rate limiting is not enabled for this pipeline: it was built without a rate_limit")]
pub struct NotRateLimited;

impl<T: Send + Sync + 'static> MessagesHandle<T> {
    pub(super) fn new(
        sources: Vec<Arc<dyn SourceHandle<T>>>,
        limiter: Option<SharedLimiter>,
    ) -> Self {
        Self { sources: sources.into(), limiter }
    }

    /// Lets one of the running sources, chosen at random, emit these messages. Returns when it has: they may
    /// still wait in its buffer for demand.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the source is not running. The messages are then acknowledged as failed.
    pub async fn push_messages(&self, messages: Vec<Message<T>>) -> Result<(), CallError> {
        let count = self.sources.len();
        let first = random_below(count);
        let mut places = (0..count).map(|n| (first + n) % count);
        let running = places.find(|place| self.sources[*place].is_running());
        self.sources[running.unwrap_or(first)].push(messages).await
    }

    /// Pushes a message with this data, whose batch is closed at once, and returns where its outcome
    /// arrives. For tests of a pipeline.
    ///
    /// # Errors
    ///
    /// As for [`push_messages`](Self::push_messages).
    pub async fn test_message(&self, data: T) -> Result<TestOutcomes, CallError> {
        self.test_batch([data], BatchMode::Flush).await
    }

    /// Pushes messages with these data, and returns where their outcomes arrive, in one or more
    /// groups. For tests of a pipeline.
    ///
    /// # Errors
    ///
    /// As for [`push_messages`](Self::push_messages).
    pub async fn test_batch(
        &self,
        data: impl IntoIterator<Item = T>,
        mode: BatchMode,
    ) -> Result<TestOutcomes, CallError> {
        let data: Vec<T> = data.into_iter().collect();
        // There is an outcome for each message at most.
        let (sender, receiver) = mpsc::channel(data.len().max(1));
        let acknowledger = Arc::new(TestAcknowledger(sender));
        let messages = data.into_iter().enumerate().map(|(n, data)| {
            let mut message = Message::new(data, n, &acknowledger);
            message.set_batch_mode(mode);
            message
        });
        let messages = messages.collect();
        drop(acknowledger);
        self.push_messages(messages).await?;
        Ok(TestOutcomes { receiver })
    }

    /// The rate limit from the next interval on, if the pipeline has one.
    #[must_use]
    pub fn rate_limit(&self) -> Option<RateLimit> {
        Some(self.limiter.as_ref()?.lock().limit())
    }

    /// Changes the rate limit from the next interval on.
    ///
    /// # Errors
    ///
    /// [`NotRateLimited`] if the pipeline was built without one.
    pub fn update_rate_limit(&self, limit: RateLimit) -> Result<(), NotRateLimited> {
        self.limiter.as_ref().ok_or(NotRateLimited)?.lock().update(limit, Instant::now());
        Ok(())
    }

    /// Changes the rate limit at once: a new interval begins now.
    ///
    /// # Errors
    ///
    /// [`NotRateLimited`] if the pipeline was built without one.
    pub fn reset_rate_limit(&self, limit: RateLimit) -> Result<(), NotRateLimited> {
        self.limiter.as_ref().ok_or(NotRateLimited)?.lock().reset(limit, Instant::now());
        self.sources.iter().for_each(|source| source.limit_has_changed());
        Ok(())
    }
}

/// The outcomes of messages pushed by [`test_batch`](MessagesHandle::test_batch).
#[derive(Debug)]
pub struct TestOutcomes {
    receiver: mpsc::Receiver<TestOutcome>,
}

/// The outcome of a group of messages that were acknowledged together. Each message is the number of
/// its data among those that were pushed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TestOutcome {
    /// The messages that were handled.
    pub done: Vec<usize>,
    /// The messages that failed.
    pub failed: Vec<(usize, Failure)>,
}

impl TestOutcomes {
    /// The outcome of the next group, or `None` when there are no more messages.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<TestOutcome> {
        self.receiver.recv().await
    }
}

struct TestAcknowledger(mpsc::Sender<TestOutcome>);

impl Acknowledger for TestAcknowledger {
    type Receipt = usize;

    fn acknowledge(&self, done: Vec<usize>, failed: Vec<(usize, Failure)>) {
        // A test that no longer waits is ignored.
        let _ = self.0.try_send(TestOutcome { done, failed });
    }
}

impl<T> Clone for MessagesHandle<T> {
    fn clone(&self) -> Self {
        Self { sources: self.sources.clone(), limiter: self.limiter.clone() }
    }
}

impl<T> fmt::Debug for MessagesHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessagesHandle")
            .field("sources", &self.sources.len())
            .finish_non_exhaustive()
    }
}
