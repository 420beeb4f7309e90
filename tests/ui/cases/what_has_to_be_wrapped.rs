//! A list and functions, unwrapped, where stages are expected.

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let _ = Pipeline::builder("numbers").producer(vec![1, 2, 3]);

    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .producer_consumer(|number: u64| number + 1, SubscribeOptions::new())
        .consumer(for_each(async |number: u64| println!("{number}")), SubscribeOptions::new())
        .start();

    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer(async |number: u64| println!("{number}"), SubscribeOptions::new())
        .start();
}
