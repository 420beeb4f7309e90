//! A dispatcher that sends every event to every consumer.

use std::{
    any::{Any, type_name},
    collections::VecDeque,
    fmt,
    sync::Arc,
};

use super::{Deliveries, Dispatcher, Subscriber, demand::take_front};
use crate::{
    exit::ExitReason,
    subscription::{StageId, SubscribeError, SubscribeOptions, SubscriptionId},
};

/// Sends every event to every subscriber, at the pace of the slowest.
///
/// There is demand when all subscribers have asked: as much as the smallest demand among them. So a
/// subscriber that never asks blocks the others, and a new one does until it asks; it receives the
/// events that are sent from then on. An event is cloned for every receiver but the last, so large
/// events are best shared (`Arc`, `Bytes`).
///
/// A subscriber may choose its events with a [`selector`](SubscribeOptions::selector). An event
/// that no subscriber selects is discarded and counted.
///
/// A stage can subscribe only once. A second subscription is refused with
/// [`SubscribeError::AlreadySubscribed`], and the first continues.
///
/// The semantics are those of GenStage's broadcast dispatcher, except that no demand is lost when
/// subscribers come and go.
///
/// ```
/// use pipeline_core::{dispatcher::BroadcastDispatcher, subscription::SubscribeOptions};
///
/// let dispatcher = BroadcastDispatcher::<String>::new();
/// let shouts = SubscribeOptions::new().selector(|line: &String| line.ends_with('!'));
/// ```
#[must_use]
pub struct BroadcastDispatcher<E> {
    consumers: Vec<Consumer<E>>,
    /// The smallest demand of any subscriber.
    least: usize,
    /// How many subscribers have that demand, so that not every ask has to scan all of them.
    lowest: usize,
}

struct Consumer<E> {
    id: SubscriptionId,
    stage: StageId,
    demand: usize,
    selector: Option<Arc<Select<E>>>,
}

type Select<E> = dyn Fn(&E) -> bool + Send + Sync;

impl<E> BroadcastDispatcher<E> {
    /// A dispatcher without subscribers.
    pub const fn new() -> Self {
        Self { consumers: Vec::new(), least: 0, lowest: 0 }
    }

    /// Finds the smallest demand.
    fn look(&mut self) {
        let demands = || self.consumers.iter().map(|consumer| consumer.demand);
        let least = demands().min().unwrap_or(0);
        self.lowest = demands().filter(|demand| *demand == least).count();
        self.least = least;
    }
}

impl<E: Clone> BroadcastDispatcher<E> {
    /// Sends to subscribers without selectors: whole batches are cloned.
    fn dispatch_to_all(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        let count = self.least.min(events.len());
        if count == 0 {
            return;
        }
        self.least -= count;
        let batch = take_front(events, count);
        let Some((last, others)) = self.consumers.split_last_mut() else { return };
        for consumer in others {
            consumer.demand -= count;
            out.send(consumer.id, batch.clone());
        }
        last.demand -= count;
        out.send(last.id, batch);
    }

    /// Sends to subscribers of which some have selectors. An event that is not selected costs no
    /// demand.
    fn dispatch_by_choice(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        let mut batches: Vec<Vec<E>> = self.consumers.iter().map(|_| Vec::new()).collect();
        loop {
            // This many events can go to every subscriber; after that, some may still have demand
            // for others.
            let count = self.least.min(events.len());
            if count == 0 {
                break;
            }
            for _ in 0..count {
                let Some(event) = events.pop_front() else { break };
                let mut last: Option<&mut Vec<E>> = None;
                for (consumer, batch) in self.consumers.iter_mut().zip(&mut batches) {
                    if !consumer.wants(&event) {
                        continue;
                    }
                    consumer.demand -= 1;
                    if let Some(earlier) = last.replace(batch) {
                        earlier.push(event.clone());
                    }
                }
                match last {
                    Some(batch) => batch.push(event),
                    None => out.filtered(1),
                }
            }
            self.look();
        }
        for (consumer, batch) in self.consumers.iter().zip(batches) {
            out.send(consumer.id, batch);
        }
    }
}

impl<E> Consumer<E> {
    fn wants(&self, event: &E) -> bool {
        self.selector.as_ref().is_none_or(|select| select(event))
    }
}

impl<E: Clone + Send + 'static> Dispatcher<E> for BroadcastDispatcher<E> {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        let Subscriber { id, stage, options } = subscriber;
        if self.consumers.iter().any(|consumer| consumer.stage == stage) {
            return Err(SubscribeError::AlreadySubscribed.into());
        }
        let selector = Selector::of(options)?;
        self.consumers.push(Consumer { id, stage, demand: 0, selector });
        self.look();
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, _out: &mut Deliveries<E>) {
        self.consumers.retain(|consumer| consumer.id != id);
        self.look();
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, _out: &mut Deliveries<E>) {
        if let Some(consumer) = self.consumers.iter_mut().find(|consumer| consumer.id == id) {
            let was = consumer.demand;
            consumer.demand = was.saturating_add(demand);
            if was == self.least {
                self.lowest = self.lowest.saturating_sub(1);
                if self.lowest == 0 {
                    self.look();
                }
            }
        }
    }

    fn unmet(&self) -> usize {
        self.least
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        if self.consumers.iter().all(|consumer| consumer.selector.is_none()) {
            self.dispatch_to_all(events, out);
        } else {
            self.dispatch_by_choice(events, out);
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.consumers.iter().find(|consumer| consumer.id == id).map_or(0, |found| found.demand)
    }
}

impl<E> Default for BroadcastDispatcher<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for BroadcastDispatcher<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastDispatcher")
            .field("consumers", &self.consumers.len())
            .field("demand", &self.least)
            .finish()
    }
}

/// A selector as an option: an `Arc<Select<E>>`, and the name of its `E`.
struct Selector {
    select: Box<dyn Any + Send + Sync>,
    event: &'static str,
}

impl Selector {
    /// The selector in these options, if there is one. It has to be for events of type `E`.
    fn of<E: 'static>(
        options: &SubscribeOptions,
    ) -> Result<Option<Arc<Select<E>>>, SubscribeError> {
        let Some(Self { select, event }) = options.get_extension() else { return Ok(None) };
        match select.downcast_ref::<Arc<Select<E>>>() {
            Some(select) => Ok(Some(select.clone())),
            None => Err(SubscribeError::BadSelector { given: event, expected: type_name::<E>() }),
        }
    }
}

impl SubscribeOptions {
    /// Takes only the events for which `select` returns `true`; the others cost no demand. For a
    /// producer with a [`BroadcastDispatcher`]; other dispatchers ignore it.
    ///
    /// The selector has to be for the event type of that producer, or the subscription is refused
    /// with [`SubscribeError::BadSelector`]. It runs in the producer's task, so it should be fast,
    /// and a panic in it is a panic of the producer. A second selector replaces the first.
    ///
    /// ```
    /// use pipeline_core::subscription::SubscribeOptions;
    ///
    /// let options = SubscribeOptions::new().selector(|order: &u64| *order >= 1000);
    /// ```
    pub fn selector<E: 'static>(self, select: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        let select: Arc<Select<E>> = Arc::new(select);
        self.extension(Selector { select: Box::new(select), event: type_name::<E>() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const IDS: [SubscriptionId; 3] =
        [SubscriptionId::new(1), SubscriptionId::new(2), SubscriptionId::new(3)];

    fn subscribed<E: Clone + Send + 'static>(
        options: [SubscribeOptions; 3],
    ) -> BroadcastDispatcher<E> {
        let mut dispatcher = BroadcastDispatcher::new();
        for (n, (id, options)) in (0..).zip(IDS.into_iter().zip(options)) {
            dispatcher.subscribe(Subscriber::new(id, StageId::new(n), &options)).unwrap();
            dispatcher.ask(id, 10, &mut Deliveries::new());
        }
        dispatcher
    }

    /// Counts its clones.
    struct Counted(Arc<AtomicUsize>);

    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(self.0.clone())
        }
    }

    #[test]
    fn an_event_is_cloned_for_every_receiver_but_the_last() {
        let clones = Arc::new(AtomicUsize::new(0));
        let dispatch = |third: SubscribeOptions| {
            let options = [SubscribeOptions::new(), SubscribeOptions::new(), third];
            let mut events = VecDeque::from([Counted(clones.clone())]);
            subscribed(options).dispatch(&mut events, &mut Deliveries::new());
            clones.swap(0, Ordering::Relaxed)
        };
        assert_eq!(dispatch(SubscribeOptions::new()), 2);
        assert_eq!(dispatch(SubscribeOptions::new().selector(|_: &Counted| false)), 1);
    }

    #[test]
    fn the_smallest_demand_is_tracked_through_asks_and_sends() {
        let mut dispatcher = subscribed::<u32>(Default::default());
        let mut out = Deliveries::new();
        let steps = [(0, 5), (1, 5), (2, usize::MAX), (2, usize::MAX), (0, 9), (1, 3), (0, 1)];
        for (place, demand) in steps.into_iter().cycle().take(100) {
            dispatcher.ask(IDS[place], demand, &mut out);
            dispatcher.dispatch(&mut VecDeque::from([1, 2, 3]), &mut out);
            let least = IDS.iter().map(|id| dispatcher.outstanding(*id)).min();
            assert_eq!(Some(dispatcher.unmet()), least);
        }
        dispatcher.cancel(IDS[1], &mut out);
        let [first, _, third] = IDS.map(|id| dispatcher.outstanding(id));
        assert_eq!(dispatcher.unmet(), first.min(third));
    }

    #[test]
    fn an_event_without_a_receiver_is_discarded_and_costs_no_demand() {
        let never = SubscribeOptions::new().selector(|_: &u32| false);
        let mut dispatcher = subscribed([never.clone(), never.clone(), never]);
        let (mut events, mut out) = (VecDeque::from_iter(0..25u32), Deliveries::new());
        dispatcher.dispatch(&mut events, &mut out);
        assert!(events.is_empty() && out.is_empty());
        assert_eq!(out.take_discarded(), (25, 0));
        assert_eq!(dispatcher.unmet(), 10);
    }

    #[test]
    fn a_selector_for_another_event_type_is_refused_and_names_the_expected_type() {
        let mut dispatcher = BroadcastDispatcher::<u32>::new();
        let options = SubscribeOptions::new().selector(|text: &String| text.is_empty());
        let subscriber = Subscriber::new(IDS[0], StageId::new(0), &options);
        let reason = dispatcher.subscribe(subscriber).unwrap_err();
        let error: &SubscribeError = reason.source().unwrap().downcast_ref().unwrap();
        assert_eq!(
            error.to_string(),
            "the selector is for events of type alloc::string::String, expected u32"
        );
        dispatcher.ask(IDS[0], 10, &mut Deliveries::new());
        assert_eq!((dispatcher.outstanding(IDS[0]), dispatcher.unmet()), (0, 0), "it is not kept");
    }

    #[test]
    fn the_last_selector_counts_whatever_the_type_of_the_first() {
        let options =
            SubscribeOptions::new().selector(|_: &String| true).selector(|n: &u32| *n > 1);
        let mut dispatcher = subscribed([options.clone(), options.clone(), options]);
        dispatcher.dispatch(&mut [1u32].into(), &mut Deliveries::new());
        assert_eq!(dispatcher.unmet(), 10);
    }
}
