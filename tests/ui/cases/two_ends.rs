//! A pipeline that continues after its end.

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let print = for_each(async |number: u64| println!("{number}"));
    let again = for_each(async |number: u64| println!("{number}"));
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer(print, SubscribeOptions::new())
        .consumer(again, SubscribeOptions::new())
        .start();
}
