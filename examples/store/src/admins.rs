//! The admins, who may see the dashboard.

use std::{collections::BTreeSet, fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::RwLock;
use sha2::Sha256;
use thiserror::Error;

/// The longest name or password.
const MAX: usize = 200;

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    name: String,
    password: String,
}

/// Credentials that cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected USER:PASSWORD, of up to {MAX} bytes each")]
pub struct CredentialsError;

impl FromStr for Credentials {
    type Err = CredentialsError;

    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        let (name, password) = text.split_once(':').ok_or(CredentialsError)?;
        let is_valid = |text: &str| !text.is_empty() && text.len() <= MAX;
        if !is_valid(name) || !is_valid(password) {
            return Err(CredentialsError);
        }
        Ok(Self { name: name.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The admins.
#[derive(Debug)]
pub struct Admins {
    known: Vec<Credentials>,
    /// Names whose access was withdrawn. They are names of `known`.
    withdrawn: RwLock<BTreeSet<String>>,
}

impl Admins {
    /// These admins.
    #[must_use]
    pub fn new(known: Vec<Credentials>) -> Self {
        Self { known, withdrawn: RwLock::default() }
    }

    /// Whether this name may see the dashboard.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.known.iter().any(|known| known.name == name) && !self.withdrawn.read().contains(name)
    }

    /// The name of the admin with these credentials. How long it takes says nothing about how much of them is right.
    #[must_use]
    pub fn check(&self, name: &str, password: &str) -> Option<&str> {
        let given = digest(name, password);
        let mut found = None;
        for known in &self.known {
            // The digests are compared in constant time, and all of them are.
            let is_it =
                given.clone().verify(&digest(&known.name, &known.password).finalize().into_bytes());
            if is_it.is_ok() {
                found = Some(&*known.name);
            }
        }
        found.filter(|name| self.has(name))
    }

    /// Withdraws the access of an admin. Open sockets are closed by their id.
    pub fn withdraw(&self, name: &str) {
        if let Some(known) = self.known.iter().find(|known| known.name == name) {
            self.withdrawn.write().insert(known.name.clone());
        }
    }
}

/// A digest of a name and a password, of a length that says nothing about theirs.
fn digest(name: &str, password: &str) -> Hmac<Sha256> {
    // A key of any length is valid.
    let mut mac =
        Hmac::<Sha256>::new_from_slice(b"admin").unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(&(name.len() as u64).to_be_bytes());
    mac.update(name.as_bytes());
    mac.update(password.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_name_with_the_right_password_is_an_admin() {
        let admins = Admins::new(["ann:one:two", "bob:x"].map(|it| it.parse().unwrap()).into());
        assert_eq!(admins.check("ann", "one:two"), Some("ann"));
        assert_eq!(admins.check("bob", "x"), Some("bob"));
        for (name, password) in
            [("ann", "x"), ("bob", "one:two"), ("", ""), ("annx", ""), ("eve", "x")]
        {
            assert_eq!(admins.check(name, password), None, "{name}");
        }
        admins.withdraw("ann");
        assert_eq!(
            (admins.check("ann", "one:two"), admins.has("ann"), admins.has("bob")),
            (None, false, true)
        );
    }

    #[test]
    fn credentials_need_a_name_and_a_password() {
        for wrong in ["", "ann", "ann:", ":x"] {
            assert_eq!(wrong.parse::<Credentials>(), Err(CredentialsError), "{wrong}");
        }
        assert!(!format!("{:?}", "ann:secret".parse::<Credentials>()).contains("secret"));
    }
}
