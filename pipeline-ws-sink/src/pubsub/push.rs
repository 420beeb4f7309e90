//! An event that its sender can wait with.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use pipeline_core::{ChildContext, ExitReason, Reserved, Timeline, Worker};
use tokio::time::Instant;

use super::{
    BroadcastError, PubSub,
    lanes::Place,
    sequence::{Sequence, Ticket},
};
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
        Ok(Self { event: Encoded::by_application(topic, event, payload)?, way: None })
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
    sequence: Arc<Sequence>,
    /// How many may wait behind one that waits for slow clients, if the program has said. It is
    /// [`MAX_WAITING`] otherwise, as soon as there are several topics.
    max_waiting: Option<usize>,
    /// How many workers wait, for a slow client or for their turn.
    waiting: AtomicUsize,
    topics: Topics,
}

/// How many workers may wait behind one that waits for slow clients, unless the program says.
const MAX_WAITING: usize = 4;

/// Whether a pusher has sent to several topics.
#[derive(Debug, Default)]
struct Topics {
    first: OnceLock<Arc<str>>,
    several: AtomicBool,
}

impl PubSub {
    /// A worker that sends what this function makes of each event of a pipeline, as
    /// [`send`](Self::send) does.
    ///
    /// With [`WhenFull::Wait`](crate::WhenFull::Wait), the pipeline's demand follows the room of its
    /// sockets: while a client is slow, what is meant for its topic waits with the supervisor, which
    /// asks for no more than its `max_demand`, and so on up to the source. Nothing grows.
    ///
    /// The events of one topic are sent in the order in which they come to the supervisor, with any
    /// number of workers and threads, and however long the function takes. An event that could not be
    /// sent keeps its place while it is tried again, unless it holds up other topics: see
    /// [`Pusher::max_waiting`]. One whose function failed does not, since its topic
    /// is not known then: it comes when it succeeds. A supervisor of other workers before the one that
    /// pushes keeps no order: its children end when they end. [`map`](pipeline_core::map) does.
    ///
    /// One slow client does not hold up the others, once there have been events for several topics or
    /// [`Pusher::max_waiting`] is set.
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
        let sequence = Arc::default();
        let (waiting, topics) = (AtomicUsize::new(0), Topics::default());
        Pusher { pubsub: self.clone(), push, sequence, max_waiting: None, waiting, topics }
    }
}

impl<F> Pusher<F> {
    /// How many workers may wait behind the one that waits for a slow client of their topic. Default 4,
    /// once there have been events for several topics.
    ///
    /// With one more, the others on the pipeline would be held up: so the events of that topic no
    /// longer wait. They go into the room that a socket has for those who cannot wait, which is as
    /// much again as [`Mount::max_outbox`](crate::Mount::max_outbox), and a client that fills that too
    /// is closed. A channel that [intercepts](crate::Channel::INTERCEPT) has room for as many events
    /// again too, 256, and crashes with more. They pass an event that could not be sent and is tried
    /// again.
    ///
    /// Several slow clients do not hold up the others either: on all topics together, no more workers
    /// wait than half of those that can [be spared](ChildContext::spare), and one at least. Where none
    /// can be, because `min_demand` is 0, that one holds up the others for as long as it waits. An event
    /// that is tried again later counts for the demand until it is sent or given up: where `min_demand` is
    /// 0, the pipeline asks for no more until then.
    ///
    /// It matters only with [`WhenFull::Wait`](crate::WhenFull::Wait), and for events that cannot be
    /// sent.
    ///
    /// Unless this is set, all workers may wait as long as all events have been for one topic: a pipeline
    /// that pushes to a single topic then goes at the pace of its clients. If the first events after a start
    /// are all for one client that reads nothing, those for others wait until it is closed, which takes twice
    /// [`up_to`](crate::WhenFull::Wait::up_to) and more: 10 to 12 seconds with five. A pipeline that pushes
    /// to many topics avoids that by setting this, to 4 for instance: it then holds from the first event on.
    ///
    /// ```
    /// # use pipeline_ws_sink::{PubSub, Push};
    /// # use serde_json::json;
    /// # fn pusher(pubsub: &PubSub) {
    /// let pusher = pubsub
    ///     .pusher(|n: &u64| Push::new("numbers", "number", json!({ "n": n })))
    ///     .max_waiting(1);
    /// # }
    /// ```
    #[must_use]
    pub fn max_waiting(self, max_waiting: usize) -> Self {
        Self { max_waiting: Some(max_waiting), ..self }
    }

    /// Sends an event. If it has to wait and too many do, its topic hurries.
    async fn send(
        &self,
        place: &Place,
        push: &Push,
        context: &ChildContext,
    ) -> Result<(), BroadcastError> {
        let max_waiting = match self.max_waiting {
            None if !self.topics.are_several(place.topic()) => None,
            set => Some(set.unwrap_or(MAX_WAITING)),
        };
        let mut sending = pin!(self.pubsub.send_from(place, push));
        let mut waiting = None;
        poll_fn(|cx| {
            let sent = sending.as_mut().poll(cx);
            if let Some(max_waiting) = max_waiting
                && sent.is_pending()
                && waiting.is_none()
            {
                let count = self.waiting.fetch_add(1, Relaxed) + 1;
                waiting = Some(Waiting(&self.waiting));
                let most = (context.spare() / 2).max(1);
                if count > most || place.waiting() > max_waiting {
                    place.hurry();
                }
            }
            sent
        })
        .await
    }
}

/// A worker that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Topics {
    fn are_several(&self, topic: &Arc<str>) -> bool {
        if self.several.load(Relaxed) {
            return true;
        }
        let are_several = self.first.get_or_init(|| topic.clone()) != topic;
        if are_several {
            self.several.store(true, Relaxed);
        }
        are_several
    }
}

impl<E, F> Worker<E> for Pusher<F>
where
    E: Send + Sync + 'static,
    F: Fn(&E) -> Result<Push, PayloadError> + Send + Sync + 'static,
{
    fn reserve(&self, _: &E) -> Option<Reserved> {
        Some(Arc::new(self.sequence.ticket(&self.pubsub.shared.lanes)))
    }

    fn poll_reserved(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sequence.poll_empty(cx)
    }

    async fn run(&self, event: &E, context: ChildContext) -> Result<(), ExitReason> {
        // There is none if another worker calls this one and has reserved nothing.
        let Some(ticket) = context.reserved::<Ticket>() else {
            return Ok(self.pubsub.send(&(self.push)(event)?).await?);
        };
        let push = ticket.work(|| (self.push)(event))?;
        let place = ticket.enter(push.event.shared_topic()).await;
        let sent = self.send(&place, &push, &context).await;
        if sent.is_err() {
            ticket.keep(place);
        }
        Ok(sent?)
    }
}

impl<F> fmt::Debug for Pusher<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("pubsub", &self.pubsub).finish_non_exhaustive()
    }
}
