//! Markers among the events of a stage, and what they stand for.

use std::collections::HashMap;

use super::super::{behaviour::Behaviour, message::Envelope};
use crate::dispatcher::Marker;

/// What happens when a marker is reached.
pub(super) enum Pending<B: Behaviour> {
    /// A message, which keeps its permit while it waits.
    User(Envelope<B::Stage, B::Out>),
    Finish,
}

/// The markers that wait behind events.
pub(super) struct Markers<B: Behaviour> {
    pending: HashMap<Marker, Pending<B>>,
    next: u64,
}

impl<B: Behaviour> Markers<B> {
    pub(super) fn new() -> Self {
        Self { pending: HashMap::new(), next: 0 }
    }

    pub(super) fn add(&mut self, pending: Pending<B>) -> Marker {
        let marker = Marker::new(self.next);
        self.next += 1;
        self.pending.insert(marker, pending);
        marker
    }

    pub(super) fn take(&mut self, marker: Marker) -> Option<Pending<B>> {
        self.pending.remove(&marker)
    }
}
