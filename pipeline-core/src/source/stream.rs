//! A producer of a stream's items.

use std::{fmt, pin::Pin};

use futures::{FutureExt, Stream, StreamExt};

use super::{ConsumerCount, iter::AT_ONCE};
use crate::{
    exit::ExitReason,
    stage::{Emitter, Producer},
    subscription::{Cancellation, SubscribeOptions, Subscription},
};

/// Creates a producer of a stream's items. The stream is polled only while there is demand.
///
/// The stage ends once the last items of the stream are delivered. When the pipeline drains, the
/// stream is no longer polled.
///
/// ```
/// use futures::stream;
/// use pipeline_core::{
///     Pipeline, source::from_stream, step::for_each, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("words")
///     .producer(from_stream(stream::iter(["to", "the", "screen"])))
///     .consumer(for_each(async |word| println!("{word}")), SubscribeOptions::new())
///     .start()?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
pub fn from_stream<S>(stream: S) -> FromStream<S>
where
    S: Stream<Item: Send + 'static> + Send + 'static,
{
    let consumers = ConsumerCount::default();
    FromStream { stream: Box::pin(stream), next: Vec::new(), at_end: false, consumers }
}

/// The producer returned by [`from_stream`].
#[must_use]
pub struct FromStream<S: Stream> {
    stream: Pin<Box<S>>,
    /// The items that `ready` has received and `handle_ready` is about to emit.
    next: Vec<S::Item>,
    at_end: bool,
    consumers: ConsumerCount,
}

impl<S: Stream> FromStream<S> {
    /// Ends the stage when its last consumer leaves. By default it waits for the next consumer.
    ///
    /// ```
    /// use futures::{TryStreamExt, stream};
    /// use pipeline_core::{
    ///     Graph, source::from_stream, stage::EventStream, subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("clock");
    /// let ticks = from_stream(stream::repeat("tick")).stop_without_consumers();
    /// let ticks = graph.producer("ticks", ticks);
    /// let mut pipeline = graph.start()?;
    ///
    /// let mut stream = EventStream::new();
    /// stream.subscribe(&ticks, SubscribeOptions::new().max_demand(10))?;
    /// assert_eq!(stream.try_next().await?, Some("tick"));
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

#[diagnostic::do_not_recommend]
impl<S> Producer for FromStream<S>
where
    S: Stream<Item: Send + 'static> + Send + 'static,
{
    type Event = S::Item;

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, S::Item>,
    ) -> Result<(), ExitReason> {
        // `ready` is awaited only while events are owed.
        Ok(())
    }

    async fn ready(&mut self) {
        if self.next.is_empty() && !self.at_end {
            match self.stream.next().await {
                Some(item) => self.next.push(item),
                None => self.at_end = true,
            }
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, S::Item>) -> Result<(), ExitReason> {
        out.emit_all(self.next.drain(..));
        let room = if self.at_end { 0 } else { out.owed().min(AT_ONCE) };
        for _ in 0..room {
            match self.stream.next().now_or_never() {
                Some(Some(item)) => out.emit(item),
                Some(None) => {
                    self.at_end = true;
                    break;
                }
                None => break,
            }
        }
        if self.at_end {
            out.finish();
        }
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        _to: &Subscription,
        _out: &mut Emitter<'_, S::Item>,
    ) -> Result<(), ExitReason> {
        self.consumers.joined();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _to: &Subscription,
        _out: &mut Emitter<'_, S::Item>,
    ) -> Result<(), ExitReason> {
        self.consumers.left()
    }

    fn pending(&self) -> usize {
        self.next.len()
    }
}

impl<S: Stream> fmt::Debug for FromStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromStream").field("at_end", &self.at_end).finish_non_exhaustive()
    }
}
