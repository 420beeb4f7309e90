//! When the worker was started that is being polled.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    /// Set while a worker is polled, and at no other time.
    static STARTED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// When the worker was started in which this is called, if it is called in one.
pub(crate) fn started_at() -> Option<Instant> {
    STARTED.get()
}

/// As long as it lives, what runs on this thread is a worker that was started at this moment.
pub(super) struct Running {
    before: Option<Instant>,
}

impl Running {
    pub(super) fn since(started: Instant) -> Self {
        Self { before: STARTED.replace(Some(started)) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        STARTED.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::{panic, time::Duration};

    use super::*;

    #[test]
    fn what_runs_within_a_worker_knows_it_and_what_comes_after_does_not() {
        let outer = Instant::now();
        let inner = outer + Duration::from_secs(1);
        assert_eq!(started_at(), None);
        let running = Running::since(outer);
        let panicked = panic::catch_unwind(|| {
            let _running = Running::since(inner);
            assert_eq!(started_at(), Some(inner));
            panic::resume_unwind(Box::new("a panic"));
        });
        assert!(panicked.is_err());
        assert_eq!(started_at(), Some(outer));
        drop(running);
        assert_eq!(started_at(), None);
    }
}
