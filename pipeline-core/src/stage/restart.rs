//! A limit on restarts. Pure: callers pass the time in.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A limit on restarts within a time.
#[derive(Debug)]
pub(crate) struct RestartBudget {
    restarts: usize,
    within: Duration,
    /// The times of the last restarts, oldest first; never more than `restarts`.
    spent: VecDeque<Instant>,
}

impl RestartBudget {
    pub(crate) fn new(restarts: usize, within: Duration) -> Self {
        Self { restarts, within, spent: VecDeque::new() }
    }

    /// The number of restarts allowed within the time.
    pub(crate) fn restarts(&self) -> usize {
        self.restarts
    }

    /// Whether one more restart is within the limit.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        while self.spent.front().is_some_and(|&then| now.duration_since(then) > self.within) {
            self.spent.pop_front();
        }
        self.spent.len() < self.restarts
    }

    /// Whether one more restart is within the limit. Counts it if so.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        let allowed = self.allows(now);
        if allowed {
            self.spent.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn restarts_are_forgotten_after_their_time() {
        let mut budget = RestartBudget::new(2, Duration::from_secs(5));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(budget.spend(at(0)));
        assert!(budget.spend(at(3)));
        assert!(!budget.allows(at(5)) && !budget.spend(at(5)), "a third within five seconds");
        assert!(budget.allows(at(6)), "allows() spends nothing");
        assert!(budget.spend(at(6)), "the first restart has expired");
        assert!(!budget.spend(at(7)));
    }
}
