//! The arithmetic of demand on the receiving side: when to ask, and for how much.
//!
//! Pure: nothing here waits, locks or reads a clock. The rules are GenStage's.

use crate::subscription::SubscribeOptions;

/// The demand of one automatic subscription, tracked by its consumer.
///
/// It starts with `max` outstanding. What arrives is handled in chunks of at most `max - min`
/// events, and once no more than `min` are outstanding the demand is topped up to `max` again.
#[derive(Debug)]
pub(crate) struct Window {
    max: usize,
    min: usize,
    outstanding: usize,
}

/// One message of events on its way through a [`Window`].
#[derive(Debug)]
pub(crate) struct Batch {
    remaining: usize,
    /// The demand that was outstanding when the message arrived and is not yet counted against it.
    /// It never grows, although the window does when it asks between two chunks of the same
    /// message.
    countable: usize,
}

/// A part of a message that is handled in one callback.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) size: usize,
    /// How many of these events exceed the demand.
    pub(crate) excess: usize,
    /// The demand to send once the chunk has been handled; 0 for none.
    pub(crate) ask: usize,
}

impl Window {
    pub(crate) fn new(options: &SubscribeOptions) -> Self {
        let (max, min) = (options.max(), options.min());
        Self { max, min, outstanding: max }
    }

    /// Starts a message of `events` events.
    #[inline]
    pub(crate) fn receive(&self, events: usize) -> Batch {
        Batch { remaining: events, countable: self.outstanding }
    }

    /// The next chunk of a message, or `None` when the message is used up.
    #[inline]
    pub(crate) fn next_chunk(&mut self, batch: &mut Batch) -> Option<Chunk> {
        let size = batch.remaining.min(self.max - self.min);
        if size == 0 {
            return None;
        }
        let counted = size.min(batch.countable);
        batch.remaining -= size;
        batch.countable -= counted;
        self.outstanding -= counted;
        let ask = if self.outstanding <= self.min {
            let ask = self.max - self.outstanding;
            self.outstanding = self.max;
            ask
        } else {
            0
        };
        Some(Chunk { size, excess: size - counted, ask })
    }
}

/// The slots of one subscription of a consumer supervisor: a slot is taken from the moment its
/// event arrives until the child is done with it.
///
/// Demand for freed slots is sent together, once `max - min` of them are free.
#[derive(Debug)]
pub(crate) struct Slots {
    worth_asking: usize,
    /// How many slots may stay taken without delaying demand for the others.
    spare: usize,
    freed: usize,
}

impl Slots {
    pub(crate) fn new(options: &SubscribeOptions) -> Self {
        let spare = options.min();
        Self { worth_asking: options.max() - spare, spare, freed: 0 }
    }

    /// How many slots may stay taken without delaying demand for the others.
    pub(crate) fn spare(&self) -> usize {
        self.spare
    }

    /// Frees a slot.
    pub(crate) fn free(&mut self) {
        self.freed += 1;
    }

    /// The demand to send now; 0 for none yet.
    pub(crate) fn ask(&mut self) -> usize {
        if self.freed < self.worth_asking { 0 } else { std::mem::take(&mut self.freed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(max: usize, min: usize) -> Window {
        Window::new(&SubscribeOptions::new().max_demand(max).min_demand(min))
    }

    /// Feeds pushes of these sizes to a window; returns the chunks handled per push, and all asks.
    fn run(max: usize, min: usize, pushes: &[usize]) -> (Vec<Vec<usize>>, Vec<usize>) {
        let mut window = window(max, min);
        let (mut handled, mut asks) = (vec![], vec![max]);
        for &push in pushes {
            let mut batch = window.receive(push);
            let mut sizes = vec![];
            while let Some(chunk) = window.next_chunk(&mut batch) {
                sizes.push(chunk.size);
                asks.extend((chunk.ask > 0).then_some(chunk.ask));
            }
            handled.push(sizes);
        }
        (handled, asks)
    }

    /// Feeds a window from a producer that answers all demand at once, `total` events in all.
    fn run_greedy(max: usize, min: usize, total: usize) -> (Vec<usize>, Vec<usize>) {
        let mut window = window(max, min);
        let (mut handled, mut asks) = (vec![], vec![max]);
        let (mut sent, mut in_flight) = (0, std::collections::VecDeque::from([max]));
        while let Some(asked) = in_flight.pop_front() {
            let push = asked.min(total - sent);
            sent += push;
            let mut batch = window.receive(push);
            while let Some(chunk) = window.next_chunk(&mut batch) {
                handled.push(chunk.size);
                if chunk.ask > 0 {
                    asks.push(chunk.ask);
                    in_flight.push_back(chunk.ask);
                }
            }
        }
        (handled, asks)
    }

    #[test]
    fn demand_is_renewed_as_the_worked_numbers_say() {
        let row = |max, min, total| run_greedy(max, min, total);
        assert_eq!(row(1000, 500, 2000).0[..4], [500, 500, 500, 500]);
        assert_eq!(row(1000, 500, 2000).1[..4], [1000, 500, 500, 500]);
        assert_eq!(row(100, 80, 200).0[..4], [20, 20, 20, 20]);
        assert_eq!(row(100, 80, 200).1[..4], [100, 20, 20, 20]);
        assert_eq!(row(100, 20, 400).0[..5], [80, 20, 80, 80, 20]);
        assert_eq!(row(100, 20, 400).1[..5], [100, 80, 100, 80, 100]);
        assert_eq!(row(1, 0, 3), (vec![1, 1, 1], vec![1, 1, 1, 1]));
        assert_eq!(row(3, 1, 6), (vec![2, 1, 2, 1], vec![3, 2, 3]));
    }

    #[test]
    fn small_pushes_are_topped_up_when_they_cross_the_minimum() {
        let pushes = |max, min, sizes: &[usize]| run(max, min, sizes);
        assert_eq!(pushes(10, 7, &[4; 4]), (vec![vec![3, 1]; 4], vec![10, 3, 4, 4, 4]));
        assert_eq!(
            pushes(5, 0, &[2, 2, 1, 3]),
            (vec![vec![2], vec![2], vec![1], vec![3]], vec![5, 5])
        );
        assert_eq!(pushes(100, 75, &[10; 6]), (vec![vec![10]; 6], vec![100, 30, 30]));
    }

    #[test]
    fn events_beyond_the_demand_are_handled_and_reported_but_not_counted() {
        let mut window = window(3, 1);
        let mut batch = window.receive(5);
        let chunks: Vec<Chunk> = std::iter::from_fn(|| window.next_chunk(&mut batch)).collect();
        assert_eq!(
            chunks,
            [
                Chunk { size: 2, excess: 0, ask: 2 },
                Chunk { size: 2, excess: 1, ask: 0 },
                Chunk { size: 1, excess: 1, ask: 0 },
            ]
        );
    }

    #[test]
    fn freed_slots_are_asked_for_together() {
        let freed = |max, min, n: usize| {
            let options = SubscribeOptions::new().max_demand(max).min_demand(min);
            let mut slots = Slots::new(&options);
            let free = |_| {
                slots.free();
                slots.ask()
            };
            (0..n).map(free).collect::<Vec<_>>()
        };
        assert_eq!(freed(4, 2, 4), [0, 2, 0, 2]);
        assert_eq!(freed(10, 8, 4), [0, 2, 0, 2]);
        assert_eq!(freed(10, 2, 9), [0, 0, 0, 0, 0, 0, 0, 8, 0]);
        assert_eq!(freed(3, 1, 2), [0, 2]);
        assert_eq!(freed(1, 0, 2), [1, 1]);
        let mut slots = Slots::new(&SubscribeOptions::new().max_demand(4).min_demand(2));
        (0..3).for_each(|_| slots.free());
        assert_eq!([slots.ask(), slots.ask()], [3, 0], "all that are free");
    }

    proptest! {
        /// Asked = received + outstanding, if the producer keeps to the demand.
        #[test]
        fn demand_is_received_or_outstanding(
            max in 1usize..200, min in 0usize..200, sizes in prop::collection::vec(1usize..50, 0..60)
        ) {
            let min = min % max;
            let mut window = window(max, min);
            let (mut asked, mut received) = (max, 0);
            for size in sizes {
                let size = size.min(asked - received);
                let mut batch = window.receive(size);
                received += size;
                while let Some(chunk) = window.next_chunk(&mut batch) {
                    prop_assert_eq!(chunk.excess, 0);
                    prop_assert!(chunk.size <= max - min);
                    asked += chunk.ask;
                }
                prop_assert_eq!(asked, received + window.outstanding);
                prop_assert!(window.outstanding > min && window.outstanding <= max);
            }
        }
    }
}
