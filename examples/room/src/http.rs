//! The page and its tokens.

use std::time::SystemTime;

use axum::{
    Router,
    extract::Query,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse, Json, Response},
    routing::get,
};
use pipeline::ws::token::Signer;
use pipeline_example_support::{COLORS, PhoenixClient, javascript};
use serde::Deserialize;
use serde_json::json;

use crate::visitor::{MAX_NAME, is_name};

pub fn router(signer: Signer, client: PhoenixClient) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("page/index.html"))))
        .route("/app.js", get(async || javascript(include_str!("page/app.js").to_owned())))
        .route("/style.css", get(style))
        .route("/token", get(async move |query| token(&signer, query)))
        .route("/phoenix.mjs", get(async move || client.respond().await))
}

async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], [COLORS, include_str!("page/style.css")].concat())
}

#[derive(Deserialize)]
struct SignIn {
    name: String,
}

/// Issues a token without asking for a password: this is an example.
fn token(signer: &Signer, Query(SignIn { name }): Query<SignIn>) -> Response {
    if !is_name(&name) {
        let why = format!("a name has 1 to {MAX_NAME} characters");
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    match signer.sign(&name, SystemTime::now()) {
        Ok(token) => Json(json!({ "token": token })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
