//! A worker that keeps something over an `.await` that cannot go to another thread.

use std::{future::ready, rc::Rc};

use pipeline_core::ConsumerSupervisor;

fn main() {
    let _ = ConsumerSupervisor::<u64, _>::new(async |event: &u64| {
        let event = Rc::new(*event);
        ready(()).await;
        drop(event);
        Ok(())
    });
}
