//! Signed tokens in the format of `Phoenix.Token`.
//!
//! A token is made by one part of an application, often a Phoenix one, and verified here: both know
//! the secret. It is `SFMyNTY.DATA.MAC`, both parts in base64url without padding. The data is an
//! Erlang term `{data, signed_at_ms, max_age_s}`, the MAC is HMAC-SHA256 over `SFMyNTY.DATA`, and
//! the key is derived from the secret and a salt by PBKDF2.
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

/// Signs and verifies tokens that say who a client is.
///
/// Compatible with `Phoenix.Token.sign` and `verify`, for data that JSON can express: numbers,
/// strings, booleans, null, lists, and maps with string keys. What Phoenix has signed may have tuples
/// and atoms in it, too: they are read as lists and strings.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use pipeline_ws_sink::Signer;
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
/// The limit that [`max_age`](Self::max_age) sets is written into the tokens that are signed, and it
/// is the one that counts for those to verify, whatever they say. A signer that sets none writes one
/// day, and goes by what the tokens say: their limit is signed, too. So does Phoenix.
///
/// # Changing the secret
///
/// Clients hold tokens of the old secret while servers change one after the other. So:
///
/// 1. Deploy the new secret for verifying only: `Signer::new(old, salt)?.also_verify(&new)`.
/// 2. When all servers have it, sign with it: `Signer::new(new, salt)?.also_verify(&old)`.
/// 3. When the last token of the old secret has expired, drop it: `Signer::new(new, salt)?`.
///
/// If the old secret is known to others, skip to the third: all clients then need a new token.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::Signer;
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
    /// What tokens to verify may have been signed with instead.
    others: Vec<Key>,
    /// If it was set.
    max_age: Option<MaxAge>,
}

impl Signer {
    /// Derives the key from a secret, such as Phoenix's `secret_key_base`, and a salt that names
    /// what the tokens are for.
    ///
    /// This takes about a millisecond: make one signer and keep it.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret has less than 20 bytes.
    pub fn new(secret: &str, salt: &str) -> Result<Self, SignerError> {
        Self::with_options(secret, salt, KeyOptions::default())
    }

    /// The same, for a Phoenix side that derives its key in another way.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret has less than 20 bytes, or if a key cannot be derived like this.
    ///
    /// ```
    /// use pipeline_ws_sink::{KeyDigest, KeyOptions, Signer};
    ///
    /// // Phoenix.Token.sign(secret, "user socket", id, key_iterations: 2000, key_digest: :sha512)
    /// let options = KeyOptions::default().iterations(2000).digest(KeyDigest::Sha512);
    /// let signer = Signer::with_options("a secret of at least 20 bytes", "user socket", options)?;
    /// # Ok::<(), pipeline_ws_sink::SignerError>(())
    /// ```
    pub fn with_options(
        secret: &str,
        salt: &str,
        options: KeyOptions,
    ) -> Result<Self, SignerError> {
        let key = Key::derive(secret, salt, options)?;
        Ok(Self { key, others: Vec::new(), max_age: None })
    }

    /// Verifies what the other one signs, too, by this signer's [`max_age`](Self::max_age). The other
    /// one may have a secret, a salt and options of its own.
    ///
    /// Tokens are tried with one key after the other, each in constant time. How to change a secret
    /// with it is told at [`Signer`].
    pub fn also_verify(mut self, other: &Self) -> Self {
        self.others.extend(other.keys().cloned());
        self
    }

    /// How long tokens are valid after they were signed, in whole seconds; with less than one, they
    /// never are.
    ///
    /// See [`Signer`] for what counts without it.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        let seconds = max_age.as_secs().try_into().unwrap_or(i64::MAX);
        self.max_age = Some(MaxAge::Seconds(seconds));
        self
    }

    /// Tokens are valid forever, as with `max_age: :infinity` of `Phoenix.Token`. What was signed with
    /// a limit verifies after it, too.
    ///
    /// Nothing but another secret then ends what was given out.
    pub fn never_expires(mut self) -> Self {
        self.max_age = Some(MaxAge::Infinity);
        self
    }

    /// Makes a token of this data, dated `now`.
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

    /// Checks a token and returns its data.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] if it is not a token that was signed with this secret and salt, or if
    /// it is dated more than a minute after `now`; [`TokenError::Expired`] if it is too old;
    /// [`TokenError::Data`] if its data is not of the expected type, or nothing that JSON can express.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        let term = key::open(token, self.keys()).ok_or(TokenError::Invalid)?;
        let signed = SignedTerm::decode(&term).ok_or(TokenError::Invalid)?;
        let now = unix_ms(now);
        if signed.signed_at_ms > now.saturating_add(milliseconds(CLOCK_SKEW)) {
            return Err(TokenError::Invalid);
        }
        if self.max_age.unwrap_or(signed.max_age).is_over(signed.signed_at_ms, now) {
            return Err(TokenError::Expired);
        }
        let data = signed.data.into_value().map_err(serde_json::Error::custom);
        data.and_then(serde_json::from_value).map_err(TokenError::Data)
    }

    /// The same for a token that may be absent, such as
    /// [`ConnectInfo::auth_token`](crate::ConnectInfo::auth_token).
    ///
    /// # Errors
    ///
    /// [`TokenError::Missing`] if it is absent, and those of [`verify`](Self::verify).
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use pipeline_ws_sink::{ConnectError, ConnectInfo, Params, Signer, Socket};
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

    /// What tokens may have been signed with.
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

/// What is wrong with a token.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is none.
    #[error("there is no token")]
    Missing,
    /// It is not a token; or it was not signed with one of the keys, or is dated in the future.
    #[error("the token is invalid")]
    Invalid,
    /// A JSON Web Token was not signed with one of the keys, or not with its algorithm.
    #[error("the token is invalid: none of the keys has made its signature")]
    Signature,
    /// A JSON Web Token does not claim what is expected of it.
    #[error("the token is invalid: its claim `{claim}` {fault}")]
    Claim {
        /// Which claim: `exp`, `nbf`, `iss` or `aud`.
        claim: &'static str,
        /// What is wrong with it: that it is missing, for example.
        fault: &'static str,
    },
    /// It is too old.
    #[error("the token has expired")]
    Expired,
    /// Its data is not what was expected, or cannot be expressed.
    #[error("the token's data does not fit")]
    Data(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests;
