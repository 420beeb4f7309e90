//! Items that are gone, or there again, from the copy to the carts that have them.
//!
//! Items in no cart cost nothing: most of them are dropped by the stage that asks who listens. The demand is small, so a
//! product that sells out in all sizes at once comes in portions.

use std::sync::Arc;

use pipeline::{
    Pipeline,
    builder::StartError,
    source::FairQueueProducer,
    stage::Stage,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{PubSub, pubsub::PreparedBroadcast},
};
use serde_json::json;

use crate::shop::Shop;

/// The topic of an item's alerts. No client can join it.
pub(crate) fn topic(item: i64) -> String {
    format!("item_out:{item}")
}

/// The pipeline.
pub(super) fn start(
    shop: &Arc<Shop>,
    pubsub: &PubSub,
    alerts: FairQueueProducer<i64, Timed<i64>>,
) -> Result<Pipeline, StartError> {
    let metrics = shop.metrics.clone();
    let worker = pubsub.broadcast_worker(move |item: &Timed<i64>| {
        metrics.alerts.increment(1);
        let alert = PreparedBroadcast::new(&topic(**item), "item_out", json!({ "id": **item }))?;
        Ok(alert.timed(item).here_only())
    });
    let subscribed = pubsub.filter_subscribed_here(|item: &Timed<i64>| topic(**item));
    let few = SubscribeOptions::new().max_demand(2).min_demand(1);
    Pipeline::builder("alerts")
        .producer_with(Stage::new(alerts).named("alerts"))
        .producer_consumer_with(Stage::new(subscribed).named("in_carts"), few.clone())
        .consumer_supervisor_with(Stage::new(ConsumerSupervisor::new(worker)).named("alert"), few)
        .start()
}
