//! Fair scheduling: neither messages, nor a source that is always ready, nor one that takes all its
//! events keeps a stage, or another task, from being polled.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::StreamExt;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    source::{QueueOptions, from_iter, from_stream, queue},
    stage::{
        CallError, Caller, Emitter, HandleCall, HandleCast, HandleInfo, Producer, ProducerConsumer,
        ProducerHandle, Stage, StageContext,
    },
    step::{for_each, for_each_batch},
    subscription::{Cancel, SubscribeOptions, Subscription},
    testkit::{recording, settle},
};
use tokio::{
    sync::Semaphore,
    task,
    time::{self, Instant},
};

/// The maximum number of messages for which a stage may be kept from being polled. It is a hundred
/// times the required number.
const TOO_MANY: usize = 10_000;

/// The maximum number of callbacks before a stage polls `ready`.
const LOOK: usize = 16;

/// A stage that sends itself a message for each one it receives, so that there is always one.
struct MessagesItself {
    handle: Option<ProducerHandle<Self>>,
    /// The messages since `ready` was last polled.
    messages: usize,
    ticks: Arc<AtomicUsize>,
}

impl Producer for MessagesItself {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.handle = Some(context.handle().clone());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.handle.as_ref().expect("init has set the handle").async_info(Again)?;
        Ok(())
    }

    async fn ready(&mut self) {}

    async fn handle_ready(&mut self, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.messages = 0;
        if self.ticks.fetch_add(1, SeqCst) == 2 {
            out.finish();
        }
        Ok(())
    }
}

struct Again;

impl HandleInfo<Again, u64> for MessagesItself {
    async fn handle_info(&mut self, _: Again, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.messages += 1;
        if self.messages > LOOK {
            return Err(ExitReason::failed("it was never its turn"));
        }
        self.handle.as_ref().expect("init has set the handle").async_info(Again)?;
        Ok(())
    }
}

#[tokio::test]
async fn endless_messages_do_not_starve_ready() {
    let ticks = Arc::new(AtomicUsize::new(0));
    let chatty = MessagesItself { handle: None, messages: 0, ticks: ticks.clone() };
    let mut pipeline = Pipeline::builder("test")
        .producer(chatty)
        .consumer(for_each(async |_: u64| {}), SubscribeOptions::new())
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.failure().is_none(), "{report}");
    assert_eq!(ticks.load(SeqCst), 3);
}

/// A source that reports that it is ready, and has no events.
struct AlwaysReady(Arc<AtomicUsize>);

impl Producer for AlwaysReady {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn ready(&mut self) {}

    async fn handle_ready(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        match self.0.fetch_add(1, SeqCst) {
            TOO_MANY => Err(ExitReason::failed("no other task had a turn")),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_source_that_is_always_ready_yields_to_other_tasks() {
    let ready = Arc::new(AtomicUsize::new(0));
    let pipeline = Pipeline::builder("test")
        .producer(AlwaysReady(ready.clone()))
        .consumer(for_each(async |_: u64| {}), SubscribeOptions::new())
        .start()
        .unwrap();
    while ready.load(SeqCst) == 0 {
        task::yield_now().await;
    }
    assert!(ready.load(SeqCst) < TOO_MANY);
    pipeline.drain(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_message_split_into_many_chunks_yields_to_other_tasks() {
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let options = SubscribeOptions::new().max_demand(TOO_MANY).min_demand(TOO_MANY - 1);
    let _pipeline = Pipeline::builder("test")
        .producer(from_iter(0u64..))
        .consumer(
            for_each_batch(move |batch: Vec<u64>| {
                count.fetch_add(batch.len(), SeqCst);
                ready(())
            }),
            options,
        )
        .start()
        .unwrap();
    while handled.load(SeqCst) == 0 {
        task::yield_now().await;
    }
    assert!(handled.load(SeqCst) < TOO_MANY);
}

#[tokio::test]
async fn a_function_for_each_event_yields_to_other_tasks() {
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let options = SubscribeOptions::new().max_demand(TOO_MANY).min_demand(0);
    let _pipeline = Pipeline::builder("test")
        .producer(from_iter(0u64..))
        .consumer(
            for_each(move |_: u64| {
                count.fetch_add(1, SeqCst);
                ready(())
            }),
            options,
        )
        .start()
        .unwrap();
    while handled.load(SeqCst) == 0 {
        task::yield_now().await;
    }
    assert!(handled.load(SeqCst) < TOO_MANY);
}

#[tokio::test]
async fn a_loop_of_pushes_yields_to_other_tasks() {
    let (queue, _producer) = queue(QueueOptions::new().capacity(TOO_MANY));
    let pushes = queue.clone();
    task::spawn(async move {
        for n in 0..TOO_MANY {
            pushes.push(n).await.unwrap();
        }
    });
    while queue.is_empty() {
        task::yield_now().await;
    }
    assert!(queue.len() < TOO_MANY);
}

#[tokio::test]
async fn a_loop_over_a_stream_of_events_yields_to_other_tasks() {
    let options = SubscribeOptions::new().max_demand(TOO_MANY).min_demand(0);
    let (_pipeline, mut stream) = Pipeline::builder("test")
        .producer(from_iter(0u64..))
        .into_stream(options.cancel(Cancel::Transient))
        .unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    task::spawn(async move {
        while stream.next().await.is_some() {
            count.fetch_add(1, SeqCst);
        }
    });
    while taken.load(SeqCst) == 0 {
        task::yield_now().await;
    }
    assert!(taken.load(SeqCst) < TOO_MANY);
}

/// A producer that never emits, so that infos wait behind the events it holds.
struct NeverEmits;

impl Producer for NeverEmits {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

struct Emit;

impl HandleCast<Emit, u64> for NeverEmits {
    async fn handle_cast(&mut self, _: Emit, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        out.emit(1);
        Ok(())
    }
}

impl HandleInfo<Again, u64> for NeverEmits {
    async fn handle_info(&mut self, _: Again, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn infos_behind_events_are_bounded_and_leave_room_for_casts() {
    let mut graph = Graph::new("test");
    let holding = graph.producer("holding", NeverEmits);
    let consumer = graph.consumer("consumer", for_each(async |_: u64| {}));
    let _pipeline = graph.start().unwrap();
    holding.cast(Emit).await.unwrap();
    for _ in 0..1024 {
        holding.sync_info(Again).await.unwrap();
    }
    assert_eq!(holding.async_info(Again), Err(CallError::Full));
    let waits = task::spawn({
        let holding = holding.clone();
        async move { holding.sync_info(Again).await }
    });
    settle().await;
    assert!(!waits.is_finished());
    // Casts have places of their own.
    holding.cast(Emit).await.unwrap();

    // A consumer takes the events, and the infos reach the stage.
    consumer.subscribe(&holding, SubscribeOptions::new()).await.unwrap();
    waits.await.unwrap().unwrap();
    settle().await;
    assert_eq!(holding.async_info(Again), Ok(()));
}

/// A producer whose callbacks wait at a gate.
struct AtAGate(Arc<Semaphore>);

struct Pass;

impl Producer for AtAGate {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCast<Pass, u64> for AtAGate {
    async fn handle_cast(&mut self, _: Pass, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.0.acquire().await?.forget();
        Ok(())
    }
}

impl HandleCall<Pass, u64> for AtAGate {
    type Reply = ();

    async fn handle_call(
        &mut self,
        _: Pass,
        caller: &mut Caller<()>,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.acquire().await?.forget();
        caller.reply(());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn calls_and_casts_are_bounded_and_wait_for_room() {
    const MOST: usize = 1024;
    let gate = Arc::new(Semaphore::new(0));
    let mut graph = Graph::new("test");
    let stage = graph.producer("stage", AtAGate(gate.clone()));
    let _pipeline = graph.start().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let mut casts = task::JoinSet::new();
    for _ in 0..2 * MOST {
        let (stage, sent) = (stage.clone(), sent.clone());
        casts.spawn(async move {
            stage.cast(Pass).await.unwrap();
            sent.fetch_add(1, SeqCst);
        });
    }
    settle().await;
    // One is in its callback.
    assert!((MOST..=MOST + 1).contains(&sent.load(SeqCst)), "{} were queued", sent.load(SeqCst));
    gate.add_permits(2 * MOST);
    while casts.join_next().await.is_some() {}

    let mut calls = task::JoinSet::new();
    for _ in 0..=MOST {
        let stage = stage.clone();
        calls.spawn(async move { stage.call_within(Pass, Duration::MAX).await });
    }
    settle().await;
    let waits = task::spawn({
        let stage = stage.clone();
        async move { stage.cast(Pass).await }
    });
    settle().await;
    assert!(!waits.is_finished(), "a cast was queued behind {MOST} calls");
    // A call whose time is over leaves its place in the line, and its caller.
    let late = stage.call_within(Pass, Duration::from_secs(1)).await;
    assert_eq!(late, Err(CallError::TimedOut));
    gate.add_permits(MOST + 2);
    while let Some(called) = calls.join_next().await {
        called.unwrap().unwrap();
    }
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_consumer_with_unlimited_demand_of_an_endless_source_can_be_stopped() {
    let mut graph = Graph::new("test");
    let numbers = graph.producer("numbers", from_iter(0u64..));
    let repeated = graph.producer("repeated", from_stream(futures::stream::repeat(1u64)));
    let (consumer, taken) = recording::<u64>();
    let greedy = graph.consumer("greedy", consumer.manual());
    graph.subscribe(&greedy, &numbers, SubscribeOptions::new());
    let (consumer, other) = recording::<u64>();
    let other_greedy = graph.consumer("other", consumer.manual());
    graph.subscribe(&other_greedy, &repeated, SubscribeOptions::new());
    let _pipeline = graph.start().unwrap();
    settle().await;
    for recording in [&taken, &other] {
        recording.subscription().ask(usize::MAX);
        recording.subscription().ask(usize::MAX);
        while recording.events().is_empty() {
            task::yield_now().await;
        }
    }
    numbers.stop(ExitReason::Shutdown).await;
    repeated.stop(ExitReason::Shutdown).await;
}

/// The time to handle 20,000 events one by one, the best of three.
async fn handling(max: usize, min: usize) -> Duration {
    /// A large event, which is moved as a whole.
    #[derive(Clone)]
    struct Large(#[expect(dead_code, reason = "only its size matters")] [u64; 32]);

    let mut best = Duration::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let options = SubscribeOptions::new().max_demand(max).min_demand(min);
        let mut pipeline = Pipeline::builder("test")
            .producer(from_iter((0..20_000).map(|n| Large([n; 32]))))
            .consumer(for_each_batch(|_: Vec<Large>| ready(())), options)
            .start()
            .expect("the pipeline starts");
        pipeline.join().await;
        best = best.min(begun.elapsed());
    }
    best
}

/// The same number of chunks, from long messages and from short ones. If each chunk moved the whole
/// message, the long ones would take more than ten times as long.
#[tokio::test]
async fn the_cost_of_a_chunk_does_not_depend_on_the_length_of_its_message() {
    let (long, short) = (handling(20_000, 19_999).await, handling(10, 9).await);
    assert!(long < short * 4, "{long:?} instead of {short:?}");
}

/// A stage that takes a tenth of a second for each event.
struct Slow {
    ticks: Arc<AtomicUsize>,
    terminated: Arc<AtomicUsize>,
}

impl ProducerConsumer for Slow {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        for n in events {
            time::sleep(Duration::from_millis(100)).await;
            out.emit(n);
        }
        Ok(())
    }

    async fn ready(&mut self) {}

    async fn handle_ready(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.ticks.fetch_add(1, SeqCst);
        time::sleep(Duration::from_millis(1)).await;
        Ok(())
    }

    async fn terminate(&mut self, _: &ExitReason) {
        self.terminated.fetch_add(1, SeqCst);
    }
}

struct Ping;

impl HandleCall<Ping, u64> for Slow {
    type Reply = ();

    async fn handle_call(
        &mut self,
        Ping: Ping,
        caller: &mut Caller<()>,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        caller.reply(());
        Ok(())
    }
}

/// Lets stages run that are never idle.
async fn turns() {
    for _ in 0..10 {
        task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stage_with_many_queued_events_handles_messages_timers_and_the_phase_in_between() {
    const SECOND: Duration = Duration::from_secs(1);
    let (ticks, terminated) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let slow = Slow { ticks: ticks.clone(), terminated: terminated.clone() };
    let (queue, producer) = queue(QueueOptions::new());
    let (consumer, recording) = recording();
    let mut pipeline = Pipeline::builder("row")
        .producer_with(Stage::new(producer).named("source"))
        .producer_consumer_with(
            Stage::new(slow).named("slow"),
            SubscribeOptions::new().max_demand(1000).min_demand(500),
        )
        .consumer(consumer.manual(), SubscribeOptions::new())
        .start()
        .unwrap();
    turns().await;
    for n in 0..400 {
        queue.push(n).await.unwrap();
        // Each is a separate message.
        turns().await;
    }
    while pipeline.snapshot().stages[1].waiting < 400 {
        time::sleep(Duration::from_millis(1)).await;
    }
    recording.subscription().ask(400);
    let before = ticks.load(SeqCst);
    time::sleep(Duration::from_secs(8)).await;
    assert!(ticks.load(SeqCst) > before, "ready was not polled in 80 events");

    let slow = pipeline.stage::<Slow, u64, u64>("slow").unwrap();
    assert_eq!(time::timeout(SECOND, slow.call(Ping)).await.unwrap(), Ok(()));
    assert!(
        pipeline.snapshot().stages[1].waiting > 200,
        "it must answer although more events wait"
    );

    let source =
        pipeline.stage::<pipeline_core::source::QueueProducer<u64>, _, u64>("source").unwrap();
    let source: ProducerHandle<_> = source;
    source.stop(ExitReason::failed("no route")).await;
    let report = time::timeout(SECOND, pipeline.join()).await.unwrap();
    assert!(report.completed, "{report}");
    assert_eq!(terminated.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_resumed_consumer_can_be_stopped_before_all_waiting_events_are_handled() {
    let (queue, producer) = queue(QueueOptions::new());
    let slow = for_each(async |_: u64| time::sleep(Duration::from_millis(100)).await);
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let sink = graph.consumer("sink", slow);
    graph.subscribe(&sink, &source, SubscribeOptions::new().max_demand(1000).min_demand(500));
    let _pipeline = graph.start().unwrap();
    settle().await;
    sink.pause();
    settle().await;
    for n in 0..400 {
        queue.push(n).await.unwrap();
        turns().await;
    }
    sink.resume();
    time::sleep(Duration::from_secs(1)).await;
    let stopped = sink.stop(ExitReason::Shutdown);
    time::timeout(Duration::from_secs(1), stopped).await.unwrap();
}
