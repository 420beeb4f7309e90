//! Section 5.5: the buffer, and the buffer cases of section 5.16.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    stage::{BufferKeep, Caller, DemandMode, Emitter, HandleCall, Producer, ProducerHandle, Stage},
    subscription::{Cancel, SubscribeOptions, SubscriptionId},
    testkit::{ScriptedProducer, settle},
};
use pipeline_test_support::Log;

use crate::{
    mapper::Mapper,
    support::{
        Sink, Source, auto, automatic, complaints, dropped, list, manual, manual_of, silent,
        silent_with,
    },
};

/// `silent` with a buffer of this size.
fn buffering<E: Send + 'static>(size: usize, keep: BufferKeep) -> Source<E> {
    silent_with(|stage| stage.buffer_size(size).buffer_keep(keep))
}

/// The letters of each message.
fn words(batches: Vec<Vec<char>>) -> Vec<String> {
    batches.into_iter().map(String::from_iter).collect()
}

#[tokio::test(start_paused = true)]
async fn s_062_a_producer_keeps_10_000_events_and_a_producer_consumer_any_number() {
    let (log, _guard) = Log::keep();
    let source = silent();
    source.emit(0..10_000).await;
    assert_eq!((source.count().await, complaints(&log)), (10_000, vec![]));
    source.emit([10_000]).await;
    assert_eq!((source.count().await, complaints(&log)), (10_000, vec![dropped(1)]));

    let mapper = Mapper::identity();
    mapper.emit(0..100_000).await;
    mapper.emit(0..100_000).await;
    assert_eq!((mapper.count().await, complaints(&log)), (200_000, vec![]));
}

#[tokio::test(start_paused = true)]
async fn s_063_with_keep_last_the_oldest_events_are_dropped_and_reported_once() {
    let (log, _guard) = Log::keep();
    let source = buffering(5, BufferKeep::Last);
    source.emit("abcde".chars()).await;
    assert_eq!(complaints(&log), [""; 0]);
    source.emit("fgh".chars()).await;
    assert_eq!(complaints(&log), [dropped(3)]);
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!(words(consumer.chunks()), ["defg", "h"]);
    assert_eq!(complaints(&log), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn s_064_with_keep_first_new_events_are_dropped() {
    let (log, _guard) = Log::keep();
    let source = buffering(5, BufferKeep::First);
    source.emit("abcde".chars()).await;
    source.emit("fgh".chars()).await;
    assert_eq!(complaints(&log), [dropped(3)]);
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!(words(consumer.chunks()), ["abcd", "e"]);
}

#[tokio::test(start_paused = true)]
async fn s_065_the_tail_of_a_batch_larger_than_the_buffer_is_kept() {
    let (log, _guard) = Log::keep();
    let source = buffering(3, BufferKeep::Last);
    let raw = manual_of(source.handle()).await;
    source.emit(1..=10).await;
    assert_eq!(complaints(&log), [dropped(7)]);
    assert_eq!(source.count().await, 3);
    assert_eq!(raw.asks(10).await, [[8, 9, 10]]);
    assert_eq!(source.demands(), [7]);
}

#[tokio::test(start_paused = true)]
async fn s_066_with_keep_first_a_batch_fills_the_remaining_room() {
    let (log, _guard) = Log::keep();
    let source = buffering(5, BufferKeep::First);
    let raw = manual_of(source.handle()).await;
    source.emit([1, 2, 3]).await;
    source.emit([4, 5, 6, 7]).await;
    assert_eq!(complaints(&log), [dropped(2)]);
    assert_eq!(raw.asks(10).await, [[1, 2, 3, 4, 5]]);
    assert_eq!(source.demands(), [5]);
}

#[tokio::test(start_paused = true)]
async fn a_repeatedly_full_buffer_is_logged_when_it_begins_and_ends() {
    let (log, _guard) = Log::keep();
    let source = buffering(4, BufferKeep::Last);
    let raw = manual_of(source.handle()).await;
    for _ in 0..1000 {
        source.emit(0..6).await;
        raw.asks(4).await;
    }
    assert_eq!(complaints(&log), [dropped(2)]);
    source.emit(0..3).await;
    source.emit(0..1).await;
    assert_eq!(complaints(&log), [""; 0], "less than half of the room is free");
    raw.asks(4).await;
    source.emit(0..1).await;
    let over = "WARN discarded=2000 message=the buffer has room again stage=source";
    assert_eq!(complaints(&log), [over]);
}

#[tokio::test(start_paused = true)]
async fn s_067_an_unlimited_buffer_keeps_all_events() {
    let (log, _guard) = Log::keep();
    let source = buffering(usize::MAX, BufferKeep::Last);
    source.emit("abcde".chars()).await;
    assert_eq!(source.count().await, 5);
    source.emit("fgh".chars()).await;
    assert_eq!(source.count().await, 8);
    let consumer = automatic();
    consumer.subscribe(source.handle(), auto(4, 0)).await;
    assert_eq!(words(consumer.chunks()), ["abcd", "efgh"]);
    assert_eq!(source.count().await, 0);
    assert_eq!(complaints(&log), [""; 0]);
}

/// A producer controlled by the test that decides whether drops are logged.
struct DecidesOnLogging {
    logs: bool,
    counts: Arc<Mutex<Vec<usize>>>,
}

impl Producer for DecidesOnLogging {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    fn format_discarded(&mut self, count: usize) -> bool {
        self.counts.lock().push(count);
        self.logs
    }
}

impl HandleCall<Vec<u64>, u64> for DecidesOnLogging {
    type Reply = ();

    async fn handle_call(
        &mut self,
        events: Vec<u64>,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        caller.reply(());
        out.emit_all(events);
        Ok(())
    }
}

/// Emits 8 events into a buffer of 5 that keeps the first; returns the counts passed to
/// `format_discarded` and the log lines.
async fn careful(logs: bool) -> (Vec<usize>, Vec<String>) {
    let (log, _guard) = Log::keep();
    let counts = Arc::default();
    let producer = DecidesOnLogging { logs, counts: Arc::clone(&counts) };
    let stage = Stage::new(producer).named("source").buffer_size(5).buffer_keep(BufferKeep::First);
    let mut graph = Graph::new("test");
    let producer: ProducerHandle<DecidesOnLogging> = graph.producer_with(stage);
    let _pipeline: Pipeline = graph.start().unwrap();
    producer.call(list(1..=8)).await.unwrap();
    settle().await;
    assert_eq!(producer.estimate_buffered_count().await, Ok(5));
    let counts = counts.lock().clone();
    (counts, complaints(&log))
}

#[tokio::test(start_paused = true)]
async fn s_068_drops_are_not_logged_if_format_discarded_returns_false() {
    assert_eq!(careful(false).await, (vec![3], vec![]));
}

#[tokio::test(start_paused = true)]
async fn s_069_drops_are_logged_if_format_discarded_returns_true() {
    assert_eq!(careful(true).await, (vec![3], vec![dropped(3)]));
}

#[tokio::test(start_paused = true)]
async fn s_070_a_consumer_has_no_buffered_events_and_logs_the_question() {
    let (log, _guard) = Log::keep();
    let consumer = automatic::<u64>();
    assert_eq!(consumer.handle.estimate_buffered_count().await, Ok(0));
    assert_eq!(
        complaints(&log),
        ["ERROR message=a consumer has no buffered events to count stage=consumer"]
    );
    assert!(consumer.handle.is_running());
}

/// a asks for 10 and leaves; then [1..4] are emitted, and b asks for 3.
async fn after_a_leaver() -> (Source<u64>, Sink<u64>) {
    let source = silent();
    let a = manual();
    a.subscribe(source.handle(), SubscribeOptions::new().cancel(Cancel::Temporary)).await;
    assert_eq!(a.asks(10).await, [[0; 0]; 0]);
    assert_eq!(source.demands(), [10]);
    a.subscription().cancel(ExitReason::Normal);
    settle().await;
    source.emit(1..=4).await;
    assert_eq!(source.count().await, 4);
    let b = manual_of(source.handle()).await;
    assert_eq!(a.chunks(), [[0; 0]; 0]);
    (source, b)
}

#[tokio::test(start_paused = true)]
async fn x_001_events_emitted_for_a_cancelled_consumer_go_to_the_next_one_that_asks() {
    let (source, b) = after_a_leaver().await;
    assert_eq!(b.asks(3).await, [[1, 2, 3]]);
    assert_eq!(source.count().await, 1);
    assert_eq!(source.demands(), [0; 0], "6 are still owed");
}

#[tokio::test(start_paused = true)]
async fn x_002_new_events_do_not_overtake_buffered_ones() {
    let (source, b) = after_a_leaver().await;
    b.asks(3).await;
    source.emit([5, 6]).await;
    assert_eq!(b.chunks(), [[0; 0]; 0]);
    assert_eq!(source.count().await, 3);
    assert_eq!(b.asks(10).await, [[4, 5, 6]]);
    assert_eq!(source.demands(), [3]);
    assert_eq!(source.count().await, 0);
}

/// Sends one event at a time, to its only subscriber.
#[derive(Default)]
struct OneByOne(Option<(SubscriptionId, usize)>);

impl<E> Dispatcher<E> for OneByOne {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.0 = Some((subscriber.id, 0));
        Ok(())
    }

    fn cancel(&mut self, _id: SubscriptionId, _out: &mut Deliveries<E>) {
        self.0 = None;
    }

    fn ask(&mut self, _id: SubscriptionId, demand: usize, _out: &mut Deliveries<E>) {
        if let Some((_, outstanding)) = &mut self.0 {
            *outstanding += demand;
        }
    }

    fn unmet(&self) -> usize {
        self.0.map_or(0, |(_, outstanding)| outstanding)
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        if let Some((id, outstanding)) = &mut self.0
            && *outstanding > 0
            && let Some(event) = events.pop_front()
        {
            *outstanding -= 1;
            out.send(*id, vec![event]);
        }
    }

    fn outstanding(&self, _id: SubscriptionId) -> usize {
        Dispatcher::<E>::unmet(self)
    }
}

#[tokio::test(start_paused = true)]
async fn x_004_events_that_a_dispatcher_leaves_go_back_to_the_front() {
    let source =
        silent_with(|stage: Stage<ScriptedProducer<u64>, u64>| stage.dispatcher(OneByOne::default));
    source.emit(1..=5).await;
    assert_eq!(source.count().await, 5);
    let c = manual_of(source.handle()).await;
    assert_eq!(c.asks(2).await, [[1], [2]]);
    assert_eq!(source.count().await, 3);
    assert_eq!(c.asks(3).await, [[3], [4], [5]]);
    assert_eq!(source.count().await, 0);
    assert_eq!(source.demands(), [0; 0]);

    // The same before a marker: the remaining events stay before it.
    source.emit(1..=3).await;
    source.mark("m").await;
    source.emit([4, 5]).await;
    assert_eq!(c.asks(2).await, [[1], [2]]);
    assert_eq!(source.infos(), [""; 0]);
    assert_eq!(c.asks(3).await, [[3], [4], [5]]);
    assert_eq!(source.infos(), ["m"]);

    // The same between two chunks: events of the second do not overtake those of the first.
    let source = silent();
    let mapper = Mapper::with(|n| vec![n], |stage| Stage::new(stage).dispatcher(OneByOne::default));
    mapper.subscribe(&source, auto(4, 2)).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(4).await, [[0; 0]; 0]);
    source.emit(1..=4).await;
    assert_eq!(c.chunks(), [[1], [2], [3], [4]]);
}

#[tokio::test(start_paused = true)]
async fn x_020_markers_are_not_counted_and_withheld_events_are() {
    let source = buffering(usize::MAX, BufferKeep::Last);
    source.emit([1, 2]).await;
    source.mark("m").await;
    source.emit([3, 4]).await;
    assert_eq!(source.count().await, 4);

    let source = silent_with(|stage| stage.demand_mode(DemandMode::Accumulate));
    let raw = manual_of(source.handle()).await;
    raw.asks(10).await;
    source.emit([1, 2, 3]).await;
    source.mark("m").await;
    source.emit([4]).await;
    assert_eq!((source.count().await, raw.chunks()), (4, vec![]));
}

#[tokio::test(start_paused = true)]
async fn x_021_without_a_buffer_events_without_demand_are_dropped_and_counted_and_reported() {
    let (log, _guard) = Log::keep();
    for keep in [BufferKeep::First, BufferKeep::Last] {
        let source = buffering(0, keep);
        let raw = manual_of(source.handle()).await;
        source.emit([1]).await;
        assert_eq!(complaints(&log), [dropped(1)]);
        assert_eq!(raw.asks(2).await, [[0; 0]; 0]);
        assert_eq!(source.demands(), [2]);
        source.emit([2, 3, 4, 5, 6]).await;
        assert_eq!(raw.chunks(), [[2, 3]]);
        // It was logged when it began.
        assert_eq!(complaints(&log), [""; 0]);
        assert_eq!(source.count().await, 0);
        source.handle().stop(ExitReason::Normal).await;
        let Source { mut pipeline, .. } = source;
        let report = pipeline.join().await;
        assert_eq!((report.stages[0].discarded, report.unprocessed()), (4, 0));
    }
}
