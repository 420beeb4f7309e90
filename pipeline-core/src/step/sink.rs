//! Sinks as consumers.

use std::{fmt, marker::PhantomData, pin::Pin};

use futures::{Sink, SinkExt};
use tokio::task::coop;

use crate::{exit::ExitReason, stage::Consumer, subscription::Subscription};

/// Creates a consumer that sends its events to a [`Sink`].
///
/// A chunk of events is fed to the sink and flushed before more events are asked for, so a slow
/// sink slows the pipeline. When the stage ends, the sink is closed. An error of the sink ends the
/// stage.
///
/// ```
/// use futures::channel::mpsc;
/// use pipeline_core::{
///     Pipeline, source::from_iter, step::into_sink, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sink, _receiver) = mpsc::channel(100);
/// let mut pipeline = Pipeline::builder("channel")
///     .producer(from_iter(0..10))
///     .consumer(into_sink(sink), SubscribeOptions::new())
///     .start()?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
pub fn into_sink<E, S>(sink: S) -> IntoSink<E, S>
where
    E: Send + 'static,
    S: Sink<E, Error: Into<ExitReason>> + Send + 'static,
{
    IntoSink { sink: Box::pin(sink), event: PhantomData }
}

/// The consumer returned by [`into_sink`].
#[must_use]
pub struct IntoSink<E, S> {
    sink: Pin<Box<S>>,
    event: PhantomData<fn(E)>,
}

#[diagnostic::do_not_recommend]
impl<E, S> Consumer for IntoSink<E, S>
where
    E: Send + 'static,
    S: Sink<E, Error: Into<ExitReason>> + Send + 'static,
{
    type Event = E;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        for event in events {
            coop::consume_budget().await;
            self.sink.feed(event).await.map_err(Into::into)?;
        }
        self.sink.flush().await.map_err(Into::into)
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        // The reader of the other end is notified by the close itself.
        let _ = self.sink.close().await;
    }
}

impl<E, S> fmt::Debug for IntoSink<E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntoSink")
    }
}
