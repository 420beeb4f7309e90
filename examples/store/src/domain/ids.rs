//! Ids of carts, and the keys under which admins see them. Pure, but for the random bytes.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The length of a cart's id, in characters.
pub const CART_ID: usize = 64;

/// A new id of a cart: 48 bytes of the system's random source.
///
/// # Errors
///
/// If the system has no random source.
pub fn cart_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 48];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The key of a purchase, which a form sends so that it buys once. It is made from the signed cart, so a checkout that is
/// loaded again, or is open twice, has the same one.
#[must_use]
pub fn purchase_key(signed_cart: &str) -> String {
    let hash = Sha256::digest(signed_cart.as_bytes());
    URL_SAFE_NO_PAD.encode(hash.get(..18).unwrap_or_default())
}

/// Whether a text can be the id of a cart.
#[must_use]
pub fn is_cart_id(text: &str) -> bool {
    text.len() == CART_ID
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Makes the keys under which admins see carts. A cart's id opens the cart, so it is not shown.
#[derive(Clone)]
pub struct PresenceKeys(Hmac<Sha256>);

impl PresenceKeys {
    /// Keys that depend on this secret.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        // A key of any length is valid.
        let mac = Hmac::new_from_slice(secret.as_bytes()).ok();
        let mut mac: Hmac<Sha256> = mac.unwrap_or_else(|| Hmac::new(&Default::default()));
        mac.update(b"cart presence\0");
        Self(mac)
    }

    /// The key of a cart.
    #[must_use]
    pub fn of(&self, cart_id: &str) -> String {
        let mut mac = self.0.clone();
        mac.update(cart_id.as_bytes());
        let hash = mac.finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(hash.get(..18).unwrap_or_default())
    }
}

impl std::fmt::Debug for PresenceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PresenceKeys")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_059_ids_of_carts_have_64_characters_and_differ() {
        let ids: HashSet<String> = (0..10_000).map(|_| cart_id().unwrap()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| is_cart_id(id)));
    }

    #[test]
    fn a_key_of_a_presence_is_no_id_of_a_cart() {
        let (one, other) = (PresenceKeys::new("one"), PresenceKeys::new("other"));
        let id = cart_id().unwrap();
        assert_eq!(one.of(&id), one.of(&id));
        assert_ne!(one.of(&id), other.of(&id));
        assert!(!is_cart_id(&one.of(&id)));
    }
}
