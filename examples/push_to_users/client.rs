//! The official Phoenix client, from npm.

use std::{fmt, path::PathBuf};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tokio::process::Command;

/// The client's source code, which the page loads. Cheap to clone: each request has a clone.
#[derive(Clone)]
pub struct PhoenixClient {
    pub module: Bytes,
}

/// Why the client is missing.
#[derive(Debug)]
pub enum NoClient {
    NoNpm,
    NpmFailed(String),
    Unreadable(std::io::Error),
}

/// Answers with the client, or with 404.
pub fn serve(client: Option<PhoenixClient>) -> Response {
    match client {
        Some(client) => javascript(client.module),
        None => (StatusCode::NOT_FOUND, "the Phoenix client is not installed\n").into_response(),
    }
}

/// A response with a script.
pub fn javascript(source: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], source.into()).into_response()
}

impl PhoenixClient {
    /// Reads the client, and installs it with npm first if it is missing.
    pub async fn find_or_install() -> Result<Self, NoClient> {
        // `cargo run` sets the project's folder; a binary that runs alone uses the folder of its build.
        let project = std::env::var_os("CARGO_MANIFEST_DIR");
        let project = project.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let folder = PathBuf::from(project).join("examples/push_to_users");
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
