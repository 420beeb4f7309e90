//! Workers for text after a producer of numbers.

use pipeline_core::{
    ExitReason, Pipeline,
    source::from_iter,
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Worker},
};

struct Fetch;

impl Worker<String> for Fetch {
    async fn run(&self, _: &String, _: ChildContext) -> Result<(), ExitReason> {
        Ok(())
    }
}

fn main() {
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer_supervisor(ConsumerSupervisor::new(Fetch), SubscribeOptions::new())
        .start();

    let greet = async |name: &String| {
        println!("hello {name}");
        Ok(())
    };
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .consumer_supervisor(ConsumerSupervisor::new(greet), SubscribeOptions::new())
        .start();
}
