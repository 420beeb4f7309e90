//! Everything that may break does, again and again, while a crowd buys everything.

use std::{collections::BTreeSet, time::Duration};

use pipeline::ws::channel_test::{TestChannel, TestSocket};
use pipeline_test_support::Recorded;
use rusqlite::Connection;
use serde_json::{Value, json};
use store::{
    database::{Database, SqliteDatabase, SqliteOptions},
    pipelines::{inventory::Keeper, replication::Applier, rush, telling::Teller},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    product::Levels,
    support::{LONG, Memory, Node, cart_id, eventually, ids_of, shoes},
};

/// A shopper with an open page.
struct Visitor {
    socket: TestSocket,
    products: Vec<TestChannel>,
    cart: TestChannel,
    id: String,
    items: BTreeSet<i64>,
    levels: Levels,
}

impl Visitor {
    async fn come(node: &Node) -> Self {
        let (socket, id) = (node.socket().await, cart_id());
        let products = vec![product(&socket, 1).await, product(&socket, 2).await];
        let cart = cart(node, &socket, &id, &BTreeSet::new()).await;
        let mut levels = Levels::of(&products[0]);
        levels.join(&products[1]);
        Self { socket, products, cart, id, items: BTreeSet::new(), levels }
    }

    /// The socket ends, and the page comes back.
    async fn reconnect(&mut self, node: &Node) {
        self.hear().await;
        self.socket.close().await;
        self.socket = node.socket().await;
        self.products = vec![product(&self.socket, 1).await, product(&self.socket, 2).await];
        for product in &self.products {
            self.levels.join(product);
        }
        self.cart = cart(node, &self.socket, &self.id, &self.items).await;
    }

    /// The channel of a product crashes, and the page joins again.
    async fn crash_product(&mut self, at: usize) {
        self.hear().await;
        crash(&self.products[at]).await;
        self.products[at] = product(&self.socket, at + 1).await;
        self.levels.join(&self.products[at]);
    }

    async fn crash_cart(&mut self, node: &Node) {
        self.hear().await;
        crash(&self.cart).await;
        self.cart = cart(node, &self.socket, &self.id, &self.items).await;
    }

    async fn add(&mut self, item: i64) {
        let asked = self.cart.push("add_item", json!({ "item_id": item }));
        tokio::select! {
            added = self.cart.replies(&asked, "ok").within(LONG).find("", |_| Some(())) => {
                added.unwrap();
                self.items.insert(item);
            }
            refused = self.cart.replies(&asked, "error").within(LONG).find("", |_| Some(())) => refused.unwrap(),
        }
    }

    /// Hears everything that waits. What is not for clients has not reached this one.
    async fn hear(&mut self) {
        for product in &self.products {
            self.levels.hear_all(product).await;
        }
        for secret in ["cart_updated", "item_out"] {
            let search = self.cart.pushes(secret).within(Duration::ZERO);
            search.refute("", |_| Some(())).await.unwrap();
        }
    }

    /// The cart as the page shows it.
    async fn shown_cart(&self) -> Value {
        let mut last = None;
        loop {
            let next = self.cart.pushes("cart").within(Duration::from_millis(1));
            match next.find("", |it| it.parse::<Value>().ok()).await {
                Ok(cart) => last = Some(cart),
                Err(_) => return last.expect("each join brings the cart"),
            }
        }
    }
}

async fn product(socket: &TestSocket, id: usize) -> TestChannel {
    socket.join(&format!("product:{id}"), json!({})).await.unwrap()
}

async fn cart(node: &Node, socket: &TestSocket, id: &str, items: &BTreeSet<i64>) -> TestChannel {
    let items: Vec<i64> = items.iter().copied().collect();
    socket.join(&format!("cart:{id}"), node.cart_params(id, &items)).await.unwrap()
}

async fn crash(channel: &TestChannel) {
    channel.unlink();
    channel.push("no such event", json!({}));
    assert!(!channel.exit_reason().await.is_graceful());
}

/// For a minute: channels crash, stages are killed, sockets end, and the database is away for a second. It holds all the
/// same that nothing is sold twice, that the crowd gets everything, that no page offers what is gone,
/// and that clients hear only what is theirs.
#[tokio::test(start_paused = true)]
async fn t_025_whatever_breaks_during_a_rush_every_page_is_right_at_the_end() {
    let (telemetry, recorded) = Recorded::new();
    let node = Node::over(Memory::of(shoes()), telemetry);
    eventually(|| node.store.shop.inventory.is_loaded()).await;
    let away = async || {
        node.database.take_away(true);
        sleep(Duration::from_secs(1)).await;
        node.database.take_away(false);
    };
    rush_through_chaos(&node, &recorded, 60, away).await;
    assert!((1..=8).all(|item| node.database.count(item) == 0));
}

/// The same with several threads, their clock, and a database in a file. `SECONDS=60` before the command makes it the long
/// form.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_and_a_file_come_through_a_rush_in_which_everything_breaks() {
    let seconds = std::env::var("SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let database = SqliteDatabase::new(SqliteOptions {
        path: path.clone(),
        seed: shoes(),
        creates: true,
        confirm_orders: false,
    })
    .unwrap();
    let (telemetry, recorded) = Recorded::new();
    let node = Node::over_file(database.clone(), telemetry).await;
    let away = async || {
        database.disconnect().await;
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        sleep(Duration::from_secs(1)).await;
        other.execute_batch("COMMIT").unwrap();
    };
    rush_through_chaos(&node, &recorded, seconds, away).await;
    let left = database.load().await.unwrap();
    assert!(left.items().all(|item| item.available_count == 0));
}

/// Has a crowd buy everything within these seconds, and everything break meanwhile. `away` takes the database for a second.
async fn rush_through_chaos(node: &Node, recorded: &Recorded, seconds: u64, away: impl AsyncFn()) {
    // A fortieth of a second is a sale.
    let each = 5 * i64::try_from(seconds).unwrap();
    for item in 1..=8 {
        node.stock(item, each).await;
    }
    let mut visitors = Vec::new();
    for _ in 0..12 {
        visitors.push(Visitor::come(node).await);
    }
    let mut rush = rush::start(&node.store.shop, 40).unwrap();
    node.release(1).await;
    node.release(2).await;
    let (began, mut random) = (Instant::now(), fastrand::Rng::with_seed(25));
    while began.elapsed() < Duration::from_secs(seconds) {
        sleep(Duration::from_millis(random.u64(50..400))).await;
        let visitor = &mut visitors[random.usize(..12)];
        match random.u8(..8) {
            0 => visitor.crash_product(random.usize(..2)).await,
            1 => visitor.crash_cart(node).await,
            2 => visitor.reconnect(node).await,
            3 => node.kill::<Teller>("tell"),
            4 => node.kill::<Keeper>("inventory"),
            5 => node.kill::<Applier>("apply"),
            6 => away().await,
            _ => visitor.add(random.i64(1..=8)).await,
        }
    }
    let report = timeout(LONG.saturating_mul(10), rush.join()).await.unwrap();
    assert!(report.failure().is_none());
    let sales = recorded.counters("store.sale");
    let sold = sales.iter().find(|(labels, _)| labels.contains("ok")).unwrap().1;
    assert_eq!(i64::try_from(sold).unwrap(), 8 * each);
    let ended = Instant::now();
    for visitor in &mut visitors {
        loop {
            visitor.hear().await;
            if (1..=8).all(|item| visitor.levels.of_item(item) == "out") {
                break;
            }
            assert!(ended.elapsed() < LONG, "a page does not hear that all is gone");
            sleep(Duration::from_millis(50)).await;
        }
    }
    // Carts hear it from another pipeline.
    sleep(Duration::from_secs(2)).await;
    for visitor in &mut visitors {
        visitor.hear().await;
        let cart = visitor.shown_cart().await;
        assert!(visitor.items.iter().copied().eq(ids_of(&cart)));
        for item in cart["items"].as_array().unwrap() {
            assert_eq!(item["out_of_stock"], true, "{item}");
        }
    }
}
