//! Long-polling sessions, which live between the client's requests.

#[cfg(test)]
mod schedules;

use std::{
    collections::HashMap,
    future::poll_fn,
    mem,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use pipeline_core::Deadline;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::coop::unconstrained,
    time::Instant,
};

use super::{endings::Endings, read_pace::ReadPace, websocket::silence};
use crate::{
    endpoint::longpoll::LongPoll,
    outbox::{FetchedFrames, Outbox, OutboxBytes},
    protocol::message::Received,
    session::{
        Session, cost,
        end::SocketEnd,
        inbox::{self, InboxBytes},
        pay,
    },
    socket::Socket,
    telemetry::log_line,
    token::Signer,
};

/// The salt of the sessions' tokens.
const SALT: &str = "longpoll";

/// How many requests of one client may wait for its session. Further polls wait before that;
/// further requests with messages are refused.
const REQUESTS: usize = 8;

/// How many answers with messages of one client may be on their way. Two, because a client that has
/// lost its connection polls on the next one, and the lost one's answer remains until it times out.
const ANSWERS: usize = 2;

/// How long a poll waits until it is known what has become of an earlier answer at another node.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// How many free slots the table may have before it shrinks.
const SPARE: usize = 1024;

/// The long-polling sessions of a mount.
pub(crate) struct LongPollSessions {
    pub(super) window: Duration,
    signer: Signer,
    /// Tokens are read by this process only, and dated by the time since this moment: the system's
    /// clock may be set while sessions live.
    began: Instant,
    open: Arc<SessionTable>,
    /// The permits for further sessions.
    room: Arc<Semaphore>,
    /// The permits for further requests that are passed on to other nodes.
    relays: Arc<Semaphore>,
}

/// The open sessions, by number.
#[derive(Default)]
struct SessionTable {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, SessionHandle>,
    /// The number of sessions that were ever opened.
    count: u64,
}

/// A handle to a session.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    outbox: Arc<Outbox>,
    polls: mpsc::Sender<Poll>,
    posts: mpsc::Sender<Post>,
    bodies: Arc<Bodies>,
    answers: Arc<Semaphore>,
    elsewhere: Arc<watch::Sender<Elsewhere>>,
}

/// The answers with messages that other nodes give to the client.
#[derive(Clone, Copy, Debug, Default)]
struct Elsewhere {
    unread: usize,
    /// One of them may not have reached the client.
    is_lost: bool,
}

/// An answer with messages that another node gives to the client. When this is dropped, the answer is lost.
pub(crate) struct Unread {
    elsewhere: Arc<watch::Sender<Elsewhere>>,
    was_read: bool,
}

impl Unread {
    /// The client has been given the answer.
    pub(super) fn was_read(mut self) {
        self.was_read = true;
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let is_lost = !self.was_read;
        self.elsewhere.send_modify(|it| {
            it.unread -= 1;
            it.is_lost |= is_lost;
        });
    }
}

/// The messages of an answer. They count for the session and for the endpoint until the answer has
/// been written, or its connection has ended.
#[derive(Default)]
pub(super) struct Fetched {
    pub(super) frames: FetchedFrames,
    turn: Option<OwnedSemaphorePermit>,
}

/// The body of an answer, with what it counts.
struct CountedBody {
    body: Bytes,
    _bytes: OutboxBytes,
    _turn: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// The request bodies of one client, while they are read and handled.
struct Bodies {
    /// The permits for further bodies.
    turns: Arc<Semaphore>,
    /// The permit of the body that may continue although there is no room in the inbox.
    first: Arc<Semaphore>,
    /// The received bytes. Separate from the session's inbox, so that the messages of a request do
    /// not wait for the room that the request itself takes.
    inbox: Arc<inbox::Inbox>,
}

/// A permit to read a body.
pub(crate) struct BodyPermit {
    /// The bytes that have arrived.
    pub(super) held: InboxBytes,
    /// Where to request the permit of the first body, and that permit.
    ask: Arc<Semaphore>,
    first: Option<OwnedSemaphorePermit>,
    _turn: OwnedSemaphorePermit,
}

/// A client that waits for messages.
struct Poll {
    answer: oneshot::Sender<FetchedFrames>,
}

/// A client's message.
struct Post {
    received: Received,
    taken: oneshot::Sender<()>,
}

/// The session ended before it accepted the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotTaken;

/// The requests of a session, and its entry in the table.
pub(super) struct SessionRequests {
    polls: mpsc::Receiver<Poll>,
    posts: mpsc::Receiver<Post>,
    entry: TableEntry,
}

/// A session's entry in the table, for as long as it can be found there.
struct TableEntry {
    open: Weak<SessionTable>,
    number: u64,
}

impl LongPollSessions {
    /// Generates a key.
    ///
    /// # Errors
    ///
    /// The system's random number generator failed.
    pub(crate) fn new(options: &LongPoll) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let signer = Signer::new(&secret, SALT).expect("64 bytes are enough for a secret");
        let signer = signer.max_age(options.max_age);
        let sessions = options.max_sessions.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(sessions));
        // A client has a poll and a request with messages in progress.
        let relays = sessions.saturating_mul(2).min(Semaphore::MAX_PERMITS);
        let relays = Arc::new(Semaphore::new(relays));
        let began = Instant::now();
        Ok(Self { window: options.window, signer, began, open: Arc::default(), room, relays })
    }

    /// Reserves room for a session, until the returned permit is dropped. `None` if there are too
    /// many.
    pub(super) fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// Reserves room for a request that is passed on to another node.
    pub(super) fn reserve_relay(&self) -> Option<OwnedSemaphorePermit> {
        self.relays.clone().try_acquire_owned().ok()
    }

    /// Adds a session. Returns its token.
    pub(super) fn enter(
        &self,
        outbox: &Arc<Outbox>,
        bodies: Arc<inbox::Inbox>,
        now: Instant,
    ) -> (String, SessionRequests) {
        let (polls, polled) = mpsc::channel(REQUESTS);
        let (posts, posted) = mpsc::channel(REQUESTS);
        let mut table = self.open.table.lock();
        table.count += 1;
        let number = table.count;
        let [turns, first, answers] =
            [REQUESTS, 1, ANSWERS].map(|count| Arc::new(Semaphore::new(count)));
        let bodies = Arc::new(Bodies { turns, first, inbox: bodies });
        table.sessions.insert(
            number,
            SessionHandle {
                outbox: outbox.clone(),
                polls,
                posts,
                bodies,
                answers,
                elsewhere: Arc::new(watch::Sender::default()),
            },
        );
        drop(table);
        let token = self.signer.sign(&number, self.time(now)).expect("a number can be expressed");
        let entry = TableEntry { open: Arc::downgrade(&self.open), number };
        (token, SessionRequests { polls: polled, posts: posted, entry })
    }

    /// A moment as the time of a token.
    fn time(&self, moment: Instant) -> SystemTime {
        let since = moment.saturating_duration_since(self.began);
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }

    /// The live session of a token.
    pub(super) fn find(&self, token: &str, now: Instant) -> Option<SessionHandle> {
        let number: u64 = self.signer.verify(token, self.time(now)).ok()?;
        let handle = self.open.table.lock().sessions.get(&number).cloned();
        handle.filter(|handle| !handle.outbox.has_ended())
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        if let Some(open) = self.open.upgrade() {
            let mut table = open.table.lock();
            let handle = table.sessions.remove(&self.number);
            // The table may have been much larger.
            if table.sessions.capacity() > SPARE + 4 * table.sessions.len() {
                let len = table.sessions.len();
                table.sessions.shrink_to(2 * len);
            }
            drop(table);
            drop(handle);
        }
    }
}

impl SessionHandle {
    /// Waits for messages, for a window at most; then there are none. It waits the whole window if
    /// the session ends, if another poll receives them, or if the client reads none of its earlier
    /// answers.
    ///
    /// # Cancel safety
    ///
    /// Frames that have not been passed on wait for the next poll. Frames that have been are lost,
    /// as when an answer does not reach its client.
    pub(super) async fn poll(&self, window: Duration) -> Fetched {
        let until = Deadline::from_now(window);
        self.outbox.heard();
        let turn = until.limit(self.answers.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Fetched::default() };
        let mut turn = Some(turn);
        let (answer, mut answered) = oneshot::channel();
        let polled = async {
            let sent = self.polls.send(Poll { answer }).await;
            match (sent, (&mut answered).await) {
                (Ok(()), Ok(frames)) => frames,
                _ => {
                    // Its answer will be empty, so a newer poll need not wait for it.
                    turn = None;
                    std::future::pending().await
                }
            }
        };
        let frames = match until.limit(polled).await {
            Ok(frames) => frames,
            // Frames may have arrived at the last moment.
            Err(_) => {
                answered.close();
                answered.try_recv().unwrap_or_default()
            }
        };
        Fetched { turn: turn.filter(|_| !frames.is_empty()), frames }
    }

    /// The body of an answer with these messages, which counts until it has been written.
    pub(super) fn counted(&self, mut fetched: Fetched, body: Bytes) -> Bytes {
        fetched.frames.were_answered();
        let _bytes = self.outbox.count_outside(body.len());
        Bytes::from_owner(CountedBody { body, _bytes, _turn: fetched.turn })
    }

    /// Counts an answer that another node gives to the client.
    pub(super) fn unread(&self) -> Unread {
        self.elsewhere.send_modify(|it| it.unread += 1);
        Unread { elsewhere: self.elsewhere.clone(), was_read: false }
    }

    /// Waits until the client has been given the earlier answers by other nodes. If one may be lost, the session
    /// ends, and this returns false: its client would miss messages and not know it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn has_read_all(&self) -> bool {
        let mut state = self.elsewhere.subscribe();
        let settled = state.wait_for(|it| it.is_lost || it.unread == 0);
        let settled = Deadline::from_now(SETTLED_WITHIN).limit(settled).await;
        let is_well = matches!(settled, Ok(Ok(it)) if !it.is_lost);
        if !is_well {
            self.outbox.end(SocketEnd::Lost);
        }
        is_well
    }

    /// Permits a body to be read, unless the client has the maximum in progress.
    pub(super) fn body(&self) -> Option<BodyPermit> {
        let bodies = &*self.bodies;
        let turn = bodies.turns.clone().try_acquire_owned().ok()?;
        let (held, ask) = (bodies.inbox.hold(0), bodies.first.clone());
        Some(BodyPermit { held, ask, first: None, _turn: turn })
    }

    /// Waits until the session accepts no more messages.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn closed(&self) {
        self.posts.closed().await;
    }

    /// Waits until the session has ended because the endpoint drains.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn drained(&self) {
        self.posts.closed().await;
        if self.outbox.ended() != Some(SocketEnd::Draining) {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a message, and waits until it has been accepted.
    pub(super) async fn post(&self, received: Received) -> Result<(), NotTaken> {
        let (taken, was_taken) = oneshot::channel();
        self.posts.send(Post { received, taken }).await.map_err(|_| NotTaken)?;
        was_taken.await.map_err(|_| NotTaken)
    }
}

impl BodyPermit {
    /// A permit for a body whose client has its session on another node.
    pub(super) fn alone(inbox: &Arc<inbox::Inbox>) -> Self {
        let [ask, turns] = [(); 2].map(|()| Arc::new(Semaphore::new(1)));
        let turn = turns.try_acquire_owned().expect("it has just been made");
        Self { held: inbox.hold(0), ask, first: None, _turn: turn }
    }

    /// Waits until more of the body may be read: until there is room for the received part, next to
    /// the bytes of the client's other requests and of all sockets.
    ///
    /// Concurrent bodies hold their parts while they wait, so each could wait for the others' room.
    /// Therefore one of a client's bodies needs no room in its own inbox, for as long as it counts.
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

/// The outbox of a long-polling session. Dropping this releases its frames: a later answer may hold
/// the outbox for long.
struct Released<'a>(&'a Outbox);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Runs a session until it ends, then ends its channels. Returns false if the server has ended it
/// before the client had fetched all pending frames.
pub(super) async fn live<S: Socket>(
    mut session: Session<S>,
    requests: SessionRequests,
    outbox: &Arc<Outbox>,
    window: Duration,
    frame_rate_limit: u32,
    endings: &Endings,
) -> bool {
    let pace = ReadPace::new(frame_rate_limit, Instant::now());
    let SessionRequests { mut polls, mut posts, entry } = requests;
    let released = Released(outbox);
    let within = window.saturating_add(window / 2);
    // Frames that were taken for a poll whose client had gone by then.
    let mut kept = FetchedFrames::default();
    let connection = session.connection().clone();
    let end = {
        let mut delivering = pin!(deliver(&mut polls, outbox, &mut kept).fuse());
        let end = tokio::select! {
            end = listen(&mut session, &mut posts, outbox, pace) => end,
            end = &mut delivering => end,
            end = outbox.write() => end,
            end = connection.expired() => end,
            () = silence(|| Deadline::after(outbox.last_active(), within)) => SocketEnd::Inactive,
        };
        outbox.end(end);
        // A client that waits in a poll gets the frames that came just before the end.
        let _ = unconstrained(delivering).now_or_never();
        end
    };
    log_line!(DEBUG, ?end, "closing socket");
    if end == SocketEnd::Overflow {
        session.is_too_slow();
    }
    let nothing_waits = kept.is_empty() && outbox.load().frames == 0;
    // From here on no request finds the session, so pending frames cannot be fetched.
    drop((entry, posts, polls, released));
    endings.in_turn(session.end(&end.reason())).await;
    // A client that has gone by itself fetches no more frames.
    nothing_waits || end.close_code().is_none()
}

/// Handles the client's messages, one after the other.
async fn listen<S: Socket>(
    session: &mut Session<S>,
    posts: &mut mpsc::Receiver<Post>,
    outbox: &Outbox,
    mut pace: ReadPace,
) -> SocketEnd {
    // Until when no message is accepted, because the client exceeded its rate.
    let mut paused = None;
    // Messages that arrive during a join are accepted after it: the messages behind the join are
    // then handled after it, as in Phoenix, and a client that waits for its join in vain learns of
    // that.
    let mut untaken = Vec::new();
    loop {
        if !session.is_joining() {
            for taken in untaken.drain(..) {
                // The request may have been cancelled, which does not matter.
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
                pay(cost + session.unpaid()).await;
                session.metrics().frames_in.increment(1);
                if let Err(end) = session.receive(received, held).await {
                    // Ended before the answer, so that the client's next request finds no session.
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

/// Passes waiting frames to polls.
async fn deliver(
    polls: &mut mpsc::Receiver<Poll>,
    outbox: &Outbox,
    kept: &mut FetchedFrames,
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

/// The kept frames, or else the waiting ones, once there are some. Never both, so that no more
/// frames are kept than may wait.
async fn fetch(outbox: &Outbox, kept: &mut FetchedFrames) -> FetchedFrames {
    if kept.is_empty() { poll_fn(|cx| outbox.poll_fetch(cx)).await } else { mem::take(kept) }
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::{Recorded, settle};

    use super::*;
    use crate::{
        outbox::{OutboxLimits, Writer},
        protocol::frame::Frame,
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
        let polled = LongPollSessions::new(&LongPoll::new()).unwrap();
        let (outbox, now) = (outbox(), Instant::now());
        let (token, inbox) = polled.enter(&outbox, bodies(), now);
        assert!(polled.find(&token, now).is_some());
        outbox.end(SocketEnd::Disconnected);
        assert!(polled.find(&token, now).is_none(), "its task has not been polled yet");
        assert_eq!(polled.open.table.lock().sessions.len(), 1);
        drop(inbox);
        assert!(polled.open.table.lock().sessions.is_empty());
    }

    #[test]
    fn frames_that_cannot_be_fetched_hold_no_memory() {
        let outbox = outbox();
        outbox.send(&Frame::pong(b"late"), None);
        drop(Released(&outbox));
        outbox.send(&Frame::pong(b"later"), None);
        assert_eq!(outbox.load().frames, 0);
    }

    #[test]
    fn a_token_is_valid_for_its_age_and_at_its_own_mount() {
        let hour = Duration::from_secs(3600);
        let [polled, other] =
            [(); 2].map(|()| LongPollSessions::new(&LongPoll::new().max_age(hour)).unwrap());
        let (outbox, now) = (outbox(), Instant::now());
        let (token, _inbox) = polled.enter(&outbox, bodies(), now);
        let (_, _same_number) = other.enter(&outbox, bodies(), now);
        assert!(other.find(&token, now).is_none());
        assert!(polled.find(&token, now + hour).is_some());
        assert!(polled.find(&token, now + hour + Duration::from_secs(1)).is_none());
    }

    #[tokio::test]
    async fn a_message_to_an_ended_session_is_not_accepted() {
        let polled = LongPollSessions::new(&LongPoll::new()).unwrap();
        let (outbox, now) = (outbox(), Instant::now());
        let (token, inbox) = polled.enter(&outbox, bodies(), now);
        let handle = polled.find(&token, now).unwrap();
        drop(inbox);
        let received = Received::Text("[]".into());
        assert_eq!(handle.post(received).await, Err(NotTaken));
    }

    #[tokio::test(start_paused = true)]
    async fn polls_that_a_newer_one_replaced_do_not_delay_it() {
        let polled = LongPollSessions::new(&LongPoll::new()).unwrap();
        let (outbox, now) = (outbox(), Instant::now());
        let (token, requests) = polled.enter(&outbox, bodies(), now);
        let handle = polled.find(&token, now).unwrap();
        let SessionRequests { mut polls, .. } = requests;
        let session = outbox.clone();
        tokio::spawn(
            async move { deliver(&mut polls, &session, &mut FetchedFrames::default()).await },
        );
        let mut waiting = Vec::new();
        for _ in 0..=ANSWERS {
            let handle = handle.clone();
            let poll = async move { handle.poll(Duration::from_secs(10)).await.frames.len() };
            waiting.push(tokio::spawn(poll));
            settle().await;
        }
        outbox.send(&Frame::pong(b""), None);
        let newest = tokio::time::timeout(Duration::from_secs(1), waiting.pop().unwrap());
        assert_eq!(newest.await.unwrap().unwrap(), 1);
    }
}
