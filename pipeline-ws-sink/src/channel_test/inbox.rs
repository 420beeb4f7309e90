//! The messages that all sockets and subscribers of a test have received, and the state of its
//! channels.

use std::{
    any::TypeId,
    collections::{HashMap, VecDeque},
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use pipeline_core::ExitReason;
use tokio::sync::watch;

use super::message::TestMessage;
use crate::{
    channel::{Channel, ChannelHandle, Join, Mailbox},
    protocol::reference::Ref,
};

/// How many messages may wait for assertions. Further messages are lost, and then the next
/// assertion fails.
const CAPACITY: usize = 10_000;

/// How many messages a failed assertion lists.
const LISTED: usize = 100;

/// The messages that all sockets and subscribers of a test have received, and the state of its
/// channels.
#[derive(Debug)]
pub(crate) struct TestInbox {
    state: watch::Sender<State>,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<TestMessage>,
    /// How many messages were lost for lack of room.
    lost: u64,
    channels: HashMap<ChannelKey, ChannelStatus>,
    /// The sockets that are closed, with the codes of their close frames.
    closed: HashMap<u64, Option<u16>>,
}

/// One join of a topic on a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChannelKey {
    pub(super) socket: u64,
    pub(super) topic: Arc<str>,
    pub(super) join_ref: Ref,
}

/// The state of a channel.
#[derive(Clone, Debug, Default)]
struct ChannelStatus {
    /// Whether a crash fails the test.
    linked: bool,
    /// The reason of its end, once it ends.
    reason: Option<ExitReason>,
    /// Whether it has ended.
    over: bool,
    /// Its type and its mailbox.
    mailbox: Option<(TypeId, Arc<Mailbox>)>,
}

impl TestInbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::default(), numbers: AtomicU64::new(1) })
    }

    /// A number for a recipient.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn put(&self, messages: impl IntoIterator<Item = TestMessage>) {
        self.state.send_modify(|state| {
            for message in messages {
                if state.messages.len() < CAPACITY {
                    state.messages.push_back(message);
                } else {
                    state.lost += 1;
                }
            }
        });
    }

    pub(super) fn lose(&self, count: u64) {
        self.state.send_modify(|state| state.lost += count);
    }

    /// Takes the first message that matches.
    pub(super) fn take<T>(&self, mut wanted: impl FnMut(&TestMessage) -> Option<T>) -> Option<T> {
        let mut taken = None;
        self.state.send_if_modified(|state| {
            let found = state
                .messages
                .iter()
                .enumerate()
                .find_map(|(at, message)| Some((at, wanted(message)?)));
            if let Some((at, value)) = found {
                state.messages.remove(at);
                taken = Some(value);
            }
            false
        });
        taken
    }

    /// The problem that fails the next assertion: an unexpected crash of a channel, or lost
    /// messages.
    pub(super) fn check(&self) -> Result<(), String> {
        let state = self.state.borrow();
        if state.lost > 0 {
            return Err(format!("{} messages are lost: too many were waiting", state.lost));
        }
        let crashed = state.channels.iter().find_map(|(key, status)| {
            let reason = status.reason.as_ref().filter(|reason| is_crash(reason))?;
            status.linked.then(|| format!("the channel on {} crashed: {reason}", key.topic))
        });
        crashed.map_or(Ok(()), Err)
    }

    /// All waiting messages, a line for each.
    pub(super) fn listing(&self) -> String {
        let state = self.state.borrow();
        let mut listing = String::new();
        for (key, status) in &state.channels {
            if let Some(reason) = &status.reason {
                let _ = writeln!(listing, "the channel on {} has ended: {reason}", key.topic);
            }
        }
        if state.messages.is_empty() {
            listing.push_str("the mailbox is empty");
            return listing;
        }
        listing.push_str("in the mailbox:");
        for message in state.messages.iter().take(LISTED) {
            let _ = write!(listing, "\n  {message}");
        }
        if let Some(more @ 1..) = state.messages.len().checked_sub(LISTED) {
            let _ = write!(listing, "\n  and {more} more");
        }
        listing
    }

    /// Watches for changes.
    pub(super) fn watch(&self) -> ChangeWatcher {
        ChangeWatcher(self.state.subscribe())
    }

    /// Registers a channel that is about to be joined.
    pub(super) fn follow(&self, key: ChannelKey) {
        self.state.send_modify(|state| drop(state.channels.insert(key, ChannelStatus::default())));
    }

    /// Sets whether a crash of the channel fails the test.
    pub(super) fn link(&self, key: &ChannelKey, linked: bool) {
        self.change(key, |status| status.linked = linked);
    }

    /// Removes a channel, and returns the reason of its crash, if it crashed.
    pub(super) fn forget(&self, key: &ChannelKey) -> Option<ExitReason> {
        let mut reason = None;
        self.state.send_modify(|state| {
            reason = state.channels.remove(key).and_then(|status| status.reason).filter(is_crash);
        });
        reason
    }

    /// The reason of the channel's end, once it has ended.
    pub(super) fn end_of(&self, key: &ChannelKey) -> Option<ExitReason> {
        let state = self.state.borrow();
        let status = state.channels.get(key)?;
        status.reason.clone().filter(|_| status.over)
    }

    /// A handle of the channel, if it is of this kind.
    pub(super) fn handle<C: Channel>(&self, key: &ChannelKey) -> Option<ChannelHandle<C>> {
        let state = self.state.borrow();
        let (kind, mailbox) = state.channels.get(key)?.mailbox.as_ref()?;
        (*kind == TypeId::of::<C>()).then(|| ChannelHandle::new(mailbox.clone()))
    }

    fn change(&self, key: &ChannelKey, change: impl FnOnce(&mut ChannelStatus)) {
        self.state.send_if_modified(|state| {
            let status = state.channels.get_mut(key);
            status.map(change).is_some()
        });
    }

    /// Records that a socket is closed, with this code.
    pub(super) fn closed(&self, socket: u64, code: Option<u16>) {
        self.state.send_modify(|state| {
            state.closed.entry(socket).or_insert(code);
        });
    }

    /// The close code of a socket, if it is closed.
    pub(super) fn close_code(&self, socket: u64) -> Option<Option<u16>> {
        self.state.borrow().closed.get(&socket).copied()
    }
}

/// A channel that is replaced, or that does not end in time, is killed, which is not a crash.
fn is_crash(reason: &ExitReason) -> bool {
    !reason.is_graceful() && !matches!(reason, ExitReason::Killed)
}

/// Waits for changes of the state.
pub(super) struct ChangeWatcher(watch::Receiver<State>);

impl ChangeWatcher {
    /// Waits for a change since the last call, or since the watching began.
    pub(super) async fn changed(&mut self) {
        // The sender lives as long as the test.
        let _ = self.0.changed().await;
    }
}

/// Reports the ends of a socket's channels to the test.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(super) inbox: Arc<TestInbox>,
    pub(super) socket: u64,
}

impl Probe {
    /// Called when a channel's task begins. Drop the returned value when everything else of the
    /// task is gone.
    pub(crate) fn started<C: Channel>(&self, join: &Join<C::Socket>) -> Box<ProbeGuard> {
        let join_ref = join.join_ref.or(&join.reference);
        let key = self.key(join.topic.shared(), &join_ref);
        let mailbox = (TypeId::of::<C>(), join.mailbox.clone());
        self.inbox.change(&key, |status| status.mailbox = Some(mailbox));
        // Boxed, so that channels outside of tests are not larger.
        Box::new(ProbeGuard { inbox: self.inbox.clone(), key })
    }

    /// Called when a channel ends, with the reason.
    pub(crate) fn ended(&self, topic: &Arc<str>, join_ref: &Ref, reason: &ExitReason) {
        let key = self.key(topic, join_ref);
        self.inbox.change(&key, |status| status.reason = Some(reason.clone()));
    }

    fn key(&self, topic: &Arc<str>, join_ref: &Ref) -> ChannelKey {
        ChannelKey { socket: self.socket, topic: topic.clone(), join_ref: join_ref.clone() }
    }
}

/// Guards a channel's task, and records its end.
#[derive(Debug)]
pub(crate) struct ProbeGuard {
    inbox: Arc<TestInbox>,
    key: ChannelKey,
}

impl Drop for ProbeGuard {
    fn drop(&mut self) {
        self.inbox.change(&self.key, |status| {
            status.over = true;
            status.reason.get_or_insert(ExitReason::Killed);
            status.mailbox = None;
        });
    }
}
