//! Whether a task of its own is worth it for a child. Pure.

use std::time::Duration;

/// About what it takes to start a task and to learn of its end, in nanoseconds of all cores. A child
/// that is done sooner needs none.
const TASK: i64 = 5_000;

/// About how long it takes until another core works on a child that has a task. Whoever is done by then
/// is not held up by the others, nor holds them up by much.
const AWAY: Duration = Duration::from_micros(15);

/// What it costs to try a child that waits without a task: it has to be tried again.
const WAITS: i64 = 16 * TASK;

/// What has to be gained before children are tried without a task.
const THRESHOLD: i64 = 32 * TASK;

/// What can be gained: no child after that costs nothing.
const MOST: i64 = 1_000_000;

/// About how long the system may interrupt a thread. That holds up others wherever they run; a child that
/// takes longer blocks.
const INTERRUPTED: Duration = Duration::from_millis(5);

/// What can be lost: a minute, which millions of brief children outweigh. So a child that never seemed to
/// end is not held against the others for ever.
const LEAST: i64 = -60_000_000_000;

/// What was gained or lost if all children so far had been run without a task, in nanoseconds: one
/// that is done at once gains a task, and loses what it takes longer than until another core would
/// have begun with it. One that blocks loses its time once more for each child that waits behind it.
///
/// So it is the average that counts, and a child that was interrupted by the system may be long.
#[derive(Debug)]
pub(super) struct Brevity(i64);

impl Brevity {
    pub(super) const fn new() -> Self {
        Self(0)
    }

    /// Whether the next child is likely to be brief, too.
    pub(super) fn is_likely(&self) -> bool {
        self.0 >= THRESHOLD
    }

    /// A child is done, after so long; `at_once` if it did not wait for anything. So many others wait
    /// while a child has no task, or would have waited if it had none.
    pub(super) fn learn(&mut self, at_once: bool, took: Duration, others: usize) {
        if at_once {
            self.add(TASK, took.saturating_sub(AWAY), took, others);
        } else {
            self.add(-WAITS, Duration::ZERO, Duration::ZERO, 0);
        }
    }

    /// A child was tried without a task, and waits after so long. So many others were held up.
    pub(super) fn guessed_wrong(&mut self, took: Duration, others: usize) {
        self.add(-WAITS, took, took, others);
    }

    fn add(&mut self, gain: i64, own: Duration, took: Duration, others: usize) {
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        let blocked = took.saturating_sub(INTERRUPTED).saturating_mul(others);
        let loss = own.saturating_add(blocked).as_nanos();
        let loss = u64::try_from(loss).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_add(gain.saturating_sub_unsigned(loss)).clamp(LEAST, MOST);
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
