//! The recorded conversations in `tests/golden`, replayed against the example `channels`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use pipeline_test_support::{Client, Example, PATIENCE, connect, interop, project};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    process::Command,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;

/// The recordings that are not replayed, with reasons.
const LEFT_OUT: [(&str, &str); 1] =
    [("48_drain_on_shutdown.jsonl", "it has a test of its own, below")];

/// The number of servers. Recordings are mostly silence, in which others can be replayed.
const SERVERS: usize = 3;

fn golden() -> PathBuf {
    project().join("tests/golden")
}

/// The names of the recordings of Phoenix 1.8.
fn recordings() -> Vec<String> {
    let files = fs::read_dir(golden()).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<_> = files
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.ends_with(".jsonl") && !name.ends_with(".v17.jsonl"))
        .collect();
    names.sort();
    names
}

/// The outcome of a recording: `ok`, `FAIL` or `skip`, and a message.
type Outcome = (String, String);

/// Replays recordings one after the other against one server. Returns the outcome of each, by name.
async fn replay(files: &[PathBuf]) -> BTreeMap<String, Outcome> {
    let example = Example::channels(&[]).await;
    let mut node = Command::new("node");
    node.args(["replay.mjs", &format!("http://{}", example.address)]);
    node.args(["--concurrent-joins"]).args(files);
    let node = node.current_dir(interop()).kill_on_drop(true).output();
    let output = timeout(2 * PATIENCE, node).await.expect("replaying to end").unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let outcomes: BTreeMap<_, _> = said.lines().map(outcome).collect();
    let failed = outcomes.values().any(|(verdict, _)| verdict == "FAIL");
    assert_eq!(
        output.status.success(),
        !failed,
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    outcomes
}

/// A line of the replayer: `VERDICT NAME` or `VERDICT NAME: WHY`.
fn outcome(line: &str) -> (String, Outcome) {
    let (verdict, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
    (name.to_owned(), (verdict.to_owned(), why.to_owned()))
}

#[tokio::test]
async fn every_recorded_conversation_is_reproduced() {
    let left_out = LEFT_OUT.map(|(name, _)| name);
    let mut all = recordings();
    for name in left_out {
        assert!(all.iter().any(|recording| recording == name), "recording {name} does not exist");
    }
    all.retain(|name| !left_out.contains(&&**name));
    // Distributed round-robin, so that the slow ones, which are neighbours, are not all on one server.
    let dealt = (0..SERVERS).map(|server| {
        let names = all.iter().skip(server).step_by(SERVERS);
        names.map(|name| golden().join(name)).collect::<Vec<_>>()
    });
    let dealt: Vec<_> = dealt.collect();
    let outcomes: BTreeMap<_, _> =
        join_all(dealt.iter().map(|files| replay(files))).await.into_iter().flatten().collect();

    let expected = |name: &String| (name.clone(), ("ok".to_owned(), String::new()));
    let expected: BTreeMap<_, _> = all.iter().map(expected).collect();
    for (name, (verdict, why)) in &outcomes {
        println!("{verdict} {name} {why}");
    }
    let differ = |name: &&String| outcomes.get(*name) != expected.get(*name);
    let wrong: Vec<_> = outcomes.keys().chain(&all).filter(differ).collect();
    let wrong: BTreeMap<_, _> = wrong.into_iter().map(|name| (name, outcomes.get(name))).collect();
    assert!(wrong.is_empty(), "these were not reproduced: {wrong:#?}");
}

/// Changes that make a recording wrong, and the message that the replayer has to print: the recording,
/// the line, the text, its replacement. A line that becomes empty is removed.
const FALSE: [(&str, usize, &str, &str, &str); 14] = [
    ("01_join_ok.jsonl", 3, "ok", "error", "line 3: got"),
    ("01_join_ok.jsonl", 5, r#"\"2\","#, r#"\"3\","#, "line 5: got"),
    ("01_join_ok.jsonl", 8, ":greeter", "", "line 8: got"),
    ("01_join_ok.jsonl", 8, "", "", "line 8: expected silence on a"),
    ("15_heartbeat.jsonl", 3, "", "", "line 4: got"),
    ("20_binary.v18.jsonl", 8, "A/8=", "A/4=", "line 8: got"),
    ("20_binary.v18.jsonl", 10, r#""bin":true,"#, "", "line 10: got"),
    ("31_disconnect_by_id.v18.jsonl", 9, "1001", "1000", "line 9: close code 1001"),
    ("31_disconnect_by_id.v18.jsonl", 9, "", "", "line 14: a was closed (1001)"),
    ("32_refused_connect.jsonl", 1, "403", "101", "line 1: status 403"),
    ("32_refused_connect.jsonl", 2, "Too many", "Too few", "line 2: body"),
    ("34_subprotocols.jsonl", 2, r#":"sip"}"#, r#":"mqtt"}"#, "line 2: header"),
    ("40_control_frames.jsonl", 3, "hello", "hullo", "line 3: got"),
    ("40_control_frames.jsonl", 5, "room:lobby", "room:hobby", "line 5: got"),
];

#[tokio::test]
async fn a_wrong_recording_fails_and_reports_the_line() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("false_recordings");
    fs::create_dir_all(&folder).unwrap();
    let mut files = vec![];
    for (n, (recording, line, from, to, _)) in FALSE.into_iter().enumerate() {
        let text = fs::read_to_string(golden().join(recording)).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if from.is_empty() {
            lines.remove(line - 1);
        } else {
            let changed = lines[line - 1].replace(from, to);
            assert_ne!(changed, lines[line - 1], "{recording} has no {from} in line {line}");
            lines[line - 1] = changed;
        }
        let file = folder.join(format!("{n}_{recording}"));
        fs::write(&file, lines.join("\n")).unwrap();
        files.push(file);
    }
    let outcomes = replay(&files).await;
    for (n, (recording, line, _, _, words)) in FALSE.into_iter().enumerate() {
        let (verdict, why) = &outcomes[&format!("{n}_{recording}")];
        let noticed = verdict == "FAIL" && why.starts_with(words);
        assert!(noticed, "{recording}, line {line}: {verdict} {why:?}, expected {words:?}");
    }
}

/// The interval between two batches of `/socket`, and the number of channels in a batch.
const INTERVAL: Duration = Duration::from_millis(300);
const BATCH: u32 = 2;

/// A connection of the recording.
struct Connection {
    client: Client,
    path: String,
    channels: u32,
}

/// Opens the sockets and joins the topics of the recording, up to the stop of the server. Long polling
/// is skipped.
async fn recorded_connections(address: &str) -> HashMap<String, Connection> {
    let recording = fs::read_to_string(golden().join("48_drain_on_shutdown.jsonl")).unwrap();
    let mut open: HashMap<String, Connection> = HashMap::new();
    for line in recording.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (name, data) = (line["conn"].as_str().unwrap(), &line["data"]);
        let message = || serde_json::from_str(data.as_str().unwrap()).unwrap();
        match (name, line["dir"].as_str().unwrap()) {
            ("ctl", _) => break,
            ("lp", _) => {}
            (_, "http") => {
                let path = data["request"]["path"].as_str().unwrap().to_owned();
                let client = connect(&format!("ws://{address}{path}")).await.unwrap();
                open.insert(name.to_owned(), Connection { client, path, channels: 0 });
            }
            (_, "up") => {
                let (message, connection): (Value, _) = (message(), open.get_mut(name).unwrap());
                connection.channels += u32::from(message[3] == "phx_join");
                connection.client.send(message).await;
            }
            (_, "down") => open.get_mut(name).unwrap().client.expect([message()]).await,
            other => panic!("unexpected in the recording: {other:?}"),
        }
    }
    open
}

#[tokio::test]
async fn a_stopping_server_closes_its_sockets_in_batches_and_refuses_new_ones() {
    let example = Example::channels(&[]).await;
    let open = recorded_connections(&example.address).await;
    let channels: u32 = open.values().map(|connection| connection.channels).sum();
    assert_eq!((channels, open["two"].channels, open["bare"].channels), (9, 2, 0));
    assert_eq!(open.len(), 9, "nine channels on eight connections, and one without channels");

    let (ends, mut ended) = mpsc::channel(100);
    for (name, Connection { mut client, path, channels }) in open {
        let ends = ends.clone();
        tokio::spawn(async move {
            let first = client.next().await;
            let at = Instant::now();
            // After its close frame there is no more, and no error.
            let rest = timeout(PATIENCE, client.stream.next()).await.unwrap();
            ends.send((name, path, channels, first, at, rest.map(Result::unwrap))).await.unwrap();
        });
    }
    drop(ends);

    let stopped = Instant::now();
    assert_eq!(example.request("GET", "/ctl/stop", "", "").await.body, "ok");
    let (mut closed, mut drained, mut bare_after) = (vec![], 0, None);
    while let Some((name, path, channels, first, at, rest)) = ended.recv().await {
        match first {
            Message::Close(Some(close)) => {
                assert_eq!((u16::from(close.code), close.reason.as_str()), (1012, ""), "{name}");
            }
            other => panic!("{name}: expected nothing but a close, got {other:?}"),
        }
        assert_eq!(rest, None, "{name} is closed once");
        if closed.is_empty() {
            let refused = TcpStream::connect(&example.address).await;
            assert!(refused.is_err(), "while sockets are closed, new ones are refused");
        }
        if path.starts_with("/socket/") {
            drained += channels;
            // However late the test notices: this many batches cannot have been faster.
            let batches = drained.div_ceil(BATCH);
            let passed = at - stopped;
            let closed = closed.join(", ");
            assert!(
                passed >= INTERVAL * (batches - 1),
                "{closed} and {name}: {drained} channels in {passed:?}"
            );
            if channels == 0 {
                bare_after = Some(drained);
            }
        }
        closed.push(name);
    }
    assert_eq!(closed.len(), 9, "{closed:?}");
    assert!(
        bare_after >= Some(8 - BATCH),
        "sockets without channels close with the last batch: {closed:?}"
    );

    let (status, printed) = example.wait().await;
    assert!(status.success(), "{status}");
    assert!(printed.contains(&"9 sockets closed, 0 aborted".to_owned()), "{printed:?}");
}
