//! The rate limit of log lines that clients can cause at will.

use std::time::Duration;

use parking_lot::Mutex;
use pipeline_core::ExitReason;
use tokio::time::Instant;
use tracing::Level;

use super::contained::contained;
use crate::session::token_bucket::{Bucket, Rate};

/// How many lines may be written at once.
const BURST: u32 = 100;

/// How many lines may be written per second after that.
const EACH_SECOND: u32 = 10;

/// Decides which lines of a kind are written to the log, and counts the others.
///
/// Each level has a limit of its own: a flood of warnings does not keep an error out of the log.
/// Lines are written with [`limited!`].
pub(crate) struct LineLimit {
    rate: Rate,
    began: Instant,
    levels: Mutex<[Lines; 3]>,
}

#[derive(Clone, Copy, Default)]
struct Lines {
    bucket: Bucket,
    left_out: u64,
}

/// The limit of lines of a kind, and of the panics of the log's subscriber.
pub(super) fn rate() -> Rate {
    Rate::new(EACH_SECOND, Duration::from_secs(1), BURST)
}

impl LineLimit {
    pub(crate) fn new() -> Self {
        Self { rate: rate(), began: Instant::now(), levels: Mutex::default() }
    }

    /// Writes a line, unless too many were written recently: then the line is counted. The line
    /// receives the number of lines left out since the last one, if any.
    ///
    /// A line that is not [enabled](log_enabled) is neither written nor counted, and does not use up
    /// the limit.
    pub(crate) fn write(&self, level: Level, is_enabled: bool, line: impl FnOnce(Option<u64>)) {
        if is_enabled && let Some(left_out) = self.admit(level) {
            let _ = contained(|| line((left_out > 0).then_some(left_out)));
        }
    }

    /// Whether another line may be written now, and how many were left out before it. Counts the
    /// line if not.
    fn admit(&self, level: Level) -> Option<u64> {
        let now = self.began.elapsed();
        let mut levels = self.levels.lock();
        let [errors, warnings, others] = &mut *levels;
        let lines = match level {
            Level::ERROR => errors,
            Level::WARN => warnings,
            _ => others,
        };
        if lines.bucket.wait(self.rate, now).is_some() {
            lines.left_out += 1;
            return None;
        }
        lines.bucket.take(self.rate, now);
        Some(std::mem::take(&mut lines.left_out))
    }
}

/// Decides which lines about failed callbacks are written.
///
/// Errors that a callback returns have a limit of their own: a client causes them at will, for
/// example with a payload that cannot be parsed, and they must not keep a panic out of the log.
pub(crate) struct CrashLines {
    panics: LineLimit,
    errors: LineLimit,
}

impl CrashLines {
    pub(crate) fn new() -> Self {
        Self { panics: LineLimit::new(), errors: LineLimit::new() }
    }

    /// The limit of lines about panics, or about errors.
    pub(crate) fn of(&self, is_panic: bool) -> &LineLimit {
        if is_panic { &self.panics } else { &self.errors }
    }

    /// The limit of lines about crashes for such a reason.
    pub(crate) fn of_reason(&self, reason: &ExitReason) -> &LineLimit {
        self.of(matches!(reason, ExitReason::Panicked(_)))
    }
}

/// Writes a line that clients can cause at will, within its rate limit: `limited!(lines, WARN,
/// field, "message")`, or `limited!(lines, target: TARGET, WARN, field, "message")`.
macro_rules! limited {
    ($lines:expr, target: $target:expr, $level:ident, $($line:tt)+) => {{
        const LEVEL: tracing::Level = tracing::Level::$level;
        $lines.write(LEVEL, $crate::telemetry::log_enabled!(target: $target, LEVEL), |left_out| {
            tracing::event!(target: $target, LEVEL, left_out, $($line)+);
        });
    }};
    ($lines:expr, $level:ident, $($line:tt)+) => {
        $crate::telemetry::limited!($lines, target: module_path!(), $level, $($line)+)
    };
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use pipeline_test_support::Log;
    use tracing::level_filters::LevelFilter;

    use super::*;
    use crate::telemetry::log::events_are_seen;
    use crate::telemetry::log_enabled;

    const NONE: Vec<String> = Vec::new();

    #[tokio::test(start_paused = true)]
    async fn a_flood_writes_few_lines_and_the_next_one_has_the_number_left_out() {
        let (log, _guard) = Log::keep();
        let limit = LineLimit::new();
        (0..1000).for_each(|n| limited!(limit, WARN, n, "again"));
        let written = log.take();
        assert_eq!(written.len(), 100);
        assert_eq!(written[99], "WARN message=again n=99");
        tokio::time::advance(Duration::from_millis(200)).await;
        (0..3).for_each(|n| limited!(limit, WARN, n, "again"));
        assert_eq!(log.take(), ["WARN left_out=900 message=again n=0", "WARN message=again n=1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_level_leaves_out_no_lines_of_the_others() {
        let (log, _guard) = Log::keep();
        let limit = LineLimit::new();
        (0..1000).for_each(|_| limited!(limit, WARN, "a warning"));
        let _ = log.take();
        limited!(limit, ERROR, "an error");
        limited!(limit, INFO, "a note");
        assert_eq!(log.take(), ["ERROR message=an error", "INFO message=a note"]);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_of_disabled_levels_are_not_counted() {
        let limit = LineLimit::new();
        {
            let (log, _guard) = Log::up_to(LevelFilter::WARN);
            (0..1000).for_each(|_| limited!(limit, INFO, "a note"));
            (0..1000).for_each(|_| limited!(limit, target: "elsewhere", DEBUG, "a note"));
            assert_eq!(log.take(), NONE);
        }
        let (log, _guard) = Log::keep();
        limited!(limit, target: "elsewhere", INFO, "a note");
        assert_eq!(log.take(), ["INFO message=a note"]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_subscriber_lines_are_written_for_the_log_crate_as_often_as_otherwise() {
        ::log::set_max_level(::log::LevelFilter::Warn);
        let (limit, mut written) = (LineLimit::new(), 0);
        for _ in 0..1000 {
            limit.write(Level::ERROR, log_enabled!(target: "here", Level::ERROR), |_| written += 1);
            limit.write(Level::INFO, log_enabled!(target: "here", Level::INFO), |_| written += 1);
        }
        assert_eq!(written, 100);
        assert!(!events_are_seen());
        ::log::set_max_level(::log::LevelFilter::Debug);
        assert!(events_are_seen(), "the line `handled` goes to the log crate, too");
        ::log::set_max_level(::log::LevelFilter::Off);
        assert!(!events_are_seen());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_returned_errors_leaves_out_no_panic() {
        let (log, _guard) = Log::keep();
        let lines = CrashLines::new();
        let crash = |reason: &ExitReason| {
            limited!(lines.of_reason(reason), ERROR, %reason, "a channel crashed");
        };
        (0..1000).for_each(|_| crash(&ExitReason::failed("cannot parse")));
        assert_eq!(log.take().len(), 100);
        crash(&ExitReason::Panicked("a bug".into()));
        assert_eq!(log.take(), ["ERROR message=a channel crashed reason=panicked: a bug"]);
    }
}
