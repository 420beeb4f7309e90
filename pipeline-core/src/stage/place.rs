//! The work place of an event: what it occupies of the concurrency of its stage.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Waker},
};

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

/// What an event occupies of its stage's concurrency while it is in work: one of the processors of a
/// pipeline of [messages](crate::processing), or one of a supervisor's children.
///
/// Work that has done its part and only waits, for example for a client to answer, can
/// [leave](Self::leave) its place to the next event. It stays work of its stage: a drain waits for it, and
/// a stage that is killed drops it.
///
/// A place does not bound how much work has left it. The code that leaves it has to do so. Only the wait is
/// outside: before a processor tries a message again, or calls
/// [`handle_failed`](crate::processing::Processor::handle_failed) with it, the message waits for a place of
/// its layer again. What `handle_message` does after it has left is not bounded.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     processing::{Failure, Message, Processor, Processors},
///     source::from_iter,
/// };
///
/// /// Asks a person, who may take long.
/// struct Ask;
///
/// impl Processor<u64> for Ask {
///     type Output = ();
///
///     /// Only such processors may leave their places.
///     const ONE_AT_A_TIME: bool = true;
///
///     async fn handle_message(&self, question: &mut Message<u64>) -> Result<(), Failure> {
///         // The question is sent here, and the answer is waited for.
///         question.place().leave();
/// #       tokio::task::yield_now().await;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::of_messages("questions")
///     .source(from_iter((0..100).map(Message::unacknowledged)))
///     .processors(Processors::new(Ask).concurrency(2))
///     .start()?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Place(Option<Arc<Mutex<State>>>);

#[derive(Default)]
struct State {
    left: bool,
    /// Notifies the stage.
    on_leave: Option<OnLeave>,
    /// The task that polls what has the place.
    waker: Option<Waker>,
    /// What is free for the next event when it is left.
    permit: Option<OwnedSemaphorePermit>,
}

type OnLeave = Box<dyn FnOnce() + Send>;

impl Place {
    pub(crate) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// A place that holds this permit until it is left.
    pub(crate) fn holding(permit: OwnedSemaphorePermit) -> Self {
        let state = State { permit: Some(permit), ..State::default() };
        Self(Some(Arc::new(Mutex::new(state))))
    }

    /// Leaves the place to the next event. Called again, or for work without a place, it does nothing.
    pub fn leave(&self) {
        let Some(state) = &self.0 else { return };
        let State { on_leave, waker, permit, .. } =
            std::mem::replace(&mut *state.lock(), State { left: true, ..State::default() });
        drop(permit);
        if let Some(on_leave) = on_leave {
            on_leave();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_left(&self) -> bool {
        self.0.as_ref().is_some_and(|state| state.lock().left)
    }

    /// Whether it has been left. If not, the task is woken when it is.
    pub(crate) fn poll_left(&self, cx: &Context<'_>) -> bool {
        let Some(state) = &self.0 else { return false };
        let mut state = state.lock();
        if !state.left && !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.left
    }

    /// Calls a function when it is left. Returns whether it has been left, and then it does not.
    pub(crate) fn on_leave(&self, call: impl FnOnce() + Send + 'static) -> bool {
        let Some(state) = &self.0 else { return false };
        let mut state = state.lock();
        if !state.left {
            state.on_leave = Some(Box::new(call));
        }
        state.left
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("is_left", &self.is_left()).finish_non_exhaustive()
    }
}
