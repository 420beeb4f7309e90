//! A worker that captures a value that is not `Clone`, although each task gets a clone.

use pipeline_core::supervisor::ConsumerSupervisor;

struct Connection;

fn main() {
    let connection = Connection;
    let _ = ConsumerSupervisor::<u64, _>::new(async move |_: &u64| {
        let _ = &connection;
        Ok(())
    });
}
