//! Memory for futures that usually complete in their first poll.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// The memory of futures that are polled one after the other and usually complete at once: all of
/// them share one allocation.
pub(super) struct Reused<F>(Option<Pin<Box<Option<F>>>>);

impl<F: Future> Reused<F> {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// Polls a future once, with a waker that does nothing. Returns its output, or the rest of the
    /// future if it waits: that takes the memory along, and has to be polled again.
    #[inline]
    pub(super) fn poll_once(
        &mut self,
        future: F,
    ) -> Result<F::Output, impl Future<Output = F::Output> + use<F>> {
        let mut place = match self.0.take() {
            None => Box::pin(Some(future)),
            Some(mut place) => {
                place.set(Some(future));
                place
            }
        };
        match poll(place.as_mut(), &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => {
                self.0 = Some(place);
                Ok(output)
            }
            Poll::Pending => Err(poll_fn(move |context| poll(place.as_mut(), context))),
        }
    }
}

fn poll<F: Future>(place: Pin<&mut Option<F>>, context: &mut Context<'_>) -> Poll<F::Output> {
    match place.as_pin_mut() {
        Some(future) => future.poll(context),
        None => Poll::Pending,
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    async fn number(number: u32, waits: bool) -> u32 {
        if waits {
            yield_now().await;
        }
        number
    }

    #[tokio::test]
    async fn a_future_that_waits_takes_the_memory_along() {
        let mut reused = Reused::new();
        assert_eq!(reused.poll_once(number(1, false)).ok(), Some(1));
        let Err(second) = reused.poll_once(number(2, true)) else { panic!("it waits") };
        assert_eq!(reused.poll_once(number(3, false)).ok(), Some(3));
        assert_eq!(second.await, 2);
    }
}
