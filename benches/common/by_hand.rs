//! The ends of what is written by hand.

use tokio::sync::mpsc;

use crate::common::{Count, EVENTS};

/// The numbers, as a producer makes them.
pub(crate) fn batches(size: usize) -> impl Iterator<Item = Vec<u64>> {
    (0..EVENTS).step_by(size).map(move |first| (first..EVENTS.min(first + size as u64)).collect())
}

/// A consumer that counts.
pub(crate) async fn count_all(count: Count, mut batches: mpsc::Receiver<Vec<u64>>) {
    while let Some(events) = batches.recv().await {
        count.add(events);
    }
}
