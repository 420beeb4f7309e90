//! The time that work may take in its place.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::coop::{Unconstrained, unconstrained},
    time::{Instant, Sleep, sleep_until},
};

use super::Place;
use crate::deadline::Deadline;

/// A limit on the time of work. What waits in its place [without the limit](Place::without_limit) is not counted.
///
/// It is no timer yet for work that ends at once.
pub(crate) struct TimeLimit {
    at: Deadline,
    timer: Option<Pin<Box<Unconstrained<Sleep>>>>,
    waits_since: Option<Instant>,
}

impl TimeLimit {
    pub(crate) fn new(started: Instant, within: Duration) -> Self {
        Self { at: Deadline::after(started, within), timer: None, waits_since: None }
    }

    /// Ready when the time is over. It is asked whenever the work has to wait.
    pub(crate) fn poll(&mut self, place: &Place, context: &mut Context<'_>) -> Poll<()> {
        if self.at == Deadline::NEVER {
            return Poll::Pending;
        }
        if place.poll_without_limit(context) {
            self.waits_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        }
        if let Some(since) = self.waits_since.take() {
            self.at = self.at.later(since.elapsed());
            self.timer = None;
        }
        let Some(at) = self.at.instant() else { return Poll::Pending };
        // Work that has used up the budget of its task would hide that its time is over.
        let timer = self.timer.get_or_insert_with(|| Box::pin(unconstrained(sleep_until(at))));
        timer.as_mut().poll(context)
    }
}
