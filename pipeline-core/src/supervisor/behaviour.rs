//! The callbacks of a supervisor.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::watch, task, time::Instant};

use super::{ConsumerSupervisor, Worker};
use crate::{
    exit::ExitReason,
    report::StageReport,
    snapshot::StageKind,
    stage::{Behaviour, Emitter, HandleOf, Phase, StageContext, demand::Slots},
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    telemetry::{Telemetry, WorkerMetrics},
};

/// A consumer supervisor, as the runtime sees it.
pub(crate) struct AsSupervisor<E, W>(pub(crate) ConsumerSupervisor<E, W>);

impl<E, W> Behaviour for AsSupervisor<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Stage = ConsumerSupervisor<E, W>;
    type In = E;
    type Out = Infallible;

    const KIND: StageKind = StageKind::ConsumerSupervisor;

    fn stage(&mut self) -> &mut ConsumerSupervisor<E, W> {
        &mut self.0
    }

    fn init(&mut self, context: &StageContext<HandleOf<Self>>) -> Result<(), ExitReason> {
        let telemetry: &Telemetry = &context.telemetry;
        Arc::get_mut(&mut self.0.shared).expect("no child shares it before the start").metrics =
            WorkerMetrics::register(telemetry, &context.labels());
        self.0.stage = context.stage.clone();
        self.0.gauges = context.gauges.clone();
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<DemandControl, ExitReason> {
        self.0.slots.insert(from.id(), (from.clone(), Slots::new(options)));
        self.0.count_spare();
        from.ask(options.max());
        Ok(DemandControl::Manual)
    }

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        self.0.waiting.extend(from.id(), events);
        self.0.start_waiting();
        self.0.ask();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        // Its children continue, and send no demand when they end.
        self.0.slots.remove(&from.id());
        self.0.count_spare();
        Ok(())
    }

    fn awaits_ready(&self, _owed: usize) -> bool {
        self.is_busy()
    }

    async fn ready(&mut self) {
        let supervisor = &mut self.0;
        let again = supervisor.next_restart();
        if supervisor.ended.is_empty() && !again.has_passed(Instant::now()) {
            // Ended tasks are kept for `handle_ready`, so dropping this future loses nothing.
            let resumed = supervisor.pauses.is_over(&supervisor.shared);
            tokio::select! {
                biased;
                Some(ended) = supervisor.tasks.join_next_with_id() => supervisor.ended.push_back(ended),
                () = resumed => {}
                () = again.passed() => {}
            }
        }
    }

    async fn handle_ready(&mut self, _out: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
        let supervisor = &mut self.0;
        if supervisor.next_restart().has_passed(Instant::now()) {
            // It may be tried again at once, but other tasks are scheduled first.
            task::yield_now().await;
            supervisor.restart_due()?;
        }
        while let Some(ended) =
            supervisor.ended.pop_front().or_else(|| supervisor.tasks.try_join_next_with_id())
        {
            supervisor.child_ended(ended)?;
        }
        supervisor.resume();
        supervisor.ask();
        Ok(())
    }

    fn asks_no_more(&mut self) {
        // No demand is sent for slots that are freed from now on.
        self.0.slots.clear();
    }

    fn workers_stop_within(&self) -> Duration {
        self.0.shutdown
    }

    fn is_busy(&self) -> bool {
        !self.0.children.is_empty() || !self.0.waiting.is_empty()
    }

    async fn terminate(&mut self, reason: &ExitReason, phase: &mut watch::Receiver<Phase>) {
        let supervisor = &mut self.0;
        if !matches!(reason, ExitReason::Killed) {
            supervisor.stop_children(phase).await;
        }
        supervisor.kill_children().await;
    }

    fn report(&mut self, report: &mut StageReport) {
        let supervisor = &mut self.0;
        while let Some(ended) =
            supervisor.ended.pop_front().or_else(|| supervisor.tasks.try_join_next_with_id())
        {
            supervisor.count_interrupted(&ended);
        }
        // A supervisor that was killed did not wait for these.
        let left = supervisor.tasks.len() + supervisor.restarting.len();
        report.in_progress += supervisor.in_progress + left;
        report.given_up += supervisor.given_up;
        report.pending += supervisor.waiting.len();
    }
}
