//! A producer of numbers, and a producer-consumer that receives text.

use pipeline_core::{
    Emitter, ExitReason, Pipeline, ProducerConsumer, SubscribeOptions, Subscription, for_each,
    from_iter,
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
