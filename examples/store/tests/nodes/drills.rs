//! Something is slow, and an operator finds out what.

use std::{collections::HashMap, sync::Arc};

use futures::{SinkExt, future::join_all};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{ADMIN, LONG, Node, Page, request};

/// What a node has sent to StatsD: each value of a name and its labels.
struct Sent {
    values: Arc<Mutex<HashMap<String, Vec<f64>>>>,
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sent {
    async fn listen() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let values = Arc::<Mutex<HashMap<String, Vec<f64>>>>::default();
        let heard = values.clone();
        let task = tokio::spawn(async move {
            let mut packet = vec![0; 65_536];
            while let Ok(length) = socket.recv(&mut packet).await {
                for line in String::from_utf8_lossy(&packet[..length]).lines() {
                    let Some((name, rest)) = line.split_once(':') else { continue };
                    let Some((value, rest)) = rest.split_once('|') else { continue };
                    let labels = rest.split_once('#').map_or("", |(_, labels)| labels);
                    if let Ok(value) = value.parse() {
                        heard.lock().entry(format!("{name} {labels}")).or_default().push(value);
                    }
                }
            }
        });
        Self { values, address, task }
    }

    /// The values of a name, with a label that has this text.
    fn of(&self, name: &str, label: &str) -> Vec<f64> {
        let values = self.values.lock();
        let is_it = |key: &str| key.split(' ').next() == Some(name) && key.contains(label);
        values.iter().filter(|(key, _)| is_it(key)).flat_map(|(_, values)| values.clone()).collect()
    }
}

/// The first object with this name, at any depth.
fn named<'a>(json: &'a Value, name: &str) -> Option<&'a Value> {
    match json {
        Value::Object(fields)
            if fields.get("name") == Some(&json!(name)) && fields.contains_key("busy_seconds") =>
        {
            Some(json)
        }
        Value::Object(fields) => fields.values().find_map(|field| named(field, name)),
        Value::Array(items) => items.iter().find_map(|item| named(item, name)),
        _ => None,
    }
}

/// The first number of this name, at any depth.
fn number(json: &Value, name: &str) -> Option<f64> {
    match json {
        Value::Object(fields) => match fields.get(name) {
            Some(found) => found.as_f64(),
            None => fields.values().find_map(|field| number(field, name)),
        },
        Value::Array(items) => items.iter().find_map(|item| number(item, name)),
        _ => None,
    }
}

struct Drill {
    what: &'static str,
    node: Node,
    sent: Sent,
    _page: Page,
}

impl Drill {
    async fn start(what: &'static str, folder: &std::path::Path, flags: &[&str]) -> Self {
        let sent = Sent::listen().await;
        let common =
            ["--release", "1", "--release", "2", "--sell", "20", "--statsd", &*sent.address];
        let node = Node::start(&folder.join(what), &[&common, flags].concat()).await;
        let mut page = node.page().await;
        page.join("product:1", json!({})).await;
        Self { what, node, sent, _page: page }
    }

    async fn inspected(&self) -> Value {
        let data = request(&self.node.operator, "GET", "/inspect/data.json", &[ADMIN], "").await;
        serde_json::from_str(&data.body).unwrap()
    }

    /// Some shoppers buy, one after the other.
    async fn buys(&self) {
        for key in 0..20 {
            let [cookie, id, token, csrf] = self.node.shopper().await;
            let mut page = self.node.page().await;
            let topic = format!("cart:{id}");
            page.join(&topic, json!({ "token": token, "page": "/" })).await;
            let added = page.adds(&topic, 6).await;
            let serialized = added["response"]["serialized"].as_str();
            let serialized = serialized.unwrap_or_else(|| panic!("{key}: {added}"));
            let form = format!("serialized_cart={serialized}&csrf_token={csrf}&key={key}");
            let bought = self.node.request("POST", "/checkout", &[&cookie], &form).await;
            assert!(bought.head.contains("/checkout/complete"), "{key}: {}", bought.head);
        }
    }
}

/// A client that says again and again that it is there, and reads none of the answers, until some wait at the server.
async fn deaf(drill: &Drill) -> WebSocketStream<TcpStream> {
    let node = &drill.node;
    let socket = TcpSocket::new_v4().unwrap();
    // Little of what it does not read waits at its own side.
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(node.address.parse().unwrap()).await.unwrap();
    let url = format!("ws://{}/product_socket/websocket?vsn=2.0.0", node.address);
    let (mut stream, _) = client_async(url, stream).await.unwrap();
    let beat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    let (began, mut sent) = (Instant::now(), 0.0);
    loop {
        for _ in 0..1_000 {
            stream.feed(Message::text(beat.clone())).await.unwrap();
        }
        stream.flush().await.unwrap();
        sent += 1_000.0;
        // The system takes some of the answers, and how many is its own affair.
        loop {
            let seen = drill.inspected().await;
            if number(&seen, "frames_waiting") > Some(500.0) {
                return stream;
            }
            if number(&seen, "frames_in") >= Some(sent) {
                break;
            }
            assert!(began.elapsed() < 2 * LONG, "nothing waits");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The least of some values. What the machine does meanwhile makes single ones longer, and none shorter.
fn least(values: &[f64]) -> f64 {
    values.iter().copied().reduce(f64::min).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn p_022_inspect_and_statsd_say_which_of_three_things_is_slow() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let drills = [
        Drill::start("nothing", folder, &[]).await,
        Drill::start("database", folder, &["--drill-database", "50"]).await,
        Drill::start("worker", folder, &["--drill-worker", "20"]).await,
        Drill::start("client", folder, &[]).await,
    ];
    join_all(drills.iter().map(Drill::buys)).await;
    let _deaf = deaf(&drills[3]).await;
    let began = Instant::now();
    // Each symptom in each node. A stage is busy for longer when the machine is, so its least busy window counts.
    let mut least_busy = [[f64::MAX; 2]; 4];
    let mut most_waiting = [0.0_f64; 4];
    let mut before = join_all(drills.iter().map(Drill::inspected)).await;
    for window in 0.. {
        let seen: Vec<_> = (0..4)
            .map(|at| {
                let sent = &drills[at].sent;
                let waited = sent.of("socket.frames_waiting", "").into_iter().fold(0.0, f64::max);
                [
                    // The stage that asks the database, and what a checkout takes.
                    (least_busy[at][0], least(&sent.of("store.checkout_time", ""))),
                    (least_busy[at][1], least(&sent.of(HANDLE_TIME, "stage:tell"))),
                    (most_waiting[at], waited),
                ]
            })
            .collect();
        if window > 1 && is_said(&seen) {
            for (drill, seen) in drills.iter().zip(&seen) {
                println!("P-022: {:8} database, worker, client: {seen:.3?}", drill.what);
            }
            println!("P-022: said after {window} windows, {:.0?}", began.elapsed());
            return;
        }
        assert!(window < WITHIN_A_MINUTE, "it is not said: {seen:?}");
        // Waits for the gauge, while the client is still there.
        let after = join_all(drills.iter().map(Drill::inspected)).await;
        for (at, after) in after.iter().enumerate() {
            most_waiting[at] = most_waiting[at].max(number(after, "frames_waiting").unwrap());
        }
        sleep(WINDOW).await;
        let after = join_all(drills.iter().map(Drill::inspected)).await;
        for (at, after) in after.iter().enumerate() {
            for (least, stage) in least_busy[at].iter_mut().zip(["inventory", "tell"]) {
                let busy = |json| number(named(json, stage).unwrap(), "busy_seconds").unwrap();
                *least = least.min(busy(after) - busy(&before[at]));
            }
        }
        before = after;
    }
}

/// How long an operator looks before the numbers are compared. The copy is compared every five seconds, so each window has a
/// comparison.
const WINDOW: Duration = Duration::from_secs(6);

/// How many windows a minute has, with some time for the requests between them.
const WITHIN_A_MINUTE: u32 = 9;

const HANDLE_TIME: &str = "pipeline.stage.handle_time";

/// Whether each symptom is at the node that has its cause, by the inspector and by `StatsD`, and is twice as large as at any
/// other.
fn is_said(seen: &[[(f64, f64); 3]]) -> bool {
    (0..3).all(|symptom| {
        let (inspected, sent) = seen[symptom + 1][symptom];
        let is_other = |at: &usize| *at != symptom + 1;
        let others = || (0..seen.len()).filter(is_other).map(|at| seen[at][symptom]);
        let inspected_of_others = others().map(|(inspected, _)| inspected).fold(0.0, f64::max);
        let sent_of_others = others().map(|(_, sent)| sent).fold(0.0, f64::max);
        inspected > 2.0 * inspected_of_others && sent > 2.0 * sent_of_others
    })
}
