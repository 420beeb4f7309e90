//! A pipeline without a consumer.

use pipeline_core::{Pipeline, source::from_iter};

fn main() {
    let _ = Pipeline::builder("numbers").producer(from_iter(0..10_u64)).map(|n| n + 1).start();
}
