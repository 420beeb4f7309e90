//! The context of a stage.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    Phase,
    gauges::{Gauges, SourceReport},
    handle::StageHandle,
    message::{CallError, HandleInfo},
    timers::StageTimer,
};
use crate::telemetry::{StageLabels, Telemetry, stage_labels};

/// The context of a stage: its pipeline, its names and its handle. It is available before the first
/// event. `H` is the stage's own handle.
///
/// ```
/// use metrics::Counter;
/// use pipeline_core::{
///     ExitReason,
///     stage::{Consumer, ConsumerHandle, StageContext},
///     subscription::Subscription,
/// };
///
/// struct Log {
///     lines: Counter,
/// }
///
/// impl Consumer for Log {
///     type Event = String;
///
///     fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
///         let labels = [("stage", context.stage().to_owned())];
///         self.lines = context.telemetry().counter("log.lines", "Lines written", labels);
///         Ok(())
///     }
///
///     async fn handle_events(
///         &mut self,
///         lines: Vec<String>,
///         _from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         self.lines.increment(lines.len() as u64);
///         Ok(())
///     }
/// }
/// # use pipeline_core::{Pipeline, source::from_iter, subscription::SubscribeOptions};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut pipeline = Pipeline::builder("log")
/// #     .producer(from_iter(["to the screen".to_owned()]))
/// #     .consumer(Log { lines: Counter::noop() }, SubscribeOptions::new())
/// #     .start()?;
/// # assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StageContext<H> {
    pub(crate) pipeline: Arc<str>,
    pub(crate) stage: Arc<str>,
    pub(crate) telemetry: Telemetry,
    pub(crate) handle: H,
    pub(crate) gauges: Arc<Gauges>,
    /// The phase of the pipeline.
    pub(crate) phase: watch::Receiver<Phase>,
}

impl<H> StageContext<H> {
    /// The name of the pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The name of this stage.
    #[must_use]
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// The recorder of the stage's metrics.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The stage's own handle, for sending messages to itself or for passing it on.
    ///
    /// A call to itself is an error, because it would wait forever: a stage does one thing at a
    /// time.
    ///
    /// ```
    /// # use pipeline_core::{
    /// #     ExitReason, Graph,
    /// #     stage::{Emitter, HandleInfo, Producer},
    /// # };
    /// use pipeline_core::stage::{ProducerHandle, StageContext};
    ///
    /// /// Is notified when its prices have been sent.
    /// struct Prices {
    ///     me: Option<ProducerHandle<Self>>,
    /// }
    ///
    /// impl Producer for Prices {
    ///     type Event = u64;
    ///
    ///     fn init(
    ///         &mut self,
    ///         context: &StageContext<ProducerHandle<Self>>,
    ///     ) -> Result<(), ExitReason> {
    ///         self.me = Some(context.handle().clone());
    ///         Ok(())
    ///     }
    ///
    ///     async fn handle_demand(
    ///         &mut self,
    ///         _demand: usize,
    ///         out: &mut Emitter<'_, u64>,
    ///     ) -> Result<(), ExitReason> {
    ///         out.emit_all([101, 99, 105]);
    ///         if let Some(me) = &self.me {
    ///             me.async_info("all out")?;
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// # impl HandleInfo<&'static str, u64> for Prices {
    /// #     async fn handle_info(
    /// #         &mut self,
    /// #         message: &'static str,
    /// #         _out: &mut Emitter<'_, u64>,
    /// #     ) -> Result<(), ExitReason> {
    /// #         assert_eq!(message, "all out");
    /// #         Err(ExitReason::Normal)
    /// #     }
    /// # }
    /// # use pipeline_core::{Pipeline, step::for_each, subscription::SubscribeOptions};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut pipeline = Pipeline::builder("prices")
    /// #     .producer(Prices { me: None })
    /// #     .consumer(for_each(async |price: u64| println!("{price}")), SubscribeOptions::new())
    /// #     .start()?;
    /// # assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> &H {
        &self.handle
    }

    /// A report about the durable source that this producer reads from, as a part of the stage's
    /// snapshots, for the inspector and others.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ExitReason, Pipeline,
    ///     stage::{Emitter, Producer, ProducerHandle, StageContext},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
    /// };
    ///
    /// /// Reads the lines of a file.
    /// struct Lines;
    ///
    /// impl Producer for Lines {
    ///     type Event = String;
    ///
    ///     fn init(
    ///         &mut self,
    ///         context: &StageContext<ProducerHandle<Self>>,
    ///     ) -> Result<(), ExitReason> {
    ///         context.source_report().update(|source| {
    ///             source.broker = "the file of orders".into();
    ///             source.backlog = Some(12);
    ///         });
    ///         Ok(())
    ///     }
    /// #   async fn handle_demand(
    /// #       &mut self,
    /// #       _demand: usize,
    /// #       _out: &mut Emitter<'_, String>,
    /// #   ) -> Result<(), ExitReason> {
    /// #       Ok(())
    /// #   }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pipeline = Pipeline::builder("log")
    /// #     .producer(Lines)
    /// #     .consumer(for_each(async |_: String| ()), SubscribeOptions::new())
    /// #     .start()?;
    /// let stages = pipeline.snapshot().stages;
    /// assert_eq!(stages[0].source.as_ref().and_then(|source| source.backlog), Some(12));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn source_report(&self) -> SourceReport {
        self.gauges.source_report()
    }

    /// The labels of this stage's metrics.
    pub(crate) fn labels(&self) -> StageLabels {
        stage_labels(&self.pipeline, &self.stage)
    }
}

impl<S, In, Out> StageContext<StageHandle<S, In, Out>>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    /// Sends this stage a message after this time, like Elixir's `Process.send_after`. It reaches
    /// [`HandleInfo::handle_info`], and does not wait behind the stage's events. The timer ends with the stage:
    /// one that is restarted begins without timers.
    ///
    /// Timers that are due fire in the order of their times, and those of the same time in the order in which
    /// they were set. With [`Duration::MAX`], the message is never sent, and still counts as a timer.
    ///
    /// The context may be kept, and so may the handle, which has the same method.
    ///
    /// # Errors
    ///
    /// [`CallError::NotRunning`] if the stage has ended, [`CallError::Full`] if it has 1024 timers.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{
    ///     ExitReason,
    ///     stage::{Consumer, ConsumerHandle, Emitter, HandleInfo, StageContext, StageTimer},
    ///     subscription::Subscription,
    /// };
    ///
    /// /// Writes lines together: 100 of them, or those of a second.
    /// #[derive(Default)]
    /// struct Writer {
    ///     lines: Vec<String>,
    ///     me: Option<ConsumerHandle<Self>>,
    ///     timer: Option<StageTimer>,
    /// }
    ///
    /// struct Flush;
    ///
    /// impl Writer {
    ///     fn flush(&mut self) {
    ///         println!("{}", self.lines.join("\n"));
    ///         self.lines.clear();
    ///         if let Some(timer) = self.timer.take() {
    ///             timer.cancel();
    ///         }
    ///     }
    /// }
    ///
    /// impl Consumer for Writer {
    ///     type Event = String;
    ///
    ///     fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
    ///         self.me = Some(context.handle().clone());
    ///         Ok(())
    ///     }
    ///
    ///     async fn handle_events(
    ///         &mut self,
    ///         lines: Vec<String>,
    ///         _from: &Subscription,
    ///     ) -> Result<(), ExitReason> {
    ///         self.lines.extend(lines);
    ///         if self.lines.len() >= 100 {
    ///             self.flush();
    ///         } else if self.timer.is_none()
    ///             && let Some(me) = &self.me
    ///         {
    ///             self.timer = Some(me.send_after(Duration::from_secs(1), Flush)?);
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl HandleInfo<Flush> for Writer {
    ///     async fn handle_info(
    ///         &mut self,
    ///         _: Flush,
    ///         _out: &mut Emitter<'_, Infallible>,
    ///     ) -> Result<(), ExitReason> {
    ///         self.flush();
    /// #       self.me.as_ref().unwrap().async_info(Done)?;
    ///         Ok(())
    ///     }
    /// }
    /// # struct Done;
    /// # impl HandleInfo<Done> for Writer {
    /// #     async fn handle_info(
    /// #         &mut self,
    /// #         _: Done,
    /// #         _out: &mut Emitter<'_, Infallible>,
    /// #     ) -> Result<(), ExitReason> {
    /// #         Err(ExitReason::Normal)
    /// #     }
    /// # }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pipeline_core::{Pipeline, source::{QueueOptions, queue}, subscription::SubscribeOptions};
    /// # let (queue, producer) = queue(QueueOptions::new());
    /// # queue.push("one line".to_owned()).await?;
    /// # let mut pipeline = Pipeline::builder("log")
    /// #     .producer(producer)
    /// #     .consumer(Writer::default(), SubscribeOptions::new())
    /// #     .start()?;
    /// # assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_after<M>(&self, delay: Duration, message: M) -> Result<StageTimer, CallError>
    where
        S: HandleInfo<M, Out>,
        M: Send + 'static,
    {
        self.handle.send_after(delay, message)
    }

    /// Sends this stage a copy of a message each time this period is over, like Erlang's `:timer.send_interval`.
    /// The first one comes after one period. A timer like that of [`send_after`](Self::send_after).
    ///
    /// While the stage is busy for longer than a period, at most one message waits; the times that are over are
    /// left out. The others keep the times of the interval. A period of less than a millisecond counts as one.
    ///
    /// # Errors
    ///
    /// As for [`send_after`](Self::send_after).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{
    ///     ExitReason,
    ///     stage::{Emitter, HandleInfo, Producer, ProducerHandle, StageContext},
    /// };
    ///
    /// /// Emits the price of each second, if there is demand for it.
    /// struct Prices;
    ///
    /// #[derive(Clone)]
    /// struct Tick;
    ///
    /// impl Producer for Prices {
    ///     type Event = u64;
    ///
    ///     fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
    ///         context.send_interval(Duration::from_secs(1), Tick)?;
    ///         Ok(())
    ///     }
    ///
    ///     async fn handle_demand(
    ///         &mut self,
    ///         _demand: usize,
    ///         _out: &mut Emitter<'_, u64>,
    ///     ) -> Result<(), ExitReason> {
    ///         Ok(()) // it stays owed
    ///     }
    /// }
    ///
    /// impl HandleInfo<Tick, u64> for Prices {
    ///     async fn handle_info(
    ///         &mut self,
    ///         _: Tick,
    ///         out: &mut Emitter<'_, u64>,
    ///     ) -> Result<(), ExitReason> {
    ///         if out.owed() > 0 {
    ///             out.emit(101);
    ///         }
    /// #       out.finish();
    ///         Ok(())
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pipeline_core::{Pipeline, step::for_each, subscription::SubscribeOptions};
    /// # let mut pipeline = Pipeline::builder("prices")
    /// #     .producer(Prices)
    /// #     .consumer(for_each(async |price: u64| println!("{price}")), SubscribeOptions::new())
    /// #     .start()?;
    /// # assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_interval<M>(&self, every: Duration, message: M) -> Result<StageTimer, CallError>
    where
        S: HandleInfo<M, Out>,
        M: Clone + Send + 'static,
    {
        self.handle.send_interval(every, message)
    }
}
