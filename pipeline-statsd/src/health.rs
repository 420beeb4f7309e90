//! Whether the sink works, and when that is worth telling. Pure.

use crate::report::FlushReport;

/// Whether the sink worked the last time there was something to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Health {
    Good,
    Failing { flushes: u64 },
}

/// A turn worth logging.
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
            // Failing => Good, on evidence: a flush without a line proves nothing.
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
    fn an_episode_of_failing_is_told_once_at_each_end() {
        let report = |lines, errors| FlushReport { lines, errors, ..FlushReport::default() };
        let mut health = Health::Good;
        let mut observe = |lines, errors| health.observe(&report(lines, errors));
        assert_eq!(observe(3, 0), None);
        assert_eq!(observe(0, 2), Some(Change::Failed));
        assert_eq!(observe(2, 1), None);
        assert_eq!(observe(0, 0), None); // nothing was tried
        assert_eq!(observe(1, 0), Some(Change::Recovered { failed_flushes: 2 }));
        assert_eq!(observe(0, 0), None);
        assert_eq!(observe(0, 1), Some(Change::Failed));
    }
}
