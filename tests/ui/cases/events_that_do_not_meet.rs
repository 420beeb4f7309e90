//! A producer of numbers, and a consumer of text.

use pipeline_core::{
    ExitReason, Pipeline,
    source::from_iter,
    stage::Consumer,
    subscription::{SubscribeOptions, Subscription},
};

struct Print;

impl Consumer for Print {
    type Event = String;

    async fn handle_events(
        &mut self,
        lines: Vec<String>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        println!("{lines:?}");
        Ok(())
    }
}

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer(Print, SubscribeOptions::new())
        .start();
}
