//! A consumer of text with options, after a producer of numbers.

use pipeline_core::{
    Pipeline, source::from_iter, stage::Stage, step::for_each, subscription::SubscribeOptions,
};

fn main() {
    let print = Stage::new(for_each(async |line: String| println!("{line}")));
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer_with(print.named("print"), SubscribeOptions::new())
        .start();
}
