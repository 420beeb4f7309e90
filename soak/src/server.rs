//! The server under test: a queue, a stage that can be made to fail, a supervisor, topics and presence.
//!
//! Items are numbered three times. `n` is the number that their source gave them, per user. `k` is given by a
//! stage behind the one that fails: it has no gaps, so a client notices every item that is lost after that stage.
//! Items that are lost in the failing stage are gaps in `n`, and are counted by the pipeline's report.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    response::Json,
    routing::{get, post},
};
use pipeline::{
    ExitReason, Pipeline,
    report::PipelineReport,
    serve,
    serve::ShutdownReport,
    snapshot::PipelineObserver,
    source::{Closed, QueueOptions, TimedQueue, TryPushError, timed_queue},
    stage::{Emitter, ProducerConsumer, Stage},
    step::map,
    subscription::{SubscribeOptions, Subscription},
    supervisor::{ChildContext, ConsumerSupervisor, Reserved, Worker},
    timed::Timed,
    ws::{
        Channel, Endpoint, Mount, Payload, Presence, Socket, Topic,
        channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
        listen,
        mount::LongPoll,
        payload::PayloadError,
        pubsub::{BroadcastWorker, PreparedBroadcast},
        socket::{ConnectError, ConnectInfo, Params},
    },
};
use pipeline_load::{server::LISTENING, unix_micros};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::{
    runtime::{Handle, Runtime},
    sync::Notify,
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing_subscriber::{layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::{
    ALLOCATOR,
    endings::{End, Endings, Progress, client},
    lateness::{Lateness, Ticks},
    random::Random,
};

/// The most restarts of the failing stage in a minute. It fails much less often.
const MAX_RESTARTS: usize = 1000;

/// The events that may be in the failing stage at once, and are lost with it.
pub(crate) const FAILING_DEMAND: usize = 40;

/// The events that may be between the queue and the supervisor: in the failing stage and the numbering one.
pub(crate) const WINDOWS: usize = 2 * FAILING_DEMAND;

/// The number of tasks that push.
const PUSHERS: usize = 4;

/// The number of items in a burst to one user, and the bytes of each. Together they are more than the buffers of a
/// connection and its outbox can hold.
const BURST: u64 = 900;
pub(crate) const BURST_BYTES: usize = 8192;

/// The bytes that may wait for a client.
pub(crate) const OUTBOX_BYTES: usize = 1 << 20;

/// How long the runtime has to end its tasks after the shutdown.
const RUNTIME_ENDS_WITHIN: Duration = Duration::from_secs(5);

const MINUTE: Duration = Duration::from_secs(60);

/// The reason of planned failures.
const PLANNED: &str = "a planned failure";

/// The server under test
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The number of users, each with a topic
    #[arg(long, default_value_t = 100)]
    pub(crate) users: usize,
    /// Items that the server pushes by itself, per second, in turn to each user
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    /// Let a stage fail, after this many milliseconds at most and an eighth of them at least; 0 is never
    #[arg(long, default_value_t = 0)]
    pub(crate) fail_millis: u64,
    /// Seconds without traffic after which a socket is closed
    #[arg(long, default_value_t = 60)]
    pub(crate) idle_secs: u64,
    /// Milliseconds for which a poll waits
    #[arg(long, default_value_t = 4000)]
    pub(crate) window_millis: u64,
    /// Microseconds that a worker takes for an item
    #[arg(long, default_value_t = 0)]
    pub(crate) work_us: u64,
    /// How many items are worked on at once
    #[arg(long, default_value_t = 100)]
    pub(crate) max_demand: usize,
    /// The capacity of the queue
    #[arg(long, default_value_t = 10_000)]
    pub(crate) queue: usize,
    /// The number of frames that may wait for a client
    #[arg(long, default_value_t = 256)]
    pub(crate) outbox: usize,
    /// Seconds that a shutdown may drain
    #[arg(long, default_value_t = 10)]
    pub(crate) drain_secs: u64,
}

impl Options {
    /// The arguments that give a server these options.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let numbers = [
            ("--users", self.users as u64),
            ("--rate", self.rate),
            ("--work-us", self.work_us),
            ("--max-demand", self.max_demand as u64),
            ("--queue", self.queue as u64),
            ("--outbox", self.outbox as u64),
            ("--drain-secs", self.drain_secs),
            ("--fail-millis", self.fail_millis),
            ("--idle-secs", self.idle_secs),
            ("--window-millis", self.window_millis),
        ];
        let mut arguments = vec!["server".to_owned()];
        arguments.extend(numbers.map(|(name, number)| format!("{name}={number}")));
        arguments
    }
}

/// The source of an item. The items of one source for one user are numbered in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    Pusher,
    Http,
    Burst,
}

struct Item {
    user: usize,
    from: From,
    n: u64,
    /// Given behind the failing stage; 0 until then.
    k: AtomicU64,
    at_us: u64,
    pad: usize,
    place: AtomicU8,
}

/// Where an item is. It is counted when it is dropped, so that no item can be unaccounted for.
#[derive(Clone, Copy, Debug)]
enum Place {
    Refused,
    /// In the queue, the stage that fails, or the mailboxes before the numbering stage.
    Queue,
    /// Numbered, and not in a worker yet.
    Numbered,
    Worker,
    Broadcast,
}

/// How many items were dropped at each place.
static DROPPED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

impl Drop for Item {
    fn drop(&mut self) {
        DROPPED[usize::from(*self.place.get_mut())].fetch_add(1, Relaxed);
    }
}

impl Item {
    fn new(user: usize, from: From, n: u64, pad: usize) -> Self {
        let (k, place) = (AtomicU64::new(0), AtomicU8::new(Place::Queue as u8));
        Self { user, from, n, k, at_us: unix_micros(), pad, place }
    }

    /// The item with the time at which it was due.
    fn at(self, at_us: u64) -> Self {
        // A type with a destructor cannot be taken apart.
        let mut item = self;
        item.at_us = at_us;
        item
    }

    fn moved(&self, place: Place) {
        self.place.store(place as u8, Relaxed);
    }
}

/// The payload of an item.
#[derive(Serialize)]
struct Message<'a> {
    user: usize,
    from: u8,
    n: u64,
    k: u64,
    at_us: u64,
    pad: &'a str,
}

/// What the stages, the channels and the requests share.
struct Shared {
    items: TimedQueue<Item>,
    presence: Presence,
    /// For each user, the `k` of the last item.
    numbers: Vec<AtomicU64>,
    /// Whether a burst to this user is under way.
    bursts: Vec<AtomicBool>,
    /// The number of each user's last burst item.
    burst_numbers: Vec<AtomicU64>,
    counts: Counts,
    paused: AtomicBool,
    fail: Arc<AtomicBool>,
    broadcasts: Arc<Progress>,
    endings: Endings,
    ticks: Ticks,
}

/// Counts of items.
#[derive(Default)]
struct Counts {
    /// Pushes that were begun.
    begun: AtomicU64,
    /// Pushes that the queue has accepted.
    accepted: AtomicU64,
    refused_full: AtomicU64,
    refused_closed: AtomicU64,
    /// Items whose worker has broadcast them.
    handled: AtomicU64,
    /// Tasks that push now.
    pushing: AtomicUsize,
}

impl Counts {
    /// Counts an item that was not accepted. Returns why.
    fn refused(&self, error: TryPushError<Timed<Item>>) -> &'static str {
        let (item, count, why) = match error {
            TryPushError::Closed(item) => (Some(item), &self.refused_closed, "closed"),
            TryPushError::Full(item) => (Some(item), &self.refused_full, "full"),
            // A plain queue has no other reason.
            _ => (None, &self.refused_full, "full"),
        };
        if let Some(item) = item {
            item.moved(Place::Refused);
        }
        count.fetch_add(1, Relaxed);
        why
    }
}

impl Shared {
    /// Pushes an item, and waits for room.
    async fn push(&self, user: usize, from: From, n: u64, pad: usize) -> bool {
        self.counts.begun.fetch_add(1, Relaxed);
        let item = Item::new(user, from, n, pad);
        if let Err(Closed(item)) = self.items.push_timed(item).await {
            item.moved(Place::Refused);
            self.counts.refused_closed.fetch_add(1, Relaxed);
            return false;
        }
        self.counts.accepted.fetch_add(1, Relaxed);
        true
    }

    fn numbers(&self) -> Vec<u64> {
        self.numbers.iter().map(|number| number.load(Acquire)).collect()
    }
}

/// Passes items on, and fails when it is asked to.
struct Failing {
    fail: Arc<AtomicBool>,
}

impl ProducerConsumer for Failing {
    type In = Timed<Item>;
    type Out = Timed<Item>;

    async fn handle_events(
        &mut self,
        events: Vec<Timed<Item>>,
        _: &Subscription,
        out: &mut Emitter<'_, Timed<Item>>,
    ) -> Result<(), ExitReason> {
        if self.fail.swap(false, Relaxed) {
            return Err(ExitReason::failed(PLANNED));
        }
        out.emit_all(events);
        Ok(())
    }
}

/// Broadcasts items after some work.
struct Push {
    worker: BroadcastWorker<Prepare>,
    work: Duration,
    shared: Arc<Shared>,
}

type Prepare = fn(&Timed<Item>) -> Result<PreparedBroadcast, PayloadError>;

fn prepare(item: &Timed<Item>) -> Result<PreparedBroadcast, PayloadError> {
    let Item { user, from, n, k, at_us, pad, .. } = &**item;
    let (from, k, pad) = (*from as u8, k.load(Relaxed), "x".repeat(*pad));
    let message = Message { user: *user, from, n: *n, k, at_us: *at_us, pad: &pad };
    Ok(PreparedBroadcast::new(&format!("user:{user}"), "item", message)?.timed(item))
}

impl Worker<Timed<Item>> for Push {
    fn reserve(&self, item: &Timed<Item>) -> Option<Reserved> {
        self.worker.reserve(item)
    }

    async fn run(&self, item: &Timed<Item>, context: ChildContext) -> Result<(), ExitReason> {
        item.moved(Place::Worker);
        if !self.work.is_zero() {
            sleep(self.work).await;
        }
        self.worker.run(item, context).await?;
        item.moved(Place::Broadcast);
        let is_burst = matches!(item.from, From::Burst);
        self.shared.broadcasts.add(item.user, item.k.load(Relaxed), is_burst);
        self.shared.counts.handled.fetch_add(1, Relaxed);
        Ok(())
    }
}

struct Anyone;

impl Socket for Anyone {
    /// The connection: `client.visit`.
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        Ok(params.get("client").unwrap_or("0").to_owned())
    }

    fn id(&self, connection: &String) -> Result<Option<String>, ConnectError> {
        Ok(Some(connection.clone()))
    }
}

/// The topic of a user. A client learns the number of the last item after it has subscribed.
struct User {
    user: usize,
    shared: Arc<Shared>,
}

/// Sent to a channel after its join.
struct Joined;

impl Channel for User {
    type Socket = Anyone;
    type Config = Arc<Shared>;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let (user, shared) = (topic.rest().parse()?, cx.config().clone());
        if user >= shared.numbers.len() {
            return Err(JoinError::unauthorized());
        }
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Self { user, shared })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let (user, shared) = (self.user, self.shared.clone());
        match event {
            "burst" => {}
            // These items are on their way to the client, in front of this answer.
            "mark" => return Ok(Reply::ok().with(json!({ "k": shared.broadcasts.last(user) }))),
            _ => return Err(Stop::unknown_event(event)),
        }
        if !shared.bursts[user].swap(true, Acquire) {
            tokio::spawn(async move {
                for _ in 0..BURST {
                    let n = shared.burst_numbers[user].fetch_add(1, Relaxed) + 1;
                    shared.push(user, From::Burst, n, BURST_BYTES).await;
                }
                shared.bursts[user].store(false, Release);
            });
        }
        Ok(Reply::ok())
    }
}

impl HandleMessage<Joined> for User {
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        // Items that are numbered from now on are broadcast after the subscription.
        let numbered = self.shared.numbers[self.user].load(Acquire);
        // Those that were broadcast without a pipeline have other numbers.
        let k = numbered.max(self.shared.broadcasts.last(self.user));
        Ok(cx.push("at", json!({ "k": k }))?)
    }
}

/// A room with presence.
struct Room {
    shared: Arc<Shared>,
}

impl Channel for Room {
    type Socket = Anyone;
    type Config = Arc<Shared>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Self { shared: cx.config().clone() })
    }
}

impl HandleMessage<Joined> for Room {
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let presence = &self.shared.presence;
        presence.track(cx, client(cx.assigns()), &json!({}))?;
        Ok(cx.push("presence_state", presence.list(cx.topic()).await)?)
    }
}

#[derive(Clone)]
struct App {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    pipeline: PipelineObserver,
    started: Arc<Notify>,
}

#[derive(Deserialize)]
struct Pushed {
    user: usize,
    n: u64,
    #[serde(default = "one")]
    count: u64,
    /// When the request was due.
    at_us: Option<u64>,
}

fn one() -> u64 {
    1
}

/// Pushes `count` items, numbered from `n`. The queue may refuse some.
async fn push_items(
    State(app): State<App>,
    Query(pushed): Query<Pushed>,
) -> (StatusCode, Json<Value>) {
    let counts = &app.shared.counts;
    let Pushed { user, n, count, at_us } = pushed;
    let at_us = at_us.unwrap_or_else(unix_micros);
    let (mut accepted, mut refused) = (0, None);
    for n in n..n.saturating_add(count) {
        counts.begun.fetch_add(1, Relaxed);
        let item = Item::new(user, From::Http, n, 0).at(at_us);
        match app.shared.items.try_push(Timed::now(item)) {
            Ok(()) => {
                counts.accepted.fetch_add(1, Relaxed);
                accepted += 1;
            }
            Err(error) => refused = Some(counts.refused(error)),
        }
    }
    let status =
        if refused.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::ACCEPTED };
    (status, Json(json!({ "accepted": accepted, "refused": refused })))
}

/// The state of the server.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Stats {
    pub(crate) tasks: usize,
    /// Bytes that are allocated.
    pub(crate) heap: usize,
    pub(crate) begun: u64,
    pub(crate) accepted: u64,
    pub(crate) refused_full: u64,
    pub(crate) refused_closed: u64,
    pub(crate) handled: u64,
    pub(crate) pushing: usize,
    /// Items that the queue holds.
    pub(crate) queued: usize,
    /// Events that arrived at a stage and are not handled.
    pub(crate) waiting: usize,
    /// Events that wait for demand.
    pub(crate) buffered: usize,
    /// Events in workers.
    pub(crate) workers: usize,
    pub(crate) discarded: u64,
    pub(crate) given_up: u64,
    pub(crate) restarts: u64,
    pub(crate) sockets: usize,
    pub(crate) presences: usize,
    pub(crate) frames_out: u64,
    pub(crate) frames_waiting: usize,
    pub(crate) frames_dropped: u64,
    pub(crate) closed_slow: u64,
    /// Connections that were accepted.
    pub(crate) connected: u64,
    /// Connections that ended, by reason.
    pub(crate) ended: BTreeMap<String, u64>,
    /// Long-polling sessions of which the client did not know: a poll of a session that has ended opens another.
    pub(crate) unused: u64,
    /// How late the server's ticks came.
    pub(crate) lateness: Lateness,
    /// By how many milliseconds one was late at most in the last minute.
    pub(crate) late_millis: u64,
}

impl Stats {
    fn new(shared: &Shared, endpoint: &Endpoint, pipeline: &PipelineObserver) -> Self {
        let counts = &shared.counts;
        let (seen, stages) = (endpoint.snapshot(), pipeline.snapshot().stages);
        Self {
            tasks: 0,
            heap: ALLOCATOR.allocated(),
            begun: counts.begun.load(Relaxed),
            accepted: counts.accepted.load(Relaxed),
            refused_full: counts.refused_full.load(Relaxed),
            refused_closed: counts.refused_closed.load(Relaxed),
            handled: counts.handled.load(Relaxed),
            pushing: counts.pushing.load(Relaxed),
            queued: stages.iter().map(|stage| stage.queued).sum(),
            waiting: stages.iter().map(|stage| stage.waiting).sum(),
            buffered: stages.iter().map(|stage| stage.buffered).sum(),
            workers: stages.iter().filter_map(|stage| stage.workers).sum(),
            discarded: stages.iter().map(|stage| stage.discarded).sum(),
            given_up: stages.iter().map(|stage| stage.given_up).sum(),
            restarts: stages.iter().map(|stage| stage.restarts).sum(),
            sockets: endpoint.open_sockets(),
            presences: shared.presence.tracked(),
            frames_out: seen.frames_out,
            frames_waiting: seen.frames_waiting,
            frames_dropped: seen.dropped.values().sum(),
            closed_slow: seen.closed_slow,
            connected: seen.sockets.iter().map(|mount| mount.connected).sum(),
            ended: shared.endings.counts(),
            unused: shared.endings.unused(),
            lateness: shared.ticks.lateness(),
            late_millis: u64::try_from(shared.ticks.worst_within(MINUTE).as_millis())
                .unwrap_or(u64::MAX),
        }
    }

    /// The number of items that the pipeline holds.
    pub(crate) fn held(&self) -> usize {
        self.queued + self.waiting + self.buffered + self.workers
    }
}

/// The state of the server after its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Final {
    pub(crate) stats: Stats,
    /// Whether a second signal interrupted the shutdown.
    pub(crate) interrupted: bool,
    /// Events that the pipeline's report has as accepted and not processed.
    pub(crate) unprocessed: usize,
    pub(crate) closed: usize,
    pub(crate) aborted: usize,
    /// Items that were dropped before the numbering stage, before a worker, and in a worker.
    pub(crate) dropped: [u64; 3],
    /// Items that are in the closed queue.
    pub(crate) left: usize,
    /// The text of the report.
    pub(crate) report: String,
}

impl Final {
    fn new(stats: Stats, report: &ShutdownReport, left: usize) -> Self {
        let dropped = [Place::Queue, Place::Numbered, Place::Worker];
        let endpoint = report.endpoint.as_ref();
        Self {
            stats,
            interrupted: report.interrupted,
            unprocessed: report.pipelines.iter().map(PipelineReport::unprocessed).sum(),
            closed: endpoint.map_or(0, |report| report.closed),
            aborted: endpoint.map_or(0, |report| report.aborted),
            dropped: dropped.map(|place| DROPPED[place as usize].load(Relaxed)),
            left,
            report: report.to_string(),
        }
    }
}

async fn stats(State(app): State<App>) -> Json<Stats> {
    let mut stats = Stats::new(&app.shared, &app.endpoint, &app.pipeline);
    stats.tasks = Handle::current().metrics().num_alive_tasks();
    Json(stats)
}

/// Begins the server's own pushes and failures.
async fn start(State(app): State<App>) {
    app.started.notify_waiters();
}

/// Stops the server's own pushes and failures.
async fn pause(State(app): State<App>) {
    app.shared.paused.store(true, Relaxed);
}

async fn numbers(State(app): State<App>) -> Json<Vec<u64>> {
    Json(app.shared.numbers())
}

#[derive(Deserialize)]
struct Asked {
    connection: String,
}

/// What was recorded at the end of a connection.
async fn ended(State(app): State<App>, Query(asked): Query<Asked>) -> Json<Option<End>> {
    Json(app.shared.endings.of(&asked.connection))
}

#[derive(Deserialize)]
struct Rooms {
    rooms: usize,
}

/// The presences of each room.
async fn presences(State(app): State<App>, Query(asked): Query<Rooms>) -> Json<Value> {
    let mut all = Map::new();
    for room in 0..asked.rooms {
        let topic = format!("room:{room}");
        let list = app.shared.presence.list(&topic).await;
        all.insert(topic, json!(list));
    }
    Json(Value::Object(all))
}

#[derive(Deserialize)]
struct Broadcasts {
    /// The user whose topic it is.
    user: usize,
    /// The number of the last item before.
    after: u64,
    rate: u64,
    millis: u64,
    pad: usize,
}

/// Broadcasts at this rate, without a pipeline.
async fn broadcast(State(app): State<App>, Query(asked): Query<Broadcasts>) -> Json<Value> {
    let (began, began_us, pad) = (Instant::now(), unix_micros(), "x".repeat(asked.pad));
    let time = Duration::from_millis(asked.millis);
    let (mut n, mut tick) = (0, interval(Duration::from_millis(2)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < time {
        tick.tick().await;
        while n < due(began, asked.rate) && began.elapsed() < time {
            n += 1;
            let at_us = began_us + n * 1_000_000 / asked.rate;
            let (user, k) = (asked.user, asked.after + n);
            let message = Message { user, from: 0, n: k, k, at_us, pad: &pad };
            // Before: a socket that this one overflows may end while the call still runs.
            app.shared.broadcasts.add(user, k, false);
            // A payload of numbers and a text has a JSON form.
            let _ = app.endpoint.broadcast(&format!("user:{user}"), "item", message);
            yield_now().await;
        }
    }
    Json(json!({ "offered": n, "took_seconds": began.elapsed().as_secs_f64() }))
}

#[derive(Deserialize)]
struct Offered {
    rate: u64,
    millis: u64,
}

/// Offers items to the queue at this rate, in turn to each user. A full queue refuses them.
async fn offer(State(app): State<App>, Query(asked): Query<Offered>) -> Json<Value> {
    let counts = &app.shared.counts;
    let users = app.shared.numbers.len() as u64;
    let (began, began_us) = (Instant::now(), unix_micros());
    let time = Duration::from_millis(asked.millis);
    let (mut n, mut tick) = (0, interval(Duration::from_millis(2)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < time {
        tick.tick().await;
        while n < due(began, asked.rate) && began.elapsed() < time {
            let user = usize::try_from(n % users).unwrap_or_default();
            let at_us = began_us + (n + 1) * 1_000_000 / asked.rate;
            let item = Item::new(user, From::Pusher, n / users + 1, 0).at(at_us);
            counts.begun.fetch_add(1, Relaxed);
            match app.shared.items.try_push(Timed::now(item)) {
                Ok(()) => drop(counts.accepted.fetch_add(1, Relaxed)),
                Err(error) => drop(counts.refused(error)),
            }
            n += 1;
        }
    }
    Json(json!({ "offered": n, "took_seconds": began.elapsed().as_secs_f64() }))
}

/// How many items of a rate are due by now.
fn due(began: Instant, rate: u64) -> u64 {
    let items = began.elapsed().as_micros() * u128::from(rate) / 1_000_000;
    u64::try_from(items).unwrap_or(u64::MAX)
}

/// Pushes to these users in turn, with pauses, until it is paused.
async fn keep_pushing(shared: Arc<Shared>, pusher: usize, rate: u64) {
    let users: Vec<usize> = (pusher..shared.numbers.len()).step_by(PUSHERS).collect();
    let mut random = Random::new(pusher as u64);
    let mut pace = interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut pushed = 0;
    for n in 1.. {
        for user in &users {
            while pushed >= due(began, rate) {
                pace.tick().await;
                if shared.paused.load(Relaxed) {
                    return;
                }
            }
            let pad = usize::try_from(random.below(600)).unwrap_or_default();
            if !shared.push(*user, From::Pusher, n, pad).await {
                return;
            }
            pushed += 1;
        }
    }
}

async fn keep_failing(shared: Arc<Shared>, millis: u64) {
    let mut random = Random::new(77);
    while !shared.paused.load(Relaxed) {
        sleep(Duration::from_millis(millis / 8 + random.below(millis))).await;
        shared.fail.store(true, Relaxed);
    }
    shared.fail.store(false, Relaxed);
}

/// Runs the server until a signal, and prints its last state as a line of JSON.
pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let (report, App { shared, endpoint, pipeline, .. }) =
        runtime.block_on(serve_until_signal(options))?;
    // Everything that still runs ends here, so that the numbers are final.
    runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
    let stats = Stats::new(&shared, &endpoint, &pipeline);
    println!("{}", serde_json::to_string(&Final::new(stats, &report, shared.items.len()))?);
    Ok(())
}

async fn serve_until_signal(options: &Options) -> Result<(ShutdownReport, App), Box<dyn Error>> {
    let (items, producer) = timed_queue(QueueOptions::new().capacity(options.queue));
    let atomics = || (0..options.users).map(|_| AtomicU64::default()).collect::<Vec<_>>();
    let (broadcasts, ticks) = (Arc::new(Progress::new(options.users)), Ticks::start());
    let endings = Endings::new(broadcasts.clone(), ticks.clone());
    registry().with(endings.clone()).init();
    let shared = Arc::new(Shared {
        items,
        presence: Presence::new(),
        numbers: atomics(),
        bursts: (0..options.users).map(|_| AtomicBool::default()).collect(),
        burst_numbers: atomics(),
        counts: Counts::default(),
        paused: AtomicBool::default(),
        fail: Arc::default(),
        broadcasts,
        endings,
        ticks,
    });
    let mount = Mount::new(Anyone)
        .channel_with::<User>("user:*", shared.clone())
        .channel_with::<Room>("room:*", shared.clone())
        .longpoll(LongPoll::new().window(Duration::from_millis(options.window_millis)))
        .idle_timeout(Duration::from_secs(options.idle_secs))
        .receive_timeout(Duration::from_secs(options.idle_secs))
        .max_outbox(options.outbox, OUTBOX_BYTES);
    let endpoint =
        Endpoint::builder().presence(&shared.presence).mount("/socket", mount).build()?;

    let fail = shared.fail.clone();
    let failing = Stage::restarting(move || Failing { fail: fail.clone() })
        .named("failing")
        .max_restarts(MAX_RESTARTS, Duration::from_secs(60));
    let numbering = shared.clone();
    let number = map(move |timed: Timed<Item>| {
        let k = numbering.numbers[timed.user].fetch_add(1, Release) + 1;
        timed.k.store(k, Relaxed);
        timed.moved(Place::Numbered);
        timed
    });
    let push = Push {
        worker: endpoint.pubsub().broadcast_worker(prepare as Prepare),
        work: Duration::from_micros(options.work_us),
        shared: shared.clone(),
    };
    let demand = |events: usize| SubscribeOptions::new().max_demand(events).min_demand(events / 2);
    let pipeline = Pipeline::builder("soak")
        .producer(producer)
        .producer_consumer_with(failing, demand(FAILING_DEMAND))
        .producer_consumer(number, demand(FAILING_DEMAND))
        .consumer_supervisor(ConsumerSupervisor::new(push), demand(options.max_demand))
        .start()?;

    let app = App {
        shared: shared.clone(),
        endpoint: endpoint.clone(),
        pipeline: pipeline.observer(),
        started: Arc::default(),
    };
    let router = Router::new()
        .route("/push", post(push_items))
        .route("/stats", get(stats))
        .route("/start", get(start))
        .route("/pause", get(pause))
        .route("/numbers", get(numbers))
        .route("/ended", get(ended))
        .route("/presences", get(presences))
        .route("/broadcast", get(broadcast))
        .route("/offer", get(offer))
        .with_state(app.clone())
        .fallback_service(endpoint.clone());
    let listener = listen("127.0.0.1:0").await?;
    println!("{LISTENING}{}", listener.local_addr()?);
    if options.rate > 0 {
        for pusher in 0..PUSHERS {
            let (shared, rate) = (shared.clone(), options.rate / PUSHERS as u64);
            let started = app.started.clone().notified_owned();
            tokio::spawn(async move {
                started.await;
                shared.counts.pushing.fetch_add(1, Relaxed);
                keep_pushing(shared.clone(), pusher, rate).await;
                shared.counts.pushing.fetch_sub(1, Relaxed);
            });
        }
    }
    let millis = options.fail_millis;
    if millis > 0 {
        let started = app.started.clone().notified_owned();
        tokio::spawn(async move {
            started.await;
            keep_failing(shared, millis).await;
        });
    }
    let report = serve(listener, router)
        .pipeline(pipeline)
        .endpoint(endpoint)
        .drain_within(Duration::from_secs(options.drain_secs))
        .await?;
    Ok((report, app))
}
