//! The task of a stage, whatever its kind: one message after the other, one callback at a time.

mod downstream;
mod ending;
mod phase;
mod upstream;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    task::Poll,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, coop},
    time::{self, Instant},
};

use self::{
    downstream::Downstream,
    ending::{Finishing, Pending, Step},
    phase::PhaseWatch,
    upstream::{Retry, Source},
};
use super::{
    Emitter, Phase, StageContext, StageReport,
    behaviour::{Behaviour, HandleOf, Kind},
    contained, contained_now,
    gauges::Gauges,
    link::ToProducer,
    message::{Letter, Opened},
    options::StageOptions,
    slot::{Address, Control, Mail, Mailbox, Subscribing},
};
use crate::{
    dispatcher::{Deliveries, Marker},
    exit::ExitReason,
    inlet::{Inlet, Input},
    outlet::{DemandMode, Outlet},
    rate_limit::RateLimiter,
    snapshot::Activity,
    subscription::{Asking, Cancellation, SubscribeOptions, Subscription, SubscriptionId},
    telemetry::StageMetrics,
};

/// A stage that runs.
pub(crate) struct StageTask<B: Behaviour> {
    behaviour: B,
    address: Address<B::Stage, B::In, B::Out>,
    mailbox: Mailbox<B::Stage, B::In, B::Out>,
    phase: PhaseWatch,
    inlet: Inlet<B::In, Source<B::In>>,
    retries: Vec<Retry<B::In>>,
    outlet: Outlet<B::Out>,
    consumers: foldhash::HashMap<SubscriptionId, Downstream<B::Out>>,
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
    /// Events that a callback has been given and is not done with.
    in_hand: usize,
    /// Events of the same message that come after those.
    behind: usize,
    /// Whether everybody has been told of the end.
    ended: bool,
    /// The report of a stage that was ended without being asked.
    last_words: Arc<OnceLock<StageReport>>,
}

/// Where a stage runs: whom to tell something, and where it arrives.
type Place<B> = (
    Address<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
    Mailbox<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>,
);

/// What a stage has waited for.
enum Woken {
    Phase(Phase),
    Mail,
    Ready(Result<(), ExitReason>),
    Timer,
}

/// A callback, and what it is called with.
enum Callback<'a, B: Behaviour> {
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
            phase: PhaseWatch::new(phase),
            inlet: Inlet::new(),
            retries: Vec::new(),
            outlet: options.outlet(B::KIND),
            consumers: foldhash::HashMap::default(),
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
            in_hand: 0,
            behind: 0,
            ended: false,
            last_words: Arc::default(),
        }
    }

    /// Where the report is found if `run` does not come to its end.
    pub(crate) fn last_words(&self) -> Arc<OnceLock<StageReport>> {
        self.last_words.clone()
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
            self.behaviour.terminate(&reason, self.phase.receiver()).await;
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

    /// Waits for one thing to happen, and does what follows from it.
    async fn step(&mut self) -> Result<(), ExitReason> {
        // What is here already needs no waiting.
        let woken = if self.mailbox.has_next() && !self.phase.has_changed() {
            Woken::Mail
        } else {
            self.wait().await
        };
        match woken {
            Woken::Phase(phase) => self.enter(phase).await?,
            Woken::Mail => {
                // Before a message is taken: it would be lost if the stage were ended here.
                coop::consume_budget().await;
                match self.mailbox.next() {
                    // Most of all mail, in a hurry.
                    Some(Mail::FromProducer(message)) => self.producer_says(message),
                    Some(Mail::FromConsumer(ToProducer::Ask { id, demand, consumer })) => {
                        self.asked(id, demand, consumer);
                    }
                    Some(mail) => self.receive(mail).await?,
                    None => {}
                }
            }
            Woken::Ready(ready) => {
                ready?;
                self.call(Callback::Ready).await?;
            }
            Woken::Timer => self.retry().await?,
        }
        self.settle().await
    }

    /// Waits for the first of all that it may wait for, the most urgent first.
    async fn wait(&mut self) -> Woken {
        let owed = self.outlet.owed();
        let waits = self.finishing.as_ref().is_none_or(|finishing| finishing.step == Step::Work)
            && !self.paused
            && self.behaviour.waits(owed);
        let timer = self.next_timer();
        let activity = self.activity();
        let mut ready = pin!(waits.then(|| is_ready(&mut self.behaviour)));
        let mut timer = pin!(timer.map(time::sleep_until));
        let mut idle = false;
        let woken = poll_fn(|context| {
            if let Poll::Ready(phase) = self.phase.poll_change(context) {
                return Poll::Ready(Woken::Phase(phase));
            }
            if self.mailbox.poll_take(context).is_ready() {
                return Poll::Ready(Woken::Mail);
            }
            if let Some(ready) = ready.as_mut().as_pin_mut()
                && let Poll::Ready(ready) = ready.poll(context)
            {
                return Poll::Ready(Woken::Ready(ready));
            }
            if let Some(timer) = timer.as_mut().as_pin_mut()
                && timer.poll(context).is_ready()
            {
                return Poll::Ready(Woken::Timer);
            }
            // The clock is read only if there is something to time.
            if !idle {
                idle = true;
                self.gauges.enter(activity);
            }
            Poll::Pending
        })
        .await;
        if idle {
            self.gauges.enter(Activity::Busy);
        }
        woken
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
            // What a producer holds is in its own hands: it hands it out as it is asked for.
            Control::Finish if B::KIND == Kind::Producer => self.drain().await?,
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

    /// Does all that can be done without a further message.
    async fn settle(&mut self) -> Result<(), ExitReason> {
        loop {
            self.allow();
            if !self.outlet.is_empty() {
                let delivered = self.outlet.deliver(&mut self.deliveries);
                self.spend(delivered);
            }
            self.send();
            if let Some(marker) = self.due.pop_front() {
                self.reached(marker).await?;
                continue;
            }
            if !self.paused && !self.inlet.is_empty() {
                let may = B::KIND != Kind::ProducerConsumer || self.outlet.unmet() > 0;
                match self.inlet.next(may) {
                    Some(Input::Events { from, events }) => {
                        self.handle_events(from, events).await?;
                        continue;
                    }
                    Some(input) => {
                        self.handle(input).await?;
                        continue;
                    }
                    None => {}
                }
            }
            if B::KIND == Kind::Producer && self.finishing.is_none() {
                let demand = self.outlet.new_demand();
                if demand > 0 {
                    self.call_demand(demand).await?;
                    continue;
                }
            }
            let ends = self.draining || self.finishing.is_some();
            if !ends || !self.come_to_an_end().await? {
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

    /// What the next callback is told that there is demand for.
    fn owed(&self) -> usize {
        match B::KIND {
            Kind::ProducerConsumer => self.outlet.unmet(),
            _ => self.outlet.owed(),
        }
    }

    /// The two callbacks that run all the time, this one and that for events, have no part in the
    /// enumeration of all, whose future is as large as the largest of them.
    async fn call_demand(&mut self, demand: usize) -> Result<(), ExitReason> {
        let mut out = Emitter::new(&mut self.staged, self.outlet.owed());
        let behaviour = &mut self.behaviour;
        let outcome = contained(async { behaviour.handle_demand(demand, &mut out).await }).await;
        let finishes = out.finishes();
        self.called(finishes, outcome)
    }

    /// Sends off what a callback has emitted.
    fn called(
        &mut self,
        finishes: bool,
        outcome: Result<(), ExitReason>,
    ) -> Result<(), ExitReason> {
        self.emit();
        if finishes && outcome.is_ok() {
            self.finish(ExitReason::Normal);
        }
        outcome
    }

    /// Runs a callback and sends off what it emitted, also when it ends the stage.
    async fn call(&mut self, callback: Callback<'_, B>) -> Result<(), ExitReason> {
        let owed = self.owed();
        let mut out = Emitter::new(&mut self.staged, owed);
        let behaviour = &mut self.behaviour;
        let mut answer = None;
        let outcome = contained(async {
            match callback {
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
        let outcome = self.called(finishes, outcome);
        drop(answer);
        outcome
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
