//! Sockets by id.

use serde_json::json;

use crate::app::{T, assert_closed, joined, send, v1};

#[tokio::test]
async fn c_152_disconnect_closes_the_sockets_of_its_id_silently_and_no_others() {
    let (app, mut phone) = joined().await;
    let mut old = app.v1("ada").await;
    old.send(v1("phx_join", json!("1"), json!({}))).await;
    old.expect([v1("phx_reply", json!("1"), json!({"status": "ok", "response": {}}))]).await;
    let mut joe = app.joined("joe", "2").await;

    app.server.endpoint.broadcast("named:ada", "other", json!({})).unwrap();
    phone.expect_nothing_else().await;
    app.server.endpoint.broadcast("named:ada", "disconnect", json!({})).unwrap();
    assert_closed(&mut phone, 1001).await;
    assert_closed(&mut old, 1001).await;
    joe.send(json!(["2", "3", T, "shout", {}])).await;
    assert_eq!(joe.receive().await[3], "shouted");
}

#[tokio::test]
async fn c_153_a_channel_may_disconnect_its_own_socket() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "kick", json!({})).await;
    assert_closed(&mut client, 1001).await;
}
