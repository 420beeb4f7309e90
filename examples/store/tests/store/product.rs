//! The channels of products, and of the server-driven page.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pipeline::ws::channel_test::{TestChannel, assert_push, refute_push};
use serde_json::{Value, json};
use store::{
    domain::{
        catalogue::{Catalogue, Item, Product},
        change::Change,
    },
    pipelines::telling::Teller,
};
use tokio::time::Instant;

use crate::support::{LONG, Node, refused, shoes};

/// A page that has joined a product.
async fn page(node: &Node, product: i64) -> (pipeline::ws::channel_test::TestSocket, TestChannel) {
    let socket = node.socket().await;
    let channel = socket.join(&format!("product:{product}"), json!({})).await.unwrap();
    node.settle().await;
    (socket, channel)
}

fn reply(channel: &TestChannel) -> Value {
    channel.joined().parse().unwrap()
}

/// The levels by item that a page has from its join and the events since. Like a page, it drops lower revisions.
pub(crate) struct Levels(HashMap<i64, (i64, String)>);

impl Levels {
    pub(crate) fn of(channel: &TestChannel) -> Self {
        let mut all = Self(HashMap::new());
        all.join(channel);
        all
    }

    /// Takes over what the reply of a join says.
    pub(crate) fn join(&mut self, channel: &TestChannel) {
        let levels = reply(channel)["levels"].as_array().unwrap().clone();
        levels.iter().for_each(|level| self.hear(level));
    }

    fn hear(&mut self, level: &Value) {
        let (item, rev) = (level["item_id"].as_i64().unwrap(), level["rev"].as_i64().unwrap());
        let known = self.0.entry(item).or_insert((-1, String::new()));
        if rev >= known.0 {
            *known = (rev, level["level"].as_str().unwrap().to_owned());
        }
    }

    /// Hears everything that waits. Returns the events.
    pub(crate) async fn hear_all(&mut self, channel: &TestChannel) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            let next = channel.pushes("stock_change").within(Duration::from_millis(1));
            let Ok(event) = next.find("", |payload| payload.parse::<Value>().ok()).await else {
                return heard;
            };
            self.hear(&event);
            heard.push(event);
        }
    }

    pub(crate) fn of_item(&self, item: i64) -> &str {
        &self.0[&item].1
    }
}

/// Also shows A-036.
#[tokio::test(start_paused = true)]
async fn a_035_each_product_of_a_page_is_joined_on_one_socket() {
    let node = Node::open().await;
    node.release(2).await;
    let socket = node.socket().await;
    let one = socket.join("product:1", json!({})).await.unwrap();
    let two = socket.join("product:2", json!({})).await.unwrap();
    let (one, two) = (reply(&one), reply(&two));
    assert_eq!((&one["released"], &one["size_html"]), (&json!(false), &Value::Null));
    assert_eq!(two["released"], true);
    assert!(two["size_html"].as_str().unwrap().contains("size-container"));
    let level = |item: i64| json!({ "item_id": item, "level": "low", "rev": 1 });
    assert_eq!(two["levels"], json!([level(4), level(5), level(6), level(7), level(8)]));
}

#[tokio::test(start_paused = true)]
async fn a_037_a_product_that_is_unknown_is_refused_and_others_stay() {
    let node = Node::open().await;
    let socket = node.socket().await;
    let one = socket.join("product:1", json!({})).await.unwrap();
    for topic in ["product:99", "product:", "product:abc", "product:01", "product:-1", "product:1 "]
    {
        let reason = refused(&socket, topic, json!({})).await;
        assert_eq!(reason, json!({ "reason": "unknown product" }), "{topic}");
    }
    node.release(1).await;
    assert_push!(one, "released", { "rev": 2, "size_html": _ }, within: LONG);
}

/// Also shows T-001, T-002 and A-014.
#[tokio::test(start_paused = true)]
async fn a_038_a_release_reaches_each_page_of_the_product_once() {
    let node = Node::open().await;
    let (_one, one) = page(&node, 1).await;
    let (_other, other) = page(&node, 1).await;
    let (_two, two) = page(&node, 2).await;
    node.release(1).await;
    assert!(node.database.catalogue().product(1).unwrap().released);
    assert!(node.store.shop.inventory.snapshot().unwrap().product(1).unwrap().released);
    assert!(!node.store.shop.inventory.snapshot().unwrap().product(2).unwrap().released);
    for page in [&one, &other] {
        let released = assert_push!(page, "released", { "size_html": _, "rev": 2 }, within: LONG);
        let html = released["size_html"].as_str().unwrap();
        assert!(html.contains("size-container__entry"));
        refute_push!(page, "released");
    }
    refute_push!(two, "released");
}

#[tokio::test(start_paused = true)]
async fn a_039_the_fragment_has_a_button_for_every_item_of_its_product() {
    let node = Node::open().await;
    let (_socket, page) = page(&node, 2).await;
    node.release(2).await;
    let released = assert_push!(page, "released", { "size_html": _ }, within: LONG);
    let html = released["size_html"].as_str().unwrap();
    assert!(html.contains("size-container"));
    for item in 4..=8 {
        assert!(html.contains(&format!("value=\"{item}\"")), "{item} in {html}");
    }
    assert!(!html.contains("value=\"3\""));
}

/// Also shows T-004.
#[tokio::test(start_paused = true)]
async fn a_042_a_level_that_is_crossed_is_said_and_out_again_too() {
    let node = Node::selling().await;
    node.stock(1, 150).await;
    node.settle().await;
    let (_socket, page) = page(&node, 1).await;
    node.sell(1).await;
    let expected = json!({ "product_id": 1, "item_id": 1, "level": "low", "rev": 3 });
    assert_push!(page, "stock_change", == expected, within: LONG);
    node.sell(1).await;
    refute_push!(page, "stock_change");
    node.stock(1, 1).await;
    node.settle().await;
    node.sell(1).await;
    assert_push!(page, "stock_change", { "item_id": 1, "level": "out" }, within: LONG);
    node.stock(1, 1).await;
    node.sell(1).await;
    assert_push!(page, "stock_change", { "item_id": 1, "level": "out" }, within: LONG);
}

/// The most that each client may hear is one event for each level that is crossed.
#[tokio::test(start_paused = true)]
async fn a_048_a_burst_of_sales_is_one_event_for_each_level_at_most() {
    let node = Node::selling().await;
    node.stock(1, 1000).await;
    node.settle().await;
    let mut pages = Vec::new();
    for _ in 0..100 {
        pages.push(page(&node, 1).await);
    }
    for sale in 0..900 {
        node.sell(1).await;
        assert!(node.store.shop.untold() <= 1, "one entry for an item, after sale {sale}");
    }
    node.settle().await;
    for (_socket, page) in &pages {
        let mut levels = Levels::of(page);
        let heard = levels.hear_all(page).await;
        assert!((1..=2).contains(&heard.len()), "{heard:?}");
        assert_eq!(levels.of_item(1), "low");
    }
}

#[tokio::test(start_paused = true)]
async fn a_045_a_release_and_a_sale_at_once_leave_no_page_with_an_item_that_is_gone() {
    for _ in 0..1000 {
        let node = Node::open().await;
        let (_socket, page) = page(&node, 1).await;
        node.stock(1, 1).await;
        // Every schedule in which one of them is first.
        let shop = &node.store.shop;
        if fastrand::bool() {
            let _ = tokio::join!(shop.release(1), shop.sell(1));
        } else {
            let _ = tokio::join!(shop.sell(1), shop.release(1));
        }
        let released = assert_push!(page, "released", { "size_html": _ }, within: LONG);
        node.settle().await;
        let html = released["size_html"].as_str().unwrap();
        let said_out =
            Levels::of(&page).hear_all(&page).await.last().is_some_and(|it| it["level"] == "out");
        assert!(said_out || html.contains("level-out"), "{html}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_046_a_page_that_was_drawn_before_the_release_has_it_from_the_reply() {
    let node = Node::open().await;
    let drawn = node.get("/", "").await;
    assert!(drawn.body.contains("product-soon-1"));
    node.release(1).await;
    node.settle().await;
    let (_socket, page) = page(&node, 1).await;
    let reply = reply(&page);
    assert_eq!(reply["released"], true);
    assert!(reply["size_html"].as_str().unwrap().contains("value=\"1\""));
}

/// What changes between the reply of a join and the subscription is said after it.
#[tokio::test(start_paused = true)]
async fn a_047_a_page_that_joins_again_is_right_whatever_happened_meanwhile() {
    let node = Node::open().await;
    let (socket, page_before) = page(&node, 1).await;
    socket.close().await;
    drop(page_before);
    node.release(1).await;
    node.stock(1, 0).await;
    node.stock(2, 400).await;
    node.settle().await;
    let (_socket, page) = page(&node, 1).await;
    assert_eq!(reply(&page)["released"], true);
    let levels = Levels::of(&page);
    assert_eq!((levels.of_item(1), levels.of_item(2), levels.of_item(3)), ("out", "medium", "low"));
}

#[tokio::test(start_paused = true)]
async fn changes_while_a_page_joins_are_not_missed() {
    let node = Node::open().await;
    for n in 0..50 {
        let socket = node.socket().await;
        let shop = &node.store.shop;
        let change = async {
            for _ in 0..n % 7 {
                tokio::task::yield_now().await;
            }
            shop.stock(1, [0, 10, 300][n % 3]).await.unwrap();
        };
        let (joined, ()) = tokio::join!(socket.join("product:1", json!({})), change);
        let page = joined.unwrap();
        node.settle().await;
        let mut levels = Levels::of(&page);
        levels.hear_all(&page).await;
        let level = node.store.shop.inventory.snapshot().unwrap().item(1).unwrap().level();
        assert_eq!(levels.of_item(1), level.as_str());
    }
}

/// The shoes, with so many of item 1.
fn with_first(available_count: i64) -> Catalogue {
    let items = shoes().items().map(|item| Item::clone(item)).collect::<Vec<_>>();
    let change = |item: Item| if item.id == 1 { Item { available_count, ..item } } else { item };
    let products = shoes().products().map(|product| Product::clone(product)).collect();
    Catalogue::new(products, items.into_iter().map(change).collect())
}

/// A page that has its sizes does not look at the fragment of a release, so a level that is crossed at that moment has to be
/// told as well.
#[tokio::test(start_paused = true)]
async fn a_level_that_is_crossed_at_a_release_reaches_every_page() {
    for is_release_first in [true, false] {
        let node = Node::telling_late(with_first(400), Duration::from_secs(1)).await;
        let (_early, early) = page(&node, 1).await;
        let shop = &node.store.shop;
        if is_release_first {
            shop.release(1).await.unwrap();
        } else {
            node.stock(1, 100).await;
        }
        // It has the sizes from its join.
        let (_late, late) = page(&node, 1).await;
        if is_release_first {
            node.stock(1, 100).await;
        } else {
            shop.release(1).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for page in [&early, &late] {
            let mut levels = Levels::of(page);
            levels.hear_all(page).await;
            assert_eq!(levels.of_item(1), "low", "release first: {is_release_first}");
        }
    }
}

/// A page that comes after a level was crossed, and before the event of that, hears that it was taken back.
#[tokio::test(start_paused = true)]
async fn a_level_that_is_taken_back_before_its_event_is_right_on_every_page() {
    let node = Node::telling_late(with_first(150), Duration::from_secs(1)).await;
    node.stock(1, 149).await;
    let (_socket, page) = page(&node, 1).await;
    let mut levels = Levels::of(&page);
    assert_eq!(levels.of_item(1), "low");
    node.stock(1, 150).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    levels.hear_all(&page).await;
    assert_eq!(levels.of_item(1), "medium");
}

/// A thread has applied a change and has not announced it, when another one applies the next and announces that.
#[tokio::test(start_paused = true)]
async fn changes_that_are_announced_in_another_order_reach_every_page() {
    let node = Node::with(with_first(500)).await;
    let (_socket, page) = page(&node, 1).await;
    let change = |available_count, rev| Change::Item { id: 1, available_count, rev };
    let shop = &node.store.shop;
    let outcome = shop.inventory.apply(&[change(499, 2)]);
    assert_eq!(outcome.applied.len(), 1);
    shop.apply(&[change(498, 3)]);
    node.settle().await;
    let mut levels = Levels::of(&page);
    levels.hear_all(&page).await;
    assert_eq!(levels.of_item(1), "medium");
}

/// The revision and the level of an item in the HTML of a fragment.
fn drawn(html: &str, item: i64) -> Option<(i64, String)> {
    let (before, after) = html.split_once(&format!("data-key=\"item-{item}\" data-rev=\""))?;
    let level = before.rsplit_once("--level-")?.1.split_once('"')?.0.to_owned();
    Some((after.split_once('"')?.0.parse().ok()?, level))
}

/// A page joins on one thread while a level changes on another. It ends with the new one, from its reply or after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_while_a_server_driven_page_joins_are_not_missed() {
    let node = Arc::new(Node::selling().await);
    for round in 0..600 {
        let changing = node.clone();
        let change = tokio::spawn(async move {
            let began = Instant::now();
            let wait = Duration::from_micros(fastrand::u64(..1000));
            while began.elapsed() < wait {
                std::hint::spin_loop();
            }
            changing.stock(1, [0, 10, 300][round % 3]).await;
        });
        let socket = node.socket().await;
        let page = socket.join("page:drops", json!({})).await.unwrap();
        change.await.unwrap();
        let level = node.database.catalogue().item(1).unwrap().level();
        let cards = reply(&page)["cards"].as_array().unwrap().clone();
        let mut known = cards.iter().find_map(|it| drawn(it["html"].as_str()?, 1)).unwrap();
        while known.1 != level.as_str() {
            let next = page.pushes("fragment").within(LONG);
            let fragment = next.find("", |it| it.parse::<Value>().ok()).await.unwrap();
            let later = drawn(fragment["html"].as_str().unwrap(), 1);
            known = later.filter(|later| later.0 >= known.0).unwrap_or(known);
        }
    }
}

/// The stage that tells is killed before or after it has taken the news, and with it what it had told before.
#[tokio::test(start_paused = true)]
async fn a_stage_that_is_killed_has_its_news_told_by_the_next_one() {
    for turns in 0..12 {
        let node = Node::selling().await;
        let (_socket, page) = page(&node, 1).await;
        node.stock(1, 300).await;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        node.kill::<Teller>("tell");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut levels = Levels::of(&page);
        levels.hear_all(&page).await;
        assert_eq!(levels.of_item(1), "medium", "after {turns} turns");
    }
}

/// The stage is killed while it tells the last change of all. Only the stage itself had taken that from the queue.
#[tokio::test(start_paused = true)]
async fn what_a_stage_was_telling_when_it_was_killed_the_next_one_tells() {
    let node = Node::telling_late(with_first(150), Duration::from_secs(1)).await;
    node.release(1).await;
    tokio::time::sleep(LONG).await;
    let (_socket, page) = page(&node, 1).await;
    let mut levels = Levels::of(&page);
    let before = levels.of_item(1).to_owned();
    node.stock(1, 0).await;
    // Half of the second that telling it takes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    levels.hear_all(&page).await;
    assert_eq!(levels.of_item(1), before);
    node.kill::<Teller>("tell");
    tokio::time::sleep(LONG).await;
    levels.hear_all(&page).await;
    assert_eq!(levels.of_item(1), "out");
}

#[tokio::test(start_paused = true)]
async fn a_049_an_event_on_a_product_crashes_its_channel_alone() {
    let node = Node::open().await;
    let (socket, one) = page(&node, 1).await;
    let two = socket.join("product:2", json!({})).await.unwrap();
    one.unlink();
    one.push("buy", json!({}));
    assert!(!one.exit_reason().await.is_graceful());
    let again = socket.join("product:1", json!({})).await.unwrap();
    node.release(1).await;
    node.release(2).await;
    assert_push!(again, "released", { "rev": 2 }, within: LONG);
    assert_push!(two, "released", { "rev": 2 }, within: LONG);
}

/// Also shows T-015, T-016 and T-017.
#[tokio::test(start_paused = true)]
async fn a_137_the_server_driven_page_follows_releases_and_sales_to_the_end() {
    let node = Node::open().await;
    let socket = node.socket().await;
    let page = socket.join("page:drops", json!({})).await.unwrap();
    let joined = reply(&page);
    let cards = joined["cards"].as_array().unwrap();
    assert_eq!(cards.len(), 2);
    for (card, product) in cards.iter().zip(1..) {
        let html = card["html"].as_str().unwrap();
        assert!(
            html.contains("coming soon...") && html.contains(&format!("product-soon-{product}"))
        );
        assert!(
            node.get("/drops", "").await.body.contains(html.trim()),
            "the page has the same card"
        );
    }
    for (product, items) in [(1, 1..=3), (2, 4..=8)] {
        node.release(product).await;
        let target = format!(".product-soon-{product}");
        let fragment =
            assert_push!(page, "fragment", { "target": target, "html": _ }, within: LONG);
        let html = fragment["html"].as_str().unwrap();
        assert!(!html.contains("coming soon"));
        assert!(items.clone().all(|item| html.contains(&format!("value=\"{item}\""))));
    }
    for item in 1..=8 {
        for _ in 0..10 {
            node.sell(item).await;
        }
        let target = format!("[data-key=\"item-{item}\"]");
        let fragment =
            assert_push!(page, "fragment", { "target": target, "html": _ }, within: LONG);
        let html = fragment["html"].as_str().unwrap();
        assert!(
            html.contains("size-container__entry--level-out") && html.contains("disabled"),
            "{html}"
        );
    }
}

/// Also shows T-014.
#[tokio::test(start_paused = true)]
async fn a_136_the_server_driven_page_is_complete_without_a_script() {
    let node = Node::open().await;
    let main = |body: &str| {
        let start = body.find("<main class=\"product-list\"").unwrap();
        body[start..body.find("</main>").unwrap()].to_owned()
    };
    let drops = node.get("/drops", "").await;
    assert_eq!(drops.status, 200);
    assert!(drops.body.contains("coming soon..."));
    assert_eq!(main(&drops.body), main(&node.get("/", "").await.body));
    node.release(1).await;
    assert_eq!(main(&node.get("/drops", "").await.body), main(&node.get("/", "").await.body));
}

#[tokio::test(start_paused = true)]
async fn a_141_a_level_of_the_server_driven_page_is_a_small_fragment() {
    let node = Node::selling().await;
    let mut visitors = Vec::new();
    for _ in 0..1000 {
        let socket = node.socket().await;
        let page = socket.join("page:drops", json!({})).await.unwrap();
        visitors.push((socket, page));
    }
    node.stock(1, 0).await;
    let whole = node.get("/drops", "").await.body.len();
    for (_socket, page) in &visitors {
        let fragment = assert_push!(page, "fragment", { "html": _ }, within: LONG);
        assert!(fragment.to_string().len() * 10 < whole);
    }
    node.settle().await;
    for (_socket, page) in &visitors {
        page.pushes("fragment").within(Duration::ZERO).refute("", |_| Some(())).await.unwrap();
    }
}
