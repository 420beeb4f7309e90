//! Custom dispatchers: S-147 to S-150, X-004.
//!
//! The consumer's reaction to a refusal (S-147) is tested with the stage.

use std::collections::VecDeque;

use super::{Case, seen};
use crate::{
    ExitReason,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    subscription::{SubscribeOptions, SubscriptionId},
};

/// A minimal dispatcher: it answers no ask unless a field says so.
#[derive(Default)]
struct Custom {
    demand: VecDeque<(SubscriptionId, usize)>,
    unmet: usize,
    refuses: bool,
    after_subscribe: usize,
    after_cancel: usize,
    one_by_one: bool,
    dispatched: usize,
}

impl Dispatcher<u32> for Custom {
    fn subscribe(&mut self, _: Subscriber<'_>) -> Result<(), ExitReason> {
        if self.refuses {
            return Err(ExitReason::failed("no room"));
        }
        self.unmet += self.after_subscribe;
        Ok(())
    }

    fn cancel(&mut self, _: SubscriptionId, _: &mut Deliveries<u32>) {
        self.unmet += self.after_cancel;
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, _: &mut Deliveries<u32>) {
        if self.one_by_one {
            self.demand.push_back((id, demand));
            self.unmet += demand;
        }
    }

    fn unmet(&self) -> usize {
        self.unmet
    }

    fn dispatch(&mut self, events: &mut VecDeque<u32>, out: &mut Deliveries<u32>) {
        self.dispatched += 1;
        let Some((id, demand)) = self.demand.front_mut() else { return };
        out.send(*id, events.pop_front().into_iter().collect());
        self.unmet -= 1;
        *demand -= 1;
        if *demand == 0 {
            self.demand.pop_front();
        }
    }

    fn outstanding(&self, _: SubscriptionId) -> usize {
        0
    }

    /// Only for inspection.
    fn queued(&self) -> usize {
        self.dispatched
    }
}

#[test]
fn s_147_a_subscription_is_refused_with_the_reason_of_the_dispatcher() {
    let mut case = Case::silent(Custom { refuses: true, ..Custom::default() });
    let reason = case.try_subscribe("a", &SubscribeOptions::new()).unwrap_err();
    assert_eq!(reason.to_string(), "failed: no room");
}

#[test]
fn s_148_demand_may_rise_when_a_subscriber_leaves() {
    let mut case = Case::silent(Custom { after_cancel: 5, ..Custom::default() });
    assert_eq!(case.subscribe("a"), seen());
    assert_eq!(case.cancel("a"), seen().demand(5));
}

#[test]
fn s_149_demand_may_rise_when_a_consumer_subscribes() {
    let mut case = Case::silent(Custom { after_subscribe: 3, ..Custom::default() });
    assert_eq!(case.subscribe("a"), seen().demand(3));
}

#[test]
fn s_150_the_dispatcher_is_offered_events_without_subscribers() {
    let mut case = Case::silent(Custom::default());
    assert_eq!(case.emit([1, 2]), seen());
    assert_eq!((case.queued(), case.buffered()), (1, 2), "offered once, and buffered");
}

#[test]
fn x_004_a_dispatcher_that_takes_one_at_a_time_is_called_again_and_order_is_kept() {
    let mut case = Case::silent(Custom { one_by_one: true, ..Custom::default() });
    case.subscribe("c");
    assert_eq!(case.emit(1..=5), seen());
    assert_eq!(case.ask("c", 2), seen().got("c", [1]).got("c", [2]));
    assert_eq!(case.ask("c", 3), seen().got("c", [3]).got("c", [4]).got("c", [5]));
    assert_eq!(case.buffered(), 0);
}
