//! The sending half of a stage: its dispatcher, its buffer, and the ledger between demand and
//! events. Pure.

use std::collections::VecDeque;

use crate::{
    buffer::Buffer,
    dispatcher::{Deliveries, Dispatcher, Marker, Subscriber},
    exit::ExitReason,
    subscription::SubscriptionId,
};

/// Whether a producer's demand is acted upon. GenStage's modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DemandMode {
    /// Demand goes to the producer, and events to the consumers, as they come.
    #[default]
    Forward,
    /// Demand and events are kept until the mode is `Forward` again: the way to subscribe all
    /// consumers before the first event flows.
    Accumulate,
}

/// What happens to events while nobody is subscribed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsubscribed {
    /// They wait in the buffer for whoever subscribes next. The default, and GenStage's way.
    #[default]
    Buffer,
    /// They are discarded, and counted.
    Discard,
}

/// Where a stage's events leave it.
///
/// Three numbers are kept: the demand that the dispatcher could serve now, the events in the
/// buffer, and what is *owed*: demand that was handed to the producer and not yet answered by
/// events. After every change, buffered events are delivered as far as there is demand, oldest
/// first, and only demand beyond what is owed is handed out. A subscriber that leaves takes its
/// demand along; what the producer still owes goes to whoever asks next.
pub(crate) struct Outlet<E> {
    dispatcher: Box<dyn Dispatcher<E>>,
    buffer: Buffer<E>,
    owed: usize,
    mode: DemandMode,
    /// Demand that came while accumulating, to be handed out one by one.
    recorded: VecDeque<usize>,
    unsubscribed: Unsubscribed,
    subscribers: usize,
    /// How many events may be delivered now, whatever the demand: all, unless the stage is paused or
    /// has a rate limit.
    allowance: usize,
}

/// What became of an emission, as far as it is not in the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// The dispatcher has taken them.
    pub(crate) dispatched: usize,
    /// Discarded: there was no room in the buffer.
    pub(crate) overflow: usize,
    /// Discarded: nobody was subscribed, and the stage does not keep events for later.
    pub(crate) unsubscribed: usize,
}

impl<E: 'static> Outlet<E> {
    pub(crate) fn new(
        dispatcher: Box<dyn Dispatcher<E>>,
        buffer: Buffer<E>,
        mode: DemandMode,
        unsubscribed: Unsubscribed,
    ) -> Self {
        Self {
            dispatcher,
            buffer,
            owed: 0,
            mode,
            recorded: VecDeque::new(),
            unsubscribed,
            subscribers: 0,
            allowance: usize::MAX,
        }
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
    }

    pub(crate) fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        self.dispatcher.ask(id, demand, out);
        if self.mode == DemandMode::Accumulate {
            self.record();
        }
    }

    /// Takes what a callback emitted: to the subscribers, the rest to the buffer. Empties `events`.
    pub(crate) fn emit(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) -> Emitted {
        let mut emitted = Emitted::default();
        if events.is_empty() {
            return emitted;
        }
        self.owed = self.owed.saturating_sub(events.len());
        let forward = self.mode == DemandMode::Forward;
        if forward && self.buffer.is_empty() {
            let mut later = events.split_off(events.len().min(self.allowance));
            let before = events.len();
            self.dispatcher.dispatch(events, out);
            emitted.dispatched = before - events.len();
            self.spend(emitted.dispatched);
            events.append(&mut later);
        }
        if self.subscribers == 0 && self.unsubscribed == Unsubscribed::Discard {
            emitted.unsubscribed = events.len();
            events.clear();
        }
        if !events.is_empty() {
            emitted.overflow = self.buffer.store(events);
            if !forward {
                self.buffer.split();
            }
        }
        emitted
    }

    /// Puts a marker behind everything that is here.
    pub(crate) fn info(&mut self, marker: Marker) {
        self.buffer.mark(marker);
    }

    /// Delivers buffered events as far as there is demand, and markers that nothing precedes any
    /// more. Returns how many events were taken from the buffer.
    pub(crate) fn deliver(&mut self, out: &mut Deliveries<E>) -> usize {
        let mut delivered = 0;
        loop {
            while let Some(marker) = self.buffer.due() {
                self.dispatcher.info(marker, out);
            }
            if self.buffer.is_empty() || self.unmet() == 0 {
                return delivered;
            }
            let taken = self.buffer.take(self.allowance, |run| self.dispatcher.dispatch(run, out));
            if taken == 0 {
                return delivered;
            }
            self.spend(taken);
            delivered += taken;
        }
    }

    fn spend(&mut self, events: usize) {
        if self.allowance != usize::MAX {
            self.allowance -= events;
        }
    }

    /// Demand that is new to the producer, which owes it from now on; 0 for none. To be called until
    /// there is none: demands that came while accumulating are handed out one at a time.
    pub(crate) fn new_demand(&mut self) -> usize {
        if self.mode == DemandMode::Accumulate {
            self.record();
            return 0;
        }
        if let Some(demand) = self.recorded.pop_front() {
            return demand;
        }
        let new = self.unmet().saturating_sub(self.owed);
        self.owed += new;
        new
    }

    /// What is asked for now and would not be met by what is here or owed, is recorded.
    fn record(&mut self) {
        let coming = self.buffer.len() + self.owed;
        let new = self.dispatcher.unmet().saturating_sub(coming);
        if new > 0 {
            self.owed += new;
            self.recorded.push_back(new);
        }
    }

    pub(crate) fn set_mode(&mut self, mode: DemandMode) {
        self.mode = mode;
    }

    pub(crate) fn mode(&self) -> DemandMode {
        self.mode
    }

    /// How many events may be delivered until this is called again; `usize::MAX` for all.
    pub(crate) fn allow(&mut self, events: usize) {
        self.allowance = events;
    }

    /// The demand that could be served now.
    pub(crate) fn unmet(&self) -> usize {
        match self.mode {
            DemandMode::Forward => self.dispatcher.unmet().min(self.allowance),
            DemandMode::Accumulate => 0,
        }
    }

    /// Demand the producer was told of and has not answered.
    pub(crate) fn owed(&self) -> usize {
        if self.mode == DemandMode::Accumulate { 0 } else { self.owed }
    }

    /// Events in the buffer.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Events that have not left yet, the dispatcher's own queues included.
    pub(crate) fn held(&self) -> usize {
        self.buffer.len() + self.dispatcher.queued()
    }
}

impl<E> std::fmt::Debug for Outlet<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet")
            .field("buffered", &self.buffer.len())
            .field("owed", &self.owed)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
