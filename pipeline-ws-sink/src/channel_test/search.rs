//! The search for a message, with a time limit.

use std::{sync::Arc, time::Duration};

use pipeline_core::Deadline;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    inbox::TestInbox,
    message::{Expected, ExpectedKind, Recipient},
    pattern::Pattern,
};
use crate::payload::Payload;

/// How long an assertion waits, unless `within` is set.
const WITHIN: Duration = Duration::from_millis(100);

/// The expectation of an assertion, except for the payload. Used by the macros.
#[doc(hidden)]
#[derive(Debug)]
#[must_use]
pub struct Search {
    inbox: Arc<TestInbox>,
    wanted: Expected,
    within: Duration,
}

impl Search {
    pub(super) fn new(
        inbox: &Arc<TestInbox>,
        to: Recipient,
        topic: &str,
        kind: ExpectedKind,
    ) -> Self {
        let wanted = Expected { to, topic: topic.to_owned(), kind };
        Self { inbox: inbox.clone(), wanted, within: WITHIN }
    }

    /// Sets the time limit.
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Takes the first message that matches.
    ///
    /// # Errors
    ///
    /// The panic message, if no message matches in time.
    pub async fn find<T>(
        self,
        pattern: &str,
        mut make: impl FnMut(&Payload) -> Option<T>,
    ) -> Result<T, String> {
        let Self { inbox, wanted, within } = self;
        let deadline = Deadline::from_now(within);
        let mut watching = inbox.watch();
        loop {
            inbox.check()?;
            let found = inbox.take(|message| wanted.of(message).and_then(&mut make));
            if let Some(found) = found {
                return Ok(found);
            }
            if deadline.limit(watching.changed()).await.is_err() {
                let listing = inbox.listing();
                let like = like(pattern);
                return Err(format!("no {wanted}{like} came within {within:?}\n{listing}"));
            }
        }
    }

    /// Waits for the whole time, and expects no match.
    ///
    /// # Errors
    ///
    /// The panic message, if a message matches.
    pub async fn refute<T>(
        self,
        pattern: &str,
        mut make: impl FnMut(&Payload) -> Option<T>,
    ) -> Result<(), String> {
        let Self { inbox, wanted, within } = self;
        let deadline = Deadline::from_now(within);
        let mut watching = inbox.watch();
        loop {
            inbox.check()?;
            let found = inbox.take(|message| {
                wanted.of(message).filter(|payload| make(payload).is_some()).cloned()
            });
            if let Some(payload) = found {
                let (listing, like) = (inbox.listing(), like(pattern));
                return Err(format!("a {wanted}{like} came: {payload:?}\n{listing}"));
            }
            if deadline.limit(watching.changed()).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn like(pattern: &str) -> String {
    if pattern.is_empty() { String::new() } else { format!(" like {pattern}") }
}

/// The JSON of payloads that match this pattern.
#[doc(hidden)]
pub fn json(pattern: Pattern) -> impl FnMut(&Payload) -> Option<Value> {
    move |payload| payload.parse().ok().filter(|value| pattern.matches(value))
}

/// Parses the payload again, as a value of the same type.
#[doc(hidden)]
pub fn again<T: DeserializeOwned>(_: &T, payload: &Payload) -> Option<T> {
    payload.parse().ok()
}
