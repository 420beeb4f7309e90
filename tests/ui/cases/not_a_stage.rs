//! A type that is not a stage, in every place where a stage is expected.

use pipeline_core::{Graph, Pipeline, source::from_iter, subscription::SubscribeOptions};

struct Plain;

fn main() {
    let _ = Pipeline::builder("plain").producer(Plain);

    let _ = Pipeline::builder("plain")
        .producer(from_iter(0..10_u64))
        .producer_consumer(Plain, SubscribeOptions::new());

    let _ = Pipeline::builder("plain")
        .producer(from_iter(0..10_u64))
        .consumer(Plain, SubscribeOptions::new());

    let mut graph = Graph::new("plain");
    graph.producer("producer", Plain);
    graph.producer_consumer("producer_consumer", Plain);
    graph.consumer("consumer", Plain);
}
