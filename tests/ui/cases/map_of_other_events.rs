//! A function for text after a producer of numbers.

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let _ = Pipeline::builder("lengths")
        .producer(from_iter(0..10_u64))
        .map(|line: String| line.len())
        .consumer(for_each(async |length: usize| println!("{length}")), SubscribeOptions::new())
        .start();
}
