//! A function in a pipeline that captures a value that is not `Send`.

use std::rc::Rc;

use pipeline_core::{Pipeline, source::from_iter};

fn main() {
    let offset = Rc::new(1);
    let _ = Pipeline::builder("numbers")
        .producer(from_iter(0..10_u64))
        .map(move |number| number + *offset);
}
