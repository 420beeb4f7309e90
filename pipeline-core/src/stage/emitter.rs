//! The output of a callback.

use std::collections::VecDeque;

/// The output of a callback: the events it emits.
///
/// They leave the stage when the callback returns, in the order of their emission.
/// [`Producer`](crate::stage::Producer) has an example.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Emitter, Producer},
/// };
///
/// struct Countdown(u64);
///
/// impl Producer for Countdown {
///     type Event = u64;
///
///     async fn handle_demand(
///         &mut self,
///         _demand: usize,
///         out: &mut Emitter<'_, u64>,
///     ) -> Result<(), ExitReason> {
///         while out.owed() > 0 && self.0 > 0 {
///             out.emit(self.0);
///             self.0 -= 1;
///         }
///         if self.0 == 0 {
///             out.finish();
///         }
///         Ok(())
///     }
/// }
/// # use futures::TryStreamExt;
/// # use pipeline_core::{
/// #     Pipeline,
/// #     subscription::{Cancel, SubscribeOptions},
/// # };
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = SubscribeOptions::new().max_demand(2).cancel(Cancel::Transient);
/// let (_pipeline, numbers) =
///     Pipeline::builder("countdown").producer(Countdown(3)).into_stream(options)?;
/// assert_eq!(numbers.try_collect::<Vec<_>>().await?, [3, 2, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Emitter<'a, E> {
    staged: &'a mut VecDeque<E>,
    owed: usize,
    finish: bool,
}

impl<'a, E> Emitter<'a, E> {
    pub(crate) fn new(staged: &'a mut VecDeque<E>, owed: usize) -> Self {
        Self { staged, owed, finish: false }
    }

    /// Emits one event.
    pub fn emit(&mut self, event: E) {
        self.staged.push_back(event);
    }

    /// Emits events in order.
    pub fn emit_all(&mut self, events: impl IntoIterator<Item = E>) {
        let events = events.into_iter();
        if self.staged.capacity() == 0 {
            // Reserving once is cheaper than growing.
            *self.staged = VecDeque::with_capacity(events.size_hint().0);
        }
        self.staged.extend(events);
    }

    /// How many more events there is demand for. Events emitted beyond it go to the buffer.
    ///
    /// For a producer this is the demand it received and has not answered, as far as there are
    /// consumers that would take the events now; for a producer-consumer, the number of events that
    /// its consumers would take now.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.saturating_sub(self.staged.len())
    }

    /// Ends the stage with [`ExitReason::Normal`](crate::ExitReason::Normal) once everything it
    /// holds has been delivered, including the events of this callback.
    ///
    /// Returning `Err(ExitReason::Normal)` instead ends the stage at once; the events in its buffer
    /// are lost and reported.
    pub fn finish(&mut self) {
        self.finish = true;
    }

    pub(crate) fn finishes(&self) -> bool {
        self.finish
    }

    /// The events emitted so far, for a source that can fill them in bulk.
    pub(crate) fn staged(&mut self) -> &mut VecDeque<E> {
        self.staged
    }
}
