//! Verification of JSON Web Tokens. Pure.
//!
//! The cryptography is that of `hmac`, and of `jsonwebtoken` for public keys. Claims are checked here, against a time that the caller
//! passes and by one rule for all keys.

mod claims;
mod key;
#[cfg(feature = "jwt-public-keys")]
mod public;

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};

use self::claims::{Claims, Expected};
pub use self::key::{JwtAlgorithm, JwtKey, JwtKeyError};
use super::{CLOCK_SKEW, TokenError, VerifiedToken};

/// Verifies JSON Web Tokens (RFC 7519) that identify a client.
///
/// For applications whose users sign in elsewhere; between a Phoenix application and this one, a
/// [`Signer`](crate::token::Signer) has less that can be misconfigured. A token is valid if
///
/// - it is signed with one of the keys, by the algorithm of this key. The token does not choose the
///   algorithm. If both the token and the key have an id (`kid`), the ids are equal.
/// - it has an `exp` in the future, and its `nbf`, if any, is past.
/// - its `iss` is one of the configured [`issuer`](Self::issuer)s, if there are any.
/// - its `aud` has one of the configured [`audience`](Self::audience)s, if there are any. If there
///   are none, the token has no `aud`: it would be meant for another service.
/// - it has no extensions that have to be understood (`crit`), as none are supported.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::{
///     Socket,
///     socket::{ConnectError, ConnectInfo, Params},
///     token::{JwtAlgorithm, JwtKey, JwtKeyError, JwtVerifier},
/// };
///
/// struct UserSocket(JwtVerifier);
///
/// #[derive(serde::Deserialize)]
/// struct Claims {
///     sub: String,
/// }
///
/// impl UserSocket {
///     fn new(secret: &[u8]) -> Result<Self, JwtKeyError> {
///         let key = JwtKey::secret(JwtAlgorithm::Hs256, secret)?;
///         Ok(Self(JwtVerifier::new(key).issuer("https://id.example.com").audience("push")))
///     }
/// }
///
/// impl Socket for UserSocket {
///     type Assigns = String;
///
///     async fn connect(&self, params: &Params, info: &ConnectInfo) -> Result<String, ConnectError> {
///         // From the client's `authToken`, or else from its params.
///         let token = info.auth_token.as_deref().or_else(|| params.get("token"));
///         let claims: Claims = self.0.verify_optional(token, SystemTime::now())?;
///         Ok(claims.sub)
///     }
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct JwtVerifier {
    keys: Vec<JwtKey>,
    expected: Expected,
}

/// The fields that are read from a token's header.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl JwtVerifier {
    /// Verifies tokens that were signed with this key.
    pub fn new(key: JwtKey) -> Self {
        let expected = Expected { issuers: Vec::new(), audiences: Vec::new(), leeway: CLOCK_SKEW };
        Self { keys: vec![key], expected }
    }

    /// Adds a key: the next one, before any token is signed with it, or the previous one, until its
    /// tokens have expired.
    ///
    /// Keys are tried one after the other, except those whose id differs from the token's.
    pub fn also_verify(mut self, key: JwtKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Requires this issuer, or another one that was added.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.expected.issuers.push(issuer.into());
        self
    }

    /// Requires tokens for this audience, or for another one that was added.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.expected.audiences.push(audience.into());
        self
    }

    /// How far clocks may differ: tokens are accepted this long before their `nbf` and after their
    /// `exp`. Default one minute.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.expected.leeway = leeway;
        self
    }

    /// Verifies a token and returns its claims, as a type of your own.
    ///
    /// # Errors
    ///
    /// [`TokenError::Signature`] if it was signed with none of the keys; [`TokenError::Claim`]
    /// names the claim that is missing or not accepted; [`TokenError::Expired`] if its `exp` is
    /// past; [`TokenError::Data`] if it is valid but does not match the type;
    /// [`TokenError::Invalid`] if it is not a JSON Web Token.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        self.verify_with_expiry(token, now).map(|token| token.data)
    }

    /// Verifies a token, and returns its claims with the time until which it is valid: its `exp` and
    /// the [leeway](Self::leeway).
    ///
    /// # Errors
    ///
    /// Those of [`verify`](Self::verify).
    pub fn verify_with_expiry<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<VerifiedToken<T>, TokenError> {
        let payload = self.open(token)?;
        let claims: Claims = object(&payload).ok_or(TokenError::Invalid)?;
        claims.check(&self.expected, now)?;
        let data = serde_json::from_slice(&payload).map_err(TokenError::Data)?;
        Ok(VerifiedToken { data, expires_at: claims.end(&self.expected) })
    }

    /// Verifies a token that may be absent.
    ///
    /// # Errors
    ///
    /// [`TokenError::Missing`] if it is absent, and the errors of [`verify`](Self::verify).
    pub fn verify_optional<T: DeserializeOwned>(
        &self,
        token: Option<&str>,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        self.verify(token.ok_or(TokenError::Missing)?, now)
    }

    /// The payload of a token that was signed with one of the keys.
    fn open(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let Parts { header, signature, signed, payload } =
            Parts::of(token).ok_or(TokenError::Invalid)?;
        let fits = |key: &&JwtKey| key.may_have_signed(&header.alg, header.kid.as_deref());
        let mut keys = self.keys.iter().filter(fits);
        // Unsigned content is not even parsed.
        if !keys.any(|key| key.made(&signature, signed)) {
            return Err(TokenError::Signature);
        }
        URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Invalid)
    }
}

/// The parts of a token.
struct Parts<'a> {
    header: Header,
    signature: Vec<u8>,
    /// The signed part: the header and the payload as they were written.
    signed: &'a str,
    payload: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = object(&URL_SAFE_NO_PAD.decode(header).ok()?)?;
        if header.crit.is_some() {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { header, signature, signed, payload })
    }
}

/// Parses a JSON object in UTF-8. Serde would also accept an array of the values, and any bytes in fields that are
/// not used.
fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    let json = std::str::from_utf8(json).ok()?;
    json.trim_start().starts_with('{').then(|| serde_json::from_str(json).ok())?
}
