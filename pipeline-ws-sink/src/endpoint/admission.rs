//! The limit of an endpoint's open sockets.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use pipeline_core::telemetry::Telemetry;

use crate::telemetry::{LineLimit, Tally, limited};

/// The number of an endpoint's sockets, and its limit.
pub(crate) struct Admissions {
    open: AtomicUsize,
    max: usize,
    /// Whether the last client was refused, and that has been logged.
    is_full: AtomicBool,
    /// The rate limit of log lines about refused clients.
    lines: LineLimit,
    refused: Tally,
}

/// A socket's admission, until it is dropped. It is taken before `connect` is called.
pub(crate) struct Admission(Arc<Admissions>);

impl Admissions {
    pub(crate) fn new(max: usize, telemetry: &Telemetry) -> Self {
        let description = "Connections refused because the maximum of open sockets was reached";
        let refused = telemetry.counter("socket.connections_refused", description, []);
        let (open, is_full) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { open, max, is_full, lines: LineLimit::new(), refused: refused.into() }
    }

    /// Admits a socket, unless the limit is reached.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admission> {
        let more = |open: usize| (open < self.max).then_some(open + 1);
        let admitted = self.open.fetch_update(Relaxed, Relaxed, more).is_ok();
        if !admitted {
            self.refused.increment(1);
        }
        // Not logged for each refused client. Clients that come and go at the limit fill the
        // endpoint again and again, so the line is rate-limited too.
        let was_full = self.is_full.swap(!admitted, Relaxed);
        if !admitted && !was_full {
            let max = self.max;
            limited!(
                self.lines,
                WARN,
                max,
                "refusing connections: maximum of open sockets reached"
            );
        }
        admitted.then(|| Admission(self.clone()))
    }

    /// The number of refused clients.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
impl Admissions {
    /// The number of admitted sockets.
    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use pipeline_test_support::{Log, Recorded};

    use super::*;

    #[test]
    fn the_limit_is_admitted_and_another_one_when_one_has_left() {
        let (telemetry, recorded) = Recorded::new();
        let admissions = Arc::new(Admissions::new(2, &telemetry));
        let [one, other] = [(); 2].map(|()| admissions.admit().unwrap());
        assert!(admissions.admit().is_none());
        assert!(admissions.admit().is_none());
        drop(one);
        let third = admissions.admit().unwrap();
        assert!(admissions.admit().is_none());
        drop((other, third));
        assert_eq!(admissions.open(), 0);
        assert_eq!(recorded.counters("socket.connections_refused"), [(String::new(), 3)]);
    }

    #[test]
    fn no_more_are_admitted_at_once_than_the_limit_on_several_threads() {
        let admissions = Arc::new(Admissions::new(2, &Telemetry::global()));
        let (admitted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let together = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    together.wait();
                    for _ in 0..100_000 {
                        let Some(admission) = admissions.admit() else {
                            refused.fetch_add(1, Relaxed);
                            continue;
                        };
                        assert!(admitted.fetch_add(1, Relaxed) < 2, "more than the limit");
                        admitted.fetch_sub(1, Relaxed);
                        drop(admission);
                    }
                });
            }
        });
        assert_eq!(admissions.open(), 0);
        assert_eq!(admissions.refused(), refused.into_inner() as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_come_and_go_at_the_limit_do_not_fill_the_log() {
        let (log, _guard) = Log::keep();
        let admissions = Arc::new(Admissions::new(1, &Telemetry::global()));
        for _ in 0..300 {
            let _one = admissions.admit().unwrap();
            assert!(admissions.admit().is_none());
            assert!(admissions.admit().is_none());
        }
        let lines = log.take();
        assert_eq!(lines.len(), 100);
        assert_eq!(
            lines[0],
            "WARN max=1 message=refusing connections: maximum of open sockets reached"
        );
    }
}
