//! The two ends of a queue: tasks push at one, a stage takes from the other.

use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::{Arc as StdArc, OnceLock},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{sync::Semaphore, task::coop, time::Instant};

use super::{
    Closed, OfferOutcome, TryPushError,
    store::{Bounded, Offered, Pushed, Store},
};
use crate::{
    discarding::{Refusing, Seldom},
    stage::{Emitter, Gauges, QueueProbe, QueueState, StageContext},
    sync::{Arc, AtomicU64, Mutex, Ordering},
    telemetry::{Discard, Refusal, StageLabels, StageMetrics},
};

/// Creates the two ends of a queue.
pub(super) fn ends<S: Bounded>(state: S) -> (PushEnd<S>, TakeEnd<S>) {
    let [discarded, expired] = [AtomicU64::new(0), AtomicU64::new(0)];
    let (state, closed) = (Mutex::new(state), StdArc::new(Semaphore::new(0)));
    let (refused, refusing) = (Default::default(), Mutex::new(Refusing::default()));
    let stage = OnceLock::new();
    let shared = Arc::new(Shared { state, closed, discarded, expired, refused, refusing, stage });
    let push = PushEnd { end: Arc::new(End(shared.clone())) };
    let take = TakeEnd {
        end: End(shared),
        stamp: None,
        max_age: None,
        counts: None,
        reported: 0,
        expiring: Seldom::default(),
    };
    (push, take)
}

/// The state shared by both ends.
pub(super) struct Shared<S: Bounded> {
    state: Mutex<S>,
    /// Without permits, and closed when the state is. It outlives the items, for futures that wait.
    closed: StdArc<Semaphore>,
    discarded: AtomicU64,
    /// How many items were discarded because they were too old.
    expired: AtomicU64,
    /// How many items were refused, by reason.
    refused: [AtomicU64; Refusal::ALL.len()],
    /// Selects which refusals are logged.
    refusing: Mutex<Refusing>,
    /// The names of the pipeline and of the stage that takes the items, once it has started.
    stage: OnceLock<StageLabels>,
}

/// Records in an item when it leaves the queue.
pub(super) type Stamp<T> = fn(&mut T, Instant);

/// The maximum age of an item when it leaves.
#[derive(Debug)]
pub(super) struct MaxAge<T> {
    pub(super) age: Duration,
    pub(super) enqueued_at: fn(&T) -> Instant,
}

/// One end of a queue. Dropping it closes the queue.
struct End<S: Bounded>(Arc<Shared<S>>);

/// The pushing end, shared by all handles.
pub(super) struct PushEnd<S: Bounded> {
    end: Arc<End<S>>,
}

/// The taking end. A queue's producer consists of this.
pub(super) struct TakeEnd<S: Bounded> {
    end: End<S>,
    /// Called on each item that leaves the queue, if the queue is timed.
    pub(super) stamp: Option<Stamp<S::Item>>,
    pub(super) max_age: Option<MaxAge<S::Item>>,
    /// The stage's counters of discarded items.
    counts: Option<(StageMetrics, StdArc<Gauges>)>,
    /// How many items discarded by the handles are already in the stage's counter.
    reported: u64,
    /// Selects which discards of old items are logged.
    expiring: Seldom,
}

/// A queue as its stage's gauges see it. Dropping it does not close the queue.
struct Probe<S: Bounded>(Arc<Shared<S>>);

impl<S: Bounded + Send> QueueProbe for Probe<S> {
    fn state(&self) -> QueueState {
        let state = self.0.state.lock();
        let (items, capacity) = (state.len(), Some(state.capacity()));
        drop(state);
        let discarded = self.0.discarded.load(Ordering::Relaxed);
        let refused = std::array::from_fn(|why| self.0.refused[why].load(Ordering::Relaxed));
        QueueState { items, capacity, discarded, refused }
    }

    fn close(&self) {
        self.0.close();
    }
}

impl<S: Bounded> Shared<S> {
    fn close(&self) {
        let wake = self.state.lock().close();
        // First, because a waker may panic.
        self.closed.close();
        wake.into_iter().for_each(Waker::wake);
    }

    /// Counts an item that was not pushed.
    fn refused(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The same, for a caller that gets the item back. The log has a line when that begins.
    fn gave_back(&self, why: Refusal) {
        self.refused(why);
        if self.refusing.lock().add(Instant::now()) {
            let (pipeline, stage) = self.names();
            let reason = why.reason();
            tracing::warn!(pipeline, stage, reason, "the queue has no room, refusing items");
        }
    }

    /// The names of the pipeline and of the stage, if it has started.
    fn names(&self) -> (Option<&str>, Option<&str>) {
        match self.stage.get() {
            Some([(_, pipeline), (_, stage)]) => (Some(pipeline), Some(stage)),
            None => (None, None),
        }
    }

    /// Logs that the queue takes items again, if it has refused some and half of it is free.
    fn takes_again(&self) {
        let refused = [Refusal::QueueFull, Refusal::KeyFull].map(|why| &self.refused[why as usize]);
        if refused.iter().all(|items| items.load(Ordering::Relaxed) == 0) {
            return;
        }
        let state = self.state.lock();
        let has_room = state.len() <= state.capacity() / 2;
        drop(state);
        let refused = self.refusing.lock().over(Instant::now(), has_room);
        if refused > 0 {
            let (pipeline, stage) = self.names();
            tracing::warn!(
                pipeline,
                stage,
                refused,
                "the queue has room again, after it has refused items"
            );
        }
    }
}

impl<S: Bounded> End<S> {
    fn close(&self) {
        self.0.close();
    }

    fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct(name)
            .field("len", &state.len())
            .field("capacity", &state.capacity())
            .field("closed", &state.is_closed())
            .finish()
    }
}

impl<S: Bounded> Drop for End<S> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<S: Bounded> PushEnd<S> {
    /// Waits until the queue is closed. The future is no handle: it keeps neither the queue open nor
    /// its items.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<S> {
        let closed = self.shared().closed.clone();
        async move {
            // It has no permits, so this ends when it is closed.
            let _ = closed.acquire().await;
        }
    }

    /// Reads the state, under its lock.
    pub(super) fn with<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.shared().state.lock())
    }

    pub(super) fn discarded(&self) -> u64 {
        let Shared { discarded, expired, .. } = &**self.shared();
        discarded.load(Ordering::Relaxed) + expired.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.end.close();
    }

    pub(super) fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as(name, f)
    }

    fn shared(&self) -> &Arc<Shared<S>> {
        &self.end.0
    }
}

impl<S: Store> PushEnd<S> {
    pub(super) fn push(&self, entry: S::Entry) -> Push<S> {
        Push { shared: self.shared().clone(), step: Step::Start(entry) }
    }

    pub(super) fn try_push(&self, entry: S::Entry) -> Result<(), TryPushError<S::Item>> {
        let shared = self.shared();
        let pushed = shared.state.lock().try_push(entry);
        match &pushed {
            Err(TryPushError::Full(_)) => shared.gave_back(Refusal::QueueFull),
            Err(TryPushError::KeyFull(_)) => shared.gave_back(Refusal::KeyFull),
            Ok(_) | Err(TryPushError::Closed(_)) => {}
        }
        pushed?.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Offers an item and counts the discarded one.
    pub(super) fn offer(&self, entry: S::Entry) -> Result<OfferOutcome, Closed<S::Item>> {
        let shared = self.shared();
        let offered = shared.state.lock().offer(entry)?;
        match offered {
            Offered::Kept(reader) => {
                reader.into_iter().for_each(Waker::wake);
                Ok(OfferOutcome::Kept)
            }
            Offered::Discarded { item, displaced, first } => {
                // Items are always dropped outside the lock.
                drop(item);
                shared.discarded.fetch_add(1, Ordering::Relaxed);
                if first {
                    tracing::warn!("{}", S::DISCARDING);
                }
                Ok(if displaced { OfferOutcome::DisplacedOldest } else { OfferOutcome::Discarded })
            }
        }
    }
}

impl<S: Bounded> Clone for PushEnd<S> {
    fn clone(&self) -> Self {
        Self { end: self.end.clone() }
    }
}

impl<S: Bounded> TakeEnd<S> {
    pub(super) fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as(name, f)
    }
}

/// The future of a push that waits for room.
pub(super) struct Push<S: Store> {
    shared: Arc<Shared<S>>,
    step: Step<S>,
}

/// `Start` => `Waiting` (no room) => `Done`, or `Start` => `Done`.
enum Step<S: Store> {
    Start(S::Entry),
    Waiting(S::Ticket),
    Done,
}

// Nothing in it is pinned: the item is moved out of it.
impl<S: Store> Unpin for Push<S> {}

impl<S: Store> Future for Push<S> {
    type Output = Result<(), Closed<S::Item>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // A task that pushes in a loop yields to others even if there is always room.
        let coop = ready!(coop::poll_proceed(cx));
        let outcome = match mem::replace(&mut this.step, Step::Done) {
            Step::Start(entry) => {
                let pushed = this.shared.state.lock().push(entry, cx.waker());
                match pushed {
                    Pushed::In(reader) => {
                        reader.into_iter().for_each(Waker::wake);
                        Poll::Ready(Ok(()))
                    }
                    Pushed::Closed(item) => Poll::Ready(Err(Closed(item))),
                    Pushed::Waits(ticket) => {
                        this.step = Step::Waiting(ticket);
                        Poll::Pending
                    }
                }
            }
            Step::Waiting(ticket) => {
                let outcome = this.shared.state.lock().poll(ticket, cx.waker());
                if outcome.is_pending() {
                    this.step = Step::Waiting(ticket);
                }
                outcome
            }
            Step::Done => Poll::Pending,
        };
        if outcome.is_ready() {
            coop.made_progress();
        }
        outcome
    }
}

impl<S: Store> Drop for Push<S> {
    fn drop(&mut self) {
        if let Step::Waiting(ticket) = self.step {
            // The item is dropped outside the lock.
            let mut state = self.shared.state.lock();
            let gave_up = !state.is_closed();
            let item = state.leave(ticket);
            drop(state);
            if gave_up && item.is_some() {
                self.shared.refused(Refusal::GaveUp);
            }
            drop(item);
        }
    }
}

impl<S: Store> TakeEnd<S> {
    pub(super) fn init<H>(&mut self, context: &StageContext<H>)
    where
        S: Send + 'static,
    {
        let labels = context.labels();
        let metrics = StageMetrics::register(context.telemetry(), &labels);
        // A restarted stage has the same names.
        let _ = self.end.0.stage.set(labels);
        self.counts = Some((metrics, context.gauges.clone()));
        context.gauges.set_queue(Probe(self.end.0.clone()));
    }

    /// Emits as many items as there is demand for.
    pub(super) fn take(&mut self, out: &mut Emitter<'_, S::Item>) {
        let before = out.staged().len();
        let mut discarded = 0;
        // Takes at most as many items as wait now, not those pushed meanwhile: remaining items make
        // the queue ready.
        let mut old = self.pending();
        let at_end = loop {
            let (taken, at_end) = {
                let mut state = self.end.0.state.lock();
                let taken = state.take(out.owed(), out.staged());
                (taken, state.is_closed() && state.len() == 0)
            };
            taken.wake.into_iter().for_each(Waker::wake);
            discarded += taken.discarded;
            let expired = self.expire(before, out);
            old = old.saturating_sub(expired);
            if expired == 0 || old == 0 || at_end {
                break at_end;
            }
        };
        if let Some(stamp) = self.stamp
            && out.staged().len() > before
        {
            // These items leave together.
            let now = Instant::now();
            out.staged().range_mut(before..).for_each(|item| stamp(item, now));
        }
        if discarded > 0 {
            tracing::warn!(discarded, "the queue has room again");
        }
        self.end.0.takes_again();
        self.count_discarded();
        if at_end {
            out.finish();
        }
    }

    /// Discards items behind the first `kept` that are too old. Returns how many.
    fn expire(&mut self, kept: usize, out: &mut Emitter<'_, S::Item>) -> usize {
        let Some(MaxAge { age, enqueued_at }) = self.max_age else {
            return 0;
        };
        let staged = out.staged();
        let taken = staged.len();
        if taken == kept {
            return 0;
        }
        let now = Instant::now();
        let mut place = 0;
        staged.retain(|item| {
            place += 1;
            place <= kept || now.saturating_duration_since(enqueued_at(item)) <= age
        });
        let expired = taken - staged.len();
        if expired > 0 {
            self.end.0.expired.fetch_add(expired as u64, Ordering::Relaxed);
            if let Some((metrics, gauges)) = &self.counts {
                metrics.discarded(Discard::TooOld, expired as u64);
                gauges.discarded(Discard::TooOld, expired);
            }
            if let Some(discarded) = self.expiring.log(expired) {
                tracing::warn!(
                    discarded,
                    max_age = ?age,
                    "items waited in the queue for longer than max_age, discarding"
                );
            }
        }
        expired
    }

    pub(super) async fn ready(&mut self) {
        poll_fn(|cx| self.end.0.state.lock().poll_ready(cx.waker())).await;
    }

    pub(super) fn drain(&mut self, out: &mut Emitter<'_, S::Item>) {
        self.end.close();
        self.take(out);
    }

    pub(super) fn close(&self) {
        self.end.close();
    }

    pub(super) fn pending(&self) -> usize {
        self.end.0.state.lock().len()
    }

    /// Adds the items that the handles discarded since the last call to the stage's counter.
    pub(super) fn count_discarded(&mut self) {
        if let Some((metrics, _)) = &self.counts {
            let discarded = self.end.0.discarded.load(Ordering::Relaxed);
            let new = discarded - self.reported;
            if new > 0 {
                self.reported = discarded;
                metrics.discarded(Discard::QueueFull, new);
            }
        }
    }
}
