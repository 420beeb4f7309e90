//! What two stages say to each other, and what the pipeline says to both.
//!
//! The channels are unbounded, because demand bounds them: no more events are on their way than
//! were asked for, and no more asks than events were handled.

use tokio::sync::mpsc;

use crate::{
    exit::ExitReason,
    subscription::{SubscribeOptions, SubscriptionId},
};

/// What the pipeline wants of its stages, from the mildest to the harshest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Go on.
    Run,
    /// Take nothing new; pass on what was accepted, then end.
    Drain,
    /// End now. Workers are told, and given their time.
    Stop,
    /// End now, workers and all.
    Kill,
}

/// From a consumer to a producer.
#[derive(Debug)]
pub(crate) enum ToProducer<E> {
    Subscribe { id: SubscriptionId, consumer: mpsc::UnboundedSender<ToConsumer<E>> },
    Ask { id: SubscriptionId, demand: usize },
    Down { id: SubscriptionId },
}

/// From a producer to a consumer. The end of a subscription comes after its last event.
#[derive(Debug)]
pub(crate) enum ToConsumer<E> {
    Events { from: SubscriptionId, events: Vec<E> },
    Down { reason: ExitReason },
}

/// A consumer's end of a subscription. Dropping it tells the producer that the consumer is gone,
/// however the consumer ended.
#[derive(Debug)]
pub(crate) struct Link<E> {
    pub(crate) id: SubscriptionId,
    pub(crate) options: SubscribeOptions,
    producer: mpsc::UnboundedSender<ToProducer<E>>,
}

impl<E> Link<E> {
    /// Subscribes, and asks for the first `max_demand` events.
    pub(crate) fn subscribe(
        id: SubscriptionId,
        options: SubscribeOptions,
        producer: mpsc::UnboundedSender<ToProducer<E>>,
        consumer: mpsc::UnboundedSender<ToConsumer<E>>,
    ) -> Self {
        let link = Self { id, options, producer };
        link.tell(ToProducer::Subscribe { id, consumer });
        link.ask(link.options.max());
        link
    }

    /// Asks for more; asking for 0 says nothing.
    pub(crate) fn ask(&self, demand: usize) {
        if demand > 0 {
            self.tell(ToProducer::Ask { id: self.id, demand });
        }
    }

    fn tell(&self, message: ToProducer<E>) {
        // A producer that is gone has said so, or is about to: its `Down` is in our mailbox.
        let _ = self.producer.send(message);
    }
}

impl<E> Drop for Link<E> {
    fn drop(&mut self) {
        self.tell(ToProducer::Down { id: self.id });
    }
}
