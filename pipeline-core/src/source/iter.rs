//! A producer of an iterator's items.

use std::{fmt, future::pending};

use super::ConsumerCount;
use crate::{
    exit::ExitReason,
    stage::{Emitter, Producer},
    subscription::{Cancellation, SubscribeOptions, Subscription},
};

/// Creates a producer of an iterator's items. It takes exactly as many items as there is demand
/// for.
///
/// The stage ends once the last items of the iterator are delivered. If the iterator panics, the
/// stage ends, and the items taken for the same demand are lost.
///
/// The semantics are those of GenStage's `from_enumerable`.
///
/// ```
/// use pipeline_core::{
///     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("countdown")
///     .producer(from_iter((0..10).rev()))
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
pub fn from_iter<I>(items: I) -> FromIter<I::IntoIter>
where
    I: IntoIterator<Item: Send + 'static, IntoIter: Send + 'static>,
{
    FromIter { items: items.into_iter(), asked: 0, consumers: ConsumerCount::default() }
}

/// The producer returned by [`from_iter`].
#[must_use]
pub struct FromIter<I> {
    items: I,
    /// Demand that is still to be met.
    asked: usize,
    consumers: ConsumerCount,
}

impl<I> FromIter<I> {
    /// Ends the stage when its last consumer leaves. By default it waits for the next consumer.
    ///
    /// ```
    /// use futures::TryStreamExt;
    /// use pipeline_core::{
    ///     Graph, source::from_iter, stage::EventStream, subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..).stop_without_consumers());
    /// let mut pipeline = graph.start()?;
    ///
    /// let mut stream = EventStream::new();
    /// stream.subscribe(&numbers, SubscribeOptions::new().max_demand(10))?;
    /// let first: Option<u64> = stream.try_next().await?;
    /// assert_eq!(first, Some(0));
    ///
    /// drop(stream);
    /// assert!(pipeline.join().await.failure().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_without_consumers(mut self) -> Self {
        self.consumers.needed();
        self
    }
}

/// How many items are taken at once: a consumer may have asked for `usize::MAX` of an infinite
/// iterator.
pub(super) const AT_ONCE: usize = 1 << 14;

impl<I: Iterator> FromIter<I> {
    fn emit(&mut self, out: &mut Emitter<'_, I::Item>) {
        // Demand of a cancelled consumer leaves its items in the iterator.
        let count = self.asked.min(out.owed()).min(AT_ONCE);
        self.asked -= count;
        // All or nothing: half a batch of an iterator that panics is of no use.
        let batch: Vec<I::Item> = self.items.by_ref().take(count).collect();
        if batch.len() < count {
            out.finish();
        }
        out.emit_all(batch);
    }
}

#[diagnostic::do_not_recommend]
impl<I> Producer for FromIter<I>
where
    I: Iterator<Item: Send + 'static> + Send + 'static,
{
    type Event = I::Item;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, I::Item>,
    ) -> Result<(), ExitReason> {
        self.asked = self.asked.saturating_add(demand);
        self.emit(out);
        Ok(())
    }

    async fn ready(&mut self) {
        if self.asked == 0 {
            pending::<()>().await;
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, I::Item>) -> Result<(), ExitReason> {
        self.emit(out);
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        _to: &Subscription,
        _out: &mut Emitter<'_, I::Item>,
    ) -> Result<(), ExitReason> {
        self.consumers.joined();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _to: &Subscription,
        _out: &mut Emitter<'_, I::Item>,
    ) -> Result<(), ExitReason> {
        self.consumers.left()
    }
}

impl<I> fmt::Debug for FromIter<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromIter").field("consumers", &self.consumers).finish_non_exhaustive()
    }
}
