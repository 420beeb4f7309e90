//! The consumer side of a stage: subscribing, handling events, and reacting to the ends of
//! subscriptions.

use std::{mem, sync::Arc, time::Duration};

use tokio::{task::coop, time::Instant};

use super::{
    super::{
        Emitter,
        behaviour::Behaviour,
        catch_panic,
        demand::{Chunk, Window},
        inlet::{Inlet, Input, Upstream},
        link::{DemandPort, EventPort, Ports, Subscribe, ToConsumer, ToProducer},
        random,
        slot::{
            Occupant, Origin, PlannedSubscription, Subscribing, Subscriptions, Target, next_id,
        },
    },
    Callback, StageTask,
};
use crate::{
    backoff::{Backoff, BackoffState},
    deadline::Deadline,
    exit::ExitReason,
    shown::shown,
    snapshot::StageKind,
    subscription::{
        Cancel, Cancellation, DemandControl, SubscribeError, SubscribeOptions, Subscription,
        SubscriptionId,
    },
};

/// The subscriptions of a stage: those that it has, and those that it is to make again.
pub(super) struct Upstreams<In> {
    pub(super) inlet: Inlet<In, UpstreamState<In>>,
    pub(super) retries: Vec<Retry<In>>,
    /// The subscriptions of the next incarnation.
    planned: Subscriptions<In>,
    /// The id of the stage's pipeline.
    pipeline: u64,
    /// How long producers may take to confirm that they send nothing more.
    confirm_within: Duration,
    /// When the producers have to confirm, once the stage waits for nothing else.
    confirmed_by: Option<Deadline>,
}

/// The stage's data of one of its subscriptions.
pub(super) struct UpstreamState<In> {
    target: Arc<dyn Target<In>>,
    options: SubscribeOptions,
    origin: Origin,
    backoff: Option<BackoffState>,
    /// The stage itself has cancelled it, so its end does not end the stage.
    cancelled: bool,
}

/// A subscription that is to be made again.
pub(super) struct Retry<In> {
    earlier: Earlier,
    at: Deadline,
    target: Arc<dyn Target<In>>,
    options: SubscribeOptions,
    origin: Origin,
    backoff: BackoffState,
    reason: ExitReason,
}

/// The subscription that a retry continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Earlier {
    /// The stage has not made it, because its producer has not been started.
    Unmade(SubscriptionId),
    Ended(SubscriptionId),
}

impl Earlier {
    fn id(self) -> SubscriptionId {
        match self {
            Self::Unmade(id) | Self::Ended(id) => id,
        }
    }
}

impl<In> Retry<In> {
    /// Makes the retry due now, with short delays after that.
    fn retry_now(&mut self) {
        self.at = Deadline::from_now(Duration::ZERO);
        self.backoff = BackoffState::new(linear_backoff());
    }
}

/// The delays at which a stage of a linear pipeline checks whether its producer is back, which it
/// usually is at once.
fn linear_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(1), Duration::from_secs(1))
}

impl<In> Upstreams<In> {
    pub(super) fn new(planned: Subscriptions<In>, pipeline: u64) -> Self {
        Self {
            inlet: Inlet::new(),
            retries: Vec::new(),
            planned,
            pipeline,
            confirm_within: Duration::MAX,
            confirmed_by: None,
        }
    }

    /// Limits the time that producers have to confirm that they send nothing more.
    pub(super) fn confirm_within(&mut self, limit: Duration) {
        self.confirm_within = limit;
    }

    /// Replaces a subscription, also for the next incarnation. If the producer is the same, it
    /// swaps the two, and in a linear pipeline it is waited for as before; another producer has to
    /// be notified. A subscription that is to be made again is not made.
    fn replace(
        &mut self,
        old: SubscriptionId,
        reason: ExitReason,
        target: &Arc<dyn Target<In>>,
        origin: &mut Origin,
    ) -> Option<(SubscriptionId, ExitReason)> {
        let Some(upstream) = self.inlet.get(old) else {
            if let Some(retry) = self.take_retry(|earlier| earlier.id() == old) {
                self.planned.lock().retain(|planned| planned.origin != retry.origin);
                if retry.origin.is_linear() && Arc::ptr_eq(&retry.target, target) {
                    *origin = retry.origin;
                }
            }
            return None;
        };
        upstream.state.cancelled = true;
        let replaced = upstream.state.origin;
        self.planned.lock().retain(|planned| planned.origin != replaced);
        if Arc::ptr_eq(&upstream.state.target, target) {
            if replaced.is_linear() {
                *origin = replaced;
            }
            return Some((old, reason));
        }
        upstream.subscription.cancel(reason);
        None
    }

    /// Cancels subscriptions. Events in transit arrive before their ends.
    fn cancel(&mut self, reason: &ExitReason, which: impl Fn(&UpstreamState<In>) -> bool) {
        for upstream in self.inlet.upstreams_mut() {
            if which(&upstream.state) && !mem::replace(&mut upstream.state.cancelled, true) {
                upstream.subscription.cancel(reason.clone());
                // The time starts now, so that the times of stages that wait for each other do
                // not add up.
                self.confirmed_by = Some(Deadline::from_now(self.confirm_within));
            }
        }
    }

    /// Keeps a subscription that was made at runtime, so that the next incarnation makes it.
    fn remember(&self, target: &Arc<dyn Target<In>>, options: &SubscribeOptions, origin: Origin) {
        let (target, options) = (target.clone(), options.clone());
        self.planned.lock().push(PlannedSubscription { target, options, origin });
    }

    /// Forgets a subscription that was made at runtime, so that the next incarnation does not make
    /// it.
    fn forget(&self, origin: Origin) {
        if let Origin::Handle(_) = origin {
            self.planned.lock().retain(|planned| planned.origin != origin);
        }
    }

    /// Waits for a producer to come back. If there is none to wait for, returns the source and the
    /// end reason of the producer's last incarnation.
    fn schedule_retry(
        &mut self,
        earlier: Earlier,
        source: UpstreamState<In>,
        how: &Cancellation,
        draining: bool,
    ) -> Option<(UpstreamState<In>, ExitReason)> {
        let UpstreamState { target, options, origin, backoff, .. } = source;
        let is_down = matches!(how, Cancellation::Down(_));
        let reason = how.reason().clone();
        let policy = match options.mode() {
            // The time limit of the drain applies.
            Cancel::Reconnect(_) if draining => Some(linear_backoff()),
            Cancel::Reconnect(policy) => Some(policy),
            _ if origin.is_linear() && target.restarts() && is_down && !reason.is_graceful() => {
                Some(linear_backoff())
            }
            _ => None,
        };
        let give_up = |target, backoff, reason| {
            Some((
                UpstreamState {
                    target,
                    options: options.clone(),
                    origin,
                    backoff,
                    cancelled: false,
                },
                reason,
            ))
        };
        let Some(policy) = policy else { return give_up(target, backoff, reason) };
        let last = match target.occupant() {
            // The producer may have ended, and its slot not be vacated yet.
            Occupant::Running(port) => {
                port.ended().filter(|last| last.is_graceful() || !target.restarts())
            }
            // It may still be started.
            Occupant::Vacant | Occupant::Restarting => None,
            Occupant::Abandoned => Some(ExitReason::NotRunning),
            Occupant::Ended(last) => Some(last),
        };
        if let Some(last) = last {
            // A consumer that has cancelled gracefully does not fail for a later failure of the producer.
            let reason = if reason.is_graceful() { reason } else { last };
            return give_up(target, backoff, reason);
        }
        if draining && target.pipeline() != self.pipeline {
            return give_up(target, backoff, reason);
        }
        let mut backoff = backoff.unwrap_or_else(|| BackoffState::new(policy));
        let at = Deadline::from_now(backoff.next_delay(random()));
        self.retries.push(Retry { earlier, at, target, options, origin, backoff, reason });
        None
    }

    /// When the next subscription is to be made again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.iter().filter_map(|retry| retry.at.instant()).min()
    }

    /// Takes a subscription that is to be made again, if it continues one that is looked for.
    fn take_retry(&mut self, continues: impl Fn(Earlier) -> bool) -> Option<Retry<In>> {
        let place = self.retries.iter().position(|retry| continues(retry.earlier))?;
        Some(self.retries.swap_remove(place))
    }

    /// Takes a subscription that is to be made now.
    fn due_retry(&mut self, now: Instant) -> Option<Retry<In>> {
        let place = self.retries.iter().position(|retry| retry.at.has_passed(now))?;
        Some(self.retries.swap_remove(place))
    }

    /// Ends the subscriptions to other pipelines, whose events do not end because this one drains,
    /// and removes the delays of the others.
    pub(super) fn wind_down(&mut self) {
        let pipeline = self.pipeline;
        // The producer of this stage may be restarted by now or soon, to drain its events. The
        // current retry delay has no relation to the time left for the drain.
        self.retries.retain(|retry| retry.target.pipeline() == pipeline);
        self.retries.iter_mut().for_each(Retry::retry_now);
        for upstream in self.inlet.upstreams_mut() {
            upstream.state.backoff = None;
        }
        self.cancel(&ExitReason::Normal, |source| source.target.pipeline() != pipeline);
    }

    /// Ends all subscriptions. Events in transit still arrive.
    pub(super) fn finish(&mut self, reason: &ExitReason) {
        self.inlet.resume();
        self.retries.clear();
        self.cancel(reason, |_| true);
    }

    /// Whether nothing more arrives, and everything that has arrived is handled.
    pub(super) fn are_gone(&self) -> bool {
        self.inlet.is_empty() && self.inlet.upstreams().is_empty() && self.retries.is_empty()
    }

    /// Whether there are subscriptions, and only cancelled ones whose events have been handled so
    /// far.
    pub(super) fn are_cancelled(&self) -> bool {
        let upstreams = self.inlet.upstreams();
        self.inlet.is_empty()
            && !upstreams.is_empty()
            && upstreams.iter().all(|upstream| upstream.state.cancelled)
    }

    /// Gives the producers a deadline to confirm the ends of the cancelled subscriptions, unless
    /// they have one.
    pub(super) fn wait_for_confirmations(&mut self) {
        self.confirmed_by.get_or_insert_with(|| Deadline::from_now(self.confirm_within));
    }

    /// When the producers have to have confirmed.
    pub(super) fn confirmed_by(&self) -> Option<Deadline> {
        self.confirmed_by
    }

    /// Whether the producers have not confirmed in time.
    pub(super) fn are_overdue(&self) -> bool {
        self.confirmed_by.is_some_and(|by| by.has_passed(Instant::now()))
    }

    /// Gives the producers the full time again.
    pub(super) fn confirmed(&mut self) {
        self.confirmed_by = None;
    }

    /// Ends the subscriptions without the producers' confirmations. Returns their number.
    pub(super) fn assume_confirmed(&mut self) -> usize {
        let late: Vec<_> =
            self.inlet.upstreams().iter().map(|upstream| upstream.subscription.id()).collect();
        let count = late.len();
        for from in late {
            let how = Cancellation::Cancel(ExitReason::Normal);
            self.inlet.queue(Input::Ended { from, how });
        }
        count
    }

    /// Notifies the producers of the end of the stage.
    pub(super) fn end(&self, reason: &ExitReason) {
        for upstream in self.inlet.upstreams() {
            upstream.subscription.down(reason.clone());
        }
    }
}

impl<B: Behaviour> StageTask<B> {
    pub(super) async fn subscribe_all(
        &mut self,
        subscriptions: Vec<Subscribing<B::In>>,
    ) -> Result<(), ExitReason> {
        for subscribing in subscriptions {
            // When several stages are restarted, the consumer may be the first to be back.
            subscribing.target.settled().await;
            self.subscribe(subscribing, None).await?;
            if self.lifecycle.finishing.is_some() {
                // It takes nothing more.
                break;
            }
        }
        Ok(())
    }

    /// Queues a message from a producer. Events that nothing precedes are returned instead: they
    /// are next.
    pub(super) fn receive_from_producer(
        &mut self,
        message: ToConsumer<B::In>,
    ) -> Option<(SubscriptionId, Vec<B::In>)> {
        match message {
            ToConsumer::Events { from, events, unheard } => {
                let Some(upstream) = self.upstreams.inlet.get(from) else {
                    self.accounting.count_pending(events.len());
                    if let Some(subscription) = unheard {
                        subscription.cancel(SubscribeError::Unknown.into());
                    }
                    return None;
                };
                let is_paused = upstream.paused || self.lifecycle.paused;
                if upstream.state.cancelled {
                    // The producers have the full time again after this message is handled.
                    self.upstreams.confirmed();
                }
                self.accounting.count_received(events.len());
                if !is_paused && self.upstreams.inlet.is_empty() && self.may_handle_at_once() {
                    return Some((from, events));
                }
                self.upstreams.inlet.queue(Input::Events { from, events });
            }
            ToConsumer::Cancel { from, reason } => {
                self.upstreams
                    .inlet
                    .queue(Input::Ended { from, how: Cancellation::Cancel(reason) });
            }
            ToConsumer::Down { from, reason } => {
                self.upstreams.inlet.queue(Input::Ended { from, how: Cancellation::Down(reason) });
            }
            ToConsumer::Pause { from, paused } => {
                let ending = self.lifecycle.ignores_pauses || self.lifecycle.finishing.is_some();
                if let Some(upstream) = self.upstreams.inlet.get(from) {
                    upstream.paused = paused && !ending;
                }
            }
        }
        None
    }

    /// Whether nothing has to be delivered before events are handled. Events that a rate limit
    /// allows by now are delivered first.
    fn may_handle_at_once(&self) -> bool {
        B::KIND != StageKind::ProducerConsumer
            || (!self.downstreams.is_limited() && self.downstreams.outlet.unmet() > 0)
    }

    /// Subscribes this stage to another. A subscription that is made again continues an earlier one,
    /// with its back-off and the reason for which it ended.
    pub(super) async fn subscribe(
        &mut self,
        subscribing: Subscribing<B::In>,
        again: Option<(Earlier, BackoffState, ExitReason)>,
    ) -> Result<(), ExitReason> {
        let Subscribing { target, mut options, mut origin, replaces, answer } = subscribing;
        if B::KIND == StageKind::ConsumerSupervisor {
            options = options.for_slots();
        }
        // A planned subscription may find that its producer has already ended.
        let planned = answer.is_none() && again.is_none();
        let mut gone = None;
        let port = match target.occupant() {
            Occupant::Running(port) => Some(port),
            Occupant::Vacant | Occupant::Abandoned => {
                if let Some((old, reason)) = replaces {
                    // It has another producer, which is notified.
                    self.upstreams.replace(old, reason, &target, &mut origin);
                }
                let subscription = self.subscription(&options, self.no_producer());
                let earlier = Earlier::Unmade(subscription.id());
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(subscription));
                    if let Cancel::Reconnect(_) = options.mode() {
                        self.upstreams.remember(&target, &options, origin);
                    }
                }
                if options.mode() == Cancel::Temporary {
                    return Ok(());
                }
                let source =
                    UpstreamState { target, options, origin, backoff: None, cancelled: false };
                let how = Cancellation::Down(ExitReason::NotRunning);
                return self.resubscribe_or_end(earlier, source, &how);
            }
            Occupant::Restarting => None,
            Occupant::Ended(reason)
                if planned && matches!(origin, Origin::Handle(_)) && !reason.is_graceful() =>
            {
                // The failure concerned the earlier incarnation. This one does not make the
                // subscription.
                self.upstreams.forget(origin);
                tracing::warn!(stage = %self.accounting.stage(), producer = shown(target.name()), "a producer has failed for good, not subscribing to it again");
                return Ok(());
            }
            Occupant::Ended(reason) => {
                self.upstreams.forget(origin);
                gone = Some(reason);
                None
            }
        };
        let producer = port.clone().unwrap_or_else(|| self.no_producer());
        let subscription = self.subscription(&options, producer);
        let id = subscription.id();
        let replaces = replaces
            .and_then(|(old, reason)| self.upstreams.replace(old, reason, &target, &mut origin));
        let subscribe = Subscribe {
            subscription: subscription.clone(),
            replaces,
            stage: self.address.id,
            name: self.accounting.stage().clone(),
            options: options.clone(),
            consumer: Arc::new(self.address.clone()),
        };
        let running = port.is_some_and(|port| {
            let sent = port.send(ToProducer::Subscribe(Box::new(subscribe))).is_ok();
            if !sent {
                gone = port.ended();
            }
            sent
        });
        let backoff = match again {
            // The producer has just ended, so the subscription still ends for its earlier reason.
            Some((earlier, backoff, reason)) if !running => {
                let backoff = Some(backoff);
                let source = UpstreamState { target, options, origin, backoff, cancelled: false };
                return self.resubscribe_or_end(earlier, source, &Cancellation::Down(reason));
            }
            again => again.map(|(_, backoff, _)| backoff),
        };
        if answer.is_some() {
            self.upstreams.remember(&target, &options, origin);
        }
        let source =
            UpstreamState { target, options: options.clone(), origin, backoff, cancelled: false };
        self.upstreams.inlet.add(Upstream {
            subscription: subscription.clone(),
            window: None,
            paused: false,
            state: source,
        });
        let mut demand_control = DemandControl::Automatic;
        self.call(Callback::Subscribed(&options, &subscription, &mut demand_control)).await?;
        if demand_control == DemandControl::Automatic
            && let Some(upstream) = self.upstreams.inlet.get(id)
        {
            upstream.window = Some(Window::new(&options));
            subscription.ask(options.max());
        }
        if let Some(answer) = answer {
            let _ = answer.send(Ok(subscription));
        }
        if !running {
            let reason = gone.filter(|_| planned).unwrap_or(ExitReason::NotRunning);
            let how = Cancellation::Down(reason);
            self.upstreams.inlet.queue(Input::Ended { from: id, how });
        }
        Ok(())
    }

    /// The producer of a subscription that is not made.
    fn no_producer(&self) -> Arc<dyn DemandPort<B::In>> {
        Arc::new(NoProducer { consumer: Arc::new(self.address.clone()) })
    }

    fn subscription(
        &self,
        options: &SubscribeOptions,
        producer: Arc<dyn DemandPort<B::In>>,
    ) -> Subscription {
        let ports = Ports { producer, consumer: Arc::new(self.address.clone()) };
        Subscription::new(SubscriptionId::new(next_id()), options, ports)
    }

    /// Continues or ends after a subscription has ended, as its mode says.
    fn resubscribe_or_end(
        &mut self,
        earlier: Earlier,
        source: UpstreamState<B::In>,
        how: &Cancellation,
    ) -> Result<(), ExitReason> {
        let mode = source.options.mode();
        let is_cancelled = matches!(how, Cancellation::Cancel(_));
        let draining = self.lifecycle.draining;
        let over = self.upstreams.schedule_retry(earlier, source, how, draining);
        let Some((source, reason)) = over else { return Ok(()) };
        // A drain does not fail a consumer that would otherwise still wait for its producer.
        let waited = draining && matches!(mode, Cancel::Reconnect(_));
        let survives = waited || mode.survives(&reason);
        if survives || is_cancelled || reason.is_graceful() || !source.target.restarts() {
            self.upstreams.forget(source.origin);
        }
        if survives {
            return Ok(());
        }
        let gently = match B::KIND {
            StageKind::ProducerConsumer => reason.is_graceful(),
            StageKind::Consumer | StageKind::ConsumerSupervisor => {
                matches!(reason, ExitReason::Normal)
            }
            StageKind::Producer => false,
        };
        if gently {
            self.finish(reason);
            return Ok(());
        }
        Err(reason)
    }

    /// Makes the subscriptions whose delay has passed.
    pub(super) async fn retry(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        while let Some(retry) = self.upstreams.due_retry(now) {
            let Retry { earlier, target, options, origin, backoff, reason, .. } = retry;
            if let Occupant::Running(port) = target.occupant()
                && port.ended().is_none()
            {
                let subscribing =
                    Subscribing { target, options, origin, replaces: None, answer: None };
                self.subscribe(subscribing, Some((earlier, backoff, reason))).await?;
                continue;
            }
            let source =
                UpstreamState { target, options, origin, backoff: Some(backoff), cancelled: false };
            self.resubscribe_or_end(earlier, source, &Cancellation::Down(reason))?;
        }
        Ok(())
    }

    /// Handles the end of a subscription, after its last event has been handled.
    pub(super) async fn subscription_ended(
        &mut self,
        from: SubscriptionId,
        how: Cancellation,
    ) -> Result<(), ExitReason> {
        let Some(upstream) = self.upstreams.inlet.remove(from) else {
            return self.unmade_subscription_cancelled(from, &how);
        };
        let Upstream { subscription, state, .. } = upstream;
        if state.cancelled {
            self.upstreams.forget(state.origin);
        }
        if !self.upstreams.inlet.upstreams().iter().any(|upstream| upstream.state.cancelled) {
            self.upstreams.confirmed();
        }
        self.call(Callback::Cancelled(&how, &subscription)).await?;
        if state.cancelled || self.lifecycle.finishing.is_some() {
            return Ok(());
        }
        self.resubscribe_or_end(Earlier::Ended(from), state, &how)
    }

    /// Withdraws a subscription that waits for a producer that has not been started. The stage
    /// continues or ends as the mode says.
    fn unmade_subscription_cancelled(
        &mut self,
        id: SubscriptionId,
        how: &Cancellation,
    ) -> Result<(), ExitReason> {
        let waits = |earlier| earlier == Earlier::Unmade(id);
        let Some(Retry { options, origin, .. }) = self.upstreams.take_retry(waits) else {
            return Ok(());
        };
        self.upstreams.forget(origin);
        let reason = how.reason();
        if options.mode().survives(reason) { Ok(()) } else { Err(reason.clone()) }
    }

    /// Handles a message of events chunk by chunk, and sends demand between the chunks.
    pub(super) async fn handle_events(
        &mut self,
        from: SubscriptionId,
        events: Vec<B::In>,
    ) -> Result<(), ExitReason> {
        let Some(upstream) = self.upstreams.inlet.get(from) else {
            // Cannot happen, because a subscription's end comes last: the subscription is unknown.
            self.accounting.count_pending(events.len());
            return Ok(());
        };
        if let Some(backoff) = &mut upstream.state.backoff {
            backoff.reset();
        }
        let mut batch = upstream.window.as_ref().map(|window| window.receive(events.len()));
        let mut left = events.len();
        // A message of a single chunk is passed on unchanged.
        let (mut whole, mut rest) = (Some(events), Vec::new().into_iter());
        loop {
            let owed = if B::KIND.emits() { self.owed() } else { 0 };
            let queued = self.upstreams.inlet.event_count();
            let upstream =
                self.upstreams.inlet.get(from).expect("a subscription is removed only by its end");
            let chunk = match (&mut upstream.window, &mut batch) {
                (Some(window), Some(batch)) => window.next_chunk(batch),
                // A manual subscription gets the whole message.
                _ => Some(Chunk { size: left, excess: 0, ask: 0 }),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            if chunk.excess > 0 {
                let excess = chunk.excess;
                tracing::error!(stage = %self.accounting.stage(), excess, "received more events than requested");
            }
            let is_last = chunk.size == left;
            left -= chunk.size;
            let events = match whole.take() {
                Some(events) if is_last => events,
                events => {
                    // Each event is moved once, however small the chunks are.
                    rest = events.map_or(rest, Vec::into_iter);
                    rest.by_ref().take(chunk.size).collect()
                }
            };
            self.accounting.chunk_begins(B::KIND, chunk.size, left, queued);
            let mut out = Emitter::new(&mut self.downstreams.staged, owed);
            let (behaviour, from_whom) = (&mut self.behaviour, &upstream.subscription);
            let begun = self.accounting.timer.begin();
            let outcome =
                catch_panic(async { behaviour.handle_events(events, from_whom, &mut out).await })
                    .await;
            self.accounting.timer.end(begun);
            let finishes = out.finishes();
            self.after_callback(finishes && outcome.is_ok());
            // After a graceful end, the callback has finished its events.
            let handled = outcome.as_ref().err().is_none_or(ExitReason::is_graceful);
            self.accounting.chunk_ended(B::KIND, handled, self.upstreams.inlet.event_count());
            outcome?;
            if chunk.ask > 0
                && self.lifecycle.finishing.is_none()
                && let Some(upstream) = self.upstreams.inlet.get(from)
            {
                upstream.subscription.ask(chunk.ask);
            }
            if is_last {
                return Ok(());
            }
            // A message may take long, and a stopping pipeline does not wait for all of it.
            if let Some(reason) = self.phase.ends_now() {
                return Err(reason);
            }
            coop::consume_budget().await;
        }
    }
}

/// The missing producer of a subscription that is not made. The consumer itself receives its
/// cancellation.
struct NoProducer<E> {
    consumer: Arc<dyn EventPort<E>>,
}

impl<E> DemandPort<E> for NoProducer<E> {
    fn send(&self, message: ToProducer<E>) -> Result<(), ToProducer<E>> {
        let ToProducer::Cancel { id: from, reason } = message else { return Err(message) };
        // A consumer that has ended makes no subscription.
        let _ = self.consumer.send(ToConsumer::Cancel { from, reason });
        Ok(())
    }

    fn ended(&self) -> Option<ExitReason> {
        None
    }
}
