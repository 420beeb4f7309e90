//! When nodes tell each other of what they track.

use std::time::Duration;

use thiserror::Error;

/// When the nodes of a cluster tell each other of what they track, and when one that says nothing is
/// taken to be gone. Without an [`Adapter`](crate::Adapter) there is nobody to be told.
///
/// These are the options of `Phoenix.Tracker`, with its defaults. All nodes should have the same.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::TrackerOptions;
///
/// // Others know in half a second, and miss a node that was lost after ten.
/// let options = TrackerOptions::new()
///     .broadcast_period(Duration::from_millis(500))
///     .down_period(Duration::from_secs(10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct TrackerOptions {
    pub(crate) broadcast_period: Duration,
    pub(crate) max_silent_periods: u32,
    down_period: Option<Duration>,
    pub(crate) permdown_period: Duration,
    pub(crate) permdown_on_shutdown: bool,
    pub(crate) max_changes: usize,
}

impl TrackerOptions {
    /// Phoenix's own: others know within 1.5 seconds, and a node that is lost is missed after 30.
    pub fn new() -> Self {
        Self {
            broadcast_period: Duration::from_millis(1500),
            max_silent_periods: 10,
            down_period: None,
            permdown_period: Duration::from_secs(1200),
            permdown_on_shutdown: false,
            max_changes: 10_000,
        }
    }

    /// How often changes are told. Default 1.5 seconds.
    pub fn broadcast_period(mut self, period: Duration) -> Self {
        self.broadcast_period = period;
        self
    }

    /// After so many periods without a change, a node says that it is there all the same. Default 10.
    pub fn max_silent_periods(mut self, periods: u32) -> Self {
        self.max_silent_periods = periods;
        self
    }

    /// A node that has said nothing for so long is down: those who are tracked there have left, until
    /// it is heard again. Default: twice as long as it may be silent, 30 seconds.
    pub fn down_period(mut self, period: Duration) -> Self {
        self.down_period = Some(period);
        self
    }

    /// A node that has said nothing for so long is forgotten. Default 20 minutes.
    pub fn permdown_period(mut self, period: Duration) -> Self {
        self.permdown_period = period;
        self
    }

    /// Whether a node that shuts down says so. Then those who were tracked there leave at once; otherwise
    /// they have until [`down_period`](Self::down_period) to appear elsewhere, and nobody sees them leave
    /// and come back. Default no.
    pub fn permdown_on_shutdown(mut self, says_so: bool) -> Self {
        self.permdown_on_shutdown = says_so;
        self
    }

    /// How many of its last changes a node remembers, for those who have missed some. Who has missed
    /// more is sent everything. Default 10,000.
    pub fn max_changes(mut self, changes: usize) -> Self {
        self.max_changes = changes;
        self
    }

    pub(crate) fn silence(&self) -> Duration {
        self.broadcast_period.saturating_mul(self.max_silent_periods)
    }

    pub(crate) fn down_after(&self) -> Duration {
        self.down_period.unwrap_or_else(|| self.silence().saturating_mul(2))
    }

    /// Whether these can be kept together.
    pub(crate) fn checked(&self) -> Result<(), TrackerOptionsError> {
        let down_period = self.down_after();
        if self.broadcast_period.is_zero() || self.max_silent_periods == 0 {
            return Err(TrackerOptionsError::NoPeriod);
        }
        if down_period <= self.silence() {
            return Err(TrackerOptionsError::DownTooSoon { down_period, silence: self.silence() });
        }
        if self.permdown_period <= down_period {
            let permdown_period = self.permdown_period;
            return Err(TrackerOptionsError::PermdownTooSoon { permdown_period, down_period });
        }
        Ok(())
    }
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Options of a tracker that cannot be kept together.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrackerOptionsError {
    /// Nodes would never, or always, tell each other.
    #[error("the period between broadcasts, and how many may be silent, have to be more than zero")]
    NoPeriod,
    /// A node that has nothing to tell would be taken to be gone.
    #[error("a node may be silent for {silence:?}, so it cannot be down after {down_period:?}")]
    DownTooSoon {
        /// When a silent node is down.
        down_period: Duration,
        /// How long one may be silent.
        silence: Duration,
    },
    /// A node would be forgotten before it is down.
    #[error(
        "a node is down after {down_period:?}, so it cannot be forgotten after {permdown_period:?}"
    )]
    PermdownTooSoon {
        /// When a silent node is forgotten.
        permdown_period: Duration,
        /// When it is down.
        down_period: Duration,
    },
}
