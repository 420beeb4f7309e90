//! A supervisor without a worker.

use pipeline_core::{
    Pipeline, source::from_iter, subscription::SubscribeOptions, supervisor::ConsumerSupervisor,
};

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer_supervisor(ConsumerSupervisor::new(), SubscribeOptions::new())
        .start();
}
