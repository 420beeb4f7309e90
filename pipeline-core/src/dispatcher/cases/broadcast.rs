//! The broadcast dispatcher: S-119 to S-132, X-005 to.
//!
//! The stage's tests cover the rest: that the consumer stays alive and the error is logged (S-131),
//! and that nothing flows while a producer accumulates (S-132).

use super::{Case, Seen, seen};
use crate::{
    dispatcher::BroadcastDispatcher,
    subscription::{SubscribeError, SubscribeOptions},
};

/// Raw subscribers with these names.
fn raws(names: &[&'static str]) -> Case<u32> {
    let mut case = Case::silent(BroadcastDispatcher::new());
    for name in names {
        assert_eq!(case.subscribe(name), seen());
    }
    case
}

/// The same message to each of these.
fn all<const N: usize>(
    names: [&'static str; N],
    message: impl IntoIterator<Item = u32>,
) -> Seen<u32> {
    let message: Vec<u32> = message.into_iter().collect();
    names.into_iter().fold(seen(), |seen, name| seen.got(name, message.clone()))
}

#[test]
fn s_119_demand_is_the_least_of_all_and_asked_for_once() {
    let mut case = raws(&[]);
    let mut demand = vec![];
    for (name, max) in [("a", 10), ("b", 20)] {
        // The handlers never return, so neither asks again.
        demand.extend(case.subscribe(name).demand);
        demand.extend(case.ask(name, max).demand);
    }
    assert_eq!(demand, [10]);
}

#[test]
fn s_120_a_subscriber_that_never_asks_blocks_all_until_it_leaves() {
    let mut case = Case::counter(BroadcastDispatcher::new(), 0..);
    for name in ["idle", "a", "b"] {
        case.subscribe(name);
    }
    assert_eq!(case.ask("a", 10), seen());
    assert_eq!(case.ask("b", 20), seen());
    assert_eq!(case.cancel("idle"), all(["a", "b"], 0..=9).demand(10));
}

#[test]
fn s_121_a_cancelled_subscriber_frees_the_demand_of_the_others() {
    let mut case = raws(&["a", "b"]);
    assert_eq!(case.ask("a", 10), seen());
    assert_eq!(case.cancel("b"), seen().demand(10));
    assert_eq!(case.ask("a", 10), seen().demand(10));
}

#[test]
fn s_122_a_new_subscriber_with_equal_demand_causes_no_demand() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 10), seen().demand(10));
    assert_eq!(case.subscribe("b"), seen());
    assert_eq!(case.ask("b", 10), seen());
}

#[test]
fn s_123_demand_blocked_by_a_new_subscriber_is_freed_when_it_leaves() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 10), seen().demand(10));
    assert_eq!(case.subscribe("b"), seen());
    assert_eq!(case.ask("a", 5), seen());
    assert_eq!(case.cancel("b"), seen().demand(5));
}

#[test]
fn s_124_events_owed_to_the_last_subscriber_go_to_the_next() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 10), seen().demand(10));
    assert_eq!(case.cancel("a"), seen());
    assert_eq!(case.subscribe("b"), seen());
    assert_eq!(case.ask("b", 5), seen());
    assert_eq!(case.emit(1..=3), seen().got("b", 1..=3));
}

#[test]
fn s_125_the_slowest_sets_the_pace() {
    let mut case = raws(&["a", "b"]);
    assert_eq!(case.ask("a", 3), seen());
    assert_eq!(case.ask("b", 2), seen().demand(2));
    assert_eq!(case.emit([1, 2]), all(["a", "b"], [1, 2]));
    assert_eq!(case.ask("b", 2), seen().demand(1));
    assert_eq!(case.emit([3, 4]), all(["a", "b"], [3]));
    assert_eq!(case.buffered(), 1);
    assert_eq!(case.ask("a", 1), all(["a", "b"], [4]));
}

#[test]
fn s_126_a_new_subscriber_with_more_demand_joins_at_the_current_pace() {
    let mut case = raws(&["a"]);
    case.ask("a", 10);
    case.emit(1..=3);
    case.subscribe("b");
    assert_eq!(case.ask("b", 20), seen());
    assert_eq!(case.emit(4..=10), all(["a", "b"], 4..=10));
    assert_eq!(case.outstanding("b"), 13);
}

#[test]
fn s_127_buffered_events_go_to_all_when_the_slowest_asks() {
    let mut case = raws(&["a"]);
    case.ask("a", 10);
    case.emit(1..=4);
    case.subscribe("b");
    case.ask("b", 20);
    assert_eq!(case.emit(5..=12), all(["a", "b"], 5..=10));
    assert_eq!(case.buffered(), 2);
    assert_eq!(case.ask("a", 10), all(["a", "b"], [11, 12]).demand(8));
}

#[test]
fn s_128_the_slowest_leaves() {
    let mut case = raws(&["a", "b", "c"]);
    assert_eq!(case.ask("a", 5), seen());
    assert_eq!(case.ask("b", 3), seen());
    assert_eq!(case.ask("c", 8), seen().demand(3));
    assert_eq!(case.cancel("b"), seen().demand(2));
    assert_eq!(case.emit(1..=7), all(["a", "c"], 1..=5));
    assert_eq!(case.buffered(), 2);
}

#[test]
fn s_129_one_is_killed_in_the_middle() {
    let mut case = raws(&["a", "b"]);
    case.ask("a", 6);
    case.ask("b", 6);
    assert_eq!(case.emit([1, 2]), all(["a", "b"], [1, 2]));
    assert_eq!(case.cancel("b"), seen());
    assert_eq!(case.emit(3..=7), seen().got("a", 3..=6));
    assert_eq!(case.buffered(), 1);
    assert_eq!(case.ask("a", 3), seen().got("a", [7]).demand(2));
}

#[test]
fn s_130_an_event_that_a_selector_rejects_costs_no_demand() {
    let starts_with = |start: &'static str| {
        SubscribeOptions::new().selector(move |text: &&'static str| text.starts_with(start))
    };
    let mut case = Case::silent(BroadcastDispatcher::new());
    case.subscribe_with("a", &starts_with("pre"));
    case.subscribe_with("b", &starts_with("pref"));
    assert_eq!(case.ask("a", 4), seen());
    assert_eq!(case.ask("b", 4), seen().demand(4));
    assert_eq!(
        case.emit(["pref-1", "pref-2", "pre0", "foo"]),
        seen()
            .got("a", ["pref-1", "pref-2", "pre0"])
            .got("b", ["pref-1", "pref-2"])
            .filtered(1)
            .demand(1)
    );
    assert_eq!((case.outstanding("a"), case.outstanding("b")), (1, 2));
}

#[test]
fn s_131_a_second_subscription_of_a_stage_is_refused() {
    let mut case = raws(&["a"]);
    case.ask("a", 5);
    let error = case.refused("a", &SubscribeOptions::new());
    assert_eq!(error, SubscribeError::AlreadySubscribed);
    assert_eq!(case.emit([1, 2]), seen().got("a", [1, 2]));
}

#[test]
fn s_132_consumers_subscribed_from_the_start_see_the_same_events() {
    let mut case = Case::counter(BroadcastDispatcher::new(), 0..1000);
    // Neither has asked before both are there.
    case.subscribe("a");
    case.subscribe("b");
    let mut received = [vec![], vec![]];
    let mut asks = [10, 20].into_iter().cycle();
    for round in 0..200 {
        let name = ["a", "b"][round % 2];
        let mut seen = case.ask(name, asks.next().unwrap());
        received[0].extend(seen.events_of("a"));
        received[1].extend(seen.events_of("b"));
    }
    assert_eq!(received[0], received[1]);
    assert_eq!(received[0], (0..1000).collect::<Vec<_>>());
}

#[test]
fn x_005_a_new_subscriber_gets_all_that_was_buffered_for_the_old_one() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 10), seen().demand(10));
    case.cancel("a");
    case.emit(1..=10);
    case.subscribe("b");
    assert_eq!(case.ask("b", 10), seen().got("b", 1..=10));
    assert_eq!(case.buffered(), 0);
}

#[test]
fn x_006_a_new_subscriber_gets_the_events_buffered_because_of_it() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 10), seen().demand(10));
    case.subscribe("b");
    assert_eq!(case.emit(1..=10), seen());
    assert_eq!(case.ask("b", 10), all(["a", "b"], 1..=10));
    assert_eq!(case.ask("a", 5), seen());
    assert_eq!(case.ask("b", 5), seen().demand(5));
}

#[test]
fn x_007_owed_demand_is_not_asked_for_again() {
    let mut case = raws(&["a"]);
    assert_eq!(case.ask("a", 1000), seen().demand(1000));
    assert_eq!(case.subscribe("b"), seen());
    assert_eq!(case.ask("b", 1000), seen());
}

#[test]
fn x_008_no_unit_of_common_demand_is_forgotten() {
    let mut case = raws(&["a", "b"]);
    case.ask("a", 4);
    case.ask("b", 4);
    assert_eq!(case.emit([1, 2, 3]), all(["a", "b"], [1, 2, 3]));
    case.subscribe("c");
    assert_eq!(case.emit([4, 5]), seen());
    assert_eq!(case.ask("a", 2), seen());
    assert_eq!(case.ask("b", 2), seen());
    assert_eq!(case.ask("c", 3), all(["a", "b", "c"], [4, 5]).demand(1));
}

#[test]
fn x_016_a_subscriber_that_selects_no_event_gets_no_message() {
    let mut case = Case::silent(BroadcastDispatcher::new());
    case.subscribe_with("even", &SubscribeOptions::new().selector(|n: &u32| n.is_multiple_of(2)));
    case.subscribe("all");
    case.ask("even", 4);
    case.ask("all", 4);
    assert_eq!(case.emit([1u32, 3]), seen().got("all", [1, 3]));
    assert_eq!(case.outstanding("even"), 4);
}

#[test]
fn x_017_a_third_subscription_is_refused_like_the_second() {
    let mut case = raws(&["a"]);
    case.ask("a", 5);
    for _ in 0..2 {
        let error = case.refused("a", &SubscribeOptions::new());
        assert_eq!(error, SubscribeError::AlreadySubscribed);
    }
    assert_eq!(case.emit([1, 2]), seen().got("a", [1, 2]));

    // One that left may come back.
    case.cancel("a");
    case.subscribe("a");
    assert_eq!(case.ask("a", 1), seen(), "3 are still owed");
}
