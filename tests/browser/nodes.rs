//! The table of the nodes on the inspector's page, with nodes that a real server connects.

use axum::Router;
use pipeline::{
    cluster::{Cluster, ClusterOptions},
    inspect::Inspector,
    ws::{Endpoint, Mount, listen},
};
use pipeline_test_support::{
    AnyChannel, AnySocket, PATIENCE, connect,
    servers::{Kind, Server},
};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Duration, sleep, timeout},
};

use crate::driver::Browser;

/// A node with an inspector, until it is dropped.
struct Node {
    address: String,
    cluster: Cluster,
    endpoint: Endpoint,
    _tasks: JoinSet<()>,
}

async fn node(server: &Server, name: &str) -> Node {
    let options = ClusterOptions::new("browser").node(name);
    let cluster = Cluster::redis(&server.url(), options).await.unwrap();
    let sockets = Mount::new(AnySocket).channel::<AnyChannel>("user:*");
    let builder = Endpoint::builder().mount("/socket", sockets).adapter(cluster.clone());
    let endpoint = builder.build().unwrap();
    timeout(PATIENCE, cluster.connected()).await.unwrap();
    let inspector = Inspector::builder().endpoint(endpoint.observer()).build().unwrap();
    let app = Router::new().nest_service("/inspect", inspector).fallback_service(endpoint.clone());
    let listener = listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    Node { address, cluster, endpoint, _tasks: tasks }
}

/// The cells of the first three columns: name, state and sockets.
const ROWS: &str = "
    return [...document.querySelectorAll('#node-table tbody tr')]
        .map(row => [...row.cells].slice(0, 3).map(cell => cell.innerText))";

/// Waits until the table satisfies the condition.
async fn until(browser: &Browser, shows: impl Fn(&[[String; 3]]) -> bool) {
    let mut last = Vec::new();
    let looking = timeout(2 * PATIENCE, async {
        loop {
            let rows = browser.client.execute(ROWS, vec![]).await.unwrap();
            last = serde_json::from_value(rows).unwrap();
            if shows(&last) {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    let seen = looking.await;
    assert!(seen.is_ok(), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_all_nodes_what_they_do_and_which_are_gone() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let (one, two) = (node(&server, "one").await, node(&server, "two").await);
    let three = node(&server, "<b>three</b>").await;
    let url = format!("ws://{}/socket/websocket?vsn=2.0.0", two.address);
    let mut user = connect(&url).await.unwrap();
    user.join("1", "user:1").await;
    let browser = Browser::start().await;
    browser.client.goto(&format!("http://{}/inspect", one.address)).await.unwrap();
    let row = |name: &str, state: &str, sockets: &str| [name, state, sockets].map(str::to_owned);
    // The page itself is no socket of the endpoint.
    let all = [row("<b>three</b>", "up", "0"), row("one (this)", "up", "0"), row("two", "up", "1")];
    until(&browser, |rows| rows == all).await;
    // Nodes report to each other, so each sends and receives, and knows how long that takes.
    let traffic = "
        const rows = [...document.querySelectorAll('#node-table tbody tr')]
        return rows.every(row => [6, 7].every(at => /[1-9].*, .*[1-9].*[KMi ]*B.s/.test(row.cells[at].innerText))
            && /[0-9]/.test(row.cells[8].innerText))";
    let shows = timeout(2 * PATIENCE, async {
        while browser.client.execute(traffic, vec![]).await.unwrap() != json!(true) {
            sleep(Duration::from_millis(100)).await;
        }
    });
    shows.await.expect("the page shows the traffic between the nodes");
    let own = browser.client.execute("return document.querySelector('#node-table b')", vec![]);
    assert_eq!(own.await.unwrap(), json!(null), "the name of a node is text");

    // A node that ends is gone, and one that drains says so.
    let Node { cluster, endpoint, _tasks: tasks, .. } = three;
    drop((cluster, endpoint, tasks));
    until(&browser, |rows| rows.len() == 3 && rows[0][1].starts_with("gone for ")).await;
    drop(user);
    let draining = two.endpoint.clone();
    tokio::spawn(async move { draining.drain(Duration::from_secs(1)).await });
    until(&browser, |rows| rows.len() == 3 && rows[2][1] != "up").await;

    // Without the server between the nodes, this one is cut off.
    let mut server = server;
    server.kill();
    until(&browser, |rows| rows.len() == 3 && rows[1][1] == "cut off").await;
    browser.close().await;
    assert!(!one.cluster.is_connected());
}
