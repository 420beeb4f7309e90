//! The producer side of a stage: accepting consumers and sending them events.

use std::sync::Arc;

use super::{
    super::{
        behaviour::Behaviour,
        link::{EventPort, Subscribe, ToConsumer, ToProducer},
    },
    Callback, StageTask,
};
use crate::{
    dispatcher::{Delivery, Subscriber},
    exit::ExitReason,
    shown::shown,
    stage::outlet::Emitted,
    subscription::{Cancellation, SubscribeError, Subscription, SubscriptionId},
    telemetry::Discard,
};

/// A subscription at its producer's end.
pub(super) struct Downstream<Out> {
    pub(super) subscription: Subscription,
    pub(super) consumer: Arc<dyn EventPort<Out>>,
}

impl<B: Behaviour> StageTask<B> {
    pub(super) async fn receive_from_consumer(
        &mut self,
        message: ToProducer<B::Out>,
    ) -> Result<(), ExitReason> {
        match message {
            ToProducer::Ask { id, demand, consumer } => {
                self.receive_ask(id, demand, consumer);
                Ok(())
            }
            ToProducer::Mode(mode) => self.set_mode(mode).await,
            ToProducer::Subscribe(subscribe) => self.accept_consumer(*subscribe).await,
            ToProducer::Cancel { id, reason } => {
                self.remove_consumer(id, Cancellation::Cancel(reason)).await
            }
            ToProducer::Down { id, reason } => {
                self.remove_consumer(id, Cancellation::Down(reason)).await
            }
        }
    }

    pub(super) fn receive_ask(
        &mut self,
        id: SubscriptionId,
        demand: usize,
        consumer: Option<Arc<dyn EventPort<B::Out>>>,
    ) {
        if let Some(downstream) = self.consumers.get(&id) {
            downstream.subscription.asked(demand);
            self.outlet.ask(id, demand, &mut self.deliveries);
        } else if let Some(consumer) = consumer {
            let reason = SubscribeError::Unknown.into();
            let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
        }
    }

    /// Accepts a consumer, unless the dispatcher refuses it.
    pub(super) async fn accept_consumer(
        &mut self,
        subscribe: Subscribe<B::Out>,
    ) -> Result<(), ExitReason> {
        let Subscribe { subscription, replaces, stage, name, options, consumer } = subscribe;
        if let Some((old, reason)) = replaces {
            self.remove_consumer(old, Cancellation::Cancel(reason)).await?;
        }
        let id = subscription.id();
        let accepted = if self.consumers.contains_key(&id) {
            Err(SubscribeError::Duplicated.into())
        } else {
            self.outlet.subscribe(Subscriber::new(id, stage, &options))
        };
        if let Err(reason) = accepted {
            tracing::error!(stage = %self.report.stage, reason = shown(&reason), "subscription refused");
            let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
            return Ok(());
        }
        let downstream = Downstream { subscription: subscription.clone(), consumer };
        self.consumers.insert(id, downstream);
        subscription.set_at_producer(true);
        self.gauges.subscribed(subscription.clone(), name);
        self.call(Callback::Consumer(&options, &subscription)).await
    }

    /// Removes a consumer. If it is still running, it is notified.
    pub(super) async fn remove_consumer(
        &mut self,
        id: SubscriptionId,
        ended: Cancellation,
    ) -> Result<(), ExitReason> {
        let Some(downstream) = self.consumers.remove(&id) else { return Ok(()) };
        downstream.subscription.set_at_producer(false);
        self.gauges.unsubscribed(id);
        self.outlet.cancel(id, &mut self.deliveries);
        if let Cancellation::Cancel(reason) = &ended {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Cancel { from: id, reason });
        }
        self.call(Callback::ConsumerGone(&ended, &downstream.subscription)).await
    }

    /// Sends the events that a callback emitted.
    pub(super) fn emit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        self.allow();
        let Emitted { dispatched, overflow, unsubscribed } =
            self.outlet.emit(&mut self.staged, &mut self.deliveries);
        self.spend(dispatched);
        if unsubscribed > 0 {
            self.report.discarded += unsubscribed;
            self.gauges.discarded(Discard::Unsubscribed, unsubscribed);
            self.metrics.discarded(Discard::Unsubscribed, unsubscribed as u64);
        }
        if overflow > 0 {
            if self.discard(Discard::BufferFull, overflow) && self.overflowing.add(overflow) {
                tracing::warn!(stage = %self.report.stage, discarded = overflow, "the buffer is full, discarding");
            }
        } else {
            let discarded = self.overflowing.over(self.outlet.has_room());
            if discarded > 0 {
                tracing::warn!(stage = %self.report.stage, discarded, "the buffer has room again");
            }
        }
        self.send();
    }

    /// Counts discarded events. Returns whether to log them.
    fn discard(&mut self, why: Discard, count: usize) -> bool {
        self.report.discarded += count;
        self.gauges.discarded(why, count);
        self.metrics.discarded(why, count as u64);
        self.behaviour.format_discarded(count)
    }

    /// Sends the messages that the dispatcher has decided to send.
    pub(super) fn send(&mut self) {
        if !self.deliveries.is_untouched() {
            self.send_all();
        }
    }

    fn send_all(&mut self) {
        while let Some(delivery) = self.deliveries.pop() {
            let (to, events) = match delivery {
                Delivery::Info(marker) => {
                    self.due.push_back(marker);
                    continue;
                }
                Delivery::Events { to, events } => (to, events),
            };
            self.metrics.events_out.increment(events.len() as u64);
            self.gauges.events_out.add(events.len());
            let Some(Downstream { subscription, consumer }) = self.consumers.get(&to) else {
                self.report.pending += events.len();
                continue;
            };
            subscription.sent(events.len());
            let unheard = (!subscription.is_at_consumer()).then(|| subscription.clone());
            let message = ToConsumer::Events { from: to, events, unheard };
            // Its consumer has just ended; the end is in the mailbox.
            if let Err(ToConsumer::Events { events, .. }) = consumer.send(message) {
                self.report.pending += events.len();
            }
        }
        if !self.deliveries.is_untouched() {
            self.report_discards();
        }
    }

    /// Counts and logs the dispatcher's discards and warnings.
    #[cold]
    fn report_discards(&mut self) {
        let (filtered, unroutable) = self.deliveries.take_discarded();
        if filtered > 0 {
            self.gauges.discarded(Discard::Filtered, filtered);
            self.metrics.discarded(Discard::Filtered, filtered as u64);
        }
        if unroutable > 0
            && self.discard(Discard::Unroutable, unroutable)
            && let Some(discarded) = self.unroutable.log(unroutable)
        {
            let stage = &self.report.stage;
            tracing::warn!(%stage, discarded, "discarded events for an unknown partition");
        }
        for warning in self.deliveries.take_warnings() {
            if let Some(times) = self.warnings.log(1) {
                tracing::warn!(stage = %self.report.stage, warning = shown(&warning), times, "dispatcher warning");
            }
        }
    }
}
