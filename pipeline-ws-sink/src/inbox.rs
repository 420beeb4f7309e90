//! What sockets have received and not handled yet, in bytes, and how much of it there may be.

use std::sync::{
    Arc,
    atomic::{AtomicIsize, AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// What a socket may hold even when the endpoint's sockets together hold too much, in bytes: so a few
/// clients that fill the endpoint's limit do not stop the others.
const SHARE: usize = 16 << 10;

/// What all sockets of an endpoint hold, beyond the [share](SHARE) of each.
#[derive(Debug)]
pub(crate) struct Inboxes {
    /// Less than 0 for a moment, when a thread gives back what another is about to add.
    bytes: AtomicIsize,
    limit: usize,
    /// Told when there is room again.
    room: Notify,
}

/// What one socket has received and not handled: messages that wait for their channel or are being
/// handled, and the beginning of a message whose end is still to come.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: AtomicUsize,
    limit: usize,
    /// Told when there is room again.
    room: Notify,
    all: Arc<Inboxes>,
}

/// Bytes that count for a socket until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    inbox: Arc<Inbox>,
    bytes: usize,
}

impl Inboxes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: AtomicIsize::new(0), limit, room: Notify::new() }
    }

    /// How much the sockets hold, beyond the share of each.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.bytes.load(SeqCst)).unwrap_or(0)
    }

    fn is_full(&self) -> bool {
        self.bytes() >= self.limit
    }

    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(signed(bytes), SeqCst);
        }
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let before = self.bytes.fetch_sub(signed(bytes), SeqCst);
            let limit = signed(self.limit);
            if before >= limit && before.saturating_sub_unsigned(bytes) < limit {
                self.room.notify_waiters();
            }
        }
    }
}

impl Inbox {
    /// An empty one. A socket that holds nothing may always receive a message, however large.
    pub(crate) fn new(limit: usize, all: Arc<Inboxes>) -> Self {
        Self { bytes: AtomicUsize::new(0), limit: limit.max(1), room: Notify::new(), all }
    }

    /// Has so many bytes count, whether there is room or not.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        let mut held = Held { inbox: self.clone(), bytes: 0 };
        held.resize(bytes);
        held
    }

    /// Whether there is room for a message of so many bytes, which are counted already: what the socket holds
    /// besides is less than it may be, and all sockets of the endpoint hold less than they may besides, or
    /// this one has no more than its share with it.
    fn has_room_for(&self, bytes: usize) -> bool {
        let besides = self.bytes.load(SeqCst).saturating_sub(bytes);
        besides < self.limit && self.has_shared_room_for(bytes)
    }

    /// The same, whatever the socket itself holds besides.
    fn has_shared_room_for(&self, bytes: usize) -> bool {
        let all = self.bytes.load(SeqCst);
        let besides = all.saturating_sub(bytes);
        let shared = beyond_share(all) - beyond_share(besides);
        all <= SHARE || self.all.bytes().saturating_sub(shared) < self.all.limit
    }

    fn is_crowded_out(&self, bytes: usize) -> bool {
        bytes > SHARE && self.all.is_full()
    }

    /// Whether all sockets of the endpoint hold less than they may, or this one no more than its share.
    pub(crate) fn has_shared_room(&self) -> bool {
        !self.is_crowded_out(self.bytes.load(SeqCst))
    }

    /// Waits until all sockets of the endpoint hold less than they may, or this one no more than its share.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn shared_room(&self) {
        self.until(|| self.has_shared_room()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        // Most of the time it is.
        if is_so() {
            return;
        }
        loop {
            let (mut own, mut others) =
                (std::pin::pin!(self.room.notified()), std::pin::pin!(self.all.room.notified()));
            // Before looking, so that what is given back in between is not missed.
            own.as_mut().enable();
            others.as_mut().enable();
            if is_so() {
                return;
            }
            tokio::select! {
                () = own => {}
                () = others => {}
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, SeqCst);
        let after = before - bytes;
        self.all.give_back(beyond_share(before) - beyond_share(after));
        // Whoever waits for room has one of these beside the message that it has in hand.
        if before > SHARE || before >= self.limit {
            self.room.notify_waiters();
        }
    }
}

impl Held {
    /// Whether there is room for these bytes, beside what the socket and all sockets hold else.
    pub(crate) fn has_room(&self) -> bool {
        self.inbox.has_room_for(self.bytes)
    }

    /// Waits until there is room for these bytes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        self.inbox.until(|| self.has_room()).await;
    }

    /// Waits until there is room for these bytes beside what all sockets hold else, whatever this one does.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn shared_room(&self) {
        self.inbox.until(|| self.inbox.has_shared_room_for(self.bytes)).await;
    }

    /// Whether the socket holds twice as much as it may besides these bytes.
    pub(crate) fn overflow(&self) -> bool {
        let besides = self.inbox.bytes.load(SeqCst).saturating_sub(self.bytes);
        besides >= self.inbox.limit.saturating_mul(2)
    }

    /// Has another number of bytes count in place of these.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let inbox = &self.inbox;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let before = inbox.bytes.fetch_add(more, SeqCst);
            inbox.all.add(beyond_share(before + more) - beyond_share(before));
        } else if bytes < self.bytes {
            inbox.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// No memory is larger.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

fn beyond_share(bytes: usize) -> usize {
    bytes.saturating_sub(SHARE)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_inbox_takes_a_message_of_any_size_and_a_full_one_none() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let inbox = Arc::new(Inbox::new(100, all));
        let large = inbox.hold(1000);
        assert!(large.has_room() && !large.overflow());
        let next = inbox.hold(1);
        assert!(!next.has_room() && next.overflow());
        drop((large, next));
        let _small = inbox.hold(99);
        let one = inbox.hold(1);
        assert!(one.has_room());
        let next = inbox.hold(1);
        assert!(!next.has_room() && !next.overflow());
    }

    #[test]
    fn a_socket_has_its_share_when_others_hold_all_that_the_endpoint_may() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [greedy, calm] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let held = greedy.hold((1 << 20) + SHARE);
        assert_eq!(all.bytes(), 1 << 20);
        assert!(!greedy.hold(1).has_room());
        let share = calm.hold(SHARE);
        assert!(share.has_room() && calm.has_shared_room());
        let more = calm.hold(1);
        assert!(!more.has_room() && !calm.has_shared_room());
        drop(held);
        assert!(more.has_room() && calm.has_shared_room());
        drop((share, more));
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn a_message_that_does_not_fit_into_the_share_has_no_room_when_the_endpoint_is_full() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [greedy, other] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let held = greedy.hold((1 << 20) + SHARE);
        let large = other.hold(1 << 20);
        assert!(!large.has_room(), "although the socket held nothing before");
        drop(held);
        assert!(large.has_room(), "nothing else is held");
    }

    #[test]
    fn bytes_that_are_given_back_before_they_are_added_are_no_reason_to_wait() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let inbox = Arc::new(Inbox::new(4 << 20, all.clone()));
        let held = inbox.hold(2 * SHARE);
        // Another thread gives back a part of what this one is about to add.
        all.give_back(2 * SHARE);
        assert_eq!(all.bytes(), 0);
        assert!(inbox.has_shared_room() && held.has_room());
        all.add(2 * SHARE);
        assert_eq!(all.bytes(), SHARE);
    }

    #[tokio::test]
    async fn a_message_that_waits_is_told_of_room_whatever_its_size() {
        let all = Arc::new(Inboxes::new(1 << 30));
        let inbox = Arc::new(Inbox::new(1 << 20, all));
        let (busy, waiting) = (inbox.hold(1 << 20), inbox.hold(1));
        let large = inbox.hold(3 << 20);
        let mut room = std::pin::pin!(large.room());
        assert!(poll!(&mut room).is_pending());
        drop(busy);
        // What is held is more than the limit all the time.
        assert!(poll!(&mut room).is_ready());
        drop(waiting);
    }

    #[tokio::test]
    async fn a_socket_that_waits_is_told_of_room_of_its_own_and_of_the_endpoints() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [one, other] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let (own, message) = (one.hold(4 << 20), one.hold(1));
        let mut room = std::pin::pin!(message.room());
        assert!(poll!(&mut room).is_pending());
        drop(own);
        room.await;

        let (own, others) = (one.hold(SHARE), other.hold(2 << 20));
        let mut room = std::pin::pin!(message.room());
        assert!(poll!(&mut room).is_pending());
        let mut shared = std::pin::pin!(one.shared_room());
        assert!(poll!(&mut shared).is_pending());
        drop(others);
        room.await;
        shared.await;
        let _others = other.hold(2 << 20);
        let mut room = std::pin::pin!(message.room());
        assert!(poll!(&mut room).is_pending());
        drop(own);
        assert!(room.now_or_never().is_some(), "it has its share");
    }

    proptest! {
        #[test]
        fn what_is_held_is_what_was_not_given_back(
            steps in prop::collection::vec((0..3usize, 0..3 * SHARE), 1..50),
        ) {
            let all = Arc::new(Inboxes::new(1 << 20));
            let inboxes = [(); 3].map(|()| Arc::new(Inbox::new(1 << 20, all.clone())));
            let mut held: Vec<(usize, Held)> = Vec::new();
            for (n, (socket, bytes)) in steps.into_iter().enumerate() {
                if n % 3 == 2 {
                    held.swap_remove(bytes % held.len());
                } else {
                    held.push((socket, inboxes[socket].hold(bytes)));
                }
                let of = |socket| {
                    let own = held.iter().filter(|(of, _)| *of == socket);
                    beyond_share(own.map(|(_, held)| held.bytes).sum::<usize>())
                };
                prop_assert_eq!(all.bytes(), (0..3).map(of).sum::<usize>());
            }
            drop(held);
            prop_assert_eq!(all.bytes(), 0);
        }
    }
}
