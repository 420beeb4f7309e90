//! Public keys. Pure. The cryptography is jsonwebtoken's.

use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::rust_crypto::DEFAULT_PROVIDER};

use super::{JwtAlgorithm, JwtKeyError};

/// A public key for one algorithm.
#[derive(Clone)]
pub(super) struct PublicKey(DecodingKey);

impl PublicKey {
    pub(super) fn pem(algorithm: JwtAlgorithm, pem: &str) -> Result<Self, JwtKeyError> {
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
        Ok(Self(key))
    }

    pub(super) fn der(algorithm: JwtAlgorithm, der: &[u8]) -> Result<Self, JwtKeyError> {
        let text = STANDARD.encode(der);
        Self::pem(
            algorithm,
            &format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"),
        )
    }

    /// Whether this key made the signature.
    pub(super) fn made(&self, algorithm: JwtAlgorithm, signature: &[u8], signed: &str) -> bool {
        // Not the process-wide provider: another part of the program may have installed one that
        // panics.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&known(algorithm), &self.0);
        let signature = signature.to_vec();
        verifier.is_ok_and(|verifier| verifier.verify(signed.as_bytes(), &signature).is_ok())
    }
}

fn known(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Hs256 => Algorithm::HS256,
        JwtAlgorithm::Hs384 => Algorithm::HS384,
        JwtAlgorithm::Hs512 => Algorithm::HS512,
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}
