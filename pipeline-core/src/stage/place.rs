//! The work place of an event: what it occupies of the concurrency of its stage.

use std::{
    fmt,
    future::{Future, pending},
    sync::Arc,
    task::{Context, Waker},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::Phase;

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
pub struct Place(Option<Arc<Inner>>);

struct Inner {
    state: Mutex<State>,
    /// Whether it can be left.
    may_leave: bool,
    phase: PhaseOfPlace,
}

/// The phase of the pipeline, shared by the places of a stage.
#[derive(Clone, Debug)]
pub(crate) struct PhaseOfPlace(Arc<watch::Receiver<Phase>>);

#[derive(Default)]
struct State {
    left: bool,
    /// Notifies the stage.
    on_leave: Option<OnLeave>,
    /// The task that polls what has the place.
    waker: Option<Waker>,
    /// What is free for the next event when it is left.
    permit: Option<OwnedSemaphorePermit>,
    /// How many futures wait without the limit.
    without_limit: usize,
    /// The task that keeps the limit.
    limiter: Option<Waker>,
}

type OnLeave = Box<dyn FnOnce() + Send>;

impl PhaseOfPlace {
    pub(crate) fn new(phase: &watch::Receiver<Phase>) -> Self {
        Self(Arc::new(phase.clone()))
    }
}

impl Place {
    /// A place that can be left.
    pub(crate) fn new(phase: &PhaseOfPlace) -> Self {
        Self::with(State::default(), true, phase)
    }

    /// A place that holds this permit until it is left.
    pub(crate) fn holding(permit: OwnedSemaphorePermit, phase: &PhaseOfPlace) -> Self {
        Self::with(State { permit: Some(permit), ..State::default() }, true, phase)
    }

    /// A place that cannot be left.
    pub(crate) fn fixed(phase: &PhaseOfPlace) -> Self {
        Self::with(State::default(), false, phase)
    }

    /// Another place of the same stage that cannot be left.
    pub(crate) fn next_fixed(&self) -> Self {
        self.0.as_ref().map(|inner| Self::fixed(&inner.phase)).unwrap_or_default()
    }

    fn with(state: State, may_leave: bool, phase: &PhaseOfPlace) -> Self {
        let (state, phase) = (Mutex::new(state), phase.clone());
        Self(Some(Arc::new(Inner { state, may_leave, phase })))
    }

    /// Another place of the same stage, that holds this permit.
    pub(crate) fn next_holding(&self, permit: OwnedSemaphorePermit) -> Self {
        match &self.0 {
            Some(inner) => Self::holding(permit, &inner.phase),
            None => Self::default(),
        }
    }

    /// Leaves the place to the next event. Called again, or for work whose place cannot be left, it does nothing.
    pub fn leave(&self) {
        let Some(inner) = self.0.as_ref().filter(|inner| inner.may_leave) else { return };
        let mut state = inner.state.lock();
        state.left = true;
        let (on_leave, waker, permit) =
            (state.on_leave.take(), state.waker.take(), state.permit.take());
        drop(state);
        drop(permit);
        if let Some(on_leave) = on_leave {
            on_leave();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Completes when its stage drains: what has begun is done to its end, and nothing new is taken. Work that only
    /// waits for its turn can be given back to its source then, so that a drain takes no longer than what is in work.
    ///
    /// It completes for messages of processors, and for a child that [may
    /// leave](crate::supervisor::ConsumerSupervisor::may_leave) or that has a [limit of
    /// time](crate::supervisor::ConsumerSupervisor::run_within). Of the place of another child nothing is known, and it
    /// never completes.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    ///
    /// use pipeline_core::processing::{Failure, Message, Processor};
    /// use tokio::sync::Semaphore;
    ///
    /// /// Calls a service that bears few calls at a time.
    /// struct Call {
    ///     turns: Arc<Semaphore>,
    /// }
    ///
    /// impl Processor<u64> for Call {
    ///     type Output = ();
    ///
    ///     const ONE_AT_A_TIME: bool = true;
    ///
    ///     async fn handle_message(&self, order: &mut Message<u64>) -> Result<(), Failure> {
    ///         let place = order.place();
    ///         let turn = place.without_limit(async {
    ///             tokio::select! {
    ///                 () = place.draining() => Err(Failure::new("not begun").later(Duration::ZERO)),
    ///                 turn = self.turns.acquire() => Ok(turn?),
    ///             }
    ///         });
    ///         let _turn = turn.await?;
    ///         // The service is called here.
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn draining(&self) {
        let Some(inner) = &self.0 else { return pending().await };
        let mut phase = inner.phase.0.as_ref().clone();
        // A pipeline that is gone has ended.
        let _ = phase.wait_for(|phase| *phase >= Phase::Drain).await;
    }

    /// Awaits a future whose time is not counted by [`handle_within`](crate::processing::Processors::handle_within) in
    /// `handle_message`, or by [`run_within`](crate::supervisor::ConsumerSupervisor::run_within): for the wait for a turn.
    /// Such a wait needs an end of its own.
    ///
    /// # Cancel safety
    ///
    /// As that of the future. The time counts again when it is dropped.
    pub async fn without_limit<F: Future>(&self, future: F) -> F::Output {
        let _waits = WithoutLimit::begin(self.0.as_deref());
        future.await
    }

    /// Whether the limit of its time does not count now. If so, the task is woken when it counts again.
    pub(crate) fn poll_without_limit(&self, cx: &Context<'_>) -> bool {
        let Some(inner) = &self.0 else { return false };
        let mut state = inner.state.lock();
        let waits = state.without_limit > 0;
        if waits && !state.limiter.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.limiter = Some(cx.waker().clone());
        }
        waits
    }

    pub(crate) fn is_left(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.state.lock().left)
    }

    /// Whether it has been left. If not, the task is woken when it is.
    pub(crate) fn poll_left(&self, cx: &Context<'_>) -> bool {
        let Some(inner) = &self.0 else { return false };
        let mut state = inner.state.lock();
        if !state.left && !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.left
    }

    /// Calls a function when it is left. Returns whether it has been left, and then it does not.
    pub(crate) fn on_leave(&self, call: impl FnOnce() + Send + 'static) -> bool {
        let Some(inner) = self.0.as_ref().filter(|inner| inner.may_leave) else { return false };
        let mut state = inner.state.lock();
        if !state.left {
            state.on_leave = Some(Box::new(call));
        }
        state.left
    }
}

/// A wait without the limit, until it is dropped.
struct WithoutLimit<'a>(Option<&'a Inner>);

impl<'a> WithoutLimit<'a> {
    fn begin(inner: Option<&'a Inner>) -> Self {
        if let Some(inner) = inner {
            let mut state = inner.state.lock();
            state.without_limit = state.without_limit.saturating_add(1);
        }
        Self(inner)
    }
}

impl Drop for WithoutLimit<'_> {
    fn drop(&mut self) {
        let Some(inner) = self.0 else { return };
        let mut state = inner.state.lock();
        state.without_limit = state.without_limit.saturating_sub(1);
        let limiter = if state.without_limit == 0 { state.limiter.take() } else { None };
        drop(state);
        if let Some(limiter) = limiter {
            limiter.wake();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("is_left", &self.is_left()).finish_non_exhaustive()
    }
}
