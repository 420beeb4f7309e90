//! Pages and forms.

mod admin;
mod checkout;
mod client;
mod headers;
mod session;
mod shopper;
mod tries;

use std::{fmt, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path},
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};

use self::tries::Tries;
use crate::{admins::Admins, pages, shop::Shop};

/// The longest form.
const MAX_FORM: usize = 16 << 10;

/// How many seconds a client waits for a shop that is not loaded, or whose database is away.
const LATER: HeaderValue = HeaderValue::from_static("2");

/// What the handlers share.
#[derive(Debug)]
struct Site {
    shop: Arc<Shop>,
    admins: Arc<Admins>,
    tries: Tries,
}

/// The pages.
pub fn router(shop: Arc<Shop>, admins: Arc<Admins>) -> Router {
    let site = Arc::new(Site { shop, admins, tries: Tries::default() });
    let pages = Router::new()
        .route("/", get(shopper::shop))
        .route("/drops", get(shopper::drops))
        .route("/app", get(shopper::app))
        .route("/app/{*path}", get(shopper::app))
        .route("/cart/token", get(shopper::cart_token))
        .route("/checkout", get(checkout::show).post(checkout::buy))
        .route("/checkout/complete", get(checkout::complete))
        .route("/admin", get(admin::dashboard))
        .route("/admin/products/{id}/release", post(admin::release))
        .layer(map_response(headers::no_store));
    Router::new()
        .merge(pages)
        .route("/assets/{name}", get(asset))
        .route("/photos/{name}", get(photograph))
        .layer(map_response(headers::secure))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .with_state(site)
}

async fn asset(Path(name): Path<String>) -> Response {
    let Some(asset) = pages::assets().iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // The name has a hash of the content.
    let headers = [
        (CONTENT_TYPE, asset.content_type),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.bytes).into_response()
}

async fn photograph(Path(name): Path<String>) -> Response {
    let Some(photograph) = pages::photograph(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [(CONTENT_TYPE, "image/svg+xml"), (CACHE_CONTROL, "public, max-age=86400")];
    (headers, photograph).into_response()
}

/// A request that is not answered with its page.
enum Failure {
    /// The shop was not loaded yet.
    NotLoaded,
    /// The database is away.
    Away,
    /// The form was not made for this session.
    Forbidden,
    /// The program's own fault.
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Internal(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, why) = match &self {
            Self::NotLoaded => (StatusCode::SERVICE_UNAVAILABLE, "The shop opens in a moment."),
            Self::Away => {
                (StatusCode::SERVICE_UNAVAILABLE, "That did not work. Try again in a moment.")
            }
            Self::Forbidden => {
                (StatusCode::FORBIDDEN, "This form is too old. Load the page again.")
            }
            Self::Internal(error) => {
                tracing::error!(error = error.to_string(), "a page was not drawn");
                (StatusCode::INTERNAL_SERVER_ERROR, "That did not work.")
            }
        };
        let page = pages::unavailable(why).unwrap_or_else(|_| why.to_owned());
        let mut response = (status, Html(page)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, LATER);
        }
        response
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failure")
    }
}
