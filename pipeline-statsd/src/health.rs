//! Whether the sink works, and which changes are logged. Pure.

use crate::report::FlushReport;

/// The state of the sink after the last flush that sent anything.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Health {
    Good,
    Failing { flushes: u64 },
}

/// A change that is logged.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    Failed,
    Recovered { failed_flushes: u64 },
}

impl Health {
    pub(crate) fn observe(&mut self, report: &FlushReport) -> Option<Change> {
        match *self {
            // Good => Failing
            Self::Good if report.errors > 0 => {
                *self = Self::Failing { flushes: 1 };
                Some(Change::Failed)
            }
            Self::Failing { flushes } if report.errors > 0 => {
                *self = Self::Failing { flushes: flushes.saturating_add(1) };
                None
            }
            // Failing => Good, only with evidence: a flush without a line proves nothing.
            Self::Failing { flushes } if report.lines > 0 => {
                *self = Self::Good;
                Some(Change::Recovered { failed_flushes: flushes })
            }
            Self::Good | Self::Failing { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_of_failures_is_reported_once_at_each_end() {
        let report = |lines, errors| FlushReport { lines, errors, ..FlushReport::default() };
        let mut health = Health::Good;
        let mut observe = |lines, errors| health.observe(&report(lines, errors));
        assert_eq!(observe(3, 0), None);
        assert_eq!(observe(0, 2), Some(Change::Failed));
        assert_eq!(observe(2, 1), None);
        assert_eq!(observe(0, 0), None); // nothing was sent
        assert_eq!(observe(1, 0), Some(Change::Recovered { failed_flushes: 2 }));
        assert_eq!(observe(0, 0), None);
        assert_eq!(observe(0, 1), Some(Change::Failed));
    }
}
