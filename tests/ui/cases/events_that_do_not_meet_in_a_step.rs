//! A producer of numbers, and a producer-consumer that receives text.

use pipeline_core::{
    ExitReason, Pipeline,
    source::from_iter,
    stage::{Emitter, ProducerConsumer},
    step::for_each,
    subscription::{SubscribeOptions, Subscription},
};

struct Length;

impl ProducerConsumer for Length {
    type In = String;
    type Out = usize;

    async fn handle_events(
        &mut self,
        lines: Vec<String>,
        _: &Subscription,
        out: &mut Emitter<'_, usize>,
    ) -> Result<(), ExitReason> {
        out.emit_all(lines.iter().map(String::len));
        Ok(())
    }
}

fn main() {
    let _ = Pipeline::builder("lengths")
        .producer(from_iter(0..10_u64))
        .producer_consumer(Length, SubscribeOptions::new())
        .consumer(for_each(async |length| println!("{length}")), SubscribeOptions::new())
        .start();
}
