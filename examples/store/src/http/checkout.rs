//! The checkout.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{Html, IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{Failure, LATER, Site, session::Session};
use crate::{
    database::{CheckOut, DatabaseError, Order},
    domain::{
        cart::{Cart, Ordered},
        catalogue::Catalogue,
        ids,
    },
    pages::{self, CheckoutLine, CheckoutView, Variant},
    shop::Shop,
};

/// The longest key of a purchase.
const MAX_KEY: usize = 64;

#[derive(Deserialize)]
pub(super) struct Wanted {
    serialized_cart: Option<String>,
}

/// The form. Fields that it has besides these are not looked at.
#[derive(Deserialize)]
pub(super) struct Purchase {
    #[serde(default)]
    serialized_cart: String,
    #[serde(default)]
    csrf_token: String,
    #[serde(default)]
    key: String,
}

/// What is in the cart, the sum, and the button to buy.
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    Query(Wanted { serialized_cart }): Query<Wanted>,
) -> Result<Response, Failure> {
    let shop = &site.shop;
    let Some(token) = serialized_cart else { return Ok(Redirect::to("/").into_response()) };
    let session = Session::of(&headers, shop)?;
    let catalogue = shop.inventory.snapshot().ok_or(Failure::NotLoaded)?;
    let cart = restore(&token, &catalogue, shop);
    let key = ids::purchase_key(&token);
    page(&session, &cart, &catalogue, key, None, shop)
}

/// Buys all or nothing.
pub(super) async fn buy(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    Form(Purchase { serialized_cart, csrf_token, key }): Form<Purchase>,
) -> Result<Response, Failure> {
    let shop = &site.shop;
    let session = Session::of(&headers, shop)?;
    if !session.made(&csrf_token, shop) || key.is_empty() || key.len() > MAX_KEY {
        return Err(Failure::Forbidden);
    }
    let catalogue = shop.inventory.snapshot().ok_or(Failure::NotLoaded)?;
    let mut cart = restore(&serialized_cart, &catalogue, shop);
    if cart.is_empty() {
        let page = page(&session, &cart, &catalogue, key, None, shop)?;
        return Ok((StatusCode::BAD_REQUEST, page).into_response());
    }
    let order = Order {
        key: key.clone(),
        cart: session.cart_id.clone(),
        items: cart.item_ids().collect(),
        placed_at: shop.clock.now_ms(),
        knows: cart.orders().map(str::to_owned).collect(),
    };
    let placed =
        Ordered { cart: order.cart.clone(), order: key.clone(), items: order.items.clone() };
    let refused = |items: Vec<i64>, what: &str| {
        let names: Vec<String> = items.iter().filter_map(|item| name(&catalogue, *item)).collect();
        let problem =
            format!("{}: {what} Nothing was bought, and the cart is as it was.", names.join(", "));
        // The copy has taken over what the database knows by now, or does so soon.
        let catalogue = shop.inventory.snapshot().unwrap_or_else(|| catalogue.clone());
        let mut view = view(&cart, &catalogue, key.clone(), Some(problem), shop)?;
        for line in &mut view.lines {
            line.out_of_stock |= items.contains(&line.item_id);
        }
        let html = pages::checkout(&session.head(shop, Variant::Plain)?, &view)?;
        Ok((StatusCode::CONFLICT, Html(html)).into_response())
    };
    match shop.check_out(order).await {
        Ok(CheckOut::Placed(_) | CheckOut::Repeated) => {
            let mut response = Redirect::to("/checkout/complete").into_response();
            session.note_order(&mut response, &placed, shop)?;
            Ok(response)
        }
        Ok(CheckOut::OtherItems) => {
            let problem = "This checkout has bought other pairs already. Nothing more was bought. Open the checkout of your cart again.";
            let page = page(&session, &cart, &catalogue, key, Some(problem.to_owned()), shop)?;
            Ok((StatusCode::CONFLICT, page).into_response())
        }
        Ok(CheckOut::BoughtBefore(orders)) => {
            let bought: BTreeSet<i64> = orders.iter().flat_map(|it| it.items.clone()).collect();
            let names: Vec<String> = cart
                .item_ids()
                .filter(|item| bought.contains(item))
                .filter_map(|item| name(&catalogue, item))
                .collect();
            let problem = format!(
                "{}: bought already, by another page of this cart. Nothing more was bought. Buy now only if you want them again.",
                names.join(", ")
            );
            // The form of this page was drawn after those orders.
            for order in orders {
                cart.take_out(&order.key, &[]);
            }
            let mut view = view(&cart, &catalogue, key, Some(problem), shop)?;
            view.key = ids::purchase_key(&view.serialized_cart);
            let html = pages::checkout(&session.head(shop, Variant::Plain)?, &view)?;
            Ok((StatusCode::CONFLICT, Html(html)).into_response())
        }
        Ok(CheckOut::Gone(items)) => refused(items, "gone meanwhile."),
        Ok(CheckOut::NotForSale(items)) => refused(items, "not for sale yet."),
        Err(error) => {
            tracing::warn!(error = error.to_string(), "a checkout has failed");
            let problem = match error {
                DatabaseError::Unknown(_) => {
                    "It is not known yet whether the order was placed. Try again in a moment: no pair is bought twice."
                }
                _ => {
                    "The order could not be placed just now. Nothing was bought. Try again in a moment."
                }
            };
            let page = page(&session, &cart, &catalogue, key, Some(problem.to_owned()), shop)?;
            Ok((StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, LATER)], page).into_response())
        }
    }
}

/// Says that it worked, in the session in which it did.
pub(super) async fn complete(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let shop = &site.shop;
    let session = Session::of(&headers, shop)?;
    let Some(bought) = session.ordered(&headers, shop) else {
        return Ok(Redirect::to("/").into_response());
    };
    let html = pages::checkout_complete(&session.head(shop, Variant::Plain)?, &bought)?;
    session.set_on(Html(html), shop)
}

fn restore(token: &str, catalogue: &Catalogue, shop: &Shop) -> Cart {
    let is_known = |item| catalogue.item(item).is_some();
    Cart::restore(Some(token), &shop.rules, shop.clock.now(), is_known)
}

fn page(
    session: &Session,
    cart: &Cart,
    catalogue: &Catalogue,
    key: String,
    problem: Option<String>,
    shop: &Shop,
) -> Result<Response, Failure> {
    let view = view(cart, catalogue, key, problem, shop)?;
    let html = pages::checkout(&session.head(shop, Variant::Plain)?, &view)?;
    session.set_on(Html(html), shop)
}

fn view(
    cart: &Cart,
    catalogue: &Catalogue,
    key: String,
    problem: Option<String>,
    shop: &Shop,
) -> Result<CheckoutView, Failure> {
    let line = |id| {
        let (item, product) = catalogue.item_with_product(id)?;
        Some(CheckoutLine {
            item_id: item.id,
            brand: product.brand.clone(),
            name: product.name.clone(),
            color: product.color.clone(),
            size: item.size.clone(),
            price_usd: product.price_usd,
            main_image_url: product.main_image_url.clone(),
            out_of_stock: item.level().is_out(),
        })
    };
    Ok(CheckoutView {
        lines: cart.item_ids().filter_map(line).collect(),
        serialized_cart: cart.serialize(&shop.rules, shop.clock.now())?,
        key,
        problem,
    })
}

fn name(catalogue: &Catalogue, item: i64) -> Option<String> {
    let (item, product) = catalogue.item_with_product(item)?;
    Some(format!("{} in size {}", product.name, item.size))
}
