//! The channel of the server-driven page, whose cards are drawn on the server, once for all visitors.

use std::sync::Arc;

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{JoinContext, JoinError},
};
use serde_json::{Value, json};

use super::sockets::ShopperSocket;
use crate::{
    pages,
    shop::{Shop, product_views},
};

/// The channel `page:drops`.
#[derive(Debug)]
pub struct PageChannel;

impl Channel for PageChannel {
    type Socket = ShopperSocket;
    type Config = Arc<Shop>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let catalogue = cx.config().inventory.snapshot();
        let catalogue = catalogue.ok_or_else(|| JoinError::reason("unavailable"))?;
        let card = |product: pages::ProductView| {
            let target = format!("[data-key=\"product-{}\"]", product.id);
            Ok(json!({ "target": target, "html": pages::card(&product)?, "rev": product.rev }))
        };
        let cards: Result<Vec<Value>, askama::Error> =
            product_views(&catalogue).into_iter().map(card).collect();
        cx.reply(json!({ "cards": cards? }));
        Ok(Self)
    }
}
