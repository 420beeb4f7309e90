//! A stage that maps several events at the same time.

use std::{
    fmt,
    future::{Future, pending},
    vec,
};

use futures::{FutureExt, StreamExt, stream::FuturesOrdered};

use crate::{
    exit::ExitReason,
    stage::{Emitter, ProducerConsumer},
    subscription::Subscription,
    wiring::Unprocessed,
};

/// Creates a stage that maps each event to another by an async function, up to `concurrency` events at the
/// same time. The results are emitted in the order of the events.
///
/// An event that takes long holds back the results behind it: they count among the `concurrency`. The
/// functions run in the task of the stage, so one that computes for long should do so in a task of its own.
/// Up to `concurrency` events more than were asked for are in work. When the source has ended, the last
/// results are emitted together.
///
/// For messages that are acknowledged, [`Processors`](crate::processing::Processors) do the same, and for work
/// without results a [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor).
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     step::{for_each, map_async},
///     subscription::SubscribeOptions,
/// };
///
/// async fn price(product: u64) -> (u64, f64) {
///     // Asks a service.
///     (product, 1.5)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("prices")
///     .producer(from_iter(0..100))
///     .producer_consumer(map_async(20, price), SubscribeOptions::new().max_demand(40))
///     .consumer(for_each(async |priced| println!("{priced:?}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.join().await;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If `concurrency` is 0.
pub fn map_async<E, F, Fut>(concurrency: usize, function: F) -> MapAsync<E, F, Fut>
where
    F: FnMut(E) -> Fut,
    Fut: Future,
{
    assert!(concurrency > 0, "a stage works on at least one event");
    let (running, done) = (FuturesOrdered::new(), Vec::new());
    MapAsync { concurrency, function, running, begun: 0, done, rest: Vec::new().into_iter() }
}

/// The stage returned by [`map_async`].
#[must_use]
pub struct MapAsync<E, F, Fut: Future> {
    concurrency: usize,
    function: F,
    running: FuturesOrdered<Fut>,
    /// The events that were begun and whose results were not taken: those that are running, and one whose
    /// function has panicked.
    begun: usize,
    /// Results that are not emitted yet, before those that are running.
    done: Vec<Fut::Output>,
    /// The events of the current callback that were not begun.
    rest: vec::IntoIter<E>,
}

impl<E, F, Fut: Future> MapAsync<E, F, Fut> {
    /// The next result. `None` if nothing is running.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn next(&mut self) -> Option<Fut::Output> {
        let done = self.running.next().await?;
        self.begun -= 1;
        Some(done)
    }
}

#[diagnostic::do_not_recommend]
impl<E, F, Fut> ProducerConsumer for MapAsync<E, F, Fut>
where
    E: Send + 'static,
    F: FnMut(E) -> Fut + Send + 'static,
    Fut: Future<Output: Send + 'static> + Send + 'static,
{
    type In = E;
    type Out = Fut::Output;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, Fut::Output>,
    ) -> Result<(), ExitReason> {
        out.emit_all(self.done.drain(..));
        self.rest = events.into_iter();
        while self.rest.len() > 0 {
            while self.running.len() >= self.concurrency {
                out.emit_all(self.next().await);
            }
            if let Some(event) = self.rest.next() {
                self.begun += 1;
                self.running.push_back((self.function)(event));
            }
        }
        Ok(())
    }

    async fn ready(&mut self) {
        if self.done.is_empty() {
            match self.next().await {
                Some(done) => self.done.push(done),
                None => pending().await,
            }
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, Fut::Output>) -> Result<(), ExitReason> {
        out.emit_all(self.done.drain(..));
        while let Some(Some(done)) = self.next().now_or_never() {
            out.emit(done);
        }
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, Fut::Output>) -> Result<(), ExitReason> {
        out.emit_all(self.done.drain(..));
        while let Some(done) = self.next().await {
            out.emit(done);
        }
        Ok(())
    }

    fn pending(&self) -> usize {
        self.done.len()
    }

    fn unprocessed(&self) -> Option<Unprocessed> {
        Some(Unprocessed { pending: self.rest.len(), in_progress: self.begun })
    }
}

impl<E, F, Fut: Future> fmt::Debug for MapAsync<E, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapAsync")
            .field("concurrency", &self.concurrency)
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    use parking_lot::Mutex;
    use tokio::time::sleep;

    use super::*;
    use crate::{Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions};

    /// Maps 40 numbers, of which even ones take longer, and returns the results and how many ran at once.
    async fn mapped(concurrency: usize) -> (Vec<u64>, usize) {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most_seen = most.clone();
        let half = move |n: u64| {
            let (running, most) = (running.clone(), most_seen.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
                sleep(Duration::from_millis(if n.is_multiple_of(2) { 50 } else { 5 })).await;
                running.fetch_sub(1, Relaxed);
                n
            }
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let keep = for_each(move |n: u64| {
            kept.lock().push(n);
            async {}
        });
        let mut pipeline = Pipeline::builder("test")
            .producer(from_iter(0..40))
            .producer_consumer(map_async(concurrency, half), SubscribeOptions::new().max_demand(7))
            .consumer(keep, SubscribeOptions::new().max_demand(5))
            .start()
            .unwrap();
        assert_eq!(pipeline.join().await.unprocessed(), 0);
        (Arc::into_inner(seen).unwrap().into_inner(), most.load(Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_in_the_order_of_the_events_and_so_many_run_at_once() {
        for concurrency in [1, 3, 4] {
            let (seen, most) = mapped(concurrency).await;
            assert_eq!(seen, (0..40).collect::<Vec<_>>());
            assert_eq!(most, concurrency);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_work_when_the_time_is_over_is_counted() {
        for concurrency in [1, 3, 5, 10] {
            let never = |_: u64| pending::<u64>();
            let pipeline = Pipeline::builder("test")
                .producer(from_iter(0..5))
                .producer_consumer(map_async(concurrency, never), SubscribeOptions::new())
                .consumer(for_each(async |_| {}), SubscribeOptions::new())
                .start()
                .unwrap();
            sleep(Duration::from_millis(10)).await;
            let report = pipeline.drain(Duration::from_secs(1)).await;
            assert_eq!(report.unprocessed(), 5, "{concurrency} at once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_whose_function_panics_is_counted() {
        let function = |n: u64| {
            assert_ne!(n, 1, "the second event");
            async move {
                assert_ne!(n, 11, "the second event, when it is polled");
                pending::<u64>().await
            }
        };
        for first in [0, 10] {
            let mut pipeline = Pipeline::builder("test")
                .producer(from_iter(first..first + 5))
                .producer_consumer(map_async(3, function), SubscribeOptions::new())
                .consumer(for_each(async |_| {}), SubscribeOptions::new())
                .start()
                .unwrap();
            assert_eq!(pipeline.join().await.unprocessed(), 5, "from {first} on");
        }
    }
}
