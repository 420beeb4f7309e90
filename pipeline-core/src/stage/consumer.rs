//! The stage that events end in.

use std::future::Future;

use tokio::sync::{mpsc, watch};

use super::{Link, Phase, StageContext, StageReport, ToConsumer, contained};
use crate::{
    demand::Window,
    exit::ExitReason,
    subscription::{Cancel, SubscriptionId},
};

/// A stage that receives events and emits none.
///
/// It asks for `max_demand` events, and for more whenever it has handled so many that only
/// `min_demand` are to come; see [`SubscribeOptions`](crate::SubscribeOptions). What arrives is
/// handled in chunks of at most `max_demand - min_demand` events, one chunk at a time.
///
/// For one task per event, with as many at once as there is demand, use a
/// [`ConsumerSupervisor`](crate::ConsumerSupervisor).
///
/// The callbacks and the arithmetic are GenStage's.
///
/// ```
/// use pipeline_core::{Consumer, ExitReason, SubscriptionId};
///
/// struct Sum(u64);
///
/// impl Consumer for Sum {
///     type Event = u64;
///
///     async fn handle_events(
///         &mut self,
///         events: Vec<u64>,
///         _from: SubscriptionId,
///     ) -> Result<(), ExitReason> {
///         self.0 += events.iter().sum::<u64>();
///         Ok(())
///     }
/// }
/// ```
pub trait Consumer: Send + 'static {
    /// What it receives.
    type Event: Send + 'static;

    /// Runs before the pipeline starts, while [`start`](crate::PipelineBuilder::start) is called.
    ///
    /// # Errors
    ///
    /// An error makes the start fail.
    fn init(&mut self, context: &StageContext) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Handles a chunk of events, never an empty one. More are asked for when it returns.
    fn handle_events(
        &mut self,
        events: Vec<Self::Event>,
        from: SubscriptionId,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Called last, however the stage ended.
    fn terminate(&mut self, reason: &ExitReason) -> impl Future<Output = ()> + Send {
        let _ = reason;
        async {}
    }
}

/// The task of a consumer.
pub(crate) struct ConsumerTask<C: Consumer> {
    consumer: C,
    link: Link<C::Event>,
    /// Whether the producer is still there.
    subscribed: bool,
    window: Window,
    report: StageReport,
}

impl<C: Consumer> ConsumerTask<C> {
    pub(crate) fn new(consumer: C, link: Link<C::Event>, context: &StageContext) -> Self {
        let window = Window::new(&link.options);
        let report = StageReport::new(context.stage.clone(), ExitReason::Normal);
        Self { consumer, link, subscribed: true, window, report }
    }

    pub(crate) async fn run(
        mut self,
        mut mailbox: mpsc::UnboundedReceiver<ToConsumer<C::Event>>,
        mut phase: watch::Receiver<Phase>,
    ) -> StageReport {
        let reason = loop {
            tokio::select! {
                biased;
                reason = told_to_end(&mut phase, self.subscribed) => break reason,
                Some(message) = mailbox.recv() => {
                    if let Err(reason) = self.receive(message).await {
                        break reason;
                    }
                }
            }
        };
        let _ = contained(async {
            self.consumer.terminate(&reason).await;
            Ok(())
        })
        .await;
        self.report.held += unread(&mut mailbox);
        self.report.reason = reason;
        self.report
    }

    async fn receive(&mut self, message: ToConsumer<C::Event>) -> Result<(), ExitReason> {
        match message {
            ToConsumer::Events { from, events } => self.handle(from, events).await,
            ToConsumer::Down { reason } => {
                self.subscribed = false;
                after_down(self.link.options.mode(), reason)
            }
        }
    }

    /// Handles a message of events, chunk by chunk, asking between the chunks.
    async fn handle(
        &mut self,
        from: SubscriptionId,
        mut events: Vec<C::Event>,
    ) -> Result<(), ExitReason> {
        let mut batch = self.window.receive(events.len());
        while let Some(chunk) = self.window.next_chunk(&mut batch) {
            if chunk.excess > 0 {
                let excess = chunk.excess;
                tracing::error!(stage = %self.report.stage, excess, "received events nobody asked for");
            }
            let rest = events.split_off(chunk.size);
            let outcome = contained(self.consumer.handle_events(events, from)).await;
            events = rest;
            if let Err(reason) = outcome {
                // One that ends in good order has dealt with what it was given.
                self.report.unfinished += if reason.is_graceful() { 0 } else { chunk.size };
                self.report.held += events.len();
                return Err(reason);
            }
            self.link.ask(chunk.ask);
        }
        Ok(())
    }
}

/// Waits until the pipeline wants this stage to end. A consumer drains by going on while it is
/// subscribed: its producer ends when it has sent everything, and that end comes behind the last
/// event.
pub(super) async fn told_to_end(
    phase: &mut watch::Receiver<Phase>,
    subscribed: bool,
) -> ExitReason {
    let ends = |phase: &Phase| match phase {
        Phase::Run => false,
        Phase::Drain => !subscribed,
        Phase::Stop | Phase::Kill => true,
    };
    match phase.wait_for(ends).await.as_deref() {
        Ok(Phase::Drain) => ExitReason::Normal,
        Ok(Phase::Stop) => ExitReason::Shutdown,
        _ => ExitReason::Killed,
    }
}

/// What the end of a producer means for its consumer.
pub(super) fn after_down(mode: Cancel, reason: ExitReason) -> Result<(), ExitReason> {
    match mode {
        Cancel::Permanent => Err(reason),
        Cancel::Transient if !reason.is_graceful() => Err(reason),
        Cancel::Transient | Cancel::Temporary => Ok(()),
    }
}

/// Events that arrived and that nobody has looked at. Closes the mailbox first, so that none can
/// arrive uncounted.
pub(super) fn unread<E>(mailbox: &mut mpsc::UnboundedReceiver<ToConsumer<E>>) -> usize {
    mailbox.close();
    let mut count = 0;
    while let Ok(message) = mailbox.try_recv() {
        if let ToConsumer::Events { events, .. } = message {
            count += events.len();
        }
    }
    count
}
