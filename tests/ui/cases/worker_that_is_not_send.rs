//! A worker that captures a value that is not `Send`.

use std::rc::Rc;

use pipeline_core::supervisor::ConsumerSupervisor;

fn main() {
    let offset = Rc::new(1);
    let _ = ConsumerSupervisor::<u64, _>::new(async move |event: &u64| {
        drop(event + *offset);
        Ok(())
    });
}
