//! `/ctl`: broadcasts from outside of a channel, and the stop of the server.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Query, http::StatusCode, routing::get};
use pipeline::ws::Endpoint;
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Notify, time::sleep};

/// How long the answer to a stop request has before the server stops.
const ANSWERING: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct News {
    topic: String,
    event: String,
    payload: String,
}

#[derive(Deserialize)]
struct Disconnect {
    user: String,
}

/// The routes below `/ctl`. A stop request notifies `stop`.
pub fn router(endpoint: &Endpoint, stop: Arc<Notify>) -> Router {
    let (all, local, sockets) = (endpoint.clone(), endpoint.clone(), endpoint.clone());
    Router::new()
        .route(
            "/ctl/broadcast",
            get(async move |Query(news): Query<News>| {
                let payload: Value =
                    serde_json::from_str(&news.payload).map_err(|error| refused(&error))?;
                all.broadcast(&news.topic, &news.event, payload)
                    .map_err(|error| refused(&error))?;
                Ok::<_, (StatusCode, String)>("ok")
            }),
        )
        .route(
            "/ctl/local_broadcast",
            get(async move |Query(news): Query<News>| {
                let payload: Value =
                    serde_json::from_str(&news.payload).map_err(|error| refused(&error))?;
                local
                    .local_broadcast(&news.topic, &news.event, payload)
                    .map_err(|error| refused(&error))?;
                Ok::<_, (StatusCode, String)>("ok")
            }),
        )
        .route(
            "/ctl/disconnect",
            get(async move |Query(Disconnect { user })| {
                sockets.disconnect(&format!("users_socket:{user}"));
                "ok"
            }),
        )
        .route(
            "/ctl/stop",
            get(async move || {
                tokio::spawn(async move {
                    sleep(ANSWERING).await;
                    stop.notify_one();
                });
                "ok"
            }),
        )
}

fn refused(error: &impl ToString) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, error.to_string())
}
