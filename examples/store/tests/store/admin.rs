//! The dashboard: who may see it, and what it shows.

use std::time::Duration;

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use pipeline::ws::channel_test::{TestChannel, TestSocket, assert_push, refute_push};
use pipeline_test_support::Log;
use serde_json::{Value, json};

use crate::support::{LONG, Node, PROXY, cart_id, refused};

/// `ann:one`, as a header.
const ANN: &str = "Basic YW5uOm9uZQ==";

/// A dashboard that has joined the presences.
async fn dashboard(node: &Node) -> (TestSocket, TestChannel, Value) {
    let socket = node.admin("ann").await;
    let channel = socket.join("admin:cart_tracker", json!({})).await.unwrap();
    let state =
        assert_push!(channel, "presence_state", |state| state.json().is_some(), within: LONG);
    (socket, channel, state.parse().unwrap())
}

async fn page(node: &Node, id: &str, page: Value, items: &[i64]) -> (TestSocket, TestChannel) {
    let socket = node.socket().await;
    let mut params = node.cart_params(id, items);
    params["page"] = page;
    let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
    node.settle().await;
    (socket, channel)
}

async fn present(node: &Node) -> Value {
    serde_json::to_value(node.store.shop.presence.list("admin:cart_tracker").await).unwrap()
}

async fn totals(node: &Node) -> Value {
    let socket = node.admin("ann").await;
    let channel = socket.join("admin:totals", json!({})).await.unwrap();
    channel.joined().parse().unwrap()
}

fn only(present: &Value) -> (String, Vec<Value>) {
    let keys = present.as_object().unwrap();
    assert_eq!(keys.len(), 1, "{present}");
    let (key, entry) = keys.iter().next().unwrap();
    (key.clone(), entry["metas"].as_array().unwrap().clone())
}

#[tokio::test(start_paused = true)]
async fn a_103_the_dashboard_asks_for_a_name_and_a_password() {
    let node = Node::open().await;
    let plain = node.get("/admin", "").await;
    assert_eq!(plain.status, StatusCode::UNAUTHORIZED);
    assert!(plain.header("www-authenticate").starts_with("Basic"));
    let with = async |header: &str| {
        let request = axum::http::Request::get("/admin").header("authorization", header);
        node.request(request.body(axum::body::Body::empty()).unwrap()).await
    };
    for wrong in ["Basic", "Basic !", "Basic YW5uOnR3bw==", "Bearer YW5uOm9uZQ==", "Basic YW5u"] {
        assert_eq!(with(wrong).await.status, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    let right = with(ANN).await;
    assert_eq!(right.status, StatusCode::OK);
    for item in 1..=8 {
        assert_eq!(right.after(&format!("data-item-count=\"{item}")), "", "{item}");
        assert!(right.body.contains(&format!("data-item-count=\"{item}\">0<")));
    }
    assert!(!right.after("name=\"admin-token\" content=\"").is_empty());
    for _ in 0..10 {
        with("Basic YW5uOnR3bw==").await;
    }
    let limited = with(ANN).await;
    assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(limited.headers.contains_key("retry-after"));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(with(ANN).await.status, StatusCode::OK);
}

/// The answer to a dashboard's request with these credentials, from an address, with what proxies have noted.
async fn signs_in(node: &Node, from: [u8; 4], forwarded: &str, header: &str) -> StatusCode {
    let mut request = axum::http::Request::get("/admin").header("authorization", header);
    if !forwarded.is_empty() {
        request = request.header("x-forwarded-for", forwarded);
    }
    let mut request = request.body(axum::body::Body::empty()).unwrap();
    let peer = std::net::SocketAddr::from((from, 4711));
    request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
    node.request(request).await.status
}

/// `ann:two` and `bob:two`.
const WRONG_ANN: &str = "Basic YW5uOnR3bw==";
const BOB: &str = "Basic Ym9iOnR3bw==";

/// Behind a proxy that the node does not trust, all have its address.
#[tokio::test(start_paused = true)]
async fn wrong_passwords_lock_a_name_out_and_no_other_one_of_that_address() {
    let node = Node::open().await;
    let (proxy, elsewhere) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    for n in 0..20 {
        // Nothing in the header is believed.
        let forwarded = format!("203.0.113.{n}");
        let expected =
            if n < 10 { StatusCode::UNAUTHORIZED } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(signs_in(&node, proxy, &forwarded, WRONG_ANN).await, expected, "{n}");
    }
    assert_eq!(signs_in(&node, proxy, "203.0.113.9", ANN).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(signs_in(&node, proxy, "203.0.113.9", BOB).await, StatusCode::OK);
    assert_eq!(signs_in(&node, elsewhere, "", ANN).await, StatusCode::OK);
    // Unknown names lock out no known one.
    for n in 0..20 {
        let other = STANDARD.encode(format!("name {n}:x"));
        signs_in(&node, elsewhere, "", &format!("Basic {other}")).await;
    }
    assert_eq!(signs_in(&node, elsewhere, "", ANN).await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn wrong_passwords_that_come_through_a_trusted_proxy_lock_out_their_own_address() {
    let node = Node::open().await;
    for n in 0..20 {
        // What the client itself has put into the header is before what the proxy has noted.
        let forwarded = format!("198.51.100.{n}, 203.0.113.5");
        let expected =
            if n < 10 { StatusCode::UNAUTHORIZED } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(signs_in(&node, PROXY, &forwarded, WRONG_ANN).await, expected, "{n}");
    }
    assert_eq!(signs_in(&node, PROXY, "203.0.113.5", ANN).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(signs_in(&node, PROXY, "203.0.113.6", ANN).await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_105_an_admin_joins_and_gets_all_carts() {
    let node = Node::selling().await;
    let _tab = page(&node, &cart_id(), json!("/"), &[7]).await;
    let (_socket, _channel, state) = dashboard(&node).await;
    let (_, metas) = only(&state);
    assert_eq!(metas[0]["items"], json!([7]));
}

#[tokio::test(start_paused = true)]
async fn a_106_a_token_that_is_no_admins_is_refused_and_not_logged() {
    let (log, _guard) = Log::keep();
    let node = Node::open().await;
    let shop = &node.store.shop;
    let now = shop.clock.now();
    let shopper = shop.signers.page.sign("ann", now).unwrap();
    let stranger = shop.signers.admin.sign("eve", now).unwrap();
    let token = shop.signers.admin.sign("ann", now).unwrap();
    let altered = format!("x{token}");
    for wrong in [None, Some(shopper), Some(stranger), Some(altered)] {
        let _ = log.take();
        assert!(node.admin_with(wrong.clone()).await.is_err());
        let lines: Vec<String> =
            log.take().into_iter().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(wrong.is_none_or(|wrong| !lines[0].contains(&wrong)));
    }
    assert!(node.admin_with(Some(token.clone())).await.is_ok());
    tokio::time::advance(Duration::from_secs(86_402)).await;
    assert!(node.admin_with(Some(token)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_107_shoppers_cannot_join_what_is_not_theirs() {
    let node = Node::open().await;
    let socket = node.socket().await;
    for topic in
        ["admin:cart_tracker", "admin:totals", "item_out:1", "inventory_replication", "page:other"]
    {
        let reason = refused(&socket, topic, json!({})).await;
        assert_eq!(reason["reason"], "unmatched topic", "{topic}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_admin_whose_access_is_withdrawn_is_out_and_stays_out() {
    let node = Node::open().await;
    let (one, other, bob) =
        (node.admin("ann").await, node.admin("ann").await, node.admin("bob").await);
    assert_eq!(node.store.withdraw("ann").unwrap(), Some(2));
    one.closed().await;
    other.closed().await;
    let token = node.store.shop.signers.admin.sign("ann", node.store.shop.clock.now()).unwrap();
    assert!(node.admin_with(Some(token)).await.is_err());
    bob.join("admin:totals", json!({})).await.unwrap();
}

/// A dashboard on one node, and a shopper on another.
#[tokio::test(start_paused = true)]
async fn a_119_a_shopper_of_another_node_is_seen_in_two_seconds_and_gone_in_thirty() {
    let [a, b] = Node::two_selling().await;
    let (_socket, channel, state) = dashboard(&a).await;
    assert_eq!(state, json!({}));
    let diff = async |seconds: u64, is_it: &dyn Fn(&Value) -> bool| {
        let diffs = channel.pushes("presence_diff").within(Duration::from_secs(seconds));
        let parsed = |payload: &pipeline::ws::Payload| payload.parse::<Value>().ok();
        diffs.find("presence_diff", |payload| parsed(payload).filter(|it| is_it(it))).await.unwrap()
    };
    let items = |diff: &Value, kind: &str| {
        let keys = diff[kind].as_object().unwrap().clone();
        keys.values().next().map(|entry| entry["metas"][0]["items"].clone())
    };
    let tab = b.tab(&cart_id(), &[]).await;
    diff(2, &|it| items(it, "joins") == Some(json!([]))).await;
    tab.add(7).await.unwrap();
    diff(2, &|it| items(it, "joins") == Some(json!([7]))).await;
    tab.cut().await;
    diff(2, &|it| items(it, "joins").is_none() && items(it, "leaves").is_some()).await;
    // The other node dies without a word.
    let _tab = b.tab(&cart_id(), &[7]).await;
    diff(2, &|it| items(it, "joins") == Some(json!([7]))).await;
    a.unplug();
    diff(30, &|it| items(it, "leaves") == Some(json!([7]))).await;
    assert_eq!(present(&a).await, json!({}));
    assert_eq!(present(&b).await.as_object().unwrap().len(), 1, "it lives, and is not heard");
}

/// Also shows.
#[tokio::test(start_paused = true)]
async fn a_109_each_tab_of_a_shopper_is_a_meta_with_its_page() {
    let node = Node::selling().await;
    let (_socket, channel, _) = dashboard(&node).await;
    let id = cart_id();
    let (one, a) = page(&node, &id, json!("/"), &[]).await;
    assert_push!(channel, "presence_diff", { "joins": _ }, within: LONG);
    let (key, metas) = only(&present(&node).await);
    assert_eq!((metas[0]["page"].clone(), metas[0]["items"].clone()), (json!("/"), json!([])));
    assert!(metas[0]["page_loaded_at"].as_i64().unwrap() > 1_600_000_000_000);
    let (two, _b) = page(&node, &id, json!("/checkout"), &[]).await;
    let (same, both) = only(&present(&node).await);
    assert_eq!((&same, both.len()), (&key, 2));

    let asked = a.push("add_item", json!({ "item_id": 7 }));
    pipeline::ws::channel_test::assert_reply!(a, asked, "ok");
    node.settle().await;
    let (_, after) = only(&present(&node).await);
    for page in ["/", "/checkout"] {
        let of = |metas: &[Value]| metas.iter().find(|meta| meta["page"] == page).unwrap().clone();
        let (before, after) = (of(&both), of(&after));
        assert_eq!(after["items"], json!([7]));
        assert_eq!(after["phx_ref_prev"], before["phx_ref"]);
        assert_eq!(after["page_loaded_at"], before["page_loaded_at"]);
    }

    two.close().await;
    node.settle().await;
    assert_eq!(only(&present(&node).await).1.len(), 1);
    one.close().await;
    node.settle().await;
    assert_eq!(present(&node).await, json!({}));
}

#[tokio::test(start_paused = true)]
async fn a_cart_that_crashes_leaves_the_dashboard() {
    let node = Node::selling().await;
    let (_socket, tab) = page(&node, &cart_id(), json!("/"), &[]).await;
    tab.unlink();
    tab.push("buy", json!({}));
    tab.exit_reason().await;
    node.settle().await;
    assert_eq!(present(&node).await, json!({}));
}

#[tokio::test(start_paused = true)]
async fn a_112_shoppers_get_no_presences() {
    let node = Node::selling().await;
    let (_one, a) = page(&node, &cart_id(), json!("/"), &[]).await;
    let (_two, _b) = page(&node, &cart_id(), json!("/"), &[7]).await;
    refute_push!(a, "presence_diff");
    refute_push!(a, "presence_state");
}

/// Also shows A-114.
#[tokio::test(start_paused = true)]
async fn a_113_shoppers_are_counted_once_and_pages_by_tab() {
    let node = Node::selling().await;
    let id = cart_id();
    let _tabs = (
        page(&node, &id, json!("/"), &[7]).await,
        page(&node, &id, json!("/checkout"), &[7]).await,
        page(&node, &cart_id(), json!("/"), &[7, 8]).await,
    );
    let (gone, _tab) = page(&node, &cart_id(), json!("/drops"), &[1]).await;
    let numbers = totals(&node).await;
    assert_eq!((numbers["shoppers"].clone(), numbers["tabs"].clone()), (json!(3), json!(4)));
    assert_eq!(numbers["pages"], json!({ "/": 2, "/checkout": 1, "/drops": 1 }));
    let items = json!({ "1": 1, "2": 0, "3": 0, "4": 0, "5": 0, "6": 0, "7": 2, "8": 1 });
    assert_eq!(numbers["items"], items);
    gone.close().await;
    node.settle().await;
    assert_eq!(totals(&node).await["items"]["1"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_115_what_admins_see_opens_no_cart() {
    let node = Node::selling().await;
    let id = cart_id();
    let _tab = page(&node, &id, json!("/"), &[7]).await;
    let (key, _) = only(&present(&node).await);
    assert!(!id.contains(&key) && key != id);
    let socket = node.socket().await;
    let params = node.cart_params(&key, &[]);
    assert_eq!(refused(&socket, &format!("cart:{key}"), params).await["reason"], "unauthorized");
}

#[tokio::test(start_paused = true)]
async fn a_116_a_page_that_is_none_of_the_shops_is_other() {
    let node = Node::selling().await;
    let mut pages = Vec::new();
    for wrong in
        [json!("<img onerror=alert(1)>"), json!("x".repeat(10_000)), json!(7), json!("/admin")]
    {
        pages.push(page(&node, &cart_id(), wrong, &[]).await);
    }
    pages.push(page(&node, &cart_id(), Value::Null, &[]).await);
    // One that says nothing of its page.
    let (socket, id) = (node.socket().await, cart_id());
    let mut params = node.cart_params(&id, &[]);
    params.as_object_mut().unwrap().remove("page");
    let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
    pages.push((socket, channel));
    pages.push(page(&node, &cart_id(), json!("/bench/1"), &[]).await);
    let numbers = totals(&node).await;
    assert_eq!(numbers["pages"], json!({ "other": 6, "/bench/1": 1 }));
    assert_eq!(numbers["tabs"], 7);
    // Nothing of what they said is shown.
    let shown = present(&node).await.to_string();
    assert!(!shown.contains("onerror") && !shown.contains("xxx"), "{shown}");
}

/// Also shows A-117 and T-008.
#[tokio::test(start_paused = true)]
async fn a_118_a_dashboard_that_joins_again_has_all_numbers_right() {
    let node = Node::selling().await;
    let (socket, channel, _) = dashboard(&node).await;
    socket.close().await;
    drop(channel);
    let (_one, _a) = page(&node, &cart_id(), json!("/"), &[7]).await;
    let unknown = json!({ "page": "/", "page_loaded_at": 1, "items": [7, 999] });
    let _guard =
        node.store.shop.presence.track_detached("admin:cart_tracker", "other", &unknown).unwrap();
    let (_socket, _channel, state) = dashboard(&node).await;
    assert_eq!(state.as_object().unwrap().len(), 2);
    let numbers = totals(&node).await;
    assert_eq!((&numbers["shoppers"], &numbers["items"]["7"]), (&json!(2), &json!(2)));
    assert_eq!(numbers["items"].get("999"), None);
}

#[tokio::test(start_paused = true)]
async fn a_120_totals_come_four_times_a_second_at_most_and_end_right() {
    let node = Node::selling().await;
    let socket = node.admin("ann").await;
    let channel = socket.join("admin:totals", json!({})).await.unwrap();
    let mut tabs = Vec::new();
    for _ in 0..1000 {
        tabs.push(node.tab(&cart_id(), &[]).await);
    }
    let began = tokio::time::Instant::now();
    for round in 0..6 {
        for tab in &tabs {
            let done = if round % 2 == 0 { tab.add(7).await } else { tab.remove(7).await };
            done.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let most = began.elapsed().as_millis() / 250 + 8;
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut all = Vec::new();
    while let Ok(totals) = channel
        .pushes("totals")
        .within(Duration::from_millis(1))
        .find("", |payload| payload.parse::<Value>().ok())
        .await
    {
        all.push(totals);
    }
    assert!(!all.is_empty() && all.len() as u128 <= most, "{} of {most}", all.len());
    let last = all.last().unwrap();
    assert_eq!((&last["shoppers"], &last["items"]["7"]), (&json!(1000), &json!(0)));
}

/// Also shows.
#[tokio::test(start_paused = true)]
async fn a_121_an_admin_releases_by_a_form_of_the_dashboard() {
    let node = Node::open().await;
    let request = axum::http::Request::get("/admin").header("authorization", ANN);
    let page = node.request(request.body(axum::body::Body::empty()).unwrap()).await;
    let csrf = page.after("name=\"csrf_token\" value=\"");
    let release = async |product: i64, headers: &[(&str, &str)], csrf: &str| {
        let path = format!("/admin/products/{product}/release");
        node.post(&path, headers, &[("csrf_token", csrf)]).await
    };
    let shopper = node.get("/", "").await.after("name=\"csrf-token\" content=\"");
    let ann = [("authorization", ANN)];
    assert_eq!(release(1, &[], &csrf).await.status, StatusCode::UNAUTHORIZED);
    for wrong in ["", "x", &shopper] {
        assert_eq!(release(1, &ann, wrong).await.status, StatusCode::FORBIDDEN);
    }
    assert!(!node.database.catalogue().product(1).unwrap().released);
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    let done = release(1, &ann, &csrf).await;
    assert_eq!((done.status, done.header("location")), (StatusCode::SEE_OTHER, "/admin"));
    assert_push!(product, "released", { "rev": 2 }, within: LONG);
    let again = release(1, &ann, &csrf).await;
    assert_eq!((again.status, &*again.body), (StatusCode::CONFLICT, "already released"));
    assert_eq!(node.database.catalogue().product(1).unwrap().rev, 2);
    refute_push!(product, "released");
    let unknown = release(99, &ann, &csrf).await;
    assert_eq!((unknown.status, &*unknown.body), (StatusCode::NOT_FOUND, "unknown_product"));
}
