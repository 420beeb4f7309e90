//! Markers that wait for events in partition queues.

use std::collections::VecDeque;

use crate::dispatcher::{Deliveries, Marker};

/// Markers in the order of their arrival, each with the number of events that have to leave each
/// partition's queue before it. Events queued behind a marker do not delay it.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(Marker, Vec<usize>)>);

impl Waiting {
    /// Puts a marker behind `queued` events of each partition.
    pub(super) fn push(&mut self, marker: Marker, queued: Vec<usize>) {
        self.0.push_back((marker, queued));
    }

    /// How many events may leave this partition's queue before the next marker.
    pub(super) fn room(&self, partition: usize) -> usize {
        let ahead = self.0.iter().map(|(_, ahead)| ahead[partition]);
        ahead.into_iter().find(|events| *events > 0).unwrap_or(usize::MAX)
    }

    /// Records that events have left this partition's queue; returns the markers that are no longer
    /// preceded by events.
    pub(super) fn left<E>(&mut self, partition: usize, events: usize, out: &mut Deliveries<E>) {
        for (_, ahead) in &mut self.0 {
            ahead[partition] = ahead[partition].saturating_sub(events);
        }
        while let Some(&(marker, ref ahead)) = self.0.front()
            && ahead.iter().all(|events| *events == 0)
        {
            out.info(marker);
            self.0.pop_front();
        }
    }
}
