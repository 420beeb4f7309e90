//! The interface of a queue's state to its two ends. Pure: it returns the wakers and wakes none
//! itself.

use std::{
    collections::VecDeque,
    task::{Poll, Waker},
};

use super::{Closed, TryPushError};

/// A bounded container that can be closed.
pub(super) trait Bounded {
    /// The type of its items.
    type Item;

    /// The number of items in it.
    fn len(&self) -> usize;

    /// Its capacity.
    fn capacity(&self) -> usize;

    fn is_closed(&self) -> bool;

    /// Stops taking items. Returns the wakers of all waiting tasks.
    fn close(&mut self) -> Vec<Waker>;
}

/// A bounded queue with many pushers and one reader.
///
/// A pusher that finds no room leaves its item in the wait list, and the item moves up by itself
/// when there is room: the pusher only has to be woken. So no pusher waits that could continue.
pub(super) trait Store: Bounded {
    /// A pushed item, with the data that the queue needs for it.
    type Entry;
    /// A place in the wait list.
    type Ticket: Copy;

    /// Logged when discarding begins.
    const DISCARDING: &'static str;

    /// Inserts an item if there is room. Returns the waker of the reader, if it waits.
    fn try_push(&mut self, entry: Self::Entry) -> Result<Option<Waker>, TryPushError<Self::Item>>;

    /// Inserts an item, or adds it to the wait list if there is no room.
    fn push(&mut self, entry: Self::Entry, waker: &Waker) -> Pushed<Self::Item, Self::Ticket>;

    /// The state of a waiting item: inserted, refused by a closed queue, or still waiting.
    fn poll(&mut self, ticket: Self::Ticket, waker: &Waker)
    -> Poll<Result<(), Closed<Self::Item>>>;

    /// Leaves the wait list, with the item if it has not moved up yet.
    fn leave(&mut self, ticket: Self::Ticket) -> Option<Self::Item>;

    /// Inserts an item, or discards one as the policy says.
    fn offer(&mut self, entry: Self::Entry) -> Result<Offered<Self::Item>, Closed<Self::Item>>;

    /// Moves up to `count` items to the end of `out`.
    fn take(&mut self, count: usize, out: &mut VecDeque<Self::Item>) -> Taken;

    /// Ready if there are items, or the queue has ended. Otherwise it registers the waker.
    fn poll_ready(&mut self, waker: &Waker) -> Poll<()>;
}

/// The result of a push.
#[derive(Debug)]
pub(super) enum Pushed<T, K> {
    /// The item was inserted; contains the waker of the reader, if it waits.
    In(Option<Waker>),
    Waits(K),
    Closed(T),
}

/// The result of an offer.
#[derive(Debug)]
pub(super) enum Offered<T> {
    /// The item was inserted; contains the waker of the reader, if it waits.
    Kept(Option<Waker>),
    /// The item or an older one was discarded.
    Discarded {
        item: T,
        /// Whether it is an older one, which made room.
        displaced: bool,
        /// Whether it is the first since there was room.
        first: bool,
    },
}

/// The effects of taking items.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The wakers of pushers whose items have moved up.
    pub(super) wake: Vec<Waker>,
    /// The number of items discarded while there was no room, reported once when there is room
    /// again.
    pub(super) discarded: usize,
}
