//! The messages between two stages, and the phases that the pipeline sends to both.

use std::sync::Arc;

use crate::{
    exit::ExitReason,
    stage::DemandMode,
    subscription::{Line, Link, StageId, SubscribeOptions, Subscription, SubscriptionId},
};

/// The phase that the pipeline wants its stages to be in, from the mildest to the harshest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Continue.
    Run,
    /// Continue, and do not wait for sources: all have ended.
    SourcesEnded,
    /// Take nothing new; pass on the accepted events, then end.
    Drain,
    /// End now. Workers are notified and given their time.
    Stop,
    /// End now, including the workers.
    Kill,
}

impl Phase {
    /// The reason to end at once, if there is one.
    pub(crate) fn ends_now(self) -> Option<ExitReason> {
        match self {
            Self::Run | Self::SourcesEnded | Self::Drain => None,
            Self::Stop => Some(ExitReason::Shutdown),
            Self::Kill => Some(ExitReason::Killed),
        }
    }
}

/// A message from a consumer to a producer of events of type `E`.
pub(crate) enum ToProducer<E> {
    Subscribe(Box<Subscribe<E>>),
    Ask {
        id: SubscriptionId,
        demand: usize,
        /// The port to notify if the subscription is unknown. None if it is known.
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
    /// Sets the demand mode.
    Mode(DemandMode),
}

/// A request to subscribe.
pub(crate) struct Subscribe<E> {
    pub(crate) subscription: Subscription,
    /// The subscription that this one replaces.
    pub(crate) replaces: Option<(SubscriptionId, ExitReason)>,
    pub(crate) stage: StageId,
    /// The consumer's name.
    pub(crate) name: Arc<str>,
    pub(crate) options: SubscribeOptions,
    pub(crate) consumer: Arc<dyn EventPort<E>>,
}

/// A message from a producer to a consumer. The end of a subscription comes after its last event.
pub(crate) enum ToConsumer<E> {
    Events {
        from: SubscriptionId,
        events: Vec<E>,
        /// The subscription itself, unless the consumer is known to have it.
        unheard: Option<Subscription>,
    },
    /// The subscription was cancelled by either end.
    Cancel { from: SubscriptionId, reason: ExitReason },
    /// The producer has ended.
    Down { from: SubscriptionId, reason: ExitReason },
    /// Pauses or resumes the handling of events from this subscription.
    Pause { from: SubscriptionId, paused: bool },
}

/// The mailbox of a stage, as its producers see it.
pub(crate) trait EventPort<E>: Send + Sync {
    /// Returns the message if the stage has ended.
    fn send(&self, message: ToConsumer<E>) -> Result<(), ToConsumer<E>>;
}

/// The mailbox of a stage, as its consumers see it.
pub(crate) trait DemandPort<E>: Send + Sync {
    /// Returns the message if the stage has ended.
    fn send(&self, message: ToProducer<E>) -> Result<(), ToProducer<E>>;

    /// Why the stage has ended, if it has.
    fn ended(&self) -> Option<ExitReason>;
}

/// The two mailboxes of a subscription.
pub(crate) struct Ports<E> {
    pub(crate) producer: Arc<dyn DemandPort<E>>,
    pub(crate) consumer: Arc<dyn EventPort<E>>,
    /// None if the consumer makes no subscription again.
    pub(crate) line: Option<Line>,
}

// A stage that has ended has notified the other.
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

    fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }
}
