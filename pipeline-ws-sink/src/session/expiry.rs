//! The end of a socket that has one, because its client's token has.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use pipeline_core::Deadline;
use tokio::time::{self, Instant, Sleep};

use super::term::{Due, Term};
use crate::clock;

/// The end of a socket. Its channels may set another.
pub(crate) struct Expiry {
    /// How long before the end the client is warned.
    before: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The term, if the socket has an end. Most sockets have none, and hold no memory for it.
    term: Option<Box<Term>>,
    /// The socket's task, while it waits.
    task: Option<Waker>,
}

impl Expiry {
    /// An end at this time, if there is one. The wall clock is read now and not again.
    pub(crate) fn new(end: Option<SystemTime>, before: Duration) -> Self {
        let expiry = Self { before, state: Mutex::default() };
        expiry.set(end);
        expiry
    }

    /// Sets another end, or none.
    pub(crate) fn set(&self, end: Option<SystemTime>) {
        let term =
            end.map(|end| Box::new(Term::new(Instant::now(), clock::remaining(end), self.before)));
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.term, term);
        let task = state.task.take();
        drop(state);
        drop(before);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// The time until the end, if there is one.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.term.as_ref().map(|term| term.remaining(Instant::now()))
    }

    /// The same, if the client has been warned of this end.
    pub(crate) fn warning(&self) -> Option<Duration> {
        let state = self.state.lock();
        let told = state.term.as_ref().filter(|term| term.was_warned());
        told.map(|term| term.remaining(Instant::now()))
    }

    /// The end that the client has been warned of, if it has.
    pub(super) fn warned_of(&self) -> Option<Deadline> {
        let state = self.state.lock();
        state.term.as_ref().filter(|term| term.was_warned()).map(|term| term.end())
    }

    /// Waits until the end has come. Meanwhile it calls `warn` when the client is to be warned: once
    /// for each end that was set. For the socket's task only.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn passed(&self, warn: impl Fn()) {
        // Most sockets have no end, and no timer.
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            loop {
                let until = match self.due(cx) {
                    None => {
                        timer = None;
                        return Poll::Pending;
                    }
                    Some(Due::End) => return Poll::Ready(()),
                    Some(Due::Warning) => {
                        warn();
                        continue;
                    }
                    Some(Due::Wait(until)) => until,
                };
                let Some(until) = until.instant() else {
                    timer = None;
                    return Poll::Pending;
                };
                let timer = timer.get_or_insert_with(|| Box::pin(time::sleep_until(until)));
                if timer.deadline() != until {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(cx));
            }
        })
        .await;
    }

    /// What is due now, if the socket has an end. A later change wakes the task.
    fn due(&self, cx: &Context<'_>) -> Option<Due> {
        let mut state = self.state.lock();
        if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
        state.term.as_mut().map(|term| term.due(Instant::now()))
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiry").field("term", &self.state.lock().term).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin};

    use futures::poll;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// An end after this time, by both clocks.
    fn after(time: Duration) -> Option<SystemTime> {
        Some(SystemTime::now() + time)
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_set_later_wakes_the_task() {
        let expiry = Expiry::new(None, MINUTE);
        let warned = Cell::new(0);
        let mut passed = pin!(expiry.passed(|| warned.set(warned.get() + 1)));
        let year = Duration::from_secs(365 * 24 * 3600);
        assert!(time::timeout(year, &mut passed).await.is_err(), "without an end");
        expiry.set(after(10 * MINUTE));
        assert!(time::timeout(8 * MINUTE, &mut passed).await.is_err());
        assert_eq!((warned.get(), expiry.warning()), (0, None));
        assert!(time::timeout(90 * MINUTE / 60, &mut passed).await.is_err());
        assert_eq!(warned.get(), 1);
        assert!(expiry.warning().is_some_and(|left| left <= MINUTE));
        // Renewed, and told once more.
        expiry.set(after(10 * MINUTE));
        assert_eq!(expiry.warning(), None);
        assert!(time::timeout(9 * MINUTE + MINUTE / 2, &mut passed).await.is_err());
        assert_eq!(warned.get(), 2);
        passed.await;
        assert_eq!(warned.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_in_the_past_has_come_and_one_that_is_taken_back_does_not_come() {
        let expiry = Expiry::new(after(MINUTE), MINUTE);
        let mut passed = pin!(expiry.passed(|| ()));
        assert!(poll!(&mut passed).is_pending());
        expiry.set(None);
        assert!(time::timeout(2 * MINUTE, &mut passed).await.is_err());
        assert_eq!(expiry.remaining(), None);
        expiry.set(Some(SystemTime::UNIX_EPOCH));
        assert!(poll!(&mut passed).is_ready());
    }
}
