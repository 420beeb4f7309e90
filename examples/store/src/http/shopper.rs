//! The pages of a shopper.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{Html, Response},
};
use serde_json::json;

use super::{Failure, Site, session::Session};
use crate::{
    pages::{self, PageHead, ProductView, Variant},
    shop::product_views,
};

type Drawn = Result<Response, Failure>;

pub(super) async fn shop(State(site): State<Arc<Site>>, headers: HeaderMap) -> Drawn {
    page(&site, &headers, Variant::Plain, pages::shop)
}

pub(super) async fn drops(State(site): State<Arc<Site>>, headers: HeaderMap) -> Drawn {
    page(&site, &headers, Variant::Drops, pages::drops)
}

pub(super) async fn app(State(site): State<Arc<Site>>, headers: HeaderMap) -> Drawn {
    page(&site, &headers, Variant::App, pages::app)
}

fn page(
    site: &Site,
    headers: &HeaderMap,
    variant: Variant,
    draw: fn(&PageHead, &[ProductView]) -> Result<String, askama::Error>,
) -> Drawn {
    let shop = &site.shop;
    let catalogue = shop.inventory.snapshot().ok_or(Failure::NotLoaded)?;
    let session = Session::of(headers, shop)?;
    let html = draw(&session.head(shop, variant)?, &product_views(&catalogue))?;
    session.set_on(Html(html), shop)
}

/// A fresh token for the page's cart, for a page that is open for longer than its token is valid.
pub(super) async fn cart_token(State(site): State<Arc<Site>>, headers: HeaderMap) -> Drawn {
    let shop = &site.shop;
    let session = Session::of(&headers, shop)?;
    let token = shop.signers.page.sign(&session.cart_id, shop.clock.now())?;
    session.set_on(Json(json!({ "cart_id": session.cart_id, "token": token })), shop)
}
