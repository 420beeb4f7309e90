//! Timers of stages: messages that a stage sends itself later, or at an interval.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    source::{from_iter, from_stream},
    stage::{
        CallError, Consumer, ConsumerHandle, Emitter, HandleInfo, Producer, ProducerConsumer,
        ProducerConsumerHandle, ProducerHandle, Stage, StageContext, StageTimer,
    },
    step::for_each,
    subscription::{SubscribeOptions, Subscription},
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, sleep, timeout},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Reports the numbers of its timers, and when they fired. It sets those of `plan` when it starts.
struct Clock {
    fired: Sender<(u64, Duration)>,
    since: Instant,
    plan: fn(&StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason>,
    /// How long it works on the first message.
    works: Duration,
}

type Fired = Receiver<(u64, Duration)>;

impl Clock {
    fn new(
        plan: fn(&StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason>,
    ) -> (Self, Fired) {
        let (fired, firings) = channel(1000);
        (Self { fired, since: Instant::now(), plan, works: Duration::ZERO }, firings)
    }
}

impl Producer for Clock {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        (self.plan)(context)
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleInfo<u64, u64> for Clock {
    async fn handle_info(&mut self, n: u64, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        let _ = self.fired.try_send((n, self.since.elapsed()));
        sleep(std::mem::take(&mut self.works)).await;
        Ok(())
    }
}

/// The numbers and times of the next timers.
async fn next(fired: &mut Fired, count: usize) -> Vec<(u64, u128)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let (n, at) = timeout(LONG, fired.recv()).await.expect("a timer fires").unwrap();
        seen.push((n, at.as_millis()));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn timers_fire_when_due_and_those_of_the_same_time_in_the_order_in_which_they_were_set() {
    let (clock, mut fired) = Clock::new(|context| {
        for (n, after) in [(1, 20), (2, 10), (3, 20), (4, 0)] {
            context.send_after(ms(after), n)?;
        }
        context.send_after(Duration::MAX, 5)?;
        Ok(())
    });
    let mut graph = Graph::new("test");
    graph.producer("clock", clock);
    let _pipeline = graph.start().unwrap();
    assert_eq!(next(&mut fired, 4).await, [(4, 0), (2, 10), (1, 20), (3, 20)]);
    assert!(timeout(LONG, fired.recv()).await.is_err(), "one that is never due has fired");
}

#[tokio::test(start_paused = true)]
async fn an_interval_keeps_its_times_and_leaves_out_those_for_which_the_stage_was_busy() {
    let (mut clock, mut fired) = Clock::new(|context| {
        context.send_interval(ms(10), 1)?;
        Ok(())
    });
    clock.works = ms(35);
    let mut graph = Graph::new("test");
    graph.producer("clock", clock);
    let _pipeline = graph.start().unwrap();
    // It is busy from 10 to 45. The message of 20 waits, those of 30 and 40 are left out.
    assert_eq!(next(&mut fired, 4).await, [(1, 10), (1, 45), (1, 50), (1, 60)]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_timer_does_not_fire_and_is_cancelled_once() {
    let (clock, mut fired) = Clock::new(|_| Ok(()));
    let mut graph = Graph::new("test");
    let clock = graph.producer("clock", clock);
    let _pipeline = graph.start().unwrap();

    let once = clock.send_after(ms(10), 1).unwrap();
    let never = clock.send_after(ms(10), 2).unwrap();
    let often = clock.send_interval(ms(10), 3).unwrap();
    assert!(never.cancel());
    assert!(!never.clone().cancel(), "it is cancelled already");
    assert_eq!(next(&mut fired, 3).await, [(1, 10), (3, 10), (3, 20)]);
    assert!(!once.cancel(), "it has fired");
    assert!(often.cancel());
    drop(clock.send_after(ms(50), 4).unwrap());
    assert_eq!(next(&mut fired, 1).await, [(4, 70)]);
    assert!(fired.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stage_has_1024_timers_and_no_more() {
    let (clock, mut fired) = Clock::new(|_| Ok(()));
    let mut graph = Graph::new("test");
    let clock = graph.producer("clock", clock);
    assert_eq!(clock.send_after(ms(1), 0).err(), Some(CallError::NotRunning));
    let pipeline = graph.start().unwrap();

    let timers: Vec<StageTimer> = (0..1023)
        .map(|n| clock.send_after(LONG, n))
        .chain([clock.send_interval(ms(5), 5000)])
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(clock.send_after(ms(1), 7).err(), Some(CallError::Full));
    assert_eq!(clock.send_interval(ms(1), 7).err(), Some(CallError::Full));
    assert_eq!(next(&mut fired, 1).await, [(5000, 5)]);
    assert_eq!(
        clock.send_after(ms(1), 7).err(),
        Some(CallError::Full),
        "an interval keeps its place"
    );
    assert!(timers[0].cancel());
    clock.send_after(ms(1), 7).unwrap();
    assert_eq!(next(&mut fired, 1).await, [(7, 6)]);
    clock.send_after(LONG, 8).unwrap();

    pipeline.drain(LONG).await;
    assert_eq!(clock.send_after(ms(1), 9).err(), Some(CallError::NotRunning));
    assert!(!timers[1].cancel(), "the timers have ended with the stage");
}

/// Fails when it gets a message.
struct Fragile {
    fired: Sender<(u64, Duration)>,
    since: Instant,
    starts: Arc<AtomicUsize>,
}

impl Producer for Fragile {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        if self.starts.fetch_add(1, SeqCst) == 0 {
            context.send_after(ms(10), 1)?;
            context.send_after(ms(20), 2)?;
            context.send_interval(ms(20), 3)?;
        }
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleInfo<u64, u64> for Fragile {
    async fn handle_info(&mut self, n: u64, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        let _ = self.fired.try_send((n, self.since.elapsed()));
        assert_ne!(n, 1, "the first timer");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_stage_begins_without_timers_and_may_set_others() {
    let (fired, mut firings) = channel(1000);
    let (starts, since) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let started = starts.clone();
    let make = move || Fragile { fired: fired.clone(), since, starts: started.clone() };
    let mut graph = Graph::new("test");
    let fragile = graph.producer_with(Stage::restarting(make).named("fragile"));
    let _pipeline = graph.start().unwrap();
    assert_eq!(next(&mut firings, 1).await, [(1, 10)]);
    sleep(ms(100)).await;
    assert_eq!(starts.load(SeqCst), 2);
    fragile.send_after(ms(1), 4).unwrap();
    assert_eq!(next(&mut firings, 1).await, [(4, 111)]);
    assert!(firings.try_recv().is_err(), "a timer of the stage that has failed fired");
}

/// Emits the sum of its events when a timer fires. Its consumer never asks.
struct Sums(u64);

impl ProducerConsumer for Sums {
    type In = u64;
    type Out = u64;

    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        context.send_interval(ms(10), ())?;
        Ok(())
    }

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0 += events.iter().sum::<u64>();
        Ok(())
    }
}

impl HandleInfo<(), u64> for Sums {
    async fn handle_info(&mut self, (): (), out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        if self.0 > 0 {
            out.emit(std::mem::take(&mut self.0));
        }
        Ok(())
    }
}

/// Is never done with an event, and ends at its second message.
struct Counts {
    messages: usize,
    total: Arc<AtomicUsize>,
}

impl Consumer for Counts {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
        context.send_interval(ms(100), "tick")?;
        Ok(())
    }

    async fn handle_events(&mut self, sums: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        let sum = usize::try_from(sums.iter().sum::<u64>()).unwrap();
        self.total.fetch_add(sum, SeqCst);
        Ok(())
    }
}

impl HandleInfo<&'static str> for Counts {
    async fn handle_info(
        &mut self,
        _: &'static str,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        self.messages += 1;
        if self.messages == 2 { Err(ExitReason::Normal) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn stages_between_and_consumers_have_timers_and_emit_in_them() {
    let total = Arc::new(AtomicUsize::new(0));
    let numbers =
        futures::StreamExt::chain(futures::stream::iter(0..100), futures::stream::pending());
    let mut pipeline = Pipeline::builder("test")
        .producer(from_stream(numbers))
        .producer_consumer(Sums(0), SubscribeOptions::new())
        .consumer(Counts { messages: 0, total: total.clone() }, SubscribeOptions::new())
        .start()
        .unwrap();
    let report = timeout(LONG, pipeline.join()).await.expect("the consumer's timer ends it");
    assert!(report.failure().is_none(), "{report}");
    assert_eq!(total.load(SeqCst), (0..100).sum());
}

#[tokio::test(start_paused = true)]
async fn a_timer_does_not_wait_behind_events_that_no_consumer_asks_for() {
    /// Emits events without demand, and ends by a timer.
    struct Eager;
    impl Producer for Eager {
        type Event = u64;

        fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
            context.send_after(ms(10), "emit")?;
            context.send_after(ms(20), "end")?;
            Ok(())
        }

        async fn handle_demand(
            &mut self,
            _: usize,
            _: &mut Emitter<'_, u64>,
        ) -> Result<(), ExitReason> {
            Ok(())
        }
    }
    impl HandleInfo<&'static str, u64> for Eager {
        async fn handle_info(
            &mut self,
            message: &'static str,
            out: &mut Emitter<'_, u64>,
        ) -> Result<(), ExitReason> {
            if message == "end" {
                return Err(ExitReason::ShutdownWith("the timer".into()));
            }
            out.emit_all(0..5);
            Ok(())
        }
    }
    let stuck = for_each(|_: u64| pending::<()>());
    let mut pipeline = Pipeline::builder("test")
        .producer(Eager)
        .consumer(stuck, SubscribeOptions::new().max_demand(1))
        .stop_within(ms(100))
        .start()
        .unwrap();
    let report = timeout(LONG, pipeline.join()).await.expect("the timer has ended the stage");
    assert_eq!(report.stages[0].reason.to_string(), "shutdown: the timer");
    assert_eq!(report.unprocessed(), 5);
}

/// Has a timer that is always due, and is always ready.
struct Busy {
    me: Option<ProducerHandle<Self>>,
    timers: usize,
    readies: usize,
}

impl Producer for Busy {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.me = Some(context.handle().clone());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.me.as_ref().expect("init has set it").send_after(Duration::ZERO, ())?;
        Ok(())
    }

    async fn ready(&mut self) {}

    async fn handle_ready(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.readies += 1;
        self.check()
    }
}

impl Busy {
    /// Neither of its two sources of work keeps the other one waiting.
    fn check(&self) -> Result<(), ExitReason> {
        match self.timers + self.readies {
            count if self.timers.abs_diff(self.readies) > 64 => {
                Err(ExitReason::failed(format!("{} timers of {count}", self.timers)))
            }
            count if count > 10_000 => Err(ExitReason::Normal),
            _ => Ok(()),
        }
    }
}

impl HandleInfo<(), u64> for Busy {
    async fn handle_info(&mut self, (): (), _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.timers += 1;
        self.me.as_ref().expect("init has set it").send_after(Duration::ZERO, ())?;
        self.check()
    }
}

#[tokio::test]
async fn a_timer_that_is_always_due_and_a_stage_that_is_always_ready_take_turns() {
    let mut pipeline = Pipeline::builder("test")
        .producer(Busy { me: None, timers: 0, readies: 0 })
        .consumer(for_each(async |_: u64| {}), SubscribeOptions::new())
        .start()
        .unwrap();
    let other = tokio::spawn(sleep(ms(1)));
    let report = timeout(LONG, pipeline.join()).await.expect("it ends");
    assert!(report.failure().is_none(), "{report}");
    timeout(LONG, other).await.expect("other tasks run").unwrap();
}

/// Counts its events and its messages.
struct Counter {
    events: Arc<AtomicUsize>,
    fired: Arc<AtomicUsize>,
}

impl Consumer for Counter {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        self.events.fetch_add(events.len(), SeqCst);
        Ok(())
    }
}

impl HandleInfo<u64> for Counter {
    async fn handle_info(
        &mut self,
        _: u64,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        self.fired.fetch_add(1, SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn timers_that_several_threads_set_and_cancel_fire_once_or_are_cancelled() {
    let [events, fired] = [0; 2].map(|count| Arc::new(AtomicUsize::new(count)));
    let mut graph = Graph::new("test");
    let endless = graph.producer("endless", from_iter(0..));
    let counter = Counter { events: events.clone(), fired: fired.clone() };
    let counter = graph.consumer("counter", counter);
    graph.subscribe(&counter, &endless, SubscribeOptions::new());
    let _pipeline = graph.start().unwrap();
    let setters: Vec<_> = (0..4)
        .map(|setter| {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut cancelled = 0;
                for n in 0..1000 {
                    let timer = loop {
                        match counter.send_after(ms(n % 3), n) {
                            Err(CallError::Full) => sleep(ms(1)).await,
                            timer => break timer.unwrap(),
                        }
                    };
                    if n % 4 == setter {
                        tokio::task::yield_now().await;
                        cancelled += usize::from(timer.cancel());
                    }
                }
                cancelled
            })
        })
        .collect();
    let mut cancelled = 0;
    for setter in setters {
        cancelled += timeout(LONG, setter).await.expect("there is room again").unwrap();
    }
    let all = async {
        while fired.load(SeqCst) + cancelled < 4000 {
            sleep(ms(5)).await;
        }
    };
    timeout(LONG, all).await.expect("each timer fires or was cancelled");
    sleep(ms(20)).await;
    assert_eq!(fired.load(SeqCst) + cancelled, 4000);
    let before = events.load(SeqCst);
    let more = async {
        while events.load(SeqCst) == before {
            sleep(ms(1)).await;
        }
    };
    timeout(LONG, more).await.expect("events are handled in between");
}
