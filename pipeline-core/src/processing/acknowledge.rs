//! Acknowledgements: the outcomes of messages, for their sources.

use std::{
    any::{Any, type_name},
    fmt,
    sync::Arc,
};

use thiserror::Error;

use super::failure::{Failure, FailureKind};
use crate::{exit::ExitReason, shown::shown, stage::catch_panic_now};

/// The part of a source that receives the outcomes of its messages.
///
/// Messages are acknowledged in groups: those of a chunk or of a batch that have the same
/// acknowledger, both lists in the order in which the messages were handled. A source whose messages
/// must not be acknowledged together, such as those of different partitions, makes one for each.
///
/// The semantics are those of `Broadway.Acknowledger`; the receipt is its `ack_data`, and the
/// acknowledger itself is its `ack_ref`.
///
/// ```
/// use std::sync::Arc;
///
/// use parking_lot::Mutex;
/// use pipeline_core::processing::{Acknowledger, Failure, Message};
///
/// /// Keeps the numbers of the lines that were handled.
/// #[derive(Default)]
/// struct Lines(Mutex<Vec<usize>>);
///
/// impl Acknowledger for Lines {
///     type Receipt = usize;
///
///     fn acknowledge(&self, done: Vec<usize>, _failed: Vec<(usize, Failure)>) {
///         self.0.lock().extend(done);
///     }
/// }
///
/// let lines = Arc::new(Lines::default());
/// let mut message = Message::new("the first line", 1, &lines);
/// message.acknowledge_now();
/// assert_eq!(*lines.0.lock(), [1]);
/// ```
pub trait Acknowledger: Send + Sync + 'static {
    /// What the source needs to know which message it was, such as its id or its position.
    type Receipt: Send + Sync + 'static;

    /// Called once for each group of messages.
    ///
    /// It must not block: it runs in the task of the stage that handled them, or where a message is
    /// dropped. A source that writes to a server hands the receipts to a task of its own. There are
    /// never more of them than the source has emitted messages and not seen acknowledged. A panic is
    /// caught and logged, and concerns this group only.
    fn acknowledge(&self, done: Vec<Self::Receipt>, failed: Vec<(Self::Receipt, Failure)>);

    /// Whether the outcome of a message still matters to the source. If not, a processor drops the message
    /// instead of handling it. By default it does.
    ///
    /// It is called before a message is handled, for a source that has lost a connection and knows that the
    /// message is delivered again.
    fn is_current(&self, receipt: &Self::Receipt) -> bool {
        let _ = receipt;
        true
    }

    /// Called by [`Message::configure_acknowledgement`](super::Message::configure_acknowledgement), to change how a message is acknowledged. The
    /// options' type is the acknowledger's own. By default there are none.
    ///
    /// # Errors
    ///
    /// [`NotConfigurable`] if it has no options of this type.
    fn configure(
        &self,
        receipt: &mut Self::Receipt,
        options: &dyn Any,
    ) -> Result<(), NotConfigurable> {
        let _ = (receipt, options);
        Err(NotConfigurable { acknowledger: type_name::<Self>() })
    }
}

/// The error of options that an acknowledger does not have.
#[derive(Clone, Debug, Error)]
#[error("{acknowledger} has no such options")]
pub struct NotConfigurable {
    /// The type of the acknowledger.
    pub acknowledger: &'static str,
}

/// The right to acknowledge one message, once.
///
/// It cannot be lost by accident: dropped, it acknowledges the message as failed, with
/// [`FailureKind::Dropped`], or [`FailureKind::Forgotten`] if a processor had begun with the message.
///
/// Usually the pipeline has it. To acknowledge a message later, from elsewhere, take it with
/// [`Message::take_acknowledgement`](super::Message::take_acknowledgement).
#[must_use = "dropping it acknowledges the message as failed"]
pub struct Acknowledgement {
    inner: Option<Inner>,
    /// Whether a processor has begun with the message.
    begun: bool,
}

struct Inner {
    acknowledger: Arc<dyn AnyAcknowledger>,
    receipt: Receipt,
}

/// A receipt of any acknowledger.
type Receipt = Box<dyn Any + Send + Sync>;

/// An acknowledger whose receipts have any type.
trait AnyAcknowledger: Send + Sync {
    fn acknowledge(&self, done: Vec<Receipt>, failed: Vec<(Receipt, Failure)>);

    fn is_current(&self, receipt: &Receipt) -> bool;

    fn configure(&self, receipt: &mut Receipt, options: &dyn Any) -> Result<(), NotConfigurable>;
}

impl<A: Acknowledger> AnyAcknowledger for A {
    fn acknowledge(&self, done: Vec<Receipt>, failed: Vec<(Receipt, Failure)>) {
        let own = |receipt: Receipt| receipt.downcast::<A::Receipt>().ok().map(|receipt| *receipt);
        let done = done.into_iter().filter_map(own).collect();
        let failed = failed.into_iter().filter_map(|(receipt, why)| Some((own(receipt)?, why)));
        Acknowledger::acknowledge(self, done, failed.collect());
    }

    fn is_current(&self, receipt: &Receipt) -> bool {
        receipt
            .downcast_ref::<A::Receipt>()
            .is_none_or(|receipt| Acknowledger::is_current(self, receipt))
    }

    fn configure(&self, receipt: &mut Receipt, options: &dyn Any) -> Result<(), NotConfigurable> {
        let receipt = receipt.downcast_mut::<A::Receipt>();
        let receipt = receipt.expect("a receipt is stored together with its acknowledger");
        Acknowledger::configure(self, receipt, options)
    }
}

impl Acknowledgement {
    pub(super) fn new<A: Acknowledger>(receipt: A::Receipt, acknowledger: &Arc<A>) -> Self {
        let acknowledger = acknowledger.clone();
        let inner = Inner { acknowledger, receipt: Box::new(receipt) };
        Self { inner: Some(inner), begun: false }
    }

    /// A processor begins with the message.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    pub(super) fn is_current(&self) -> bool {
        let Some(Inner { acknowledger, receipt }) = &self.inner else { return true };
        acknowledger.is_current(receipt)
    }

    /// Acknowledges the message as handled.
    pub fn done(self) {
        acknowledge([(self, None)]);
    }

    /// Acknowledges the message as failed.
    pub fn fail(self, failure: Failure) {
        acknowledge([(self, Some(failure))]);
    }

    pub(super) fn configure(&mut self, options: &dyn Any) -> Result<(), NotConfigurable> {
        let Some(Inner { acknowledger, receipt }) = &mut self.inner else { return Ok(()) };
        acknowledger.configure(receipt, options)
    }
}

impl Drop for Acknowledgement {
    fn drop(&mut self) {
        if self.inner.is_some() {
            let lost = Self { inner: self.inner.take(), begun: self.begun };
            let kind = if self.begun { FailureKind::Forgotten } else { FailureKind::Dropped };
            let failure = "the message was dropped before its outcome was known";
            lost.fail(Failure::of_kind(kind, failure));
        }
    }
}

impl fmt::Debug for Acknowledgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acknowledgement").finish_non_exhaustive()
    }
}

/// The messages of one acknowledger. They can still be lost only as failed.
struct Group {
    acknowledger: Arc<dyn AnyAcknowledger>,
    outcomes: Vec<(Acknowledgement, Option<Failure>)>,
}

/// Acknowledges messages in their order, in one call for each acknowledger.
pub(super) fn acknowledge(outcomes: impl IntoIterator<Item = (Acknowledgement, Option<Failure>)>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_address = foldhash::HashMap::<usize, usize>::default();
    for (acknowledgement, failure) in outcomes {
        let Some(Inner { acknowledger, .. }) = &acknowledgement.inner else { continue };
        let is_same = |group: &Group| Arc::ptr_eq(&group.acknowledger, acknowledger);
        // Most messages have the acknowledger of the one before.
        let place = if groups.last().is_some_and(is_same) {
            groups.len() - 1
        } else {
            let address = Arc::as_ptr(acknowledger).addr();
            *by_address.entry(address).or_insert_with(|| {
                let acknowledger = acknowledger.clone();
                groups.push(Group { acknowledger, outcomes: Vec::new() });
                groups.len() - 1
            })
        };
        groups[place].outcomes.push((acknowledgement, failure));
    }
    for Group { acknowledger, outcomes } in groups {
        let messages = outcomes.len();
        // What is dropped here is dropped where a panic of its destructor is caught.
        let called = catch_panic_now(move || {
            let (mut done, mut failed) = (Vec::with_capacity(messages), Vec::new());
            for (mut acknowledgement, failure) in outcomes {
                let Some(Inner { receipt, .. }) = acknowledgement.inner.take() else { continue };
                match failure {
                    None => done.push(receipt),
                    Some(failure) => failed.push((receipt, failure)),
                }
            }
            acknowledger.acknowledge(done, failed);
            Ok::<_, ExitReason>(())
        });
        if let Err(reason) = called {
            tracing::error!(
                messages,
                reason = shown(&reason),
                "an acknowledger panicked, its messages may be delivered again"
            );
        }
    }
}
