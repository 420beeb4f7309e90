//! The options of replication between trackers. Pure.

use std::time::Duration;

use thiserror::Error;

/// How the nodes of a cluster replicate presences, and when a node counts as down. All nodes should
/// have the same options.
///
/// The defaults are those of `Phoenix.Tracker`: a change on one node is known on the others within
/// 1.5 seconds, and the entries of a node that falls silent leave after 30.
///
/// There is no `pool_size`. In Phoenix, each shard is a process that all changes of its topics pass, one by one. Here,
/// the task that tracks a user makes the change itself: a user who joins and leaves takes the lock of the list
/// twice, for 5 µs together, and callbacks and broadcasts run outside of it. Shards would add heartbeats of their own. They
/// would help in one case: a node that another one asks for its whole list, as after a start, holds the lock while it
/// copies that. The list is sent, and merged by the other node, in parts of at most 256 KiB.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::presence::TrackerOptions;
///
/// let quick = TrackerOptions::new()
///     .broadcast_period(Duration::from_millis(500))
///     .down_period(Duration::from_secs(10));
/// assert!(quick.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct TrackerOptions {
    pub(super) broadcast_period: Duration,
    pub(super) max_silent_periods: u32,
    down_period: Option<Duration>,
    pub(super) permdown_period: Duration,
    pub(super) clock_sample_periods: u32,
    pub(super) max_delta_sizes: Vec<usize>,
    pub(super) permdown_on_shutdown: bool,
}

impl TrackerOptions {
    /// The defaults of `Phoenix.Tracker`.
    pub fn new() -> Self {
        Self {
            broadcast_period: Duration::from_millis(1_500),
            max_silent_periods: 10,
            down_period: None,
            permdown_period: Duration::from_secs(1_200),
            clock_sample_periods: 2,
            max_delta_sizes: vec![100, 1_000, 10_000],
            permdown_on_shutdown: false,
        }
    }

    /// How often a node sends its changes to the others. Default 1.5 seconds.
    pub fn broadcast_period(mut self, period: Duration) -> Self {
        self.broadcast_period = period;
        self
    }

    /// After how many periods without a change a node sends a heartbeat. Default ten. It sends at
    /// least two in a [`down_period`](Self::down_period).
    pub fn max_silent_periods(mut self, periods: u32) -> Self {
        self.max_silent_periods = periods;
        self
    }

    /// After how long a silence a node counts as down: its entries leave, and join again when it is
    /// heard again. Default twice the time that a node is silent when nothing changes: 30 seconds.
    ///
    /// A node that is restarted after its clock was set back is heard after this time, too: until
    /// then its messages look like late ones of its former self.
    pub fn down_period(mut self, period: Duration) -> Self {
        self.down_period = Some(period);
        self
    }

    /// After how long a silence a node is removed. Default 20 minutes.
    pub fn permdown_period(mut self, period: Duration) -> Self {
        self.permdown_period = period;
        self
    }

    /// After how many periods a node checks whether it has missed changes, and requests them.
    /// Default two.
    pub fn clock_sample_periods(mut self, periods: u32) -> Self {
        self.clock_sample_periods = periods;
        self
    }

    /// How many of its last changes a node keeps, to send them to a node that has missed some. It
    /// keeps one delta for each size, so that the answer is not much longer than necessary; a node
    /// that has missed more is sent the whole state. Default 100, 1,000 and 10,000.
    pub fn max_delta_sizes(mut self, sizes: impl Into<Vec<usize>>) -> Self {
        self.max_delta_sizes = sizes.into();
        self
    }

    /// Whether a node announces a clean shutdown, so that its entries leave at once. Default
    /// `false`: clients have the time of [`down_period`](Self::down_period) to connect to another
    /// node, and no one sees them leave.
    pub fn permdown_on_shutdown(mut self, announce: bool) -> Self {
        self.permdown_on_shutdown = announce;
        self
    }

    /// Checks that the options are consistent.
    ///
    /// # Errors
    ///
    /// [`TrackerOptionsError`] names the inconsistency.
    pub fn check(&self) -> Result<(), TrackerOptionsError> {
        let counts = [self.max_silent_periods, self.clock_sample_periods];
        if self.broadcast_period.is_zero() || counts.contains(&0) {
            Err(TrackerOptionsError::Zero)
        } else if self.down() < self.broadcast_period.saturating_mul(2) {
            Err(TrackerOptionsError::DownPeriod)
        } else if self.permdown_period <= self.down() {
            Err(TrackerOptionsError::PermdownPeriod)
        } else {
            Ok(())
        }
    }

    pub(super) fn down(&self) -> Duration {
        let silence = self.broadcast_period.saturating_mul(self.max_silent_periods);
        self.down_period.unwrap_or(silence.saturating_mul(2))
    }

    /// How many periods a replica is silent at most. A shorter down period would make it leave and
    /// join repeatedly.
    pub(super) fn silent_periods(&self) -> u32 {
        let period = self.broadcast_period.as_nanos().max(1);
        let most = self.down().as_nanos() / 2 / period;
        self.max_silent_periods.min(u32::try_from(most).unwrap_or(u32::MAX)).max(1)
    }
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// [`TrackerOptions`] contradict each other.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrackerOptionsError {
    /// A period or a number of periods is zero.
    #[error("a period is zero")]
    Zero,
    /// A replica would be down before it could be heard.
    #[error("the down period has to be at least two broadcast periods")]
    DownPeriod,
    /// A replica would be removed before it is down.
    #[error("the permdown period has to be longer than the down period")]
    PermdownPeriod,
}
