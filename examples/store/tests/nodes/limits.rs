//! How much a node bears, and what gives first. `SOCKETS=2000` before the command makes it the long form.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt, future::join_all};
use pipeline_test_support::servers::Kind;
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    process::Command,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{ADMIN, LONG, Node, Page, Shop, balance::sockets, eventually, open};

/// The number of a counter that was sent in one of the packets so far.
async fn counted(statsd: &UdpSocket, name: &str) {
    let mut packet = vec![0; 65_536];
    let heard = async {
        loop {
            let length = statsd.recv(&mut packet).await.unwrap();
            if String::from_utf8_lossy(&packet[..length]).contains(name) {
                return;
            }
        }
    };
    timeout(LONG, heard).await.expect("the counter is sent");
}

/// What gives first are descriptors. The node says so, serves on, and lets in who waits as soon as there are some.
/// `SOCKETS=10000` before the command makes it the full form, for which the test itself needs as many descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn t_035_what_gives_first_is_said_and_the_setting_moves_it() {
    let folder = tempfile::tempdir().unwrap();
    let statsd = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = statsd.local_addr().unwrap().to_string();
    let run = async |limit: usize, to: &str| {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_store"))
            .args(["--port", "0", "--admin-port", "0", "--statsd", to, "--db"])
            .arg(folder.path().join("store.db"))
            .stderr(Stdio::piped());
        let node = Node::run(&mut command).await;
        eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
        node
    };
    let pages_in_all: usize =
        std::env::var("SOCKETS").map_or(150, |sockets| sockets.parse().unwrap());
    // The system keeps 4096 connections that wait. Clients of more of them would try again, after many seconds.
    let too_few = (pages_in_all * 2 / 3).max(pages_in_all.saturating_sub(2000));
    let enough = pages_in_all * 5 / 4 + 700;
    let few = run(too_few, &to).await;
    let (inside, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut pages = JoinSet::new();
    for number in 0..pages_in_all {
        if number % 150 == 149 {
            // A crowd, and no flood that the system would turn away.
            sleep(Duration::from_millis(50)).await;
        }
        let (address, inside, leave) = (few.address.clone(), inside.clone(), leave.clone());
        pages.spawn(async move {
            let mut page = open(&address, "product_socket", None).await.unwrap();
            assert_eq!(page.join("product:1", json!({})).await["status"], "ok");
            inside.fetch_add(1, Relaxed);
            leave.notified().await;
        });
    }
    // The metric of the accept loop says that connections wait outside.
    counted(&statsd, "http.accept_errors").await;
    let first = inside.load(Relaxed);
    assert!((too_few / 5..too_few).contains(&first), "{first} pages with {too_few} descriptors");
    // As many leave as are inside, one by one, and all that wait come in.
    while inside.load(Relaxed) < pages_in_all {
        for _ in 0..pages_in_all / 150 {
            leave.notify_one();
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    leave.notify_waiters();
    pages.abort_all();
    while let Some(page) = pages.join_next().await {
        assert!(page.is_ok() || page.unwrap_err().is_cancelled());
    }
    let mut few = few;
    few.terminate();
    let mut log = String::new();
    few.process.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(log.contains("ulimit -n") && log.contains("Too many open files"), "{log}");

    let quiet = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let more = run(enough, &quiet.local_addr().unwrap().to_string()).await;
    let mut all = Vec::new();
    while all.len() < pages_in_all {
        all.extend(join_all((0..150.min(pages_in_all - all.len())).map(|_| more.page())).await);
    }
    eventually(async || more.sockets().await == pages_in_all).await;
    println!("T-035: {first} pages with {too_few} descriptors, {} with {enough}", all.len());
}

/// The resident memory of a process, in KiB.
fn memory(node: &Node) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", node.process.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A page with both products and its cart.
async fn shopper(node: &Node) -> (Page, String) {
    let [_, id, token, _] = node.shopper().await;
    let (mut page, topic) = (node.page().await, format!("cart:{id}"));
    for (topic, params) in [
        ("product:1", json!({})),
        ("product:2", json!({})),
        (&*topic, json!({ "token": token, "page": "/" })),
    ] {
        assert_eq!(page.join(topic, params).await["status"], "ok");
    }
    page.event(&topic, "cart").await;
    (page, topic)
}

#[tokio::test(flavor = "multi_thread")]
async fn p_016_a_burst_leaves_idle_shoppers_as_small_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&folder.path().join("store.db"), &[]).await;
    // The first pages of a process need what all later ones share.
    let _first = join_all((0..20).map(|_| shopper(&node))).await;
    let empty = memory(&node);
    let mut shoppers = Vec::new();
    while shoppers.len() < sockets() {
        shoppers.extend(join_all((0..20).map(|_| shopper(&node))).await);
    }
    let idle = memory(&node);
    node.release(1).await;
    node.release(2).await;
    let mut most = idle;
    for item in [1, 7, 2] {
        let change = async |(page, topic): &mut (Page, String), event: &str| {
            page.ask(topic, event, json!({ "item_id": item })).await;
        };
        join_all(shoppers.iter_mut().map(|shopper| change(shopper, "add_item"))).await;
        most = most.max(memory(&node));
        join_all(shoppers.iter_mut().map(|shopper| change(shopper, "remove_item"))).await;
    }
    let each = idle.saturating_sub(empty) / sockets() as u64;
    println!("P-016: {each} KiB a shopper; {idle} KiB idle, {most} KiB in a burst");
    eventually(async || memory(&node) * 10 <= idle * 12).await;
    println!("P-016: {} KiB after it", memory(&node));
}

/// Heartbeats are answered while carts are drawn. A socket has many carts here, so its frames are in the order in which the
/// node has written them.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_answered_while_very_many_carts_are_drawn() {
    const CARTS: usize = 90;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("store.db");
    let node = Node::start(&db, &["--release", "1"]).await;
    eventually(async || node.shows(1).await).await;
    let stock = |count: i64| {
        let set =
            "UPDATE item_availabilities SET available_count = ?, rev = rev + 1 WHERE item_id = 1";
        Connection::open(&db).unwrap().execute(set, [count]).unwrap();
    };
    let (mut first, topic) = shopper(&node).await;
    let added = first.ask(&topic, "add_item", json!({ "item_id": 1 })).await;
    let serialized = &added["response"]["serialized"];
    assert!(serialized.is_string(), "{added}");
    let come = async || {
        let mut page = node.page().await;
        for _ in 0..CARTS {
            let [_, id, token, _] = node.shopper().await;
            let topic = format!("cart:{id}");
            let params = json!({ "token": token, "page": "/", "serialized": serialized });
            assert_eq!(page.join(&topic, params).await["status"], "ok");
            assert_eq!(page.event(&topic, "cart").await["items"][0]["id"], 1);
            // A client may say twenty things a second.
            sleep(Duration::from_millis(60)).await;
        }
        page
    };
    let mut pages = join_all((0..sockets().div_ceil(50)).map(|_| come())).await;
    for round in 0..20 {
        stock(if round % 2 == 0 { 0 } else { 5 });
        let answered = join_all(pages.iter_mut().map(async |page| {
            let (mut sink, mut stream) = (&mut page.stream).split();
            let beats = async {
                loop {
                    let beat = json!([null, "beat", "phoenix", "heartbeat", {}]).to_string();
                    sink.send(Message::text(beat)).await.unwrap();
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let listens = async {
                let (mut carts, mut between) = (0, 0);
                while carts < CARTS {
                    let Message::Text(text) = stream.next().await.unwrap().unwrap() else {
                        continue;
                    };
                    let message: Value = serde_json::from_str(&text).unwrap();
                    if message[3] == "cart" {
                        carts += 1;
                    } else if message[1] == "beat" && carts > 0 {
                        between += 1;
                    }
                }
                between
            };
            tokio::select! {
                between = timeout(LONG, listens) => between.expect("all carts are drawn"),
                _ = beats => unreachable!("it never ends"),
            }
        }))
        .await;
        println!("P-015: heartbeats between the carts of each socket: {answered:?}");
        if answered.iter().sum::<usize>() > 0 {
            return;
        }
    }
    panic!("heartbeats wait until all carts are drawn");
}

/// Compression is off, because what it saves of a release is little next to the page that gets it.
#[tokio::test(flavor = "multi_thread")]
async fn the_release_of_a_product_is_too_small_to_be_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&folder.path().join("store.db"), &[]).await;
    let mut page = node.page().await;
    page.join("product:1", json!({})).await;
    let html = node.get("/", &[]).await.body;
    let mut bytes = html.len();
    for text in ["src=\"/assets/", "href=\"/assets/"] {
        for asset in html.split(text).skip(1) {
            let path = format!("/assets/{}", asset.split('"').next().unwrap());
            bytes += node.get(&path, &[]).await.body.len();
        }
    }
    node.release(1).await;
    let released = page.take(|message| message[3] == "released").await.to_string();
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut deflate, released.as_bytes()).unwrap();
    let compressed = deflate.finish().unwrap().len();
    println!(
        "P-018: a release has {} bytes, compressed {compressed}; the page that gets it {bytes}",
        released.len()
    );
    assert!(released.len() < 4096, "then it is time to measure again");
    // Two products are released while the page is open.
    let saved = 2 * (released.len() - compressed);
    assert!(saved * 20 < bytes, "{saved} of {bytes} bytes are saved");

    // So the offer of a client is not taken.
    let mut stream = TcpStream::connect(&node.address).await.unwrap();
    let request = format!(
        "GET /product_socket/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-extensions: permessage-deflate\r\n\r\n",
        node.address
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(LONG, stream.read_u8()).await.unwrap().unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.contains(" 101 ") && !head.contains("permessage-deflate"), "{head}");
}

/// Asks Redis to want a password.
async fn protect(shop: &Shop, password: &str) {
    let mut redis = TcpStream::connect(("127.0.0.1", shop.server.port())).await.unwrap();
    redis.write_all(format!("CONFIG SET requirepass {password}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 5];
    redis.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

/// A server of Redis by its name, with a password. The network of operators is not that of shoppers.
#[tokio::test(flavor = "multi_thread")]
async fn p_012_nodes_prove_themselves_by_a_secret_and_operators_have_a_network_of_their_own() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let password = "what-only-the-nodes-know";
    protect(&shop, password).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let node = async |password: Option<&str>, db: &Path| {
        let password = password.map(|it| format!(":{it}@")).unwrap_or_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command
            .args(["--host", "0.0.0.0", "--port", "0", "--admin-port", "0", "--db"])
            .arg(db)
            .env("STORE_REDIS", format!("redis://{password}localhost:{}/", shop.server.port()))
            .stderr(Stdio::piped());
        let node = Node::run(&mut command).await;
        eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
        node
    };
    let (mut a, b) =
        (node(Some(password), &shop.path()).await, node(Some(password), &shop.path()).await);
    let mut strangers = [
        node(None, &elsewhere.path().join("one.db")).await,
        node(Some("a-guess"), &elsewhere.path().join("other.db")).await,
    ];
    let (mut page, mut pages) = (a.page().await, Vec::new());
    page.join("product:1", json!({})).await;
    page.join("product:2", json!({})).await;
    for stranger in &strangers {
        // What it says, none of the others hears.
        stranger.release(1).await;
        let mut page = stranger.page().await;
        page.join("product:2", json!({})).await;
        pages.push(page);
    }
    b.release(2).await;
    page.event("product:2", "released").await;
    assert_eq!(page.count("released").await, 0);
    b.release(1).await;
    page.event("product:1", "released").await;
    // What the others say, it does not hear.
    for page in &mut pages {
        assert_eq!(page.count("released").await, 0);
    }
    for stranger in &mut strangers {
        stranger.terminate();
        let mut log = String::new();
        stranger.process.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        assert!(!log.contains("a-guess"), "{log}");
    }
    // Shoppers may come from anywhere. Operators come from this machine.
    let from_elsewhere = async |address: &str| {
        let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
        TcpStream::connect(("127.0.0.2", port)).await.is_ok()
    };
    assert!(from_elsewhere(&a.address).await);
    assert!(!from_elsewhere(&a.operator).await);
    a.terminate();
    let mut log = String::new();
    a.process.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(!log.contains(password) && !a.said.lock().join("\n").contains(password), "{log}");
}

/// Also shows P-012: a list of servers, of which one is enough.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_by_a_list_of_which_a_part_is_away() {
    let Some(shop) = Shop::over(Kind::Nats).await else { return };
    let list = format!("nats://127.0.0.1:1,{}", shop.server.url());
    let flags = ["--nats", &*list];
    let a = Node::start(&shop.path(), &flags).await;
    let b = Node::start(&shop.path(), &flags).await;
    let mut page = a.page().await;
    page.join("product:1", json!({})).await;
    let began = Instant::now();
    b.release(1).await;
    page.event("product:1", "released").await;
    println!("P-012: heard after {:?}", began.elapsed());
    assert!(b.get("/admin", &[ADMIN]).await.head.contains(" 200 "));
}
