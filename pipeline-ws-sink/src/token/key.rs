//! Keys derived from secrets, and their signatures. Pure.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};
use thiserror::Error;

/// How a key is derived from a secret by PBKDF2: the iterations, length and hash have to equal
/// those of the other side.
///
/// These are the options `key_iterations`, `key_length` and `key_digest` of `Phoenix.Token`, with its
/// defaults. See [`Signer::with_options`](crate::token::Signer::with_options) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeyOptions {
    iterations: u32,
    length: usize,
    digest: KeyDigest,
}

/// The hash that derives a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyDigest {
    /// SHA-256, the default.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A key could not be derived.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignerError {
    /// The secret is too short.
    #[error("the secret has {length} bytes, expected at least {MIN_SECRET}")]
    ShortSecret {
        /// Its length in bytes.
        length: usize,
    },
    /// The number of iterations is zero.
    #[error("a key needs at least one iteration")]
    NoIterations,
    /// The key's length is zero or too large.
    #[error("a key of {length} bytes, expected 1 to {MAX_LENGTH}")]
    KeyLength {
        /// The requested length in bytes.
        length: usize,
    },
}

/// The minimum length of a secret, in bytes.
const MIN_SECRET: usize = 20;

/// The maximum length of a key, in bytes. HMAC makes no use of more than 128.
const MAX_LENGTH: usize = 1024;

/// The header "HS256" in base64url. The token is still not a JWT.
const HS256: &str = "SFMyNTY";
const HS384: &str = "SFMzODQ";
const HS512: &str = "SFM1MTI";

/// A key that signs and verifies.
#[derive(Clone)]
pub(super) struct Key(Vec<u8>);

impl Default for KeyOptions {
    fn default() -> Self {
        Self { iterations: 1000, length: 32, digest: KeyDigest::default() }
    }
}

impl KeyOptions {
    /// The number of hash iterations. Default 1000. It determines the time to derive a key, and to
    /// try out a secret.
    pub fn iterations(mut self, iterations: u32) -> Self {
        self.iterations = iterations;
        self
    }

    /// The length of the key, in bytes. Default 32, at most 1024.
    pub fn length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// The hash that derives the key. Default SHA-256. The tokens themselves are always signed with
    /// SHA-256.
    pub fn digest(mut self, digest: KeyDigest) -> Self {
        self.digest = digest;
        self
    }
}

impl Key {
    pub(super) fn derive(
        secret: &str,
        salt: &str,
        options: KeyOptions,
    ) -> Result<Self, SignerError> {
        let KeyOptions { iterations, length, digest } = options;
        if secret.len() < MIN_SECRET {
            return Err(SignerError::ShortSecret { length: secret.len() });
        }
        if iterations == 0 {
            return Err(SignerError::NoIterations);
        }
        if !(1..=MAX_LENGTH).contains(&length) {
            return Err(SignerError::KeyLength { length });
        }
        let derive = match digest {
            KeyDigest::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>,
            KeyDigest::Sha384 => pbkdf2::pbkdf2_hmac::<Sha384>,
            KeyDigest::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>,
        };
        let mut key = vec![0; length];
        derive(secret.as_bytes(), salt.as_bytes(), iterations, &mut key);
        Ok(Self(key))
    }

    /// Signs this term.
    pub(super) fn sign(&self, term: &[u8]) -> String {
        let term = URL_SAFE_NO_PAD.encode(term);
        let signed = format!("{HS256}.{term}");
        let mac = self.mac::<Hmac<Sha256>>(&signed).finalize().into_bytes();
        let mac = URL_SAFE_NO_PAD.encode(mac);
        format!("{signed}.{mac}")
    }

    /// Whether this key made the signature, compared in constant time.
    fn made(&self, signature: &Signature<'_>) -> bool {
        let Signature { hash, signed, mac } = signature;
        let verified = match hash {
            Hash::Sha256 => self.mac::<Hmac<Sha256>>(signed).verify_slice(mac),
            Hash::Sha384 => self.mac::<Hmac<Sha384>>(signed).verify_slice(mac),
            Hash::Sha512 => self.mac::<Hmac<Sha512>>(signed).verify_slice(mac),
        };
        verified.is_ok()
    }

    /// The signature of a text.
    pub(super) fn mac_of(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.mac::<Hmac<Sha256>>(text).finalize().into_bytes())
    }

    /// Whether this key made the signature of a text, compared in constant time.
    pub(super) fn made_mac(&self, text: &str, signature: &str) -> bool {
        let Ok(mac) = URL_SAFE_NO_PAD.decode(signature) else { return false };
        self.mac::<Hmac<Sha256>>(text).verify_slice(&mac).is_ok()
    }

    fn mac<M: Mac + KeyInit>(&self, signed: &str) -> M {
        let mac = <M as KeyInit>::new_from_slice(&self.0);
        mac.expect("HMAC takes keys of any length").chain_update(signed)
    }
}

/// The signature of a token.
struct Signature<'a> {
    hash: Hash,
    signed: &'a str,
    mac: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The term of a token, if it was signed with one of these keys.
pub(super) fn open<'a>(token: &str, mut keys: impl Iterator<Item = &'a Key>) -> Option<Vec<u8>> {
    let (signed, mac) = token.rsplit_once('.')?;
    let (header, term) = signed.split_once('.')?;
    let hash = match header {
        HS256 => Hash::Sha256,
        HS384 => Hash::Sha384,
        HS512 => Hash::Sha512,
        _ => return None,
    };
    let signature = Signature { hash, signed, mac: URL_SAFE_NO_PAD.decode(mac).ok()? };
    // Unsigned content is not even decoded.
    keys.any(|key| key.made(&signature)).then(|| URL_SAFE_NO_PAD.decode(term).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "golden-secret-golden-secret-golden-secret-golden-secret-golden-secret-";

    fn key(salt: &str, options: KeyOptions) -> String {
        let Key(bytes) = Key::derive(SECRET, salt, options).unwrap();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The last two were made by hashlib's `pbkdf2_hmac` of Python.
    #[test]
    fn keys_equal_those_of_other_implementations() {
        let options = KeyOptions::default();
        for (salt, options, expected) in [
            (
                "user auth",
                options,
                "ea4866f2d2fe56381643141e4b90189e3d65e383f2cc31e7bd3ff443fc33bd71",
            ),
            (
                "user secret",
                options,
                "d00f2633ec1c58565f68bfd8a8213864b6aee985aff7ad54bdb418e458c3dbcc",
            ),
            (
                "user auth",
                options.iterations(2000),
                "1efb9ebb9941b867994d6d878d1f889a2de1c9aefe27cdfe4d09ae98beb81b91",
            ),
            (
                "user auth",
                options.length(48).digest(KeyDigest::Sha384),
                "026dbc47acd34d6d08c08375133e60b9dee3080aaebbebd24754f5f81946ed6294f5274df5fc34071d32851a88f4d619",
            ),
            (
                "user auth",
                options.iterations(2000).length(64).digest(KeyDigest::Sha512),
                "96ce93e931f89c752727d503a3a022858447bee05b532b3b2e64c306c7617a1941f8522774768e0157b523ecd2a143d5b97d2f5304300275d8b56499ee5bb183",
            ),
        ] {
            assert_eq!(key(salt, options), expected, "{salt} {options:?}");
        }
    }

    #[test]
    fn an_invalid_key_is_refused() {
        let refused = |options| Key::derive(SECRET, "salt", options).err();
        let options = KeyOptions::default();
        assert_eq!(refused(options), None);
        assert_eq!(refused(options.iterations(0)), Some(SignerError::NoIterations));
        for length in [0, 1025, usize::MAX] {
            let error = SignerError::KeyLength { length };
            assert_eq!(refused(options.length(length)), Some(error));
        }
        assert_eq!(refused(options.length(1024)), None);
    }
}
