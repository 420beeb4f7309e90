//! Section 5.7: the demand mode, and the demand mode cases of section 5.16.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipeline_core::{
    ExitReason,
    dispatcher::BroadcastDispatcher,
    source::{QueueOptions, queue},
    stage::{
        BufferKeep, Caller, DemandMode, Emitter, HandleCall, HandleInfo, Producer, RateLimit, Stage,
    },
    subscription::{Cancel, SubscribeOptions},
    testkit::{Command, settle},
};
use pipeline_test_support::Log;
use tokio::time;

use crate::{
    mapper::Mapper,
    support::{
        NO_CHUNK, NO_DEMAND, Source, auto, automatic, complaints, finite_with, manual, manual_of,
        silent, silent_with,
    },
};

/// The relevant part of `counter`.
fn counter(mode: DemandMode) -> Source<u64> {
    finite_with(6, |stage| stage.demand_mode(mode))
}

/// `silent`, accumulating.
fn accumulating() -> Source<u64> {
    silent_with(|stage| stage.demand_mode(DemandMode::Accumulate))
}

/// Sets the mode, and waits until all effects have happened.
async fn set(source: &Source<u64>, mode: DemandMode) {
    source.handle().set_demand_mode(mode);
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn s_082_demand_waits_while_a_producer_accumulates() {
    let source = counter(DemandMode::Accumulate);
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!((consumer.chunks(), source.demands()), (vec![], vec![]));
    set(&source, DemandMode::Forward).await;
    assert_eq!(consumer.chunks(), [vec![0, 1, 2, 3], vec![4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn s_083_the_mode_can_be_changed_and_read_while_the_producer_runs() {
    let source = counter(DemandMode::Forward);
    set(&source, DemandMode::Accumulate).await;
    assert_eq!(source.handle().demand_mode().await, Ok(DemandMode::Accumulate));
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!((consumer.chunks(), source.demands()), (vec![], vec![]));
    set(&source, DemandMode::Forward).await;
    assert_eq!(consumer.chunks(), [vec![0, 1, 2, 3], vec![4, 5]]);
    assert_eq!(source.handle().demand_mode().await, Ok(DemandMode::Forward));
}

#[tokio::test(start_paused = true)]
async fn s_084_a_mode_may_be_set_before_the_first_subscription() {
    let source = counter(DemandMode::Accumulate);
    set(&source, DemandMode::Forward).await;
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!(consumer.chunks(), [vec![0, 1, 2, 3], vec![4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn s_085_accumulating_twice_changes_nothing() {
    let source = counter(DemandMode::Accumulate);
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    set(&source, DemandMode::Accumulate).await;
    assert_eq!((consumer.chunks(), source.demands()), (vec![], vec![]));
    set(&source, DemandMode::Forward).await;
    assert_eq!(consumer.chunks(), [vec![0, 1, 2, 3], vec![4, 5]]);
    assert_eq!(source.demands(), [4, 4]);
}

#[tokio::test(start_paused = true)]
async fn s_086_recorded_demands_are_not_summed() {
    let source = accumulating();
    let consumers = [automatic(), automatic()];
    for consumer in &consumers {
        consumer.subscribe(source.handle(), SubscribeOptions::new().max_demand(2)).await;
    }
    assert_eq!(source.demands(), NO_DEMAND);
    set(&source, DemandMode::Forward).await;
    assert_eq!(source.demands(), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn s_087_demands_and_emissions_are_replayed_in_order() {
    let (x, y, z) = (1, 2, 3);
    let source = accumulating();
    let (c1, c2) = (manual_of(source.handle()).await, manual_of(source.handle()).await);
    assert_eq!(c1.asks(3).await, NO_CHUNK);
    source.emit([x]).await;
    assert_eq!(c2.asks(5).await, NO_CHUNK);
    source.emit([y, z]).await;
    assert_eq!((c1.chunks(), c2.chunks(), source.demands()), (vec![], vec![], vec![]));
    set(&source, DemandMode::Forward).await;
    assert_eq!(source.demands(), [3, 5]);
    assert_eq!((c1.chunks(), c2.chunks()), (vec![], vec![vec![x], vec![y, z]]));
}

#[tokio::test(start_paused = true)]
async fn events_emitted_while_a_producer_accumulates_come_after_the_demand_that_came_before_them() {
    let source = counter(DemandMode::Accumulate);
    let raw = manual_of(source.handle()).await;
    assert_eq!(raw.asks(3).await, NO_CHUNK);
    source.emit([100, 101]).await;
    source.mark("m").await;
    assert_eq!((source.count().await, source.infos().len()), (2, 0));
    set(&source, DemandMode::Forward).await;
    assert_eq!(raw.chunks(), [[0, 1, 2]]);
    assert_eq!((source.count().await, source.infos().len()), (2, 0));
    assert_eq!(raw.asks(2).await, [[100, 101]]);
    assert_eq!(source.infos(), ["m"]);
    assert_eq!(raw.asks(1).await, [[3]]);
}

#[tokio::test(start_paused = true)]
async fn events_emitted_while_accumulating_take_room_in_the_buffer() {
    for (keep, kept) in [(BufferKeep::First, [1, 2, 3, 4]), (BufferKeep::Last, [4, 5, 6, 7])] {
        let source = silent_with(|stage| {
            stage.demand_mode(DemandMode::Accumulate).buffer_size(4).buffer_keep(keep)
        });
        let raw = manual_of(source.handle()).await;
        assert_eq!(raw.asks(9).await, NO_CHUNK);
        source.emit([1, 2]).await;
        source.emit([3, 4, 5]).await;
        source.emit([6, 7]).await;
        assert_eq!(source.count().await, 4);
        set(&source, DemandMode::Forward).await;
        assert_eq!(raw.chunks().concat(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn s_088_demand_that_the_buffer_covers_is_not_recorded() {
    let source = silent();
    source.emit([1, 2, 3]).await;
    set(&source, DemandMode::Accumulate).await;
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(2, 0)).await;
    assert_eq!((consumer.chunks(), source.demands()), (vec![], vec![]));
    set(&source, DemandMode::Forward).await;
    assert_eq!(consumer.chunks(), [vec![1, 2], vec![3]]);
    assert_eq!(source.demands(), [1]);
}

#[tokio::test(start_paused = true)]
async fn s_089_events_emitted_without_subscribers_go_to_all_later_ones() {
    let source = silent_with(|stage| stage.dispatcher(BroadcastDispatcher::new));
    let (old, new) = ([automatic(), automatic()], [automatic(), automatic()]);
    for consumer in &old {
        consumer.subscribe(source.handle(), auto(10, 0)).await;
    }
    set(&source, DemandMode::Accumulate).await;
    for consumer in &old {
        consumer.handle.stop(ExitReason::Normal).await;
    }
    for n in 1..=4 {
        source.emit([n]).await;
    }
    for consumer in &new {
        consumer.subscribe(source.handle(), auto(10, 0)).await;
    }
    for consumer in old.iter().chain(&new) {
        assert_eq!(consumer.chunks(), NO_CHUNK);
    }
    set(&source, DemandMode::Forward).await;
    for consumer in &new {
        assert_eq!(consumer.chunks().concat(), [1, 2, 3, 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn s_090_the_demand_mode_of_other_stages_cannot_be_set() {
    let (log, _guard) = Log::keep();
    let complaint = |mode, stage| {
        let what = "only producers have a demand mode";
        format!("ERROR message={what} mode={mode} stage={stage}")
    };
    let (source, mapper, consumer) = (silent(), Mapper::identity(), automatic());
    mapper.subscribe(&source, auto(10, 5)).await;
    consumer.subscribe(mapper.handle(), auto(10, 5)).await;
    assert_eq!(source.demands(), [10]);

    mapper.handle().set_demand_mode(DemandMode::Forward);
    settle().await;
    assert_eq!(complaints(&log), [""; 0]);
    mapper.handle().set_demand_mode(DemandMode::Accumulate);
    settle().await;
    assert_eq!(complaints(&log), [complaint("Accumulate", "mapper")]);
    consumer.handle.set_demand_mode(DemandMode::Forward);
    settle().await;
    assert_eq!(complaints(&log), [complaint("Forward", "consumer")]);
    consumer.handle.set_demand_mode(DemandMode::Accumulate);
    settle().await;
    assert_eq!(complaints(&log), [complaint("Accumulate", "consumer")]);

    source.emit([1, 2]).await;
    assert_eq!(consumer.chunks(), [[1, 2]]);
    assert_eq!(consumer.handle.demand_mode().await, Ok(DemandMode::Forward));
}

#[tokio::test(start_paused = true)]
async fn x_023_the_mode_of_a_producer_consumer_reads_forward() {
    let mapper = Mapper::identity();
    assert_eq!(mapper.handle().demand_mode().await, Ok(DemandMode::Forward));
    let mapper =
        Mapper::with(|n| vec![n], |stage| Stage::new(stage).demand_mode(DemandMode::Accumulate));
    assert_eq!(mapper.handle().demand_mode().await, Ok(DemandMode::Forward));
}

#[tokio::test(start_paused = true)]
async fn an_accumulating_producer_that_ends_delivers_its_events() {
    const HOUR: Duration = Duration::from_secs(3600);
    for subscribed_first in [true, false] {
        for how in ["drain", "finish", "emit and finish"] {
            let mut source = accumulating();
            let consumer = automatic();
            if subscribed_first {
                consumer.subscribe(source.handle(), auto(10, 5)).await;
            }
            source.emit([1, 2]).await;
            if !subscribed_first {
                consumer.subscribe(source.handle(), auto(10, 5)).await;
            }
            source.emit([3]).await;
            let report = match how {
                "drain" => source.pipeline.drain(HOUR).await,
                "finish" => {
                    time::timeout(HOUR, source.handle().finish()).await.unwrap();
                    source.pipeline.join().await
                }
                _ => {
                    source.execute(Command::EmitAndFinish(vec![4])).await.unwrap();
                    set(&source, DemandMode::Forward).await;
                    time::timeout(HOUR, source.pipeline.join()).await.unwrap()
                }
            };
            assert!(report.completed && report.is_clean(), "{how}: {report}");
            assert_eq!(consumer.chunks().concat()[..3], [1, 2, 3], "{how}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn recorded_demand_of_a_cancelled_consumer_takes_no_items_from_a_queue() {
    let (pushes, producer) = queue::<u64>(QueueOptions::new());
    let mut graph = pipeline_core::Graph::new("graph");
    let stage = Stage::new(producer).named("queue").buffer_size(1);
    let stage = graph.producer_with(stage.demand_mode(DemandMode::Accumulate));
    let pipeline = graph.start().unwrap();
    let consumer = manual();
    consumer.subscribe(&stage, auto(50, 25).cancel(Cancel::Temporary)).await;
    assert!(consumer.asks(50).await.is_empty());
    consumer.subscription().cancel(ExitReason::Normal);
    settle().await;
    for n in 0..60 {
        pushes.push(n).await.unwrap();
    }
    stage.set_demand_mode(DemandMode::Forward);
    settle().await;
    let seen = &pipeline.snapshot().stages[0];
    assert_eq!((seen.queued, seen.buffered, seen.discarded), (60, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_recorded_demand_without_a_consumer_is_discarded_and_counted() {
    let (producer, script) = pipeline_core::testkit::scripted();
    let stage = Stage::new(producer.from_iter(0..)).buffer_size(10);
    let source = Source::start(stage.demand_mode(DemandMode::Accumulate), script);
    let consumer = manual_of(source.handle()).await;
    assert_eq!(consumer.asks(5).await, NO_CHUNK);
    source.emit(100..110).await;
    consumer.subscription().cancel(ExitReason::Normal);
    settle().await;
    set(&source, DemandMode::Forward).await;
    let seen = source.pipeline.snapshot().stages[0].clone();
    assert_eq!((seen.buffered, seen.discarded), (10, 5));
}

/// Emits the next number on each message, and when it is ready, which it is after each demand.
#[derive(Default)]
struct Counter {
    next: u64,
    /// Whether each demand emits a number as well.
    eager: bool,
    ready: bool,
    /// The last event of a drain.
    last: Option<u64>,
}

struct Count;

impl Counter {
    fn emit(&mut self, out: &mut Emitter<'_, u64>) {
        out.emit(self.next);
        self.next += 1;
    }
}

impl Producer for Counter {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.ready = true;
        if self.eager {
            self.emit(out);
        }
        Ok(())
    }

    async fn ready(&mut self) {
        if !self.ready {
            std::future::pending::<()>().await;
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.ready = false;
        self.emit(out);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        out.emit_all(self.last);
        out.finish();
        Ok(())
    }
}

impl HandleCall<Count, u64> for Counter {
    type Reply = ();

    async fn handle_call(
        &mut self,
        _: Count,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.emit(out);
        caller.reply(());
        Ok(())
    }
}

impl HandleInfo<Count, u64> for Counter {
    async fn handle_info(
        &mut self,
        _: Count,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.emit(out);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn events_emitted_while_accumulating_come_before_later_ones() {
    const EVENTS: u64 = 25;
    for drains in [true, false] {
        let mut graph = pipeline_core::Graph::new("graph");
        let counter = Counter { last: Some(99), ..Counter::default() };
        let counter = graph.producer_with(Stage::new(counter).demand_mode(DemandMode::Accumulate));
        let pipeline = graph.start().unwrap();
        let consumer = manual_of(&counter).await;
        for _ in 0..EVENTS {
            // Each demand is recorded separately, and the event behind it.
            assert_eq!(consumer.asks(2).await, NO_CHUNK);
            counter.call(Count).await.unwrap();
        }
        if drains {
            assert!(pipeline.drain(Duration::from_secs(3600)).await.completed);
        } else {
            counter.set_demand_mode(DemandMode::Forward);
            settle().await;
        }
        let got = consumer.chunks().concat();
        let (early, later) = got.split_at(got.iter().position(|&n| n >= EVENTS).unwrap());
        assert!(early.iter().copied().eq(0..EVENTS), "{got:?}");
        assert!(later.is_sorted() && (later.last() == Some(&99)) == drains, "{got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_producer_no_longer_accumulates() {
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let mut graph = pipeline_core::Graph::new("graph");
    let stage = Stage::new(producer).rate_limit(RateLimit::new(1, Duration::from_secs(1)));
    let source = graph.producer_with(stage);
    let pipeline = graph.start().unwrap();
    let consumer = manual_of(&source).await;
    for n in 0..3 {
        queue.push(n).await.unwrap();
    }
    assert_eq!(consumer.asks(3).await, [[0]]);
    let drained = pipeline.drain(Duration::from_secs(3600));
    let (report, ()) = tokio::join!(drained, async {
        settle().await;
        source.set_demand_mode(DemandMode::Accumulate);
    });
    assert!(report.completed && report.is_clean(), "{report}");
    assert_eq!(consumer.chunks().concat(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn events_emitted_during_the_replay_of_demand_arrive_in_order() {
    const EVENTS: u64 = 30;
    for info_after in [None, Some(1)] {
        let mut graph = pipeline_core::Graph::new("graph");
        let stage = Stage::new(Counter { eager: true, ..Counter::default() })
            .demand_mode(DemandMode::Accumulate);
        let counter = graph.producer_with(stage);
        let _pipeline = graph.start().unwrap();
        let consumer = manual_of(&counter).await;
        for n in 0..EVENTS {
            assert_eq!(consumer.asks(3).await, NO_CHUNK);
            counter.call(Count).await.unwrap();
            if info_after == Some(n) {
                counter.async_info(Count).unwrap();
                settle().await;
            }
        }
        counter.set_demand_mode(DemandMode::Forward);
        settle().await;
        let got = consumer.chunks().concat();
        assert!(got.len() as u64 > 2 * EVENTS, "{got:?}");
        // Events emitted while accumulating keep their place among the demands.
        let later: Vec<_> = got.into_iter().filter(|&n| n >= EVENTS).collect();
        assert!(later.is_sorted(), "{later:?}");
    }
}

/// Handles each demand slowly, and ends when it is asked to drain.
struct SlowOnDemand(Arc<AtomicUsize>);

impl Producer for SlowOnDemand {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        time::sleep(Duration::from_millis(100)).await;
        out.emit(self.0.fetch_add(1, Ordering::SeqCst) as u64);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_comes_before_recorded_demand() {
    for forwards in [false, true] {
        let made = Arc::new(AtomicUsize::new(0));
        let mut graph = pipeline_core::Graph::new("graph");
        let stage = Stage::new(SlowOnDemand(made.clone())).demand_mode(DemandMode::Accumulate);
        let producer = graph.producer_with(stage);
        let pipeline = graph.start().unwrap();
        let consumer = manual_of(&producer).await;
        for _ in 0..200 {
            assert_eq!(consumer.asks(1).await, NO_CHUNK);
        }
        if forwards {
            producer.set_demand_mode(DemandMode::Forward);
            time::sleep(Duration::from_millis(150)).await;
        }
        let report = pipeline.drain(Duration::from_secs(5)).await;
        assert!(report.completed && report.is_clean(), "{report}");
        assert!(made.load(Ordering::SeqCst) <= 3);
    }
}

/// Emits three events on a call, and ends at the first demand.
struct Ends(Arc<AtomicUsize>);

impl Producer for Ends {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.fetch_add(1, Ordering::SeqCst);
        out.emit(100);
        out.finish();
        Ok(())
    }
}

impl HandleCall<Count, u64> for Ends {
    type Reply = ();

    async fn handle_call(
        &mut self,
        _: Count,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(1..=3);
        caller.reply(());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_producer_that_finishes_in_a_replay_receives_no_more_demand() {
    let demanded = Arc::new(AtomicUsize::new(0));
    let mut graph = pipeline_core::Graph::new("graph");
    let stage =
        Stage::new(Ends(demanded.clone())).demand_mode(DemandMode::Accumulate).buffer_size(1);
    let producer = graph.producer_with(stage);
    let _pipeline = graph.start().unwrap();
    let consumer = manual_of(&producer).await;
    assert_eq!(consumer.asks(5).await, NO_CHUNK);
    producer.call(Count).await.unwrap();
    producer.set_demand_mode(DemandMode::Forward);
    settle().await;
    assert_eq!(consumer.chunks().concat(), [100, 3]);
    assert_eq!(demanded.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn events_that_infos_emit_while_a_stage_finishes_are_delivered() {
    let mut graph = pipeline_core::Graph::new("graph");
    let stage = Stage::new(Counter { eager: true, ..Counter::default() });
    let stage = stage.rate_limit(RateLimit::new(1, Duration::from_secs(1)));
    let counter = graph.producer_with(stage);
    let pipeline = graph.start().unwrap();
    let consumer = manual_of(&counter).await;
    for _ in 0..5 {
        counter.call(Count).await.unwrap();
        counter.async_info(Count).unwrap();
    }
    settle().await;
    consumer.asks(100).await;
    let report = pipeline.drain(Duration::from_secs(3600)).await;
    assert!(report.completed && report.is_clean(), "{report}");
    let got = consumer.chunks().concat();
    assert!(got.len() >= 9 && got.is_sorted(), "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_keep_emitting_do_not_keep_a_finishing_stage_running() {
    let mut graph = pipeline_core::Graph::new("graph");
    let stage = Stage::new(Counter { eager: true, ..Counter::default() });
    let counter = graph.producer_with(stage.rate_limit(RateLimit::new(1, Duration::from_secs(1))));
    let pipeline = graph.start().unwrap();
    let consumer = manual_of(&counter).await;
    consumer.asks(1_000).await;
    let (report, ()) = tokio::join!(pipeline.drain(Duration::from_secs(3600)), async {
        while counter.call(Count).await.is_ok() {
            time::sleep(Duration::from_millis(500)).await;
        }
    });
    assert!(report.completed, "{report}");
}
