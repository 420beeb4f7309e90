//! The task of a source: it connects, fetches what is asked for, and stores outcomes.

use std::{
    collections::HashSet, future::pending, hash::Hash, panic::AssertUnwindSafe, sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use pipeline_core::{
    ExitReason,
    processing::{Acknowledger, Failure, Message, Redelivery},
    shown::{described, shown},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    broker::{Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    clock::now,
    demand::Demand,
    item::{Delivery, Item},
    metrics::SourceMetrics,
    options::SourceOptions,
    random::random,
};

/// The interval at which the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval at which leases are renewed.
const SHORTEST: Duration = Duration::from_millis(10);

/// The interval of a timer that is not used.
const NEVER: Duration = Duration::from_secs(3600);

/// How many groups of outcomes are taken at once.
const OUTCOMES_AT_ONCE: usize = 64;

/// What the task of a source has.
pub(crate) struct Worker<B: Broker> {
    pub(crate) broker: Arc<B>,
    pub(crate) options: SourceOptions,
    pub(crate) demand: Arc<Demand>,
    pub(crate) fetched: mpsc::UnboundedSender<Message<Item>>,
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) metrics: SourceMetrics,
    /// The name of the stage.
    pub(crate) source: Arc<str>,
}

/// The receipt of a message: the broker's, and how often the item was delivered.
pub(crate) struct Held<R> {
    receipt: R,
    deliveries: u32,
}

/// Hands outcomes to the task of their source.
struct Outcomes<R>(mpsc::UnboundedSender<Vec<Settlement<R>>>, SourceOptions);

impl<R: Send + Sync + 'static> Acknowledger for Outcomes<R> {
    type Receipt = Held<R>;

    fn acknowledge(&self, done: Vec<Held<R>>, failed: Vec<(Held<R>, Failure)>) {
        let done = done.into_iter().map(|held| (held, Outcome::Done));
        let failed = failed.into_iter().map(|(held, failure)| {
            let outcome = outcome(&failure, held.deliveries, &self.1, random());
            (held, outcome)
        });
        let settlements = done.chain(failed);
        let settlement =
            |(held, outcome): (Held<R>, _)| Settlement { receipt: held.receipt, outcome };
        // The task ends before only if its pipeline was dropped. Then the items are delivered again.
        let _ = self.0.send(settlements.map(settlement).collect());
    }
}

/// What becomes of an item that has failed after so many deliveries.
fn outcome(failure: &Failure, deliveries: u32, options: &SourceOptions, random: f64) -> Outcome {
    if failure.kind().is_unhandled() {
        return Outcome::Release { after: Duration::ZERO };
    }
    let is_last = deliveries >= options.max_deliveries;
    match failure.redelivery() {
        Redelivery::Never => Outcome::GiveUp { reason: failure.to_string().into() },
        Redelivery::Later(after) => Outcome::Release { after },
        _ if is_last => Outcome::GiveUp { reason: failure.to_string().into() },
        Redelivery::After(delay) => Outcome::Retry(delay),
        Redelivery::Usual => Outcome::Retry(options.redeliver.nth_delay(deliveries.max(1), random)),
    }
}

/// What is kept between sessions.
struct State<R> {
    outcomes: mpsc::UnboundedReceiver<Vec<Settlement<R>>>,
    /// Outcomes that are not stored yet.
    unsettled: Vec<Settlement<R>>,
    /// Whether no more outcomes come.
    ended: bool,
    /// How often the broker has failed since a call succeeded.
    failures: u32,
}

/// The items that were fetched and whose outcome is not stored.
struct HeldItems<R> {
    receipts: Mutex<HashSet<R>>,
    settled: Notify,
}

impl<R: Eq + Hash> HeldItems<R> {
    /// Removes items whose outcome is stored.
    fn forget(&self, receipts: impl Iterator<Item = R>) {
        let mut held = self.receipts.lock();
        receipts.for_each(|receipt| {
            held.remove(&receipt);
        });
        drop(held);
        self.settled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<R>> {
        self.receipts.lock()
    }

    /// How many more there may be, and waits until there may be one. A broker that stores outcomes more
    /// slowly than it delivers would have them pile up here.
    async fn room(&self, limit: usize) -> usize {
        loop {
            let settled = self.settled.notified();
            let room = limit.saturating_sub(self.lock().len());
            if room > 0 {
                return room;
            }
            settled.await;
        }
    }
}

/// Runs the task of a source until it was stopped and has stored all outcomes.
pub(crate) async fn work<B: Broker>(worker: Worker<B>) {
    #[expect(clippy::disallowed_methods, reason = "no more items are held than the options say")]
    let (sender, outcomes) = mpsc::unbounded_channel();
    let mut fetcher = Some(Fetcher { outcomes: Arc::new(Outcomes(sender, worker.options)) });
    let held = HeldItems { receipts: Mutex::default(), settled: Notify::new() };
    let mut state = State { outcomes, unsettled: Vec::new(), ended: false, failures: 0 };
    loop {
        let session = async {
            let (fetch, settle) = worker.broker.connect().await?;
            worker.metrics.connected(true);
            let fetching = worker.fetch(fetch, &mut fetcher, &held);
            let settling = worker.settle(settle, &mut state, &held);
            tokio::select! {
                failed = fetching => failed,
                settled = settling => settled,
            }
        };
        let ended = AssertUnwindSafe(session).catch_unwind().await;
        worker.metrics.connected(false);
        let error = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => BrokerError::new(ExitReason::from_panic(&*panic).to_string()),
        };
        worker.metrics.failed(&described(&error), held.lock().len());
        state.failures = state.failures.saturating_add(1);
        let delay = worker.options.reconnect.nth_delay(state.failures, random());
        tracing::warn!(
            stage = &*worker.source,
            error = shown(&error),
            ?delay,
            "the broker of a source failed, connecting again"
        );
        sleep(delay).await;
    }
}

/// What makes messages of items. Without it, no more outcomes come than those of messages.
struct Fetcher<R> {
    outcomes: Arc<Outcomes<R>>,
}

impl<B: Broker> Worker<B> {
    /// Fetches what is asked for, until the source is stopped, and waits then. Returns the error of a
    /// call that has failed.
    async fn fetch(
        &self,
        mut fetch: B::Fetch,
        fetcher: &mut Option<Fetcher<B::Receipt>>,
        held: &HeldItems<B::Receipt>,
    ) -> Result<(), BrokerError> {
        let mut stopped = self.stopped.clone();
        if let Some(fetcher) = fetcher {
            tokio::select! {
                // The source is gone, or has to stop.
                _ = stopped.wait_for(|stopped| *stopped) => {}
                failed = self.fetch_on(&mut fetch, fetcher, held) => return failed,
            }
        }
        *fetcher = None;
        pending().await
    }

    async fn fetch_on(
        &self,
        fetch: &mut B::Fetch,
        fetcher: &Fetcher<B::Receipt>,
        held: &HeldItems<B::Receipt>,
    ) -> Result<(), BrokerError> {
        loop {
            // What is taken here is lost if the call fails, so it is given back first.
            let room = held.room(self.options.max_unsettled).await;
            let wanted = self.demand.take(self.options.fetch_at_once.min(room)).await;
            let unanswered = GiveBack { demand: &self.demand, items: wanted };
            let fetched = fetch.fetch(wanted).await?;
            unanswered.answer(fetched.len());
            for delivery in fetched {
                self.deliver(delivery, fetcher, held);
            }
        }
    }

    /// Hands an item to the stage, unless it cannot be read or was delivered too often without an outcome.
    fn deliver(
        &self,
        delivery: Delivery<B::Receipt>,
        fetcher: &Fetcher<B::Receipt>,
        held: &HeldItems<B::Receipt>,
    ) {
        self.metrics.fetched(delivery.deliveries > 1);
        held.lock().insert(delivery.receipt.clone());
        let (metadata, deliveries) = (delivery.metadata(), delivery.deliveries);
        let receipt = Held { receipt: delivery.receipt, deliveries };
        let mut message =
            Message::new(delivery.item, receipt, &fetcher.outcomes).with_metadata(metadata);
        let too_often = deliveries > self.options.max_deliveries;
        let why = delivery.malformed.map(|why| why.to_string()).or_else(|| {
            too_often.then(|| format!("delivered {deliveries} times without an outcome"))
        });
        if let Some(why) = why {
            message.fail(Failure::new(why).give_up());
            message.acknowledge_now();
            self.demand.add(1);
            return;
        }
        // A stage that has ended drops it, which gives it back.
        let _ = self.fetched.send(message);
    }

    /// Stores outcomes until there are no more, renews leases, and samples the backlog.
    async fn settle(
        &self,
        settle: B::Settle,
        state: &mut State<B::Receipt>,
        held: &HeldItems<B::Receipt>,
    ) -> Result<(), BrokerError> {
        let lease = self.broker.lease();
        // Two renewals may fail before a lease is over.
        let mut renew = interval(lease.map_or(NEVER, |lease| lease / 3).max(SHORTEST));
        let mut sample = interval(SAMPLE_INTERVAL);
        for timer in [&mut renew, &mut sample] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut arrived = Vec::new();
        loop {
            while !state.unsettled.is_empty() {
                let at_once = state.unsettled.len().min(self.options.settle_at_once);
                let not_stored = settle.settle(&state.unsettled[..at_once]).await?;
                if let Some(NotStored { error, .. }) = not_stored.into_iter().next() {
                    return Err(error);
                }
                state.failures = 0;
                let settled = state.unsettled.drain(..at_once);
                held.forget(settled.map(|Settlement { receipt, outcome }| {
                    self.metrics.settled(&outcome);
                    receipt
                }));
            }
            if state.ended {
                return Ok(());
            }
            tokio::select! {
                count = state.outcomes.recv_many(&mut arrived, OUTCOMES_AT_ONCE) => {
                    state.ended = count == 0;
                    state.unsettled.extend(arrived.drain(..).flatten());
                }
                _ = renew.tick(), if lease.is_some() => {
                    let receipts: Vec<_> = held.lock().iter().cloned().collect();
                    if !receipts.is_empty() {
                        settle.renew(&receipts).await?;
                        state.failures = 0;
                    }
                }
                _ = sample.tick() => {
                    let backlog = settle.backlog().await?;
                    state.failures = 0;
                    let held = held.lock().len();
                    self.metrics.sample(&backlog, held, now());
                }
            }
        }
    }
}

/// Demand that is given back as far as it is not answered, also when the call is dropped.
struct GiveBack<'a> {
    demand: &'a Demand,
    items: usize,
}

impl GiveBack<'_> {
    fn answer(mut self, items: usize) {
        self.items = self.items.saturating_sub(items);
    }
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.demand.add(self.items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(failure: &Failure, deliveries: u32) -> Outcome {
        let options = SourceOptions::new().max_deliveries(3);
        outcome(failure, deliveries, &options, 1.0)
    }

    #[test]
    fn a_failed_item_is_delivered_again_after_growing_delays_and_then_given_up() {
        let delays = [1, 2].map(|n| decided(&Failure::new("no"), n));
        assert_eq!(delays, [1, 2].map(|n| Outcome::Retry(Duration::from_secs(n))));
        assert_eq!(decided(&Failure::new("no"), 3), Outcome::GiveUp { reason: "no".into() });
    }

    #[test]
    fn a_failure_says_what_becomes_of_its_item() {
        let gone = decided(&Failure::new("gone").give_up(), 1);
        assert_eq!(gone, Outcome::GiveUp { reason: "gone".into() });
        let busy = || Failure::new("busy").retry_after(Duration::from_secs(9));
        assert_eq!(decided(&busy(), 1), Outcome::Retry(Duration::from_secs(9)));
        assert_eq!(decided(&busy(), 3), Outcome::GiveUp { reason: "busy".into() });
        let minute = Duration::from_secs(60);
        let later = decided(&Failure::new("absent").later(minute), 1000);
        assert_eq!(later, Outcome::Release { after: minute });
    }
}
