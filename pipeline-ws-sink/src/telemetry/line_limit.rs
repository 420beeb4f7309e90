//! The rate limit of log lines that clients can cause at will.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Dispatch, Level, dispatcher, subscriber::NoSubscriber};

use super::log;
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

impl LineLimit {
    pub(crate) fn new() -> Self {
        let rate = Rate::new(EACH_SECOND, Duration::from_secs(1), BURST);
        Self { rate, began: Instant::now(), levels: Mutex::default() }
    }

    /// Writes a line, unless too many were written recently: then the line is counted. The line
    /// receives the number of lines left out since the last one, if any.
    ///
    /// A line whose level is not enabled is neither written nor counted, and does not use up the
    /// limit. Without a tracing subscriber no level is enabled, but lines may still go to the `log`
    /// crate.
    pub(crate) fn write(&self, level: Level, is_enabled: bool, line: impl FnOnce(Option<u64>)) {
        if (is_enabled || has_no_subscriber())
            && let Some(left_out) = self.admit(level)
        {
            log::contained(|| line((left_out > 0).then_some(left_out)));
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

/// Whether tracing has no subscriber here.
fn has_no_subscriber() -> bool {
    dispatcher::get_default(Dispatch::is::<NoSubscriber>)
}

/// Writes a line that clients can cause at will, within its rate limit: `limited!(lines, WARN,
/// field, "message")`, or `limited!(lines, target: TARGET, WARN, field, "message")`.
macro_rules! limited {
    ($lines:expr, target: $target:expr, $level:ident, $($line:tt)+) => {{
        const LEVEL: tracing::Level = tracing::Level::$level;
        $lines.write(LEVEL, tracing::enabled!(target: $target, LEVEL), |left_out| {
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
        let (limit, mut written) = (LineLimit::new(), 0);
        (0..1000).for_each(|_| limit.write(Level::ERROR, false, |_| written += 1));
        assert_eq!(written, 100);
    }
}
