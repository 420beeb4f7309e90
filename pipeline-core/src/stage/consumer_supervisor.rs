//! The stage that starts one supervised child per event.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{self, Instant},
};

use super::{
    ChildContext, Link, Phase, StageContext, StageReport, ToConsumer, Worker,
    consumer::{after_down, told_to_end, unread},
    contained,
    restart::{Restart, RestartBudget},
};
use crate::{demand::Slots, exit::ExitReason, telemetry::WorkerMetrics};

/// A stage that runs a [`Worker`] for each event, each in a task of its own.
///
/// `max_demand` of its subscription is the number of children alive at once, exactly: an event
/// takes a slot when it arrives, and the slot is free again when the child is done with the event.
/// When no more than `min_demand` children are running, more events are asked for. To keep all
/// slots busy, set `min_demand` to `max_demand - 1`.
///
/// A child that fails is restarted, by default. More than [`max_restarts`](Self::max_restarts)
/// within the given time end the supervisor with [`ExitReason::Shutdown`], because something is
/// wrong that restarting doesn't mend.
///
/// When its producer ends with [`ExitReason::Normal`], the supervisor lets its children finish and
/// ends too. When it has to stop, its children are told so
/// ([`ChildContext::stopping`]) and are dropped once [`shutdown`](Self::shutdown) is over.
///
/// The semantics are those of GenStage's `ConsumerSupervisor`, except for the gentle end, and that
/// it asks at `min_demand` like any other consumer.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{ConsumerSupervisor, ExitReason};
///
/// let resize = async |image: &Vec<u8>| {
///     if image.is_empty() {
///         return Err(ExitReason::failed("an empty image"));
///     }
///     Ok(())
/// };
/// let supervisor = ConsumerSupervisor::new(resize)
///     .max_restarts(10, Duration::from_secs(60))
///     .shutdown(Duration::from_secs(30));
/// ```
#[derive(Debug)]
#[must_use]
pub struct ConsumerSupervisor<E, W> {
    worker: W,
    restart: Restart,
    budget: RestartBudget,
    shutdown: Duration,
    event: PhantomData<fn(E)>,
}

impl<E, W: Worker<E>> ConsumerSupervisor<E, W> {
    /// Supervises children of this worker: transient, at most 3 restarts in 5 seconds, and 5
    /// seconds to stop.
    pub fn new(worker: W) -> Self {
        Self {
            worker,
            restart: Restart::default(),
            budget: RestartBudget::new(3, Duration::from_secs(5)),
            shutdown: Duration::from_secs(5),
            event: PhantomData,
        }
    }

    /// What happens to a child that fails. Default [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How many restarts within which time are too many by one. Default 3 within 5 seconds.
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = RestartBudget::new(restarts, within);
        self
    }

    /// How long children have to end after they were told to stop. Default 5 seconds.
    pub fn shutdown(mut self, within: Duration) -> Self {
        self.shutdown = within;
        self
    }
}

/// An event in its slot. The child's task owns it, and hands it back with the outcome.
struct Child<E> {
    event: E,
    restarts: u32,
    outcome: Result<(), ExitReason>,
}

/// The task of a consumer supervisor.
pub(crate) struct SupervisorTask<E, W> {
    worker: Arc<W>,
    restart: Restart,
    budget: RestartBudget,
    shutdown: Duration,
    link: Link<E>,
    /// Whether the producer is still there.
    subscribed: bool,
    slots: Slots,
    children: JoinSet<Child<E>>,
    stopping: watch::Sender<bool>,
    metrics: Arc<WorkerMetrics>,
    report: StageReport,
}

impl<E, W> SupervisorTask<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    pub(crate) fn new(
        supervisor: ConsumerSupervisor<E, W>,
        link: Link<E>,
        context: &StageContext,
    ) -> Self {
        Self {
            worker: Arc::new(supervisor.worker),
            restart: supervisor.restart,
            budget: supervisor.budget,
            shutdown: supervisor.shutdown,
            slots: Slots::new(&link.options),
            link,
            subscribed: true,
            children: JoinSet::new(),
            stopping: watch::Sender::new(false),
            metrics: Arc::new(WorkerMetrics::register(&context.telemetry, &context.labels())),
            report: StageReport::new(context.stage.clone(), ExitReason::Normal),
        }
    }

    pub(crate) async fn run(
        mut self,
        mut mailbox: mpsc::UnboundedReceiver<ToConsumer<E>>,
        mut phase: watch::Receiver<Phase>,
    ) -> StageReport {
        let mut reason = self.supervise(&mut mailbox, &mut phase).await;
        if matches!(reason, ExitReason::Normal) {
            reason = self.finish(&mut phase).await;
        }
        if !matches!(reason, ExitReason::Normal | ExitReason::Killed) {
            self.stop_children(&mut phase).await;
        }
        self.kill_children().await;
        self.report.held += unread(&mut mailbox);
        self.report.reason = reason;
        self.report
    }

    /// Starts a child for each event until there is a reason to end.
    async fn supervise(
        &mut self,
        mailbox: &mut mpsc::UnboundedReceiver<ToConsumer<E>>,
        phase: &mut watch::Receiver<Phase>,
    ) -> ExitReason {
        loop {
            let outcome = tokio::select! {
                biased;
                reason = told_to_end(phase, self.subscribed) => Err(reason),
                Some(ended) = self.children.join_next() => self.child_ended(ended),
                Some(message) = mailbox.recv() => self.receive(message),
            };
            if let Err(reason) = outcome {
                return reason;
            }
        }
    }

    fn receive(&mut self, message: ToConsumer<E>) -> Result<(), ExitReason> {
        match message {
            ToConsumer::Events { events, .. } => {
                for event in events {
                    self.start(event, 0);
                }
                Ok(())
            }
            ToConsumer::Down { reason } => {
                self.subscribed = false;
                after_down(self.link.options.mode(), reason)
            }
        }
    }

    fn start(&mut self, event: E, restarts: u32) {
        let context = ChildContext { stopping: self.stopping.subscribe(), restarts };
        let (worker, metrics) = (self.worker.clone(), self.metrics.clone());
        self.children.spawn(async move {
            let started = Instant::now();
            let outcome = contained(async { worker.run(&event, context).await }).await;
            metrics.process_time.record(started.elapsed().as_secs_f64() * 1e3);
            Child { event, restarts, outcome }
        });
    }

    /// Frees the slot of a child that is done, or starts it again.
    fn child_ended(&mut self, ended: Result<Child<E>, JoinError>) -> Result<(), ExitReason> {
        if let Ok(Child { event, restarts, outcome: Err(reason) }) = ended
            && !reason.is_graceful()
        {
            self.metrics.failed.increment(1);
            let restart = self.restart == Restart::Transient;
            tracing::error!(stage = %self.report.stage, %reason, restart, "a worker failed");
            if restart {
                if !self.budget.spend(Instant::now()) {
                    // The event is in hand and nobody will finish it.
                    self.report.unfinished += 1;
                    tracing::error!(stage = %self.report.stage, "too many restarts, stopping");
                    return Err(ExitReason::Shutdown);
                }
                self.metrics.restarted.increment(1);
                self.start(event, restarts + 1);
                return Ok(());
            }
        }
        let ask = self.slots.free();
        self.link.ask(ask);
        Ok(())
    }

    /// Lets the children finish, restarts and all; nothing more will arrive.
    async fn finish(&mut self, phase: &mut watch::Receiver<Phase>) -> ExitReason {
        while !self.children.is_empty() {
            let outcome = tokio::select! {
                biased;
                // Subscribed or not, what was begun is brought to its end.
                reason = told_to_end(phase, true) => Err(reason),
                Some(ended) = self.children.join_next() => self.child_ended(ended),
            };
            if let Err(reason) = outcome {
                return reason;
            }
        }
        ExitReason::Normal
    }

    /// Tells the children to stop, and gives them their time.
    async fn stop_children(&mut self, phase: &mut watch::Receiver<Phase>) {
        self.stopping.send_replace(true);
        let deadline = time::sleep(self.shutdown);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase == Phase::Kill) => return,
                ended = self.children.join_next() => match ended {
                    Some(ended) => self.count_unfinished(&ended),
                    None => return,
                },
                () = &mut deadline => return,
            }
        }
    }

    /// Drops the children that are left, wherever they are.
    async fn kill_children(&mut self) {
        self.children.abort_all();
        while let Some(ended) = self.children.join_next().await {
            self.count_unfinished(&ended);
        }
    }

    /// Takes note of a child that ended while the supervisor was stopping.
    fn count_unfinished(&mut self, ended: &Result<Child<E>, JoinError>) {
        if !matches!(ended, Ok(Child { outcome: Ok(()), .. })) {
            self.report.unfinished += 1;
        }
    }
}
