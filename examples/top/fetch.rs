//! Where the frames come from: an inspector's `data.json`.

use http::{Uri, uri::InvalidUri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use pipeline::inspect::{VERSION, View};
use thiserror::Error;

/// More than any inspector has to say, in bytes.
const MOST: usize = 16 * 1024 * 1024;

/// An inspector somewhere.
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

    /// What is seen there now.
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

/// Why nothing is seen.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("this is no URL: {0}")]
    Url(#[from] InvalidUri),
    #[error("only http:// can be asked, by way of a tunnel if need be")]
    Scheme,
    #[error("cannot connect: {}", innermost(.0))]
    Connect(hyper_util::client::legacy::Error),
    #[error("{data} answers with status {status}: is an inspector mounted there?")]
    Status { data: Uri, status: http::StatusCode },
    #[error("the answer broke off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("what {data} answers is not an inspector's: {cause}")]
    SomethingElse { data: Uri, cause: serde_json::Error },
    #[error("it speaks version {theirs} of the JSON form, and this program version {VERSION}")]
    Version { theirs: u32 },
}

/// The cause of all causes: the others say less.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
