//! A server for load tests with any client of Phoenix Channels.
//!
//! Any client may connect at `/socket`, and join `room:*` and `user:*`. Requests start the work:
//!
//! - `GET /bcast?topic=T&n=N&size=S[&every_us=U]` broadcasts N messages with S bytes each, one every U
//!   microseconds if given. The answer is the time that this took in microseconds.
//! - `GET /pipe?users=U&n=N` pushes N items through a pipeline to `user:0`, `user:1` and so on in turn.
//! - `GET /paced?users=U&rate=R&secs=S[&due=true]` does the same at R a second, in bursts every 10 ms. With `due`, an
//!   item has the time at which it was to be pushed instead of the time at which it was.
//! - `GET /receives?first=F&step=S&count=C` is answered when this node receives what others broadcast to `user:F`,
//!   `user:F+S` and so on.
//!
//! With `--cluster` it is one node of several.
//!
//! Each payload contains the Unix time in microseconds, `at_us`, and each delivery is timed.

use std::{
    error::Error,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::get,
};
use clap::Parser;
use mimalloc::MiMalloc;
use pipeline::{
    Pipeline,
    cluster::{Cluster, ClusterError, ClusterOptions},
    serve,
    source::{QueueOptions, TimedQueue, timed_queue},
    statsd::StatsdRecorder,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        endpoint::ArrivalRate,
        listen,
        pubsub::PreparedBroadcast,
        socket::{ConnectError, ConnectInfo, Params},
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval},
};

/// Frames are allocated on one thread and freed on another. The C library's allocator makes threads
/// contend for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The interval of paced bursts.
const BURST: Duration = Duration::from_millis(10);

/// A server for load tests.
#[derive(Debug, Parser)]
struct Args {
    /// The port to serve on; 0 for a free one
    #[arg(long, default_value_t = 4000)]
    port: u16,

    /// The maximum number of unfinished pushes in the pipeline
    #[arg(long, default_value_t = 100)]
    max_demand: usize,

    /// The address that StatsD lines are sent to
    #[arg(long, default_value = "127.0.0.1:8125")]
    statsd: String,

    /// The server that connects this node to others: redis://.. or nats://..
    #[arg(long)]
    cluster: Option<String>,

    /// How many clients may connect in a second, and how many channels they may join
    #[arg(long)]
    arrivals: Option<u32>,
}

struct Anyone;

impl Socket for Anyone {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        Ok(())
    }
}

struct Any;

impl Channel for Any {
    type Socket = Anyone;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

/// The payload of a broadcast.
#[derive(Serialize)]
struct Message<'a> {
    d: &'a str,
    n: u64,
    at_us: u64,
}

/// An item of the pipeline.
#[derive(Serialize)]
struct Item {
    #[serde(skip)]
    user: u64,
    n: u64,
    at_us: u64,
}

#[derive(Clone)]
struct Target {
    endpoint: Endpoint,
    items: TimedQueue<Item>,
    cluster: Option<Cluster>,
}

async fn connect(url: &str) -> Result<Cluster, ClusterError> {
    let options = ClusterOptions::new("load");
    match url.strip_prefix("nats://") {
        Some(_) => Cluster::nats(url, options).await,
        None => Cluster::redis(url, options).await,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let _statsd = StatsdRecorder::udp(args.statsd.clone())?.install()?;
    let mount = Mount::new(Anyone)
        .channel::<Any>("room:*")
        .channel::<Any>("user:*")
        // The client shares the machine, and is slower than a real one.
        .max_outbox(4096, 64 << 20);
    let cluster = match &args.cluster {
        Some(url) => Some(connect(url).await?),
        None => None,
    };
    let mut endpoint = Endpoint::builder().mount("/socket", mount);
    if let Some(cluster) = &cluster {
        endpoint = endpoint.adapter(cluster.clone());
    }
    if let Some(rate) = args.arrivals.map(ArrivalRate::new) {
        endpoint = endpoint.connect_rate(rate).join_rate(rate);
    }
    let endpoint = endpoint.build()?;
    if let Some(cluster) = &cluster {
        cluster.connected().await;
    }

    let (items, producer) = timed_queue(QueueOptions::new());
    let push = endpoint.pubsub().broadcast_worker(|item: &Timed<Item>| {
        let broadcast =
            PreparedBroadcast::new(&format!("user:{}", item.user), "push_timed", &**item)?;
        Ok(broadcast.timed(item))
    });
    let demand =
        SubscribeOptions::new().max_demand(args.max_demand).min_demand(args.max_demand / 2);
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(push), demand)
        .start()?;

    let app = Router::new()
        .route("/bcast", get(bcast))
        .route("/pipe", get(pipe))
        .route("/paced", get(paced))
        .route("/receives", get(receives))
        .with_state(Target { endpoint: endpoint.clone(), items, cluster })
        .fallback_service(endpoint.clone());
    let listener = listen(("127.0.0.1", args.port)).await?;
    println!("listening on {}", listener.local_addr()?);
    println!("{}", serve(listener, app).pipeline(pipeline).endpoint(endpoint).await?);
    Ok(())
}

#[derive(Deserialize)]
struct Broadcasts {
    topic: String,
    n: u64,
    #[serde(default = "few")]
    size: usize,
    every_us: Option<u64>,
}

fn few() -> usize {
    64
}

async fn bcast(
    State(target): State<Target>,
    Query(asked): Query<Broadcasts>,
) -> Result<String, (StatusCode, String)> {
    let began = Instant::now();
    let data = "x".repeat(asked.size);
    let mut pace = asked.every_us.map(|every| interval(Duration::from_micros(every.max(1))));
    for n in 0..asked.n {
        match &mut pace {
            Some(pace) => drop(pace.tick().await),
            None => yield_now().await,
        }
        let message = Message { d: &data, n, at_us: now() };
        let sent = target.endpoint.broadcast_timed(Instant::now(), &asked.topic, "msg", message);
        sent.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    }
    Ok(began.elapsed().as_micros().to_string())
}

#[derive(Deserialize)]
struct Pushes {
    users: u64,
    n: u64,
}

async fn pipe(State(target): State<Target>, Query(asked): Query<Pushes>) -> String {
    let began = Instant::now();
    for n in 0..asked.n {
        target.push(asked.users, n, now()).await;
    }
    began.elapsed().as_micros().to_string()
}

#[derive(Deserialize)]
struct Pace {
    users: u64,
    rate: u64,
    secs: u64,
    #[serde(default)]
    due: bool,
}

async fn paced(State(target): State<Target>, Query(asked): Query<Pace>) -> String {
    let (began, began_at) = (Instant::now(), now());
    let mut pace = interval(BURST);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (total, bursts) = (asked.rate * asked.secs, asked.secs * 100);
    let mut n = 0;
    for burst in 1..=bursts {
        let due = pace.tick().await.saturating_duration_since(began);
        let due_at = began_at + u64::try_from(due.as_micros()).unwrap_or_default();
        while n < total * burst / bursts {
            let at = if asked.due { due_at } else { now() };
            target.push(asked.users, n, at).await;
            n += 1;
        }
    }
    began.elapsed().as_micros().to_string()
}

#[derive(Deserialize)]
struct Users {
    first: u64,
    step: usize,
    count: usize,
}

async fn receives(State(target): State<Target>, Query(asked): Query<Users>) {
    if let Some(cluster) = target.cluster {
        for user in (asked.first..).step_by(asked.step.max(1)).take(asked.count) {
            cluster.receives(&format!("user:{user}")).await;
        }
    }
}

impl Target {
    async fn push(&self, users: u64, n: u64, at_us: u64) {
        let item = Item { user: n % users.max(1), n, at_us };
        // Fails when the pipeline has ended; the server is stopping then.
        let _ = self.items.push_timed(item).await;
    }
}

/// The Unix time, in microseconds.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
