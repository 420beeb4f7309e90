//! Section 5.6: markers, and the marker cases of section 5.16.

use pipeline_core::{
    ExitReason, Graph,
    stage::{BufferKeep, DemandMode, Emitter, HandleInfo, Producer, ProducerHandle, StageContext},
    subscription::{Cancel, SubscribeOptions},
    testkit::settle,
};
use pipeline_test_support::Log;

use crate::{
    mapper::{Mapper, Seen},
    support::{
        NO_CHUNK, Sink, Source, auto, automatic, complaints, consumer_with, dropped, list,
        manual_of, reasons, silent, silent_with,
    },
};

/// `silent` with a buffer of this size, and a manual consumer.
async fn buffering(size: usize, keep: BufferKeep) -> (Source<u64>, Sink<u64>) {
    let source = silent_with(|stage| stage.buffer_size(size).buffer_keep(keep));
    let raw = manual_of(source.handle()).await;
    (source, raw)
}

const NONE: [&str; 0] = [];

#[tokio::test(start_paused = true)]
async fn s_071_a_marker_without_earlier_events_arrives_at_once() {
    let source = silent();
    source.handle().sync_info("m".to_owned()).await.unwrap();
    source.handle().async_info("n".to_owned()).unwrap();
    settle().await;
    assert_eq!(source.infos(), ["m", "n"]);

    let consumer = automatic::<u64>();
    consumer.handle.sync_info("m".to_owned()).await.unwrap();
    consumer.handle.async_info("n".to_owned()).unwrap();
    settle().await;
    assert_eq!(consumer.infos(), ["m", "n"]);
}

#[tokio::test(start_paused = true)]
async fn s_072_a_marker_waits_for_the_events_before_it() {
    for events in 1..=3 {
        let (source, raw) = buffering(3, BufferKeep::Last).await;
        source.emit(1..=events).await;
        source.mark("m").await;
        assert_eq!(source.infos(), NONE);
        let consumer = automatic();
        consumer.subscribe(source.handle(), SubscribeOptions::new()).await;
        assert_eq!(consumer.chunks(), [list(1..=events)]);
        assert_eq!(source.infos(), ["m"]);
        assert_eq!(raw.chunks(), NO_CHUNK);

        // It has waited for the very last event.
        let (source, raw) = buffering(3, BufferKeep::Last).await;
        source.emit(1..=events).await;
        source.mark("m").await;
        for event in 1..=events {
            assert_eq!(source.infos(), NONE);
            assert_eq!(raw.asks(1).await, [[event]]);
        }
        assert_eq!(source.infos(), ["m"]);
    }
}

#[tokio::test(start_paused = true)]
async fn s_073_markers_split_messages_and_take_no_room() {
    let (log, _guard) = Log::keep();
    let (a, b, c, d, e) = (1, 2, 3, 4, 5);
    let (source, raw) = buffering(3, BufferKeep::Last).await;
    source.emit([a, b, c]).await;
    source.mark("m1").await;
    assert_eq!(raw.asks(2).await, [[a, b]]);
    source.emit([d, e]).await;
    source.mark("m2").await;
    assert_eq!(source.infos(), NONE);
    assert_eq!(raw.asks(1).await, [[c]]);
    assert_eq!(source.infos(), ["m1"]);
    assert_eq!(raw.asks(2).await, [[d, e]]);
    assert_eq!(source.infos(), ["m2"]);
    assert_eq!(complaints(&log), NONE);
}

#[tokio::test(start_paused = true)]
async fn s_074_a_marker_fires_when_its_event_is_dropped() {
    let (a, b, c, d, e) = (1, 2, 3, 4, 5);
    let (source, raw) = buffering(3, BufferKeep::Last).await;
    source.emit([a, b]).await;
    source.mark("m").await;
    assert_eq!(source.infos(), NONE);
    source.emit([c, d, e]).await;
    assert_eq!(source.infos(), ["m"]);
    assert_eq!(raw.asks(10).await, [[c, d, e]]);
    assert_eq!(source.infos(), NONE);
}

#[tokio::test(start_paused = true)]
async fn s_075_each_marker_fires_when_the_last_event_before_it_is_dropped() {
    let (log, _guard) = Log::keep();
    let (a, b, c, d, e, f) = (1, 2, 3, 4, 5, 6);
    let (source, raw) = buffering(3, BufferKeep::Last).await;
    source.emit([a, b]).await;
    source.mark("m1").await;
    source.mark("m2").await;
    source.emit([c]).await;
    source.mark("m3").await;
    assert_eq!(complaints(&log), NONE);
    for (event, fired) in [(d, vec![]), (e, vec!["m1", "m2"]), (f, vec!["m3"])] {
        source.emit([event]).await;
        assert_eq!(source.infos(), fired);
    }
    // The first drop is logged, and the total when dropping ends.
    assert_eq!(complaints(&log), [dropped(1)]);
    assert_eq!(raw.asks(10).await, [[d, e, f]]);
}

#[tokio::test(start_paused = true)]
async fn s_076_a_marker_behind_a_dropped_event_waits_for_the_kept_ones() {
    let (log, _guard) = Log::keep();
    let (a, b, c) = (1, 2, 3);
    let (source, raw) = buffering(2, BufferKeep::First).await;
    source.emit([a, b]).await;
    source.mark("m1").await;
    source.emit([c]).await;
    assert_eq!(complaints(&log), [dropped(1)]);
    source.mark("m2").await;
    assert_eq!(source.infos(), NONE);
    assert_eq!(raw.asks(10).await, [[a, b]]);
    assert_eq!(source.infos(), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn s_077_events_before_and_after_a_marker_never_share_a_message() {
    let (source, raw) = buffering(10, BufferKeep::Last).await;
    source.emit([1, 2]).await;
    source.mark("m1").await;
    source.emit([3, 4]).await;
    source.mark("m2").await;
    source.emit([5]).await;
    assert_eq!(source.infos(), NONE);
    assert_eq!(raw.asks(10).await, [vec![1, 2], vec![3, 4], vec![5]]);
    assert_eq!(source.infos(), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn s_078_several_markers_in_one_place_keep_their_order() {
    let (a, b, c, g, h) = (1, 2, 3, 7, 8);
    let (source, raw) = buffering(10, BufferKeep::Last).await;
    source.emit([a, b, c]).await;
    for marker in ["d", "e", "f"] {
        source.mark(marker).await;
    }
    source.emit([g, h]).await;
    source.mark("i").await;
    assert_eq!(source.infos(), NONE);
    assert_eq!(raw.asks(5).await, [vec![a, b, c], vec![g, h]]);
    assert_eq!(source.infos(), ["d", "e", "f", "i"]);
}

/// [a,b,c], a marker, [d]; then demand for three events.
async fn three_before_a_marker(size: usize) {
    let (a, b, c, d) = (1, 2, 3, 4);
    let (source, raw) = buffering(size, BufferKeep::Last).await;
    source.emit([a, b, c]).await;
    source.mark("m").await;
    source.emit([d]).await;
    assert_eq!(source.infos(), NONE);
    assert_eq!(raw.asks(3).await, [[a, b, c]]);
    assert_eq!(source.infos(), ["m"]);
    assert_eq!(source.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn s_079_a_marker_needs_no_demand_of_its_own() {
    three_before_a_marker(10).await;
}

#[tokio::test(start_paused = true)]
async fn x_019_a_marker_in_an_unlimited_buffer_needs_no_demand_of_its_own() {
    three_before_a_marker(usize::MAX).await;
}

#[tokio::test(start_paused = true)]
async fn s_080_markers_of_a_producer_consumer_wait_for_its_unprocessed_events() {
    let (source, mapper) = (silent(), Mapper::identity());
    mapper.subscribe(&source, auto(10, 5)).await;
    source.emit(0..=9).await;
    mapper.handle().sync_info("m".to_owned()).await.unwrap();
    mapper.handle().async_info("n".to_owned()).unwrap();
    settle().await;
    assert_eq!(mapper.seen(), []);
    let consumer = automatic();
    consumer.subscribe(mapper.handle(), SubscribeOptions::new()).await;
    assert_eq!(consumer.chunks().concat(), list(0..=9));
    assert_eq!(
        mapper.seen(),
        [
            Seen::Events(list(0..=4)),
            Seen::Events(list(5..=9)),
            Seen::Info("m".to_owned()),
            Seen::Info("n".to_owned())
        ]
    );
}

/// Emits all its events on the first demand, and sends itself a message to stop behind them.
struct Last {
    events: Vec<u64>,
    me: Option<ProducerHandle<Self>>,
}

struct Stop;

impl Producer for Last {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.me = Some(context.handle().clone());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        if let Some(me) = self.me.take() {
            out.emit_all(self.events.drain(..));
            me.async_info(Stop)?;
        }
        Ok(())
    }
}

impl HandleInfo<Stop, u64> for Last {
    async fn handle_info(&mut self, _: Stop, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        Err(ExitReason::Normal)
    }
}

#[tokio::test(start_paused = true)]
async fn s_081_all_events_of_a_producer_that_stops_behind_them_are_handled() {
    let mut graph = Graph::new("test");
    let last = graph.producer("last", Last { events: list(1..=10), me: None });
    let mut pipeline = graph.start().unwrap();
    // Also checks that the end comes after every event.
    let consumer = consumer_with(|consumer, recording| {
        let recording = recording.clone();
        consumer.on_events(move |_, _| {
            assert!(recording.cancelled().is_empty());
            Ok(())
        })
    });
    consumer.subscribe(&last, auto(4, 2).cancel(Cancel::Transient)).await;
    assert_eq!(consumer.chunks().concat(), list(1..=10));
    assert_eq!(reasons(consumer.cancelled()), ["down (normal)"]);
    assert!(consumer.handle.is_running());
    let report = pipeline.join().await;
    assert!(matches!(report.stages[0].reason, ExitReason::Normal));
    assert_eq!(report.unprocessed(), 0);
}

#[tokio::test(start_paused = true)]
async fn x_022_a_marker_waits_for_events_withheld_while_accumulating() {
    let source = silent_with(|stage| stage.demand_mode(DemandMode::Accumulate));
    let raw = manual_of(source.handle()).await;
    assert_eq!(raw.asks(1).await, NO_CHUNK);
    source.emit([1]).await;
    source.mark("m").await;
    assert_eq!((source.infos(), raw.chunks()), (vec![], vec![]));
    source.handle().set_demand_mode(DemandMode::Forward);
    settle().await;
    assert_eq!((source.infos(), raw.chunks()), (vec!["m".to_owned()], vec![vec![1]]));
}
