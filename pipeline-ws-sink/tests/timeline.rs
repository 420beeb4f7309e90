//! The parts of a push's delivery time, and its trace id.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use pipeline_core::{
    Pipeline,
    source::{QueueOptions, timed_queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::{Timed, Timeline, TraceContext},
};
use pipeline_test_support::{Log, Recorded};
use pipeline_ws_sink::{endpoint::PushLegs, pubsub::PreparedBroadcast};
use serde_json::json;
use support::{channels::endpoint, memory::MemoryServer};
use tokio::time::{Instant, advance, sleep};

const T: &str = "room:lobby";

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The samples of each part, and of the total.
fn legs(recorded: &Recorded) -> [Vec<f64>; 5] {
    ["queued", "waited", "worked", "written", "delivered"].map(|leg| {
        let samples = recorded.samples(&format!("pipeline.push_{leg}"));
        samples.into_iter().map(f64::round).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn each_part_is_measured_and_they_add_up_to_the_total() {
    let server = MemoryServer::start(endpoint().0);
    let mut client = server.connect(64).await;
    client.join("1", T).await;
    let (queue, producer) = timed_queue(QueueOptions::new());
    for _ in 0..2 {
        queue.push_timed("x".repeat(1000)).await.unwrap();
    }
    // In the queue for a second,
    advance(ms(1000)).await;
    let pubsub = server.endpoint.pubsub().clone();
    let slow = async move |item: &Timed<String>| {
        // with a worker for 300 ms, which is one,
        sleep(ms(300)).await;
        let push = PreparedBroadcast::new(T, "news", json!({ "text": **item }))?.timed(item);
        Ok(pubsub.broadcast_when_ready(&push).await?)
    };
    let _pipeline = Pipeline::builder("slow")
        .producer(producer)
        .consumer_supervisor(
            ConsumerSupervisor::new(slow).max_children(1),
            SubscribeOptions::new().max_demand(2).min_demand(1),
        )
        .start()
        .unwrap();
    // and the client reads after two seconds.
    sleep(ms(2000)).await;
    for _ in 0..2 {
        assert_eq!(client.receive().await[3], "news");
    }
    let [queued, waited, worked, written, delivered] = legs(&server.recorded);
    assert_eq!(queued, [1000.0, 1000.0]);
    assert_eq!(waited, [0.0, 300.0]);
    assert_eq!(worked, [300.0, 300.0]);
    assert_eq!(written, [1700.0, 1400.0]);
    assert_eq!(delivered, [3000.0, 3000.0]);
    // The snapshot has the same, within the width of a bucket.
    let seen = server.endpoint.snapshot();
    let PushLegs { queued, waited, worked, written, .. } = seen.legs;
    for (leg, longest) in [(queued, 1000), (waited, 300), (worked, 300), (written, 1700)] {
        assert_eq!(leg.count(), 2);
        let off = leg.max().unwrap().abs_diff(ms(longest));
        assert!(off < ms(longest / 32), "{leg:?}: {longest} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_is_timed_once_and_a_write_per_socket_and_only_known_parts() {
    let server = MemoryServer::start(endpoint().0);
    let (mut ada, mut joe) = (server.connect(4096).await, server.connect(4096).await);
    ada.join("1", T).await;
    joe.join("1", T).await;
    let enqueued_at = Instant::now();
    advance(ms(50)).await;
    server.endpoint.broadcast_timed(enqueued_at, T, "news", json!({})).unwrap();
    for client in [&mut ada, &mut joe] {
        assert_eq!(client.receive().await[3], "news");
    }
    assert_eq!(legs(&server.recorded), [vec![], vec![], vec![], vec![0.0; 2], vec![50.0; 2]]);

    // Through a worker, but without a queue that reports demand; and through a channel that intercepts
    // it.
    let endpoint = server.endpoint.clone();
    let worker = async move |item: &Timed<()>| {
        sleep(ms(20)).await;
        Ok(endpoint.broadcast_timed(item, T, "stamped", json!({}))?)
    };
    let _pipeline = Pipeline::builder("one")
        .producer(pipeline_core::source::from_iter([Timed::now(())]))
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    for client in [&mut ada, &mut joe] {
        assert_eq!(client.receive().await[3], "stamped");
    }
    assert_eq!(legs(&server.recorded), [vec![], vec![], vec![20.0], vec![0.0; 2], vec![20.0; 2]]);
}

#[tokio::test]
async fn a_push_is_followed_by_its_id_from_the_broadcast_to_each_write() {
    let (log, _guard) = Log::keep();
    let of_this = |id: &str| {
        let lines = log.take().into_iter().filter(|line| line.contains(id));
        lines.collect::<Vec<_>>()
    };
    let server = MemoryServer::start(endpoint().0);
    let (mut ada, mut joe) = (server.connect(4096).await, server.connect(4096).await);
    ada.join("1", T).await;
    joe.join("1", T).await;
    let trace = TraceContext::random();
    let timeline = Timeline::from(Instant::now()).with_trace(trace);
    server.endpoint.broadcast_timed(timeline, T, "news", json!({})).unwrap();
    for client in [&mut ada, &mut joe] {
        assert_eq!(client.receive().await[3], "news");
    }
    let lines = of_this(&trace.trace_id().to_string());
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert!(lines.iter().all(|line| line.starts_with("TRACE ")), "{lines:?}");
    assert_eq!((count("message=broadcast"), count("message=written to a socket")), (1, 2));
    assert_eq!(lines.len(), 3, "{lines:?}");

    // A push without a trace logs none.
    server.endpoint.broadcast_timed(Instant::now(), T, "news", json!({})).unwrap();
    assert_eq!(ada.receive().await[3], "news");
    assert!(of_this("trace_id").is_empty());
}
