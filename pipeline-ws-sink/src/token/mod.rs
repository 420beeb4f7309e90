//! Signed tokens in the format of `Phoenix.Token`.
//!
//! A token is signed by one part of an application, often a Phoenix one, and verified here: both
//! have the secret. Its format is `SFMyNTY.DATA.MAC`, both parts in base64url without padding. The
//! data is an Erlang term `{data, signed_at_ms, max_age_s}`, the MAC is HMAC-SHA256 over
//! `SFMyNTY.DATA`, and the key is derived from the secret and a salt by PBKDF2.
//!
//! With the feature `jwt`, JSON Web Tokens are an alternative.

#[cfg(feature = "jwt")]
mod jwt;
mod key;
mod term;

use std::{
    fmt, iter,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{
    Serialize,
    de::{DeserializeOwned, Error as _},
};
use thiserror::Error;

#[cfg(feature = "jwt")]
pub use self::jwt::{JwtAlgorithm, JwtKey, JwtKeyError, JwtVerifier};
pub use self::key::{KeyDigest, KeyOptions, SignerError};
use self::{
    key::Key,
    term::{MaxAge, SignedTerm},
};

/// How far in the future a token may be dated: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A key that the nodes of a cluster derive from a secret that they share.
pub(crate) struct SharedKey(Key);

impl SharedKey {
    /// Derives the key.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret is too short.
    pub(crate) fn derive(secret: &str, salt: &str) -> Result<Self, SignerError> {
        Key::derive(secret, salt, KeyOptions::default()).map(Self)
    }

    /// The signature of a text.
    pub(crate) fn sign(&self, text: &str) -> String {
        self.0.mac_of(text)
    }

    /// Whether this key made the signature of a text.
    pub(crate) fn made(&self, text: &str, signature: &str) -> bool {
        self.0.made_mac(text, signature)
    }
}

/// A token that was verified: its data, and until when it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedToken<T> {
    /// The data, or the claims of a JSON Web Token.
    pub data: T,
    /// From when on the token is refused; none if it is valid for longer than the clock can count.
    pub expires_at: Option<SystemTime>,
}

impl<T> VerifiedToken<T> {
    /// Data of a token that was verified elsewhere, or of none, as in a test.
    pub fn new(data: T, expires_at: Option<SystemTime>) -> Self {
        Self { data, expires_at }
    }
}

/// Signs and verifies tokens that identify a client.
///
/// Compatible with `Phoenix.Token.sign` and `verify`, for data that JSON can express: numbers,
/// strings, booleans, null, lists, and maps with string keys. Tuples and atoms in Phoenix's tokens
/// are read as lists and strings.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use pipeline_ws_sink::token::Signer;
///
/// let signer = Signer::new("a secret of at least 20 bytes", "user socket")?
///     .max_age(Duration::from_secs(3600));
/// let token = signer.sign(&42, SystemTime::now())?;
/// let user: u64 = signer.verify(&token, SystemTime::now())?;
/// assert_eq!(user, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Age
///
/// The limit of [`max_age`](Self::max_age) is written into signed tokens, and it applies to all
/// tokens that are verified, whatever limit they carry. A signer without one writes one day, and
/// applies the limit that each token carries, which is signed too. Phoenix does the same.
///
/// # Changing the secret
///
/// Clients hold tokens of the old secret while servers are updated one after the other. So:
///
/// 1. Deploy the new secret for verifying only: `Signer::new(old, salt)?.also_verify(&new)`.
/// 2. When all servers have it, sign with it: `Signer::new(new, salt)?.also_verify(&old)`.
/// 3. When the last token of the old secret has expired, drop it: `Signer::new(new, salt)?`.
///
/// If the old secret has leaked, skip to the third step: all clients then need a new token.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::token::Signer;
///
/// let now = SystemTime::now();
/// let old = Signer::new("the secret of last year, known to many", "user socket")?;
/// let token = old.sign("ada", now)?;
///
/// let signer = Signer::new("the secret of this year, known to few", "user socket")?;
/// let signer = signer.also_verify(&old);
/// assert_eq!(signer.verify::<String>(&token, now)?, "ada");
/// assert!(old.verify::<String>(&signer.sign("ada", now)?, now).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Signer {
    key: Key,
    /// Further keys that verify tokens.
    others: Vec<Key>,
    /// The limit, if it was set.
    max_age: Option<MaxAge>,
}

impl Signer {
    /// Derives the key from a secret, such as Phoenix's `secret_key_base`, and a salt that names
    /// the purpose of the tokens.
    ///
    /// This takes about a millisecond: make one signer and keep it.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret has less than 20 bytes.
    pub fn new(secret: &str, salt: &str) -> Result<Self, SignerError> {
        Self::with_options(secret, salt, KeyOptions::default())
    }

    /// Derives the key with other options, for a Phoenix application that uses them.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret has less than 20 bytes, or if the options are invalid.
    ///
    /// ```
    /// use pipeline_ws_sink::token::{KeyDigest, KeyOptions, Signer};
    ///
    /// // Phoenix.Token.sign(secret, "user socket", id, key_iterations: 2000, key_digest: :sha512)
    /// let options = KeyOptions::default().iterations(2000).digest(KeyDigest::Sha512);
    /// let signer = Signer::with_options("a secret of at least 20 bytes", "user socket", options)?;
    /// # Ok::<(), pipeline_ws_sink::token::SignerError>(())
    /// ```
    pub fn with_options(
        secret: &str,
        salt: &str,
        options: KeyOptions,
    ) -> Result<Self, SignerError> {
        let key = Key::derive(secret, salt, options)?;
        Ok(Self { key, others: Vec::new(), max_age: None })
    }

    /// Also verifies the tokens of another signer, by this signer's [`max_age`](Self::max_age). The
    /// other signer may have a secret, a salt and options of its own.
    ///
    /// Tokens are checked against one key after the other, each in constant time. [`Signer`]
    /// describes how to change a secret with it.
    pub fn also_verify(mut self, other: &Self) -> Self {
        self.others.extend(other.keys().cloned());
        self
    }

    /// How long tokens are valid after they were signed, in whole seconds; with less than one
    /// second, they are never valid.
    ///
    /// See [`Signer`] for the limit that applies without it.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        let seconds = max_age.as_secs().try_into().unwrap_or(i64::MAX);
        self.max_age = Some(MaxAge::Seconds(seconds));
        self
    }

    /// Makes tokens valid forever, as with `max_age: :infinity` of `Phoenix.Token`. Tokens that
    /// were signed with a limit verify after it, too.
    ///
    /// Only another secret then invalidates issued tokens.
    pub fn never_expires(mut self) -> Self {
        self.max_age = Some(MaxAge::Infinity);
        self
    }

    /// Signs this data, dated `now`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Data`] if the data cannot be expressed; see [`Signer`].
    pub fn sign(
        &self,
        data: &(impl Serialize + ?Sized),
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let data = serde_json::to_value(data).map_err(TokenError::Data)?;
        let max_age = self.max_age.unwrap_or_default();
        Ok(self.key.sign(&term::encode(&data, unix_ms(now), max_age)))
    }

    /// Verifies a token and returns its data.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] if it was not signed with this secret and salt, or if it is dated
    /// more than a minute after `now`; [`TokenError::Expired`] if it is too old;
    /// [`TokenError::Data`] if its data does not match the type, or cannot be expressed in JSON.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        self.verify_with_expiry(token, now).map(|token| token.data)
    }

    /// Verifies a token, and returns its data with the time until which it is valid. The errors are
    /// those of [`verify`](Self::verify).
    ///
    /// # Errors
    ///
    /// Those of [`verify`](Self::verify).
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// use pipeline_ws_sink::token::Signer;
    ///
    /// let signer = Signer::new("a secret of at least 20 bytes", "user socket")?
    ///     .max_age(Duration::from_secs(3600));
    /// let now = SystemTime::now();
    /// let token = signer.verify_with_expiry::<u64>(&signer.sign(&42, now)?, now)?;
    /// assert_eq!(token.data, 42);
    /// let end = token.expires_at.ok_or("it has an end")?;
    /// assert!(end > now + Duration::from_secs(3599) && end < now + Duration::from_secs(3601));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify_with_expiry<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<VerifiedToken<T>, TokenError> {
        let term = key::open(token, self.keys()).ok_or(TokenError::Invalid)?;
        let signed = SignedTerm::decode(&term).ok_or(TokenError::Invalid)?;
        let now = unix_ms(now);
        if signed.signed_at_ms > now.saturating_add(milliseconds(CLOCK_SKEW)) {
            return Err(TokenError::Invalid);
        }
        let max_age = self.max_age.unwrap_or(signed.max_age);
        if max_age.is_over(signed.signed_at_ms, now) {
            return Err(TokenError::Expired);
        }
        let expires_at = max_age
            .end(signed.signed_at_ms)
            .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).ok()?)));
        let data = signed.data.into_value().map_err(serde_json::Error::custom);
        let data = data.and_then(serde_json::from_value).map_err(TokenError::Data)?;
        Ok(VerifiedToken { data, expires_at })
    }

    /// Verifies a token that may be absent, such as
    /// [`ConnectInfo::auth_token`](crate::socket::ConnectInfo::auth_token).
    ///
    /// # Errors
    ///
    /// [`TokenError::Missing`] if it is absent, and the errors of [`verify`](Self::verify).
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use pipeline_ws_sink::{Socket, socket::{ConnectError, ConnectInfo, Params}, token::Signer};
    ///
    /// struct UserSocket(Signer);
    ///
    /// impl Socket for UserSocket {
    ///     type Assigns = u64;
    ///
    ///     async fn connect(&self, _: &Params, info: &ConnectInfo) -> Result<u64, ConnectError> {
    ///         Ok(self.0.verify_optional(info.auth_token.as_deref(), SystemTime::now())?)
    ///     }
    /// }
    /// ```
    pub fn verify_optional<T: DeserializeOwned>(
        &self,
        token: Option<&str>,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        self.verify(token.ok_or(TokenError::Missing)?, now)
    }

    /// A token with these bytes as its term, whatever they are.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn sign_term(&self, term: &[u8]) -> String {
        self.key.sign(term)
    }

    /// The keys that tokens may have been signed with.
    fn keys(&self) -> impl Iterator<Item = &Key> {
        iter::once(&self.key).chain(&self.others)
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, milliseconds)
}

fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

/// The keys are secrets, so they are not shown.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Signer");
        shown.field("keys", &self.keys().count()).field("max_age", &self.max_age);
        shown.finish_non_exhaustive()
    }
}

/// A token could not be verified or signed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is no token.
    #[error("there is no token")]
    Missing,
    /// The token is malformed, was not signed with one of the keys, or is dated in the future.
    #[error("the token is invalid")]
    Invalid,
    /// A JSON Web Token was not signed with one of the keys, or not with that key's algorithm.
    #[error("the token is invalid: its signature matches none of the keys")]
    Signature,
    /// A claim of a JSON Web Token is not accepted.
    #[error("the token is invalid: its claim `{claim}` {fault}")]
    Claim {
        /// The claim: `exp`, `nbf`, `iss` or `aud`.
        claim: &'static str,
        /// The fault, for example that the claim is missing.
        fault: &'static str,
    },
    /// The token is too old.
    #[error("the token has expired")]
    Expired,
    /// The token's data does not match the expected type, or cannot be expressed.
    #[error("the token's data does not match the expected type")]
    Data(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests;
