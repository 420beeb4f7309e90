//! What waits to be sent. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::channels::Channel;

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

    /// Takes the oldest frames: at least one, if there is one, and at most so many and so many bytes.
    pub(crate) fn take(&mut self, max_frames: usize, max_bytes: usize) -> Vec<Outgoing> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < max_frames
            && let Some(next) = self.frames.front()
            && (taken.is_empty() || bytes + next.frame.len() <= max_bytes)
        {
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
    use super::*;

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
}
