//! What became of a push: how many sockets it was written to.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use pipeline_core::Deadline;
use tokio::sync::oneshot;

use crate::protocol::frame::Frame;

/// A push whose outcome is wanted. Its frames share it, and so do the channels that intercept it:
/// when the last of them is dropped, the outcome is known.
///
/// So no copy of a push can be forgotten, whatever happens to its socket: a copy that has neither
/// been written nor dropped by the policy has ended with its socket.
#[derive(Debug)]
pub(crate) struct CountedPush {
    tally: Arc<Tally>,
    /// Dropped with the push, which completes its outcome.
    _open: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Tally {
    /// The sockets that had joined, and the channels that intercept it.
    addressed: AtomicUsize,
    written: AtomicUsize,
    dropped: AtomicUsize,
    intercepted: AtomicUsize,
    unsupported: AtomicUsize,
    elsewhere: AtomicBool,
}

impl CountedPush {
    /// A push without copies yet, and its outcome.
    pub(crate) fn new() -> (Arc<Self>, PushOutcome) {
        let (tally, (open, closed)) = (Arc::<Tally>::default(), oneshot::channel());
        let outcome = PushOutcome { tally: tally.clone(), closed };
        (Arc::new(Self { tally, _open: open }), outcome)
    }

    /// Counts receivers of the push: sockets, and channels that intercept it. What these push to their
    /// clients is for one more.
    pub(crate) fn addressed(&self, receivers: usize) {
        self.tally.addressed.fetch_add(receivers, Relaxed);
    }

    /// Counts a socket that the push was for, and whose transport cannot carry it.
    fn was_unsupported(&self) {
        self.tally.addressed.fetch_sub(1, Relaxed);
        self.unsupported(1);
    }

    /// Counts a copy that a channel has intercepted and handled without an error.
    pub(crate) fn was_intercepted(&self) {
        self.tally.intercepted.fetch_add(1, Relaxed);
    }

    /// Counts clients that cannot receive it.
    pub(crate) fn unsupported(&self, clients: usize) {
        self.tally.unsupported.fetch_add(clients, Relaxed);
    }

    /// Other nodes may have sockets for it.
    pub(crate) fn goes_elsewhere(&self) {
        self.tally.elsewhere.store(true, Relaxed);
    }

    /// Counts a copy whose last byte was written.
    pub(crate) fn was_written(&self) {
        self.tally.written.fetch_add(1, Relaxed);
    }

    /// Counts a copy that was dropped by the policy of its socket's outbox, or by a channel that
    /// intercepts.
    pub(crate) fn was_dropped(&self) {
        self.tally.dropped.fetch_add(1, Relaxed);
    }
}

/// The outcome of a push, once it is known: a future of [`Delivered`].
///
/// Made by [`PubSub::deliver`](crate::PubSub::deliver), where there is an example. It completes when
/// no socket holds the push any more: when each has taken it, dropped it or ended. A client that reads
/// nothing ends by the limits of its [`Mount`](crate::Mount), such as the timeout of its heartbeat;
/// [`within`](Self::within) waits for less.
///
/// It holds no frame, only numbers. Dropping it changes nothing for the push.
///
/// # Cancel safety
///
/// Cancel safe: `&mut outcome` can be awaited again.
pub struct PushOutcome {
    tally: Arc<Tally>,
    closed: oneshot::Receiver<()>,
}

/// What became of a push on this node: each socket that had joined its topic is counted once, and so is each
/// channel that intercepts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// The sockets that have taken it: the operating system, or the answer to a long poll, has its
    /// last byte.
    pub written: usize,
    /// The sockets whose outbox dropped it, because it was full and
    /// [`Mount::when_full`](crate::Mount::when_full) said so; and the
    /// [intercepting](crate::Channel::INTERCEPT) channels that crashed in
    /// [`handle_out`](crate::Channel::handle_out), had too many broadcasts waiting, or ended before they
    /// had handled it although their socket is there: they crashed for another reason, were left, or were
    /// replaced when their client joined again.
    pub dropped: usize,
    /// The sockets that ended before they had taken it, and the intercepting channels whose sockets ended
    /// before they had handled it, or which stopped in [`handle_out`](crate::Channel::handle_out) on
    /// purpose. Those that are closed because they are too slow are among them.
    pub closed: usize,
    /// The sockets whose outcome was not known in time. Always 0 for a push that was awaited to the
    /// end.
    pub pending: usize,
    /// The channels that [intercepted](crate::Channel::INTERCEPT) it and whose
    /// [`handle_out`](crate::Channel::handle_out) has returned without an error. What they pushed to
    /// their clients meanwhile is counted as a socket of its own.
    pub intercepted: usize,
    /// The clients whose protocol or transport cannot carry it: bytes, in version 1 of the protocol
    /// or by long polling.
    pub unsupported: usize,
    /// Whether sockets of other nodes may have joined its topic, which are not counted.
    pub elsewhere: bool,
}

impl Delivered {
    /// Whether it has reached no client, and will not: there was none, or all have ended before.
    ///
    /// Tasks and channels of other topics that have subscribed do not count as clients. It is `false`
    /// if other nodes may have clients: see
    /// [`PubSub::has_subscribers`](crate::PubSub::has_subscribers).
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        let Self { written, dropped, closed: _, pending, intercepted, unsupported: _, elsewhere } =
            *self;
        written == 0 && dropped == 0 && pending == 0 && intercepted == 0 && !elsewhere
    }

    /// Whether every socket that had joined has taken it or has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.dropped == 0 && self.pending == 0
    }
}

impl PushOutcome {
    /// Waits for the outcome, for this time at most. Then the sockets whose outcome is not known are
    /// [`pending`](Delivered::pending).
    pub async fn within(mut self, limit: Duration) -> Delivered {
        match Deadline::from_now(limit).limit(&mut self).await {
            Ok(delivered) => delivered,
            Err(_) => self.so_far(),
        }
    }

    /// What is known by now. A socket that has ended without the push is
    /// [`pending`](Delivered::pending) until the others are known.
    #[must_use]
    pub fn so_far(&self) -> Delivered {
        let delivered = self.tally.read();
        Delivered { pending: delivered.closed, closed: 0, ..delivered }
    }
}

impl Future for PushOutcome {
    type Output = Delivered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Delivered> {
        Pin::new(&mut self.closed).poll(cx).map(|_| self.tally.read())
    }
}

impl fmt::Debug for PushOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PushOutcome").field(&self.so_far()).finish()
    }
}

impl Tally {
    /// The outcome, if no copy is on its way.
    fn read(&self) -> Delivered {
        let load = |count: &AtomicUsize| count.load(Relaxed);
        let (written, dropped) = (load(&self.written), load(&self.dropped));
        let intercepted = load(&self.intercepted);
        let known = written.saturating_add(dropped).saturating_add(intercepted);
        Delivered {
            written,
            dropped,
            closed: load(&self.addressed).saturating_sub(known),
            pending: 0,
            intercepted,
            unsupported: load(&self.unsupported),
            elsewhere: self.elsewhere.load(Relaxed),
        }
    }
}

/// The frames that a long-polling client has fetched, on their way into an answer.
#[derive(Default)]
pub(crate) struct FetchedFrames {
    pub(super) frames: Vec<Frame>,
    /// The pushes among them whose outcome is wanted.
    pub(super) counted: Vec<Copy>,
}

/// A copy of a push, and whether it is text.
pub(super) struct Copy {
    pub(super) push: Arc<CountedPush>,
    pub(super) is_text: bool,
}

impl Deref for FetchedFrames {
    type Target = [Frame];

    fn deref(&self) -> &[Frame] {
        &self.frames
    }
}

impl FetchedFrames {
    /// Records that they have been passed to a client of any kind.
    #[cfg(feature = "test-kit")]
    pub(crate) fn were_written(&mut self) {
        self.counted.drain(..).for_each(|copy| copy.push.was_written());
    }

    /// Records that those that are text are in an answer, which cannot carry the others.
    pub(crate) fn were_answered(&mut self) {
        for Copy { push, is_text } in self.counted.drain(..) {
            if is_text { push.was_written() } else { push.was_unsupported() }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};

    use super::*;

    #[tokio::test]
    async fn an_outcome_is_known_when_the_last_copy_is_gone() {
        let (push, mut outcome) = CountedPush::new();
        push.addressed(5);
        let copy = push.clone();
        drop(push);
        copy.was_written();
        copy.was_dropped();
        assert!(poll!(&mut outcome).is_pending());
        let so_far = Delivered { written: 1, dropped: 1, pending: 3, ..Delivered::default() };
        assert_eq!(outcome.so_far(), so_far);
        drop(copy);
        let end = Delivered { written: 1, dropped: 1, closed: 3, ..Delivered::default() };
        assert_eq!(outcome.now_or_never(), Some(end));
    }

    #[test]
    fn only_a_push_that_reaches_no_client_of_any_node_is_unheard() {
        let none = Delivered::default();
        assert!(none.is_unheard());
        assert!(Delivered { closed: 3, unsupported: 1, ..none }.is_unheard());
        for heard in [
            Delivered { written: 1, ..none },
            Delivered { dropped: 1, ..none },
            Delivered { pending: 1, ..none },
            Delivered { intercepted: 1, ..none },
            Delivered { elsewhere: true, ..none },
        ] {
            assert!(!heard.is_unheard(), "{heard:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_that_is_held_for_long_is_waited_for_no_longer_than_wanted() {
        let (push, outcome) = CountedPush::new();
        push.addressed(2);
        push.was_written();
        let delivered = outcome.within(Duration::from_secs(5)).await;
        assert_eq!(delivered, Delivered { written: 1, pending: 1, ..Delivered::default() });
        assert!(!delivered.is_complete());
        drop(push);
    }
}
