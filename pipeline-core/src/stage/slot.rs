//! A place in a pipeline that a stage runs in, from one restart to the next.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    task::AbortHandle,
};

use super::{
    gauges::Gauges,
    link::{DemandPort, EventPort, ToConsumer, ToProducer},
    mailbox::{self, Letterbox, mailbox},
    message::Posted,
};
use crate::{
    exit::ExitReason,
    outlet::DemandMode,
    rate_limit::RateLimit,
    subscription::{StageId, SubscribeError, SubscribeOptions, Subscription, SubscriptionId},
};

/// How many calls and casts may wait in a stage's mailbox, and how many infos there and behind events.
const ROOM: usize = 1024;

/// Everything that can arrive in the mailbox of a stage of type `S`.
pub(crate) enum Mail<S, In, Out> {
    FromConsumer(ToProducer<Out>),
    FromProducer(ToConsumer<In>),
    Letter(Posted<S, Out>),
    /// A letter that waits behind the events that are here now. Says when it has been queued.
    Info(Posted<S, Out>, Option<oneshot::Sender<()>>),
    Control(Control<In>),
}

/// What a handle wants of a stage.
pub(crate) enum Control<In> {
    Subscribe(Box<Subscribing<In>>),
    SetMode(DemandMode),
    Mode(oneshot::Sender<DemandMode>),
    Buffered(oneshot::Sender<usize>),
    Limit(Option<RateLimit>),
    Pause(bool),
    Finish,
    Stop(ExitReason),
}

/// A subscription that a consumer is to make.
pub(crate) struct Subscribing<In> {
    pub(crate) target: Arc<dyn Target<In>>,
    pub(crate) options: SubscribeOptions,
    pub(crate) replaces: Option<(SubscriptionId, ExitReason)>,
    pub(crate) answer: Option<oneshot::Sender<Result<Subscription, SubscribeError>>>,
}

/// The place of a stage that emits events of type `E`.
pub(crate) trait Target<E>: Send + Sync {
    fn occupant(&self) -> Occupant<Arc<dyn DemandPort<E>>>;

    /// Waits until a stage that is being restarted runs again, or never will.
    fn settled(&self) -> BoxFuture<'_, ()>;
}

/// Who is in a slot.
#[derive(Clone)]
pub(crate) enum Occupant<A> {
    /// Nobody has been.
    Vacant,
    Running(A),
    Restarting,
    /// Nobody, for good, and why.
    Ended(ExitReason),
}

/// Where the mail for one incarnation of a stage goes.
///
/// The mailbox has no bound of its own. Between stages, demand bounds it: no more events are on
/// their way than were asked for, and no more asks than events were handled. A message from outside
/// takes one of [`ROOM`] places, and an info keeps its place until it is handled.
pub(crate) struct Address<S, In, Out> {
    pub(crate) id: StageId,
    mailbox: Letterbox<Mail<S, In, Out>>,
    /// Ends the stage's task, once there is one.
    task: Arc<OnceLock<AbortHandle>>,
    /// Why the stage has ended. Known before the mailbox is closed.
    reason: Arc<OnceLock<ExitReason>>,
}

pub(crate) type Mailbox<S, In, Out> = mailbox::Mailbox<Mail<S, In, Out>>;

impl<S, In, Out> Address<S, In, Out> {
    pub(crate) fn new() -> (Self, Mailbox<S, In, Out>) {
        let (letterbox, mailbox) = mailbox();
        let id = StageId::new(next_id());
        (Self { id, mailbox: letterbox, task: Arc::default(), reason: Arc::default() }, mailbox)
    }

    pub(crate) fn send(&self, mail: Mail<S, In, Out>) -> Result<(), Mail<S, In, Out>> {
        self.mailbox.send(mail)
    }

    /// Where the handle of the stage's task belongs.
    pub(crate) fn task(&self) -> Arc<OnceLock<AbortHandle>> {
        self.task.clone()
    }

    /// Says why the stage ends. The first reason counts.
    pub(crate) fn end(&self, reason: &ExitReason) {
        let _ = self.reason.set(reason.clone());
    }

    pub(crate) fn kill(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl<S, In, Out> Clone for Address<S, In, Out> {
    fn clone(&self) -> Self {
        let (mailbox, task) = (self.mailbox.clone(), self.task.clone());
        Self { id: self.id, mailbox, task, reason: self.reason.clone() }
    }
}

impl<S, In, Out> EventPort<In> for Address<S, In, Out>
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    fn send(&self, message: ToConsumer<In>) -> Result<(), ToConsumer<In>> {
        self.send(Mail::FromProducer(message)).map_err(|mail| match mail {
            Mail::FromProducer(message) => message,
            _ => unreachable!("it gives back what it was given"),
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
        self.send(Mail::FromConsumer(message)).map_err(|mail| match mail {
            Mail::FromConsumer(message) => message,
            _ => unreachable!("it gives back what it was given"),
        })
    }

    fn ended(&self) -> Option<ExitReason> {
        self.reason.get().cloned()
    }
}

/// A place in a pipeline.
pub(crate) struct Slot<S, In, Out> {
    pub(crate) name: Arc<str>,
    pub(crate) occupant: watch::Sender<Occupant<Address<S, In, Out>>>,
    /// For calls and casts.
    pub(crate) places: Arc<Semaphore>,
    /// For infos, which may wait for events to leave. They must not take the places of the others.
    pub(crate) info_places: Arc<Semaphore>,
    pub(crate) gauges: Arc<Gauges>,
    /// What whoever is here subscribes to when it starts.
    pub(crate) subscriptions: Mutex<Vec<PlannedSubscription<In>>>,
}

/// A subscription that is made whenever its consumer starts.
pub(crate) struct PlannedSubscription<In> {
    pub(crate) target: Arc<dyn Target<In>>,
    /// The producer's name.
    pub(crate) producer: Arc<str>,
    pub(crate) options: SubscribeOptions,
}

impl<S, In, Out> Slot<S, In, Out> {
    pub(crate) fn new(name: Arc<str>, gauges: Gauges) -> Self {
        let occupant = watch::Sender::new(Occupant::Vacant);
        let [places, info_places] = [ROOM; 2].map(|room| Arc::new(Semaphore::new(room)));
        let gauges = Arc::new(gauges);
        Self { name, occupant, places, info_places, gauges, subscriptions: Mutex::default() }
    }

    /// Who is to be told, if anybody.
    pub(crate) fn address(&self) -> Option<Address<S, In, Out>> {
        match &*self.occupant.borrow() {
            Occupant::Running(address) => Some(address.clone()),
            _ => None,
        }
    }

    /// Whoever starts here is to subscribe to this.
    pub(crate) fn plan(
        &self,
        target: Arc<dyn Target<In>>,
        producer: Arc<str>,
        options: SubscribeOptions,
    ) {
        self.subscriptions.lock().push(PlannedSubscription { target, producer, options });
    }

    /// Nobody is here any more, for a while or for good.
    pub(crate) fn vacate(&self, restarting: bool) {
        self.occupant.send_modify(|occupant| {
            let reason = match occupant {
                Occupant::Running(address) => address.reason.get().cloned(),
                _ => None,
            };
            *occupant = if restarting {
                Occupant::Restarting
            } else {
                Occupant::Ended(reason.unwrap_or(ExitReason::NoProcess))
            };
        });
    }

    /// A new incarnation takes the place.
    pub(crate) fn occupy(&self) -> (Address<S, In, Out>, Mailbox<S, In, Out>) {
        let (address, mailbox) = Address::new();
        self.occupant.send_replace(Occupant::Running(address.clone()));
        (address, mailbox)
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
            Occupant::Ended(reason) => Occupant::Ended(reason.clone()),
        }
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        let mut occupant = self.occupant.subscribe();
        Box::pin(async move {
            // An error means that the slot is gone, and with it who could come.
            let _ = occupant.wait_for(|now| !matches!(now, Occupant::Restarting)).await;
        })
    }
}

impl<S, In, Out> fmt::Debug for Slot<S, In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A number that no other stage or subscription of the program has: stages of different pipelines
/// may be connected.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
