//! The task of a source: it connects, fetches what is asked for, and stores outcomes.

use std::{
    convert::Infallible,
    future::pending,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use parking_lot::Mutex as Lock;
use pipeline_core::{
    ExitReason,
    processing::{Failure, Message},
    shown::{described, shown},
};
use tokio::{
    sync::{
        Mutex, Notify,
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    broker::{Ahead, Broker, BrokerError, Fetch, Outcome, Settle, Wanted},
    clock::now,
    demand::Demand,
    fetch_size::FetchSize,
    held::HeldItems,
    item::{Delivery, Item},
    log::LineLimit,
    metrics::SourceMetrics,
    options::{SourceOptions, in_lease},
    outcomes::{Before, Held, Outcomes, Shared},
    random::random,
    reconnects::Reconnects,
    unsettled::{About, Queue, Unsettled},
    woken::{Postponed, Signal, Woken},
};

/// The interval at which the backlog is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// After so many failures in a row, the interval at which the backlog is sampled grows no more: it is a
/// minute then.
const MOST_DOUBLINGS: u32 = 6;

/// The shortest interval at which leases are renewed.
const SHORTEST: Duration = Duration::from_millis(10);

/// The longest interval at which leases are renewed, however long they are. A timer cannot count longer ones.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How many groups of outcomes are taken at once.
const OUTCOMES_AT_ONCE: usize = 64;

/// How long the end of a source waits for its broker.
const CLOSING: Duration = Duration::from_secs(5);

/// A session has worked when so many calls in a row were answered, or when it has fetched an item.
const HEALTHY_CALLS: u32 = 3;

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
    pub(crate) lines: Lock<Lines>,
    pub(crate) fetch_size: Lock<FetchSize>,
}

/// The lines of the log that many items may cause.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    given_up: LineLimit,
    not_stored: LineLimit,
    backlog: LineLimit,
    brought_forward: LineLimit,
    stalled: LineLimit,
    not_woken: LineLimit,
}

/// What is kept between sessions.
struct State<R> {
    arriving: mpsc::UnboundedReceiver<Vec<Unsettled<R>>>,
    arrived: Vec<Vec<Unsettled<R>>>,
    /// Outcomes that are not stored yet.
    unsettled: Queue<R>,
    /// Whether no more outcomes come.
    ended: bool,
    shared: Arc<Shared>,
}

impl<R: Clone> State<R> {
    /// Waits for outcomes, and takes them. It never returns when no more come.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: outcomes that it has received are taken.
    async fn receive(&mut self) {
        if self.ended {
            return pending().await;
        }
        let count = self.arriving.recv_many(&mut self.arrived, OUTCOMES_AT_ONCE).await;
        self.ended = count == 0;
        for unsettled in self.arrived.drain(..).flatten() {
            // It may have become useless on its way.
            if self.shared.counts(unsettled.about.session) {
                self.unsettled.push(unsettled);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.ended && self.unsettled.is_empty()
    }
}

/// What makes messages of items. Without it, no more outcomes come than those of messages.
struct Fetcher<R> {
    outcomes: Arc<Outcomes<R>>,
}

/// What the parts of a session share.
struct Session<'a, B: Broker> {
    worker: &'a Worker<B>,
    number: u64,
    held: &'a HeldItems<B::Receipt>,
    shared: &'a Shared,
    /// Where items go whose delay is to end.
    wakes: &'a mpsc::Sender<Signal>,
    postponed: &'a Postponed<B::Receipt>,
    /// Held while leases are renewed, so that no item is in two calls at once.
    renewing: Mutex<()>,
    /// Told when the source has stopped, and what was taken ahead is given back.
    given_back: Notify,
    served: Served,
}

/// What the broker has done in a session.
#[derive(Debug, Default)]
struct Served {
    has_fetched: AtomicBool,
    /// Calls in a row that were answered.
    calls: AtomicU32,
}

impl Served {
    fn call_was_answered(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    fn has_worked(&self) -> bool {
        self.has_fetched.load(Relaxed) || self.calls.load(Relaxed) >= HEALTHY_CALLS
    }
}

/// Runs the task of a source until it was stopped, has stored all outcomes and has closed its broker.
pub(crate) async fn work<B: Broker>(worker: Worker<B>) {
    run(&worker).await;
    let closing = timeout(CLOSING, worker.broker.close());
    // What it could not say, its server notices.
    let _ = AssertUnwindSafe(closing).catch_unwind().await;
}

/// Runs sessions until the source was stopped and all outcomes are stored.
async fn run<B: Broker>(worker: &Worker<B>) {
    if let (Some(call_timeout), Some(lease)) = (worker.options.call_timeout, worker.broker.lease())
        && call_timeout > in_lease(lease)
    {
        let stage = &*worker.source;
        tracing::warn!(
            stage,
            ?call_timeout,
            ?lease,
            "the call_timeout of a source is longer than two thirds of its lease: an item may be delivered again \
             while its outcome is being stored"
        );
    }
    #[expect(clippy::disallowed_methods, reason = "no more items are held than the options say")]
    let (sender, arriving) = mpsc::unbounded_channel();
    let (options, stopped) = (worker.options, worker.stopped.clone());
    let shared = Arc::new(Shared::new(worker.broker.held_back()));
    let outcomes = Outcomes { sender, options, stopped, shared: shared.clone() };
    let mut fetcher = Some(Fetcher { outcomes: Arc::new(outcomes) });
    let (wakes, mut woken) = Woken::new();
    let (held, postponed) = (HeldItems::default(), Postponed::default());
    let unsettled = Queue::new(options.settle_at_once, options.reconnect);
    let mut state =
        State { arriving, arrived: Vec::new(), unsettled, ended: false, shared: shared.clone() };
    let (mut reconnects, mut number) = (Reconnects::new(options.reconnect), 0);
    loop {
        let connecting = worker.limited("connecting", worker.broker.connect());
        let connected = tokio::select! {
            connected = connecting => connected,
            () = worker.unneeded(&mut state, &mut fetcher) => return,
        };
        let (error, delay) = match connected {
            Err(error) => (error, reconnects.not_connected(random())),
            Ok((fetch, settle)) => {
                worker.metrics.connected(true);
                let begun = Instant::now();
                number += 1;
                shared.session_begins(number);
                let (renewing, served) = (Mutex::new(()), Served::default());
                let given_back = Notify::new();
                let (held, shared) = (&held, &*shared);
                let (wakes, postponed) = (&wakes, &postponed);
                let session = Session {
                    worker,
                    number,
                    held,
                    shared,
                    wakes,
                    postponed,
                    renewing,
                    given_back,
                    served,
                };
                state.unsettled.session_begins(begun, reconnects.good());
                let ended = session.run(fetch, settle, &mut state, &mut fetcher, &mut woken);
                let ended = AssertUnwindSafe(ended).catch_unwind().await;
                worker.metrics.connected(false);
                if !worker.broker.outlives_sessions() {
                    shared.is_lost(number);
                    shared.are_set_aside(0);
                    state.unsettled.clear();
                    held.clear();
                    postponed.clear();
                }
                worker.metrics.held(held.len(), held.bytes());
                worker.metrics.ahead(Ahead::default());
                let error = match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error,
                    Err(panic) => panicked(&*panic),
                };
                let has_worked = session.served.has_worked();
                (error, reconnects.ended(begun.elapsed(), has_worked, random()))
            }
        };
        worker.metrics.failed(&described(&error));
        worker.metrics.set_aside(state.unsettled.set_aside());
        tracing::warn!(
            stage = &*worker.source,
            error = shown(&error),
            ?delay,
            "the broker of a source failed, connecting again"
        );
        tokio::select! {
            () = sleep(delay) => {}
            () = worker.unneeded(&mut state, &mut fetcher) => return,
        }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> BrokerError {
    BrokerError::new(ExitReason::from_panic(panic).to_string())
}

impl<B: Broker> Worker<B> {
    /// Makes a call of the broker, with the limit of time for calls. A panic is an error.
    async fn limited<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let limit = self.options.calls_within(self.broker.lease());
        match AssertUnwindSafe(timeout(limit, call)).catch_unwind().await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BrokerError::new(format!("{what} took longer than {limit:?}"))),
            Err(panic) => Err(panicked(&*panic)),
        }
    }

    /// Returns when the source was stopped and no outcome is left: then the broker is not needed any more,
    /// whether it is there or not.
    async fn unneeded(
        &self,
        state: &mut State<B::Receipt>,
        fetcher: &mut Option<Fetcher<B::Receipt>>,
    ) {
        let stopped = wait_for_stop(self.stopped.clone());
        tokio::pin!(stopped);
        while !state.is_over() {
            tokio::select! {
                () = &mut stopped, if fetcher.is_some() => *fetcher = None,
                () = state.receive() => {}
            }
        }
    }
}

/// Returns when the source is gone, or has to stop.
async fn wait_for_stop(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

impl<B: Broker> Session<'_, B> {
    /// Runs until all is done, or until a call has failed.
    async fn run(
        &self,
        mut fetch: B::Fetch,
        settle: B::Settle,
        state: &mut State<B::Receipt>,
        fetcher: &mut Option<Fetcher<B::Receipt>>,
        woken: &mut Woken<B::Receipt>,
    ) -> Result<(), BrokerError> {
        self.held.none_is_stored_now();
        tokio::select! {
            error = self.fetch(&mut fetch, fetcher) => Err(error),
            settled = self.settle_all(&settle, state) => settled,
            error = self.renew(&settle) => Err(error),
            never = self.wake(&settle, woken) => match never {},
            never = self.sample(&settle) => match never {},
        }
    }

    /// Fetches what is asked for, until the source is stopped. Then it gives back what was taken ahead, and waits.
    /// Returns the error of a call that has failed.
    async fn fetch(
        &self,
        fetch: &mut B::Fetch,
        fetcher: &mut Option<Fetcher<B::Receipt>>,
    ) -> BrokerError {
        if let Some(fetcher) = fetcher {
            tokio::select! {
                () = wait_for_stop(self.worker.stopped.clone()) => {}
                Err(error) = self.fetch_on(fetch, fetcher) => return error,
            }
        }
        *fetcher = None;
        let given_back = async {
            fetch.stop().await;
            Ok(())
        };
        // What it could not give back is so when the session ends, or its lease.
        let _ = self.worker.limited("giving back items", given_back).await;
        self.given_back.notify_one();
        fetch.idle().await
    }

    async fn fetch_on(
        &self,
        fetch: &mut B::Fetch,
        fetcher: &Fetcher<B::Receipt>,
    ) -> Result<(), BrokerError> {
        let Worker { options, demand, .. } = self.worker;
        loop {
            let asked = async {
                let room = self.held.room(options.max_unsettled, options.max_unsettled_bytes).await;
                let most = self.worker.fetch_size.lock().of(options.fetch_at_once.min(room));
                (demand.take(most).await, room)
            };
            let (items, room) = tokio::select! {
                biased;
                asked = asked => asked,
                error = fetch.idle() => return Err(error),
            };
            // What was taken is lost if the call fails, so it is given back.
            let size = &self.worker.fetch_size;
            let (served, is_failed) = (&self.served, false);
            let mut unanswered =
                Unanswered { demand, size, served, items, is_answered: false, is_failed };
            let all = items.saturating_add(demand.left()).min(room);
            let (in_work, set_aside) = (self.shared.in_work(), self.shared.set_aside());
            fetch.wanted(Wanted { items: all, in_work, set_aside });
            let fetched = match fetch.fetch(items).await {
                Ok(fetched) => fetched,
                Err(error) => {
                    unanswered.is_failed = true;
                    return Err(error);
                }
            };
            let bytes = fetched.iter().map(|delivery| delivery.item.bytes()).sum();
            unanswered.answer(fetched.len(), bytes);
            if !fetched.is_empty() {
                self.served.has_fetched.store(true, Relaxed);
            }
            for delivery in fetched {
                self.deliver(delivery, fetcher);
            }
        }
    }

    /// Hands an item to the stage, unless it cannot be read or was delivered too often without an outcome.
    fn deliver(&self, delivery: Delivery<B::Receipt>, fetcher: &Fetcher<B::Receipt>) {
        let Worker { options, metrics, demand, .. } = self.worker;
        metrics.fetched(delivery.deliveries > 1);
        self.held.insert(delivery.receipt.clone(), delivery.item.bytes());
        self.shared.begins();
        self.postponed.delivered(&delivery.id);
        let (metadata, deliveries) = (delivery.metadata(), delivery.deliveries);
        let about = About { id: delivery.id, session: self.number, wake: None };
        let seen = self.shared.remembered(&about.id);
        let (is_kept, releases) = match delivery.failures {
            Some(_) => (true, 0),
            None => (false, seen.releases),
        };
        let failures = delivery.failures.unwrap_or(seen.failures);
        let before = Before { deliveries, failures, releases, is_kept };
        let too_often = before.unfinished() >= options.max_unfinished;
        let why = delivery.malformed.map(|why| why.to_string()).or_else(|| {
            let (times, unfinished) = (deliveries.saturating_sub(1), before.unfinished());
            let why =
                format!("delivered {times} times, and no outcome is known of {unfinished} of them");
            too_often.then(|| match seen.reason {
                Some(reason) => format!("{why}; before, it has failed: {reason}"),
                None => why,
            })
        });
        let receipt = Held { receipt: delivery.receipt, before, about };
        let mut message =
            Message::new(delivery.item, receipt, &fetcher.outcomes).with_metadata(metadata);
        if let Some(why) = why {
            message.fail(Failure::new(why).give_up());
            message.acknowledge_now();
            demand.add(1);
            return;
        }
        // A stage that has ended drops it, which gives it back.
        let _ = self.worker.fetched.send(message);
    }

    /// Stores outcomes until there are no more, and waits until what was taken ahead is given back, for a while at most.
    async fn settle_all(
        &self,
        settle: &B::Settle,
        state: &mut State<B::Receipt>,
    ) -> Result<(), BrokerError> {
        self.settle(settle, state).await?;
        let _ = timeout(CLOSING, self.given_back.notified()).await;
        Ok(())
    }

    /// Stores outcomes until there are no more.
    async fn settle(
        &self,
        settle: &B::Settle,
        state: &mut State<B::Receipt>,
    ) -> Result<(), BrokerError> {
        loop {
            // What has arrived is stored together.
            let _ = state.receive().now_or_never();
            let has_stored = self.store(settle, &mut state.unsettled).await?;
            self.shared.are_set_aside(state.unsettled.kept_back(Instant::now()));
            if has_stored {
                continue;
            }
            if state.is_over() {
                return Ok(());
            }
            let next = state.unsettled.next();
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = state.receive() => {}
                () = due => {}
            }
        }
    }

    /// Stores a group of outcomes. False if there is none.
    async fn store(
        &self,
        settle: &B::Settle,
        unsettled: &mut Queue<B::Receipt>,
    ) -> Result<bool, BrokerError> {
        let Session { worker, held, .. } = self;
        let Some(group) = unsettled.begin(Instant::now()) else { return Ok(false) };
        {
            let _is_renewed_no_more = self.renewing.lock().await;
            held.are_stored_now(group.iter().map(|it| &it.receipt));
        }
        let begun = Instant::now();
        let stored = worker.limited("storing outcomes", settle.settle(group)).await;
        let now = Instant::now();
        let not_stored = match stored {
            Ok(not_stored) => not_stored,
            Err(error) => {
                if let Some(about) = unsettled.failed(now, random()) {
                    self.refused(&about.id, &error);
                }
                return Err(error);
            }
        };
        self.served.call_was_answered();
        for refused in &not_stored {
            if let Some(id) = unsettled.id(refused.index) {
                self.refused(id, &refused.error);
            }
        }
        let refused: Vec<_> = not_stored.iter().map(|it| it.index).collect();
        let stored = unsettled.stored(&refused, now, random());
        held.forget(stored.iter().map(|it| &it.settlement.receipt));
        if !refused.is_empty() {
            held.none_is_stored_now();
        }
        for Unsettled { settlement, about } in stored {
            worker.metrics.settled(&settlement.outcome);
            if let Outcome::GiveUp { reason } = &settlement.outcome {
                self.given_up(&about.id, reason, now);
            }
            // Before, there was no delay to end.
            if let (Some(wake), Outcome::Release { after }) = (about.wake, settlement.outcome)
                && B::Settle::WAKES
                // It may have been delivered again meanwhile.
                && begun.checked_add(after).is_none_or(|end| end > now)
            {
                let (wakes, lost) = (self.wakes.clone(), worker.metrics.wakes_lost().clone());
                let wait = |signal| {
                    wake.on_wake(move || match wakes.try_send(signal) {
                        // A source that has ended ends no delay.
                        Ok(()) | Err(TrySendError::Closed(_)) => {}
                        Err(TrySendError::Full(_)) => lost.increment(1),
                    })
                };
                let forgotten =
                    self.postponed.keep(&about.id, settlement.receipt, after, now, wait);
                worker.metrics.wakes_lost().increment(forgotten);
            }
        }
        worker.metrics.set_aside(unsettled.set_aside());
        Ok(true)
    }

    fn given_up(&self, id: &str, reason: &str, now: Instant) {
        let Some(skipped) = self.worker.lines.lock().given_up.line(now) else { return };
        let (stage, id, reason) = (&*self.worker.source, shown(id), shown(reason));
        tracing::warn!(stage, id, reason, skipped, "a source has given an item up");
    }

    fn refused(&self, id: &str, error: &BrokerError) {
        self.worker.metrics.not_stored();
        let Some(skipped) = self.worker.lines.lock().not_stored.line(Instant::now()) else {
            return;
        };
        let (stage, id, error) = (&*self.worker.source, shown(id), described(error));
        tracing::warn!(
            stage,
            id,
            error,
            skipped,
            "the broker of a source does not store an outcome, it is tried again alone"
        );
    }

    /// Renews leases. Returns the error of a call that has failed.
    async fn renew(&self, settle: &B::Settle) -> BrokerError {
        let Some(lease) = self.worker.broker.lease() else { return pending().await };
        // Two renewals may fail before a lease is over.
        let mut timer = interval((lease / 3).clamp(SHORTEST, LONGEST));
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let _renewing = self.renewing.lock().await;
            let receipts = self.held.to_renew();
            if receipts.is_empty() {
                continue;
            }
            let renewed = self.worker.limited("renewing leases", settle.renew(&receipts)).await;
            if let Err(error) = renewed {
                return error;
            }
            self.served.call_was_answered();
        }
    }

    /// Ends the delays of items. A call that fails is made again after a pause, in this session or in the next one, and
    /// ends nothing: without it, delays end by themselves.
    async fn wake(&self, settle: &B::Settle, woken: &mut Woken<B::Receipt>) -> Infallible {
        let Worker { options, metrics, .. } = self.worker;
        loop {
            let given_up = woken.give_up(self.postponed);
            metrics.wakes_lost().increment(given_up as u64);
            let receipts = woken.next(options.settle_at_once, self.postponed).await;
            if receipts.is_empty() {
                return pending().await;
            }
            let ended = self.worker.limited("ending delays", settle.wake(receipts)).await;
            if let Err(error) = ended {
                woken.failed(Instant::now());
                self.not_woken(&error);
                continue;
            }
            self.served.call_was_answered();
            woken.done(self.postponed);
        }
    }

    fn not_woken(&self, error: &BrokerError) {
        self.served.calls.store(0, Relaxed);
        let Some(skipped) = self.worker.lines.lock().not_woken.line(Instant::now()) else {
            return;
        };
        let (stage, error) = (&*self.worker.source, described(error));
        tracing::warn!(stage, error, skipped, "the broker of a source does not end delays");
    }

    /// Samples the backlog, and what is held. A sample that fails ends nothing.
    async fn sample(&self, settle: &B::Settle) -> Infallible {
        tokio::select! {
            never = self.sample_backlog(settle) => never,
            never = self.sample_held(settle) => never,
        }
    }

    async fn sample_backlog(&self, settle: &B::Settle) -> Infallible {
        /// After so many samples without anything new it is no usual moment.
        const LONG: u32 = 5;
        let worker = self.worker;
        let mut failures = 0_u32;
        let mut samples = 0_u32;
        loop {
            match worker.limited("counting the backlog", settle.backlog()).await {
                Ok(backlog) => {
                    failures = 0;
                    self.served.call_was_answered();
                    worker.metrics.backlog(&backlog, now());
                    self.brought_forward(backlog.brought_forward);
                    samples = if backlog.stalled.is_some() { samples.saturating_add(1) } else { 0 };
                    let stalled = backlog.stalled.filter(|_| samples >= LONG);
                    worker.metrics.stalled(stalled.is_some());
                    if let Some(why) = stalled {
                        self.stalled(why);
                    }
                }
                Err(error) => {
                    (failures, samples) = (failures.saturating_add(1), 0);
                    self.served.calls.store(0, Relaxed);
                    worker.metrics.backlog_failed();
                    let line = worker.lines.lock().backlog.line(Instant::now());
                    if let Some(skipped) = line {
                        let (stage, error) = (&*worker.source, described(&error));
                        tracing::warn!(stage, error, skipped, "a source cannot count its backlog");
                    }
                }
            }
            sleep(SAMPLE_INTERVAL.saturating_mul(1 << failures.min(MOST_DOUBLINGS))).await;
        }
    }

    fn stalled(&self, why: &str) {
        if let Some(skipped) = self.worker.lines.lock().stalled.line(Instant::now()) {
            let stage = &*self.worker.source;
            tracing::warn!(stage, why, skipped, "a source gets no more items, although some wait");
        }
    }

    fn brought_forward(&self, items: u64) {
        if items == 0 {
            return;
        }
        let Some(skipped) = self.worker.lines.lock().brought_forward.line(Instant::now()) else {
            return;
        };
        let stage = &*self.worker.source;
        tracing::warn!(
            stage,
            items,
            skipped,
            "items had waited for a time that a clock had set which was ahead, and wait no longer than they \
             were to"
        );
    }

    async fn sample_held(&self, settle: &B::Settle) -> Infallible {
        let worker = self.worker;
        loop {
            worker.metrics.held(self.held.len(), self.held.bytes());
            worker.metrics.ahead(settle.ahead());
            let rest = worker.lines.lock().given_up.rest(Instant::now());
            if let Some(skipped) = rest {
                let stage = &*worker.source;
                tracing::warn!(stage, skipped, "a source has given more items up");
            }
            sleep(SAMPLE_INTERVAL).await;
        }
    }
}

/// A fetch. Its demand is given back as far as it is not answered, also when the call is dropped.
struct Unanswered<'a> {
    demand: &'a Demand,
    size: &'a Lock<FetchSize>,
    served: &'a Served,
    items: usize,
    is_answered: bool,
    is_failed: bool,
}

impl Unanswered<'_> {
    fn answer(mut self, items: usize, bytes: usize) {
        self.size.lock().succeeded(items, bytes);
        self.items = self.items.saturating_sub(items);
        self.is_answered = true;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        // One that the end of a session cuts off has not failed, as it may have waited for items. But where a session has
        // fetched nothing, what was on its way may have kept the calls from being answered that have ended it.
        let is_too_large = self.is_failed || !self.served.has_fetched.load(Relaxed);
        if !self.is_answered && is_too_large {
            self.size.lock().failed(self.items);
        }
        self.demand.add(self.items);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use pipeline_core::{
        Pipeline,
        backoff::{Backoff, Jitter},
        processing::{Processors, Wake},
        telemetry::Telemetry,
    };
    use pipeline_test_support::{Log, Recorded};
    use tokio::{sync::Notify, time::advance};

    use super::*;
    use crate::{
        broker::{Backlog, NotStored, Settlement},
        source::Source,
    };

    /// A broker that delivers what a test says, keeps the outcomes, and whose sessions live for so long.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Script>);

    #[derive(Default)]
    struct Script {
        /// The counts of deliveries of one item.
        deliveries: Lock<VecDeque<u32>>,
        outcomes: Lock<Vec<Outcome>>,
        connected: Lock<usize>,
        lives: Option<Duration>,
        lease: Option<Duration>,
        /// Whether a call fails that gives an item up.
        keeps_all: bool,
        /// Whether no outcome is stored.
        keeps_nothing: bool,
        /// Whether each outcome is refused, and the session continues.
        refuses: AtomicBool,
        /// Whether it cannot be connected to.
        is_away: Lock<bool>,
        /// The backlogs that are counted, or that counting fails.
        backlogs: Lock<VecDeque<Option<Backlog>>>,
        /// How often it was told that nothing more is fetched.
        stops: Lock<usize>,
        /// Whether no call that stores outcomes ends.
        hangs: bool,
        /// How many items a fetch may ask for: one of more does not end in time.
        most: Option<usize>,
        /// What was asked for before each fetch.
        wanted: Lock<Vec<Wanted>>,
        /// Ends the session while nothing is asked for.
        ended: Notify,
        /// How many calls that end delays fail, and the items of the others.
        failing_wakes: AtomicU32,
        woken: Lock<Vec<u32>>,
        /// Whether each delivery is of another item.
        has_many: bool,
        /// How many items each fetch has asked for.
        asked: Lock<Vec<usize>>,
    }

    impl Broker for Scripted {
        type Receipt = u32;
        type Fetch = Self;
        type Settle = Self;

        async fn connect(&self) -> Result<(Self, Self), BrokerError> {
            if *self.0.is_away.lock() {
                return Err(BrokerError::new("it is away"));
            }
            *self.0.connected.lock() += 1;
            Ok((self.clone(), self.clone()))
        }

        fn lease(&self) -> Option<Duration> {
            self.0.lease
        }
    }

    impl Fetch for Scripted {
        type Receipt = u32;

        async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<u32>>, BrokerError> {
            self.0.asked.lock().push(max);
            if self.0.most.is_some_and(|most| max > most) {
                return Err(BrokerError::new("so many take too long"));
            }
            if let Some(lives) = self.0.lives {
                sleep(lives).await;
                return Err(BrokerError::new("its time is over"));
            }
            let deliveries = loop {
                if *self.0.is_away.lock() {
                    return Err(BrokerError::new("it has gone away"));
                }
                let next = self.0.deliveries.lock().pop_front();
                if let Some(deliveries) = next {
                    break deliveries;
                }
                sleep(Duration::from_millis(10)).await;
            };
            Ok(vec![Delivery {
                receipt: deliveries,
                id: if self.0.has_many { deliveries.to_string() } else { "7".into() }.into(),
                item: Item::new("1"),
                enqueued_at: None,
                deliveries,
                failures: None,
                malformed: None,
            }])
        }

        fn wanted(&mut self, wanted: Wanted) {
            self.0.wanted.lock().push(wanted);
        }

        async fn idle(&mut self) -> BrokerError {
            self.0.ended.notified().await;
            BrokerError::new("it has ended")
        }

        async fn stop(&mut self) {
            *self.0.stops.lock() += 1;
            // It never answers.
            pending::<()>().await;
        }
    }

    impl Settle for Scripted {
        type Receipt = u32;

        const WAKES: bool = true;

        async fn wake(&self, receipts: &[u32]) -> Result<(), BrokerError> {
            let fewer = |left: u32| left.checked_sub(1);
            if self.0.failing_wakes.fetch_update(Relaxed, Relaxed, fewer).is_ok() {
                return Err(BrokerError::new("it ends no delay"));
            }
            self.0.woken.lock().extend(receipts);
            Ok(())
        }

        async fn settle(&self, new: &[Settlement<u32>]) -> Result<Vec<NotStored>, BrokerError> {
            let gives_up = |it: &Settlement<_>| matches!(it.outcome, Outcome::GiveUp { .. });
            if self.0.hangs {
                pending::<()>().await;
            }
            if self.0.keeps_nothing {
                return Err(BrokerError::new("it stores nothing"));
            }
            if self.0.keeps_all && new.iter().any(gives_up) {
                return Err(BrokerError::new("the graves are full"));
            }
            if self.0.refuses.load(Relaxed) {
                let refused = |index| NotStored::new(index, BrokerError::new("not this one"));
                return Ok((0..new.len()).map(refused).collect());
            }
            self.0.outcomes.lock().extend(new.iter().map(|it| it.outcome.clone()));
            Ok(Vec::new())
        }

        async fn backlog(&self) -> Result<Backlog, BrokerError> {
            let next = self.0.backlogs.lock().pop_front();
            next.unwrap_or_else(|| Some(Backlog::default()))
                .ok_or_else(|| BrokerError::new("it does not count"))
        }
    }

    fn start(broker: &Scripted, options: SourceOptions) -> Pipeline {
        let fail = async |_: &mut Message<Item>| Err::<(), _>(Failure::new("it is bad"));
        Pipeline::of_messages("test")
            .source(Source::new(broker.clone(), options))
            .processors(Processors::from_fn(fail).concurrency(1))
            .start()
            .unwrap()
    }

    async fn connected_in_a_minute(lives: Duration) -> usize {
        let broker = Scripted(Arc::new(Script { lives: Some(lives), ..Script::default() }));
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let options = SourceOptions::new().reconnect_after(backoff.jitter(Jitter::None));
        let _pipeline = start(&broker, options);
        for _ in 0..6000 {
            advance(Duration::from_millis(10)).await;
            tokio::task::yield_now().await;
        }
        *broker.0.connected.lock()
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_end_at_once_are_further_and_further_apart() {
        // The delays are 0.1, 0.2, 0.4 seconds and so on, to 25.6.
        let connected = connected_in_a_minute(Duration::from_millis(1)).await;
        assert!((8..=12).contains(&connected), "{connected}");
        // After one that has lived for a while, the delay is the first again.
        let connected = connected_in_a_minute(Duration::from_secs(2)).await;
        assert!((25..=30).contains(&connected), "{connected}");
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_items_are_asked_for_after_a_fetch_that_has_failed() {
        let script = Script { most: Some(3), ..Script::default() };
        script.deliveries.lock().push_back(1);
        let broker = Scripted(Arc::new(script));
        let _pipeline = start(&broker, SourceOptions::new());
        // Ten, five, and two.
        while broker.0.outcomes.lock().is_empty() {
            assert!(*broker.0.connected.lock() <= 3, "the same group was asked for again");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_fetch_that_is_cut_off_counts_as_too_large_until_its_session_has_fetched_something() {
        let (demand, size, served) =
            (Demand::default(), Lock::new(FetchSize::new()), Served::default());
        let cut_off = || {
            let (demand, size, served) = (&demand, &size, &served);
            drop(Unanswered {
                demand,
                size,
                served,
                items: 8,
                is_answered: false,
                is_failed: false,
            });
            size.lock().of(8)
        };
        assert_eq!(cut_off(), 4);
        size.lock().succeeded(1, 1);
        served.has_fetched.store(true, Relaxed);
        assert_eq!(cut_off(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_has_worked_again_is_connected_to_soon_after_the_next_failure() {
        let broker = Scripted::default();
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let options = SourceOptions::new().reconnect_after(backoff.jitter(Jitter::None));
        let is_away = |away| *broker.0.is_away.lock() = away;
        let connected = || *broker.0.connected.lock();
        let connects = async |number| {
            while connected() < number {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _pipeline = start(&broker, options);
        connects(1).await;
        is_away(true);
        sleep(Duration::from_secs(12)).await;
        is_away(false);
        connects(2).await;
        broker.0.deliveries.lock().push_back(1);
        sleep(Duration::from_secs(3)).await;
        is_away(true);
        sleep(Duration::from_millis(50)).await;
        is_away(false);
        let began = Instant::now();
        connects(3).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_fetch_and_then_fail_are_some_seconds_apart() {
        let deliveries = Lock::new((1..1000).collect());
        let script = Script { deliveries, keeps_nothing: true, ..Script::default() };
        let broker = Scripted(Arc::new(script));
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let options = SourceOptions::new().reconnect_after(backoff.jitter(Jitter::None));
        let _pipeline = start(&broker, options);
        sleep(Duration::from_secs(60)).await;
        // The delays are 0.1, 0.2, 0.4, 0.8, 1.6 and then 3 seconds.
        let connected = *broker.0.connected.lock();
        assert!((10..=30).contains(&connected), "{connected}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_connected_most_of_the_time_although_outcomes_end_its_sessions() {
        let deliveries = Lock::new((21..31).collect());
        let script = Script { deliveries, keeps_all: true, ..Script::default() };
        let broker = Scripted(Arc::new(script));
        let _pipeline = start(&broker, SourceOptions::new());
        let without_session = 2;
        let mut connected = 0;
        for _ in 0..20 * 60 {
            sleep(Duration::from_secs(1)).await;
            connected += usize::from(Arc::strong_count(&broker.0) > without_session);
        }
        assert!(*broker.0.connected.lock() > 20, "no session has ended");
        assert!(connected > 12 * 60, "connected in {connected} of 1200 seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_knows_all_that_is_asked_for_and_what_is_in_work_without_what_is_done() {
        let broker = Scripted(Arc::new(Script { hangs: true, ..Script::default() }));
        let handled = Arc::new(Lock::new(0));
        let count = handled.clone();
        let done = async move |_: &mut Message<Item>| {
            *count.lock() += 1;
            Ok(())
        };
        let options = SourceOptions::new().fetch_at_once(1).call_timeout(Duration::MAX);
        let _pipeline = Pipeline::of_messages("test")
            .source(Source::new(broker.clone(), options))
            .processors(Processors::from_fn(done).concurrency(1).max_demand(10))
            .start()
            .unwrap();
        for number in 1..=9 {
            broker.0.deliveries.lock().push_back(number);
            while *handled.lock() < number {
                sleep(Duration::from_millis(10)).await;
            }
        }
        let wanted = broker.0.wanted.lock().clone();
        assert_eq!(wanted[0], Wanted { items: 10, in_work: 0, set_aside: 0 });
        // The item that a fetch has just returned is in work, and those before it are not, although no outcome is stored.
        assert!(wanted.len() >= 9 && wanted.iter().all(|it| it.in_work <= 1), "{wanted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_knows_how_many_outcomes_are_refused_as_long_as_they_are() {
        let script = Script { refuses: true.into(), ..Script::default() };
        let broker = Scripted(Arc::new(script));
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        let options = SourceOptions::new().fetch_at_once(1).reconnect_after(backoff);
        let _pipeline = start(&broker, options);
        let deliver = async |numbers: std::ops::RangeInclusive<u32>| {
            for number in numbers {
                broker.0.deliveries.lock().push_back(number);
                // Some of them wait behind refused ones meanwhile.
                sleep(Duration::from_millis(100)).await;
            }
            *broker.0.wanted.lock().last().unwrap()
        };
        // The last fetch was called when it had just returned the last item.
        let last = deliver(1..=30).await;
        assert!(last.in_work <= 1 && last.set_aside == 29, "{last:?}");
        broker.0.refuses.store(false, Relaxed);
        while broker.0.outcomes.lock().len() < 30 {
            sleep(Duration::from_millis(10)).await;
        }
        let last = deliver(1..=1).await;
        assert!(last.in_work <= 1 && last.set_aside == 0, "{last:?}");
    }

    fn many() -> Scripted {
        Scripted(Arc::new(Script { has_many: true, ..Script::default() }))
    }

    /// Starts a pipeline that postpones all items until a signal.
    fn postpone(broker: &Scripted, telemetry: Telemetry) -> (Pipeline, Wake) {
        let wake = Wake::new();
        let signal = wake.clone();
        let hour = Duration::from_secs(3600);
        let later = async move |_: &mut Message<Item>| {
            Err::<(), _>(Failure::new("not now").later(hour).woken_by(&signal))
        };
        let pipeline = Pipeline::of_messages("test")
            .telemetry(telemetry)
            .source(Source::new(broker.clone(), SourceOptions::new()))
            .processors(Processors::from_fn(later).concurrency(1))
            .start()
            .unwrap();
        (pipeline, wake)
    }

    async fn postponed(broker: &Scripted, count: u32) {
        broker.0.deliveries.lock().extend(1..=count);
        while broker.0.outcomes.lock().len() < count as usize {
            sleep(Duration::from_millis(10)).await;
        }
        // They are stored right after the call.
        sleep(Duration::from_millis(10)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_is_ended_by_a_later_call_after_some_that_have_failed_and_no_session_ends() {
        let broker = many();
        let (telemetry, recorded) = Recorded::new();
        let (_pipeline, wake) = postpone(&broker, telemetry);
        postponed(&broker, 3).await;
        broker.0.failing_wakes.store(2, Relaxed);
        wake.wake();
        sleep(Duration::from_secs(60)).await;
        let mut woken = broker.0.woken.lock().clone();
        woken.sort_unstable();
        assert_eq!((woken, *broker.0.connected.lock()), (vec![1, 2, 3], 1));
        assert!(recorded.counters("pipeline.source.wakes_lost").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_is_used_again_keeps_one_delay_of_each_item_and_ends_it_alone() {
        let broker = Scripted::default();
        let (_pipeline, wake) = postpone(&broker, Recorded::new().0);
        postponed(&broker, 1000).await;
        assert_eq!(format!("{wake:?}"), "Wake { is_given: false, waiting: 1 }");
        wake.wake();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*broker.0.woken.lock(), [1000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_does_not_end_the_delay_of_a_later_failure() {
        let broker = Scripted::default();
        let wake = Wake::new();
        let signal = wake.clone();
        let hour = Duration::from_secs(3600);
        let handle = async move |message: &mut Message<Item>| {
            let failure = Failure::new("no");
            let is_first = message.metadata().deliveries == 1;
            Err::<(), _>(if is_first { failure.later(hour).woken_by(&signal) } else { failure })
        };
        let _pipeline = Pipeline::of_messages("test")
            .source(Source::new(broker.clone(), SourceOptions::new()))
            .processors(Processors::from_fn(handle).concurrency(1))
            .start()
            .unwrap();
        for number in 1..=2 {
            broker.0.deliveries.lock().push_back(number);
            while broker.0.outcomes.lock().len() < number as usize {
                sleep(Duration::from_millis(10)).await;
            }
            // It is stored right after the call.
            sleep(Duration::from_millis(10)).await;
        }
        let outcomes = broker.0.outcomes.lock().clone();
        assert!(matches!(outcomes[..], [Outcome::Release { .. }, Outcome::Retry { .. }]));
        wake.wake();
        sleep(Duration::from_secs(60)).await;
        assert!(broker.0.woken.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_is_given_without_a_session_ends_delays_in_the_next_one() {
        let broker = many();
        let (_pipeline, wake) = postpone(&broker, Recorded::new().0);
        postponed(&broker, 3).await;
        *broker.0.is_away.lock() = true;
        sleep(Duration::from_secs(1)).await;
        wake.wake();
        sleep(Duration::from_secs(60)).await;
        assert!(broker.0.woken.lock().is_empty());
        *broker.0.is_away.lock() = false;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(broker.0.woken.lock().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_always_fails_ends_no_session_and_the_delays_are_counted() {
        let broker = many();
        let (telemetry, recorded) = Recorded::new();
        let (_pipeline, wake) = postpone(&broker, telemetry);
        postponed(&broker, 3).await;
        broker.0.failing_wakes.store(1000, Relaxed);
        wake.wake();
        sleep(Duration::from_secs(300)).await;
        assert_eq!(*broker.0.connected.lock(), 1);
        let lost = recorded.counters("pipeline.source.wakes_lost");
        assert_eq!(lost.iter().map(|(_, count)| count).sum::<u64>(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_is_noticed_while_nothing_is_asked_for_and_while_it_drains() {
        let broker = Scripted(Arc::new(Script { hangs: true, ..Script::default() }));
        let never = async |_: &mut Message<Item>| pending::<Result<(), Failure>>().await;
        let pipeline = Pipeline::of_messages("test")
            .source(Source::new(broker.clone(), SourceOptions::new()))
            .processors(Processors::from_fn(never).concurrency(1).max_demand(1))
            .start()
            .unwrap();
        let source = |pipeline: &Pipeline| pipeline.snapshot().stages.swap_remove(0).source;
        let errors = |pipeline: &Pipeline| source(pipeline).unwrap_or_default().connection_errors;
        broker.0.deliveries.lock().push_back(1);
        let end = async |pipeline: &Pipeline, number| {
            sleep(Duration::from_secs(6)).await;
            assert_eq!(errors(pipeline), number - 1);
            broker.0.ended.notify_one();
            // Until then a drain waits for the broker to give back items.
            sleep(SourceOptions::new().calls_within(None)).await;
            assert_eq!(errors(pipeline), number);
        };
        end(&pipeline, 1).await;
        pipeline.begin_drain(Duration::from_secs(600));
        end(&pipeline, 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_may_outlast_a_lease_is_logged_at_the_start_and_long_work_is_not() {
        let (log, _guard) = Log::keep();
        let second = Duration::from_secs(1);
        let start_and_end = async |lease: Option<Duration>, call_timeout: Option<Duration>| {
            let broker = Scripted(Arc::new(Script { lease, ..Script::default() }));
            let options = SourceOptions::new();
            let options = call_timeout.map_or(options, |limit| options.call_timeout(limit));
            let pipeline = start(&broker, options);
            while *broker.0.connected.lock() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
            drop(pipeline);
            log.take().into_iter().filter(|line| line.contains("two thirds")).count()
        };
        for (lease, call_timeout, lines) in [
            (Some(30 * second), Some(21 * second), 1),
            (Some(30 * second), Some(20 * second), 0),
            (Some(30 * second), Some(Duration::MAX), 1),
            (Some(Duration::MAX), Some(20 * second), 0),
            (None, Some(Duration::MAX), 0),
            // A program that has set the lease alone is not told of another option.
            (Some(5 * second), None, 0),
        ] {
            let logged = start_and_end(lease, call_timeout).await;
            assert_eq!(logged, lines, "{lease:?} {call_timeout:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_lets_a_broker_give_back_what_it_has_taken_and_stores_outcomes_meanwhile() {
        let broker = Scripted::default();
        let pipeline = start(&broker, SourceOptions::new());
        broker.0.deliveries.lock().extend([1, 2, 3]);
        while broker.0.outcomes.lock().len() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*broker.0.stops.lock(), 0);
        assert!(pipeline.drain(Duration::from_secs(60)).await.completed);
        assert_eq!(*broker.0.stops.lock(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_age_that_is_not_known_is_not_shown_as_none_and_grows() {
        let counted = |items, age| {
            let oldest = now().checked_sub(Duration::from_secs(age));
            Some(Backlog { items: Some(items), oldest, ..Backlog::default() })
        };
        let untold = Some(Backlog { items: Some(1), ..Backlog::default() });
        let backlogs = [counted(1, 90), None, None, counted(2, 50), untold, counted(0, 0)];
        let script = Script { backlogs: Lock::new(backlogs.into()), ..Script::default() };
        let broker = Scripted(Arc::new(script));
        let (telemetry, recorded) = Recorded::new();
        let done = async |_: &mut Message<Item>| Ok(());
        let pipeline = Pipeline::of_messages("test")
            .telemetry(telemetry)
            .source(Source::new(broker.clone(), SourceOptions::new()))
            .processors(Processors::from_fn(done))
            .start()
            .unwrap();
        let mut seen = Vec::new();
        while !broker.0.backlogs.lock().is_empty() {
            let before = broker.0.backlogs.lock().len();
            while broker.0.backlogs.lock().len() == before {
                sleep(Duration::from_millis(100)).await;
            }
            // It is recorded right after it was counted.
            sleep(Duration::from_millis(100)).await;
            let source = pipeline.snapshot().stages.swap_remove(0).source.unwrap();
            recorded.look();
            // One that was not set since the last look is zero here.
            let age = recorded.gauges("pipeline.source.oldest_age")[0].1;
            let seen_age = source.oldest_age.map(|age| age.as_secs());
            seen.push((source.backlog, seen_age, age.round()));
        }
        let expected = [
            (Some(1), Some(90), 90.0),
            (None, None, 91.0),
            (None, None, 93.0),
            (Some(2), Some(50), 50.0),
            (Some(1), None, 0.0),
            (Some(0), None, 0.0),
        ];
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_of_other_sources_are_no_deliveries_without_an_outcome() {
        let broker = Scripted::default();
        let (_pipeline, _wake) = postpone(&broker, Recorded::new().0);
        for look in 1..=20 {
            // Seven of others are before each of its own.
            broker.0.deliveries.lock().push_back(8 * look);
            while broker.0.outcomes.lock().len() < look as usize {
                sleep(Duration::from_millis(10)).await;
            }
        }
        let outcomes = broker.0.outcomes.lock().clone();
        assert!(outcomes.iter().all(|it| matches!(it, Outcome::Release { .. })), "{outcomes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_logged_with_its_last_reason() {
        let (log, _guard) = Log::keep();
        let broker = Scripted::default();
        let _pipeline = start(&broker, SourceOptions::new());
        let outcomes = async |deliveries: &[u32], all: usize| {
            broker.0.deliveries.lock().extend(deliveries);
            while broker.0.outcomes.lock().len() < all {
                sleep(Duration::from_millis(10)).await;
            }
        };
        outcomes(&[1], 1).await;
        outcomes(&[2], 2).await;
        outcomes(&[23], 3).await;
        let stored = broker.0.outcomes.lock().clone();
        assert!(stored[..2].iter().all(|it| matches!(it, Outcome::Retry { .. })), "{stored:?}");
        let reason = "delivered 22 times, and no outcome is known of 20 of them; before, it has \
                      failed: it is bad";
        assert_eq!(stored[2], Outcome::GiveUp { reason: reason.into() });
        // More are not logged before ten seconds are over, and then once.
        outcomes(&[23, 23, 23], 6).await;
        sleep(Duration::from_secs(12)).await;
        let lines: Vec<_> = log.take().into_iter().filter(|line| line.contains("given")).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains(reason) && lines[0].contains('7'), "{lines:?}");
        assert!(lines[1].contains("skipped=3"), "{lines:?}");
    }
}
