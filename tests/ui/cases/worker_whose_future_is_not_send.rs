//! A worker that holds a value that is not `Send` across an `.await`.

use std::{future::ready, rc::Rc};

use pipeline_core::supervisor::ConsumerSupervisor;

fn main() {
    let _ = ConsumerSupervisor::<u64, _>::new(async |event: &u64| {
        let event = Rc::new(*event);
        ready(()).await;
        drop(event);
        Ok(())
    });
}
