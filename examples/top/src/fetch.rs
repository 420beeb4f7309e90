//! Fetches `data.json` from an inspector.

use http::{Uri, uri::InvalidUri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use pipeline::inspect::{VERSION, View};
use thiserror::Error;

/// Maximum size of an answer in bytes, more than any inspector sends.
const MOST: usize = 16 * 1024 * 1024;

/// The URL of an inspector.
pub struct Source {
    client: Client<HttpConnector, Empty<&'static [u8]>>,
    data: Uri,
}

impl Source {
    /// The inspector whose page is at this URL.
    pub fn new(url: &str) -> Result<Self, FetchError> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !url.starts_with("http://") {
            return Err(FetchError::Scheme);
        }
        let page = url.trim_end_matches('/').trim_end_matches("/data.json");
        let data = format!("{page}/data.json").parse()?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { client, data })
    }

    /// Fetches the current view.
    pub async fn view(&self) -> Result<View, FetchError> {
        let response = self.client.get(self.data.clone()).await.map_err(FetchError::Connect)?;
        let status = response.status();
        if !status.is_success() {
            return Err(FetchError::Status { data: self.data.clone(), status });
        }
        let body = Limited::new(response.into_body(), MOST).collect().await;
        let body = body.map_err(FetchError::Body)?.to_bytes();
        let view: View = serde_json::from_slice(&body)
            .map_err(|cause| FetchError::SomethingElse { data: self.data.clone(), cause })?;
        if view.version != VERSION {
            return Err(FetchError::Version { theirs: view.version });
        }
        Ok(view)
    }
}

/// Why a view could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("invalid URL: {0}")]
    Url(#[from] InvalidUri),
    #[error("only http:// is supported; use a tunnel for https://")]
    Scheme,
    #[error("cannot connect: {}", innermost(.0))]
    Connect(hyper_util::client::legacy::Error),
    #[error("{data} answered with status {status}: is an inspector mounted there?")]
    Status { data: Uri, status: http::StatusCode },
    #[error("the answer was interrupted: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("{data} is not an inspector's data: {cause}")]
    SomethingElse { data: Uri, cause: serde_json::Error },
    #[error("the inspector uses version {theirs} of the JSON form, this program version {VERSION}")]
    Version { theirs: u32 },
}

/// The innermost cause of an error, which says most.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
