//! A signal that ends the delay of a postponed message.

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{Arc, Weak},
};

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
    Waits {
        /// What is called, by its number.
        waiting: BTreeMap<u64, OnWake>,
        next: u64,
    },
    Given,
}

/// What a source does when a message is to be delivered again.
type OnWake = Box<dyn FnOnce() + Send>;

impl Default for State {
    fn default() -> Self {
        Self::Waits { waiting: BTreeMap::new(), next: 0 }
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
        if let State::Waits { waiting, .. } = before {
            waiting.into_values().for_each(|on_wake| on_wake());
        }
    }

    /// Calls a function when the signal is given, or at once if it was given before. For sources, which call this
    /// when a message is stored with its delay. The function must not block. It is dropped with what is returned, so
    /// that a signal which many messages have waited for keeps nothing of those that wait no more, and with the last
    /// clone of the signal.
    pub fn on_wake(&self, on_wake: impl FnOnce() + Send + 'static) -> WaitsForWake {
        let signal = Arc::downgrade(&self.0);
        match &mut *self.0.lock() {
            State::Waits { waiting, next } => {
                let number = *next;
                *next = next.wrapping_add(1);
                waiting.insert(number, Box::new(on_wake));
                return WaitsForWake { signal, number };
            }
            State::Given => {}
        }
        on_wake();
        WaitsForWake { signal: Weak::new(), number: 0 }
    }
}

/// A function that waits for a [`Wake`]. When this is dropped, it waits no more.
#[must_use = "what waits is dropped with it"]
pub struct WaitsForWake {
    signal: Weak<Mutex<State>>,
    number: u64,
}

impl Drop for WaitsForWake {
    fn drop(&mut self) {
        let Some(signal) = self.signal.upgrade() else { return };
        let removed = match &mut *signal.lock() {
            State::Waits { waiting, .. } => waiting.remove(&self.number),
            State::Given => None,
        };
        // What it has may use the signal, which is locked no more.
        drop(removed);
    }
}

impl fmt::Debug for WaitsForWake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitsForWake").finish_non_exhaustive()
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (is_given, waiting) = match &*self.0.lock() {
            State::Waits { waiting, .. } => (false, waiting.len()),
            State::Given => (true, 0),
        };
        f.debug_struct("Wake").field("is_given", &is_given).field("waiting", &waiting).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

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
        let first = wake.on_wake(count());
        let second = wake.clone().on_wake(count());
        assert_eq!(woken.load(SeqCst), 0);
        wake.wake();
        wake.wake();
        assert_eq!(woken.load(SeqCst), 2);
        let third = wake.on_wake(count());
        assert_eq!(woken.load(SeqCst), 3);
        drop((first, second, third));
    }

    #[test]
    fn a_signal_keeps_nothing_of_what_waits_no_more() {
        let (wake, kept) = (Wake::new(), Arc::new(AtomicU64::new(0)));
        let wait = |by: u64| {
            let kept = kept.clone();
            wake.on_wake(move || {
                kept.fetch_add(by, SeqCst);
            })
        };
        let stays = wait(1);
        for _ in 0..1000 {
            drop(wait(1000));
        }
        assert_eq!(Arc::strong_count(&kept), 2);
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 1 }");
        wake.wake();
        assert_eq!(kept.load(SeqCst), 1);
        drop(stays);
    }

    #[test]
    fn what_waits_may_have_the_signal_itself() {
        let wake = Wake::new();
        let inner = wake.on_wake(|| {});
        let clone = wake.clone();
        let outer = wake.on_wake(move || drop((inner, clone)));
        drop(outer);
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 0 }");
    }

    #[test]
    fn a_signal_that_is_never_given_keeps_nothing() {
        let (wake, kept) = (Wake::new(), Arc::new(()));
        let held = kept.clone();
        let waits = wake.on_wake(move || drop(held));
        drop(wake);
        assert_eq!(Arc::strong_count(&kept), 1);
        drop(waits);
    }
}
