//! The task of a stage of any kind: one message after the other, one callback at a time.

mod accounting;
mod downstream;
mod ending;
mod markers;
mod phase;
mod turns;
mod upstream;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, OnceLock, Weak, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{self, AbortHandle, coop},
    time::{self, Instant},
};

pub(super) use self::downstream::Downstreams;
use self::{
    accounting::Accounting,
    ending::{EndStep, Finishing, Lifecycle},
    markers::{Markers, Pending},
    phase::PhaseWatch,
    turns::Turns,
    upstream::Upstreams,
};
use super::{
    DemandMode, Emitter, Phase, StageContext,
    behaviour::{Behaviour, HandleOf},
    catch_panic, catch_panic_now,
    inlet::Input,
    link::ToProducer,
    mailbox,
    message::{Handled, UserMessage},
    slot::{Address, Control, Mailbox, Message, Slot, Subscribing},
};
use crate::{
    deadline::Deadline,
    dispatcher::Marker,
    exit::ExitReason,
    report::StageReport,
    snapshot::{Activity, StageKind},
    subscription::{
        Cancellation, DemandControl, Home, SubscribeError, SubscribeOptions, Subscription,
        SubscriptionId,
    },
};

/// How many timers' messages a stage handles before it looks at its other work.
const TIMERS_AT_ONCE: usize = 16;

/// A running stage.
pub(crate) struct StageTask<B: Behaviour> {
    behaviour: B,
    address: Address<B::Stage, B::In, B::Out>,
    /// The stage's slot, as its subscriptions see it.
    slot: Weak<dyn Home>,
    mailbox: Mailbox<B::Stage, B::In, B::Out>,
    phase: PhaseWatch,
    lifecycle: Lifecycle,
    upstreams: Upstreams<B::In>,
    downstreams: Downstreams<B::Out>,
    markers: Markers<B>,
    turns: Turns,
    accounting: Accounting,
    /// The report of a stage that was ended without its cooperation.
    final_report: Arc<OnceLock<StageReport>>,
}

/// The address and the mailbox of one incarnation of a stage.
type AddressAndMailbox<B> = (
    Address<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
    Mailbox<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
);

/// Why a waiting stage was woken.
enum Woken {
    /// The stage has only looked.
    Nothing,
    Phase(Phase),
    Message,
    Ready(Result<(), ExitReason>),
    Timer,
}

/// The next thing to do that needs a callback or time.
enum Next<B: Behaviour> {
    Events {
        from: SubscriptionId,
        events: Vec<B::In>,
    },
    Demand(usize),
    /// Check whether the phase has changed, the stage is ready or a timer is due, without waiting.
    Poll,
    Wait,
    /// Yield to other tasks.
    Yield,
    /// Any message except events and asks, which are the most frequent.
    Message(Box<MessageOf<B>>),
    SubscriptionEnded {
        from: SubscriptionId,
        how: Cancellation,
    },
    Marker(Marker),
    /// The stage is about to end.
    End,
}

type MessageOf<B> = Message<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>;

/// A callback and its arguments.
enum Callback<'a, B: Behaviour> {
    Subscribed(&'a SubscribeOptions, &'a Subscription, &'a mut DemandControl),
    Cancelled(&'a Cancellation, &'a Subscription),
    Consumer(&'a SubscribeOptions, &'a Subscription),
    ConsumerGone(&'a Cancellation, &'a Subscription),
    Ready,
    Drain,
    User(Box<dyn UserMessage<B::Stage, B::Out>>),
}

impl<B: Behaviour> StageTask<B> {
    pub(crate) fn new(
        behaviour: B,
        downstreams: Downstreams<B::Out>,
        slot: &Arc<Slot<B::Stage, B::In, B::Out>>,
        (address, mailbox): AddressAndMailbox<B>,
        phase: watch::Receiver<Phase>,
        context: &StageContext<HandleOf<B>>,
    ) -> Self {
        let home: Arc<dyn Home> = slot.clone();
        Self {
            behaviour,
            address,
            slot: Arc::downgrade(&home),
            mailbox,
            phase: PhaseWatch::new(phase),
            lifecycle: Lifecycle::default(),
            upstreams: Upstreams::new(slot.subscriptions.clone(), slot.pipeline),
            downstreams,
            markers: Markers::new(),
            turns: Turns::default(),
            accounting: Accounting::new(B::KIND, context),
            final_report: Arc::default(),
        }
    }

    /// The report if `run` does not complete.
    pub(crate) fn final_report(&self) -> Arc<OnceLock<StageReport>> {
        self.final_report.clone()
    }

    /// Receives the handle of this stage's task, used to kill it.
    pub(crate) fn task(&self) -> Arc<OnceLock<AbortHandle>> {
        self.address.task()
    }

    /// Subscribes, and runs until there is a reason to end. If that is a failure and the stage's
    /// `terminate` takes time, it is limited, and the failure is reported before.
    pub(crate) async fn run(
        mut self,
        subscriptions: Vec<Subscribing<B::In>>,
        fails: impl FnOnce(&ExitReason) + Send,
        stop_within: Duration,
    ) -> StageReport {
        self.upstreams.confirm_within(stop_within);
        self.address.runs_here();
        self.accounting.gauges.enter(Activity::Busy);
        // A dispatcher may panic too.
        let Err(reason) = catch_panic(self.live(subscriptions)).await;
        let terminated = {
            let terminating = async {
                self.behaviour.terminate(&reason, self.phase.receiver()).await;
                Ok(())
            };
            let mut terminating = pin!(catch_panic(terminating));
            let waits =
                poll_fn(|context| Poll::Ready(terminating.as_mut().poll(context).is_pending()));
            if !waits.await {
                true
            } else if reason.is_graceful() {
                let _ = terminating.await;
                true
            } else {
                fails(&reason);
                Deadline::from_now(stop_within).limit(terminating).await.is_ok()
            }
        };
        if !terminated {
            tracing::warn!(stage = %self.accounting.stage(), "terminate took too long after a failure, ending the stage");
        }
        self.accounting.report.terminated = terminated;
        let reporting = || {
            self.behaviour.report(&mut self.accounting.report);
            Ok(())
        };
        let _ = catch_panic_now(reporting);
        self.end(&reason);
        self.accounting.report.reason = reason;
        self.accounting.report.clone()
    }

    async fn live(
        &mut self,
        subscriptions: Vec<Subscribing<B::In>>,
    ) -> Result<Infallible, ExitReason> {
        self.subscribe_all(subscriptions).await?;
        self.accounting.gauges.begun();
        loop {
            let next = self.next();
            if !matches!(next, Next::Poll | Next::Wait) {
                self.turns.count_callback();
            }
            match next {
                Next::Events { from, events } => self.handle_events(from, events).await?,
                Next::Demand(demand) => self.call_demand(demand).await?,
                Next::Poll => self.wait(true).await?,
                Next::Wait => self.wait(false).await?,
                Next::Yield => {
                    self.turns.yielded();
                    task::yield_now().await;
                }
                Next::Message(message) => self.receive(*message).await?,
                Next::SubscriptionEnded { from, how } => self.subscription_ended(from, how).await?,
                Next::Marker(marker) => self.marker_reached(marker).await?,
                Next::End => self.lifecycle.defer_end = !self.continue_ending().await?,
            }
        }
    }

    /// Does everything that needs neither a callback nor waiting. Returns the next thing that does.
    #[inline]
    fn next(&mut self) -> Next<B> {
        let mut defer_end = mem::take(&mut self.lifecycle.defer_end);
        loop {
            if self.turns.must_yield() {
                return Next::Yield;
            }
            if B::KIND.emits() || !self.downstreams.outlet.is_empty() {
                self.deliver();
            }
            if let Some(marker) = self.downstreams.next_marker() {
                self.turns.count_work();
                return Next::Marker(marker);
            }
            if self.turns.must_poll() || self.phase.has_changed() {
                return Next::Poll;
            }
            self.turns.mailbox_first &= self.mailbox.has_next();
            if !self.lifecycle.paused
                && !self.upstreams.inlet.is_empty()
                && !self.turns.mailbox_first
            {
                let may =
                    B::KIND != StageKind::ProducerConsumer || self.downstreams.outlet.unmet() > 0;
                if let Some(input) = self.upstreams.inlet.next(may) {
                    self.turns.count_work();
                    self.turns.mailbox_first = self.mailbox.take();
                    match input {
                        Input::Events { from, events } => return Next::Events { from, events },
                        Input::Ended { from, how } => return Next::SubscriptionEnded { from, how },
                        Input::Info(marker) => {
                            self.downstreams.outlet.info(marker);
                            defer_end = false;
                            continue;
                        }
                    }
                }
            }
            if B::KIND == StageKind::Producer && self.lifecycle.finishing.is_none() {
                let demand = self.downstreams.outlet.new_demand();
                if demand > 0 {
                    self.turns.count_work();
                    return Next::Demand(demand);
                }
            }
            // Also before the end: the last values stay visible.
            self.update_gauges();
            if self.lifecycle.is_ending() && !mem::take(&mut defer_end) {
                return Next::End;
            }
            if !self.mailbox.has_next() {
                return Next::Wait;
            }
            self.turns.count_work();
            match self.mailbox.next() {
                Some(Message::FromProducer(message)) => {
                    if let Some((from, events)) = self.receive_from_producer(message) {
                        return Next::Events { from, events };
                    }
                }
                Some(Message::FromConsumer(ToProducer::Ask { id, demand, consumer })) => {
                    self.downstreams.ask(id, demand, consumer);
                }
                Some(message) => return Next::Message(Box::new(message)),
                None => {}
            }
        }
    }

    /// Updates the gauges of waiting events.
    fn update_gauges(&self) {
        if B::KIND != StageKind::Producer {
            self.accounting.gauges.waiting.store(self.upstreams.inlet.event_count(), Relaxed);
        }
        if B::KIND.emits() {
            self.accounting.gauges.buffered.store(self.downstreams.outlet.undelivered(), Relaxed);
        }
    }

    /// Waits for one event and handles it, unless it is a message. A stage that `only_polls` does
    /// not wait, and leaves its messages in the mailbox.
    async fn wait(&mut self, only_polls: bool) -> Result<(), ExitReason> {
        let confirms = self.waits_for_confirmations();
        if confirms {
            self.upstreams.wait_for_confirmations();
        }
        let waits_for_more = confirms
            || self.awaits_ready()
            || self.downstreams.is_limited()
            || !self.upstreams.retries.is_empty()
            || self.address.timers.are_set();
        let woken = if waits_for_more {
            self.wait_for_all(only_polls).await
        } else {
            self.wait_for_message(only_polls).await
        };
        match woken {
            Woken::Nothing | Woken::Message => Ok(()),
            Woken::Phase(phase) => {
                self.enter(phase).await?;
                self.replay().await
            }
            Woken::Ready(ready) => {
                ready?;
                self.turns.count_ready();
                self.call(Callback::Ready).await
            }
            Woken::Timer => {
                self.give_up_producers();
                self.retry().await?;
                self.call_timers().await
            }
        }
    }

    /// Waits for a message or a phase change: usually there is nothing else to wait for.
    async fn wait_for_message(&mut self, only_polls: bool) -> Woken {
        let mut idle = false;
        let woken = poll_fn(|context| {
            let arrival = poll_arrival(&mut self.phase, &mut self.mailbox, only_polls, context);
            if arrival.is_pending() && only_polls {
                return Poll::Ready(Woken::Nothing);
            }
            // The clock is read only if there is something to time.
            if arrival.is_pending() && !mem::replace(&mut idle, true) {
                self.accounting.gauges.enter(self.activity());
            }
            arrival
        })
        .await;
        self.turns.polled();
        if idle {
            self.turns.waited();
            self.accounting.gauges.enter(Activity::Busy);
        }
        woken
    }

    /// Whether the stage's `ready` is to be awaited.
    fn awaits_ready(&self) -> bool {
        let works = |finishing: &Finishing| {
            finishing.step == EndStep::Work || B::KIND == StageKind::ConsumerSupervisor
        };
        self.lifecycle.finishing.as_ref().is_none_or(works)
            && !self.lifecycle.paused
            && self.behaviour.awaits_ready(self.downstreams.outlet.wanted())
    }

    /// Waits for the first of all events, the most urgent first. Messages come before the timer and
    /// `ready`, but cannot starve them: after some callbacks the stage polls only those.
    async fn wait_for_all(&mut self, only_polls: bool) -> Woken {
        let waits = self.awaits_ready();
        let timer = self.next_timer();
        let activity = self.activity();
        let mut ready = pin!(waits.then(|| wait_until_ready(&mut self.behaviour)));
        let mut timer = pin!(timer.map(time::sleep_until));
        let mut idle = false;
        // Tokio's timers are rounded up, so one that is set for now would not be due yet.
        let is_due = self.address.timers.are_due();
        let turns = &mut self.turns;
        let woken = poll_fn(|context| {
            let arrival = poll_arrival(&mut self.phase, &mut self.mailbox, only_polls, context);
            if arrival.is_ready() {
                return arrival;
            }
            // Either may be ready every time.
            if turns.ready_first()
                && let Some(ready) = ready.as_mut().as_pin_mut()
                && let Poll::Ready(ready) = ready.poll(context)
            {
                return Poll::Ready(Woken::Ready(ready));
            }
            if is_due
                || timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(context).is_ready())
            {
                return Poll::Ready(Woken::Timer);
            }
            if let Some(ready) = ready.as_mut().as_pin_mut()
                && let Poll::Ready(ready) = ready.poll(context)
            {
                return Poll::Ready(Woken::Ready(ready));
            }
            if only_polls {
                return Poll::Ready(Woken::Nothing);
            }
            if !mem::replace(&mut idle, true) {
                self.accounting.gauges.enter(activity);
            }
            Poll::Pending
        })
        .await;
        if only_polls || idle {
            self.turns.polled();
        }
        if idle {
            self.turns.waited();
            self.accounting.gauges.enter(Activity::Busy);
        }
        woken
    }

    /// The activity of a stage that has nothing to do.
    fn activity(&self) -> Activity {
        if self.lifecycle.paused {
            Activity::Paused
        } else if self.behaviour.is_occupied() {
            Activity::Busy
        } else if B::KIND.emits() && self.downstreams.outlet.unmet() == 0 {
            Activity::WaitingForDemand
        } else {
            Activity::WaitingForEvents
        }
    }

    /// When the next timer is due.
    fn next_timer(&mut self) -> Option<Instant> {
        let retry = self.upstreams.next_retry();
        let refill = if self.lifecycle.paused { None } else { self.downstreams.next_refill() };
        let confirmed = self.upstreams.confirmed_by().filter(|_| self.waits_for_confirmations());
        let confirmed = confirmed.and_then(Deadline::instant);
        let timers = self.address.timers.next();
        retry.into_iter().chain(refill).chain(confirmed).chain(timers).min()
    }

    async fn enter(&mut self, phase: Phase) -> Result<(), ExitReason> {
        match phase {
            Phase::Run => Ok(()),
            Phase::SourcesEnded => {
                self.wind_down();
                Ok(())
            }
            Phase::Drain => self.drain().await,
            Phase::Stop | Phase::Kill => phase.ends_now().map_or(Ok(()), Err),
        }
    }

    async fn receive(&mut self, message: MessageOf<B>) -> Result<(), ExitReason> {
        match message {
            Message::FromProducer(message) => {
                if let Some((from, events)) = self.receive_from_producer(message) {
                    self.upstreams.inlet.queue(Input::Events { from, events });
                }
                Ok(())
            }
            Message::FromConsumer(message) => self.receive_from_consumer(message).await,
            Message::User(envelope) => self.call(Callback::User(envelope.message)).await,
            Message::Info(envelope, queued) => {
                let marker = self.markers.add(Pending::User(envelope));
                self.mark(marker);
                if let Some(queued) = queued {
                    // A caller that no longer waits is ignored.
                    let _ = queued.send(());
                }
                Ok(())
            }
            Message::Control(control) => self.control(control).await,
        }
    }

    async fn control(&mut self, control: Control<B::In>) -> Result<(), ExitReason> {
        match control {
            Control::Subscribe(subscribing) if self.lifecycle.is_ending() => {
                // It takes nothing new.
                if let Some(answer) = subscribing.answer {
                    let _ = answer.send(Err(SubscribeError::NotRunning));
                }
            }
            Control::Subscribe(subscribing) => return self.subscribe(*subscribing, None).await,
            Control::CancelSubscription { line, reason } => {
                return self.cancel_subscription(line, reason);
            }
            Control::PauseSubscription { line, paused } => self.pause_subscription(line, paused),
            Control::SetMode(mode) => return self.set_mode(mode).await,
            Control::Mode(answer) => {
                let _ = answer.send(self.downstreams.outlet.mode());
            }
            Control::Buffered(answer) => {
                if matches!(B::KIND, StageKind::Consumer | StageKind::ConsumerSupervisor) {
                    tracing::error!(stage = %self.accounting.stage(), "a consumer has no buffered events to count");
                }
                let _ = answer.send(self.downstreams.outlet.buffered());
            }
            Control::Limit(limit) => {
                if !self.downstreams.change_limit(limit) {
                    tracing::warn!(stage = %self.accounting.stage(), "the stage shares a rate limit, which its own handle does not change");
                }
            }
            // They are looked at after each message.
            Control::LimitChanged => {}
            Control::TimersChanged => self.address.timers.notified(),
            Control::Pause(paused) => self.lifecycle.pause(paused),
            // A producer keeps its items itself, and emits them as they are asked for.
            Control::Finish if B::KIND == StageKind::Producer => self.drain().await?,
            Control::Finish => self.finish(ExitReason::Normal),
            Control::Stop(reason) => return Err(reason),
        }
        Ok(())
    }

    async fn set_mode(&mut self, mode: DemandMode) -> Result<(), ExitReason> {
        match (B::KIND, mode) {
            // A draining stage ignores pauses.
            (StageKind::Producer, DemandMode::Accumulate) if self.lifecycle.ignores_pauses => {}
            (StageKind::Producer, _) => {
                self.downstreams.outlet.set_mode(mode);
                return self.replay().await;
            }
            (StageKind::ProducerConsumer, DemandMode::Forward) => {}
            _ => {
                tracing::error!(stage = %self.accounting.stage(), ?mode, "only producers have a demand mode");
            }
        }
        Ok(())
    }

    /// Passes on the demand that came while the stage accumulated. All in one step: events emitted
    /// by another callback meanwhile would be out of order.
    pub(super) async fn replay(&mut self) -> Result<(), ExitReason> {
        while self.downstreams.outlet.replays() {
            coop::consume_budget().await;
            if self.phase.has_changed() {
                // The replay continues when the stage has entered the new phase.
                return Ok(());
            }
            self.deliver();
            if let Some(marker) = self.downstreams.next_marker() {
                self.marker_reached(marker).await?;
            } else if self.downstreams.outlet.replays() {
                let demand = self.downstreams.outlet.new_demand();
                self.call_demand(demand).await?;
            }
        }
        Ok(())
    }

    /// Handles messages of timers that are due. They do not wait behind events.
    async fn call_timers(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        for _ in 0..TIMERS_AT_ONCE {
            if self.phase.has_changed() {
                break;
            }
            let Some(message) = self.address.timers.take_due(now) else { break };
            self.turns.timer_called();
            self.call(Callback::User(message)).await?;
        }
        Ok(())
    }

    /// The demand that the next callback sees.
    fn owed(&self) -> usize {
        match B::KIND {
            StageKind::ProducerConsumer => self.downstreams.outlet.unmet(),
            _ => self.downstreams.outlet.wanted(),
        }
    }

    /// The two frequent callbacks, this one and the one for events, are not part of the
    /// enumeration, whose future is as large as the largest of all.
    async fn call_demand(&mut self, demand: usize) -> Result<(), ExitReason> {
        let mut out = Emitter::new(&mut self.downstreams.staged, self.downstreams.outlet.wanted());
        let behaviour = &mut self.behaviour;
        let begun = self.accounting.timer.begin();
        let outcome = catch_panic(async { behaviour.handle_demand(demand, &mut out).await }).await;
        self.accounting.timer.end(begun);
        let finishes = out.finishes();
        self.after_callback(finishes && outcome.is_ok());
        outcome
    }

    /// Sends the events that a callback emitted, and begins to end the stage if it asked for it.
    fn after_callback(&mut self, finishes: bool) {
        if B::KIND.emits() {
            self.emit();
        }
        if finishes {
            self.finish(ExitReason::Normal);
        }
    }

    /// Runs a callback and sends the events it emitted, even if it ends the stage.
    async fn call(&mut self, callback: Callback<'_, B>) -> Result<(), ExitReason> {
        self.call_owing(self.owed(), callback).await
    }

    /// The same, for a callback that sees this demand.
    async fn call_owing(
        &mut self,
        owed: usize,
        callback: Callback<'_, B>,
    ) -> Result<(), ExitReason> {
        let mut out = Emitter::new(&mut self.downstreams.staged, owed);
        let behaviour = &mut self.behaviour;
        let mut answer = None;
        let outcome = catch_panic(async {
            match callback {
                Callback::Subscribed(options, from, demand_control) => {
                    *demand_control = behaviour.handle_subscribe(options, from, &mut out).await?;
                    Ok(())
                }
                Callback::Cancelled(ended, from) => {
                    behaviour.handle_cancel(ended, from, &mut out).await
                }
                Callback::Consumer(options, to) => {
                    behaviour.handle_consumer(options, to, &mut out).await
                }
                Callback::ConsumerGone(ended, to) => {
                    behaviour.handle_consumer_gone(ended, to, &mut out).await
                }
                Callback::Ready => behaviour.handle_ready(&mut out).await,
                Callback::Drain => behaviour.handle_drain(&mut out).await,
                Callback::User(message) => {
                    let Handled { outcome, answer: late } =
                        message.handle(behaviour.stage(), &mut out).await;
                    answer = late;
                    outcome
                }
            }
        })
        .await;
        let finishes = out.finishes();
        self.after_callback(finishes && outcome.is_ok());
        drop(answer);
        outcome
    }
}

/// Waits for a phase change, or for messages unless those are to be left.
fn poll_arrival<T>(
    phase: &mut PhaseWatch,
    mailbox: &mut mailbox::Mailbox<T>,
    leaves_messages: bool,
    context: &mut Context<'_>,
) -> Poll<Woken> {
    if let Poll::Ready(phase) = phase.poll_change(context) {
        return Poll::Ready(Woken::Phase(phase));
    }
    if leaves_messages {
        return Poll::Pending;
    }
    mailbox.poll_take(context).map(|()| Woken::Message)
}

/// Waits until a stage is ready; a panic in it ends the stage like one in a callback.
async fn wait_until_ready<B: Behaviour>(behaviour: &mut B) -> Result<(), ExitReason> {
    catch_panic(async {
        behaviour.ready().await;
        Ok(())
    })
    .await
}
