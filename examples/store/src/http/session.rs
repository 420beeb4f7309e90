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
    domain::{cart::Ordered, ids},
    pages::{PageHead, Variant},
    shop::Shop,
};

/// The cookie of the session.
const SESSION: &str = "_store_session";

/// The cookie that says that an order was placed.
const ORDERED: &str = "_store_ordered";

/// The longest cookie that is looked at.
const MAX_COOKIE: usize = 4096;

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

    /// The last order that was placed in this session, signed, as its page brings it to the cart.
    pub(super) fn ordered(&self, headers: &HeaderMap, shop: &Shop) -> Option<String> {
        let value = cookie(headers, ORDERED)?;
        let ordered = shop.signers.ordered.verify::<Ordered>(value, shop.clock.now()).ok()?;
        (ordered.cart == self.cart_id).then(|| value.to_owned())
    }

    /// The response, with the cookie if the session is new.
    pub(super) fn set_on(
        &self,
        response: impl IntoResponse,
        shop: &Shop,
    ) -> Result<Response, Failure> {
        let mut response = response.into_response();
        if self.is_new {
            let token = shop.signers.session.sign(&self.cart_id, shop.clock.now())?;
            self.add(&mut response, SESSION, &token, 365 * 86_400)?;
        }
        Ok(response)
    }

    /// Notes that an order was placed.
    pub(super) fn note_order(
        &self,
        response: &mut Response,
        ordered: &Ordered,
        shop: &Shop,
    ) -> Result<(), Failure> {
        let token = shop.signers.ordered.sign(ordered, shop.clock.now())?;
        self.add(response, ORDERED, &token, 86_400)
    }

    fn add(
        &self,
        response: &mut Response,
        name: &str,
        token: &str,
        max_age: u32,
    ) -> Result<(), Failure> {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let cookie =
            format!("{name}={token}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure}");
        response.headers_mut().append(SET_COOKIE, HeaderValue::from_str(&cookie)?);
        Ok(())
    }
}

/// The text that a cookie has signed.
fn signed(headers: &HeaderMap, name: &str, signer: &Signer, shop: &Shop) -> Option<String> {
    signer.verify(cookie(headers, name)?, shop.clock.now()).ok()
}

/// The value of a cookie, if it is one to be looked at.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // A header that is no text has no cookie of ours.
    let cookies = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let mut pairs =
        cookies.flat_map(|header| header.split(';')).filter_map(|it| it.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    (value.len() <= MAX_COOKIE).then_some(value)
}
