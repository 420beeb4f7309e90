//! A push on its way into a queue.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Closed, Shared,
    state::{Refused, Ticket},
};

/// The future of [`Queue::push`](super::Queue::push).
pub(super) struct Push<T> {
    shared: Arc<Shared<T>>,
    step: Step<T>,
}

/// `Start` => `Waiting` (no room) => `Done`, or `Start` => `Done`.
enum Step<T> {
    Start(T),
    Waiting(Ticket),
    Done,
}

impl<T> Push<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, item: T) -> Self {
        Self { shared, step: Step::Start(item) }
    }
}

// Nothing in it is ever pinned: the item is moved out of it.
impl<T> Unpin for Push<T> {}

impl<T> Future for Push<T> {
    type Output = Result<(), Closed<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match mem::replace(&mut this.step, Step::Done) {
            Step::Start(item) => {
                let mut state = this.shared.state.lock();
                match state.try_push(item) {
                    Ok(taker) => {
                        drop(state);
                        if let Some(taker) = taker {
                            taker.wake();
                        }
                        Poll::Ready(Ok(()))
                    }
                    Err(Refused::Closed(item)) => Poll::Ready(Err(Closed(item))),
                    Err(Refused::Full(item)) => {
                        this.step = Step::Waiting(state.wait(item, cx.waker().clone()));
                        Poll::Pending
                    }
                }
            }
            Step::Waiting(ticket) => {
                let outcome = this.shared.state.lock().poll(ticket, cx.waker());
                if outcome.is_pending() {
                    this.step = Step::Waiting(ticket);
                }
                outcome.map_err(Closed)
            }
            Step::Done => Poll::Pending,
        }
    }
}

impl<T> Drop for Push<T> {
    fn drop(&mut self) {
        if let Step::Waiting(ticket) = self.step {
            // The item is dropped here, outside the lock.
            let item = self.shared.state.lock().leave(ticket);
            drop(item);
        }
    }
}
