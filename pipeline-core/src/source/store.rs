//! What a queue is to the two ends that share it. Pure: it says whom to wake, and wakes nobody.

use std::{
    collections::VecDeque,
    task::{Poll, Waker},
};

use super::outcome::{Closed, TryPushError};

/// Something with a bound that can be closed.
pub(super) trait Bounded {
    /// What it holds.
    type Item;

    /// How many items it holds.
    fn len(&self) -> usize;

    /// How many it holds at most.
    fn capacity(&self) -> usize;

    fn is_closed(&self) -> bool;

    /// Takes nothing in any more. Returns all who wait.
    fn close(&mut self) -> Vec<Waker>;
}

/// A bounded queue with many pushers and one taker.
///
/// A pusher that finds no room leaves its item here, in line, and the item moves up by itself when
/// there is room: the pusher has only to be told. So nobody waits who could go on.
pub(super) trait Store: Bounded {
    /// What a pusher brings: the item, and what the queue has to know of it.
    type Entry;
    /// A place in line.
    type Ticket: Copy;

    /// What is logged when discarding begins.
    const DISCARDING: &'static str;

    /// Takes an item in if there is room. Returns the taker, if it waits.
    fn try_push(&mut self, entry: Self::Entry) -> Result<Option<Waker>, TryPushError<Self::Item>>;

    /// Takes an item in, or puts it in line if there is no room.
    fn push(&mut self, entry: Self::Entry, waker: &Waker) -> Pushed<Self::Item, Self::Ticket>;

    /// How it stands with an item in line: taken in, refused by a closed queue, or still waiting.
    fn poll(&mut self, ticket: Self::Ticket, waker: &Waker)
    -> Poll<Result<(), Closed<Self::Item>>>;

    /// Gives up a place in line, with the item, if it has not moved up yet.
    fn leave(&mut self, ticket: Self::Ticket) -> Option<Self::Item>;

    /// Takes an item in, or has one discarded as the policy says.
    fn offer(&mut self, entry: Self::Entry) -> Result<Offered<Self::Item>, Closed<Self::Item>>;

    /// Moves up to `count` items to the end of `out`.
    fn take(&mut self, count: usize, out: &mut VecDeque<Self::Item>) -> Taken;

    /// Whether there is something for the taker: items, or the end. Otherwise it will be woken.
    fn poll_ready(&mut self, waker: &Waker) -> Poll<()>;
}

/// What happened to an item that was pushed.
#[derive(Debug)]
pub(super) enum Pushed<T, K> {
    /// It was taken in; the taker, if it waits.
    In(Option<Waker>),
    Waits(K),
    Closed(T),
}

/// What happened to an item that was offered.
#[derive(Debug)]
pub(super) enum Offered<T> {
    /// It was taken in; the taker, if it waits.
    Kept(Option<Waker>),
    /// It or an older one was discarded.
    Discarded {
        item: T,
        /// Whether it is the older one, which made room.
        displaced: bool,
        /// Whether it is the first since there was room.
        first: bool,
    },
}

/// What taking leads to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Pushers whose items have moved up.
    pub(super) wake: Vec<Waker>,
    /// Items that were discarded while there was no room, told once when there is room again.
    pub(super) discarded: usize,
}
