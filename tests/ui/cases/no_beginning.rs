//! A pipeline without a producer.

use pipeline_core::{Pipeline, step::for_each, subscription::SubscribeOptions};

fn main() {
    let print = for_each(async |number: u64| println!("{number}"));
    let _ = Pipeline::builder("numbers").consumer(print, SubscribeOptions::new()).start();
}
