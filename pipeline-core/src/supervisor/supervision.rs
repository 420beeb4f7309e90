//! The running state of a supervisor: it starts children for events, and handles their ends.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task,
    time::{self, Instant},
};

use super::{
    Admission, ChildContext, ChildId, ConsumerSupervisor, KeyIsFull, Options, Reserved, TimedOut,
    TooManyRestarts, Worker,
    adaptive::AdaptiveLimit,
    children::{Child, Children, Ended, Finished},
    inline::{INLINE_TIME, Inline},
    reused::Reused,
    slots::SubscriptionSlots,
    started::Running,
    waiting::{Key, Waiting, Waits},
};
use crate::{
    deadline::Deadline,
    discarding::LineLimit,
    exit::ExitReason,
    report::StageReport,
    shown::shown,
    snapshot::StageKind,
    stage::{
        Behaviour, Emitter, Gauges, HandleOf, Phase, PhaseOfPlace, Place, RestartBudget,
        StageContext, TimeLimit, catch_panic_now, poll_contained, random,
    },
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription, SubscriptionId},
    telemetry::{GivenUp, WorkerMetrics, milliseconds},
};

/// A running [`ConsumerSupervisor`], as the stage of a [`SupervisorHandle`](super::SupervisorHandle).
pub struct Supervision<E, W> {
    options: Options<E>,
    shared: Arc<Shared<W>>,
    /// The limit on restarts of all children together, if there is one.
    budget: Option<RestartBudget>,
    /// The adaptive limit on children, if there is one.
    adaptive: Option<AdaptiveLimit>,
    pub(super) children: Children<E>,
    /// Events that wait for one of `max_children` places, or for their key.
    waiting: Waiting<E>,
    pub(super) slots: SubscriptionSlots,
    inline: Inline,
    stopping: Stopping,
    leaving: Leaving,
    stage: Arc<str>,
    gauges: Arc<Gauges>,
    phase: Option<PhaseOfPlace>,
    in_progress: usize,
    given_up: usize,
    /// The log lines of workers that are tried again, and of events that are given up: a service that is away makes
    /// thousands fail, and the first kind must not keep the second out of the log.
    lines: [LineLimit; 2],
}

/// The state that all children share: one handle for each, because counting more references costs
/// as much as a brief child.
pub(super) struct Shared<W> {
    worker: W,
    metrics: WorkerMetrics,
}

impl<W> Shared<W> {
    /// Ready when all children have used their reservations.
    pub(super) fn poll_reserved<E>(&self, cx: &mut Context<'_>) -> Poll<()>
    where
        W: Worker<E>,
    {
        // A worker that panics is not waited for.
        catch_panic_now(|| Ok(self.worker.poll_reserved(cx))).unwrap_or(Poll::Ready(()))
    }
}

/// Notifies the children that they are to end soon. Dropping the supervisor notifies them, too.
#[derive(Debug, Default)]
struct Stopping(Arc<watch::Sender<bool>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// A child that has left the place of its run after so many failures.
type Left = (ChildId, u32);

/// The children that leave their places.
struct Leaving {
    sender: mpsc::UnboundedSender<Left>,
    receiver: mpsc::UnboundedReceiver<Left>,
    /// Those that were received.
    left: Vec<Left>,
}

impl Leaving {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "each child leaves its place once")]
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver, left: Vec::new() }
    }

    /// Waits for children to leave.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn receive(&mut self) {
        self.receiver.recv_many(&mut self.left, usize::MAX).await;
    }

    /// Those that have left until now. They are looked at whatever has woken the stage: ends of children that are
    /// always ready do not hide them.
    fn take(&mut self) -> Vec<Left> {
        for _ in 0..self.receiver.len() {
            self.left.extend(self.receiver.try_recv());
        }
        mem::take(&mut self.left)
    }
}

impl<E, W> Behaviour for Supervision<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Stage = Self;
    type In = E;
    type Out = Infallible;

    const KIND: StageKind = StageKind::ConsumerSupervisor;

    fn stage(&mut self) -> &mut Self {
        self
    }

    fn init(&mut self, context: &StageContext<HandleOf<Self>>) -> Result<(), ExitReason> {
        Arc::get_mut(&mut self.shared).expect("no child shares it before the start").metrics =
            WorkerMetrics::register(&context.telemetry, &context.labels());
        self.stage = context.stage.clone();
        self.gauges = context.gauges.clone();
        self.phase = Some(PhaseOfPlace::new(&context.phase));
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<DemandControl, ExitReason> {
        self.slots.add(from, options);
        from.ask(options.max());
        Ok(DemandControl::Manual)
    }

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        for (event, reason) in self.waiting.extend(from.id(), events) {
            if let Some(left_out) = self.admit_line(false) {
                tracing::error!(stage = %self.stage, reason = shown(&reason), left_out, "giving up an event before its worker starts");
            }
            self.give_up(event, reason);
            self.slots.free(Some(from.id()));
        }
        self.start_waiting();
        self.slots.ask();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        // Its children continue, and send no demand when they end.
        self.slots.remove(from.id());
        Ok(())
    }

    fn awaits_ready(&self, _owed: usize) -> bool {
        self.is_busy()
    }

    async fn ready(&mut self) {
        let Self { children, inline, shared, leaving, .. } = self;
        let again = children.next_restart();
        if !children.has_ended() && !again.has_passed(Instant::now()) {
            // Ended tasks are kept for `handle_ready`, so dropping this future loses nothing.
            tokio::select! {
                biased;
                Some(()) = children.wait_for_end() => {}
                () = leaving.receive() => {}
                () = inline.pause().is_over(shared) => {}
                () = again.passed() => {}
            }
        }
    }

    async fn handle_ready(&mut self, _out: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
        if self.children.next_restart().has_passed(Instant::now()) {
            // It may be tried again at once, but other tasks are scheduled first.
            task::yield_now().await;
            self.restart_due()?;
        }
        while let Some(ended) = self.children.next_ended() {
            self.child_ended(ended)?;
        }
        let left = self.leaving.take();
        if !left.is_empty() {
            left.into_iter().for_each(|left| self.leave(left));
            self.start_waiting();
        }
        self.resume();
        self.slots.ask();
        Ok(())
    }

    fn asks_no_more(&mut self) {
        self.slots.clear();
    }

    fn workers_stop_within(&self) -> Duration {
        self.options.shutdown
    }

    fn is_busy(&self) -> bool {
        !self.children.is_empty() || self.waiting.len() > 0
    }

    fn is_occupied(&self) -> bool {
        self.children.in_places() > 0 || self.waiting.len() > 0
    }

    async fn terminate(&mut self, reason: &ExitReason, phase: &mut watch::Receiver<Phase>) {
        if !matches!(reason, ExitReason::Killed) {
            self.stop_children(phase).await;
        }
        self.kill_children().await;
    }

    fn report(&mut self, report: &mut StageReport) {
        while let Some(ended) = self.children.next_ended() {
            self.count_interrupted(&ended);
        }
        // A supervisor that was killed did not wait for these.
        report.in_progress += self.in_progress + self.children.unfinished();
        report.given_up += self.given_up;
        report.pending += self.waiting.len();
    }
}

impl<E, W> Supervision<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    /// The state of a supervisor with these options before its first event.
    pub(crate) fn new(
        ConsumerSupervisor { worker, mut options }: ConsumerSupervisor<E, W>,
    ) -> Self {
        let (at_once, most_waiting) = (options.at_most_per_key, options.max_waiting_per_key);
        let waiting = Waiting::new(options.key_of.take(), at_once, most_waiting);
        Self {
            shared: Arc::new(Shared { worker, metrics: WorkerMetrics::none() }),
            budget: options.max_restarts.map(|(most, within)| RestartBudget::new(most, within)),
            adaptive: options.adaptive.map(AdaptiveLimit::new),
            options,
            children: Children::new(),
            waiting,
            slots: SubscriptionSlots::new(),
            inline: Inline::new(),
            stopping: Stopping::default(),
            leaving: Leaving::new(),
            stage: "".into(),
            gauges: Arc::new(Gauges::new(StageKind::ConsumerSupervisor, None)),
            phase: None,
            in_progress: 0,
            given_up: 0,
            lines: Default::default(),
        }
    }

    /// The number of children that may run now.
    fn limit(&self) -> usize {
        let adaptive = self.adaptive.as_ref().map_or(usize::MAX, AdaptiveLimit::limit);
        self.options.max_children.min(adaptive)
    }

    /// Passes the latency of an ended child to the adaptive limit.
    fn record_latency(&mut self, latency: Duration, failed: bool) {
        let in_flight = self.children.in_slots();
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.record(latency, in_flight, failed, Instant::now());
            #[expect(
                clippy::cast_precision_loss,
                reason = "the number of children is far below the limit of a f64"
            )]
            self.shared.metrics.limit.set(adaptive.limit() as f64);
        }
    }

    /// Starts children for waiting events, as far as there is room.
    fn start_waiting(&mut self) {
        // When it began to run children itself, and the current time.
        let mut burst: Option<(Instant, Instant)> = None;
        let mut reused = Reused::new();
        while self.children.in_slots() < self.limit() && self.waiting.startable() > 0 {
            let brief = self.runs_inline();
            let is_over = burst.is_some_and(|(begun, now)| now - begun >= INLINE_TIME);
            if !brief {
                self.inline.resume();
            } else if self.inline.pauses::<E, W>(&self.shared, is_over) {
                break;
            }
            let Some((next, from, key)) = self.waiting.pop() else { break };
            let event = match next {
                Waits::Event(event) => event,
                Waits::Child(id) => {
                    self.come_back(id, key);
                    continue;
                }
            };
            // For the report, if the worker never returns.
            self.gauges.set_inline(1, self.waiting.len());
            if !brief || is_over {
                self.start(event, Some(from), key);
                continue;
            }
            let (begun, now) = burst.unwrap_or_else(|| {
                let now = Instant::now();
                (now, now)
            });
            let Some((event, context)) = self.admit(event, Some(from), key) else { continue };
            let (reserved, place) = (context.reserved.clone(), context.place());
            // A child that waits gets a task, which polls it again with a waker of its own.
            let now = match reused.poll_once(self.job(event, context, Some(now))) {
                Ok(done) => self.ran_here(done, from, key, reserved, now),
                Err(job) => {
                    let then = Instant::now();
                    // Recorded now and not when it is done: the next child is about to be started.
                    self.inline.record_wrong_guess(then - now, self.behind());
                    self.spawn_new(Some(from), key, reserved, &place, job);
                    then
                }
            };
            burst = Some((begun, now));
        }
        self.gauges.set_inline(0, self.waiting.len());
    }

    /// Whether the supervisor runs the next child itself.
    fn runs_inline(&self) -> bool {
        // The adaptive limit cannot learn from children that complete at once.
        self.inline.is_likely() && !self.options.always_spawn && self.adaptive.is_none()
    }

    /// Starts the children that had to wait.
    fn resume(&mut self) {
        if self.inline.resume() {
            self.start_waiting();
        }
    }

    /// Starts a child for an event. If the child does not start, the event is done.
    pub(super) fn start(
        &mut self,
        event: E,
        subscription: Option<SubscriptionId>,
        key: Option<Key>,
    ) -> Option<ChildId> {
        let (event, context) = self.admit(event, subscription, key)?;
        let (reserved, place) = (context.reserved.clone(), context.place());
        let job = self.job(event, context, None);
        Some(self.spawn_new(subscription, key, reserved, &place, job))
    }

    /// Handles the end of a child that the supervisor has run itself since `started`. Returns the
    /// current time.
    fn ran_here(
        &mut self,
        done: Finished<E>,
        from: SubscriptionId,
        key: Option<Key>,
        reserved: Option<Reserved>,
        started: Instant,
    ) -> Instant {
        // The clock is not read for each child: the end of this one is the start of the next.
        let now = started.checked_add(done.took).unwrap_or(started);
        if done.outcome.as_ref().err().is_none_or(ExitReason::is_graceful) {
            let behind = self.behind();
            self.inline.record_inline(reserved.is_some(), done.at_once, done.took, behind);
            self.slots.free(Some(from));
            self.waiting.done(key);
        } else {
            // A child that has failed takes the usual path.
            self.spawn_new(Some(from), key, reserved, &Place::default(), async { done });
        }
        now
    }

    /// The event and the context of a child, if the worker accepts the event. If not, the event is
    /// done.
    fn admit(
        &mut self,
        event: E,
        subscription: Option<SubscriptionId>,
        key: Option<Key>,
    ) -> Option<(E, ChildContext)> {
        let mut context = self.context(0);
        let worker = &self.shared.worker;
        let accepted = catch_panic_now(|| {
            Ok(match worker.admit(&event, &context)? {
                Admission::Run => Some(worker.reserve(&event)),
                Admission::Ignore => None,
            })
        });
        match accepted {
            Ok(Some(reserved)) => {
                self.inline.reserved(reserved.is_some());
                context.reserved = reserved;
                return Some((event, context));
            }
            Ok(None) => {}
            Err(reason) => {
                self.count_failure();
                if let Some(left_out) = self.admit_line(false) {
                    tracing::error!(stage = %self.stage, reason = shown(&reason), left_out, "a worker failed to start, giving up its event");
                }
                self.give_up(event, reason);
            }
        }
        self.slots.free(subscription);
        self.waiting.done(key);
        None
    }

    /// Counts a given-up event and passes it to the callback.
    fn give_up(&mut self, event: E, reason: ExitReason) {
        self.shared.metrics.given_up(why_given_up(&reason));
        self.gauges.given_up.add(1);
        self.given_up += 1;
        let Some(callback) = &mut self.options.on_given_up else { return };
        let outcome = catch_panic_now(|| {
            callback.get_mut()(event, reason);
            Ok(())
        });
        if let Err(reason) = outcome
            && let Some(left_out) = self.admit_line(false)
        {
            tracing::error!(stage = %self.stage, reason = shown(&reason), left_out, "the on_given_up callback panicked");
        }
    }

    /// Whether a line about a failed worker may be written, and the number of lines left out since the last one, if any.
    fn admit_line(&mut self, is_tried_again: bool) -> Option<Option<u64>> {
        let left_out = self.lines[usize::from(is_tried_again)].admit(Instant::now())?;
        Some((left_out > 0).then_some(left_out))
    }

    fn count_failure(&self) {
        self.shared.metrics.failed.increment(1);
        self.gauges.worker_failures.add(1);
    }

    /// How many children have to wait for one that the supervisor runs itself.
    fn behind(&self) -> usize {
        let free = self.limit().saturating_sub(self.children.in_slots());
        self.waiting.startable().min(free)
    }

    /// Calls the worker's `admit`.
    fn call_admit(&self, event: &E, context: &ChildContext) -> Result<Admission, ExitReason> {
        catch_panic_now(|| self.shared.worker.admit(event, context))
    }

    fn context(&self, restarts: u32) -> ChildContext {
        let stopping = self.stopping.0.clone();
        let spare = self.slots.spare().min(self.limit().saturating_sub(1));
        let place = match &self.phase {
            Some(phase) if self.options.may_leave => Place::new(phase),
            Some(phase) if self.options.run_within < Duration::MAX => Place::fixed(phase),
            // It costs nothing.
            _ => Place::default(),
        };
        ChildContext { stopping, restarts, reserved: None, spare, place }
    }

    /// The future of a child. It is timed from `started` on, or from its first poll.
    fn job(
        &self,
        event: E,
        context: ChildContext,
        started: Option<Instant>,
    ) -> impl Future<Output = Finished<E>> + Send + use<E, W> {
        let (shared, restarts) = (self.shared.clone(), context.restarts);
        let (within, place) = (self.options.run_within, context.place());
        async move {
            let Shared { worker, metrics } = &*shared;
            let started = started.unwrap_or_else(Instant::now);
            let mut polls = 0u64;
            let outcome = {
                let run = catch_panic_now(|| {
                    let _running = Running::since(started);
                    Ok(worker.run(&event, context))
                });
                match run {
                    Ok(run) => {
                        let mut run = pin!(run);
                        let mut limit = TimeLimit::new(started, within);
                        poll_fn(|context| {
                            polls += 1;
                            let running = Running::since(started);
                            let polled = poll_contained(run.as_mut(), context);
                            drop(running);
                            if polled.is_pending() {
                                let late = || Err(TimedOut::new(within).into());
                                limit.poll(&place, context).map(|()| late())
                            } else {
                                polled
                            }
                        })
                        .await
                    }
                    Err(panicked) => Err(panicked),
                }
            };
            let took = started.elapsed();
            metrics.process_time.record(milliseconds(took));
            Finished { event, restarts, outcome, took, at_once: polls <= 1 }
        }
    }

    /// Spawns a job as a new child.
    fn spawn_new(
        &mut self,
        subscription: Option<SubscriptionId>,
        key: Option<Key>,
        reserved: Option<Reserved>,
        place: &Place,
        job: impl Future<Output = Finished<E>> + Send + 'static,
    ) -> ChildId {
        let id = self.children.add(subscription, key, reserved);
        self.occupy(id, place, 0);
        self.gauges.workers.store(self.children.in_places(), Relaxed);
        self.spawn(id, job);
        id
    }

    /// A child has this place after so many failures, unless it has left it already.
    fn occupy(&mut self, id: ChildId, place: &Place, restarts: u32) {
        if let Some(child) = self.children.get_mut(id) {
            child.restarts = restarts;
        }
        let sender = self.leaving.sender.clone();
        let left = (id, restarts);
        // A supervisor that has ended does not care.
        let notify = move || {
            let _ = sender.send(left);
        };
        if place.on_leave(notify) {
            self.leave(left);
        }
    }

    /// A child leaves its place, and the next event of its key may begin. It is still a child.
    fn leave(&mut self, (id, restarts): Left) {
        // The place of an earlier run is not this one.
        if self.children.get(id).is_none_or(|child| child.restarts != restarts) {
            return;
        }
        let Some((subscription, key)) = self.children.leave(id) else { return };
        self.slots.free(subscription);
        self.waiting.done(key);
        self.gauges.workers.store(self.children.in_places(), Relaxed);
    }

    fn spawn(&mut self, id: ChildId, job: impl Future<Output = Finished<E>> + Send + 'static) {
        let piece = self.adaptive.as_mut().map(|limit| limit.begin(Instant::now()));
        self.children.spawn(id, job, piece);
    }

    /// Frees the slot of a child that is done, or restarts it.
    fn child_ended(&mut self, ended: Ended<E>) -> Result<(), ExitReason> {
        let Some(id) = self.children.of_task(&ended) else { return Ok(()) };
        let piece = self.children.get_mut(id).and_then(|child| child.piece.take());
        let counts = match (&mut self.adaptive, piece) {
            (Some(limit), Some(piece)) => limit.end(piece),
            _ => true,
        };
        if let Ok((_, Finished { took, outcome, at_once, .. })) = &ended {
            let others = self.children.len().saturating_sub(1);
            self.inline.record_task(*at_once, *took, others);
            let failed = outcome.as_ref().is_err_and(|reason| !reason.is_graceful());
            if counts {
                self.record_latency(*took, failed);
            }
        }
        let terminated = self.children.get(id).is_some_and(|child| !child.terminated.is_empty());
        match ended {
            Ok((_, Finished { event, restarts, outcome: Err(reason), .. }))
                if !reason.is_graceful() && !terminated =>
            {
                self.count_failure();
                let failed = restarts.saturating_add(1);
                let restart = self.options.may_try_again(failed, &reason);
                if let Some(left_out) = self.admit_line(restart) {
                    let (stage, tries) = (&self.stage, failed);
                    if restart {
                        tracing::error!(
                            %stage, reason = shown(&reason), restart, tries, left_out,
                            "a worker failed"
                        );
                    } else {
                        tracing::error!(
                            %stage, reason = shown(&reason), restart, tries, left_out,
                            "a worker failed, giving up its event"
                        );
                    }
                }
                return self.after_failure(id, event, failed, reason);
            }
            Err(error) if error.is_panic() => {
                // A destructor has panicked, and the event was dropped with the task.
                self.count_failure();
                self.in_progress += 1;
                if let Some(left_out) = self.admit_line(false) {
                    tracing::error!(stage = %self.stage, left_out, "a worker's task panicked, its event is lost");
                }
            }
            _ => {}
        }
        self.child_done(id);
        Ok(())
    }

    /// Retries an event whose worker has failed, later or at once, or gives it up. `failed` is the
    /// number of failures so far.
    fn after_failure(
        &mut self,
        id: ChildId,
        event: E,
        failed: u32,
        reason: ExitReason,
    ) -> Result<(), ExitReason> {
        if !self.options.may_try_again(failed, &reason) {
            self.give_up(event, reason);
            self.child_done(id);
            return Ok(());
        }
        let now = Instant::now();
        if self.budget.as_mut().is_some_and(|budget| !budget.spend(now)) {
            // The event was being processed and is not retried.
            self.in_progress += 1;
            self.remove_child(id);
            tracing::error!(stage = %self.stage, "too many restarts, stopping");
            return Err(TooManyRestarts::new(reason).into());
        }
        let delay = self.options.delay(failed, random());
        self.children.restart_at(Deadline::after(now, delay), id, event, failed);
        Ok(())
    }

    /// Restarts the children whose delay has passed.
    fn restart_due(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        // A child that fails to start is retried in the next call, even without a delay.
        for _ in 0..self.children.restarting() {
            if !self.children.next_restart().has_passed(now) {
                break;
            }
            let Some((id, event, failed)) = self.children.pop_restarting() else { break };
            self.restart_child(id, event, failed)?;
        }
        self.start_waiting();
        Ok(())
    }

    fn restart_child(&mut self, id: ChildId, event: E, failed: u32) -> Result<(), ExitReason> {
        // Others in their slots may wait for a reservation, so its child waits for none of them.
        let waits = |child: &&Child| child.left && child.reserved.is_none();
        let left = self.children.get(id).filter(waits);
        if let Some((from, key)) = left.and_then(|left| Some((left.subscription?, left.key))) {
            // It has given its slot and its key away, and waits for them like an event.
            self.children.restart_at(Deadline::NEVER, id, event, failed);
            self.waiting.add_child(from, key, id);
            return Ok(());
        }
        self.shared.metrics.restarted.increment(1);
        let mut context = self.context(failed);
        context.reserved = self.children.get(id).and_then(|child| child.reserved.clone());
        match self.call_admit(&event, &context) {
            Ok(Admission::Run) => {
                self.occupy(id, &context.place(), context.restarts);
                let job = self.job(event, context, None);
                self.spawn(id, job);
            }
            Ok(Admission::Ignore) => self.child_done(id),
            Err(reason) => {
                self.count_failure();
                let failed = failed.saturating_add(1);
                let restart = self.options.may_try_again(failed, &reason);
                if let Some(left_out) = self.admit_line(restart) {
                    let (stage, tries) = (&self.stage, failed);
                    if restart {
                        tracing::error!(%stage, reason = shown(&reason), tries, left_out, "a worker failed to restart");
                    } else {
                        tracing::error!(%stage, reason = shown(&reason), tries, left_out, "a worker failed to restart, giving up its event");
                    }
                }
                return self.after_failure(id, event, failed, reason);
            }
        }
        Ok(())
    }

    /// A child that had left its place has another, and is restarted now: whether the worker accepts its event is
    /// asked then, since the wait may have been long.
    fn come_back(&mut self, id: ChildId, key: Option<Key>) {
        let Some((event, failed)) = self.children.take_restarting(id) else {
            // It was terminated meanwhile.
            self.waiting.done(key);
            return;
        };
        self.children.come_back(id);
        self.gauges.workers.store(self.children.in_places(), Relaxed);
        self.children.restart_at(
            Deadline::after(Instant::now(), Duration::ZERO),
            id,
            event,
            failed,
        );
    }

    fn remove_child(&mut self, id: ChildId) -> Option<Child> {
        let child = self.children.remove(id)?;
        self.gauges.workers.store(self.children.in_places(), Relaxed);
        Some(child)
    }

    /// Removes a child that is done with its event.
    pub(super) fn child_done(&mut self, id: ChildId) {
        let Some(child) = self.remove_child(id) else { return };
        for mut caller in child.terminated {
            caller.reply(Ok(()));
        }
        if !child.freed {
            self.slots.free(child.subscription);
        }
        if !child.left {
            self.waiting.done(child.key);
        }
        self.start_waiting();
    }

    /// Notifies the children to stop, and waits for them until the deadline.
    async fn stop_children(&mut self, phase: &mut watch::Receiver<Phase>) {
        self.stopping.0.send_replace(true);
        self.children.release_restarting();
        while let Some(ended) = self.children.next_kept() {
            self.count_interrupted(&ended);
        }
        if self.options.shutdown.is_zero() {
            return;
        }
        let deadline = time::sleep(self.options.shutdown);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase == Phase::Kill) => return,
                ended = self.children.join_next() => match ended {
                    Some(ended) => self.count_interrupted(&ended),
                    None => return,
                },
                () = &mut deadline => return,
            }
        }
    }

    /// Drops the remaining children in any state.
    async fn kill_children(&mut self) {
        self.children.abort_all();
        while let Some(ended) = self.children.join_next().await {
            self.count_interrupted(&ended);
        }
    }

    /// Counts a child that ended while the supervisor was stopping.
    fn count_interrupted(&mut self, ended: &Ended<E>) {
        let child = self.children.of_task(ended).and_then(|id| self.children.get_mut(id));
        if let Some(child) = child {
            // It is not retried.
            child.reserved = None;
        }
        if !matches!(ended, Ok((_, Finished { outcome: Ok(()), .. }))) {
            self.in_progress += 1;
        }
    }
}

impl<E, W> fmt::Debug for Supervision<E, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervision").field("options", &self.options).finish_non_exhaustive()
    }
}

fn why_given_up(reason: &ExitReason) -> GivenUp {
    match reason {
        ExitReason::Failed(error) if error.is::<KeyIsFull>() => GivenUp::KeyFull,
        reason if reason.is_final() => GivenUp::Final,
        _ => GivenUp::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::pending};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_that_are_always_ready_do_not_hide_children_that_leave() {
        /// Ends at once, or leaves its place and waits for ever.
        struct EndsOrLeaves;

        impl Worker<bool> for EndsOrLeaves {
            async fn run(&self, leaves: &bool, context: ChildContext) -> Result<(), ExitReason> {
                if *leaves {
                    context.place().leave();
                    pending::<()>().await;
                }
                Ok(())
            }
        }

        let (_sender, phase) = watch::channel(Phase::Run);
        let mut supervision = Supervision::new(ConsumerSupervisor::new(EndsOrLeaves).may_leave());
        supervision.phase = Some(PhaseOfPlace::new(&phase));
        for leaves in [true, false] {
            supervision.start(leaves, Some(SubscriptionId::new(1)), None).unwrap();
        }
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(supervision.children.in_slots(), 2, "both are to be noticed");
        supervision.ready().await;
        let mut staged = VecDeque::new();
        supervision.handle_ready(&mut Emitter::new(&mut staged, 0)).await.unwrap();
        assert_eq!((supervision.children.in_slots(), supervision.children.len()), (0, 1));
    }
}
