//! Log lines and spans that cannot stop other work.
//!
//! The log's subscriber is the application's, and may panic. This costs the line or the span, and nothing
//! else: the panic hook has reported it. So all of the crate's lines are written by [`log_line!`] or
//! [`limited!`](super::limited), and all spans are made by [`contained_span!`].
//!
//! The hook's reports have the same limit as the lines, on each thread: beyond it the subscriber is not called.

use std::{
    any::Any,
    borrow::Borrow,
    cell::Cell,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tracing::{Dispatch, Span, Value, dispatcher, span, subscriber::NoSubscriber};
pub(crate) use tracing::{
    Level,
    field::{Empty, debug},
};

use super::line_limit;
use crate::session::token_bucket::Bucket;

/// The subscriber's recent panics on a thread.
#[derive(Clone, Copy)]
struct Panics {
    began: Instant,
    bucket: Bucket,
}

thread_local! {
    /// Empty until the subscriber panics for the first time.
    static PANICS: Cell<Option<Panics>> = const { Cell::new(None) };
}

impl Panics {
    fn wait(&self) -> Option<Duration> {
        self.bucket.wait(line_limit::rate(), self.began.elapsed())
    }

    /// Counts a panic.
    fn count() {
        let mut panics = PANICS
            .get()
            .unwrap_or_else(|| Self { began: Instant::now(), bucket: Bucket::default() });
        // The end of a span is not limited. It does not keep later lines out of the log for longer.
        if panics.wait().is_none() {
            panics.bucket.take(line_limit::rate(), panics.began.elapsed());
        }
        PANICS.set(Some(panics));
    }
}

/// Calls the log's subscriber. `None` if it panics, or has panicked too often recently.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Option<T> {
    if PANICS.get().is_some_and(|panics| panics.wait().is_some()) {
        return None;
    }
    caught(call)
}

/// Calls the log's subscriber, however often it has panicked: what has begun has to end.
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => Some(done),
        Err(payload) => {
            drop_payload(payload);
            Panics::count();
            None
        }
    }
}

/// Drops the payload of a panic, whose destructor may panic as well.
fn drop_payload(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Its destructor may panic in turn, without an end.
        mem::forget(another);
    }
}

/// Writes a line: `log_line!(WARN, field, "message")`, or
/// `log_line!(target: TARGET, WARN, field, "message")`.
macro_rules! log_line {
    (target: $target:expr, $level:ident, $($line:tt)+) => {{
        let _ = $crate::telemetry::contained::contained(|| {
            tracing::event!(target: $target, tracing::Level::$level, $($line)+);
        });
    }};
    ($level:ident, $($line:tt)+) => {
        $crate::telemetry::log_line!(target: module_path!(), $level, $($line)+)
    };
}
pub(crate) use log_line;

/// Whether lines of a target and a level are written: `log_enabled!(target: TARGET, LEVEL)`.
///
/// Without a tracing subscriber, `tracing` writes them to the `log` crate if its feature `log` is on,
/// which `tracing::enabled!` does not know.
macro_rules! log_enabled {
    (target: $target:expr, $level:expr) => {
        $crate::telemetry::contained::is_enabled($level, || {
            tracing::enabled!(target: $target, $level)
        })
    };
}
pub(crate) use log_enabled;

/// Whether spans of a target and a level are made: `span_enabled!(target: TARGET, LEVEL)`.
macro_rules! span_enabled {
    (target: $target:expr, $level:expr) => {
        $crate::telemetry::contained::contained(|| {
            tracing::span_enabled!(target: $target, $level)
        })
        .unwrap_or(false)
    };
}
pub(crate) use span_enabled;

pub(crate) fn is_enabled(level: Level, by_subscriber: impl FnOnce() -> bool) -> bool {
    contained(|| by_subscriber() || goes_to_log_crate(level)).unwrap_or(false)
}

/// Whether there is no tracing subscriber, and the `log` crate wants lines of this level.
fn goes_to_log_crate(level: Level) -> bool {
    let wanted = match ::log::max_level() {
        ::log::LevelFilter::Off => return false,
        ::log::LevelFilter::Error => Level::ERROR,
        ::log::LevelFilter::Warn => Level::WARN,
        ::log::LevelFilter::Info => Level::INFO,
        ::log::LevelFilter::Debug => Level::DEBUG,
        ::log::LevelFilter::Trace => Level::TRACE,
    };
    level <= wanted && dispatcher::get_default(Dispatch::is::<NoSubscriber>)
}

/// Makes a span: `contained_span!(Level::INFO, "name", field)`, with all that `tracing::span!` accepts.
macro_rules! contained_span {
    ($($span:tt)+) => {
        $crate::telemetry::contained::ContainedSpan::new(|| tracing::span!($($span)+))
    };
}
pub(crate) use contained_span;

/// A span of `tracing`, whose subscriber may panic at any time.
pub(crate) struct ContainedSpan(Span);

impl ContainedSpan {
    /// The span that `create` returns.
    pub(crate) fn new(create: impl FnOnce() -> Span) -> Self {
        Self(contained(create).unwrap_or_else(Span::none))
    }

    /// The span, as the parent of another.
    pub(crate) fn as_parent(&self) -> &Span {
        &self.0
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.0.is_disabled()
    }

    pub(crate) fn record(&self, field: &str, value: impl Value) {
        let _ = contained(|| self.0.record(field, value));
    }

    /// Runs a function in the span.
    pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
        let _entered = Entered(contained(|| self.0.enter()));
        run()
    }
}

impl Drop for ContainedSpan {
    fn drop(&mut self) {
        let span = mem::replace(&mut self.0, Span::none());
        let _ = caught(|| drop(span));
    }
}

/// Leaves a span when it is dropped.
struct Entered<'a>(Option<span::Entered<'a>>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let entered = self.0.take();
        let _ = caught(|| drop(entered));
    }
}

pin_project! {
    /// A future that runs, and is dropped, in a span.
    pub(crate) struct InSpan<S, F>
    where
        S: Borrow<ContainedSpan>,
    {
        span: S,
        // Empty once it is dropped.
        #[pin]
        running: Option<F>,
    }

    impl<S, F> PinnedDrop for InSpan<S, F>
    where
        S: Borrow<ContainedSpan>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let span: &ContainedSpan = (*this.span).borrow();
            span.in_scope(|| this.running.set(None));
        }
    }
}

impl<S: Borrow<ContainedSpan>, F: Future> InSpan<S, F> {
    pub(crate) fn new(span: S, future: F) -> Self {
        Self { span, running: Some(future) }
    }
}

impl<S: Borrow<ContainedSpan>, F: Future> Future for InSpan<S, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let span: &ContainedSpan = (*this.span).borrow();
        match this.running.as_pin_mut() {
            Some(running) => span.in_scope(|| running.poll(cx)),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    /// A payload that panics again when it is dropped, with others of its kind.
    struct PanicsAgain(u32);

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            match self.0 {
                0 => panic!("a bug in a bug"),
                more => panic_any(PanicsAgain(more - 1)),
            }
        }
    }

    #[test]
    fn a_payload_that_panics_while_it_is_dropped_is_contained() {
        let logged = contained(|| -> u32 { panic_any(PanicsAgain(3)) });
        assert_eq!(logged, None);
        assert_eq!(contained(|| 1), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_panics_often_is_called_again_after_a_while() {
        let mut calls = 0;
        for _ in 0..1000 {
            let _ = contained(|| -> u32 {
                calls += 1;
                panic!("the log panics")
            });
        }
        assert_eq!((calls, contained(|| 1)), (100, None));
        // The end of a span is never left out.
        assert_eq!(caught(|| 1), Some(1));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(contained(|| 1), Some(1));
    }
}
