//! The pipelines of the shop. Each is where demand or time does some work.
//!
//! 1. [`telling`]: levels and releases, from the copy to the shoppers.
//! 2. [`alerts`]: items that are gone, from the copy to the carts that have them.
//! 3. [`inventory`]: the copy is loaded, compared and loaded again; products are released when it is time.
//! 4. [`replication`]: changes of other nodes, from their topic into the copy.
//! 5. [`totals`]: the dashboard's numbers, from the presences.
//! 6. [`orders`]: placed orders, from the database to their carts.
//! 7. [`rush`]: a crowd that buys everything.

pub mod alerts;
pub mod inventory;
pub mod orders;
pub mod replication;
pub mod rush;
pub mod telling;
pub mod totals;

use std::{sync::Arc, time::Duration};

use pipeline::{
    Pipeline,
    builder::StartError,
    source::{FairQueueProducer, QueueProducer},
    timed::Timed,
    ws::PubSub,
};

use crate::{
    domain::change::Row,
    shop::{REPLICATION, Shop, Tell},
};

/// The producers of the pipelines that the shop pushes into.
#[derive(Debug)]
pub struct Producers {
    pub(crate) levels: FairQueueProducer<Row, Timed<Tell>>,
    pub(crate) alerts: FairQueueProducer<i64, Timed<i64>>,
    pub(crate) totals: QueueProducer<()>,
}

/// What nodes do besides serving. Tests turn parts of it off.
#[derive(Clone, Copy, Debug)]
pub struct Duties {
    /// Whether changes of other nodes are applied.
    pub replicates: bool,
    /// Whether the copy is compared with the database.
    pub compares: bool,
    /// How much longer than it needs the stage that tells takes for each event: for a drill.
    pub tell_late: Duration,
}

impl Default for Duties {
    fn default() -> Self {
        Self { replicates: true, compares: true, tell_late: Duration::ZERO }
    }
}

/// Connects the shop to its endpoint and starts its pipelines. Listening begins before the first load, so nothing falls
/// between them.
///
/// # Errors
///
/// [`StartError`] if one cannot be started.
pub fn start(
    shop: &Arc<Shop>,
    pubsub: &PubSub,
    producers: Producers,
    duties: Duties,
) -> Result<Vec<Pipeline>, StartError> {
    let changes = pubsub.subscribe(REPLICATION);
    shop.connect(pubsub.clone(), changes.id());
    let mut pipelines = vec![
        telling::start(shop, pubsub, producers.levels, duties.tell_late)?,
        alerts::start(shop, pubsub, producers.alerts)?,
        totals::start(shop, pubsub, producers.totals)?,
    ];
    if duties.replicates {
        pipelines.push(replication::start(shop, changes)?);
    }
    pipelines.push(inventory::start(shop, duties.compares)?);
    Ok(pipelines)
}
