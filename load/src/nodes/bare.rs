//! Messages by the bare client libraries: published in groups on one connection, received on another.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use futures::{StreamExt, stream::SelectAll};
use pipeline_test_support::servers::{Kind, Server};
use redis::{AsyncConnectionConfig, PushInfo, PushKind, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{PATIENCE, Speed, Stopwatch, Traffic, failed, payload, ticks, topics};
use crate::error::LoadError;

/// How many messages are in a group.
const GROUP: usize = 512;

/// What has arrived.
#[derive(Default)]
struct Arrived {
    count: AtomicU64,
    more: Notify,
}

impl Arrived {
    async fn reaches(&self, count: u64) -> Result<(), LoadError> {
        let reaching = async {
            while self.count.load(Relaxed) < count {
                self.more.notified().await;
            }
        };
        let missing = |_| LoadError::Missing { arrived: self.count.load(Relaxed), of: count };
        timeout(PATIENCE, reaching).await.map_err(missing)
    }

    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
        self.more.notify_one();
    }
}

/// A connection that publishes, while another counts.
enum Publisher {
    Redis { sender: MultiplexedConnection, _receiver: MultiplexedConnection },
    Nats(async_nats::Client),
}

impl Publisher {
    async fn new(
        server: &Server,
        kind: Kind,
        channels: &[String],
    ) -> Result<(Self, Arc<Arrived>), LoadError> {
        let arrived = Arc::<Arrived>::default();
        let counted = arrived.clone();
        if kind == Kind::Redis {
            let client = redis::Client::open(format!("{}?protocol=resp3", server.url()));
            let client = client.map_err(failed)?;
            let pushed = move |info: PushInfo| -> Result<(), ()> {
                if info.kind == PushKind::Message {
                    counted.add();
                }
                Ok(())
            };
            let config = AsyncConnectionConfig::new().set_push_sender(pushed);
            let receiver = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut receiver = receiver.map_err(failed)?;
            receiver.subscribe(channels).await.map_err(failed)?;
            let sender = client.get_multiplexed_async_connection().await.map_err(failed)?;
            return Ok((Self::Redis { sender, _receiver: receiver }, arrived));
        }
        let receiver = async_nats::connect(server.url()).await.map_err(failed)?;
        let mut messages = SelectAll::new();
        for channel in channels {
            messages.push(receiver.subscribe(channel.clone()).await.map_err(failed)?);
        }
        receiver.flush().await.map_err(failed)?;
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                counted.add();
            }
        });
        let sender = async_nats::connect(server.url()).await.map_err(failed)?;
        Ok((Self::Nats(sender), arrived))
    }

    async fn publish(&mut self, payload: &str, channels: &[&String]) -> Result<(), LoadError> {
        match self {
            Self::Redis { sender, .. } => {
                let mut pipe = redis::pipe();
                for channel in channels {
                    pipe.cmd("PUBLISH").arg(channel).arg(payload).ignore();
                }
                pipe.query_async::<()>(sender).await.map_err(failed)
            }
            Self::Nats(sender) => {
                for channel in channels {
                    let payload = payload.to_owned().into();
                    sender.publish((*channel).clone(), payload).await.map_err(failed)?;
                }
                sender.flush().await.map_err(failed)
            }
        }
    }
}

/// Publishes as fast as it can be.
pub(crate) async fn rate(server: &Server, kind: Kind, load: Traffic) -> Result<Speed, LoadError> {
    let (channels, payload) = (topics(load.topics), payload());
    let (mut publisher, arrived) = Publisher::new(server, kind, &channels).await?;
    let (mut turns, watch) = (channels.iter().cycle(), Stopwatch::start(server)?);
    for first in (0..load.messages).step_by(GROUP) {
        let count = GROUP.min(usize::try_from(load.messages - first).unwrap_or(GROUP));
        let group: Vec<_> = turns.by_ref().take(count).collect();
        publisher.publish(&payload, &group).await?;
    }
    arrived.reaches(load.messages).await?;
    watch.stop(load.messages)
}

/// Publishes one by one, and measures the time until each arrives. Returns them in milliseconds, sorted.
pub(crate) async fn latencies(
    server: &Server,
    kind: Kind,
    messages: u64,
) -> Result<Vec<f64>, LoadError> {
    let (channels, payload) = (topics(1), payload());
    let (mut publisher, arrived) = Publisher::new(server, kind, &channels).await?;
    let (mut ticks, mut times) = (ticks(), Vec::new());
    for n in 1..=messages {
        ticks.tick().await;
        let sent = Instant::now();
        publisher.publish(&payload, &[&channels[0]]).await?;
        arrived.reaches(n).await?;
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
