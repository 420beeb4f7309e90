//! Clients that come to fetch their messages, and live between their requests.

use std::{
    collections::HashMap,
    future::poll_fn,
    mem,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use futures::FutureExt;
use parking_lot::Mutex;
use pipeline_core::Deadline;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::coop::unconstrained,
    time::{self, Instant},
};

use super::{
    read_pace::{ReadPace, cost},
    websocket::{pay, silence},
};
use crate::{
    end::SocketEnd,
    endings::Endings,
    inbox::{self, Held},
    longpoll::LongPoll,
    outbox::Outbox,
    protocol::{frame::Frame, message::Received},
    session::Session,
    socket::Socket,
    token::Signer,
};

/// What the tokens of sessions are signed for.
const SALT: &str = "longpoll";

/// How many requests of one client may wait for its session. Other polls wait for their turn to do so; others
/// that say something are refused.
const REQUESTS: usize = 8;

/// How many places of the table may be free before it gives some back.
const SPARE: usize = 1024;

/// The clients of a mount that poll.
pub(crate) struct Polled {
    pub(super) window: Duration,
    signer: Signer,
    open: Arc<Open>,
    /// How many more sessions there may be.
    room: Arc<Semaphore>,
}

/// The sessions that are open, by their numbers.
#[derive(Default)]
struct Open {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, Door>,
    /// How many there have been.
    count: u64,
}

/// The way to a session.
#[derive(Clone)]
pub(super) struct Door {
    outbox: Arc<Outbox>,
    polls: mpsc::Sender<Poll>,
    posts: mpsc::Sender<Post>,
    bodies: Arc<Bodies>,
}

/// What the requests of one client carry, while it is read and handled.
struct Bodies {
    /// How many more there may be.
    turns: Arc<Semaphore>,
    /// For the one that may go on although there is no room in the inbox.
    first: Arc<Semaphore>,
    /// What has come of them. It is not the session's, so that what a client says in a request does not wait
    /// for the room that the request itself takes.
    inbox: Arc<inbox::Inbox>,
}

/// A body that may be read.
pub(crate) struct Body {
    /// As many bytes as have come.
    pub(super) held: Held,
    /// Where to ask to be first, and that it is.
    ask: Arc<Semaphore>,
    first: Option<OwnedSemaphorePermit>,
    _turn: OwnedSemaphorePermit,
}

/// A client that waits for messages.
struct Poll {
    answer: oneshot::Sender<Vec<Frame>>,
}

/// What a client said.
struct Post {
    received: Received,
    taken: oneshot::Sender<()>,
}

/// The session ended before it took what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotTaken;

/// What requests bring to a session, and its place in the table.
pub(super) struct Inbox {
    polls: mpsc::Receiver<Poll>,
    posts: mpsc::Receiver<Post>,
    place: Place,
}

/// A session's place in the table, for as long as it can be found there.
struct Place {
    open: Weak<Open>,
    number: u64,
}

impl Polled {
    /// Makes a key of its own.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(crate) fn new(options: &LongPoll) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let signer = Signer::new(&secret, SALT).expect("64 bytes are enough for a secret");
        let signer = signer.max_age(options.max_age);
        let room = Arc::new(Semaphore::new(options.max_sessions.min(Semaphore::MAX_PERMITS)));
        Ok(Self { window: options.window, signer, open: Arc::default(), room })
    }

    /// Reserves room for a session, for as long as what is returned lives. None if there are too many.
    pub(super) fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// Makes a place for a session. Returns its token.
    pub(super) fn enter(
        &self,
        outbox: &Arc<Outbox>,
        bodies: Arc<inbox::Inbox>,
        now: SystemTime,
    ) -> (String, Inbox) {
        let (polls, polled) = mpsc::channel(REQUESTS);
        let (posts, posted) = mpsc::channel(REQUESTS);
        let mut table = self.open.table.lock();
        table.count += 1;
        let number = table.count;
        let [turns, first] = [REQUESTS, 1].map(|count| Arc::new(Semaphore::new(count)));
        let bodies = Arc::new(Bodies { turns, first, inbox: bodies });
        table.sessions.insert(number, Door { outbox: outbox.clone(), polls, posts, bodies });
        drop(table);
        let token = self.signer.sign(&number, now).expect("a number can be expressed");
        let place = Place { open: Arc::downgrade(&self.open), number };
        (token, Inbox { polls: polled, posts: posted, place })
    }

    /// The living session of a token.
    pub(super) fn find(&self, token: &str, now: SystemTime) -> Option<Door> {
        let number: u64 = self.signer.verify(token, now).ok()?;
        let door = self.open.table.lock().sessions.get(&number).cloned();
        door.filter(|door| !door.outbox.has_ended())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(open) = self.open.upgrade() {
            let mut table = open.table.lock();
            let door = table.sessions.remove(&self.number);
            // Many may have come and gone.
            if table.sessions.capacity() > SPARE + 4 * table.sessions.len() {
                let len = table.sessions.len();
                table.sessions.shrink_to(2 * len);
            }
            drop(table);
            drop(door);
        }
    }
}

impl Door {
    /// Waits for messages, for a window at most; then there are none. It waits as long if the session
    /// ends, or if another poll comes for them.
    ///
    /// # Cancel safety
    ///
    /// What has not been handed over waits for the next poll. What has been is lost, as it is when an
    /// answer does not reach its client.
    pub(super) async fn poll(&self, window: Duration) -> Vec<Frame> {
        let (answer, mut answered) = oneshot::channel();
        let polled = async {
            let sent = self.polls.send(Poll { answer }).await;
            match (sent, (&mut answered).await) {
                (Ok(()), Ok(frames)) => frames,
                _ => std::future::pending().await,
            }
        };
        match time::timeout(window, polled).await {
            Ok(frames) => frames,
            // It may have come at the last moment.
            Err(_) => {
                answered.close();
                answered.try_recv().unwrap_or_default()
            }
        }
    }

    /// Lets a body be read, unless as many of the client are being read as may be.
    pub(super) fn body(&self) -> Option<Body> {
        let bodies = &*self.bodies;
        let turn = bodies.turns.clone().try_acquire_owned().ok()?;
        let (held, ask) = (bodies.inbox.hold(0), bodies.first.clone());
        Some(Body { held, ask, first: None, _turn: turn })
    }

    /// Waits until the session takes nothing any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn closed(&self) {
        self.posts.closed().await;
    }

    /// Says something, and waits until it has been taken.
    pub(super) async fn post(&self, received: Received) -> Result<(), NotTaken> {
        let (taken, was_taken) = oneshot::channel();
        self.posts.send(Post { received, taken }).await.map_err(|_| NotTaken)?;
        was_taken.await.map_err(|_| NotTaken)
    }
}

impl Body {
    /// Waits until more of the body may be read: until there is room for what has come, beside what the
    /// client's other requests and all sockets hold.
    ///
    /// Bodies that come side by side hold their parts while they wait, so each could wait for the others'
    /// room. Therefore one of a client's needs no room in its own inbox, for as long as it counts.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn room(&mut self) {
        if self.first.is_none() {
            tokio::select! {
                biased;
                () = self.held.room() => return,
                first = self.ask.clone().acquire_owned() => self.first = first.ok(),
            }
        }
        self.held.shared_room().await;
    }
}

/// An outbox whose client comes for what waits. That is dropped with this: an answer that comes later may
/// have the outbox for long.
struct Fetched<'a>(&'a Outbox);

impl Drop for Fetched<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Lives until it ends, then ends its channels. False if the server has ended it before the client had
/// fetched all that waited.
pub(super) async fn live<S: Socket>(
    mut session: Session<S>,
    inbox: Inbox,
    outbox: &Arc<Outbox>,
    window: Duration,
    max_frames: u32,
    endings: &Endings,
) -> bool {
    let pace = ReadPace::new(max_frames, Instant::now());
    let Inbox { mut polls, mut posts, place } = inbox;
    let fetched = Fetched(outbox);
    let within = window.saturating_add(window / 2);
    // What a poll has fetched whose client had gone when it was there.
    let mut kept = Vec::new();
    let end = {
        let mut delivering = pin!(deliver(&mut polls, outbox, &mut kept).fuse());
        let end = tokio::select! {
            end = listen(&mut session, &mut posts, outbox, pace) => end,
            end = &mut delivering => end,
            end = outbox.write() => end,
            () = silence(|| Deadline::after(outbox.last_active(), within)) => SocketEnd::Inactive,
        };
        outbox.end(end);
        // A client that waits in a poll gets what has come just before the end.
        let _ = unconstrained(delivering).now_or_never();
        end
    };
    tracing::debug!(?end, "a socket ends");
    let nothing_waits = kept.is_empty() && outbox.load().frames == 0;
    // From here on no request finds it, so what waits cannot be fetched.
    drop((place, posts, polls, fetched));
    endings.in_turn(session.end(&end.reason())).await;
    // A client that has gone by itself fetches nothing any more.
    nothing_waits || end.close_code().is_none()
}

/// Handles what the client sends, one message after the other.
async fn listen<S: Socket>(
    session: &mut Session<S>,
    posts: &mut mpsc::Receiver<Post>,
    outbox: &Outbox,
    mut pace: ReadPace,
) -> SocketEnd {
    // Until when nothing is taken, because the client was faster than it may be.
    let mut paused = None;
    // What came while a join was running is taken when it has run: the line behind a join is then
    // handled after it, as in Phoenix, and a client that waits for its join in vain is told so.
    let mut untaken = Vec::new();
    loop {
        if !session.is_joining() {
            for taken in untaken.drain(..) {
                // If nobody waits for it any more, it is no matter.
                let _ = oneshot::Sender::send(taken, ());
            }
        }
        untaken.retain(|taken: &oneshot::Sender<()>| !taken.is_closed());
        let may_come = untaken.len() < REQUESTS && paused.is_none();
        tokio::select! {
            () = session.changed() => {
                session.catch_up().await;
            }
            () = paused.unwrap_or(Deadline::NEVER).passed(), if paused.is_some() => paused = None,
            post = posts.recv(), if may_come => {
                let Some(Post { received, taken }) = post else { return SocketEnd::Closed };
                let (cost, held) = (cost(received.len()), session.hold(&received));
                pay(cost).await;
                session.metrics().frames_in.increment(1);
                if let Err(end) = session.receive(received, held).await {
                    // Before the client is told, so that it finds no session when it comes again.
                    outbox.end(end);
                    return end;
                }
                untaken.push(taken);
                let now = Instant::now();
                pace.took(cost, now);
                paused = pace.wait(now).map(|wait| Deadline::after(now, wait));
                if paused.is_some() {
                    session.metrics().reads_paused_by_rate.increment(1);
                }
            }
        }
    }
}

/// Hands out what waits to whoever comes for it.
async fn deliver(
    polls: &mut mpsc::Receiver<Poll>,
    outbox: &Outbox,
    kept: &mut Vec<Frame>,
) -> SocketEnd {
    loop {
        let Some(mut poll) = polls.recv().await else { return SocketEnd::Closed };
        outbox.heard();
        loop {
            let frames = tokio::select! {
                biased;
                newer = polls.recv() => {
                    let Some(newer) = newer else { return SocketEnd::Closed };
                    outbox.heard();
                    poll = newer;
                    continue;
                }
                () = poll.answer.closed() => break,
                frames = fetch(outbox, kept) => frames,
            };
            if let Err(frames) = poll.answer.send(frames) {
                *kept = frames;
            }
            break;
        }
    }
}

/// What has been kept, or else what waits, once something does. Never both, so that what is kept is
/// no more than could wait.
async fn fetch(outbox: &Outbox, kept: &mut Vec<Frame>) -> Vec<Frame> {
    if kept.is_empty() { poll_fn(|cx| outbox.poll_fetch(cx)).await } else { mem::take(kept) }
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::Recorded;

    use super::*;
    use crate::{
        outbox::{OutboxLimits, Writer},
        telemetry::SocketMetrics,
    };

    fn outbox() -> Arc<Outbox> {
        let (telemetry, _) = Recorded::new();
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        Arc::new(Outbox::new(Writer::Fetched, OutboxLimits { frames: 8, bytes: 1 << 20 }, metrics))
    }

    fn bodies() -> Arc<inbox::Inbox> {
        Arc::new(inbox::Inbox::new(1 << 20, Arc::new(inbox::Inboxes::new(1 << 20))))
    }

    #[test]
    fn a_session_is_found_by_its_token_until_it_ends() {
        let polled = Polled::new(&LongPoll::new()).unwrap();
        let (outbox, now) = (outbox(), SystemTime::now());
        let (token, inbox) = polled.enter(&outbox, bodies(), now);
        assert!(polled.find(&token, now).is_some());
        outbox.end(SocketEnd::Disconnected);
        assert!(polled.find(&token, now).is_none(), "its task has not had its turn yet");
        assert_eq!(polled.open.table.lock().sessions.len(), 1);
        drop(inbox);
        assert!(polled.open.table.lock().sessions.is_empty());
    }

    #[test]
    fn what_cannot_be_fetched_any_more_holds_no_memory() {
        let outbox = outbox();
        outbox.send(&Frame::pong(b"late"), None);
        drop(Fetched(&outbox));
        outbox.send(&Frame::pong(b"later"), None);
        assert_eq!(outbox.load().frames, 0);
    }

    #[test]
    fn a_token_is_good_for_its_age_and_at_its_own_mount() {
        let hour = Duration::from_secs(3600);
        let [polled, other] =
            [(); 2].map(|()| Polled::new(&LongPoll::new().max_age(hour)).unwrap());
        let (outbox, now) = (outbox(), SystemTime::now());
        let (token, _inbox) = polled.enter(&outbox, bodies(), now);
        let (_, _same_number) = other.enter(&outbox, bodies(), now);
        assert!(other.find(&token, now).is_none());
        assert!(polled.find(&token, now + hour).is_some());
        assert!(polled.find(&token, now + hour + Duration::from_secs(1)).is_none());
    }

    #[tokio::test]
    async fn what_is_sent_to_a_session_that_is_gone_is_not_taken() {
        let polled = Polled::new(&LongPoll::new()).unwrap();
        let (outbox, now) = (outbox(), SystemTime::now());
        let (token, inbox) = polled.enter(&outbox, bodies(), now);
        let door = polled.find(&token, now).unwrap();
        drop(inbox);
        let received = Received::Text("[]".into());
        assert_eq!(door.post(received).await, Err(NotTaken));
    }
}
