//! What becomes of the messages of a source, and the acknowledger that tells its task.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
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

/// How many of the items are remembered that have failed or were postponed last.
const REMEMBERED: usize = 4096;

/// The shortest time after which a postponed item is looked at again. Looks are not counted.
const SOONEST: Duration = Duration::from_millis(10);

/// The receipt of a message: the broker's, and what the source knows about the delivery.
pub(crate) struct Held<R> {
    pub(crate) receipt: R,
    pub(crate) before: Before,
    pub(crate) about: About,
}

/// What is known of an item's deliveries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// How often it has been delivered, this time included. 0 if the broker does not count.
    pub(crate) deliveries: u32,
    /// How often it has failed.
    pub(crate) failures: u32,
    /// How many of its deliveries concern no failure and are known to have ended: it was given back, and the broker counts
    /// this as a delivery.
    pub(crate) releases: u32,
    /// Whether the broker keeps how often it has failed.
    pub(crate) is_kept: bool,
}

impl Before {
    /// How many deliveries had no outcome, before this one.
    pub(crate) fn unfinished(&self) -> u32 {
        let before = self.deliveries.saturating_sub(1);
        before.saturating_sub(self.failures).saturating_sub(self.releases)
    }
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
#[derive(Debug)]
pub(crate) struct Shared {
    /// The first session whose outcomes can still be stored.
    first: AtomicU64,
    /// The items that have failed last.
    failed: Mutex<Remembered<Failed>>,
    /// The items that were given back last, and how often.
    released: Mutex<Remembered<u32>>,
    in_work: Mutex<InWork>,
    set_aside: AtomicUsize,
}

/// The items of a session that have no outcome.
#[derive(Debug, Default)]
struct InWork {
    session: u64,
    items: usize,
}

impl Shared {
    /// Of a broker that may hold back so many items.
    pub(crate) fn new(held_back: usize) -> Self {
        Self {
            first: AtomicU64::new(0),
            failed: Mutex::new(Remembered::new(REMEMBERED)),
            released: Mutex::new(Remembered::new(held_back)),
            in_work: Mutex::default(),
            set_aside: AtomicUsize::new(0),
        }
    }

    /// What was fetched up to this session is delivered again, whatever becomes of it.
    pub(crate) fn is_lost(&self, session: u64) {
        self.first.store(session.saturating_add(1), SeqCst);
    }

    /// Whether the outcome of an item of this session can still be stored.
    pub(crate) fn counts(&self, session: u64) -> bool {
        session >= self.first.load(SeqCst)
    }

    /// The items in work are those of this session from now on.
    pub(crate) fn session_begins(&self, session: u64) {
        *self.in_work.lock() = InWork { session, items: 0 };
    }

    /// An item of the session is in work from now on.
    pub(crate) fn begins(&self) {
        self.in_work.lock().items += 1;
    }

    /// Items of these sessions have an outcome.
    fn have_outcomes(&self, sessions: impl Iterator<Item = u64>) {
        let mut in_work = self.in_work.lock();
        let of_session = sessions.filter(|session| *session == in_work.session).count();
        in_work.items = in_work.items.saturating_sub(of_session);
    }

    /// How many items of the session have no outcome.
    pub(crate) fn in_work(&self) -> usize {
        self.in_work.lock().items
    }

    /// So many outcomes are tried again later.
    pub(crate) fn are_set_aside(&self, items: usize) {
        self.set_aside.store(items, SeqCst);
    }

    /// How many outcomes are tried again later.
    pub(crate) fn set_aside(&self) -> usize {
        self.set_aside.load(SeqCst)
    }

    /// What this source has seen of an item not long ago.
    pub(crate) fn remembered(&self, id: &str) -> Seen {
        let releases = self.released.lock().of(id);
        let Failed { failures, reason } = self.failed.lock().of(id);
        Seen { failures, releases, reason }
    }

    fn forget(&self, id: &str) {
        self.failed.lock().forget(id);
        self.released.lock().forget(id);
    }
}

/// What a source has seen of an item.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) failures: u32,
    pub(crate) releases: u32,
    /// Why it has failed the last time.
    pub(crate) reason: Option<Arc<str>>,
}

/// The failures of an item.
#[derive(Clone, Debug, Default)]
struct Failed {
    failures: u32,
    reason: Option<Arc<str>>,
}

/// Items that are delivered again, in the order in which they were seen last.
#[derive(Debug)]
struct Remembered<T> {
    most: usize,
    items: HashMap<Arc<str>, (u64, T)>,
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
}

impl<T: Clone + Default> Remembered<T> {
    fn new(most: usize) -> Self {
        Self { most: most.max(1), items: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    fn note(&mut self, id: &Arc<str>, change: impl FnOnce(&mut T)) {
        let mut seen = self.forget(id).unwrap_or_default();
        change(&mut seen);
        if self.items.len() >= self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.items.remove(&oldest);
        }
        self.order.insert(self.next, id.clone());
        self.items.insert(id.clone(), (self.next, seen));
        self.next += 1;
    }

    fn forget(&mut self, id: &str) -> Option<T> {
        let (place, seen) = self.items.remove(id)?;
        self.order.remove(&place);
        Some(seen)
    }

    fn of(&self, id: &str) -> T {
        self.items.get(id).map(|(_, seen)| seen.clone()).unwrap_or_default()
    }
}

impl<R: Send + Sync + 'static> Acknowledger for Outcomes<R> {
    type Receipt = Held<R>;

    fn acknowledge(&self, done: Vec<Held<R>>, failed: Vec<(Held<R>, Failure)>) {
        let all = done.iter().chain(failed.iter().map(|(held, _)| held));
        self.shared.have_outcomes(all.map(|held| held.about.session));
        let done = done.into_iter().map(|held| {
            self.shared.forget(&held.about.id);
            (held, Outcome::Done)
        });
        let failed = failed.into_iter().map(|(mut held, failure)| {
            let stopped = *self.stopped.borrow();
            let outcome = outcome(&failure, &held.before, &self.options, stopped, random());
            self.remember(&held, &failure, &outcome);
            if matches!(outcome, Outcome::Release { .. }) {
                held.about.wake = failure.wake().cloned();
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

impl<R> Outcomes<R> {
    fn remember(&self, held: &Held<R>, failure: &Failure, outcome: &Outcome) {
        let (shared, id) = (&self.shared, &held.about.id);
        match outcome {
            Outcome::Retry { failures, .. } => shared.failed.lock().note(id, |seen| {
                seen.failures = *failures;
                seen.reason = Some(shown(failure).into());
            }),
            Outcome::Release { .. } if !held.before.is_kept => {
                // A callback has had it and lives, so those before it were other sources' looks, as far as they were no
                // failures.
                let is_looked_at = failure.kind() == FailureKind::Postponed;
                let Before { deliveries, failures, .. } = held.before;
                let all = is_looked_at.then(|| deliveries.saturating_sub(failures));
                shared.released.lock().note(id, |releases| {
                    *releases = releases.saturating_add(1).max(all.unwrap_or_default());
                });
            }
            Outcome::Release { .. } => {}
            Outcome::Done | Outcome::GiveUp { .. } => shared.forget(id),
        }
    }
}

/// What becomes of an item that has failed.
fn outcome(
    failure: &Failure,
    before: &Before,
    options: &SourceOptions,
    stopped: bool,
    random: f64,
) -> Outcome {
    let give_up = || Outcome::GiveUp { reason: cut(&failure.to_string()).into() };
    let usual = |times: u32| options.redeliver.nth_delay(times.max(1), random);
    let (failures, times, is_last) = match failure.kind() {
        // A source that stops gives back what is not done.
        FailureKind::Dropped | FailureKind::Forgotten | FailureKind::Overflow if stopped => {
            return Outcome::Release { after: Duration::ZERO };
        }
        // No callback has had it. At once, it would find the same buffer.
        FailureKind::Overflow => return Outcome::Release { after: usual(before.deliveries) },
        // It is not known whether a callback has begun with it.
        FailureKind::Dropped => {
            let times = before.unfinished().saturating_add(1);
            (before.failures, times, times >= options.max_unfinished)
        }
        _ => {
            let failures = before.failures.saturating_add(1);
            (failures, failures, failures >= options.max_deliveries)
        }
    };
    match failure.redelivery() {
        Redelivery::Never => give_up(),
        Redelivery::Later(after) => Outcome::Release { after: after.max(SOONEST) },
        _ if is_last => give_up(),
        Redelivery::After(after) => Outcome::Retry { after, failures },
        Redelivery::Usual => Outcome::Retry { after: usual(times), failures },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an item that fails now and has failed so often before.
    fn decided(failure: &Failure, failures: u32) -> Outcome {
        let options = SourceOptions::new().max_deliveries(3);
        // What was lost in between is not counted.
        let before = Before { deliveries: failures + 10, failures, ..Before::default() };
        outcome(failure, &before, &options, false, 1.0)
    }

    fn retry(seconds: u64, failures: u32) -> Outcome {
        Outcome::Retry { after: Duration::from_secs(seconds), failures }
    }

    #[test]
    fn a_failed_item_is_delivered_again_after_growing_delays_and_then_given_up() {
        let outcomes = [0, 1].map(|n| decided(&Failure::new("no"), n));
        assert_eq!(outcomes, [retry(1, 1), retry(2, 2)]);
        assert_eq!(decided(&Failure::new("no"), 2), Outcome::GiveUp { reason: "no".into() });
    }

    #[test]
    fn a_failure_says_what_becomes_of_its_item() {
        let gone = decided(&Failure::new("gone").give_up(), 0);
        assert_eq!(gone, Outcome::GiveUp { reason: "gone".into() });
        let busy = || Failure::new("busy").retry_after(Duration::from_secs(9));
        assert_eq!(decided(&busy(), 0), retry(9, 1));
        assert_eq!(decided(&busy(), 2), Outcome::GiveUp { reason: "busy".into() });
        let minute = Duration::from_secs(60);
        let later = decided(&Failure::new("absent").later(minute), 1000);
        assert_eq!(later, Outcome::Release { after: minute });
    }

    #[test]
    fn an_item_that_is_postponed_for_no_time_is_not_looked_at_again_at_once() {
        let later = decided(&Failure::new("absent").later(Duration::ZERO), 0);
        assert_eq!(later, Outcome::Release { after: SOONEST });
    }

    #[test]
    fn as_many_are_known_that_were_given_back_as_are_held_back() {
        let shared = Shared::new(3 * REMEMBERED);
        let ids: Vec<Arc<str>> = (0..3 * REMEMBERED).map(|n| n.to_string().into()).collect();
        for _ in 0..2 {
            ids.iter().for_each(|id| shared.released.lock().note(id, |releases| *releases += 1));
        }
        assert!(ids.iter().all(|id| shared.remembered(id).releases == 2));
        shared.released.lock().note(&"another".into(), |releases| *releases += 1);
        assert_eq!(shared.remembered(&ids[0]).releases, 0, "there is a bound");
    }

    #[test]
    fn the_last_failures_are_remembered() {
        let mut remembered = Remembered::<Failed>::new(REMEMBERED);
        for n in 0..3 * REMEMBERED {
            let (id, reason) = ((n % 2 * n).to_string().into(), format!("failure {n}"));
            remembered.note(&id, |seen| {
                seen.failures += 1;
                seen.reason = Some(reason.into());
            });
        }
        assert_eq!((remembered.items.len(), remembered.order.len()), (REMEMBERED, REMEMBERED));
        let last = 3 * REMEMBERED - 1;
        let seen = remembered.of("0");
        assert_eq!(seen.failures as usize, 3 * REMEMBERED / 2);
        assert_eq!(seen.reason, Some(format!("failure {}", last - 1).into()));
        assert_eq!(remembered.of(&last.to_string()).reason, Some(format!("failure {last}").into()));
        assert_eq!(remembered.of("1").failures, 0);
        assert!(remembered.forget("0").is_some());
        assert_eq!((remembered.of("0").failures, remembered.order.len()), (0, REMEMBERED - 1));
    }
}
