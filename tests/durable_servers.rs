//! The example with a queue at a server, as a process.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{collections::BTreeSet, sync::mpsc, thread, time::Duration};

use futures::StreamExt;
use parking_lot::Mutex;
use pipeline::sources::{
    Item,
    kafka::{KafkaOptions, KafkaQueue},
    nats::NatsQueue,
    postgres::PostgresQueue,
    rabbitmq::RabbitQueue,
    redis::RedisQueue,
};
use pipeline_test_support::{
    Client, Example, PATIENCE, connect,
    servers::{Kind, Server},
};
use rdkafka::mocking::MockCluster;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const NDJSON: &str = "application/x-ndjson";

async fn user(example: &Example, user: u64) -> Client {
    let mut client = connect(&example.socket_url(user).await).await.unwrap();
    client.join("1", &format!("user:{user}")).await;
    client
}

fn lines(numbers: impl Iterator<Item = u64>) -> String {
    let push = |n| json!({ "user_id": 1, "event": "push_timed", "data": { "n": n } }).to_string();
    numbers.map(push).collect::<Vec<_>>().join("\n")
}

async fn number(client: &mut Client) -> u64 {
    client.receive().await[4]["data"]["n"].as_u64().unwrap()
}

/// Waits until the page's data about the queue are so.
async fn until(example: &Example, what: &str, holds: impl Fn(&Value) -> bool) {
    let waiting = async {
        while !holds(&example.request("GET", "/queue", "", "").await.json()) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Waits until an inspector shows that the source is so.
async fn until_inspected(example: &Example, what: &str, holds: impl Fn(&Value) -> bool) {
    let waiting = async {
        loop {
            let view = example.request("GET", "/inspect/data.json", "", "").await.json();
            if holds(&view["pipelines"][0]["stages"][0]["source"]) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    // The delays before a source connects again have grown to half a minute after a long outage.
    timeout(PATIENCE * 4, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Adds an item as another program does.
async fn add(kind: Kind, url: &str, payload: &str) {
    let item = Item::new(payload.to_owned()).key("1");
    match kind {
        Kind::Redis => {
            RedisQueue::open(url, "pushes").unwrap().push(item).await.unwrap();
        }
        Kind::Nats => {
            NatsQueue::new(url, "pushes").unwrap().push(item).await.unwrap();
        }
        Kind::Postgres => {
            PostgresQueue::open(url, "pushes").unwrap().push(item).await.unwrap();
        }
        Kind::RabbitMq => {
            RabbitQueue::new(url, "pushes").unwrap().push(item).await.unwrap();
        }
    }
}

/// Runs the command `dead-letters` with the queue. Returns whether it succeeded, and its output.
async fn dead_letters(url: &str, flags: &[&str]) -> (bool, String) {
    let (status, printed) =
        Example::run(&[&["dead-letters", "--source", url], flags].concat()).await;
    (status.success(), printed)
}

/// Every push that was accepted reaches its user, also if the process is killed; what is not valid is a dead
/// letter, which an operator can manage.
async fn pushes_survive_the_process(kind: Kind) {
    const MANY: u64 = 100;
    let Some(mut server) = Server::start(kind).await else { return };
    let url = server.url();
    let start = async |flags: &[&str]| {
        Example::start(&[&["--source", &url, "--lease-secs", "2"], flags].concat()).await
    };
    let example = start(&["--max-demand", "2", "--delay-ms", "10"]).await;
    let mut ada = user(&example, 1).await;
    let response = example.request("POST", "/push", NDJSON, &lines(0..MANY)).await;
    assert_eq!((response.status, response.json()), (202, json!({ "accepted": MANY })));
    let mut seen = BTreeSet::new();
    for n in 0..20 {
        let number = number(&mut ada).await;
        // A queue of RabbitMQ that has just been made may refuse some for a moment: they are added again, behind
        // others of the same request.
        if kind != Kind::RabbitMq {
            assert_eq!(number, n, "in order");
        }
        seen.insert(number);
    }
    example.kill().await;

    let example = start(&[]).await;
    let mut ada = user(&example, 1).await;
    add(kind, &url, &lines(MANY..=MANY)).await;
    while seen.len() <= usize::try_from(MANY).unwrap() {
        seen.insert(number(&mut ada).await);
    }
    until(&example, "it is empty", |queue| queue["backlog"] == 0).await;
    until(&example, "nothing was given up", |queue| queue["dead_letters"] == 0).await;

    // A wrong name is no empty queue, and makes none.
    for action in [&["list"][..], &["drop", "--all"]] {
        let (done, printed) =
            dead_letters(&url, &[&["--source-name", "wrong"], action].concat()).await;
        assert!(!done && !printed.contains("dropped"), "{printed}");
        assert!(printed.contains("there is no ") && printed.contains(r#""wrong""#), "{printed}");
    }

    add(kind, &url, "nonsense").await;
    until(&example, "it is given up", |queue| queue["dead_letters"] == 1).await;
    let (done, printed) = dead_letters(&url, &["list", "--json"]).await;
    assert!(done, "{printed}");
    // The clients of some servers write to the log.
    let line = printed.lines().find(|line| line.starts_with('{')).unwrap();
    let dead: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&dead["payload"], &dead["key"]), (&json!("nonsense"), &json!("1")));
    let id = dead["id"].as_str().unwrap();
    let (done, printed) = dead_letters(&url, &["show", id]).await;
    assert!(done && printed.contains("expected ident"), "{printed}");
    let (done, printed) = dead_letters(&url, &["show", "\u{1b}x"]).await;
    let is_said = ["is no id", "there is no dead letter"].iter().any(|it| printed.contains(it));
    assert!(!done && is_said && !printed.contains('\u{1b}'), "{printed}");
    let (done, printed) = dead_letters(&url, &["replay", "--all"]).await;
    assert!(done && printed.contains("1 replayed"), "{printed}");
    // What the page shows may be of before.
    while !dead_letters(&url, &["list", "--json"]).await.1.contains("nonsense") {
        sleep(Duration::from_millis(50)).await;
    }
    let (done, printed) = dead_letters(&url, &["drop", "--all"]).await;
    assert!(done && printed.contains("1 dropped"), "{printed}");

    until_inspected(&example, "the source is connected", |source| source["connected"] == true)
        .await;
    // What the server has not confirmed is not accepted, and says so.
    server.kill();
    let response = example.push(&lines(0..1)).await;
    assert_eq!(response.status, 503);
    let error = response.json()["errors"][0]["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("the queue cannot store it: "), "{error}");
    assert!(!error.contains("guest"), "{error}");
    until_inspected(&example, "the outage is shown", |source| {
        let errors = source["connection_errors"].as_u64();
        source["connected"] == false && errors > Some(0) && source["last_error"].is_string()
    })
    .await;
    // A queue of this RabbitMQ may have no leader after its death.
    if kind != Kind::RabbitMq {
        server.start_again().await;
        until_inspected(&example, "it is over", |source| source["connected"] == true).await;
    }
}

#[tokio::test]
async fn pushes_in_redis_survive_the_process() {
    pushes_survive_the_process(Kind::Redis).await;
}

#[tokio::test]
async fn pushes_in_nats_survive_the_process() {
    pushes_survive_the_process(Kind::Nats).await;
}

#[tokio::test]
async fn pushes_in_postgres_survive_the_process() {
    pushes_survive_the_process(Kind::Postgres).await;
}

#[tokio::test]
async fn pushes_in_rabbitmq_survive_the_process() {
    pushes_survive_the_process(Kind::RabbitMq).await;
}

/// Confirms each push, and keeps its number, until the client is closed.
async fn confirming(mut client: Client, topic: &str, seen: &Mutex<BTreeSet<u64>>) {
    while let Some(Ok(message)) = client.stream.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message[3] == "push_timed" {
            seen.lock().insert(message[4]["data"]["n"].as_u64().unwrap());
            client.send(json!(["1", "2", topic, "ack", { "id": message[4]["ack"] }])).await;
        }
    }
}

#[tokio::test]
async fn two_processes_of_a_cluster_read_from_one_queue_and_each_push_finds_its_user() {
    const MANY: u64 = 100;
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let url = server.url();
    let flags = ["--source", &url, "--cluster", &url, "--acknowledge", "confirmed"];
    let [one, other] = [Example::start(&flags).await, Example::start(&flags).await];
    let (ada, joe) = (user(&one, 1).await, user(&other, 2).await);
    let push = |user: u64, n: u64| {
        json!({ "user_id": user, "event": "push_timed", "data": { "n": n } }).to_string()
    };
    let pushes = (0..MANY).flat_map(|n| [push(1, n), push(2, n)]).collect::<Vec<_>>().join("\n");
    assert_eq!(one.request("POST", "/push", NDJSON, &pushes).await.status, 202);
    // They confirm all that comes, also again, until nothing is left.
    let seen = [Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new())];
    let all_done = async {
        let many = usize::try_from(MANY).unwrap();
        while seen.iter().any(|seen| seen.lock().len() < many) {
            sleep(Duration::from_millis(50)).await;
        }
        until(&one, "all are done", |queue| queue["backlog"] == 0).await;
    };
    tokio::select! {
        () = confirming(ada, "user:1", &seen[0]) => panic!("the first client was closed"),
        () = confirming(joe, "user:2", &seen[1]) => panic!("the second client was closed"),
        done = timeout(PATIENCE * 3, all_done) => done.unwrap(),
    }
    until(&one, "none was given up", |queue| queue["dead_letters"] == 0).await;
}

#[tokio::test]
async fn an_address_that_is_no_server_is_refused_without_its_password() {
    for address in ["http://user:MARK@host", "redis://user:MARK@host:port"] {
        let (status, printed) = Example::run(&["--port", "0", "--source", address]).await;
        assert!(!status.success() && printed.contains("error: "), "{printed}");
        assert!(!printed.contains("MARK"), "{printed}");
    }
}

/// The address of a cluster of Kafka, which is there until the sender is gone. The client library has it, and it
/// speaks the protocol.
fn kafka() -> (String, mpsc::Sender<()>) {
    let (alive, is_alive) = mpsc::channel::<()>();
    let (started, servers) = mpsc::channel();
    thread::spawn(move || {
        let cluster = MockCluster::new(1).unwrap();
        for (topic, partitions) in [("pushes", 2), ("pushes.dead-letters", 1)] {
            cluster.create_topic(topic, partitions, 1).unwrap();
        }
        started.send(cluster.bootstrap_servers()).unwrap();
        let _ = is_alive.recv();
    });
    (format!("kafka://{}", servers.recv().unwrap()), alive)
}

#[tokio::test]
async fn pushes_in_kafka_survive_the_process_and_an_operator_manages_those_that_are_given_up() {
    const MANY: u64 = 100;
    let (url, _cluster) = kafka();
    let start = async |flags: &[&str]| Example::start(&[&["--source", &url], flags].concat()).await;
    let example = start(&["--max-demand", "2", "--delay-ms", "10"]).await;
    let mut ada = user(&example, 1).await;
    let response = example.request("POST", "/push", NDJSON, &lines(0..MANY)).await;
    assert_eq!((response.status, response.json()), (202, json!({ "accepted": MANY })));
    let mut seen = BTreeSet::new();
    for n in 0..20 {
        assert_eq!(number(&mut ada).await, n, "in order");
        seen.insert(n);
    }
    example.kill().await;

    let example = start(&[]).await;
    let mut ada = user(&example, 1).await;
    // The first is a member of the group until its session has ended, after 45 seconds.
    let rest = async {
        while seen.len() < usize::try_from(MANY).unwrap() {
            let Ok(message) = timeout(Duration::from_secs(10), ada.stream.next()).await else {
                ada.send(json!([null, "1", "phoenix", "heartbeat", {}])).await;
                continue;
            };
            let Message::Text(text) = message.unwrap().unwrap() else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            seen.extend(message[4]["data"]["n"].as_u64());
        }
    };
    timeout(PATIENCE * 4, rest).await.unwrap();
    until(&example, "it is empty", |queue| queue["backlog"] == 0).await;
    assert_eq!(example.push(&lines(MANY..=MANY)).await.status, 202);
    assert_eq!(number(&mut ada).await, MANY);
    let listed = async || -> Vec<Value> {
        let (done, printed) = dead_letters(&url, &["list", "--json"]).await;
        assert!(done, "{printed}");
        // The client library writes to the log.
        let letters = printed.lines().filter(|line| line.starts_with('{'));
        letters.map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert!(listed().await.is_empty(), "nothing was given up");
    for action in [&["list"][..], &["drop", "--all"]] {
        let (done, printed) =
            dead_letters(&url, &[&["--source-name", "wrong"], action].concat()).await;
        let is_said = printed.contains("the topic wrong.dead-letters cannot be used");
        assert!(!done && is_said && !printed.contains("dropped"), "{printed}");
    }

    let item = Item::new("nonsense").key("1");
    KafkaQueue::new(url.trim_start_matches("kafka://"), "pushes", "other", KafkaOptions::new())
        .push(item)
        .await
        .unwrap();
    let given_up = async {
        loop {
            let letters = listed().await;
            if !letters.is_empty() {
                return letters;
            }
        }
    };
    let letters = timeout(PATIENCE, given_up).await.unwrap();
    assert_eq!((letters.len(), &letters[0]["payload"]), (1, &json!("nonsense")));
    let id = letters[0]["id"].as_str().unwrap();
    let (done, printed) = dead_letters(&url, &["show", id]).await;
    assert!(done && printed.contains("expected ident"), "{printed}");
    let (done, printed) = dead_letters(&url, &["replay", "--all"]).await;
    assert!(done && printed.contains("1 replayed"), "{printed}");
    // It is as wrong as before.
    let again = async { while listed().await.first().is_none_or(|letter| letter["id"] == id) {} };
    timeout(PATIENCE, again).await.unwrap();
    let (done, printed) = dead_letters(&url, &["drop", "--all"]).await;
    assert!(done && printed.contains("1 dropped"), "{printed}");
    assert!(listed().await.is_empty(), "it was dropped");
}
