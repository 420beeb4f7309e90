//! Counts of a client's received frames.

use pipeline_load::{frame::Frame, unix_micros};

/// The key before a message's creation time.
const MADE_AT: &[u8] = br#""at_us":"#;

/// Counts over all sockets of a client.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sockets whose joins have all been granted.
    pub(super) joined: usize,
    /// Frames other than replies to joins.
    pub(super) frames: u64,
    /// The ages of frames in microseconds, if they are measured.
    pub(super) ages: Option<Vec<u64>>,
}

impl Tally {
    pub(super) fn count(&mut self, frame: &Frame<'_>) {
        self.frames += 1;
        if let Some(ages) = &mut self.ages
            && let Some(made) = frame.number(MADE_AT)
        {
            ages.push(unix_micros().saturating_sub(made));
        }
    }
}
