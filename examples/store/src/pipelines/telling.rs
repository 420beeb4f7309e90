//! Levels and releases, from the copy to the shoppers.
//!
//! An entry of the queue says which row has changed. What it has become is read from the copy at the moment of telling, so
//! one entry stands for all changes until then: the slower the telling, the more sales one event stands for. Levels and
//! releases share one stage, so a fragment and the levels after it are in order.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use pipeline::{
    ExitReason, Pipeline,
    backoff::Backoff,
    builder::StartError,
    source::FairQueueProducer,
    stage::{Consumer, Stage},
    subscription::{Cancel, SubscribeOptions, Subscription},
    timed::Timed,
    ws::PubSub,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    task::coop,
    time::{Instant, sleep},
};

use crate::{
    domain::{
        catalogue::{Catalogue, Item},
        change::Row,
        level::Level,
        telling::{Telling, Told},
    },
    pages,
    shop::{DROPS_PAGE, Shop, Tell, item_view, product_view},
};

/// The pipeline.
pub(super) fn start(
    shop: &Arc<Shop>,
    pubsub: &PubSub,
    levels: FairQueueProducer<Row, Timed<Tell>>,
    late: Duration,
) -> Result<Pipeline, StartError> {
    let (shop, pubsub) = (shop.clone(), pubsub.clone());
    let is_first = AtomicBool::new(true);
    let teller = move || {
        let mut told = Told::default();
        if !is_first.swap(false, Relaxed) {
            // What the stage had taken when it was killed is lost, and so is what it had told. Shoppers hear all of it again.
            told = Told::unknown();
            shop.announce_all();
        }
        Teller { shop: shop.clone(), pubsub: pubsub.clone(), told, late }
    };
    Pipeline::builder("telling")
        .producer_with(Stage::new(levels).named("levels"))
        .consumer_with(
            Stage::restarting(teller).max_restarts(100, Duration::from_secs(60)).named("tell"),
            // Entries stay in the queue, where a later change needs no entry of its own.
            SubscribeOptions::new().max_demand(1).min_demand(0).cancel(Cancel::Reconnect(again())),
        )
        .start()
}

/// How soon a stage subscribes again to one that was restarted.
pub(super) fn again() -> Backoff {
    Backoff::new(Duration::from_millis(10), Duration::from_secs(1))
}

/// The stage that tells.
#[derive(Debug)]
pub struct Teller {
    shop: Arc<Shop>,
    pubsub: PubSub,
    told: Told,
    late: Duration,
}

impl Consumer for Teller {
    type Event = Timed<Tell>;

    async fn handle_events(
        &mut self,
        events: Vec<Timed<Tell>>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        for event in events {
            if !self.late.is_zero() {
                sleep(self.late).await;
            }
            let Some(catalogue) = self.shop.inventory.snapshot() else { continue };
            match *event {
                Tell::Stock { item, product, since } => {
                    self.tell_stock(&catalogue, &event, item, product)?;
                    self.shop.metrics.level_was_told_after(Instant::now().duration_since(since));
                }
                Tell::Release(product) => self.tell_release(&catalogue, &event, product)?,
            }
            coop::consume_budget().await;
        }
        Ok(())
    }
}

impl Teller {
    fn tell_stock(
        &mut self,
        catalogue: &Catalogue,
        event: &Timed<Tell>,
        id: i64,
        product: i64,
    ) -> Result<(), ExitReason> {
        let Some(item) = catalogue.item(id) else { return Ok(()) };
        // What was told is noted even if no page is open: pages that come later get the level as they join.
        let told = self.told.compare(id, item.level(), catalogue.crossed_at(id));
        if let Telling::Broadcast(level) = told {
            self.broadcast(
                event,
                &topic(product),
                "stock_change",
                &stock_change(product, item, level),
            )?;
            if self.pubsub.has_subscribers_here(DROPS_PAGE) {
                self.broadcast(event, DROPS_PAGE, "fragment", &entry_fragment(item)?)?;
            }
        }
        Ok(())
    }

    fn tell_release(
        &mut self,
        catalogue: &Catalogue,
        event: &Timed<Tell>,
        id: i64,
    ) -> Result<(), ExitReason> {
        let (topic, pubsub) = (topic(id), &self.pubsub);
        let view = product_view(catalogue, id).filter(|product| product.released);
        let Some(product) = view else { return Ok(()) };
        // The fragment has the present levels. Stock entries announce them as well: a page that has the sizes already, from its
        // join, does not look at the fragment.
        if !pubsub.has_subscribers_here(&topic) && !pubsub.has_subscribers_here(DROPS_PAGE) {
            return Ok(());
        }
        let html = pages::size_selector(&product)?;
        let released = json!({ "size_html": html, "rev": product.rev });
        self.broadcast(event, &topic, "released", &released)?;
        let target = format!(".product-soon-{id}");
        self.broadcast(event, DROPS_PAGE, "fragment", &fragment(&target, &html, product.rev))
    }

    /// Broadcasts to this node only: each node tells what its own copy has become.
    fn broadcast(
        &self,
        event: &Timed<Tell>,
        topic: &str,
        name: &str,
        payload: &Value,
    ) -> Result<(), ExitReason> {
        if self.pubsub.has_subscribers_here(topic) {
            self.pubsub.local_broadcast_timed(event, topic, name, payload)?;
        }
        Ok(())
    }
}

fn topic(product: i64) -> String {
    format!("product:{product}")
}

/// The event `stock_change`.
pub(crate) fn stock_change(product: i64, item: &Item, level: Level) -> Value {
    json!({ "product_id": product, "item_id": item.id, "level": level, "rev": item.rev })
}

/// The event `fragment` for one size of the server-driven page.
pub(crate) fn entry_fragment(item: &Item) -> Result<Value, askama::Error> {
    let target = format!("[data-key=\"item-{}\"]", item.id);
    Ok(fragment(&target, &pages::entry(&item_view(item))?, item.rev))
}

/// The event `fragment`: the HTML that takes the place of what the selector finds.
pub(crate) fn fragment(target: &str, html: &str, rev: i64) -> Value {
    json!({ "target": target, "html": html, "rev": rev })
}
