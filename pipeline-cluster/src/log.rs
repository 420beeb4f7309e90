//! Log lines that are limited in number.

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

/// How long a line is not repeated.
const INTERVAL: Duration = Duration::from_secs(10);

/// Allows a line at most once in ten seconds.
#[derive(Debug, Default)]
pub(crate) struct LineLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl LineLimit {
    /// Whether the line is to be written, and how many were left out before it.
    pub(crate) fn allow(&self) -> Option<u64> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_written_once_in_ten_seconds() {
        let limit = LineLimit::default();
        assert_eq!(limit.allow(), Some(0));
        assert_eq!((limit.allow(), limit.allow()), (None, None));
        tokio::time::advance(INTERVAL).await;
        assert_eq!(limit.allow(), Some(2));
    }
}
