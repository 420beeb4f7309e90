//! The official Phoenix client, from npm.

use std::{fmt, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use tokio::{process::Command, sync::watch, time::timeout};

use crate::output::say;

/// The environment variable with the folder of the npm package, if it is not the one of this crate.
const FOLDER: &str = "PHOENIX_CLIENT";

/// How long npm may take.
const INSTALLED_WITHIN: Duration = Duration::from_secs(300);

/// How long a request for the client waits while it is installed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The client's source code, which a page loads. Cheap to clone: each request has a clone.
#[derive(Clone, Debug)]
pub struct PhoenixClient {
    /// Nothing while npm installs it.
    found: watch::Receiver<Option<Found>>,
}

type Found = Result<Bytes, Arc<NoClient>>;

/// Why the client is missing.
#[derive(Debug)]
pub enum NoClient {
    /// npm is not installed.
    NoNpm,
    /// npm could not install the client; its error.
    NpmFailed(String),
    /// npm was still at work after this time.
    NpmTooSlow(Duration),
    /// The client's file cannot be read.
    Unreadable(std::io::Error),
}

/// A response with a script.
pub fn javascript(source: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], source.into()).into_response()
}

impl PhoenixClient {
    /// Reads the client. If it is missing, npm installs it in a task of its own, so that the program can begin
    /// meanwhile. The function is called if there is no client in the end.
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime.
    pub fn find_or_install(is_missing: impl FnOnce(&NoClient) + Send + 'static) -> Self {
        let folder = std::env::var_os(FOLDER).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let folder = PathBuf::from(folder);
        let path = folder.join("node_modules/phoenix/priv/static/phoenix.mjs");
        let (sender, found) = watch::channel(None);
        let find = async move {
            let installed = if path.exists() { Ok(()) } else { install(folder).await };
            let read = installed.and_then(|()| std::fs::read(path).map_err(NoClient::Unreadable));
            if let Err(reason) = &read {
                is_missing(reason);
            }
            sender.send_replace(Some(read.map(Bytes::from).map_err(Arc::new)));
        };
        tokio::spawn(find);
        Self { found }
    }

    /// No client, for the tests of a program.
    #[must_use]
    pub fn missing() -> Self {
        let (_, found) = watch::channel(Some(Err(Arc::new(NoClient::NoNpm))));
        Self { found }
    }

    /// Answers a request for the client, with 404 if there is none, and with 503 if npm is still at work after
    /// some seconds.
    pub async fn respond(mut self) -> Response {
        let found = timeout(PATIENCE, self.found.wait_for(Option::is_some)).await;
        match found.map(|found| found.ok().and_then(|found| found.clone())) {
            Ok(Some(Ok(module))) => javascript(module),
            Ok(_) => {
                (StatusCode::NOT_FOUND, "the Phoenix client is not installed\n").into_response()
            }
            Err(_) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let later = [(RETRY_AFTER, "2")];
                (status, later, "npm is installing the Phoenix client\n").into_response()
            }
        }
    }
}

async fn install(folder: PathBuf) -> Result<(), NoClient> {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder);
    npm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let npm = npm.spawn().map_err(|_| NoClient::NoNpm)?;
    say("client   npm is installing the Phoenix client for the page");
    let ended = timeout(INSTALLED_WITHIN, npm.wait_with_output()).await;
    let ended = ended.map_err(|_| NoClient::NpmTooSlow(INSTALLED_WITHIN))?;
    let failed = match ended {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(NoClient::NpmFailed(failed))
}

impl fmt::Display for NoClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNpm => f.write_str("npm is not installed, so there is no Phoenix client"),
            Self::NpmFailed(error) => {
                write!(f, "npm could not install the Phoenix client: {error}")
            }
            Self::NpmTooSlow(limit) => {
                write!(f, "npm has not installed the Phoenix client within {} s", limit.as_secs())
            }
            Self::Unreadable(error) => write!(f, "the Phoenix client cannot be read: {error}"),
        }
    }
}
