//! A stage that maps several events at the same time.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, Ready, pending, ready},
    hash::{BuildHasher, Hash},
    vec,
};

use futures::{
    FutureExt, StreamExt,
    future::{Join, join},
    stream::{FuturesOrdered, FuturesUnordered},
};
use metrics::Gauge;

use crate::{
    exit::ExitReason,
    stage::{Emitter, ProducerConsumer, ProducerConsumerHandle, StageContext},
    subscription::Subscription,
    wiring::Unprocessed,
};

/// Creates a stage that maps each event to another by an async function, up to `concurrency` events at the
/// same time. The results are emitted in the order of the events, or in that of each
/// [key](MapAsync::ordered_by_key).
///
/// An event that takes long holds back the results behind it: they count among the `concurrency`. The
/// functions run in the task of the stage, so one that computes for long should do so in a task of its own.
/// Up to `concurrency` events more than were asked for are in work. The results of events that arrive together
/// are emitted when the last of these events has begun, so a `max_demand` of little more than `concurrency` is
/// best. When the source has ended, the last results are emitted together.
///
/// A function that may take too long limits itself, for example by `tokio::time::timeout`, and the result says
/// so.
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
    let (running, done) = (Running::InOrder(FuturesOrdered::new()), Vec::new());
    let rest = Vec::new().into_iter();
    let in_work = Gauge::noop();
    MapAsync { concurrency, function, running, begun: 0, done, rest, in_work }
}

/// The stage returned by [`map_async`].
#[must_use]
pub struct MapAsync<E, F, Fut: Future> {
    concurrency: usize,
    function: F,
    running: Running<E, Fut>,
    /// The events that were begun and whose results were not taken: those that are running, those that wait for
    /// others, and one whose function has panicked.
    begun: usize,
    /// Results that are not emitted yet, before those that are running.
    done: Vec<Fut::Output>,
    /// The events of the current callback that were not begun.
    rest: vec::IntoIter<E>,
    /// Shows [`begun`](Self::begun).
    in_work: Gauge,
}

/// The hash of an event's key.
type KeyOf<E> = Box<dyn Fn(&E) -> u64 + Send>;

/// The functions that are running, and the results that wait for others before them.
enum Running<E, Fut: Future> {
    InOrder(FuturesOrdered<Fut>),
    ByKey(KeyOf<E>, ByKey<Fut>),
}

/// Functions whose results are in order by key.
struct ByKey<Fut: Future> {
    /// Each with its key and its number.
    running: FuturesUnordered<Join<Fut, Ready<(u64, u64)>>>,
    keys: foldhash::HashMap<u64, Lane<Fut::Output>>,
    /// Results that no others are before.
    ready: VecDeque<Fut::Output>,
}

/// The events of a key that have begun, in their order, with the results that are there.
struct Lane<T> {
    /// The number of the first one.
    first: u64,
    results: VecDeque<Option<T>>,
}

impl<Fut: Future> ByKey<Fut> {
    fn new() -> Self {
        let (running, ready) = (FuturesUnordered::new(), VecDeque::new());
        Self { running, keys: foldhash::HashMap::default(), ready }
    }

    fn push(&mut self, key: u64, future: Fut) {
        let lane =
            self.keys.entry(key).or_insert_with(|| Lane { first: 0, results: VecDeque::new() });
        let nth = lane.first + lane.results.len() as u64;
        lane.results.push_back(None);
        self.running.push(join(future, ready((key, nth))));
    }

    /// The next result that no others of its key are before. `None` if nothing is running.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn next(&mut self) -> Option<Fut::Output> {
        loop {
            if let Some(result) = self.ready.pop_front() {
                return Some(result);
            }
            let (result, (key, nth)) = self.running.next().await?;
            self.done(key, nth, result);
        }
    }

    /// A function has returned.
    fn done(&mut self, key: u64, nth: u64, result: Fut::Output) {
        let Some(lane) = self.keys.get_mut(&key) else { return };
        let place = usize::try_from(nth - lane.first).ok();
        if let Some(place) = place.and_then(|place| lane.results.get_mut(place)) {
            *place = Some(result);
        }
        while let Some(Some(_)) = lane.results.front() {
            self.ready.extend(lane.results.pop_front().flatten());
            lane.first += 1;
        }
        if lane.results.is_empty() {
            self.keys.remove(&key);
        }
    }
}

impl<E, F, Fut: Future> MapAsync<E, F, Fut> {
    /// Emits the results of each key in the order of its events, and those of different keys as they come: an
    /// event that takes long holds back those of its own key alone. A key may be a user's id.
    ///
    /// Several events of a key are in work at the same time, and their results wait for each other. Those that wait
    /// count among the `concurrency`, so one key with so many events behind a slow one holds up all others until
    /// that one is done. To begin the next event of a key when the one before it is done, and not earlier, use
    /// [`ConsumerSupervisor::ordered_by_key`](crate::supervisor::ConsumerSupervisor::ordered_by_key) or
    /// [`Processors::partition_by`](crate::processing::Processors::partition_by).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{
    ///     Pipeline,
    ///     source::from_iter,
    ///     step::{for_each, map_async},
    ///     subscription::SubscribeOptions,
    /// };
    ///
    /// /// Asks a service for the user's name.
    /// async fn named((user, text): (u64, &str)) -> String {
    ///     tokio::time::sleep(Duration::from_millis(if user == 1 { 50 } else { 1 })).await;
    ///     format!("user {user}: {text}")
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    /// # let kept = seen.clone();
    /// let named = map_async(20, named).ordered_by_key(|(user, _)| *user);
    /// let mut pipeline = Pipeline::builder("notices")
    ///     .producer(from_iter([(1, "first"), (1, "second"), (2, "for another")]))
    ///     .producer_consumer(named, SubscribeOptions::new())
    ///     // User 2 does not wait for the first two.
    ///     .consumer(for_each(async move |line| {
    ///         println!("{line}");
    /// #       kept.lock().unwrap().push(line);
    ///     }), SubscribeOptions::new())
    ///     .start()?;
    /// pipeline.join().await;
    /// # let lines = ["user 2: for another", "user 1: first", "user 1: second"];
    /// # assert_eq!(*seen.lock().unwrap(), lines);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ordered_by_key<K: Hash>(mut self, key: impl Fn(&E) -> K + Send + 'static) -> Self {
        // The results of two keys with the same hash wait for each other, which changes no order.
        let hasher = foldhash::quality::RandomState::default();
        let key_of = move |event: &E| hasher.hash_one(key(event));
        self.running = Running::ByKey(Box::new(key_of), ByKey::new());
        self
    }

    /// Begins to work on an event.
    fn begin(&mut self, event: E)
    where
        F: FnMut(E) -> Fut,
    {
        self.begun += 1;
        match &mut self.running {
            Running::InOrder(running) => running.push_back((self.function)(event)),
            Running::ByKey(key_of, running) => {
                let key = key_of(&event);
                running.push(key, (self.function)(event));
            }
        }
    }

    fn show(&self) {
        self.in_work.set(self.begun as f64);
    }

    /// The next result. `None` if nothing is running.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn next(&mut self) -> Option<Fut::Output> {
        let done = match &mut self.running {
            Running::InOrder(running) => running.next().await,
            Running::ByKey(_, running) => running.next().await,
        }?;
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

    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        let of_stage = [("pipeline", context.pipeline()), ("stage", context.stage())];
        self.in_work = context.telemetry().gauge(
            "pipeline.stage.in_work",
            "Events that a `map_async` has begun and not emitted",
            of_stage.map(|(label, name)| (label, name.to_owned())),
        );
        self.show();
        Ok(())
    }

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, Fut::Output>,
    ) -> Result<(), ExitReason> {
        out.emit_all(self.done.drain(..));
        self.rest = events.into_iter();
        while self.rest.len() > 0 {
            if self.begun >= self.concurrency {
                self.show();
            }
            while self.begun >= self.concurrency {
                out.emit_all(self.next().await);
            }
            if let Some(event) = self.rest.next() {
                self.begin(event);
            }
        }
        self.show();
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
        self.show();
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, Fut::Output>) -> Result<(), ExitReason> {
        out.emit_all(self.done.drain(..));
        while let Some(done) = self.next().await {
            out.emit(done);
        }
        self.show();
        Ok(())
    }

    fn pending(&self) -> usize {
        self.done.len()
    }

    fn unprocessed(&self) -> Option<Unprocessed> {
        Some(Unprocessed { pending: self.rest.len(), in_progress: self.begun })
    }
}

impl<E, F, Fut: Future> Drop for MapAsync<E, F, Fut> {
    /// A stage that is stopped or fails drops the functions that it runs.
    fn drop(&mut self) {
        self.in_work.set(0.0);
    }
}

impl<E, F, Fut: Future> fmt::Debug for MapAsync<E, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapAsync")
            .field("concurrency", &self.concurrency)
            .field("running", &self.begun)
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
        for (concurrency, by_key) in [(1, false), (3, false), (5, false), (10, false), (3, true)] {
            let mut map = map_async(concurrency, |_: u64| pending::<u64>());
            if by_key {
                map = map.ordered_by_key(|n| n % 2);
            }
            let pipeline = Pipeline::builder("test")
                .producer(from_iter(0..5))
                .producer_consumer(map, SubscribeOptions::new())
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
    #[tokio::test(start_paused = true)]
    async fn by_key_results_that_wait_and_an_event_whose_key_panics_are_counted() {
        // The first one never ends, and the two behind it in its key wait for it.
        let map = map_async(4, async |n: u64| if n == 0 { pending().await } else { n })
            .ordered_by_key(|n| {
                assert_ne!(*n, 5, "the key of the last event");
                n % 2
            });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let keep = for_each(move |n: u64| {
            kept.lock().push(n);
            async {}
        });
        let (pushed, events) = tokio::sync::mpsc::channel(10);
        let events = futures::stream::unfold(events, async |mut events| {
            Some((tokio::sync::mpsc::Receiver::recv(&mut events).await?, events))
        });
        let mut pipeline = Pipeline::builder("test")
            .producer(crate::source::from_stream(events))
            .producer_consumer(map, SubscribeOptions::new())
            .consumer(keep, SubscribeOptions::new())
            .start()
            .unwrap();
        for n in [0, 1, 2, 4] {
            pushed.send(n).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*seen.lock(), [1], "2 and 4 wait for 0");
        pushed.send(5).await.unwrap();
        let report = pipeline.join().await;
        assert!(report.failure().unwrap().reason.to_string().contains("the key of the last event"));
        assert_eq!(report.unprocessed(), 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn results_of_each_key_are_in_order_on_many_threads_and_so_many_run_at_once() {
        const EVENTS: u64 = 3000;
        for (concurrency, keys) in [(1, 3), (7, 3), (16, 1), (50, 20)] {
            let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let most_seen = most.clone();
            let function = move |n: u64| {
                let (running, most) = (running.clone(), most_seen.clone());
                async move {
                    most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
                    // In another thread, and for a time that has nothing to do with the order.
                    let turns = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 61;
                    let work = async move {
                        for _ in 0..turns {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::spawn(work).await.unwrap();
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
            let map = map_async(concurrency, function).ordered_by_key(move |n| n % keys);
            let mut pipeline = Pipeline::builder("test")
                .producer(from_iter(0..EVENTS))
                .producer_consumer(map, SubscribeOptions::new().max_demand(13))
                .consumer(keep, SubscribeOptions::new().max_demand(9))
                .start()
                .unwrap();
            assert_eq!(pipeline.join().await.unprocessed(), 0);
            let seen = seen.lock();
            assert_eq!(seen.len(), usize::try_from(EVENTS).unwrap());
            for key in 0..keys {
                let of_key = seen.iter().copied().filter(|n| n % keys == key);
                assert!(of_key.eq((0..EVENTS).filter(|n| n % keys == key)), "key {key} of {keys}");
            }
            assert!(most.load(Relaxed) <= concurrency);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn other_keys_do_not_wait_for_an_event_that_takes_long() {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let waits = gate.clone();
        let function = move |n: u64| {
            let gate = waits.clone();
            async move {
                if n == 0 {
                    gate.acquire().await.unwrap().forget();
                }
                n
            }
        };
        let (results, mut seen) = tokio::sync::mpsc::channel(200);
        let keep = for_each(move |n: u64| {
            let sent = results.try_send(n);
            async move { sent.unwrap() }
        });
        // Ten events of key 0 are behind the first one, and hold ten of the twenty places.
        let map = map_async(20, function).ordered_by_key(|n| n % 10);
        let numbers = futures::stream::iter(0..100).chain(futures::stream::pending());
        let pipeline = Pipeline::builder("test")
            .producer(crate::source::from_stream(numbers))
            .producer_consumer(map, SubscribeOptions::new())
            .consumer(keep, SubscribeOptions::new())
            .start()
            .unwrap();
        let mut first = Vec::new();
        let others = async {
            while first.len() < 90 {
                first.push(seen.recv().await.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(60), others).await.expect("they do not wait");
        first.sort_unstable();
        assert_eq!(first, (0..100).filter(|n| n % 10 != 0).collect::<Vec<_>>());
        gate.add_permits(1);
        assert_eq!(pipeline.drain(Duration::from_secs(60)).await.unprocessed(), 0);
        let rest: Vec<_> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
        assert_eq!(rest, (0..100).step_by(10).collect::<Vec<_>>());
    }
}
