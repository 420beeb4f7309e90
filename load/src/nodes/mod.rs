//! Broadcasts from one node to others per second, and how long one takes: those of the library, and messages
//! of the bare client libraries.

pub(crate) mod bare;

use std::{error::Error, time::Duration};

use futures::{StreamExt, stream::SelectAll};
use pipeline_cluster::{Cluster, ClusterOptions};
use pipeline_test_support::servers::{Kind, Server};
use pipeline_ws_sink::{
    Endpoint, Payload,
    pubsub::{Adapter, TopicSubscription},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::{error::LoadError, usage::ProcessorTime};

/// How long a measurement may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The time between two broadcasts whose latency is measured.
pub(crate) const EVERY: Duration = Duration::from_millis(1);

/// How many broadcasts are sent between two looks at what waits, and how many may wait.
const GROUP: u64 = 512;
const AHEAD: usize = 16 * 512;

/// The time between two looks at what has arrived.
const LOOK: Duration = Duration::from_micros(500);

/// What is sent, and who receives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    /// The topics, which take turns.
    pub(crate) topics: u64,
    /// The other nodes.
    pub(crate) others: u64,
    /// How many of them have subscribers.
    pub(crate) listening: u64,
}

/// The names of topics, and those of the channels of the bare libraries.
pub(crate) fn topics(count: u64) -> Vec<String> {
    (0..count).map(|n| format!("load:{n}")).collect()
}

/// JSON of 200 bytes.
pub(crate) fn payload() -> String {
    format!(r#"{{"text":"{}"}}"#, "x".repeat(189))
}

/// Starts a server, if it is installed.
pub(crate) async fn server(kind: Kind) -> Result<Server, LoadError> {
    let missing = || LoadError::NoServer { program: format!("{kind:?}").into(), source: None };
    Server::start(kind).await.ok_or_else(missing)
}

pub(crate) fn failed(error: impl Error) -> LoadError {
    LoadError::Stage(error.to_string())
}

async fn node(server: &Server, kind: Kind) -> Result<(Cluster, Endpoint), LoadError> {
    let options = ClusterOptions::new("load").max_waiting(usize::MAX).max_waiting_bytes(usize::MAX);
    let cluster = match kind {
        Kind::Redis => Cluster::redis(&server.url(), options).await,
        _ => Cluster::nats(&server.url(), options).await,
    };
    let cluster = cluster.map_err(failed)?;
    let endpoint = Endpoint::builder().adapter(cluster.clone()).build().map_err(failed)?;
    cluster.connected().await;
    Ok((cluster, endpoint))
}

/// Subscribes a node to all topics.
async fn listen(node: &(Cluster, Endpoint), topics: &[String]) -> SelectAll<TopicSubscription> {
    let (cluster, endpoint) = node;
    let subscriptions: Vec<_> = topics.iter().map(|topic| endpoint.subscribe(topic)).collect();
    for topic in topics {
        cluster.receives(topic).await;
    }
    subscriptions.into_iter().collect()
}

/// How fast messages were, and what they cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub(crate) per_second: f64,
    /// The processor time of this process and the server for each, in microseconds. Other programs hardly
    /// change it.
    pub(crate) processor_micros: f64,
}

/// A measurement that runs.
pub(crate) struct Stopwatch<'a> {
    server: &'a Server,
    began: Instant,
    used: [ProcessorTime; 2],
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn start(server: &'a Server) -> Result<Self, LoadError> {
        Ok(Self { server, used: used(server)?, began: Instant::now() })
    }

    pub(crate) fn stop(self, messages: u64) -> Result<Speed, LoadError> {
        let (took, messages) = (self.began.elapsed().as_secs_f64(), messages as f64);
        let used = used(self.server)?;
        let used: Duration = used.iter().zip(&self.used).map(|(now, was)| now.since(was)).sum();
        Ok(Speed {
            per_second: messages / took,
            processor_micros: used.as_secs_f64() * 1e6 / messages,
        })
    }
}

/// The processor time of this process and of the server.
fn used(server: &Server) -> Result<[ProcessorTime; 2], LoadError> {
    let server =
        server.process().ok_or(std::io::ErrorKind::NotFound).map_err(std::io::Error::from)?;
    Ok([ProcessorTime::of(std::process::id())?, ProcessorTime::of(server)?])
}

/// Broadcasts as fast as it can be, until all are delivered on the nodes that listen. Without others, the node
/// that broadcasts listens.
pub(crate) async fn rate(server: &Server, kind: Kind, load: Traffic) -> Result<Speed, LoadError> {
    let (topics, (sending, sender)) = (topics(load.topics), node(server, kind).await?);
    let (mut others, mut subscriptions) = (Vec::new(), Vec::new());
    for n in 0..load.others {
        let other = node(server, kind).await?;
        if n < load.listening {
            subscriptions.push(listen(&other, &topics).await);
        }
        others.push(other.0);
    }
    let sending = (sending, sender);
    if load.others == 0 {
        subscriptions.push(listen(&sending, &topics).await);
    }
    let (sending, sender) = sending;
    let payload = Payload::json_text(payload()).map_err(failed)?;
    let (mut turns, watch) = (topics.iter().cycle(), Stopwatch::start(server)?);
    let mut left = load.messages;
    while left > 0 {
        for topic in turns.by_ref().take(usize::try_from(left.min(GROUP)).unwrap_or_default()) {
            sender.broadcast(topic, "load", &payload).map_err(failed)?;
            left -= 1;
        }
        // A broadcast never waits, so the sender would be far ahead of its node.
        while waiting(&sending) > AHEAD {
            sleep(LOOK).await;
        }
    }
    // What its subscriptions have no room for is delivered on a node too.
    let listening = others.iter().take(usize::try_from(load.listening).unwrap_or_default());
    for cluster in listening {
        let arrived = || cluster.snapshot().map_or(0, |snapshot| snapshot.received);
        while arrived() < load.messages {
            if watch.began.elapsed() > PATIENCE {
                return Err(LoadError::Missing { arrived: arrived(), of: load.messages });
            }
            sleep(LOOK).await;
        }
    }
    // The server has them too, whether or not others listen.
    while waiting(&sending) > 0 {
        sleep(LOOK).await;
    }
    watch.stop(load.messages)
}

fn waiting(cluster: &Cluster) -> usize {
    cluster.snapshot().map_or(0, |snapshot| snapshot.waiting)
}

/// Broadcasts one by one, and measures the time until each arrives on another node, or on the one that
/// broadcasts. Returns them in milliseconds, sorted.
pub(crate) async fn latencies(
    server: &Server,
    kind: Kind,
    messages: u64,
    to_another: bool,
) -> Result<Vec<f64>, LoadError> {
    let topics = topics(1);
    let (sending, other) = (node(server, kind).await?, node(server, kind).await?);
    let mut received = listen(if to_another { &other } else { &sending }, &topics).await;
    let (_sending, sender) = sending;
    let payload = Payload::json_text(payload()).map_err(failed)?;
    let (mut ticks, mut times) = (ticks(), Vec::new());
    for _ in 0..messages {
        ticks.tick().await;
        let sent = Instant::now();
        sender.broadcast(&topics[0], "load", &payload).map_err(failed)?;
        timeout(PATIENCE, received.next()).await.map_err(failed)?;
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The moments at which messages are sent whose latency is measured.
pub(crate) fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
