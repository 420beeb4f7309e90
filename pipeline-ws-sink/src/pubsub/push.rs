//! An event that its sender can wait with.

use std::fmt;

use pipeline_core::{ChildContext, ExitReason, Timeline, Worker};
use tokio::time::Instant;

use super::PubSub;
use crate::{
    payload::{IntoPayload, PayloadError},
    protocol::message::Encoded,
    since::Since,
};

/// An event for everyone on a topic, encoded, and not yet sent: see [`PubSub::send`].
///
/// ```
/// use pipeline_core::Timed;
/// use pipeline_ws_sink::{PayloadError, Push};
/// use serde_json::json;
///
/// fn push(price: &Timed<f64>) -> Result<Push, PayloadError> {
///     let push = Push::new("stock:acme", "price", json!({ "price": **price }))?;
///     Ok(push.timed(price))
/// }
/// # assert!(push(&Timed::now(1.0)).is_ok());
/// ```
#[derive(Debug)]
pub struct Push {
    pub(super) event: Encoded,
    /// If its way is timed: what is known of it, until the broadcast.
    pub(super) way: Option<(Timeline, Instant)>,
}

impl Push {
    /// An event with its payload: a JSON object, or bytes.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is neither, or has no JSON form.
    pub fn new(topic: &str, event: &str, payload: impl IntoPayload) -> Result<Self, PayloadError> {
        Ok(Self { event: Encoded::new(topic, event, payload)?, way: None })
    }

    /// Times it. What is known of its way until now is recorded when it is sent; for each socket, the
    /// time from now until the operating system has taken the last byte of its frame is recorded as
    /// `pipeline.push_written`, and the whole time as `pipeline.push_delivered`.
    ///
    /// So it comes last, in the worker that sends the push. To wait for room with slow clients is a part
    /// of writing. [`PubSub::broadcast_timed`] says what is recorded, and what `timeline` may be.
    #[must_use]
    pub fn timed(self, timeline: impl Into<Timeline>) -> Self {
        let (timeline, now) = (timeline.into(), Instant::now());
        let event = self.event.timed(Some(Since::new(&timeline, now)));
        Self { event, way: Some((timeline, now)) }
    }
}

/// The end of a pipeline: sends what a function makes of each event, and waits for room with those
/// that are to be waited for. Made by [`PubSub::pusher`].
pub struct Pusher<F> {
    pubsub: PubSub,
    push: F,
}

impl PubSub {
    /// A worker that sends what this function makes of each event of a pipeline, as
    /// [`send`](Self::send) does.
    ///
    /// With [`WhenFull::Wait`](crate::WhenFull::Wait), the pipeline's demand follows the room of its
    /// sockets: while a client is slow, what is meant for its topic waits with the supervisor, which
    /// asks for no more than its `max_demand`, and so on up to the source. Nothing grows.
    ///
    /// The events of one topic are sent in the order in which they come.
    ///
    /// Where the time went is told of pushes that are [timed](Push::timed): `push.timed(item)` for an
    /// item that is [`Timed`](pipeline_core::Timed).
    ///
    /// ```
    /// use pipeline_core::{ConsumerSupervisor, Pipeline, SubscribeOptions, from_iter};
    /// use pipeline_ws_sink::{Endpoint, Push};
    /// use serde_json::json;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let pusher = endpoint.pubsub().pusher(|n: &u64| {
    ///     Push::new("numbers", "number", json!({ "n": n }))
    /// });
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(from_iter(0..100))
    ///     .consumer_supervisor(ConsumerSupervisor::new(pusher), SubscribeOptions::new())
    ///     .start()?;
    /// assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pusher<E, F>(&self, push: F) -> Pusher<F>
    where
        F: Fn(&E) -> Result<Push, PayloadError> + Send + Sync + 'static,
    {
        Pusher { pubsub: self.clone(), push }
    }
}

impl<E, F> Worker<E> for Pusher<F>
where
    E: Send + Sync + 'static,
    F: Fn(&E) -> Result<Push, PayloadError> + Send + Sync + 'static,
{
    async fn run(&self, event: &E, _: ChildContext) -> Result<(), ExitReason> {
        let push = (self.push)(event)?;
        Ok(self.pubsub.send(&push).await?)
    }
}

impl<F> fmt::Debug for Pusher<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("pubsub", &self.pubsub).finish_non_exhaustive()
    }
}
