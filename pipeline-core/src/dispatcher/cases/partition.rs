//! The partition dispatcher: S-133 to S-146, X-010, X-012 to X-015.
//!
//! X-011 (the same within a producer-consumer) needs a running stage, and so do two parts: that the
//! consumer's subscription ends and that the discard is reported. S-133 is also
//! shown by `compile_fail` examples of [`PartitionDispatcher`].

use std::collections::BTreeMap;

use super::{Case, Seen, seen};
use crate::{
    dispatcher::PartitionDispatcher,
    subscription::{BadPartition, SubscribeError, SubscribeOptions},
};

fn parity(n: &u32) -> Option<u32> {
    Some(n % 2)
}

fn partition(n: u32) -> SubscribeOptions {
    SubscribeOptions::new().partition(n)
}

const EVEN: u32 = 0;
const ODD: u32 = 1;

/// Partition 0 for even numbers, 1 for odd ones, both subscribed.
fn even_odd() -> Case<u32> {
    let mut case = unsubscribed();
    case.subscribe_with("even", &partition(EVEN));
    case.subscribe_with("odd", &partition(ODD));
    case
}

/// The same, without subscribers.
fn unsubscribed() -> Case<u32> {
    Case::silent(PartitionDispatcher::by_key([EVEN, ODD], parity))
}

fn evens(from: u32, to: u32) -> impl Iterator<Item = u32> {
    (from..=to).step_by(2)
}

#[test]
#[should_panic(expected = "needs at least one partition")]
fn s_133_a_dispatcher_without_partitions_is_not_made() {
    let _ = PartitionDispatcher::<u32, usize>::numbered(0);
}

#[test]
fn s_134_numbered_partitions_begin_at_0_and_every_event_belongs_to_one() {
    let names = ["0", "1", "2", "3"];
    let spread = || {
        let mut case = Case::silent(PartitionDispatcher::<u32, usize>::numbered(4));
        for (place, name) in names.into_iter().enumerate() {
            case.subscribe_with(name, &SubscribeOptions::new().partition(place));
            case.ask(name, 1000);
        }
        let error = case.refused("4", &SubscribeOptions::new().partition(4));
        assert_eq!(error.to_string(), "there is no partition 4, expected one of 0, 1, 2, 3");
        let mut seen = case.emit(0..1000);
        assert_eq!((seen.discarded, case.buffered()), ((0, 0), 0));
        names.map(|name| seen.events_of(name))
    };
    let first = spread();
    assert!(first.iter().all(|events| events.len() > 200), "it is about even");
    assert_eq!(first.iter().map(Vec::len).sum::<usize>(), 1000);
    assert_eq!(first, spread(), "another dispatcher of the same kind decides alike");
    assert_eq!(first[0][..8], [1, 6, 13, 16, 17, 24, 26, 31], "and so does another process");
}

#[test]
fn s_135_the_hash_may_change_the_event_once_it_is_taken() {
    let hash = |n: u32| Some((10 * n, if n.is_multiple_of(2) { "even" } else { "odd" }));
    let mut case = Case::silent(PartitionDispatcher::by_hash(["odd", "even"], hash));
    case.subscribe_with("odd", &SubscribeOptions::new().partition("odd"));
    case.ask("odd", 3);
    assert_eq!(case.emit([1]), seen().got("odd", [10]));
    case.ask("odd", 3);
    assert_eq!(case.emit((5..=17).step_by(2)), seen().got("odd", [50, 70, 90, 110, 130]));
    assert_eq!((case.queued(), case.buffered()), (0, 2));
    // Events in the buffer have not been hashed, or they would be changed twice.
    assert_eq!(case.ask("odd", 2), seen().got("odd", [150, 170]));
}

/// Even numbers have used up the demand of both.
fn s_136() -> Case<u32> {
    let mut case = even_odd();
    case.ask("even", 5);
    case.ask("odd", 5);
    assert_eq!(case.emit(evens(2, 22)), seen().got("even", evens(2, 10)));
    assert_eq!((case.queued(), case.buffered()), (5, 1));
    assert_eq!(case.ask("even", 5), seen().got("even", evens(12, 20)).demand(4));
    case
}

#[test]
fn s_136_events_of_a_busy_partition_wait_in_its_queue() {
    s_136();
}

#[test]
fn s_137_an_idle_partition_is_served_within_the_total_demand() {
    let mut case = s_136();
    assert_eq!(case.emit((1..=11).step_by(2)), seen().got("odd", [1, 3, 5, 7]));
    assert_eq!(case.buffered(), 2);
    assert_eq!(case.ask("odd", 5), seen().got("odd", [9, 11]).demand(3));
}

/// The odd numbers have no consumer.
fn s_138() -> Case<u32> {
    let mut case = unsubscribed();
    case.subscribe_with("even", &partition(EVEN));
    case.ask("even", 4);
    assert_eq!(case.emit([1, 3, 5, 2]), seen().got("even", [2]));
    assert_eq!((case.queued(), case.buffered()), (3, 0));
    assert_eq!(case.emit([4]), seen());
    assert_eq!((case.buffered(), case.outstanding("even")), (1, 3));
    case
}

#[test]
fn s_138_events_wait_for_a_partition_that_has_no_consumer() {
    s_138();
}

#[test]
fn s_139_the_first_consumer_of_a_partition_gets_the_queued_events() {
    let mut case = s_138();
    assert_eq!(case.subscribe_with("odd", &partition(ODD)), seen());
    assert_eq!(case.ask("odd", 2), seen().got("odd", [1, 3]).got("even", [4]).demand(1));
}

#[test]
fn s_140_events_owed_to_a_cancelled_consumer_go_to_the_next_of_its_partition() {
    let mut case = even_odd();
    assert_eq!(case.ask("even", 5), seen().demand(5));
    assert_eq!(case.cancel("even"), seen());
    assert_eq!(case.emit([2, 4, 6]), seen());
    case.subscribe_with("new", &partition(EVEN));
    assert_eq!(case.ask("new", 5), seen().got("new", [2, 4, 6]));
}

#[test]
fn s_141_only_demand_beyond_the_owed_events_is_asked_for() {
    let mut case = Case::silent(PartitionDispatcher::<u32, usize>::numbered(1));
    case.subscribe_with("a", &SubscribeOptions::new().partition(0));
    assert_eq!(case.ask("a", 5), seen().demand(5));
    case.cancel("a");
    assert_eq!(case.emit(1..=8), seen());
    case.subscribe_with("b", &SubscribeOptions::new().partition(0));
    assert_eq!(case.ask("b", 5), seen().got("b", 1..=5));
    assert_eq!(case.ask("b", 5), seen().got("b", 6..=8).demand(2));
}

#[test]
fn s_142_a_marker_waits_for_the_events_queued_before_it() {
    let mut case = even_odd();
    case.ask("even", 1);
    case.ask("odd", 4);
    assert_eq!(case.emit([2, 4, 6, 1]), seen().got("even", [2]).got("odd", [1]));
    assert_eq!(case.mark(1), seen());
    assert_eq!(case.ask("even", 2), seen().got("even", [4, 6]).fired(1).demand(2));
    assert_eq!(case.ask("even", 1), seen().demand(1));
}

#[test]
fn s_143_a_marker_comes_back_at_once_when_nothing_is_queued() {
    assert_eq!(unsubscribed().mark(1), seen().fired(1));
}

#[test]
fn s_144_an_event_without_a_partition_is_discarded_and_costs_no_demand() {
    let key = |n: &u32| if n.is_multiple_of(3) { None } else { parity(n) };
    let mut case = Case::silent(PartitionDispatcher::by_key([EVEN, ODD], key));
    case.subscribe_with("even", &partition(EVEN));
    case.subscribe_with("odd", &partition(ODD));
    case.ask("even", 4);
    case.ask("odd", 4);
    let expected = seen().got("even", [2, 4, 8, 10]).got("odd", [1, 5, 7, 11]).filtered(3);
    assert_eq!(case.emit(1..=12), expected);
    assert_eq!(case.buffered(), 1);
}

#[test]
fn s_145_an_uneven_load_leaves_demand_unmet_where_it_is_small() {
    let key = |n: &u32| Some(["A", "A", "B", "A", "C"][*n as usize % 5]);
    let dispatcher = PartitionDispatcher::by_key(["A", "B", "C"], key);
    let mut case = Case::counter(dispatcher, 0..);
    let mut received = BTreeMap::new();
    let mut produced = 0;
    for name in ["A", "B", "C"] {
        case.subscribe_with(name, &SubscribeOptions::new().partition(name));
    }
    for name in ["A", "B", "C"] {
        let Seen { got, demand, .. } = case.ask(name, 10);
        produced += demand.iter().sum::<usize>();
        for (name, messages) in got {
            *received.entry(name).or_default() += messages.concat().len();
        }
    }
    assert_eq!(produced, 30);
    assert_eq!(received, BTreeMap::from([("A", 10), ("B", 6), ("C", 6)]));
    assert_eq!(["A", "B", "C"].map(|name| case.outstanding(name)), [0, 4, 4]);
    assert_eq!((case.queued(), case.buffered()), (8, 0));
}

#[test]
fn s_146_every_event_arrives_at_its_partition_once_and_in_order() {
    let mut case = Case::counter(PartitionDispatcher::by_key([EVEN, ODD], parity), 0..1000);
    let auto = |n| partition(n).max_demand(4).min_demand(2);
    let mut first = case.auto("even", &auto(EVEN));
    let mut second = case.auto("odd", &auto(ODD));
    let mut of = |name| [first.events_of(name), second.events_of(name)].concat();
    assert_eq!(of("even"), evens(0, 998).collect::<Vec<_>>());
    assert_eq!(of("odd"), evens(1, 999).collect::<Vec<_>>());
}

#[test]
fn x_010_discarded_events_are_asked_for_again() {
    let key = |n: &u32| n.is_multiple_of(2).then_some(EVEN);
    let mut case = Case::counter(PartitionDispatcher::by_key([EVEN], key), 0..20);
    let options = partition(EVEN).max_demand(4).min_demand(0);
    let mut seen = case.auto("even", &options);
    assert_eq!(seen.events_of("even"), evens(0, 18).collect::<Vec<_>>());
    assert_eq!(seen.discarded, (10, 0));
}

#[test]
fn x_012_a_partitions_queue_outlives_its_consumer() {
    let mut case = even_odd();
    case.ask("even", 3);
    case.ask("odd", 3);
    assert_eq!(case.emit(evens(2, 10)), seen().got("even", [2, 4, 6]));
    assert_eq!(case.cancel("even"), seen());
    assert_eq!(case.queued(), 2);
    case.subscribe_with("new", &partition(EVEN));
    assert_eq!(case.ask("new", 3), seen().got("new", [8, 10]).demand(3));
}

#[test]
fn x_012_a_marker_fires_when_the_next_consumer_has_taken_the_events_before_it() {
    let mut case = even_odd();
    case.ask("even", 1);
    case.ask("odd", 5);
    assert_eq!(case.emit(evens(2, 6)), seen().got("even", [2]));
    assert_eq!(case.mark(1), seen());
    assert_eq!(case.emit([8]), seen());
    assert_eq!(case.cancel("even"), seen());
    case.subscribe_with("new", &partition(EVEN));
    assert_eq!(case.ask("new", 1), seen().got("new", [4]).demand(1), "6 is before it too");
    // Events behind the marker come in a message of their own.
    assert_eq!(case.ask("new", 3), seen().got("new", [6]).got("new", [8]).fired(1).demand(3));
}

#[test]
fn x_013_an_unavailable_partition_is_refused_and_the_others_are_not_affected() {
    let mut case = Case::silent(PartitionDispatcher::by_key([EVEN, ODD], parity));
    case.subscribe_with("even", &partition(EVEN));
    case.ask("even", 3);
    let mut refused = |options| match case.refused("wrong", &options) {
        SubscribeError::BadPartition(error) => (error.to_string(), error),
        other => panic!("not a partition error: {other}"),
    };
    let expected = || "0, 1".to_owned();

    let (message, error) = refused(SubscribeOptions::new());
    assert_eq!(error, BadPartition::Missing { expected: expected() });
    assert_eq!(message, "no partition was given, expected one of 0, 1");

    let (message, error) = refused(partition(7));
    assert_eq!(error, BadPartition::Unknown { given: "7".to_owned(), expected: expected() });
    assert_eq!(message, "there is no partition 7, expected one of 0, 1");

    let (message, error) = refused(partition(EVEN));
    assert_eq!(error, BadPartition::Taken { given: "0".to_owned() });
    assert_eq!(message, "partition 0 already has a subscriber, expected at most one");

    let (message, _) = refused(SubscribeOptions::new().partition("even"));
    assert_eq!(message, "partition \"even\" is of type &str, expected u32");
    let (message, _) = refused(SubscribeOptions::new().partition(-1));
    assert_eq!(message, "partition -1 is of type i32, expected u32");

    assert_eq!(case.emit([2, 4]), seen().got("even", [2, 4]));
    assert_eq!(case.outstanding("even"), 1);
}

#[test]
fn x_014_an_event_for_a_missing_partition_is_reported_and_the_rest_is_delivered() {
    let key = |n: &u32| Some(n % 3);
    let mut case = Case::silent(PartitionDispatcher::by_key([EVEN, ODD], key));
    case.subscribe_with("0", &partition(0));
    case.subscribe_with("1", &partition(1));
    case.ask("0", 2);
    assert_eq!(case.ask("1", 2), seen().demand(2));
    let expected = seen().got("0", [0, 3]).got("1", [1, 4]).unroutable(1);
    assert_eq!(case.emit(0..=4), expected);
}

#[test]
fn x_015_a_marker_does_not_wait_for_demand() {
    let mut case = even_odd();
    case.ask("even", 2);
    assert_eq!(case.emit([2, 4]), seen().got("even", [2, 4]));
    assert_eq!(case.mark(1), seen().fired(1));
}

#[test]
fn a_shared_partition_serves_the_largest_demand_first() {
    let mut case = Case::silent(PartitionDispatcher::by_key([EVEN, ODD], parity).shared());
    for name in ["a", "b", "c"] {
        assert_eq!(case.subscribe_with(name, &partition(EVEN)), seen());
    }
    case.ask("a", 2);
    case.ask("b", 2);
    assert!(case.warnings().is_empty());
    assert_eq!(case.ask("c", 3), seen().demand(3));
    assert_eq!(case.warnings().len(), 1, "one asks for more than the others");
    let expected = seen().got("c", [2, 4, 6]).got("a", [8, 10]).got("b", [12]);
    assert_eq!(case.emit(evens(2, 12)), expected);
    assert_eq!(case.cancel("b"), seen());
    case.emit([14, 16]);
    assert_eq!(case.ask("c", 1).events_of("c"), [14]);
}
