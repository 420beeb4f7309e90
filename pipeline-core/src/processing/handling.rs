//! How the callbacks of a program are called, and what becomes of messages then.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    acknowledge::acknowledge, failure::Failure, message::Message, metrics::MessageMetrics,
};
use crate::{
    shown::shown,
    stage::{Place, TimeLimit, catch_panic, catch_panic_now},
};

/// Calls an async callback. A panic is a failure.
pub(super) async fn contained<R>(
    callback: impl Future<Output = Result<R, Failure>>,
) -> Result<R, Failure> {
    catch_panic(async { Ok(callback.await) }).await.unwrap_or_else(|panic| Err(panicked(&panic)))
}

/// The same with a limit of time. What the callback holds is dropped where a panic is caught.
pub(super) async fn contained_within<R>(
    within: Duration,
    name: &str,
    callback: impl Future<Output = Result<R, Failure>>,
) -> Result<R, Failure> {
    contained_in(&Place::default(), within, name, callback).await
}

/// The same in a place: the time that it waits [without the limit](Place::without_limit) does not count.
pub(super) async fn contained_in<R>(
    place: &Place,
    within: Duration,
    name: &str,
    callback: impl Future<Output = Result<R, Failure>>,
) -> Result<R, Failure> {
    contained(async {
        let limited = limited(place, within, callback).await;
        limited.unwrap_or_else(|| Err(Failure::new(format!("{name} took longer than {within:?}"))))
    })
    .await
}

/// Nothing if the time of a callback is over.
async fn limited<F: Future>(place: &Place, within: Duration, callback: F) -> Option<F::Output> {
    let mut callback = pin!(callback);
    let mut limit = TimeLimit::new(Instant::now(), within);
    poll_fn(|cx| match callback.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => limit.poll(place, cx).map(|()| None),
    })
    .await
}

/// The same for a synchronous callback.
pub(super) fn contained_now<R>(callback: impl FnOnce() -> R) -> Result<R, Failure> {
    catch_panic_now(|| Ok(callback())).map_err(|panic| panicked(&panic))
}

fn panicked(reason: &crate::exit::ExitReason) -> Failure {
    Failure::from_panic(reason)
}

/// Calls `handle_failed` with the failed messages of a chunk. It may change the failures; that the
/// messages have failed stays.
pub(super) async fn settle_failed<T, F>(failed: &mut [Message<T>], within: Duration, handle: F)
where
    F: AsyncFnOnce(&mut [Message<T>]),
{
    if failed.is_empty() {
        return;
    }
    let failures: Vec<_> = failed.iter().map(|message| message.failure().cloned()).collect();
    let handled = contained_within(within, "handle_failed", async {
        handle(&mut *failed).await;
        Ok(())
    });
    let handled = handled.await;
    let panicked = handled.is_err();
    if let Err(error) = handled {
        let messages = failed.len();
        tracing::error!(messages, error = shown(&error), "handle_failed panicked or took too long");
    }
    for (message, failure) in failed.iter_mut().zip(failures) {
        if let Some(failure) = failure.filter(|_| panicked || message.failure().is_none()) {
            message.fail(failure);
        }
    }
}

/// Acknowledges messages by whether they have failed, in their order. The messages stay, because their
/// destructors are the program's.
pub(super) fn acknowledge_all<'a, T: 'a>(
    messages: impl IntoIterator<Item = &'a mut Message<T>>,
    metrics: &MessageMetrics,
) {
    let mut done = 0;
    let outcomes = messages.into_iter().filter_map(|message| {
        match message.failure() {
            Some(failure) => metrics.failed(failure.kind()),
            None => done += 1,
        }
        message.take_outcome()
    });
    acknowledge(outcomes);
    metrics.done(done);
}
