//! The handle of a running stage.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    consumer::Consumer,
    message::{
        Call, CallError, Cast, Emit, Envelope, HandleCall, HandleCast, HandleInfo, Info,
        UserMessage,
    },
    producer::{NoInput, Producer},
    producer_consumer::ProducerConsumer,
    slot::{Address, Control, Message, Occupant, Origin, Slot, Subscribing},
    timers::{BoxedMessage, StageTimer, Timed},
};
use crate::{
    deadline::Deadline,
    exit::ExitReason,
    stage::{DemandMode, RateLimit},
    subscription::{LineId, SubscribeError, SubscribeOptions, Subscription},
};

/// The handle of a stage of type `S` that receives events of type `In` and emits events of type
/// `Out`. [`NoInput`] means that it receives no events, [`Infallible`] that it emits none.
///
/// Cheap to clone. It identifies a place in a pipeline: if the stage is restarted, the handle
/// refers to the new incarnation.
///
/// ```
/// use pipeline_core::{Graph, source::from_iter, step::for_each, subscription::SubscribeOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", from_iter(0..));
/// let print = graph.consumer("print", for_each(async |n: u64| println!("{n}")));
/// let pipeline = graph.start()?;
///
/// let subscription = print.subscribe(&numbers, SubscribeOptions::new().max_demand(10)).await?;
/// subscription.pause();
/// numbers.stop(pipeline_core::ExitReason::Shutdown).await;
/// # Ok(())
/// # }
/// ```
pub struct StageHandle<S, In, Out> {
    pub(crate) slot: Arc<Slot<S, In, Out>>,
}

/// The handle of a [`Producer`].
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{
///     Graph,
///     source::from_iter,
///     stage::{Producer, ProducerHandle, RateLimit},
/// };
///
/// /// Slows any source down.
/// fn slow_down<P: Producer>(source: &ProducerHandle<P>) {
///     source.rate_limit(RateLimit::new(10, Duration::from_secs(1)));
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", from_iter(0..));
/// let _pipeline = graph.start()?;
/// slow_down(&numbers);
/// assert!(numbers.is_running());
/// # Ok(())
/// # }
/// ```
pub type ProducerHandle<P> = StageHandle<P, NoInput, <P as Producer>::Event>;

/// The handle of a [`Consumer`].
///
/// ```
/// use pipeline_core::{
///     Graph,
///     source::from_iter,
///     stage::{Consumer, ConsumerHandle, Producer, ProducerHandle},
///     step::for_each,
///     subscription::{SubscribeError, SubscribeOptions},
/// };
///
/// /// Subscribes a consumer to a source with the usual options.
/// async fn connect<P, C>(
///     source: &ProducerHandle<P>,
///     consumer: &ConsumerHandle<C>,
/// ) -> Result<(), SubscribeError>
/// where
///     P: Producer,
///     C: Consumer<Event = P::Event>,
/// {
///     consumer.subscribe(source, SubscribeOptions::new().max_demand(10)).await?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", from_iter(0..10));
/// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
/// let mut pipeline = graph.start()?;
/// connect(&numbers, &print).await?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
pub type ConsumerHandle<C> = StageHandle<C, <C as Consumer>::Event, Infallible>;

/// The handle of a [`ProducerConsumer`].
pub type ProducerConsumerHandle<T> =
    StageHandle<T, <T as ProducerConsumer>::In, <T as ProducerConsumer>::Out>;

impl<S, In, Out> StageHandle<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    /// The stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.slot.name
    }

    /// Whether the stage is running.
    ///
    /// ```
    /// use pipeline_core::{ExitReason, Graph, source::from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// assert!(!numbers.is_running());
    ///
    /// let _pipeline = graph.start()?;
    /// assert!(numbers.is_running());
    ///
    /// numbers.stop(ExitReason::Shutdown).await;
    /// assert!(!numbers.is_running());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(*self.slot.occupant.borrow(), Occupant::Running(_))
    }

    /// Why the stage has ended for good. None while it runs or is about to be restarted.
    ///
    /// ```
    /// use pipeline_core::{ExitReason, Graph, source::from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let _pipeline = graph.start()?;
    /// assert!(numbers.exit_reason().is_none());
    ///
    /// numbers.stop(ExitReason::failed("no more room")).await;
    /// assert_eq!(numbers.exit_reason().unwrap().to_string(), "failed: no more room");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn exit_reason(&self) -> Option<ExitReason> {
        match &*self.slot.occupant.borrow() {
            Occupant::Ended(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Sends a message and waits for the answer, without a time limit.
    ///
    /// [`call_within`](Self::call_within) has a time limit, as `GenServer.call` has.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the stage is not running, ends first, or does not reply, or if the stage
    /// calls itself.
    ///
    /// # Cancel safety
    ///
    /// A message that was sent is handled even if its caller no longer waits for the answer.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use pipeline_core::{
    /// #     ExitReason, Graph,
    /// #     stage::{Caller, Consumer, Emitter, HandleCall},
    /// #     subscription::Subscription,
    /// # };
    /// # #[derive(Default)]
    /// # struct Sum(u64);
    /// # struct Total;
    /// # impl Consumer for Sum {
    /// #     type Event = u64;
    /// #     async fn handle_events(
    /// #         &mut self,
    /// #         events: Vec<u64>,
    /// #         _: &Subscription,
    /// #     ) -> Result<(), ExitReason> {
    /// #         self.0 += events.iter().sum::<u64>();
    /// #         Ok(())
    /// #     }
    /// # }
    /// impl HandleCall<Total> for Sum {
    ///     type Reply = u64;
    ///
    ///     async fn handle_call(
    ///         &mut self,
    ///         _: Total,
    ///         caller: &mut Caller<u64>,
    ///         _out: &mut Emitter<'_, Infallible>,
    ///     ) -> Result<(), ExitReason> {
    ///         caller.reply(self.0);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("sums");
    /// let sum = graph.consumer("sum", Sum::default());
    /// let _pipeline = graph.start()?;
    /// assert_eq!(sum.call(Total).await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<M>(&self, message: M) -> Result<S::Reply, CallError>
    where
        S: HandleCall<M, Out>,
        M: Send + 'static,
    {
        self.waits_for_another()?;
        let (answer, reply) = oneshot::channel();
        let permit = permit(&self.slot.permits).await;
        let opened = self.send(Call { message, answer }, permit, Message::User);
        opened.map_err(|_| CallError::NotRunning)?;
        reply
            .await
            .map_err(|_| if self.is_running() { CallError::NoReply } else { CallError::NotRunning })
    }

    /// Sends a message and waits for the answer, up to a time limit. `Duration::MAX` means no
    /// limit.
    ///
    /// The time spent waiting for a place in the stage's mailbox counts.
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call), and [`CallError::TimedOut`] after the limit.
    ///
    /// # Cancel safety
    ///
    /// As for [`call`](Self::call): a message that was sent is handled even after the limit. Its
    /// answer is then dropped.
    pub async fn call_within<M>(&self, message: M, limit: Duration) -> Result<S::Reply, CallError>
    where
        S: HandleCall<M, Out>,
        M: Send + 'static,
    {
        let deadline = Deadline::from_now(limit);
        deadline.limit(self.call(message)).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Sends a message without an answer. Waits while too many messages are queued for the stage.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use pipeline_core::{
    /// #     ExitReason, Graph,
    /// #     stage::{Consumer, Emitter, HandleCast},
    /// #     subscription::Subscription,
    /// # };
    /// # struct Log { verbose: bool }
    /// # struct Verbose(bool);
    /// # impl Consumer for Log {
    /// #     type Event = String;
    /// #     async fn handle_events(
    /// #         &mut self,
    /// #         _: Vec<String>,
    /// #         _: &Subscription,
    /// #     ) -> Result<(), ExitReason> {
    /// #         Ok(())
    /// #     }
    /// # }
    /// impl HandleCast<Verbose> for Log {
    ///     async fn handle_cast(
    ///         &mut self,
    ///         Verbose(verbose): Verbose,
    ///         _out: &mut Emitter<'_, Infallible>,
    ///     ) -> Result<(), ExitReason> {
    ///         self.verbose = verbose;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("log");
    /// let log = graph.consumer("log", Log { verbose: false });
    /// let _pipeline = graph.start()?;
    /// log.cast(Verbose(true)).await?;
    ///
    /// log.stop(ExitReason::Shutdown).await;
    /// assert!(log.cast(Verbose(false)).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cast<M>(&self, message: M) -> Result<(), CallError>
    where
        S: HandleCast<M, Out>,
        M: Send + 'static,
    {
        let permit = match self.waits_for_another() {
            Ok(()) => permit(&self.slot.permits).await,
            // The stage would have to make room itself.
            Err(own) => self.slot.permits.clone().try_acquire_owned().map_err(|_| own)?,
        };
        self.send(Cast(message), permit, Message::User)
    }

    /// Queues a message behind all events that the stage holds now, and returns when it is queued.
    /// It reaches [`HandleInfo::handle_info`] when the last of them has been sent or discarded, or
    /// at once if there is none. Waits while 1024 such messages are queued for the stage.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running.
    ///
    /// ```
    /// # use pipeline_core::{
    /// #     ExitReason, Graph,
    /// #     stage::{Emitter, HandleInfo, Producer},
    /// #     step::for_each,
    /// #     subscription::SubscribeOptions,
    /// # };
    /// # struct Prices;
    /// # struct EndOfDay;
    /// # impl Producer for Prices {
    /// #     type Event = u64;
    /// #     async fn handle_demand(
    /// #         &mut self,
    /// #         _: usize,
    /// #         out: &mut Emitter<'_, u64>,
    /// #     ) -> Result<(), ExitReason> {
    /// #         out.emit_all([101, 99, 105]);
    /// #         Ok(())
    /// #     }
    /// # }
    /// impl HandleInfo<EndOfDay, u64> for Prices {
    ///     async fn handle_info(
    ///         &mut self,
    ///         _: EndOfDay,
    ///         _out: &mut Emitter<'_, u64>,
    ///     ) -> Result<(), ExitReason> {
    ///         Err(ExitReason::Normal)
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut graph = Graph::new("prices");
    /// let prices = graph.producer("prices", Prices);
    /// # let print = graph.consumer("print", for_each(async |price| println!("{price}")));
    /// # graph.subscribe(&print, &prices, SubscribeOptions::new().max_demand(1));
    /// let mut pipeline = graph.start()?;
    /// // The last price is sent first.
    /// prices.sync_info(EndOfDay).await?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn sync_info<M>(&self, message: M) -> Result<(), CallError>
    where
        S: HandleInfo<M, Out>,
        M: Send + 'static,
    {
        self.waits_for_another()?;
        let (queued, wait) = oneshot::channel();
        let permit = permit(&self.slot.info_permits).await;
        self.send(Info(message), permit, |envelope| Message::Info(envelope, Some(queued)))?;
        wait.await.map_err(|_| CallError::NotRunning)
    }

    /// Sends an info message like [`sync_info`](Self::sync_info), without waiting: mainly for the stage itself,
    /// which cannot wait for itself.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running, [`CallError::Full`] if 1024 such
    /// messages are queued for it.
    pub fn async_info<M>(&self, message: M) -> Result<(), CallError>
    where
        S: HandleInfo<M, Out>,
        M: Send + 'static,
    {
        let permit = self.slot.info_permits.clone().try_acquire_owned();
        self.send(Info(message), permit.map_err(|_| CallError::Full)?, |envelope| {
            Message::Info(envelope, None)
        })
    }

    /// Sends the stage a message after this time, as
    /// [`StageContext::send_after`](crate::stage::StageContext::send_after) does.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running, [`CallError::Full`] if it has 1024 timers.
    pub fn send_after<M>(&self, delay: Duration, message: M) -> Result<StageTimer, CallError>
    where
        S: HandleInfo<M, Out>,
        M: Send + 'static,
    {
        self.set_timer(delay, Timed::Once(Box::new(Info(message))))
    }

    /// Sends the stage copies of a message at an interval, as
    /// [`StageContext::send_interval`](crate::stage::StageContext::send_interval) does.
    ///
    /// # Errors
    ///
    /// As for [`send_after`](Self::send_after).
    pub fn send_interval<M>(&self, every: Duration, message: M) -> Result<StageTimer, CallError>
    where
        S: HandleInfo<M, Out>,
        M: Clone + Send + 'static,
    {
        let copy = move || Box::new(Info(message.clone())) as BoxedMessage<S, Out>;
        self.set_timer(every, Timed::Every(every, Box::new(copy)))
    }

    fn set_timer(&self, after: Duration, timed: Timed<S, Out>) -> Result<StageTimer, CallError> {
        self.slot.address().ok_or(CallError::NotRunning)?.set_timer(after, timed)
    }

    /// The number of events in the stage's buffer; 0 for a consumer, which has none.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running.
    ///
    /// ```
    /// use pipeline_core::{Graph, source::from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let _pipeline = graph.start()?;
    /// // It emits only on demand.
    /// assert_eq!(numbers.estimate_buffered_count().await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn estimate_buffered_count(&self) -> Result<usize, CallError> {
        self.ask(Control::Buffered).await
    }

    /// The current demand mode. [`DemandMode::Forward`] for all stages but producers.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage is not running.
    pub async fn demand_mode(&self) -> Result<DemandMode, CallError> {
        self.ask(Control::Mode).await
    }

    /// Sets the demand mode. Only producers can accumulate demand: another stage logs an error and
    /// continues unchanged, and a draining stage stops accumulating. Takes effect in message order.
    pub fn set_demand_mode(&self, mode: DemandMode) {
        self.send_control(Control::SetMode(mode));
    }

    /// Limits how many events the stage delivers per interval; `None` removes the limit. Takes
    /// effect with the next interval.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{Graph, source::from_iter, stage::RateLimit};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let _pipeline = graph.start()?;
    /// numbers.rate_limit(RateLimit::new(100, Duration::from_secs(1)));
    /// // Remove the limit.
    /// numbers.rate_limit(None);
    /// # assert!(numbers.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn rate_limit(&self, limit: impl Into<Option<RateLimit>>) {
        self.send_control(Control::Limit(limit.into()));
    }

    /// Pauses the stage: it takes and delivers no events. It still handles its messages.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph,
    ///     snapshot::Activity,
    ///     source::{QueueOptions, queue},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue::<u64>(QueueOptions::new());
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", producer);
    /// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
    /// graph.subscribe(&print, &numbers, SubscribeOptions::new());
    /// let mut pipeline = graph.start()?;
    ///
    /// numbers.pause();
    /// queue.push(7).await?;
    /// # numbers.estimate_buffered_count().await?;
    /// assert_eq!(pipeline.snapshot().stages[0].activity, Activity::Paused);
    ///
    /// numbers.resume();
    /// queue.close();
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.send_control(Control::Pause(true));
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.send_control(Control::Pause(false));
    }

    /// Lets the stage deliver the events it holds and then end with [`ExitReason::Normal`]. It
    /// takes nothing new. Returns when it has ended.
    ///
    /// A stage that receives first cancels its subscriptions. It still handles events that were in
    /// transit by then, so no event is lost, and other consumers of its producers get the rest.
    ///
    /// In a callback of the stage itself it returns at once, and the stage begins to finish after
    /// the callback.
    ///
    /// A producer is notified by [`handle_drain`](crate::stage::Producer::handle_drain): a queue
    /// emits its remaining items as they are asked for.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph,
    ///     source::{QueueOptions, queue},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue::<u64>(QueueOptions::new());
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", producer);
    /// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
    /// let mut pipeline = graph.start()?;
    /// print.subscribe(&numbers, SubscribeOptions::new()).await?;
    ///
    /// queue.push(7).await?;
    ///
    /// numbers.finish().await;
    /// assert!(queue.push(8).await.is_err());
    /// // The consumer has handled the 7 and ended too.
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn finish(&self) {
        self.end(Control::Finish).await;
    }

    /// Stops the stage after the messages in its mailbox. The events it holds are lost and
    /// reported. Returns when it has ended; in a callback of the stage itself at once, and the
    /// stage ends later.
    ///
    /// ```
    /// use pipeline_core::{ExitReason, Graph, source::from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let mut pipeline = graph.start()?;
    /// numbers.stop(ExitReason::ShutdownWith("no more room".into())).await;
    ///
    /// let report = pipeline.join().await;
    /// assert_eq!(report.stages[0].reason.to_string(), "shutdown: no more room");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stop(&self, reason: ExitReason) {
        self.end(Control::Stop(reason)).await;
    }

    /// Kills the stage in any state, with [`ExitReason::Killed`]. Its `terminate` does not run.
    ///
    /// The report counts the unprocessed events at that moment. A callback or a worker that runs at
    /// the same time may still complete on another thread.
    ///
    /// ```
    /// use pipeline_core::{ExitReason, Graph, source::from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let mut pipeline = graph.start()?;
    /// numbers.kill();
    ///
    /// let report = pipeline.join().await;
    /// assert!(matches!(report.stages[0].reason, ExitReason::Killed));
    /// # Ok(())
    /// # }
    /// ```
    pub fn kill(&self) {
        if let Some(address) = self.slot.address() {
            address.kill();
        }
    }

    /// Lets the stage emit events that are not its own, and waits until it has.
    pub(crate) async fn emit(&self, events: Vec<Out>) -> Result<(), CallError> {
        self.waits_for_another()?;
        let (emitted, done) = oneshot::channel();
        let permit = permit(&self.slot.permits).await;
        self.send(Emit { events, emitted }, permit, Message::User)?;
        done.await.map_err(|_| CallError::NotRunning)
    }

    /// Lets the stage look at its rate limit again.
    pub(crate) fn limit_has_changed(&self) {
        self.send_control(Control::LimitChanged);
    }

    /// Sends a message that ends the stage, and waits until it has ended.
    async fn end(&self, control: Control<In>) {
        let mut occupant = self.slot.occupant.subscribe();
        let Some(address) = self.slot.address() else { return };
        // If it has just ended, there is nothing to wait for, or not for long.
        let _ = address.send(Message::Control(control));
        if address.is_own_callback() {
            return;
        }
        let gone = |now: &Occupant<Address<S, In, Out>>| match now {
            Occupant::Running(other) => other.id != address.id,
            _ => true,
        };
        let _ = occupant.wait_for(gone).await;
    }

    /// An error if the stage is about to wait for itself.
    fn waits_for_another(&self) -> Result<(), CallError> {
        match &*self.slot.occupant.borrow() {
            Occupant::Running(address) if address.is_own_callback() => Err(CallError::OwnCallback),
            _ => Ok(()),
        }
    }

    fn send<M: UserMessage<S, Out> + 'static>(
        &self,
        message: M,
        permit: OwnedSemaphorePermit,
        wrap: impl FnOnce(Envelope<S, Out>) -> Message<S, In, Out>,
    ) -> Result<(), CallError> {
        let address = self.slot.address().ok_or(CallError::NotRunning)?;
        let envelope = Envelope { message: Box::new(message), _permit: permit };
        address.send(wrap(envelope)).map_err(|_| CallError::NotRunning)
    }

    async fn ask<R>(
        &self,
        control: impl FnOnce(oneshot::Sender<R>) -> Control<In>,
    ) -> Result<R, CallError> {
        self.waits_for_another()?;
        let (answer, reply) = oneshot::channel();
        let address = self.slot.address().ok_or(CallError::NotRunning)?;
        address.send(Message::Control(control(answer))).map_err(|_| CallError::NotRunning)?;
        reply.await.map_err(|_| CallError::NotRunning)
    }

    fn send_control(&self, control: Control<In>) {
        if let Some(address) = self.slot.address() {
            // A stage that has just ended needs no notification.
            let _ = address.send(Message::Control(control));
        }
    }

    /// Subscribes this stage to a producer of its event type. Returns when it has sent the request
    /// to the producer, which may not have processed it yet. If this stage fails and is restarted,
    /// it subscribes again, unless the subscription was withdrawn, or has ended by then and its
    /// producer is not restarted.
    ///
    /// If the producer is not running, a
    /// [`Cancel::Permanent`](crate::subscription::Cancel::Permanent) or
    /// [`Cancel::Transient`](crate::subscription::Cancel::Transient) subscription ends this stage
    /// with [`ExitReason::NotRunning`]. A
    /// [`Cancel::Reconnect`](crate::subscription::Cancel::Reconnect) subscription waits for a
    /// producer that is still to be started or restarted, and a
    /// [`Cancel::Temporary`](crate::subscription::Cancel::Temporary) one has already ended.
    ///
    /// # Errors
    ///
    /// [`SubscribeError`] for invalid options, or if this stage is not running or is about to end.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph,
    ///     source::from_iter,
    ///     step::for_each,
    ///     subscription::{Cancel, SubscribeError, SubscribeOptions},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..10));
    /// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
    /// let mut pipeline = graph.start()?;
    ///
    /// let options = SubscribeOptions::new().max_demand(0);
    /// assert_eq!(print.subscribe(&numbers, options).await, Err(SubscribeError::MaxDemand));
    ///
    /// print.subscribe(&numbers, SubscribeOptions::new().max_demand(5)).await?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn subscribe<P, PIn>(
        &self,
        producer: &StageHandle<P, PIn, In>,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError>
    where
        P: Send + 'static,
        PIn: Send + 'static,
    {
        self.subscribe_in_place_of(None, producer, options).await
    }

    /// Replaces another subscription of this stage, which ends with the reason. If the producer is
    /// the same, it swaps the two without a gap. The stage continues whatever the old
    /// subscription's [`Cancel`](crate::subscription::Cancel) mode is. If this stage is restarted,
    /// it makes the new subscription and not the old one, planned or not. If the producer refuses
    /// the new subscription, the old one has ended all the same: the stage then has neither, also
    /// after a restart.
    ///
    /// # Errors
    ///
    /// As for [`subscribe`](Self::subscribe).
    ///
    /// ```
    /// use futures::stream;
    /// use pipeline_core::{
    ///     ExitReason, Graph, source::from_stream, step::for_each, subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let here = graph.producer("here", from_stream(stream::pending()));
    /// let there = graph.producer("there", from_stream(stream::pending()));
    /// let print = graph.consumer("print", for_each(async |n: u64| println!("{n}")));
    /// let _pipeline = graph.start()?;
    ///
    /// let options = SubscribeOptions::new().max_demand(5);
    /// let old = print.subscribe(&here, options.clone()).await?;
    /// let new = print.resubscribe(&old, ExitReason::Normal, &there, options).await?;
    /// assert_ne!(old, new);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn resubscribe<P, PIn>(
        &self,
        old: &Subscription,
        reason: ExitReason,
        producer: &StageHandle<P, PIn, In>,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError>
    where
        P: Send + 'static,
        PIn: Send + 'static,
    {
        self.subscribe_in_place_of(old.line().map(|line| (line, reason)), producer, options).await
    }

    async fn subscribe_in_place_of<P, PIn>(
        &self,
        replaces: Option<(LineId, ExitReason)>,
        producer: &StageHandle<P, PIn, In>,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError>
    where
        P: Send + 'static,
        PIn: Send + 'static,
    {
        options.check()?;
        let target = producer.slot.clone();
        let subscribed = self.ask(|answer| {
            let answer = Some(answer);
            let origin = Origin::handle();
            Control::Subscribe(Box::new(Subscribing { target, options, origin, replaces, answer }))
        });
        subscribed.await.unwrap_or_else(|error| match error {
            CallError::OwnCallback => Err(SubscribeError::OwnCallback),
            _ => Err(SubscribeError::NotRunning),
        })
    }
}

/// Waits for room for a message in the mailbox.
async fn permit(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    permits.clone().acquire_owned().await.expect("the semaphore is never closed")
}

impl<S, In, Out> Clone for StageHandle<S, In, Out> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<S, In, Out> fmt::Debug for StageHandle<S, In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StageHandle").field(&self.slot.name).finish()
    }
}
