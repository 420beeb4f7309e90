//! What waits to be sent. Pure.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::{
    channels::{BuildChannelHasher, Channel},
    sequence::REPEATED,
};

/// A frame and its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) channel: Channel,
    pub(crate) frame: Bytes,
    /// Part of a client's request, which is of no use later.
    pub(crate) is_request: bool,
}

/// What waits to be sent, bounded in number and in bytes. The oldest frames are dropped for new ones: a
/// client has more of what is new.
#[derive(Debug)]
pub(crate) struct Queue {
    frames: VecDeque<Outgoing>,
    bytes: usize,
    max_frames: usize,
    max_bytes: usize,
}

impl Queue {
    pub(crate) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, max_frames, max_bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether a frame of this length has room.
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.frames.len() < self.max_frames && self.bytes + length <= self.max_bytes
    }

    /// Adds a frame, and returns those that are dropped for it. A single frame of any length may wait.
    pub(crate) fn push(&mut self, outgoing: Outgoing) -> Vec<Outgoing> {
        let mut dropped = Vec::new();
        while !self.has_room(outgoing.frame.len())
            && let Some(oldest) = self.pop()
        {
            dropped.push(oldest);
        }
        self.bytes += outgoing.frame.len();
        self.frames.push_back(outgoing);
        dropped
    }

    /// Takes the oldest frames: at least one, if there is one, and at most so many and so many bytes, and no more of
    /// a channel than other nodes know as copies if they are sent again.
    pub(crate) fn take(&mut self, max_frames: usize, max_bytes: usize) -> Vec<Outgoing> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        // So few frames are few of each channel.
        let is_counted = self.frames.len().min(max_frames) > REPEATED as usize;
        let mut of_each: HashMap<Channel, u32, BuildChannelHasher> = HashMap::default();
        while taken.len() < max_frames
            && let Some(next) = self.frames.front()
            && (taken.is_empty() || bytes + next.frame.len() <= max_bytes)
        {
            if is_counted {
                let count = of_each.entry(next.channel).or_default();
                if *count == REPEATED {
                    break;
                }
                *count += 1;
            }
            bytes += next.frame.len();
            taken.extend(self.pop());
        }
        taken
    }

    pub(crate) fn clear(&mut self) -> usize {
        self.bytes = 0;
        std::mem::take(&mut self.frames).len()
    }

    fn pop(&mut self) -> Option<Outgoing> {
        let oldest = self.frames.pop_front()?;
        self.bytes -= oldest.frame.len();
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::sequence::{Arrival, Arrived, ON_THE_WAY, Sent};

    fn frame(length: usize) -> Outgoing {
        Outgoing { channel: Channel::All, frame: vec![0; length].into(), is_request: false }
    }

    fn lengths(frames: &[Outgoing]) -> Vec<usize> {
        frames.iter().map(|it| it.frame.len()).collect()
    }

    #[test]
    fn the_oldest_frames_are_dropped_beyond_a_number_and_beyond_bytes() {
        let mut queue = Queue::new(3, 100);
        for length in 1..=3 {
            assert!(queue.push(frame(length)).is_empty());
        }
        assert_eq!(lengths(&queue.push(frame(4))), [1]);
        assert_eq!(lengths(&queue.push(frame(95))), [2, 3]);
        assert!(!queue.has_room(2));
        assert_eq!(lengths(&queue.push(frame(500))), [4, 95], "a single frame may be longer");
        assert_eq!(lengths(&queue.take(9, 9)), [500]);
        assert_eq!((queue.len(), queue.bytes), (0, 0));
    }

    #[test]
    fn frames_are_taken_in_order_and_in_parts() {
        let mut queue = Queue::new(10, 1_000);
        (1..=6).for_each(|length| drop(queue.push(frame(length))));
        assert_eq!(lengths(&queue.take(2, 100)), [1, 2]);
        assert_eq!(lengths(&queue.take(9, 7)), [3, 4]);
        assert_eq!(lengths(&queue.take(9, 1)), [5]);
        assert_eq!(lengths(&queue.take(9, 100)), [6]);
        assert!(queue.take(9, 100).is_empty());
    }

    proptest! {
        /// However many frames of whichever channels wait: all are taken in order, a batch is as large as may be, and
        /// each arrives once although each batch is sent several times.
        #[test]
        fn a_batch_that_is_sent_again_is_known_as_copies(
            runs in vec((0..6u32, 1..900usize), 1..12),
            max_frames in 1..5_000usize,
            max_bytes in 1..6_000usize,
        ) {
            let (mut queue, mut sent, mut arrived) = (Queue::new(20_000, 20_000), Sent::default(), Arrived::default());
            let mut all = Vec::new();
            for (number, count) in runs {
                let channel = Channel::Topic(number);
                arrived.follow(channel);
                for _ in 0..count {
                    all.push((channel, sent.next(channel)));
                    let dropped = queue.push(Outgoing { channel, ..frame(1) });
                    prop_assert_eq!(dropped.len(), 0);
                }
            }
            let mut left = &all[..];
            while !left.is_empty() {
                let taken = queue.take(max_frames, max_bytes);
                let (batch, rest) = left.split_at(taken.len());
                let channels = batch.iter().map(|(channel, _)| *channel);
                prop_assert!(channels.eq(taken.iter().map(|it| it.channel)));
                let ends = rest.first().is_none_or(|(channel, _)| {
                    let of_it = taken.iter().filter(|it| it.channel == *channel).count();
                    of_it == REPEATED as usize
                });
                prop_assert!(ends || taken.len() == max_frames.min(max_bytes), "{}", taken.len());
                for copy in 0..3 {
                    for (channel, number) in batch {
                        let arrival = arrived.arrive("left", 1, *channel, *number);
                        let expected = if copy == 0 { Arrival::Expected } else { Arrival::Repeated };
                        prop_assert_eq!(arrival, expected, "{:?} of {:?}", number, channel);
                    }
                }
                left = rest;
            }
        }
    }

    #[test]
    fn a_batch_has_several_frames_of_each_of_many_channels() {
        let mut queue = Queue::new(10_000, 10_000);
        for n in 0..10_000 {
            queue.push(Outgoing { channel: Channel::Topic(n % 1_000), ..frame(1) });
        }
        let taken = queue.take(ON_THE_WAY as usize, 1 << 20);
        assert_eq!(taken.len(), 4_096);
        let of = |number| taken.iter().filter(|it| it.channel == Channel::Topic(number)).count();
        assert_eq!((of(7), of(700)), (5, 4));
    }
}
