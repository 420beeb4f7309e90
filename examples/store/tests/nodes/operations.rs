//! What operators do with nodes, and what happens to them.

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use futures::{SinkExt, StreamExt};
use pipeline_test_support::{
    proxies::{Backend, Balancer, Proxy},
    servers::Kind,
};
use rusqlite::{Connection, OptionalExtension, types::Value as Cell};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    process::Command,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{ADMIN, LONG, Node, Page, Shop, eventually, open, request};

/// The program alone, in an empty folder, has everything that the pages need.
#[tokio::test(flavor = "multi_thread")]
async fn p_001_one_file_is_all_that_is_deployed() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("store");
    // By another process: a file that this one writes cannot be run while another test starts a process.
    let copy = ["--", env!("CARGO_BIN_EXE_store"), program.to_str().unwrap()];
    assert!(Command::new("cp").args(copy).status().await.unwrap().success());
    let secret = "a secret that no log may have";
    let mut command = Command::new(&program);
    command
        .args(["--port", "0", "--admin-port", "0"])
        .current_dir(folder.path())
        .env_clear()
        .env("SECRET_KEY_BASE", secret)
        .env("STORE_ADMIN", "ann:pass of ann")
        .stderr(Stdio::piped());
    let mut node = Node::run(&mut command).await;
    eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
    let page = node.get("/", &[]).await.body;
    let app = node.get("/app", &[]).await.body;
    let mut paths: Vec<String> = Vec::new();
    for (html, before) in [(&page, "href=\""), (&page, "src=\""), (&app, "src=\"")] {
        let found = html.split(before).skip(1).map(|rest| rest.split('"').next().unwrap());
        let own = |path: &&str| path.starts_with("/assets/") || path.starts_with("/photos/");
        paths.extend(found.filter(own).map(str::to_owned));
    }
    assert!(paths.iter().any(|path| path.ends_with(".js")), "{paths:?}");
    assert!(paths.iter().any(|path| path.ends_with(".css")) && paths.len() >= 4, "{paths:?}");
    for path in &paths {
        assert!(node.get(path, &[]).await.head.contains(" 200 "), "{path}");
    }
    let admin = node.get("/admin", &["authorization: Basic YW5uOnBhc3Mgb2YgYW5u"]).await;
    assert!(admin.head.contains(" 200 "));
    node.terminate();
    let mut log = String::new();
    node.process.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    node.process.wait().await.unwrap();
    let said = node.said.lock().join("\n");
    for text in [&log, &said] {
        assert!(!text.contains(secret) && !text.contains("pass of ann"), "{text}");
    }
}

/// The database is moved away while no node runs, and back while one waits for it. After it, each state of the shop is there
/// again, from where it is kept.
///
/// Also shows P-002.
#[tokio::test(flavor = "multi_thread")]
async fn t_023_a_database_that_is_away_at_the_start_is_waited_for_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (db, away) = (folder.path().join("store.db"), folder.path().join("away.db"));
    let mut node = Node::start(&db, &["--release", "1"]).await;
    eventually(async || node.shows(1).await).await;
    let [cookie, id, token, csrf] = node.shopper().await;
    let topic = format!("cart:{id}");
    let mut page = node.page().await;
    page.join(&topic, json!({ "token": token, "page": "/" })).await;
    let add = async |page: &mut Page, item: i64| {
        let added = page.ask(&topic, "add_item", json!({ "item_id": item })).await;
        added["response"]["serialized"].as_str().unwrap().to_owned()
    };
    let serialized = add(&mut page, 1).await;
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let bought = node.request("POST", "/checkout", &[&cookie], &form).await;
    assert!(bought.head.contains("/checkout/complete"));
    page.take(|it| it[3] == "cart" && it[4]["items"] == json!([])).await;
    let serialized = add(&mut page, 2).await;
    let drawn = node.drawn_level(1).await;
    node.terminate();
    assert!(timeout(LONG, node.process.wait()).await.unwrap().unwrap().success());
    let rows = |db: &Path| -> (i64, i64, i64) {
        let counts = "SELECT (SELECT sum(available_count) FROM item_availabilities), (SELECT count(*) FROM orders),
            (SELECT count(*) FROM products WHERE released)";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        Connection::open(db).unwrap().query_row(counts, [], row).unwrap()
    };
    let before = rows(&db);
    assert_eq!((before.1, before.2), (1, 1));
    std::fs::rename(&db, &away).unwrap();

    let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
    command.args(["--port", "0", "--admin-port", "0", "--db"]).arg(&db);
    let node = Node::run(&mut command).await;
    let ready = async || request(&node.operator, "GET", "/readyz", &[], "").await.head;
    for _ in 0..3 {
        let page = node.get("/", &[&cookie]).await;
        assert!(page.head.contains(" 503 ") && page.head.contains("retry-after"), "{}", page.head);
        assert!(ready().await.contains(" 503 "));
        // It has looked for the database since.
        sleep(Duration::from_millis(100)).await;
    }
    assert!(request(&node.operator, "GET", "/livez", &[], "").await.head.contains(" 200 "));
    assert!(!db.exists(), "no other one is created");
    std::fs::rename(&away, &db).unwrap();
    eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
    assert!(ready().await.contains(" 200 "));

    assert_eq!(rows(&db), before, "products, stock and orders, from the database");
    assert!(node.shows(1).await && !node.shows(2).await);
    assert_eq!(node.drawn_level(1).await, drawn);
    let again = node.get("/", &[&cookie]).await;
    assert_eq!(again.after("name=\"cart-id\" content=\""), id, "the cart's id, from the cookie");
    let token = again.after("name=\"cart-token\" content=\"");
    let mut dashboard = node.dashboard().await;
    dashboard.join("admin:totals", json!({})).await;
    let mut page = node.page().await;
    page.join(&topic, json!({ "token": token, "page": "/", "serialized": serialized })).await;
    page.take(|it| it[3] == "cart" && it[4]["items"][0]["id"] == 2).await;
    // Who is there, from who connects.
    dashboard.take(|it| it[3] == "totals" && it[4]["items"]["2"] == 1).await;
}

/// Ann has a dashboard on each of two nodes, and Bob has one. An operator withdraws her access on one of the nodes.
#[tokio::test(flavor = "multi_thread")]
async fn a_108_an_admin_whose_access_is_withdrawn_is_out_of_all_nodes_and_stays_out() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let admins = ["--admin", "ann:one,bob:two"];
    let nodes = [
        shop.node("a", &[&["--fresh"][..], &admins].concat()).await,
        shop.node("b", &admins).await,
    ];
    let (ann, bob) = ("authorization: Basic YW5uOm9uZQ==", "authorization: Basic Ym9iOnR3bw==");
    let connect = async |node: &Node, protocols: &str| {
        let header = Some(("sec-websocket-protocol", protocols.to_owned()));
        open(&node.address, "admin_socket", header).await
    };
    let token = nodes[0].admin_protocols(ann).await;
    let mut dashboards = Vec::new();
    for node in &nodes {
        let mut page = connect(node, &token).await.unwrap();
        assert_eq!(page.join("admin:cart_tracker", json!({})).await["status"], "ok");
        dashboards.push(page);
    }
    let mut bobs = connect(&nodes[1], &nodes[1].admin_protocols(bob).await).await.unwrap();
    assert_eq!(bobs.join("admin:totals", json!({})).await["status"], "ok");
    let withdraw = async |name: &str, headers: &[&str]| {
        let path = format!("/admins/{name}/withdraw");
        request(&nodes[0].operator, "POST", &path, headers, "").await
    };
    assert!(withdraw("eve", &[]).await.head.contains(" 404 "));
    let of_a_page = withdraw("ann", &["origin: http://shop.example"]).await;
    assert!(of_a_page.head.contains(" 400 "), "{}", of_a_page.head);
    let done = withdraw("ann", &[]).await;
    assert!(done.head.contains(" 200 ") && done.body.contains("\"closed\":1"), "{}", done.body);
    for page in &mut dashboards {
        // However the socket ends, it does.
        while let Some(Ok(message)) = timeout(LONG, page.stream.next()).await.unwrap() {
            assert!(!matches!(message, Message::Binary(_)), "{message}");
        }
    }
    for node in &nodes {
        eventually(async || connect(node, &token).await.err() == Some(403)).await;
        assert!(node.get("/admin", &[ann]).await.head.contains(" 401 "));
        assert!(node.get("/admin", &[bob]).await.head.contains(" 200 "));
    }
    assert_eq!(bobs.join("admin:cart_tracker", json!({})).await["status"], "ok");
}

/// Two nodes behind a real load balancer. One of them is killed.
async fn behind(balancer: Balancer) {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    // The nodes choose their ports, so that two tests never choose the same.
    let nodes = [shop.node("a", &["--fresh"]).await, shop.node("b", &[]).await];
    let port = |address: &str| address.rsplit(':').next().unwrap().parse().unwrap();
    let backend =
        |node: &Node| Backend { port: port(&node.address), admin_port: port(&node.operator) };
    let backends = [backend(&nodes[0]), backend(&nodes[1])];
    let Some(proxy) = Proxy::start(balancer, &backends).await else { return };
    let page = async || request(&proxy.address, "GET", "/", &[], "").await;
    eventually(async || page().await.head.contains(" 200 ")).await;
    let join = async || {
        let opened = async || open(&proxy.address, "product_socket", None).await.ok();
        let mut page = loop {
            match opened().await {
                Some(page) => break page,
                None => sleep(Duration::from_millis(100)).await,
            }
        };
        let joined = page.join("product:1", json!({})).await;
        (page, joined)
    };
    let mut pages = Vec::new();
    for _ in 0..4 {
        let (page, joined) = join().await;
        assert_eq!(joined["status"], "ok", "{joined}");
        pages.push(page);
    }
    nodes[1].release(1).await;
    for page in &mut pages {
        page.event("product:1", "released").await;
    }
    // Which of them have pages is up to the balancer.
    eventually(async || nodes[0].shows(1).await).await;
    let [one, mut other] = nodes;
    // It has ended before the next page comes: a socket of a node that is about to end would end with it.
    other.process.kill().await.unwrap();
    // Pages of the other are cut off, come back, and are right.
    let (_page, joined) = timeout(LONG, join()).await.unwrap();
    assert_eq!(joined["response"]["released"], true);
    eventually(async || page().await.body.contains("size-container")).await;
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn p_003_nodes_are_behind_haproxy() {
    behind(Balancer::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_behind_nginx() {
    behind(Balancer::Nginx).await;
}

/// The close code, after everything that came before it.
async fn closed(page: &mut Page) -> u16 {
    loop {
        match timeout(LONG, page.stream.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(Message::Text(text))) => {
                page.events.push(serde_json::from_str(&text).unwrap());
            }
            Some(Ok(_)) => {}
            other => panic!("expected a close, got {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p_010_a_node_that_is_asked_to_end_tells_what_it_has_sold_and_says_what_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("store.db");
    let mut node = Node::start(&db, &["--release", "1"]).await;
    let mut page = node.page().await;
    page.join("product:1", json!({})).await;
    let [cookie, id, token, csrf] = node.shopper().await;
    let topic = format!("cart:{id}");
    page.join(&topic, json!({ "token": token, "page": "/" })).await;
    eventually(async || node.shows(1).await).await;
    let added = page.ask(&topic, "add_item", json!({ "item_id": 1 })).await;
    let serialized = added["response"]["serialized"].as_str().unwrap().to_owned();
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let bought = node.request("POST", "/checkout", &[&cookie], &form).await;
    assert!(bought.head.contains("/checkout/complete"));
    node.terminate();
    // It is not ready any more, or gone already.
    let ready = async || match TcpStream::connect(&node.operator).await {
        Ok(_) => request(&node.operator, "GET", "/readyz", &[], "").await.head.contains(" 200 "),
        Err(_) => false,
    };
    let at_close = closed(&mut page).await;
    assert_eq!(at_close, 1012);
    eventually(async || !ready().await).await;
    // The cart was emptied before the socket was closed.
    let emptied = |it: &Value| it[3] == "cart" && it[4]["items"] == json!([]);
    assert!(page.events.iter().any(emptied), "{:?}", page.events);
    assert!(timeout(LONG, node.process.wait()).await.unwrap().unwrap().success());
    eventually(async || node.said.lock().iter().any(|line| line.contains("telling"))).await;
}

/// A node is killed between the commit of an order and its answer, and no tab of the cart is open until another node has
/// looked at the order: the tab that comes then is emptied all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_after_a_commit_loses_no_confirmation() {
    let folder = tempfile::tempdir().unwrap();
    loses_no_confirmation(&folder.path().join("store.db"), None).await;
}

/// The other node runs meanwhile. It has no tab of the cart, and takes no tab elsewhere for granted.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_after_a_commit_loses_no_confirmation_while_another_one_runs() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    loses_no_confirmation(&shop.path(), Some(&shop)).await;
}

async fn loses_no_confirmation(db: &Path, shop: Option<&Shop>) {
    // Answers of the database come late, so there is time between the commit and the answer.
    let late = ["--release", "1", "--drill-database", "3000"];
    let (mut node, other) = match shop {
        None => (Node::start(db, &late).await, None),
        Some(shop) => (shop.node("a", &late).await, Some(shop.node("b", &[]).await)),
    };
    eventually(async || node.shows(1).await).await;
    let [cookie, id, token, csrf] = node.shopper().await;
    let topic = format!("cart:{id}");
    let mut page = node.page().await;
    page.join(&topic, json!({ "token": token, "page": "/" })).await;
    let added = page.ask(&topic, "add_item", json!({ "item_id": 3 })).await;
    let serialized = added["response"]["serialized"].as_str().unwrap().to_owned();
    drop(page);
    let database = Connection::open(db).unwrap();
    let row = || {
        let find = "SELECT available_at FROM pipeline_items";
        database.query_row(find, [], |row| row.get::<_, Cell>(0)).optional().unwrap()
    };
    // Until there is the queue, the order is not in it.
    let has_queue = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'pipeline_items')";
    eventually(async || database.query_row(has_queue, [], |row| row.get(0)).unwrap()).await;
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let mut buying = TcpStream::connect(&node.address).await.unwrap();
    let request = format!(
        "POST /checkout HTTP/1.1\r\nhost: {}\r\n{cookie}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
         content-length: {}\r\n\r\n{form}",
        node.address,
        form.len()
    );
    buying.write_all(request.as_bytes()).await.unwrap();
    let orders = "SELECT count(*) FROM orders";
    eventually(async || database.query_row(orders, [], |row| row.get::<_, i64>(0)).unwrap() == 1)
        .await;
    node.process.kill().await.unwrap();
    let left = row();
    let node = match other {
        Some(other) => other,
        None => Node::start(db, &[]).await,
    };
    // The next node has looked at it. Its first look is later, if the one before had taken it.
    eventually(async || row() != left || row().is_none()).await;
    let mut page = node.page().await;
    page.join(&topic, json!({ "token": token, "page": "/", "serialized": serialized })).await;
    page.take(|it| it[3] == "cart" && it[4]["items"] == json!([])).await;
    eventually(async || row().is_none()).await;
}

/// The second command of the README, typed while the first one still runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_port_that_is_taken_removes_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("store.db");
    let node = Node::start(&db, &[]).await;
    let port = node.address.rsplit(':').next().unwrap();
    let mut second = Command::new(env!("CARGO_BIN_EXE_store"));
    second.args(["--fresh", "--port", port, "--admin-port", "0", "--db"]).arg(&db);
    second.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!second.status().await.unwrap().success());
    for file in ["store.db", "store.db.created"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}

/// The server of the cluster is away. Nodes sell all the same, and pages are right a few seconds later. A metric says it.
#[tokio::test(flavor = "multi_thread")]
async fn p_011_without_the_broker_nodes_sell_and_find_changes_by_comparing() {
    let Some(mut shop) = Shop::over(Kind::Redis).await else { return };
    let statsd = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = statsd.local_addr().unwrap().to_string();
    let a = shop.node("a", &["--fresh", "--release", "1", "--statsd", &to]).await;
    shop.stock(1);
    let b = shop.node("b", &[]).await;
    eventually(async || a.drawn_level(1).await == Some("low".to_owned())).await;
    let mut page = a.page().await;
    page.join("product:1", json!({})).await;
    shop.server.kill();
    let [cookie, id, token, csrf] = b.shopper().await;
    let mut tab = b.page().await;
    let topic = format!("cart:{id}");
    tab.join(&topic, json!({ "token": token, "page": "/" })).await;
    let added = tab.ask(&topic, "add_item", json!({ "item_id": 1 })).await;
    let serialized = added["response"]["serialized"].as_str().unwrap().to_owned();
    let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key=k");
    let bought = b.request("POST", "/checkout", &[&cookie], &form).await;
    assert!(bought.head.contains("/checkout/complete"), "{}", bought.head);
    tab.take(|it| it[3] == "cart" && it[4]["items"] == json!([])).await;
    // The other node finds it when it compares.
    page.take(|it| it[3] == "stock_change" && it[4]["item_id"] == 1 && it[4]["level"] == "out")
        .await;
    let says = async |value: &str| {
        let wanted = format!("pipeline.cluster.connected:{value}|g");
        let mut packet = vec![0; 65_536];
        let heard = async {
            loop {
                let length = statsd.recv(&mut packet).await.unwrap();
                if String::from_utf8_lossy(&packet[..length]).contains(&wanted) {
                    return;
                }
            }
        };
        timeout(LONG, heard).await.expect("the metric says it");
    };
    says("0").await;
    shop.server.start_again().await;
    says("1").await;
    b.release(2).await;
    eventually(async || a.shows(2).await).await;
}

/// Also shows A-104, for the build that the test is part of: `cargo test --release` shows it for a release.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_not_for_debugging_does_not_start_without_an_admin() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("store.db");
    if cfg!(debug_assertions) {
        let node = Node::start(&db, &[]).await;
        assert!(node.get("/admin", &[ADMIN]).await.head.contains(" 200 "));
    } else {
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command.args(["--port", "0", "--admin-port", "0", "--db"]).arg(&db).kill_on_drop(true);
        let ended = timeout(LONG, command.output()).await.unwrap().unwrap();
        assert!(!ended.status.success());
        assert!(String::from_utf8_lossy(&ended.stderr).contains("--admin"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p_017_pages_of_other_hosts_cannot_connect() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&folder.path().join("store.db"), &[]).await;
    let own = format!("http://{}", node.address);
    for socket in ["product_socket", "admin_socket"] {
        for foreign in ["http://shop.example", "https://127.0.0.1.example", "null"] {
            let refused = open(&node.address, socket, Some(("origin", foreign.to_owned()))).await;
            assert_eq!(refused.err(), Some(403), "{socket} from {foreign}");
        }
    }
    let mut page = open(&node.address, "product_socket", Some(("origin", own))).await.unwrap();
    assert_eq!(page.join("product:1", json!({})).await["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn p_018_a_frame_of_a_shopper_has_at_most_16_kib() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&folder.path().join("store.db"), &[]).await;
    let (mut page, mut other) = (node.page().await, node.page().await);
    let beat = |length: usize| {
        let empty = json!([null, "1", "phoenix", "heartbeat", { "x": "" }]).to_string().len();
        json!([null, "1", "phoenix", "heartbeat", { "x": "x".repeat(length - empty) }]).to_string()
    };
    // Header and mask take 8 of the bytes.
    let most = (16 << 10) - 8;
    page.stream.send(Message::text(beat(most))).await.unwrap();
    page.take(|it| it[1] == "1").await;
    page.stream.send(Message::text(beat(most + 1))).await.unwrap();
    assert_eq!(closed(&mut page).await, 1009);
    assert_eq!(other.join("product:1", json!({})).await["status"], "ok");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn p_020_too_few_descriptors_are_said_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let most = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let most = most.split_whitespace().nth(4).unwrap().parse().unwrap_or(u64::MAX);
    // A system that does not allow more is not asked for more.
    for (limit, is_said) in [(256, true), (10_000, false)].into_iter().filter(|it| it.0 <= most) {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_store"))
            .args(["--port", "0", "--admin-port", "0", "--db"])
            .arg(folder.path().join("store.db"))
            .stderr(Stdio::piped());
        let mut node = Node::run(&mut command).await;
        eventually(async || node.get("/", &[]).await.head.contains(" 200 ")).await;
        node.terminate();
        let mut log = String::new();
        node.process.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        assert_eq!(log.contains("descriptors"), is_said, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p_021_an_operator_looks_into_a_node_that_sells() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("store.db");
    let node = Node::start(&db, &["--release", "1", "--release", "2", "--sell", "400"]).await;
    let mut page = node.page().await;
    page.join("product:1", json!({})).await;
    let data = request(&node.operator, "GET", "/inspect/data.json", &[ADMIN], "").await;
    assert!(data.head.contains(" 200 "), "{}", data.head);
    for text in ["telling", "alerts", "inventory", "replication", "totals", "product:*"] {
        assert!(data.body.contains(text), "no {text} in {}", data.body);
    }
    // It sells on.
    page.event("product:1", "stock_change").await;
}

/// Also shows T-024 and T-025: stages of a node that sells are killed through the inspector, again and again, and a page hears
/// that everything is gone. Without the flag of the drill, nothing is killed.
#[tokio::test(flavor = "multi_thread")]
async fn stages_that_an_operator_kills_during_a_sale_are_missed_by_no_page() {
    let folder = tempfile::tempdir().unwrap();
    let kill = async |node: &Node, pipeline: &str, stage: &str| {
        let path = format!("/inspect/end?pipeline={pipeline}&stage={stage}");
        request(&node.operator, "POST", &path, &["x-inspect: end"], "").await
    };
    let safe = Node::start(&folder.path().join("safe.db"), &[]).await;
    assert!(kill(&safe, "telling", "tell").await.head.contains(" 404 "));
    let db = folder.path().join("store.db");
    let flags = ["--drill-kill", "--release", "1", "--release", "2", "--sell", "200"];
    let node = Node::start(&db, &flags).await;
    let mut page = node.page().await;
    let joined = page.join("product:1", json!({})).await;
    let levels = joined["response"]["levels"].as_array().unwrap();
    let is_out = |level: &Value| level["level"] == "out";
    let id = |level: &Value| level["item_id"].as_i64().unwrap();
    let mut left: BTreeSet<i64> = levels.iter().filter(|it| !is_out(it)).map(id).collect();
    let stages = [("telling", "tell"), ("inventory", "inventory"), ("replication", "apply")];
    let (mut rounds, mut killed) = (0, 0);
    while !left.is_empty() {
        rounds += 1;
        // A stage that fails a hundred times in a minute is given up.
        for (pipeline, stage) in stages.into_iter().filter(|_| rounds <= 20) {
            // One that is being restarted does not run.
            let answer = kill(&node, pipeline, stage).await;
            assert!(answer.head.contains(" 200 "), "{}", answer.head);
            killed += usize::from(answer.body.contains("\"ended\":1"));
        }
        let change = page.event("product:1", "stock_change").await;
        if is_out(&change) {
            left.remove(&id(&change));
        } else {
            left.insert(id(&change));
        }
    }
    println!("T-025: {killed} stages were killed in {rounds} rounds");
    assert!(killed > 3, "{killed} stages were killed");
    assert!(node.get("/livez", &[]).await.head.contains(" 200 "));
}
