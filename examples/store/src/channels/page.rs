//! The channel of the server-driven page, whose cards are drawn on the server, once for all visitors.

use std::{sync::Arc, time::Duration};

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
};
use serde_json::{Value, json};

use super::sockets::ShopperSocket;
use crate::{
    domain::catalogue::Catalogue,
    pages::{self, ProductView},
    pipelines::telling::{entry_fragment, fragment},
    shop::{Shop, product_views},
};

/// The channel `page:drops`. It takes no events.
#[derive(Debug)]
pub struct PageChannel {
    shop: Arc<Shop>,
}

/// Sent to the channel once it hears broadcasts. It has what the join's reply was drawn from.
#[derive(Debug)]
pub struct Joined(Arc<Catalogue>);

impl Channel for PageChannel {
    type Socket = ShopperSocket;
    type Config = Arc<Shop>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let shop = cx.config().clone();
        let catalogue =
            shop.inventory.snapshot().ok_or_else(|| JoinError::reason("unavailable"))?;
        let cards: Result<Vec<Value>, askama::Error> =
            product_views(&catalogue).iter().map(card).collect();
        cx.reply(json!({ "cards": cards? }));
        cx.send_after(Duration::ZERO, Joined(catalogue))?;
        Ok(Self { shop })
    }
}

impl HandleMessage<Joined> for PageChannel {
    /// The reply was drawn before the channel heard broadcasts. What changed between the two is said now; a page keeps what
    /// is newer.
    async fn handle_message(
        &mut self,
        Joined(replied): Joined,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let Some(now) = self.shop.inventory.snapshot() else { return Ok(()) };
        for product in product_views(&now) {
            let replied_as = replied.product(product.id).map(|product| product.released);
            if replied_as != Some(product.released) {
                cx.push("fragment", card(&product)?)?;
                continue;
            }
            // Until the release, its sizes are not on the page.
            for item in now.items_of(product.id).filter(|_| product.released) {
                if replied.item(item.id).map(|item| item.level()) != Some(item.level()) {
                    cx.push("fragment", entry_fragment(item)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The card of a product, as it takes the place of the one before.
fn card(product: &ProductView) -> Result<Value, askama::Error> {
    let target = format!("[data-key=\"product-{}\"]", product.id);
    Ok(fragment(&target, &pages::card(product)?, product.rev))
}
