//! A worker that has captured what cannot be cloned, where each of its tasks gets a clone.

use pipeline_core::ConsumerSupervisor;

struct Connection;

fn main() {
    let connection = Connection;
    let _ = ConsumerSupervisor::<u64, _>::new(async move |_: &u64| {
        let _ = &connection;
        Ok(())
    });
}
