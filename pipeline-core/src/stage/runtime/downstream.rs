//! The producer side of a stage: accepting consumers and sending them events.

use std::{collections::VecDeque, sync::Arc};

use tokio::time::Instant;

use super::{
    super::{
        behaviour::Behaviour,
        catch_panic_now,
        limiting::{Limiting, SharedLimiter},
        link::{EventPort, Subscribe, ToConsumer, ToProducer},
        outlet::{Emitted, Outlet},
        rate_limit::{RateLimit, Taken},
    },
    Callback, StageTask,
    accounting::Accounting,
};
use crate::{
    dispatcher::{Deliveries, Delivery, Marker, Subscriber},
    exit::ExitReason,
    shown::shown,
    subscription::{Cancellation, SubscribeError, Subscription, SubscriptionId},
    telemetry::Discard,
};

/// The consumers of a stage, and the events on their way to them.
pub(in crate::stage) struct Downstreams<Out> {
    pub(super) outlet: Outlet<Out>,
    consumers: foldhash::HashMap<SubscriptionId, Downstream<Out>>,
    /// The events that the current callback emits.
    pub(super) staged: VecDeque<Out>,
    /// The decisions of the dispatcher that are to be carried out.
    deliveries: Deliveries<Out>,
    /// Markers that are no longer preceded by events.
    due: VecDeque<Marker>,
    limit: Option<Limit>,
}

/// The rate limit of a stage.
struct Limit {
    limiter: SharedLimiter,
    is_shared: bool,
    /// When more events may pass than at the last look.
    refill: Option<Instant>,
}

impl Limit {
    fn start(limit: &Limiting, now: Instant) -> Self {
        let is_shared = matches!(limit, Limiting::Shared(_));
        Self { limiter: limit.start(now), is_shared, refill: None }
    }

    /// How many events may pass now.
    fn look(&mut self, now: Instant) -> usize {
        let mut limiter = self.limiter.lock();
        let left = limiter.left(now);
        self.refill = limiter.refill();
        left
    }
}

/// A subscription at its producer's end.
pub(super) struct Downstream<Out> {
    pub(super) subscription: Subscription,
    pub(super) consumer: Arc<dyn EventPort<Out>>,
}

impl<Out: 'static> Downstreams<Out> {
    pub(in crate::stage) fn new(outlet: Outlet<Out>, limit: Option<&Limiting>) -> Self {
        Self {
            outlet,
            consumers: foldhash::HashMap::default(),
            staged: VecDeque::new(),
            deliveries: Deliveries::new(),
            due: VecDeque::new(),
            limit: limit.map(|limit| Limit::start(limit, Instant::now())),
        }
    }

    /// Takes a marker that is no longer preceded by events.
    #[inline]
    pub(super) fn next_marker(&mut self) -> Option<Marker> {
        self.due.pop_front()
    }

    /// Changes, adds or removes the stage's own rate limit. Returns `false` if it has none of its own,
    /// because it shares that of others.
    pub(super) fn change_limit(&mut self, limit: Option<RateLimit>) -> bool {
        let now = Instant::now();
        match (&mut self.limit, limit) {
            (Some(Limit { is_shared: true, .. }), _) => return false,
            (Some(own), Some(limit)) => own.limiter.lock().update(limit, now),
            (own, limit) => *own = limit.map(|limit| Limit::start(&Limiting::Own(limit), now)),
        }
        true
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// When the rate limit allows more events, if consumers wait for that.
    pub(super) fn next_refill(&self) -> Option<Instant> {
        self.limit.as_ref()?.refill.filter(|_| self.outlet.is_short())
    }

    /// Updates how many events may be delivered now, and when there may be more. Both come from one look
    /// at the limiter: between two looks, the interval may end, or another stage may use it.
    pub(super) fn allow(&mut self, paused: bool) {
        let allowance = match &mut self.limit {
            Some(limit) => limit.look(Instant::now()),
            None => usize::MAX,
        };
        self.outlet.allow(if paused { 0 } else { allowance });
    }

    /// Takes what up to this many events need of the limit, as far as there is demand for them. Other
    /// stages may share it.
    fn take(&mut self, events: usize, paused: bool) -> Taken {
        let wanted = events.min(self.outlet.demand());
        let taken = match &mut self.limit {
            _ if paused => Taken { events: 0, interval: 0 },
            Some(limit) => limit.limiter.lock().take(wanted, Instant::now()),
            None => Taken { events: usize::MAX, interval: 0 },
        };
        self.outlet.allow(taken.events);
        taken
    }

    /// Gives back what was taken from the limit for events that the dispatcher did not take.
    fn give_back(&mut self, taken: Taken, delivered: usize, paused: bool) {
        if let Some(limit) = &mut self.limit {
            let events = taken.events.saturating_sub(delivered);
            limit.limiter.lock().give_back(Taken { events, ..taken });
            self.allow(paused);
        }
    }

    /// Decides about the buffered events, as far as there is demand.
    fn deliver(&mut self, paused: bool) {
        if self.outlet.is_empty() {
            return self.allow(paused);
        }
        let taken = self.take(self.outlet.buffered(), paused);
        let delivered = self.outlet.deliver(&mut self.deliveries);
        self.give_back(taken, delivered, paused);
    }

    /// Decides about the events that a callback has emitted.
    fn emit(&mut self, paused: bool) -> Emitted {
        let taken = self.take(self.staged.len(), paused);
        let emitted = self.outlet.emit(&mut self.staged, &mut self.deliveries);
        self.give_back(taken, emitted.dispatched, paused);
        emitted
    }

    pub(super) fn ask(
        &mut self,
        id: SubscriptionId,
        demand: usize,
        consumer: Option<Arc<dyn EventPort<Out>>>,
    ) {
        if let Some(downstream) = self.consumers.get(&id) {
            downstream.subscription.asked(demand);
            self.outlet.ask(id, demand, &mut self.deliveries);
        } else if let Some(consumer) = consumer {
            let reason = SubscribeError::Unknown.into();
            let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
        }
    }

    /// Sends the messages that the dispatcher has decided to send. The events that it has
    /// discarded, and its warnings, stay in the deliveries.
    fn send(&mut self, accounting: &mut Accounting) {
        while let Some(delivery) = self.deliveries.pop() {
            let (to, events) = match delivery {
                Delivery::Info(marker) => {
                    self.due.push_back(marker);
                    continue;
                }
                Delivery::Events { to, events } => (to, events),
            };
            accounting.count_sent(events.len());
            let Some(Downstream { subscription, consumer }) = self.consumers.get(&to) else {
                accounting.count_pending(events.len());
                continue;
            };
            subscription.sent(events.len());
            let unheard = (!subscription.is_at_consumer()).then(|| subscription.clone());
            let message = ToConsumer::Events { from: to, events, unheard };
            // Its consumer has just ended; the end is in the mailbox.
            if let Err(ToConsumer::Events { events, .. }) = consumer.send(message) {
                accounting.count_pending(events.len());
            }
        }
    }

    /// The events that will not be delivered if the stage ends now.
    pub(super) fn undelivered(&self) -> usize {
        // The dispatcher may be the reason for the end, and panic again.
        let all = catch_panic_now(|| Ok(self.outlet.undelivered()));
        self.staged.len() + all.unwrap_or_else(|_| self.outlet.retained())
    }

    pub(super) fn add(&mut self, subscription: Subscription, consumer: Arc<dyn EventPort<Out>>) {
        self.consumers.insert(subscription.id(), Downstream { subscription, consumer });
    }

    /// Removes a consumer that has cancelled its subscription, and confirms that.
    pub(super) fn confirm_cancel(&mut self, id: SubscriptionId, reason: ExitReason) {
        if let Some(downstream) = self.consumers.remove(&id) {
            let _ = downstream.consumer.send(ToConsumer::Cancel { from: id, reason });
        }
    }

    /// Notifies the consumers of the end of the stage.
    pub(super) fn end(&self, reason: &ExitReason) {
        for (&from, downstream) in &self.consumers {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Down { from, reason });
        }
    }
}

impl<B: Behaviour> StageTask<B> {
    pub(super) async fn receive_from_consumer(
        &mut self,
        message: ToProducer<B::Out>,
    ) -> Result<(), ExitReason> {
        match message {
            ToProducer::Ask { id, demand, consumer } => {
                self.downstreams.ask(id, demand, consumer);
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
        let accepted = if self.downstreams.consumers.contains_key(&id) {
            Err(SubscribeError::Duplicated.into())
        } else {
            // Before the dispatcher is called: if it panics, the consumer is notified of the end.
            self.downstreams.add(subscription.clone(), consumer.clone());
            let accepted = self.downstreams.outlet.subscribe(Subscriber::new(id, stage, &options));
            if accepted.is_err() {
                self.downstreams.consumers.remove(&id);
            }
            accepted
        };
        if let Err(reason) = accepted {
            tracing::error!(stage = %self.accounting.report.stage, reason = shown(&reason), "subscription refused");
            let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
            return Ok(());
        }
        subscription.set_at_producer(true);
        self.accounting.gauges.subscribed(subscription.clone(), name);
        self.call(Callback::Consumer(&options, &subscription)).await
    }

    /// Removes a consumer. If it is still running, it is notified.
    pub(super) async fn remove_consumer(
        &mut self,
        id: SubscriptionId,
        ended: Cancellation,
    ) -> Result<(), ExitReason> {
        if !self.downstreams.consumers.contains_key(&id) {
            return Ok(());
        }
        self.downstreams.outlet.cancel(id, &mut self.downstreams.deliveries);
        // Only now: if the dispatcher panics, the consumer is notified of the end.
        let Some(downstream) = self.downstreams.consumers.remove(&id) else { return Ok(()) };
        downstream.subscription.set_at_producer(false);
        self.accounting.gauges.unsubscribed(id);
        if let Cancellation::Cancel(reason) = &ended {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Cancel { from: id, reason });
        }
        self.call(Callback::ConsumerGone(&ended, &downstream.subscription)).await
    }

    /// Delivers buffered events, as far as there is demand.
    #[inline]
    pub(super) fn deliver(&mut self) {
        self.downstreams.deliver(self.lifecycle.paused);
        self.send();
    }

    /// Sends the events that a callback emitted.
    pub(super) fn emit(&mut self) {
        if self.downstreams.staged.is_empty() {
            return;
        }
        let Emitted { overflow, unsubscribed, .. } = self.downstreams.emit(self.lifecycle.paused);
        if unsubscribed > 0 {
            self.accounting.count_discarded(Discard::Unsubscribed, unsubscribed);
        }
        if overflow > 0 {
            self.accounting.count_discarded(Discard::BufferFull, overflow);
            if self.behaviour.format_discarded(overflow) {
                self.accounting.log_overflow(overflow);
            }
        } else {
            self.accounting.log_room(self.downstreams.outlet.has_room());
        }
        self.send();
    }

    /// Sends the messages that the dispatcher has decided to send.
    #[inline]
    pub(super) fn send(&mut self) {
        if !self.downstreams.deliveries.is_untouched() {
            self.downstreams.send(&mut self.accounting);
            if !self.downstreams.deliveries.is_untouched() {
                self.report_discards();
            }
        }
    }

    /// Counts and logs the dispatcher's discards and warnings.
    #[cold]
    fn report_discards(&mut self) {
        let (filtered, unroutable) = self.downstreams.deliveries.take_discarded();
        if filtered > 0 {
            self.accounting.count_filtered(filtered);
        }
        if unroutable > 0 {
            self.accounting.count_discarded(Discard::Unroutable, unroutable);
            if self.behaviour.format_discarded(unroutable) {
                self.accounting.log_unroutable(unroutable);
            }
        }
        self.accounting.log_warnings(self.downstreams.deliveries.take_warnings());
    }
}
