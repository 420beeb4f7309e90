//! The specification's cases for dispatchers, as far as a dispatcher, the buffer and the ledger
//! show them without a running stage. Everything that the cases know of the ledger is in this
//! module.

mod broadcast;
mod custom;
mod demand;
mod partition;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Deliveries, Delivery, Dispatcher, Marker, Subscriber};
use crate::{
    exit::ExitReason,
    stage::{
        BufferKeep, DemandMode, WhenUnsubscribed, buffer::Buffer, demand::Window, outlet::Outlet,
    },
    subscription::{StageId, SubscribeError, SubscribeOptions, SubscriptionId},
};

/// A stage without a task: the test subscribes, asks and cancels by hand, and sees the demand that
/// reaches the source.
///
/// Subscribers have names; a name is a stage. Every step settles before it returns.
struct Case<E> {
    outlet: Outlet<E>,
    dispatcher: Shared<E>,
    /// The accepted subscriptions, with the window of automatic ones.
    subscriptions: Vec<(&'static str, SubscriptionId, Option<Window>)>,
    stages: Vec<&'static str>,
    made: u64,
    /// Answers demand.
    source: Box<dyn FnMut(usize) -> Vec<E>>,
    out: Deliveries<E>,
    warnings: Vec<String>,
}

/// The effects of a step.
#[derive(Debug, PartialEq)]
struct Seen<E> {
    /// The messages that each subscriber received.
    got: BTreeMap<&'static str, Vec<Vec<E>>>,
    /// The demand that the source received, each time.
    demand: Vec<usize>,
    /// The markers that came back.
    fired: Vec<Marker>,
    /// Discarded events: those without a receiver, and those without a route.
    discarded: (usize, usize),
}

/// No effects; the start of an expectation.
fn seen<E>() -> Seen<E> {
    Seen { got: BTreeMap::new(), demand: vec![], fired: vec![], discarded: (0, 0) }
}

impl<E> Seen<E> {
    fn got(mut self, name: &'static str, message: impl IntoIterator<Item = E>) -> Self {
        self.got.entry(name).or_default().push(message.into_iter().collect());
        self
    }

    fn demand(mut self, demand: usize) -> Self {
        self.demand.push(demand);
        self
    }

    fn fired(mut self, marker: u64) -> Self {
        self.fired.push(Marker::new(marker));
        self
    }

    fn filtered(mut self, events: usize) -> Self {
        self.discarded.0 += events;
        self
    }

    fn unroutable(mut self, events: usize) -> Self {
        self.discarded.1 += events;
        self
    }

    /// All events that a subscriber received, as one list.
    fn events_of(&mut self, name: &str) -> Vec<E> {
        self.got.remove(name).into_iter().flatten().flatten().collect()
    }
}

impl<E: Debug + PartialEq + Send + 'static> Case<E> {
    /// The source emits nothing by itself.
    fn silent(dispatcher: impl Dispatcher<E>) -> Self {
        Self::fed_by(dispatcher, |_| vec![])
    }

    /// The source answers demand with these events until they run out.
    fn counter(
        dispatcher: impl Dispatcher<E>,
        events: impl IntoIterator<Item = E, IntoIter: 'static>,
    ) -> Self {
        let mut events = events.into_iter();
        Self::fed_by(dispatcher, move |demand| events.by_ref().take(demand).collect())
    }

    fn fed_by(
        dispatcher: impl Dispatcher<E>,
        source: impl FnMut(usize) -> Vec<E> + 'static,
    ) -> Self {
        let dispatcher = Shared(Arc::new(Mutex::new(dispatcher)));
        Self {
            outlet: Outlet::new(
                Box::new(dispatcher.clone()),
                Buffer::new(10_000, BufferKeep::default()),
                DemandMode::Forward,
                WhenUnsubscribed::Buffer,
            ),
            dispatcher,
            subscriptions: vec![],
            stages: vec![],
            made: 0,
            source: Box::new(source),
            out: Deliveries::new(),
            warnings: vec![],
        }
    }

    fn subscribe(&mut self, name: &'static str) -> Seen<E> {
        self.subscribe_with(name, &SubscribeOptions::new())
    }

    fn subscribe_with(&mut self, name: &'static str, options: &SubscribeOptions) -> Seen<E> {
        self.try_subscribe(name, options).unwrap();
        self.settle()
    }

    /// Subscribes, asks for `max`, and from then on as GenStage's consumers do.
    fn auto(&mut self, name: &'static str, options: &SubscribeOptions) -> Seen<E> {
        let window = Window::new(options);
        self.try_subscribe(name, options).unwrap();
        self.subscriptions.last_mut().unwrap().2 = Some(window);
        self.ask(name, options.max())
    }

    /// Subscribes, and returns the refusal.
    fn refused(&mut self, name: &'static str, options: &SubscribeOptions) -> SubscribeError {
        let reason = self.try_subscribe(name, options).unwrap_err();
        assert_eq!(self.settle(), seen(), "a refusal changes nothing");
        reason.source().unwrap().downcast_ref::<SubscribeError>().unwrap().clone()
    }

    fn try_subscribe(
        &mut self,
        name: &'static str,
        options: &SubscribeOptions,
    ) -> Result<(), ExitReason> {
        let known = self.stages.iter().position(|other| *other == name);
        let stage = known.unwrap_or_else(|| {
            self.stages.push(name);
            self.stages.len() - 1
        });
        self.made += 1;
        let id = SubscriptionId::new(self.made);
        self.outlet.subscribe(Subscriber::new(id, StageId::new(stage as u64), options))?;
        self.subscriptions.push((name, id, None));
        Ok(())
    }

    fn ask(&mut self, name: &str, demand: usize) -> Seen<E> {
        self.outlet.ask(self.id(name), demand, &mut self.out);
        self.settle()
    }

    fn cancel(&mut self, name: &str) -> Seen<E> {
        let id = self.id(name);
        self.subscriptions.retain(|(_, other, _)| *other != id);
        self.outlet.cancel(id, &mut self.out);
        self.settle()
    }

    fn emit(&mut self, events: impl IntoIterator<Item = E>) -> Seen<E> {
        self.outlet.emit(&mut events.into_iter().collect(), &mut self.out);
        self.settle()
    }

    /// Puts a marker behind everything that the stage holds.
    fn mark(&mut self, marker: u64) -> Seen<E> {
        self.outlet.info(Marker::new(marker));
        self.settle()
    }

    fn buffered(&self) -> usize {
        self.outlet.buffered()
    }

    fn queued(&self) -> usize {
        self.dispatcher.queued()
    }

    fn outstanding(&self, name: &str) -> usize {
        self.dispatcher.outstanding(self.id(name))
    }

    /// The warnings since the last call.
    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn id(&self, name: &str) -> SubscriptionId {
        self.subscriptions.iter().find(|(other, ..)| *other == name).unwrap().1
    }

    /// Delivers what can be delivered and asks the source, until nothing is left to do.
    fn settle(&mut self) -> Seen<E> {
        let mut seen = seen();
        let mut asks = VecDeque::new();
        loop {
            self.outlet.deliver(&mut self.out);
            self.deliver(&mut seen, &mut asks);
            let demand = self.outlet.new_demand();
            if demand > 0 {
                seen.demand.push(demand);
                let mut events = (self.source)(demand).into();
                self.outlet.emit(&mut events, &mut self.out);
                self.deliver(&mut seen, &mut asks);
            } else if let Some((id, demand)) = asks.pop_front() {
                self.outlet.ask(id, demand, &mut self.out);
            } else {
                return seen;
            }
        }
    }

    fn deliver(&mut self, seen: &mut Seen<E>, asks: &mut VecDeque<(SubscriptionId, usize)>) {
        let (filtered, unroutable) = self.out.take_discarded();
        seen.discarded.0 += filtered;
        seen.discarded.1 += unroutable;
        self.warnings.extend(self.out.take_warnings().into_iter().map(String::from));
        for delivery in self.out.drain() {
            let (to, events) = match delivery {
                Delivery::Events { to, events } => (to, events),
                Delivery::Info(marker) => {
                    seen.fired.push(marker);
                    continue;
                }
            };
            let known = self.subscriptions.iter_mut().find(|(_, id, _)| *id == to);
            let (name, _, window) = known.expect("only subscribers are sent anything");
            if let Some(window) = window {
                let mut batch = window.receive(events.len());
                while let Some(chunk) = window.next_chunk(&mut batch) {
                    asks.extend((chunk.ask > 0).then_some((to, chunk.ask)));
                }
            }
            seen.got.entry(name).or_default().push(events);
        }
    }
}

/// A dispatcher that the case can inspect while the ledger owns it.
struct Shared<E>(Arc<Mutex<dyn Dispatcher<E>>>);

impl<E> Clone for Shared<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: 'static> Dispatcher<E> for Shared<E> {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.0.lock().subscribe(subscriber)
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>) {
        self.0.lock().cancel(id, out);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        self.0.lock().ask(id, demand, out);
    }

    fn unmet(&self) -> usize {
        self.0.lock().unmet()
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        self.0.lock().dispatch(events, out);
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<E>) {
        self.0.lock().info(marker, out);
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.0.lock().outstanding(id)
    }

    fn queued(&self) -> usize {
        self.0.lock().queued()
    }
}
