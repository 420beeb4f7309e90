//! A message: an item whose outcome is acknowledged to its source.

use std::{any::Any, fmt, ops, sync::Arc, time::SystemTime};

use super::{
    acknowledge::{Acknowledgement, Acknowledger, NotConfigurable},
    failure::{Failure, FailureKind},
    handling::contained_now,
};
use crate::{stage::Place, timed::TraceContext};

/// An item whose outcome is acknowledged to its source.
///
/// It derefs to its data. Exactly one outcome is acknowledged for each message: when it has been
/// handled, when it has failed, or when it is dropped without either, which is a failure too.
///
/// The semantics are those of `Broadway.Message`.
pub struct Message<T> {
    data: T,
    metadata: Box<Metadata>,
    failure: Option<Failure>,
    batch_mode: BatchMode,
    acknowledgement: Option<Acknowledgement>,
    place: Place,
    /// One value of each type.
    held: Vec<Box<dyn Any + Send + Sync>>,
    is_tried_again: bool,
}

/// What a source knows about a message besides its data.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metadata {
    /// The id of the message in its source.
    pub id: Option<Arc<str>>,
    /// Messages with the same key belong together, and are delivered in order where the source
    /// promises it.
    pub key: Option<Arc<str>>,
    /// Names and values that its sender added.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// When it was added to its source.
    pub enqueued_at: Option<SystemTime>,
    /// How often the source has delivered it, this time included. 0 if the source does not count.
    pub deliveries: u32,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// When the batch of a message is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BatchMode {
    /// When it is full or its time is over.
    #[default]
    Bulk,
    /// Also when the chunk in which the message arrives at its batcher has been added.
    Flush,
}

impl<T> Message<T> {
    /// A message whose outcome this acknowledger receives, with the receipt.
    pub fn new<A: Acknowledger>(data: T, receipt: A::Receipt, acknowledger: &Arc<A>) -> Self {
        Self::with_acknowledgement(data, Some(Acknowledgement::new(receipt, acknowledger)))
    }

    /// A message without an acknowledger, for a source that cannot deliver it again.
    pub fn unacknowledged(data: T) -> Self {
        Self::with_acknowledgement(data, None)
    }

    fn with_acknowledgement(data: T, acknowledgement: Option<Acknowledgement>) -> Self {
        let (metadata, failure, batch_mode, place, held) = Default::default();
        let is_tried_again = false;
        Self { data, metadata, failure, batch_mode, acknowledgement, place, held, is_tried_again }
    }

    /// The same message with this metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        *self.metadata = metadata;
        self
    }

    /// The same message with its data converted. If the conversion fails, the message has failed, and
    /// is acknowledged so.
    pub fn try_map<U>(self, convert: impl FnOnce(T) -> Result<U, Failure>) -> Option<Message<U>> {
        let Self {
            data,
            acknowledgement,
            metadata,
            failure,
            batch_mode,
            place,
            held,
            is_tried_again,
        } = self;
        match convert(data) {
            Ok(data) => Some(Message {
                data,
                acknowledgement,
                metadata,
                failure,
                batch_mode,
                place,
                held,
                is_tried_again,
            }),
            Err(failure) => {
                if let Some(acknowledgement) = acknowledgement {
                    acknowledgement.fail(failure);
                }
                None
            }
        }
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> &T {
        &self.data
    }

    /// The data, to be changed. A later try of the same message sees the change.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut T {
        &mut self.data
    }

    /// What its source knows about it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Why it has failed, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Marks it as failed. A message that has already failed gets this failure instead.
    pub fn fail(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// Marks it as not failed, for example in `handle_message` after
    /// [`prepare_messages`](super::Processor::prepare_messages) had failed it.
    pub fn recover(&mut self) {
        self.failure = None;
    }

    /// When its batch is closed.
    #[must_use]
    pub fn batch_mode(&self) -> BatchMode {
        self.batch_mode
    }

    /// Sets when its batch is closed.
    pub fn set_batch_mode(&mut self, mode: BatchMode) {
        self.batch_mode = mode;
    }

    /// Acknowledges it now, by whether it has failed so far. Its later outcome is not
    /// acknowledged.
    pub fn acknowledge_now(&mut self) {
        match (self.acknowledgement.take(), self.failure.clone()) {
            (None, _) => {}
            (Some(acknowledgement), None) => acknowledgement.done(),
            (Some(acknowledgement), Some(failure)) => acknowledgement.fail(failure),
        }
    }

    /// Takes the right to acknowledge it, to do so later and elsewhere. `None` if it was taken before,
    /// or if there is no acknowledger.
    #[must_use = "dropping the acknowledgement acknowledges the message as failed"]
    pub fn take_acknowledgement(&mut self) -> Option<Acknowledgement> {
        self.begin();
        self.acknowledgement.take()
    }

    /// Whether its outcome still matters to its source. A processor drops a message that does not, because
    /// its source delivers it again.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.acknowledgement.as_ref().is_none_or(Acknowledgement::is_current)
    }

    /// The place that it occupies of its stage's concurrency, to be left while its handling only waits.
    ///
    /// It is a place that cannot be left, unless its processor is in the last layer, handles [one at a
    /// time](super::Processor::ONE_AT_A_TIME), and is not
    /// [partitioned](super::Processors::partition_by).
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// The same message in this place: for a worker that handles messages, and has a place
    /// [itself](crate::supervisor::ChildContext::place).
    #[must_use]
    pub fn with_place(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Keeps a value with the message, instead of the one of the same type before: for what has to stay between the
    /// [tries](super::Processors::tries) of a message, also if a try takes too long and its future is dropped.
    ///
    /// A processor drops it when no other try follows, before [`handle_failed`](super::Processor::handle_failed).
    /// Elsewhere it stays until it is taken, or the message is dropped.
    pub fn hold<V: Any + Send + Sync>(&mut self, value: V) {
        self.held.retain(|held| !held.is::<V>());
        self.held.push(Box::new(value));
    }

    /// The value of this type that is kept with the message, if there is one.
    #[must_use]
    pub fn held_mut<V: Any>(&mut self) -> Option<&mut V> {
        self.held.iter_mut().find_map(|held| held.downcast_mut())
    }

    /// Takes the value of this type that is kept with the message, if there is one.
    pub fn take_held<V: Any>(&mut self) -> Option<V> {
        let nth = self.held.iter().position(|held| held.is::<V>())?;
        self.held.swap_remove(nth).downcast().ok().map(|held| *held)
    }

    /// Whether its processor tries it again if this try fails, unless the failure says what its source should do:
    /// see [`Processors::tries`](super::Processors::tries). Outside of processors it is not.
    #[must_use]
    pub fn is_tried_again(&self) -> bool {
        self.is_tried_again
    }

    /// Another try of its processor follows if the next one fails, or not.
    pub(super) fn set_tried_again(&mut self, is_tried_again: bool) {
        self.is_tried_again = is_tried_again;
    }

    /// No try follows, and what is kept for one is dropped.
    pub(super) fn release_held(&mut self) {
        self.is_tried_again = false;
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            // The destructors are the program's.
            held.into_iter().for_each(|held| {
                let _ = contained_now(|| drop(held));
            });
        }
    }

    /// Puts it into this place.
    pub(super) fn set_place(&mut self, place: Place) {
        self.place = place;
    }

    /// A processor begins with it.
    pub(super) fn begin(&mut self) {
        if let Some(acknowledgement) = &mut self.acknowledgement {
            acknowledgement.begin();
        }
    }

    /// Changes how it is acknowledged. The type of the options is the source's.
    ///
    /// # Errors
    ///
    /// [`NotConfigurable`] if the source has no options of this type.
    pub fn configure_acknowledgement<O: Any>(
        &mut self,
        options: &O,
    ) -> Result<(), NotConfigurable> {
        self.acknowledgement.as_mut().map_or(Ok(()), |own| own.configure(options))
    }

    /// Takes its acknowledgement, with its failure if it has failed. The rest of the message stays, so
    /// that its destructor runs when all messages are acknowledged.
    pub(super) fn take_outcome(&mut self) -> Option<(Acknowledgement, Option<Failure>)> {
        Some((self.acknowledgement.take()?, self.failure.clone()))
    }

    /// Sets whether it has failed.
    pub(super) fn set_failure(&mut self, failure: Option<Failure>) {
        self.failure = failure;
    }
}

/// Fails a message that its source's stage discarded.
pub(super) fn overflowed<T>(mut message: Message<T>) {
    let why = "the source's stage discarded it: its buffer was full, or it had no consumers";
    message.fail(Failure::of_kind(FailureKind::Overflow, why));
    message.acknowledge_now();
}

impl<T> ops::Deref for Message<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: fmt::Debug> fmt::Debug for Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("data", &self.data)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
