//! Counts of a client's received frames.

use pipeline_load::{frame::Frame, unix_micros};

/// The key before a message's creation time.
const MADE_AT: &[u8] = br#""at_us":"#;

/// When a message was made, in Unix microseconds, and how old it was on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Age {
    pub(crate) made_at: u64,
    pub(crate) micros: u64,
}

/// Counts over all sockets of a client.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sockets whose joins have all been granted.
    pub(super) joined: usize,
    /// Frames other than replies to joins.
    pub(super) frames: u64,
    /// The ages of frames, if they are measured.
    pub(super) ages: Option<Vec<Age>>,
}

impl Tally {
    pub(super) fn count(&mut self, frame: &Frame<'_>) {
        self.frames += 1;
        if let Some(ages) = &mut self.ages
            && let Some(made_at) = frame.number(MADE_AT)
        {
            ages.push(Age { made_at, micros: unix_micros().saturating_sub(made_at) });
        }
    }
}
