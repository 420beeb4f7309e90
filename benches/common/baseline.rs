//! Source and sink of the hand-written pipelines.

use tokio::sync::mpsc;

use crate::common::{Count, EVENTS};

/// The numbers in batches.
pub(crate) fn batches(size: usize) -> impl Iterator<Item = Vec<u64>> {
    (0..EVENTS).step_by(size).map(move |first| (first..EVENTS.min(first + size as u64)).collect())
}

/// A consumer that counts events.
pub(crate) async fn count_all(count: Count, mut batches: mpsc::Receiver<Vec<u64>>) {
    while let Some(events) = batches.recv().await {
        count.add(events);
    }
}
