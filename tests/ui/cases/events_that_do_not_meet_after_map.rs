//! A function at the end with another event type than `map` returns.

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .map(|number| number + 1)
        .consumer(for_each(async |line: String| println!("{line}")), SubscribeOptions::new())
        .start();
}
