//! The sending half of a stage: its dispatcher, its buffer, and the ledger between demand and
//! events. Pure.

use std::collections::VecDeque;

use crate::{
    buffer::Buffer,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    exit::ExitReason,
    subscription::SubscriptionId,
};

/// Where a stage's events leave it.
///
/// Three numbers are kept: the demand that the dispatcher could serve now, the events in the
/// buffer, and what is *owed*: demand that was handed to the producer and not yet answered by
/// events. After every change, buffered events are delivered as far as there is demand, oldest
/// first, and only demand beyond what is owed is handed out. A subscriber that leaves takes its
/// demand along; what the producer still owes goes to whoever asks next.
#[derive(Debug)]
pub(crate) struct Outlet<E, D> {
    dispatcher: D,
    buffer: Buffer<E>,
    owed: usize,
}

impl<E, D: Dispatcher<E>> Outlet<E, D> {
    pub(crate) fn new(dispatcher: D, buffer: Buffer<E>) -> Self {
        Self { dispatcher, buffer, owed: 0 }
    }

    pub(crate) fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.dispatcher.subscribe(subscriber)
    }

    pub(crate) fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>) {
        self.dispatcher.cancel(id, out);
    }

    pub(crate) fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        self.dispatcher.ask(id, demand, out);
    }

    /// Takes what a callback emitted: to the subscribers, the rest to the buffer. Empties `events`.
    /// Returns how many events were discarded because the buffer was full.
    pub(crate) fn emit(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) -> usize {
        self.owed = self.owed.saturating_sub(events.len());
        if self.buffer.is_empty() {
            self.dispatcher.dispatch(events, out);
        }
        if events.is_empty() { 0 } else { self.buffer.store(events) }
    }

    /// Delivers buffered events as far as there is demand. Returns the demand that is new to the
    /// producer, which owes it from now on.
    pub(crate) fn settle(&mut self, out: &mut Deliveries<E>) -> usize {
        while !self.buffer.is_empty() && self.dispatcher.unmet() > 0 {
            let before = self.buffer.len();
            self.dispatcher.dispatch(self.buffer.events(), out);
            if self.buffer.len() == before {
                break;
            }
        }
        let new = self.dispatcher.unmet().saturating_sub(self.owed);
        self.owed += new;
        new
    }

    /// Demand the producer was told of and has not answered.
    pub(crate) fn owed(&self) -> usize {
        self.owed
    }

    /// Events waiting for demand.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }
}
