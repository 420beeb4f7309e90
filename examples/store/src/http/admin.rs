//! The dashboard.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Form,
    extract::{ConnectInfo, Extension, Path, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{Html, IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{Failure, Site, client, tries::Tried};
use crate::{
    database::Release,
    pages::{self, AdminView},
    shop::product_views,
};

/// The longest header that is looked at.
const MAX_HEADER: usize = 1024;

/// The address of the peer, as the server has put it into the request.
type Peer = Option<Extension<ConnectInfo<SocketAddr>>>;

#[derive(Deserialize)]
pub(super) struct ReleaseForm {
    #[serde(default)]
    csrf_token: String,
}

pub(super) async fn dashboard(
    State(site): State<Arc<Site>>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let name = match admin(&site, &peer, &headers) {
        Ok(name) => name,
        Err(refused) => return Ok(refused),
    };
    let shop = &site.shop;
    let catalogue = shop.inventory.snapshot().ok_or(Failure::NotLoaded)?;
    let now = shop.clock.now();
    let view = AdminView {
        token: shop.signers.admin.sign(&name, now)?,
        csrf: shop.signers.csrf.sign(&csrf(&name), now)?,
        name,
        products: product_views(&catalogue),
    };
    Ok(Html(pages::admin(&view)?).into_response())
}

pub(super) async fn release(
    State(site): State<Arc<Site>>,
    peer: Peer,
    headers: HeaderMap,
    Path(product): Path<i64>,
    Form(ReleaseForm { csrf_token }): Form<ReleaseForm>,
) -> Result<Response, Failure> {
    let name = match admin(&site, &peer, &headers) {
        Ok(name) => name,
        Err(refused) => return Ok(refused),
    };
    let shop = &site.shop;
    let made_for = shop.signers.csrf.verify::<String>(&csrf_token, shop.clock.now());
    if made_for.ok() != Some(csrf(&name)) {
        return Err(Failure::Forbidden);
    }
    match shop.release(product).await {
        Ok(Release::Released(_)) => {
            tracing::info!(product, "a product was released");
            Ok(Redirect::to("/admin").into_response())
        }
        Ok(Release::AlreadyReleased) => {
            Ok((StatusCode::CONFLICT, "already released").into_response())
        }
        Ok(Release::UnknownProduct) => {
            Ok((StatusCode::NOT_FOUND, "unknown_product").into_response())
        }
        Err(error) => {
            tracing::warn!(error = error.to_string(), "a product was not released");
            Err(Failure::Away)
        }
    }
}

/// What an admin's forms are signed for. It is no id of a cart.
fn csrf(name: &str) -> String {
    format!("admin {name}")
}

/// The name of the admin who asks, or the refusal.
#[expect(clippy::result_large_err, reason = "the error is the response, and is returned as it is")]
fn admin(site: &Site, peer: &Peer, headers: &HeaderMap) -> Result<String, Response> {
    let peer = peer.as_ref().map(|Extension(ConnectInfo(address))| address.ip());
    let address = client::address(peer, headers, &site.shop.trusted_proxies);
    let given = headers.get(AUTHORIZATION);
    let credentials = given.and_then(|header| basic(header.as_bytes()));
    let tried = Tried::new(credentials.as_ref().map(|(name, _)| &**name), address);
    if given.is_some()
        && let Err(seconds) = site.tries.may_try(&tried)
    {
        site.shop.metrics.refused_tries.increment(1);
        let later = [(RETRY_AFTER, seconds.to_string())];
        return Err((StatusCode::TOO_MANY_REQUESTS, later, "Too many tries").into_response());
    }
    let known = credentials
        .and_then(|(name, password)| site.admins.check(&name, &password).map(str::to_owned));
    known.ok_or_else(|| {
        if given.is_some() {
            site.shop.metrics.wrong_passwords.increment(1);
            site.tries.was_wrong(tried);
        }
        let realm = [(WWW_AUTHENTICATE, "Basic realm=\"store\", charset=\"UTF-8\"")];
        (StatusCode::UNAUTHORIZED, realm, "Sign in").into_response()
    })
}

/// The name and the password of a header.
fn basic(header: &[u8]) -> Option<(String, String)> {
    if header.len() > MAX_HEADER {
        return None;
    }
    let (scheme, encoded) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim_ascii()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}
