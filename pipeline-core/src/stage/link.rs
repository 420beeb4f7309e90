//! What two stages say to each other, and what the pipeline says to both.

use std::sync::Arc;

use crate::{
    exit::ExitReason,
    outlet::DemandMode,
    subscription::{Link, StageId, SubscribeOptions, Subscription, SubscriptionId},
};

/// What the pipeline wants of its stages, from the mildest to the harshest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Go on.
    Run,
    /// Go on, and do not wait for sources: all have come to their end.
    SourcesEnded,
    /// Take nothing new; pass on what was accepted, then end.
    Drain,
    /// End now. Workers are told, and given their time.
    Stop,
    /// End now, workers and all.
    Kill,
}

impl Phase {
    /// Why a stage is to end at once, if it is.
    pub(crate) fn ends_now(self) -> Option<ExitReason> {
        match self {
            Self::Run | Self::SourcesEnded | Self::Drain => None,
            Self::Stop => Some(ExitReason::Shutdown),
            Self::Kill => Some(ExitReason::Killed),
        }
    }
}

/// From a consumer to a producer of events of type `E`.
pub(crate) enum ToProducer<E> {
    Subscribe(Box<Subscribe<E>>),
    Ask {
        id: SubscriptionId,
        demand: usize,
        /// Who is told if nobody knows the subscription. None if it is known.
        consumer: Option<Arc<dyn EventPort<E>>>,
    },
    Cancel {
        id: SubscriptionId,
        reason: ExitReason,
    },
    /// The consumer has ended.
    Down {
        id: SubscriptionId,
        reason: ExitReason,
    },
    /// Whether to act upon demand.
    Mode(DemandMode),
}

/// A wish to subscribe.
pub(crate) struct Subscribe<E> {
    pub(crate) subscription: Subscription,
    /// A subscription that this one takes the place of.
    pub(crate) replaces: Option<(SubscriptionId, ExitReason)>,
    pub(crate) stage: StageId,
    /// The consumer's name.
    pub(crate) name: Arc<str>,
    pub(crate) options: SubscribeOptions,
    pub(crate) consumer: Arc<dyn EventPort<E>>,
}

/// From a producer to a consumer. The end of a subscription comes after its last event.
pub(crate) enum ToConsumer<E> {
    Events {
        from: SubscriptionId,
        events: Vec<E>,
        /// The subscription itself, unless the consumer is known to have it.
        unheard: Option<Subscription>,
    },
    /// The subscription was cancelled, by whichever end.
    Cancel { from: SubscriptionId, reason: ExitReason },
    /// The producer has ended.
    Down { from: SubscriptionId, reason: ExitReason },
    /// Takes no events from this subscription for a while, or takes them again.
    Pause { from: SubscriptionId, paused: bool },
}

/// The mailbox of a stage, as its producers see it.
pub(crate) trait EventPort<E>: Send + Sync {
    /// Gives the message back if the stage has ended.
    fn send(&self, message: ToConsumer<E>) -> Result<(), ToConsumer<E>>;
}

/// The mailbox of a stage, as its consumers see it.
pub(crate) trait DemandPort<E>: Send + Sync {
    /// Gives the message back if the stage has ended.
    fn send(&self, message: ToProducer<E>) -> Result<(), ToProducer<E>>;

    /// Why the stage has ended, if it has taken leave.
    fn ended(&self) -> Option<ExitReason>;
}

/// The two mailboxes of a subscription.
pub(crate) struct Ports<E> {
    pub(crate) producer: Arc<dyn DemandPort<E>>,
    pub(crate) consumer: Arc<dyn EventPort<E>>,
}

// Whoever has ended has said so to the other.
impl<E: Send + 'static> Link for Ports<E> {
    fn ask(&self, id: SubscriptionId, demand: usize, known: bool) {
        let consumer = (!known).then(|| self.consumer.clone());
        let _ = self.producer.send(ToProducer::Ask { id, demand, consumer });
    }

    fn cancel(&self, id: SubscriptionId, reason: ExitReason) {
        let _ = self.producer.send(ToProducer::Cancel { id, reason });
    }

    fn down(&self, id: SubscriptionId, reason: ExitReason) {
        let _ = self.producer.send(ToProducer::Down { id, reason });
    }

    fn pause(&self, id: SubscriptionId, paused: bool) {
        let _ = self.consumer.send(ToConsumer::Pause { from: id, paused });
    }
}
