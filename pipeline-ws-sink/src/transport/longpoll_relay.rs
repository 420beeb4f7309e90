//! Requests of long-polling clients that meet a node other than that of their session.
//!
//! A session's token names its node, and is signed with a secret that the nodes share. The node that a
//! request meets passes it on to that node through the adapter, and answers its client as that node says.
//!
//! Messages between nodes may be lost or late, so the session's node says at once that it has heard, and what
//! does not come in time counts as the end of the session: the client then begins a new one, and joins its
//! channels again. The body of a request is sent when the session's node asks for it, and only while the
//! client waits. So a message that was late does nothing. Clocks of two nodes are never compared.
//!
//! The node that a request has met says when its client has been given the messages in an answer. Until then
//! the session's node counts them, and answers no other poll.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::StatusCode;
use metrics::Counter;
use parking_lot::Mutex;
use pipeline_core::{Deadline, telemetry::Telemetry};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::answer_body::{AnswerBody, Kept};
use crate::{
    endpoint::erased_mount::ErasedMount,
    outbox::{OutboxBytes, Outboxes},
    payload::Payload,
    pubsub::{PubSub, broadcast::Broadcast},
    telemetry::{LineLimit, Tally, described, limited},
    token::SharedKey,
};

/// The topic of the messages between nodes. It never reaches subscribers.
pub(crate) const RELAYS: &str = "phx_longpoll:relay";

/// Their event.
const EVENT: &str = "relay";

/// What separates the session, the name of its node and the signature in a token.
const AT: char = '~';

/// The longest name of a node in a token.
const LONGEST_NODE: usize = 255;

/// The longest token, in bytes: that of a session at a node with the longest name is shorter. It is in each
/// message about a request.
pub(super) const LONGEST_TOKEN: usize = 512;

/// The longest content type that is passed on. That of several messages in one request is shorter.
const LONGEST_TYPE: usize = 255;

/// How long the session's node may take to say that it has heard, at the least and at the most.
const HEARD: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(6));

/// How long the answer may take beyond the time that the session's node may wait.
const MARGIN: Duration = Duration::from_secs(2);

/// How long the session's node may wait, at the most. With the times above that is less than the 20 seconds
/// after which the official client gives up.
const LONGEST_WAIT: Duration = Duration::from_secs(11);

/// How long a client may take to be given an answer: longer than the server waits for one that does not read.
const READ_WITHIN: Duration = Duration::from_secs(40);

/// The longest part of a body in one message. Servers between nodes have limits of their own.
const PART: usize = 256 << 10;

/// How many messages about one request may wait for its task, beyond the parts of a body.
const SAID: usize = 64;

/// How many requests of other nodes may be in progress. Further ones are refused.
const ASKED: usize = 1 << 16;

/// How many requests of one session are passed on at once: as many polls and posts as it may have.
const AT_ONCE: usize = 16;

/// How many requests without an answer are remembered, to learn how late it comes.
const LATE: usize = 64;

/// The part of a token that its session's node has signed.
pub(super) fn of_session(token: &str) -> &str {
    token.split_once(AT).map_or(token, |(signed, _)| signed)
}

/// The requests that are passed on between this node and the others.
pub(crate) struct Relay {
    /// Signs the tokens of all nodes. Without it, this node knows its own sessions alone.
    key: Option<SharedKey>,
    /// The number of the next request. The first is random, so that no answer to a former process of
    /// this name is taken for one to this.
    next: AtomicU64,
    /// The requests of this node's clients.
    waiting: Mutex<HashMap<u64, mpsc::Sender<Said>>>,
    /// How many there are of each session, by its token.
    at_once: Mutex<HashMap<Arc<str>, usize>>,
    /// The requests of other nodes.
    asked: Mutex<HashMap<(Arc<str>, u64), InProgress>>,
    way: Mutex<Way>,
    outboxes: Arc<Outboxes>,
    lines: LineLimit,
    answered: Tally,
    gone: Counter,
    silent: Counter,
}

/// How long the way to other nodes takes. Pure.
#[derive(Debug, Default)]
struct Way {
    /// The longest recent time until a message was heard.
    longest: Duration,
    /// The requests that were given up before they were heard, and when they were sent.
    late: VecDeque<(u64, Instant)>,
}

impl Way {
    /// How long the other node may take to say that it has heard.
    fn heard_within(&self) -> Duration {
        self.longest.saturating_mul(2).clamp(HEARD.0, HEARD.1)
    }

    fn took(&mut self, time: Duration) {
        // What was slow is forgotten after some that are fast.
        self.longest = time.max(self.longest.mul_f64(0.9));
    }

    fn given_up(&mut self, id: u64, sent: Instant) {
        if self.late.len() == LATE {
            self.late.pop_front();
        }
        self.late.push_back((id, sent));
    }

    /// A node has heard of a request that does not wait any more.
    fn heard_late(&mut self, id: u64, now: Instant) {
        if let Some(at) = self.late.iter().position(|(late, _)| *late == id)
            && let Some((_, sent)) = self.late.remove(at)
        {
            self.took(now.saturating_duration_since(sent));
        }
    }
}

/// A request of another node in progress, for the messages about it.
struct InProgress {
    left: CancellationToken,
    read: CancellationToken,
    /// For the parts of its body, if it has one.
    parts: Option<mpsc::Sender<(u32, bool, Bytes)>>,
}

/// A request of a client.
pub(super) struct Asking<'a> {
    pub(super) node: &'a str,
    /// The path of the mount.
    pub(super) path: &'a str,
    pub(super) token: &'a str,
    pub(super) request: Asked,
    /// How long the session's node may wait.
    pub(super) window: Duration,
}

/// What a client asks for.
pub(super) enum Asked {
    /// Its messages.
    Poll,
    /// That its messages are taken.
    Post { content_type: Option<String>, body: Bytes },
}

/// What another node asks for, for its client.
pub(crate) enum Request {
    /// Its messages, within this time.
    Poll { within: Duration },
    /// That its messages are taken: their length, and where they come from.
    Post { content_type: Option<String>, length: usize, within: Duration, body: Coming },
}

/// The body of a request at another node, once there is room for it. None if it does not come, or late.
pub(crate) type Coming = BoxFuture<'static, Option<Bytes>>;

/// An answer for a client of another node.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// The messages in it, until its client has been given them.
    pub(crate) unread: Option<super::longpoll_sessions::Unread>,
}

/// What becomes of a client's request.
pub(super) enum Relayed {
    /// Whether it has messages, too.
    Answered(StatusCode, AnswerBody, bool),
    /// There is no such session.
    Gone,
    /// The session's node has heard, and its answer did not arrive.
    Lost,
}

/// What another node says about a request of this node.
enum Said {
    Heard,
    Send,
    Part { status: u16, part: u32, last: bool, keeps: bool, body: Bytes },
    Gone,
}

/// A message between nodes, before its body.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head<'a> {
    /// The number of the request.
    id: u64,
    /// The node that sends it.
    from: Cow<'a, str>,
    what: What<'a>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What<'a> {
    /// A client asks for its messages.
    Poll {
        path: Cow<'a, str>,
        token: Cow<'a, str>,
        /// How long the answer may take, in milliseconds.
        within: u64,
    },
    /// A client has sent messages, in a body of this length.
    Post {
        path: Cow<'a, str>,
        token: Cow<'a, str>,
        content_type: Option<Cow<'a, str>>,
        length: usize,
        within: u64,
        /// How long the body may take once it is asked for, in milliseconds.
        heard: u64,
    },
    /// The session's node has the request.
    Heard,
    /// There is room for the body.
    Send,
    Body {
        part: u32,
        last: bool,
    },
    Answer {
        status: u16,
        part: u32,
        last: bool,
        /// The session's node waits to hear that its client has been given it.
        keeps: bool,
    },
    /// The client has been given the answer.
    Read,
    /// There is no such session.
    Gone,
    /// The client has gone.
    Left,
}

impl Relay {
    pub(crate) fn new(
        telemetry: &Telemetry,
        outboxes: Arc<Outboxes>,
        key: Option<SharedKey>,
    ) -> Self {
        let mut first = [0; 8];
        // Without random numbers, a late answer to a former process may be taken for one to this.
        let _ = getrandom::fill(&mut first);
        let outcome = |outcome: &str| {
            telemetry.counter(
                "socket.longpoll_relayed",
                "Requests of long-polling clients passed on to the node of their session, by outcome",
                [("outcome", outcome.to_owned())],
            )
        };
        Self {
            key,
            next: AtomicU64::new(u64::from_le_bytes(first)),
            waiting: Mutex::default(),
            at_once: Mutex::default(),
            asked: Mutex::default(),
            way: Mutex::default(),
            outboxes,
            lines: LineLimit::new(),
            answered: outcome("answered").into(),
            gone: outcome("gone"),
            silent: outcome("silent"),
        }
    }

    /// How many requests another node has answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.get()
    }

    /// Adds the name of this node to a session's token, if other nodes may be asked for it.
    pub(super) fn at_node(&self, signed: String, node: Option<&str>) -> String {
        let (Some(key), Some(node)) = (&self.key, node) else { return signed };
        let named = format!("{signed}{AT}{}", URL_SAFE_NO_PAD.encode(node));
        let signature = key.sign(&named);
        format!("{named}{AT}{signature}")
    }

    /// The name of the node in a token that one of the nodes has given.
    pub(super) fn node_of(&self, token: &str) -> Option<String> {
        let key = self.key.as_ref().filter(|_| token.len() <= LONGEST_TOKEN)?;
        let (named, signature) = token.rsplit_once(AT)?;
        let (_, node) = named.split_once(AT)?;
        if !key.made(named, signature) {
            return None;
        }
        let node = URL_SAFE_NO_PAD.decode(node).ok()?;
        let node = Some(node).filter(|name| (1..=LONGEST_NODE).contains(&name.len()))?;
        String::from_utf8(node).ok()
    }

    /// Lets a request of a session be passed on. None if too many are.
    pub(super) fn begin(
        self: &Arc<Self>,
        token: &str,
        room: OwnedSemaphorePermit,
    ) -> Option<Passing> {
        let token: Arc<str> = token.into();
        let mut all = self.at_once.lock();
        let count = all.entry(token.clone()).or_default();
        if *count == AT_ONCE {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Passing { relay: self.clone(), token, _room: room })
    }

    /// Passes a request on, and waits for its answer: for as long as the session may wait, and a little.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the session's node learns of it: messages that it has not sent by then wait for
    /// the next poll.
    pub(super) async fn ask(
        self: &Arc<Self>,
        pubsub: &PubSub,
        asking: Asking<'_>,
        passing: Passing,
    ) -> Relayed {
        let Asking { node, path, token, request, window } = asking;
        let (path, token) = (Cow::Borrowed(path), Cow::Borrowed(token));
        let (within, heard) = (window.min(LONGEST_WAIT), self.way.lock().heard_within());
        let (what, body) = match request {
            Asked::Poll => (What::Poll { path, token, within: millis(within) }, Bytes::new()),
            Asked::Post { content_type, body } => {
                let content_type = content_type.filter(|it| it.len() <= LONGEST_TYPE);
                let (content_type, length) = (content_type.map(Cow::Owned), body.len());
                let (within, heard) = (millis(within), millis(heard));
                (What::Post { path, token, content_type, length, within, heard }, body)
            }
        };
        let (said, mut saying) = mpsc::channel(SAID);
        let id = self.next.fetch_add(1, Relaxed);
        self.waiting.lock().insert(id, said);
        let (relay, pubsub, node) = (self.clone(), pubsub.clone(), Arc::from(node));
        let mut waiter = Waiter { relay, pubsub, node, id, owes: None, _passing: passing };
        let answer = match waiter.send(what, &[]) {
            Ok(()) => {
                waiter.owes = Some(Owed::Left);
                waiter.answer(&mut saying, body, heard, within).await
            }
            Err(NotSent) => None,
        };
        match &answer {
            Some(Answer::Whole { .. }) => self.answered.increment(1),
            Some(Answer::Gone) => self.gone.increment(1),
            Some(Answer::Lost) | None => self.silent.increment(1),
        }
        match answer {
            Some(Answer::Whole { status, body, keeps }) => {
                // Until the connection has taken all of it.
                waiter.owes = keeps.then_some(Owed::Left);
                let _bytes = OutboxBytes::new(&self.outboxes, body.len());
                let unwritten = Unwritten { _bytes, waiter, is_taken: AtomicBool::new(false) };
                Relayed::Answered(status, AnswerBody::kept(body, Arc::new(unwritten)), keeps)
            }
            Some(Answer::Gone) => {
                waiter.owes = None;
                Relayed::Gone
            }
            Some(Answer::Lost) => Relayed::Lost,
            None => Relayed::Gone,
        }
    }

    fn send(
        &self,
        pubsub: &PubSub,
        to: &str,
        id: u64,
        what: What<'_>,
        body: &[u8],
    ) -> Result<(), NotSent> {
        let from = pubsub.node_name().unwrap_or_default().into();
        let mut bytes = serde_json::to_vec(&Head { id, from, what }).map_err(|_| NotSent)?;
        bytes.reserve_exact(1 + body.len());
        bytes.push(b'\n');
        bytes.extend_from_slice(body);
        let broadcast = Broadcast::new(RELAYS, EVENT, Payload::binary(bytes));
        let broadcast = broadcast.map_err(|_| NotSent)?;
        pubsub.send_to_node(to, &broadcast).map_err(|error| {
            let error = described(&error);
            limited!(self.lines, WARN, error, "failed to pass on a long-polling client's request");
            NotSent
        })
    }

    /// Handles a message of another node. `mounts` are those of the endpoint.
    pub(crate) fn receive(
        self: &Arc<Self>,
        pubsub: &PubSub,
        mounts: &[Arc<dyn ErasedMount>],
        message: &Broadcast,
    ) {
        // What is no message of this kind comes from a node of another version.
        if message.event() != EVENT {
            return;
        }
        let Some(bytes) = message.payload().as_binary() else { return };
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
        let Ok(Head { id, from, what }) = serde_json::from_slice::<Head<'_>>(&bytes[..end]) else {
            return;
        };
        let body = bytes.slice(end + 1..);
        match what {
            What::Poll { path, token, within } => {
                let within = Duration::from_millis(within).min(LONGEST_WAIT);
                self.answer(pubsub, mounts, (from, id), (path, token), |_, _| {
                    (None, Request::Poll { within })
                });
            }
            What::Post { path, token, content_type, length, within, heard } => {
                let within = Duration::from_millis(within).min(LONGEST_WAIT);
                let heard = Duration::from_millis(heard).min(HEARD.1);
                self.answer(pubsub, mounts, (from, id), (path, token), |pubsub, from| {
                    let (sender, parts) = mpsc::channel(SAID + length.min(1 << 30) / PART);
                    let (relay, pubsub) = (self.clone(), pubsub.clone());
                    let body = async move {
                        relay.send(&pubsub, &from, id, What::Send, &[]).ok()?;
                        collect(parts, length, heard).await
                    };
                    let content_type = content_type.map(Cow::into_owned);
                    let body = body.boxed();
                    (Some(sender), Request::Post { content_type, length, within, body })
                });
            }
            What::Heard => self.said(id, Said::Heard),
            What::Send => self.said(id, Said::Send),
            What::Gone => self.said(id, Said::Gone),
            What::Answer { status, part, last, keeps } => {
                self.said(id, Said::Part { status, part, last, keeps, body });
            }
            What::Body { part, last } => {
                let asked = self.asked.lock();
                let it = asked.get(&(Arc::from(&*from), id));
                if let Some(parts) = it.and_then(|it| it.parts.as_ref()) {
                    // A part without room is missed, and so is the request.
                    let _ = parts.try_send((part, last, body));
                }
            }
            What::Read => self.is_over(&from, id, |it| it.read.cancel()),
            What::Left => self.is_over(&from, id, |it| it.left.cancel()),
        }
    }

    fn is_over(&self, from: &str, id: u64, how: impl Fn(&InProgress)) {
        let removed = self.asked.lock().remove(&(Arc::from(from), id));
        removed.iter().for_each(how);
    }

    /// Answers a request of another node.
    fn answer(
        self: &Arc<Self>,
        pubsub: &PubSub,
        mounts: &[Arc<dyn ErasedMount>],
        (from, id): (Cow<'_, str>, u64),
        (path, token): (Cow<'_, str>, Cow<'_, str>),
        request: impl FnOnce(&PubSub, Arc<str>) -> (Option<mpsc::Sender<(u32, bool, Bytes)>>, Request),
    ) {
        let from: Arc<str> = Arc::from(&*from);
        let found = mounts.iter().find(|mount| mount.path() == path);
        let found = found.and_then(|mount| Some((mount.clone(), mount.polled(&token)?)));
        let (parts, request) = request(pubsub, from.clone());
        let answering = match found {
            Some(_) => Answering::begin(self, &from, id, parts),
            None => None,
        };
        let (relay, token, pubsub) = (self.clone(), token.into_owned(), pubsub.clone());
        // In a task of its own, because an adapter may hold a lock while it delivers.
        let answer = async move {
            let send = |what, body: &[u8]| relay.send(&pubsub, &from, id, what, body);
            let (Some((mount, session)), Some(answering)) = (found, answering) else {
                let _ = send(What::Gone, &[]);
                return;
            };
            let answered = tokio::select! {
                biased;
                // What comes late says here that nothing waits for it.
                () = answering.left.cancelled() => return,
                answered = async {
                    send(What::Heard, &[]).ok()?;
                    Some(mount.answer_relayed(session, token, request).await)
                } => match answered {
                    Some(answered) => answered,
                    None => return,
                },
            };
            let Some(Answered { status, body, unread }) = answered else {
                let _ = send(What::Gone, &[]);
                return;
            };
            let (status, keeps) = (status.as_u16(), unread.is_some());
            let sent = parts_of(&body).try_for_each(|(part, last, body)| {
                send(What::Answer { status, part, last, keeps }, body)
            });
            let Some(unread) = unread else { return };
            let read = async {
                tokio::select! {
                    biased;
                    () = answering.read.cancelled() => true,
                    () = answering.left.cancelled() => false,
                }
            };
            if sent.is_ok() && Deadline::from_now(READ_WITHIN).limit(read).await == Ok(true) {
                unread.was_read();
            }
        };
        // An adapter may deliver on a thread of its own. Without a runtime there are no sessions either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(answer);
        }
    }

    fn said(&self, id: u64, said: Said) {
        match self.waiting.lock().get(&id) {
            // The client may just leave. A part without room is missed, and the client begins anew.
            Some(waiting) => drop(waiting.try_send(said)),
            None => self.way.lock().heard_late(id, Instant::now()),
        }
    }
}

/// The adapter has not taken a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NotSent;

/// The parts of a body: their numbers, whether they are the last, and their bytes. There is at least one.
fn parts_of(body: &[u8]) -> impl Iterator<Item = (u32, bool, &[u8])> {
    let count = body.len().div_ceil(PART).max(1);
    (0..count).map(move |at| {
        let part = &body[at * PART..body.len().min((at + 1) * PART)];
        (u32::try_from(at).unwrap_or(u32::MAX), at + 1 == count, part)
    })
}

/// The body of a request, from its parts. None if it is not of this length, or comes too late: its client
/// may have been told that its messages are not taken.
async fn collect(
    mut parts: mpsc::Receiver<(u32, bool, Bytes)>,
    length: usize,
    within: Duration,
) -> Option<Bytes> {
    let until = Deadline::from_now(within);
    let (mut whole, mut next) = (Vec::new(), 0);
    loop {
        let (part, is_last, body) = until.limit(parts.recv()).await.ok()??;
        // A process that has stood still finds both the part and the end of its time.
        let is_late = until.has_passed(Instant::now());
        if is_late || part != next || body.len() > length.saturating_sub(whole.len()) {
            return None;
        }
        if part == 0 && is_last {
            return (body.len() == length).then_some(body);
        }
        if whole.is_empty() {
            whole.reserve_exact(length);
        }
        whole.extend_from_slice(&body);
        next += 1;
        if is_last {
            return (whole.len() == length).then(|| whole.into());
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the session's node has said.
enum Answer {
    Whole { status: StatusCode, body: Bytes, keeps: bool },
    Gone,
    Lost,
}

/// The right to pass a request on. It ends when the answer has been written.
pub(super) struct Passing {
    relay: Arc<Relay>,
    token: Arc<str>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Passing {
    fn drop(&mut self) {
        let mut all = self.relay.at_once.lock();
        if let Some(count) = all.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.token);
            }
        }
    }
}

/// What the session's node has to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Left,
    Read,
}

/// A client that waits, or its answer. When this is dropped, its session's node learns of it.
struct Waiter {
    relay: Arc<Relay>,
    pubsub: PubSub,
    node: Arc<str>,
    id: u64,
    owes: Option<Owed>,
    _passing: Passing,
}

/// An answer that is to be written.
struct Unwritten {
    _bytes: OutboxBytes,
    waiter: Waiter,
    /// Whether the connection has taken its end.
    is_taken: AtomicBool,
}

impl Kept for Unwritten {
    fn ends(&self) {
        self.is_taken.store(true, Relaxed);
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        if *self.is_taken.get_mut() && self.waiter.owes.is_some() {
            self.waiter.owes = Some(Owed::Read);
        }
    }
}

impl Waiter {
    fn send(&self, what: What<'_>, body: &[u8]) -> Result<(), NotSent> {
        let Self { relay, pubsub, node, id, .. } = self;
        relay.send(pubsub, node, *id, what, body)
    }

    /// Waits for the answer. None if the session's node does not say that it has heard.
    async fn answer(
        &self,
        saying: &mut mpsc::Receiver<Said>,
        body: Bytes,
        heard: Duration,
        within: Duration,
    ) -> Option<Answer> {
        let sent = Instant::now();
        let (mut until, mut is_heard) = (Deadline::after(sent, heard), false);
        let (mut whole, mut next) = (Vec::new(), 0);
        loop {
            let said = until.limit(saying.recv()).await;
            let now = Instant::now();
            // A process that has stood still may find what was said long ago.
            let said = said.ok().flatten().filter(|_| !until.has_passed(now));
            if said.is_none() && !is_heard {
                self.relay.way.lock().given_up(self.id, sent);
            }
            if said.is_some() && !is_heard {
                (until, is_heard) = (Deadline::after(now, within.saturating_add(MARGIN)), true);
                self.relay.way.lock().took(now.saturating_duration_since(sent));
            }
            match said {
                Some(Said::Heard) => {}
                Some(Said::Send) => {
                    let mut parts = parts_of(&body);
                    let sent = parts.try_for_each(|(part, last, body)| {
                        self.send(What::Body { part, last }, body)
                    });
                    if sent.is_err() {
                        return Some(Answer::Lost);
                    }
                }
                Some(Said::Gone) => return Some(Answer::Gone),
                Some(Said::Part { status, part, last, keeps, body }) if part == next => {
                    let Ok(status) = StatusCode::from_u16(status) else {
                        return Some(Answer::Lost);
                    };
                    if part == 0 && last {
                        return Some(Answer::Whole { status, body, keeps });
                    }
                    whole.extend_from_slice(&body);
                    next += 1;
                    if last {
                        return Some(Answer::Whole { status, body: whole.into(), keeps });
                    }
                }
                // A part is missing, or the time is over.
                Some(Said::Part { .. }) | None => return is_heard.then_some(Answer::Lost),
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let removed = self.relay.waiting.lock().remove(&self.id);
        drop(removed);
        let _ = match self.owes {
            Some(Owed::Left) => self.send(What::Left, &[]),
            Some(Owed::Read) => self.send(What::Read, &[]),
            None => Ok(()),
        };
    }
}

/// A request of another node in progress.
struct Answering {
    relay: Arc<Relay>,
    from: Arc<str>,
    id: u64,
    left: CancellationToken,
    read: CancellationToken,
}

impl Answering {
    /// None if there are too many, or if this one is in progress.
    fn begin(
        relay: &Arc<Relay>,
        from: &Arc<str>,
        id: u64,
        parts: Option<mpsc::Sender<(u32, bool, Bytes)>>,
    ) -> Option<Self> {
        let (left, read) = (CancellationToken::new(), CancellationToken::new());
        let mut asked = relay.asked.lock();
        let key = (from.clone(), id);
        if asked.len() >= ASKED || asked.contains_key(&key) {
            return None;
        }
        asked.insert(key, InProgress { left: left.clone(), read: read.clone(), parts });
        drop(asked);
        Some(Self { relay: relay.clone(), from: from.clone(), id, left, read })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let removed = self.relay.asked.lock().remove(&(self.from.clone(), self.id));
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::Recorded;

    use super::*;

    fn relay(secret: Option<&str>) -> Arc<Relay> {
        let (telemetry, _) = Recorded::new();
        let key = secret.map(|secret| SharedKey::derive(secret, "test").unwrap());
        Arc::new(Relay::new(&telemetry, Arc::new(Outboxes::new(1 << 20)), key))
    }

    #[test]
    fn a_token_names_its_node_to_those_that_have_the_secret() {
        let secret = Some("a secret of all nodes");
        let [one, other] = [(); 2].map(|()| relay(secret));
        let token = one.at_node("signed.token".to_owned(), Some("node 1/ü"));
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)));
        assert_eq!(of_session(&token), "signed.token");
        assert_eq!(other.node_of(&token).as_deref(), Some("node 1/ü"));
        // One that a client has made up, in whole or in part.
        let named = "signed.token~bm9kZQ";
        let (_, signature) = token.rsplit_once(AT).unwrap();
        let forged = [named.to_owned(), format!("{named}~"), format!("{named}~{signature}")];
        let other_session = token.replacen("signed", "stolen", 1);
        let long = one.at_node("x".repeat(LONGEST_TOKEN), Some("node"));
        for token in forged.iter().chain([&other_session, &long]) {
            assert_eq!(other.node_of(token), None, "{token}");
        }
        // Without the secret, or with another one.
        assert_eq!(relay(Some("a secret of others 12")).node_of(&token), None);
        assert_eq!(relay(None).node_of(&token), None);
        for (relay, node) in [(relay(None), Some("node")), (one, None)] {
            assert_eq!(relay.at_node("signed.token".to_owned(), node), "signed.token");
        }
        assert_eq!(other.node_of("signed.token"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_split_and_put_together() {
        let within = Duration::from_secs(2);
        for length in [0, 1, PART, PART + 1, 3 * PART] {
            let body: Vec<_> = (0..=255_u8).cycle().take(length).collect();
            let all: Vec<_> = parts_of(&body).collect();
            assert_eq!(all.len(), length.div_ceil(PART).max(1));
            let sent = |parts: &[(u32, bool, &[u8])]| {
                let (sender, receiver) = mpsc::channel(10);
                for (part, last, body) in parts {
                    sender.try_send((*part, *last, Bytes::copy_from_slice(body))).unwrap();
                }
                (sender, receiver)
            };
            let (_sender, receiver) = sent(&all);
            assert_eq!(collect(receiver, length, within).await.unwrap(), body);
            // One that is longer or shorter than was said.
            let (_sender, receiver) = sent(&all);
            assert_eq!(collect(receiver, length + 1, within).await, None);
            if length > 0 {
                let (_sender, receiver) = sent(&all);
                assert_eq!(collect(receiver, length - 1, within).await, None);
            }
            if let [first, _, last] = &all[..] {
                let (_sender, receiver) = sent(&[*first, *last]);
                assert_eq!(collect(receiver, length, within).await, None, "one is lost");
                let (_sender, receiver) = sent(&[*first]);
                let begun = Instant::now();
                assert_eq!(collect(receiver, length, within).await, None, "the rest is late");
                assert_eq!(begun.elapsed(), within);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_there_in_time_and_is_found_later_is_late() {
        let (sender, receiver) = mpsc::channel(10);
        let mut collecting = Box::pin(collect(receiver, 1, Duration::from_secs(2)));
        assert!(futures::poll!(&mut collecting).is_pending());
        sender.try_send((0, true, Bytes::from_static(b"x"))).unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(collecting.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_slow_to_answer_gets_more_time() {
        let (mut way, now) = (Way::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(way.heard_within(), HEARD.0);
        way.given_up(7, now);
        way.given_up(8, now);
        way.heard_late(9, now + 9 * second);
        assert_eq!(way.heard_within(), HEARD.0, "it is no answer to one of these");
        way.heard_late(7, now + Duration::from_millis(2_500));
        assert_eq!(way.heard_within(), 5 * second);
        way.heard_late(8, now + 60 * second);
        assert_eq!(way.heard_within(), HEARD.1);
        (0..50).for_each(|_| way.took(Duration::from_millis(5)));
        assert_eq!(way.heard_within(), HEARD.0, "it is fast again");
        (0..1_000).for_each(|id| way.given_up(id, now));
        assert_eq!(way.late.len(), LATE);
    }

    #[test]
    fn requests_of_a_session_at_once_are_bounded() {
        let relay = relay(None);
        let room = Arc::new(tokio::sync::Semaphore::new(1_000));
        let begin = |token| relay.begin(token, room.clone().try_acquire_owned().unwrap());
        let mut passing: Vec<_> = (0..AT_ONCE).map(|_| begin("one").unwrap()).collect();
        assert!(begin("one").is_none());
        assert!(begin("other").is_some());
        passing.pop();
        assert!(begin("one").is_some());
        drop(passing);
        assert!(relay.at_once.lock().is_empty());
        assert_eq!(room.available_permits(), 1_000);
    }
}
