//! JSON Web Tokens, verified. Pure.
//!
//! The cryptography is jsonwebtoken's. What a token says of itself is checked here, against a time
//! that the caller tells and by one rule for all keys.

mod claims;
mod key;

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};

use self::claims::{Claims, Expected};
pub use self::key::{JwtAlgorithm, JwtKey, JwtKeyError};
use super::{CLOCK_SKEW, TokenError};

/// Verifies JSON Web Tokens (RFC 7519) that say who a client is.
///
/// For applications whose users sign in elsewhere; between a Phoenix application and this one, a
/// [`Signer`](crate::Signer) has less that can be set wrong. What makes a token valid:
///
/// - It is signed with one of the keys, by the algorithm of this key. The token has no say in it. If
///   both the token and the key have an id (`kid`), they are the same.
/// - It has an `exp` that has not come yet, and an `nbf`, if any, that has.
/// - If an [`issuer`](Self::issuer) was named, its `iss` is one of those named.
/// - If an [`audience`](Self::audience) was named, its `aud` has one of those named. If none was, it has
///   no `aud`: it is meant for somebody else.
/// - It has no extensions that have to be understood (`crit`), for none are.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::{
///     ConnectError, ConnectInfo, JwtAlgorithm, JwtKey, JwtKeyError, JwtVerifier, Params, Socket,
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
///         // As the client's `authToken`, or else as one of its params.
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

/// What is read of a token's header.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

impl JwtVerifier {
    /// Verifies what was signed with this key.
    pub fn new(key: JwtKey) -> Self {
        let expected = Expected { issuers: Vec::new(), audiences: Vec::new(), leeway: CLOCK_SKEW };
        Self { keys: vec![key], expected }
    }

    /// Verifies what was signed with this key, too: the next one, before anybody signs with it, or
    /// the last one, until what was signed with it has expired.
    ///
    /// Keys are tried one after the other, but for those whose id is not the token's.
    pub fn also_verify(mut self, key: JwtKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Requires this issuer, or another one that was named.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.expected.issuers.push(issuer.into());
        self
    }

    /// Requires tokens that are meant for this audience, or for another one that was named.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.expected.audiences.push(audience.into());
        self
    }

    /// How far clocks may differ: for so long tokens are good before their time, and after it.
    /// Default one minute.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.expected.leeway = leeway;
        self
    }

    /// Checks a token and returns what it claims, as a type of one's own.
    ///
    /// # Errors
    ///
    /// [`TokenError::Signature`] if none of the keys has signed it; [`TokenError::Claim`] names the
    /// claim that is missing or not accepted; [`TokenError::Expired`] if its `exp` is past;
    /// [`TokenError::Data`] if it is valid but is not the type that was asked for;
    /// [`TokenError::Invalid`] if it is not a JSON Web Token.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        let payload = self.open(token)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Invalid)?;
        claims.check(&self.expected, now)?;
        serde_json::from_slice(&payload).map_err(TokenError::Data)
    }

    /// The same for a token that may be absent.
    ///
    /// # Errors
    ///
    /// [`TokenError::Missing`] if it is absent, and those of [`verify`](Self::verify).
    pub fn verify_optional<T: DeserializeOwned>(
        &self,
        token: Option<&str>,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        self.verify(token.ok_or(TokenError::Missing)?, now)
    }

    /// The payload of a token that one of the keys has signed.
    fn open(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let Parts { header, signature, signed, payload } =
            Parts::of(token).ok_or(TokenError::Invalid)?;
        let fits = |key: &&JwtKey| key.may_have_signed(&header.alg, header.kid.as_deref());
        let mut keys = self.keys.iter().filter(fits);
        // What was not signed is not even read.
        if !keys.any(|key| key.made(&signature, signed)) {
            return Err(TokenError::Signature);
        }
        URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Invalid)
    }
}

/// What a token consists of.
struct Parts<'a> {
    header: Header,
    signature: Vec<u8>,
    /// What the signature is of: the header and the payload as they were written.
    signed: &'a str,
    payload: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { header, signature, signed, payload })
    }
}
