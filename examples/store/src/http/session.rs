//! The session of a shopper: a signed cookie that has the id of the cart.

use axum::{
    http::{
        HeaderMap, HeaderValue,
        header::{COOKIE, SET_COOKIE},
    },
    response::{IntoResponse, Response},
};
use pipeline::ws::token::Signer;

use super::Failure;
use crate::{
    domain::ids,
    pages::{PageHead, Variant},
    shop::Shop,
};

/// The cookie of the session.
const SESSION: &str = "_store_session";

/// The cookie that says that an order was placed.
const ORDERED: &str = "_store_ordered";

/// The longest cookie that is looked at.
const MAX_COOKIE: usize = 1024;

/// A session.
pub(super) struct Session {
    /// The id of the cart.
    pub(super) cart_id: String,
    /// Whether the request had none.
    pub(super) is_new: bool,
    is_secure: bool,
}

impl Session {
    /// The session of a request. One without a valid cookie gets a new one.
    pub(super) fn of(headers: &HeaderMap, shop: &Shop) -> Result<Self, Failure> {
        let is_secure = headers.get("x-forwarded-proto").is_some_and(|it| it == "https");
        let found = signed(headers, SESSION, &shop.signers.session, shop);
        let found = found.filter(|id| ids::is_cart_id(id));
        let is_new = found.is_none();
        let cart_id = match found {
            Some(id) => id,
            None => ids::cart_id().map_err(|error| Failure::Internal(error.to_string().into()))?,
        };
        Ok(Self { cart_id, is_new, is_secure })
    }

    /// What a page of this session carries.
    pub(super) fn head(&self, shop: &Shop, variant: Variant) -> Result<PageHead, Failure> {
        let now = shop.clock.now();
        Ok(PageHead {
            cart_id: self.cart_id.clone(),
            cart_token: shop.signers.page.sign(&self.cart_id, now)?,
            csrf: shop.signers.csrf.sign(&self.cart_id, now)?,
            variant,
        })
    }

    /// Whether a form was made for this session.
    pub(super) fn made(&self, csrf_token: &str, shop: &Shop) -> bool {
        let token = shop.signers.csrf.verify::<String>(csrf_token, shop.clock.now());
        !self.is_new && token.is_ok_and(|of| of == self.cart_id)
    }

    /// Whether an order was placed in this session.
    pub(super) fn has_ordered(&self, headers: &HeaderMap, shop: &Shop) -> bool {
        signed(headers, ORDERED, &shop.signers.ordered, shop).is_some_and(|of| of == self.cart_id)
    }

    /// The response, with the cookie if the session is new.
    pub(super) fn set_on(
        &self,
        response: impl IntoResponse,
        shop: &Shop,
    ) -> Result<Response, Failure> {
        let mut response = response.into_response();
        if self.is_new {
            self.add(&mut response, SESSION, &shop.signers.session, 365 * 86_400, shop)?;
        }
        Ok(response)
    }

    /// Notes that an order was placed.
    pub(super) fn note_order(&self, response: &mut Response, shop: &Shop) -> Result<(), Failure> {
        self.add(response, ORDERED, &shop.signers.ordered, 86_400, shop)
    }

    fn add(
        &self,
        response: &mut Response,
        name: &str,
        signer: &Signer,
        max_age: u32,
        shop: &Shop,
    ) -> Result<(), Failure> {
        let token = signer.sign(&self.cart_id, shop.clock.now())?;
        let secure = if self.is_secure { "; Secure" } else { "" };
        let cookie =
            format!("{name}={token}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure}");
        response.headers_mut().append(SET_COOKIE, HeaderValue::from_str(&cookie)?);
        Ok(())
    }
}

/// The text that a cookie has signed.
fn signed(headers: &HeaderMap, name: &str, signer: &Signer, shop: &Shop) -> Option<String> {
    // A header that is no text has no cookie of ours.
    let cookies = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let mut pairs =
        cookies.flat_map(|header| header.split(';')).filter_map(|it| it.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    if value.len() > MAX_COOKIE {
        return None;
    }
    signer.verify(value, shop.clock.now()).ok()
}
