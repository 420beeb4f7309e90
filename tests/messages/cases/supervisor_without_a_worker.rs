//! A supervisor without a worker.

use pipeline_core::{ConsumerSupervisor, Pipeline, SubscribeOptions, from_iter};

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer_supervisor(ConsumerSupervisor::new(), SubscribeOptions::new())
        .start();
}
