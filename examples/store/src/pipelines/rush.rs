//! A crowd that buys everything: so many random items per second, until nothing is left.
//!
//! The number of sales at once adapts to what the database can take.

use std::{sync::Arc, time::Duration};

use futures::{Stream, stream};
use pipeline::{
    ExitReason, Pipeline,
    builder::StartError,
    source::from_stream,
    stage::{RateLimit, Stage},
    subscription::SubscribeOptions,
    supervisor::{Adaptive, ConsumerSupervisor},
};
use tokio::time::sleep;

use crate::shop::Shop;

/// How long the crowd waits for the copy to be loaded, or to show what was sold.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Starts the crowd, which makes so many tries a second. The pipeline ends when everything is sold.
///
/// # Errors
///
/// [`StartError`] if it cannot be started.
pub fn start(shop: &Arc<Shop>, per_second: usize) -> Result<Pipeline, StartError> {
    // Short intervals, so that a second does not begin with a burst.
    let per_interval = per_second.div_ceil(20).max(1);
    let rate = RateLimit::new(per_interval, Duration::from_millis(50));
    let seller = shop.clone();
    let worker = async move |item: &i64| {
        // That there is none left is an answer. So is a database that is away: others come.
        if seller.sell(*item).await.is_err() {
            sleep(LOOK_AGAIN).await;
        }
        Ok::<_, ExitReason>(())
    };
    let crowd = ConsumerSupervisor::new(worker).adaptive(Adaptive::between(1, 64));
    Pipeline::builder("rush")
        .producer_with(
            Stage::new(from_stream(wanted(shop.clone()))).named("crowd").rate_limit(rate),
        )
        .consumer_supervisor_with(
            Stage::new(crowd).named("buy"),
            SubscribeOptions::new().max_demand(64).min_demand(32),
        )
        .start()
}

/// Random items of which there are some, until there are none of any.
fn wanted(shop: Arc<Shop>) -> impl Stream<Item = i64> + Send {
    stream::unfold(shop, |shop| async move {
        loop {
            let Some(catalogue) = shop.inventory.snapshot() else {
                sleep(LOOK_AGAIN).await;
                continue;
            };
            let available = || catalogue.items().filter(|item| item.available_count > 0);
            match available().count() {
                0 => {
                    tracing::info!("all is sold out");
                    return None;
                }
                count => {
                    let item = available().nth(fastrand::usize(..count)).map(|item| item.id);
                    tokio::task::coop::consume_budget().await;
                    return item.map(|item| (item, shop));
                }
            }
        }
    })
}
