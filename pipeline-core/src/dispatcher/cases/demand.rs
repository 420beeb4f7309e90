//! The demand dispatcher: S-107 to S-118, X-001, X-002, X-009.

use super::{Case, seen};
use crate::dispatcher::DemandDispatcher;

/// Raw subscribers a, b and c of a producer that emits what the test passes in.
fn abc(dispatcher: DemandDispatcher) -> Case<u32> {
    let mut case = Case::silent(dispatcher);
    for name in ["a", "b", "c"] {
        assert_eq!(case.subscribe(name), seen());
    }
    case
}

fn case() -> Case<u32> {
    abc(DemandDispatcher::new())
}

#[test]
fn s_107_the_largest_demand_is_served_first() {
    let mut case = case();
    for (name, demand) in [("a", 4), ("b", 2), ("c", 3), ("c", 2), ("b", 4)] {
        assert_eq!(case.ask(name, demand), seen().demand(demand));
    }
    assert_eq!(case.emit(1..=15), seen().got("b", 1..=6).got("c", 7..=11).got("a", 12..=15));
}

#[test]
fn s_108_events_beyond_the_demand_are_left_over() {
    let mut case = case();
    case.ask("a", 3);
    case.ask("b", 2);
    assert_eq!(case.emit(1..=5), seen().got("a", 1..=3).got("b", [4, 5]));
    assert_eq!(case.emit(6..=8), seen());
    assert_eq!(case.buffered(), 3);
}

#[test]
fn s_109_equal_demands_are_served_in_turn() {
    let mut case = case();
    case.ask("a", 3);
    case.ask("b", 3);
    assert_eq!(case.emit([1, 2]), seen().got("a", [1, 2]));
    assert_eq!(case.emit([3, 4]), seen().got("b", [3, 4]));
    assert_eq!(case.emit([5, 6, 7]), seen().got("a", [5]).got("b", [6]));
    assert_eq!(case.buffered(), 1);
}

#[test]
fn s_110_a_served_consumer_goes_behind_larger_demands() {
    let mut case = case();
    case.ask("a", 5);
    case.ask("b", 10);
    case.ask("c", 10);
    assert_eq!(case.emit(1..=12), seen().got("b", 1..=10).got("c", [11, 12]));
    assert_eq!(case.emit(13..=20), seen().got("c", 13..=20));
    assert_eq!(case.emit(21..=29), seen().got("a", 21..=25));
    assert_eq!(case.buffered(), 4);
}

#[test]
fn s_111_demand_adds_up() {
    let mut case = case();
    case.ask("a", 3);
    assert_eq!(case.emit([1]), seen().got("a", [1]));
    case.ask("a", 3);
    assert_eq!(case.emit(2..=8), seen().got("a", 2..=6));
    assert_eq!(case.buffered(), 2);
}

#[test]
fn s_112_demand_of_cancelled_subscribers_is_not_asked_for_again() {
    let mut case = case();
    assert_eq!(case.ask("a", 10), seen().demand(10));
    assert_eq!(case.cancel("a"), seen());
    assert_eq!(case.ask("b", 5), seen());
    assert_eq!(case.cancel("b"), seen());
    assert_eq!(case.emit(1..=3), seen());
    assert_eq!(case.emit(4..=13), seen());
    assert_eq!(case.buffered(), 13);
}

#[test]
fn s_113_events_owed_to_a_cancelled_subscriber_go_to_the_next() {
    let mut case = case();
    case.ask("a", 10);
    assert_eq!(case.emit(1..=4), seen().got("a", 1..=4));
    assert_eq!(case.cancel("a"), seen());
    assert_eq!(case.ask("b", 4), seen());
    assert_eq!(case.ask("b", 5), seen().demand(3));
    assert_eq!(case.emit(5..=14), seen().got("b", 5..=13));
    assert_eq!(case.buffered(), 1);
}

#[test]
fn s_114_only_demand_beyond_the_owed_events_is_asked_for() {
    let mut case = case();
    case.ask("a", 3);
    case.ask("b", 3);
    assert_eq!(case.cancel("a"), seen());
    assert_eq!(case.ask("b", 4), seen().demand(1));
    assert_eq!(case.emit(1..=8), seen().got("b", 1..=7));
    assert_eq!(case.buffered(), 1);
}

#[test]
fn s_115_an_ask_beyond_the_expected_one_is_accepted_with_a_warning() {
    let mut case = abc(DemandDispatcher::new().max_demand(3));
    assert_eq!(case.ask("a", 4), seen().demand(4));
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("asked for 4 events at once, expected at most 3"));
}

#[test]
fn s_116_the_first_ask_is_the_expected_one_unless_configured() {
    let mut case = case();
    case.ask("a", 4);
    assert!(case.warnings().is_empty());
    assert_eq!(case.ask("b", 5), seen().demand(5));
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("expected at most 4"));
    case.ask("b", 4);
    assert!(case.warnings().is_empty(), "as many as were expected");
}

#[test]
fn s_117_the_order_is_random_for_the_first_delivery_only() {
    let mut first = [0, 0];
    for _ in 0..200 {
        let mut case = abc(DemandDispatcher::new().shuffled());
        case.ask("a", 3);
        case.ask("b", 2);
        let delivered = case.emit(1..=5);
        let a_first = seen().got("a", 1..=3).got("b", [4, 5]);
        let b_first = seen().got("b", [1, 2]).got("a", 3..=5);
        assert!(delivered == a_first || delivered == b_first, "{delivered:?}");
        first[usize::from(delivered == b_first)] += 1;

        case.ask("a", 3);
        case.ask("b", 3);
        assert_eq!(case.emit([6, 7]), seen().got("a", [6, 7]), "a asked first");
    }
    assert!(first[0] > 0 && first[1] > 0, "each of them begins sometimes: {first:?}");
}

#[test]
fn s_118_a_marker_comes_back_at_once() {
    let mut case = case();
    assert_eq!(case.mark(1), seen().fired(1));
    case.ask("a", 3);
    assert_eq!(case.mark(2), seen().fired(2));
}

#[test]
fn x_001_a_new_subscriber_gets_the_events_buffered_for_the_old_one() {
    let mut case = case();
    case.ask("a", 10);
    case.cancel("a");
    assert_eq!(case.emit(1..=4), seen());
    assert_eq!(case.ask("b", 3), seen().got("b", 1..=3));
    assert_eq!(case.buffered(), 1);
}

#[test]
fn x_002_new_events_stay_behind_those_in_the_buffer() {
    let mut case = case();
    case.ask("a", 10);
    case.cancel("a");
    case.emit(1..=4);
    case.ask("b", 3);
    assert_eq!(case.emit([5, 6]), seen());
    assert_eq!(case.ask("b", 10), seen().got("b", [4, 5, 6]).demand(3));
}

#[test]
fn x_009_a_consumer_without_demand_does_not_block_the_others() {
    for _ in 0..100 {
        let mut case = Case::silent(DemandDispatcher::new().shuffled());
        case.subscribe("z");
        case.subscribe("b");
        case.ask("b", 10);
        assert_eq!(case.emit(1..=5), seen().got("b", 1..=5));
        assert_eq!(case.emit(6..=7), seen().got("b", 6..=7));
    }
}
