//! The events of stages as a `Stream`.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec,
};

use futures::{Stream, stream::FusedStream};
use tokio::{sync::mpsc, task::coop};

use crate::{
    exit::{ExitError, ExitReason},
    stage::{
        DemandMode, EventPort, Occupant, Ports, StageHandle, Subscribe, Target, ToConsumer,
        ToProducer,
        demand::{Batch, Window},
        next_id,
    },
    subscription::{
        Cancel, StageId, SubscribeError, SubscribeOptions, Subscription, SubscriptionId,
    },
};

/// A `Stream` of the events of one or more stages.
///
/// It asks for the next chunk of events when the previous one has been taken, so a stream that is
/// not polled blocks its producers like any slow consumer. Producers that accumulate demand are set
/// to forward it.
///
/// When a producer of a [`Cancel::Permanent`] subscription ends, the stream yields its reason as an
/// error, even a normal one, and ends. `?` takes it in any function, and in a callback it becomes that reason again. With other modes it continues, and ends when no producer is
/// left.
///
/// Dropping the stream cancels its subscriptions; events in transit are lost.
///
/// The semantics are those of GenStage's `stream`.
///
/// ```
/// use futures::TryStreamExt;
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     subscription::{Cancel, SubscribeOptions},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = SubscribeOptions::new().cancel(Cancel::Transient);
/// let (_pipeline, stream) = Pipeline::builder("squares")
///     .producer(from_iter(1..=3))
///     .map(|n| n * n)
///     .into_stream(options)?;
/// let squares: Vec<i32> = stream.try_collect().await?;
/// assert_eq!(squares, [1, 4, 9]);
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct EventStream<E: Send + 'static> {
    stage: StageId,
    sender: mpsc::UnboundedSender<ToConsumer<E>>,
    mailbox: mpsc::UnboundedReceiver<ToConsumer<E>>,
    upstreams: HashMap<SubscriptionId, Upstream>,
    /// The chunk that is being yielded.
    chunk: VecDeque<E>,
    /// The rest of its message, and the demand to send once the chunk is taken.
    open: Option<Open<E>>,
    ended: bool,
}

struct Upstream {
    subscription: Subscription,
    window: Window,
    options: SubscribeOptions,
}

struct Open<E> {
    from: SubscriptionId,
    rest: vec::IntoIter<E>,
    batch: Batch,
    ask: usize,
}

/// The stream's mailbox, as its producers see it.
struct Port<E>(mpsc::UnboundedSender<ToConsumer<E>>);

impl<E: Send + 'static> EventPort<E> for Port<E> {
    fn send(&self, message: ToConsumer<E>) -> Result<(), ToConsumer<E>> {
        self.0.send(message).map_err(|error| error.0)
    }
}

impl<E: Send + 'static> EventStream<E> {
    /// A stream without producers.
    #[expect(clippy::disallowed_methods, reason = "bounded by demand")]
    pub fn new() -> Self {
        // Demand bounds it: no more events are in transit than were asked for, and each
        // subscription also sends its end.
        let (sender, mailbox) = mpsc::unbounded_channel();
        Self {
            stage: StageId::new(next_id()),
            sender,
            mailbox,
            upstreams: HashMap::new(),
            chunk: VecDeque::new(),
            open: None,
            ended: false,
        }
    }

    /// Also takes the events of this stage. If the stage is not running, the stream fails with
    /// [`ExitReason::NotRunning`], unless the subscription is [`Cancel::Temporary`].
    ///
    /// # Errors
    ///
    /// [`SubscribeError`] for invalid options. [`Cancel::Reconnect`] is one of them: a stream does
    /// nothing while it is not polled, so it cannot subscribe again when the delay has passed.
    ///
    /// ```
    /// use futures::TryStreamExt;
    /// use pipeline_core::{
    ///     Graph,
    ///     source::from_iter,
    ///     stage::EventStream,
    ///     subscription::{Cancel, SubscribeOptions},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let low = graph.producer("low", from_iter(0..3));
    /// let high = graph.producer("high", from_iter(100..103));
    /// let _pipeline = graph.start()?;
    ///
    /// let mut stream = EventStream::new();
    /// let options = SubscribeOptions::new().cancel(Cancel::Transient);
    /// stream.subscribe(&low, options.clone())?;
    /// stream.subscribe(&high, options)?;
    /// let mut numbers: Vec<u64> = stream.try_collect().await?;
    /// numbers.sort();
    /// assert_eq!(numbers, [0, 1, 2, 100, 101, 102]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe<S, In>(
        &mut self,
        producer: &StageHandle<S, In, E>,
        options: SubscribeOptions,
    ) -> Result<(), SubscribeError>
    where
        S: Send + 'static,
        In: Send + 'static,
    {
        self.subscribe_to(&*producer.slot, options)
    }

    pub(crate) fn subscribe_to(
        &mut self,
        producer: &dyn Target<E>,
        options: SubscribeOptions,
    ) -> Result<(), SubscribeError> {
        Self::check(&options)?;
        let id = SubscriptionId::new(next_id());
        let consumer: Arc<dyn EventPort<E>> = Arc::new(Port(self.sender.clone()));
        let Occupant::Running(port) = producer.occupant() else {
            if !matches!(options.mode(), Cancel::Temporary) {
                let reason = ExitReason::NotRunning;
                // Read in order, like any other end.
                let _ = self.sender.send(ToConsumer::Down { from: id, reason });
            }
            return Ok(());
        };
        let ports = Ports { producer: port.clone(), consumer: consumer.clone(), line: None };
        let subscription = Subscription::new(id, &options, ports);
        let subscribe = Subscribe {
            subscription: subscription.clone(),
            replaces: None,
            stage: self.stage,
            name: "stream".into(),
            options: options.clone(),
            consumer,
        };
        if port.send(ToProducer::Subscribe(Box::new(subscribe))).is_err() {
            let reason = ExitReason::NotRunning;
            let _ = self.sender.send(ToConsumer::Down { from: id, reason });
        }
        let _ = port.send(ToProducer::Mode(DemandMode::Forward));
        subscription.ask(options.max());
        subscription.set_at_consumer(true);
        let upstream = Upstream { subscription, window: Window::new(&options), options };
        self.upstreams.insert(id, upstream);
        Ok(())
    }

    /// Whether a stream can be subscribed with these options.
    pub(crate) fn check(options: &SubscribeOptions) -> Result<(), SubscribeError> {
        options.check()?;
        match options.mode() {
            Cancel::Reconnect(_) => Err(SubscribeError::Reconnect),
            _ => Ok(()),
        }
    }

    /// Opens the next chunk of the current message, and sends the demand that the last one freed.
    fn next_chunk(&mut self) -> bool {
        let Some(open) = &mut self.open else { return false };
        let Some(upstream) = self.upstreams.get_mut(&open.from) else {
            self.open = None;
            return false;
        };
        upstream.subscription.ask(std::mem::take(&mut open.ask));
        let Some(chunk) = upstream.window.next_chunk(&mut open.batch) else {
            self.open = None;
            return false;
        };
        open.ask = chunk.ask;
        self.chunk.extend(open.rest.by_ref().take(chunk.size));
        true
    }

    fn next_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<E, ExitError>>> {
        loop {
            if let Some(event) = self.chunk.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.next_chunk() {
                continue;
            }
            let message = match self.mailbox.poll_recv(cx) {
                Poll::Ready(message) => message,
                Poll::Pending if self.upstreams.is_empty() && self.mailbox.is_empty() => None,
                Poll::Pending => return Poll::Pending,
            };
            let Some(message) = message else {
                self.ended = true;
                return Poll::Ready(None);
            };
            if let Some(reason) = self.receive(message) {
                self.ended = true;
                return Poll::Ready(Some(Err(reason.into_error())));
            }
        }
    }

    fn receive(&mut self, message: ToConsumer<E>) -> Option<ExitReason> {
        match message {
            ToConsumer::Events { from, events, unheard } => {
                let Some(upstream) = self.upstreams.get(&from) else {
                    if let Some(subscription) = unheard {
                        subscription.cancel(SubscribeError::Unknown.into());
                    }
                    return None;
                };
                let batch = upstream.window.receive(events.len());
                self.open = Some(Open { from, rest: events.into_iter(), batch, ask: 0 });
                None
            }
            // The demand that it sent after the end of a subscription.
            ToConsumer::Cancel { from, .. } if !self.upstreams.contains_key(&from) => None,
            ToConsumer::Cancel { from, reason } | ToConsumer::Down { from, reason } => {
                let mode =
                    self.upstreams.remove(&from).map_or(Cancel::Permanent, |up| up.options.mode());
                (!mode.survives(&reason)).then_some(reason)
            }
            // Users pause a stream by not polling it.
            ToConsumer::Pause { .. } => None,
        }
    }
}

impl<E: Send + 'static> Stream for EventStream<E> {
    type Item = Result<E, ExitError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Each event counts against tokio's cooperative budget: a whole message is available at
        // once.
        let coop = ready!(coop::poll_proceed(cx));
        let next = self.next_event(cx);
        if next.is_ready() {
            coop.made_progress();
        }
        next
    }
}

impl<E: Send + 'static> FusedStream for EventStream<E> {
    fn is_terminated(&self) -> bool {
        self.ended && self.chunk.is_empty()
    }
}

impl<E: Send + 'static> Unpin for EventStream<E> {}

impl<E: Send + 'static> Default for EventStream<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Send + 'static> Drop for EventStream<E> {
    fn drop(&mut self) {
        for upstream in self.upstreams.values() {
            upstream.subscription.cancel(ExitReason::Normal);
        }
    }
}

impl<E: Send + 'static> fmt::Debug for EventStream<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("subscriptions", &self.upstreams.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        dispatcher::{Deliveries, Dispatcher, Subscriber},
        graph::Graph,
        stage::Stage,
        testkit::{scripted, settle},
    };

    /// A port that takes no producer.
    struct Closed;

    impl Dispatcher<u64> for Closed {
        fn subscribe(&mut self, _: Subscriber<'_>) -> Result<(), ExitReason> {
            Err(SubscribeError::AlreadySubscribed.into())
        }

        fn cancel(&mut self, _: SubscriptionId, _: &mut Deliveries<u64>) {}

        fn ask(&mut self, _: SubscriptionId, _: usize, _: &mut Deliveries<u64>) {}

        fn unmet(&self) -> usize {
            0
        }

        fn dispatch(&mut self, _: &mut VecDeque<u64>, _: &mut Deliveries<u64>) {}

        fn outstanding(&self, _: SubscriptionId) -> usize {
            0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_continues_when_a_producer_refuses_a_second_subscription() {
        let ((closed, _), (open, script)) = (scripted(), scripted());
        let mut graph = Graph::new("test");
        let closed = graph.producer_with(Stage::new(closed).named("closed").dispatcher(|| Closed));
        let open = graph.producer("open", open);
        let _pipeline = graph.start().unwrap();
        let mut stream = EventStream::new();
        stream.subscribe(&closed, SubscribeOptions::new()).unwrap();
        stream.subscribe(&open, SubscribeOptions::new()).unwrap();
        settle().await;
        script.emit([1]).await;
        assert!(matches!(stream.next().await, Some(Ok(1))));
        assert!(stream.next().now_or_never().is_none());
        script.emit([2]).await;
        assert!(matches!(stream.next().await, Some(Ok(2))));
    }
}
