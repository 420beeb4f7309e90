//! A signal that ends the delay of a postponed message.

use std::{fmt, mem, sync::Arc};

use parking_lot::Mutex;

/// A signal that ends the delay of a message which was postponed, by
/// [`Failure::woken_by`](super::Failure::woken_by).
///
/// Cheap to clone: all clones are the same signal. It is given once, and stays given. One that is dropped without
/// having been given changes nothing: the message is delivered again after its delay.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::processing::{Failure, Wake};
///
/// let back = Wake::new();
/// let absent = Failure::new("the user is not there").later(Duration::from_secs(60)).woken_by(&back);
/// assert!(absent.wake().is_some());
/// // The user is there.
/// back.wake();
/// ```
#[derive(Clone, Default)]
pub struct Wake(Arc<Mutex<State>>);

enum State {
    Waits(Vec<OnWake>),
    Given,
}

/// What a source does when a message is to be delivered again.
type OnWake = Box<dyn FnOnce() + Send>;

impl Default for State {
    fn default() -> Self {
        Self::Waits(Vec::new())
    }
}

impl Wake {
    /// A signal that has not been given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal: the delays of its messages end now, or as soon as their sources have stored them. Later
    /// calls do nothing.
    pub fn wake(&self) {
        let before = mem::replace(&mut *self.0.lock(), State::Given);
        if let State::Waits(waiting) = before {
            waiting.into_iter().for_each(|on_wake| on_wake());
        }
    }

    /// Calls a function when the signal is given, or at once if it was given before. For sources, which call this
    /// when a message is stored with its delay. The function must not block. It is dropped with the last clone of
    /// the signal.
    pub fn on_wake(&self, on_wake: impl FnOnce() + Send + 'static) {
        match &mut *self.0.lock() {
            State::Waits(waiting) => return waiting.push(Box::new(on_wake)),
            State::Given => {}
        }
        on_wake();
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_given = matches!(*self.0.lock(), State::Given);
        f.debug_struct("Wake").field("is_given", &is_given).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn a_signal_reaches_what_waits_and_what_comes_later_once() {
        let (wake, woken) = (Wake::new(), Arc::new(AtomicUsize::new(0)));
        let count = || {
            let woken = woken.clone();
            move || {
                woken.fetch_add(1, SeqCst);
            }
        };
        wake.on_wake(count());
        wake.clone().on_wake(count());
        assert_eq!(woken.load(SeqCst), 0);
        wake.wake();
        wake.wake();
        assert_eq!(woken.load(SeqCst), 2);
        wake.on_wake(count());
        assert_eq!(woken.load(SeqCst), 3);
    }

    #[test]
    fn a_signal_that_is_never_given_keeps_nothing() {
        let (wake, kept) = (Wake::new(), Arc::new(()));
        let held = kept.clone();
        wake.on_wake(move || drop(held));
        drop(wake);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
