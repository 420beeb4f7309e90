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
        link::{DemandPort, Ports, Subscribe, ToConsumer, ToProducer},
        random,
        slot::{
            Control, Message, Occupant, Origin, PlannedSubscription, Subscribing, Subscriptions,
            Target, next_id, withdraw,
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
        Cancel, Cancellation, DemandControl, Line, LineId, SubscribeError, SubscribeOptions,
        Subscription, SubscriptionId,
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
    /// Why a handle has cancelled it while no producer had it. It is not made again.
    withdrawn: Option<ExitReason>,
    /// Whether a handle has paused it while it waited to be made again.
    paused: bool,
}

impl<In> UpstreamState<In> {
    fn new(target: Arc<dyn Target<In>>, options: SubscribeOptions, origin: Origin) -> Self {
        let (backoff, cancelled, withdrawn, paused) = (None, false, None, false);
        Self { target, options, origin, backoff, cancelled, withdrawn, paused }
    }
}

/// A subscription that is to be made, and how it has ended before.
pub(super) struct Retry<In> {
    at: Deadline,
    state: UpstreamState<In>,
    how: Cancellation,
}

/// What a subscription that is made again has from its earlier end.
pub(super) struct Again {
    backoff: Option<BackoffState>,
    how: Cancellation,
    paused: bool,
}

impl<In> Retry<In> {
    /// Makes the retry due now, with short delays after that.
    fn retry_now(&mut self) {
        self.at = Deadline::from_now(Duration::ZERO);
        self.state.backoff = Some(BackoffState::new(linear_backoff()));
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
        old: LineId,
        reason: ExitReason,
        target: &Arc<dyn Target<In>>,
        origin: &mut Origin,
    ) -> Option<(SubscriptionId, ExitReason)> {
        self.planned.lock().retain(|planned| planned.origin.line() != old);
        let retry = self.take_retry(old);
        let upstream = made(&mut self.inlet, old);
        let state = retry.as_ref().map(|retry| &retry.state);
        let state = state.or(upstream.as_ref().map(|upstream| &upstream.state))?;
        let same = Arc::ptr_eq(&state.target, target);
        if same && state.origin.is_linear() {
            *origin = Origin::linear();
        }
        let upstream = upstream?;
        upstream.state.cancelled = true;
        if same {
            return Some((upstream.subscription.id(), reason));
        }
        upstream.subscription.cancel_made(reason);
        None
    }

    /// Cancels subscriptions. Events in transit arrive before their ends.
    fn cancel(&mut self, reason: &ExitReason, which: impl Fn(&UpstreamState<In>) -> bool) {
        for upstream in self.inlet.upstreams_mut() {
            if which(&upstream.state) && !mem::replace(&mut upstream.state.cancelled, true) {
                upstream.subscription.cancel_made(reason.clone());
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

    /// Waits for a producer to come back. If there is none to wait for, returns the subscription and
    /// how it ends: as before, or with the end of the producer's last incarnation.
    fn schedule_retry(
        &mut self,
        mut state: UpstreamState<In>,
        how: Cancellation,
        draining: bool,
    ) -> Option<(UpstreamState<In>, Cancellation)> {
        let target = &state.target;
        let has_failed = matches!(&how, Cancellation::Down(reason) if !reason.is_graceful());
        let policy = match state.options.mode() {
            // The time limit of the drain applies.
            Cancel::Reconnect(_) if draining => linear_backoff(),
            Cancel::Reconnect(policy) => policy,
            _ if state.origin.is_linear() && target.restarts() && has_failed => linear_backoff(),
            _ => return Some((state, how)),
        };
        let last = match target.occupant() {
            // The producer may have ended, and its slot not be vacated yet.
            Occupant::Running(port) => {
                port.ended().filter(|last| last.is_graceful() || !target.restarts())
            }
            // It may still be started.
            Occupant::Vacant | Occupant::Restarting => None,
            Occupant::Ended(last) => Some(last),
        };
        if let Some(last) = last {
            // The reason of a cancel counts, however the producer ends after it.
            return Some((state, if has_failed { Cancellation::Down(last) } else { how }));
        }
        if draining && target.pipeline() != self.pipeline {
            return Some((state, how));
        }
        let backoff = state.backoff.get_or_insert_with(|| BackoffState::new(policy));
        let at = Deadline::from_now(backoff.next_delay(random()));
        self.retries.push(Retry { at, state, how });
        None
    }

    /// When the next subscription is to be made again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.iter().filter_map(|retry| retry.at.instant()).min()
    }

    /// Takes a subscription that waits to be made.
    fn take_retry(&mut self, line: LineId) -> Option<Retry<In>> {
        let place = self.retries.iter().position(|retry| retry.state.origin.line() == line)?;
        Some(self.retries.swap_remove(place))
    }

    /// Withdraws a subscription that waits to be made, also for the next incarnation.
    pub(super) fn withdraw(&mut self, line: LineId) {
        if self.take_retry(line).is_some() {
            withdraw(&self.planned, line);
        }
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
        self.retries.retain(|retry| retry.state.target.pipeline() == pipeline);
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
            // The next incarnation may make it again.
            upstream.subscription.set_at_consumer(false);
        }
    }
}

/// The subscription of this line that the stage has.
fn made<In>(
    inlet: &mut Inlet<In, UpstreamState<In>>,
    line: LineId,
) -> Option<&mut Upstream<UpstreamState<In>>> {
    inlet.upstreams_mut().iter_mut().find(|upstream| upstream.state.origin.line() == line)
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
                        subscription.cancel_made(SubscribeError::Unknown.into());
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

    /// Subscribes this stage to another.
    pub(super) async fn subscribe(
        &mut self,
        subscribing: Subscribing<B::In>,
        again: Option<Again>,
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
            Occupant::Ended(reason)
                if planned && matches!(origin, Origin::Handle(_)) && !reason.is_graceful() =>
            {
                // The failure concerned the earlier incarnation. This one does not make the
                // subscription.
                self.upstreams.forget(origin);
                tracing::warn!(stage = %self.accounting.stage(), producer = shown(target.name()), "a producer has failed for good, not subscribing to it again");
                return Ok(());
            }
            // No stage has run there so far, or the last one ended for want of its own producer.
            Occupant::Vacant | Occupant::Ended(ExitReason::NotRunning) => {
                if let Some((old, reason)) = replaces {
                    // It has another producer, which is notified.
                    self.upstreams.replace(old, reason, &target, &mut origin);
                }
                let subscription = self.subscription(&options, origin, Arc::new(NoProducer));
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(subscription));
                    if let Cancel::Reconnect(_) = options.mode() {
                        self.upstreams.remember(&target, &options, origin);
                    }
                }
                if options.mode() == Cancel::Temporary {
                    return Ok(());
                }
                let state = UpstreamState::new(target, options, origin);
                return self.resubscribe_or_end(state, Cancellation::Down(ExitReason::NotRunning));
            }
            Occupant::Restarting => None,
            Occupant::Ended(reason) => {
                self.upstreams.forget(origin);
                gone = Some(reason);
                None
            }
        };
        let replaces = replaces
            .and_then(|(old, reason)| self.upstreams.replace(old, reason, &target, &mut origin));
        let producer = port.clone().unwrap_or_else(|| Arc::new(NoProducer));
        let subscription = self.subscription(&options, origin, producer);
        let id = subscription.id();
        // Before the producer can cancel it.
        subscription.set_at_consumer(port.is_some());
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
        if answer.is_some() {
            self.upstreams.remember(&target, &options, origin);
        }
        let mut state = UpstreamState::new(target, options.clone(), origin);
        let mut paused = false;
        if let Some(again) = again {
            state.backoff = again.backoff;
            if !running {
                // The producer has just ended, so the subscription still ends for its earlier reason.
                state.paused = again.paused;
                return self.resubscribe_or_end(state, again.how);
            }
            paused = again.paused;
        }
        let subscribed = subscription.clone();
        self.upstreams.inlet.add(Upstream {
            subscription: subscribed,
            window: None,
            paused,
            state,
        });
        subscription.set_at_consumer(running);
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

    fn subscription(
        &self,
        options: &SubscribeOptions,
        origin: Origin,
        producer: Arc<dyn DemandPort<B::In>>,
    ) -> Subscription {
        let line = Some(Line { id: origin.line(), consumer: self.slot.clone() });
        let ports = Ports { producer, consumer: Arc::new(self.address.clone()), line };
        Subscription::new(SubscriptionId::new(next_id()), options, ports)
    }

    /// Continues or ends after a subscription has ended, as its mode says.
    fn resubscribe_or_end(
        &mut self,
        state: UpstreamState<B::In>,
        how: Cancellation,
    ) -> Result<(), ExitReason> {
        match self.upstreams.schedule_retry(state, how, self.lifecycle.draining) {
            Some((state, how)) => self.continue_or_end(&state, &how),
            None => Ok(()),
        }
    }

    /// Continues or ends after the end of a subscription that is not made again, as its mode says.
    fn continue_or_end(
        &mut self,
        state: &UpstreamState<B::In>,
        how: &Cancellation,
    ) -> Result<(), ExitReason> {
        let (mode, reason) = (state.options.mode(), how.reason().clone());
        let is_cancelled = matches!(how, Cancellation::Cancel(_));
        // A drain does not fail a consumer that would otherwise still wait for its producer.
        let waited = self.lifecycle.draining && matches!(mode, Cancel::Reconnect(_));
        let survives = waited || mode.survives(&reason);
        if survives || is_cancelled || reason.is_graceful() || !state.target.restarts() {
            self.upstreams.forget(state.origin);
        }
        if survives {
            return Ok(());
        }
        if matches!(reason, ExitReason::NotRunning) {
            tracing::warn!(stage = %self.accounting.stage(), producer = shown(state.target.name()), "a producer is not running and is not waited for");
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
        while let Some(Retry { state, how, .. }) = self.upstreams.due_retry(now) {
            let running = matches!(
                state.target.occupant(),
                Occupant::Running(port) if port.ended().is_none()
            );
            // A handle that has cancelled it has done so before it is made.
            let line = state.origin.line();
            if let Some(reason) = self.take_unread_cancel(line) {
                self.continue_or_end(&state, &Cancellation::Cancel(reason))?;
            } else if running {
                let UpstreamState { target, options, origin, backoff, paused, .. } = state;
                let subscribing =
                    Subscribing { target, options, origin, replaces: None, answer: None };
                self.subscribe(subscribing, Some(Again { backoff, how, paused })).await?;
            } else {
                self.resubscribe_or_end(state, how)?;
            }
        }
        Ok(())
    }

    /// The reason of a cancel that a handle has sent and the stage has not read. It stays unread, and
    /// finds nothing to cancel.
    fn take_unread_cancel(&mut self, line: LineId) -> Option<ExitReason> {
        let mut found = None;
        self.mailbox.has(|message| {
            if let Message::Control(Control::CancelSubscription { line: of, reason }) = message
                && *of == line
            {
                found = Some(reason.clone());
            }
            found.is_some()
        });
        found
    }

    /// Cancels a subscription for a handle that does not know its latest make. One that waits to be
    /// made is withdrawn.
    pub(super) fn cancel_subscription(
        &mut self,
        line: LineId,
        reason: ExitReason,
    ) -> Result<(), ExitReason> {
        if let Some(Retry { state, .. }) = self.upstreams.take_retry(line) {
            return self.continue_or_end(&state, &Cancellation::Cancel(reason));
        }
        if let Some(upstream) = made(&mut self.upstreams.inlet, line) {
            if upstream.subscription.is_at_consumer() {
                upstream.subscription.cancel_made(reason);
            } else {
                // Its producer is not running, so its end is already queued.
                upstream.state.withdrawn.get_or_insert(reason);
            }
        }
        Ok(())
    }

    /// Pauses or resumes a subscription, also one that waits to be made.
    pub(super) fn pause_subscription(&mut self, line: LineId, paused: bool) {
        let ending = self.lifecycle.ignores_pauses || self.lifecycle.finishing.is_some();
        let paused = paused && !ending;
        if let Some(upstream) = made(&mut self.upstreams.inlet, line) {
            upstream.paused = paused;
        }
        let waiting = self.upstreams.retries.iter_mut();
        for retry in waiting.filter(|retry| retry.state.origin.line() == line) {
            retry.state.paused = paused;
        }
    }

    /// Handles the end of a subscription, after its last event has been handled.
    pub(super) async fn subscription_ended(
        &mut self,
        from: SubscriptionId,
        how: Cancellation,
    ) -> Result<(), ExitReason> {
        let Some(upstream) = self.upstreams.inlet.remove(from) else { return Ok(()) };
        let Upstream { subscription, mut state, .. } = upstream;
        let withdrawn = state.withdrawn.take();
        let is_withdrawn = withdrawn.is_some();
        let how = withdrawn.map_or(how, Cancellation::Cancel);
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
        if is_withdrawn {
            return self.continue_or_end(&state, &how);
        }
        self.resubscribe_or_end(state, how)
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

/// The missing producer of a subscription.
struct NoProducer;

impl<E> DemandPort<E> for NoProducer {
    fn send(&self, message: ToProducer<E>) -> Result<(), ToProducer<E>> {
        Err(message)
    }

    fn ended(&self) -> Option<ExitReason> {
        None
    }
}
