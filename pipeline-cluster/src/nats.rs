//! Subjects of NATS.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    iter, mem,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr, ServerError, Subscriber};
use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    stream::{AbortHandle, Abortable, SelectAll},
};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{coop::unconstrained, yield_now},
    time::{Duration, Instant},
};

use crate::{
    ClusterError,
    core::{Core, random},
    driver::{Refusals, Server, Session, SessionError},
    inbound::{Inbound, Subscription},
    packing::Message,
};

/// How many subscriptions may wait for the task that reads them.
const NEW: usize = 1024;

/// How many messages are read at once.
const AT_ONCE: usize = 64;

/// How long messages are read or delivered before all else is looked at.
const SLICE: Duration = Duration::from_millis(1);

/// How many subjects are remembered to which the server has refused to publish.
const UNPUBLISHED: usize = 4_096;

/// How many messages are sent before an answer, on a connection on which the server has refused some. The client keeps
/// 128 refusals that were not looked at, and drops further ones.
const REFUSABLE: usize = 64;

/// What subjects of pings have in them, and others have not. Without pings, a connection is of no use.
const PINGS: &str = ".1.ping.";

/// The longest time between two pings of the client itself. The task has pings of its own.
const CLIENT_PINGS: Duration = Duration::from_secs(60);

/// Servers of NATS.
#[derive(Debug)]
pub(crate) struct Nats {
    servers: Vec<ServerAddr>,
}

/// The payloads of a subject, each with the subscription that has brought it.
struct Payloads {
    messages: Abortable<Subscriber>,
    of: Subscription,
}

impl Stream for Payloads {
    type Item = (Subscription, Bytes);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = ready!(Pin::new(&mut self.messages).poll_next(cx));
        Poll::Ready(message.map(|message| (self.of.clone(), message.payload)))
    }
}

/// What the task that reads is asked for.
enum Asked<S> {
    /// To read a new subscription as well.
    Also(S),
    /// To read what is there, and to answer whether that was all.
    Now(oneshot::Sender<bool>),
}

/// A connection to NATS.
pub(crate) struct NatsSession {
    core: Arc<Core>,
    client: Client,
    events: Arc<Events>,
    reader: mpsc::Sender<Asked<Payloads>>,
    inbound: Arc<Inbound>,
    reading: tokio::task::AbortHandle,
    /// The subscription to each subject, and what ends it.
    subscribed: Mutex<HashMap<String, (Subscription, AbortHandle)>>,
    echoes: Arc<Echoes>,
    hearing: tokio::task::AbortHandle,
}

/// What a node sends to itself over the server, to learn that the server has handled what it was sent before. The server's
/// answer that a subject has no subscribers would not do: a program may subscribe to all subjects.
struct Echoes {
    subject: String,
    last: AtomicU64,
    /// What tells that a number has come back.
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Echoes {
    fn new(core: &Core) -> Self {
        let subject = format!("{}{PINGS}{:016x}", core.options.prefix, random());
        Self { subject, last: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// The next message, and what tells that it has come back.
    fn next(&self) -> (Bytes, oneshot::Receiver<()>) {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let (back, is_back) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, back| !back.is_closed());
        waiting.insert(number, back);
        (Bytes::copy_from_slice(&number.to_be_bytes()), is_back)
    }

    /// A message has come back. One of others is none of ours.
    fn heard(&self, message: &[u8]) {
        let number = message.try_into().map(u64::from_be_bytes);
        if let Some(back) = number.ok().and_then(|number| self.waiting.lock().remove(&number)) {
            // Who has waited may be gone.
            let _ = back.send(());
        }
    }
}

/// What the client has said about a connection.
#[derive(Debug, Default)]
struct Events {
    /// Notified when the connection ends, or the server has refused something.
    lost: Notify,
    /// The last error that the server has said. It says it by the way, and answers as if nothing were wrong.
    error: Mutex<Option<String>>,
    unpublished: Mutex<Unpublished>,
}

/// What the server has refused to publish on a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unpublished {
    /// How many messages to each subject, since that was counted.
    heard: HashMap<String, usize>,
    /// Subjects of what was counted. Further messages to them are refused too, whenever that is heard.
    subjects: HashSet<String>,
    /// What the server has said last.
    error: String,
    /// Messages were sent, and are counted when the server has answered.
    is_publishing: bool,
}

impl Events {
    fn handle(&self, event: Event, inbound: &Inbound) {
        match event {
            Event::Disconnected | Event::Closed => self.lost.notify_one(),
            // The others were published, and this one would be refused again.
            Event::ServerError(ServerError::Other(error))
                if is_unpublished(&error) && !error.contains(PINGS) =>
            {
                let Unpublished { heard, subjects, error: last, .. } =
                    &mut *self.unpublished.lock();
                let subject = error.split('"').nth(1).unwrap_or_default();
                let has_room = heard.contains_key(subject) || heard.len() < UNPUBLISHED;
                if has_room && !subjects.contains(subject) {
                    *heard.entry(subject.to_owned()).or_default() += 1;
                }
                *last = error;
            }
            Event::ServerError(ServerError::Other(error)) => {
                let refuses = is_refusal(&error);
                *self.error.lock() = Some(error);
                if refuses {
                    self.lost.notify_one();
                }
            }
            // The task that reads has not come to it in time.
            Event::SlowConsumer(_) => inbound.missed(),
            _ => {}
        }
    }

    /// The refusal of a subscription that the server has said.
    fn refused(&self) -> Result<(), SessionError> {
        let error = self.error.lock();
        match &*error {
            Some(error) if is_refusal(error) => Err(SessionError::Refused(error.clone())),
            _ => Ok(()),
        }
    }

    /// Which of these messages the server has refused to publish: all of a subject, or none. What it has refused
    /// before and has said late is counted, each message as one broadcast.
    fn refusals(&self, core: &Core, messages: &[Message]) -> Refusals {
        let mut unpublished = self.unpublished.lock();
        unpublished.is_publishing = false;
        let heard = mem::take(&mut unpublished.heard);
        if heard.is_empty() && unpublished.subjects.is_empty() {
            return Refusals::default();
        }
        let mut refusals = Refusals { messages: Vec::new(), error: unpublished.error.clone() };
        let mut of_now = HashSet::new();
        for (at, message) in messages.iter().enumerate() {
            let subject = core.channel_name(message.channel);
            if heard.contains_key(&subject) || unpublished.subjects.contains(&subject) {
                refusals.messages.push(at);
                of_now.insert(subject);
            }
        }
        let late = heard.iter().filter(|(subject, _)| !of_now.contains(*subject));
        let late = late.map(|(_, messages)| messages).sum();
        let room = UNPUBLISHED - unpublished.subjects.len();
        unpublished.subjects.extend(heard.into_keys().take(room));
        drop(unpublished);
        if late > 0 {
            core.unpublished(late, &refusals.error);
        }
        refusals
    }

    /// Messages are sent from now on, of which the server may refuse some. Returns how many of them before it answers.
    fn publishes(&self) -> usize {
        let mut unpublished = self.unpublished.lock();
        unpublished.is_publishing = true;
        let has_refused = !unpublished.subjects.is_empty() || !unpublished.heard.is_empty();
        if has_refused { REFUSABLE } else { usize::MAX }
    }

    /// Counts what the server has said late, if nothing is on the way to which it may belong.
    fn count_late(&self, core: &Core) {
        let is_publishing = self.unpublished.lock().is_publishing;
        if !is_publishing {
            self.refusals(core, &[]);
        }
    }

    /// Why the connection has ended.
    fn reason(&self) -> SessionError {
        match &*self.error.lock() {
            Some(error) if is_refusal(error) => SessionError::Refused(error.clone()),
            Some(error) => SessionError::Lost(format!("the server has closed it: {error}")),
            None => SessionError::Lost("the server has closed it".to_owned()),
        }
    }
}

/// Whether an error of the server says that it does not do what it was asked for, although it keeps the connection.
fn is_refusal(error: &str) -> bool {
    let error = error.to_lowercase();
    ["permissions violation", "maximum subscriptions exceeded"]
        .iter()
        .any(|refusal| error.starts_with(refusal))
}

/// Whether an error of the server says that it has not published a message.
fn is_unpublished(error: &str) -> bool {
    error.to_lowercase().starts_with("permissions violation for publish")
}

impl Nats {
    pub(crate) fn new(urls: &str) -> Result<Self, ClusterError> {
        // The error may quote the address, which may have a password.
        let servers =
            urls.split(',').map(|url| url.trim().parse().map_err(|_| ClusterError::Address));
        Ok(Self { servers: servers.collect::<Result<_, _>>()? })
    }
}

impl Server for Nats {
    type Session = NatsSession;

    async fn connect(&self, core: &Arc<Core>) -> Result<NatsSession, SessionError> {
        let (events, inbound) = (Arc::<Events>::default(), Arc::new(Inbound::new()));
        let (handler, counted) = (events.clone(), inbound.clone());
        let options = authenticated(ConnectOptions::new(), &self.servers)
            .name(&*core.name)
            // The task connects again itself, and subscribes again.
            .max_reconnects(1)
            // A client whose server is silent lives until it has noticed that itself.
            .ping_interval(core.options.timeout.min(CLIENT_PINGS))
            .connection_timeout(core.options.timeout)
            .request_timeout(None)
            .event_callback(move |event| {
                handler.handle(event, &counted);
                std::future::ready(())
            });
        let client = options.connect(&self.servers).await.map_err(|error| failed(&error))?;
        let echoes = Arc::new(Echoes::new(core));
        let back = client.subscribe(echoes.subject.clone()).await;
        let mut back = back.map_err(|error| failed(&error))?;
        let hears = echoes.clone();
        let hearing = tokio::spawn(async move {
            while let Some(message) = back.next().await {
                hears.heard(&message.payload);
            }
        });
        let (reader, asked) = mpsc::channel(NEW);
        let reading = tokio::spawn(read(asked, inbound.clone())).abort_handle();
        Ok(NatsSession {
            core: core.clone(),
            client,
            events,
            reader,
            inbound,
            reading,
            subscribed: Mutex::default(),
            echoes,
            hearing: hearing.abort_handle(),
        })
    }
}

/// Options with the user and the password of the first address that has them, which the client leaves out. A user without a
/// password is a token.
fn authenticated(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let named = servers.iter().find_map(|it| Some((it.username()?, it.password())));
    match named.map(|(user, password)| (decoded(user), password.map(decoded))) {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    }
}

/// A part of an address, without its escapes.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8().map_or_else(|_| part.to_owned(), Cow::into_owned)
}

/// Reads what arrives, so that it waits where it is bounded. The client itself reads all that its server sends.
///
/// Each time it runs, it reads as much as there is, so that no more waits in the client than what that reads in a turn:
/// tokio lets a task read 128 times, and the client has 64 KiB for each.
async fn read<S: Stream<Item = (Subscription, Bytes)> + Unpin>(
    mut asked: mpsc::Receiver<Asked<S>>,
    inbound: Arc<Inbound>,
) {
    let mut payloads: SelectAll<S> = SelectAll::new();
    loop {
        tokio::select! {
            biased;
            Some(asked) = asked.recv() => match asked {
                Asked::Also(new) => payloads.push(new),
                Asked::Now(answer) => {
                    let is_all = read_what_is_there(&mut payloads, &inbound);
                    // The one that has asked may be gone.
                    let _ = answer.send(is_all);
                }
            },
            Some(first) = payloads.next() => {
                inbound.push([first]);
                if !read_what_is_there(&mut payloads, &inbound) {
                    yield_now().await;
                }
            }
            else => return,
        }
    }
}

/// Reads what has arrived, for so long at most. Returns whether that was all.
fn read_what_is_there<S: Stream<Item = (Subscription, Bytes)> + Unpin>(
    payloads: &mut SelectAll<S>,
    inbound: &Inbound,
) -> bool {
    let since = Instant::now();
    loop {
        let mut is_all = false;
        let next = iter::from_fn(|| {
            // Without the limit of tokio, which would look like the end of what is there.
            let next = unconstrained(payloads.next()).now_or_never().flatten();
            is_all = next.is_none();
            next
        });
        inbound.push(next.take(AT_ONCE));
        if is_all {
            return true;
        }
        if since.elapsed() >= SLICE {
            return false;
        }
    }
}

impl Drop for NatsSession {
    fn drop(&mut self) {
        self.reading.abort();
        self.hearing.abort();
        self.inbound.end(&self.core);
    }
}

impl NatsSession {
    /// Returns when the server has handled what it was sent before, and what it has sent before has arrived.
    async fn round_trip(&self) -> Result<(), SessionError> {
        let (message, is_back) = self.echoes.next();
        let published = self.client.publish(self.echoes.subject.clone(), message).await;
        published.map_err(|error| failed(&error))?;
        if is_back.await.is_err() {
            return Err(self.events.reason());
        }
        // What the server has said before is in another task of the client.
        yield_now().await;
        // The client leaves out what it has to say when there is too much of that, also that it has connected again.
        if self.client.statistics().connects.load(Relaxed) > 1 {
            return Err(self.events.reason());
        }
        Ok(())
    }
}

impl Session for NatsSession {
    fn max_message(&self) -> usize {
        self.client.server_info().max_payload
    }

    async fn publish(&self, core: &Core, messages: &[Message]) -> Result<Refusals, SessionError> {
        let mut refusals = Refusals::default();
        let mut at = 0;
        while at < messages.len() {
            let left = &messages[at..];
            let part = &left[..self.events.publishes().min(left.len())];
            for Message { channel, bytes, .. } in part {
                let published = self.client.publish(core.channel_name(*channel), bytes.clone());
                published.await.map_err(|error| failed(&error))?;
            }
            self.round_trip().await?;
            let Refusals { messages: refused, error } = self.events.refusals(core, part);
            refusals.messages.extend(refused.into_iter().map(|refused| at + refused));
            refusals.error = error;
            at += part.len();
        }
        Ok(refusals)
    }

    async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
        for name in names {
            let subscriber = self.client.subscribe(name.clone()).await;
            let subscriber = subscriber.map_err(|error| failed(&error))?;
            let (end, ended) = AbortHandle::new_pair();
            let of = Subscription::default();
            let payloads = Payloads { messages: Abortable::new(subscriber, ended), of: of.clone() };
            self.reader.send(Asked::Also(payloads)).await.map_err(|error| failed(&error))?;
            self.subscribed.lock().insert(name.clone(), (of, end));
        }
        self.round_trip().await?;
        self.events.refused()
    }

    async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
        let mut subscribed = self.subscribed.lock();
        for (of, end) in names.iter().filter_map(|name| subscribed.remove(name)) {
            of.end();
            end.abort();
        }
        Ok(())
    }

    async fn ping(&self, core: &Core) -> Result<(), SessionError> {
        let asked = Instant::now();
        self.round_trip().await?;
        self.events.count_late(core);
        let (answer, answered) = oneshot::channel();
        self.reader.send(Asked::Now(answer)).await.map_err(|error| failed(&error))?;
        if answered.await.map_err(|error| failed(&error))? {
            self.inbound.read_until(asked);
        }
        core.clock.follow_wall();
        Ok(())
    }

    async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
        Ok(None)
    }

    async fn receive(&self, core: &Core) -> SessionError {
        let mut lost = pin!(self.events.lost.notified());
        loop {
            tokio::select! {
                biased;
                () = &mut lost => return self.events.reason(),
                () = self.inbound.ready() => {}
            }
            // What is there already, without a look at all else for each.
            let since = Instant::now();
            let is_slice = loop {
                let Some(message) = self.inbound.take() else { break false };
                core.receive(&message);
                if since.elapsed() >= SLICE {
                    break true;
                }
            };
            if let Some(dropped) = self.inbound.dropped(Instant::now()) {
                core.overrun(dropped);
            }
            if is_slice {
                // The node sends and subscribes in the same task.
                yield_now().await;
            }
        }
    }
}

fn failed(error: &dyn std::error::Error) -> SessionError {
    SessionError::Lost(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::Channel;

    #[test]
    fn escapes_in_a_user_and_a_password_are_read() {
        for (part, expected) in [
            ("s%C3%BC%3a%40", "sü:@"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz%ff", "%zz%ff"),
            ("", ""),
        ] {
            assert_eq!(decoded(part), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_the_client_has_read_is_taken_from_it_at_once() {
        let (reader, asked) = mpsc::channel(NEW);
        let inbound = Arc::new(Inbound::new());
        let reading = tokio::spawn(read(asked, inbound.clone()));
        let mut subjects = Vec::new();
        for _ in 0..3 {
            let (subject, mut payloads) = mpsc::channel(3_000);
            let payloads = futures::stream::poll_fn(move |cx| payloads.poll_recv(cx));
            let payloads = payloads.map(|payload| (Subscription::default(), payload));
            assert!(reader.send(Asked::Also(payloads)).await.is_ok());
            subjects.push(subject);
        }
        yield_now().await;
        for subject in &subjects {
            (0..3_000).for_each(|_| subject.try_send(Bytes::from_static(b"news")).unwrap());
        }
        // The task that reads runs once.
        yield_now().await;
        assert_eq!(iter::from_fn(|| inbound.take()).count(), 9_000);
        let (answer, answered) = oneshot::channel();
        assert!(reader.send(Asked::Now(answer)).await.is_ok());
        assert!(answered.await.unwrap(), "nothing was there");
        reading.abort();
    }

    #[tokio::test]
    async fn all_messages_to_a_subject_that_was_refused_are_refused_and_none_is_counted_twice() {
        let (telemetry, recorded) = pipeline_test_support::Recorded::new();
        let options = crate::ClusterOptions::new("shop").telemetry(telemetry);
        let (core, events, inbound) =
            (Core::new(options).unwrap(), Events::default(), Inbound::new());
        let messages = [1, 2, 1, 3].map(|topic| Message {
            channel: Channel::Topic(topic),
            bytes: Bytes::new(),
            frames: 1,
            is_request: false,
            tries: 0,
        });
        let says = |topic| {
            let subject = core.channel_name(Channel::Topic(topic));
            let error = format!("Permissions Violation for Publish to {subject:?}");
            events.handle(Event::ServerError(ServerError::Other(error)), &inbound);
        };
        let refused = |messages| events.refusals(&core, messages).messages;
        assert_eq!((events.publishes(), refused(&messages)), (usize::MAX, vec![]));
        assert_eq!(events.publishes(), usize::MAX);
        (0..2).for_each(|_| says(1));
        // Pings are answered at any time.
        events.count_late(&core);
        assert_eq!((refused(&messages), events.publishes()), (vec![0, 2], REFUSABLE));
        // The server says it late, of these and of the next ones.
        assert_eq!(refused(&messages), [0, 2]);
        (0..4).for_each(|_| says(1));
        assert_eq!(refused(&messages[1..2]), [0; 0]);
        assert_eq!(recorded.counters("pipeline.cluster.dropped"), []);
        // What was counted as sent, before it was known that the subject is refused.
        says(3);
        events.count_late(&core);
        let dropped = recorded.counters("pipeline.cluster.dropped");
        assert_eq!(dropped, [("reason=refused".to_owned(), 1)]);
        assert_eq!(refused(&messages), [0, 2, 3]);
    }

    #[tokio::test]
    async fn what_the_server_says_by_the_way_is_the_reason_of_an_end() {
        let (events, inbound) = (Events::default(), Inbound::new());
        let says = |error: &str| {
            events.handle(Event::ServerError(ServerError::Other(error.to_owned())), &inbound);
        };
        assert_eq!(events.reason().to_string(), "the connection is lost: the server has closed it");
        says("Stale Connection");
        let reason = events.reason().to_string();
        assert_eq!(reason, "the connection is lost: the server has closed it: Stale Connection");
        let unpublished = "Permissions Violation for Publish to \"shop.1.t.00001\"";
        (0..2).for_each(|_| says(unpublished));
        let heard = HashMap::from([("shop.1.t.00001".to_owned(), 2)]);
        assert_eq!(events.unpublished.lock().heard, heard);
        events.refused().unwrap();
        assert!(events.lost.notified().now_or_never().is_none(), "it has not ended yet");
        for refusal in
            ["Permissions Violation for Subscription to \"shop\"", "maximum subscriptions exceeded"]
        {
            says(refusal);
            events.lost.notified().now_or_never().unwrap();
            assert!(matches!(events.refused(), Err(SessionError::Refused(_))));
        }
        events.handle(Event::SlowConsumer(1), &inbound);
        assert_eq!(inbound.dropped(Instant::now()), Some(1));
    }
}
