//! Placed orders, from the database to their carts.
//!
//! The transaction of a sale puts its order into a durable queue, so a node that is killed between the sale and the answer
//! loses no cart's emptying: the order is confirmed once the sockets of the cart's tabs have taken it, or none is there.

use std::{path::PathBuf, time::Duration};

use pipeline::{
    Pipeline,
    builder::StartError,
    processing::{Failure, Message, Processors},
    sources::{
        SourceOptions,
        sqlite::{SqliteError, SqliteQueue},
    },
    ws::{
        PubSub,
        pubsub::{NoSubscribers, Push},
    },
};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use crate::database::PLACED_ORDERS;

/// An order that was placed, as the queue has it.
#[derive(Debug, Deserialize)]
struct Placed {
    cart: String,
    items: Vec<i64>,
}

/// The pipeline cannot be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OrdersError {
    /// The queue cannot be opened.
    #[error(transparent)]
    Queue(#[from] SqliteError),
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
    let confirm = pubsub.push_messages(|placed: &Message<Placed>| {
        let Placed { cart, items } = placed.data();
        let removed = json!({ "added": [], "removed": items });
        Ok::<_, Failure>(Push::new(format!("cart:{cart}"), "cart_updated", removed))
    });
    // A cart that no tab shows has been emptied in its session.
    let confirm =
        confirm.written_within(Duration::from_secs(10)).no_subscribers(NoSubscribers::Done);
    Ok(Pipeline::of_messages("orders")
        .source(queue.source(SourceOptions::new()).json::<Placed>())
        .processors(Processors::new(confirm).concurrency(20))
        .start()?)
}
