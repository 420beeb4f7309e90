//! The example as a process, tested from outside.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use pipeline_test_support::{Client, Example, PATIENCE, connect, get, project};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    join,
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// A user that has signed in to the example and joined its own topic.
async fn user(example: &Example, user: u64) -> Client {
    let mut client = connect(&example.socket_url(user).await).await.unwrap();
    client.join("1", &format!("user:{user}")).await;
    client
}

fn push(user: u64, data: &str) -> String {
    format!(r#"{{"user_id":{user},"event":"push_timed","data":{data}}}"#)
}

/// The data of the next push. Also checks its timestamp.
async fn data(client: &mut Client) -> Value {
    let message = client.receive().await;
    assert_eq!(message[3], "push_timed");
    assert!(message[4]["at_us"].as_u64().unwrap() > 1_700_000_000_000_000);
    message[4]["data"].clone()
}

#[tokio::test]
async fn a_posted_push_arrives_and_its_times_are_printed_as_statsd() {
    let mut example = Example::start(&["--statsd-lines"]).await;
    let mut ada = user(&example, 1).await;
    let response = example.push(&push(1, r#"{"text":"hello"}"#)).await;
    assert_eq!((response.status, response.json()), (202, json!({"accepted": 1})));
    assert_eq!(data(&mut ada).await, json!({"text": "hello"}));
    // By name: they come in any order, among many others.
    let times = ["delivered", "queued", "waited", "worked", "written"]
        .map(|leg| format!("pipeline.push_{leg}"));
    let others = ["channel_join", "pipeline.worker.process_time", "socket_connect"];
    let mut expected: Vec<_> = times.iter().map(String::as_str).chain(others).collect();
    let mut seen = HashMap::new();
    while !expected.is_empty() {
        let line = example.line_with("statsd |").await;
        let line = line.trim_start_matches("statsd | ");
        assert!(
            !line.contains("busy_time") && !line.contains("wait_time"),
            "it was not requested: {line}"
        );
        let (name, rest) = line.split_once(':').unwrap();
        expected.retain(|other| *other != name);
        seen.insert(name.to_owned(), rest.to_owned());
    }
    assert_eq!(seen["channel_join"], "1|c|#channel:UserChannel,status:success");
    assert_eq!(seen["socket_connect"], "1|c|#socket:UserSocket,status:success");
    let [delivered, legs @ ..] =
        times.map(|name| -> f64 { seen[&name].strip_suffix("|ms").unwrap().parse().unwrap() });
    assert!(delivered > 0.0 && delivered.fract() > 0.0, "with fractions: {delivered}");
    assert!((delivered - legs.iter().sum::<f64>()).abs() < 0.01, "{seen:?}");
}

#[tokio::test]
async fn a_push_can_be_followed_by_one_id_from_the_request_to_the_socket() {
    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut example =
        Example::logging("push_to_users=trace,pipeline_core=trace,pipeline_ws_sink=trace", &[])
            .await;
    let mut ada = user(&example, 1).await;
    let body = push(1, r#"{"text":"hello"}"#);
    let mut post = async |traceparent: &str, stops: [&str; 5]| {
        let headers = [("traceparent", traceparent)];
        let response = example.request_with("POST", "/push", &headers, &body).await;
        assert_eq!(response.status, 202);
        assert_eq!(data(&mut ada).await, json!({"text": "hello"}));
        let mut lines = Vec::new();
        for stop in stops {
            let line = example.logged_with(stop).await;
            lines.push(line);
        }
        lines
    };
    let stops = [
        "a request to push",
        "left the queue",
        "a worker has started",
        "broadcast trace_id",
        "written to",
    ];
    for line in post(&format!("00-{ID}-00f067aa0ba902b7-01"), stops).await {
        assert!(line.contains(&format!("trace_id={ID}")), "{line}");
    }
    // An invalid header is ignored, and a new trace begun.
    let lines = post(&format!("00-{ID}-0000000000000000-01"), stops).await;
    let ids: Vec<_> = lines.iter().map(|line| line.split("trace_id=").nth(1).unwrap()).collect();
    assert!(ids.iter().all(|id| id[..32] == ids[0][..32] && !id.starts_with(ID)), "{lines:?}");
}

#[tokio::test]
async fn the_health_routes_report_alive_and_ready() {
    let example = Example::start(&[]).await;
    for (path, said) in [("/livez", "alive\n"), ("/readyz", "ready\n")] {
        let response = example.request("GET", path, "", "").await;
        assert_eq!((response.status, &*response.body), (200, said));
    }
}

#[tokio::test]
async fn a_bad_push_is_reported_and_the_others_are_accepted() {
    let example = Example::start(&["--max-demand", "1"]).await;
    let mut ada = user(&example, 1).await;
    let refused = async |body: &str| {
        let response = example.push(body).await;
        assert_eq!(response.status, 400, "{body}");
        response.json()["errors"][0]["error"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused("{oops").await, "key must be a string, at column 2");
    assert_eq!(
        refused(r#"{"user_id":1,"event":"push_timed"}"#).await,
        "missing field `data`, at column 34"
    );
    assert_eq!(
        refused(r#"{"user_id":1,"event":"e","data":{},"extra":1}"#).await,
        "unknown field `extra`, expected one of `user_id`, `event`, `data`, at column 42"
    );
    let oversized = push(1, &json!({"d": "x".repeat(70_000)}).to_string());
    assert_eq!(refused(&oversized).await, "longer than 65536 bytes");

    let lines = [&push(1, r#"{"n":1}"#), "", "nonsense", &oversized, &push(1, r#"{"n":2}"#)];
    let response =
        example.request("POST", "/push", "application/x-ndjson", &lines.join("\n")).await;
    assert_eq!(response.status, 400);
    assert_eq!(
        response.json(),
        json!({"accepted": 2, "errors": [
            {"line": 3, "error": "expected ident, at column 2"},
            {"line": 4, "error": "longer than 65536 bytes"},
        ]})
    );
    assert_eq!(data(&mut ada).await, json!({"n": 1}));
    assert_eq!(data(&mut ada).await, json!({"n": 2}));
}

#[tokio::test]
async fn many_pushes_with_the_wrong_content_type_get_a_hint() {
    let example = Example::start(&[]).await;
    let many = [push(1, "{}"), push(1, "{}")].join("\n");
    for body in [&many, &[&*many; 2_000].join("\n")] {
        let response = example.push(body).await;
        let error = response.json()["errors"][0]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("content-type application/x-ndjson"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_lists_the_first_errors_and_counts_the_others() {
    let example = Example::start(&[]).await;
    let wrong = format!(r#"{{"{}":1}}"#, "x".repeat(1_000));
    let lines = vec![&*wrong; 1_000].join("\n");
    let response = example.request("POST", "/push", "application/x-ndjson", &lines).await;
    let body = response.json();
    assert_eq!((response.status, &body["accepted"]), (400, &json!(0)));
    assert_eq!(body["errors"].as_array().unwrap().len(), 20);
    assert_eq!(body["more_errors"], 980);
    assert!(response.body.len() < 10_000, "{} bytes", response.body.len());
}

#[tokio::test]
async fn a_body_above_the_limit_is_accepted_up_to_the_limit() {
    let example = Example::start(&["--queue", "1000000"]).await;
    let line = push(1, &json!({ "d": "x".repeat(60_000) }).to_string());
    let lines = vec![&*line; 150].join("\n");
    let response = example.request("POST", "/push", "application/x-ndjson", &lines).await;
    assert_eq!(response.status, 413);
    let body = response.json();
    assert!(body["accepted"].as_u64().unwrap() > 100, "{body}");
    assert!(body["errors"][0]["error"].as_str().unwrap().contains("longer than 8388608 bytes"));
}

/// Starts the example as a process whose output is not read.
async fn unread(broken: bool) -> (Child, String) {
    let mut command = Command::new(Example::program("push_to_users").await);
    command.args(["--port", "0", "--statsd-all"]).kill_on_drop(true);
    command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let address = line.split("://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    if broken {
        drop((lines, child.stderr.take()));
        return (child, address);
    }
    // Held open, and not read.
    child.stdout = Some(lines.into_inner().into_inner());
    (child, address)
}

#[tokio::test]
async fn unread_or_closed_output_blocks_nothing() {
    for broken in [false, true] {
        let (mut child, address) = unread(broken).await;
        // A log line for each, more than a pipe holds.
        for _ in 0..1_000 {
            let response = get(&address, "/livez").await;
            assert_eq!(response.status, 200, "broken: {broken}");
        }
        let id = child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.await.unwrap().success());
        let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "broken: {broken}");
    }
}

#[tokio::test]
async fn a_full_queue_answers_503_with_retry_after() {
    let flags = ["--queue", "2", "--max-demand", "1", "--delay-ms", "600000", "--drain-secs", "0"];
    let example = Example::start(&flags).await;
    // The worker may hold one push, two are queued, and then the queue is full.
    let mut accepted = 0;
    let response = loop {
        let response = example.push(&push(1, "{}")).await;
        if response.status != 202 {
            break response;
        }
        accepted += 1;
    };
    assert_eq!(response.status, 503);
    assert!(response.head.contains("retry-after: 1"), "{}", response.head);
    assert_eq!(
        response.json(),
        json!({"accepted": 0, "errors": [
            {"line": 1, "error": "the queue is full, nothing from here on was accepted"}
        ]})
    );
    example.signal("-TERM").await;
    let (status, lines) = example.wait().await;
    let lines = lines.join("\n");
    assert_eq!(status.code(), Some(1), "items were left unprocessed");
    assert!(lines.contains(&format!("{accepted} unprocessed events")), "{lines}");
}

#[tokio::test]
async fn standard_input_feeds_the_pipeline_and_waits_while_it_is_full() {
    let mut example = Example::start(&["--stdin", "--queue", "1", "--max-demand", "1"]).await;
    let mut ada = user(&example, 1).await;
    // Far more than the queue holds: none may be lost.
    for n in 0..300 {
        example.write(&format!("{}\n", push(1, &json!({ "n": n }).to_string()))).await;
        if n == 100 {
            example.write("{\"user_id\":1}\n").await;
        }
    }
    example.close_stdin();
    for n in 0..300 {
        assert_eq!(data(&mut ada).await, json!({ "n": n }));
    }
}

#[tokio::test]
async fn the_pushes_of_a_user_arrive_in_order() {
    // The runtime has several threads, and each push has a worker that waits.
    let example = Example::start(&["--delay-ms", "1", "--max-demand", "50"]).await;
    let mut ada = user(&example, 1).await;
    let lines: Vec<_> = (0..2_000).map(|n| push(1, &json!({ "n": n }).to_string())).collect();
    let lines = lines.join("\n");
    let response = example.request("POST", "/push", "application/x-ndjson", &lines).await;
    assert_eq!((response.status, response.json()), (202, json!({ "accepted": 2_000 })));
    for n in 0..2_000 {
        assert_eq!(data(&mut ada).await, json!({ "n": n }));
    }
}

#[tokio::test]
async fn ctrl_c_and_sigterm_stop_it_cleanly_after_all_accepted_pushes() {
    // SIGHUP never counts as the second signal: terminals and service managers send it along with
    // others.
    for [signal, another] in [["-INT", ""], ["-TERM", "-HUP"], ["-HUP", "-HUP"], ["-HUP", "-TERM"]]
    {
        let example = Example::start(&["--delay-ms", "50", "--max-demand", "1"]).await;
        let mut ada = user(&example, 1).await;
        for n in 0..10 {
            let response = example.push(&push(1, &json!({ "n": n }).to_string())).await;
            assert_eq!(response.status, 202);
        }
        example.signal(signal).await;
        if !another.is_empty() {
            while get(&example.address, "/readyz").await.status == 200 {}
            example.signal(another).await;
        }
        for n in 0..10 {
            assert_eq!(data(&mut ada).await, json!({ "n": n }), "{signal} {another}");
        }
        assert_eq!(ada.closed().await, 1012);
        drop(ada);
        let (status, lines) = example.wait().await;
        assert!(status.success(), "{signal} {another}");
        let lines = lines.join("\n");
        assert!(lines.contains("pipeline push ended, no unprocessed events"), "{lines}");
        assert!(lines.contains("1 sockets closed, 0 aborted"), "{lines}");
        let arrived = lines.lines().filter_map(|line| line.strip_prefix("pushes   "));
        let arrived = arrived.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
        assert_eq!(arrived.sum::<u64>(), 10, "the metrics are flushed: {lines}");
    }
}

#[cfg(any(target_os = "android", target_os = "linux"))]
#[tokio::test]
async fn under_nohup_it_survives_the_close_of_its_terminal() {
    let example = Example::ignoring_hangup(&[]).await;
    let mut ada = user(&example, 1).await;
    example.signal("-HUP").await;
    for n in 0..100 {
        assert_eq!(get(&example.address, "/readyz").await.status, 200);
        assert_eq!(example.push(&push(1, &json!({ "n": n }).to_string())).await.status, 202);
        assert_eq!(data(&mut ada).await, json!({ "n": n }));
    }
    example.signal("-TERM").await;
    assert_eq!(ada.closed().await, 1012);
    assert!(example.wait().await.0.success());
}

#[tokio::test]
async fn a_server_at_its_limit_of_open_files_recovers_when_files_are_closed() {
    const FILES: usize = 40;
    let mut example = Example::with_files(FILES, &["--statsd-lines"]).await;
    let mut ada = user(&example, 1).await;
    // The system accepts these into the backlog, and the server cannot accept all of them.
    let mut clients = Vec::new();
    for _ in 0..FILES {
        clients.push(TcpStream::connect(&example.address).await.unwrap());
    }
    // The server tries again at most ten times a second, and a line has the failures of a second, or of two on
    // a busy machine.
    for _ in 0..3 {
        let line = example.line_with("http.accept_errors:").await;
        let count = line.split(['|', ':']).rev().nth(1).unwrap();
        assert!(count.parse::<u64>().unwrap() <= 25, "it spins: {line}");
    }
    ada.send(json!([null, "h", "phoenix", "heartbeat", {}])).await;
    assert_eq!(ada.receive().await[4]["status"], "ok");
    drop(clients);
    assert_eq!(example.push(&push(1, r#"{"text":"hello"}"#)).await.status, 202);
    assert_eq!(data(&mut ada).await, json!({"text": "hello"}));
}

#[tokio::test]
async fn the_demo_pushes_to_three_users() {
    let example = Example::start(&["--demo"]).await;
    let mut joe = user(&example, 2).await;
    let first = data(&mut joe).await["n"].as_u64().unwrap();
    assert_eq!(data(&mut joe).await["n"], json!(first + 3), "three users in turn");
}

#[tokio::test]
async fn a_token_is_required_and_only_for_its_own_topic() {
    let example = Example::start(&["--token-age-secs", "3600"]).await;
    let url = example.socket_url(1).await;
    let (without_token, _) = url.split_once("&token").unwrap();
    assert_eq!(connect(without_token).await.err(), Some(403));
    assert_eq!(connect(&format!("{url}x")).await.err(), Some(403));
    let mut ada = connect(&url).await.unwrap();
    ada.send(json!(["1", "1", "user:2", "phx_join", {}])).await;
    let refused = json!({"status": "error", "response": {"reason": "unauthorized"}});
    ada.expect([json!(["1", "1", "user:2", "phx_reply", refused])]).await;

    let expired = Example::start(&["--token-age-secs", "0"]).await;
    assert_eq!(connect(&expired.socket_url(1).await).await.err(), Some(403));
}

#[tokio::test]
async fn help_explains_every_flag_and_errors_are_explained() {
    let (status, help) = Example::run(&["--help"]).await;
    assert!(status.success());
    for flag in help.lines().filter(|line| line.trim_start().starts_with("--")) {
        let after = help.split(flag).nth(1).unwrap().trim_start();
        assert!(!after.starts_with("--"), "{flag} has no explanation");
    }
    for flag in ["--port", "--statsd", "--stdin", "--demo", "--max-demand", "--delay-ms"] {
        assert!(help.contains(flag), "{flag}");
    }
    let (status, printed) = Example::run(&["--max-demand", "0"]).await;
    assert!(!status.success() && printed.contains("expected at least 1"), "{printed}");
    let flags = ["--port", "0", "--max-demand", "5", "--min-demand", "5"];
    let (status, printed) = Example::run(&flags).await;
    assert!(!status.success());
    assert!(
        printed.contains("min_demand is 5, expected at most 4 with a max_demand of 5"),
        "{printed}"
    );
    let (status, printed) = Example::run(&["--statsd", "127.0.0.1"]).await;
    assert!(!status.success() && printed.contains("expected HOST:PORT"), "{printed}");
    let (status, printed) = Example::run(&["--port", "0", "--host", "192.0.2.1"]).await;
    assert!(!status.success() && printed.contains("try another --host"), "{printed}");
    // Flags that would be of no effect.
    for flag in [["--acknowledge", "confirmed"], ["--keep-secs", "5"], ["--lease-secs", "5"]] {
        let (status, printed) = Example::run(&flag).await;
        let is_explained =
            printed.contains("--durable <FILE>") && printed.contains("--source <URL>");
        assert!(!status.success() && is_explained, "{printed}");
    }
    let taken = Example::start(&[]).await;
    let port = taken.address.rsplit(':').next().unwrap();
    let (status, printed) = Example::run(&["--port", port]).await;
    assert!(!status.success() && printed.contains("try another --port"), "{printed}");
}

#[tokio::test]
async fn a_second_signal_skips_the_rest_of_the_drain() {
    let flags = ["--max-demand", "1", "--delay-ms", "3600000", "--drain-secs", "3600"];
    let example = Example::start(&flags).await;
    let mut ada = user(&example, 1).await;
    let mut accepted = 0;
    while accepted < 3 {
        assert_eq!(example.push(&push(1, "{}")).await.status, 202);
        accepted += 1;
    }
    example.signal("-INT").await;
    // It is draining from now on: it refuses pushes, and polling clients are still answered.
    while example.push(&push(1, "{}")).await.status == 202 {
        accepted += 1;
    }
    assert!(TcpStream::connect(&example.address).await.is_ok());
    ada.expect_nothing_else().await;
    example.signal("-INT").await;
    assert_eq!(ada.closed().await, 1012);
    drop(ada);
    let (status, lines) = example.wait().await;
    assert_eq!(status.code(), Some(1));
    // The worker's push, and those that wait behind it.
    let lines = lines.join("\n");
    for line in [
        "stopped without waiting",
        &format!("pipeline push ended after its deadline, {accepted} unprocessed events"),
        "1 event in progress",
        "1 sockets closed, 0 aborted",
    ] {
        assert!(lines.contains(line), "no line with {line:?}: {lines}");
    }
}

/// A folder with only the files that npm needs to install the page's packages.
fn bare_folder(name: &str) -> PathBuf {
    let bare = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&bare).unwrap();
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        fs::copy(project().join("examples/support").join(file), bare.join(file)).unwrap();
    }
    bare
}

#[tokio::test]
async fn the_phoenix_client_is_installed_when_it_is_missing() {
    let bare = bare_folder("installs");
    let example = Example::start_in(&bare, std::env::var_os("PATH"), &[]).await;
    // npm may take its time.
    let module = loop {
        let module = example.request("GET", "/phoenix.mjs", "", "").await;
        if module.status != 503 {
            break module;
        }
    };
    assert_eq!(module.status, 200);
    assert!(module.head.contains("content-type: text/javascript"), "{}", module.head);
    assert!(module.body.contains("phx_join"));
    fs::remove_dir_all(bare).unwrap();
}

#[tokio::test]
async fn pushes_are_delivered_while_npm_installs_the_client_of_the_page() {
    let bare = bare_folder("waits");
    let npm = bare.join("npm");
    let waits = "#!/bin/sh\nuntil mv client node_modules; do sleep 0.05; done 2>/dev/null\n";
    fs::write(&npm, waits).unwrap();
    fs::set_permissions(&npm, fs::Permissions::from_mode(0o755)).unwrap();
    let programs = [&*bare, Path::new("/usr/bin"), Path::new("/bin")];
    let programs = std::env::join_paths(programs).unwrap();
    let mut example = Example::start_in(&bare, Some(programs), &[]).await;
    let mut ada = user(&example, 1).await;
    assert_eq!(example.push(&push(1, r#"{"n":1}"#)).await.status, 202);
    assert_eq!(data(&mut ada).await, json!({"n": 1}));
    example.line_with("npm is installing").await;
    let install = async {
        let folder = bare.join("new/phoenix/priv/static");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("phoenix.mjs"), "the client").unwrap();
        fs::rename(bare.join("new"), bare.join("client")).unwrap();
    };
    let (module, ()) = join!(example.request("GET", "/phoenix.mjs", "", ""), install);
    assert_eq!((module.status, &*module.body), (200, "the client"));
    drop(example);
    fs::remove_dir_all(bare).unwrap();
}

#[tokio::test]
async fn without_npm_it_reports_that_and_still_works() {
    let bare = bare_folder("no-npm");
    let mut example = Example::start_in(&bare, None, &[]).await;
    let line = example.line_with("client ").await;
    assert!(line.contains("npm is not installed"), "{line}");
    assert!(line.contains("everything else works"), "{line}");
    assert_eq!(example.request("GET", "/phoenix.mjs", "", "").await.status, 404);
    let mut ada = user(&example, 1).await;
    assert_eq!(example.push(&push(1, r#"{"n":1}"#)).await.status, 202);
    assert_eq!(data(&mut ada).await, json!({"n": 1}));
    example.line_with("pushes   1 arrived").await;
    fs::remove_dir_all(bare).unwrap();
}
