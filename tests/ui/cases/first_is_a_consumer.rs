//! A consumer where a producer belongs.

use pipeline_core::{ExitReason, Pipeline, stage::Consumer, subscription::Subscription};

struct Print;

impl Consumer for Print {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }
}

fn main() {
    let _ = Pipeline::builder("numbers").producer(Print);
}
