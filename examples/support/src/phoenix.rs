//! The official Phoenix client, from npm.

use std::{fmt, path::PathBuf};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tokio::process::Command;

/// The environment variable with the folder of the npm package, if it is not the one of this crate.
const FOLDER: &str = "PHOENIX_CLIENT";

/// The client's source code, which a page loads. Cheap to clone: each request has a clone.
#[derive(Clone, Debug)]
pub struct PhoenixClient {
    module: Bytes,
}

/// Why the client is missing.
#[derive(Debug)]
pub enum NoClient {
    /// npm is not installed.
    NoNpm,
    /// npm could not install the client; its error.
    NpmFailed(String),
    /// The client's file cannot be read.
    Unreadable(std::io::Error),
}

/// A response with a script.
pub fn javascript(source: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], source.into()).into_response()
}

impl PhoenixClient {
    /// Reads the client, and installs it with npm first if it is missing.
    ///
    /// # Errors
    ///
    /// If npm cannot install the client, or its file cannot be read.
    pub async fn find_or_install() -> Result<Self, NoClient> {
        let folder = std::env::var_os(FOLDER).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let folder = PathBuf::from(folder);
        let path = folder.join("node_modules/phoenix/priv/static/phoenix.mjs");
        if !path.exists() {
            println!("client   installing the Phoenix client from npm");
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder);
            let output = npm.output().await.map_err(|_| NoClient::NoNpm)?;
            if !output.status.success() {
                let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(NoClient::NpmFailed(error));
            }
        }
        let module = std::fs::read_to_string(path).map_err(NoClient::Unreadable)?;
        Ok(Self { module: module.into() })
    }

    /// Answers a request for the client, with 404 if it is missing.
    #[must_use]
    pub fn respond(client: Option<Self>) -> Response {
        match client {
            Some(client) => javascript(client.module),
            None => {
                (StatusCode::NOT_FOUND, "the Phoenix client is not installed\n").into_response()
            }
        }
    }
}

impl fmt::Display for NoClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNpm => f.write_str("npm is not installed, so there is no Phoenix client"),
            Self::NpmFailed(error) => {
                write!(f, "npm could not install the Phoenix client: {error}")
            }
            Self::Unreadable(error) => write!(f, "the Phoenix client cannot be read: {error}"),
        }
    }
}
