//! `/ctl`: broadcasts from outside of a channel, the number of sockets and how some are given away, and the
//! stop of the server.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Query, http::StatusCode, routing::get};
use pipeline::ws::{Endpoint, endpoint::Shed};
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

#[derive(Deserialize)]
struct DownTo {
    sockets: usize,
    per_second: usize,
}

/// The routes below `/ctl`, of a server on this port. A stop request notifies `stop`.
pub fn router(endpoint: &Endpoint, port: u16, stop: Arc<Notify>) -> Router {
    let [all, local, sockets, open, full, seen, passed, node] = [(); 8].map(|()| endpoint.clone());
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
        .route("/ctl/port", get(async move || port.to_string()))
        .route(
            "/ctl/connected",
            get(async move || {
                let mounts = seen.snapshot().sockets;
                mounts.iter().map(|mount| mount.connected).sum::<u64>().to_string()
            }),
        )
        .route("/ctl/relayed", get(async move || passed.snapshot().relayed.to_string()))
        .route(
            "/ctl/lost",
            get(async move || {
                let adapter = node.snapshot().adapter;
                adapter.map_or(0, |adapter| adapter.lost).to_string()
            }),
        )
        .route("/ctl/sockets", get(async move || open.open_sockets().to_string()))
        .route(
            "/ctl/shed",
            get(async move |Query(DownTo { sockets, per_second })| {
                full.shed(Shed::down_to(sockets).per_second(per_second)).await.to_string()
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
