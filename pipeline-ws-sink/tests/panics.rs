//! Panics of the application's code: the metrics recorder, the log's subscriber, and callbacks.

mod support;

use std::time::Duration;

use pipeline_test_support::{eventually, reply};
use pipeline_ws_sink::mount::LongPoll;
use serde_json::json;
use support::{channels::endpoint_with, memory::MemoryServer, poller::Poller};
use tokio::time::Instant;

const T: &str = "room:lobby";

fn server() -> MemoryServer {
    let longpoll = LongPoll::new().window(Duration::from_secs(1));
    MemoryServer::start(endpoint_with(|mount| mount.longpoll(longpoll)).0)
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_always_panics_costs_clients_nothing() {
    let server = server();
    server.recorded.panic_at("");
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let poller = Poller::connect(&server, "vsn=2.0.0&name=eve").await;
    poller.join(T).await;
    server.endpoint.broadcast_timed(Instant::now(), T, "news", json!({})).unwrap();
    let news = json!([null, null, T, "news", {}]);
    client.expect([news.clone()]).await;
    assert_eq!(poller.messages().await, [news]);
    for n in 0..20 {
        client.send(json!(["1", n, T, "ping", {}])).await;
        let answer = json!({"status": "ok", "response": {}});
        client.expect([json!(["1", n, T, "phx_reply", answer])]).await;
    }
    client.expect_nothing_else().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([reply("1", "2", T, "ok", json!({}))]).await;
    client.expect([json!(["1", "1", T, "phx_close", {}])]).await;
    assert_eq!(client.receive().await[3], "farewell");
    client.join("3", T).await;
    drop(client);
    eventually(|| server.endpoint.open_sockets() == 1).await;
    poller.messages().await;
    let report = server.endpoint.drain(Duration::from_secs(60)).await;
    assert_eq!((report.closed, report.aborted), (1, 0));
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.topics, seen.channels[0].open), (0, 0));
    assert!(server.recorded.panics() > 50, "{}", server.recorded.panics());
}
