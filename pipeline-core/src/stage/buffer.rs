//! Emitted events for which there is no demand yet. Pure.

use std::{collections::VecDeque, fmt};

use crate::dispatcher::Marker;

/// Which events a full buffer keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferKeep {
    /// Keeps the events it has and discards new ones.
    First,
    /// Keeps the newest: the oldest one makes room. The default, as in GenStage.
    #[default]
    Last,
}

/// A bounded FIFO buffer of events, with markers among them.
///
/// A marker waits until the events before it have left: they were sent, or they made room for newer
/// ones. Markers take no room and are never discarded.
pub(crate) struct Buffer<E> {
    events: VecDeque<E>,
    limit: usize,
    keep: BufferKeep,
    /// Receives the events that are discarded, if they are not just to be dropped.
    discard: Option<DiscardFn<E>>,
    /// The number of events that have left the front so far.
    left: u64,
    /// Each marker with the number of events that have to leave first, in that order.
    markers: VecDeque<(u64, Option<Marker>)>,
}

/// Takes an event that is discarded.
pub(crate) type DiscardFn<E> = Box<dyn FnMut(E) + Send>;

/// The events that exceed the room of the buffer.
pub(crate) struct Excess {
    pub(crate) discarded: usize,
    /// How many of them are still to be dropped, oldest first.
    pub(crate) oldest: usize,
}

impl<E> Buffer<E> {
    pub(crate) fn new(limit: usize, keep: BufferKeep) -> Self {
        let (events, markers) = Default::default();
        Self { events, limit, keep, discard: None, left: 0, markers }
    }

    /// The same with a function that receives the events that are discarded.
    pub(crate) fn on_discard(mut self, discard: Option<DiscardFn<E>>) -> Self {
        self.discard = discard;
        self
    }

    /// Discards events.
    pub(crate) fn discard(&mut self, events: impl Iterator<Item = E>) {
        match &mut self.discard {
            Some(discard) => events.for_each(discard),
            None => drop(events),
        }
    }

    /// Discards the oldest events.
    fn discard_oldest(&mut self, count: usize) {
        let rest = self.events.split_off(count);
        let oldest = std::mem::replace(&mut self.events, rest);
        self.left += oldest.len() as u64;
        self.discard(oldest.into_iter());
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether half of the buffer is free.
    pub(crate) fn has_room(&self) -> bool {
        self.events.len() <= self.limit / 2
    }

    /// How many events have room here besides `others`.
    pub(crate) fn free(&self, others: usize) -> usize {
        self.limit.saturating_sub(self.events.len() + others)
    }

    pub(crate) fn has_markers(&self) -> bool {
        !self.markers.is_empty()
    }

    /// Appends events one by one and empties `incoming`. Returns how many were discarded.
    pub(crate) fn store(&mut self, incoming: &mut VecDeque<E>) -> usize {
        let excess = (self.events.len() + incoming.len()).saturating_sub(self.limit);
        match self.keep {
            _ if excess == 0 => {}
            BufferKeep::First => self.discard(incoming.drain(incoming.len() - excess..)),
            BufferKeep::Last => {
                let old = excess.min(self.events.len());
                self.discard_oldest(old);
                self.discard(incoming.drain(..excess - old));
            }
        }
        self.events.append(incoming);
        excess
    }

    /// Makes room for events that come in later, behind `others` more. Drops events of `incoming`
    /// that do not fit, or the oldest ones here. In addition, the caller has to drop `oldest` of
    /// the others and `incoming`.
    pub(crate) fn make_room(&mut self, others: usize, incoming: &mut VecDeque<E>) -> Excess {
        let wanted = self.events.len() + others + incoming.len();
        let discarded = wanted.saturating_sub(self.limit);
        if discarded == 0 {
            return Excess { discarded, oldest: 0 };
        }
        if self.keep == BufferKeep::First {
            self.discard(incoming.drain(incoming.len() - discarded..));
            return Excess { discarded, oldest: 0 };
        }
        let old = discarded.min(self.events.len());
        self.discard_oldest(old);
        Excess { discarded, oldest: discarded - old }
    }

    /// Puts a marker behind the buffered events.
    pub(crate) fn mark(&mut self, marker: Marker) {
        self.markers.push_back((self.left + self.events.len() as u64, Some(marker)));
    }

    /// Ensures that buffered events and later ones are not sent in one message.
    pub(crate) fn split(&mut self) {
        if !self.events.is_empty() {
            self.markers.push_back((self.left + self.events.len() as u64, None));
        }
    }

    /// Takes the next marker that is no longer preceded by events.
    pub(crate) fn due(&mut self) -> Option<Marker> {
        while let Some(&(position, marker)) = self.markers.front() {
            if position > self.left {
                return None;
            }
            self.markers.pop_front();
            if marker.is_some() {
                return marker;
            }
        }
        None
    }

    /// Passes events from the front to `take`, up to the next marker and no more than `limit`.
    /// Events that `take` leaves stay in the buffer. Returns how many it took.
    pub(crate) fn take(&mut self, limit: usize, take: impl FnOnce(&mut VecDeque<E>)) -> usize {
        let to_marker = self.markers.front().map_or(usize::MAX, |(position, _)| {
            usize::try_from(position - self.left).unwrap_or(usize::MAX)
        });
        let run = self.events.len().min(to_marker).min(limit);
        let mut rest = self.events.split_off(run);
        take(&mut self.events);
        let taken = run - self.events.len();
        self.left += taken as u64;
        self.events.append(&mut rest);
        taken
    }
}

impl<E: fmt::Debug> fmt::Debug for Buffer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("events", &self.events)
            .field("markers", &self.markers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(limit: usize, keep: BufferKeep, batches: &[&[u32]]) -> (Vec<u32>, Vec<usize>) {
        let mut buffer = Buffer::new(limit, keep);
        let store = |batch: &&[u32]| buffer.store(&mut batch.iter().copied().collect());
        let discarded = batches.iter().map(store).collect();
        (buffer.events.into(), discarded)
    }

    #[test]
    fn keeping_the_last_drops_the_oldest() {
        let (kept, discarded) = stored(5, BufferKeep::Last, &[&[1, 2, 3, 4, 5], &[6, 7, 8]]);
        assert_eq!((kept, discarded), (vec![4, 5, 6, 7, 8], vec![0, 3]));
    }

    #[test]
    fn keeping_the_first_drops_new_events() {
        let (kept, discarded) = stored(5, BufferKeep::First, &[&[1, 2, 3, 4, 5], &[6, 7, 8]]);
        assert_eq!((kept, discarded), (vec![1, 2, 3, 4, 5], vec![0, 3]));
    }

    #[test]
    fn a_batch_larger_than_the_buffer_keeps_its_tail_or_its_head() {
        let batch: Vec<u32> = (1..=10).collect();
        assert_eq!(stored(3, BufferKeep::Last, &[&batch]), (vec![8, 9, 10], vec![7]));
        assert_eq!(stored(3, BufferKeep::First, &[&batch]), (vec![1, 2, 3], vec![7]));
    }

    #[test]
    fn a_buffer_without_room_keeps_nothing() {
        assert_eq!(stored(0, BufferKeep::Last, &[&[1, 2]]), (vec![], vec![2]));
        assert_eq!(stored(0, BufferKeep::First, &[&[1, 2]]), (vec![], vec![2]));
    }

    const M: [Marker; 3] = [Marker::new(0), Marker::new(1), Marker::new(2)];

    fn due(buffer: &mut Buffer<u32>) -> Vec<Marker> {
        std::iter::from_fn(|| buffer.due()).collect()
    }

    #[test]
    fn a_marker_waits_for_the_events_before_it() {
        let mut buffer = Buffer::new(10, BufferKeep::Last);
        buffer.store(&mut [1, 2].into());
        buffer.mark(M[0]);
        buffer.store(&mut [3].into());
        buffer.mark(M[1]);
        let mut seen = vec![];
        assert_eq!(buffer.take(1, |events| seen.extend(events.drain(..))), 1);
        assert_eq!(due(&mut buffer), []);
        assert_eq!(buffer.take(9, |events| seen.extend(events.drain(..))), 1, "up to the marker");
        assert_eq!(due(&mut buffer), [M[0]]);
        assert_eq!(buffer.take(9, |_| {}), 0);
        assert_eq!(buffer.take(9, |events| seen.extend(events.drain(..))), 1);
        assert_eq!((due(&mut buffer), seen), (vec![M[1]], vec![1, 2, 3]));
    }

    #[test]
    fn a_marker_is_due_when_the_events_before_it_made_room_for_others() {
        let mut buffer = Buffer::new(3, BufferKeep::Last);
        buffer.store(&mut [1, 2].into());
        buffer.mark(M[0]);
        buffer.mark(M[1]);
        buffer.store(&mut [3].into());
        buffer.mark(M[2]);
        let after = |buffer: &mut Buffer<u32>, event| {
            assert_eq!(buffer.store(&mut [event].into()), usize::from(event > 3));
            due(buffer)
        };
        assert_eq!(after(&mut buffer, 4), []);
        assert_eq!(after(&mut buffer, 5), [M[0], M[1]]);
        assert_eq!(after(&mut buffer, 6), [M[2]]);
    }

    proptest! {
        /// Storing a batch is the same as storing its events one at a time.
        #[test]
        fn storing_a_batch_equals_storing_its_events_one_by_one(
            limit in 0usize..8, last: bool, batches in prop::collection::vec(prop::collection::vec(0u32..99, 0..12), 0..8)
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut expected = VecDeque::new();
            let mut dropped = 0;
            for &event in batches.iter().flatten() {
                expected.push_back(event);
                if expected.len() > limit {
                    dropped += 1;
                    if last { expected.pop_front(); } else { expected.pop_back(); }
                }
            }
            let slices: Vec<&[u32]> = batches.iter().map(Vec::as_slice).collect();
            let (kept, discarded) = stored(limit, keep, &slices);
            prop_assert_eq!(kept, Vec::from(expected));
            prop_assert_eq!(discarded.iter().sum::<usize>(), dropped);
        }
    }
}
