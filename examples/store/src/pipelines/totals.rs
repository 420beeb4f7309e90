//! The dashboard's numbers, from the presences.
//!
//! An entry says that something has changed. The numbers are counted anew from the list, four times a second at most, and
//! not at all while no admin looks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pipeline::{
    Pipeline,
    builder::StartError,
    source::QueueProducer,
    stage::{RateLimit, Stage},
    step::for_each,
    subscription::SubscribeOptions,
    ws::{PubSub, presence::PresenceList},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    channels::cart::OTHER,
    domain::catalogue::Catalogue,
    shop::{CART_TRACKER, Shop, TOTALS},
};

/// The numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Carts. Several tabs are one.
    pub shoppers: usize,
    /// Tabs.
    pub tabs: usize,
    /// Tabs by page.
    pub pages: BTreeMap<String, usize>,
    /// Carts by item.
    pub items: BTreeMap<i64, usize>,
}

impl Totals {
    /// Counts who is there.
    #[must_use]
    pub fn count(present: &PresenceList, catalogue: Option<&Catalogue>) -> Self {
        let mut totals = Self { shoppers: present.len(), ..Self::default() };
        for item in catalogue.into_iter().flat_map(Catalogue::items) {
            totals.items.insert(item.id, 0);
        }
        for key in present.keys() {
            for (tab, meta) in present.metas(key).enumerate() {
                totals.tabs += 1;
                let page = meta.get("page").and_then(Value::as_str).unwrap_or(OTHER);
                *totals.pages.entry(page.to_owned()).or_default() += 1;
                // All tabs of a cart have the same items.
                if tab > 0 {
                    continue;
                }
                let items = meta.get("items").and_then(Value::as_array);
                for item in items.into_iter().flatten().filter_map(Value::as_i64) {
                    // An item that is not sold any more has no place.
                    if let Some(carts) = totals.items.get_mut(&item) {
                        *carts += 1;
                    }
                }
            }
        }
        totals
    }

    /// Counts who is there now.
    pub async fn of(shop: &Shop) -> Self {
        let present = shop.presence.list(CART_TRACKER).await;
        Self::count(&present, shop.inventory.snapshot().as_deref())
    }
}

/// The pipeline.
pub(super) fn start(
    shop: &Arc<Shop>,
    pubsub: &PubSub,
    changes: QueueProducer<()>,
) -> Result<Pipeline, StartError> {
    let four_a_second = RateLimit::new(1, Duration::from_millis(250));
    let (shop, told) = (shop.clone(), pubsub.clone());
    let tell = for_each(async move |()| {
        let totals = Totals::of(&shop).await;
        told.local_broadcast(TOTALS, "totals", &totals)
    });
    let one = SubscribeOptions::new().max_demand(1).min_demand(0);
    Pipeline::builder("totals")
        .producer_with(Stage::new(changes).named("changes").rate_limit(four_a_second))
        .producer_consumer_with(
            Stage::new(pubsub.filter_subscribed_here(|(): &()| TOTALS)).named("watched"),
            one.clone(),
        )
        .consumer_with(Stage::new(tell).named("count"), one)
        .start()
}
