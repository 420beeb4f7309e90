//! Pages, cookies and headers.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::{task::JoinSet, time::Instant};

use crate::support::{Memory, Node, eventually, shoes};

const POLICY: &str = "content-security-policy";

/// Also shows A-077.
#[tokio::test(start_paused = true)]
async fn a_005_a_cookie_keeps_the_id_of_the_cart() {
    let node = Node::open().await;
    let first = node.get("/", "").await;
    let (id, cookies) = (first.after("name=\"cart-id\" content=\""), first.cookies());
    assert_eq!(id.len(), 64);
    for path in ["/", "/drops", "/app", "/app/cart", "/checkout?serialized_cart=x"] {
        let again = node.get(path, &cookies).await;
        assert_eq!(again.status, StatusCode::OK, "{path}");
        assert_eq!(again.after("name=\"cart-id\" content=\""), id, "{path}");
        assert_eq!(again.cookies(), "", "{path}");
    }
    assert_ne!(node.get("/", "").await.after("name=\"cart-id\" content=\""), id);
}

#[tokio::test(start_paused = true)]
async fn a_006_a_cookie_that_is_not_valid_is_replaced() {
    let node = Node::open().await;
    let first = node.get("/", "").await;
    let (id, cookies) = (first.after("name=\"cart-id\" content=\""), first.cookies());
    let altered = cookies.replacen('=', "=A", 1);
    let long = format!("{cookies}{}", "x".repeat(8000));
    for cookies in [&*altered, &long, "_store_session=", "_store_session", ";;=;", "other=1"] {
        let page = node.get("/", cookies).await;
        assert_eq!(page.status, StatusCode::OK);
        assert_ne!(page.after("name=\"cart-id\" content=\""), id);
        assert!(page.cookies().starts_with("_store_session="));
    }
    let mut request = axum::http::Request::get("/").body(axum::body::Body::empty()).unwrap();
    let no_text = axum::http::HeaderValue::from_bytes(b"_store_session=\xff\xfe").unwrap();
    request.headers_mut().insert("cookie", no_text);
    assert_eq!(node.request(request).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_007_a_cookie_is_for_this_site_and_not_for_scripts() {
    let node = Node::open().await;
    let plain = node.get("/", "").await;
    let cookie = plain.header("set-cookie");
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax"), "{cookie}");
    assert!(!cookie.contains("; Secure"));
    let request = axum::http::Request::get("/").header("x-forwarded-proto", "https");
    let behind = node.request(request.body(axum::body::Body::empty()).unwrap()).await;
    assert!(behind.header("set-cookie").contains("; Secure"));
}

#[tokio::test(start_paused = true)]
async fn a_008_pages_with_stock_are_not_stored() {
    let node = Node::open().await;
    for path in ["/", "/drops", "/app", "/checkout?serialized_cart=x", "/cart/token"] {
        let page = node.get(path, "").await;
        assert_eq!(page.header("cache-control"), "no-store, must-revalidate", "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_009_without_the_database_everything_is_answered_from_memory() {
    let node = Node::selling().await;
    node.database.take_away(true);
    let calls = node.database.calls();
    for _ in 0..20 {
        assert_eq!(node.get("/", "").await.status, StatusCode::OK);
    }
    let tab = node.tab(&crate::support::cart_id(), &[7]).await;
    assert!(tab.add(8).await.is_ok());
    let socket = node.socket().await;
    socket.join("product:1", serde_json::json!({})).await.unwrap();
    // Only the comparison asks, every five seconds.
    assert!(node.database.calls() - calls <= 3);
}

/// A thousand pages come back at once.
#[tokio::test(start_paused = true)]
async fn p_019_a_storm_of_joins_asks_the_database_nothing() {
    let node = Arc::new(Node::selling().await);
    let (calls, began) = (node.database.calls(), Instant::now());
    let mut storm = JoinSet::new();
    for _ in 0..1000 {
        let node = node.clone();
        storm.spawn(async move {
            let (socket, id) = (node.socket().await, crate::support::cart_id());
            for topic in ["product:1", "product:2", "page:drops"] {
                socket.join(topic, serde_json::json!({})).await.unwrap();
            }
            socket.join(&format!("cart:{id}"), node.cart_params(&id, &[7])).await.unwrap();
        });
    }
    while let Some(done) = storm.join_next().await {
        done.unwrap();
    }
    // Only the comparison asks, every five seconds.
    let comparisons = began.elapsed().as_secs() / 5 + 1;
    assert!(
        node.database.calls() - calls <= comparisons,
        "{} calls",
        node.database.calls() - calls
    );
}

/// Also shows T-023.
#[tokio::test(start_paused = true)]
async fn a_010_a_shop_that_is_not_loaded_says_so_until_it_is() {
    let database = Memory::of(shoes());
    database.take_away(true);
    let node = Node::over(database, pipeline::telemetry::Telemetry::global());
    node.settle().await;
    for path in ["/", "/drops", "/app"] {
        let page = node.get(path, "").await;
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(page.headers.contains_key("retry-after"));
        assert!(!page.body.contains("product-list"));
    }
    assert_eq!(node.get("/readyz", "").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(node.get("/livez", "").await.status, StatusCode::OK);
    node.database.take_away(false);
    eventually(|| node.store.shop.inventory.is_loaded()).await;
    assert_eq!(node.get("/", "").await.status, StatusCode::OK);
    assert_eq!(node.get("/readyz", "").await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_012_no_page_runs_what_is_not_the_shops_own() {
    let node = Node::open().await;
    for path in
        ["/", "/drops", "/app", "/checkout?serialized_cart=x", "/admin", "/photos/runner-ember.svg"]
    {
        let page = node.get(path, "").await;
        let policy = page.header(POLICY);
        assert!(
            policy.contains("script-src 'self'") && policy.contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(!policy.contains("unsafe-inline"));
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        assert_eq!(page.header("x-frame-options"), "DENY");
        assert!(!page.body.contains("<script>") && !page.body.contains(" style=\""), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn assets_and_photographs_are_kept_and_unknown_ones_are_not_there() {
    let node = Node::open().await;
    for asset in store::pages::assets() {
        let answer = node.get(&format!("/assets/{}", asset.name), "").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.header("cache-control").contains("immutable"));
    }
    assert_eq!(
        node.get("/photos/runner-ember.svg", "").await.header("content-type"),
        "image/svg+xml"
    );
    for path in ["/assets/none.js", "/photos/none.svg", "/photos/..%2fsecret", "/nothing"] {
        assert_eq!(node.get(path, "").await.status, StatusCode::NOT_FOUND, "{path}");
    }
}
