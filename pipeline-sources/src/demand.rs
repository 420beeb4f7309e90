//! The demand of a pipeline, for the task that fetches.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

/// How many items may be fetched. One task adds to it, and one takes from it.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    items: AtomicUsize,
    added: Notify,
}

impl Demand {
    pub(crate) fn add(&self, items: usize) {
        if items > 0 {
            self.items.fetch_add(items, SeqCst);
            self.added.notify_one();
        }
    }

    /// How many items may be fetched beyond those that were taken.
    pub(crate) fn left(&self) -> usize {
        self.items.load(SeqCst)
    }

    /// Takes up to `most`, and waits until there is at least one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it takes nothing if it is dropped.
    pub(crate) async fn take(&self, most: usize) -> usize {
        loop {
            let take = |items: usize| (items > 0).then(|| items.saturating_sub(most));
            if let Ok(before) = self.items.fetch_update(SeqCst, SeqCst, take) {
                return before.min(most);
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn demand_is_taken_as_far_as_there_is_some() {
        let demand = Demand::default();
        assert_eq!(demand.take(3).now_or_never(), None);
        demand.add(5);
        assert_eq!(demand.take(3).now_or_never(), Some(3));
        assert_eq!(demand.take(3).now_or_never(), Some(2));
        assert_eq!(demand.take(3).now_or_never(), None);
    }

    #[tokio::test]
    async fn a_waiting_task_is_woken() {
        let demand = std::sync::Arc::new(Demand::default());
        let taking = tokio::spawn({
            let demand = demand.clone();
            async move { demand.take(3).await }
        });
        tokio::task::yield_now().await;
        demand.add(1);
        assert_eq!(taking.await.unwrap(), 1);
    }
}
