//! Helpers for testing stages: a producer controlled by the test, a consumer that records, and a
//! way to wait until all tasks are idle. Also a check that a custom dispatcher keeps its contract.
//!
//! Requires the feature `test-kit`. On tokio's paused clock, time only passes when all tasks wait.
//!
//! ```
//! use pipeline_core::{Graph, subscription::SubscribeOptions, testkit};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (producer, script) = testkit::scripted::<u64>();
//! let (consumer, recording) = testkit::recording::<u64>();
//! let mut graph = Graph::new("test");
//! let producer = graph.producer("producer", producer);
//! let consumer = graph.consumer("consumer", consumer);
//! graph.subscribe(&consumer, &producer, SubscribeOptions::new().max_demand(6).min_demand(4));
//! let pipeline = graph.start()?;
//!
//! testkit::settle().await;
//! assert_eq!(script.demands(), [6]);
//!
//! script.emit([1, 2, 3]).await;
//! testkit::settle().await;
//! assert_eq!(recording.chunks(), [vec![1, 2], vec![3]]);
//! assert_eq!(script.demands(), [2]);
//!
//! drop(pipeline);
//! testkit::assert_no_task_left().await;
//! # Ok(())
//! # }
//! ```

mod dispatcher;
mod recording;
mod scripted;

use std::time::Duration;

use tokio::{runtime::Handle, time};

pub use self::{
    dispatcher::{Delivering, DispatcherCheck, check_dispatcher},
    recording::{Recording, RecordingConsumer, recording},
    scripted::{Command, Script, ScriptedProducer, scripted},
};

/// Waits until every task waits for the test, or for a time that is at least a millisecond away.
///
/// It takes a millisecond of tokio's clock, so it is exact while the clock is paused
/// (`#[tokio::test(start_paused = true)]`): then time passes only when no task can continue.
///
/// # Cancel safety
///
/// Cancel safe.
///
/// ```
/// use pipeline_core::{Graph, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (producer, script) = testkit::scripted::<u64>();
/// let mut graph = Graph::new("test");
/// graph.producer("producer", producer);
/// let _pipeline = graph.start()?;
///
/// script.handle().kill();
/// assert!(script.handle().is_running());
/// testkit::settle().await;
/// assert!(!script.handle().is_running());
/// # Ok(())
/// # }
/// ```
pub async fn settle() {
    time::sleep(Duration::from_millis(1)).await;
}

/// Waits until all tasks are idle, and checks that no task is left on this runtime: all started
/// tasks have been ended by their owners.
///
/// # Panics
///
/// If a task is left.
///
/// # Cancel safety
///
/// Cancel safe.
///
/// ```
/// use pipeline_core::{Graph, source::from_iter, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("test");
/// graph.producer("numbers", from_iter(0..10));
/// drop(graph.start()?);
/// testkit::assert_no_task_left().await;
/// # Ok(())
/// # }
/// ```
pub async fn assert_no_task_left() {
    settle().await;
    let left = Handle::current().metrics().num_alive_tasks();
    assert!(left == 0, "{left} tasks outlived their owners");
}
