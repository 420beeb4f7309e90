//! Workers that say when they start, and end when they are let go.

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
pub struct Keeper {
    started: mpsc::Receiver<u64>,
    leave: Arc<Semaphore>,
}

/// A gate and its keeper.
#[must_use]
pub fn gate() -> (Gate, Keeper) {
    let (sender, started) = mpsc::channel(1000);
    let leave = Arc::new(Semaphore::new(0));
    (Gate { started: sender, leave: leave.clone() }, Keeper { started, leave })
}

impl Gate {
    /// Says that a worker has started with this event, and waits until it is let go.
    ///
    /// # Errors
    ///
    /// If the keeper is gone.
    pub async fn pass(&self, event: u64) -> Result<(), ExitReason> {
        self.started.send(event).await?;
        self.leave.acquire().await?.forget();
        Ok(())
    }
}

impl Keeper {
    /// Waits for so many workers to start; their events.
    pub async fn started(&mut self, count: usize) -> Vec<u64> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.started.recv().await.unwrap());
        }
        events
    }

    /// Lets so many workers end.
    pub fn let_go(&self, count: usize) {
        self.leave.add_permits(count);
    }

    /// Asserts that no further worker starts, having given every task the time to start one. Needs
    /// a current-thread runtime.
    pub async fn assert_none_starts(&mut self) {
        settle().await;
        assert_eq!(self.started.try_recv().ok(), None);
    }
}

/// Runs all other tasks of a current-thread runtime until they wait for something.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Lets everything else run until this is so. Panics if it does not come about within
/// [`PATIENCE`].
pub async fn eventually(mut so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() {
        if so() {
            return;
        }
        // The tasks of this runtime, then whatever the system has to do.
        sleep(Duration::from_millis(1)).await;
    }
    panic!("it has not come about");
}
