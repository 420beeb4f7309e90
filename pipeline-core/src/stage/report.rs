//! What a stage left behind when it ended.

use std::{fmt, sync::Arc};

use crate::exit::ExitReason;

/// How a stage ended, and what it had not done by then. Part of a
/// [`PipelineReport`](crate::PipelineReport).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage's name.
    pub stage: Arc<str>,
    /// Why it ended.
    pub reason: ExitReason,
    /// Events it had accepted and neither passed on nor begun: queued, buffered, or just received.
    pub held: usize,
    /// Events that were begun and not finished: in the hands of a worker that was stopped, or of a
    /// callback that failed.
    pub unfinished: usize,
    /// Events it discarded while it ran, because a buffer was full.
    pub discarded: usize,
}

impl StageReport {
    pub(crate) fn new(stage: Arc<str>, reason: ExitReason) -> Self {
        Self { stage, reason, held: 0, unfinished: 0, discarded: 0 }
    }

    /// Events that were accepted and not brought to an end: held and unfinished.
    #[must_use]
    pub fn left_undone(&self) -> usize {
        self.held + self.unfinished
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, reason, held, unfinished, discarded } = self;
        write!(f, "{stage} ended ({reason})")?;
        for (count, what) in
            [(held, "held"), (unfinished, "begun and not finished"), (discarded, "discarded")]
        {
            if *count > 0 {
                let events = if *count == 1 { "event" } else { "events" };
                write!(f, ", {count} {events} {what}")?;
            }
        }
        Ok(())
    }
}
