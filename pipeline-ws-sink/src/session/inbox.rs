//! The bytes that sockets have received and not handled yet, and their limits.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicIsize, AtomicUsize, Ordering::SeqCst},
    },
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The bytes that a socket may hold even when the endpoint's limit is reached: so a few clients
/// that fill the limit do not stop the others.
const SHARE: usize = 16 << 10;

/// The bytes of all sockets of an endpoint, beyond the [share](SHARE) of each.
#[derive(Debug)]
pub(crate) struct Inboxes {
    /// Below 0 for a moment, when one thread subtracts bytes that another is about to add.
    bytes: AtomicIsize,
    limit: usize,
    waiting: Mutex<Waiters>,
}

/// The tasks that wait for the total to fall. The bytes that a task holds itself do not count
/// against it, so each waits for a number of its own.
#[derive(Debug, Default)]
struct Waiters {
    /// By the number that the total has to fall below, and by the order of arrival.
    tasks: BTreeMap<(usize, u64), Waker>,
    /// The number of tasks that have ever waited.
    count: u64,
}

/// A waiting task.
struct Waiter<'a> {
    all: &'a Inboxes,
    key: (usize, u64),
}

/// The bytes that one socket has received and not handled: messages that wait for their channel or
/// are being handled, and incomplete messages.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: AtomicUsize,
    limit: usize,
    /// Notified when there is room again.
    room: Notify,
    all: Arc<Inboxes>,
}

/// Bytes that count for a socket until this is dropped.
#[derive(Debug)]
pub(crate) struct InboxBytes {
    inbox: Arc<Inbox>,
    bytes: usize,
}

impl Inboxes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: AtomicIsize::new(0), limit, waiting: Mutex::default() }
    }

    /// The bytes of all sockets, beyond the share of each.
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

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            let before = self.bytes.fetch_sub(signed(bytes), SeqCst);
            // Below the limit, no task waits.
            if before >= signed(self.limit) {
                self.wake(before.saturating_sub_unsigned(bytes));
            }
        }
    }

    /// Wakes the tasks that wait for a total of no more than this.
    fn wake(&self, bytes: isize) {
        let enough = usize::try_from(bytes).unwrap_or(0).saturating_add(1);
        let ready = self.waiting.lock().tasks.split_off(&(enough, 0));
        ready.into_values().for_each(Waker::wake);
    }

    /// A waiter for a task that waits until the total is less than this.
    fn waiter(&self, less_than: usize) -> Waiter<'_> {
        let mut waiting = self.waiting.lock();
        waiting.count += 1;
        Waiter { all: self, key: (less_than, waiting.count) }
    }
}

impl Waiter<'_> {
    /// Registers this task to be woken once.
    fn wait(&self, task: &Waker) {
        let task = task.clone();
        let before = self.all.waiting.lock().tasks.insert(self.key, task);
        drop(before);
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let task = self.all.waiting.lock().tasks.remove(&self.key);
        drop(task);
    }
}

impl Inbox {
    /// An empty inbox. An empty inbox always accepts a message of any size.
    pub(crate) fn new(limit: usize, all: Arc<Inboxes>) -> Self {
        Self { bytes: AtomicUsize::new(0), limit: limit.max(1), room: Notify::new(), all }
    }

    /// Counts this number of bytes, whether there is room or not.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> InboxBytes {
        let mut held = InboxBytes { inbox: self.clone(), bytes: 0 };
        held.resize(bytes);
        held
    }

    /// Whether there is room for a message of this size, which is already counted: the socket's
    /// other bytes are below its limit, and either all other bytes of the endpoint are below the
    /// endpoint's limit, or this socket is within its share.
    fn has_room_for(&self, bytes: usize) -> bool {
        let besides = self.bytes.load(SeqCst).saturating_sub(bytes);
        besides < self.limit && self.has_shared_room_for(bytes)
    }

    /// Like [`has_room_for`](Self::has_room_for), without the socket's own limit.
    fn has_shared_room_for(&self, bytes: usize) -> bool {
        let all = self.bytes.load(SeqCst);
        let besides = all.saturating_sub(bytes);
        let shared = beyond_share(all) - beyond_share(besides);
        all <= SHARE || self.all.bytes().saturating_sub(shared) < self.all.limit
    }

    fn is_crowded_out(&self, bytes: usize) -> bool {
        bytes > SHARE && self.all.is_full()
    }

    /// Whether the endpoint is below its limit, or this socket within its share.
    pub(crate) fn has_shared_room(&self) -> bool {
        !self.is_crowded_out(self.bytes.load(SeqCst))
    }

    /// Waits until the endpoint is below its limit, or this socket within its share.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn shared_room(&self) {
        self.until(0, || self.has_shared_room()).await;
    }

    /// Waits until the condition holds. `bytes` are the task's own, which do not count against it.
    async fn until(&self, bytes: usize, is_so: impl Fn() -> bool) {
        // The usual case.
        if is_so() {
            return;
        }
        let waiter = self.all.waiter(self.all.limit.saturating_add(bytes));
        loop {
            let mut own = pin!(self.room.notified());
            let is_there = poll_fn(|cx| {
                // Registered before the check, so that no release in between is missed.
                waiter.wait(cx.waker());
                let notified = own.as_mut().poll(cx).is_ready();
                if is_so() {
                    return Poll::Ready(true);
                }
                if notified { Poll::Ready(false) } else { Poll::Pending }
            });
            if is_there.await {
                return;
            }
        }
    }

    fn release(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, SeqCst);
        let after = before - bytes;
        self.all.release(beyond_share(before) - beyond_share(after));
        // A task that waits for room has other bytes besides the message at hand.
        if before > SHARE || before >= self.limit {
            self.room.notify_waiters();
        }
    }
}

impl InboxBytes {
    /// The number of bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is room for these bytes, next to all other bytes of the socket and the
    /// endpoint.
    pub(crate) fn has_room(&self) -> bool {
        self.inbox.has_room_for(self.bytes)
    }

    /// Waits until there is room for these bytes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn room(&self) {
        self.inbox.until(self.bytes, || self.has_room()).await;
    }

    /// Waits until the endpoint has room for these bytes, regardless of this socket's limit.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn shared_room(&self) {
        self.inbox.until(self.bytes, || self.inbox.has_shared_room_for(self.bytes)).await;
    }

    /// Whether the socket holds twice its limit besides these bytes.
    pub(crate) fn overflow(&self) -> bool {
        let besides = self.inbox.bytes.load(SeqCst).saturating_sub(self.bytes);
        besides >= self.inbox.limit.saturating_mul(2)
    }

    /// Replaces the number of bytes that count.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let inbox = &self.inbox;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let before = inbox.bytes.fetch_add(more, SeqCst);
            inbox.all.add(beyond_share(before + more) - beyond_share(before));
        } else if bytes < self.bytes {
            inbox.release(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for InboxBytes {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// Converts to a signed number, saturating; no allocation is that large.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

fn beyond_share(bytes: usize) -> usize {
    bytes.saturating_sub(SHARE)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicBool,
        task::{Context, Wake},
    };

    use futures::{FutureExt, poll};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_inbox_accepts_any_size_and_a_full_one_nothing() {
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
    fn a_socket_keeps_its_share_when_others_fill_the_endpoint() {
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
    fn a_message_larger_than_the_share_has_no_room_in_a_full_endpoint() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [greedy, other] = [(); 2].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let held = greedy.hold((1 << 20) + SHARE);
        let large = other.hold(1 << 20);
        assert!(!large.has_room(), "although the socket was empty before");
        drop(held);
        assert!(large.has_room(), "no other bytes are held");
    }

    #[test]
    fn bytes_released_before_they_are_added_cause_no_wait() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let inbox = Arc::new(Inbox::new(4 << 20, all.clone()));
        let held = inbox.hold(2 * SHARE);
        // Another thread releases a part of the bytes that this one is about to add.
        all.release(2 * SHARE);
        assert_eq!(all.bytes(), 0);
        assert!(inbox.has_shared_room() && held.has_room());
        all.add(2 * SHARE);
        assert_eq!(all.bytes(), SHARE);
    }

    #[tokio::test]
    async fn a_waiting_message_of_any_size_is_notified_of_room() {
        let all = Arc::new(Inboxes::new(1 << 30));
        let inbox = Arc::new(Inbox::new(1 << 20, all));
        let (busy, waiting) = (inbox.hold(1 << 20), inbox.hold(1));
        let large = inbox.hold(3 << 20);
        let mut room = std::pin::pin!(large.room());
        assert!(poll!(&mut room).is_pending());
        drop(busy);
        // The total stays above the limit all the time.
        assert!(poll!(&mut room).is_ready());
        drop(waiting);
    }

    #[tokio::test]
    async fn a_waiting_socket_is_notified_of_its_own_room_and_the_endpoints() {
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
        assert!(room.now_or_never().is_some(), "the socket has its share");
    }

    #[tokio::test]
    async fn a_large_message_is_notified_of_room_although_it_exceeds_the_limit_itself() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [poller, other, third] = [(); 3].map(|()| Arc::new(Inbox::new(4 << 20, all.clone())));
        let (_stays, goes) = (other.hold(700 << 10), third.hold(600 << 10));
        let body = poller.hold(600 << 10);
        let (mut room, mut shared) = (pin!(body.room()), pin!(body.shared_room()));
        assert!(poll!(&mut room).is_pending() && poll!(&mut shared).is_pending());
        let gone = body.room().now_or_never();
        assert_eq!((gone, all.waiting.lock().tasks.len()), (None, 2), "one task no longer waits");
        drop(goes);
        assert!(all.is_full(), "because of the message itself");
        assert_eq!(all.waiting.lock().tasks.len(), 0);
        assert!(poll!(&mut room).is_ready() && poll!(&mut shared).is_ready());
    }

    #[tokio::test]
    async fn tasks_for_which_there_is_no_room_yet_are_not_woken() {
        let all = Arc::new(Inboxes::new(1 << 20));
        let [busy, one, other] = [(); 3].map(|()| Arc::new(Inbox::new(8 << 20, all.clone())));
        let mut held = busy.hold(3 << 20);
        let (small, large) = (one.hold(SHARE + 1), other.hold(1 << 20));
        let (mut few, mut many) = (pin!(small.room()), pin!(large.room()));
        assert!(poll!(&mut few).is_pending() && poll!(&mut many).is_pending());
        for (holds, waiting) in [(2 << 20, 2), (1 << 20, 1), (1, 0)] {
            held.resize(holds);
            assert_eq!(all.waiting.lock().tasks.len(), waiting, "{holds}");
        }
    }

    /// Records that a task was woken.
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    proptest! {
        #[test]
        fn a_message_with_room_is_notified_in_any_order_of_changes(
            sizes in prop::collection::vec(1..3 * SHARE, 3),
            steps in prop::collection::vec((0..3usize, 0..3 * SHARE), 1..50),
        ) {
            let all = Arc::new(Inboxes::new(4 * SHARE));
            let inboxes = [(); 3].map(|()| Arc::new(Inbox::new(4 * SHARE, all.clone())));
            let mut held: Vec<_> = inboxes.iter().map(|inbox| inbox.hold(5 * SHARE)).collect();
            let messages: Vec<_> =
                inboxes.iter().zip(sizes).map(|(inbox, bytes)| inbox.hold(bytes)).collect();
            let mut waiting: Vec<_> = messages
                .iter()
                .map(|message| (message, message.room().boxed(), Arc::new(Woken(true.into()))))
                .collect();
            for (n, (socket, bytes)) in steps.into_iter().enumerate() {
                waiting.retain_mut(|(_, room, woken)| {
                    let waker = woken.clone().into();
                    let was_woken = woken.0.swap(false, SeqCst);
                    !(was_woken && room.as_mut().poll(&mut Context::from_waker(&waker)).is_ready())
                });
                if n % 3 == 0 {
                    held.push(inboxes[socket].hold(bytes));
                } else if !held.is_empty() {
                    held.swap_remove(bytes % held.len());
                }
                for (message, _, woken) in &waiting {
                    prop_assert!(!message.has_room() || woken.0.load(SeqCst));
                }
            }
        }

        #[test]
        fn held_bytes_are_those_not_released(
            steps in prop::collection::vec((0..3usize, 0..3 * SHARE), 1..50),
        ) {
            let all = Arc::new(Inboxes::new(1 << 20));
            let inboxes = [(); 3].map(|()| Arc::new(Inbox::new(1 << 20, all.clone())));
            let mut held: Vec<(usize, InboxBytes)> = Vec::new();
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
