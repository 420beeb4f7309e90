//! What is on the wire: the official client, and plain sockets next to it.

use std::{collections::BTreeSet, path::PathBuf, process::Stdio};

use pipeline_test_support::PATIENCE;
use serde_json::{Value, json};
use store::domain::ids;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::server::Server;

/// The script, and what it has said.
struct Wire {
    _process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    heard: Vec<Value>,
}

impl Wire {
    fn start(arguments: &[&str]) -> Self {
        let web = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web");
        let mut node = Command::new("node");
        // Node 20 has its sockets behind a flag.
        node.args(["--experimental-websocket", "wire.mjs"])
            .args(arguments)
            .current_dir(web)
            .kill_on_drop(true);
        node.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = node.spawn().expect("node is installed: see CONTRIBUTING.md");
        let input = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, input, lines, heard: Vec::new() }
    }

    /// Waits for a line that is as wanted, and keeps all.
    async fn hear(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(heard) = self.heard.iter().find(|heard| is_wanted(heard)) {
            return heard.clone();
        }
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("it does not come; heard {:#?}", self.heard));
            let line: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
            self.heard.push(line.clone());
            if is_wanted(&line) {
                return line;
            }
        }
    }

    /// The payload of an event.
    async fn event(&mut self, who: &str, topic: &str, event: &str) -> Value {
        let is_it = |it: &Value| it["who"] == who && it["topic"] == topic && it["event"] == event;
        self.hear(is_it).await["payload"].clone()
    }

    /// The frame of a broadcast as a plain socket got it.
    async fn frame(&mut self, who: &str, topic: &str, event: &str) -> String {
        let begins = format!("[null,null,{},{},", json!(topic), json!(event));
        let is_it = |it: &Value| {
            it["who"] == who && it["text"].as_str().is_some_and(|text| text.starts_with(&begins))
        };
        self.hear(is_it).await["text"].as_str().unwrap().to_owned()
    }

    /// Has the cart's channel say something. Returns the reply to it.
    async fn ask(&mut self, event: &str, item: &str) -> Value {
        let line = json!({ "event": event, "payload": { "item_id": item } });
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let reply = self.hear(|it| it["who"] == "reply").await;
        self.heard.retain(|it| it["who"] != "reply");
        reply
    }
}

/// The keys of an object.
fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap_or_else(|| panic!("{object}")).keys().map(String::as_str).collect()
}

#[tokio::test]
async fn t_021_every_event_is_as_it_is_written_and_the_same_bytes_on_all_sockets() {
    let server = Server::start().await;
    let shop = &server.shop;
    let (id, now) = (ids::cart_id().unwrap(), shop.clock.now());
    let (token, admin) =
        (shop.signers.page.sign(&id, now).unwrap(), shop.signers.admin.sign("ann", now).unwrap());
    let address = server.url("").replace("http://", "");
    let mut wire = Wire::start(&[&address, &id, &token, &admin]);
    let cart = format!("cart:{id}");

    // Joins.
    let product = wire.event("shopper", "product:1", "joined").await;
    assert_eq!(keys(&product), ["levels", "released", "rev", "size_html"].into());
    assert_eq!((&product["released"], &product["size_html"]), (&json!(false), &Value::Null));
    assert_eq!(keys(&product["levels"][0]), ["item_id", "level", "rev"].into());
    let page = wire.event("shopper", "page:drops", "joined").await;
    assert_eq!(keys(&page["cards"][0]), ["html", "rev", "target"].into());
    assert_eq!(wire.event("shopper", &cart, "joined").await, json!({}));
    let stranger: String = id.chars().rev().collect();
    let refused = wire.event("other tab", &format!("cart:{stranger}"), "refused").await;
    assert_eq!(refused, json!({ "reason": "unauthorized" }));
    let empty = wire.event("shopper", &cart, "cart").await;
    assert_eq!((keys(&empty), &empty["items"]), (["items", "serialized"].into(), &json!([])));
    assert_eq!(wire.event("admin", "admin:cart_tracker", "joined").await, json!({}));
    let totals = wire.event("admin", "admin:totals", "joined").await;
    assert_eq!(keys(&totals), ["items", "pages", "shoppers", "tabs"].into());
    let state = wire.event("admin", "admin:cart_tracker", "presence_state").await;
    assert!(state.is_object());
    wire.hear(|it| it["who"] == "presence" && it["payload"] == json!([1])).await;
    for plain in ["one", "two"] {
        for reference in ["1", "2"] {
            let begins = format!("[\"{reference}\",\"{reference}\",");
            let is_it = |it: &Value| it["text"].as_str().is_some_and(|it| it.starts_with(&begins));
            wire.hear(|it| it["who"] == plain && is_it(it)).await;
        }
    }

    // Products.
    server.release(1).await;
    let released = wire.event("shopper", "product:1", "released").await;
    assert_eq!(keys(&released), ["rev", "size_html"].into());
    server.stock(2, 0).await;
    let change = wire.event("shopper", "product:1", "stock_change").await;
    assert_eq!(change, json!({ "product_id": 1, "item_id": 2, "level": "out", "rev": 2 }));
    let fragment = wire.event("shopper", "page:drops", "fragment").await;
    assert_eq!(keys(&fragment), ["html", "rev", "target"].into());
    for (topic, event) in
        [("product:1", "released"), ("product:1", "stock_change"), ("page:drops", "fragment")]
    {
        let frames = [wire.frame("one", topic, event).await, wire.frame("two", topic, event).await];
        assert_eq!(frames[0], frames[1], "{event}");
    }

    // The cart.
    let added = wire.ask("add_item", "1").await;
    assert_eq!(added["event"], "ok", "{added}");
    let item = &added["payload"]["items"][0];
    let expected = [
        "brand",
        "color",
        "id",
        "main_image_url",
        "name",
        "out_of_stock",
        "price_usd",
        "released",
        "size",
        "sku",
    ];
    assert_eq!(keys(item), expected.into());
    for (event, item, reason) in [
        ("add_item", "1", "duplicate_item"),
        ("add_item", "2", "out_of_stock"),
        ("add_item", "7", "not_released"),
        ("add_item", "99", "unknown_item"),
        ("add_item", "07", "invalid_item"),
        ("remove_item", "3", "not_found"),
    ] {
        let refused = wire.ask(event, item).await;
        assert_eq!(refused["event"], "error");
        assert_eq!(refused["payload"], json!({ "error": reason }));
    }
    let diff = wire.event("admin", "admin:cart_tracker", "presence_diff").await;
    assert_eq!(keys(&diff), ["joins", "leaves"].into());
    let of_item = |it: &Value| it["event"] == "totals" && it["payload"]["items"]["1"] == 1;
    let totals = wire.hear(of_item).await["payload"].clone();
    assert_eq!(keys(&totals), ["items", "pages", "shoppers", "tabs"].into());
    // An alert: the cart again, and nothing else.
    server.stock(1, 0).await;
    let gone =
        |it: &Value| it["event"] == "cart" && it["payload"]["items"][0]["out_of_stock"] == true;
    wire.hear(gone).await;
    let removed = wire.ask("remove_item", "1").await;
    assert_eq!((&removed["event"], &removed["payload"]["items"]), (&json!("ok"), &json!([])));

    // What is not for clients has reached none.
    for heard in &wire.heard {
        let text = heard.to_string();
        assert!(!text.contains("cart_updated") && !text.contains("\"item_out\""), "{text}");
    }
}
