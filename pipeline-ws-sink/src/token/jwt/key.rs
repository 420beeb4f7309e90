//! Keys, each for one algorithm. Pure.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::rust_crypto::DEFAULT_PROVIDER};
use thiserror::Error;

/// The algorithms of JSON Web Tokens.
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

/// A key to verify JSON Web Tokens with, by one algorithm.
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
/// )?
/// .id("2026-01");
/// # Ok(key)
/// # }
/// # key().unwrap();
/// ```
#[derive(Clone)]
#[must_use]
pub struct JwtKey {
    id: Option<String>,
    algorithm: JwtAlgorithm,
    key: DecodingKey,
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
        Ok(Self { id: None, algorithm, key: DecodingKey::from_secret(secret) })
    }

    /// A public key in PEM: the text from `BEGIN PUBLIC KEY` on.
    ///
    /// # Errors
    ///
    /// [`JwtKeyError`] if it is not a public key for the algorithm.
    pub fn pem(algorithm: JwtAlgorithm, pem: &str) -> Result<Self, JwtKeyError> {
        let read = match algorithm {
            JwtAlgorithm::Hs256 | JwtAlgorithm::Hs384 | JwtAlgorithm::Hs512 => {
                return Err(JwtKeyError::Algorithm { algorithm });
            }
            JwtAlgorithm::Es256 | JwtAlgorithm::Es384 => DecodingKey::from_ec_pem,
            JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem,
            _ => DecodingKey::from_rsa_pem,
        };
        let refused = |source: Option<jsonwebtoken::errors::Error>| {
            let source = source.map(Into::into);
            JwtKeyError::PublicKey { algorithm, source }
        };
        // A private key does not belong here, and a certificate would be parsed wrongly.
        if !pem.trim_start().starts_with("-----BEGIN PUBLIC KEY-----") {
            return Err(refused(None));
        }
        let key = read(pem.as_bytes()).map_err(|error| refused(Some(error)))?;
        // The points of both curves: one byte, and two coordinates.
        let bytes = match algorithm {
            JwtAlgorithm::Es256 => Some(1 + 2 * 32),
            JwtAlgorithm::Es384 => Some(1 + 2 * 48),
            JwtAlgorithm::EdDsa => Some(32),
            _ => None,
        };
        let has = key.try_get_as_bytes().map_err(|error| refused(Some(error)))?.len();
        if bytes.is_some_and(|bytes| bytes != has) {
            return Err(refused(None));
        }
        Ok(Self { id: None, algorithm, key })
    }

    /// A public key in DER: the bytes that PEM encodes in base64, a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    ///
    /// As for [`pem`](Self::pem).
    pub fn der(algorithm: JwtAlgorithm, der: &[u8]) -> Result<Self, JwtKeyError> {
        let text = STANDARD.encode(der);
        Self::pem(
            algorithm,
            &format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"),
        )
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
    pub(super) fn made(&self, signature: &Vec<u8>, signed: &str) -> bool {
        // Not the process-wide provider: another part of the program may have installed one that
        // panics.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&self.algorithm.known(), &self.key);
        verifier.is_ok_and(|verifier| verifier.verify(signed.as_bytes(), signature).is_ok())
    }
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

    fn known(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::Hs384 => Algorithm::HS384,
            Self::Hs512 => Algorithm::HS512,
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
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
