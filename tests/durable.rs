//! The example with a durable queue, as a process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use futures::StreamExt;
use pipeline_test_support::{Client, Example, PATIENCE, WallClock, connect};
use rusqlite::Connection;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

const NDJSON: &str = "application/x-ndjson";

/// A folder with the file of a queue.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> String {
        self.0.path().join("pushes.db").to_str().unwrap().to_owned()
    }

    /// Starts the example with the queue and these flags.
    async fn start(&self, flags: &[&str]) -> Example {
        Example::start(&[&["--durable", &self.file()], flags].concat()).await
    }

    fn open(&self) -> Connection {
        let connection = Connection::open(self.file()).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    }

    /// A number out of the file.
    fn count(&self, sql: &str) -> i64 {
        self.open().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn waiting(&self) -> i64 {
        self.count("SELECT count(*) FROM pipeline_items")
    }

    fn dead(&self) -> i64 {
        self.count("SELECT count(*) FROM pipeline_dead_letters")
    }
}

/// Waits until this holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn user(example: &Example, user: u64) -> Client {
    let mut client = connect(&example.socket_url(user).await).await.unwrap();
    client.join("1", &format!("user:{user}")).await;
    client
}

fn push(user: u64, data: &Value) -> String {
    json!({"user_id": user, "event": "push_timed", "data": data}).to_string()
}

/// The number of the next push.
async fn number(client: &mut Client) -> u64 {
    client.receive().await[4]["data"]["n"].as_u64().unwrap()
}

fn lines(numbers: impl Iterator<Item = u64>) -> String {
    numbers.map(|n| push(1, &json!({ "n": n }))).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_push_is_on_the_disk_when_it_is_accepted_and_reaches_its_user() {
    let folder = Folder::new();
    // Nothing is pushed while the worker waits.
    let example = folder.start(&["--delay-ms", "3600000", "--drain-secs", "0"]).await;
    let response = example.push(&push(7, &json!({"text": "hello"}))).await;
    assert_eq!((response.status, response.json()), (202, json!({"accepted": 1})));
    let stored = "SELECT CAST(payload AS TEXT), key FROM pipeline_items";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (payload, key): (String, String) = folder.open().query_row(stored, [], row).unwrap();
    let payload: Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(payload, json!({"user_id": 7, "event": "push_timed", "data": {"text": "hello"}}));
    assert_eq!(key, "7");
    // A drain gives back what it has not handled. Nothing is lost.
    example.signal("-TERM").await;
    example.wait().await;
    assert_eq!(folder.count("SELECT deliveries FROM pipeline_items WHERE available_at = 0"), 0);

    let mut example = folder.start(&["--statsd-lines", "--delay-ms", "1000"]).await;
    let mut ada = user(&example, 7).await;
    let message = ada.receive().await;
    assert_eq!(message[4]["data"], json!({"text": "hello"}));
    until("it is forgotten", || folder.waiting() == 0).await;
    // From the enqueue: both processes had it.
    let line = example.line_with("pipeline.push_delivered:").await;
    let ms = line.split([':', '|']).nth(2).unwrap().parse::<f64>().unwrap();
    assert!(ms > 1000.0, "{line}");
}

#[tokio::test]
async fn every_accepted_push_reaches_its_user_although_the_process_is_killed() {
    const MANY: u64 = 300;
    let folder = Folder::new();
    let example = folder.start(&["--max-demand", "2", "--delay-ms", "5"]).await;
    let mut ada = user(&example, 1).await;
    let response = example.request("POST", "/push", NDJSON, &lines(0..MANY)).await;
    assert_eq!((response.status, response.json()), (202, json!({ "accepted": MANY })));
    let mut seen = BTreeSet::new();
    while seen.len() < 20 {
        seen.insert(number(&mut ada).await);
    }
    example.kill().await;
    let left = u64::try_from(folder.waiting()).unwrap();
    assert!(left > MANY / 2, "{left} were left");

    // The leases of the dead process end when they would: this only brings the time forward.
    let expire = "UPDATE pipeline_items SET available_at = 1 WHERE lease IS NOT NULL";
    folder.open().execute(expire, []).unwrap();
    let example = folder.start(&[]).await;
    let mut ada = user(&example, 1).await;
    while seen.len() < usize::try_from(MANY).unwrap() {
        seen.insert(number(&mut ada).await);
    }
    until("all are forgotten", || folder.waiting() == 0).await;
    assert_eq!(folder.dead(), 0);
}

#[tokio::test]
async fn a_push_for_a_user_who_is_not_there_is_kept_unless_the_program_was_told_otherwise() {
    let folder = Folder::new();
    let example = folder.start(&[]).await;
    assert_eq!(example.push(&push(1, &json!({ "n": 7 }))).await.status, 202);
    let looked_for = "SELECT count(*) FROM pipeline_items WHERE lease IS NULL AND available_at > 0";
    until("it was looked for and is kept", || folder.count(looked_for) == 1).await;
    let mut ada = user(&example, 1).await;
    assert_eq!(number(&mut ada).await, 7);
    until("it is forgotten", || folder.waiting() == 0).await;

    let folder = Folder::new();
    let example = folder.start(&["--keep-secs", "0"]).await;
    assert_eq!(example.push(&push(1, &json!({ "n": 7 }))).await.status, 202);
    until("it is forgotten", || folder.waiting() == 0).await;
}

#[tokio::test]
async fn a_push_that_was_kept_while_the_clock_was_ahead_is_not_held_up_once_it_is_right() {
    let Some(clock) = WallClock::new() else { return };
    let folder = Folder::new();
    clock.set(20 * 86_400);
    let file = folder.file();
    let example = Example::with_clock(&clock, &["--durable", &file]).await;
    let response = example.request("POST", "/push", NDJSON, &lines(0..20)).await;
    assert_eq!(response.status, 202);
    let looked_for = "SELECT count(*) FROM pipeline_items WHERE lease IS NULL AND available_at > 0
        AND available_at < 9223372036854775807";
    until("it was looked for and is kept", || folder.count(looked_for) == 1).await;
    clock.set(0);
    let response = example.request("POST", "/push", NDJSON, &lines(20..30)).await;
    assert_eq!(response.status, 202);
    let mut ada = user(&example, 1).await;
    for n in 0..30 {
        assert_eq!(number(&mut ada).await, n);
    }
    until("all are forgotten", || folder.waiting() == 0).await;
}

/// A client whose socket holds little that it has not read.
async fn slow_user(example: &Example, user: u64) -> Client<TcpStream> {
    let url = example.socket_url(user).await;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address: SocketAddr = example.address.parse().unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let stream = TcpStream::from_std(socket.into()).unwrap();
    let mut client = Client::over(stream, &url).await;
    client.join("1", &format!("user:{user}")).await;
    client
}

#[tokio::test]
async fn a_push_to_a_client_that_does_not_read_is_not_lost_when_the_process_is_killed() {
    const MANY: u64 = 300;
    let folder = Folder::new();
    let example = folder.start(&[]).await;
    let mut ada = slow_user(&example, 1).await;
    // More than the buffers between the two hold.
    let padding = "x".repeat(20_000);
    let body = (0..MANY).map(|n| push(1, &json!({ "n": n, "padding": padding })));
    let body = body.collect::<Vec<_>>().join("\n");
    let response = example.request("POST", "/push", NDJSON, &body).await;
    assert_eq!((response.status, response.json()), (202, json!({ "accepted": MANY })));
    // As many are done as the sockets hold.
    let (mut left, mut unchanged) = (folder.waiting(), 0);
    while unchanged < 20 {
        sleep(Duration::from_millis(25)).await;
        let now = folder.waiting();
        unchanged = if now == left { unchanged + 1 } else { 0 };
        left = now;
    }
    example.kill().await;
    assert!(left > 0 && left < i64::try_from(MANY).unwrap(), "{left} were left");
    // What the operating system has taken arrives.
    let mut seen = BTreeSet::new();
    while let Some(Ok(message)) = timeout(PATIENCE, ada.stream.next()).await.unwrap() {
        if let Message::Text(text) = message {
            let message: Value = serde_json::from_str(&text).unwrap();
            seen.insert(message[4]["data"]["n"].as_u64().unwrap());
        }
    }
    assert!(seen.len() < usize::try_from(MANY).unwrap(), "the buffers hold all of them");

    let expire = "UPDATE pipeline_items SET available_at = 1 WHERE lease IS NOT NULL";
    folder.open().execute(expire, []).unwrap();
    let example = folder.start(&[]).await;
    let mut ada = user(&example, 1).await;
    while seen.len() < usize::try_from(MANY).unwrap() {
        seen.insert(number(&mut ada).await);
    }
    assert_eq!(folder.dead(), 0);
}

#[tokio::test]
async fn a_push_is_done_when_it_has_come_as_far_as_the_program_was_told() {
    for level in ["taken-over", "handled", "written", "confirmed"] {
        let folder = Folder::new();
        let example = folder.start(&["--acknowledge", level]).await;
        let mut ada = user(&example, 1).await;
        assert_eq!(example.push(&push(1, &json!({ "n": 1 }))).await.status, 202);
        let message = ada.receive().await;
        assert_eq!(message[4]["data"]["n"], 1);
        if level == "confirmed" {
            assert_eq!(folder.waiting(), 1);
            let ack = json!({ "id": message[4]["ack"] });
            ada.send(json!(["1", "2", "user:1", "ack", ack])).await;
            assert_eq!(ada.receive().await[4]["status"], "ok");
        }
        until("it is forgotten", || folder.waiting() == 0).await;
    }
}

#[tokio::test]
async fn clients_that_do_not_read_delay_no_other_user_however_many_they_are() {
    let folder = Folder::new();
    let example = folder.start(&["--max-demand", "2"]).await;
    let mut joe = user(&example, 1).await;
    let mut slow = Vec::new();
    for user in 2..7 {
        slow.push(slow_user(&example, user).await);
    }
    // More than the buffers between each of them and the program hold.
    let padding = "x".repeat(40_000);
    for user in 2..7 {
        let body = (0..150).map(|n| push(user, &json!({ "n": n, "padding": padding })));
        let body = body.collect::<Vec<_>>().join("\n");
        assert_eq!(example.request("POST", "/push", NDJSON, &body).await.status, 202);
    }
    // All that wait for a client that does not read, and have left their workers to the others.
    let stuck = "SELECT count(*) FROM pipeline_items WHERE lease IS NOT NULL";
    let (mut left, mut unchanged) = (0, 0);
    let is_stuck = || {
        let now = folder.waiting();
        unchanged = if now == left && folder.count(stuck) == 5 { unchanged + 1 } else { 0 };
        left = now;
        unchanged == 20
    };
    until("all five are stuck", is_stuck).await;
    for n in 0..20 {
        assert_eq!(example.push(&push(1, &json!({ "n": n }))).await.status, 202);
        assert_eq!(number(&mut joe).await, n);
    }
    assert!(folder.count(stuck) > 0, "the other clients have taken everything");
}

#[tokio::test]
async fn the_pushes_of_a_user_leave_the_file_in_order() {
    let folder = Folder::new();
    let example = folder.start(&["--delay-ms", "1"]).await;
    let mut ada = user(&example, 1).await;
    let response = example.request("POST", "/push", NDJSON, &lines(0..1_000)).await;
    assert_eq!(response.status, 202);
    for n in 0..1_000 {
        assert_eq!(number(&mut ada).await, n);
    }
}

#[tokio::test]
async fn invalid_pushes_are_refused_and_those_of_other_programs_are_given_up() {
    let folder = Folder::new();
    let example = folder.start(&[]).await;
    let mut ada = user(&example, 1).await;
    let body = [&lines(0..2), "nonsense", "", &lines(2..3)].join("\n");
    let response = example.request("POST", "/push", NDJSON, &body).await;
    let errors = json!([{"line": 3, "error": "expected ident, at column 2"}]);
    assert_eq!((response.status, response.json()), (400, json!({"accepted": 3, "errors": errors})));
    // With the user as the key, they are in order with the others.
    let insert = "INSERT INTO pipeline_items (queue, key, payload) VALUES ('pushes', '1', ?1)";
    for payload in ["nonsense".to_owned(), lines(3..4)] {
        folder.open().execute(insert, [payload]).unwrap();
    }
    for n in 0..4 {
        assert_eq!(number(&mut ada).await, n);
    }
    until("it is given up", || folder.dead() == 1).await;
    let reason = "SELECT reason FROM pipeline_dead_letters";
    let reason: String = folder.open().query_row(reason, [], |row| row.get(0)).unwrap();
    assert!(reason.contains("expected ident, at column 2"), "{reason}");
}

#[tokio::test]
async fn standard_input_and_the_demo_go_through_the_file() {
    let folder = Folder::new();
    let flags = ["--stdin", "--demo", "--delay-ms", "3600000", "--drain-secs", "0"];
    let mut example = folder.start(&flags).await;
    example.write(&format!("{}\n", push(99, &json!({})))).await;
    example.close_stdin();
    let of =
        |user| folder.count(&format!("SELECT count(*) FROM pipeline_items WHERE key = '{user}'"));
    until("both are stored", || of("99") == 1 && of("2") > 1).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_explained() {
    let folder = Folder::new();
    let start = async |file: &str| {
        let (status, printed) = Example::run(&["--port", "0", "--durable", file]).await;
        assert!(!status.success());
        printed
    };
    let printed = start("/nowhere/pushes.db").await;
    assert!(printed.contains("cannot open the queue in /nowhere/pushes.db: "), "{printed}");
    assert!(printed.contains("unable to open database file"), "{printed}");

    std::fs::write(folder.file(), "no database, but a text of some length".repeat(100)).unwrap();
    let printed = start(&folder.file()).await;
    assert!(printed.contains("file is not a database"), "{printed}");

    std::fs::remove_file(Path::new(&folder.file())).unwrap();
    folder.open().execute_batch("CREATE TABLE pipeline_items (something_else)").unwrap();
    let printed = start(&folder.file()).await;
    assert!(printed.contains("cannot open the queue in "), "{printed}");
    assert!(printed.contains("it lacks id, queue, "), "{printed}");
    assert!(!printed.contains("CREATE"), "{printed}");
}

#[tokio::test]
async fn a_full_disk_is_answered_with_503_and_loses_nothing() {
    let folder = Folder::new();
    // A megabyte for each file.
    let flags = ["--durable", &folder.file(), "--delay-ms", "3600000", "--drain-secs", "0"];
    let example = Example::with_file_size(2048, &flags).await;
    let large = push(1, &json!({ "d": "x".repeat(50_000) }));
    let mut accepted = 0;
    let response = loop {
        let response = example.push(&large).await;
        if response.status != 202 {
            break response;
        }
        accepted += 1;
        assert!(accepted < 100, "there is no limit");
    };
    assert_eq!(response.status, 503);
    assert!(response.head.contains("retry-after: 1"), "{}", response.head);
    let error = response.json()["errors"][0]["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("the queue cannot store it: "), "{error}");
    assert!(error.ends_with(", nothing from here on was accepted"), "{error}");
    assert!(accepted > 1, "{accepted}");
    assert_eq!(example.request("GET", "/livez", "", "").await.status, 200);
    example.kill().await;
    assert_eq!(folder.waiting(), accepted);

    // With space again, all arrive.
    let release = "UPDATE pipeline_items SET available_at = 1";
    folder.open().execute(release, []).unwrap();
    let example = folder.start(&[]).await;
    let mut ada = user(&example, 1).await;
    for _ in 0..accepted {
        assert_eq!(ada.receive().await[3], "push_timed");
    }
    until("all are forgotten", || folder.waiting() == 0).await;
}

#[tokio::test]
async fn a_push_to_a_file_that_was_deleted_is_answered_with_503_and_says_what_to_do() {
    let folder = Folder::new();
    let mut example = folder.start(&["--statsd-lines", "--lease-secs", "5"]).await;
    assert_eq!(example.push(&push(1, &json!({}))).await.status, 202);
    example.line_with("pipeline.source.connected:1|g").await;
    let aside = format!("{}.aside", folder.file());
    std::fs::rename(folder.file(), &aside).unwrap();
    let response = example.push(&push(1, &json!({}))).await;
    assert_eq!(response.status, 503);
    let error = response.json()["errors"][0]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("pushes.db was deleted or replaced while it was open: "), "{error}");
    // In any order.
    let mut missing = vec!["refused:1|c", "connected:0|g"];
    while !missing.is_empty() {
        let line = example.line_with("pipeline.source.").await;
        missing.retain(|text| !line.contains(text));
    }
    std::fs::rename(&aside, folder.file()).unwrap();
    example.line_with("pipeline.source.connected:1|g").await;
    assert_eq!(example.push(&push(1, &json!({}))).await.status, 202);
    example.kill().await;
}

#[tokio::test]
async fn what_a_full_disk_has_taken_is_delivered_and_then_there_is_room_again() {
    let folder = Folder::new();
    let flags = ["--durable", &folder.file(), "--lease-secs", "2"];
    let Some(mut example) = Example::on_small_disk(folder.0.path(), 8, &flags).await else {
        return;
    };
    let numbered = |n: u64| push(1, &json!({ "n": n, "d": "x".repeat(5_000) }));
    let mut accepted = 0;
    let full = loop {
        let response = example.push(&numbered(accepted)).await;
        if response.status != 202 {
            break response;
        }
        accepted += 1;
        assert!(accepted < 2_000, "there is no limit");
    };
    assert_eq!(full.status, 503, "{}", full.body);
    assert!(accepted > 20, "{accepted}");
    example.die_on_small_disk().await;
    assert_eq!(example.push(&numbered(accepted)).await.status, 503);
    let mut ada = user(&example, 1).await;
    for n in 0..accepted {
        assert_eq!(number(&mut ada).await, n);
    }
    // Now there are pages that nothing uses.
    let waiting = async {
        while example.push(&numbered(accepted)).await.status != 202 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("there is no room again");
    assert_eq!(number(&mut ada).await, accepted);
}

#[tokio::test]
async fn the_queue_is_shown_in_statsd_the_inspector_and_the_terminal() {
    let folder = Folder::new();
    let flags = ["--delay-ms", "3600000", "--drain-secs", "0", "--lease-secs", "2"];
    let example = folder.start(&flags).await;
    assert_eq!(example.push(&push(1, &json!({}))).await.status, 202);
    let fetched = "SELECT count(*) FROM pipeline_items WHERE deliveries = 1";
    until("it is delivered", || folder.count(fetched) == 1).await;
    example.kill().await;
    // It waits for an hour already, and is delivered again.
    let age = "UPDATE pipeline_items SET enqueued_at = enqueued_at - 3600000";
    folder.open().execute(age, []).unwrap();
    let mut example = folder.start(&[&["--statsd-lines"], &flags[..]].concat()).await;
    let insert = "INSERT INTO pipeline_items (queue, payload) VALUES ('pushes', 'nonsense')";
    folder.open().execute(insert, []).unwrap();
    let is_age = |seconds: f64| (3600.0..7200.0).contains(&seconds);
    // In any order: a gauge is printed when it has changed.
    let mut missing = vec!["dead_letters:1|g", "backlog:1|g", "redelivered:1|c"];
    let mut age = None;
    while !missing.is_empty() || !age.is_some_and(is_age) {
        let line = example.line_with("pipeline.source.").await;
        let of_source = |gauge: &str| format!("source.{gauge}|#pipeline:push,stage:source");
        missing.retain(|gauge| !line.contains(&of_source(gauge)));
        let shown = line.split_once("pipeline.source.oldest_age:");
        age = shown.and_then(|(_, age)| age.split('|').next()?.parse().ok()).or(age);
    }
    let queue = example.request("GET", "/queue", "", "").await.json();
    assert_eq!(queue["redelivered"], 1);
    assert!(is_age(queue["oldest_seconds"].as_f64().unwrap()), "{queue}");
    // The inspector looks once a second.
    let counts = ["fetched", "given_up", "redelivered", "connection_errors"];
    let shown = async {
        loop {
            let view = example.request("GET", "/inspect/data.json", "", "").await.json();
            let seen = view["pipelines"][0]["stages"][0]["source"].clone();
            if counts.map(|name| seen[name].as_u64()) == [2, 1, 1, 0].map(Some) {
                return seen;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let seen = timeout(PATIENCE, shown).await.expect("the inspector shows the same");
    assert_eq!(seen["broker"], "the queue pushes in a SQLite file");
    assert!(is_age(seen["oldest_age_seconds"].as_f64().unwrap()), "{seen}");

    let url = format!("http://{}/inspect", example.address);
    let top =
        tokio::process::Command::new(Example::program("top").await).args([&url, "--once"]).output();
    let shown = String::from_utf8(timeout(PATIENCE, top).await.unwrap().unwrap().stdout).unwrap();
    assert!(shown.contains("source reads the queue pushes in a SQLite file"), "{shown}");
    assert!(shown.lines().any(|line| line.contains("source") && line.contains("connected")));
}

/// Runs the command `dead-letters` with the queue. Returns whether it succeeded, and its output.
async fn dead_letters(folder: &Folder, flags: &[&str]) -> (bool, String) {
    let file = folder.file();
    let (status, printed) =
        Example::run(&[&["dead-letters", "--durable", &file], flags].concat()).await;
    (status.success(), printed)
}

#[tokio::test]
async fn a_command_leaves_the_file_of_another_program_as_it_is_and_names_the_queues_of_ours() {
    let folder = Folder::new();
    let names = || {
        let entries = std::fs::read_dir(folder.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let program = "CREATE TABLE others (id); INSERT INTO others VALUES (1)";
    for content in ["", program] {
        std::fs::write(folder.file(), "").unwrap();
        // Closed at once.
        folder.open().execute_batch(content).unwrap();
        let before = (std::fs::read(folder.file()).unwrap(), names());
        for action in [&["list"][..], &["drop", "--all"], &["replay", "--all"], &["show", "1"]] {
            let (done, printed) = dead_letters(&folder, action).await;
            assert!(!done && printed.contains("it has no table pipeline_queues"), "{printed}");
            let after = (std::fs::read(folder.file()).unwrap(), names());
            assert_eq!(after, before, "{action:?}");
        }
    }
    std::fs::remove_file(folder.file()).unwrap();
    let example = folder.start(&[]).await;
    assert!(dead_letters(&folder, &["list"]).await.0);
    let (done, printed) = dead_letters(&folder, &["--source-name", "x", "drop", "--all"]).await;
    assert!(!done && !printed.contains("dropped"), "{printed}");
    assert!(printed.contains(r#"no queue "x" in "#) && printed.contains("pushes"), "{printed}");
    example.kill().await;
}

#[tokio::test]
async fn an_operator_lists_shows_replays_and_drops_dead_letters() {
    let folder = Folder::new();
    let (done, printed) = dead_letters(&folder, &["list"]).await;
    assert!(!done && printed.contains("there is no file "), "{printed}");
    let example = folder.start(&[]).await;
    assert!(dead_letters(&folder, &["list"]).await.1.contains("there are none"));
    let insert = "INSERT INTO pipeline_items (queue, key, payload) VALUES ('pushes', 'k', ?1)";
    for n in 0..4 {
        let payload = format!("{{\"n\": {n}, \u{1b}[31m");
        folder.open().execute(insert, [payload]).unwrap();
    }
    until("they are given up", || folder.dead() == 4).await;
    let first = folder.count("SELECT min(id) FROM pipeline_dead_letters");
    let id = |n: i64| (first + n).to_string();

    // By pages.
    let (done, page) = dead_letters(&folder, &["list", "--limit", "3"]).await;
    assert!(done && page.contains("unknown field `n`"), "{page}");
    assert!(page.contains(r#"{"n": 2, \u{1b}[31m"#) && !page.contains('\u{1b}'), "{page}");
    assert!(page.contains(&format!("more: list --after {}", id(2))), "{page}");
    let (_, page) = dead_letters(&folder, &["list", "--after", &id(2), "--json"]).await;
    let only: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((&only["id"], &only["deliveries"]), (&json!(id(3)), &json!(1)));
    assert_eq!((&only["key"], &only["payload"]), (&json!("k"), &json!("{\"n\": 3, \u{1b}[31m")));
    let (done, shown) = dead_letters(&folder, &["show", &id(1)]).await;
    assert!(done && shown.contains("given up at  20"), "{shown}");
    assert!(shown.contains("payload\n{\"n\": 1, "), "{shown}");

    // What does not exist is said, and the others are done.
    let (done, printed) = dead_letters(&folder, &["drop", &id(0), "999999", &id(1)]).await;
    assert!(!done && printed.contains("there is no dead letter 999999"), "{printed}");
    assert!(printed.contains("2 dropped"), "{printed}");
    assert_eq!(folder.dead(), 2);
    let (done, printed) = dead_letters(&folder, &["show", &id(0)]).await;
    assert!(!done && printed.contains("there is no dead letter"), "{printed}");
    let (done, printed) = dead_letters(&folder, &["show", "x"]).await;
    assert!(!done && printed.contains("\"x\" is no id"), "{printed}");
    let (done, printed) = dead_letters(&folder, &["show", &"9".repeat(1000)]).await;
    assert!(!done && printed.contains("999…\" is no id") && printed.len() < 200, "{printed}");
    let (done, printed) = dead_letters(&folder, &["list", "--limit", "0"]).await;
    assert!(!done && !printed.contains("there are none"), "{printed}");
    assert!(!dead_letters(&folder, &["replay"]).await.0, "which ones?");

    // Mended, one is pushed when it is replayed. The other is given up again.
    let mend = "UPDATE pipeline_dead_letters SET payload = ?1 WHERE id = ?2";
    folder.open().execute(mend, [push(1, &json!({"n": 2})), id(2)]).unwrap();
    let mut ada = user(&example, 1).await;
    let (done, printed) = dead_letters(&folder, &["replay", "--all", "--json"]).await;
    assert_eq!((done, printed.trim()), (true, r#"{"replayed":2}"#));
    assert_eq!(number(&mut ada).await, 2);
    until("the other is given up again", || folder.dead() == 1 && folder.waiting() == 0).await;
    let (done, printed) = dead_letters(&folder, &["drop", "--all"]).await;
    assert!(done && printed.contains("1 dropped"), "{printed}");
    assert_eq!((folder.dead(), folder.waiting()), (0, 0));
}
