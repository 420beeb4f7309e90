//! Tests without a network: the endpoint and its clients are in this process.

use std::time::{Duration, SystemTime};

use axum::{Json, extract::State, http::StatusCode};
use my_app::{Push, push, sockets, start};
use pipeline::ws::{
    channel_test::{TestEndpoint, assert_push},
    token::Signer,
};
use serde_json::json;

/// A test endpoint, and the token of user 42.
fn endpoint() -> (TestEndpoint, String) {
    let signer = Signer::new("a secret of the tests, long enough", "user socket").unwrap();
    let token = signer.sign(&42, SystemTime::now()).unwrap();
    (TestEndpoint::new(sockets(signer)), token)
}

fn hello() -> Json<Push> {
    let text = "hello".into();
    Json(Push { user: 42, text })
}

#[tokio::test]
async fn a_push_arrives_at_its_user() {
    let (kit, token) = endpoint();
    let (pushes, pipeline) = start(kit.endpoint()).unwrap();
    let browser = kit.connect(json!({ "token": token })).await.unwrap();
    let channel = browser.join("user:42", json!({})).await.unwrap();

    let answer = push(State(pushes.clone()), hello()).await;
    assert_eq!(answer, StatusCode::ACCEPTED);
    assert_push!(channel, "push_timed", { "text": "hello" }, within: Duration::from_secs(20));

    let report = pipeline.drain(Duration::from_secs(20)).await;
    assert!(report.is_clean(), "{report}");
    let too_late = push(State(pushes), hello()).await;
    assert_eq!(too_late, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn users_join_their_own_topic_and_no_other() {
    let (kit, token) = endpoint();
    assert!(kit.connect(json!({ "token": "forged" })).await.is_err());
    let browser = kit.connect(json!({ "token": token })).await.unwrap();
    assert!(browser.join("user:43", json!({})).await.is_err());
}
