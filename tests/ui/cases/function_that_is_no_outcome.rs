//! A function at the end that returns neither `()` nor a result.

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer(for_each(async |number: u64| number + 1), SubscribeOptions::new())
        .start();
}
