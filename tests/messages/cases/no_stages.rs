//! A pipeline with nothing in it.

use pipeline_core::Pipeline;

fn main() {
    let _ = Pipeline::builder("nothing").start();
}
