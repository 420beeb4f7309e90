//! An encoded event whose sender can wait for slow clients.

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

use pipeline_core::{
    ExitReason,
    supervisor::{ChildContext, Reserved, Worker},
    timed::Timeline,
};
use tokio::time::Instant;

use super::{
    BroadcastError, PubSub,
    sequence::{Sequence, Ticket},
    turns::Turn,
};
use crate::{
    payload::{IntoPayload, PayloadError},
    protocol::message::Encoded,
};

/// An encoded event for all subscribers of a topic, not yet sent: see
/// [`PubSub::broadcast_when_ready`].
///
/// ```
/// use pipeline_core::timed::Timed;
/// use pipeline_ws_sink::{payload::PayloadError, pubsub::PreparedBroadcast};
/// use serde_json::json;
///
/// fn prepare(price: &Timed<f64>) -> Result<PreparedBroadcast, PayloadError> {
///     let broadcast = PreparedBroadcast::new("stock:acme", "price", json!({ "price": **price }))?;
///     Ok(broadcast.timed(price))
/// }
/// # assert!(prepare(&Timed::now(1.0)).is_ok());
/// ```
#[derive(Debug)]
pub struct PreparedBroadcast {
    pub(super) event: Encoded,
    /// Whether other nodes are left out.
    pub(super) here_only: bool,
}

impl PreparedBroadcast {
    /// Encodes an event with its payload: a JSON object, or bytes.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is neither of them, or has no JSON form.
    pub fn new(topic: &str, event: &str, payload: impl IntoPayload) -> Result<Self, PayloadError> {
        Ok(Self { event: Encoded::by_application(topic, event, payload)?, here_only: false })
    }

    /// Enables timing. The times before this call are recorded when it is sent; for each
    /// socket, the time from this call until the operating system has taken the last byte of its
    /// frame is recorded as `pipeline.push_written`, and the whole time as
    /// `pipeline.push_delivered`.
    ///
    /// So call it last, in the worker that sends it. Waiting for room with slow clients is
    /// part of the write time. [`PubSub::broadcast_timed`] describes the metrics and the kinds of
    /// `timeline`.
    #[must_use]
    pub fn timed(self, timeline: impl Into<Timeline>) -> Self {
        let timeline = timeline.into().with_broadcast_at(Instant::now());
        Self { event: self.event.timed(Some(timeline)), ..self }
    }

    /// Sends the event to the subscribers on this node only. For a program whose nodes each have their
    /// own copy of what they push.
    #[must_use]
    pub fn here_only(self) -> Self {
        Self { here_only: true, ..self }
    }
}

/// The end of a pipeline: it turns each event into a broadcast with a function, sends it, and waits
/// for room with slow clients whose policy is to wait. Made by [`PubSub::broadcast_worker`].
pub struct BroadcastWorker<F> {
    pubsub: PubSub,
    prepare: F,
    sequence: Arc<Sequence>,
    /// How many workers may wait behind one that waits for slow clients, if the program has set it.
    /// Otherwise [`MAX_WAITING`], as soon as there are several topics.
    max_waiting: Option<usize>,
    /// The number of workers that wait for a slow client or for their turn.
    waiting: AtomicUsize,
    topics: SeenTopics,
}

/// How many workers may wait behind one that waits for slow clients, unless the program sets it.
const MAX_WAITING: usize = 4;

/// Whether a worker has sent to several topics.
#[derive(Debug, Default)]
struct SeenTopics {
    first: OnceLock<Arc<str>>,
    several: AtomicBool,
}

impl PubSub {
    /// A worker for a pipeline: this function turns each event into a broadcast, and
    /// [`broadcast_when_ready`](Self::broadcast_when_ready) sends it.
    ///
    /// With [`WhenFull::Block`](crate::mount::WhenFull::Block), the pipeline's demand follows the
    /// room in its sockets' outboxes: while a client is slow, the events for its topic wait in the
    /// supervisor, which asks for no more than its `max_demand`, and so on up to the source. No
    /// queue grows without bound.
    ///
    /// The events of one topic are sent in the order in which they reach the supervisor, with any
    /// number of workers and threads, and however long the function takes. An event that could not
    /// be sent keeps its turn while it is retried, unless it delays other topics: see
    /// [`BroadcastWorker::max_waiting`]. An event whose function failed has no turn, since its
    /// topic is unknown: it is sent when the function succeeds. A supervisor of other workers
    /// upstream of the pushing one keeps no order: its children end when they end.
    /// [`map`](pipeline_core::step::map) keeps the order.
    ///
    /// One slow client does not delay the others, once there have been events for several topics or
    /// [`BroadcastWorker::max_waiting`] is set.
    ///
    /// For broadcasts that are [timed](PreparedBroadcast::timed), the metrics show where the time
    /// went: use `broadcast.timed(item)` for an item that is [`Timed`](pipeline_core::timed::Timed).
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    /// };
    /// use pipeline_ws_sink::{Endpoint, pubsub::PreparedBroadcast};
    /// use serde_json::json;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let worker = endpoint.pubsub().broadcast_worker(|n: &u64| {
    ///     PreparedBroadcast::new("numbers", "number", json!({ "n": n }))
    /// });
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(from_iter(0..100))
    ///     .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
    ///     .start()?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast_worker<E, F>(&self, prepare: F) -> BroadcastWorker<F>
    where
        F: Fn(&E) -> Result<PreparedBroadcast, PayloadError> + Send + Sync + 'static,
    {
        let sequence = Arc::default();
        let (waiting, topics) = (AtomicUsize::new(0), SeenTopics::default());
        BroadcastWorker {
            pubsub: self.clone(),
            prepare,
            sequence,
            max_waiting: None,
            waiting,
            topics,
        }
    }
}

impl<F> BroadcastWorker<F> {
    /// How many workers may wait behind the one that waits for a slow client of their topic.
    /// Default 4, once there have been events for several topics.
    ///
    /// One more waiting worker would delay the others of the pipeline, so from there on the events
    /// of that topic no longer wait. They go into the reserve that an outbox has for senders that
    /// cannot wait, which is as much again as [`Mount::max_outbox`](crate::Mount::max_outbox), and
    /// a client that fills that too is closed. A channel that
    /// [intercepts](crate::Channel::INTERCEPT) has a reserve for another 256 events, and crashes
    /// with more. These events overtake an event that could not be sent and is retried.
    ///
    /// Several slow clients do not delay the others either: on all topics together, at most half of
    /// the workers that can [be spared](ChildContext::spare) wait, and at least one. If none can be
    /// spared, because `min_demand` is 0, that one delays the others for as long as it waits. An
    /// event that is retried later counts as demand until it is sent or given up: if `min_demand`
    /// is 0, the pipeline asks for no more until then.
    ///
    /// The limit matters only with [`WhenFull::Block`](crate::mount::WhenFull::Block), and for
    /// events that cannot be sent.
    ///
    /// Unless it is set, all workers may wait as long as all events have been for one topic: a
    /// pipeline that pushes to a single topic then runs at the pace of its clients. If the first
    /// events after a start are all for one client that reads nothing, the events for others wait
    /// until that client is closed, which takes more than twice
    /// [`timeout`](crate::mount::WhenFull::Block::timeout): 10 to 12 seconds with five. A pipeline
    /// that pushes to many topics avoids this by setting the limit, to 4 for instance: it then
    /// applies from the first event on.
    #[must_use]
    pub fn max_waiting(self, max_waiting: usize) -> Self {
        Self { max_waiting: Some(max_waiting), ..self }
    }

    /// Sends an event. If it has to wait and too many workers wait already, its topic stops
    /// waiting and uses the reserve of the outboxes.
    async fn send(
        &self,
        turn: &Turn,
        broadcast: &PreparedBroadcast,
        context: &ChildContext,
    ) -> Result<(), BroadcastError> {
        let max_waiting = match self.max_waiting {
            None if !self.topics.are_several(turn.topic()) => None,
            set => Some(set.unwrap_or(MAX_WAITING)),
        };
        let mut sending = pin!(self.pubsub.send_from(turn, broadcast));
        let mut waiting = None;
        poll_fn(|cx| {
            let sent = sending.as_mut().poll(cx);
            if let Some(max_waiting) = max_waiting
                && sent.is_pending()
                && waiting.is_none()
            {
                let count = self.waiting.fetch_add(1, Relaxed) + 1;
                waiting = Some(WaitingGuard(&self.waiting));
                let most = (context.spare() / 2).max(1);
                if count > most || turn.waiting() > max_waiting {
                    turn.end_waits();
                }
            }
            sent
        })
        .await
    }
}

/// A waiting worker, counted until it is dropped.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl SeenTopics {
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

impl<E, F> Worker<E> for BroadcastWorker<F>
where
    E: Send + Sync + 'static,
    F: Fn(&E) -> Result<PreparedBroadcast, PayloadError> + Send + Sync + 'static,
{
    fn reserve(&self, _: &E) -> Option<Reserved> {
        Some(Arc::new(self.sequence.ticket(&self.pubsub.shared.turns)))
    }

    fn poll_reserved(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sequence.poll_empty(cx)
    }

    async fn run(&self, event: &E, context: ChildContext) -> Result<(), ExitReason> {
        // Another worker that calls this one may have reserved no ticket.
        let Some(ticket) = context.reserved::<Ticket>() else {
            return Ok(self.pubsub.broadcast_when_ready(&(self.prepare)(event)?).await?);
        };
        let broadcast = ticket.work(|| (self.prepare)(event))?;
        let turn = ticket.enter(broadcast.event.shared_topic()).await;
        let sent = self.send(&turn, &broadcast, &context).await;
        if sent.is_err() {
            ticket.keep(turn);
        }
        Ok(sent?)
    }
}

impl<F> fmt::Debug for BroadcastWorker<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastWorker").field("pubsub", &self.pubsub).finish_non_exhaustive()
    }
}
