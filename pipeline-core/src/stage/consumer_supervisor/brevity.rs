//! Whether a task of its own is worth it for a child. Pure.

use std::time::Duration;

/// About what it takes to start a task and to learn of its end, in nanoseconds of all cores. A child
/// that is done sooner needs none.
const TASK: i64 = 5_000;

/// About how long it takes until another core works on a child that has a task. Whoever is done by then
/// is not held up by the others, nor holds them up by much.
const AWAY: Duration = Duration::from_micros(15);

/// How much a child that has something reserved is charged at most for its own time.
const RESERVED: Duration = Duration::from_micros(500);

/// What it costs to try a child that waits without a task: it has to be tried again.
const WAITS: i64 = 16 * TASK;

/// What has to be gained before children are tried without a task.
const THRESHOLD: i64 = 32 * TASK;

/// What can be gained: no child after that costs nothing.
const MOST: i64 = 1_000_000;

/// What can be lost: children that took long are not held against the others for ever.
const LEAST: i64 = -100_000_000;

/// About how long the system may take a thread off its core on a machine that is busy. A child that takes
/// longer has blocked.
const INTERRUPTED: Duration = Duration::from_millis(50);

/// How much of what blocked children cost is remembered: a minute, which millions of brief children
/// outweigh.
const LONGEST: i64 = 60_000_000_000;

/// What was gained or lost if all children so far had been run without a task, in nanoseconds: one
/// that is done at once gains a task, and loses what it takes longer than until another core would
/// have begun with it.
///
/// So it is the average that counts, and a child that was interrupted by the system may be long. One that
/// blocks is another matter: its time is lost once more for each child that waits behind it, and all of
/// that has to be gained again.
#[derive(Debug)]
pub(super) struct Brevity {
    gained: i64,
    /// What is still to be gained for children that have blocked.
    debt: i64,
}

impl Brevity {
    pub(super) const fn new() -> Self {
        Self { gained: 0, debt: 0 }
    }

    /// Whether the next child is likely to be brief, too.
    pub(super) fn is_likely(&self) -> bool {
        self.gained >= THRESHOLD && self.debt == 0
    }

    /// A child is done, after so long; `at_once` if it did not wait for anything. So many others wait
    /// while a child has no task, or would have waited if it had none.
    pub(super) fn learn(&mut self, at_once: bool, took: Duration, others: usize) {
        if at_once {
            self.debt = (self.debt - TASK).max(0);
            self.add(TASK, took.saturating_sub(AWAY));
            self.blocked(took, others);
        } else {
            self.add(-WAITS, Duration::ZERO);
        }
    }

    /// A child that has something reserved is done, in a task of its own or not. Those after it wait for
    /// it in either case, and their tasks wake each other then. So little is held against one that took
    /// long without a task, and nothing against one that had a task, but that it blocked.
    pub(super) fn learn_reserved(&mut self, in_task: bool, took: Duration, others: usize) {
        let own = if in_task { Duration::ZERO } else { took.min(RESERVED) };
        self.learn(true, own, 0);
        self.blocked(took, others);
    }

    /// A child was tried without a task, and waits after so long. So many others were held up.
    pub(super) fn guessed_wrong(&mut self, took: Duration, others: usize) {
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
            let held_up = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
            let lost = i64::try_from(took.saturating_mul(held_up).as_nanos()).unwrap_or(i64::MAX);
            self.debt = self.debt.saturating_add(lost).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_nanos(200);
    const LONG: Duration = Duration::from_millis(10);

    /// Whether the next is likely to be brief after so many brief ones.
    fn after(brevity: &mut Brevity, children: usize) -> bool {
        (0..children).for_each(|_| brevity.learn(true, BRIEF, 9));
        brevity.is_likely()
    }

    #[test]
    fn brief_children_let_others_be_expected() {
        let mut brevity = Brevity::new();
        assert!(!after(&mut brevity, 30));
        assert!(after(&mut brevity, 30));
    }

    #[test]
    fn children_that_work_for_longer_than_a_task_and_its_way_take_are_not_brief() {
        let mut brevity = Brevity::new();
        for _ in 0..1000 {
            brevity.learn(true, Duration::from_micros(21), 9);
        }
        assert!(!brevity.is_likely());
    }

    #[test]
    fn a_child_that_works_before_it_waits_is_held_against_the_next_ones_at_once() {
        let mut brevity = Brevity::new();
        assert!(after(&mut brevity, 10_000));
        brevity.guessed_wrong(LONG, 0);
        assert!(!brevity.is_likely());
    }

    #[test]
    fn one_in_ten_that_waits_is_too_many() {
        let mut brevity = Brevity::new();
        for _ in 0..1000 {
            brevity.learn(false, BRIEF, 9);
            assert!(!after(&mut brevity, 9));
        }
    }

    #[test]
    fn a_long_child_is_outweighed_by_as_many_brief_ones_as_took_as_long() {
        let mut brevity = Brevity::new();
        assert!(after(&mut brevity, 10_000));
        brevity.learn(true, LONG, 0);
        assert!(!after(&mut brevity, 1_700));
        assert!(after(&mut brevity, 700));
    }

    #[test]
    fn a_child_that_blocks_is_held_against_the_next_ones_for_all_who_waited_behind_it() {
        const BLOCKS: Duration = Duration::from_millis(300);
        let mut brevity = Brevity::new();
        // One in 30,000 blocks, of four at a time. It holds up the others once.
        let guesses = (0..10).filter(|_| {
            let guessed = after(&mut brevity, 30_000);
            brevity.learn(true, BLOCKS, 3);
            guessed
        });
        assert_eq!(guesses.count(), 1);
    }

    #[test]
    fn a_long_block_is_not_forgotten_after_a_second() {
        let mut brevity = Brevity::new();
        assert!(after(&mut brevity, 10_000));
        brevity.guessed_wrong(Duration::from_secs(10), 0);
        assert!(!after(&mut brevity, 1_000_000));
    }

    #[test]
    fn one_in_a_thousand_that_works_for_long_is_never_run_without_a_task_but_once() {
        let mut brevity = Brevity::new();
        let guesses = (0..100).filter(|_| {
            let guessed = after(&mut brevity, 1000);
            brevity.learn(true, LONG, 0);
            guessed
        });
        assert_eq!(guesses.count(), 1);
    }

    #[test]
    fn what_children_in_order_wait_for_in_tasks_is_not_held_against_them() {
        let mut brevity = Brevity::new();
        (0..100).for_each(|_| brevity.learn_reserved(true, Duration::from_micros(200), 9));
        assert!(brevity.is_likely());
        (0..100).for_each(|_| brevity.learn_reserved(true, BRIEF, 9));
        brevity.learn_reserved(false, LONG, 9);
        assert!(brevity.is_likely(), "it was interrupted, or it is an exception");
        brevity.learn_reserved(false, LONG, 9);
        assert!(!brevity.is_likely());
    }

    #[test]
    fn a_child_in_order_that_blocks_is_held_against_the_others() {
        let mut brevity = Brevity::new();
        assert!(after(&mut brevity, 10_000));
        brevity.learn_reserved(true, Duration::from_millis(100), 9);
        assert!(!brevity.is_likely());
    }

    #[test]
    fn a_child_that_was_interrupted_is_not_held_against_the_others() {
        let mut brevity = Brevity::new();
        assert!(after(&mut brevity, 10_000));
        brevity.learn(true, Duration::from_micros(100), 1000);
        assert!(brevity.is_likely());
        // And one that never seemed to end, not for ever.
        brevity.learn(true, Duration::MAX, usize::MAX);
        assert!(!after(&mut brevity, 11_000_000));
        assert!(after(&mut brevity, 2_000_000));
    }
}
