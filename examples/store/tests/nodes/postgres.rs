//! Nodes that share a database in PostgreSQL.

use std::{future::pending, path::Path, process::Stdio, sync::Arc, time::Duration};

use crate::{Answer, LONG, Node, eventually, hear};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use pipeline::sources::postgres::tokio_postgres::{Client, NoTls, connect};
use pipeline_test_support::servers::{Kind, Server};
use serde_json::{Value, json};
use store::{
    database::{
        BoughtBefore, CheckOut, Database, Order, PostgresDatabase, PostgresOptions, Release, Sale,
        seed::seed,
    },
    domain::{catalogue::Catalogue, ids},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// What the nodes sign with. They have no file that they share.
const SECRET: &str = "a secret of all nodes, long enough";

/// A client of the server, whose connection ends with it.
async fn client(server: &Server) -> Client {
    let (client, connection) = connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn at(server: &Server, seed: Catalogue, creates: bool) -> PostgresDatabase {
    PostgresDatabase::new(PostgresOptions { url: server.url(), seed, creates }).unwrap()
}

fn order(key: &str, cart: &str, items: &[i64]) -> Order {
    let (key, cart, items) = (key.to_owned(), cart.to_owned(), items.to_vec());
    Order { key, cart, items, placed_at: 1_700_000_000_000, knows: Vec::new() }
}

async fn at_once<T: Send + 'static>(
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    join_all(tasks).await.into_iter().map(Result::unwrap).collect()
}

/// What the tests of SQLite show, here over two handles with connections of their own.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_postgresql_sells_what_there_is_and_no_more() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    // It is not made by one that only waits, and by one of several that come at once.
    assert!(at(&server, seed(1), false).load().await.is_err());
    let handles = [0; 4].map(|_| Arc::new(at(&server, seed(1), true)));
    let loaded = at_once(handles.clone().map(|it| async move { it.load().await.unwrap() })).await;
    assert!(loaded.iter().all(|it| *it == seed(1)));
    let (database, other) = (&handles[0], &handles[1]);
    assert!(database.schedule(1, 5).await.unwrap() && !database.schedule(99, 5).await.unwrap());
    assert!(matches!(database.release(1).await.unwrap(), Release::Released(_)));
    assert_eq!(other.release(1).await.unwrap(), Release::AlreadyReleased);
    assert_eq!(other.release(99).await.unwrap(), Release::UnknownProduct);
    assert!(database.stock(1, -1).await.is_err(), "the database itself refuses it");
    for item in 1..=3 {
        assert!(database.stock(item, 10).await.unwrap().is_some());
    }
    assert_eq!(database.stock(99, 10).await.unwrap(), None);
    assert!(!database.schedule(1, 5).await.unwrap(), "it is released");

    let of = |n: usize| handles[n % 4].clone();
    let sales = at_once((0..40).map(|n| {
        let database = of(n);
        async move { database.sell(1).await.unwrap() }
    }));
    let sales = sales.await;
    assert_eq!(sales.iter().filter(|sale| matches!(sale, Sale::Sold(_))).count(), 10);
    assert_eq!(sales.iter().filter(|sale| **sale == Sale::OutOfStock).count(), 30);
    assert_eq!(database.sell(99).await.unwrap(), Sale::UnknownItem);

    // Carts in any order do not wait for each other, and one with an item that is gone takes none.
    let carts = at_once((0..40).map(|n| {
        let (database, cart) = (of(n), ids::cart_id().unwrap());
        let items = if n % 2 == 0 { [2, 3] } else { [3, 2] };
        async move { database.check_out(order("key", &cart, &items)).await.unwrap() }
    }));
    let carts = carts.await;
    assert_eq!(carts.iter().filter(|it| matches!(it, CheckOut::Placed(_))).count(), 10);
    assert_eq!(carts.iter().filter(|it| **it == CheckOut::Gone(vec![2, 3])).count(), 30);
    database.stock(2, 5).await.unwrap();
    let before = database.load().await.unwrap();
    let cart = ids::cart_id().unwrap();
    let gone = database.check_out(order("key", &cart, &[2, 3])).await.unwrap();
    assert_eq!(gone, CheckOut::Gone(vec![3]));
    let not_for_sale = database.check_out(order("key", &cart, &[2, 7, 99])).await.unwrap();
    assert_eq!(not_for_sale, CheckOut::NotForSale(vec![7, 99]));
    assert_eq!(database.load().await.unwrap(), before);

    // A form that is sent many times at once, and forms of one cart that tabs have drawn on their own.
    let same = at_once((0..12).map(|n| {
        let (database, order) = (of(n), order("same", &cart, &[2]));
        async move { database.check_out(order).await.unwrap() }
    }));
    let same = same.await;
    assert_eq!(same.iter().filter(|it| matches!(it, CheckOut::Placed(_))).count(), 1);
    assert_eq!(same.iter().filter(|it| **it == CheckOut::Repeated).count(), 11);
    let more = database.check_out(order("same", &cart, &[2, 3])).await.unwrap();
    assert_eq!(more, CheckOut::OtherItems);
    let own = ids::cart_id().unwrap();
    let tabs = at_once((0..8).map(|n| {
        let (database, order) = (of(n), order(&n.to_string(), &own, &[2]));
        async move { (n, database.check_out(order).await.unwrap()) }
    }));
    let tabs = tabs.await;
    let placed: Vec<_> = tabs.iter().filter(|it| matches!(it.1, CheckOut::Placed(_))).collect();
    assert_eq!(placed.len(), 1, "{tabs:?}");
    let bought = BoughtBefore { key: placed[0].0.to_string(), items: vec![2] };
    let refused = CheckOut::BoughtBefore(vec![bought.clone()]);
    assert_eq!(tabs.iter().filter(|it| it.1 == refused).count(), 7, "{tabs:?}");
    let knows = Order { knows: vec![bought.key], ..order("again", &own, &[2]) };
    assert!(matches!(database.check_out(knows).await.unwrap(), CheckOut::Placed(_)));
    let orders = database.orders().await.unwrap();
    assert_eq!(orders.len(), 13);
    assert_eq!(orders[12].items, [(2, 160)]);
    assert_eq!(database.load().await.unwrap().item(2).unwrap().available_count, 2);
}

/// Three nodes, of which two have a crowd, and each has a page. The server goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_over_postgresql_sell_everything_and_nothing_twice() {
    let Some(redis) = Server::start(Kind::Redis).await else { return };
    let Some(mut server) = Server::start(Kind::Postgres).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let node = async |name: &str, flags: &[&str]| {
        let (redis, url) = (redis.url(), server.url());
        let common = ["--node", name, "--redis", &redis, "--database", &url, "--secret", SECRET];
        let node = Node::start(&folder.path().join(name), &[&common, flags].concat()).await;
        assert!(!node.said.lock().iter().any(|line| line.contains(&url)));
        node
    };
    let a = node("a", &[]).await;
    let sql = client(&server).await;
    let number = async |text: &str| sql.query_one(text, &[]).await.unwrap().get::<_, i64>(0);
    sql.execute("UPDATE item_availabilities SET available_count = 15, rev = rev + 1", &[])
        .await
        .unwrap();
    let b = node("b", &["--release", "1", "--release", "2", "--sell", "60"]).await;
    let c = node("c", &["--sell", "60"]).await;
    let nodes = [a, b, c];
    for node in &nodes {
        let (mut page, mut known) = (node.page().await, vec![(0, String::new()); 12]);
        for topic in ["product:1", "product:2"] {
            let joined = page.join(topic, json!({})).await;
            for level in joined["response"]["levels"].as_array().unwrap() {
                hear(&mut known, level);
            }
        }
        while known.iter().any(|(_, level)| level != "out") {
            let change = page.take(|message| message[3] == "stock_change").await;
            hear(&mut known, &change[4]);
        }
    }
    let left = "SELECT sum(available_count)::bigint FROM item_availabilities";
    assert_eq!(number(left).await, 0);
    eventually(async || nodes[1].has_sold_out() && nodes[2].has_sold_out()).await;

    // One more pair. Two shoppers on two nodes want it, and a third node has a tab of each cart.
    sql.execute(
        "UPDATE item_availabilities SET available_count = 1, rev = rev + 1 WHERE item_id = 1",
        &[],
    )
    .await
    .unwrap();
    for node in &nodes {
        eventually(async || node.drawn_level(1).await == Some("low".to_owned())).await;
    }
    let mut buyers = Vec::new();
    for node in &nodes[1..] {
        let [cookie, id, token, csrf] = node.shopper().await;
        let topic = format!("cart:{id}");
        let (mut here, mut tab) = (node.page().await, nodes[0].page().await);
        for page in [&mut here, &mut tab] {
            let joined = page.join(&topic, json!({ "token": token, "page": "/" })).await;
            assert_eq!(joined["status"], "ok");
        }
        let added = here.ask(&topic, "add_item", json!({ "item_id": 1 })).await;
        let cart = added["response"]["serialized"].as_str().unwrap();
        let form = format!("serialized_cart={cart}&csrf_token={csrf}&key=k");
        tab.take(|it| it[3] == "cart" && it[4]["items"][0]["id"] == 1).await;
        buyers.push((node, cookie, form, tab));
    }
    let buy = async |(node, cookie, form, _): &(&Node, String, String, _)| {
        node.request("POST", "/checkout", &[cookie], form).await
    };
    let answers: Vec<Answer> = join_all(buyers.iter().map(&buy)).await;
    let worked: Vec<bool> =
        answers.iter().map(|it| it.head.contains("/checkout/complete")).collect();
    assert_eq!(worked.iter().filter(|worked| **worked).count(), 1);
    assert!(answers.iter().any(|it| it.head.contains(" 409 ")));
    assert_eq!((number("SELECT count(*) FROM orders").await, number(left).await), (1, 0));
    let winner = worked.iter().position(|worked| *worked).unwrap();
    let emptied = |it: &Value| it[3] == "cart" && it[4]["items"] == json!([]);
    buyers[winner].3.take(emptied).await;
    // The queue of placed orders is in the same database, and is emptied.
    eventually(async || number("SELECT count(*) FROM pipeline_items").await == 0).await;

    // Without the server pages are as before, and nothing is bought.
    server.kill();
    let refused = buy(&buyers[1 - winner]).await;
    assert!(refused.head.contains(" 503 "), "{}", refused.head);
    assert!(nodes[0].shows(1).await && nodes[0].shows(2).await);
    server.start_again().await;
    let again = buy(&buyers[1 - winner]);
    assert!(again.await.head.contains(" 409 "), "it is gone still");
}

/// A way to a server that can be cut without either side being told: what is open stays open and carries nothing, as where a
/// firewall has forgotten it.
struct Way {
    port: u16,
    is_cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Way {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (is_cut, cuts) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                ways.spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cuts.changed() => pending().await,
                    }
                });
            }
        });
        Self { port: own, is_cut, task }
    }
}

#[tokio::test]
async fn a_connection_that_was_not_used_for_long_is_not_waited_for() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let way = Way::to(server.port()).await;
    let url = server.url().replace(&server.port().to_string(), &way.port.to_string());
    let database = PostgresDatabase::new(PostgresOptions { url, seed: seed(1), creates: true });
    let database = database.unwrap();
    database.load().await.unwrap();
    way.is_cut.send_modify(|cuts| *cuts += 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(database.load().await.unwrap(), seed(1));
}

/// What is in a file of certificates or keys.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Has the server offer TLS, with a certificate for localhost. Returns it.
async fn offer_tls(sql: &Client) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = pem("CERTIFICATE", made.cert.der());
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    let folder: String = sql.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
    for (name, text) in [("server.crt", &certificate), ("server.key", &key)] {
        // Only the server itself may read its key.
        let write = format!("umask 077; base64 -d > {folder}/{name}");
        let text = STANDARD.encode(text);
        sql.batch_execute(&format!("COPY (SELECT '{text}') TO PROGRAM '{write}'")).await.unwrap();
    }
    sql.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    certificate
}

/// All connections of a node have TLS where its address asks for it, and none is made to a server that is not trusted.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_connected_to_postgresql_with_tls_where_its_address_says_so() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let sql = client(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, offer_tls(&sql).await).unwrap();
    let url = server.url().replace("127.0.0.1", "localhost") + "?sslmode=require";
    let node = async |trusted: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command
            .args(["--port", "0", "--admin-port", "0", "--secret", SECRET, "--release", "1"])
            .args(["--database", &url, "--db"])
            .arg(folder.path().join("unused.db"))
            .stderr(if trusted.is_some() { Stdio::null() } else { Stdio::piped() });
        if let Some(trusted) = trusted {
            command.env("SSL_CERT_FILE", trusted);
        }
        Node::run(&mut command).await
    };
    let one = node(Some(&trusted)).await;
    eventually(async || one.get("/", &[]).await.head.contains(" 200 ")).await;
    eventually(async || one.shows(1).await).await;
    let clients = async |is_with_tls: bool| {
        let clients = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND ssl = $1";
        sql.query_one(clients, &[&is_with_tls]).await.unwrap().get::<_, i64>(0)
    };
    // Those of the shop, and that of the queue of orders.
    let queue = "SELECT to_regclass('pipeline_items') IS NOT NULL";
    eventually(async || sql.query_one(queue, &[]).await.unwrap().get::<_, bool>(0)).await;
    assert!(clients(true).await >= 2);
    assert_eq!(clients(false).await, 0);
    drop(one);
    let mut stranger = node(None).await;
    let mut log = BufReader::new(stranger.process.stderr.take().unwrap()).lines();
    // It tries again and again, and says each time why it has no connection.
    for _ in 0..3 {
        let refused = async {
            loop {
                let line = log.next_line().await.unwrap().expect("it runs");
                if line.contains("the inventory was not loaded") {
                    return line;
                }
            }
        };
        let line = timeout(LONG, refused).await.expect("a connection is refused");
        assert!(line.contains("certificate"), "{line}");
        assert!(stranger.get("/", &[]).await.head.contains(" 503 "));
    }
}
