//! What a client has received.

use std::time::{SystemTime, UNIX_EPOCH};

use super::frame::Frame;

/// Where a server puts the time at which it made a message.
const MADE_AT: &[u8] = br#""at_us":"#;

/// What has arrived at all sockets of a client.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sockets whose joins have all been granted.
    pub(super) joined: usize,
    /// Frames that are no answers to joins.
    pub(super) frames: u64,
    /// How old frames were, in microseconds, if it is asked for.
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
