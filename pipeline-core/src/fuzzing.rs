//! Thin entrances to private code, for the fuzz targets of this project.
//!
//! Not a part of the public API: anything here changes or disappears without notice.

use std::{
    collections::VecDeque,
    pin::pin,
    task::{Context, Poll, Waker},
};

use crate::{
    dispatcher::{Deliveries, Dispatcher, Marker, Subscriber},
    exit::ExitReason,
    stage::{
        BufferKeep, DemandMode, Emitter, Producer, WhenUnsubscribed,
        buffer::Buffer,
        demand::{Slots, Window},
        outlet::{Emitted, Outlet},
    },
    subscription::{SubscribeOptions, SubscriptionId},
};

/// The answer of a producer to a demand: the events, and whether it has finished.
///
/// # Errors
///
/// The reason for which the producer ends.
///
/// # Panics
///
/// If the producer waits.
pub fn demand<P: Producer>(
    producer: &mut P,
    events: usize,
) -> Result<(Vec<P::Event>, bool), ExitReason> {
    let mut staged = VecDeque::new();
    let mut emitter = Emitter::new(&mut staged, events);
    let mut context = Context::from_waker(Waker::noop());
    let answered = pin!(producer.handle_demand(events, &mut emitter)).poll(&mut context);
    let Poll::Ready(answer) = answered else { unreachable!("the producer waits") };
    answer?;
    let finishes = emitter.finishes();
    Ok((staged.into(), finishes))
}

/// A part of a received message, and the demand that its handling frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// How many events it has.
    pub size: usize,
    /// How many of them were not asked for.
    pub excess: usize,
    /// The demand to send after them.
    pub ask: usize,
}

/// The demand of a consumer.
#[derive(Debug)]
pub struct DemandWindow(Window);

impl DemandWindow {
    /// The window of a subscription that has just asked for its first events.
    #[must_use]
    pub fn new(options: &SubscribeOptions) -> Self {
        Self(Window::new(options))
    }

    /// Handles a message of `events` events.
    pub fn handle(&mut self, events: usize) -> Vec<Chunk> {
        let mut batch = self.0.receive(events);
        let chunks = std::iter::from_fn(|| self.0.next_chunk(&mut batch));
        chunks
            .map(|chunk| Chunk { size: chunk.size, excess: chunk.excess, ask: chunk.ask })
            .collect()
    }
}

/// The slots of a consumer supervisor.
#[derive(Debug)]
pub struct WorkerSlots(Slots);

impl WorkerSlots {
    /// The slots of a subscription.
    #[must_use]
    pub fn new(options: &SubscribeOptions) -> Self {
        Self(Slots::new(options))
    }

    /// Frees a slot, and returns the demand to send.
    pub fn free(&mut self) -> usize {
        self.0.free();
        self.0.ask()
    }

    /// How many slots may stay taken without delaying demand for the others.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.0.spare()
    }
}

/// The buffer of a stage.
#[derive(Debug)]
pub struct EventBuffer(Buffer<u32>);

impl EventBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new(limit: usize, keep: BufferKeep) -> Self {
        Self(Buffer::new(limit, keep))
    }

    /// The number of events.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a target needs the number alone")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether half of it is free.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.has_room()
    }

    /// Stores events. Returns how many were discarded.
    pub fn store(&mut self, events: &[u32]) -> usize {
        self.0.store(&mut events.iter().copied().collect())
    }

    /// Puts a marker behind the events.
    pub fn mark(&mut self, marker: Marker) {
        self.0.mark(marker);
    }

    /// Ends a message behind the events.
    pub fn split(&mut self) {
        self.0.split();
    }

    /// The next marker that is no longer preceded by events.
    pub fn due(&mut self) -> Option<Marker> {
        self.0.due()
    }

    /// Offers up to `limit` events, of which `taken` are taken.
    pub fn take(&mut self, limit: usize, taken: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut offered, mut out) = (Vec::new(), Vec::new());
        self.0.take(limit, |run| {
            offered = run.iter().copied().collect();
            out = run.drain(..taken.min(run.len())).collect();
        });
        (offered, out)
    }
}

/// How many events of an emission were taken by the dispatcher, did not fit into the buffer, and had no
/// subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Taken by the dispatcher.
    pub dispatched: usize,
    /// Discarded because the buffer was full.
    pub overflow: usize,
    /// Discarded because there were no subscribers.
    pub unsubscribed: usize,
}

/// The sending half of a stage.
#[derive(Debug)]
pub struct StageOutlet(Outlet<u32>);

impl StageOutlet {
    /// An outlet without subscribers.
    #[must_use]
    pub fn new(
        dispatcher: Box<dyn Dispatcher<u32>>,
        limit: usize,
        keep: BufferKeep,
        mode: DemandMode,
        when_unsubscribed: WhenUnsubscribed,
    ) -> Self {
        Self(Outlet::new(dispatcher, Buffer::new(limit, keep), mode, when_unsubscribed))
    }

    /// Adds a subscriber.
    ///
    /// # Errors
    ///
    /// The dispatcher refuses it.
    pub fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.0.subscribe(subscriber)
    }

    /// Removes a subscriber.
    pub fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<u32>) {
        self.0.cancel(id, out);
    }

    /// Adds demand of a subscriber.
    pub fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<u32>) {
        self.0.ask(id, demand, out);
    }

    /// Emits events.
    pub fn emit(&mut self, events: &[u32], out: &mut Deliveries<u32>) -> Emission {
        let mut events = events.iter().copied().collect();
        let Emitted { dispatched, overflow, unsubscribed } = self.0.emit(&mut events, out);
        Emission { dispatched, overflow, unsubscribed }
    }

    /// Puts a marker behind the events.
    pub fn mark(&mut self, marker: Marker) {
        self.0.info(marker);
    }

    /// Delivers buffered events. Returns how many left the buffer.
    pub fn deliver(&mut self, out: &mut Deliveries<u32>) -> usize {
        self.0.deliver(out)
    }

    /// New demand for the producer.
    pub fn new_demand(&mut self) -> usize {
        self.0.new_demand()
    }

    /// Changes the mode.
    pub fn set_mode(&mut self, mode: DemandMode) {
        self.0.set_mode(mode);
    }

    /// Sets how many events may be delivered.
    pub fn allow(&mut self, events: usize) {
        self.0.allow(events);
    }

    /// Stops passing demand to the producer.
    pub fn finish(&mut self) {
        self.0.finish();
    }

    /// The demand that the producer has received and not answered.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.0.owed()
    }

    /// Whether recorded arrivals are still to be replayed.
    #[must_use]
    pub fn replays(&self) -> bool {
        self.0.replays()
    }

    /// How many events are in the buffer.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.0.buffered()
    }

    /// How many events have not left.
    #[must_use]
    pub fn undelivered(&self) -> usize {
        self.0.undelivered()
    }

    /// Whether there are neither events nor markers to deliver.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
