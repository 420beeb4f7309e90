//! The end of a stage: the events it delivers first, and the stages it notifies.

use super::{
    super::{
        DemandMode,
        behaviour::Behaviour,
        catch_panic_now,
        inlet::Input,
        link::{ToConsumer, ToProducer},
        slot::{Control, Message},
    },
    Callback, StageTask,
    markers::Pending,
};
use crate::{dispatcher::Marker, exit::ExitReason, snapshot::StageKind};

/// How far a stage is on its way to its end, and whether it is paused.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    pub(super) paused: bool,
    /// Set when the stage ignores pauses, because the pipeline drains.
    pub(super) ignores_pauses: bool,
    /// Set when the stage takes nothing new, because the pipeline drains or its sources have ended.
    pub(super) draining: bool,
    pub(super) finishing: Option<Finishing>,
    /// Whether it was just determined that the stage does not end yet, although it is about to.
    pub(super) defer_end: bool,
    /// Whether all peers have been notified of the end.
    ended: bool,
}

impl Lifecycle {
    /// Whether the stage takes nothing new and ends when its work is done.
    #[inline]
    pub(super) fn is_ending(&self) -> bool {
        self.draining || self.finishing.is_some()
    }

    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused && !self.ignores_pauses;
    }

    fn ignore_pauses(&mut self) {
        self.ignores_pauses = true;
        self.paused = false;
    }
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
        self.lifecycle.ignore_pauses();
        self.upstreams.inlet.resume();
        self.wind_down();
        self.downstreams.outlet.set_mode(DemandMode::Forward);
        if B::KIND != StageKind::Producer || self.lifecycle.finishing.is_some() {
            return Ok(());
        }
        self.downstreams.allow(self.lifecycle.paused);
        let owed = self.downstreams.outlet.answerable();
        if self.downstreams.outlet.withholds() {
            // The producer is notified of the drain before it receives recorded demand. Events that it
            // emits now come after the recorded ones.
            self.downstreams.outlet.set_mode(DemandMode::Accumulate);
        }
        let outcome = self.call_owing(owed, Callback::Drain).await;
        self.downstreams.outlet.set_mode(DemandMode::Forward);
        match outcome {
            Err(ExitReason::Normal) => self.finish(ExitReason::Normal),
            outcome => outcome?,
        }
        self.replay().await
    }

    /// Takes nothing new, and ends when all its producers have ended. It may be paused until then.
    pub(super) fn wind_down(&mut self) {
        self.lifecycle.draining = true;
        self.upstreams.wind_down();
    }

    /// Puts a marker behind all events in the stage.
    pub(super) fn mark(&mut self, marker: Marker) {
        if self.upstreams.inlet.is_empty() {
            self.downstreams.outlet.info(marker);
        } else {
            self.upstreams.inlet.queue(Input::Info(marker));
        }
    }

    pub(super) async fn marker_reached(&mut self, marker: Marker) -> Result<(), ExitReason> {
        match self.markers.take(marker) {
            Some(Pending::User(envelope)) => self.call(Callback::User(envelope.message)).await,
            Some(Pending::Finish) => {
                let Some(finishing) = &mut self.lifecycle.finishing else { return Ok(()) };
                if finishing.step == EndStep::Output
                    && (!self.downstreams.outlet.is_empty()
                        || self.downstreams.outlet.undelivered() > 0)
                {
                    // Messages that waited among the last events have emitted more. Only once: calls may
                    // emit without end.
                    finishing.step = EndStep::Rest;
                    let marker = self.markers.add(Pending::Finish);
                    self.downstreams.outlet.info(marker);
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
        if self.lifecycle.finishing.is_none() {
            self.lifecycle.paused = false;
            // Events that arrive from now on were in transit, and no more are asked for.
            self.behaviour.asks_no_more();
            self.downstreams.outlet.finish();
            self.upstreams.finish(&reason);
            self.lifecycle.finishing = Some(Finishing { reason, step: EndStep::Input });
        }
    }

    /// Continues to end the stage. Returns whether there is more to do at once.
    pub(super) async fn continue_ending(&mut self) -> Result<bool, ExitReason> {
        let Some(finishing) = &mut self.lifecycle.finishing else {
            let abandoned = B::KIND != StageKind::Producer && self.upstreams.are_gone();
            if self.lifecycle.draining && abandoned {
                self.finish(ExitReason::Normal);
                return Ok(true);
            }
            return Ok(false);
        };
        match finishing.step {
            EndStep::Input
                if self.upstreams.inlet.is_empty()
                    && self.upstreams.inlet.upstreams().is_empty() =>
            {
                finishing.step = EndStep::Output;
                if B::KIND == StageKind::ProducerConsumer {
                    self.call(Callback::Drain).await?;
                }
                let marker = self.markers.add(Pending::Finish);
                self.downstreams.outlet.info(marker);
                Ok(true)
            }
            EndStep::Work if !self.behaviour.is_busy() => Err(finishing.reason.clone()),
            EndStep::Input | EndStep::Output | EndStep::Rest | EndStep::Work => Ok(false),
        }
    }

    /// Whether the stage only waits for producers to confirm the ends of its cancelled
    /// subscriptions.
    pub(super) fn waits_for_confirmations(&self) -> bool {
        let ends = match &self.lifecycle.finishing {
            Some(finishing) => finishing.step == EndStep::Input,
            None => self.lifecycle.draining && self.upstreams.retries.is_empty(),
        };
        ends && self.upstreams.are_cancelled()
    }

    /// Continues without the confirmations if they are overdue. Events that still arrive are
    /// counted as pending.
    pub(super) fn give_up_producers(&mut self) {
        if !self.upstreams.are_overdue() || !self.waits_for_confirmations() {
            return;
        }
        self.upstreams.confirmed();
        // They may have confirmed in messages that the stage has not read yet.
        if self.mailbox.has(|message| matches!(message, Message::FromProducer(_))) {
            return;
        }
        let producers = self.upstreams.assume_confirmed();
        tracing::warn!(stage = %self.accounting.stage(), producers, "producers did not confirm the end of their subscriptions in time");
    }

    /// Notifies all peers of the end, and counts the remaining events.
    pub(super) fn end(&mut self, reason: &ExitReason) {
        if std::mem::replace(&mut self.lifecycle.ended, true) {
            return;
        }
        // A dispatcher that has panicked may have decided about some events before.
        let _ = catch_panic_now(|| {
            self.send();
            Ok(())
        });
        let known = self.behaviour.unprocessed();
        let waiting = self.downstreams.undelivered() + self.upstreams.inlet.event_count();
        self.accounting.count_unprocessed(known, waiting);
        self.address.end(reason);
        self.address.timers.end();
        let reason = &reason.for_peers();
        // Closed first, so that nothing can arrive uncounted.
        self.mailbox.close();
        while let Some(message) = self.mailbox.next() {
            match message {
                Message::FromProducer(ToConsumer::Events { events, .. }) => {
                    self.accounting.count_pending(events.len());
                }
                Message::FromConsumer(ToProducer::Subscribe(subscribe)) => {
                    if let Some((old, reason)) = subscribe.replaces {
                        self.downstreams.confirm_cancel(old, reason);
                    }
                    self.downstreams.add(subscribe.subscription, subscribe.consumer);
                }
                Message::Control(Control::CancelSubscription { line, .. }) => {
                    self.upstreams.withdraw(line);
                }
                // The consumer's reason came first.
                Message::FromConsumer(ToProducer::Cancel { id, reason }) => {
                    self.downstreams.confirm_cancel(id, reason);
                }
                _ => {}
            }
        }
        self.downstreams.end(reason);
        self.upstreams.end(reason);
    }
}

/// Dropping the task ends the stage without its cooperation.
impl<B: Behaviour> Drop for StageTask<B> {
    fn drop(&mut self) {
        if self.lifecycle.ended {
            return;
        }
        let reporting = || {
            self.behaviour.report(&mut self.accounting.report);
            Ok(())
        };
        // This calls a method of the user's stage; a partial count is better than none.
        let _ = catch_panic_now(reporting);
        self.end(&ExitReason::Killed);
        self.accounting.report.reason = ExitReason::Killed;
        // This is the only place that sets it.
        let _ = self.final_report.set(self.accounting.report.clone());
    }
}
