//! Keys, each for one algorithm. Pure.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};
use thiserror::Error;

#[cfg(feature = "jwt-public-keys")]
use super::public::PublicKey;

/// The algorithms of JSON Web Tokens. Those with a public key need the feature `jwt-public-keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256 and a shared secret.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA as in PKCS #1, version 1.5, with SHA-256.
    Rs256,
    /// RSA as in PKCS #1, version 1.5, with SHA-384.
    Rs384,
    /// RSA as in PKCS #1, version 1.5, with SHA-512.
    Rs512,
    /// RSA-PSS with SHA-256.
    Ps256,
    /// RSA-PSS with SHA-384.
    Ps384,
    /// RSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

/// A key to verify JSON Web Tokens with, by one algorithm: a shared [`secret`](Self::secret), or with the feature
/// `jwt-public-keys` a public key in PEM or DER.
///
/// ```
/// use pipeline_ws_sink::token::{JwtAlgorithm, JwtKey};
///
/// # fn key() -> Result<JwtKey, pipeline_ws_sink::token::JwtKeyError> {
/// let key = JwtKey::secret(JwtAlgorithm::Hs256, b"a secret of at least thirty-two bytes")?.id("2026-01");
/// # Ok(key)
/// # }
/// # key().unwrap();
/// ```
#[derive(Clone)]
#[must_use]
pub struct JwtKey {
    id: Option<String>,
    algorithm: JwtAlgorithm,
    key: Material,
}

#[derive(Clone)]
enum Material {
    Secret(Vec<u8>),
    #[cfg(feature = "jwt-public-keys")]
    Public(PublicKey),
}

/// A key is invalid.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JwtKeyError {
    /// The algorithm needs the other kind of key: a secret, or a public key.
    #[error("wrong kind of key for {algorithm:?}")]
    Algorithm {
        /// The algorithm.
        algorithm: JwtAlgorithm,
    },
    /// The secret is shorter than the hash, which RFC 7518 forbids.
    #[error("the secret has {length} bytes, expected at least {least}")]
    ShortSecret {
        /// Its length in bytes.
        length: usize,
        /// The minimum length in bytes.
        least: usize,
    },
    /// The key is not a public key, or not one for the algorithm.
    #[error("not a public key for {algorithm:?}")]
    PublicKey {
        /// The algorithm.
        algorithm: JwtAlgorithm,
        /// The cause, if it is known.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl JwtKey {
    /// A shared secret, for HS256, HS384 or HS512.
    ///
    /// # Errors
    ///
    /// [`JwtKeyError`] if the algorithm is another one, or if the secret is shorter than 32, 48 or 64
    /// bytes.
    pub fn secret(algorithm: JwtAlgorithm, secret: &[u8]) -> Result<Self, JwtKeyError> {
        let least = match algorithm {
            JwtAlgorithm::Hs256 => 32,
            JwtAlgorithm::Hs384 => 48,
            JwtAlgorithm::Hs512 => 64,
            _ => return Err(JwtKeyError::Algorithm { algorithm }),
        };
        if secret.len() < least {
            return Err(JwtKeyError::ShortSecret { length: secret.len(), least });
        }
        Ok(Self { id: None, algorithm, key: Material::Secret(secret.to_vec()) })
    }

    /// A public key in PEM: the text from `BEGIN PUBLIC KEY` on. Needs the feature `jwt-public-keys`.
    ///
    /// ```
    /// use pipeline_ws_sink::token::{JwtAlgorithm, JwtKey};
    ///
    /// # fn key() -> Result<JwtKey, pipeline_ws_sink::token::JwtKeyError> {
    /// let key = JwtKey::pem(
    ///     JwtAlgorithm::EdDsa,
    ///     "-----BEGIN PUBLIC KEY-----
    /// MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
    /// -----END PUBLIC KEY-----",
    /// )?;
    /// # Ok(key)
    /// # }
    /// # key().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`JwtKeyError`] if it is not a public key for the algorithm.
    #[cfg(feature = "jwt-public-keys")]
    pub fn pem(algorithm: JwtAlgorithm, pem: &str) -> Result<Self, JwtKeyError> {
        let key = Material::Public(PublicKey::pem(algorithm, pem)?);
        Ok(Self { id: None, algorithm, key })
    }

    /// A public key in DER: the bytes that PEM encodes in base64, a `SubjectPublicKeyInfo`. Needs the feature
    /// `jwt-public-keys`.
    ///
    /// # Errors
    ///
    /// As for [`pem`](Self::pem).
    #[cfg(feature = "jwt-public-keys")]
    pub fn der(algorithm: JwtAlgorithm, der: &[u8]) -> Result<Self, JwtKeyError> {
        let key = Material::Public(PublicKey::der(algorithm, der)?);
        Ok(Self { id: None, algorithm, key })
    }

    /// Sets the key's id: tokens with an id (`kid`) are verified with keys of this id, and with
    /// keys without one.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    pub(super) fn may_have_signed(&self, algorithm: &str, id: Option<&str>) -> bool {
        let is_named = |named: &str| id.is_none_or(|id| id == named);
        algorithm == self.algorithm.name() && self.id.as_deref().is_none_or(is_named)
    }

    /// Whether this key made the signature.
    pub(super) fn made(&self, signature: &[u8], signed: &str) -> bool {
        match &self.key {
            Material::Secret(secret) => match self.algorithm {
                JwtAlgorithm::Hs256 => is_mac::<Hmac<Sha256>>(secret, signature, signed),
                JwtAlgorithm::Hs384 => is_mac::<Hmac<Sha384>>(secret, signature, signed),
                JwtAlgorithm::Hs512 => is_mac::<Hmac<Sha512>>(secret, signature, signed),
                _ => false,
            },
            #[cfg(feature = "jwt-public-keys")]
            Material::Public(key) => key.made(self.algorithm, signature, signed),
        }
    }
}

/// Whether this is the whole code of the text. It takes as long for a wrong one, wherever it differs.
fn is_mac<M: Mac + KeyInit>(secret: &[u8], code: &[u8], text: &str) -> bool {
    let Ok(mac) = <M as KeyInit>::new_from_slice(secret) else { return false };
    mac.chain_update(text).verify_slice(code).is_ok()
}

impl JwtAlgorithm {
    /// The algorithm's name in tokens.
    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// The key may be a secret, so it is not shown.
impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
