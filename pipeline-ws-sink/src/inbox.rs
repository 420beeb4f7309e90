//! What sockets have received and not handled yet, in bytes, and how much of it there may be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// What a socket may hold even when the endpoint's sockets together hold too much, in bytes: so a few
/// clients that fill the endpoint's limit do not stop the others.
const SHARE: usize = 16 << 10;

/// What all sockets of an endpoint hold, beyond the [share](SHARE) of each.
#[derive(Debug)]
pub(crate) struct Inboxes {
    bytes: AtomicUsize,
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
        Self { bytes: AtomicUsize::new(0), limit, room: Notify::new() }
    }

    /// How much the sockets hold, beyond the share of each.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(SeqCst)
    }

    fn is_full(&self) -> bool {
        self.bytes() >= self.limit
    }

    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes, SeqCst);
        }
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let before = self.bytes.fetch_sub(bytes, SeqCst);
            if before >= self.limit && before - bytes < self.limit {
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

    /// Whether nothing more should be received: the socket holds as much as it may, or all sockets of the
    /// endpoint do and this one has had its share.
    pub(crate) fn is_full(&self) -> bool {
        let bytes = self.bytes.load(SeqCst);
        bytes >= self.limit || self.is_crowded_out(bytes)
    }

    fn is_crowded_out(&self, bytes: usize) -> bool {
        bytes > SHARE && self.all.is_full()
    }

    /// Whether it holds twice as much as it may.
    pub(crate) fn overflows(&self) -> bool {
        self.bytes.load(SeqCst) >= self.limit.saturating_mul(2)
    }

    /// Waits until there is room.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        self.until(|| !self.is_full()).await;
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
        let has_room_now = before >= self.limit && after < self.limit;
        if has_room_now || (before > SHARE && after <= SHARE) {
            self.room.notify_waiters();
        }
    }
}

impl Held {
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
        assert!(!inbox.is_full());
        let large = inbox.hold(1000);
        assert!(inbox.is_full() && inbox.overflows());
        drop(large);
        let small = inbox.hold(99);
        assert!(!inbox.is_full());
        let one = inbox.hold(1);
        assert!(inbox.is_full() && !inbox.overflows());
        drop((small, one));
        assert!(!inbox.is_full());
    }

    #[test]
    fn a_socket_has_its_share_when_others_hold_all_that_the_endpoint_may() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [greedy, calm] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let held = greedy.hold((1 << 20) + SHARE);
        assert_eq!(all.bytes(), 1 << 20);
        assert!(greedy.is_full());
        let share = calm.hold(SHARE);
        assert!(!calm.is_full());
        let more = calm.hold(1);
        assert!(calm.is_full());
        drop(held);
        assert!(!calm.is_full());
        drop((share, more));
        assert_eq!(all.bytes(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_waits_is_told_of_room_of_its_own_and_of_the_endpoints() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [one, other] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let own = one.hold(4 << 20);
        let mut room = std::pin::pin!(one.room());
        assert!(poll!(&mut room).is_pending());
        drop(own);
        room.await;

        let (own, others) = (one.hold(SHARE + 1), other.hold(2 << 20));
        let mut room = std::pin::pin!(one.room());
        assert!(poll!(&mut room).is_pending());
        drop(others);
        room.await;
        let _others = other.hold(2 << 20);
        let mut room = std::pin::pin!(one.room());
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
