//! Functions that resemble workers and are none.

use pipeline_core::supervisor::ConsumerSupervisor;

struct Fetch;

fn main() {
    let _ = ConsumerSupervisor::<u64, _>::new(Fetch);

    // It takes the event itself, not a reference.
    let _ = ConsumerSupervisor::<u64, _>::new(async |_: u64| Ok(()));

    // It does not return an outcome.
    let _ = ConsumerSupervisor::<u64, _>::new(async |event: &u64| drop(*event));

    // It is not async.
    let _ = ConsumerSupervisor::<u64, _>::new(|_: &u64| Ok(()));
}
