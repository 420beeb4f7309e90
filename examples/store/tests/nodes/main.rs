//! Several nodes of the store, as processes of the program that share a database, behind Redis and behind NATS.
#![cfg(all(feature = "redis", feature = "nats", feature = "postgres", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod balance;
mod drills;
mod limits;
mod operations;
mod postgres;

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use pipeline_test_support::{
    Chromium, PATIENCE,
    servers::{Kind, Server},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

/// How long tests wait for what is sure to come. It is no measure.
const LONG: Duration = Duration::from_secs(60);

/// `admin:password`, which a build for debugging has.
const ADMIN: &str = "authorization: Basic YWRtaW46cGFzc3dvcmQ=";

/// Nodes that share a database and a server.
struct Shop {
    server: Server,
    folder: TempDir,
}

/// A node. Killed on drop.
struct Node {
    process: Child,
    address: String,
    /// Where the operator's pages are.
    operator: String,
    /// What it has said.
    said: Arc<Mutex<Vec<String>>>,
}

struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn after(&self, text: &str) -> String {
        let rest =
            self.body.split_once(text).unwrap_or_else(|| panic!("no {text} in {}", self.body)).1;
        rest.split_once('"').unwrap().0.to_owned()
    }

    fn cookie(&self) -> String {
        let rest = self.head.split_once("set-cookie: ").unwrap().1;
        format!("cookie: {}", rest.split_once(';').unwrap().0)
    }
}

impl Shop {
    async fn over(kind: Kind) -> Option<Self> {
        let server = Server::start(kind).await?;
        Some(Self { server, folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("store.db")
    }

    async fn node(&self, name: &str, flags: &[&str]) -> Node {
        let url = self.server.url();
        let server = if url.starts_with("redis") { "--redis" } else { "--nats" };
        Node::start(&self.path(), &[&["--node", name, server, &*url], flags].concat()).await
    }

    /// What is in stock, by the database itself.
    fn counts(&self) -> Vec<i64> {
        let database = Connection::open(self.path()).unwrap();
        let mut counts = database
            .prepare("SELECT available_count FROM item_availabilities ORDER BY item_id")
            .unwrap();
        let counts = counts.query_map([], |row| row.get(0)).unwrap();
        counts.map(Result::unwrap).collect()
    }

    /// Sets the stock before the nodes start.
    fn stock(&self, available_count: i64) {
        let database = Connection::open(self.path()).unwrap();
        let set = "UPDATE item_availabilities SET available_count = ?, rev = rev + 1";
        database.execute(set, [available_count]).unwrap();
    }
}

impl Shop {
    /// Leaves one of an item, without a word to any node.
    fn leave_one_of(&self, item: i64) {
        let database = Connection::open(self.path()).unwrap();
        let set =
            "UPDATE item_availabilities SET available_count = 1, rev = rev + 1 WHERE item_id = ?";
        database.execute(set, [item]).unwrap();
    }
}

impl Node {
    async fn start(db: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        if !flags.contains(&"--port") {
            command.args(["--port", "0", "--admin-port", "0"]);
        }
        command.arg("--db").arg(db).args(flags);
        let node = Self::run(&mut command).await;
        eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
        node
    }

    /// Runs a command that starts a node.
    async fn run(command: &mut Command) -> Self {
        let mut process = command
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut address, mut operator) = (None, None);
        while address.is_none() || operator.is_none() {
            let line =
                timeout(LONG, lines.next_line()).await.unwrap().unwrap().expect("an address");
            let after = |what: &str, end: &str| {
                Some(
                    line.strip_prefix(what)?
                        .strip_prefix(" http://")?
                        .trim_end_matches(end)
                        .to_owned(),
                )
            };
            address = address.or(after("shop    ", "/"));
            operator = operator.or(after("inspect ", "/inspect"));
        }
        let (address, operator) = (address.unwrap(), operator.unwrap());
        // What it says later is read, so that it never waits for a reader.
        let said = Arc::<Mutex<Vec<String>>>::default();
        let heard = said.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                heard.lock().push(line);
            }
        });
        Self { process, address, operator, said }
    }

    /// Asks it to end.
    fn terminate(&self) {
        let id = self.process.id().unwrap().to_string();
        assert!(
            std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success()
        );
    }

    async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.request("GET", path, headers, "").await
    }

    async fn request(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        request(&self.address, method, path, headers, body).await
    }

    async fn release(&self, product: i64) {
        let csrf = self.get("/admin", &[ADMIN]).await.after("name=\"csrf_token\" value=\"");
        let path = format!("/admin/products/{product}/release");
        let answer = self.request("POST", &path, &[ADMIN], &format!("csrf_token={csrf}")).await;
        assert!(answer.head.contains(" 303 "), "{}", answer.head);
    }

    async fn page(&self) -> Page {
        self.open("product_socket", None).await
    }

    /// The socket of a dashboard.
    async fn dashboard(&self) -> Page {
        let protocols = self.admin_protocols(ADMIN).await;
        self.open("admin_socket", Some(protocols)).await
    }

    /// What the page of an admin connects its socket with.
    async fn admin_protocols(&self, credentials: &str) -> String {
        let page = self.get("/admin", &[credentials]).await;
        let token = page.after("name=\"admin-token\" content=\"");
        format!("phoenix, base64url.bearer.phx.{}", STANDARD_NO_PAD.encode(token))
    }

    async fn open(&self, socket: &str, protocols: Option<String>) -> Page {
        let header = protocols.map(|protocols| ("sec-websocket-protocol", protocols));
        open(&self.address, socket, header).await.expect("it connects")
    }

    /// The level of an item on a page that is drawn now, if its product is released.
    async fn drawn_level(&self, item: i64) -> Option<String> {
        let body = self.get("/", &[]).await.body;
        let before = body.split_once(&format!("data-key=\"item-{item}\""))?.0;
        Some(before.rsplit_once("--level-")?.1.split_once('"')?.0.to_owned())
    }

    /// Whether it has said that all is sold out.
    fn has_sold_out(&self) -> bool {
        self.said.lock().iter().any(|line| line.contains("all is sold out"))
    }

    /// The revision and the level of each item, as a page shows them that is drawn now.
    async fn drawn(&self) -> Vec<(i64, String)> {
        let body = self.get("/", &[]).await.body;
        let item = |item: usize| {
            let (before, after) =
                body.split_once(&format!("data-key=\"item-{item}\" data-rev=\"")).unwrap();
            let level = before.rsplit_once("--level-").unwrap().1;
            let rev = after.split_once('"').unwrap().0.parse().unwrap();
            (rev, level.split_once('"').unwrap().0.to_owned())
        };
        (1..=12).map(item).collect()
    }

    /// A shopper with a session: its cookie, the id of its cart, and the two tokens of its page.
    async fn shopper(&self) -> [String; 4] {
        let page = self.get("/", &[]).await;
        let meta = |name: &str| page.after(&format!("name=\"{name}\" content=\""));
        [page.cookie(), meta("cart-id"), meta("cart-token"), meta("csrf-token")]
    }

    /// Whether a page that is drawn now has this product's sizes.
    async fn shows(&self, product: i64) -> bool {
        !self.get("/", &[]).await.body.contains(&format!("product-soon-{product}"))
    }
}

/// Asks an address, and reads the answer up to the end of the connection.
async fn request(address: &str, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        address,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer { head: head.to_owned(), body: body.to_owned() }
}

/// Opens a socket. The status, if it is refused.
async fn open(
    address: &str,
    socket: &str,
    header: Option<(&'static str, String)>,
) -> Result<Page, u16> {
    let url = format!("ws://{address}/{socket}/websocket?vsn=2.0.0");
    let mut request = url.into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    match timeout(LONG, connect_async(request)).await.unwrap() {
        Ok((stream, _)) => Ok(Page { stream, events: Vec::new(), refs: 0 }),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// A client with everything that it has received.
struct Page {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    events: Vec<Value>,
    refs: u32,
}

impl Page {
    async fn join(&mut self, topic: &str, params: Value) -> Value {
        self.ask(topic, "phx_join", params).await
    }

    /// Adds an item to a cart. A node that has just started releases its products by and by.
    async fn adds(&mut self, topic: &str, item: i64) -> Value {
        for _ in 0..500 {
            let added = self.ask(topic, "add_item", json!({ "item_id": item })).await;
            if added["response"]["error"] != "not_released" {
                return added;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("item {item} is not released");
    }

    async fn ask(&mut self, topic: &str, event: &str, payload: Value) -> Value {
        self.refs += 1;
        let reference = self.refs.to_string();
        // Every topic is joined once, so the first message of a topic has its join ref.
        let join_ref =
            if event == "phx_join" { json!(reference) } else { json!(self.joined(topic)) };
        let message = json!([join_ref, reference, topic, event, payload]).to_string();
        self.stream.send(Message::text(message)).await.unwrap();
        let reply =
            self.take(|message| message[1] == json!(reference) && message[3] == "phx_reply").await;
        if event == "phx_join" {
            self.events.push(json!([join_ref, null, topic, "joined", {}]));
        }
        reply[4].clone()
    }

    async fn receive(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.stream.next().await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    fn joined(&self, topic: &str) -> Value {
        let join = self.events.iter().find(|message| message[2] == topic && message[3] == "joined");
        join.map_or(Value::Null, |join| join[0].clone())
    }

    /// Takes the first message that is as wanted, and keeps the others.
    async fn take(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.events.iter().position(&is_wanted) {
            return self.events.remove(at);
        }
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = timeout(left, self.receive()).await.expect("the message comes");
            if is_wanted(&message) {
                return message;
            }
            self.events.push(message);
        }
    }

    async fn event(&mut self, topic: &str, event: &str) -> Value {
        self.take(|message| message[2] == topic && message[3] == event).await[4].clone()
    }

    /// The events of a name that have come, once a heartbeat was answered.
    async fn count(&mut self, event: &str) -> usize {
        self.ask("phoenix", "heartbeat", json!({})).await;
        self.events.iter().filter(|message| message[3] == event).count()
    }
}

async fn eventually(is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never was so");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Two nodes: what happens on one is seen on the other.
async fn two_nodes(kind: Kind) {
    let Some(shop) = Shop::over(kind).await else { return };
    let a = shop.node("a", &["--fresh"]).await;
    let b = shop.node("b", &[]).await;

    // a release on one is on the pages of the other, once.
    let mut page = a.page().await;
    assert_eq!(page.join("product:1", json!({})).await["status"], "ok");
    assert_eq!(page.join("product:2", json!({})).await["status"], "ok");
    b.release(1).await;
    page.event("product:1", "released").await;
    assert!(a.shows(1).await && !a.shows(2).await);
    b.release(2).await;
    page.event("product:2", "released").await;
    assert!(a.shows(2).await);
    assert_eq!(page.count("released").await, 0, "each came once");

    // tabs of one cart on two nodes.
    let [cookie, id, token, csrf] = a.shopper().await;
    let (mut one, mut other) = (a.page().await, b.page().await);
    let topic = format!("cart:{id}");
    for tab in [&mut one, &mut other] {
        let joined = tab.join(&topic, json!({ "token": token, "page": "/" })).await;
        assert_eq!(joined["status"], "ok");
        tab.event(&topic, "cart").await;
    }
    let added = one.ask(&topic, "add_item", json!({ "item_id": "1" })).await;
    assert_eq!(added["status"], "ok", "{added}");
    let cart = other.event(&topic, "cart").await;
    assert_eq!((&cart["items"][0]["id"], cart["items"].as_array().unwrap().len()), (&json!(1), 1));
    let added = other.ask(&topic, "add_item", json!({ "item_id": "7" })).await;
    let serialized = added["response"]["serialized"].as_str().unwrap().to_owned();
    assert_eq!(one.event(&topic, "cart").await["items"].as_array().unwrap().len(), 2);

    // a sale on one is in the copy of the other. The cart is emptied on both.
    let before = shop.counts();
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let bought = b.request("POST", "/checkout", &[&cookie], &form).await;
    assert!(bought.head.contains("/checkout/complete"), "{}", bought.head);
    for tab in [&mut one, &mut other] {
        let cart = tab.take(|it| it[3] == "cart" && it[4]["items"] == json!([])).await;
        assert!(cart[4]["serialized"].is_string());
    }
    let after = shop.counts();
    assert_eq!((before[0] - after[0], before[6] - after[6]), (1, 1));
    let shown = |page: Answer, item: usize| {
        let count = page.body.split_once(&format!("data-item-count=\"{item}\"")).unwrap().1;
        let count = count.split_once("<td class=\"number\">").unwrap().1;
        count.split_once('<').unwrap().0.parse::<i64>().unwrap()
    };
    eventually(async || shown(a.get("/admin", &[ADMIN]).await, 1) == after[0]).await;
    eventually(async || shown(a.get("/admin", &[ADMIN]).await, 7) == after[6]).await;

    // an item of a cart on one node is sold out on the other.
    shop.leave_one_of(2);
    eventually(async || shown(a.get("/admin", &[ADMIN]).await, 2) == 1).await;
    eventually(async || shown(b.get("/admin", &[ADMIN]).await, 2) == 1).await;
    let added = one.ask(&topic, "add_item", json!({ "item_id": 2 })).await;
    assert_eq!(added["response"]["items"][0]["out_of_stock"], false, "{added}");
    let serialized = added["response"]["serialized"].as_str().unwrap().to_owned();
    let [cookie, _, _, csrf] = b.shopper().await;
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let bought = b.request("POST", "/checkout", &[&cookie], &form).await;
    assert!(bought.head.contains("/checkout/complete"), "{}", bought.head);
    let cart = one.event(&topic, "cart").await;
    assert_eq!(cart["items"][0]["out_of_stock"], true, "never an alert with an old cart");
}

/// Also shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_025_two_nodes_show_the_same_through_redis() {
    two_nodes(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_show_the_same_through_nats() {
    two_nodes(Kind::Nats).await;
}

/// A crowd on two nodes at once buys everything, while a third node comes.
async fn rush(kind: Kind) {
    let Some(shop) = Shop::over(kind).await else { return };
    {
        // It makes the database, with less stock than a seed has.
        let first = shop.node("first", &["--fresh"]).await;
        drop(first);
        shop.stock(40);
    }
    let flags = ["--release", "1", "--release", "2", "--sell", "60"];
    let a = shop.node("a", &flags).await;
    let mut pages = vec![a.page().await, a.page().await];
    let b = shop.node("b", &flags).await;
    pages.extend([b.page().await, b.page().await]);
    let c = shop.node("c", &[]).await;
    pages.push(c.page().await);
    let mut levels = Vec::new();
    for page in &mut pages {
        let mut known = vec![(0, String::new()); 12];
        for topic in ["product:1", "product:2"] {
            let joined = page.join(topic, json!({})).await;
            for level in joined["response"]["levels"].as_array().unwrap() {
                hear(&mut known, level);
            }
        }
        levels.push(known);
    }
    for (page, known) in pages.iter_mut().zip(&mut levels) {
        while known.iter().any(|(_, level)| level != "out") {
            let change = page.take(|message| message[3] == "stock_change").await;
            hear(known, &change[4]);
        }
    }
    assert_eq!(shop.counts(), [0; 12]);
    for node in [&a, &b, &c] {
        eventually(async || {
            let page = node.get("/", &[]).await.body;
            page.matches("size-container__entry--level-out").count() == 12
        })
        .await;
    }
    eventually(async || a.has_sold_out() && b.has_sold_out()).await;
    assert!(!c.has_sold_out(), "it had no crowd");
    for node in [&a, &b, &c] {
        // No pipeline has failed.
        assert!(node.get("/readyz", &[]).await.head.contains(" 200 "));
    }
}

/// A page drops what has a lower revision than it knows.
fn hear(known: &mut [(i64, String)], level: &Value) {
    let (item, rev) = (level["item_id"].as_i64().unwrap(), level["rev"].as_i64().unwrap());
    let known = &mut known[usize::try_from(item).unwrap() - 1];
    if rev >= known.0 {
        *known = (rev, level["level"].as_str().unwrap().to_owned());
    }
}

/// Also shows and T-028.
#[tokio::test(flavor = "multi_thread")]
async fn a_030_a_rush_on_two_nodes_ends_with_nothing_left_through_redis() {
    rush(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rush_on_two_nodes_ends_with_nothing_left_through_nats() {
    rush(Kind::Nats).await;
}

/// Also shows A-018.
#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_due_is_released_once_in_the_cluster() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let (a, b) = (shop.node("a", &["--fresh"]).await, shop.node("b", &[]).await);
    let (mut one, mut other) = (a.page().await, b.page().await);
    one.join("product:1", json!({})).await;
    other.join("product:1", json!({})).await;
    // Both find it when they compare their copies, however long the nodes took to start.
    let due =
        "UPDATE products SET release_at = unixepoch() * 1000 + 1000, rev = rev + 1 WHERE id = 1";
    Connection::open(shop.path()).unwrap().execute(due, []).unwrap();
    for page in [&mut one, &mut other] {
        page.event("product:1", "released").await;
    }
    let rev = |database: &Connection| -> i64 {
        database.query_row("SELECT rev FROM products WHERE id = 1", [], |row| row.get(0)).unwrap()
    };
    let database = Connection::open(shop.path()).unwrap();
    let released = rev(&database);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rev(&database), released, "it was released once");
    assert_eq!((one.count("released").await, other.count("released").await), (0, 0));
}

/// Two nodes of which the second neither hears the other nor compares: what T-027 excludes happens.
#[tokio::test(flavor = "multi_thread")]
async fn t_026_a_node_that_neither_hears_nor_compares_stays_as_it_was() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let deaf = shop.node("a", &["--fresh", "--no-replication", "--no-comparison"]).await;
    let mut b = shop.node("b", &[]).await;
    let mut page = b.page().await;
    page.join("product:1", json!({})).await;
    b.release(1).await;
    page.event("product:1", "released").await;
    assert!(b.shows(1).await && !deaf.shows(1).await);
    b.process.kill().await.unwrap();
}

/// What happens on one node, pages of another show: the open ones and those that are drawn now, which are never behind.
#[tokio::test(flavor = "multi_thread")]
async fn t_027_an_open_page_and_one_that_is_drawn_now_agree_on_another_node() {
    let Some(shop) = Shop::over(Kind::Nats).await else { return };
    let a = shop.node("a", &["--fresh"]).await;
    shop.stock(20);
    let mut page = a.page().await;
    let mut known = vec![(0, String::new()); 12];
    for topic in ["product:1", "product:2"] {
        let joined = page.join(topic, json!({})).await;
        assert_eq!(joined["response"]["released"], false);
        for level in joined["response"]["levels"].as_array().unwrap() {
            hear(&mut known, level);
        }
    }
    let b = shop.node("b", &["--release", "1", "--release", "2", "--sell", "60"]).await;
    for product in [1, 2] {
        page.event(&format!("product:{product}"), "released").await;
        assert!(a.shows(product).await);
    }
    while known.iter().any(|(_, level)| level != "out") {
        let change = page.take(|message| message[3] == "stock_change").await;
        hear(&mut known, &change[4]);
        for (drawn, known) in a.drawn().await.iter().zip(&known) {
            assert!(
                drawn.0 > known.0 || known.1.is_empty() || drawn == known,
                "{drawn:?} {known:?}"
            );
        }
    }
    assert!(a.drawn().await.iter().all(|(_, level)| level == "out"));
    assert_eq!(shop.counts(), [0; 12]);
    eventually(async || b.has_sold_out()).await;
}

/// A dashboard on one node, and shoppers on another.
///
/// Also shows A-119.
#[tokio::test(flavor = "multi_thread")]
async fn a_dashboard_sees_the_shoppers_of_another_node_until_it_dies() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let (a, mut b) =
        (shop.node("a", &["--fresh"]).await, shop.node("b", &["--release", "1"]).await);
    let mut dashboard = a.dashboard().await;
    let tracker = "admin:cart_tracker";
    assert_eq!(dashboard.join(tracker, json!({})).await["status"], "ok");
    assert_eq!(dashboard.event(tracker, "presence_state").await, json!({}));
    dashboard.join("admin:totals", json!({})).await;

    let [_, id, token, _] = b.shopper().await;
    let mut tab = b.page().await;
    let topic = format!("cart:{id}");
    tab.join(&topic, json!({ "token": token, "page": "/" })).await;
    let diff = dashboard.event(tracker, "presence_diff").await;
    let key = diff["joins"].as_object().unwrap().keys().next().unwrap().clone();
    assert_eq!(diff["joins"][&key]["metas"][0]["items"], json!([]));

    let added = tab.adds(&topic, 1).await;
    assert_eq!(added["status"], "ok", "{added}");
    let diff = dashboard.event(tracker, "presence_diff").await;
    assert_eq!(diff["joins"][&key]["metas"][0]["items"], json!([1]));
    dashboard
        .take(|it| it[3] == "totals" && it[4]["shoppers"] == 1 && it[4]["items"]["1"] == 1)
        .await;

    drop(tab);
    let diff = dashboard.event(tracker, "presence_diff").await;
    assert!(diff["joins"].as_object().unwrap().is_empty() && diff["leaves"][&key].is_object());

    // A node that is killed says nothing more. Its shoppers are gone all the same.
    let mut tab = b.page().await;
    tab.join(&topic, json!({ "token": token, "page": "/" })).await;
    dashboard.take(|it| it[3] == "presence_diff" && it[4]["joins"][&key].is_object()).await;
    b.process.kill().await.unwrap();
    dashboard.take(|it| it[3] == "presence_diff" && it[4]["leaves"][&key].is_object()).await;
    dashboard.take(|it| it[3] == "totals" && it[4]["shoppers"] == 0).await;
}

/// A browser that looks at nodes.
struct Eyes(Chromium);

impl Eyes {
    async fn open() -> Self {
        Self(Chromium::start(1280, 900).await)
    }

    async fn go(&self, url: &str) {
        self.0.client.goto(url).await.unwrap();
    }

    /// Waits until the expression has this value.
    async fn becomes(&self, expression: &str, expected: Value) {
        let (script, end) = (format!("return {expression}"), Instant::now() + PATIENCE);
        loop {
            let shown = self.0.client.execute(&script, vec![]).await;
            if shown.as_ref().is_ok_and(|shown| *shown == expected) {
                return;
            }
            assert!(Instant::now() < end, "{expression} is {shown:?}, expected {expected}");
            sleep(Duration::from_millis(25)).await;
        }
    }

    async fn connected(&self) {
        let is =
            "document.querySelector('#connection').hidden && localStorage.storedCart !== undefined";
        self.becomes(is, json!(true)).await;
    }

    async fn click(&self, selector: &str) {
        self.becomes(&format!("document.querySelector('{selector}') !== null"), json!(true)).await;
        let click = format!("document.querySelector('{selector}').click()");
        self.0.client.execute(&click, vec![]).await.unwrap();
    }

    async fn add(&self, item: usize) {
        self.click(&format!("button.size-container__entry[value=\"{item}\"]:enabled")).await;
    }

    async fn remove(&self, item: usize) {
        self.click(&format!(".cart-item__remove[data-item-id=\"{item}\"]")).await;
    }

    async fn has(&self, items: Value) {
        let cart = "[...document.querySelectorAll('.cart-item__remove')].map(it => Number(it.dataset.itemId))";
        self.becomes(cart, items).await;
    }

    /// Opens another tab, and looks at it. Returns both.
    async fn tab(&self, url: &str) -> [fantoccini::wd::WindowHandle; 2] {
        let first = self.0.client.window().await.unwrap();
        let second = self.0.client.new_window(true).await.unwrap().handle;
        self.look_at(&second).await;
        self.go(url).await;
        [first, second]
    }

    async fn look_at(&self, tab: &fantoccini::wd::WindowHandle) {
        self.0.client.switch_to_window(tab.clone()).await.unwrap();
    }
}

/// Pages of one node in a browser, while everything happens on the other.
#[tokio::test(flavor = "multi_thread")]
async fn t_030_a_page_follows_what_happens_on_another_node() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let a = shop.node("a", &["--fresh"]).await;
    shop.stock(20);
    let b = shop.node("b", &[]).await;
    let page = format!("http://{}/", a.address);
    b.release(1).await;
    b.release(2).await;
    eventually(async || a.shows(1).await && a.shows(2).await).await;
    let eyes = Eyes::open().await;
    eyes.go(&page).await;
    eyes.connected().await;
    eyes.becomes("document.querySelectorAll('.size-container').length", json!(2)).await;
    // Size 6 of the first.
    eyes.add(1).await;
    eyes.has(json!([1])).await;
    eyes.remove(1).await;
    eyes.has(json!([])).await;
    eyes.add(1).await;
    eyes.has(json!([1])).await;
    let [first, second] = eyes.tab(&page).await;
    eyes.connected().await;
    eyes.has(json!([1])).await;
    eyes.add(8).await;
    for tab in [&first, &second] {
        eyes.look_at(tab).await;
        eyes.has(json!([1, 8])).await;
    }
    // A crowd comes, with the node's next start.
    drop(b);
    let b = shop.node("b", &["--sell", "100"]).await;
    eventually(async || b.has_sold_out()).await;
    let grey =
        "[...document.querySelectorAll('.cart-item--out')].map(it => Number(it.dataset.itemId))";
    for tab in [&first, &second] {
        eyes.look_at(tab).await;
        eyes.becomes(grey, json!([1, 8])).await;
        let gone = "document.querySelectorAll('.size-container__entry:disabled').length";
        eyes.becomes(gone, json!(12)).await;
    }
    eyes.remove(1).await;
    eyes.remove(8).await;
    for tab in [&first, &second] {
        eyes.look_at(tab).await;
        eyes.has(json!([])).await;
    }
    // A button that is not disabled could be clicked. The server refuses it all the same.
    let click = "const size = document.querySelector('button[value=\"1\"]'); size.disabled = false; size.click()";
    eyes.0.client.execute(click, vec![]).await.unwrap();
    eyes.becomes(
        "document.querySelector('#notices').textContent.includes('sold out')",
        json!(true),
    )
    .await;
    eyes.has(json!([])).await;
    eyes.0.close().await;
}

/// A dashboard on one node, shoppers on both. One of them has a tab on each.
#[tokio::test(flavor = "multi_thread")]
async fn t_033_the_numbers_are_right_on_two_nodes() {
    let Some(shop) = Shop::over(Kind::Nats).await else { return };
    let (a, b) = (shop.node("a", &["--fresh", "--release", "1"]).await, shop.node("b", &[]).await);
    let (admin, ada, ben) = tokio::join!(Eyes::open(), Eyes::open(), Eyes::open());
    admin.go(&format!("http://admin:password@{}/admin", a.address)).await;
    let shows = async |shoppers: usize, pages: Value, items: Value| {
        let numbers = "[
            Number(document.getElementById('shopper-count').textContent),
            Object.fromEntries([...document.querySelectorAll('[data-page-count]')].map(it => [it.dataset.pageCount, Number(it.textContent)])),
            Object.fromEntries([...document.querySelectorAll('[data-item-count]')].filter(it => it.textContent !== '0').map(it => [it.dataset.itemCount, Number(it.textContent)])),
        ]";
        admin.becomes(numbers, json!([shoppers, pages, items])).await;
    };
    shows(0, json!({}), json!({})).await;
    ada.go(&format!("http://{}/", a.address)).await;
    shows(1, json!({"/": 1}), json!({})).await;
    // The cookie is of the host, and the two nodes have the same.
    let [first, _] = ada.tab(&format!("http://{}/drops", b.address)).await;
    shows(1, json!({"/": 1, "/drops": 1}), json!({})).await;
    ben.go(&format!("http://{}/", b.address)).await;
    shows(2, json!({"/": 2, "/drops": 1}), json!({})).await;
    ben.add(1).await;
    shows(2, json!({"/": 2, "/drops": 1}), json!({"1": 1})).await;
    ada.add(1).await;
    shows(2, json!({"/": 2, "/drops": 1}), json!({"1": 2})).await;
    ada.add(2).await;
    shows(2, json!({"/": 2, "/drops": 1}), json!({"1": 2, "2": 1})).await;
    ben.remove(1).await;
    shows(2, json!({"/": 2, "/drops": 1}), json!({"1": 1, "2": 1})).await;
    ada.0.client.close_window().await.unwrap();
    ada.look_at(&first).await;
    shows(2, json!({"/": 2}), json!({"1": 1, "2": 1})).await;
    ben.0.close().await;
    shows(1, json!({"/": 1}), json!({"1": 1, "2": 1})).await;
    ada.0.close().await;
    shows(0, json!({}), json!({})).await;
    admin.0.close().await;
}
