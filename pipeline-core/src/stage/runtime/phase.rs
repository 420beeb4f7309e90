//! The phase of the pipeline, as a stage sees it.

use std::task::{Context, Poll, Waker, ready};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, task::coop};

use super::super::Phase;
use crate::exit::ExitReason;

/// The phase of the pipeline, as its stages see it.
///
/// A stage waits for a phase change whenever it waits, but the phase changes only a few times. So
/// the stage registers once for each change, and not each time it waits.
pub(super) struct PhaseWatch {
    phase: watch::Receiver<Phase>,
    changed: BoxFuture<'static, bool>,
    /// The registered waker.
    waiting: Option<Waker>,
}

impl PhaseWatch {
    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { changed: change(&phase), phase, waiting: None }
    }

    /// Whether there is an unseen change.
    #[inline]
    pub(super) fn has_changed(&self) -> bool {
        self.phase.has_changed().unwrap_or(true)
    }

    /// The reason to end before doing anything else, if there is one.
    #[inline]
    pub(super) fn ends_now(&self) -> Option<ExitReason> {
        if !self.has_changed() { None } else { self.phase.borrow().ends_now() }
    }

    /// Waits for a change. Dropping the pipeline kills its stages.
    pub(super) fn poll_change(&mut self, context: &mut Context<'_>) -> Poll<Phase> {
        let in_line = |waker: &Waker| waker.will_wake(context.waker());
        if !self.has_changed() && self.waiting.as_ref().is_some_and(in_line) {
            return Poll::Pending;
        }
        self.waiting = Some(context.waker().clone());
        let exists = ready!(self.changed.as_mut().poll(context));
        let phase = if exists { *self.phase.borrow_and_update() } else { Phase::Kill };
        self.changed = change(&self.phase);
        self.waiting = None;
        Poll::Ready(phase)
    }

    pub(super) fn receiver(&mut self) -> &mut watch::Receiver<Phase> {
        &mut self.phase
    }
}

/// Completes with the next change; false if the sender is gone.
fn change(phase: &watch::Receiver<Phase>) -> BoxFuture<'static, bool> {
    let mut phase = phase.clone();
    // Outside tokio's cooperative budget: an exhausted budget would prevent the registration.
    coop::unconstrained(async move { phase.changed().await.is_ok() }).boxed()
}
