//! Counts of a client's received frames.

use std::time::{SystemTime, UNIX_EPOCH};

use super::frame::Frame;

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

/// The Unix time, in microseconds.
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
