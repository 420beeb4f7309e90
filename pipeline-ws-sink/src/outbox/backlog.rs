//! What waits for one socket, and what is dropped when that is too much. Pure.

use std::{collections::VecDeque, io::IoSlice};

use tokio::time::Instant;

use super::{kind::Kind, when_full::WhenFull};
use crate::protocol::frame::Frame;

/// How much may wait for one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutboxLimits {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The frames that wait for a socket, in their order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: VecDeque<Outgoing>,
    /// All that waits.
    total: Load,
    /// Of that, what must not be dropped because of its kind.
    essential: Load,
    /// How much of the first frame has been written.
    written: usize,
}

/// A frame that waits.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) frame: Frame,
    /// When what it carries was enqueued, if its way is timed.
    pub(super) since: Option<Instant>,
    pub(super) kind: Kind,
}

/// How many frames were dropped to make room for one, and which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Those that had waited longest.
    pub(super) oldest: usize,
    /// The new one, or those that had waited shortest.
    pub(super) newest: usize,
    /// Those of the same topic and event as the new one.
    pub(super) superseded: usize,
}

/// More would wait than may, and nothing that could be dropped is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSlow;

/// So many frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    frames: usize,
    bytes: usize,
}

impl Backlog {
    /// Takes a frame in, if there is room or if room can be made by the policy.
    ///
    /// A frame is always taken when nothing waits, however large it is.
    pub(super) fn admit(
        &mut self,
        outgoing: Outgoing,
        limits: OutboxLimits,
        when_full: WhenFull,
    ) -> Result<Dropped, TooSlow> {
        let mut dropped = Dropped::default();
        let new = outgoing.load();
        if self.queue.is_empty() || self.total.plus(new).is_within(limits) {
            self.push(outgoing);
            return Ok(dropped);
        }
        match (when_full, outgoing.kind) {
            (WhenFull::Disconnect, _) => return Err(TooSlow),
            (WhenFull::Wait { .. }, _) => {}
            (WhenFull::DropNewest, Kind::Event(_)) => {
                return Ok(Dropped { newest: 1, ..dropped });
            }
            // It would not fit if everything made way.
            (_, Kind::Event(_)) if !self.undroppable().plus(new).is_within(limits) => {
                return Ok(Dropped { newest: 1, ..dropped });
            }
            (WhenFull::DropNewest, Kind::Essential) => {
                dropped.newest = self.drop_newest(new, limits);
            }
            (WhenFull::DropOldest, _) | (WhenFull::KeepLatest, Kind::Essential) => {
                dropped.oldest = self.drop_oldest(new, limits);
            }
            (WhenFull::KeepLatest, kind) => {
                dropped.superseded = self.drop_all(kind);
                dropped.oldest = self.drop_oldest(new, limits);
            }
        }
        // Whoever could make way has. The rest has room of its own, and it ends as well.
        if !self.total.plus(new).is_within(limits.twice()) {
            return Err(TooSlow);
        }
        self.push(outgoing);
        Ok(dropped)
    }

    /// Takes a frame in, room or not.
    pub(super) fn push(&mut self, outgoing: Outgoing) {
        let new = outgoing.load();
        self.total = self.total.plus(new);
        if outgoing.kind == Kind::Essential {
            self.essential = self.essential.plus(new);
        }
        self.queue.push_back(outgoing);
    }

    /// Whether another frame may have to wait for room.
    pub(super) fn is_full(&self, limits: OutboxLimits) -> bool {
        self.total.frames >= limits.frames || self.total.bytes >= limits.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops everything but a frame that has been written in part. Returns how many.
    pub(super) fn clear(&mut self) -> usize {
        let before = self.queue.len();
        while self.queue.len() > self.begun() {
            self.remove(self.queue.len() - 1);
        }
        before - self.queue.len()
    }

    /// What is to be written next, as much as there is room for. Returns for how many frames.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, outgoing) in slices.iter_mut().zip(&self.queue) {
            let skip = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&outgoing.frame.bytes()[skip..]);
            count += 1;
        }
        count
    }

    /// So many bytes have been written. What is whole now is taken out, and told.
    pub(super) fn wrote(&mut self, count: usize, mut whole: impl FnMut(Option<Instant>)) {
        self.written += count;
        while let Some(first) = self.queue.front()
            && self.written >= first.frame.len()
        {
            self.written -= first.frame.len();
            let since = first.since;
            self.remove(0);
            whole(since);
        }
    }

    /// How many frames at the front have been written in part: they have to be finished.
    fn begun(&self) -> usize {
        usize::from(self.written > 0)
    }

    /// What is left when everything that may be dropped is.
    fn undroppable(&self) -> Load {
        match self.queue.front() {
            Some(first) if self.written > 0 && first.kind != Kind::Essential => {
                self.essential.plus(first.load())
            }
            _ => self.essential,
        }
    }

    /// Drops events from the front until something of this size fits, or none is left.
    fn drop_oldest(&mut self, new: Load, limits: OutboxLimits) -> usize {
        let before = self.queue.len();
        let mut at = self.begun();
        while at < self.queue.len() && !self.total.plus(new).is_within(limits) {
            if self.queue[at].kind == Kind::Essential {
                at += 1;
            } else {
                self.remove(at);
            }
        }
        before - self.queue.len()
    }

    /// The same from the back.
    fn drop_newest(&mut self, new: Load, limits: OutboxLimits) -> usize {
        let before = self.queue.len();
        let mut at = self.queue.len();
        while at > self.begun() && !self.total.plus(new).is_within(limits) {
            at -= 1;
            if self.queue[at].kind != Kind::Essential {
                self.remove(at);
            }
        }
        before - self.queue.len()
    }

    /// Drops all events of a kind.
    fn drop_all(&mut self, kind: Kind) -> usize {
        let before = self.total;
        let (mut at, begun) = (0, self.begun());
        let total = &mut self.total;
        self.queue.retain(|outgoing| {
            let keep = at < begun || outgoing.kind != kind;
            at += 1;
            if !keep {
                *total = total.minus(outgoing.load());
            }
            keep
        });
        before.frames - self.total.frames
    }

    fn remove(&mut self, at: usize) {
        if let Some(outgoing) = self.queue.remove(at) {
            let load = outgoing.load();
            self.total = self.total.minus(load);
            if outgoing.kind == Kind::Essential {
                self.essential = self.essential.minus(load);
            }
        }
    }
}

impl Outgoing {
    fn load(&self) -> Load {
        Load { frames: 1, bytes: self.frame.len() }
    }
}

impl Load {
    fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames.saturating_add(other.frames),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self { frames: self.frames - other.frames, bytes: self.bytes - other.bytes }
    }

    fn is_within(self, limits: OutboxLimits) -> bool {
        self.frames <= limits.frames && self.bytes <= limits.bytes
    }
}

impl OutboxLimits {
    /// For what must not be dropped.
    fn twice(self) -> Self {
        Self { frames: self.frames.saturating_mul(2), bytes: self.bytes.saturating_mul(2) }
    }
}

impl Dropped {
    /// Whether nothing was.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn written(&self) -> usize {
        self.written
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.queue.iter().map(|outgoing| &outgoing.frame)
    }
}
