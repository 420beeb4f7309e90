//! The channel of a product: its release, and the levels of its items.

use std::{sync::Arc, time::Duration};

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
};
use serde_json::{Value, json};

use super::sockets::ShopperSocket;
use crate::{
    domain::catalogue::Catalogue,
    pages,
    pipelines::telling::stock_change,
    shop::{Shop, product_view},
};

/// The channel `product:{id}`. It takes no events.
#[derive(Debug)]
pub struct ProductChannel {
    shop: Arc<Shop>,
    id: i64,
}

/// Sent to the channel once it hears broadcasts. It has what the join's reply was drawn from.
#[derive(Debug)]
pub struct Joined(Arc<Catalogue>);

impl Channel for ProductChannel {
    type Socket = ShopperSocket;
    type Config = Arc<Shop>;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let shop = cx.config().clone();
        let unknown = || JoinError::reason("unknown product");
        let catalogue =
            shop.inventory.snapshot().ok_or_else(|| JoinError::reason("unavailable"))?;
        let id = canonical_id(topic.rest()).ok_or_else(unknown)?;
        let state = state(&catalogue, id)?.ok_or_else(unknown)?;
        cx.reply(state);
        cx.send_after(Duration::ZERO, Joined(catalogue))?;
        Ok(Self { shop, id })
    }
}

impl HandleMessage<Joined> for ProductChannel {
    /// A join replies before the channel hears broadcasts. What changed between the two is said now; a page drops what it
    /// has heard.
    async fn handle_message(
        &mut self,
        Joined(replied): Joined,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let Some(now) = self.shop.inventory.snapshot() else { return Ok(()) };
        let was_released = replied.product(self.id).is_some_and(|product| product.released);
        let Some(product) = product_view(&now, self.id) else { return Ok(()) };
        if product.released && !was_released {
            let released =
                json!({ "size_html": pages::size_selector(&product)?, "rev": product.rev });
            cx.push("released", released)?;
        }
        for item in now.items_of(self.id) {
            let was = replied.item(item.id).map(|item| item.level());
            if was != Some(item.level()) {
                cx.push("stock_change", stock_change(self.id, item, item.level()))?;
            }
        }
        Ok(())
    }
}

/// The state of a product, as a join is answered.
fn state(catalogue: &Catalogue, id: i64) -> Result<Option<Value>, askama::Error> {
    let Some(product) = product_view(catalogue, id) else { return Ok(None) };
    let size_html = if product.released { Some(pages::size_selector(&product)?) } else { None };
    let level = |item: &pages::ItemView| json!({ "item_id": item.id, "level": item.level, "rev": item.rev });
    let levels: Vec<Value> = product.items.iter().map(level).collect();
    Ok(Some(json!({
        "released": product.released,
        "rev": product.rev,
        "size_html": size_html,
        "levels": levels,
    })))
}

/// An id as the server writes it. Other forms of the number are other topics.
pub(crate) fn canonical_id(text: &str) -> Option<i64> {
    let id: i64 = text.parse().ok()?;
    (id >= 0 && id.to_string() == text).then_some(id)
}
