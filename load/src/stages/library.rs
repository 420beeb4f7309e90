//! The library's stages.

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    dispatcher::{BroadcastDispatcher, PartitionDispatcher},
    source::{QueueOptions, queue},
    stage::{DemandMode, Emitter, ProducerConsumer, Stage},
    subscription::{SubscribeOptions, Subscription},
    supervisor::ConsumerSupervisor,
};
use tokio::time::Instant;

use super::{Count, Numbers, Window};
use crate::error::LoadError;

/// Emits the events that it receives.
struct Identity;

impl ProducerConsumer for Identity {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

pub(crate) async fn two_stages(max_demand: usize, window: Window) -> Result<f64, LoadError> {
    let count = Count::default();
    let builder = Pipeline::builder("load").producer(Numbers::default());
    let _pipeline = builder.consumer(count.clone(), demand(max_demand)).start()?;
    Ok(count.per_second(window).await)
}

pub(crate) async fn three_stages(max_demand: usize, window: Window) -> Result<f64, LoadError> {
    let count = Count::default();
    let builder = Pipeline::builder("load").producer(Numbers::default());
    let builder = builder.producer_consumer(Identity, demand(max_demand));
    let _pipeline = builder.consumer(count.clone(), demand(max_demand)).start()?;
    Ok(count.per_second(window).await)
}

/// Supervised workers without work.
pub(crate) async fn workers(max_demand: usize, window: Window) -> Result<f64, LoadError> {
    let count = Count::default();
    let counting = count.clone();
    let worker = async move |event: &u64| {
        counting.add_one(*event);
        Ok(())
    };
    let builder = Pipeline::builder("load").producer(Numbers::default());
    let workers = ConsumerSupervisor::new(worker);
    let _pipeline = builder.consumer_supervisor(workers, demand(max_demand)).start()?;
    Ok(count.per_second(window).await)
}

/// Pushes from a task outside of the stages.
pub(crate) async fn pushes(events: u64) -> Result<f64, LoadError> {
    let (queue, producer) = queue(QueueOptions::new());
    let count = Count::default();
    let builder = Pipeline::builder("load").producer(producer);
    let mut pipeline = builder.consumer(count.clone(), SubscribeOptions::new()).start()?;
    let began = Instant::now();
    for event in 0..events {
        queue.push(event).await.map_err(|error| LoadError::Stage(error.to_string()))?;
    }
    drop(queue);
    pipeline.join().await;
    let took = began.elapsed();
    if count.get() == events {
        Ok(events as f64 / took.as_secs_f64())
    } else {
        Err(LoadError::Missing { arrived: count.get(), of: events })
    }
}

/// A producer that sends every event to each consumer. All deliveries are counted.
pub(crate) async fn broadcast(consumers: u64, window: Window) -> Result<f64, LoadError> {
    let numbers = numbers().dispatcher(BroadcastDispatcher::new);
    dispatched(numbers, consumers, window).await
}

/// A producer that sends each event to one consumer, by its key.
pub(crate) async fn partition(consumers: u64, window: Window) -> Result<f64, LoadError> {
    let numbers = numbers().dispatcher(move || {
        PartitionDispatcher::by_key(0..consumers, move |n| Some(n % consumers))
    });
    dispatched(numbers, consumers, window).await
}

/// A producer that waits until all consumers have subscribed.
fn numbers() -> Stage<Numbers, u64> {
    Stage::new(Numbers::default()).demand_mode(DemandMode::Accumulate)
}

async fn dispatched(
    numbers: Stage<Numbers, u64>,
    consumers: u64,
    window: Window,
) -> Result<f64, LoadError> {
    let count = Count::default();
    let mut graph = Graph::new("load");
    let numbers = graph.producer_with(numbers);
    let consumers: Vec<_> =
        (0..consumers).map(|n| (n, graph.consumer(format!("{n}"), count.clone()))).collect();
    let _pipeline = graph.start()?;
    for (n, consumer) in consumers {
        // Only the partition dispatcher uses the partition.
        let subscribed = consumer.subscribe(&numbers, demand(1000).partition(n)).await;
        subscribed.map_err(|error| LoadError::Stage(error.to_string()))?;
    }
    numbers.set_demand_mode(DemandMode::Forward);
    Ok(count.per_second(window).await)
}

/// Demand that is renewed when half of it has arrived.
fn demand(max: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(max / 2)
}
