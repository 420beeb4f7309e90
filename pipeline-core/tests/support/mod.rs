//! Shared helpers of the stage tests.
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use pipeline_core::{
    Pipeline,
    stage::Producer,
    subscription::SubscribeOptions,
    supervisor::{ConsumerSupervisor, Worker},
};

/// A pipeline of a producer and supervised workers.
pub(crate) fn supervised<P, W>(
    producer: P,
    supervisor: ConsumerSupervisor<P::Event, W>,
    max_demand: usize,
    min_demand: usize,
) -> Pipeline
where
    P: Producer<Event: Sync>,
    W: Worker<P::Event>,
{
    let options = SubscribeOptions::new().max_demand(max_demand).min_demand(min_demand);
    Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(supervisor, options)
        .start()
        .unwrap()
}
