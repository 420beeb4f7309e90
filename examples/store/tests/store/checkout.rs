//! The checkout.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::StatusCode;
use pipeline::ws::{Payload, channel_test::assert_push};
use serde_json::{Value, json};
use store::{
    database::{CheckOut, Order},
    domain::cart::Cart,
};

use crate::support::{Answered, End, LONG, Node, ids_of};

/// A shopper with a session.
struct Shopper {
    cookies: String,
    cart_id: String,
    csrf: String,
}

impl Shopper {
    async fn come(node: &Node) -> Self {
        let page = node.get("/", "").await;
        Self {
            cookies: page.cookies(),
            cart_id: page.after("name=\"cart-id\" content=\""),
            csrf: page.after("name=\"csrf-token\" content=\""),
        }
    }

    async fn show(&self, node: &Node, items: &[i64]) -> Answered {
        let path = format!("/checkout?serialized_cart={}", signed(node, items));
        node.get(&path, &self.cookies).await
    }

    async fn buy(&self, node: &Node, items: &[i64], key: &str) -> Answered {
        let cart = signed(node, items);
        let form = [("serialized_cart", &*cart), ("csrf_token", &self.csrf), ("key", key)];
        node.post("/checkout", &[("cookie", &self.cookies)], &form).await
    }
}

fn signed(node: &Node, items: &[i64]) -> String {
    let cart: Cart = items.iter().copied().collect();
    cart.serialize(&node.store.shop.rules, node.store.shop.clock.now()).unwrap()
}

fn worked(answer: &Answered) -> bool {
    answer.status == StatusCode::SEE_OTHER && answer.header("location") == "/checkout/complete"
}

#[tokio::test(start_paused = true)]
async fn a_089_without_a_cart_the_checkout_leads_to_the_shop() {
    let node = Node::selling().await;
    let answer = node.get("/checkout", "").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/"));
}

#[tokio::test(start_paused = true)]
async fn a_090_an_empty_cart_is_not_bought() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let empty = shopper.show(&node, &[]).await;
    assert_eq!(empty.status, StatusCode::OK);
    assert!(empty.body.to_lowercase().contains("empty"));
    assert!(
        node.get("/checkout?serialized_cart=forged", "")
            .await
            .body
            .to_lowercase()
            .contains("empty")
    );
    let bought = shopper.buy(&node, &[], "k").await;
    assert_eq!(bought.status, StatusCode::BAD_REQUEST);
    assert!(bought.body.to_lowercase().contains("empty"));
    assert!(node.store.shop.database.orders().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_091_a_cart_with_an_item_that_is_gone_is_shown_and_not_offered() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let page = shopper.show(&node, &[1, 2, 7]).await;
    // 101 + 101 + 102.
    assert!(page.body.contains("304") && page.body.contains("name=\"csrf_token\""));
    node.stock(2, 0).await;
    let page = shopper.show(&node, &[1, 2, 7]).await;
    assert!(page.body.contains("304"));
    // That line alone is marked.
    assert_eq!(page.body.matches("checkout-line--out").count(), 1);
    assert!(page.body.contains("checkout-line--out\" data-item-id=\"2\""));
    assert!(!page.body.contains("name=\"csrf_token\""));
}

#[tokio::test(start_paused = true)]
async fn a_092_a_cart_is_bought_and_levels_go_out() {
    let node = Node::selling().await;
    node.stock(7, 1).await;
    let shopper = Shopper::come(&node).await;
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    let other = node.tab(&crate::support::cart_id(), &[7]).await;
    assert!(worked(&shopper.buy(&node, &[1, 2, 7], "k").await));
    assert_eq!([1, 2, 7].map(|item| node.database.count(item)), [9, 9, 0]);
    assert_push!(product, "stock_change", { "item_id": 7, "level": "out" }, within: LONG);
    assert_eq!(other.cart().await["items"][0]["out_of_stock"], true);
}

#[tokio::test(start_paused = true)]
async fn a_093_if_one_item_is_gone_nothing_is_bought() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let tab = node.tab(&shopper.cart_id, &[1, 2, 7]).await;
    node.stock(2, 0).await;
    tab.cart().await;
    let answer = shopper.buy(&node, &[1, 2, 7], "k").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.body.contains("Model 1 in size 7"), "{}", answer.body);
    assert_eq!([1, 2, 7].map(|item| node.database.count(item)), [10, 0, 10]);
    assert!(node.store.shop.database.orders().await.unwrap().is_empty());
    assert!(tab.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_094_what_is_not_released_is_not_bought() {
    let node = Node::open().await;
    node.release(1).await;
    let shopper = Shopper::come(&node).await;
    assert_eq!(shopper.buy(&node, &[1, 4], "k").await.status, StatusCode::CONFLICT);
    assert_eq!([1, 4].map(|item| node.database.count(item)), [10, 10]);
}

/// The form is sent twice, one after the other and at once.
#[tokio::test(start_paused = true)]
async fn a_096_a_form_that_is_sent_twice_buys_once_and_says_twice_that_it_worked() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    assert!(worked(&shopper.buy(&node, &[1], "k").await));
    assert!(worked(&shopper.buy(&node, &[1], "k").await));
    let (one, other) = tokio::join!(shopper.buy(&node, &[2], "l"), shopper.buy(&node, &[2], "l"));
    assert!(worked(&one) && worked(&other));
    let orders = node.store.shop.database.orders().await.unwrap();
    assert_eq!(orders.len(), 2);
    let now = node.store.shop.clock.now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    assert_eq!(u128::try_from(orders[0].placed_at).unwrap() / 60_000, now / 60_000);
    assert_eq!(orders[0].items, [(1, 101)]);
}

/// A checkout that is loaded again after the purchase, or is open in two tabs.
#[tokio::test(start_paused = true)]
async fn a_cart_that_was_bought_is_not_bought_again_by_a_checkout_that_is_shown_again() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let cart = signed(&node, &[1, 7]);
    let path = format!("/checkout?serialized_cart={cart}");
    for _ in 0..2 {
        let page = node.get(&path, &shopper.cookies).await;
        let field = |name: &str| page.after(&format!("name=\"{name}\" value=\""));
        let [cart, csrf, key] = ["serialized_cart", "csrf_token", "key"].map(field);
        let form = [("serialized_cart", &*cart), ("csrf_token", &*csrf), ("key", &*key)];
        assert!(worked(&node.post("/checkout", &[("cookie", &shopper.cookies)], &form).await));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(node.store.shop.database.orders().await.unwrap().len(), 1);
    assert_eq!([1, 7].map(|item| node.database.count(item)), [9, 9]);
    // The same items in a cart of a later moment are another purchase.
    let key = async || shopper.show(&node, &[1, 7]).await.after("name=\"key\" value=\"");
    let first = key().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(first, key().await);
}

/// Two tabs have drawn the same cart, each on its own, and both buy it, one after the other or at once.
#[tokio::test(start_paused = true)]
async fn a_142_a_cart_that_two_tabs_have_drawn_is_bought_once() {
    for is_at_once in [false, true] {
        let node = Node::selling().await;
        let shopper = Shopper::come(&node).await;
        let mut forms = Vec::new();
        for _ in 0..2 {
            let page = shopper.show(&node, &[1, 7]).await;
            let field = |name: &str| page.after(&format!("name=\"{name}\" value=\""));
            forms.push(["serialized_cart", "csrf_token", "key"].map(field));
            // Carts are dated to the millisecond.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_ne!(forms[0][2], forms[1][2], "the forms have keys of their own");
        let send = async |[cart, csrf, key]: &[String; 3]| {
            let form = [("serialized_cart", &**cart), ("csrf_token", csrf), ("key", key)];
            node.post("/checkout", &[("cookie", &shopper.cookies)], &form).await
        };
        let tab = node.tab(&shopper.cart_id, &[1, 7]).await;
        let (first, second) = if is_at_once {
            tokio::join!(send(&forms[0]), send(&forms[1]))
        } else {
            (send(&forms[0]).await, send(&forms[1]).await)
        };
        let (bought, refused) = if worked(&first) { (first, second) } else { (second, first) };
        assert!(worked(&bought));
        assert_eq!(refused.status, StatusCode::CONFLICT);
        assert!(refused.body.contains("Model 1 in size 6, Model 2 in size 12: bought already"));
        let orders = async || node.store.shop.database.orders().await.unwrap().len();
        assert_eq!(orders().await, 1);
        assert_eq!([1, 7].map(|item| node.database.count(item)), [9, 9]);
        while !ids_of(&tab.cart().await).is_empty() {}
        // The page that says so has a form of its own. A shopper who sends it wants the pairs again.
        let field = |name: &str| refused.after(&format!("name=\"{name}\" value=\""));
        let again = ["serialized_cart", "csrf_token", "key"].map(field);
        assert!(worked(&send(&again).await) && worked(&send(&again).await));
        assert_eq!(orders().await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_of_an_order_is_no_success_for_another_cart() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    assert!(worked(&shopper.buy(&node, &[1], "k").await));
    let tab = node.tab(&shopper.cart_id, &[2, 7]).await;
    let answer = shopper.buy(&node, &[2, 7], "k").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.body.contains("Nothing more was bought"), "{}", answer.body);
    assert!(tab.has_no_cart().await);
    assert_eq!([1, 2, 7].map(|item| node.database.count(item)), [9, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_who_has_gone_has_bought_reaches_all_others() {
    let node = Node::selling().await;
    node.stock(7, 1).await;
    node.settle().await;
    let shopper = Shopper::come(&node).await;
    let tab = node.tab(&shopper.cart_id, &[7]).await;
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    let held = node.database.hold();
    let buying = shopper.buy(&node, &[7], "k");
    // The client goes away between the last write and the commit.
    assert!(tokio::time::timeout(Duration::from_millis(100), buying).await.is_err());
    held.send(Some(End::Commit)).unwrap();
    assert_push!(product, "stock_change", { "item_id": 7, "level": "out" }, within: LONG);
    assert_eq!(node.store.shop.inventory.snapshot().unwrap().item(7).unwrap().available_count, 0);
    while !ids_of(&tab.cart().await).is_empty() {}
    node.store.shop.settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_confirmation_removes_nothing_that_was_put_back() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let tab = node.tab(&shopper.cart_id, &[1, 7]).await;
    assert!(worked(&shopper.buy(&node, &[1, 7], "k").await));
    assert_eq!(ids_of(&tab.cart().await), [0; 0]);
    let stored = tab.add(7).await.unwrap()["serialized"].clone();
    let topic = format!("cart:{}", shopper.cart_id);
    let confirm = |order: &str| {
        let confirmed = json!({ "added": [], "removed": [1, 7], "order": order });
        node.store.endpoint.pubsub().broadcast(&topic, "cart_updated", confirmed).unwrap();
    };
    confirm("k");
    assert!(tab.has_no_cart().await);
    tab.cut().await;
    // A tab that comes back knows the order by its cart.
    let mut params = node.cart_params(&shopper.cart_id, &[]);
    params["serialized"] = stored;
    let socket = node.socket().await;
    let back = socket.join(&topic, params).await.unwrap();
    let carts = back.pushes("cart").within(LONG);
    let ids = |payload: &Payload| payload.parse::<Value>().ok().map(|cart| ids_of(&cart));
    assert_eq!(carts.find("cart", ids).await.unwrap(), [7]);
    confirm("k");
    confirm("another");
    assert_eq!(back.pushes("cart").within(LONG).find("cart", ids).await.unwrap(), [0; 0]);
}

/// Back, after other pairs were put into the cart, loads the page that says what was bought again.
#[tokio::test(start_paused = true)]
async fn the_page_of_an_order_takes_what_was_bought_out_of_the_cart_once() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let bought = shopper.buy(&node, &[1, 7], "k").await;
    let cookies = format!("{}; {}", shopper.cookies, bought.cookies());
    let page = node.get("/checkout/complete", &cookies).await;
    let bought = page.after("name=\"cart-bought\" content=\"");
    let join = async |id: &str, serialized: Value, bought: &str| {
        let mut params = node.cart_params(id, &[]);
        params["serialized"] = serialized;
        params["bought"] = bought.into();
        let socket = node.socket().await;
        let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
        let cart = channel.pushes("cart").within(LONG);
        cart.find("cart", |payload| payload.parse::<Value>().ok()).await.unwrap()
    };
    let id = &shopper.cart_id;
    let cart = join(id, signed(&node, &[1, 2, 7]).into(), &bought).await;
    assert_eq!(ids_of(&cart), [2]);
    let tab = {
        let mut params = node.cart_params(id, &[]);
        params["serialized"] = cart["serialized"].clone();
        node.tab_with(id, params).await
    };
    let cart = tab.add(7).await.unwrap();
    let again = join(id, cart["serialized"].clone(), &bought).await;
    assert_eq!(ids_of(&again), [2, 7]);
    // It is for this cart alone.
    let other = join(&crate::support::cart_id(), signed(&node, &[1]).into(), &bought).await;
    assert_eq!(ids_of(&other), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_097_a_form_of_another_session_and_a_price_of_its_own_do_nothing() {
    let node = Node::selling().await;
    let (shopper, other) = (Shopper::come(&node).await, Shopper::come(&node).await);
    let cart = signed(&node, &[1]);
    for csrf in ["", "forged", &other.csrf] {
        let form = [("serialized_cart", &*cart), ("csrf_token", csrf), ("key", "k")];
        let answer = node.post("/checkout", &[("cookie", &shopper.cookies)], &form).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    let form = [("serialized_cart", &*cart), ("csrf_token", &shopper.csrf), ("key", "k")];
    assert_eq!(
        node.post("/checkout", &[], &form).await.status,
        StatusCode::FORBIDDEN,
        "no session"
    );
    assert_eq!(node.database.count(1), 10);
    let form = [&form[..], &[("price_usd", "1"), ("price", "1")]].concat();
    assert!(worked(&node.post("/checkout", &[("cookie", &shopper.cookies)], &form).await));
    assert_eq!(node.store.shop.database.orders().await.unwrap()[0].items, [(1, 101)]);
}

#[tokio::test(start_paused = true)]
async fn a_bought_cart_is_emptied_in_all_its_tabs() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let mut tabs = Vec::new();
    for _ in 0..3 {
        tabs.push(node.tab(&shopper.cart_id, &[1, 7]).await);
    }
    assert!(worked(&shopper.buy(&node, &[1, 7], "k").await));
    for tab in &tabs {
        let cart = tab.cart().await;
        assert_eq!(ids_of(&cart), [0; 0]);
        let stored = cart["serialized"].as_str().unwrap();
        let now = node.store.shop.clock.now();
        assert!(Cart::restore(Some(stored), &node.store.shop.rules, now, |_| true).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_101_without_the_database_nothing_is_bought_and_the_page_says_so() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    node.database.take_away(true);
    let answer = shopper.buy(&node, &[1], "k").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        answer.body.contains("Nothing was bought") && answer.headers.contains_key("retry-after")
    );
    node.database.take_away(false);
    assert_eq!(node.database.count(1), 10);
    assert!(worked(&shopper.buy(&node, &[1], "k").await));
    assert_eq!(node.database.count(1), 9);
}

#[tokio::test(start_paused = true)]
async fn a_102_that_it_worked_is_said_only_where_it_did() {
    let node = Node::selling().await;
    let shopper = Shopper::come(&node).await;
    let answer = node.get("/checkout/complete", &shopper.cookies).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/"));
    let bought = shopper.buy(&node, &[1], "k").await;
    let ordered = format!("{}; {}", shopper.cookies, bought.cookies());
    assert_eq!(node.get("/checkout/complete", &ordered).await.status, StatusCode::OK);
    let other = Shopper::come(&node).await;
    let foreign = format!("{}; {}", other.cookies, bought.cookies());
    assert_eq!(node.get("/checkout/complete", &foreign).await.status, StatusCode::SEE_OTHER);
}

/// Also shows A-022.
#[tokio::test(start_paused = true)]
async fn what_is_written_is_heard_of_when_it_is_committed_and_not_before() {
    let node = Node::selling().await;
    node.stock(7, 1).await;
    node.settle().await;
    let shopper = Shopper::come(&node).await;
    let tab = node.tab(&shopper.cart_id, &[1, 7]).await;
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    let sees_nothing = async || {
        node.settle().await;
        let told = product.pushes("stock_change").within(LONG);
        assert!(told.refute("stock_change", |_| Some(())).await.is_ok());
        assert!(tab.has_no_cart().await);
        let copy = node.store.shop.inventory.snapshot().unwrap();
        assert_eq!(copy.item(7).unwrap().available_count, 1);
        assert_eq!(node.database.count(7), 1);
    };
    for end in [End::RollBack, End::Commit] {
        let held = node.database.hold();
        let order = Order {
            key: "k".to_owned(),
            cart: shopper.cart_id.clone(),
            items: vec![1, 7],
            placed_at: 1,
            knows: Vec::new(),
        };
        let shop = node.store.shop.clone();
        let buying = tokio::spawn(async move { shop.check_out(order).await });
        sees_nothing().await;
        assert!(!buying.is_finished());
        held.send(Some(end)).unwrap();
        let bought = buying.await.unwrap();
        if end == End::RollBack {
            assert!(bought.is_err());
            sees_nothing().await;
        } else {
            assert!(matches!(bought, Ok(CheckOut::Placed(_))), "{bought:?}");
        }
    }
    assert_push!(product, "stock_change", { "item_id": 7, "level": "out" }, within: LONG);
    // It hears that 7 is gone, or that it is empty, in any order, and ends empty.
    while !ids_of(&tab.cart().await).is_empty() {}
    assert_eq!(node.database.count(7), 0);
}
