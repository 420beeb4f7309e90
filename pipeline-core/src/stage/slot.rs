//! The slot of a stage in a pipeline. It persists across restarts.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    task::{self, AbortHandle, Id},
};

use super::{
    gauges::Gauges,
    link::{DemandPort, EventPort, ToConsumer, ToProducer},
    mailbox::{self, MailboxSender, mailbox},
    message::{CallError, Envelope},
    timers::{StageTimer, Timed, Timers},
};
use crate::{
    exit::ExitReason,
    stage::{DemandMode, RateLimit},
    subscription::{Cancel, Home, LineId, StageId, SubscribeError, SubscribeOptions, Subscription},
    supervisor::started_at,
};

/// The number of calls and casts in a stage's mailbox, and of infos there and behind events.
const MAX_MESSAGES: usize = 1024;

/// The messages in the mailbox of a stage of type `S`.
pub(crate) enum Message<S, In, Out> {
    FromConsumer(ToProducer<Out>),
    FromProducer(ToConsumer<In>),
    User(Envelope<S, Out>),
    /// A message that waits behind the current events. The sender is notified when it has been
    /// queued.
    Info(Envelope<S, Out>, Option<oneshot::Sender<()>>),
    Control(Control<In>),
}

/// The control messages of a handle.
pub(crate) enum Control<In> {
    Subscribe(Box<Subscribing<In>>),
    CancelSubscription {
        line: LineId,
        reason: ExitReason,
    },
    PauseSubscription {
        line: LineId,
        paused: bool,
    },
    SetMode(DemandMode),
    Mode(oneshot::Sender<DemandMode>),
    Buffered(oneshot::Sender<usize>),
    Limit(Option<RateLimit>),
    /// The limit that the stage shares has changed.
    LimitChanged,
    /// Another task has set a timer.
    TimersChanged,
    Pause(bool),
    Finish,
    Stop(ExitReason),
}

/// The origin of a subscription, which decides when it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A planned subscription, which is made whenever the consumer starts.
    Planned(LineId),
    /// The same in a linear pipeline, where it is also made again when the producer is back after a
    /// failure.
    Linear(LineId),
    /// A subscription made by a handle while the consumer ran. It is made again when the consumer
    /// is restarted, unless it has ended before.
    Handle(LineId),
}

impl Origin {
    pub(crate) fn planned() -> Self {
        Self::Planned(LineId::new(next_id()))
    }

    pub(crate) fn linear() -> Self {
        Self::Linear(LineId::new(next_id()))
    }

    pub(crate) fn handle() -> Self {
        Self::Handle(LineId::new(next_id()))
    }

    pub(crate) fn line(self) -> LineId {
        match self {
            Self::Planned(line) | Self::Linear(line) | Self::Handle(line) => line,
        }
    }

    pub(crate) fn is_linear(self) -> bool {
        matches!(self, Self::Linear(_))
    }
}

/// A request to a consumer to subscribe.
pub(crate) struct Subscribing<In> {
    pub(crate) target: Arc<dyn Target<In>>,
    pub(crate) options: SubscribeOptions,
    pub(crate) origin: Origin,
    pub(crate) replaces: Option<(LineId, ExitReason)>,
    pub(crate) answer: Option<oneshot::Sender<Result<Subscription, SubscribeError>>>,
}

/// The slot of a stage that emits events of type `E`.
pub(crate) trait Target<E>: Send + Sync {
    fn occupant(&self) -> Occupant<Arc<dyn DemandPort<E>>>;

    fn name(&self) -> &Arc<str>;

    /// The id of its pipeline.
    fn pipeline(&self) -> u64;

    /// Whether a stage that fails here is restarted.
    fn restarts(&self) -> bool;

    /// Waits until a stage that is being restarted runs again, or never will.
    fn settled(&self) -> BoxFuture<'_, ()>;
}

/// The occupant of a slot.
#[derive(Clone)]
pub(crate) enum Occupant<A> {
    /// None yet.
    Vacant,
    Running(A),
    Restarting,
    /// None, for good, and why.
    Ended(ExitReason),
}

/// The address of one incarnation of a stage.
///
/// The mailbox has no bound of its own. Between stages, demand bounds it: no more events are in
/// transit than were asked for, and no more asks than events were handled. A message from outside
/// takes one of [`MAX_MESSAGES`] permits, and an info keeps its own until it is handled.
pub(crate) struct Address<S, In, Out> {
    pub(crate) id: StageId,
    mailbox: MailboxSender<Message<S, In, Out>>,
    /// Aborts the stage's task, once there is one.
    task: Arc<OnceLock<AbortHandle>>,
    /// The task in which the stage's callbacks run, once they do.
    runs_in: Arc<OnceLock<Id>>,
    /// Why the stage has ended. Set before the mailbox is closed.
    reason: Arc<OnceLock<ExitReason>>,
    pub(crate) timers: Arc<Timers<S, Out>>,
}

pub(crate) type Mailbox<S, In, Out> = mailbox::Mailbox<Message<S, In, Out>>;

impl<S, In, Out> Address<S, In, Out> {
    pub(crate) fn new() -> (Self, Mailbox<S, In, Out>) {
        let (sender, mailbox) = mailbox();
        let id = StageId::new(next_id());
        let (task, runs_in, reason) = Default::default();
        let timers = Arc::new(Timers::new());
        (Self { id, mailbox: sender, task, runs_in, reason, timers }, mailbox)
    }

    pub(crate) fn send(&self, message: Message<S, In, Out>) -> Result<(), Message<S, In, Out>> {
        self.mailbox.send(message)
    }

    /// Receives the handle of the stage's task.
    pub(crate) fn task(&self) -> Arc<OnceLock<AbortHandle>> {
        self.task.clone()
    }

    /// Records that the stage's callbacks run in the current task.
    pub(crate) fn runs_here(&self) {
        if let Some(task) = task::try_id() {
            let _ = self.runs_in.set(task);
        }
    }

    /// Whether this is called in a callback of the stage. A worker that its supervisor runs itself
    /// does not count: it gets a task when it waits.
    pub(crate) fn is_own_callback(&self) -> bool {
        task::try_id().is_some_and(|task| self.runs_in.get() == Some(&task))
            && started_at().is_none()
    }

    /// Records why the stage ends. The first reason wins.
    pub(crate) fn end(&self, reason: &ExitReason) {
        let _ = self.reason.set(reason.clone());
    }

    /// Sets a timer of the stage.
    pub(crate) fn set_timer(
        &self,
        after: Duration,
        timed: Timed<S, Out>,
    ) -> Result<StageTimer, CallError>
    where
        S: 'static,
        Out: 'static,
    {
        let id = self.timers.set(after, timed)?;
        // Also if the stage sets it itself: in `ready`, it waits already.
        if self.timers.must_notify() {
            // A stage that has just ended needs no notification.
            let _ = self.send(Message::Control(Control::TimersChanged));
        }
        Ok(StageTimer::new(Arc::downgrade(&self.timers), id))
    }

    /// Returns false if there is no task yet, or it has ended.
    pub(crate) fn kill(&self) -> bool {
        let Some(task) = self.task.get().filter(|task| !task.is_finished()) else { return false };
        task.abort();
        true
    }
}

impl<S, In, Out> Clone for Address<S, In, Out> {
    fn clone(&self) -> Self {
        Self {
            id: self.id,
            mailbox: self.mailbox.clone(),
            task: self.task.clone(),
            runs_in: self.runs_in.clone(),
            reason: self.reason.clone(),
            timers: self.timers.clone(),
        }
    }
}

impl<S, In, Out> EventPort<In> for Address<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn send(&self, message: ToConsumer<In>) -> Result<(), ToConsumer<In>> {
        self.mailbox.send(Message::FromProducer(message)).map_err(|message| match message {
            Message::FromProducer(message) => message,
            _ => unreachable!("send returns the same message"),
        })
    }
}

impl<S, In, Out> DemandPort<Out> for Address<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn send(&self, message: ToProducer<Out>) -> Result<(), ToProducer<Out>> {
        self.mailbox.send(Message::FromConsumer(message)).map_err(|message| match message {
            Message::FromConsumer(message) => message,
            _ => unreachable!("send returns the same message"),
        })
    }

    fn ended(&self) -> Option<ExitReason> {
        self.reason.get().map(ExitReason::for_peers)
    }
}

/// The slot of a stage.
pub(crate) struct Slot<S, In, Out> {
    pub(crate) name: Arc<str>,
    pub(crate) pipeline: u64,
    restarts: bool,
    pub(crate) occupant: watch::Sender<Occupant<Address<S, In, Out>>>,
    /// The permits for calls and casts.
    pub(crate) permits: Arc<Semaphore>,
    /// The permits for infos, which may wait for events to leave. They must not take those of the
    /// others.
    pub(crate) info_permits: Arc<Semaphore>,
    pub(crate) gauges: Arc<Gauges>,
    /// The subscriptions that a stage in this slot makes when it starts.
    pub(crate) subscriptions: Subscriptions<In>,
}

/// The subscriptions that a stage makes when it starts. Later ones are added to it.
pub(crate) type Subscriptions<In> = Arc<Mutex<Vec<PlannedSubscription<In>>>>;

/// Withdraws a subscription that waits to be made by the next incarnation. If its end would end the
/// consumer, it stays: a consumer without producers would wait for ever.
pub(crate) fn withdraw<In>(subscriptions: &Subscriptions<In>, line: LineId) {
    subscriptions.lock().retain(|planned| {
        planned.origin.line() != line || !matches!(planned.options.mode(), Cancel::Reconnect(_))
    });
}

/// A subscription that is made whenever its consumer starts.
pub(crate) struct PlannedSubscription<In> {
    pub(crate) target: Arc<dyn Target<In>>,
    pub(crate) options: SubscribeOptions,
    pub(crate) origin: Origin,
}

impl<S, In, Out> Slot<S, In, Out> {
    pub(crate) fn new(name: Arc<str>, pipeline: u64, restarts: bool, gauges: Gauges) -> Self {
        let occupant = watch::Sender::new(Occupant::Vacant);
        let [permits, info_permits] = [MAX_MESSAGES; 2].map(|room| Arc::new(Semaphore::new(room)));
        let gauges = Arc::new(gauges);
        let subscriptions = Arc::default();
        Self { name, pipeline, restarts, occupant, permits, info_permits, gauges, subscriptions }
    }

    /// The address of the current stage, if there is one.
    pub(crate) fn address(&self) -> Option<Address<S, In, Out>> {
        match &*self.occupant.borrow() {
            Occupant::Running(address) => Some(address.clone()),
            _ => None,
        }
    }

    /// Adds a subscription for stages that start in this slot.
    pub(crate) fn plan(
        &self,
        target: Arc<dyn Target<In>>,
        options: SubscribeOptions,
        origin: Origin,
    ) {
        self.subscriptions.lock().push(PlannedSubscription { target, options, origin });
    }

    /// Records that the stage has ended, temporarily or for good. The pipeline's end records it
    /// once more; a known reason stays.
    pub(crate) fn vacate(&self, restarting: bool) {
        self.occupant.send_modify(|occupant| {
            let reason = match occupant {
                Occupant::Running(address) => address.reason.get().cloned(),
                Occupant::Ended(reason) => Some(reason.clone()),
                Occupant::Vacant | Occupant::Restarting => None,
            };
            *occupant = if restarting {
                Occupant::Restarting
            } else {
                Occupant::Ended(reason.unwrap_or(ExitReason::NotRunning))
            };
        });
    }

    /// Records that no stage will ever occupy the slot, if none has.
    pub(crate) fn abandon(&self) {
        self.occupant.send_modify(|occupant| {
            if let Occupant::Vacant = occupant {
                *occupant = Occupant::Ended(ExitReason::NotRunning);
            }
        });
    }

    /// Puts a new incarnation into the slot.
    pub(crate) fn occupy(&self) -> (Address<S, In, Out>, Mailbox<S, In, Out>) {
        let (address, mailbox) = Address::new();
        self.occupant.send_replace(Occupant::Running(address.clone()));
        (address, mailbox)
    }
}

/// The slot of a stage of any type.
pub(crate) trait Kill: Send + Sync {
    /// Kills the stage that runs here. Returns false if none does.
    fn kill(&self) -> bool;
}

impl<S, In, Out> Kill for Slot<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn kill(&self) -> bool {
        self.address().is_some_and(|address| address.kill())
    }
}

impl<S, In, Out> Target<Out> for Slot<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn occupant(&self) -> Occupant<Arc<dyn DemandPort<Out>>> {
        match &*self.occupant.borrow() {
            Occupant::Vacant => Occupant::Vacant,
            Occupant::Running(address) => Occupant::Running(Arc::new(address.clone())),
            Occupant::Restarting => Occupant::Restarting,
            Occupant::Ended(reason) => Occupant::Ended(reason.for_peers()),
        }
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn pipeline(&self) -> u64 {
        self.pipeline
    }

    fn restarts(&self) -> bool {
        self.restarts
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        let mut occupant = self.occupant.subscribe();
        Box::pin(async move {
            // An error means that the slot was dropped, so no stage will occupy it.
            let _ = occupant.wait_for(|now| !matches!(now, Occupant::Restarting)).await;
        })
    }
}

impl<S, In, Out> Slot<S, In, Out> {
    /// Sends a control message to the stage that runs here, if one does.
    fn control(&self, control: Control<In>) -> bool {
        self.address().is_some_and(|address| address.send(Message::Control(control)).is_ok())
    }
}

impl<S, In, Out> Home for Slot<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn cancel(&self, line: LineId, reason: ExitReason) {
        let cancel = || Control::CancelSubscription { line, reason: reason.clone() };
        if !self.control(cancel()) {
            // The stage may be about to be restarted.
            withdraw(&self.subscriptions, line);
            self.control(cancel());
        }
    }

    fn pause(&self, line: LineId, paused: bool) {
        self.control(Control::PauseSubscription { line, paused });
    }
}

impl<S, In, Out> fmt::Debug for Slot<S, In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An id that is unique among the stages and subscriptions of the program: stages of different
/// pipelines may be connected.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
