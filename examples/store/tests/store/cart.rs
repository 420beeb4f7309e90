//! Carts: tabs that are kept in step, and alerts.

use std::{collections::BTreeSet, time::Duration};

use futures::{FutureExt, StreamExt};
use pipeline::ws::channel_test::{assert_push, refute_push};
use serde_json::{Value, json};
use store::{database::Sale, domain::cart::Cart};

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

/// The clocks of nodes differ, or that of a machine is set back and its node started again. Up to a minute makes no
/// difference. Beyond it, what other clocks have dated is not valid until this one has come near.
#[tokio::test(start_paused = true)]
async fn a_144_tokens_from_a_minute_ahead_are_valid_and_later_ones_are_when_it_is_time() {
    let ahead = Node::selling().await;
    let page = ahead.get("/", "").await;
    let (cookies, id) = (page.cookies(), page.after("name=\"cart-id\" content=\""));
    let params = ahead.cart_params(&id, &[7]);
    let admin = ahead.store.shop.signers.admin.sign("ann", ahead.store.shop.clock.now()).unwrap();
    let (topic, hour) = (format!("cart:{id}"), Duration::from_secs(3600));
    let nodes = [ahead.behind(Duration::from_secs(55)).await, ahead.behind(hour).await];
    for (node, is_near) in [(&nodes[0], true), (&nodes[1], false), (&nodes[1], true)] {
        if !is_near {
            // The page stays, and tries again by itself. One that is loaded now has another cart, which is empty.
            let socket = node.socket().await;
            let reason = refused(&socket, &topic, params.clone()).await;
            assert_eq!(reason, json!({ "reason": "unauthorized" }));
            let page = node.get("/", &cookies).await;
            assert_ne!(page.after("name=\"cart-id\" content=\""), id);
            assert!(node.admin_with(Some(admin.clone())).await.is_err());
            let mut other = node.cart_params(&id, &[]);
            other["serialized"] = params["serialized"].clone();
            assert_eq!(ids_of(&node.tab_with(&id, other).await.cart().await), [0; 0]);
            assert!(node.store.shop.inventory.snapshot().unwrap().product(1).unwrap().released);
            tokio::time::advance(hour - Duration::from_secs(55)).await;
            continue;
        }
        assert_eq!(node.get("/", &cookies).await.after("name=\"cart-id\" content=\""), id);
        assert!(node.admin_with(Some(admin.clone())).await.is_ok());
        let tab = node.tab_with(&id, params.clone()).await;
        assert_eq!(ids_of(&tab.cart().await), [7]);
        tab.cut().await;
    }
}

/// A product is released when it is time by the clock of any node that runs, and no clock takes that back.
#[tokio::test(start_paused = true)]
async fn a_release_comes_by_the_first_clock_and_none_takes_it_back() {
    let node = Node::open().await;
    let behind = node.behind(Duration::from_secs(3600)).await;
    let shop = &behind.store.shop;
    assert!(shop.schedule(1, node.store.shop.clock.now_ms() + 10_000).await.unwrap());
    let is_released =
        |node: &Node| node.store.shop.inventory.snapshot().unwrap().product(1).unwrap().released;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!is_released(&node) && !is_released(&behind));
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(is_released(&node) && is_released(&behind), "by the one, and then found by the other");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.database.catalogue().product(1).unwrap().rev, 3, "once");
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
        refute_push!(tab.channel, "cart_state");
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

/// A tab that joins with the cart of before has missed what another tab has changed since, on the same node or another.
#[tokio::test(start_paused = true)]
async fn a_143_a_tab_that_joins_while_another_one_changes_the_cart_misses_nothing() {
    for other in [0, 1] {
        let nodes = Node::two_selling().await;
        let id = cart_id();
        let a = nodes[0].tab(&id, &[5]).await;
        // What the browser had stored before the change.
        let before = nodes[0].cart_params(&id, &[5]);
        a.add(7).await.unwrap();
        let stored = a.remove(5).await.unwrap()["serialized"].clone();
        let b = nodes[other].tab_with(&id, before).await;
        assert_eq!(ids_of(&b.cart().await), [5]);
        let cart = b.cart().await;
        assert_eq!(ids_of(&cart), [7], "node {other}");
        assert!(a.has_no_cart().await && b.has_no_cart().await);
        // It hears of what is in its cart now.
        nodes[0].stock(7, 0).await;
        assert_eq!((out(&a.cart().await), out(&b.cart().await)), (vec![7], vec![7]));
        nodes[0].stock(7, 9).await;
        a.cart().await;
        b.cart().await;
        // A tab that comes with the cart of now changes nothing.
        let mut params = nodes[other].cart_params(&id, &[]);
        params["serialized"] = stored;
        let c = nodes[other].tab_with(&id, params.clone()).await;
        assert_eq!(ids_of(&c.cart().await), [7]);
        for tab in [&a, &b, &c] {
            assert!(tab.has_no_cart().await);
        }
        // One whose cart has had more changes tells those that have missed them.
        let shop = &nodes[other].store.shop;
        let mut newer = Cart::new();
        for item in [1, 2, 3] {
            newer.add(item, &shop.rules).unwrap();
        }
        params["serialized"] = newer.serialize(&shop.rules, shop.clock.now()).unwrap().into();
        let d = nodes[other].tab_with(&id, params).await;
        for tab in [&a, &b, &c, &d] {
            assert_eq!(ids_of(&tab.cart().await), [1, 2, 3]);
            assert!(tab.has_no_cart().await);
        }
    }
}

/// The others answer the tab that has joined and no other, so what is sent grows with the tabs and not with their square.
/// A node of before, which names no topic of its own, is answered for all to hear.
#[tokio::test(start_paused = true)]
async fn a_tab_that_joins_late_is_answered_by_the_others_and_only_it_hears_that() {
    const TABS: usize = 40;
    let node = Node::selling().await;
    let (id, topic) = (cart_id(), |id: &str| format!("cart:{id}"));
    let mut tabs = Vec::new();
    for _ in 0..TABS {
        tabs.push(node.tab(&id, &[]).await);
    }
    tabs[0].add(7).await.unwrap();
    for tab in &tabs[1..] {
        assert_eq!(ids_of(&tab.cart().await), [7]);
    }
    let pubsub = node.store.endpoint.pubsub();
    let mut heard = pubsub.subscribe(&topic(&id));
    let late = node.tab(&id, &[]).await;
    assert_eq!(ids_of(&late.cart().await), [7]);
    node.settle().await;
    let mut states = 0;
    while let Some(message) = heard.next().now_or_never() {
        states += usize::from(message.unwrap().unwrap().event() == "cart_state");
    }
    assert_eq!(states, 1, "the tab that has joined says which cart it has, and the others not");
    for tab in tabs.iter().chain([&late]) {
        assert!(tab.has_no_cart().await);
    }
    pubsub.broadcast(&topic(&id), "cart_state", json!({ "items": [] })).unwrap();
    node.settle().await;
    assert!(heard.next().now_or_never().is_some(), "what was asked");
    assert_eq!(heard.next().await.unwrap().unwrap().event(), "cart_state");
}

/// What a tab does while the others have not answered its join yet is not undone by their answers.
#[tokio::test(start_paused = true)]
async fn what_a_tab_changes_before_it_is_answered_stays() {
    let node = Node::selling().await;
    let id = cart_id();
    let other = node.tab(&id, &[]).await;
    for item in [5, 6, 7] {
        other.add(item).await.unwrap();
    }
    let pubsub = node.store.endpoint.pubsub().clone();
    let mut heard = pubsub.subscribe(&format!("cart:{id}"));
    let late = node.tab(&id, &[]).await;
    assert_eq!(ids_of(&late.cart().await), [5, 6, 7]);
    let asked: Value = heard.next().await.unwrap().unwrap().payload().parse().unwrap();
    late.remove(5).await.unwrap();
    other.add(1).await.unwrap();
    assert_eq!(ids_of(&late.cart().await), [1, 6, 7]);
    // An answer that was on its way meanwhile.
    let answer = json!({ "items": [5, 6, 7], "changes": 60 });
    pubsub.broadcast(asked["answer_to"].as_str().unwrap(), "cart_state", answer).unwrap();
    node.settle().await;
    assert_eq!(ids_of(&late.add(2).await.unwrap()), [1, 2, 6, 7]);
}

/// The join and the change are at once, with every number of turns between them.
#[tokio::test(start_paused = true)]
async fn a_tab_that_joins_at_the_moment_of_a_change_ends_like_the_others() {
    for turns in 0..12 {
        let node = Node::selling().await;
        let id = cart_id();
        let a = node.tab(&id, &[]).await;
        let params = node.cart_params(&id, &[]);
        let add = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            a.add(7).await.unwrap();
        };
        let (b, ()) = tokio::join!(node.tab_with(&id, params), add);
        node.settle().await;
        assert_eq!(b.last_cart().await, [7], "after {turns} turns");
    }
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

/// Each tab finds that an item has no room, and one of them says so: as many messages as items, and not as tabs. A tab that
/// has room for it, because it has removed something at the same moment, hears it too. Where the tab that has added the item
/// is gone, another one says it.
#[tokio::test(start_paused = true)]
async fn an_item_that_has_no_room_is_removed_by_one_of_the_tabs_however_many_there_are() {
    const TABS: usize = 20;
    let node = Node::selling().await;
    let pubsub = node.store.endpoint.pubsub().clone();
    for adder_is_gone in [false, true] {
        let id = cart_id();
        let topic = format!("cart:{id}");
        let mut tabs = Vec::new();
        for _ in 0..TABS {
            tabs.push(node.tab(&id, &[1, 2, 3]).await);
        }
        node.settle().await;
        let mut heard = pubsub.subscribe(&topic);
        let changes: Vec<(Vec<i64>, Vec<i64>)> = if adder_is_gone {
            for item in [7, 8] {
                let added = json!({ "added": [item], "removed": [] });
                pubsub.broadcast(&topic, "cart_updated", added).unwrap();
            }
            vec![(vec![7], vec![]), (vec![8], vec![]), (vec![], vec![8])]
        } else {
            let (one, other, removed) =
                tokio::join!(tabs[0].add(7), tabs[1].add(8), tabs[2].remove(1));
            assert!(one.is_ok() && other.is_ok() && removed.is_ok());
            vec![(vec![7], vec![]), (vec![8], vec![]), (vec![], vec![8]), (vec![], vec![1])]
        };
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut said = Vec::new();
        while let Some(message) = heard.next().now_or_never() {
            let message = message.unwrap().unwrap();
            if message.event() == "cart_updated" {
                let payload: Value = message.payload().parse().unwrap();
                let ids = |name: &str| serde_json::from_value(payload[name].clone()).unwrap();
                said.push((ids("added"), ids("removed")));
            }
        }
        assert_eq!(said, changes);
        for tab in &tabs {
            let left = if adder_is_gone { vec![1, 2, 3, 7] } else { vec![2, 3, 7] };
            assert_eq!(tab.last_cart().await, left);
        }
    }
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
