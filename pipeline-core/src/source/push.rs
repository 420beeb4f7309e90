//! A push on its way into a queue.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::task::coop;

use super::{
    end::Shared,
    outcome::Closed,
    store::{Pushed, Store},
};
use crate::sync::Arc;

/// The future of a push that waits for room.
pub(super) struct Push<S: Store> {
    shared: Arc<Shared<S>>,
    step: Step<S>,
}

/// `Start` => `Waiting` (no room) => `Done`, or `Start` => `Done`.
enum Step<S: Store> {
    Start(S::Entry),
    Waiting(S::Ticket),
    Done,
}

impl<S: Store> Push<S> {
    pub(super) fn new(shared: Arc<Shared<S>>, entry: S::Entry) -> Self {
        Self { shared, step: Step::Start(entry) }
    }
}

// Nothing in it is pinned: the item is moved out of it.
impl<S: Store> Unpin for Push<S> {}

impl<S: Store> Future for Push<S> {
    type Output = Result<(), Closed<S::Item>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // A task that pushes in a loop yields to others even if there is always room.
        let coop = ready!(coop::poll_proceed(cx));
        let outcome = match mem::replace(&mut this.step, Step::Done) {
            Step::Start(entry) => {
                let pushed = this.shared.state.lock().push(entry, cx.waker());
                match pushed {
                    Pushed::In(taker) => {
                        taker.into_iter().for_each(Waker::wake);
                        Poll::Ready(Ok(()))
                    }
                    Pushed::Closed(item) => Poll::Ready(Err(Closed(item))),
                    Pushed::Waits(ticket) => {
                        this.step = Step::Waiting(ticket);
                        Poll::Pending
                    }
                }
            }
            Step::Waiting(ticket) => {
                let outcome = this.shared.state.lock().poll(ticket, cx.waker());
                if outcome.is_pending() {
                    this.step = Step::Waiting(ticket);
                }
                outcome
            }
            Step::Done => Poll::Pending,
        };
        if outcome.is_ready() {
            coop.made_progress();
        }
        outcome
    }
}

impl<S: Store> Drop for Push<S> {
    fn drop(&mut self) {
        if let Step::Waiting(ticket) = self.step {
            // The item is dropped outside the lock.
            let item = self.shared.state.lock().leave(ticket);
            drop(item);
        }
    }
}
