//! The cost of finding a topic among others, of broadcasting to its subscribers, and of subscribing.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::ws::{Endpoint, Payload, PubSub, pubsub::TopicSubscription};

/// The measured topic.
const SMALL: &str = "room:small";

fn pubsub() -> PubSub {
    Endpoint::builder().build().unwrap().pubsub().clone()
}

/// Subscribes to this many other topics.
fn others(pubsub: &PubSub, topics: usize) -> Vec<TopicSubscription> {
    (0..topics).map(|n| pubsub.subscribe(&format!("room:{n}"))).collect()
}

/// Subscribes this many times to the same topic. The subscribers read nothing, so the oldest broadcast
/// is dropped.
fn listeners(pubsub: &PubSub, count: usize) -> Vec<TopicSubscription> {
    (0..count).map(|_| pubsub.subscribe(SMALL)).collect()
}

fn broadcast(c: &mut Criterion) {
    let payload = Payload::new(&[("text", "hello")].into_iter().collect::<Map>()).unwrap();
    let mut group = c.benchmark_group("broadcast to one subscriber, with other topics");
    for topics in [1, 100, 10_000, 100_000] {
        let pubsub = pubsub();
        let (_others, _listener) = (others(&pubsub, topics), listeners(&pubsub, 1));
        group.bench_function(BenchmarkId::from_parameter(topics), |b| {
            b.iter(|| pubsub.broadcast(SMALL, "said", black_box(&payload)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("broadcast to many subscribers");
    for count in [1, 10, 100, 1000] {
        let pubsub = pubsub();
        let _listeners = listeners(&pubsub, count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| pubsub.broadcast(SMALL, "said", black_box(&payload)));
        });
    }
}

/// The content of a payload.
type Map = std::collections::BTreeMap<&'static str, &'static str>;

fn come_and_go(c: &mut Criterion) {
    let mut group = c.benchmark_group("subscribe and unsubscribe, with other topics");
    for topics in [1, 100, 10_000, 100_000] {
        let pubsub = pubsub();
        let _others = others(&pubsub, topics);
        group.bench_function(BenchmarkId::from_parameter(topics), |b| {
            b.iter(|| pubsub.subscribe(black_box(SMALL)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("subscribe and unsubscribe, with many on the topic");
    for count in [1, 10, 100, 1000] {
        let pubsub = pubsub();
        let _listeners = listeners(&pubsub, count);
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| pubsub.subscribe(black_box(SMALL)));
        });
    }
}

criterion_group!(benches, broadcast, come_and_go);
criterion_main!(benches);
