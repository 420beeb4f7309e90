//! Children that a supervisor runs itself, without a task.

use std::{
    future::{pending, poll_fn},
    mem,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::task::yield_now;

use super::{Worker, inline_estimate::InlineEstimate, supervision::Shared};

/// How long a supervisor runs children itself, one after the other, before it spawns tasks for the
/// next ones, which other cores may run. Children that keep an order would wait for each other
/// there: they wait until the supervisor is scheduled again.
pub(super) const INLINE_TIME: Duration = Duration::from_millis(1);

/// Whether the supervisor runs the next child itself, and whether that child has to wait.
#[derive(Debug)]
pub(super) struct Inline {
    /// Predicts whether the next child needs a task.
    estimate: InlineEstimate,
    /// Whether the worker reserves something for its children, so that they wait for each other.
    reserves: bool,
    /// Why children wait although there is room, if they do.
    pause: Pause,
}

/// Why a supervisor starts no child although there is room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    No,
    /// Some children have not used their reservations yet.
    Reserved,
    /// The supervisor yields to other tasks.
    Yield,
}

impl Inline {
    pub(super) fn new() -> Self {
        Self { estimate: InlineEstimate::new(), reserves: false, pause: Pause::No }
    }

    /// Whether the next child probably needs no task.
    #[inline]
    pub(super) fn is_likely(&self) -> bool {
        self.estimate.is_likely()
    }

    /// Records whether the worker has reserved something for a child.
    #[inline]
    pub(super) fn reserved(&mut self, is_reserved: bool) {
        self.reserves |= is_reserved;
    }

    /// Pauses children that the supervisor runs itself if they have to wait. Returns whether they
    /// have to.
    pub(super) fn pauses<E, W: Worker<E>>(&mut self, shared: &Shared<W>, time_is_up: bool) -> bool {
        self.pause = if self.reserves {
            match shared.poll_reserved::<E>(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => Pause::Reserved,
                Poll::Ready(()) if time_is_up => Pause::Yield,
                Poll::Ready(()) => Pause::No,
            }
        } else {
            Pause::No
        };
        self.pause != Pause::No
    }

    /// Ends the pause. Returns whether there was one.
    #[inline]
    pub(super) fn resume(&mut self) -> bool {
        mem::replace(&mut self.pause, Pause::No) != Pause::No
    }

    #[inline]
    pub(super) fn pause(&self) -> Pause {
        self.pause
    }

    /// Records a child that has ended in a task. Without one, it would have held up the others.
    pub(super) fn record_task(&mut self, at_once: bool, took: Duration, others: usize) {
        if self.reserves {
            self.estimate.record_reserved(true, took, others);
        } else {
            self.estimate.record(at_once, took, others);
        }
    }

    /// Records a child that the supervisor has run itself, and that held up the others.
    pub(super) fn record_inline(
        &mut self,
        reserved: bool,
        at_once: bool,
        took: Duration,
        others: usize,
    ) {
        if reserved {
            self.estimate.record_reserved(false, took, others);
        } else {
            self.estimate.record(at_once, took, others);
        }
    }

    /// Records a child that waits after all, and held up the others until then.
    pub(super) fn record_wrong_guess(&mut self, took: Duration, others: usize) {
        self.estimate.record_wrong_guess(took, others);
    }
}

impl Pause {
    /// Waits until children can be started again. Never completes if there is no pause.
    pub(super) async fn is_over<E, W: Worker<E>>(self, shared: &Shared<W>) {
        match self {
            Self::No => pending().await,
            Self::Reserved => poll_fn(|cx| shared.poll_reserved::<E>(cx)).await,
            Self::Yield => yield_now().await,
        }
    }
}
