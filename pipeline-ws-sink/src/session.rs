//! One client: its channels, and the way from its messages to them. It knows no transport.

mod limits;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{Deadline, ExitReason};
use serde_json::json;
use tokio::{
    task::{JoinHandle, coop::consume_budget},
    time::{self, Instant},
};
use tracing::Instrument;

use self::limits::{Excess, Spent};
pub(crate) use self::limits::{Limits, Scope};

use crate::{
    channel::{Join, Letter, Life, Mailbox, Replaced},
    end::SocketEnd,
    event_limit::OnExcess,
    inbox::{Held, Inbox},
    mount::Routes,
    outbox::Outbox,
    payload::Payload,
    protocol::{
        message::{Address, ClientMessage, JOIN, LEAVE, Received},
        reference::Ref,
        version::Version,
    },
    pubsub::PubSub,
    socket::Socket,
    telemetry::{SocketMetrics, limited, shown},
};

/// What a message that waits counts for in the inbox besides its own bytes: about what it takes to keep
/// it. So the inbox bounds how many there are.
const OVERHEAD: usize = 256;

/// How long a client whose inbox is full is not read from. It is less than clients wait for the answer to
/// a heartbeat.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long channels handle what their client has said before it was gone: it may have said something and
/// gone at once.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// How long channels have to end when their socket is gone, all in all.
const CHANNELS_END: Duration = Duration::from_secs(5);

/// What a client's channels share.
pub(crate) struct Connection<S: Socket> {
    pub(crate) socket: Arc<S>,
    pub(crate) assigns: S::Assigns,
    pub(crate) id: Option<String>,
    pub(crate) version: Version,
    /// `websocket` or `longpoll`.
    pub(crate) transport: &'static str,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) pubsub: PubSub,
    pub(crate) events: SessionEvents,
    pub(crate) metrics: Arc<SocketMetrics>,
}

/// One client.
///
/// It alone knows which topics are joined. A channel tells it of its fate *before* it tells the
/// client, so when the client answers, the session has been told too.
pub(crate) struct Session<S: Socket> {
    connection: Arc<Connection<S>>,
    routes: Arc<Routes<S>>,
    channels: HashMap<Arc<str>, Entry>,
    /// Channels whose topic is free again, and which have not ended yet: their `terminate` runs.
    ending: Vec<JoinHandle<()>>,
    lives: u64,
    /// Where there are limits, and once there is something to remember.
    spent: Option<Box<Spent>>,
    /// While the inbox is full: when to stop waiting for room.
    full_until: Option<Deadline>,
}

/// A topic that is joined, or about to be.
struct Entry {
    join_ref: Ref,
    life: Life,
    mailbox: Arc<Mailbox>,
    task: JoinHandle<()>,
    /// While the join is running: the messages that wait for it.
    pending: Option<VecDeque<(Received, Held)>>,
}

impl<S: Socket> Session<S> {
    pub(crate) fn new(connection: Arc<Connection<S>>, routes: Arc<Routes<S>>) -> Self {
        Self {
            connection,
            routes,
            channels: HashMap::new(),
            ending: Vec::new(),
            lives: 0,
            spent: None,
            full_until: None,
        }
    }

    /// Has a test told what becomes of the channels.
    #[cfg(feature = "test-kit")]
    pub(crate) fn watched_by(self, witness: crate::testkit::Witness) -> Self {
        self.connection.events.witness.get_or_init(|| witness);
        self
    }

    pub(crate) fn metrics(&self) -> &SocketMetrics {
        &self.connection.metrics
    }

    /// What the client has sent and has not been handled.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.connection.inbox
    }

    /// Waits until a channel has told something that [`receive`](Self::receive) should know of.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&self) {
        self.connection.events.wait().await;
    }

    /// Takes note of what the channels have told, and hands on what has waited for it.
    pub(crate) async fn catch_up(&mut self) {
        while let Some(event) = self.connection.events.take() {
            let waiting = match event {
                SessionEvent::Joined { topic, id } => match self.channels.get_mut(&topic) {
                    Some(entry) if entry.life.id() == id => entry.pending.take(),
                    _ => None,
                },
                SessionEvent::Ended { topic, id } => match self.channels.get(&topic) {
                    Some(entry) if entry.life.id() == id => {
                        self.channels.remove(&topic).and_then(|entry| self.forget(entry))
                    }
                    _ => None,
                },
            };
            self.count_channels();
            for (received, held) in waiting.into_iter().flatten() {
                consume_budget().await;
                if let Ok(message) = ClientMessage::decode(self.connection.version, &received) {
                    self.route(&message, &received, held);
                }
            }
        }
    }

    /// Has what the client sent count in its inbox, from before it is handled.
    pub(crate) fn hold(&self, received: &Received) -> Held {
        self.inbox().hold(received.len().saturating_add(OVERHEAD))
    }

    /// Handles what the client sent, which [counts](Self::hold) in the inbox.
    ///
    /// It waits for room in the inbox where the client has sent more than can be handled, for so long at
    /// most, and for nothing else.
    ///
    /// # Errors
    ///
    /// Why the socket is to end: this was no message of the protocol, or the client says too much.
    pub(crate) async fn receive(
        &mut self,
        received: Received,
        held: Held,
    ) -> Result<(), SocketEnd> {
        self.catch_up().await;
        match self.handle(&received, held)? {
            None => Ok(()),
            // In a box, so that a socket that never waits is no larger for it.
            Some(held) => Box::pin(self.handle_late(received, held)).await,
        }
    }

    /// Handles what the client sent, unless it has to wait for room: then what counts for it is handed
    /// back. It awaits nothing, so that a message takes no room in the task of a socket that is idle.
    fn handle(&mut self, received: &Received, held: Held) -> Result<Option<Held>, SocketEnd> {
        let message = ClientMessage::decode(self.connection.version, received)?;
        if let Some((field, bytes)) = message.too_long() {
            let lines = &self.routes.limited.lines;
            limited!(
                lines,
                WARN,
                ?field,
                bytes,
                "closes a socket that was sent a name of over 255 bytes"
            );
            return Err(SocketEnd::NameTooLong(field));
        }
        // When it comes and not when it is handled: what waits for a join has come at its own time.
        if let Err(excess) = self.admit(&message) {
            self.refuse(&message, excess)?;
            return Ok(None);
        }
        let (topic, event) = (message.topic(), message.event());
        if is_heartbeat(topic.as_deref(), event.as_deref()) {
            self.reply(&Ref::NULL, &message, "ok", &Payload::empty());
            return Ok(None);
        }
        let leaves = event.as_deref() == Some(LEAVE);
        // A leave makes room, so it does not wait for any. But there may not be any number of them.
        if leaves && held.overflow() {
            return Err(SocketEnd::Limited);
        }
        if !leaves {
            if !held.has_room() {
                return Ok(Some(held));
            }
            self.full_until = None;
        }
        self.route(&message, received, held);
        Ok(None)
    }

    /// Handles what has to wait for room, or refuses it.
    async fn handle_late(&mut self, received: Received, held: Held) -> Result<(), SocketEnd> {
        let has_room = self.wait_for_room(&held).await;
        let message = ClientMessage::decode(self.connection.version, &received)?;
        if has_room {
            self.route(&message, &received, held);
        } else {
            self.routes.limited.count(Scope::Inbox);
            self.answer_refused(&message, &reason("too many messages are waiting"));
        }
        Ok(())
    }

    /// Waits for room for this message, unless that was done in vain and there has been none since.
    async fn wait_for_room(&mut self, held: &Held) -> bool {
        let until = match self.full_until {
            Some(until) => until,
            None => {
                self.metrics().reads_paused_by_inbox.increment(1);
                *self.full_until.insert(Deadline::from_now(PATIENCE))
            }
        };
        loop {
            tokio::select! {
                biased;
                () = held.room() => {
                    self.full_until = None;
                    return true;
                }
                // What waits for a join is handled when it has run, and makes room.
                () = self.changed() => self.catch_up().await,
                () = until.passed() => return false,
            }
        }
    }

    /// Whether the client may say this now, by the limits of its mount.
    ///
    /// Heartbeats and leaves always may. Joins and events count for the socket, events for their topic
    /// too.
    fn admit(&mut self, message: &ClientMessage<'_>) -> Result<(), Excess> {
        let Some(limits) = self.routes.limits() else { return Ok(()) };
        let (topic, event) = (message.topic(), message.event());
        if is_heartbeat(topic.as_deref(), event.as_deref()) || event.as_deref() == Some(LEAVE) {
            return Ok(());
        }
        let joined = topic.as_deref().and_then(|topic| self.channels.get_key_value(topic));
        let topic = joined.map(|(topic, _)| topic).filter(|_| event.as_deref() != Some(JOIN));
        let now = Instant::now();
        let spent = self.spent.get_or_insert_with(|| Box::new(Spent::new(now)));
        spent.admit(limits, topic, now)
    }

    /// Does with an event that is too many what the limit says.
    fn refuse(&self, message: &ClientMessage<'_>, excess: Excess) -> Result<(), SocketEnd> {
        let Excess { of, retry_after, on_excess } = excess;
        self.routes.limited.count(of);
        if on_excess == OnExcess::Close {
            let lines = &self.routes.limited.lines;
            limited!(lines, WARN, limit = of.name(), "closes a socket whose client says too much");
            return Err(SocketEnd::Limited);
        }
        // So that an event that comes so many milliseconds later passes.
        let retry_after = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000));
        let retry_after = retry_after.unwrap_or(u64::MAX);
        let response = json!({ "reason": "rate limited", "retry_after": retry_after });
        self.answer_refused(message, &Payload::new(&response).expect("a literal is JSON"));
        Ok(())
    }

    /// Tells the client that its message was not handled, if it asks for an answer.
    fn answer_refused(&self, message: &ClientMessage<'_>, response: &Payload) {
        if message.reference().is_null() {
            return;
        }
        // That of the channel if the client names none, as in the channel's own answers.
        let topic = message.topic();
        let entry = topic.as_deref().and_then(|topic| self.channels.get(topic));
        let join_ref = message.join_ref();
        let join_ref = entry.map_or(join_ref.clone(), |entry| join_ref.or(&entry.join_ref));
        self.reply(&join_ref, message, "error", response);
    }

    /// Forgets a channel that has told of its end, but for its task. Returns what waited for its join.
    fn forget(&mut self, entry: Entry) -> Option<VecDeque<(Received, Held)>> {
        self.ending.retain(|task| !task.is_finished());
        if !entry.task.is_finished() {
            self.ending.push(entry.task);
        }
        entry.pending
    }

    /// Whether a join is running.
    pub(crate) fn is_joining(&self) -> bool {
        self.channels.values().any(|entry| entry.pending.is_some())
    }

    /// Handles a message by what its topic is: unknown, joining or joined. It counts as received for as
    /// long as it waits.
    fn route(&mut self, message: &ClientMessage<'_>, received: &Received, held: Held) {
        let (topic, event) = (message.topic(), message.event());
        let entry = topic.as_deref().and_then(|topic| self.channels.get_mut(topic));
        match (entry, event.as_deref()) {
            (Some(Entry { pending: Some(pending), .. }), _) => {
                pending.push_back((received.clone(), held));
            }
            (_, Some(JOIN)) => self.join(message, received, held),
            (Some(entry), event) => {
                let join_ref = message.join_ref();
                if !join_ref.is_null() && join_ref != entry.join_ref {
                    // It belongs to an earlier join, of whose end the client has been told.
                    return;
                }
                let reference = message.reference();
                let letter = match event {
                    Some(LEAVE) => Letter::Leave { reference, held },
                    // An event that is not a string has no name that a channel could know.
                    event => Letter::Event {
                        reference,
                        event: event.unwrap_or_default().into(),
                        payload: message.payload(received),
                        held,
                    },
                };
                entry.mailbox.deliver(letter);
            }
            (None, Some(LEAVE)) => {
                self.reply(&message.join_ref(), message, "ok", &Payload::empty());
            }
            (None, _) => self.unmatched(message),
        }
    }

    /// Begins to join a topic, in place of the channel that is joined on it, if any.
    fn join(&mut self, message: &ClientMessage<'_>, received: &Received, held: Held) {
        let name = message.topic();
        let found = name.as_deref().and_then(|name| self.routes.find(name));
        let Some((topic, route)) = found else {
            return self.unmatched(message);
        };
        let replaces = self.channels.remove(topic.as_str()).map(|entry| Replaced {
            join_ref: entry.join_ref,
            life: entry.life,
            task: entry.task,
        });
        self.ending.retain(|task| !task.is_finished());
        if self.channels.len() + self.ending.len() >= self.routes.max_channels() {
            self.count_channels();
            route.meter.joins.count(false);
            let lines = &route.meter.join_lines;
            limited!(lines, WARN, topic = shown(&topic), "refused a join: too many channels");
            let response = reason("too many channels joined");
            return self.reply(&message.join_ref(), message, "error", &response);
        }
        self.lives += 1;
        let life = Life::new(self.lives);
        let mailbox = Arc::new(Mailbox::default());
        let span =
            tracing::info_span!("channel", channel = route.meter.channel, topic = shown(&topic));
        let living = route.channel.clone().run(Join {
            connection: self.connection.clone(),
            topic: topic.clone(),
            join_ref: message.join_ref(),
            reference: message.reference(),
            payload: message.payload(received),
            held,
            mailbox: mailbox.clone(),
            life: life.clone(),
            meter: route.meter.clone(),
            replaces,
        });
        // An idle channel is small, and a span that nobody sees would be much of it.
        let task = if span.is_disabled() {
            tokio::spawn(living)
        } else {
            tokio::spawn(living.instrument(span))
        };
        let join_ref = message.join_ref();
        let entry = Entry { join_ref, life, mailbox, task, pending: Some(VecDeque::new()) };
        self.channels.insert(topic.shared().clone(), entry);
        self.count_channels();
    }

    /// For the drainer.
    fn count_channels(&self) {
        self.connection.outbox.set_channels(self.channels.len());
    }

    fn unmatched(&self, message: &ClientMessage<'_>) {
        self.reply(&Ref::NULL, message, "error", &reason("unmatched topic"));
    }

    /// Answers a message that no channel answers.
    fn reply(&self, join_ref: &Ref, message: &ClientMessage<'_>, status: &str, response: &Payload) {
        let version = self.connection.version;
        let address = Address { version, join_ref, topic: message.topic_json() };
        let frame = address.reply(&message.reference(), status, response);
        let frame = frame.expect("JSON can be told in every version");
        self.connection.outbox.send(&frame, None);
    }

    /// Ends all channels, because the socket is gone. What waits for them is handled for a moment, and
    /// dropped then, so that it does not take the time of their `terminate`. Those that do not end in time
    /// are aborted.
    pub(crate) async fn end(mut self, reason: &ExitReason) {
        for entry in self.channels.values() {
            entry.mailbox.close(reason.clone());
        }
        let until = Deadline::from_now(CHANNELS_END);
        if time::timeout(LAST_EVENTS, self.ended()).await.is_err() {
            let dropped: usize = self.channels.values().map(|entry| entry.mailbox.hurry()).sum();
            if dropped > 0 {
                limited!(
                    self.routes.limited.lines,
                    INFO,
                    dropped,
                    "dropped what waited for the channels of a socket that is gone"
                );
            }
            let _ = until.limit(self.ended()).await;
        }
    }

    /// Waits until all channels have ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn ended(&mut self) {
        let joined = self.channels.values_mut().map(|entry| &mut entry.task);
        for task in joined.chain(&mut self.ending) {
            // One that is finished must not be polled again.
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    }
}

impl<S: Socket> Drop for Session<S> {
    fn drop(&mut self) {
        // Whoever has not ended by now has had its time, or the socket's task was aborted.
        let joined = self.channels.values().map(|entry| &entry.task);
        joined.chain(&self.ending).for_each(JoinHandle::abort);
    }
}

impl<S: Socket> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

fn is_heartbeat(topic: Option<&str>, event: Option<&str>) -> bool {
    topic == Some("phoenix") && event == Some("heartbeat")
}

fn reason(reason: &str) -> Payload {
    Payload::new(&json!({ "reason": reason })).expect("a literal is JSON")
}

/// What channels tell their session. Each tells two things in its life, so the number of channels
/// bounds it.
#[derive(Debug, Default)]
pub(crate) struct SessionEvents {
    state: Mutex<(VecDeque<SessionEvent>, Option<Waker>)>,
    /// Who tells a test of its channels.
    #[cfg(feature = "test-kit")]
    pub(crate) witness: std::sync::OnceLock<crate::testkit::Witness>,
}

/// The fate of a channel: which topic, and which life of it.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Joined {
        topic: Arc<str>,
        id: u64,
    },
    /// It ended, or was not let in.
    Ended {
        topic: Arc<str>,
        id: u64,
    },
}

impl SessionEvents {
    pub(crate) fn tell(&self, event: SessionEvent) {
        let mut state = self.state.lock();
        state.0.push_back(event);
        if let Some(session) = state.1.take() {
            session.wake();
        }
    }

    fn take(&self) -> Option<SessionEvent> {
        let mut state = self.state.lock();
        let event = state.0.pop_front();
        if event.is_none() {
            state.0 = VecDeque::new();
        }
        event
    }

    async fn wait(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if !state.0.is_empty() {
                return Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
