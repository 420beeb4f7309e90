//! A producer that subscribes to a consumer.

use pipeline_core::{Graph, source::from_iter, step::for_each, subscription::SubscribeOptions};

fn main() {
    let mut graph = Graph::new("numbers");
    let numbers = graph.producer("numbers", from_iter(0..10_u64));
    let print = graph.consumer("print", for_each(async |number: u64| println!("{number}")));
    graph.subscribe(&numbers, &print, SubscribeOptions::new());
}
