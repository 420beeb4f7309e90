//! Dispatchers of text for producers of numbers, and a type that is not a dispatcher.

use pipeline_core::{
    Pipeline,
    dispatcher::{BroadcastDispatcher, PartitionDispatcher},
    source::from_iter,
    stage::Stage,
};

fn main() {
    let numbers = Stage::new(from_iter(0..10_u64)).dispatcher(BroadcastDispatcher::<String>::new);
    let _ = Pipeline::builder("numbers").producer_with(numbers);

    let by_length = || PartitionDispatcher::by_key(0..4, |line: &String| Some(line.len() % 4));
    let numbers = Stage::new(from_iter(0..10_u64)).dispatcher(by_length);
    let _ = Pipeline::builder("numbers").producer_with(numbers);

    let numbers = Stage::new(from_iter(0..10_u64)).dispatcher(|| "broadcast");
    let _ = Pipeline::builder("numbers").producer_with(numbers);
}
