//! The copy: it is loaded as soon as the database is there, compared with it every five seconds, and loaded again when it
//! may have missed something. Products are released when it is time.

use std::{sync::Arc, time::Duration};

use futures::{Stream, stream};
use pipeline::{
    ExitReason, Pipeline,
    builder::StartError,
    source::from_stream,
    stage::{Consumer, Stage},
    subscription::{Cancel, SubscribeOptions, Subscription},
};
use tokio::time::{sleep, timeout};

use super::telling::again;
use crate::shop::Shop;

/// How often the copy is compared with the database.
const EVERY: Duration = Duration::from_secs(5);

/// How soon the first load is tried again, and at most how late.
const FIRST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often is looked whether a product is due.
const DUE: Duration = Duration::from_millis(200);

/// What the inventory's stage does.
#[derive(Clone, Copy, Debug)]
pub enum Duty {
    /// Load the copy again.
    Load,
    /// Release what is due.
    ReleaseDue,
}

/// The stage that keeps the copy.
#[derive(Debug)]
pub struct Keeper {
    shop: Arc<Shop>,
}

impl Consumer for Keeper {
    type Event = Duty;

    async fn handle_events(
        &mut self,
        duties: Vec<Duty>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        for duty in duties {
            match duty {
                Duty::Load => load(&self.shop).await,
                Duty::ReleaseDue => release_due(&self.shop).await,
            }
        }
        Ok(())
    }
}

/// The pipeline.
pub(super) fn start(shop: &Arc<Shop>, compares: bool) -> Result<Pipeline, StartError> {
    let (times, shop) = (shop.clone(), shop.clone());
    // A stage that was killed loads the copy again, because it may have been killed while it applied something.
    let duties = move || from_stream(stream::select(loads(times.clone(), compares), due()));
    let keep = move || {
        shop.doubt();
        Keeper { shop: shop.clone() }
    };
    let often = (100, Duration::from_secs(60));
    let demand = SubscribeOptions::new().max_demand(1).min_demand(0);
    Pipeline::builder("inventory")
        .producer_with(Stage::restarting(duties).max_restarts(often.0, often.1).named("duties"))
        .consumer_with(
            Stage::restarting(keep).max_restarts(often.0, often.1).named("inventory"),
            demand.cancel(Cancel::Reconnect(again())),
        )
        .start()
}

/// When to load: soon and again until it was loaded, then every five seconds, and whenever it is in doubt.
fn loads(shop: Arc<Shop>, compares: bool) -> impl Stream<Item = Duty> + Send {
    let (soon, late) = FIRST;
    stream::unfold((shop, Duration::ZERO), move |(shop, wait)| async move {
        if !shop.inventory.is_loaded() {
            sleep(wait).await;
            return Some((Duty::Load, (shop, wait.saturating_mul(2).clamp(soon, late))));
        }
        let every = if compares { EVERY } else { Duration::MAX };
        // Either of the two is a reason.
        let _ = timeout(every, shop.doubted()).await;
        Some((Duty::Load, (shop, Duration::ZERO)))
    })
}

fn due() -> impl Stream<Item = Duty> + Send {
    stream::unfold((), |()| async {
        sleep(DUE).await;
        Some((Duty::ReleaseDue, ()))
    })
}

async fn load(shop: &Shop) {
    if let Err(error) = shop.reload().await {
        // It is tried again: after a short while if nothing was loaded yet, else with the next comparison.
        tracing::warn!(error = error.to_string(), "the inventory was not loaded");
    }
}

/// Releases what is due. The database releases a product once, whichever node is first.
async fn release_due(shop: &Arc<Shop>) {
    // Tokens are dated by a clock that does not step back, which may be hours ahead. No release is taken back, so that one
    // would open a drop too early.
    let now = shop.clock.system_ms();
    // The other one runs only when it is read.
    let _ = shop.clock.now();
    shop.metrics.clock_is_ahead(shop.clock.ahead());
    let Some(catalogue) = shop.inventory.snapshot() else { return };
    for product in catalogue.products() {
        if product.released || product.release_at.is_none_or(|at| at > now) {
            continue;
        }
        if let Err(error) = shop.release(product.id).await {
            tracing::warn!(error = error.to_string(), "a product that is due was not released");
        }
    }
}
