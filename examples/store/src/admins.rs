//! The admins, who may see the dashboard.

use std::{collections::BTreeSet, convert::Infallible, fmt, str::FromStr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::ORIGIN},
    response::{IntoResponse, Response},
    routing::post,
};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::RwLock;
use pipeline::ws::{Endpoint, pubsub::BroadcastError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use thiserror::Error;

use crate::channels::sockets::socket_id;

/// The topic on which one node tells all of them that an admin has no access any more.
const WITHDRAWN: &str = "admins_withdrawn";

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

    /// Withdraws the access of an admin. Returns whether there is one of this name. Open sockets are closed by their id.
    pub fn withdraw(&self, name: &str) -> bool {
        let known = self.known.iter().find(|known| known.name == name);
        if let Some(known) = known {
            self.withdrawn.write().insert(known.name.clone());
        }
        known.is_some()
    }
}

/// What a node tells the others.
#[derive(Deserialize, Serialize)]
struct Withdrawn {
    name: String,
}

/// Withdraws the access of an admin on all nodes that run, and closes the open sockets. Returns how many were open here.
///
/// A node that starts later has the admins that its flags name.
///
/// # Errors
///
/// [`BroadcastError`] if the other nodes were not told. Here, it is withdrawn all the same.
pub fn withdraw(
    admins: &Admins,
    endpoint: &Endpoint,
    name: &str,
) -> Result<Option<usize>, BroadcastError> {
    let is_known = admins.withdraw(name);
    // A node without this admin may not be the only one.
    let told = endpoint.broadcast(WITHDRAWN, "withdrawn", Withdrawn { name: name.to_owned() });
    // Those that connect from now on are refused, so none is left.
    let closed = endpoint.disconnect(&socket_id(name));
    told.map(|()| is_known.then_some(closed))
}

/// Does what the other nodes tell of admins.
pub async fn follow(admins: Arc<Admins>, endpoint: Endpoint) -> Infallible {
    let mut told = endpoint.subscribe(WITHDRAWN);
    loop {
        // An operator who sees that the access is still there on a node withdraws it again.
        let Ok(broadcast) = told.recv().await else { continue };
        if let Ok(Withdrawn { name }) = broadcast.payload().parse() {
            admins.withdraw(&name);
            // A socket may have connected while this was on its way.
            endpoint.disconnect(&socket_id(&name));
        }
    }
}

/// The operator's request: `POST /{name}/withdraw`.
pub fn router(admins: Arc<Admins>, endpoint: Endpoint) -> Router {
    Router::new().route("/{name}/withdraw", post(asked)).with_state((admins, endpoint))
}

async fn asked(
    State((admins, endpoint)): State<(Arc<Admins>, Endpoint)>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    // A page of any site can have a browser on this machine post here, but not without saying so.
    if headers.contains_key(ORIGIN) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    match withdraw(&admins, &endpoint, &name) {
        Ok(Some(closed)) => Json(json!({ "closed": closed })).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no admin of this name here").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
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
