//! Section 5.8: producer-consumers, and their cases in section 5.16.

use pipeline_core::{
    ExitReason,
    dispatcher::BroadcastDispatcher,
    stage::{BufferKeep, Stage},
    subscription::{Cancel, SubscribeOptions},
    testkit::{Command, settle},
};
use pipeline_test_support::Log;

use crate::{
    mapper::{Mapper, Seen},
    support::{
        NO_CHUNK, NO_DEMAND, Sink, auto, automatic, complaints, consumer_with, doubled, finite,
        list, manual, manual_of, reasons, silent,
    },
};

fn double(n: u64) -> Vec<u64> {
    vec![n, n]
}

fn triple(n: u64) -> Vec<u64> {
    vec![n, n, n]
}

fn temporary(max: usize, min: usize) -> SubscribeOptions {
    auto(max, min).cancel(Cancel::Temporary)
}

/// Checks that a consumer with outstanding demand will get exactly this many events.
async fn demand_is_left(mapper: &Mapper, c: &Sink<u64>, left: usize) {
    assert_eq!(mapper.count().await, 0);
    mapper.emit(900..=900 + left as u64).await;
    assert_eq!(c.chunks(), [list(900..900 + left as u64)]);
    assert_eq!(mapper.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn s_091_it_asks_upstream_without_a_consumer_and_handles_nothing() {
    let (source, mapper) = (finite(1000), Mapper::identity());
    mapper.subscribe(&source, auto(10, 5)).await;
    assert_eq!(source.demands(), [10]);
    assert_eq!(mapper.handled(), NO_CHUNK);
}

#[tokio::test(start_paused = true)]
async fn s_092_a_message_is_taken_on_demand_and_then_handled_whole() {
    let (source, mapper) = (finite(1000), Mapper::identity());
    mapper.subscribe(&source, auto(10, 5)).await;
    assert_eq!(source.demands(), [10]);
    let c = manual_of(mapper.handle()).await;

    assert_eq!(c.asks(2).await, [[0, 1]]);
    assert_eq!(mapper.handled(), [list(0..=4), list(5..=9)]);
    assert_eq!(mapper.count().await, 8);
    assert_eq!(source.demands(), [5, 5]);

    assert_eq!(c.asks(3).await, [[2, 3, 4]]);
    assert_eq!(mapper.handled(), NO_CHUNK);
    assert_eq!(mapper.count().await, 5);
    assert_eq!(source.demands(), NO_DEMAND);

    assert_eq!(c.asks(6).await, [list(5..=9), vec![10]]);
    assert_eq!(mapper.handled(), [list(10..=14)]);
    assert_eq!(mapper.count().await, 4);
    assert_eq!(source.demands(), [5]);
}

#[tokio::test(start_paused = true)]
async fn s_093_new_demand_is_served_from_the_buffer_before_a_message_is_taken() {
    let (source, mapper) = (silent(), Mapper::identity());
    mapper.subscribe(&source, auto(6, 4)).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(source.demands(), [6]);
    source.emit(1..=6).await;
    assert_eq!(mapper.handled(), NO_CHUNK);

    assert_eq!(c.asks(1).await, [[1]]);
    assert_eq!(mapper.handled(), [[1, 2], [3, 4], [5, 6]]);
    assert_eq!(mapper.count().await, 5);
    assert_eq!(source.demands(), [2, 2, 2]);

    source.emit([7, 8]).await;
    assert_eq!((mapper.handled(), c.chunks()), (vec![], vec![]));

    assert_eq!(c.asks(4).await, [[2, 3, 4, 5]]);
    assert_eq!(mapper.handled(), NO_CHUNK);

    assert_eq!(c.asks(2).await, [[6], [7]]);
    assert_eq!(mapper.handled(), [[7, 8]]);
    assert_eq!(mapper.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn s_094_emitting_more_than_received_fills_the_buffer_and_slows_upstream() {
    let (source, mapper) = (finite(1000), Mapper::new(triple));
    mapper.subscribe(&source, auto(4, 2)).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(source.demands(), [4]);

    assert_eq!(c.asks(5).await, [[0, 0, 0, 1, 1]]);
    assert_eq!(mapper.handled(), [[0, 1], [2, 3]]);
    assert_eq!(mapper.count().await, 7);
    assert_eq!(source.demands(), [2, 2]);

    assert_eq!(c.asks(5).await, [[1, 2, 2, 2, 3]]);
    assert_eq!(mapper.handled(), NO_CHUNK);
    assert_eq!(mapper.count().await, 2);
    assert_eq!(source.demands(), NO_DEMAND);

    assert_eq!(c.asks(10).await, [vec![3, 3], vec![4, 4, 4, 5, 5, 5], vec![6, 6]]);
    assert_eq!(mapper.handled(), [[4, 5], [6, 7]]);
    assert_eq!(mapper.count().await, 4);
    assert_eq!(source.demands(), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn s_095_emitting_nothing_keeps_the_demand_open_and_upstream_going() {
    let (source, mapper) = (finite(14), Mapper::new(|_| vec![]));
    mapper.subscribe(&source, auto(4, 2)).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(3).await, NO_CHUNK);
    let pairs: Vec<_> = (0..7).map(|n| vec![2 * n, 2 * n + 1]).collect();
    assert_eq!(mapper.handled(), pairs);
    assert_eq!(source.demands(), [4, 2, 2, 2, 2, 2, 2, 2]);
    demand_is_left(&mapper, &c, 3).await;
}

#[tokio::test(start_paused = true)]
async fn s_096_a_stage_that_drops_everything_continues_to_take_events() {
    let (source, mapper) = (finite(1020), Mapper::new(|_| vec![]));
    let consumer = automatic();
    consumer.subscribe(mapper.handle(), auto(100, 50)).await;
    mapper.subscribe(&source, auto(100, 80)).await;
    let handled = mapper.handled();
    assert_eq!(handled[0], list(0..=19));
    assert_eq!(handled[5], list(100..=119));
    assert_eq!(handled[50], list(1000..=1019));
    let all: Vec<_> = (0..51).map(|n| list(20 * n..20 * n + 20)).collect();
    assert_eq!(handled, all);
    assert_eq!(consumer.chunks(), NO_CHUNK);
}

/// `counter` → doubling mapper → `auto(100,50)`, subscribed in this order. Returns the events that
/// the mapper handled and that the consumer received.
async fn doubling(
    upstream: SubscribeOptions,
    consumer_first: bool,
) -> (Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let (source, mapper, consumer) = (finite(400), Mapper::new(double), automatic());
    if consumer_first {
        consumer.subscribe(mapper.handle(), auto(100, 50)).await;
        mapper.subscribe(&source, upstream).await;
    } else {
        mapper.subscribe(&source, upstream).await;
        consumer.subscribe(mapper.handle(), auto(100, 50)).await;
    }
    let got = consumer.chunks();
    assert_eq!(got.concat(), doubled(0..400));
    (mapper.handled(), got)
}

#[tokio::test(start_paused = true)]
async fn s_097_a_message_in_small_chunks_is_passed_on_chunk_by_chunk() {
    for consumer_first in [false, true] {
        let (handled, got) = doubling(auto(100, 80), consumer_first).await;
        let chunks: Vec<_> = (0..20).map(|n| list(20 * n..20 * n + 20)).collect();
        assert_eq!(handled, chunks);
        assert_eq!(got[..2], [doubled(0..=19), doubled(20..=39)]);
        assert!(got.contains(&doubled(120..=124)), "{got:?}");
        assert!(got.contains(&doubled(125..=139)), "{got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s_098_a_message_in_large_chunks_is_split_again_downstream() {
    for consumer_first in [false, true] {
        let (handled, got) = doubling(auto(100, 20), consumer_first).await;
        assert_eq!(handled[0], list(0..=79));
        assert!(handled.contains(&list(100..=179)), "{handled:?}");
        assert_eq!(got[..3], [doubled(0..=24), doubled(25..=49), doubled(50..=74)]);
    }
}

#[tokio::test(start_paused = true)]
async fn s_099_events_emitted_later_count_against_the_demand_too() {
    let source = finite(1000);
    let mapper = Mapper::with(|n| vec![n], |stage| Stage::new(stage.later()));
    let consumer = consumer_with(|consumer, _| consumer.stuck());
    consumer.subscribe(mapper.handle(), auto(10, 5)).await;
    mapper.subscribe(&source, auto(10, 8)).await;
    assert_eq!(mapper.handled(), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]);
    assert_eq!(consumer.chunks(), [[0, 1]]);
}

#[tokio::test(start_paused = true)]
async fn s_100_the_end_of_an_upstream_is_handled_after_its_events() {
    let (source, mapper) = (finite(1000), Mapper::new(double));
    mapper.subscribe(&source, temporary(100, 50)).await;
    mapper.upstream().cancel(ExitReason::failed("done"));
    settle().await;
    assert_eq!(mapper.seen(), []);
    let consumer = automatic();
    consumer.subscribe(mapper.handle(), auto(100, 50)).await;
    assert_eq!(
        mapper.seen(),
        [
            Seen::Events(list(0..=49)),
            Seen::Events(list(50..=99)),
            Seen::Cancelled("cancelled (failed: done)".to_owned())
        ]
    );
    let got = consumer.chunks();
    assert_eq!(got[..2], [doubled(0..=24), doubled(25..=49)]);
    assert_eq!(got.concat(), doubled(0..=99));
}

/// [1,2,3], a marker, [4] and the end of their producer, unprocessed.
async fn a_producer_behind_its_events(options: SubscribeOptions, end: ExitReason) -> Mapper {
    let (source, mapper) = (silent(), Mapper::identity());
    mapper.subscribe(&source, options).await;
    source.emit([1, 2, 3]).await;
    mapper.mark("m").await;
    source.emit([4]).await;
    source.handle().stop(end).await;
    settle().await;
    assert_eq!(mapper.seen(), []);
    mapper
}

fn in_order(end: &str) -> [Seen; 4] {
    [
        Seen::Events(vec![1, 2, 3]),
        Seen::Info("m".to_owned()),
        Seen::Events(vec![4]),
        Seen::Cancelled(end.to_owned()),
    ]
}

#[tokio::test(start_paused = true)]
async fn s_101_events_of_an_ended_producer_are_handled_in_order_with_its_end_last() {
    let mapper = a_producer_behind_its_events(temporary(10, 5), ExitReason::Normal).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(5).await, [vec![1, 2, 3], vec![4]]);
    assert_eq!(mapper.seen(), in_order("down (normal)"));
    assert!(mapper.handle().is_running());
}

#[tokio::test(start_paused = true)]
async fn s_102_a_permanent_stage_lives_until_it_has_passed_on_its_producers_events() {
    let mut mapper = a_producer_behind_its_events(auto(10, 5), ExitReason::Shutdown).await;
    assert!(mapper.handle().is_running());
    let c = manual();
    c.subscribe(mapper.handle(), SubscribeOptions::new().cancel(Cancel::Temporary)).await;
    assert_eq!(c.asks(5).await, [vec![1, 2, 3], vec![4]]);
    let seen = mapper.seen();
    assert_eq!(seen[..4], in_order("down (shutdown)"));
    assert_eq!(seen[4..], [Seen::Terminated("shutdown".to_owned())]);
    assert_eq!(reasons(c.cancelled()), ["down (shutdown)"]);
    let report = mapper.pipeline.join().await;
    assert!(matches!(report.stages[0].reason, ExitReason::Shutdown));
    assert_eq!(report.unprocessed(), 0);
}

#[tokio::test(start_paused = true)]
async fn s_103_a_bounded_output_buffer_drops_events_without_room() {
    let (log, _guard) = Log::keep();
    let source = silent();
    let mapper = Mapper::with(triple, |stage| {
        Stage::new(stage).buffer_size(3).buffer_keep(BufferKeep::Last)
    });
    mapper.subscribe(&source, auto(4, 0)).await;
    source.emit([1, 2, 3]).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(2).await, [[1, 1]]);
    assert_eq!(
        complaints(&log),
        ["WARN discarded=4 message=the buffer is full, discarding stage=mapper"]
    );
    assert_eq!(mapper.count().await, 3);
    assert_eq!(c.asks(9).await, [[3, 3, 3]]);
    // An ask larger than the first one is logged as a warning, which is another case.
    assert!(!complaints(&log).iter().any(|line| line.contains("discarded")));
}

#[tokio::test(start_paused = true)]
async fn s_104_it_emits_from_a_call_with_nothing_upstream() {
    let mapper = Mapper::identity();
    mapper.emit([1, 2]).await;
    assert_eq!(mapper.count().await, 2);
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(5).await, [[1, 2]]);
    demand_is_left(&mapper, &c, 3).await;
}

#[tokio::test(start_paused = true)]
async fn s_105_a_manual_stage_asks_upstream_by_itself() {
    let source = silent();
    let mapper = Mapper::with(|n| vec![n], |stage| Stage::new(stage.manual()));
    mapper.subscribe(&source, auto(10, 5)).await;
    assert_eq!(source.demands(), NO_DEMAND);
    mapper.upstream().ask(3);
    settle().await;
    assert_eq!(source.demands(), [3]);
}

#[tokio::test(start_paused = true)]
async fn s_106_consumers_of_a_broadcasting_stage_get_the_same_once_both_are_subscribed() {
    let source = finite(100);
    let mapper =
        Mapper::with(double, |stage| Stage::new(stage).dispatcher(BroadcastDispatcher::new));
    let (early, late) = (automatic(), automatic());
    early.subscribe(mapper.handle(), auto(10, 0)).await;
    mapper.subscribe(&source, auto(10, 5)).await;
    assert_eq!(early.chunks().concat(), doubled(0..100));
    late.subscribe(mapper.handle(), auto(20, 0)).await;
    // Both have asked by now, each for at least as many events as are emitted.
    source.emit(100..110).await;
    assert_eq!(early.chunks().concat(), doubled(100..110));
    assert_eq!(late.chunks().concat(), doubled(100..110));

    let source = finite(100);
    let mapper =
        Mapper::with(double, |stage| Stage::new(stage).dispatcher(BroadcastDispatcher::new));
    let consumers = [automatic(), automatic()];
    consumers[0].subscribe(mapper.handle(), auto(10, 0)).await;
    consumers[1].subscribe(mapper.handle(), auto(20, 0)).await;
    mapper.subscribe(&source, auto(10, 5)).await;
    for consumer in &consumers {
        assert_eq!(consumer.chunks().concat(), doubled(0..100));
    }
}

#[tokio::test(start_paused = true)]
async fn x_003_demand_of_a_killed_consumer_does_not_reorder_the_buffer() {
    let (source, mapper) = (silent(), Mapper::identity());
    mapper.subscribe(&source, auto(10, 5)).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(6).await, NO_CHUNK);
    c.handle.kill();
    settle().await;
    source.emit(1..=8).await;
    let d = manual_of(mapper.handle()).await;
    for pair in [[1, 2], [3, 4], [5, 6], [7, 8]] {
        assert_eq!(d.asks(2).await, [pair]);
    }
}

#[tokio::test(start_paused = true)]
async fn x_024_demand_of_a_cancelled_consumer_takes_no_messages() {
    let (source, mapper) = (finite(1000), Mapper::identity());
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(3).await, NO_CHUNK);
    c.handle.stop(ExitReason::Normal).await;
    settle().await;
    mapper.subscribe(&source, auto(10, 5)).await;
    assert_eq!(mapper.handled(), NO_CHUNK);
    assert_eq!(mapper.count().await, 0);
    assert_eq!(source.demands(), [10]);

    let d = manual_of(mapper.handle()).await;
    assert_eq!(d.asks(7).await, [list(0..=4), vec![5, 6]]);
    assert_eq!(mapper.handled(), [list(0..=4), list(5..=9)]);
    assert_eq!(mapper.count().await, 3);
    assert_eq!(source.demands(), [5, 5]);

    // The two later events are still unprocessed.
    let mut mapper = mapper;
    mapper.handle().stop(ExitReason::Normal).await;
    assert_eq!(mapper.pipeline.join().await.unprocessed(), 3 + 10);
}

#[tokio::test(start_paused = true)]
async fn x_025_markers_and_ends_need_no_demand() {
    let mapper = a_producer_behind_its_events(temporary(10, 5), ExitReason::Normal).await;
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(3).await, [[1, 2, 3]]);
    assert_eq!(mapper.seen(), in_order("")[..2]);
    assert_eq!(c.asks(1).await, [[4]]);
    assert_eq!(mapper.seen(), in_order("down (normal)")[2..]);
}

#[tokio::test(start_paused = true)]
async fn x_027_events_emitted_in_handle_cancel_count_against_the_demand() {
    let (x, y) = (10, 11);
    let source = silent();
    let mapper = Mapper::with(|n| vec![n], |stage| Stage::new(stage.farewell([x, y])));
    mapper.subscribe(&source, temporary(10, 5)).await;
    source.emit([1]).await;
    // Its producer ends by itself, not by a message from outside.
    let _ = source.execute(Command::End(ExitReason::Normal)).await;
    settle().await;
    assert_eq!(mapper.seen(), []);
    let c = manual_of(mapper.handle()).await;
    assert_eq!(c.asks(5).await, [vec![1], vec![x, y]]);
    demand_is_left(&mapper, &c, 2).await;
}
