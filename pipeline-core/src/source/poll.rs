//! A producer of what a function returns, such as the rows of a query.

use std::{
    fmt,
    future::{Future, pending},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::ConsumerCount;
use crate::{
    backoff::{Backoff, BackoffState},
    deadline::Deadline,
    exit::ExitReason,
    shown::shown,
    stage::{Emitter, Producer, ProducerHandle, StageContext, random},
    subscription::{Cancellation, SubscribeOptions, Subscription},
};

/// The longest delay after failures, unless the interval is longer.
const LONGEST: Duration = Duration::from_secs(60);

/// Creates a producer that asks an async function for events: a query, or a request to a service.
///
/// The function is called with the number of events that there is demand for, first at once. While it
/// returns as many as that, it is called again at once; when it returns fewer, after `every`. Without
/// demand it is not called. Events beyond the number wait in the stage's buffer, and those beyond its
/// capacity are discarded and counted.
///
/// An error ends nothing: it is logged, and the function is called again after `every`, then twice as
/// long and so on, up to a minute, each delay shortened by up to half at random, the first one too. A function that should end the stage can panic; a stage that should
/// end by itself is one of [`from_stream`](super::from_stream).
///
/// The stage calls a clone of the function each time, because an async closure with captures can be
/// called only once. So its captures have to be `Clone`, such as a pool, and a position is kept in an
/// `Arc`. The returned future runs while the stage handles its messages, and is not dropped by them: a
/// query that deletes what it returns loses nothing, as long as the stage runs. A call that has begun
/// continues when its consumers have left, and stands still while the pipeline is paused. A drain waits for it, as long
/// as the drain may take.
///
/// # Panics
///
/// If `every` is 0.
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// use pipeline_core::{
///     Pipeline, source::from_poll, step::for_each, subscription::SubscribeOptions,
/// };
/// # use parking_lot::Mutex;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Stands for a table.
/// let table = Arc::new(Mutex::new(vec!["to", "the", "screen"]));
/// let rows = from_poll(Duration::from_secs(1), async move |limit: usize| {
///     let mut table = table.lock();
///     let limit = limit.min(table.len());
///     Ok::<Vec<&str>, std::io::Error>(table.drain(..limit).collect())
/// });
/// let pipeline = Pipeline::builder("rows")
///     .producer(rows)
///     .consumer(for_each(async |row| println!("{row}")), SubscribeOptions::new())
///     .start()?;
/// let report = pipeline.drain(Duration::from_secs(5)).await;
/// assert!(report.is_clean());
/// # Ok(())
/// # }
/// ```
pub fn from_poll<T, E, F, Fut>(every: Duration, function: F) -> FromPoll<T, F, Fut>
where
    T: Send + 'static,
    E: Into<ExitReason>,
    F: FnOnce(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Vec<T>, E>> + Send + 'static,
{
    assert!(!every.is_zero(), "the interval of a function that is polled must be longer than 0");
    FromPoll {
        function,
        every,
        backoff: BackoffState::new(Backoff::new(every, every.max(LONGEST))),
        stage: "".into(),
        owed: 0,
        next_call: None,
        running: None,
        returned: None,
        drains: false,
        consumers: ConsumerCount::default(),
        events: PhantomData,
    }
}

/// The producer returned by [`from_poll`].
#[must_use]
pub struct FromPoll<T, F, Fut> {
    function: F,
    every: Duration,
    backoff: BackoffState,
    stage: Arc<str>,
    /// The demand that is not met yet.
    owed: usize,
    /// When the function may be called again. At once if there is none.
    next_call: Option<Deadline>,
    /// A call that has begun, with the number that was asked for.
    running: Option<(usize, Pin<Box<Fut>>)>,
    /// What a call has returned, with the number that was asked for.
    returned: Option<(usize, Result<Vec<T>, ExitReason>)>,
    /// Whether no call may begin any more.
    drains: bool,
    consumers: ConsumerCount,
    events: PhantomData<fn() -> T>,
}

impl<T, F, Fut> FromPoll<T, F, Fut> {
    /// Ends the stage when its last consumer leaves. By default it waits for the next consumer.
    pub fn stop_without_consumers(mut self) -> Self {
        self.consumers.needed();
        self
    }

    /// Emits what a call has returned, and decides when the next one begins.
    fn settle(
        &mut self,
        asked: usize,
        result: Result<Vec<T>, ExitReason>,
        emit: impl FnOnce(Vec<T>),
    ) {
        match result {
            Ok(events) => {
                self.backoff.reset();
                let is_full = events.len() >= asked;
                self.next_call = (!is_full).then(|| Deadline::from_now(self.every));
                emit(events);
            }
            Err(reason) => {
                let delay = self.backoff.next_delay(random());
                tracing::warn!(stage = %self.stage, reason = shown(&reason), ?delay, "polling failed, trying again");
                self.next_call = Some(Deadline::from_now(delay));
            }
        }
    }
}

#[diagnostic::do_not_recommend]
impl<T, E, F, Fut> Producer for FromPoll<T, F, Fut>
where
    T: Send + 'static,
    E: Into<ExitReason>,
    F: FnOnce(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Vec<T>, E>> + Send + 'static,
{
    type Event = T;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.stage = context.stage.clone();
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        self.owed = out.owed();
        Ok(())
    }

    /// The call is kept outside of this future, which may be dropped at any time.
    async fn ready(&mut self) {
        if self.returned.is_some() {
            return;
        }
        if self.running.is_none() {
            if self.drains {
                return pending().await;
            }
            if let Some(next_call) = self.next_call {
                next_call.passed().await;
            }
            // Without a call, `ready` is awaited only while there is demand.
            let asked = self.owed.max(1);
            self.running = Some((asked, Box::pin((self.function.clone())(asked))));
        }
        if let Some((asked, call)) = &mut self.running {
            let result = call.await.map_err(Into::into);
            self.returned = Some((*asked, result));
            self.running = None;
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        if let Some((asked, result)) = self.returned.take() {
            self.settle(asked, result, |events| out.emit_all(events));
        }
        self.owed = out.owed();
        if self.drains {
            out.finish();
        }
        Ok(())
    }

    fn has_begun(&self) -> bool {
        self.running.is_some() || self.returned.is_some()
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        _to: &Subscription,
        _out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        self.consumers.joined();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _to: &Subscription,
        out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        self.owed = out.owed();
        self.consumers.left()
    }

    /// What a call has taken from a table is not there any more, so a call that has begun is waited for, although
    /// its consumer may have left. It is awaited by `ready`, where the stage sees that it has to stop.
    async fn handle_drain(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        self.drains = true;
        if self.running.is_some() { Ok(()) } else { self.handle_ready(out).await }
    }

    fn pending(&self) -> usize {
        self.returned.as_ref().map_or(0, |(_, result)| result.as_ref().map_or(0, Vec::len))
    }
}

impl<T, F, Fut> fmt::Debug for FromPoll<T, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromPoll").field("every", &self.every).finish_non_exhaustive()
    }
}
