//! Runs a plan.

use std::{future::Future, thread, time::Duration};

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    dispatcher::DemandDispatcher,
    stage::{
        ConsumerHandle, DemandMode, ProducerConsumerHandle, ProducerHandle, Stage, StageHandle,
    },
    subscription::{SubscribeOptions, Subscription},
    supervisor::{ConsumerSupervisor, SupervisorHandle},
    testkit::settle,
};
use tokio::{
    runtime::{Builder, Handle},
    task::{self, JoinSet},
    time::{self, Instant},
};

use super::{
    ledger::{Event, Lanes, Ledger, Watched},
    plan::{Deed, Edge, Frame, Plan},
    stages::{Burst, Faults, Kit, Mark, Relay, Sink, Source, Work},
};

/// A plan that is being run.
pub(super) struct Run {
    pub(super) ledger: Ledger,
    graph: Option<Graph>,
    stages: Vec<Member>,
    faults: Vec<Faults>,
    sources: usize,
    relays: usize,
    /// Tasks that wait for effects of an operation.
    waiting: JoinSet<()>,
}

/// A stage of any kind.
#[derive(Clone)]
enum Member {
    Source(ProducerHandle<Source>),
    Relay(ProducerConsumerHandle<Relay>),
    Sink(ConsumerHandle<Sink>),
    Supervisor(SupervisorHandle<Event, Work>),
}

/// Evaluates the same expression for a stage of any kind.
macro_rules! with {
    ($member:expr, $stage:ident => $act:expr) => {
        match $member {
            Member::Source($stage) => $act,
            Member::Relay($stage) => $act,
            Member::Sink($stage) => $act,
            Member::Supervisor($stage) => $act,
        }
    };
}

/// Runs a future on a runtime of its own, with a paused clock.
///
/// Returns the number of remaining tasks.
pub(super) fn alone<T>(run: impl Future<Output = T>) -> (T, usize) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let outcome = run.await;
        settle().await;
        (outcome, Handle::current().metrics().num_alive_tasks())
    })
}

/// Runs a future on threads of its own, in real time.
///
/// Returns the number of remaining tasks.
pub(super) fn on_threads<T>(threads: usize, run: impl Future<Output = T>) -> (T, usize) {
    let runtime =
        Builder::new_multi_thread().worker_threads(threads).enable_time().build().unwrap();
    let outcome = runtime.block_on(run);
    // Stopping tasks take their own time, which is long only for a stuck one.
    let patience = Instant::now() + Duration::from_secs(10);
    let left = || runtime.metrics().num_alive_tasks();
    while left() > 0 && Instant::now() < patience {
        thread::yield_now();
    }
    (outcome, left())
}

/// The maximum duration of any operation that is not stuck.
async fn soon(act: impl Future) {
    let _ = time::timeout(Duration::from_millis(20), act).await;
}

impl Run {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut run = Self {
            ledger: Ledger::default(),
            graph: Some(Graph::new("random")),
            stages: Vec::new(),
            faults: Vec::new(),
            sources: plan.sources.len(),
            relays: plan.relays.len(),
            waiting: JoinSet::new(),
        };
        if format!("{plan:?}").contains("Accumulate") {
            run.ledger.expect_replays();
        }
        for (n, (frame, style, total)) in plan.sources.iter().cloned().enumerate() {
            let kit = run.kit(&frame);
            let stage = run.emitting(&frame, true, move || Source::new(&kit, style, total));
            let source = run.graph().producer_with(stage.named(format!("source {n}")));
            run.stages.push(Member::Source(source));
        }
        for (n, (frame, shape)) in plan.relays.iter().cloned().enumerate() {
            let kit = run.kit(&frame);
            let stage = run.emitting(&frame, false, move || Relay::new(&kit, shape));
            let relay = run.graph().producer_consumer_with(stage.named(format!("relay {n}")));
            run.stages.push(Member::Relay(relay));
        }
        for (n, frame) in plan.sinks.iter().enumerate() {
            let kit = run.kit(frame);
            let stage = made(frame, move || Sink::new(&kit));
            let sink = run.graph().consumer_with(stage.named(format!("sink {n}")));
            run.stages.push(Member::Sink(sink));
        }
        for (n, (frame, crew)) in plan.supervisors.iter().cloned().enumerate() {
            let kit = run.kit(&frame);
            let stage = made(&frame, move || {
                ConsumerSupervisor::new(Work::new(&kit, crew.failures))
                    .max_restarts(crew.restarts, Duration::from_secs(5))
                    .max_children(crew.max_children)
                    .shutdown(crew.shutdown)
            });
            let stage = stage.named(format!("supervisor {n}"));
            let supervisor = run.graph().consumer_supervisor_with(stage);
            run.stages.push(Member::Supervisor(supervisor));
        }
        for edge in &plan.edges {
            run.plan_subscription(edge);
        }
        run
    }

    fn graph(&mut self) -> &mut Graph {
        self.graph.as_mut().expect("the graph has not been started")
    }

    fn kit(&mut self, frame: &Frame) -> Kit {
        let faults = Faults::default();
        self.faults.push(faults.clone());
        Kit { ledger: self.ledger.clone(), faults, pace: frame.pace }
    }

    fn emitting<S: Send + 'static>(
        &self,
        frame: &Frame,
        first: bool,
        make: impl FnMut() -> S + Send + 'static,
    ) -> Stage<S, Event> {
        let mut stage = made(frame, make)
            .buffer_keep(frame.keep)
            .when_unsubscribed(frame.when_unsubscribed)
            .demand_mode(frame.mode);
        if let Some(size) = frame.buffer {
            stage = stage.buffer_size(size);
        }
        if let Some(limit) = frame.limit {
            stage = stage.rate_limit(limit);
        }
        let ledger = self.ledger.clone();
        if frame.lanes {
            return stage.dispatcher(move || Watched::new(Lanes::default(), ledger.clone(), first));
        }
        stage.dispatcher(move || Watched::new(DemandDispatcher::new(), ledger.clone(), first))
    }

    /// The two stages of an edge: a relay subscribes to a stage before it.
    fn ends(&self, edge: &Edge) -> Option<(Member, Member)> {
        let to = self.sources + edge.to % (self.stages.len() - self.sources).max(1);
        let emitters = to.min(self.sources + self.relays);
        Some((self.stages[edge.from % emitters].clone(), self.stages.get(to)?.clone()))
    }

    fn plan_subscription(&mut self, edge: &Edge) {
        let Some((from, to)) = self.ends(edge) else { return };
        let options = edge.options();
        let graph = self.graph();
        match (&from, &to) {
            (Member::Source(from), Member::Relay(to)) => graph.subscribe(to, from, options),
            (Member::Source(from), Member::Sink(to)) => graph.subscribe(to, from, options),
            (Member::Source(from), Member::Supervisor(to)) => graph.subscribe(to, from, options),
            (Member::Relay(from), Member::Relay(to)) => graph.subscribe(to, from, options),
            (Member::Relay(from), Member::Sink(to)) => graph.subscribe(to, from, options),
            (Member::Relay(from), Member::Supervisor(to)) => graph.subscribe(to, from, options),
            _ => unreachable!("sources only emit, and sinks and supervisors only receive"),
        }
    }

    pub(super) fn start(&mut self) -> Pipeline {
        self.graph.take().expect("the graph is started once").start().unwrap()
    }

    fn stage(&self, stage: usize) -> &Member {
        &self.stages[stage % self.stages.len()]
    }

    fn subscription(&self, subscription: usize) -> Option<Subscription> {
        let mut all = self.ledger.subscriptions();
        (!all.is_empty()).then(|| all.swap_remove(subscription % all.len()))
    }

    async fn carry_out(&mut self, deed: &Deed) {
        match deed.clone() {
            Deed::Wait(ms) => time::sleep(Duration::from_millis(ms)).await,
            Deed::Yield(times) => {
                for _ in 0..times {
                    task::yield_now().await;
                }
            }
            Deed::Pause(stage, paused) => with!(self.stage(stage), stage => pause(stage, paused)),
            Deed::PauseSubscription(subscription, paused) => {
                if let Some(subscription) = self.subscription(subscription) {
                    if paused { subscription.pause() } else { subscription.resume() }
                }
            }
            Deed::Mode(stage, mode) => {
                if let Member::Source(source) = self.stage(stage % self.sources) {
                    source.set_demand_mode(mode);
                }
            }
            Deed::Limit(stage, limit) => with!(self.stage(stage), stage => stage.rate_limit(limit)),
            Deed::Mark(stage) => match self.stage(stage) {
                Member::Source(stage) => soon(stage.sync_info(Mark)).await,
                Member::Relay(stage) => soon(stage.sync_info(Mark)).await,
                Member::Sink(stage) => soon(stage.sync_info(Mark)).await,
                Member::Supervisor(_) => {}
            },
            Deed::Ask(subscription, demand) => {
                if let Some(subscription) = self.subscription(subscription) {
                    subscription.ask(demand);
                }
            }
            Deed::Burst(stage, count) => {
                if let Member::Source(source) = self.stage(stage % self.sources) {
                    soon(source.cast(Burst(count))).await;
                }
            }
            Deed::Cancel(subscription, reason) => {
                if let Some(subscription) = self.subscription(subscription) {
                    subscription.cancel(reason);
                }
            }
            Deed::Subscribe(edge) => self.subscribe(None, &edge).await,
            Deed::Resubscribe(old, edge) => self.subscribe(self.subscription(old), &edge).await,
            Deed::Fault(stage, fault) => self.faults[stage % self.faults.len()].set(fault),
            Deed::Finish(stage) => with!(self.stage(stage).clone(), stage => {
                self.waiting.spawn(async move { stage.finish().await });
            }),
            Deed::Stop(stage, reason) => with!(self.stage(stage).clone(), stage => {
                self.waiting.spawn(async move { stage.stop(reason).await });
            }),
            Deed::Kill(stage) => with!(self.stage(stage), stage => stage.kill()),
        }
    }

    pub(super) async fn carry_out_all(&mut self, deeds: &[Deed]) {
        for deed in deeds {
            self.carry_out(deed).await;
        }
    }

    async fn subscribe(&self, old: Option<Subscription>, edge: &Edge) {
        let Some((from, to)) = self.ends(edge) else { return };
        let options = edge.options();
        match (from, to) {
            (Member::Source(from), Member::Relay(to)) => add(&to, &from, old, options).await,
            (Member::Source(from), Member::Sink(to)) => add(&to, &from, old, options).await,
            (Member::Source(from), Member::Supervisor(to)) => add(&to, &from, old, options).await,
            (Member::Relay(from), Member::Relay(to)) => add(&to, &from, old, options).await,
            (Member::Relay(from), Member::Sink(to)) => add(&to, &from, old, options).await,
            (Member::Relay(from), Member::Supervisor(to)) => add(&to, &from, old, options).await,
            _ => {}
        }
    }

    /// Releases everything that is held back.
    pub(super) fn lift(&self) {
        for stage in &self.stages {
            with!(stage, stage => {
                pause(stage, false);
                stage.rate_limit(None);
            });
            if let Member::Source(source) = stage {
                source.set_demand_mode(DemandMode::Forward);
            }
        }
        self.ledger.subscriptions().iter().for_each(Subscription::resume);
    }
}

fn made<S: Send + 'static, E: 'static>(
    frame: &Frame,
    mut make: impl FnMut() -> S + Send + 'static,
) -> Stage<S, E> {
    if frame.restarts { Stage::restarting(make) } else { Stage::new(make()) }
}

fn pause<S, In, Out>(stage: &StageHandle<S, In, Out>, paused: bool)
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    if paused { stage.pause() } else { stage.resume() }
}

async fn add<S, Out, P, In>(
    to: &StageHandle<S, Event, Out>,
    from: &StageHandle<P, In, Event>,
    old: Option<Subscription>,
    options: SubscribeOptions,
) where
    S: Send + 'static,
    Out: Send + 'static,
    P: Send + 'static,
    In: Send + 'static,
{
    match old {
        None => soon(to.subscribe(from, options)).await,
        Some(old) => {
            soon(to.resubscribe(&old, ExitReason::Shutdown, from, options)).await;
        }
    }
}
