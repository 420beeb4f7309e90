//! What becomes of the messages of a source, and the acknowledger that tells its task.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;
use pipeline_core::{
    processing::{Acknowledger, Failure, FailureKind, Redelivery},
    shown::shown,
};
use tokio::sync::{mpsc, watch};

use crate::{
    broker::{Outcome, Settlement},
    options::SourceOptions,
    random::random,
    reason::cut,
    unsettled::{About, Unsettled},
};

/// How many of the last failures are remembered.
const REMEMBERED: usize = 1000;

/// The receipt of a message: the broker's, and what the source knows about the delivery.
pub(crate) struct Held<R> {
    pub(crate) receipt: R,
    pub(crate) deliveries: u32,
    pub(crate) about: About,
}

/// Hands outcomes to the task of their source.
pub(crate) struct Outcomes<R> {
    pub(crate) sender: mpsc::UnboundedSender<Vec<Unsettled<R>>>,
    pub(crate) options: SourceOptions,
    /// Whether the source fetches nothing more.
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) shared: Arc<Shared>,
}

/// What the task of a source shares with its acknowledger.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The first session whose outcomes can still be stored.
    first: AtomicU64,
    reasons: Mutex<Reasons>,
}

impl Shared {
    /// What was fetched up to this session is delivered again, whatever becomes of it.
    pub(crate) fn is_lost(&self, session: u64) {
        self.first.store(session.saturating_add(1), SeqCst);
    }

    /// Whether the outcome of an item of this session can still be stored.
    pub(crate) fn counts(&self, session: u64) -> bool {
        session >= self.first.load(SeqCst)
    }

    /// Why an item has failed the last time, as far as this source has seen it not long ago.
    pub(crate) fn last_reason(&self, id: &str) -> Option<Arc<str>> {
        self.reasons.lock().of(id)
    }
}

/// Why items have failed that are delivered again.
#[derive(Debug, Default)]
struct Reasons(VecDeque<(Arc<str>, Arc<str>)>);

impl Reasons {
    fn note(&mut self, id: Arc<str>, reason: String) {
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((id, reason.into()));
    }

    fn of(&self, id: &str) -> Option<Arc<str>> {
        let mut of_item = self.0.iter().rev().filter(|(of, _)| &**of == id);
        of_item.next().map(|(_, reason)| reason.clone())
    }
}

impl<R: Send + Sync + 'static> Acknowledger for Outcomes<R> {
    type Receipt = Held<R>;

    fn acknowledge(&self, done: Vec<Held<R>>, failed: Vec<(Held<R>, Failure)>) {
        let done = done.into_iter().map(|held| (held, Outcome::Done));
        let failed = failed.into_iter().map(|(held, failure)| {
            let stopped = *self.stopped.borrow();
            let outcome = outcome(&failure, held.deliveries, &self.options, stopped, random());
            if matches!(outcome, Outcome::Retry(_)) {
                self.shared.reasons.lock().note(held.about.id.clone(), shown(&failure));
            }
            (held, outcome)
        });
        let outcomes = done.chain(failed).filter(|(held, _)| self.is_current(held));
        let unsettled = outcomes.map(|(Held { receipt, about, .. }, outcome)| Unsettled {
            settlement: Settlement { receipt, outcome },
            about,
        });
        let unsettled: Vec<_> = unsettled.collect();
        if !unsettled.is_empty() {
            // The task ends before only if its pipeline was dropped. Then the items are delivered again.
            let _ = self.sender.send(unsettled);
        }
    }

    fn is_current(&self, held: &Held<R>) -> bool {
        self.shared.counts(held.about.session)
    }
}

/// What becomes of an item that has failed after so many deliveries.
fn outcome(
    failure: &Failure,
    deliveries: u32,
    options: &SourceOptions,
    stopped: bool,
    random: f64,
) -> Outcome {
    let give_up = || Outcome::GiveUp { reason: cut(&failure.to_string()).into() };
    let usual = || options.redeliver.nth_delay(deliveries.max(1), random);
    let most = match failure.kind() {
        // A source that stops gives back what is not done.
        FailureKind::Dropped | FailureKind::Forgotten | FailureKind::Overflow if stopped => {
            return Outcome::Release { after: std::time::Duration::ZERO };
        }
        // No callback has had it. At once, it would find the same buffer.
        FailureKind::Overflow => return Outcome::Release { after: usual() },
        // It is not known whether a callback has begun with it.
        FailureKind::Dropped => options.most_unfinished(),
        _ => options.max_deliveries,
    };
    match failure.redelivery() {
        Redelivery::Never => give_up(),
        Redelivery::Later(after) => Outcome::Release { after },
        _ if deliveries >= most => give_up(),
        Redelivery::After(delay) => Outcome::Retry(delay),
        Redelivery::Usual => Outcome::Retry(usual()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn decided(failure: &Failure, deliveries: u32) -> Outcome {
        let options = SourceOptions::new().max_deliveries(3);
        outcome(failure, deliveries, &options, false, 1.0)
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

    #[test]
    fn the_last_failures_are_remembered() {
        let mut reasons = Reasons::default();
        for n in 0..3 * REMEMBERED {
            reasons.note((n % 2 * n).to_string().into(), format!("failure {n}"));
        }
        assert_eq!(reasons.0.len(), REMEMBERED);
        assert_eq!(reasons.of("0").as_deref(), Some("failure 2998"));
        assert_eq!(reasons.of("2999").as_deref(), Some("failure 2999"));
        assert_eq!(reasons.of("1"), None);
    }
}
