//! The server under attack, and the calm client next to the attack.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use axum::Router;
use parking_lot::Mutex;
use pipeline::{
    serve,
    serve::Serve,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
        endpoint::{EndpointBuilder, EndpointSnapshot},
        mount::{CheckOrigin, LongPoll, MessageRateLimit, OnLimit},
        pubsub::PreparedBroadcast,
        socket::{ConnectError, ConnectInfo, Params},
        token::Signer,
    },
};
use pipeline_test_support::{AnySocket, PATIENCE};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::Instant,
};

use crate::client::{Client, SOCKET, join, json_text};

/// The secret and the salt of valid tokens.
pub(crate) const SECRET: &str = "a secret of the arena, long enough";
pub(crate) const SALT: &str = "arena";

/// How long a polling client may wait between two polls.
pub(crate) const WINDOW: Duration = Duration::from_secs(1);

/// Payloads that take no time to be encoded.
static ANSWER: LazyLock<Payload> =
    LazyLock::new(|| Payload::new(&json!({ "padding": "x".repeat(1 << 16) })).unwrap());
static PUSHED: LazyLock<Payload> =
    LazyLock::new(|| Payload::new(&json!({ "padding": "x".repeat(1 << 13) })).unwrap());

/// How long a broadcast takes that has waited for a client. Others take far less.
const WAITS: Duration = Duration::from_millis(50);

/// The workers that broadcast and may wait. An event that finds none is left out.
static WORKERS: Semaphore = Semaphore::const_new(16);

/// The number of broadcasts that have waited for a client that had no room.
pub(crate) static WAITED: AtomicUsize = AtomicUsize::new(0);

/// A channel whose clients choose what it does.
pub(crate) struct Room;

impl Channel for Room {
    type Socket = AnySocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        payload: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        if topic.rest() == "typed" {
            let _: Credentials = payload.parse()?;
        }
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "stall" => std::future::pending().await,
            "large" => Ok(Reply::ok().with(&*ANSWER)),
            "pushes" => {
                for _ in 0..8 {
                    cx.push("pushed", &*PUSHED)?;
                }
                Ok(Reply::none())
            }
            "waiting_pushes" => {
                // A callback cannot wait for its own client, so workers do, as at the end of a pipeline.
                let Ok(worker) = WORKERS.try_acquire() else { return Ok(Reply::none()) };
                let pushed = PreparedBroadcast::new(cx.topic().as_str(), "pushed", &*PUSHED)?;
                let pubsub = cx.pubsub().clone();
                tokio::spawn(async move {
                    for _ in 0..8 {
                        let begun = Instant::now();
                        if pubsub.broadcast_when_ready(&pushed).await.is_ok()
                            && begun.elapsed() >= WAITS
                        {
                            WAITED.fetch_add(1, Relaxed);
                        }
                    }
                    drop(worker);
                });
                Ok(Reply::none())
            }
            "parse" => Ok(Reply::ok().with(payload.parse::<Value>()?)),
            event if event.starts_with("ask") => Ok(Reply::ok().with(payload)),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

/// The parameters of the join of `room:typed`.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only their types matter")]
struct Credentials {
    user: u32,
    name: String,
}

/// Accepts clients with a valid token, in the query or among the subprotocols.
struct TokenSocket(Signer);

impl Socket for TokenSocket {
    type Assigns = u64;

    async fn connect(&self, params: &Params, info: &ConnectInfo) -> Result<u64, ConnectError> {
        let token = params.get("token").or(info.auth_token.as_deref());
        Ok(self.0.verify_optional(token, SystemTime::now())?)
    }
}

pub(crate) fn signer() -> Signer {
    Signer::new(SECRET, SALT).unwrap().max_age(Duration::from_secs(3600))
}

/// A server with this many worker threads.
pub(crate) struct Arena {
    runtime: Option<Runtime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) address: SocketAddr,
}

/// Options that differ from the usual ones.
pub(crate) struct Options {
    pub(crate) mount: fn(Mount<AnySocket>) -> Mount<AnySocket>,
    pub(crate) endpoint: fn(EndpointBuilder) -> EndpointBuilder,
    pub(crate) serve: fn(Serve) -> Serve,
}

impl Default for Options {
    fn default() -> Self {
        Self { mount: |mount| mount, endpoint: |builder| builder, serve: |serve| serve }
    }
}

impl Arena {
    /// Whether all clients have gone but the calm one.
    pub(crate) fn has_only_the_calm(&self) -> bool {
        self.endpoint.open_sockets() == 1
    }

    /// A server with the sockets of all cases.
    pub(crate) fn start(workers: usize) -> Self {
        Self::start_with(workers, &Options::default())
    }

    pub(crate) fn start_with(workers: usize, options: &Options) -> Self {
        let runtime =
            Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
        let room = || Mount::new(AnySocket).channel::<Room>("room:*");
        let polled = LongPoll::new().window(WINDOW);
        let rate = || MessageRateLimit::per_second(1).burst(2);
        let tokens = Mount::new(TokenSocket(signer())).auth_token(true);
        let origins = CheckOrigin::list(["https://example.com", "//*.wild.test"]);
        let builder = Endpoint::builder()
            .mount("/socket", (options.mount)(room().compress(true).longpoll(polled)))
            .mount("/patient", room().longpoll(LongPoll::new()))
            .mount("/small", room().max_frame_size(1024).max_message_size(4096))
            .mount("/limited", room().message_rate_limit(rate()))
            .mount("/strict", room().message_rate_limit(rate().on_limit(OnLimit::Close)))
            .mount("/token", tokens)
            .mount("/page", room().check_origin(origins).subprotocols(["sip"]));
        let endpoint = (options.endpoint)(builder).build().unwrap();
        let app: Router = Router::new().fallback_service(endpoint.clone());
        let listener = runtime.block_on(pipeline::ws::listen("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = (options.serve)(serve(listener, app).endpoint(endpoint.clone()));
        runtime.spawn(async move { serving.until(std::future::pending()).await.unwrap() });
        Self { runtime: Some(runtime), endpoint, address }
    }

    /// The bytes that all clients together have in the server's bounded buffers.
    pub(crate) fn held(&self) -> usize {
        let EndpointSnapshot { inbox_bytes, outbox_bytes, .. } = self.endpoint.snapshot();
        inbox_bytes + outbox_bytes
    }

    /// Waits until this is true.
    pub(crate) fn eventually(
        &self,
        what: &str,
        is_true: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let begun = Instant::now();
        while !is_true(self) {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{what}: {:?}", self.endpoint.snapshot()));
            }
            pause(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The server's memory for its clients is what it was without hostile ones.
    pub(crate) fn is_at_rest(&self) -> Result<(), String> {
        self.eventually("the bounded memory is not free again", |arena| arena.held() == 0)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // A failing test must not wait for the cause of its failure.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits in a client's thread.
#[expect(clippy::disallowed_methods, reason = "a client's thread runs nothing else")]
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}

/// A client that sends one request after the other, and expects each to be answered before the
/// next.
pub(crate) struct Calm {
    stopped: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    thread: Option<JoinHandle<()>>,
}

/// The answers that a calm client has received since it was last looked at.
#[derive(Default)]
struct Answers {
    times: Vec<Duration>,
    failed: Option<String>,
}

/// Response times.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

/// How often a question is due at least. A client that waits for an answer asks later than that, so a
/// server that stands still would be seen by one question, however long it does.
const DUE_EVERY: Duration = Duration::from_millis(20);

impl Times {
    /// The median and the 99th percentile of these times, and of those of the questions that would have
    /// been asked while the client waited.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        let due = |time: &Duration| {
            std::iter::successors(Some(*time), |waited| waited.checked_sub(DUE_EVERY)).skip(1)
        };
        times.extend(times.iter().flat_map(due).collect::<Vec<_>>());
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Self { median: at(50), p99: at(99) }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1?} and {:.1?}", self.median, self.p99)
    }
}

/// The topic of calm clients.
const CALM: &str = "room:calm";

/// A calm client's connection.
pub(crate) fn calm_connection(address: SocketAddr) -> Client {
    let mut client = Client::open(address, SOCKET, "").unwrap();
    client.ask(&join(CALM)).unwrap();
    client
}

/// Asks a channel, and expects the answer to this question.
pub(crate) fn ask(client: &mut Client, n: u64) -> Result<(), String> {
    let reference = n.to_string();
    let answer = client.ask(&json_text(&json!(["1", reference, CALM, "ask", { "n": n }])))?;
    let response = json!({ "status": "ok", "response": { "n": n } });
    let expected = json!(["1", reference, CALM, "phx_reply", response]);
    if answer == expected { Ok(()) } else { Err(format!("{expected} was expected, not {answer}")) }
}

impl Calm {
    pub(crate) fn start(arena: &Arena) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let answers: Arc<Mutex<Answers>> = Arc::default();
        let thread = thread::spawn({
            let (stopped, answers) = (stopped.clone(), answers.clone());
            let mut client = calm_connection(arena.address);
            move || {
                for n in 0.. {
                    if stopped.load(Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    if let Err(error) = ask(&mut client, n) {
                        answers.lock().failed = Some(error);
                        break;
                    }
                    answers.lock().times.push(begun.elapsed());
                    pause(Duration::from_micros(200));
                }
            }
        });
        Self { stopped, answers, thread: Some(thread) }
    }

    /// Its response times while this is done again and again, until it has been answered so often.
    pub(crate) fn times_during(
        &self,
        questions: usize,
        act: impl Fn() -> Result<(), String>,
    ) -> Result<Times, String> {
        self.answers.lock().times.clear();
        while self.answers.lock().times.len() < questions {
            act()?;
            self.is_answered()?;
        }
        Ok(Times::of(std::mem::take(&mut self.answers.lock().times)))
    }

    /// A question that it asks from now on is answered.
    fn is_answered(&self) -> Result<(), String> {
        let (before, begun) = (self.answers.lock().times.len(), Instant::now());
        loop {
            {
                let answers = self.answers.lock();
                if let Some(error) = &answers.failed {
                    return Err(format!("the calm client: {error}"));
                }
                // The first answer from now on may be that to an earlier question.
                if answers.times.len() >= before + 2 {
                    return Ok(());
                }
            }
            if begun.elapsed() > PATIENCE {
                return Err("the calm client is not answered".to_owned());
            }
            pause(Duration::from_micros(200));
        }
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of a client that asks every millisecond, of a server that stands still for this long
    /// once.
    fn with_a_stall_of(milliseconds: u64) -> Times {
        let mut times = vec![Duration::from_millis(1); 99];
        times.push(Duration::from_millis(milliseconds));
        Times::of(times)
    }

    #[test]
    fn one_answer_that_is_late_is_not_seen_and_a_server_that_stands_still_is() {
        assert_eq!(with_a_stall_of(15).p99, Duration::from_millis(1));
        assert!(with_a_stall_of(300).p99 > Duration::from_millis(200));
        assert!(with_a_stall_of(3_000).median > Duration::from_millis(300));
    }
}
