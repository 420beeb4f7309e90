//! Workers that report their start, and wait until the test releases them.

use std::{sync::Arc, time::Duration};

use pipeline_core::ExitReason;
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};

use crate::PATIENCE;

/// The workers' side.
#[derive(Clone, Debug)]
pub struct Gate {
    started: mpsc::Sender<u64>,
    leave: Arc<Semaphore>,
}

/// The test's side.
#[derive(Debug)]
pub struct GateControl {
    started: mpsc::Receiver<u64>,
    leave: Arc<Semaphore>,
}

/// A gate and its control.
#[must_use]
pub fn gate() -> (Gate, GateControl) {
    let (sender, started) = mpsc::channel(1000);
    let leave = Arc::new(Semaphore::new(0));
    (Gate { started: sender, leave: leave.clone() }, GateControl { started, leave })
}

impl Gate {
    /// Reports that a worker has started with this event, and waits until it is released.
    ///
    /// # Errors
    ///
    /// If the control was dropped.
    pub async fn pass(&self, event: u64) -> Result<(), ExitReason> {
        self.started.send(event).await?;
        self.leave.acquire().await?.forget();
        Ok(())
    }
}

impl GateControl {
    /// Waits for `count` workers to start. Returns their events.
    pub async fn started(&mut self, count: usize) -> Vec<u64> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.started.recv().await.unwrap());
        }
        events
    }

    /// Releases `count` workers.
    pub fn release(&self, count: usize) {
        self.leave.add_permits(count);
    }

    /// Asserts that no further worker starts after every task has had time to start one. Needs a
    /// current-thread runtime.
    pub async fn assert_none_starts(&mut self) {
        settle().await;
        assert_eq!(self.started.try_recv().ok(), None);
    }
}

/// Runs all other tasks of a current-thread runtime until they are idle.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Runs other tasks until the condition holds. Panics if it does not within [`PATIENCE`].
pub async fn eventually(mut so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() {
        if so() {
            return;
        }
        // First the tasks of this runtime, then the system's work.
        sleep(Duration::from_millis(1)).await;
    }
    panic!("the condition does not hold in time");
}
