//! Tests of the check: a faulty dispatcher for each broken rule, and the correct ones.

use std::{collections::VecDeque, panic::catch_unwind};

use super::*;
use crate::{
    dispatcher::{
        BroadcastDispatcher, Deliveries, Delivery, DemandDispatcher, Marker, PartitionDispatcher,
        Subscriber,
    },
    subscription::SubscriptionId,
};

/// A way to break a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    SendsUnasked,
    SendsToLeavers,
    Loses,
    SendsAndLeaves,
    Invents,
    DiscardsTwice,
    ReversesMessages,
    ReversesLeftovers,
    KeepsDemandOfLeavers,
    ForgetsDemand,
    DemandFromNowhere,
    CountsQueuedDemand,
    CannotServe,
    TakesUnasked,
    Hoards,
    Sleeps,
    MindsTheRefused,
    AcceptsAll,
    RemembersLeavers,
    MarkerTooEarly,
    MarkerTooLate,
    MarkerTwice,
    MarkerLost,
    MarkersReversed,
    MarkerWithinMessage,
    LeavesOneOut,
    WrongPartition,
    DiscardsWanted,
    Panics,
}

/// A correct dispatcher with an added fault.
struct Faulty<D> {
    inner: D,
    fault: Fault,
    seen: Vec<SubscriptionId>,
    left: Vec<SubscriptionId>,
    withdrawn: usize,
    hoard: VecDeque<u64>,
    kept: Vec<Marker>,
}

/// An option that the dispatcher has to refuse.
struct Refused;

impl<D: Dispatcher<u64>> Faulty<D> {
    fn new(inner: D, fault: Fault) -> Self {
        let (seen, left, hoard, kept) = (vec![], vec![], VecDeque::new(), vec![]);
        Self { inner, fault, seen, left, withdrawn: 0, hoard, kept }
    }

    /// The decisions of the inner dispatcher, with the fault.
    fn spoil(&self, mut inner: Deliveries<u64>, out: &mut Deliveries<u64>) {
        let (filtered, unroutable) = inner.take_discarded();
        out.filtered(filtered);
        out.unroutable(unroutable);
        let mut deliveries: Vec<Delivery<u64>> = inner.drain().collect();
        if self.fault == Fault::MarkersReversed {
            let is_marker = |delivery: &&mut Delivery<u64>| matches!(delivery, Delivery::Info(_));
            let mut markers: Vec<_> = deliveries.iter_mut().filter(is_marker).collect();
            if let [first, .., last] = &mut markers[..] {
                std::mem::swap(*first, *last);
            }
        }
        if self.fault == Fault::MarkerWithinMessage
            && let [Delivery::Events { events, .. }, Delivery::Info(_), rest @ ..] =
                &mut deliveries[..]
            && let [Delivery::Events { events: later, .. }, ..] = rest
        {
            events.append(later);
        }
        for delivery in deliveries {
            match delivery {
                Delivery::Info(_) if self.fault == Fault::MarkerLost => {}
                Delivery::Info(marker) => {
                    out.info(marker);
                    if self.fault == Fault::MarkerTwice {
                        out.info(marker);
                    }
                }
                Delivery::Events { to, mut events } => {
                    match self.fault {
                        Fault::ReversesMessages => events.reverse(),
                        Fault::Loses => drop(events.pop()),
                        Fault::Invents => events.iter_mut().for_each(|event| *event += 1000),
                        Fault::LeavesOneOut if self.seen.len() > 1 && to == self.seen[1] => {
                            continue;
                        }
                        _ => {}
                    }
                    let leaver = self.left.last().filter(|_| self.fault == Fault::SendsToLeavers);
                    out.send(*leaver.unwrap_or(&to), events);
                }
            }
        }
    }
}

impl<D: Dispatcher<u64>> Dispatcher<u64> for Faulty<D> {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        let is_refused = subscriber.options.get_extension::<Refused>().is_some();
        if is_refused && self.fault == Fault::MindsTheRefused {
            let _ = self.inner.subscribe(subscriber);
        }
        if is_refused && self.fault != Fault::AcceptsAll {
            return Err(ExitReason::failed("unwelcome"));
        }
        if self.fault == Fault::RemembersLeavers && !self.left.is_empty() {
            return Err(ExitReason::failed("a subscriber has left"));
        }
        self.inner.subscribe(subscriber)?;
        self.seen.push(subscriber.id);
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<u64>) {
        self.withdrawn += self.inner.outstanding(id);
        self.left.push(id);
        self.seen.retain(|other| *other != id);
        self.inner.cancel(id, out);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<u64>) {
        assert!(self.fault != Fault::Panics || demand < 4, "too much demand at once");
        let demand = if self.fault == Fault::ForgetsDemand { demand.min(3) } else { demand };
        let mut inner = Deliveries::new();
        self.inner.ask(id, demand, &mut inner);
        self.spoil(inner, out);
        for marker in self.kept.drain(..) {
            out.info(marker);
        }
    }

    fn unmet(&self) -> usize {
        match self.fault {
            Fault::KeepsDemandOfLeavers => self.inner.unmet() + self.withdrawn,
            Fault::DemandFromNowhere => self.inner.unmet() + 1,
            Fault::CountsQueuedDemand => self.inner.unmet() + self.inner.queued(),
            Fault::CannotServe => self.seen.iter().map(|id| self.inner.outstanding(*id)).sum(),
            Fault::TakesUnasked | Fault::Sleeps => 0,
            _ => self.inner.unmet(),
        }
    }

    fn dispatch(&mut self, events: &mut VecDeque<u64>, out: &mut Deliveries<u64>) {
        match self.fault {
            Fault::Sleeps => return,
            Fault::Hoards => {
                self.hoard.append(events);
                return;
            }
            Fault::DiscardsWanted => {
                let before = events.len();
                events.retain(|event| *event != 2);
                out.filtered(before - events.len());
            }
            _ => {}
        }
        let first = events.front().copied();
        let before = events.len();
        let mut inner = Deliveries::new();
        self.inner.dispatch(events, &mut inner);
        self.spoil(inner, out);
        match self.fault {
            Fault::SendsUnasked if !self.seen.is_empty() => {
                out.send(self.seen[0], events.pop_front().into_iter().collect());
            }
            Fault::SendsAndLeaves if events.len() < before => events.push_front(first.unwrap()),
            Fault::ReversesLeftovers => events.make_contiguous().reverse(),
            Fault::DiscardsTwice if events.len() < before => out.filtered(1),
            _ => {}
        }
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<u64>) {
        match self.fault {
            Fault::MarkerTooEarly => out.info(marker),
            Fault::MarkerTooLate => self.kept.push(marker),
            _ => {
                let mut inner = Deliveries::new();
                self.inner.info(marker, &mut inner);
                self.spoil(inner, out);
            }
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.inner.outstanding(id)
    }

    fn queued(&self) -> usize {
        self.inner.queued() + self.hoard.len()
    }
}

/// The verdict of the check on a fault.
fn verdict<D: Dispatcher<u64>>(check: DispatcherCheck<impl Fn() -> D>) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(|| check.run()));
    *outcome.expect_err("the fault was not found").downcast::<String>().unwrap()
}

fn demand(fault: Fault) -> DispatcherCheck<impl Fn() -> Faulty<DemandDispatcher>> {
    DispatcherCheck::new(move || Faulty::new(DemandDispatcher::new(), fault))
        .refusing(SubscribeOptions::new().extension(Refused))
}

fn broadcast(fault: Fault) -> DispatcherCheck<impl Fn() -> Faulty<BroadcastDispatcher<u64>>> {
    DispatcherCheck::new(move || Faulty::new(BroadcastDispatcher::new(), fault))
        .delivering(Delivering::ToAll)
        .refusing(SubscribeOptions::new().extension(Refused))
}

fn partition(fault: Fault) -> DispatcherCheck<impl Fn() -> Faulty<PartitionDispatcher<u64, u64>>> {
    let offset = u64::from(fault == Fault::WrongPartition);
    let by_key = move || PartitionDispatcher::by_key(0..3, move |n| Some((n + offset) % 3));
    DispatcherCheck::new(move || Faulty::new(by_key(), fault))
        .subscribers(3)
        .options(|subscriber| SubscribeOptions::new().partition(subscriber as u64))
        .wanted(|subscriber, event| event % 3 == subscriber as u64)
}

/// Asserts that the check finds the fault and names the rule.
#[track_caller]
fn found<D: Dispatcher<u64>>(check: DispatcherCheck<impl Fn() -> D>, rule: &str) {
    let verdict = verdict(check);
    let expected = format!("the dispatcher breaks a rule: {rule}");
    assert!(verdict.starts_with(&expected), "{verdict}");
}

#[test]
fn sending_beyond_the_demand_is_found() {
    found(demand(Fault::SendsUnasked), "no more is sent than was asked for");
    found(demand(Fault::SendsToLeavers), "only subscribers are sent events");
    found(demand(Fault::TakesUnasked), "without unmet demand nothing is taken");
    found(demand(Fault::Hoards), "without unmet demand nothing is taken");
}

#[test]
fn a_duplicated_or_lost_event_is_found() {
    let rule = "every event is sent, left, queued or discarded";
    found(demand(Fault::Loses), rule);
    found(demand(Fault::SendsAndLeaves), rule);
    found(demand(Fault::Invents), rule);
    found(demand(Fault::DiscardsTwice), rule);
    found(broadcast(Fault::DiscardsTwice), rule);
    found(DispatcherCheck::new(BroadcastDispatcher::new), rule);
}

#[test]
fn a_changed_order_is_found() {
    found(demand(Fault::ReversesMessages), "events keep their order");
    found(demand(Fault::ReversesLeftovers), "events keep their order");
    found(broadcast(Fault::ReversesMessages), "events keep their order");
}

#[test]
fn demand_that_appears_or_disappears_is_found() {
    found(demand(Fault::KeepsDemandOfLeavers), "demand is conserved");
    found(demand(Fault::ForgetsDemand), "demand is conserved");
    found(demand(Fault::DemandFromNowhere), "demand is conserved");
    found(partition(Fault::CountsQueuedDemand), "demand is conserved");
    found(broadcast(Fault::CannotServe), "unmet demand can be served");
    found(demand(Fault::Sleeps), "when all have asked for more than there is");
}

#[test]
fn a_refusal_with_side_effects_is_found() {
    found(broadcast(Fault::MindsTheRefused), "a refusal changes nothing");
    found(demand(Fault::AcceptsAll), "subscriptions to be refused are refused");
    found(
        demand(Fault::RemembersLeavers),
        "subscriptions to be refused are refused, and no others",
    );
}

#[test]
fn a_marker_in_the_wrong_place_is_found() {
    let rule = "markers come back once, in order";
    found(demand(Fault::MarkerTooLate), rule);
    found(demand(Fault::MarkerTwice), rule);
    found(demand(Fault::MarkerLost), rule);
    found(partition(Fault::MarkerTooEarly), rule);
    found(partition(Fault::MarkerTooLate), rule);
    found(partition(Fault::MarkersReversed), rule);
    found(partition(Fault::MarkerWithinMessage), rule);
}

#[test]
fn an_event_for_the_wrong_subscriber_is_found() {
    found(broadcast(Fault::LeavesOneOut), "every event goes to all");
    found(partition(Fault::WrongPartition), "an event goes to the subscribers that want it");
    found(partition(Fault::DiscardsWanted), "an event goes to the subscribers that want it");
}

#[test]
fn a_panic_is_found() {
    let verdict = verdict(demand(Fault::Panics));
    assert!(verdict.contains("it panicked: too much demand at once"), "{verdict}");
}

/// The search is random, but it ends at the shortest sequence.
#[test]
fn a_fault_is_reported_with_the_shortest_sequence_that_shows_it() {
    assert_eq!(
        verdict(demand(Fault::ForgetsDemand)),
        "the dispatcher breaks a rule: demand is conserved
  outstanding(#1) is 3, expected 4
after this:
  subscriber 0 subscribes: #1
  #1 asks for 4"
    );
}

#[test]
fn the_demand_dispatcher_keeps_the_contract() {
    check_dispatcher(DemandDispatcher::new);
    check_dispatcher(|| DemandDispatcher::new().shuffled());
}

#[test]
fn the_broadcast_dispatcher_keeps_the_contract() {
    let check = || {
        DispatcherCheck::new(BroadcastDispatcher::new)
            .delivering(Delivering::ToAll)
            .refusing(SubscribeOptions::new().selector(|_: &String| true))
    };
    check().run();
    let wants = |subscriber: usize, event: u64| event % 4 < subscriber as u64;
    check()
        .options(move |n| SubscribeOptions::new().selector(move |event| wants(n, *event)))
        .wanted(wants)
        .run();
}

#[test]
fn the_partition_dispatcher_keeps_the_contract() {
    // Of five events, one has no receiver and one has an unknown partition.
    let key = |event: &u64| Some(event % 5).filter(|key| *key > 0);
    let check = |shared| {
        let make = move || {
            let dispatcher = PartitionDispatcher::by_key(1..4, key);
            if shared { dispatcher.shared() } else { dispatcher }
        };
        DispatcherCheck::new(make)
            .wanted(|subscriber, event| event % 5 == subscriber as u64 % 3 + 1)
            .options(|subscriber| SubscribeOptions::new().partition(subscriber as u64 % 3 + 1))
            .refusing(SubscribeOptions::new())
            .refusing(SubscribeOptions::new().partition(4))
            .refusing(SubscribeOptions::new().partition("one"))
    };
    check(false).subscribers(3).run();
    check(true).subscribers(6).run();

    DispatcherCheck::new(|| PartitionDispatcher::numbered(4))
        .options(|subscriber| SubscribeOptions::new().partition(subscriber))
        .run();
}
