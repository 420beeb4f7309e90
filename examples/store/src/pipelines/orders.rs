//! Placed orders, from the database to their carts.
//!
//! The transaction of a sale puts its order into a durable queue, so a node that is killed between the sale and the answer
//! loses no cart's emptying: the order is confirmed once the socket of a tab of its cart has taken it, on whichever node, or
//! when none has come for an hour. It may be confirmed more than once: a cart takes an order out once.

use std::{path::PathBuf, time::Duration};

#[cfg(feature = "postgres")]
use pipeline::sources::postgres::{PostgresError, PostgresQueue};
use pipeline::{
    Pipeline,
    builder::StartError,
    processing::{Failure, Message, Processors},
    sources::{
        SourceOptions,
        sqlite::{SqliteError, SqliteQueue},
    },
    stage::Producer,
    ws::{
        PubSub,
        pubsub::{ClientsElsewhere, Expired, NoSubscribers, Push, SubscriptionsNotSynced},
    },
};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use crate::database::PLACED_ORDERS;

/// How long an order waits for a tab of its cart.
const KEPT: Duration = Duration::from_secs(3600);

/// An order that was placed, as the queue has it.
#[derive(Debug, Deserialize)]
struct Placed {
    cart: String,
    items: Vec<i64>,
    /// The key. Rows of older versions have none.
    order: Option<String>,
}

/// The pipeline cannot be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OrdersError {
    /// The queue cannot be opened.
    #[error(transparent)]
    Queue(#[from] SqliteError),
    /// The queue in PostgreSQL.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The nodes do not know of each other's tabs.
    #[error(transparent)]
    NotSynced(#[from] SubscriptionsNotSynced),
    /// A stage.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Starts the pipeline over the queue in the database's file.
///
/// # Errors
///
/// [`OrdersError`] if the file cannot be opened.
pub async fn start(path: PathBuf, pubsub: &PubSub) -> Result<Pipeline, OrdersError> {
    let queue = SqliteQueue::open(path, PLACED_ORDERS).await?;
    confirm(queue.source(SourceOptions::new()).json(), pubsub)
}

/// Starts the pipeline over the queue in a database of PostgreSQL.
///
/// # Errors
///
/// [`OrdersError`] if the address cannot be read, or the tables of the queue cannot be made.
#[cfg(feature = "postgres")]
pub async fn start_in_postgres(url: &str, pubsub: &PubSub) -> Result<Pipeline, OrdersError> {
    let queue = PostgresQueue::open(url, PLACED_ORDERS)?;
    queue.prepare().await?;
    confirm(queue.source(SourceOptions::new()).json(), pubsub)
}

fn confirm(
    placed: impl Producer<Event = Message<Placed>>,
    pubsub: &PubSub,
) -> Result<Pipeline, OrdersError> {
    let confirm = pubsub.push_messages(|placed: &Message<Placed>| {
        let Placed { cart, items, order } = placed.data();
        let removed = json!({ "added": [], "removed": items, "order": order });
        Ok::<_, Failure>(Push::new(format!("cart:{cart}"), "cart_updated", removed))
    });
    // After a restart no tab is there yet. One that comes later than this is emptied by its own page, or was not there to buy.
    let keep = NoSubscribers::Keep { keep_for: KEPT, then: Expired::Done };
    let confirm = confirm
        .written_within(Duration::from_secs(10))
        .no_subscribers(keep)
        .clients_elsewhere(ClientsElsewhere::GiveBack)?;
    Ok(Pipeline::of_messages("orders")
        .source(placed)
        .processors(Processors::new(confirm).concurrency(20))
        .start()?)
}
