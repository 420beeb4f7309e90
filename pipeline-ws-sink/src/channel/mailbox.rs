//! The messages that wait for one channel.

#[cfg(test)]
mod schedules;

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use pipeline_core::{ExitReason, timed::Timeline};
use tokio::sync::Notify;

use super::handle::BoxedMessage;
use crate::{
    outbox::{CountedPush, Outbox},
    payload::Payload,
    protocol::{message::Encoded, reference::Ref},
    pubsub::broadcast::Broadcast,
    session::inbox::InboxBytes,
};

/// How many messages of each [kind](Kind) may wait for a channel. A channel that cannot handle its
/// broadcasts in time has fallen behind for good, and ends. The client's messages are bounded in
/// bytes, by the socket's [inbox](crate::session::inbox::Inbox).
const CAPACITY: u16 = 256;

/// How many bytes the waiting broadcasts of each kind may have. A single broadcast of any size may
/// wait.
const BYTES: usize = 16 << 20;

/// A channel's messages, handled one after the other. An empty mailbox takes no heap memory.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    /// Notified when there may be room again, and when the channel ends.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<ChannelMessage>,
    /// The number of waiting messages of each kind.
    counts: [u16; 3],
    /// The bytes of each kind.
    bytes: [usize; 3],
    closed: bool,
    overflowed: bool,
    /// Whether one of the messages is that the socket's end is near.
    has_warning: bool,
    /// Whether an operator has ended the channel.
    is_stopped: bool,
    /// The channel's task, while it waits for a message.
    receiver: Option<Waker>,
}

/// A message to a channel.
#[derive(Debug)]
pub(crate) enum ChannelMessage {
    /// The client sent an event.
    Event { reference: Ref, event: Box<str>, payload: Payload, held: InboxBytes },
    /// The client leaves.
    Leave { reference: Ref, held: InboxBytes },
    /// A broadcast that the channel intercepts.
    Intercepted(Intercepted),
    /// A broadcast on another topic that the channel has subscribed to.
    Foreign(Broadcast),
    /// The server's own tasks sent a message.
    Internal(BoxedMessage),
    /// The socket's end is near.
    Expiring,
    /// An operator ends the channel.
    Stop,
    /// The socket has ended.
    Close(ExitReason),
}

/// The kinds of the server's messages to a channel. Each kind has room of its own: broadcasts do
/// not wait, so senders that wait must not take their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Intercepted,
    Foreign,
    Internal,
}

impl ChannelMessage {
    /// The message's kind, if it is bounded by number. The client's messages are bounded by bytes.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Intercepted(_) => Some(Kind::Intercepted),
            Self::Foreign(_) => Some(Kind::Foreign),
            Self::Internal(_) => Some(Kind::Internal),
            Self::Event { .. }
            | Self::Leave { .. }
            | Self::Expiring
            | Self::Stop
            | Self::Close(_) => None,
        }
    }

    /// Counts it as lost to its channel, if it is a copy of a push.
    fn was_lost(&mut self) {
        if let Self::Intercepted(broadcast) = self {
            broadcast.copy.was_lost();
        }
    }

    /// The number of bytes that count towards [`BYTES`].
    fn bytes(&self) -> usize {
        match self {
            Self::Intercepted(broadcast) => broadcast.payload.bytes().len(),
            Self::Foreign(broadcast) => broadcast.payload().bytes().len(),
            Self::Event { .. }
            | Self::Leave { .. }
            | Self::Internal(_)
            | Self::Expiring
            | Self::Stop
            | Self::Close(_) => 0,
        }
    }
}

/// The room for broadcasts on the channel's own topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Usual,
    /// Twice as much, for senders that cannot wait, in case waiting senders fill the usual room.
    Twice,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The channel has ended.
    Closed,
    /// Too many messages are waiting.
    Full,
}

/// A broadcast on its way through a channel.
#[derive(Debug)]
pub(crate) struct Intercepted {
    pub(crate) event: Box<str>,
    pub(crate) payload: Payload,
    pub(crate) timeline: Option<Timeline>,
    /// The push that it is, if the outcome of that is wanted.
    pub(super) copy: InterceptedCopy,
}

impl Intercepted {
    /// A broadcast for a channel of this socket.
    pub(crate) fn new(broadcast: &Encoded, outbox: &Arc<Outbox>) -> Self {
        let (event, payload) = (broadcast.event().into(), broadcast.payload());
        let copy = InterceptedCopy(broadcast.push().map(|push| (push.clone(), outbox.clone())));
        Self { event, payload, timeline: broadcast.timeline().copied(), copy }
    }
}

/// A channel's copy of a push whose outcome is wanted, with the outbox of its socket.
#[derive(Default)]
pub(super) struct InterceptedCopy(Option<(Arc<CountedPush>, Arc<Outbox>)>);

impl InterceptedCopy {
    pub(super) fn push(&self) -> Option<&Arc<CountedPush>> {
        self.0.as_ref().map(|(push, _)| push)
    }

    /// Counts it as dropped.
    fn was_dropped(&mut self) {
        if let Some((push, _)) = self.0.take() {
            push.was_dropped();
        }
    }

    /// Counts it as dropped, because its channel will not handle it. Its client is still there and may join
    /// again, unless the socket has ended: then it is closed, as that of a socket is.
    fn was_lost(&mut self) {
        if let Some((push, outbox)) = self.0.take()
            && !outbox.has_ended()
        {
            push.was_dropped();
        }
    }
}

impl fmt::Debug for InterceptedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InterceptedCopy").field(&self.push()).finish()
    }
}

/// The copy that a channel is handling. It is lost if the channel ends meanwhile, as when it is replaced.
#[derive(Debug)]
pub(super) struct Handling(InterceptedCopy);

impl Handling {
    pub(super) fn new(copy: InterceptedCopy) -> Self {
        Self(copy)
    }

    /// The channel has handled it without an error.
    pub(super) fn succeeded(mut self) {
        if let Some((push, _)) = self.0.0.take() {
            push.was_intercepted();
        }
    }

    /// The channel has ended with it, on purpose or because its socket has ended.
    pub(super) fn ended(mut self) {
        self.0.0 = None;
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.was_lost();
    }
}

/// The channel's mailbox has overflowed.
#[derive(Debug)]
pub(super) struct Overflow {
    /// The number of broadcasts that are lost.
    pub(super) dropped: u64,
}

impl Mailbox {
    /// Delivers a client's message. A channel that has just ended does not read it; the client
    /// learns of that end.
    pub(crate) fn deliver(&self, message: ChannelMessage) {
        let mut state = self.state.lock();
        if !state.closed {
            state.put(message);
        }
    }

    /// Sends a message, waiting for room.
    pub(crate) async fn send(&self, mut message: ChannelMessage) -> Result<(), NotSent> {
        loop {
            // Registered before the check, so that no notification is missed.
            let room = self.room.notified();
            {
                let mut state = self.state.lock();
                if state.closed {
                    drop(state);
                    message.was_lost();
                    return Err(NotSent::Closed);
                }
                if state.has_room_for(&message, Room::Usual) {
                    state.put(message);
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Sends a message if there is room.
    pub(super) fn try_send(&self, mut message: ChannelMessage) -> Result<(), NotSent> {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            message.was_lost();
            return Err(NotSent::Closed);
        }
        if !state.has_room_for(&message, Room::Usual) {
            return Err(NotSent::Full);
        }
        state.put(message);
        Ok(())
    }

    /// Sends the last message, even if there is no room.
    pub(crate) fn close(&self, reason: ExitReason) {
        let mut state = self.state.lock();
        if !state.closed {
            state.put(ChannelMessage::Close(reason));
        }
    }

    /// Ends the channel behind its waiting messages, unless that waits already.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        if !state.closed && !state.is_stopped {
            state.is_stopped = true;
            state.put(ChannelMessage::Stop);
        }
    }

    /// Warns the channel that the socket's end is near, unless that waits already.
    pub(crate) fn warn_of_end(&self) {
        let mut state = self.state.lock();
        if !state.closed && !state.has_warning {
            state.has_warning = true;
            state.put(ChannelMessage::Expiring);
        }
    }

    /// If the last message has been sent, drops the messages before it, so that it is the next.
    /// Returns the number of dropped messages.
    pub(crate) fn drop_pending(&self) -> usize {
        let mut state = self.state.lock();
        let Some(at) =
            state.messages.iter().position(|message| matches!(message, ChannelMessage::Close(_)))
        else {
            return 0;
        };
        let last = state.messages.split_off(at);
        let dropped = std::mem::take(&mut state.messages);
        (state.counts, state.bytes, state.has_warning) = Default::default();
        last.into_iter().for_each(|message| state.put(message));
        drop(state);
        dropped.len()
    }

    /// Sends a broadcast on the channel's own topic.
    pub(crate) fn intercepted(&self, broadcast: Intercepted, room: Room) {
        self.broadcast(ChannelMessage::Intercepted(broadcast), room);
    }

    /// Sends a broadcast on the channel's own topic, if there is room.
    pub(crate) fn offer(&self, broadcast: Intercepted) -> Result<(), NotSent> {
        match self.try_send(ChannelMessage::Intercepted(broadcast)) {
            Err(NotSent::Full) => Err(NotSent::Full),
            Ok(()) | Err(NotSent::Closed) => Ok(()),
        }
    }

    /// Sends a broadcast on another topic.
    pub(crate) fn foreign(&self, broadcast: Broadcast) {
        self.broadcast(ChannelMessage::Foreign(broadcast), Room::Usual);
    }

    /// Stores a broadcast without waiting: one slow channel must not delay the others.
    fn broadcast(&self, mut message: ChannelMessage, room: Room) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            message.was_lost();
            return;
        }
        if !state.overflowed && state.has_room_for(&message, room) {
            state.put(message);
            return;
        }
        if !state.overflowed {
            state.overflowed = true;
            if let Some(receiver) = state.receiver.take() {
                receiver.wake();
            }
        }
        drop(state);
        if let ChannelMessage::Intercepted(broadcast) = &mut message {
            broadcast.copy.was_dropped();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().messages.len()
    }

    /// Receives the next message.
    pub(super) async fn receive(&self) -> Result<ChannelMessage, Overflow> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.overflowed {
                let lost = |message: &&ChannelMessage| {
                    matches!(message, ChannelMessage::Intercepted(_) | ChannelMessage::Foreign(_))
                };
                let waiting = state.messages.iter().filter(lost).count();
                for message in &mut state.messages {
                    if let ChannelMessage::Intercepted(broadcast) = message {
                        broadcast.copy.was_dropped();
                    }
                }
                // Plus the one that found no room.
                return Poll::Ready(Err(Overflow { dropped: waiting as u64 + 1 }));
            }
            let Some(message) = state.messages.pop_front() else {
                state.messages = VecDeque::new();
                state.receiver = Some(cx.waker().clone());
                return Poll::Pending;
            };
            if matches!(message, ChannelMessage::Expiring) {
                state.has_warning = false;
            }
            if let Some(kind) = message.kind() {
                state.counts[kind as usize] -= 1;
                state.bytes[kind as usize] -= message.bytes();
                self.room.notify_waiters();
            }
            Poll::Ready(Ok(message))
        })
        .await
    }
}

impl State {
    /// Whether there is room for this message.
    fn has_room_for(&self, message: &ChannelMessage, room: Room) -> bool {
        let Some(kind) = message.kind() else { return true };
        let times = match room {
            Room::Usual => 1,
            Room::Twice => 2,
        };
        self.counts[kind as usize] < times * CAPACITY
            && self.bytes[kind as usize] < usize::from(times) * BYTES
    }

    fn put(&mut self, message: ChannelMessage) {
        if let Some(kind) = message.kind() {
            self.counts[kind as usize] += 1;
            self.bytes[kind as usize] += message.bytes();
        }
        self.messages.push_back(message);
        if let Some(receiver) = self.receiver.take() {
            receiver.wake();
        }
    }
}

/// The receiving end of a mailbox. Dropping it, when the channel ends for any reason, wakes all
/// waiting senders, and counts the pushes that still wait as lost.
#[derive(Debug)]
pub(super) struct MailboxReader(pub(super) Arc<Mailbox>);

impl Drop for MailboxReader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        let mut messages = std::mem::take(&mut state.messages);
        drop(state);
        self.0.room.notify_waiters();
        messages.iter_mut().for_each(ChannelMessage::was_lost);
    }
}

#[cfg(test)]
mod tests {
    use pipeline_core::telemetry::Telemetry;
    use pipeline_test_support::{PATIENCE, settle};
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        outbox::{OutboxLimits, Writer},
        payload::IntoPayload,
        session::end::SocketEnd,
        telemetry::SocketMetrics,
    };

    fn news(bytes: usize) -> Intercepted {
        let payload = json!({ "padding": "x".repeat(bytes) });
        let (event, payload) = ("news".into(), payload.into_payload().unwrap());
        Intercepted { event, payload, timeline: None, copy: InterceptedCopy::default() }
    }

    #[tokio::test]
    async fn waiting_broadcasts_are_bounded_by_number_and_bytes() {
        for (bytes, most) in [(10, usize::from(CAPACITY)), (1 << 20, 16)] {
            let mailbox = Mailbox::default();
            while mailbox.offer(news(bytes)).is_ok() {}
            assert_eq!(mailbox.len(), most);
            for _ in 0..most {
                mailbox.intercepted(news(bytes), Room::Twice);
            }
            assert_eq!(mailbox.len(), 2 * most);
            assert!(mailbox.receive().await.is_ok());
            mailbox.intercepted(news(bytes), Room::Twice);
            mailbox.intercepted(news(bytes), Room::Twice);
            assert!(mailbox.receive().await.is_err());
        }
    }

    #[tokio::test]
    async fn broadcasts_of_another_topic_have_room_of_their_own() {
        for (bytes, most) in [(10, usize::from(CAPACITY)), (1 << 20, 16)] {
            let mailbox = Mailbox::default();
            for _ in 0..2 * most {
                mailbox.intercepted(news(bytes), Room::Twice);
            }
            for n in 0..=most {
                assert!(!mailbox.state.lock().overflowed, "{n}");
                let payload = json!({ "padding": "x".repeat(bytes) });
                mailbox.foreign((&Encoded::new("elsewhere", "news", payload).unwrap()).into());
            }
            assert!(mailbox.receive().await.is_err());
        }
    }

    #[tokio::test]
    async fn a_channel_that_is_warned_of_many_ends_holds_one_warning() {
        let mailbox = Mailbox::default();
        (0..3).for_each(|_| mailbox.warn_of_end());
        assert_eq!(mailbox.len(), 1);
        assert!(matches!(mailbox.receive().await, Ok(ChannelMessage::Expiring)));
        mailbox.warn_of_end();
        mailbox.close(ExitReason::Shutdown);
        assert_eq!((mailbox.drop_pending(), mailbox.len()), (1, 1));
        mailbox.warn_of_end();
        assert_eq!(mailbox.len(), 2, "it is not taken for warned");
    }

    #[tokio::test]
    async fn waiting_task_messages_take_no_room_from_broadcasts() {
        let mailbox = Mailbox::default();
        while mailbox.try_send(ChannelMessage::Internal(Box::new(1))).is_ok() {}
        mailbox.intercepted(news(10), Room::Usual);
        mailbox.foreign((&Encoded::new("elsewhere", "news", json!({})).unwrap()).into());
        assert_eq!(mailbox.len(), usize::from(CAPACITY) + 2);
        assert!(mailbox.receive().await.is_ok());
        assert_eq!(mailbox.try_send(ChannelMessage::Internal(Box::new(1))), Ok(()));
    }

    #[tokio::test]
    async fn waiting_senders_are_notified_of_room_and_of_the_end() {
        let mailbox = Arc::new(Mailbox::default());
        let reader = MailboxReader(mailbox.clone());
        let message = || ChannelMessage::Internal(Box::new(1));
        while mailbox.try_send(message()).is_ok() {}
        let senders = [(); 3].map(|()| {
            let mailbox = mailbox.clone();
            tokio::spawn(async move { mailbox.send(ChannelMessage::Internal(Box::new(1))).await })
        });
        settle().await;
        let sent = || senders.iter().filter(|sender| sender.is_finished()).count();
        assert_eq!(sent(), 0);
        assert!(mailbox.receive().await.is_ok());
        settle().await;
        assert_eq!((sent(), mailbox.len()), (1, usize::from(CAPACITY)));
        drop(reader);
        let mut outcomes = Vec::new();
        for sender in senders {
            outcomes.push(timeout(PATIENCE, sender).await.unwrap().unwrap());
        }
        outcomes.sort_by_key(Result::is_ok);
        assert_eq!(outcomes, [Err(NotSent::Closed), Err(NotSent::Closed), Ok(())]);
    }

    #[tokio::test]
    async fn a_push_to_a_channel_that_has_ended_is_dropped_unless_its_socket_has_ended() {
        let metrics = Arc::new(SocketMetrics::register(&Telemetry::global()));
        let writer = Writer::Task(Box::pin(tokio::io::sink()));
        let limits = OutboxLimits { frames: 1, bytes: 1 };
        let outbox = Arc::new(Outbox::new(writer, limits, metrics));
        let mailbox = Arc::new(Mailbox::default());
        let pushed = || {
            let (push, outcome) = CountedPush::new();
            push.addressed(1);
            let news = Encoded::new("t", "news", json!({})).unwrap().counted(Some(push));
            (Intercepted::new(&news, &outbox), outcome)
        };
        let reader = MailboxReader(mailbox.clone());
        let (waiting, waited) = pushed();
        mailbox.intercepted(waiting, Room::Usual);
        drop(reader);
        assert_eq!(waited.await.dropped, 1);
        let mut dropped = Vec::new();
        for socket_has_ended in [false, true] {
            if socket_has_ended {
                outbox.end(SocketEnd::Lost);
            }
            let (news, outcome) = pushed();
            mailbox.intercepted(news, Room::Twice);
            dropped.push(outcome.await.dropped);
            let (news, outcome) = pushed();
            assert_eq!(mailbox.offer(news), Ok(()));
            dropped.push(outcome.await.dropped);
            let (news, outcome) = pushed();
            let sent = mailbox.send(ChannelMessage::Intercepted(news)).await;
            assert_eq!(sent, Err(NotSent::Closed));
            dropped.push(outcome.await.dropped);
        }
        assert_eq!(dropped, [1, 1, 1, 0, 0, 0]);
    }
}
