//! Section 5.1: consumer arithmetic.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    subscription::{Cancel, SubscribeOptions, SubscriptionId},
    testkit::settle,
};
use pipeline_test_support::Log;

use crate::support::{
    CallLog, LoggingConsumer, LoggingProducer, NO_CHUNK, NO_DEMAND, acting, alone, auto, automatic,
    ended, finite, manual, only, oops, silent, silent_with,
};

fn range(events: Range<u64>) -> Vec<u64> {
    events.collect()
}

/// The integers from 0, in batches of these sizes.
fn batches(sizes: &[u64]) -> Vec<Vec<u64>> {
    let mut next = 0;
    let batch = |&size| {
        next += size;
        range(next - size..next)
    };
    sizes.iter().map(batch).collect()
}

/// The batches of a consumer with these options that receives `total` integers from 0, and the
/// demands of the producer.
async fn takes(options: SubscribeOptions, total: u64) -> (Vec<Vec<u64>>, Vec<usize>) {
    let (producer, consumer) = (finite(total), automatic());
    consumer.subscribe(producer.handle(), options).await;
    (consumer.chunks(), producer.demands())
}

#[tokio::test(start_paused = true)]
async fn s_001_the_default_takes_1000_and_then_500_at_a_time() {
    let (taken, demands) = takes(SubscribeOptions::new(), 3000).await;
    assert_eq!(taken, batches(&[500; 6]));
    assert_eq!(demands, [1000, 500, 500, 500, 500, 500, 500]);
}

#[tokio::test(start_paused = true)]
async fn s_002_demand_is_renewed_after_each_chunk() {
    let (taken, demands) = takes(auto(100, 80), 1020).await;
    assert_eq!(taken, batches(&[20; 51]));
    assert_eq!(taken[50], range(1000..1020));
    assert_eq!(demands, [vec![100], vec![20; 51]].concat());
}

#[tokio::test(start_paused = true)]
async fn s_003_chunks_and_asks_alternate_when_the_minimum_is_low() {
    let (taken, demands) = takes(auto(100, 20), 460).await;
    assert_eq!(taken, batches(&[80, 20, 80, 80, 20, 80, 80, 20]));
    assert_eq!(demands, [100, 80, 100, 80, 100, 80]);
}

#[tokio::test(start_paused = true)]
async fn s_004_a_maximum_of_one_takes_one_after_the_other() {
    let (taken, demands) = takes(auto(1, 0), 5).await;
    assert_eq!(taken, batches(&[1; 5]));
    assert_eq!(demands, [1; 6]);
}

#[tokio::test(start_paused = true)]
async fn s_005_a_maximum_of_two_has_a_minimum_of_one() {
    let (taken, demands) = takes(SubscribeOptions::new().max_demand(2), 4).await;
    assert_eq!(taken, [[0], [1], [2], [3]]);
    assert_eq!(demands, [2, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn s_006_a_maximum_of_three_has_a_minimum_of_one() {
    let (taken, demands) = takes(SubscribeOptions::new().max_demand(3), 6).await;
    assert_eq!(taken, [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
    assert_eq!(demands, [3, 2, 3]);
}

/// The minimum is the difference between the maximum and the first batch, and the first ask.
#[tokio::test(start_paused = true)]
async fn s_007_the_minimum_is_half_of_the_maximum_rounded_down() {
    for (max, min) in [(1, 0), (5, 2), (7, 3), (1000, 500)] {
        let (producer, consumer) = (silent(), automatic());
        consumer.subscribe(producer.handle(), SubscribeOptions::new().max_demand(max)).await;
        assert_eq!(producer.demands(), [max]);
        producer.emit(0..max as u64).await;
        assert_eq!(consumer.chunks()[0].len(), max - min);
        assert_eq!(producer.demands()[0], max - min);
        let shown = format!("{:?}", producer.subscribed()[0].1);
        assert!(shown.contains(&format!("min_demand: {min},")), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn s_008_a_push_that_crosses_the_minimum_is_not_split() {
    let (producer, consumer) = (silent(), automatic());
    consumer.subscribe(producer.handle(), auto(100, 75)).await;
    assert_eq!(producer.demands(), [100]);
    for (n, demands) in [vec![], vec![], vec![30], vec![], vec![], vec![30]].iter().enumerate() {
        let push = range(n as u64 * 10..n as u64 * 10 + 10);
        producer.emit(push.clone()).await;
        assert_eq!(consumer.chunks(), [push]);
        assert_eq!(producer.demands(), *demands);
    }
}

#[tokio::test(start_paused = true)]
async fn s_009_the_demand_is_topped_up_to_the_maximum() {
    let (producer, consumer) = (silent(), automatic());
    consumer.subscribe(producer.handle(), auto(10, 7)).await;
    assert_eq!(producer.demands(), [10]);
    for (first, demands) in [(1, [3]), (5, [4]), (9, [4]), (13, [4])] {
        producer.emit(first..first + 4).await;
        assert_eq!(consumer.chunks(), [range(first..first + 3), vec![first + 3]]);
        assert_eq!(producer.demands(), demands);
    }
}

#[tokio::test(start_paused = true)]
async fn s_010_a_minimum_of_zero_asks_when_everything_is_handled() {
    let (producer, consumer) = (silent(), automatic());
    consumer.subscribe(producer.handle(), auto(5, 0)).await;
    assert_eq!(producer.demands(), [5]);
    for (push, demands) in
        [(vec![1, 2], vec![]), (vec![3, 4], vec![]), (vec![5], vec![5]), (vec![6, 7, 8], vec![])]
    {
        producer.emit(push.clone()).await;
        assert_eq!(consumer.chunks(), [push]);
        assert_eq!(producer.demands(), demands);
    }
}

#[tokio::test(start_paused = true)]
async fn s_011_buffered_events_are_sent_before_the_producer_is_asked() {
    let (producer, consumer) = (silent(), automatic());
    consumer.subscribe(producer.handle(), SubscribeOptions::new()).await;
    assert_eq!(producer.demands(), [1000]);
    producer.emit(1..=1200).await;
    assert_eq!(consumer.chunks(), [range(1..501), range(501..1001), range(1001..1201)]);
    assert_eq!(producer.demands(), [300, 500]);
    assert_eq!(producer.count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn s_012_each_chunk_is_handled_before_its_ask_and_the_ask_comes_before_the_next_chunk() {
    let calls = CallLog::default();
    let (producer, _pipeline) =
        alone(|graph| graph.producer("producer", LoggingProducer(calls.clone())));
    let (consumer, _pipeline) =
        alone(|graph| graph.consumer("consumer", LoggingConsumer(calls.clone())));
    consumer.subscribe(&producer, auto(6, 4)).await.unwrap();
    settle().await;
    assert_eq!(calls.take(), ["demand 6"]);
    producer.sync_info((1..=6).collect::<Vec<u64>>()).await.unwrap();
    // Each chunk takes a while.
    for _ in 0..4 {
        settle().await;
    }
    let order =
        ["handle [1, 2]", "demand 2", "handle [3, 4]", "demand 2", "handle [5, 6]", "demand 2"];
    assert_eq!(calls.take(), order);
}

#[tokio::test(start_paused = true)]
async fn s_013_subscriptions_of_one_consumer_share_nothing() {
    const X: u64 = 100;
    let taken = Arc::new(Mutex::new(Vec::new()));
    let consumer = acting({
        let taken = taken.clone();
        move |events, from| {
            taken.lock().push((from.id(), events.to_vec()));
            Ok(())
        }
    });
    let taken_from = |id| {
        let taken = std::mem::take(&mut *taken.lock());
        assert!(taken.iter().all(|(from, _)| *from == id), "every batch is from one subscription");
        taken.into_iter().map(|(_, events)| events).collect::<Vec<_>>()
    };
    let (a, b) = (finite(6), silent());
    let from_a = consumer.subscribe(a.handle(), auto(4, 2)).await.id();
    assert_eq!(taken_from(from_a), [[0, 1], [2, 3], [4, 5]]);
    let from_b = consumer.subscribe(b.handle(), auto(3, 0)).await.id();
    assert_eq!(taken_from(from_b), NO_CHUNK);
    assert_eq!((a.demands(), b.demands()), (vec![4, 2, 2, 2], vec![3]));

    b.emit([X, X + 1]).await;
    assert_eq!(taken_from(from_b), [[X, X + 1]]);
    assert_eq!((a.demands(), b.demands()), (vec![], vec![]));

    b.emit([X + 2, X + 3]).await;
    assert_eq!(taken_from(from_b), [[X + 2], [X + 3]]);
    assert_eq!((a.demands(), b.demands()), (vec![], vec![2]));
}

/// Sends everything to the last subscriber, whether it asked or not.
struct SendsUnasked {
    to: Option<SubscriptionId>,
    asks: Arc<Mutex<Vec<usize>>>,
}

impl Dispatcher<u64> for SendsUnasked {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.to = Some(subscriber.id);
        Ok(())
    }

    fn cancel(&mut self, _id: SubscriptionId, _out: &mut Deliveries<u64>) {
        self.to = None;
    }

    fn ask(&mut self, _id: SubscriptionId, demand: usize, _out: &mut Deliveries<u64>) {
        self.asks.lock().push(demand);
    }

    fn unmet(&self) -> usize {
        0
    }

    fn dispatch(&mut self, events: &mut VecDeque<u64>, out: &mut Deliveries<u64>) {
        if let Some(to) = self.to {
            out.send(to, events.drain(..).collect());
        }
    }

    fn outstanding(&self, _id: SubscriptionId) -> usize {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn s_014_excess_events_are_handled_but_not_counted() {
    let (log, _guard) = Log::keep();
    let asks = Arc::new(Mutex::new(Vec::new()));
    let careless = {
        let asks = asks.clone();
        move || SendsUnasked { to: None, asks: asks.clone() }
    };
    let producer = silent_with(|stage| stage.dispatcher(careless));
    let consumer = automatic();
    consumer.subscribe(producer.handle(), auto(3, 1).cancel(Cancel::Temporary)).await;
    let asked = || std::mem::take(&mut *asks.lock());
    let logged = || log.take().into_iter().filter(|line| line.starts_with("ERROR")).collect();
    assert_eq!(asked(), [3]);

    producer.emit(1..=5).await;
    assert_eq!(consumer.chunks(), [vec![1, 2], vec![3, 4], vec![5]]);
    assert_eq!(asked(), [2]);
    let excess = "ERROR excess=1 message=received more events than requested stage=consumer";
    let reports: Vec<String> = logged();
    assert_eq!(reports, [excess, excess]);

    producer.emit([6]).await;
    assert_eq!(consumer.chunks(), [[6]]);
    assert_eq!(asked(), [2]);

    producer.emit([7]).await;
    assert_eq!(consumer.chunks(), [[7]]);
    assert_eq!(asked(), NO_DEMAND);
    let reports: Vec<String> = logged();
    assert!(reports.is_empty(), "{reports:?}");
}

#[tokio::test(start_paused = true)]
async fn s_015_a_handler_that_stops_the_stage_drops_the_rest_and_asks_for_nothing() {
    let enough = || ExitReason::ShutdownWith("enough".into());
    let (producer, mut consumer) = (silent(), acting(move |_, _| Err(enough())));
    let subscription = consumer.subscribe(producer.handle(), auto(6, 4)).await;
    assert_eq!(producer.demands(), [6]);
    producer.emit(1..=6).await;
    assert_eq!(consumer.chunks(), [[1, 2]]);
    assert_eq!(producer.demands(), NO_DEMAND);
    assert_eq!(ended(producer.cancelled()), [(subscription, "down (shutdown: enough)".to_owned())]);
    let report = consumer.pipeline.join().await;
    assert_eq!(only(&report).reason.to_string(), "shutdown: enough");
    // Events 3..6 are lost and counted.
    assert_eq!(only(&report).unprocessed(), 4);
    assert_eq!(producer.count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn s_016_events_in_transit_are_handled_after_ones_own_cancel() {
    let mut consumer = acting(|events, from| {
        if events == [1, 2] {
            from.cancel(oops());
        }
        Ok(())
    });
    let producer = silent();
    let options = auto(6, 4).cancel(Cancel::Temporary);
    let subscription = consumer.subscribe(producer.handle(), options).await;
    assert_eq!(producer.demands(), [6]);
    producer.emit(1..=6).await;
    assert_eq!(consumer.chunks(), [[1, 2], [3, 4], [5, 6]]);
    let cancelled = [(subscription, "cancelled (failed: oops)".to_owned())];
    assert_eq!(ended(consumer.cancelled()), cancelled);
    producer.emit(7..=8).await;
    assert_eq!(consumer.chunks(), NO_CHUNK);
    assert_eq!(ended(consumer.cancelled()), []);
    assert_eq!(producer.count().await, 2);
    assert_eq!(producer.demands(), NO_DEMAND);
    assert_eq!(ended(producer.cancelled()), cancelled);
    assert_eq!(consumer.fate().await, "alive");
}

#[tokio::test(start_paused = true)]
async fn s_017_a_manual_subscription_asks_only_by_calls() {
    let asks = Arc::new(Mutex::new(Vec::new()));
    let watched = {
        let asks = asks.clone();
        move || SendsUnasked { to: None, asks: asks.clone() }
    };
    let watched = silent_with(|stage| stage.dispatcher(watched));
    let (producer, consumer) = (silent(), manual());
    consumer.subscribe(producer.handle(), SubscribeOptions::new()).await;
    assert_eq!(producer.demands(), NO_DEMAND);
    consumer.ask(10).await;
    assert_eq!(producer.demands(), [10]);
    producer.emit(1..=7).await;
    assert_eq!(consumer.chunks(), [range(1..8)]);
    consumer.ask(0).await;
    assert_eq!(producer.demands(), NO_DEMAND);

    // An ask of 0 is not sent at all.
    consumer.subscribe(watched.handle(), SubscribeOptions::new()).await;
    consumer.ask(0).await;
    assert_eq!(*asks.lock(), NO_DEMAND);
    consumer.ask(1).await;
    assert_eq!(*asks.lock(), [1]);
}

#[tokio::test(start_paused = true)]
async fn s_018_a_manual_subscription_may_ask_for_more_than_its_maximum() {
    let (producer, consumer) = (finite(100), manual());
    consumer.subscribe(producer.handle(), SubscribeOptions::new().max_demand(2)).await;
    consumer.ask(7).await;
    assert_eq!(producer.demands(), [7]);
    assert_eq!(consumer.chunks(), [range(0..7)]);
}

#[tokio::test(start_paused = true)]
async fn s_019_a_manual_subscription_gets_each_message_whole() {
    let (producer, consumer) = (finite(1000), manual());
    consumer.subscribe(producer.handle(), SubscribeOptions::new()).await;
    consumer.ask(50).await;
    consumer.ask(50).await;
    assert_eq!(consumer.chunks(), [range(0..50), range(50..100)]);
    assert_eq!(producer.demands(), [50, 50]);
}
