//! Requests of long-polling clients that meet a node other than that of their session.
//!
//! A session's token names its node. The node that a request meets passes it on to that node through the
//! adapter, and answers its client as that node says. Messages between nodes may be lost, so the session's
//! node says at once that it has heard, and what does not come in time counts as the end of the session:
//! the client then begins a new one, and joins its channels again.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::StatusCode;
use metrics::Counter;
use parking_lot::Mutex;
use pipeline_core::{Deadline, telemetry::Telemetry};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    endpoint::erased_mount::ErasedMount,
    outbox::Outboxes,
    payload::Payload,
    pubsub::{PubSub, broadcast::Broadcast},
    telemetry::{LineLimit, described, limited},
};

/// The topic of the messages between nodes. It never reaches subscribers.
pub(crate) const RELAYS: &str = "phx_longpoll:relay";

/// Their event.
const EVENT: &str = "relay";

/// What separates the name of the node in a token.
const AT: char = '~';

/// The longest name of a node in a token.
const LONGEST_NODE: usize = 255;

/// The longest token, in bytes: that of a session at a node with the longest name is shorter. It is in each
/// message about a request.
pub(super) const LONGEST_TOKEN: usize = 512;

/// How long the session's node may take to say that it has heard.
const HEARD: Duration = Duration::from_secs(2);

/// How long the answer may take beyond the time that the session's node may wait.
const MARGIN: Duration = Duration::from_secs(2);

/// The longest part of a body in one message. Servers between nodes have limits of their own.
const PART: usize = 256 << 10;

/// How many messages about one request may wait for its task.
const SAID: usize = 1024;

/// How many requests of other nodes may be in progress. Further ones are not heard.
const ASKED: usize = 1 << 16;

/// How many requests of other nodes may have arrived in part.
const PARTIAL: usize = 1024;

/// How many bytes they may have together.
const PARTIAL_BYTES: usize = 64 << 20;

/// How long the parts of a request may take.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);

/// How often requests that have not become whole in time are looked for, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Adds the name of its node to a session's token.
pub(super) fn at_node(signed: String, node: Option<&str>) -> String {
    match node {
        Some(node) => format!("{signed}{AT}{}", URL_SAFE_NO_PAD.encode(node)),
        None => signed,
    }
}

/// The signed part of a token, and the name of its node, if it has one.
pub(super) fn split(token: &str) -> (&str, Option<String>) {
    let Some((signed, node)) = token.split_once(AT) else { return (token, None) };
    let node =
        URL_SAFE_NO_PAD.decode(node).ok().filter(|name| (1..=LONGEST_NODE).contains(&name.len()));
    (signed, node.and_then(|name| String::from_utf8(name).ok()))
}

/// The requests that are passed on between this node and the others.
pub(crate) struct Relay {
    /// The number of the next request. The first is random, so that no answer to a former process of
    /// this name is taken for one to this.
    next: AtomicU64,
    /// The requests of this node's clients.
    waiting: Mutex<HashMap<u64, mpsc::Sender<Said>>>,
    /// The requests of other nodes.
    asked: Mutex<HashMap<(Arc<str>, u64), CancellationToken>>,
    partial: Mutex<Partials>,
    outboxes: Arc<Outboxes>,
    lines: LineLimit,
    answered: Counter,
    gone: Counter,
    silent: Counter,
}

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) node: &'a str,
    /// The path of the mount.
    pub(super) path: &'a str,
    pub(super) token: &'a str,
    pub(super) request: &'a Asked,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Its messages.
    Poll,
    /// That its messages are taken.
    Post { content_type: Option<String>, body: Bytes },
}

/// What becomes of a client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    Answered(StatusCode, Bytes),
    /// There is no such session.
    Gone,
    /// The session's node has heard, and its answer did not arrive.
    Lost,
}

/// The requests of which more parts are to come, by their node and number.
#[derive(Default)]
struct Partials {
    requests: HashMap<(String, u64), Partial>,
    /// The bytes that have arrived of all of them.
    bytes: usize,
    /// When those that are too old were looked for.
    looked_at: Option<Instant>,
}

/// A request of which more parts are to come.
struct Partial {
    since: Instant,
    next: u32,
    body: Vec<u8>,
}

impl Partials {
    fn remove(&mut self, key: &(String, u64)) -> Option<Partial> {
        let it = self.requests.remove(key)?;
        self.bytes -= it.body.len();
        Some(it)
    }

    /// Adds what has arrived of a request, if there is room for it.
    fn add(&mut self, key: (String, u64), it: Partial) {
        if self.requests.len() < PARTIAL && self.bytes + it.body.len() <= PARTIAL_BYTES {
            self.bytes += it.body.len();
            self.requests.insert(key, it);
        }
    }

    /// Removes requests that have not become whole in time.
    fn expire(&mut self, now: Instant) {
        if self.looked_at.is_some_and(|at| now.duration_since(at) < LOOK_EVERY) {
            return;
        }
        self.looked_at = Some(now);
        self.requests.retain(|_, it| now.duration_since(it.since) < WHOLE_WITHIN);
        self.bytes = self.requests.values().map(|it| it.body.len()).sum();
    }
}

/// What another node says about a request of this node.
enum Said {
    Heard,
    Part { status: u16, part: u32, last: bool, body: Bytes },
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
    Poll {
        path: Cow<'a, str>,
        token: Cow<'a, str>,
    },
    Post {
        path: Cow<'a, str>,
        token: Cow<'a, str>,
        content_type: Option<Cow<'a, str>>,
        part: u32,
        last: bool,
    },
    /// The session's node has the request.
    Heard,
    Answer {
        status: u16,
        part: u32,
        last: bool,
    },
    /// There is no such session.
    Gone,
    /// The client has gone.
    Left,
}

impl Relay {
    pub(crate) fn new(telemetry: &Telemetry, outboxes: Arc<Outboxes>) -> Self {
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
            next: AtomicU64::new(u64::from_le_bytes(first)),
            waiting: Mutex::default(),
            asked: Mutex::default(),
            partial: Mutex::default(),
            outboxes,
            lines: LineLimit::new(),
            answered: outcome("answered"),
            gone: outcome("gone"),
            silent: outcome("silent"),
        }
    }

    /// Passes a request on, and waits for its answer: for as long as the session may wait, and a little.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the session's node learns of it: messages that it has not sent by then wait for
    /// the next poll.
    pub(super) async fn ask(
        &self,
        pubsub: &PubSub,
        asking: Asking<'_>,
        window: Duration,
    ) -> Relayed {
        let (said, mut saying) = mpsc::channel(SAID);
        let id = self.next.fetch_add(1, Relaxed);
        self.waiting.lock().insert(id, said);
        let mut waiter = Waiter { relay: self, pubsub, node: asking.node, id, is_over: false };
        let relayed = match self.send_request(pubsub, id, asking) {
            Ok(()) => answer(&mut saying, window).await,
            Err(NotSent) => {
                // Earlier parts may have been sent. They are not kept for the rest.
                let Asking { request, .. } = asking;
                let in_parts = matches!(request, Asked::Post { body, .. } if body.len() > PART);
                waiter.is_over = !in_parts;
                None
            }
        };
        let (outcome, relayed) = match relayed {
            Some(relayed @ Relayed::Gone) => (&self.gone, relayed),
            Some(relayed @ Relayed::Lost) => (&self.silent, relayed),
            Some(relayed) => (&self.answered, relayed),
            None => (&self.silent, Relayed::Gone),
        };
        outcome.increment(1);
        waiter.is_over |= matches!(relayed, Relayed::Answered(..));
        match relayed {
            Relayed::Answered(status, body) => {
                Relayed::Answered(status, self.outboxes.counted(body))
            }
            relayed => relayed,
        }
    }

    fn send_request(&self, pubsub: &PubSub, id: u64, asking: Asking<'_>) -> Result<(), NotSent> {
        let Asking { node, path, token, request } = asking;
        let (path, token) = (Cow::Borrowed(path), Cow::Borrowed(token));
        match request {
            Asked::Poll => self.send(pubsub, node, id, What::Poll { path, token }, &[]),
            Asked::Post { content_type, body } => parts(body).try_for_each(|(part, last, body)| {
                let content_type = content_type.as_deref().map(Cow::Borrowed);
                let (path, token) = (path.clone(), token.clone());
                let what = What::Post { path, token, content_type, part, last };
                self.send(pubsub, node, id, what, body)
            }),
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
        self.partial.lock().expire(Instant::now());
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
        let find = |path: &str, token: &str| {
            let mount = mounts.iter().find(|mount| mount.path() == path)?;
            Some((mount.clone(), mount.polled(token)?))
        };
        let (found, token, request) = match what {
            What::Poll { path, token } => (find(&path, &token), token, Asked::Poll),
            What::Post { path, token, content_type, part, last } => {
                let found = find(&path, &token);
                // Nothing is kept for a session that is not there.
                let longest = found.as_ref().map_or(0, |(mount, _)| mount.max_message_size());
                let body = self.whole(&from, id, (part, last), body, longest);
                let body = match body {
                    Some(body) => body,
                    None if found.is_none() => Bytes::new(),
                    None => return,
                };
                let content_type = content_type.map(Cow::into_owned);
                (found, token, Asked::Post { content_type, body })
            }
            What::Heard => return self.said(id, Said::Heard),
            What::Gone => return self.said(id, Said::Gone),
            What::Answer { status, part, last } => {
                return self.said(id, Said::Part { status, part, last, body });
            }
            What::Left => {
                let left = self.asked.lock().remove(&(Arc::from(&*from), id));
                left.iter().for_each(CancellationToken::cancel);
                let partial = self.partial.lock().remove(&(from.into_owned(), id));
                drop(partial);
                return;
            }
        };
        let Some(answering) = Answering::begin(self, &from, id) else { return };
        let (token, pubsub) = (token.into_owned(), pubsub.clone());
        // In a task of its own, because an adapter may hold a lock while it delivers.
        let answer = async move {
            let Answering { relay, from, left, .. } = &answering;
            let send = |what, body: &[u8]| relay.send(&pubsub, from, id, what, body);
            let Some((mount, session)) = found else {
                let _ = send(What::Gone, &[]);
                return;
            };
            if send(What::Heard, &[]).is_err() {
                return;
            }
            let answer = tokio::select! {
                biased;
                answer = mount.answer_relayed(session, token, request) => answer,
                () = left.cancelled() => return,
            };
            let _ = match answer {
                Some((status, body)) => parts(&body).try_for_each(|(part, last, body)| {
                    send(What::Answer { status: status.as_u16(), part, last }, body)
                }),
                None => send(What::Gone, &[]),
            };
        };
        // An adapter may deliver on a thread of its own. Without a runtime there are no sessions either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(answer);
        }
    }

    fn said(&self, id: u64, said: Said) {
        if let Some(waiting) = self.waiting.lock().get(&id) {
            // The client may just leave. A part without room is missed, and the client begins anew.
            let _ = waiting.try_send(said);
        }
    }

    /// The whole body of a request, once all of its parts have arrived. A body that is longer than
    /// `longest` never becomes whole.
    fn whole(
        &self,
        from: &str,
        id: u64,
        (part, last): (u32, bool),
        body: Bytes,
        longest: usize,
    ) -> Option<Bytes> {
        if part == 0 && last {
            return (body.len() <= longest).then_some(body);
        }
        let key = (from.to_owned(), id);
        let mut partial = self.partial.lock();
        let begun = partial.remove(&key);
        let mut it = match (part, begun) {
            (0, _) => Partial { since: Instant::now(), next: 0, body: Vec::new() },
            (_, Some(it)) if it.next == part => it,
            _ => return None,
        };
        if body.len() > longest.saturating_sub(it.body.len()) {
            return None;
        }
        it.next += 1;
        it.body.extend_from_slice(&body);
        if last {
            return Some(it.body.into());
        }
        partial.add(key, it);
        None
    }
}

/// The adapter has not taken a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NotSent;

/// The parts of a body: their numbers, whether they are the last, and their bytes. There is at least one.
fn parts(body: &[u8]) -> impl Iterator<Item = (u32, bool, &[u8])> {
    let count = body.len().div_ceil(PART).max(1);
    (0..count).map(move |at| {
        let part = &body[at * PART..body.len().min((at + 1) * PART)];
        (u32::try_from(at).unwrap_or(u32::MAX), at + 1 == count, part)
    })
}

/// Waits for the answer to a request. None if the session's node does not say that it has heard.
async fn answer(saying: &mut mpsc::Receiver<Said>, window: Duration) -> Option<Relayed> {
    let until = Deadline::from_now(window.saturating_add(MARGIN));
    let (mut heard_within, mut is_heard) = (Deadline::from_now(HEARD), false);
    let (mut whole, mut next) = (Vec::new(), 0);
    loop {
        match heard_within.limit(saying.recv()).await {
            Ok(Some(Said::Heard)) => (heard_within, is_heard) = (until, true),
            Ok(Some(Said::Gone)) => return Some(Relayed::Gone),
            Ok(Some(Said::Part { status, part, last, body })) if part == next => {
                if part == 0 && last {
                    let status = StatusCode::from_u16(status).ok()?;
                    return Some(Relayed::Answered(status, body));
                }
                (heard_within, is_heard) = (until, true);
                whole.extend_from_slice(&body);
                next += 1;
                if last {
                    let status = StatusCode::from_u16(status).ok()?;
                    return Some(Relayed::Answered(status, whole.into()));
                }
            }
            // A part is missing, or the time is over.
            Ok(Some(Said::Part { .. }) | None) | Err(_) => {
                return is_heard.then_some(Relayed::Lost);
            }
        }
    }
}

/// A client that waits. When this is dropped, its session's node learns of it, unless all is over.
struct Waiter<'a> {
    relay: &'a Relay,
    pubsub: &'a PubSub,
    node: &'a str,
    id: u64,
    is_over: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let removed = self.relay.waiting.lock().remove(&self.id);
        drop(removed);
        if !self.is_over {
            let _ = self.relay.send(self.pubsub, self.node, self.id, What::Left, &[]);
        }
    }
}

/// A request of another node in progress.
struct Answering {
    relay: Arc<Relay>,
    from: Arc<str>,
    id: u64,
    left: CancellationToken,
}

impl Answering {
    /// None if there are too many.
    fn begin(relay: &Arc<Relay>, from: &str, id: u64) -> Option<Self> {
        let (from, left): (Arc<str>, _) = (from.into(), CancellationToken::new());
        let mut asked = relay.asked.lock();
        if asked.len() >= ASKED {
            return None;
        }
        asked.insert((from.clone(), id), left.clone());
        drop(asked);
        Some(Self { relay: relay.clone(), from, id, left })
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
    use super::*;

    #[test]
    fn a_token_names_its_node() {
        let token = at_node("signed.token".to_owned(), Some("node 1/ü"));
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)));
        assert_eq!(split(&token), ("signed.token", Some("node 1/ü".to_owned())));
        assert_eq!(split("signed.token"), ("signed.token", None));
        assert_eq!(at_node("signed.token".to_owned(), None), "signed.token");
        let long = at_node("x".to_owned(), Some(&"n".repeat(256)));
        for token in ["x~", "x~*", "x~_w", &*long] {
            assert_eq!(split(token), ("x", None), "{token}");
        }
    }

    #[test]
    fn a_body_is_split_and_put_together() {
        let (telemetry, _) = pipeline_test_support::Recorded::new();
        let relay = Relay::new(&telemetry, Arc::new(Outboxes::new(1 << 20)));
        for length in [0, 1, PART, PART + 1, 3 * PART] {
            let body: Vec<_> = (0..=255_u8).cycle().take(length).collect();
            let all: Vec<_> = parts(&body).collect();
            assert_eq!(all.len(), length.div_ceil(PART).max(1));
            let whole = all.iter().filter_map(|&(part, last, body)| {
                relay.whole("left", 7, (part, last), Bytes::copy_from_slice(body), length)
            });
            assert_eq!(whole.collect::<Vec<_>>(), vec![body.clone()], "{length}");
            if let [first, _, last] = &all[..] {
                let part = |(part, last, body): (u32, bool, &[u8])| {
                    relay.whole("left", 8, (part, last), Bytes::copy_from_slice(body), length)
                };
                assert_eq!((part(*first), part(*last), part(*last)), (None, None, None), "lost");
            }
        }
        let partial = relay.partial.lock();
        assert_eq!((partial.requests.len(), partial.bytes), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_in_parts_are_bounded_each_and_together_and_by_age() {
        let (telemetry, _) = pipeline_test_support::Recorded::new();
        let relay = Relay::new(&telemetry, Arc::new(Outboxes::new(1 << 20)));
        let body = Bytes::from(vec![0; PART]);
        let whole = |id, part, last, longest| {
            relay.whole("left", id, (part, last), body.clone(), longest).map(|body| body.len())
        };
        let held = || {
            let partial = relay.partial.lock();
            (partial.requests.len(), partial.bytes)
        };
        // One that is longer than a message may be, whole or in parts.
        assert_eq!(whole(1, 0, true, PART - 1), None);
        assert_eq!((whole(1, 0, false, 2 * PART), held()), (None, (1, PART)));
        assert_eq!((whole(1, 1, false, 2 * PART), held()), (None, (1, 2 * PART)));
        assert_eq!((whole(1, 2, true, 2 * PART), held()), (None, (0, 0)));
        // All together, whether new ones begin or those that have begun grow.
        let room = PARTIAL_BYTES / PART;
        for id in 0..room as u64 + 1 {
            assert_eq!(whole(id, 0, false, 2 * PART), None);
        }
        assert_eq!(held(), (room, PARTIAL_BYTES));
        assert_eq!(
            (whole(0, 1, false, 3 * PART), held()),
            (None, (room - 1, PARTIAL_BYTES - PART))
        );
        relay.partial.lock().expire(Instant::now());
        tokio::time::advance(WHOLE_WITHIN).await;
        relay.partial.lock().expire(Instant::now());
        assert_eq!(held(), (0, 0));
        assert_eq!(whole(1, 1, true, 2 * PART), None);
    }
}
