//! The task of a stage, whatever its kind: one message after the other, one callback at a time.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
};

use tokio::{
    sync::watch,
    task::{AbortHandle, coop},
    time::{self, Instant},
};

use super::{
    Emitter, Phase, StageContext, StageReport,
    behaviour::{Behaviour, HandleOf, Kind},
    contained, contained_now,
    gauges::Gauges,
    link::{DemandPort, EventPort, Ports, Subscribe, ToConsumer, ToProducer},
    message::{Letter, Opened},
    options::StageOptions,
    slot::{Address, Control, Mail, Mailbox, Occupant, Subscribing, Target, next_id},
};
use crate::{
    backoff::BackoffState,
    demand::Window,
    dispatcher::{Deliveries, Delivery, Marker, Subscriber},
    exit::ExitReason,
    inlet::{Inlet, Input, Upstream},
    outlet::{DemandMode, Emitted, Outlet},
    rate_limit::RateLimiter,
    snapshot::Activity,
    subscription::{
        Asking, Cancel, Cancellation, SubscribeError, SubscribeOptions, Subscription,
        SubscriptionId,
    },
    telemetry::{Discard, StageMetrics},
};

/// A stage that runs.
pub(crate) struct StageTask<B: Behaviour> {
    behaviour: B,
    address: Address<B::Stage, B::In, B::Out>,
    mailbox: Mailbox<B::Stage, B::In, B::Out>,
    phase: watch::Receiver<Phase>,
    inlet: Inlet<B::In, Source<B::In>>,
    retries: Vec<Retry<B::In>>,
    outlet: Outlet<B::Out>,
    consumers: HashMap<SubscriptionId, Downstream<B::Out>>,
    staged: VecDeque<B::Out>,
    deliveries: Deliveries<B::Out>,
    markers: HashMap<Marker, Pending<B>>,
    next_marker: u64,
    /// Markers that nothing precedes any more.
    due: VecDeque<Marker>,
    limiter: Option<RateLimiter>,
    paused: bool,
    draining: bool,
    finishing: Option<Finishing>,
    metrics: StageMetrics,
    gauges: Arc<Gauges>,
    report: StageReport,
    /// Whether everybody has been told of the end.
    ended: bool,
}

/// Where a stage runs: whom to tell something, and where it arrives.
type Place<B> = (
    Address<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
    Mailbox<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
);

/// What a stage keeps beside a subscription of its own.
struct Source<In> {
    target: Arc<dyn Target<In>>,
    options: SubscribeOptions,
    backoff: Option<BackoffState>,
    /// Another subscription takes its place, so its end is not the stage's.
    replaced: bool,
}

/// A subscription that is to be made anew.
struct Retry<In> {
    at: Instant,
    target: Arc<dyn Target<In>>,
    options: SubscribeOptions,
    backoff: BackoffState,
    reason: ExitReason,
}

/// A subscription at its producer's end.
struct Downstream<Out> {
    subscription: Subscription,
    consumer: Arc<dyn EventPort<Out>>,
}

/// What happens when a marker is reached.
enum Pending<B: Behaviour> {
    Letter(Box<dyn Letter<B::Stage, B::Out>>),
    Finish,
}

/// How far a stage is with delivering what it holds, so that it can end.
#[derive(Debug)]
struct Finishing {
    reason: ExitReason,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// What has arrived is still to be handled.
    Input,
    /// What was emitted is still to be delivered.
    Output,
    /// What it works on is still to be done.
    Work,
}

/// What a stage has waited for.
enum Woken<B: Behaviour> {
    Phase(Phase),
    Mail(Mail<B::Stage, B::In, B::Out>),
    Ready(Result<(), ExitReason>),
    Timer,
}

/// A callback, and what it is called with.
enum Callback<'a, B: Behaviour> {
    Demand(usize),
    Events(Vec<B::In>, &'a Subscription),
    Subscribed(&'a SubscribeOptions, &'a Subscription, &'a mut Asking),
    Cancelled(&'a Cancellation, &'a Subscription),
    Consumer(&'a SubscribeOptions, &'a Subscription),
    ConsumerGone(&'a Cancellation, &'a Subscription),
    Ready,
    Drain,
    Letter(Box<dyn Letter<B::Stage, B::Out>>),
}

impl<B: Behaviour> StageTask<B> {
    pub(crate) fn new(
        behaviour: B,
        options: &StageOptions<B::Out>,
        (address, mailbox): Place<B>,
        phase: watch::Receiver<Phase>,
        gauges: Arc<Gauges>,
        context: &StageContext<HandleOf<B>>,
    ) -> Self {
        Self {
            behaviour,
            address,
            mailbox,
            phase,
            inlet: Inlet::new(),
            retries: Vec::new(),
            outlet: options.outlet(B::KIND),
            consumers: HashMap::new(),
            staged: VecDeque::new(),
            deliveries: Deliveries::new(),
            markers: HashMap::new(),
            next_marker: 0,
            due: VecDeque::new(),
            limiter: options.rate_limit.map(|limit| RateLimiter::new(limit, Instant::now())),
            paused: false,
            draining: false,
            finishing: None,
            metrics: StageMetrics::register(&context.telemetry, &context.labels()),
            gauges,
            report: StageReport::new(context.stage.clone(), ExitReason::Normal),
            ended: false,
        }
    }

    /// Where the handle of this stage's task belongs, for those who want to kill it.
    pub(crate) fn task(&self) -> Arc<OnceLock<AbortHandle>> {
        self.address.task()
    }

    /// Subscribes, and runs until there is a reason to end.
    pub(crate) async fn run(mut self, subscriptions: Vec<Subscribing<B::In>>) -> StageReport {
        self.gauges.enter(Activity::Busy);
        // A dispatcher may panic too.
        let Err(reason) = contained(self.live(subscriptions)).await;
        let terminating = async {
            self.behaviour.terminate(&reason, &mut self.phase).await;
            Ok(())
        };
        let _ = contained(terminating).await;
        let reporting = || {
            self.behaviour.report(&mut self.report);
            Ok(())
        };
        let _ = contained_now(reporting);
        self.end(&reason);
        self.report.reason = reason;
        self.report.clone()
    }

    async fn live(
        &mut self,
        subscriptions: Vec<Subscribing<B::In>>,
    ) -> Result<Infallible, ExitReason> {
        self.subscribe_all(subscriptions).await?;
        loop {
            self.step().await?;
        }
    }

    async fn subscribe_all(
        &mut self,
        subscriptions: Vec<Subscribing<B::In>>,
    ) -> Result<(), ExitReason> {
        for subscribing in subscriptions {
            // When several stages are restarted, the consumer may be the first to be back.
            subscribing.target.settled().await;
            self.subscribe(subscribing, None).await?;
        }
        self.settle().await
    }

    /// Waits for one thing to happen, and does what follows from it.
    async fn step(&mut self) -> Result<(), ExitReason> {
        // What is here already needs no waiting.
        if !self.phase.has_changed().unwrap_or(true)
            && let Ok(mail) = self.mailbox.try_recv()
        {
            coop::consume_budget().await;
            self.receive(mail).await?;
            return self.settle().await;
        }
        let owed = self.outlet.owed();
        let waits = self.finishing.as_ref().is_none_or(|finishing| finishing.step == Step::Work)
            && !self.paused
            && self.behaviour.waits(owed);
        let timer = self.next_timer();
        self.gauges.enter(self.activity());
        let woken = tokio::select! {
            biased;
            changed = self.phase.changed() => {
                Woken::<B>::Phase(changed.map_or(Phase::Kill, |()| *self.phase.borrow_and_update()))
            }
            Some(mail) = self.mailbox.recv() => Woken::Mail(mail),
            ready = is_ready(&mut self.behaviour), if waits => Woken::Ready(ready),
            () = until(timer) => Woken::Timer,
        };
        self.gauges.enter(Activity::Busy);
        match woken {
            Woken::Phase(phase) => self.enter(phase).await?,
            Woken::Mail(mail) => self.receive(mail).await?,
            Woken::Ready(ready) => {
                ready?;
                self.call(Callback::Ready).await?;
            }
            Woken::Timer => self.retry().await?,
        }
        self.settle().await
    }

    /// What the stage does when it has nothing to do.
    fn activity(&self) -> Activity {
        let emits = matches!(B::KIND, Kind::Producer | Kind::ProducerConsumer);
        if self.paused {
            Activity::Paused
        } else if self.behaviour.is_busy() {
            Activity::Busy
        } else if emits && self.outlet.unmet() == 0 {
            Activity::WaitingForDemand
        } else {
            Activity::WaitingForEvents
        }
    }

    /// When something is to be done although nothing happens.
    fn next_timer(&mut self) -> Option<Instant> {
        let retry = self.retries.iter().map(|retry| retry.at).min();
        let refill = match &mut self.limiter {
            Some(limiter) if !self.paused => limiter.next_refill(Instant::now()),
            _ => None,
        };
        retry.into_iter().chain(refill).min()
    }

    async fn enter(&mut self, phase: Phase) -> Result<(), ExitReason> {
        match phase {
            Phase::Run => Ok(()),
            Phase::Drain => self.drain().await,
            Phase::Stop => Err(ExitReason::Shutdown),
            Phase::Kill => Err(ExitReason::Killed),
        }
    }

    /// Takes nothing new. Whatever holds something back lets go of it.
    async fn drain(&mut self) -> Result<(), ExitReason> {
        self.draining = true;
        self.paused = false;
        self.retries.clear();
        self.outlet.set_mode(DemandMode::Forward);
        if B::KIND != Kind::Producer || self.finishing.is_some() {
            return Ok(());
        }
        match self.call(Callback::Drain).await {
            Err(ExitReason::Normal) => {
                self.finish(ExitReason::Normal);
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn receive(&mut self, mail: Mail<B::Stage, B::In, B::Out>) -> Result<(), ExitReason> {
        match mail {
            Mail::FromProducer(message) => {
                self.producer_says(message);
                Ok(())
            }
            Mail::FromConsumer(message) => self.consumer_says(message).await,
            Mail::Letter(posted) => self.call(Callback::Letter(posted.letter)).await,
            Mail::Info(posted, queued) => {
                let marker = self.marker(Pending::Letter(posted.letter));
                self.mark(marker);
                if let Some(queued) = queued {
                    // Whoever has stopped waiting does not mind.
                    let _ = queued.send(());
                }
                Ok(())
            }
            Mail::Control(control) => self.control(control).await,
        }
    }

    fn producer_says(&mut self, message: ToConsumer<B::In>) {
        match message {
            ToConsumer::Events { from, events } => {
                if self.inlet.get(from.id()).is_none() {
                    self.report.held += events.len();
                    from.cancel(SubscribeError::Unknown.into());
                    return;
                }
                self.metrics.events_in.increment(events.len() as u64);
                self.gauges.events_in.fetch_add(events.len() as u64, Relaxed);
                self.inlet.queue(Input::Events { from: from.id(), events });
            }
            ToConsumer::Cancel { from, reason } => {
                self.inlet.queue(Input::Ended { from, how: Cancellation::Cancel(reason) });
            }
            ToConsumer::Down { from, reason } => {
                self.inlet.queue(Input::Ended { from, how: Cancellation::Down(reason) });
            }
            ToConsumer::Pause { from, paused } => {
                if let Some(upstream) = self.inlet.get(from) {
                    upstream.paused = paused;
                }
            }
        }
    }

    async fn consumer_says(&mut self, message: ToProducer<B::Out>) -> Result<(), ExitReason> {
        match message {
            ToProducer::Ask { id, demand, consumer } => {
                if let Some(downstream) = self.consumers.get(&id) {
                    downstream.subscription.asked(demand);
                    self.outlet.ask(id, demand, &mut self.deliveries);
                } else {
                    let reason = SubscribeError::Unknown.into();
                    let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
                }
                Ok(())
            }
            ToProducer::Mode(mode) => {
                self.set_mode(mode);
                Ok(())
            }
            ToProducer::Subscribe(subscribe) => self.accept(*subscribe).await,
            ToProducer::Cancel { id, reason } => {
                self.dismiss(id, Cancellation::Cancel(reason)).await
            }
            ToProducer::Down { id, reason } => self.dismiss(id, Cancellation::Down(reason)).await,
        }
    }

    /// Lets a consumer subscribe, unless the dispatcher refuses it.
    async fn accept(&mut self, subscribe: Subscribe<B::Out>) -> Result<(), ExitReason> {
        let Subscribe { subscription, replaces, stage, name, options, consumer } = subscribe;
        if let Some((old, reason)) = replaces {
            self.dismiss(old, Cancellation::Cancel(reason)).await?;
        }
        let id = subscription.id();
        let accepted = if self.consumers.contains_key(&id) {
            Err(SubscribeError::Duplicated.into())
        } else {
            self.outlet.subscribe(Subscriber::new(id, stage, &options))
        };
        if let Err(reason) = accepted {
            tracing::error!(stage = %self.report.stage, %reason, "refused a subscription");
            let _ = consumer.send(ToConsumer::Cancel { from: id, reason });
            return Ok(());
        }
        let downstream = Downstream { subscription: subscription.clone(), consumer };
        self.consumers.insert(id, downstream);
        self.gauges.subscribed(subscription.clone(), name);
        self.call(Callback::Consumer(&options, &subscription)).await
    }

    /// Forgets a consumer. If it is still there, it is told so.
    async fn dismiss(&mut self, id: SubscriptionId, ended: Cancellation) -> Result<(), ExitReason> {
        let Some(downstream) = self.consumers.remove(&id) else { return Ok(()) };
        self.gauges.unsubscribed(id);
        self.outlet.cancel(id, &mut self.deliveries);
        if let Cancellation::Cancel(reason) = &ended {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Cancel { from: id, reason });
        }
        self.call(Callback::ConsumerGone(&ended, &downstream.subscription)).await
    }

    async fn control(&mut self, control: Control<B::In>) -> Result<(), ExitReason> {
        match control {
            Control::Subscribe(subscribing) => return self.subscribe(*subscribing, None).await,
            Control::SetMode(mode) => self.set_mode(mode),
            Control::Mode(answer) => {
                let _ = answer.send(self.outlet.mode());
            }
            Control::Buffered(answer) => {
                if matches!(B::KIND, Kind::Consumer | Kind::Supervisor) {
                    tracing::error!(stage = %self.report.stage, "a consumer has no buffer to count");
                }
                let _ = answer.send(self.outlet.buffered());
            }
            Control::Limit(limit) => {
                let now = Instant::now();
                match (&mut self.limiter, limit) {
                    (Some(limiter), Some(limit)) => limiter.update(limit, false, now),
                    (limiter, limit) => {
                        *limiter = limit.map(|limit| RateLimiter::new(limit, now));
                    }
                }
            }
            Control::Pause(paused) => self.paused = paused && !self.draining,
            Control::Finish => self.finish(ExitReason::Normal),
            Control::Stop(reason) => return Err(reason),
        }
        Ok(())
    }

    fn set_mode(&mut self, mode: DemandMode) {
        match (B::KIND, mode) {
            (Kind::Producer, _) => self.outlet.set_mode(mode),
            (Kind::ProducerConsumer, DemandMode::Forward) => {}
            _ => {
                tracing::error!(stage = %self.report.stage, ?mode, "only producers have a demand mode");
            }
        }
    }

    /// Subscribes this stage to another.
    async fn subscribe(
        &mut self,
        subscribing: Subscribing<B::In>,
        backoff: Option<BackoffState>,
    ) -> Result<(), ExitReason> {
        let Subscribing { target, options, replaces, answer } = subscribing;
        let port = match target.occupant() {
            Occupant::Running(port) => Some(port),
            Occupant::Vacant => {
                let subscription = self.subscription(Arc::new(Nobody));
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(subscription));
                }
                return match options.mode() {
                    Cancel::Temporary => Ok(()),
                    mode => self.carry_on(mode, target, options, backoff, ExitReason::NoProcess),
                };
            }
            Occupant::Restarting | Occupant::Ended => None,
        };
        let subscription = self.subscription(port.clone().unwrap_or_else(|| Arc::new(Nobody)));
        let id = subscription.id();
        let replaces = replaces.and_then(|(old, reason)| self.replace(old, reason, &target));
        let subscribe = Subscribe {
            subscription: subscription.clone(),
            replaces,
            stage: self.address.id,
            name: self.report.stage.clone(),
            options: options.clone(),
            consumer: Arc::new(self.address.clone()),
        };
        let running =
            port.is_some_and(|port| port.send(ToProducer::Subscribe(Box::new(subscribe))).is_ok());
        let source = Source { target, options: options.clone(), backoff, replaced: false };
        self.inlet.add(Upstream {
            subscription: subscription.clone(),
            window: None,
            paused: false,
            extra: source,
        });
        let mut asking = Asking::Automatic;
        self.call(Callback::Subscribed(&options, &subscription, &mut asking)).await?;
        if asking == Asking::Automatic
            && let Some(upstream) = self.inlet.get(id)
        {
            upstream.window = Some(Window::new(&options));
            subscription.ask(options.max());
        }
        if let Some(answer) = answer {
            let _ = answer.send(Ok(subscription));
        }
        if !running {
            let how = Cancellation::Down(ExitReason::NoProcess);
            self.inlet.queue(Input::Ended { from: id, how });
        }
        Ok(())
    }

    fn subscription(&self, producer: Arc<dyn DemandPort<B::In>>) -> Subscription {
        let ports = Ports { producer, consumer: Arc::new(self.address.clone()) };
        Subscription::new(SubscriptionId::new(next_id()), ports)
    }

    /// Takes note that a subscription is to be replaced. The producer swaps the two if it is the
    /// same; another one has to be told.
    fn replace(
        &mut self,
        old: SubscriptionId,
        reason: ExitReason,
        target: &Arc<dyn Target<B::In>>,
    ) -> Option<(SubscriptionId, ExitReason)> {
        let upstream = self.inlet.get(old)?;
        upstream.extra.replaced = true;
        if Arc::ptr_eq(&upstream.extra.target, target) {
            return Some((old, reason));
        }
        upstream.subscription.cancel(reason);
        None
    }

    /// Goes on or ends after a subscription has ended, as its mode says.
    fn carry_on(
        &mut self,
        mode: Cancel,
        target: Arc<dyn Target<B::In>>,
        options: SubscribeOptions,
        backoff: Option<BackoffState>,
        reason: ExitReason,
    ) -> Result<(), ExitReason> {
        if let Cancel::Reconnect(policy) = mode
            && !self.draining
            && !matches!(target.occupant(), Occupant::Ended | Occupant::Vacant)
        {
            let mut backoff = backoff.unwrap_or_else(|| BackoffState::new(policy));
            let at = Instant::now() + backoff.next_delay(random());
            self.retries.push(Retry { at, target, options, backoff, reason });
            return Ok(());
        }
        if mode.survives(&reason) {
            return Ok(());
        }
        let gently = match B::KIND {
            Kind::ProducerConsumer => reason.is_graceful(),
            Kind::Supervisor => matches!(reason, ExitReason::Normal),
            Kind::Producer | Kind::Consumer => false,
        };
        if gently {
            self.finish(reason);
            return Ok(());
        }
        Err(reason)
    }

    /// Makes the subscriptions whose time has come.
    async fn retry(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        while let Some(place) = self.retries.iter().position(|retry| retry.at <= now) {
            let Retry { target, options, backoff, reason, .. } = self.retries.swap_remove(place);
            match target.occupant() {
                Occupant::Running(_) => {
                    let subscribing = Subscribing { target, options, replaces: None, answer: None };
                    self.subscribe(subscribing, Some(backoff)).await?;
                }
                _ => self.carry_on(options.mode(), target, options, Some(backoff), reason)?,
            }
        }
        Ok(())
    }

    /// Does all that can be done without a further message.
    async fn settle(&mut self) -> Result<(), ExitReason> {
        loop {
            self.allow();
            let delivered = self.outlet.deliver(&mut self.deliveries);
            self.spend(delivered);
            self.send();
            if let Some(marker) = self.due.pop_front() {
                self.reached(marker).await?;
                continue;
            }
            if !self.paused {
                let may = B::KIND != Kind::ProducerConsumer || self.outlet.unmet() > 0;
                if let Some(input) = self.inlet.next(may) {
                    self.handle(input).await?;
                    continue;
                }
            }
            if B::KIND == Kind::Producer && self.finishing.is_none() {
                let demand = self.outlet.new_demand();
                if demand > 0 {
                    self.call(Callback::Demand(demand)).await?;
                    continue;
                }
            }
            if !self.come_to_an_end().await? {
                self.gauges.waiting.store(self.inlet.held(), Relaxed);
                self.gauges.buffered.store(self.outlet.held(), Relaxed);
                return Ok(());
            }
        }
    }

    /// How many events may be delivered now.
    fn allow(&mut self) {
        let allowance = match &mut self.limiter {
            _ if self.paused => 0,
            Some(limiter) => limiter.left(Instant::now()),
            None => usize::MAX,
        };
        self.outlet.allow(allowance);
    }

    fn spend(&mut self, events: usize) {
        if let Some(limiter) = &mut self.limiter {
            limiter.spend(events);
        }
    }

    async fn handle(&mut self, input: Input<B::In>) -> Result<(), ExitReason> {
        match input {
            Input::Events { from, events } => self.handle_events(from, events).await,
            Input::Info(marker) => {
                self.outlet.info(marker);
                Ok(())
            }
            Input::Ended { from, how } => {
                let Some(upstream) = self.inlet.remove(from) else { return Ok(()) };
                let Upstream { subscription, extra, .. } = upstream;
                self.call(Callback::Cancelled(&how, &subscription)).await?;
                if extra.replaced {
                    return Ok(());
                }
                let Source { target, options, backoff, .. } = extra;
                let reason = how.reason().clone();
                self.carry_on(options.mode(), target, options, backoff, reason)
            }
        }
    }

    /// Handles a message of events, chunk by chunk, asking between the chunks.
    async fn handle_events(
        &mut self,
        from: SubscriptionId,
        mut events: Vec<B::In>,
    ) -> Result<(), ExitReason> {
        let Some(upstream) = self.inlet.get(from) else {
            // Nobody knows whose they are. This cannot be: a subscription's end comes last.
            self.report.held += events.len();
            return Ok(());
        };
        upstream.extra.backoff = None;
        let subscription = upstream.subscription.clone();
        let Some(mut batch) = upstream.window.as_ref().map(|window| window.receive(events.len()))
        else {
            let count = events.len();
            return self.chunk(events, &subscription, count).await;
        };
        loop {
            let upstream = self.inlet.get(from).expect("it ends by an input of its own");
            let window = upstream.window.as_mut().expect("it stays automatic");
            let Some(chunk) = window.next_chunk(&mut batch) else { return Ok(()) };
            if chunk.excess > 0 {
                let excess = chunk.excess;
                tracing::error!(stage = %self.report.stage, excess, "received events nobody asked for");
            }
            let rest = events.split_off(chunk.size);
            let outcome = self.chunk(events, &subscription, chunk.size).await;
            events = rest;
            if outcome.is_err() {
                self.report.held += events.len();
                return outcome;
            }
            if self.finishing.is_none() {
                subscription.ask(chunk.ask);
            }
        }
    }

    async fn chunk(
        &mut self,
        events: Vec<B::In>,
        from: &Subscription,
        count: usize,
    ) -> Result<(), ExitReason> {
        let outcome = self.call(Callback::Events(events, from)).await;
        if let Err(reason) = &outcome
            && !reason.is_graceful()
        {
            // One that ends in good order has dealt with what it was given.
            self.report.unfinished += count;
        }
        outcome
    }

    /// Runs a callback and sends off what it emitted, also when it ends the stage.
    async fn call(&mut self, callback: Callback<'_, B>) -> Result<(), ExitReason> {
        let owed = match B::KIND {
            Kind::ProducerConsumer => self.outlet.unmet(),
            _ => self.outlet.owed(),
        };
        let mut out = Emitter::new(&mut self.staged, owed);
        let behaviour = &mut self.behaviour;
        let mut answer = None;
        let outcome = contained(async {
            match callback {
                Callback::Demand(demand) => behaviour.handle_demand(demand, &mut out).await,
                Callback::Events(events, from) => {
                    behaviour.handle_events(events, from, &mut out).await
                }
                Callback::Subscribed(options, from, asking) => {
                    *asking = behaviour.handle_subscribe(options, from, &mut out).await?;
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
                Callback::Letter(letter) => {
                    let Opened { outcome, answer: late } =
                        letter.open(behaviour.stage(), &mut out).await;
                    answer = late;
                    outcome
                }
            }
        })
        .await;
        let finishes = out.finishes();
        self.emit();
        drop(answer);
        if finishes && outcome.is_ok() {
            self.finish(ExitReason::Normal);
        }
        outcome
    }

    /// Sends off what a callback emitted.
    fn emit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        self.allow();
        let Emitted { dispatched, overflow, unsubscribed } =
            self.outlet.emit(&mut self.staged, &mut self.deliveries);
        self.spend(dispatched);
        if unsubscribed > 0 {
            self.report.discarded += unsubscribed;
            self.gauges.discarded.fetch_add(unsubscribed as u64, Relaxed);
            self.metrics.discarded(Discard::Unsubscribed, unsubscribed as u64);
        }
        if overflow > 0 {
            self.discard(Discard::BufferFull, overflow, "the buffer is full");
        }
        self.send();
    }

    fn discard(&mut self, why: Discard, count: usize, message: &'static str) {
        self.report.discarded += count;
        self.gauges.discarded.fetch_add(count as u64, Relaxed);
        self.metrics.discarded(why, count as u64);
        if self.behaviour.format_discarded(count) {
            tracing::warn!(stage = %self.report.stage, discarded = count, "{message}");
        }
    }

    /// Sends off what the dispatcher has decided to send.
    fn send(&mut self) {
        for delivery in self.deliveries.drain() {
            let (to, events) = match delivery {
                Delivery::Info(marker) => {
                    self.due.push_back(marker);
                    continue;
                }
                Delivery::Events { to, events } => (to, events),
            };
            self.metrics.events_out.increment(events.len() as u64);
            self.gauges.events_out.fetch_add(events.len() as u64, Relaxed);
            let Some(Downstream { subscription, consumer }) = self.consumers.get(&to) else {
                self.report.held += events.len();
                continue;
            };
            subscription.sent(events.len());
            let message = ToConsumer::Events { from: subscription.clone(), events };
            // Its consumer has just ended; the end is in the mailbox.
            if let Err(ToConsumer::Events { events, .. }) = consumer.send(message) {
                self.report.held += events.len();
            }
        }
        let (filtered, unroutable) = self.deliveries.take_discarded();
        if filtered > 0 {
            self.metrics.discarded(Discard::Filtered, filtered as u64);
        }
        if unroutable > 0 {
            self.discard(
                Discard::Unroutable,
                unroutable,
                "events for a partition that is not there",
            );
        }
        for warning in self.deliveries.take_warnings() {
            tracing::warn!(stage = %self.report.stage, "{warning}");
        }
    }

    fn marker(&mut self, pending: Pending<B>) -> Marker {
        let marker = Marker::new(self.next_marker);
        self.next_marker += 1;
        self.markers.insert(marker, pending);
        marker
    }

    /// Puts a marker behind everything the stage holds.
    fn mark(&mut self, marker: Marker) {
        if self.inlet.is_empty() {
            self.outlet.info(marker);
        } else {
            self.inlet.queue(Input::Info(marker));
        }
    }

    async fn reached(&mut self, marker: Marker) -> Result<(), ExitReason> {
        match self.markers.remove(&marker) {
            Some(Pending::Letter(letter)) => self.call(Callback::Letter(letter)).await,
            Some(Pending::Finish) => {
                if let Some(finishing) = &mut self.finishing {
                    finishing.step = Step::Work;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins to deliver what the stage holds, and to end then.
    fn finish(&mut self, reason: ExitReason) {
        if self.finishing.is_none() {
            self.paused = false;
            self.finishing = Some(Finishing { reason, step: Step::Input });
        }
    }

    /// Goes on with ending. Whether there is more to do at once.
    async fn come_to_an_end(&mut self) -> Result<bool, ExitReason> {
        let Some(finishing) = &mut self.finishing else {
            let abandoned = B::KIND != Kind::Producer && self.inlet.upstreams().is_empty();
            if self.draining && abandoned && self.inlet.is_empty() {
                self.finish(ExitReason::Normal);
                return Ok(true);
            }
            return Ok(false);
        };
        match finishing.step {
            Step::Input if self.inlet.is_empty() => {
                finishing.step = Step::Output;
                if B::KIND == Kind::ProducerConsumer {
                    self.call(Callback::Drain).await?;
                }
                let marker = self.marker(Pending::Finish);
                self.outlet.info(marker);
                Ok(true)
            }
            Step::Work if !self.behaviour.is_busy() => Err(finishing.reason.clone()),
            Step::Input | Step::Output | Step::Work => Ok(false),
        }
    }

    /// Tells everybody of the end, and counts what is left.
    fn end(&mut self, reason: &ExitReason) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.report.held += self.outlet.held() + self.inlet.held();
        // First, so that nothing can arrive uncounted.
        self.mailbox.close();
        while let Ok(mail) = self.mailbox.try_recv() {
            match mail {
                Mail::FromProducer(ToConsumer::Events { events, .. }) => {
                    self.report.held += events.len();
                }
                Mail::FromConsumer(ToProducer::Subscribe(subscribe)) => {
                    let from = subscribe.subscription.id();
                    let reason = reason.clone();
                    let _ = subscribe.consumer.send(ToConsumer::Down { from, reason });
                }
                _ => {}
            }
        }
        for (&from, downstream) in &self.consumers {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Down { from, reason });
        }
        for upstream in self.inlet.upstreams() {
            upstream.subscription.down(reason.clone());
        }
    }
}

/// Whoever drops the task has ended the stage without asking it.
impl<B: Behaviour> Drop for StageTask<B> {
    fn drop(&mut self) {
        self.end(&ExitReason::Killed);
    }
}

/// The producer of a subscription that never came about.
struct Nobody;

impl<E> DemandPort<E> for Nobody {
    fn send(&self, message: ToProducer<E>) -> Result<(), ToProducer<E>> {
        Err(message)
    }
}

/// Waits until a stage has something; a panic in it ends the stage like one in a callback.
async fn is_ready<B: Behaviour>(behaviour: &mut B) -> Result<(), ExitReason> {
    contained(async {
        behaviour.ready().await;
        Ok(())
    })
    .await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A number from 0 to 1, so that those who wait do not all come back at once.
fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}
