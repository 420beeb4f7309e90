//! Sockets that are closed so that their pages connect to other nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt;
use pipeline::ws::channel_test::TestSocket;
use serde_json::{Value, json};
use store::{
    balance::{self, Alarm, Limits, Load},
    channels::{DRAIN_BATCH, DRAIN_INTERVAL},
};
use tokio::time::sleep;
use tower_service::Service;

use crate::support::Node;

async fn sockets(node: &Node, count: usize) -> Vec<TestSocket> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(node.socket().await);
    }
    sockets
}

/// Posts to the operator's pages.
async fn post(node: &Node, path: &str, origin: Option<&str>) -> (StatusCode, Value) {
    let mut request = Request::post(path);
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    let mut router = balance::router(node.store.endpoint.clone());
    let answer = router.call(request.body(Body::empty()).unwrap()).await.unwrap();
    let (status, body) = (answer.status(), answer.into_body().collect().await.unwrap().to_bytes());
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn p_006_a_node_gives_sockets_away_only_while_its_load_is_high() {
    let node = Node::open().await;
    let sockets = sockets(&node, 200).await;
    let endpoint = node.store.endpoint.clone();
    let open = || endpoint.open_sockets();
    let memory = Arc::new(AtomicU64::new(500));
    let seen = memory.clone();
    let limits =
        Limits { cpu_percent: None, memory_mib: Some(500), patience: Duration::from_secs(10) };
    let load = move || Some(Load { cpu_percent: 100.0, memory_mib: seen.load(Relaxed) });
    let relieving = tokio::spawn(balance::relieve(endpoint.clone(), Alarm::new(limits), load));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(open(), 200);
    memory.store(501, Relaxed);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(open(), 200, "it may be for a moment");
    sleep(Duration::from_secs(5)).await;
    assert!((150..200).contains(&open()), "{}", open());
    // It stops in time.
    memory.store(500, Relaxed);
    sleep(Duration::from_secs(2)).await;
    let left = open();
    assert!(left > 100, "{left}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(open(), left);
    // It does not help, and half of them stay.
    memory.store(501, Relaxed);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(open(), left.div_ceil(2));
    let gone = sockets.first().unwrap().closed().await;
    assert_eq!(gone, Some(1012), "a page comes back");
    relieving.abort();
}

#[tokio::test(start_paused = true)]
async fn p_007_sockets_of_one_moment_do_not_reach_their_age_at_one_moment() {
    let node = Node::open().await;
    let _sockets = sockets(&node, 200).await;
    let endpoint = node.store.endpoint.clone();
    let open = || endpoint.open_sockets();
    let retiring = tokio::spawn(balance::retire(endpoint.clone(), Duration::from_secs(100)));
    sleep(Duration::from_secs(89)).await;
    assert_eq!(open(), 200);
    // Those that come now stay.
    let _young = sockets(&node, 10).await;
    sleep(Duration::from_secs(6)).await;
    assert!((60..=160).contains(&open()), "half of them are gone: {} stay", open());
    sleep(Duration::from_secs(6)).await;
    assert_eq!(open(), 10, "none is older");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(open(), 0);
    retiring.abort();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_closes_its_pages_in_batches() {
    let node = Node::selling().await;
    let pages = sockets(&node, 1200).await;
    for page in &pages {
        for topic in ["product:1", "product:2", "page:drops"] {
            page.join(topic, json!({})).await.unwrap();
        }
    }
    let endpoint = node.store.endpoint.clone();
    let draining = tokio::spawn(async move { endpoint.drain(Duration::from_secs(60)).await });
    let batch = DRAIN_BATCH / 3;
    for left in [1200 - batch, 1200 - 2 * batch, 0] {
        sleep(DRAIN_INTERVAL / 2).await;
        assert_eq!(node.store.endpoint.open_sockets(), left);
        sleep(DRAIN_INTERVAL / 2).await;
    }
    assert_eq!(draining.await.unwrap().closed, 1200);
}

#[tokio::test(start_paused = true)]
async fn an_operator_closes_what_was_asked_for_and_pages_of_sites_close_nothing() {
    let node = Node::open().await;
    let sockets = sockets(&node, 300).await;
    let open = || node.store.endpoint.open_sockets();
    for refused in
        ["/shed", "/shed?share=2", "/shed?share=0.1&down_to=1", "/shards?first=95&count=6"]
    {
        assert_eq!(post(&node, refused, None).await.0, StatusCode::BAD_REQUEST, "{refused}");
    }
    for path in ["/shed?down_to=0", "/shards?count=100"] {
        for origin in ["https://shop.example", "null", "http://127.0.0.1:4001"] {
            assert_eq!(post(&node, path, Some(origin)).await.0, StatusCode::BAD_REQUEST);
        }
    }
    assert_eq!(open(), 300);
    let is_of = |socket: &&TestSocket| {
        let shard = socket.id().unwrap().strip_prefix("shoppers:").unwrap();
        shard.parse::<u32>().unwrap() < 10
    };
    let of_them = sockets.iter().filter(is_of).count();
    assert!((5..=75).contains(&of_them), "a tenth, more or less: {of_them}");
    assert_eq!(post(&node, "/shards?first=0&count=10", None).await.0, StatusCode::NO_CONTENT);
    node.settle().await;
    assert_eq!(open(), 300 - of_them);
    let closed = post(&node, "/shed?down_to=100&per_second=1000", None).await.1;
    assert_eq!(closed, json!({ "closed": 200 - of_them }));
    node.settle().await;
    assert_eq!(open(), 100);
}
