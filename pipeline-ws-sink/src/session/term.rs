//! When a socket ends, and when its client is warned. Pure.

use std::time::Duration;

use pipeline_core::Deadline;
use tokio::time::Instant;

/// The end of a socket. It is replaced as a whole when the socket gets another end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    end: Deadline,
    warning: Deadline,
    was_warned: bool,
}

/// What has to be done for a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing until then.
    Wait(Deadline),
    /// The client is to be warned.
    Warning,
    /// The socket is to end.
    End,
}

impl Term {
    /// A term that ends after `remaining`, and whose client is warned `before` that, but not in the
    /// first half of the term. So a term that each warning makes a little longer causes no warnings
    /// without a pause between them.
    pub(super) fn new(now: Instant, remaining: Duration, before: Duration) -> Self {
        let before = before.min(remaining / 2);
        let warning = Deadline::after(now, remaining.saturating_sub(before));
        Self { end: Deadline::after(now, remaining), warning, was_warned: false }
    }

    /// What is due now. A warning is due once.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        if self.end.has_passed(now) {
            return Due::End;
        }
        if self.was_warned {
            return Due::Wait(self.end);
        }
        if self.warning.has_passed(now) {
            self.was_warned = true;
            return Due::Warning;
        }
        Due::Wait(self.warning)
    }

    /// Whether the client has been warned of this end.
    pub(super) fn was_warned(&self) -> bool {
        self.was_warned
    }

    pub(super) fn end(&self) -> Deadline {
        self.end
    }

    /// The time until the end.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.end.remaining(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_client_is_warned_once_and_then_the_socket_ends() {
        let now = Instant::now();
        let mut term = Term::new(now, 100 * SECOND, 30 * SECOND);
        let [told, end] = [70, 100].map(|at| now + at * SECOND);
        assert_eq!(term.due(now), Due::Wait(Deadline::after(now, 70 * SECOND)));
        assert!(!term.was_warned());
        assert_eq!(term.due(told), Due::Warning);
        assert!(term.was_warned());
        assert_eq!(term.due(told), Due::Wait(Deadline::after(now, 100 * SECOND)));
        assert_eq!(term.remaining(told), 30 * SECOND);
        assert_eq!(term.due(end), Due::End);
        assert_eq!(term.remaining(end), Duration::ZERO);
    }

    #[test]
    fn a_short_term_warns_at_its_half_and_no_warning_comes_with_the_end() {
        let now = Instant::now();
        let mut short = Term::new(now, 10 * SECOND, 30 * SECOND);
        assert_eq!(short.due(now + 4 * SECOND), Due::Wait(Deadline::after(now, 5 * SECOND)));
        assert_eq!(short.due(now + 5 * SECOND), Due::Warning);
        let mut silent = Term::new(now, 10 * SECOND, Duration::ZERO);
        assert_eq!(silent.due(now + 9 * SECOND), Due::Wait(Deadline::after(now, 10 * SECOND)));
        assert_eq!(silent.due(now + 10 * SECOND), Due::End);
        // The process was suspended over both.
        let mut late = Term::new(now, 10 * SECOND, 5 * SECOND);
        assert_eq!(late.due(now + 60 * SECOND), Due::End);
    }

    #[test]
    fn a_term_beyond_the_clock_never_ends() {
        let now = Instant::now();
        let mut term = Term::new(now, Duration::MAX, 30 * SECOND);
        assert_eq!(term.due(now + 1_000_000 * SECOND), Due::Wait(Deadline::NEVER));
    }

    proptest! {
        #[test]
        fn whatever_the_times_a_term_warns_at_most_once_in_its_second_half_and_ends_at_its_end(
            remaining in 0_u64..100_000,
            before in 0_u64..100_000,
            mut looks in prop::collection::vec(0_u64..200_000, 0..20),
        ) {
            let now = Instant::now();
            let [remaining, before] = [remaining, before].map(Duration::from_millis);
            let mut term = Term::new(now, remaining, before);
            looks.sort_unstable();
            let mut told = 0;
            for look in looks.into_iter().map(Duration::from_millis) {
                match term.due(now + look) {
                    Due::End => prop_assert!(look >= remaining),
                    Due::Warning => {
                        told += 1;
                        prop_assert!(look >= remaining / 2 && look < remaining);
                        prop_assert!(remaining - look <= before);
                    }
                    Due::Wait(until) => {
                        prop_assert!(!until.has_passed(now + look));
                        prop_assert!(look < remaining);
                    }
                }
            }
            prop_assert!(told <= 1);
        }
    }
}
