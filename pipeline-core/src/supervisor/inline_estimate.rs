//! Decides whether a child is worth a task of its own. Pure.

use std::time::Duration;

/// The approximate cost of spawning and joining a task, in nanoseconds of all cores. A child that
/// completes sooner needs no task.
const TASK: i64 = 5_000;

/// The approximate time until another core polls a new task. A child that completes within it does
/// not delay the others by much, and is not delayed by them.
const AWAY: Duration = Duration::from_micros(15);

/// The maximum time that counts for a child with a reservation.
const RESERVED: Duration = Duration::from_micros(500);

/// The cost of trying a child without a task that then waits: it has to be polled again.
const WAITS: i64 = 16 * TASK;

/// The gain that is required before children are tried without a task.
const THRESHOLD: i64 = 32 * TASK;

/// The maximum gain: beyond it, further brief children add nothing.
const MOST: i64 = 1_000_000;

/// The maximum loss, so that children that took long are forgotten eventually.
const LEAST: i64 = -100_000_000;

/// About how long the system may preempt a thread on a busy machine. A child that takes longer has
/// blocked.
const INTERRUPTED: Duration = Duration::from_millis(50);

/// How much of the cost of blocking children is remembered: a minute, which millions of brief
/// children make up for.
const LONGEST: i64 = 60_000_000_000;

/// The gain or loss if all children so far had been run without a task, in nanoseconds: a child
/// that completes at once gains the cost of a task, and loses its time beyond the delay until
/// another core would have started it.
///
/// So the average counts, and a child may be long because it was preempted. For a child that
/// blocks, its time is also lost once for each child that waits behind it, and all of that has to
/// be gained again.
#[derive(Debug)]
pub(super) struct InlineEstimate {
    gained: i64,
    /// The debt of children that have blocked, still to be gained back.
    debt: i64,
}

impl InlineEstimate {
    pub(super) const fn new() -> Self {
        Self { gained: 0, debt: 0 }
    }

    /// Whether the next child is likely to be brief.
    pub(super) fn is_likely(&self) -> bool {
        self.gained >= THRESHOLD && self.debt == 0
    }

    /// Records a completed child and its duration; `at_once` if it completed in its first poll.
    /// `others` are the children that wait for one without a task, or would have waited if it had
    /// none.
    pub(super) fn record(&mut self, at_once: bool, took: Duration, others: usize) {
        if at_once {
            self.debt = (self.debt - TASK).max(0);
            self.add(TASK, took.saturating_sub(AWAY));
            self.blocked(took, others);
        } else {
            self.add(-WAITS, Duration::ZERO);
        }
    }

    /// Records a completed child with a reservation, in a task of its own or not. Later children
    /// wait for it in either case, and with tasks they wake each other. So a long child without a
    /// task counts little, and one with a task counts only if it blocked.
    pub(super) fn record_reserved(&mut self, in_task: bool, took: Duration, others: usize) {
        let own = if in_task { Duration::ZERO } else { took.min(RESERVED) };
        self.record(true, own, 0);
        self.blocked(took, others);
    }

    /// Records a child that was tried without a task and waits, after holding up `others` for this
    /// time.
    pub(super) fn record_wrong_guess(&mut self, took: Duration, others: usize) {
        self.add(-WAITS, took);
        self.blocked(took, others);
    }

    fn add(&mut self, gain: i64, loss: Duration) {
        let loss = u64::try_from(loss.as_nanos()).unwrap_or(u64::MAX);
        let gained = self.gained.saturating_add(gain.saturating_sub_unsigned(loss));
        self.gained = gained.clamp(LEAST, MOST);
    }

    fn blocked(&mut self, took: Duration, others: usize) {
        if took > INTERRUPTED {
            let delayed = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
            let lost = i64::try_from(took.saturating_mul(delayed).as_nanos()).unwrap_or(i64::MAX);
            self.debt = self.debt.saturating_add(lost).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_nanos(200);
    const LONG: Duration = Duration::from_millis(10);

    /// Whether the next child is likely to be brief after a number of brief ones.
    fn after(estimate: &mut InlineEstimate, children: usize) -> bool {
        (0..children).for_each(|_| estimate.record(true, BRIEF, 9));
        estimate.is_likely()
    }

    #[test]
    fn brief_children_predict_brief_children() {
        let mut estimate = InlineEstimate::new();
        assert!(!after(&mut estimate, 30));
        assert!(after(&mut estimate, 30));
    }

    #[test]
    fn children_that_work_longer_than_a_task_costs_are_not_brief() {
        let mut estimate = InlineEstimate::new();
        for _ in 0..1000 {
            estimate.record(true, Duration::from_micros(21), 9);
        }
        assert!(!estimate.is_likely());
    }

    #[test]
    fn a_child_that_works_before_it_waits_counts_at_once() {
        let mut estimate = InlineEstimate::new();
        assert!(after(&mut estimate, 10_000));
        estimate.record_wrong_guess(LONG, 0);
        assert!(!estimate.is_likely());
    }

    #[test]
    fn one_waiting_child_in_ten_is_too_many() {
        let mut estimate = InlineEstimate::new();
        for _ in 0..1000 {
            estimate.record(false, BRIEF, 9);
            assert!(!after(&mut estimate, 9));
        }
    }

    #[test]
    fn a_long_child_is_outweighed_by_brief_ones_of_the_same_total_time() {
        let mut estimate = InlineEstimate::new();
        assert!(after(&mut estimate, 10_000));
        estimate.record(true, LONG, 0);
        assert!(!after(&mut estimate, 1_700));
        assert!(after(&mut estimate, 700));
    }

    #[test]
    fn a_child_that_blocks_counts_once_for_each_child_that_waited_behind_it() {
        const BLOCKS: Duration = Duration::from_millis(300);
        let mut estimate = InlineEstimate::new();
        // One child in 30,000 blocks, of four at a time. It holds up the others once.
        let guesses = (0..10).filter(|_| {
            let guessed = after(&mut estimate, 30_000);
            estimate.record(true, BLOCKS, 3);
            guessed
        });
        assert_eq!(guesses.count(), 1);
    }

    #[test]
    fn a_long_block_is_not_forgotten_after_a_second() {
        let mut estimate = InlineEstimate::new();
        assert!(after(&mut estimate, 10_000));
        estimate.record_wrong_guess(Duration::from_secs(10), 0);
        assert!(!after(&mut estimate, 1_000_000));
    }

    #[test]
    fn one_long_child_in_a_thousand_is_run_without_a_task_only_once() {
        let mut estimate = InlineEstimate::new();
        let guesses = (0..100).filter(|_| {
            let guessed = after(&mut estimate, 1000);
            estimate.record(true, LONG, 0);
            guessed
        });
        assert_eq!(guesses.count(), 1);
    }

    #[test]
    fn waiting_for_an_order_in_tasks_does_not_count() {
        let mut estimate = InlineEstimate::new();
        (0..100).for_each(|_| estimate.record_reserved(true, Duration::from_micros(200), 9));
        assert!(estimate.is_likely());
        (0..100).for_each(|_| estimate.record_reserved(true, BRIEF, 9));
        estimate.record_reserved(false, LONG, 9);
        assert!(estimate.is_likely(), "it was preempted, or it is an exception");
        estimate.record_reserved(false, LONG, 9);
        assert!(!estimate.is_likely());
    }

    #[test]
    fn a_child_in_order_that_blocks_counts() {
        let mut estimate = InlineEstimate::new();
        assert!(after(&mut estimate, 10_000));
        estimate.record_reserved(true, Duration::from_millis(100), 9);
        assert!(!estimate.is_likely());
    }

    #[test]
    fn a_preempted_child_does_not_count() {
        let mut estimate = InlineEstimate::new();
        assert!(after(&mut estimate, 10_000));
        estimate.record(true, Duration::from_micros(100), 1000);
        assert!(estimate.is_likely());
        // A child that took extremely long is forgotten eventually, too.
        estimate.record(true, Duration::MAX, usize::MAX);
        assert!(!after(&mut estimate, 11_000_000));
        assert!(after(&mut estimate, 2_000_000));
    }
}
