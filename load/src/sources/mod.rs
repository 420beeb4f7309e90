//! Items of durable sources per second: those of the library, and of the bare client libraries.

pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod postgres;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod sqlite;

use std::{
    error::Error,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::try_join_all;
use pipeline_core::{
    Pipeline,
    processing::{Message, Processors},
};
use pipeline_sources::{Broker, BrokerError, Item, Source, SourceOptions};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::error::LoadError;

/// The bytes of a payload.
pub(crate) const PAYLOAD: [u8; 200] = [b'x'; 200];

/// How many tasks push at the same time.
pub(crate) const PUSHERS: u64 = 64;

/// How long a measurement may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many batches are on the way at the same time, with a source and with a bare client.
pub(crate) const BATCHES: usize = 2;

/// Handles all items that wait at a broker, in batches of this size. When it returns, all outcomes are
/// stored. Returns items per second.
pub(crate) async fn handled<B: Broker>(
    broker: B,
    at_once: usize,
    items: u64,
) -> Result<f64, LoadError> {
    let (handled, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (count, last) = (handled.clone(), all.clone());
    let handle = async move |_: &mut Message<Item>| {
        if count.fetch_add(1, Relaxed) + 1 == items {
            last.notify_one();
        }
        Ok(())
    };
    let options = SourceOptions::new().fetch_at_once(at_once).settle_at_once(at_once);
    let began = Instant::now();
    let pipeline = Pipeline::of_messages("load")
        .source(Source::new(broker, options))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(BATCHES * at_once))
        .start()?;
    let in_time = timeout(PATIENCE, all.notified()).await;
    let drained = pipeline.drain(PATIENCE).await;
    let took = began.elapsed();
    if in_time.is_ok() && drained.completed && handled.load(Relaxed) == items {
        Ok(items as f64 / took.as_secs_f64())
    } else {
        Err(LoadError::Missing { arrived: handled.load(Relaxed), of: items })
    }
}

/// Handles batches by a bare client, as many at the same time as a source. The function handles one, and returns
/// how many items were in it. Returns items per second.
pub(crate) async fn in_batches(
    items: u64,
    began: Instant,
    handle: impl AsyncFn() -> Result<usize, LoadError>,
) -> Result<f64, LoadError> {
    let handled = AtomicU64::new(0);
    let one_after_another = async || {
        while handled.load(Relaxed) < items {
            handled.fetch_add(handle().await? as u64, Relaxed);
        }
        Ok::<_, LoadError>(())
    };
    let all = try_join_all((0..BATCHES).map(|_| one_after_another()));
    timeout(PATIENCE, all).await.map_err(failed)??;
    Ok(items as f64 / began.elapsed().as_secs_f64())
}

/// Another name for each queue of a run.
fn new_name() -> String {
    static QUEUES: AtomicU64 = AtomicU64::new(0);
    format!("load-{}", QUEUES.fetch_add(1, Relaxed))
}

fn failed(error: impl Error + Send + Sync + 'static) -> LoadError {
    LoadError::Broker(BrokerError::new(error))
}

/// Pushes items from many tasks at the same time. Returns pushes per second.
pub(crate) async fn pushed<E, P>(
    items: u64,
    push: impl Fn(Item) -> P + Clone + Send + 'static,
) -> Result<f64, LoadError>
where
    E: Error + Send + Sync + 'static,
    P: Future<Output = Result<(), E>> + Send,
{
    let began = Instant::now();
    let pushers = (0..PUSHERS).map(|n| {
        let (push, more) = (push.clone(), u64::from(n < items % PUSHERS));
        tokio::spawn(async move {
            for _ in 0..items / PUSHERS + more {
                push(Item::new(PAYLOAD.to_vec())).await?;
            }
            Ok::<_, E>(())
        })
    });
    for pusher in pushers.collect::<Vec<_>>() {
        let pushed = pusher.await.map_err(|error| LoadError::Stage(error.to_string()))?;
        pushed.map_err(failed)?;
    }
    Ok(items as f64 / began.elapsed().as_secs_f64())
}
