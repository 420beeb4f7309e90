//! Markers that wait for events in the queues of partitions.

use std::collections::VecDeque;

use crate::dispatcher::{Deliveries, Marker};

/// Markers, in the order they came, each with how many events have to leave each partition's queue
/// before it. Events that are queued behind a marker do not hold it up.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(Marker, Vec<usize>)>);

impl Waiting {
    /// Puts a marker behind so many events of each partition.
    pub(super) fn push(&mut self, marker: Marker, queued: Vec<usize>) {
        self.0.push_back((marker, queued));
    }

    /// How many events may leave this partition's queue before a marker takes its turn.
    pub(super) fn room(&self, partition: usize) -> usize {
        let ahead = self.0.iter().map(|(_, ahead)| ahead[partition]);
        ahead.into_iter().find(|events| *events > 0).unwrap_or(usize::MAX)
    }

    /// So many events have left this partition's queue; gives out the markers that nothing precedes
    /// any more.
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
