//! A function that holds a value that is not `Send` across an `.await`.

use std::{future::ready, rc::Rc};

use pipeline_core::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let print = for_each(async |number: u64| {
        let number = Rc::new(number);
        ready(()).await;
        println!("{number}");
    });
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer(print, SubscribeOptions::new())
        .start();
}
