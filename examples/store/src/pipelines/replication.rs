//! Changes of other nodes, from their topic into the copy.
//!
//! A batch keeps the newest change of each row, so a node that falls behind merges, and catches up. A node that has missed
//! some loads everything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use pipeline::{
    ExitReason, Pipeline,
    builder::StartError,
    source::from_stream,
    stage::{Consumer, Stage},
    step::batch,
    subscription::{Cancel, SubscribeOptions, Subscription},
    ws::pubsub::{Broadcast, Lagged, TopicSubscription},
};

use super::telling::again;
use crate::{
    domain::change::{Change, newest},
    shop::Shop,
};

/// The most changes that are applied at once, and how long the first of them waits for others.
const BATCH: (usize, Duration) = (100, Duration::from_millis(20));

/// What was heard.
pub type Heard = Result<Broadcast, Lagged>;

/// The pipeline. The shop knows the subscription `changes` as its own.
pub(super) fn start(shop: &Arc<Shop>, changes: TopicSubscription) -> Result<Pipeline, StartError> {
    let listener = Arc::new(Listener { changes: tokio::sync::Mutex::new(changes) });
    let restarts = shop.clone();
    let is_first = AtomicBool::new(true);
    let listen = move || {
        if !is_first.swap(false, Relaxed) {
            // What the stage had taken when it was killed is lost.
            restarts.doubt();
        }
        from_stream(heard(listener.clone()))
    };
    let shop = shop.clone();
    let is_first_applier = AtomicBool::new(true);
    let apply = move || {
        if !is_first_applier.swap(false, Relaxed) {
            shop.doubt();
        }
        Applier { shop: shop.clone() }
    };
    let patient = SubscribeOptions::new().cancel(Cancel::Reconnect(again()));
    let (size, within) = BATCH;
    let often = (100, Duration::from_secs(60));
    Pipeline::builder("replication")
        .producer_with(Stage::restarting(listen).max_restarts(often.0, often.1).named("changes"))
        .producer_consumer_with(
            Stage::restarting(move || batch(size, within))
                .max_restarts(often.0, often.1)
                .named("batch"),
            patient.clone().max_demand(size),
        )
        .consumer_with(
            Stage::restarting(apply).max_restarts(often.0, often.1).named("apply"),
            patient.max_demand(1).min_demand(0),
        )
        .start()
}

/// The stage that applies what was heard.
#[derive(Debug)]
pub struct Applier {
    shop: Arc<Shop>,
}

impl Consumer for Applier {
    type Event = Vec<Heard>;

    async fn handle_events(
        &mut self,
        batches: Vec<Vec<Heard>>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        for heard in batches {
            apply(&self.shop, heard);
        }
        Ok(())
    }
}

/// The subscription, which outlives the stage that reads it: so it stays the one that the shop knows as its own, and what
/// comes while the stage is restarted waits in it.
struct Listener {
    changes: tokio::sync::Mutex<TopicSubscription>,
}

fn heard(listener: Arc<Listener>) -> impl Stream<Item = Heard> + Send {
    stream::unfold(listener, |listener| async move {
        let heard = listener.changes.lock().await.next().await?;
        Some((heard, listener))
    })
}

fn apply(shop: &Shop, heard: Vec<Heard>) {
    let mut changes = Vec::with_capacity(heard.len());
    for heard in heard {
        match heard.map(|broadcast| broadcast.payload().parse::<Change>()) {
            Ok(Ok(change)) => changes.push(change),
            // Either some were dropped, or a node of another version has said something new.
            Ok(Err(_)) | Err(Lagged(_)) => shop.doubt(),
        }
    }
    shop.metrics.replicated.increment(changes.len() as u64);
    shop.apply(&newest(changes));
}
