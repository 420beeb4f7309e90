//! Webhooks in, pushes out. A webhook is answered with 202 once it is on the disk, so the provider need not send it
//! again, and a crash loses none.

use std::path::Path;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use pipeline::{
    Pipeline,
    processing::{Failure, Message, Processors},
    sources::{Item, SourceOptions, sqlite::SqliteQueue},
    ws::{Endpoint, pubsub::Push},
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{Failed, user};

/// Shared with the provider.
const SECRET: &[u8] = b"a secret for trying things out only";

#[derive(Debug, Deserialize, Serialize)]
struct Paid {
    user: u64,
    order: u64,
}

/// The authentication code of a body.
fn mac(body: &[u8]) -> Hmac<Sha256> {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(SECRET);
    let mut mac = mac.expect("a key of any length is valid");
    mac.update(body);
    mac
}

async fn webhook(State(queue): State<SqliteQueue>, head: HeaderMap, body: Bytes) -> StatusCode {
    let signature = head.get("x-signature").and_then(|given| STANDARD.decode(given).ok());
    let is_signed = signature.is_some_and(|given| mac(&body).verify_slice(&given).is_ok());
    if !is_signed {
        return StatusCode::UNAUTHORIZED;
    }
    match queue.push(Item::new(body)).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE, // the provider tries again
    }
}

async fn open(path: &Path, endpoint: &Endpoint) -> Result<(Router, Pipeline), Failed> {
    let queue = SqliteQueue::open(path, "webhooks").await?;
    let push = endpoint.pubsub().push_messages(|paid: &Message<Paid>| {
        if paid.order == 0 {
            return Err(Failure::new("an order has a number").give_up());
        }
        Ok(Push::new(format!("user:{}", paid.user), "paid", serde_json::to_value(&**paid)?))
    });
    let pipeline = Pipeline::of_messages("webhooks")
        // A body that is no `Paid` is a dead letter, with the reason.
        .source(queue.source(SourceOptions::new()).json::<Paid>())
        .processors(Processors::new(push).concurrency(50))
        .start()?;
    Ok((Router::new().route("/webhooks", post(webhook)).with_state(queue), pipeline))
}

pub(crate) async fn run() -> Result<(), Failed> {
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let path = std::env::temp_dir().join("recipe-webhooks.db");
    let (app, pipeline) = open(&path, &endpoint).await?;
    let body = r#"{"user":7,"order":1}"#;
    let signature = STANDARD.encode(mac(body.as_bytes()).finalize().into_bytes());
    println!("send: curl -H 'x-signature: {signature}' -d '{body}' http://127.0.0.1:4030/webhooks");
    user::run(app, endpoint, pipeline).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipeline::ws::channel_test::{TestEndpoint, assert_push};

    use super::*;

    #[tokio::test]
    async fn a_signed_webhook_arrives_and_an_unsigned_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("webhooks.db");
        let kit = TestEndpoint::new(user::mount(user::signer().unwrap()));
        let (_app, pipeline) = open(&path, kit.endpoint()).await.unwrap();
        let queue = SqliteQueue::open(&path, "webhooks").await.unwrap();
        let payer = user::joined(&kit, 7).await;

        let body = Bytes::from(r#"{"user":7,"order":1}"#);
        let mut head = HeaderMap::new();
        let refused = webhook(State(queue.clone()), head.clone(), body.clone()).await;
        assert_eq!(refused, StatusCode::UNAUTHORIZED);

        let signature = STANDARD.encode(mac(&body).finalize().into_bytes());
        head.insert("x-signature", signature.parse().unwrap());
        assert_eq!(webhook(State(queue), head, body).await, StatusCode::ACCEPTED);
        assert_push!(payer, "paid", { "order": 1 }, within: Duration::from_secs(20));
        pipeline.drain(Duration::from_secs(20)).await;
    }
}
