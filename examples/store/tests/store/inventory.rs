//! The copy of the inventory, and the pipelines that keep it.

use std::time::Duration;

use pipeline::ws::channel_test::{assert_push, refute_push};
use pipeline_test_support::Recorded;
use serde_json::json;
use store::{
    database::{Order, Release, Sale},
    domain::{
        catalogue::{Catalogue, Item, Product},
        change::Change,
    },
    pipelines::rush,
};
use tokio::time::Instant;

use crate::support::{LONG, Memory, Node, cart_id, eventually, shoes};

fn copy(node: &Node, item: i64) -> i64 {
    node.store.shop.inventory.snapshot().unwrap().item(item).unwrap().available_count
}

/// Also shows T-022.
#[tokio::test(start_paused = true)]
async fn a_017_a_release_without_the_database_fails_as_a_whole() {
    let node = Node::open().await;
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    node.database.take_away(true);
    assert!(node.store.shop.release(1).await.is_err());
    for _ in 0..3 {
        assert!(node.get("/", "").await.body.contains("product-soon-1"));
    }
    refute_push!(product, "released");
    node.database.take_away(false);
    assert!(matches!(node.store.shop.release(1).await, Ok(Release::Released(_))));
    assert_push!(product, "released", { "rev": 2 }, within: LONG);
    assert!(!node.get("/", "").await.body.contains("product-soon-1"));
}

/// One node or two, each with a page.
#[tokio::test(start_paused = true)]
async fn a_018_a_product_is_released_once_within_a_second_of_its_time() {
    for nodes in [vec![Node::open().await], Node::two().await.into()] {
        let mut pages = Vec::new();
        for node in &nodes {
            let socket = node.socket().await;
            let product = socket.join("product:1", json!({})).await.unwrap();
            pages.push((socket, product));
        }
        let shop = &nodes[0].store.shop;
        let (now, at) = (shop.clock.now_ms(), Instant::now() + Duration::from_secs(2));
        assert!(shop.schedule(1, now + 2000).await.unwrap());
        tokio::time::sleep_until(at - Duration::from_millis(10)).await;
        for (_socket, product) in &pages {
            refute_push!(product, "released", within: Duration::from_millis(1));
        }
        for (_socket, product) in &pages {
            let left = at + Duration::from_secs(1) - Instant::now();
            assert_push!(product, "released", { "rev": 3 }, within: left);
        }
        for (_socket, product) in &pages {
            refute_push!(product, "released", within: Duration::from_secs(30));
        }
        assert_eq!(nodes[0].database.catalogue().product(1).unwrap().rev, 3);
    }
}

/// Also shows A-018: at start, if no node ran when it was time.
#[tokio::test(start_paused = true)]
async fn a_product_that_was_due_while_no_node_ran_is_released_at_start() {
    let due = |product: &Product| Product {
        release_at: (product.id == 1).then_some(1_600_000_000_000),
        ..product.clone()
    };
    let products = shoes().products().map(|product| due(product)).collect();
    let items = shoes().items().map(|item| Item::clone(item)).collect();
    let node = Node::with(Catalogue::new(products, items)).await;
    let released = |id: i64| node.database.catalogue().product(id).unwrap().released;
    eventually(|| released(1)).await;
    node.settle().await;
    assert!(!released(2));
    assert!(!node.get("/", "").await.body.contains("product-soon-1"));
}

#[tokio::test(start_paused = true)]
async fn a_019_a_sale_is_in_the_database_and_then_in_the_copy() {
    let node = Node::selling().await;
    node.stock(1, 5).await;
    assert!(matches!(node.sell(1).await, Sale::Sold(Change::Item { available_count: 4, .. })));
    assert_eq!((node.database.count(1), copy(&node, 1)), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_020_what_is_gone_is_not_sold_and_nothing_is_said() {
    let node = Node::selling().await;
    node.stock(1, 0).await;
    node.settle().await;
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    let before = node.database.catalogue();
    assert_eq!(node.sell(1).await, Sale::OutOfStock);
    assert_eq!((node.database.catalogue(), copy(&node, 1)), (before, 0));
    refute_push!(product, "stock_change");
}

#[tokio::test(start_paused = true)]
async fn a_024_an_inventory_task_that_dies_comes_back_and_pages_notice_nothing() {
    let node = Node::open().await;
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    let tab = node.tab(&cart_id(), &[2]).await;
    node.database.change(Change::Item { id: 3, available_count: 2, rev: 5 });
    node.database.panic_next();
    // The stage that loads panics, and the one after it loads.
    node.store.shop.doubt();
    eventually(|| copy(&node, 3) == 2).await;
    node.release(1).await;
    assert_push!(product, "released", { "rev": 2 }, within: LONG);
    node.stock(2, 0).await;
    assert_eq!(tab.cart().await["items"][0]["out_of_stock"], true);
    assert!(node.store.health.readiness().is_ok());
}

/// A message between nodes was lost: the database has changed, and this node has not heard of it.
#[tokio::test(start_paused = true)]
async fn a_031_a_change_that_was_not_heard_of_is_found_and_said() {
    let (telemetry, recorded) = Recorded::new();
    let node = Node::over(Memory::of(shoes()), telemetry);
    eventually(|| node.store.shop.inventory.is_loaded()).await;
    let socket = node.socket().await;
    let one = socket.join("product:1", json!({})).await.unwrap();
    let two = socket.join("product:2", json!({})).await.unwrap();
    node.database.change(Change::Product { id: 1, released: true, rev: 2 });
    node.database.change(Change::Item { id: 7, available_count: 0, rev: 9 });
    assert_push!(one, "released", { "rev": 2 }, within: Duration::from_secs(10));
    assert_push!(two, "stock_change", { "item_id": 7, "level": "out", "rev": 9 }, within: Duration::from_secs(10));
    assert_eq!(*node.store.shop.inventory.snapshot().unwrap(), node.database.catalogue());
    let reloads =
        || recorded.counters("store.copy_reloads").iter().map(|(_, count)| *count).sum::<u64>();
    eventually(|| reloads() == 1).await;
}

/// A database that is restored, or whose standby takes over, may have lost what copies and pages know already.
#[tokio::test(start_paused = true)]
async fn after_a_database_has_lost_its_last_commits_copies_and_open_pages_are_as_it_is() {
    let nodes = Node::two().await;
    nodes[0].release(2).await;
    nodes[0].settle().await;
    let before = nodes[0].database.catalogue();
    let mut pages = Vec::new();
    for node in &nodes {
        let socket = node.socket().await;
        let product = socket.join("product:2", json!({})).await.unwrap();
        pages.push((socket, product));
    }
    nodes[0].release(1).await;
    nodes[0].stock(7, 4).await;
    nodes[0].stock(7, 0).await;
    for (_socket, product) in &pages {
        assert_push!(product, "stock_change", { "item_id": 7, "level": "out", "rev": 3 }, within: LONG);
    }
    nodes[0].database.restore(before);
    for (_socket, product) in &pages {
        // A page takes what has a higher revision than what it shows.
        assert_push!(product, "stock_change", { "item_id": 7, "level": "low", "rev": 4 }, within: LONG);
    }
    for node in &nodes {
        let copy = || node.store.shop.inventory.snapshot().unwrap();
        eventually(|| *copy() == node.database.catalogue()).await;
        assert!(!copy().product(1).unwrap().released);
    }
    let calls = nodes[0].database.catalogue();
    tokio::time::sleep(LONG).await;
    assert_eq!(nodes[0].database.catalogue(), calls, "it is done once");
}

/// The clock that dates tokens stays ahead for hours. A drop does not open by it.
#[tokio::test(start_paused = true)]
async fn after_a_clock_was_set_back_a_release_comes_by_the_systems_time() {
    let hour = Duration::from_secs(3600);
    let node = Node::after_setting_back(hour).await;
    let shop = &node.store.shop;
    let released = |id| shop.inventory.snapshot().unwrap().product(id).unwrap().released;
    let now = shop.clock.system_ms();
    assert_eq!(shop.clock.now_ms() - now, 3_600_000);
    assert!(shop.schedule(1, now + 600_000).await.unwrap());
    assert!(shop.schedule(2, now + 2_000).await.unwrap());
    eventually(|| released(2)).await;
    assert!(!released(1), "it is due in ten minutes");
    tokio::time::sleep(Duration::from_secs(600)).await;
    eventually(|| released(1)).await;
}

/// Each node tells its own clients, so it works nothing out for those of others.
#[tokio::test(start_paused = true)]
async fn a_node_works_nothing_out_for_the_clients_of_another_one() {
    let (telemetry, recorded) = Recorded::new();
    let [here, there] = Node::two_with(telemetry).await;
    let tab = there.tab(&cart_id(), &[7]).await;
    // The other node has shared its topics.
    tokio::time::sleep(Duration::from_secs(10)).await;
    here.stock(7, 0).await;
    assert_push!(tab.channel, "cart", within: LONG);
    here.settle().await;
    let alerts = || recorded.counters("store.alerts").iter().map(|(_, it)| *it).sum::<u64>();
    assert_eq!(alerts(), 0);
    // One of its own counts.
    let own = here.tab(&cart_id(), &[8]).await;
    here.stock(8, 0).await;
    assert_push!(own.channel, "cart", within: LONG);
    eventually(|| alerts() == 1).await;
}

/// Also shows.
#[tokio::test(start_paused = true)]
async fn changes_of_another_node_are_applied_without_the_database_and_not_sent_on() {
    let node = Node::selling().await;
    node.settle().await;
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    let mut others = node.store.endpoint.subscribe("inventory_replication");
    let calls = node.database.calls();
    let change = Change::Item { id: 7, available_count: 0, rev: 9 };
    node.store.endpoint.broadcast("inventory_replication", "change", change).unwrap();
    assert_push!(product, "stock_change", { "item_id": 7, "rev": 9 }, within: Duration::from_secs(1));
    assert_eq!(node.database.calls(), calls);
    others.recv().await.unwrap();
    let more = tokio::time::timeout(Duration::from_secs(3), others.recv()).await;
    assert!(more.is_err(), "it was sent on");
}

#[tokio::test(start_paused = true)]
async fn a_032_a_listener_that_lags_loads_everything() {
    let node = Node::selling().await;
    node.settle().await;
    node.database.change(Change::Item { id: 7, available_count: 0, rev: 3000 });
    let socket = node.socket().await;
    let product = socket.join("product:2", json!({})).await.unwrap();
    // More than wait for a task, without a pause in which it could read them.
    for rev in 1..=2000 {
        let change = Change::Item { id: 1, available_count: 10, rev };
        node.store.endpoint.broadcast("inventory_replication", "change", change).unwrap();
    }
    assert_push!(product, "stock_change", { "item_id": 7, "rev": 3000 }, within: Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_rush_sells_everything_and_ends() {
    let (telemetry, recorded) = Recorded::new();
    let node = Node::over(Memory::of(shoes()), telemetry);
    eventually(|| node.store.shop.inventory.is_loaded()).await;
    let socket = node.socket().await;
    let product = socket.join("product:1", json!({})).await.unwrap();
    let mut rush = rush::start(&node.store.shop, 1000).unwrap();
    assert!(rush.join().await.failure().is_none());
    assert!((1..=8).all(|item| node.database.count(item) == 0 && copy(&node, item) == 0));
    for item in 1..=3 {
        assert_push!(product, "stock_change", { "item_id": item, "level": "out" }, within: LONG);
    }
    let counts = recorded.counters("store.sale");
    let ok = counts.iter().find(|(labels, _)| labels.contains("ok")).unwrap().1;
    assert_eq!(ok, 80);
}

#[tokio::test(start_paused = true)]
async fn p_023_the_shop_has_metrics_of_its_own() {
    let (telemetry, recorded) = Recorded::new();
    let node = Node::over(Memory::of(shoes()), telemetry);
    eventually(|| node.store.shop.inventory.is_loaded()).await;
    node.release(1).await;
    node.stock(1, 1).await;
    let tab = node.tab(&cart_id(), &[1]).await;
    let socket = node.socket().await;
    let _product = socket.join("product:1", json!({})).await.unwrap();
    node.sell(1).await;
    node.sell(1).await;
    node.database.take_away(true);
    assert!(node.store.shop.sell(1).await.is_err());
    node.database.take_away(false);
    let order = Order {
        key: "k".to_owned(),
        cart: cart_id(),
        items: vec![2],
        placed_at: 0,
        knows: Vec::new(),
    };
    node.store.shop.check_out(order).await.unwrap();
    let change = Change::Item { id: 7, available_count: 0, rev: 9 };
    node.store.endpoint.broadcast("inventory_replication", "change", change).unwrap();
    tab.cart().await;
    let count = |name: &str, labels: &str| {
        let all = recorded.counters(name).into_iter().filter(|(of, _)| of.contains(labels));
        all.map(|(_, count)| count).sum::<u64>()
    };
    eventually(|| count("store.replicated", "") == 1).await;
    let sales = recorded.counters("store.sale");
    let of =
        |result: &str| sales.iter().find(|(labels, _)| labels.contains(result)).map(|(_, n)| *n);
    assert_eq!(["ok", "out", "failed"].map(of), [Some(2), Some(1), Some(1)]);
    assert_eq!(count("store.alerts", ""), 1);
    assert_eq!(recorded.samples("store.checkout_time").len(), 1);
    let told = || recorded.sample_counts("store.level_told").iter().map(|(_, n)| *n).sum::<usize>();
    eventually(|| told() >= 2).await;
    let carts = || recorded.levels("store.carts").iter().map(|(_, carts)| *carts).sum::<f64>();
    assert!(carts() > 0.5, "one cart is open");
    drop(tab);
    eventually(|| carts() < 0.5).await;
}
