//! The sending half of a stage: its dispatcher, its buffer, and the accounting between demand and
//! events. Pure.

use std::{
    any::Any,
    borrow::Cow,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::{
    dispatcher::{Deliveries, Dispatcher, Marker, Refusal, Subscriber},
    exit::ExitReason,
    stage::buffer::Buffer,
    subscription::{SubscribeOptions, SubscriptionId},
};

/// Whether a producer receives its demand. These are GenStage's modes.
///
/// ```
/// use pipeline_core::{
///     Graph,
///     dispatcher::BroadcastDispatcher,
///     source::from_iter,
///     stage::{DemandMode, Stage},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("prices");
/// let prices = graph.producer_with(
///     Stage::new(from_iter([101, 99, 105]))
///         .dispatcher(BroadcastDispatcher::new)
///         .demand_mode(DemandMode::Accumulate),
/// );
/// let log = graph.consumer("log", for_each(async |price: i32| println!("{price}")));
/// let mut pipeline = graph.start()?;
///
/// log.subscribe(&prices, SubscribeOptions::new()).await?;
/// assert_eq!(prices.demand_mode().await?, DemandMode::Accumulate);
///
/// // All consumers that need the first price are subscribed.
/// prices.set_demand_mode(DemandMode::Forward);
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DemandMode {
    /// Demand goes to the producer, and events to the consumers, as they arrive.
    #[default]
    Forward,
    /// Demand and events are kept until the mode is `Forward` again. This allows all consumers to
    /// subscribe before the first event flows.
    Accumulate,
}

/// What happens to events while there are no subscribers.
///
/// ```
/// use pipeline_core::{
///     Graph,
///     stage::{Stage, WhenUnsubscribed},
/// };
/// # use pipeline_core::{
/// #     ExitReason,
/// #     stage::{Caller, Emitter, HandleCall, Producer},
/// # };
/// # struct Sensor;
/// # struct Reading(u64);
/// # impl Producer for Sensor {
/// #     type Event = u64;
/// #     async fn handle_demand(
/// #         &mut self,
/// #         _: usize,
/// #         _: &mut Emitter<'_, u64>,
/// #     ) -> Result<(), ExitReason> {
/// #         Ok(())
/// #     }
/// # }
/// # impl HandleCall<Reading, u64> for Sensor {
/// #     type Reply = ();
/// #     async fn handle_call(
/// #         &mut self,
/// #         Reading(value): Reading,
/// #         caller: &mut Caller<()>,
/// #         out: &mut Emitter<'_, u64>,
/// #     ) -> Result<(), ExitReason> {
/// #         out.emit(value);
/// #         caller.reply(());
/// #         Ok(())
/// #     }
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut graph = Graph::new("weather");
/// let sensor = Stage::new(Sensor).when_unsubscribed(WhenUnsubscribed::Discard);
/// let sensor = graph.producer_with(sensor);
/// let pipeline = graph.start()?;
///
/// // It emits a reading that is of no use later.
/// sensor.call(Reading(21)).await?;
/// assert_eq!(sensor.estimate_buffered_count().await?, 0);
/// assert_eq!(pipeline.snapshot().stages[0].discarded, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenUnsubscribed {
    /// Events wait in the buffer for the next subscriber. The default, as in GenStage.
    #[default]
    Buffer,
    /// Events are discarded and counted.
    Discard,
}

/// The part of a stage that its events leave through.
///
/// It tracks three numbers: the demand that the dispatcher could serve now, the events in the
/// buffer, and the *owed* events: demand that was passed to the producer and not yet answered.
/// After every change, buffered events are delivered as far as there is demand, oldest first, and
/// only demand beyond the owed events is passed to the producer. A subscriber that leaves withdraws
/// its demand; the events that the producer still owes go to the next subscriber that asks.
pub(crate) struct Outlet<E> {
    dispatcher: Box<dyn Dispatcher<E>>,
    buffer: Buffer<E>,
    owed: usize,
    mode: DemandMode,
    /// Arrivals while accumulating, to be replayed in the same order. Its length is bounded by the
    /// events in it, the markers and [`DEMANDS`].
    recorded: VecDeque<Recorded>,
    /// How many of these are demands.
    demands: usize,
    /// The recorded events. Together with those in the buffer, they do not exceed its capacity.
    withheld: VecDeque<E>,
    /// Whether the stage finishes: the producer receives no more demand.
    finishes: bool,
    when_unsubscribed: WhenUnsubscribed,
    subscribers: usize,
    /// The events that were gone after a panic of the dispatcher.
    lost: usize,
    /// How many events may be delivered now, regardless of demand: all, unless the stage is paused
    /// or has a rate limit.
    allowance: usize,
}

/// An arrival while the producer accumulated.
enum Recorded {
    /// Demand to be passed to the producer.
    Demand(usize),
    /// A number of withheld events, at least one, that a callback emitted.
    Events(usize),
    /// A marker behind events.
    Marker(Marker),
}

/// How many demands keep their place among the events. The producer receives the others as one sum,
/// behind everything that was recorded.
const DEMANDS: usize = 1024;

/// The result of an emission, except for the events in the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// Taken by the dispatcher.
    pub(crate) dispatched: usize,
    /// Discarded because the buffer was full.
    pub(crate) overflow: usize,
    /// Discarded because there were no subscribers and the stage does not keep events for later.
    pub(crate) unsubscribed: usize,
}

impl<E: 'static> Outlet<E> {
    pub(crate) fn new(
        dispatcher: Box<dyn Dispatcher<E>>,
        buffer: Buffer<E>,
        mode: DemandMode,
        when_unsubscribed: WhenUnsubscribed,
    ) -> Self {
        Self {
            dispatcher,
            buffer,
            owed: 0,
            mode,
            recorded: VecDeque::new(),
            demands: 0,
            withheld: VecDeque::new(),
            finishes: false,
            when_unsubscribed,
            subscribers: 0,
            lost: 0,
            allowance: usize::MAX,
        }
    }

    /// Checks planned subscriptions, and returns warnings.
    pub(crate) fn check(
        &self,
        planned: &[&SubscribeOptions],
    ) -> Result<Vec<Cow<'static, str>>, Refusal> {
        self.dispatcher.check(planned)
    }

    pub(crate) fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.dispatcher.subscribe(subscriber)?;
        self.subscribers += 1;
        Ok(())
    }

    /// Forgets a subscriber that was not refused.
    pub(crate) fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>) {
        self.subscribers -= 1;
        self.dispatcher.cancel(id, out);
        // The subscriber may have been the one that blocked the others.
        self.record();
    }

    pub(crate) fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        self.dispatcher.ask(id, demand, out);
        self.record();
    }

    /// Takes the events that a callback emitted: to the subscribers, the rest to the buffer.
    /// Empties `events`.
    ///
    /// During a replay, the events go before the remaining recorded ones: they answer a demand, or
    /// a marker, that was recorded earlier.
    pub(crate) fn emit(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) -> Emitted {
        let mut emitted = Emitted::default();
        if events.is_empty() {
            return emitted;
        }
        self.owed = self.owed.saturating_sub(events.len());
        let forward = self.mode == DemandMode::Forward;
        if forward && self.buffer.is_empty() && self.allowance > 0 {
            let later = (events.len() > self.allowance).then(|| events.split_off(self.allowance));
            let before = events.len();
            let dispatched = dispatch(&mut *self.dispatcher, events, out);
            emitted.dispatched = before.saturating_sub(events.len());
            self.spend(emitted.dispatched);
            if let Some(mut later) = later {
                events.append(&mut later);
            }
            self.unless_panicked(dispatched);
            if events.is_empty() {
                return emitted;
            }
        }
        if self.subscribers == 0 && self.when_unsubscribed == WhenUnsubscribed::Discard {
            emitted.unsubscribed = events.len();
            self.buffer.discard(events.drain(..));
        }
        if !events.is_empty() {
            emitted.overflow = if forward { self.store(events) } else { self.withhold(events) };
        }
        emitted
    }

    /// Stores emitted events before the remaining recorded ones. Returns how many events were
    /// discarded.
    fn store(&mut self, events: &mut VecDeque<E>) -> usize {
        if self.withheld.is_empty() {
            return self.buffer.store(events);
        }
        let excess = self.buffer.make_room(self.withheld.len(), events);
        let own = excess.oldest.min(events.len());
        self.buffer.discard(events.drain(..own));
        self.drop_oldest(excess.oldest - own);
        self.buffer.store(events);
        excess.discarded
    }

    /// Records events that were emitted while accumulating, in their place among the demands. They
    /// take room in the buffer. Returns how many events were discarded.
    fn withhold(&mut self, events: &mut VecDeque<E>) -> usize {
        let excess = self.buffer.make_room(self.withheld.len(), events);
        let older = excess.oldest.min(self.withheld.len());
        self.drop_oldest(older);
        self.buffer.discard(events.drain(..excess.oldest - older));
        if !events.is_empty() {
            self.recorded.push_back(Recorded::Events(events.len()));
            self.withheld.append(events);
        }
        excess.discarded
    }

    /// Drops the oldest withheld events.
    fn drop_oldest(&mut self, count: usize) {
        self.buffer.discard(self.withheld.drain(..count));
        let (mut left, mut place) = (count, 0);
        while left > 0
            && let Some(recorded) = self.recorded.get_mut(place)
        {
            match recorded {
                Recorded::Events(events) if *events <= left => {
                    left -= *events;
                    self.recorded.remove(place);
                }
                Recorded::Events(events) => {
                    *events -= left;
                    return;
                }
                Recorded::Demand(_) | Recorded::Marker(_) => place += 1,
            }
        }
    }

    /// Continues the replay of the recorded arrivals, up to the next demand.
    fn replay(&mut self) {
        while let Some(recorded) = self.recorded.pop_front() {
            match recorded {
                Recorded::Demand(_) => {
                    self.recorded.push_front(recorded);
                    return;
                }
                Recorded::Events(events) => {
                    // Their room is already reserved.
                    self.buffer.store(&mut self.withheld.drain(..events).collect());
                    self.buffer.split();
                }
                Recorded::Marker(marker) => self.buffer.mark(marker),
            }
        }
    }

    /// Puts a marker behind all events in the stage.
    pub(crate) fn info(&mut self, marker: Marker) {
        if self.withholds() {
            self.recorded.push_back(Recorded::Marker(marker));
        } else {
            self.buffer.mark(marker);
        }
    }

    /// Delivers buffered events as far as there is demand, and markers that are no longer preceded
    /// by events. Returns how many events were taken from the buffer.
    pub(crate) fn deliver(&mut self, out: &mut Deliveries<E>) -> usize {
        let mut delivered = 0;
        if self.mode == DemandMode::Forward && !self.recorded.is_empty() {
            self.replay();
        }
        loop {
            while let Some(marker) = self.buffer.due() {
                self.dispatcher.info(marker, out);
            }
            if self.buffer.is_empty() || self.unmet() == 0 {
                return delivered;
            }
            let mut dispatched = Ok(());
            let taken = self.buffer.take(self.allowance, |run| {
                dispatched = dispatch(&mut *self.dispatcher, run, out);
            });
            self.unless_panicked(dispatched);
            if taken == 0 {
                return delivered;
            }
            self.spend(taken);
            delivered += taken;
        }
    }

    /// Continues a panic of the dispatcher, after the events that it cost are counted.
    fn unless_panicked(&mut self, dispatched: Result<(), Panicked>) {
        if let Err(Panicked { payload, lost }) = dispatched {
            self.lost += lost;
            resume_unwind(payload);
        }
    }

    /// Whether demand that came while accumulating is still to be passed to the producer. Until
    /// then, no other callback of the stage may emit, except for a marker that was recorded before
    /// the demand.
    pub(crate) fn replays(&self) -> bool {
        self.mode == DemandMode::Forward && !self.recorded.is_empty()
    }

    fn spend(&mut self, events: usize) {
        if self.allowance != usize::MAX {
            self.allowance -= events;
        }
    }

    /// New demand for the producer, which then owes it; 0 for none. To be called until it returns
    /// 0: demands that came while accumulating are returned one at a time.
    pub(crate) fn new_demand(&mut self) -> usize {
        if self.mode == DemandMode::Accumulate {
            return 0;
        }
        self.replay();
        if let Some(Recorded::Demand(demand)) = self.recorded.pop_front() {
            self.demands -= 1;
            return demand;
        }
        let new = self.unmet().saturating_sub(self.owed);
        self.owed += new;
        new
    }

    /// Stops passing demand to the producer. Recorded events no longer wait for it.
    pub(crate) fn finish(&mut self) {
        self.finishes = true;
        self.recorded.retain(|recorded| !matches!(recorded, Recorded::Demand(_)));
        self.demands = 0;
    }

    /// Records new demand beyond the events that are buffered or owed, while the producer
    /// accumulates.
    fn record(&mut self) {
        if self.mode == DemandMode::Forward || self.finishes || self.demands == DEMANDS {
            return;
        }
        let coming = self.buffered().saturating_add(self.owed);
        let new = self.dispatcher.unmet().saturating_sub(coming);
        if new > 0 {
            self.owed += new;
            self.demands += 1;
            self.recorded.push_back(Recorded::Demand(new));
        }
    }

    pub(crate) fn set_mode(&mut self, mode: DemandMode) {
        self.mode = mode;
    }

    pub(crate) fn mode(&self) -> DemandMode {
        self.mode
    }

    /// Sets how many events may be delivered until the next call; `usize::MAX` for all.
    pub(crate) fn allow(&mut self, events: usize) {
        self.allowance = events;
    }

    /// The demand of all consumers, whether the allowance serves it or not.
    pub(crate) fn demand(&self) -> usize {
        self.dispatcher.unmet()
    }

    /// Whether consumers ask for more than the allowance serves.
    pub(crate) fn is_short(&self) -> bool {
        self.mode == DemandMode::Forward && self.allowance < self.dispatcher.unmet()
    }

    /// The demand that could be served now.
    pub(crate) fn unmet(&self) -> usize {
        match self.mode {
            DemandMode::Forward => self.dispatcher.unmet().min(self.allowance),
            DemandMode::Accumulate => 0,
        }
    }

    /// Demand that was passed to the producer and not answered.
    pub(crate) fn owed(&self) -> usize {
        if self.mode == DemandMode::Accumulate { 0 } else { self.owed }
    }

    /// How many of the owed events the producer is to deliver now. Demand of a cancelled
    /// subscriber, or demand held back by a rate limit, is no reason to take events out of their
    /// source.
    pub(crate) fn wanted(&self) -> usize {
        match self.owed() {
            0 => 0,
            owed => owed.min(self.unmet()),
        }
    }

    /// The demand that a callback may answer before recorded arrivals are replayed: what the producer
    /// has received, as far as its answer has room behind recorded events.
    pub(crate) fn answerable(&self) -> usize {
        let recorded = self.recorded.iter().map(|recorded| match recorded {
            Recorded::Demand(demand) => *demand,
            Recorded::Events(_) | Recorded::Marker(_) => 0,
        });
        let received = self.wanted().saturating_sub(recorded.sum());
        if self.withholds() {
            received.min(self.buffer.free(self.withheld.len()))
        } else {
            received
        }
    }

    /// Whether there are neither events nor markers to deliver.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && !self.withholds() && !self.buffer.has_markers()
    }

    /// Whether anything but demand is recorded.
    pub(crate) fn withholds(&self) -> bool {
        self.recorded.len() > self.demands
    }

    /// Events in the buffer.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len() + self.withheld.len()
    }

    /// Whether half of the buffer is free.
    pub(crate) fn has_room(&self) -> bool {
        self.buffer.has_room()
    }

    /// Events that have not left yet, including the dispatcher's own queues.
    pub(crate) fn undelivered(&self) -> usize {
        self.retained() + self.dispatcher.queued()
    }

    /// The same without the dispatcher's queues, for a dispatcher that panics when it counts them.
    pub(crate) fn retained(&self) -> usize {
        self.buffered() + self.lost
    }
}

/// A panic of a dispatcher, and the number of events that it neither sent nor kept.
struct Panicked {
    payload: Box<dyn Any + Send>,
    lost: usize,
}

/// Calls the dispatcher. A panic is returned, so that its caller can put all events in their places.
fn dispatch<E: 'static>(
    dispatcher: &mut dyn Dispatcher<E>,
    events: &mut VecDeque<E>,
    out: &mut Deliveries<E>,
) -> Result<(), Panicked> {
    let (mut held, sent) = (events.len(), out.len());
    let dispatching = || {
        held += dispatcher.queued();
        dispatcher.dispatch(events, out);
    };
    catch_unwind(AssertUnwindSafe(dispatching)).map_err(|payload| {
        let queued = catch_unwind(AssertUnwindSafe(|| dispatcher.queued())).unwrap_or_default();
        let left = events.len() + queued + out.events_from(sent);
        Panicked { payload, lost: held.saturating_sub(left) }
    })
}

impl<E> std::fmt::Debug for Outlet<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet")
            .field("buffered", &(self.buffer.len() + self.withheld.len()))
            .field("owed", &self.owed)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatcher::{Delivery, DemandDispatcher},
        stage::BufferKeep,
        subscription::{StageId, SubscribeOptions},
    };
    use proptest::prelude::*;

    /// One operation on an outlet.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Subscribe,
        /// One of the subscribers leaves.
        Cancel(usize),
        Ask(usize, usize),
        Emit(u32),
        Mark,
        Mode(DemandMode),
        /// Limits the number of events that may be delivered.
        Allow(Option<usize>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => Just(Step::Subscribe),
            1 => (0usize..4).prop_map(Step::Cancel),
            5 => (0usize..4, 1usize..6).prop_map(|(who, demand)| Step::Ask(who, demand)),
            5 => (1u32..7).prop_map(Step::Emit),
            2 => Just(Step::Mark),
            1 => prop_oneof![Just(DemandMode::Forward), Just(DemandMode::Accumulate)].prop_map(Step::Mode),
            1 => prop::option::of(0usize..4).prop_map(Step::Allow),
        ];
        prop::collection::vec(step, 1..60)
    }

    /// A model of an outlet from outside: every number is counted from the events that went in and
    /// out.
    struct Model {
        outlet: Outlet<u32>,
        out: Deliveries<u32>,
        /// The subscribers, with their outstanding demand.
        subscribers: Vec<(SubscriptionId, usize, Option<u32>)>,
        made: u64,
        emitted: u32,
        delivered: usize,
        discarded: usize,
        /// Demand that was passed to the producer, or recorded for it, and not answered.
        owed: usize,
        /// Demand that came while accumulating.
        recorded: VecDeque<usize>,
        /// The events and markers that have not left, in order.
        inside: VecDeque<Result<u32, Marker>>,
        allowance: usize,
        /// How many events answer each recorded demand.
        answers: u32,
    }

    impl Model {
        fn new(limit: usize, keep: BufferKeep) -> Self {
            let outlet = Outlet::new(
                Box::new(DemandDispatcher::new()),
                Buffer::new(limit, keep),
                DemandMode::Forward,
                WhenUnsubscribed::Buffer,
            );
            Self {
                outlet,
                out: Deliveries::new(),
                subscribers: vec![],
                made: 0,
                emitted: 0,
                delivered: 0,
                discarded: 0,
                owed: 0,
                recorded: VecDeque::new(),
                inside: VecDeque::new(),
                allowance: usize::MAX,
                answers: 0,
            }
        }

        fn wanted(&self) -> usize {
            self.subscribers.iter().map(|(_, outstanding, _)| outstanding).sum()
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Subscribe => {
                    self.made += 1;
                    let (id, options) = (SubscriptionId::new(self.made), SubscribeOptions::new());
                    let subscriber = Subscriber::new(id, StageId::new(self.made), &options);
                    self.outlet.subscribe(subscriber).unwrap();
                    self.subscribers.push((id, 0, None));
                }
                Step::Cancel(who) if !self.subscribers.is_empty() => {
                    let (id, ..) = self.subscribers.remove(who % self.subscribers.len());
                    self.outlet.cancel(id, &mut self.out);
                    self.record();
                }
                Step::Ask(who, demand) if !self.subscribers.is_empty() => {
                    let who = who % self.subscribers.len();
                    self.subscribers[who].1 += demand;
                    self.outlet.ask(self.subscribers[who].0, demand, &mut self.out);
                    self.record();
                }
                Step::Emit(count) => self.emit(count),
                Step::Mark => {
                    self.made += 1;
                    let marker = Marker::new(self.made);
                    self.inside.push_back(Err(marker));
                    self.outlet.info(marker);
                }
                Step::Mode(mode) => self.outlet.set_mode(mode),
                Step::Allow(events) => {
                    self.allowance = events.unwrap_or(usize::MAX);
                    self.outlet.allow(self.allowance);
                }
                Step::Cancel(_) | Step::Ask(..) => {}
            }
            self.settle();
        }

        fn emit(&mut self, count: u32) {
            let mut events: VecDeque<u32> = (self.emitted + 1..=self.emitted + count).collect();
            self.emitted += count;
            self.owed = self.owed.saturating_sub(events.len());
            self.inside.extend(events.iter().map(|event| Ok(*event)));
            let emitted = self.outlet.emit(&mut events, &mut self.out);
            self.discarded += emitted.overflow;
            self.receive();
        }

        /// Does what a stage does after every change.
        fn settle(&mut self) {
            loop {
                self.outlet.deliver(&mut self.out);
                self.receive();
                let demand = self.outlet.new_demand();
                if self.outlet.mode() == DemandMode::Accumulate {
                    assert_eq!(demand, 0, "demand must only be recorded");
                    return;
                }
                match self.recorded.pop_front() {
                    Some(recorded) => {
                        assert_eq!(
                            demand, recorded,
                            "demands must be passed on one by one, in order"
                        );
                        self.emit(self.answers);
                    }
                    None if demand == 0 => return,
                    None => self.owed += demand,
                }
            }
        }

        fn record(&mut self) {
            if self.outlet.mode() == DemandMode::Forward {
                return;
            }
            let new = self.wanted().saturating_sub(self.outlet.buffered() + self.owed);
            if new > 0 {
                self.owed += new;
                self.recorded.push_back(new);
            }
        }

        /// Checks the outgoing messages.
        fn receive(&mut self) {
            for delivery in self.out.drain() {
                match delivery {
                    Delivery::Events { to, events } => {
                        let found = self.subscribers.iter_mut().find(|(id, ..)| *id == to);
                        let (_, outstanding, last) = found.expect("the receiver is subscribed");
                        assert!(events.len() <= *outstanding, "more than was asked for");
                        *outstanding -= events.len();
                        self.delivered += events.len();
                        if self.allowance != usize::MAX {
                            assert!(events.len() <= self.allowance, "more than was allowed");
                            self.allowance -= events.len();
                        }
                        // Answers overtake what was emitted before they were asked for.
                        let events = if self.answers > 0 { vec![] } else { events };
                        for event in events {
                            assert!(
                                *last < Some(event),
                                "events must keep their order on one subscription"
                            );
                            *last = Some(event);
                            // Earlier events have left, or were discarded, and no marker was
                            // overtaken.
                            while let Some(first) = self.inside.pop_front() {
                                let Ok(first) = first else { panic!("overtook a marker") };
                                if first == event {
                                    break;
                                }
                            }
                        }
                    }
                    Delivery::Info(_) if self.answers > 0 => {}
                    Delivery::Info(marker) => {
                        let first = self.inside.iter().position(|entry| *entry == Err(marker));
                        let before = self.inside.drain(..=first.expect("a marker fires once"));
                        let left: Vec<u32> = before.filter_map(Result::ok).collect();
                        assert!(
                            self.discarded >= left.len(),
                            "a marker overtook events that are still here"
                        );
                    }
                }
            }
        }

        /// The invariants whenever the stage waits.
        fn check(&self) {
            let (buffered, forward) =
                (self.outlet.buffered(), self.outlet.mode() == DemandMode::Forward);
            assert_eq!(
                self.emitted as usize,
                self.delivered + buffered + self.discarded,
                "emitted = delivered + buffered + discarded"
            );
            let wanted = self.wanted();
            let servable = if forward { wanted.min(self.allowance) } else { 0 };
            assert!(buffered == 0 || servable == 0, "events wait although there is demand");
            if forward {
                assert!(self.owed >= servable, "demand was not passed to the producer");
                assert_eq!(self.outlet.owed(), self.owed);
            }
        }
    }

    /// An accumulating outlet with a buffer of this size and one subscriber.
    fn accumulating(limit: usize, keep: BufferKeep) -> (Model, SubscriptionId) {
        let mut model = Model::new(limit, keep);
        model.take(Step::Mode(DemandMode::Accumulate));
        model.take(Step::Subscribe);
        let id = model.subscribers[0].0;
        (model, id)
    }

    #[test]
    fn recorded_arrivals_are_bounded_while_the_producer_accumulates() {
        for keep in [BufferKeep::First, BufferKeep::Last] {
            let (mut model, _) = accumulating(10, keep);
            for _ in 0..2 * DEMANDS {
                model.take(Step::Ask(0, 1));
                model.take(Step::Emit(1));
            }
            let outlet = &model.outlet;
            assert_eq!((outlet.withheld.len(), outlet.demands), (10, DEMANDS));
            assert!(outlet.recorded.len() <= DEMANDS + 10);
        }
    }

    #[test]
    fn a_finishing_producer_receives_no_demand_and_events_do_not_wait_for_it() {
        let (mut model, id) = accumulating(10, BufferKeep::Last);
        model.outlet.ask(id, 2, &mut model.out);
        model.outlet.emit(&mut [1, 2, 3].into(), &mut model.out);
        model.outlet.info(Marker::new(7));
        model.outlet.finish();
        model.outlet.ask(id, 1, &mut model.out);
        assert_eq!(model.out.drain().count(), 0, "it accumulates");
        model.outlet.set_mode(DemandMode::Forward);
        assert_eq!(model.outlet.deliver(&mut model.out), 3);
        assert!(matches!(model.out.drain().last(), Some(Delivery::Info(_))));
    }

    proptest! {
        /// Compares the accounting with the counts from outside, for any sequence of steps.
        #[test]
        fn the_accounting_is_exact_for_any_steps(
            limit in 0usize..12, last: bool, steps in steps()
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut model = Model::new(limit, keep);
            for step in steps {
                model.take(step);
                model.check();
            }
        }

        /// The same for a producer that answers the demand recorded while it accumulated.
        #[test]
        fn answers_to_recorded_demand_take_room_like_all_events(
            limit in 0usize..12, last: bool, answers in 1u32..9, steps in steps()
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut model = Model { answers, ..Model::new(limit, keep) };
            for step in steps {
                model.take(step);
                model.check();
                prop_assert!(model.outlet.buffered() <= limit);
            }
        }

        /// A producer that answers demand at once, and consumers that come and go: the producer
        /// never receives more demand than its consumers sent.
        #[test]
        fn no_more_is_asked_of_the_producer_than_was_asked_by_its_consumers(steps in steps()) {
            let mut model = Model::new(1000, BufferKeep::Last);
            let (mut asked, mut handed) = (0, 0);
            for step in steps {
                if let Step::Ask(_, demand) = step && !model.subscribers.is_empty() {
                    asked += demand;
                }
                let before = model.owed;
                let emits = matches!(step, Step::Emit(_));
                model.take(step);
                if !emits {
                    handed += model.owed - before;
                }
                prop_assert!(handed <= asked);
            }
        }
    }
}
