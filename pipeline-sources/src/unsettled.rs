//! The outcomes that are not stored yet, in the groups in which they are stored. Pure.
//!
//! An outcome that the broker does not store must not keep the others from being stored. So a group that
//! fails is halved, until the outcome at fault is alone. It is set aside then, and tried again alone, after
//! growing delays. Items that are given up are in groups of their own, because the place of dead letters may
//! have no room while everything else works.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use pipeline_core::{backoff::Backoff, processing::Wake};
use tokio::time::Instant;

use crate::broker::{Outcome, Settlement};

/// After how many groups of others those wait no longer that are tried after them.
const PATIENCE: u32 = 8;

/// An outcome that is not stored yet.
#[derive(Clone, Debug)]
pub(crate) struct Unsettled<R> {
    pub(crate) settlement: Settlement<R>,
    pub(crate) about: About,
}

/// Which item an outcome is of.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Its id.
    pub(crate) id: Arc<str>,
    /// The session that has fetched it.
    pub(crate) session: u64,
    /// What ends its delay, if it is given back with one.
    pub(crate) wake: Option<Wake>,
}

/// The outcomes that are not stored yet.
#[derive(Debug)]
pub(crate) struct Queue<R> {
    /// Those that are no give-up, and those that are.
    lanes: [Lane<R>; 2],
    aside: Vec<SetAside<R>>,
    aside_pace: Pace,
    /// The group that is being stored.
    group: Option<Group<R>>,
    /// How many groups in a row were of the first lane.
    streak: u32,
    most: usize,
    backoff: Backoff,
}

#[derive(Debug)]
struct Lane<R> {
    waiting: VecDeque<Unsettled<R>>,
    /// How many are stored at once, after some could not be.
    at_once: usize,
    pace: Pace,
}

/// An outcome that the broker has not stored, although it was alone.
#[derive(Debug)]
struct SetAside<R> {
    unsettled: Unsettled<R>,
    failures: u32,
    next: Instant,
}

#[derive(Debug)]
struct Group<R> {
    settlements: Vec<Settlement<R>>,
    about: Vec<About>,
    from: From,
}

#[derive(Clone, Copy, Debug)]
enum From {
    Lane(usize),
    /// How often the broker has not stored it.
    Aside(u32),
}

/// When outcomes may be tried again, of which one after the other was not stored.
#[derive(Debug, Default)]
struct Pace {
    failures: u32,
    until: Option<Instant>,
}

impl Pace {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// One that is refused tells nothing about the next one, but several do.
    fn failed(&mut self, now: Instant, backoff: &Backoff, random: f64) {
        self.until = match self.failures {
            0 => None,
            failures => now.checked_add(backoff.nth_delay(failures, random)),
        };
        self.failures = self.failures.saturating_add(1);
    }
}

impl<R: Clone> Queue<R> {
    /// An empty queue, with the most outcomes of a group, and the delays for one that is set aside.
    pub(crate) fn new(most: usize, backoff: Backoff) -> Self {
        let lane = || Lane { waiting: VecDeque::new(), at_once: most, pace: Pace::default() };
        Self {
            lanes: [lane(), lane()],
            aside: Vec::new(),
            aside_pace: Pace::default(),
            group: None,
            streak: 0,
            most,
            backoff,
        }
    }

    pub(crate) fn push(&mut self, unsettled: Unsettled<R>) {
        let is_given_up = matches!(unsettled.settlement.outcome, Outcome::GiveUp { .. });
        self.lanes[usize::from(is_given_up)].waiting.push_back(unsettled);
    }

    pub(crate) fn is_empty(&self) -> bool {
        let lanes = self.lanes.iter().all(|lane| lane.waiting.is_empty());
        lanes && self.aside.is_empty() && self.group.is_none()
    }

    /// How many are set aside.
    pub(crate) fn set_aside(&self) -> usize {
        let in_group = self.group.as_ref().is_some_and(|it| matches!(it.from, From::Aside(_)));
        self.aside.len() + usize::from(in_group)
    }

    /// How many are tried later, because the broker has refused some: those that are set aside, and those of a lane
    /// that waits since then.
    pub(crate) fn kept_back(&self, now: Instant) -> usize {
        let lanes = self.lanes.iter().filter(|lane| !lane.pace.is_over(now));
        lanes.map(|lane| lane.waiting.len()).sum::<usize>().saturating_add(self.set_aside())
    }

    /// A session has begun. What is set aside waits for so long, because it may end the session again, and
    /// items have to be fetched in between.
    pub(crate) fn session_begins(&mut self, now: Instant, undisturbed: Duration) {
        self.put_back(now);
        self.aside_pace.until = self.aside_pace.until.max(now.checked_add(undisturbed));
    }

    /// The group that is stored next. One that was begun and has not ended was interrupted.
    pub(crate) fn begin(&mut self, now: Instant) -> Option<&[Settlement<R>]> {
        self.put_back(now);
        let from = self.choose(now)?;
        let taken: Vec<Unsettled<R>> = match from {
            From::Lane(lane) => {
                self.streak = if lane == 0 { self.streak.saturating_add(1) } else { 0 };
                let Lane { waiting, at_once, .. } = &mut self.lanes[lane];
                waiting.drain(..waiting.len().min(*at_once)).collect()
            }
            From::Aside(_) => {
                self.streak = 0;
                let due = self.aside.iter().position(|aside| aside.next <= now)?;
                vec![self.aside.swap_remove(due).unsettled]
            }
        };
        let (settlements, about) = taken.into_iter().map(|it| (it.settlement, it.about)).unzip();
        Some(&self.group.insert(Group { settlements, about, from }).settlements)
    }

    fn choose(&self, now: Instant) -> Option<From> {
        let lane = |n: usize| {
            let Lane { waiting, pace, .. } = &self.lanes[n];
            (!waiting.is_empty() && pace.is_over(now)).then_some(From::Lane(n))
        };
        let aside = || {
            let due = self.aside.iter().find(|aside| aside.next <= now)?;
            self.aside_pace.is_over(now).then_some(From::Aside(due.failures))
        };
        if self.streak < PATIENCE {
            lane(0).or_else(|| lane(1)).or_else(aside)
        } else {
            lane(1).or_else(aside).or_else(|| lane(0))
        }
    }

    /// When there may be a group that must wait now.
    pub(crate) fn next(&self) -> Option<Instant> {
        let lanes = self.lanes.iter().filter(|lane| !lane.waiting.is_empty());
        let lanes = lanes.filter_map(|lane| lane.pace.until);
        let aside = self.aside.iter().map(|aside| aside.next).min();
        let aside = aside.map(|next| self.aside_pace.until.map_or(next, |until| until.max(next)));
        lanes.chain(aside).min()
    }

    /// The id of an item of the group that is being stored.
    pub(crate) fn id(&self, index: usize) -> Option<&str> {
        Some(&self.group.as_ref()?.about.get(index)?.id)
    }

    /// The group was stored, except the outcomes with these indices, which are set aside. Returns those that
    /// were stored.
    pub(crate) fn stored(
        &mut self,
        refused: &[usize],
        now: Instant,
        random: f64,
    ) -> Vec<Unsettled<R>> {
        let Some(Group { settlements, about, from }) = self.group.take() else { return Vec::new() };
        let failures = match from {
            From::Lane(_) => 0,
            From::Aside(failures) => failures,
        };
        let mut stored = Vec::with_capacity(settlements.len());
        for (index, (settlement, about)) in settlements.into_iter().zip(about).enumerate() {
            let unsettled = Unsettled { settlement, about };
            if refused.contains(&index) {
                self.put_aside(unsettled, failures, now, random);
            } else {
                stored.push(unsettled);
            }
        }
        let (most, backoff) = (self.most, self.backoff);
        let pace = match from {
            From::Lane(lane) => {
                let Lane { at_once, pace, .. } = &mut self.lanes[lane];
                if !stored.is_empty() {
                    *at_once = at_once.saturating_mul(2).min(most);
                }
                pace
            }
            From::Aside(_) => &mut self.aside_pace,
        };
        if stored.is_empty() {
            pace.failed(now, &backoff, random);
        } else {
            *pace = Pace::default();
        }
        stored
    }

    /// The group could not be stored. Returns the item that is set aside, if it was alone.
    pub(crate) fn failed(&mut self, now: Instant, random: f64) -> Option<About> {
        let group = self.group.as_ref()?;
        let alone = group.about.first().filter(|_| group.about.len() == 1).cloned();
        match (group.from, &alone) {
            (From::Lane(lane), None) => {
                self.lanes[lane].at_once = (group.about.len() / 2).max(1);
                self.put_back(now);
            }
            (From::Lane(_) | From::Aside(_), _) => {
                self.stored(&[0], now, random);
            }
        }
        alone
    }

    fn put_aside(&mut self, unsettled: Unsettled<R>, failures: u32, now: Instant, random: f64) {
        let failures = failures.saturating_add(1);
        let next = now.checked_add(self.backoff.nth_delay(failures, random)).unwrap_or(now);
        self.aside.push(SetAside { unsettled, failures, next });
    }

    /// Puts the group back that was begun and has not ended.
    fn put_back(&mut self, now: Instant) {
        let Some(Group { settlements, about, from }) = self.group.take() else { return };
        let all = settlements.into_iter().zip(about);
        let all = all.map(|(settlement, about)| Unsettled { settlement, about });
        match from {
            From::Lane(lane) => {
                all.rev().for_each(|unsettled| self.lanes[lane].waiting.push_front(unsettled));
            }
            From::Aside(failures) => {
                self.aside.extend(all.map(|unsettled| SetAside { unsettled, failures, next: now }));
            }
        }
    }

    /// Forgets everything, because the broker delivers the items again.
    pub(crate) fn clear(&mut self) {
        self.group = None;
        self.aside.clear();
        self.lanes.iter_mut().for_each(|lane| lane.waiting.clear());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn queue(most: usize) -> Queue<u64> {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        Queue::new(most, backoff)
    }

    fn done(n: u64) -> Unsettled<u64> {
        unsettled(n, Outcome::Done)
    }

    fn unsettled(n: u64, outcome: Outcome) -> Unsettled<u64> {
        let about = About { id: n.to_string().into(), session: 0, wake: None };
        Unsettled { settlement: Settlement { receipt: n, outcome }, about }
    }

    fn receipts(group: &[Settlement<u64>]) -> Vec<u64> {
        group.iter().map(|it| it.receipt).collect()
    }

    #[test]
    fn a_group_that_fails_is_halved_until_the_outcome_at_fault_is_alone() {
        let mut queue = queue(8);
        (0..8).for_each(|n| queue.push(done(n)));
        let now = Instant::now();
        let (mut calls, mut stored) = (Vec::new(), Vec::new());
        while let Some(group) = queue.begin(now) {
            let group = receipts(group);
            calls.push(group.len());
            if group.contains(&5) {
                queue.failed(now, 1.0);
            } else {
                stored.extend(queue.stored(&[], now, 1.0).iter().map(|it| it.settlement.receipt));
            }
        }
        assert_eq!(stored, [0, 1, 2, 3, 4, 6, 7]);
        assert!(calls.len() < 10, "{calls:?}");
        assert_eq!((queue.set_aside(), queue.is_empty()), (1, false));
        let next = queue.next().unwrap();
        assert_eq!(next, now + Duration::from_millis(100));
        assert!(queue.begin(now).is_none());
        assert_eq!(queue.begin(next).map(receipts), Some(vec![5]));
        assert_eq!(queue.failed(next, 1.0).map(|about| about.id.to_string()), Some("5".into()));
        // It waits twice as long.
        assert_eq!(queue.next(), Some(next + Duration::from_millis(200)));
        assert!(queue.begin(next + Duration::from_millis(200)).is_some());
        assert_eq!(queue.stored(&[], next, 1.0).len(), 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_session_is_not_disturbed_at_once_by_what_has_ended_the_one_before() {
        let mut queue = queue(8);
        queue.push(done(1));
        let begun = Instant::now();
        assert!(queue.begin(begun).is_some() && queue.failed(begun, 1.0).is_some());
        let next = begun + Duration::from_secs(60);
        queue.session_begins(next, Duration::from_secs(3));
        queue.push(done(2));
        assert_eq!(queue.begin(next).map(receipts), Some(vec![2]));
        queue.stored(&[], next, 1.0);
        assert!(queue.begin(next).is_none());
        assert_eq!(queue.next(), Some(next + Duration::from_secs(3)));
        assert!(queue.begin(next + Duration::from_secs(3)).is_some());
    }

    #[test]
    fn what_is_given_up_comes_after_the_others_and_in_groups_of_its_own() {
        let mut queue = queue(8);
        let given_up = |n| unsettled(n, Outcome::GiveUp { reason: "no".into() });
        (0..4).for_each(|n| queue.push(given_up(n)));
        (4..8).for_each(|n| queue.push(done(n)));
        let now = Instant::now();
        assert_eq!(queue.begin(now).map(receipts), Some(vec![4, 5, 6, 7]));
        queue.stored(&[], now, 1.0);
        assert_eq!(queue.begin(now).map(receipts), Some(vec![0, 1, 2, 3]));
        // Some are stored, and the others are set aside.
        assert_eq!(queue.stored(&[1, 2], now, 1.0).len(), 2);
        assert_eq!(queue.set_aside(), 2);
    }

    #[test]
    fn those_that_wait_behind_refused_ones_are_kept_back_with_them_until_some_are_stored() {
        let mut queue = queue(2);
        (0..6).for_each(|n| queue.push(done(n)));
        let now = Instant::now();
        assert_eq!(queue.kept_back(now), 0);
        assert!(queue.begin(now).is_some());
        queue.stored(&[0, 1], now, 1.0);
        assert_eq!(queue.kept_back(now), 2, "the next ones are tried at once");
        assert!(queue.begin(now).is_some());
        queue.stored(&[0, 1], now, 1.0);
        assert_eq!(queue.kept_back(now), 6);
        let next = now + Duration::from_millis(100);
        assert_eq!(queue.begin(next).map(receipts), Some(vec![4, 5]));
        queue.stored(&[], next, 1.0);
        assert_eq!(queue.kept_back(next), 4);
    }

    #[test]
    fn when_one_after_the_other_is_refused_they_are_tried_less_and_less_often() {
        let mut queue = queue(1);
        (0..100).for_each(|n| queue.push(done(n)));
        let begun = Instant::now();
        let (mut now, mut tries) = (begun, 0);
        while now < begun + Duration::from_secs(60) {
            if queue.begin(now).is_some() {
                tries += 1;
                queue.failed(now, 1.0);
            } else if let Some(next) = queue.next() {
                now = next.max(now + Duration::from_millis(1));
            }
        }
        assert!((10..60).contains(&tries), "{tries} tries in a minute");
    }

    proptest! {
        #[test]
        fn every_outcome_is_stored_once_or_set_aside(
            bad in proptest::collection::btree_set(0u64..200, 0..10),
            lists in any::<bool>(),
            most in 1usize..50,
            interrupted in proptest::collection::vec(any::<bool>(), 0..50),
        ) {
            let mut queue = queue(most);
            for n in 0..200 {
                let outcome = if n % 3 == 0 {
                    Outcome::GiveUp { reason: "no".into() }
                } else {
                    Outcome::Done
                };
                queue.push(unsettled(n, outcome));
            }
            let mut interrupted = interrupted.into_iter();
            let mut stored = BTreeSet::new();
            let mut now = Instant::now();
            for _ in 0..5000 {
                let Some(group) = queue.begin(now) else {
                    let Some(next) = queue.next() else { break };
                    now = next;
                    continue;
                };
                let group = receipts(group);
                if interrupted.next() == Some(true) {
                    continue;
                }
                let refused = (0..group.len()).filter(|at| bad.contains(&group[*at]));
                let refused: Vec<_> = refused.collect();
                if refused.is_empty() || lists {
                    for it in queue.stored(&refused, now, 1.0) {
                        prop_assert!(stored.insert(it.settlement.receipt));
                    }
                } else {
                    queue.failed(now, 1.0);
                }
                if stored.len() + bad.len() == 200 && queue.set_aside() == bad.len() {
                    break;
                }
            }
            prop_assert_eq!(stored.len() + bad.len(), 200);
            prop_assert!(stored.is_disjoint(&bad));
            prop_assert_eq!(queue.set_aside(), bad.len());
        }
    }
}
