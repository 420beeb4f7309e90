//! The end of a stage: the events it delivers first, and the stages it notifies.

use tokio::time::Instant;

use super::{
    super::{
        behaviour::Behaviour, catch_panic_now, link::ToConsumer, link::ToProducer,
        message::Envelope, slot::Message,
    },
    Callback, StageTask,
    upstream::Retry,
};
use crate::{
    dispatcher::Marker,
    exit::ExitReason,
    snapshot::StageKind,
    stage::{DemandMode, inlet::Input},
    subscription::Cancellation,
    wiring::Unprocessed,
};

/// What happens when a marker is reached.
pub(super) enum Pending<B: Behaviour> {
    /// A message, which keeps its permit while it waits.
    User(Envelope<B::Stage, B::Out>),
    Finish,
}

/// The progress of a stage that delivers its events before it ends.
#[derive(Debug)]
pub(super) struct Finishing {
    pub(super) reason: ExitReason,
    pub(super) step: EndStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndStep {
    /// Received events, and those in transit, are still to be handled.
    Input,
    /// Emitted events are still to be delivered.
    Output,
    /// Events that were emitted during `Output` are still to be delivered.
    Rest,
    /// The current work is still to be done.
    Work,
}

impl<B: Behaviour> StageTask<B> {
    /// Takes nothing new, and removes all delays.
    pub(super) async fn drain(&mut self) -> Result<(), ExitReason> {
        self.ignores_pauses = true;
        self.paused = false;
        self.inlet.resume();
        self.wind_down();
        self.outlet.set_mode(DemandMode::Forward);
        if B::KIND != StageKind::Producer || self.finishing.is_some() {
            return Ok(());
        }
        self.allow();
        let owed = self.outlet.answerable();
        if self.outlet.withholds() {
            // The producer is notified of the drain before it receives recorded demand. Events that it
            // emits now come after the recorded ones.
            self.outlet.set_mode(DemandMode::Accumulate);
        }
        let outcome = self.call_owing(owed, Callback::Drain).await;
        self.outlet.set_mode(DemandMode::Forward);
        match outcome {
            Err(ExitReason::Normal) => self.finish(ExitReason::Normal),
            outcome => outcome?,
        }
        self.replay().await
    }

    /// Takes nothing new, and ends when all its producers have ended. It may be paused until then.
    pub(super) fn wind_down(&mut self) {
        self.draining = true;
        // The events of another pipeline do not end because this one drains.
        let pipeline = self.pipeline;
        // The producer of this stage may be restarted by now or soon, to drain its events. The
        // current retry delay has no relation to the time left for the drain.
        self.retries.retain(|retry| retry.target.pipeline() == pipeline);
        self.retries.iter_mut().for_each(Retry::hurry);
        for upstream in self.inlet.upstreams_mut() {
            upstream.state.backoff = None;
        }
        self.cancel_subscriptions(&ExitReason::Normal, |source| {
            source.target.pipeline() != pipeline
        });
    }

    pub(super) fn marker(&mut self, pending: Pending<B>) -> Marker {
        let marker = Marker::new(self.next_marker);
        self.next_marker += 1;
        self.markers.insert(marker, pending);
        marker
    }

    /// Puts a marker behind all events in the stage.
    pub(super) fn mark(&mut self, marker: Marker) {
        if self.inlet.is_empty() {
            self.outlet.info(marker);
        } else {
            self.inlet.queue(Input::Info(marker));
        }
    }

    pub(super) async fn marker_reached(&mut self, marker: Marker) -> Result<(), ExitReason> {
        match self.markers.remove(&marker) {
            Some(Pending::User(envelope)) => self.call(Callback::User(envelope.message)).await,
            Some(Pending::Finish) => {
                let Some(finishing) = &mut self.finishing else { return Ok(()) };
                if finishing.step == EndStep::Output
                    && (!self.outlet.is_empty() || self.outlet.undelivered() > 0)
                {
                    // Messages that waited among the last events have emitted more. Only once: calls may
                    // emit without end.
                    finishing.step = EndStep::Rest;
                    let marker = self.marker(Pending::Finish);
                    self.outlet.info(marker);
                } else {
                    finishing.step = EndStep::Work;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins to deliver the stage's events, and to end then.
    pub(super) fn finish(&mut self, reason: ExitReason) {
        if self.finishing.is_none() {
            self.paused = false;
            self.inlet.resume();
            self.retries.clear();
            // Events that arrive from now on were in transit, and no more are asked for.
            self.behaviour.asks_no_more();
            self.outlet.finish();
            self.cancel_subscriptions(&reason, |_| true);
            self.finishing = Some(Finishing { reason, step: EndStep::Input });
        }
    }

    /// Continues to end the stage. Returns whether there is more to do at once.
    pub(super) async fn continue_ending(&mut self) -> Result<bool, ExitReason> {
        let Some(finishing) = &mut self.finishing else {
            let abandoned = B::KIND != StageKind::Producer
                && self.inlet.upstreams().is_empty()
                && self.retries.is_empty();
            if self.draining && abandoned && self.inlet.is_empty() {
                self.finish(ExitReason::Normal);
                return Ok(true);
            }
            return Ok(false);
        };
        match finishing.step {
            EndStep::Input if self.inlet.is_empty() && self.inlet.upstreams().is_empty() => {
                finishing.step = EndStep::Output;
                if B::KIND == StageKind::ProducerConsumer {
                    self.call(Callback::Drain).await?;
                }
                let marker = self.marker(Pending::Finish);
                self.outlet.info(marker);
                Ok(true)
            }
            EndStep::Work if !self.behaviour.is_busy() => Err(finishing.reason.clone()),
            EndStep::Input | EndStep::Output | EndStep::Rest | EndStep::Work => Ok(false),
        }
    }

    /// Whether the stage only waits for producers to confirm the ends of its cancelled
    /// subscriptions.
    pub(super) fn waits_for_confirmations(&self) -> bool {
        let ends = match &self.finishing {
            Some(finishing) => finishing.step == EndStep::Input,
            None => self.draining && self.retries.is_empty(),
        };
        let upstreams = self.inlet.upstreams();
        ends && self.inlet.is_empty()
            && !upstreams.is_empty()
            && upstreams.iter().all(|upstream| upstream.state.cancelled)
    }

    /// Continues without the confirmations if they are overdue. Events that still arrive are
    /// counted as pending.
    pub(super) fn give_up_producers(&mut self) {
        let overdue = self.confirmed_by.is_some_and(|by| by.has_passed(Instant::now()));
        if !overdue || !self.waits_for_confirmations() {
            return;
        }
        self.confirmed_by = None;
        // They may have confirmed in messages that the stage has not read yet.
        if self.mailbox.has(|message| matches!(message, Message::FromProducer(_))) {
            return;
        }
        let late: Vec<_> =
            self.inlet.upstreams().iter().map(|upstream| upstream.subscription.id()).collect();
        tracing::warn!(stage = %self.report.stage, producers = late.len(), "producers did not confirm the end of their subscriptions in time");
        for from in late {
            let how = Cancellation::Cancel(ExitReason::Normal);
            self.inlet.queue(Input::Ended { from, how });
        }
    }

    /// Notifies all peers of the end, and counts the remaining events.
    pub(super) fn end(&mut self, reason: &ExitReason) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // The stage may have a more exact count than the number of events given to a failed
        // callback.
        let known = self.behaviour.unprocessed();
        let unprocessed =
            known.unwrap_or(Unprocessed { pending: 0, in_progress: self.in_callback });
        self.report.in_progress += unprocessed.in_progress;
        self.report.pending += unprocessed.pending
            + self.rest_of_message
            + self.staged.len()
            + self.outlet.undelivered()
            + self.inlet.event_count();
        self.address.end(reason);
        let reason = &reason.for_peers();
        // Closed first, so that nothing can arrive uncounted.
        self.mailbox.close();
        while let Some(message) = self.mailbox.next() {
            match message {
                Message::FromProducer(ToConsumer::Events { events, .. }) => {
                    self.report.pending += events.len();
                }
                Message::FromConsumer(ToProducer::Subscribe(subscribe)) => {
                    let from = subscribe.subscription.id();
                    let reason = reason.clone();
                    let _ = subscribe.consumer.send(ToConsumer::Down { from, reason });
                }
                _ => {}
            }
        }
        for (&from, downstream) in &self.consumers {
            let reason = reason.clone();
            let _ = downstream.consumer.send(ToConsumer::Down { from, reason });
        }
        for upstream in self.inlet.upstreams() {
            upstream.subscription.down(reason.clone());
        }
    }
}

/// Dropping the task ends the stage without its cooperation.
impl<B: Behaviour> Drop for StageTask<B> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let reporting = || {
            self.behaviour.report(&mut self.report);
            Ok(())
        };
        // This calls a method of the user's stage; a partial count is better than none.
        let _ = catch_panic_now(reporting);
        self.end(&ExitReason::Killed);
        self.report.reason = ExitReason::Killed;
        // This is the only place that sets it.
        let _ = self.final_report.set(self.report.clone());
    }
}
