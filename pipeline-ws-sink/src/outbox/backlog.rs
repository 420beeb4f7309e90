//! The frames that wait for one socket, and the choice of frames to drop. Pure.

use std::{
    collections::VecDeque,
    io::IoSlice,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use pipeline_core::{Deadline, timed::Timeline};
use tokio::time::Instant;

use super::{
    late::is_late,
    outboxes::{OutboxBytes, Outboxes, SHARE},
    outcome::{Copy, CountedPush, FetchedFrames},
    when_full::FrameKind,
    when_full::WhenFull,
};
use crate::protocol::frame::Frame;

/// The limits of one outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutboxLimits {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The limits at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CurrentLimits {
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// Bytes of memory; a broadcast takes more of it than its length.
    pub(super) memory: usize,
}

/// The frames that wait for a socket, in order.
///
/// Each frame has a cost, which counts against the limits: one frame, and the bytes that it holds
/// because it waits here, but never more than half of the byte limit. A frame for many sockets
/// costs its own length, any other all of its memory. So no message is too large to be sent, and
/// one that waits leaves room for others. The bytes of the frame at the front cost nothing: that
/// frame is being written, and its size says nothing about how fast the client reads.
#[derive(Debug)]
pub(super) struct Backlog {
    queue: VecDeque<Arc<Outgoing>>,
    /// The maximum cost of a frame in bytes.
    costliest: usize,
    /// All waiting frames, including those that are being written.
    total: Load,
    /// The cost of these, including the bytes of the front.
    cost: Cost,
    /// The cost of waiting frames whose kind must not be dropped.
    essential: Cost,
    /// The frames that have been taken out to be written, and may come back.
    taken: BatchLoad,
    /// How many bytes of the first frame have been written.
    written: usize,
    /// Since when the socket has been blocked, if it is.
    blocked_since: Option<Instant>,
    /// Set when there was no room, until half of the room is free again.
    full: Option<Full>,
    /// The bytes of the queue itself that count for the endpoint.
    slots: Option<OutboxBytes>,
}

/// A sender has found no room, and the client has not caught up yet.
#[derive(Clone, Copy, Debug)]
struct Full {
    since: Instant,
    /// Whether the client's time to catch up has passed while the process was running.
    is_overdue: bool,
}

/// The frames that have been taken out to be written.
#[derive(Clone, Copy, Debug, Default)]
struct BatchLoad {
    load: Load,
    cost: Cost,
    /// The cost in bytes of the first of them.
    first: Cost,
}

/// A frame that is to be written, to one socket or to many.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(super) frame: Frame,
    /// The times of its push so far, if it is timed.
    pub(super) timeline: Option<Timeline>,
    /// Its push, if the outcome of that is wanted.
    pub(super) counted: Option<Arc<CountedPush>>,
    pub(super) kind: FrameKind,
    /// Its cost in bytes for each socket that it waits for.
    weight: usize,
    /// Its bytes that count for the endpoint, once they do.
    held: OnceLock<OutboxBytes>,
}

/// Frames that are being written, while the backlog accepts others.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    frames: VecDeque<Arc<Outgoing>>,
    /// How many bytes of the first frame have been written.
    written: usize,
    /// The frames whose last byte has been written.
    done: Vec<Arc<Outgoing>>,
}

/// The frames that were dropped to make room for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// The oldest frames.
    pub(super) oldest: usize,
    /// The new frame, or the newest waiting ones.
    pub(super) newest: usize,
    /// Frames with the same topic and event as the new one.
    pub(super) superseded: usize,
}

/// The limits are exceeded, and no frame is left that could be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSlow;

/// A number of frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// The cost of frames, which counts against the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    frames: usize,
    bytes: usize,
    memory: usize,
}

impl Backlog {
    /// An empty backlog with these limits, and memory for this number of expected frames.
    pub(super) fn new(limits: OutboxLimits, frames: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(frames),
            costliest: limits.bytes / 2,
            total: Load::default(),
            cost: Cost::default(),
            essential: Cost::default(),
            taken: BatchLoad::default(),
            written: 0,
            blocked_since: None,
            full: None,
            slots: None,
        }
    }

    /// Whether a frame fits without applying the policy.
    pub(super) fn has_room_for(&self, outgoing: &Outgoing, limits: CurrentLimits) -> bool {
        self.is_empty() || self.fits(self.cost_of(outgoing), limits)
    }

    /// Whether this cost fits behind the waiting frames.
    ///
    /// The limits may temporarily be narrower than those that the backlog was made with.
    fn fits(&self, new: Cost, limits: CurrentLimits) -> bool {
        let new = new.at_most(limits);
        // Avoids a read of the front's cost, whose memory another core may have cached.
        self.cost.plus(new).is_within(limits)
            || self.behind_front(self.cost).plus(new).is_within(limits)
    }

    /// Adds a frame, if there is room or if the policy can make room.
    ///
    /// An empty backlog accepts a frame of any size.
    pub(super) fn admit(
        &mut self,
        outgoing: Arc<Outgoing>,
        limits: CurrentLimits,
        when_full: WhenFull,
    ) -> Result<Dropped, TooSlow> {
        let mut dropped = Dropped::default();
        let new = self.cost_of(&outgoing).at_most(limits);
        if self.has_room_for(&outgoing, limits) {
            self.push(outgoing);
            return Ok(dropped);
        }
        // Frames that cannot be dropped have a reserve, which is bounded too.
        let twice = limits.twice();
        let fits_twice = self.behind_front(self.cost).plus(new).is_within(twice);
        match (when_full, outgoing.kind) {
            (WhenFull::Disconnect, FrameKind::Essential) | (WhenFull::Block { .. }, _)
                if fits_twice => {}
            (WhenFull::Disconnect | WhenFull::Block { .. }, _) => return Err(TooSlow),
            (WhenFull::DropNewest, FrameKind::Event(_)) => {
                outgoing.was_dropped();
                return Ok(Dropped { newest: 1, ..dropped });
            }
            // It would not fit even if all droppable frames were dropped.
            (_, FrameKind::Event(_)) if !self.undroppable().plus(new).is_within(limits) => {
                outgoing.was_dropped();
                return Ok(Dropped { newest: 1, ..dropped });
            }
            (_, FrameKind::Essential) if !self.undroppable().plus(new).is_within(twice) => {
                return Err(TooSlow);
            }
            (WhenFull::DropNewest, FrameKind::Essential) => {
                dropped.newest = self.drop_newest(new, limits);
            }
            (WhenFull::DropOldest, _) | (WhenFull::KeepLatest, FrameKind::Essential) => {
                dropped.oldest = self.drop_oldest(new, limits);
            }
            (WhenFull::KeepLatest, kind) => {
                dropped.superseded = self.drop_all(kind);
                dropped.oldest = self.drop_oldest(new, limits);
            }
        }
        self.push(outgoing);
        Ok(dropped)
    }

    /// Adds a frame, whether there is room or not.
    pub(super) fn push(&mut self, outgoing: Arc<Outgoing>) {
        self.now_waits(&outgoing);
        self.queue.push_back(outgoing);
    }

    /// Counts the newest frame for the endpoint, if this socket holds more than its [share](SHARE)
    /// of memory. A frame for many sockets takes a part of the share of each.
    pub(super) fn count_in(&mut self, all: &Arc<Outboxes>) {
        if self.cost.memory <= SHARE {
            return;
        }
        if let Some(last) = self.queue.back() {
            last.held.get_or_init(|| OutboxBytes::new(all, last.memory()));
        }
        let slots = self.queue.capacity() * size_of::<Arc<Outgoing>>();
        if self.slots.as_ref().is_none_or(|held| held.bytes() != slots) {
            self.slots = Some(OutboxBytes::new(all, slots));
        }
    }

    /// Whether another frame may have to wait for room.
    pub(super) fn is_full(&self, limits: CurrentLimits) -> bool {
        let reaches = |cost: Cost| cost.bytes >= limits.bytes || cost.memory >= limits.memory;
        // Avoids a read of the front's cost, as above.
        self.cost.frames >= limits.frames
            || reaches(self.cost) && reaches(self.behind_front(self.cost))
    }

    /// Whether at most half of the limit waits.
    fn has_caught_up(&self, limits: CurrentLimits) -> bool {
        self.behind_front(self.cost).is_within(limits.half())
    }

    /// Records that the socket is blocked at this moment.
    pub(super) fn is_blocked(&mut self, now: Instant) {
        self.blocked_since.get_or_insert(now);
    }

    /// Records that a sender has found no room at this moment.
    pub(super) fn found_full(&mut self, now: Instant) {
        self.full.get_or_insert(Full::since(now));
    }

    /// If there is no room, restarts that time at this moment.
    pub(super) fn is_full_anew(&mut self, now: Instant) {
        self.full = self.full.map(|_| Full::since(now));
    }

    /// Records that the socket has taken some bytes.
    pub(super) fn has_moved(&mut self, limits: CurrentLimits) {
        self.blocked_since = None;
        if self.full.is_some() && self.has_caught_up(limits) {
            self.full = None;
        }
    }

    /// The deadline by which a blocked socket has to take some bytes.
    pub(super) fn blocked_until(&self, longest: Duration) -> Option<Deadline> {
        self.blocked_since.map(|since| Deadline::after(since, longest))
    }

    /// The deadline by which half of the room has to be free, if there was none.
    ///
    /// The socket's task [watches](Self::watch_full) this deadline. If it has passed a while ago
    /// without being recorded, the process was suspended. Then it says nothing about the client,
    /// whose time starts again.
    pub(super) fn full_until(&mut self, longest: Duration, now: Instant) -> Deadline {
        let Some(full) = &mut self.full else { return Deadline::NEVER };
        let until = Deadline::after(full.since, longest);
        if full.is_overdue || !until.instant().is_some_and(|at| is_late(at, now)) {
            return until;
        }
        *full = Full::since(now);
        Deadline::after(now, longest)
    }

    /// Records whether the deadline of a full outbox has passed. Returns when to check again, if
    /// there is such a deadline.
    pub(super) fn watch_full(&mut self, longest: Duration, now: Instant) -> Option<Instant> {
        let until = self.full_until(longest, now);
        let full = self.full.as_mut()?;
        full.is_overdue |= until.has_passed(now);
        if full.is_overdue { None } else { until.instant() }
    }

    /// All waiting frames, including those that are being written.
    pub(super) fn load(&self) -> Load {
        self.total
    }

    /// Whether no frame waits, and none is being written.
    pub(super) fn is_empty(&self) -> bool {
        self.total.frames == 0
    }

    /// Drops all frames except one that has been partly written, and those that are being written.
    /// Returns their number.
    pub(super) fn clear(&mut self) -> usize {
        let before = self.queue.len();
        while self.queue.len() > self.begun() {
            self.remove(self.queue.len() - 1);
        }
        before - self.queue.len()
    }

    /// Fills the slices with the next bytes to write. Returns the number of frames.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        write_next(&self.queue, self.written, slices)
    }

    /// Takes out the next frames to write, at most this number. Until the write is
    /// [finished](Self::finish_write), nothing else may be written.
    pub(super) fn begin_write(&mut self, most: usize, batch: &mut WriteBatch) {
        let count = self.queue.len().min(most);
        self.taken.first = self.front();
        batch.written = std::mem::take(&mut self.written);
        if count == self.queue.len() {
            // Taking all frames needs no read of any frame.
            batch.frames.extend(self.queue.drain(..));
            self.taken.load = self.total;
            self.taken.cost = self.cost;
            self.essential = Cost::default();
            return;
        }
        batch.frames.extend(self.queue.drain(..count));
        for outgoing in &batch.frames {
            let cost = self.cost_of(outgoing);
            self.taken.load = self.taken.load.plus(outgoing.load());
            self.taken.cost = self.taken.cost.plus(cost);
            if outgoing.kind == FrameKind::Essential {
                self.essential = self.essential.minus(cost);
            }
        }
    }

    /// Takes back the frames that have not been written.
    pub(super) fn finish_write(&mut self, batch: &mut WriteBatch) {
        self.total = self.total.minus(self.taken.load);
        self.cost = self.cost.minus(self.taken.cost);
        self.taken = BatchLoad::default();
        self.written = batch.written;
        while let Some(outgoing) = batch.frames.pop_back() {
            self.now_waits(&outgoing);
            self.queue.push_front(outgoing);
        }
    }

    /// Records that this number of bytes has been written. Completed frames are removed and passed
    /// to `whole`.
    pub(super) fn wrote(&mut self, count: usize, mut whole: impl FnMut(Arc<Outgoing>)) {
        self.written += count;
        while let Some(outgoing) = next_whole(&mut self.queue, &mut self.written) {
            self.no_longer(&outgoing);
            whole(outgoing);
        }
    }

    /// Takes out all frames, and passes each to `whole`. None has been partly written.
    pub(super) fn take(self, mut whole: impl FnMut(Option<&Timeline>)) -> FetchedFrames {
        let mut fetched = FetchedFrames::default();
        for outgoing in self.queue {
            whole(outgoing.timeline.as_ref());
            fetched.frames.push(outgoing.frame.clone());
            let is_text = outgoing.frame.as_text().is_some();
            let copy = outgoing.counted.clone().map(|push| Copy { push, is_text });
            fetched.counted.extend(copy);
        }
        fetched
    }

    /// The number of partly written frames at the front: they have to be finished.
    fn begun(&self) -> usize {
        usize::from(self.written > 0)
    }

    /// The cost that is left when all droppable frames are dropped.
    fn undroppable(&self) -> Cost {
        let kept = self.essential.plus(self.taken.cost);
        match self.queue.front() {
            Some(first) if first.kind == FrameKind::Essential => self.behind_front(kept),
            Some(first) if self.written > 0 => self.behind_front(kept.plus(self.cost_of(first))),
            _ if self.taken.cost.frames > 0 => self.behind_front(kept),
            _ => kept,
        }
    }

    /// The cost of a frame.
    fn cost_of(&self, outgoing: &Outgoing) -> Cost {
        let bytes = outgoing.weight.min(self.costliest);
        Cost { frames: 1, bytes, memory: outgoing.memory() }
    }

    /// The cost in bytes of the frame at the front, which is being written or is the next.
    fn front(&self) -> Cost {
        match self.queue.front() {
            _ if self.taken.cost.frames > 0 => self.taken.first,
            Some(first) => Cost { frames: 0, ..self.cost_of(first) },
            None => Cost::default(),
        }
    }

    /// Subtracts the bytes of the front from a cost that includes them.
    fn behind_front(&self, cost: Cost) -> Cost {
        cost.minus(self.front())
    }

    /// Drops events from the front until this cost fits, or none is left.
    fn drop_oldest(&mut self, new: Cost, limits: CurrentLimits) -> usize {
        let before = self.queue.len();
        let mut at = self.begun();
        while at < self.queue.len() && !self.fits(new, limits) {
            if self.queue[at].kind == FrameKind::Essential {
                at += 1;
            } else {
                self.queue[at].was_dropped();
                self.remove(at);
            }
        }
        before - self.queue.len()
    }

    /// Drops events from the back until this cost fits, or none is left.
    fn drop_newest(&mut self, new: Cost, limits: CurrentLimits) -> usize {
        let before = self.queue.len();
        let mut at = self.queue.len();
        while at > self.begun() && !self.fits(new, limits) {
            at -= 1;
            if self.queue[at].kind != FrameKind::Essential {
                self.queue[at].was_dropped();
                self.remove(at);
            }
        }
        before - self.queue.len()
    }

    /// Drops all events with this key.
    fn drop_all(&mut self, kind: FrameKind) -> usize {
        let mut queue = std::mem::take(&mut self.queue);
        let (before, mut at, begun) = (queue.len(), 0, self.begun());
        queue.retain(|outgoing| {
            let keep = at < begun || outgoing.kind != kind;
            at += 1;
            if !keep {
                outgoing.was_dropped();
                self.no_longer(outgoing);
            }
            keep
        });
        self.queue = queue;
        before - self.queue.len()
    }

    fn remove(&mut self, at: usize) {
        if let Some(outgoing) = self.queue.remove(at) {
            self.no_longer(&outgoing);
        }
    }

    fn now_waits(&mut self, outgoing: &Outgoing) {
        let cost = self.cost_of(outgoing);
        self.total = self.total.plus(outgoing.load());
        self.cost = self.cost.plus(cost);
        if outgoing.kind == FrameKind::Essential {
            self.essential = self.essential.plus(cost);
        }
    }

    fn no_longer(&mut self, outgoing: &Outgoing) {
        let cost = self.cost_of(outgoing);
        self.total = self.total.minus(outgoing.load());
        self.cost = self.cost.minus(cost);
        if outgoing.kind == FrameKind::Essential {
            self.essential = self.essential.minus(cost);
        }
    }
}

impl Full {
    fn since(since: Instant) -> Self {
        Self { since, is_overdue: false }
    }
}

impl WriteBatch {
    /// Fills the slices with the next bytes to write. Returns the number of frames.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        write_next(&self.frames, self.written, slices)
    }

    /// Records that this number of bytes has been written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
        while let Some(outgoing) = next_whole(&mut self.frames, &mut self.written) {
            self.done.push(outgoing);
        }
    }

    /// The number of completely written frames that have not been released.
    pub(super) fn done(&self) -> usize {
        self.done.len()
    }

    /// Releases the written frames, and passes each to `whole`.
    pub(super) fn complete(&mut self, mut whole: impl FnMut(Option<&Timeline>)) {
        for done in self.done.drain(..) {
            done.was_written();
            whole(done.timeline.as_ref());
        }
    }
}

/// Fills the slices with these frames, the first of which may be partly written.
fn write_next<'a>(
    frames: &'a VecDeque<Arc<Outgoing>>,
    written: usize,
    slices: &mut [IoSlice<'a>],
) -> usize {
    let mut count = 0;
    for (slice, outgoing) in slices.iter_mut().zip(frames) {
        let skip = if count == 0 { written } else { 0 };
        *slice = IoSlice::new(&outgoing.frame.bytes()[skip..]);
        count += 1;
    }
    count
}

/// Removes the first frame if it is completely written.
fn next_whole(frames: &mut VecDeque<Arc<Outgoing>>, written: &mut usize) -> Option<Arc<Outgoing>> {
    *written = written.checked_sub(frames.front()?.frame.len())?;
    frames.pop_front()
}

/// The memory of a frame besides its bytes: its metadata, two reference counts, and the allocator's
/// overhead.
const OVERHEAD: usize = 256;

const _: () = assert!(size_of::<Outgoing>() + 4 * size_of::<usize>() <= OVERHEAD);

impl Outgoing {
    /// A frame for one socket.
    pub(super) fn alone(frame: Frame, timeline: Option<Timeline>, kind: FrameKind) -> Self {
        let weight = frame.held() + OVERHEAD;
        Self { frame, timeline, counted: None, kind, weight, held: OnceLock::new() }
    }

    /// A frame for many sockets.
    pub(super) fn shared(frame: Frame, kind: FrameKind) -> Self {
        let weight = frame.len();
        Self { frame, timeline: None, counted: None, kind, weight, held: OnceLock::new() }
    }

    /// The memory of the frame.
    fn memory(&self) -> usize {
        self.frame.held() + OVERHEAD
    }

    /// The bytes of the frame, to try a direct write.
    pub(super) fn bytes(&self) -> &Bytes {
        self.frame.bytes()
    }

    /// Counts it as written, if the outcome of its push is wanted.
    pub(super) fn was_written(&self) {
        if let Some(push) = &self.counted {
            push.was_written();
        }
    }

    /// Counts it as dropped by the policy, if the outcome of its push is wanted.
    fn was_dropped(&self) {
        if let Some(push) = &self.counted {
            push.was_dropped();
        }
    }

    fn load(&self) -> Load {
        Load { frames: 1, bytes: self.frame.len() }
    }
}

impl Clone for Outgoing {
    /// A frame with the same bytes, which is counted separately.
    fn clone(&self) -> Self {
        let Self { timeline, kind, weight, .. } = *self;
        let (frame, counted) = (self.frame.clone(), self.counted.clone());
        Self { frame, timeline, counted, kind, weight, held: OnceLock::new() }
    }
}

impl Load {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames.saturating_add(other.frames),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self { frames: self.frames - other.frames, bytes: self.bytes - other.bytes }
    }
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames.saturating_add(other.frames),
            bytes: self.bytes.saturating_add(other.bytes),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            frames: self.frames - other.frames,
            bytes: self.bytes - other.bytes,
            memory: self.memory - other.memory,
        }
    }

    fn is_within(self, limits: CurrentLimits) -> bool {
        self.frames <= limits.frames && self.bytes <= limits.bytes && self.memory <= limits.memory
    }

    /// Caps the cost of a frame at half of the byte limit.
    fn at_most(self, limits: CurrentLimits) -> Self {
        let (bytes, memory) =
            (self.bytes.min(limits.bytes / 2), self.memory.min(limits.memory / 2));
        Self { bytes, memory, ..self }
    }
}

impl From<OutboxLimits> for CurrentLimits {
    fn from(OutboxLimits { frames, bytes }: OutboxLimits) -> Self {
        Self { frames, bytes, memory: usize::MAX }
    }
}

impl CurrentLimits {
    /// The limits while the outboxes of the endpoint are full.
    pub(super) fn of_share(self) -> Self {
        Self { memory: SHARE, ..self }
    }

    /// The limits of frames that must not be dropped.
    fn twice(self) -> Self {
        Self {
            frames: self.frames.saturating_mul(2),
            bytes: self.bytes.saturating_mul(2),
            memory: self.memory.saturating_mul(2),
        }
    }

    fn half(self) -> Self {
        Self { frames: self.frames / 2, bytes: self.bytes / 2, memory: self.memory / 2 }
    }
}

impl Dropped {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            oldest: self.oldest + other.oldest,
            newest: self.newest + other.newest,
            superseded: self.superseded + other.superseded,
        }
    }

    /// Whether no frame was dropped.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outbox::EventKey;

    const MOST: OutboxLimits = OutboxLimits { frames: 4, bytes: 400 };
    const LIMITS: CurrentLimits =
        CurrentLimits { frames: MOST.frames, bytes: MOST.bytes, memory: usize::MAX };

    /// A frame as a client would see it: with a number and a length.
    fn outgoing(number: u8, length: usize, kind: FrameKind) -> Arc<Outgoing> {
        let write = |out: &mut Vec<u8>| {
            let header = if length <= 127 { 2 } else { 4 };
            out.resize(out.len() + length - header, number);
            Ok::<_, ()>(())
        };
        Arc::new(Outgoing::shared(Frame::text(write).unwrap(), kind))
    }

    fn event(key: u8) -> FrameKind {
        FrameKind::Event(EventKey::new("t", &key.to_string()))
    }

    fn numbers(backlog: &Backlog) -> Vec<u8> {
        backlog.queue.iter().map(|outgoing| outgoing.frame.body()[0]).collect()
    }

    /// A backlog of these kinds, numbered from 0, of 10 bytes each.
    fn backlog(kinds: &[FrameKind]) -> Backlog {
        let mut backlog = Backlog::new(MOST, 0);
        (0..).zip(kinds).for_each(|(number, kind)| backlog.push(outgoing(number, 10, *kind)));
        backlog
    }

    const REPLY: FrameKind = FrameKind::Essential;

    #[test]
    fn each_policy_makes_room() {
        let waiting = [REPLY, event(1), event(2), event(1)];
        let oldest = Dropped { oldest: 1, ..Dropped::default() };
        let newest = Dropped { newest: 1, ..Dropped::default() };
        let superseded = |count| Dropped { superseded: count, ..Dropped::default() };
        let cases: [(_, _, _, &[u8]); 10] = [
            (WhenFull::DropOldest, event(1), Ok(oldest), &[0, 2, 3, 9]),
            (WhenFull::DropOldest, REPLY, Ok(oldest), &[0, 2, 3, 9]),
            (WhenFull::DropNewest, event(1), Ok(newest), &[0, 1, 2, 3]),
            (WhenFull::DropNewest, REPLY, Ok(newest), &[0, 1, 2, 9]),
            (WhenFull::KeepLatest, event(1), Ok(superseded(2)), &[0, 2, 9]),
            (WhenFull::KeepLatest, event(3), Ok(oldest), &[0, 2, 3, 9]),
            (WhenFull::KeepLatest, REPLY, Ok(oldest), &[0, 2, 3, 9]),
            (WhenFull::block(), event(1), Ok(Dropped::default()), &[0, 1, 2, 3, 9]),
            (WhenFull::Disconnect, event(1), Err(TooSlow), &[0, 1, 2, 3]),
            (WhenFull::Disconnect, REPLY, Ok(Dropped::default()), &[0, 1, 2, 3, 9]),
        ];
        for (when_full, kind, expected, left) in cases {
            let mut backlog = backlog(&waiting);
            let admitted = backlog.admit(outgoing(9, 10, kind), LIMITS, when_full);
            assert_eq!((admitted, &numbers(&backlog)[..]), (expected, left), "{when_full:?}");
        }
    }

    #[test]
    fn policies_make_room_for_bytes_too() {
        let admit = |when_full, length, kind| {
            let mut backlog = Backlog::new(MOST, 0);
            // Behind the first, whose bytes do not count, 300 of 400 bytes are used.
            for number in 0..3 {
                backlog.push(outgoing(number, 150, event(number)));
            }
            let admitted = backlog.admit(outgoing(9, length, kind), LIMITS, when_full);
            admitted.map(|dropped| (dropped, numbers(&backlog)))
        };
        let dropped = |oldest, newest| Dropped { oldest, newest, superseded: 0 };
        let fits = Ok((Dropped::default(), vec![0, 1, 2, 9]));
        assert_eq!(admit(WhenFull::DropOldest, 100, event(9)), fits);
        assert_eq!(admit(WhenFull::DropOldest, 120, event(9)), Ok((dropped(1, 0), vec![1, 2, 9])));
        assert_eq!(admit(WhenFull::DropNewest, 120, event(9)), Ok((dropped(0, 1), vec![0, 1, 2])));
        assert_eq!(admit(WhenFull::DropNewest, 200, REPLY), Ok((dropped(0, 1), vec![0, 1, 9])));
        // A message of any size counts for at most half of the byte limit.
        assert_eq!(
            admit(WhenFull::DropOldest, 5_000, event(9)),
            Ok((dropped(1, 0), vec![1, 2, 9]))
        );
        let among_answers = Ok((Dropped::default(), vec![0, 1, 2, 9]));
        assert_eq!(admit(WhenFull::Disconnect, 5_000, REPLY), among_answers);
        assert_eq!(admit(WhenFull::Disconnect, 5_000, event(9)), Err(TooSlow));
    }

    #[test]
    fn the_frame_being_written_does_not_count() {
        for when_full in [WhenFull::Disconnect, WhenFull::DropNewest, WhenFull::block()] {
            for taken in [false, true] {
                let (mut backlog, mut batch) = (Backlog::new(MOST, 0), WriteBatch::default());
                backlog.push(outgoing(0, 5_000, REPLY));
                if taken {
                    backlog.begin_write(1, &mut batch);
                }
                for number in 1..=3 {
                    let next = outgoing(number, 120, event(number));
                    let admitted = backlog.admit(next, LIMITS, when_full);
                    assert_eq!(admitted, Ok(Dropped::default()), "{when_full:?} {number}");
                }
                assert!(!backlog.has_room_for(&outgoing(4, 120, REPLY), LIMITS));
                let reply = backlog.admit(outgoing(4, 120, REPLY), LIMITS, when_full);
                assert!(reply.is_ok(), "a reply has a reserve: {when_full:?}");
            }
        }
    }

    #[test]
    fn several_large_answers_leave_room_for_events() {
        let mut backlog = Backlog::new(MOST, 0);
        backlog.push(outgoing(0, 5_000, REPLY));
        backlog.push(outgoing(1, 5_000, REPLY));
        let event = backlog.admit(outgoing(2, 120, event(1)), LIMITS, WhenFull::Disconnect);
        assert_eq!(event, Ok(Dropped::default()));
        let more = (3..).take_while(|&number| {
            let reply = outgoing(number, 5_000, REPLY);
            backlog.admit(reply, LIMITS, WhenFull::Disconnect).is_ok()
        });
        assert_eq!(more.count(), 2, "the reserve is bounded");
    }

    #[test]
    fn the_time_behind_is_kept_until_the_socket_takes_some_bytes() {
        let longest = Duration::from_secs(30);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut backlog = backlog(&[event(1); 4]);
        assert_eq!(backlog.blocked_until(longest), None);
        backlog.is_blocked(now);
        backlog.is_blocked(later);
        backlog.found_full(now);
        let until = Deadline::after(now, longest);
        assert_eq!(backlog.blocked_until(longest), Some(until));
        assert_eq!(backlog.full_until(longest, now), until);
        backlog.wrote(10, |_| {});
        backlog.has_moved(LIMITS);
        assert_eq!(backlog.blocked_until(longest), None);
        assert_eq!(backlog.full_until(longest, later), until, "more than half is used");
        backlog.wrote(10, |_| {});
        backlog.has_moved(LIMITS);
        assert_eq!(backlog.full_until(longest, later), Deadline::NEVER);
    }

    #[test]
    fn a_deadline_that_passes_unrecorded_means_a_suspended_process_and_restarts() {
        let longest = Duration::from_secs(30);
        let now = Instant::now();
        let [at_it, long_after] = [30, 90].map(|seconds| now + Duration::from_secs(seconds));
        for is_noted in [true, false] {
            let mut backlog = backlog(&[event(1); 4]);
            assert_eq!(backlog.watch_full(longest, now), None);
            backlog.found_full(now);
            assert_eq!(backlog.watch_full(longest, now), Some(at_it));
            if is_noted {
                assert_eq!(backlog.watch_full(longest, at_it), None);
            }
            let since = if is_noted { now } else { long_after };
            let until = Deadline::after(since, longest);
            assert_eq!(backlog.full_until(longest, long_after), until);
            let next = if is_noted { None } else { until.instant() };
            assert_eq!(backlog.watch_full(longest, long_after), next);
        }
    }

    #[test]
    fn a_partly_written_frame_stays() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepLatest] {
            let mut backlog = backlog(&[event(1); 4]);
            backlog.wrote(3, |_| {});
            backlog.admit(outgoing(8, 10, event(1)), LIMITS, when_full).unwrap();
            backlog.admit(outgoing(9, 200, REPLY), LIMITS, when_full).unwrap();
            assert_eq!(numbers(&backlog)[0], 0, "{when_full:?}");
            assert_eq!(backlog.written(), 3);
        }
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepLatest] {
            // The first frame is the only event.
            let mut backlog = backlog(&[event(1), REPLY, REPLY, REPLY]);
            backlog.wrote(3, |_| {});
            let admitted = backlog.admit(outgoing(4, 10, REPLY), LIMITS, when_full);
            assert_eq!(admitted, Ok(Dropped::default()), "{when_full:?}");
            assert_eq!(numbers(&backlog), [0, 1, 2, 3, 4], "{when_full:?}");
        }
        let mut backlog = backlog(&[event(1); 4]);
        backlog.wrote(3, |_| {});
        assert_eq!((backlog.clear(), numbers(&backlog)), (3, vec![0]));
        backlog.wrote(7, |_| {});
        assert_eq!(backlog.total, Load::default());
    }

    #[test]
    fn answers_alone_may_take_twice_the_limits() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepLatest] {
            let mut backlog = backlog(&[event(1); 4]);
            for number in 10..18 {
                backlog.admit(outgoing(number, 10, REPLY), LIMITS, when_full).unwrap();
            }
            assert_eq!(numbers(&backlog), (10..18).collect::<Vec<_>>());
            let newest = Ok(Dropped { newest: 1, ..Dropped::default() });
            assert_eq!(backlog.admit(outgoing(0, 10, event(1)), LIMITS, when_full), newest);
            let more = backlog.admit(outgoing(0, 10, REPLY), LIMITS, when_full);
            assert_eq!(more, Err(TooSlow));
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Send {
            length: usize,
            kind: FrameKind,
        },
        Write(usize),
        /// Begins to write this number, unless some are being written.
        Take(usize),
        /// This number of their bytes has been written.
        PutBack(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let kind = prop_oneof![1 => Just(REPLY), 3 => (0..3u8).prop_map(event)];
        prop_oneof![
            3 => (prop_oneof![9 => 3usize..120, 1 => 200usize..2_000], kind).prop_map(|(length, kind)| Op::Send { length, kind }),
            1 => (1usize..200).prop_map(Op::Write),
            1 => (1usize..5).prop_map(Op::Take),
            1 => (0usize..400).prop_map(Op::PutBack),
        ]
    }

    fn policy() -> impl Strategy<Value = WhenFull> {
        prop_oneof![
            Just(WhenFull::Disconnect),
            Just(WhenFull::DropOldest),
            Just(WhenFull::DropNewest),
            Just(WhenFull::KeepLatest),
            Just(WhenFull::block()),
        ]
    }

    proptest! {
        /// For any sequence of sends and writes, the client receives all sent frames except the
        /// events that were counted as dropped, in order and complete, and the backlog stays within
        /// its limits.
        #[test]
        fn the_limits_hold_and_only_events_are_missing(
            when_full in policy(), ops in prop::collection::vec(op(), 0..80)
        ) {
            let mut backlog = Backlog::new(MOST, 0);
            let (mut batch, mut taken, mut was_written_to) = (WriteBatch::default(), false, false);
            // The numbers that were sent, written and dropped, in order.
            let (mut sent, mut written, mut dropped) = (vec![], vec![], 0);
            for op in ops {
                match op {
                    Op::Send { length, kind } => {
                        let number = u8::try_from(sent.len()).unwrap();
                        let before = numbers(&backlog);
                        let new = outgoing(number, length, kind);
                        match backlog.admit(new, LIMITS, when_full) {
                            Ok(Dropped { oldest, newest, superseded }) => {
                                sent.push(kind);
                                let gone = oldest + newest + superseded;
                                prop_assert_eq!(backlog.len() + gone, before.len() + 1);
                                dropped += gone;
                            }
                            Err(TooSlow) => {
                                prop_assert_eq!(numbers(&backlog), before, "dropped frames are counted");
                                let drops = !matches!(
                                    when_full, WhenFull::Disconnect | WhenFull::Block { .. }
                                );
                                let new = backlog.cost_of(&outgoing(number, length, kind));
                                let left = backlog.undroppable().plus(new);
                                let nothing_helps = kind == REPLY && !left.is_within(LIMITS.twice());
                                prop_assert!(!drops || nothing_helps);
                                return Ok(());
                            }
                        }
                    }
                    // While frames are being written, nothing else may be written.
                    Op::Write(_) if taken => {}
                    Op::Take(most) if !taken && !backlog.is_empty() => {
                        backlog.begin_write(most, &mut batch);
                        (taken, was_written_to) = (true, true);
                    }
                    Op::PutBack(count) if taken => {
                        let all: usize = batch.frames.iter().map(|frame| frame.frame.len()).sum();
                        batch.wrote(count.min(all - batch.written));
                        written.extend(batch.done.iter().map(|done| done.frame.body()[0]));
                        let mut whole = 0;
                        batch.complete(|_| whole += 1);
                        prop_assert!(whole <= 4);
                        backlog.finish_write(&mut batch);
                        taken = false;
                    }
                    Op::Take(_) | Op::PutBack(_) => {}
                    Op::Write(count) => {
                        let count = count.min(backlog.total.bytes - backlog.written());
                        let before = numbers(&backlog);
                        let mut whole = 0;
                        backlog.wrote(count, |_| whole += 1);
                        written.extend(&before[..whole]);
                        prop_assert!(backlog.frames().next().is_none_or(
                            |first| backlog.written() < first.len()
                        ));
                    }
                }
                let taken = batch.frames.iter().map(|outgoing| &outgoing.frame);
                let total = Load {
                    frames: backlog.len() + batch.frames.len(),
                    bytes: backlog.frames().chain(taken).map(Frame::len).sum(),
                };
                prop_assert_eq!(backlog.total, total);
                let counted = backlog.behind_front(backlog.cost);
                let may_be_dropped = counted != backlog.undroppable();
                let bound = match when_full {
                    WhenFull::DropOldest | WhenFull::DropNewest | WhenFull::KeepLatest
                        if may_be_dropped && !was_written_to => LIMITS,
                    // Frames that arrived while events were being written could not drop those.
                    _ => LIMITS.twice(),
                };
                prop_assert!(counted.is_within(bound), "{:?}", counted);
            }
            written.extend(batch.frames.iter().map(|outgoing| outgoing.frame.body()[0]));
            written.extend(numbers(&backlog));
            prop_assert!(written.is_sorted(), "{:?}", written);
            prop_assert_eq!(written.len() + dropped, sent.len());
            for (number, kind) in (0..).zip(&sent) {
                prop_assert!(*kind != REPLY || written.contains(&number), "lost {}", number);
            }
        }
    }
}
