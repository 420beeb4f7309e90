//! The session of one client: it routes the client's messages to its channels. Independent of the
//! transport.

pub(crate) mod end;
pub(crate) mod expiry;
pub(crate) mod inbox;
pub(crate) mod question;
pub(crate) mod rate_limit;
mod term;
#[cfg(test)]
mod tests;
pub(crate) mod token_bucket;
mod waiting;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{Deadline, ExitReason};
use serde_json::json;
use tokio::{
    task::{JoinHandle, coop::consume_budget, yield_now},
    time::{self, Instant},
};

pub(crate) use self::rate_limit::{RateLimits, Scope};
use self::{
    end::SocketEnd,
    expiry::Expiry,
    inbox::{Inbox, InboxBytes},
    question::{Question, Questioned},
    rate_limit::{Excess, OnLimit, RateState},
    waiting::{Behind, WaitingMessages},
};
use crate::{
    channel::{ChannelMessage, Instance, Join, Mailbox, Replaced},
    endpoint::mount::Routes,
    outbox::Outbox,
    payload::Payload,
    protocol::{
        message::{Address, ClientMessage, JOIN, LEAVE, Received, Unreadable},
        reference::Ref,
        version::Version,
    },
    pubsub::PubSub,
    socket::Socket,
    telemetry::{InSpan, SocketMetrics, limited, log, shown},
};

/// The overhead of a waiting message in the inbox, besides its own bytes: approximately its memory.
/// It makes the inbox bound the number of messages.
const OVERHEAD: usize = 256;

/// The cost of a join, in the 128 units of tokio's budget for one poll of a task: a new channel's
/// task costs far more than a message, and 128 of them at once would occupy a thread for long.
const JOIN_COST: u64 = 16;

/// The cost of a message that is refused because the inbox is full. It is decoded twice, and its
/// answer is written from scratch.
const REFUSAL_COST: u64 = 8;

/// How long a client is not read from whose inbox is full, or of which too much waits for joins. It
/// is shorter than clients wait for the answer to a heartbeat.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long channels handle pending messages after their client is gone: it may have sent a message
/// and closed at once.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// How long channels have to end when their socket is gone, in total.
const CHANNELS_END: Duration = Duration::from_secs(5);

/// How many bytes of a frame cost as much as the frame itself. A frame of 1 MiB costs a task's
/// whole budget of tokio for one poll.
const BYTES_A_UNIT: usize = 8 << 10;

/// The state that a client's channels share.
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
    pub(crate) expiry: Expiry,
    pub(crate) metrics: Arc<SocketMetrics>,
}

impl<S: Socket> Connection<S> {
    /// Waits until the socket's end has come, if it has one. The session tells the channels before.
    /// For the socket's task only.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn expired(&self) -> SocketEnd {
        let warn = || {
            self.metrics.expiries_warned.increment(1);
            self.events.send(SessionEvent::Expiring);
        };
        self.expiry.passed(warn).await;
        self.metrics.expiries_ended.increment(1);
        SocketEnd::Expired
    }
}

/// Pays for handled work with the task's cooperative budget, 128 units per poll, and yields once that
/// is used up: a client that sends without a pause must not occupy a thread.
pub(crate) async fn pay(units: u64) {
    for _ in 0..units {
        consume_budget().await;
    }
}

/// The cost of a message of this decompressed size.
pub(crate) fn cost(bytes: usize) -> u64 {
    1 + (bytes / BYTES_A_UNIT) as u64
}

/// One client.
///
/// Only the session knows which topics are joined. A channel announces its end to the session
/// *before* the client, so when the client answers, the session knows.
pub(crate) struct Session<S: Socket> {
    connection: Arc<Connection<S>>,
    routes: Arc<Routes<S>>,
    channels: HashMap<Arc<str>, Entry>,
    /// Channels that have left their topic and have not ended yet: their `terminate` runs.
    ending: Vec<JoinHandle<()>>,
    lives: u64,
    /// What handled joins and refused messages still have to pay of the task's budget.
    unpaid: u64,
    /// The state of the rate limits, if there are any and once a message has counted.
    spent: Option<Box<RateState>>,
    /// While the inbox is full: when to stop waiting for room.
    full_until: Option<Deadline>,
    /// The messages that wait for joins, all topics together.
    behind: Behind,
    /// While they are too many: when to stop waiting for fewer.
    crowded_until: Option<Deadline>,
    /// A topic whose join has ended, and the messages that waited for it and are not routed yet. Here, so
    /// that none is lost if the socket ends meanwhile.
    rest: Option<Box<(Arc<str>, WaitingMessages)>>,
    /// How often a message was decoded.
    #[cfg(test)]
    decoded: usize,
}

/// A topic that is joined, or being joined.
struct Entry {
    join_ref: Ref,
    instance: Instance,
    mailbox: Arc<Mailbox>,
    task: JoinHandle<()>,
    /// The messages that wait for the join, while it runs.
    pending: Option<WaitingMessages>,
    /// The end that the channel was warned of last.
    warned_of: Option<Deadline>,
}

impl Entry {
    /// Warns the channel of an end, unless it was warned of this one.
    fn warn(&mut self, end: Option<Deadline>) {
        if end.is_some() && end != self.warned_of {
            self.warned_of = end;
            self.mailbox.warn_of_end();
        }
    }

    /// Drops the messages that have not been handled. Returns their number.
    fn drop_pending(&mut self) -> usize {
        let waiting = self.pending.take().map_or(0, |waiting| waiting.len());
        waiting + self.mailbox.drop_pending()
    }
}

impl<S: Socket> Session<S> {
    pub(crate) fn new(connection: Arc<Connection<S>>, routes: Arc<Routes<S>>) -> Self {
        Self {
            connection,
            routes,
            channels: HashMap::new(),
            ending: Vec::new(),
            lives: 0,
            unpaid: 0,
            spent: None,
            full_until: None,
            behind: Behind::default(),
            crowded_until: None,
            rest: None,
            #[cfg(test)]
            decoded: 0,
        }
    }

    /// Reports the ends of channels to a test.
    #[cfg(feature = "test-kit")]
    pub(crate) fn probed_by(self, probe: crate::channel_test::Probe) -> Self {
        self.connection.events.probe.get_or_init(|| probe);
        self
    }

    pub(crate) fn metrics(&self) -> &SocketMetrics {
        &self.connection.metrics
    }

    /// The socket, for questions of an operator.
    pub(crate) fn questioned(&self) -> Weak<dyn Questioned> {
        let connection: Weak<Connection<S>> = Arc::downgrade(&self.connection);
        connection
    }

    /// The state that the client's channels share.
    pub(crate) fn connection(&self) -> &Arc<Connection<S>> {
        &self.connection
    }

    /// The client's inbox: bytes that have been received and not handled.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.connection.inbox
    }

    /// Waits for a channel's event that [`receive`](Self::receive) needs.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn changed(&self) {
        self.connection.events.wait().await;
    }

    /// Handles the channels' events, and routes the messages that waited for them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call continues.
    pub(crate) async fn catch_up(&mut self) {
        self.route_rest().await;
        while let Some(event) = self.connection.events.take() {
            let (topic, waiting) = match event {
                SessionEvent::Expiring => {
                    let end = self.connection.expiry.warned_of();
                    let joined = self.channels.values_mut().filter(|it| it.pending.is_none());
                    joined.for_each(|entry| entry.warn(end));
                    continue;
                }
                SessionEvent::Asked(question) => {
                    self.answer_question(question);
                    continue;
                }
                SessionEvent::Joined { topic, id } => match self.channels.get_mut(&topic) {
                    Some(entry) if entry.instance.id() == id => {
                        // The same end may have come between: its event then follows this one.
                        entry.warn(self.connection.expiry.warned_of());
                        let waiting = entry.pending.take();
                        (topic, waiting)
                    }
                    _ => (topic, None),
                },
                SessionEvent::Ended { topic, id } => match self.channels.get(&topic) {
                    Some(entry) if entry.instance.id() == id => {
                        let waiting = self.channels.remove(&topic);
                        (topic, waiting.and_then(|entry| self.forget(entry)))
                    }
                    _ => (topic, None),
                },
            };
            self.count_channels();
            if let Some(waiting) = waiting.filter(|waiting| !waiting.is_empty()) {
                self.rest = Some(Box::new((topic, waiting)));
                self.route_rest().await;
            }
        }
    }

    /// Answers an operator, who may have gone.
    fn answer_question(&self, question: Question) {
        self.connection.events.question_was_taken();
        match question {
            Question::Joined(answer) => {
                let joined = self.channels.iter().filter(|(_, entry)| entry.pending.is_none());
                let _ = answer.send(joined.map(|(topic, _)| topic.clone()).collect());
            }
            Question::End(topic, answer) => {
                // The operator has the answer that it did not end.
                if answer.is_closed() {
                    return;
                }
                let entry = self.channels.get(&*topic).filter(|entry| entry.pending.is_none());
                if let Some(entry) = entry {
                    entry.mailbox.stop();
                }
                let _ = answer.send(entry.is_some());
            }
        }
    }

    /// Routes the messages that waited for a join of this topic, until one of them is a join. The
    /// rest waits for that one as it is: if each message was decoded again for each join before it,
    /// many joins of one topic would take time in the square of their number.
    async fn route_rest(&mut self) {
        while let Some((received, _)) = self.rest.as_ref().and_then(|rest| rest.1.front()) {
            let cost = cost(received.len());
            pay(cost + self.unpaid()).await;
            let Some(rest) = &mut self.rest else { return };
            let topic = rest.0.clone();
            let Some((received, held)) = rest.1.pop_front() else { break };
            self.behind.remove(&held);
            if let Ok(message) = self.decode(&received) {
                self.route(&message, &received, held);
            }
            let entry = self.channels.get_mut(&topic);
            if let Some(pending) = entry.and_then(|entry| entry.pending.as_mut()) {
                debug_assert!(pending.is_empty(), "nothing arrives meanwhile");
                if let Some(rest) = self.rest.take() {
                    *pending = rest.1;
                }
                // The session and its channel wake each other, so neither uses up its budget, and a
                // thread that always has a task to run looks at its sockets after 61 of them only.
                // Between two joins, everything else that is ready runs, and they are looked at.
                yield_now().await;
                return;
            }
        }
        self.rest = None;
    }

    fn decode<'a>(&mut self, received: &'a Received) -> Result<ClientMessage<'a>, Unreadable> {
        #[cfg(test)]
        {
            self.decoded += 1;
        }
        ClientMessage::decode(self.connection.version, received)
    }

    /// Counts a received message in the inbox, before it is handled.
    pub(crate) fn hold(&self, received: &Received) -> InboxBytes {
        self.inbox().hold(received.len().saturating_add(OVERHEAD))
    }

    /// Handles a received message, which is already [counted](Self::hold) in the inbox.
    ///
    /// If the client sends faster than its messages are handled, it waits for room in the inbox, or
    /// behind a join, for a limited time, and for nothing else.
    ///
    /// # Errors
    ///
    /// The socket has to end: the message is invalid, or the client exceeded its rate limit.
    pub(crate) async fn receive(
        &mut self,
        received: Received,
        held: InboxBytes,
    ) -> Result<(), SocketEnd> {
        self.catch_up().await;
        match self.handle(&received, held)? {
            None => Ok(()),
            // Boxed, so that a socket that never waits is no larger.
            Some((held, full)) => Box::pin(self.handle_late(received, held, full)).await,
        }
    }

    /// What the messages until now have cost of the task's budget, besides their bytes. The
    /// transport pays it before the next message.
    pub(crate) fn unpaid(&mut self) -> u64 {
        mem::take(&mut self.unpaid) + self.connection.outbox.take_unpaid()
    }

    /// Handles a message, unless it has to wait for room: then its count is returned, and where there
    /// is none. It awaits nothing, so that an idle socket's task needs no room for a message.
    fn handle(
        &mut self,
        received: &Received,
        held: InboxBytes,
    ) -> Result<Option<(InboxBytes, Scope)>, SocketEnd> {
        let message = self.decode(received)?;
        if let Some((field, bytes)) = message.too_long() {
            let lines = &self.routes.limited.lines;
            limited!(
                lines,
                WARN,
                ?field,
                bytes,
                "closing socket: topic, event or reference longer than 255 bytes"
            );
            return Err(SocketEnd::NameTooLong(field));
        }
        // Counted on arrival and not when handled: messages that wait for a join arrived earlier.
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
        // A leave frees room, so it does not wait for room. But their number has to be bounded.
        if leaves && held.overflow() {
            return Err(SocketEnd::Limited);
        }
        if !leaves && let Some(full) = self.is_full_for(topic.as_deref(), &held) {
            return Ok(Some((held, full)));
        }
        self.route(&message, received, held);
        Ok(None)
    }

    /// Where there is no room for a message on this topic: in the inbox, or behind the topic's join.
    fn is_full_for(&mut self, topic: Option<&str>, held: &InboxBytes) -> Option<Scope> {
        if !held.has_room() {
            return Some(Scope::Inbox);
        }
        self.full_until = None;
        if !self.behind.is_full() {
            self.crowded_until = None;
            return None;
        }
        let entry = topic.and_then(|topic| self.channels.get(topic));
        entry.is_some_and(|entry| entry.pending.is_some()).then_some(Scope::Join)
    }

    /// Handles a message that has to wait for room, or refuses it.
    async fn handle_late(
        &mut self,
        received: Received,
        held: InboxBytes,
        mut full: Scope,
    ) -> Result<(), SocketEnd> {
        loop {
            let has_room = self.wait_for_room(full, &held).await;
            // Each look at a message is paid for.
            self.unpaid += cost(received.len());
            let message = self.decode(&received)?;
            match self.is_full_for(message.topic().as_deref(), &held) {
                None => self.route(&message, &received, held),
                Some(still) if has_room => {
                    full = still;
                    continue;
                }
                Some(still) => {
                    self.unpaid += REFUSAL_COST;
                    self.routes.limited.count(still);
                    self.answer_refused(&message, &reason("too many messages are waiting"));
                }
            }
            return Ok(());
        }
    }

    /// Waits for room for this message, in the inbox or behind joins, unless that has failed before
    /// and there has been no room since.
    async fn wait_for_room(&mut self, full: Scope, held: &InboxBytes) -> bool {
        let behind_joins = full == Scope::Join;
        let known = if behind_joins { self.crowded_until } else { self.full_until };
        let until = known.unwrap_or_else(|| {
            let (metrics, until) = (self.metrics(), Deadline::from_now(PATIENCE));
            if behind_joins {
                metrics.reads_paused_by_joins.increment(1);
                self.crowded_until = Some(until);
            } else {
                metrics.reads_paused_by_inbox.increment(1);
                self.full_until = Some(until);
            }
            until
        });
        loop {
            if behind_joins && !self.behind.is_full() {
                return true;
            }
            tokio::select! {
                biased;
                () = held.room(), if !behind_joins => return true,
                // Messages that wait for a join are handled after it, and free room.
                () = self.changed() => self.catch_up().await,
                () = until.passed() => return false,
            }
        }
    }

    /// Checks a message against the rate limits of its mount.
    ///
    /// Heartbeats and leaves are not limited. Joins and events count for the socket, events also
    /// for their topic.
    fn admit(&mut self, message: &ClientMessage<'_>) -> Result<(), Excess> {
        let Some(limits) = self.routes.limits() else { return Ok(()) };
        let (topic, event) = (message.topic(), message.event());
        if is_heartbeat(topic.as_deref(), event.as_deref()) || event.as_deref() == Some(LEAVE) {
            return Ok(());
        }
        let joined = topic.as_deref().and_then(|topic| self.channels.get_key_value(topic));
        let topic = joined.map(|(topic, _)| topic).filter(|_| event.as_deref() != Some(JOIN));
        let now = Instant::now();
        let spent = self.spent.get_or_insert_with(|| Box::new(RateState::new(now)));
        spent.admit(limits, topic, now)
    }

    /// Handles a message over the limit, as the limit says.
    fn refuse(&self, message: &ClientMessage<'_>, excess: Excess) -> Result<(), SocketEnd> {
        let Excess { of, retry_after, on_limit } = excess;
        self.routes.limited.count(of);
        if on_limit == OnLimit::Close {
            let lines = &self.routes.limited.lines;
            limited!(lines, WARN, limit = of.name(), "closing socket: rate limit exceeded");
            return Err(SocketEnd::Limited);
        }
        // Rounded up, so that an event that is sent after this time passes.
        let retry_after = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000));
        let retry_after = retry_after.unwrap_or(u64::MAX);
        let response = json!({ "reason": "rate limited", "retry_after": retry_after });
        self.answer_refused(message, &Payload::new(&response).expect("a literal is JSON"));
        Ok(())
    }

    /// Tells the client that its message was refused, if it has a reference.
    fn answer_refused(&self, message: &ClientMessage<'_>, response: &Payload) {
        if message.reference().is_null() {
            return;
        }
        // The channel's own if the client sends none, as in the channel's answers.
        let topic = message.topic();
        let entry = topic.as_deref().and_then(|topic| self.channels.get(topic));
        let join_ref = message.join_ref();
        let join_ref = entry.map_or(join_ref.clone(), |entry| join_ref.or(&entry.join_ref));
        self.reply(&join_ref, message, "error", response);
    }

    /// Removes a channel that has announced its end, but keeps its task. Returns the messages that
    /// waited for its join.
    fn forget(&mut self, entry: Entry) -> Option<WaitingMessages> {
        self.ending.retain(|task| !task.is_finished());
        if !entry.task.is_finished() {
            self.ending.push(entry.task);
        }
        entry.pending
    }

    /// Whether a join is in progress.
    pub(crate) fn is_joining(&self) -> bool {
        self.channels.values().any(|entry| entry.pending.is_some())
    }

    /// Routes a message by the state of its topic: unknown, joining or joined. It counts in the
    /// inbox for as long as it waits.
    fn route(&mut self, message: &ClientMessage<'_>, received: &Received, held: InboxBytes) {
        let (topic, event) = (message.topic(), message.event());
        let entry = topic.as_deref().and_then(|topic| self.channels.get_mut(topic));
        match (entry, event.as_deref()) {
            (Some(Entry { pending: Some(pending), .. }), _) => {
                self.behind.add(&held);
                pending.push_back((received.clone(), held));
            }
            (_, Some(JOIN)) => self.join(message, received, held),
            (Some(entry), event) => {
                let join_ref = message.join_ref();
                if !join_ref.is_null() && join_ref != entry.join_ref {
                    // It belongs to an earlier join; the client has received the end of that join.
                    return;
                }
                let reference = message.reference();
                let message = match event {
                    Some(LEAVE) => ChannelMessage::Leave { reference, held },
                    // An event that is not a string has no name that a channel could handle.
                    event => ChannelMessage::Event {
                        reference,
                        event: event.unwrap_or_default().into(),
                        payload: message.payload(received),
                        held,
                    },
                };
                entry.mailbox.deliver(message);
            }
            (None, Some(LEAVE)) => {
                self.reply(&message.join_ref(), message, "ok", &Payload::empty());
            }
            (None, _) => self.unmatched(message),
        }
    }

    /// Starts a join of a topic. A channel that is joined on it is replaced.
    fn join(&mut self, message: &ClientMessage<'_>, received: &Received, held: InboxBytes) {
        self.unpaid += JOIN_COST;
        let name = message.topic();
        let found = name.as_deref().and_then(|name| self.routes.find(name));
        let Some((topic, route)) = found else {
            return self.unmatched(message);
        };
        let replaces = self.channels.remove(topic.as_str()).map(|entry| Replaced {
            join_ref: entry.join_ref,
            instance: entry.instance,
            task: entry.task,
        });
        self.ending.retain(|task| !task.is_finished());
        if self.channels.len() + self.ending.len() >= self.routes.max_channels() {
            self.count_channels();
            route.metrics.joins.count(false);
            let lines = &route.metrics.join_lines;
            limited!(lines, WARN, topic = shown(&topic), "refused a join: too many channels");
            let response = reason("too many channels joined");
            return self.reply(&message.join_ref(), message, "error", &response);
        }
        self.lives += 1;
        let instance = Instance::new(self.lives);
        let mailbox = Arc::new(Mailbox::default());
        let span = log::channel_span(route.metrics.channel, &topic);
        let living = route.channel.clone().run(Join {
            connection: self.connection.clone(),
            topic: topic.clone(),
            join_ref: message.join_ref(),
            reference: message.reference(),
            payload: message.payload(received),
            held,
            mailbox: mailbox.clone(),
            instance: instance.clone(),
            metrics: route.metrics.clone(),
            replaces,
        });
        // An idle channel is small, and a disabled span would be a large part of it.
        let task = if span.is_disabled() {
            tokio::spawn(living)
        } else {
            tokio::spawn(InSpan::new(span, living))
        };
        let join_ref = message.join_ref();
        let pending = Some(VecDeque::new());
        let entry = Entry { join_ref, instance, mailbox, task, pending, warned_of: None };
        self.channels.insert(topic.shared().clone(), entry);
        self.count_channels();
    }

    /// Updates the number of channels, for the drainer.
    fn count_channels(&self) {
        self.connection.outbox.set_channels(self.channels.len());
    }

    fn unmatched(&self, message: &ClientMessage<'_>) {
        self.reply(&Ref::NULL, message, "error", &reason("unmatched topic"));
    }

    /// Answers a message that no channel handles.
    fn reply(&self, join_ref: &Ref, message: &ClientMessage<'_>, status: &str, response: &Payload) {
        let version = self.connection.version;
        let address = Address { version, join_ref, topic: message.topic_json() };
        let frame = address.reply(&message.reference(), status, response);
        let frame = frame.expect("every version can carry JSON");
        self.connection.outbox.send(&frame, None);
    }

    /// Logs that the socket closes because its client reads too slowly. It may have held up others, so it is
    /// logged without debugging, with its span's id.
    pub(crate) fn is_too_slow(&self) {
        limited!(
            self.routes.limited.lines,
            INFO,
            channels = self.channels.len(),
            "closing socket: its client reads too slowly"
        );
    }

    /// Ends all channels, because the socket is gone. Their pending messages are handled for a
    /// moment, and then dropped, so that they do not use up the time of `terminate`. Channels that
    /// do not end in time are aborted.
    pub(crate) async fn end(mut self, reason: &ExitReason) {
        let until = Deadline::from_now(CHANNELS_END);
        if time::timeout(LAST_EVENTS, self.last_events(reason)).await.is_err() {
            self.close_channels(reason, |_| true);
            let rest = self.rest.take().map_or(0, |rest| rest.1.len());
            let pending = self.channels.values_mut().map(Entry::drop_pending);
            let dropped = pending.sum::<usize>() + rest;
            if dropped > 0 {
                limited!(
                    self.routes.limited.lines,
                    INFO,
                    dropped,
                    "dropped pending messages to channels of a closed socket"
                );
            }
            let _ = until.limit(self.ended()).await;
        }
    }

    /// Closes the channels behind their pending messages, which includes those that wait for a join,
    /// and waits until they have ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn last_events(&mut self, reason: &ExitReason) {
        // Of a join that had ended when the socket did.
        self.route_rest().await;
        let waits = |entry: &Entry| entry.pending.as_ref().is_some_and(|it| !it.is_empty());
        self.close_channels(reason, |entry| !waits(entry));
        while self.channels.values().any(waits) {
            self.changed().await;
            self.catch_up().await;
        }
        self.close_channels(reason, |_| true);
        self.ended().await;
    }

    fn close_channels(&self, reason: &ExitReason, which: impl Fn(&Entry) -> bool) {
        for entry in self.channels.values().filter(|entry| which(entry)) {
            entry.mailbox.close(reason.clone());
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
            // A finished task must not be polled again.
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    }
}

impl<S: Socket> Drop for Session<S> {
    fn drop(&mut self) {
        // Channels that are left have run out of time, or the socket's task was aborted.
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

/// Events from channels to their session. Each channel sends two in its instance, so the number of
/// channels bounds them. The socket's task, which handles them, sends one for each end that is set.
#[derive(Debug, Default)]
pub(crate) struct SessionEvents {
    state: Mutex<(VecDeque<SessionEvent>, Option<Waker>)>,
    /// The questions among them.
    questions: AtomicUsize,
    /// Reports the ends of channels to a test.
    #[cfg(feature = "test-kit")]
    pub(crate) probe: std::sync::OnceLock<crate::channel_test::Probe>,
}

/// An event of a channel, with its topic and its id, or of the socket.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Joined {
        topic: Arc<str>,
        id: u64,
    },
    /// The channel ended, or its join was refused.
    Ended {
        topic: Arc<str>,
        id: u64,
    },
    /// The socket's end is near.
    Expiring,
    /// An operator asks.
    Asked(Question),
}

/// How many questions of operators may wait for a session.
const QUESTIONS: usize = 8;

impl SessionEvents {
    /// Counts a question that is about to be sent, unless too many wait.
    fn admit_question(&self) -> bool {
        let more = |waiting: usize| (waiting < QUESTIONS).then_some(waiting + 1);
        self.questions.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn question_was_taken(&self) {
        self.questions.fetch_sub(1, Relaxed);
    }

    pub(crate) fn send(&self, event: SessionEvent) {
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
