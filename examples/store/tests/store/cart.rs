//! Carts: tabs that are kept in step, and alerts.

use std::{collections::BTreeSet, time::Duration};

use pipeline::ws::channel_test::{assert_push, refute_push};
use serde_json::{Value, json};
use store::database::Sale;

use crate::support::{LONG, Node, Tab, cart_id, ids_of, refused};

#[tokio::test(start_paused = true)]
async fn a_060_a_cart_without_a_token_is_empty() {
    let node = Node::selling().await;
    let (socket, id) = (node.socket().await, cart_id());
    let mut params = node.cart_params(&id, &[]);
    params.as_object_mut().unwrap().remove("serialized");
    let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
    assert_eq!(channel.joined().parse::<Value>().unwrap(), json!({}));
    let cart = assert_push!(channel, "cart", { "items": [], "serialized": _ }, within: LONG);
    assert!(cart["serialized"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_061_a_cart_is_restored_with_its_items_ascending() {
    let node = Node::selling().await;
    node.tab(&cart_id(), &[2, 8]).await;
}

#[tokio::test(start_paused = true)]
async fn a_062_an_id_of_another_length_is_refused() {
    let node = Node::selling().await;
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    let id = cart_id();
    for wrong in
        [&id[..63], &format!("{id}x"), "", &format!("{}é", &id[..62]), &format!("{} ", &id[..63])]
    {
        let params = node.cart_params(wrong, &[]);
        let reason = refused(&socket, &format!("cart:{wrong}"), params).await;
        assert_eq!(reason, json!({ "reason": "unauthorized" }), "{wrong}");
    }
    node.stock(1, 0).await;
    assert_push!(product, "stock_change", { "item_id": 1 }, within: LONG);
}

/// Also shows A-125.
#[tokio::test(start_paused = true)]
async fn a_063_a_cart_is_joined_by_the_token_of_its_page() {
    let node = Node::selling().await;
    let page = node.get("/", "").await;
    let (cookies, id) = (page.cookies(), page.after("name=\"cart-id\" content=\""));
    let socket = node.socket().await;
    let topic = format!("cart:{id}");
    let token = page.after("name=\"cart-token\" content=\"");
    let other = node.cart_params(&cart_id(), &[])["token"].clone();
    let altered = format!("{}x", &token[..token.len() - 1]);
    for wrong in [
        json!({}),
        json!({ "token": null }),
        json!({ "token": other }),
        json!({ "token": altered }),
    ] {
        let reason = refused(&socket, &topic, wrong).await;
        assert_eq!(reason, json!({ "reason": "unauthorized" }));
    }
    tokio::time::advance(Duration::from_secs(86_402)).await;
    let reason = refused(&socket, &topic, json!({ "token": token })).await;
    assert_eq!(reason, json!({ "reason": "expired" }));
    let fresh: Value = serde_json::from_str(&node.get("/cart/token", &cookies).await.body).unwrap();
    assert_eq!(fresh["cart_id"], id);
    socket.join(&topic, json!({ "token": fresh["token"] })).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_064_a_cart_has_all_that_a_page_draws() {
    let node = Node::selling().await;
    node.stock(8, 0).await;
    let (socket, id) = (node.socket().await, cart_id());
    let channel = socket.join(&format!("cart:{id}"), node.cart_params(&id, &[2, 8])).await.unwrap();
    let cart = assert_push!(channel, "cart", { "items": [_, _] }, within: LONG);
    let item = |id: i64, product: i64, out: bool| {
        json!({
            "id": id, "size": (5 + id).to_string(), "sku": format!("I{id}"), "brand": "Fernweh",
            "color": "ember", "name": format!("Model {product}"), "price_usd": 100 + product,
            "main_image_url": "/photos/runner-ember.svg", "released": true, "out_of_stock": out,
        })
    };
    assert_eq!(cart["items"], json!([item(2, 1, false), item(8, 2, true)]));
}

#[tokio::test(start_paused = true)]
async fn a_065_an_item_is_added_with_a_reply_and_no_push() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[]).await;
    assert_eq!(ids_of(&tab.add("7").await.unwrap()), [7]);
    assert!(tab.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_066_an_item_is_a_number_or_its_plain_text() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[]).await;
    let error = json!({ "error": "invalid_item" });
    for wrong in ["07", " 7", "7x", "", "-1", "+7", "7.0", "1000000000000000000000000000000"] {
        assert_eq!(tab.add(wrong).await.unwrap_err(), error, "{wrong}");
    }
    for wrong in
        [json!(-1), json!(null), json!([7]), json!({}), json!(7.5), json!(1e30), json!(true)]
    {
        assert_eq!(tab.add(wrong.clone()).await.unwrap_err(), error, "{wrong}");
    }
    for wrong in [json!({}), json!([7]), json!({ "item": 7 })] {
        assert_eq!(tab.ask_with("add_item", wrong).await.unwrap_err(), error);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(ids_of(&tab.add(7).await.unwrap()), [7]);
    assert_eq!(ids_of(&tab.add("8").await.unwrap()), [7, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_067_an_item_is_in_the_cart_once() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[7]).await;
    assert_eq!(tab.add(7).await.unwrap_err(), json!({ "error": "duplicate_item" }));
}

#[tokio::test(start_paused = true)]
async fn a_068_an_item_is_removed_once() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[7]).await;
    assert_eq!(ids_of(&tab.remove(7).await.unwrap()), [0; 0]);
    assert_eq!(tab.remove("7").await.unwrap_err(), json!({ "error": "not_found" }));
}

#[tokio::test(start_paused = true)]
async fn a_069_what_cannot_be_bought_is_not_added() {
    let node = Node::open().await;
    node.release(1).await;
    node.stock(1, 0).await;
    let id = cart_id();
    let (tab, other) = (node.tab(&id, &[2]).await, node.tab(&id, &[2]).await);
    for (item, error) in [(99, "unknown_item"), (4, "not_released"), (1, "out_of_stock")] {
        assert_eq!(tab.add(item).await.unwrap_err(), json!({ "error": error }));
    }
    assert!(tab.has_no_cart().await && other.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_070_the_other_tabs_of_a_cart_follow_and_no_others() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[]).await, node.tab(&id, &[]).await);
    let third = node.tab(&cart_id(), &[]).await;
    a.add(7).await.unwrap();
    assert_eq!(ids_of(&b.cart().await), [7]);
    a.remove(7).await.unwrap();
    assert_eq!(ids_of(&b.cart().await), [0; 0]);
    for tab in [&a, &b, &third] {
        assert!(tab.has_no_cart().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_071_messages_between_channels_reach_no_client() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[]).await, node.tab(&id, &[]).await);
    a.add(7).await.unwrap();
    node.stock(7, 0).await;
    assert_eq!(ids_of(&b.cart().await), [7]);
    for tab in [&a, &b] {
        refute_push!(tab.channel, "cart_updated");
        refute_push!(tab.channel, "item_out");
        refute_push!(tab.channel, "presence_diff");
    }
}

#[tokio::test(start_paused = true)]
async fn a_073_a_cart_that_joins_again_is_as_it_was() {
    let node = Node::selling().await;
    let id = cart_id();
    let tab = node.tab(&id, &[]).await;
    let cart = tab.add(7).await.unwrap();
    drop(tab);
    let socket = node.socket().await;
    let mut params = node.cart_params(&id, &[]);
    params["serialized"] = cart["serialized"].clone();
    let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
    assert_push!(channel, "cart", { "items": [{ "id": 7 }] }, within: LONG);
}

#[tokio::test(start_paused = true)]
async fn a_074_tabs_that_change_at_once_end_with_all_of_it_done() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[5]).await, node.tab(&id, &[5]).await);
    let (one, other) = tokio::join!(a.add(7), b.add(8));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!((ids_of(&a.cart().await), ids_of(&b.cart().await)), (vec![5, 7, 8], vec![5, 7, 8]));
    let (one, other) = tokio::join!(a.remove(5), b.add(1));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!((ids_of(&a.cart().await), ids_of(&b.cart().await)), (vec![1, 7, 8], vec![1, 7, 8]));
}

#[tokio::test(start_paused = true)]
async fn a_075_tabs_that_exceed_the_maximum_at_once_end_alike() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[1, 2, 3]).await, node.tab(&id, &[1, 2, 3]).await);
    let (one, other) = tokio::join!(a.add(7), b.add(8));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(ids_of(&b.cart().await), [1, 2, 3, 7]);
    node.settle().await;
    assert_eq!(a.add(6).await.unwrap_err(), json!({ "error": "cart_full" }));
    assert_eq!(ids_of(&a.remove(1).await.unwrap()), [2, 3, 7]);
    assert_eq!(ids_of(&b.cart().await), [2, 3, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_076_a_cart_that_crashes_is_back_with_the_next_join() {
    let node = Node::selling().await;
    let (socket, id) = (node.socket().await, cart_id());
    let product = socket.join("product:1", json!({})).await.unwrap();
    let topic = format!("cart:{id}");
    let channel = socket.join(&topic, node.cart_params(&id, &[7])).await.unwrap();
    channel.unlink();
    channel.push("buy", json!({}));
    assert!(!channel.exit_reason().await.is_graceful());
    let again = socket.join(&topic, node.cart_params(&id, &[7])).await.unwrap();
    assert_push!(again, "cart", { "items": [{ "id": 7 }] }, within: LONG);
    node.stock(1, 0).await;
    assert_push!(product, "stock_change", { "item_id": 1 }, within: LONG);
}

#[tokio::test(start_paused = true)]
async fn a_079_a_client_that_says_too_much_hears_when_to_try_again_and_keeps_its_cart() {
    let node = Node::selling().await;
    let (tab, other) = (node.tab(&cart_id(), &[]).await, node.tab(&cart_id(), &[]).await);
    let asked: Vec<_> =
        (0..60).map(|_| tab.channel.push("add_item", json!({ "item_id": 99 }))).collect();
    let mut refused = 0;
    for asked in &asked {
        let reply = tab.channel.replies(asked, "error").within(LONG);
        let reply = reply.find("", |payload| payload.parse::<Value>().ok()).await.unwrap();
        refused += usize::from(reply.get("retry_after").is_some());
    }
    assert!((1..60).contains(&refused), "{refused}");
    assert!(other.add(7).await.is_ok());
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(ids_of(&tab.add(7).await.unwrap()), [7]);
}

/// The items of a cart that are out of stock.
fn out(cart: &Value) -> Vec<i64> {
    let items = cart["items"].as_array().unwrap().iter();
    items
        .filter(|item| item["out_of_stock"] == true)
        .map(|item| item["id"].as_i64().unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_080_the_tabs_of_a_cart_hear_once_that_an_item_is_gone() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[2, 7]).await, node.tab(&id, &[2, 7]).await);
    let without = node.tab(&cart_id(), &[2]).await;
    node.stock(7, 0).await;
    assert_eq!((out(&a.cart().await), out(&b.cart().await)), (vec![7], vec![7]));
    assert!(a.has_no_cart().await && b.has_no_cart().await && without.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_081_an_item_that_another_tab_has_added_is_heard_of_too() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[]).await, node.tab(&id, &[]).await);
    a.add(7).await.unwrap();
    b.cart().await;
    node.stock(7, 0).await;
    assert_eq!((out(&a.cart().await), out(&b.cart().await)), (vec![7], vec![7]));
}

#[tokio::test(start_paused = true)]
async fn a_082_an_item_that_was_removed_is_not_heard_of() {
    let node = Node::selling().await;
    let id = cart_id();
    let (a, b) = (node.tab(&id, &[7]).await, node.tab(&id, &[7]).await);
    a.remove(7).await.unwrap();
    b.cart().await;
    node.stock(7, 0).await;
    assert!(a.has_no_cart().await && b.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_083_a_change_between_other_levels_is_no_alert() {
    let node = Node::selling().await;
    node.stock(7, 600).await;
    let tab = node.tab(&cart_id(), &[7]).await;
    node.stock(7, 5).await;
    assert!(tab.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_085_a_sale_while_an_item_is_added_is_not_missed() {
    for n in 0..30 {
        let node = Node::selling().await;
        let tab = node.tab(&cart_id(), &[]).await;
        let empty = async {
            for _ in 0..n % 6 {
                tokio::task::yield_now().await;
            }
            node.stock(7, 0).await;
        };
        let (added, ()) = tokio::join!(tab.add(7), empty);
        match added {
            Err(error) => assert_eq!(error, json!({ "error": "out_of_stock" })),
            Ok(cart) if out(&cart) == [7] => {}
            Ok(_) => assert_eq!(out(&tab.cart().await), [7]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_086_an_item_that_comes_and_goes_is_heard_of_once() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[]).await;
    for _ in 0..2 {
        tab.add(7).await.unwrap();
        tab.remove(7).await.unwrap();
    }
    tab.add(7).await.unwrap();
    node.stock(7, 0).await;
    assert_eq!(out(&tab.cart().await), [7]);
    assert!(tab.has_no_cart().await);
}

#[tokio::test(start_paused = true)]
async fn a_087_an_item_that_is_there_again_is_said_too() {
    let node = Node::selling().await;
    let tab = node.tab(&cart_id(), &[7]).await;
    node.stock(7, 0).await;
    assert_eq!(out(&tab.cart().await), [7]);
    node.stock(7, 5).await;
    assert_eq!(out(&tab.cart().await), [0; 0]);
}

/// `CARTS=10000` before the command makes it the long form.
#[tokio::test(start_paused = true)]
async fn a_088_very_many_carts_hear_once_and_products_go_on_meanwhile() {
    let carts = std::env::var("CARTS").map_or(1000, |carts| carts.parse().unwrap());
    let node = Node::selling().await;
    let mut tabs: Vec<Tab> = Vec::new();
    for _ in 0..carts {
        tabs.push(node.tab(&cart_id(), &[7]).await);
    }
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    node.stock(7, 0).await;
    assert_push!(product, "stock_change", { "item_id": 7, "level": "out" }, within: LONG);
    for tab in &tabs {
        assert_eq!(out(&tab.cart().await), [7]);
    }
    node.settle().await;
    for tab in &tabs {
        let another = tab.channel.pushes("cart").within(Duration::ZERO);
        another.refute("cart", |_| Some(())).await.unwrap();
    }
}

/// Random changes of three tabs on two nodes, cuts and sales, against a set. After each of them, each tab has heard what it
/// has to hear, once, and nothing else.
///
/// Also shows T-007.
#[tokio::test(start_paused = true)]
async fn t_009_whatever_tabs_do_they_end_alike() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..10 {
        let nodes = Node::two_selling().await;
        let (id, database) = (cart_id(), &nodes[0].database);
        let node_of = |tab: usize| &nodes[usize::from(tab == 2)];
        let mut tabs = Vec::new();
        for tab in 0..3 {
            tabs.push(Some(node_of(tab).tab(&id, &[]).await));
        }
        let mut model = BTreeSet::new();
        let (mut delivered, mut sold) = (0, 0);
        for _ in 0..40 {
            let (tab, item) = (random.usize(..3), random.i64(1..=8));
            let before = database.count(item);
            let has = model.contains(&item);
            let mut hears = [false; 3];
            match random.u8(..12) {
                0 => {
                    nodes[random.usize(..2)].stock(item, random.i64(0..3)).await;
                    delivered += database.count(item) - before;
                    hears = [has && (before == 0) != (database.count(item) == 0); 3];
                }
                1 | 2 => {
                    let sale = nodes[random.usize(..2)].sell(item).await;
                    assert_eq!(matches!(sale, Sale::Sold(_)), before > 0, "{sale:?}");
                    sold += i64::from(before > 0);
                    hears = [has && before == 1; 3];
                }
                3 | 4 => match tabs[tab].take() {
                    Some(open) => open.cut().await,
                    None => {
                        let items: Vec<i64> = model.iter().copied().collect();
                        tabs[tab] = Some(node_of(tab).tab(&id, &items).await);
                    }
                },
                kind => {
                    let Some(open) = &tabs[tab] else { continue };
                    let (done, may) = if kind % 2 == 0 {
                        let may = before > 0 && !has && model.len() < 4;
                        let done = open.add(item).await;
                        if may {
                            model.insert(item);
                        }
                        (done, may)
                    } else {
                        (open.remove(item).await, model.remove(&item))
                    };
                    assert_eq!(done.is_ok(), may, "{done:?}");
                    hears = [may; 3];
                    hears[tab] = false;
                }
            }
            tokio::time::advance(Duration::from_millis(200)).await;
            nodes[0].settle().await;
            let items: Vec<i64> = model.iter().copied().collect();
            for (tab, hears) in tabs.iter().zip(hears) {
                let Some(tab) = tab else { continue };
                if hears {
                    let cart = tab.cart().await;
                    assert_eq!(ids_of(&cart), items);
                    let gone: Vec<i64> =
                        items.iter().copied().filter(|item| database.count(*item) == 0).collect();
                    assert_eq!(out(&cart), gone);
                }
                assert!(tab.has_no_cart().await, "one cart, and no other");
            }
        }
        let left: i64 = (1..=8).map(|item| database.count(item)).sum();
        assert_eq!(left, 8 * 10 + delivered - sold, "none is sold twice or lost");
        for node in &nodes {
            let copy = node.store.shop.inventory.snapshot().unwrap();
            assert_eq!(*copy, database.catalogue());
        }
    }
}
