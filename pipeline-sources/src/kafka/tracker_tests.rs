use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;

fn tracker(partitions: &[i32]) -> Tracker<i64> {
    let mut tracker = Tracker::new(false);
    partitions.iter().for_each(|partition| tracker.assign(*partition));
    tracker
}

fn offsets(taken: &[Taken<i64>]) -> Vec<i64> {
    taken.iter().map(|taken| taken.receipt.offset).collect()
}

/// What is ahead, by a look at each item.
fn counted_ahead(tracker: &Tracker<i64>) -> Ahead {
    let entries = tracker.partitions.values().flat_map(|it| it.entries.values());
    let waiting = entries.filter(|entry| entry.stage == Stage::Waiting);
    waiting.fold(Ahead::default(), |ahead, entry| Ahead {
        items: ahead.items + 1,
        bytes: ahead.bytes + entry.bytes,
    })
}

/// The offsets that may be committed and are not.
fn owed(tracker: &Tracker<i64>) -> Vec<(i32, i64)> {
    tracker.to_commit().iter().map(|commit| (commit.partition, commit.offset)).collect()
}

#[test]
fn an_offset_is_committed_when_everything_before_it_is_done() {
    let mut tracker = tracker(&[0]);
    (5..8).for_each(|offset| tracker.receive(0, offset, None, offset, 1));
    let taken = tracker.take(10);
    assert_eq!(offsets(&taken), [5, 6, 7]);
    tracker.settle(&taken[1].receipt, Next::Done);
    assert_eq!(owed(&tracker), []);
    tracker.settle(&taken[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 7)]);
    tracker.committed(&tracker.to_commit()[0]);
    assert_eq!(owed(&tracker), []);
    tracker.settle(&taken[2].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 8)]);
}

#[test]
fn what_was_read_and_is_not_in_work_is_ahead() {
    let mut tracker = Tracker::new(true);
    (0..2).for_each(|partition| tracker.assign(partition));
    for partition in 0..2 {
        (0..3).for_each(|offset| tracker.receive(partition, offset, Some("k".into()), offset, 10));
    }
    let ahead = |tracker: &Tracker<i64>| (tracker.ahead().items, tracker.ahead().bytes);
    assert_eq!(ahead(&tracker), (6, 60));
    // The others of the key wait.
    let taken = tracker.take(10);
    assert_eq!((taken.len(), ahead(&tracker)), (2, (4, 40)));
    tracker.settle(&taken[0].receipt, Next::Done);
    assert_eq!(ahead(&tracker), (4, 40));
    tracker.settle(&taken[1].receipt, Next::At(Instant::now(), 1));
    assert_eq!(ahead(&tracker), (5, 50));
    tracker.remove(taken[0].receipt.partition);
    assert_eq!(ahead(&tracker), (3, 30));
}

#[test]
fn what_is_ahead_is_known_without_a_look_at_each_item() {
    let mut tracker = tracker(&[0, 1]);
    (0..50_000).for_each(|offset| tracker.receive(0, offset, None, offset, 10));
    (0..50_000).for_each(|offset| tracker.receive(1, offset, None, offset, 10));
    let shortest = |look: &dyn Fn() -> Ahead| {
        let times = (0..20).map(|_| {
            let begun = Instant::now();
            assert_eq!(std::hint::black_box(look()), Ahead { items: 100_000, bytes: 1_000_000 });
            begun.elapsed()
        });
        times.min().unwrap()
    };
    let (told, counted) = (shortest(&|| tracker.ahead()), shortest(&|| counted_ahead(&tracker)));
    assert!(told < counted / 10, "{told:?}, and {counted:?} with a look at each");
}

#[test]
fn an_item_that_failed_holds_the_offset_until_it_is_done() {
    let mut tracker = tracker(&[0]);
    (0..2).for_each(|offset| tracker.receive(0, offset, None, offset, 1));
    let taken = tracker.take(10);
    let at = Instant::now() + Duration::from_secs(1);
    tracker.settle(&taken[0].receipt, Next::At(at, 1));
    tracker.settle(&taken[1].receipt, Next::Done);
    assert_eq!((tracker.ready(), tracker.next_wake()), (0, Some(at)));
    tracker.wake(at - Duration::from_millis(1));
    assert!(tracker.take(10).is_empty());
    tracker.wake(at);
    let again = tracker.take(10);
    assert_eq!((offsets(&again), again[0].deliveries), (vec![0], 2));
    // The outcome of the first delivery says nothing of the second.
    tracker.settle(&taken[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), []);
    tracker.settle(&again[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 2)]);
}

#[test]
fn an_item_that_is_given_back_comes_first_and_was_not_delivered() {
    let mut tracker = tracker(&[0]);
    (0..4).for_each(|offset| tracker.receive(0, offset, None, offset, 1));
    let taken = tracker.take(3);
    taken.iter().rev().for_each(|taken| tracker.settle(&taken.receipt, Next::Released));
    let again = tracker.take(10);
    assert_eq!(offsets(&again), [0, 1, 2, 3]);
    assert!(again.iter().all(|taken| taken.deliveries == 1));
}

#[test]
fn an_item_that_is_given_back_for_a_while_was_not_delivered() {
    let mut tracker = tracker(&[0]);
    tracker.receive(0, 0, None, 0, 1);
    let taken = tracker.take(1);
    let at = Instant::now();
    tracker.settle(&taken[0].receipt, Next::ReleasedAt(at));
    assert!(tracker.take(1).is_empty());
    tracker.wake(at);
    assert_eq!(tracker.take(1)[0].deliveries, 1);
}

#[test]
fn outcomes_of_a_partition_that_was_given_up_change_nothing() {
    let mut tracker = tracker(&[0]);
    tracker.receive(0, 0, None, 0, 1);
    tracker.receive(0, 1, None, 1, 1);
    let taken = tracker.take(1);
    tracker.revoke(0);
    assert!(tracker.is_in_work(0));
    assert!(tracker.take(10).is_empty());
    tracker.remove(0);
    tracker.assign(0);
    tracker.receive(0, 0, None, 0, 1);
    let again = tracker.take(1);
    tracker.settle(&taken[0].receipt, Next::Done);
    assert!(tracker.is_in_work(0));
    assert_eq!(owed(&tracker), []);
    tracker.settle(&again[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 1)]);
}

#[test]
fn a_commit_of_a_partition_that_was_given_up_does_not_count() {
    let mut tracker = tracker(&[0]);
    tracker.receive(0, 0, None, 0, 1);
    let taken = tracker.take(1);
    tracker.settle(&taken[0].receipt, Next::Done);
    let commit = tracker.to_commit()[0];
    assert!(tracker.is_owed(&commit));
    tracker.assign(0);
    assert!(!tracker.is_owed(&commit));
    tracker.receive(0, 0, None, 0, 1);
    let taken = tracker.take(1);
    tracker.committed(&commit);
    tracker.settle(&taken[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 1)]);
}

#[test]
fn what_is_done_while_a_partition_is_revoked_is_still_committed() {
    let mut tracker = tracker(&[0]);
    tracker.receive(0, 0, None, 0, 1);
    let taken = tracker.take(1);
    tracker.revoke(0);
    tracker.settle(&taken[0].receipt, Next::Done);
    assert!(!tracker.is_in_work(0));
    assert_eq!(owed(&tracker), [(0, 1)]);
    tracker.receive(0, 1, None, 1, 1);
    assert_eq!(tracker.ready(), 0);
}

#[test]
fn a_log_that_begins_anew_is_followed() {
    let mut tracker = tracker(&[0]);
    tracker.receive(0, 100, None, 100, 1);
    let before = tracker.take(1);
    tracker.receive(0, 3, None, 3, 1);
    tracker.settle(&before[0].receipt, Next::Done);
    let taken = tracker.take(10);
    assert_eq!(offsets(&taken), [3]);
    tracker.settle(&taken[0].receipt, Next::Done);
    assert_eq!(owed(&tracker), [(0, 4)]);
}

#[test]
fn partitions_are_taken_from_in_turn() {
    let mut tracker = tracker(&[0, 1, 2]);
    for offset in 0..3 {
        tracker.receive(0, offset, None, offset, 1);
        tracker.receive(2, offset, None, offset, 1);
    }
    let partitions: Vec<_> = tracker.take(10).iter().map(|it| it.receipt.partition).collect();
    assert_eq!(partitions, [2, 0, 2, 0, 2, 0]);
}

#[test]
fn items_of_a_key_are_in_work_one_at_a_time() {
    let mut tracker = Tracker::new(true);
    tracker.assign(0);
    for (offset, key) in [(0, "a"), (1, "a"), (2, "b"), (3, "a")] {
        tracker.receive(0, offset, Some(key.into()), offset, 1);
    }
    tracker.receive(0, 4, None, 4, 1);
    let taken = tracker.take(10);
    assert_eq!(offsets(&taken), [0, 2, 4]);
    let at = Instant::now();
    tracker.settle(&taken[0].receipt, Next::At(at, 1));
    assert!(tracker.take(10).is_empty());
    tracker.wake(at);
    let again = tracker.take(10);
    assert_eq!(offsets(&again), [0]);
    tracker.settle(&again[0].receipt, Next::Done);
    let next = tracker.take(10);
    assert_eq!(offsets(&next), [1]);
    tracker.settle(&next[0].receipt, Next::Released);
    assert_eq!(offsets(&tracker.take(10)), [1]);
}

#[test]
fn no_more_is_read_than_may_be_uncommitted() {
    let mut tracker = tracker(&[0]);
    (0..3).for_each(|offset| tracker.receive(0, offset, None, offset, 1));
    assert!(
        !tracker.has_room(0, 3, usize::MAX)
            && tracker.has_room(0, 4, usize::MAX)
            && !tracker.has_room(1, 4, usize::MAX)
    );
    let taken = tracker.take(3);
    // Those after the first one that is not done have to be remembered.
    tracker.settle(&taken[1].receipt, Next::Done);
    assert!(!tracker.has_room(0, 3, usize::MAX));
    tracker.settle(&taken[0].receipt, Next::Done);
    assert!(tracker.has_room(0, 3, usize::MAX));
}

/// What happens to a tracker.
#[derive(Clone, Debug)]
enum Step {
    Receive {
        partition: i32,
        gap: i64,
        key: u8,
    },
    Take(usize),
    /// An outcome of one of the deliveries, also of one that has an outcome or of an earlier assignment.
    Settle {
        which: usize,
        next: u8,
    },
    Wake,
    Commit,
    Revoke(i32),
    Remove(i32),
    Assign(i32),
}

fn step() -> impl Strategy<Value = Step> {
    let partition = 0..2_i32;
    prop_oneof![
        6 => (partition.clone(), 0..3_i64, 0..4_u8)
            .prop_map(|(partition, gap, key)| Step::Receive { partition, gap, key }),
        4 => (1..5_usize).prop_map(Step::Take),
        8 => (any::<usize>(), 0..6_u8).prop_map(|(which, next)| Step::Settle { which, next }),
        2 => Just(Step::Wake),
        2 => Just(Step::Commit),
        1 => partition.clone().prop_map(Step::Revoke),
        1 => partition.clone().prop_map(Step::Remove),
        1 => partition.prop_map(Step::Assign),
    ]
}

/// What a partition should be, by the plainest means: all items that were read since it was assigned.
#[derive(Default)]
struct Model {
    assigned: bool,
    revoked: bool,
    /// Of each offset: its key, and whether it is done, and in work.
    items: BTreeMap<i64, (u8, bool, bool)>,
    next: i64,
}

proptest! {
    #[test]
    fn nothing_undone_is_committed_and_nothing_is_forgotten(
        ordered: bool,
        steps in vec(step(), 1..120),
    ) {
        let mut tracker = Tracker::<i64>::new(ordered);
        let mut models = [Model::default(), Model::default()];
        let index = |partition: i32| usize::try_from(partition).unwrap();
        // The deliveries, and whether each is still of the assignment that there is.
        let mut taken: Vec<(KafkaReceipt, bool)> = Vec::new();
        let start = Instant::now();
        for step in steps {
            match step {
                Step::Receive { partition, gap, key } => {
                    let model = &mut models[index(partition)];
                    let offset = model.next + gap;
                    let name = (key > 0).then(|| Arc::from(key.to_string()));
                    tracker.receive(partition, offset, name, offset, 1 + usize::from(key));
                    if model.assigned && !model.revoked {
                        model.items.insert(offset, (key, false, false));
                        model.next = offset + 1;
                    }
                }
                Step::Take(max) => {
                    for it in tracker.take(max) {
                        let model = &mut models[index(it.receipt.partition)];
                        prop_assert!(model.assigned && !model.revoked);
                        let others = model.items.iter().filter(|(_, (_, done, _))| !done);
                        let (key, done, in_work) = model.items[&it.receipt.offset];
                        prop_assert!(!done && !in_work, "what is done or in work is not taken");
                        if ordered && key > 0 {
                            let first = others.clone().find(|(_, it)| it.0 == key);
                            prop_assert_eq!(first.map(|(offset, _)| *offset), Some(it.receipt.offset));
                        }
                        model.items.insert(it.receipt.offset, (key, false, true));
                        taken.push((it.receipt, true));
                    }
                }
                Step::Settle { which, next } => {
                    if taken.is_empty() {
                        continue;
                    }
                    let which = which % taken.len();
                    let (receipt, is_current) = taken[which];
                    let next = match next {
                        0 => Next::At(start, 1),
                        1 => Next::Released,
                        _ => Next::Done,
                    };
                    tracker.settle(&receipt, next);
                    if is_current {
                        taken[which].1 = false;
                        let model = &mut models[index(receipt.partition)];
                        let (key, ..) = model.items[&receipt.offset];
                        model.items.insert(receipt.offset, (key, next == Next::Done, false));
                    }
                }
                Step::Wake => tracker.wake(start),
                Step::Commit => {
                    for commit in tracker.to_commit() {
                        tracker.committed(&commit);
                        prop_assert!(!tracker.is_owed(&commit));
                    }
                    prop_assert!(tracker.to_commit().is_empty());
                }
                Step::Revoke(partition) => {
                    tracker.revoke(partition);
                    models[index(partition)].revoked = true;
                }
                Step::Remove(partition) | Step::Assign(partition) => {
                    let assigned = matches!(step, Step::Assign(_));
                    if assigned { tracker.assign(partition) } else { tracker.remove(partition) }
                    // The next owner of the partition reads from the offset that is not done.
                    let model = &models[index(partition)];
                    let undone = model.items.iter().find(|(_, (_, done, _))| !done);
                    let next = undone.map_or(model.next, |(offset, _)| *offset);
                    models[index(partition)] = Model { assigned, next, ..Model::default() };
                    for (receipt, is_current) in &mut taken {
                        *is_current &= receipt.partition != partition;
                    }
                }
            }
            for commit in tracker.to_commit() {
                let model = &models[index(commit.partition)];
                let undone = model.items.iter().find(|(_, (_, done, _))| !done);
                let expected = undone.map_or(model.next, |(offset, _)| *offset);
                prop_assert_eq!(commit.offset, expected);
            }
            prop_assert_eq!(tracker.ahead(), counted_ahead(&tracker));
            for partition in 0..2 {
                let in_work = models[index(partition)].items.values().any(|(_, _, it)| *it);
                prop_assert_eq!(tracker.is_in_work(partition), in_work);
            }
        }
        // At the end all that is undone is delivered, and then everything is committed.
        for (receipt, _) in taken {
            tracker.settle(&receipt, Next::Released);
        }
        tracker.wake(start);
        loop {
            let again = tracker.take(100);
            if again.is_empty() {
                break;
            }
            for it in again {
                let model = &mut models[index(it.receipt.partition)];
                model.items.get_mut(&it.receipt.offset).unwrap().1 = true;
                tracker.settle(&it.receipt, Next::Done);
            }
        }
        prop_assert_eq!(tracker.ready(), 0);
        for (partition, model) in (0..).zip(&models) {
            if model.assigned && !model.revoked {
                prop_assert!(model.items.values().all(|(_, done, _)| *done));
                prop_assert!(tracker.oldest().next().is_none() || models[1 - index(partition)].revoked);
            }
        }
    }
}

#[test]
fn no_more_is_read_while_items_that_are_not_done_have_too_many_bytes() {
    let mut tracker = Tracker::new(false);
    tracker.assign(0);
    tracker.receive(0, 0, None, 0, 60);
    assert!(tracker.has_room(0, 10, 100));
    tracker.receive(0, 1, None, 1, 60);
    assert!(!tracker.has_room(0, 10, 100));
    let taken = tracker.take(2);
    // It has failed, and is kept.
    tracker.settle(&taken[0].receipt, Next::At(Instant::now(), 1));
    assert!(!tracker.has_room(0, 10, 100));
    // It is done, although what is before it is not.
    tracker.settle(&taken[1].receipt, Next::Done);
    assert!(tracker.has_room(0, 10, 100));
}
