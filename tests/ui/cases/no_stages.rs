//! A pipeline without stages.

use pipeline_core::Pipeline;

fn main() {
    let _ = Pipeline::builder("nothing").start();
}
