//! A stage for text that subscribes to numbers, before the start and after.

use pipeline_core::{
    Graph,
    source::from_iter,
    step::for_each,
    subscription::{SubscribeError, SubscribeOptions},
};

async fn subscribe() -> Result<(), SubscribeError> {
    let mut graph = Graph::new("numbers");
    let numbers = graph.producer("numbers", from_iter(0..10_u64));
    let print = graph.consumer("print", for_each(async |line: String| println!("{line}")));
    graph.subscribe(&print, &numbers, SubscribeOptions::new());

    print.subscribe(&numbers, SubscribeOptions::new()).await?;
    Ok(())
}

fn main() {}
