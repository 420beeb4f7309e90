//! Minimal versions of all loads: figures are not checked, but all frames have to arrive.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use pipeline_test_support::{
    Example, PATIENCE,
    servers::{Kind, Server},
};
use tokio::{process::Command, time::timeout};

/// Runs the load with these arguments, and returns its output.
async fn load(arguments: &[&str]) -> String {
    tool(&[arguments, &["--tiny"]].concat()).await
}

async fn tool(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline-load"));
    let target = Example::program("load_target").await;
    command.args(arguments).arg("--target").arg(target).kill_on_drop(true);
    let output = timeout(PATIENCE * 4, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn all_frames_arrive_from_all_servers() {
    let rows = "burst,trickle,many,pipeline,paced,connect,stages,sources,nodes";
    let printed = load(&["table", "--rows", rows]).await;
    // Where a server is not installed, its rows are left out.
    let lines = printed.lines().filter(|line| line.starts_with("| "));
    let (nodes, lines): (Vec<_>, Vec<_>) =
        lines.partition(|line| ["| Redis, ", "| NATS, "].iter().any(|it| line.starts_with(it)));
    assert!([0, 16, 32].contains(&nodes.len()), "{printed}");
    // Without the head and the separator below it.
    assert_eq!(lines.len() - 2, 4 + 3 + 2 + 2 + 5 + 3 + 9 + 3, "{printed}");
    assert!(!printed.contains("NaN"), "{printed}");
}

#[tokio::test]
async fn all_items_of_the_servers_that_are_installed_are_handled() {
    let printed = load(&["table", "--rows", "brokers"]).await;
    let lines = printed.lines().filter(|line| line.starts_with("| ")).count() - 2;
    // Two for each server; the cluster of Kafka is always there.
    assert!(lines >= 2 && lines.is_multiple_of(2), "{printed}");
    assert!(!printed.contains("NaN"), "{printed}");
}

#[tokio::test]
async fn the_pushes_of_one_node_arrive_at_the_users_of_all() {
    for (kind, server) in [(Kind::Redis, "redis"), (Kind::Nats, "nats")] {
        if Server::start(kind).await.is_none() {
            continue;
        }
        let size = ["--sockets", "61", "--nodes", "3", "--rates", "100", "--secs", "1"];
        let printed = tool(&[&["scale", "--server", server], &size[..]].concat()).await;
        let arrived = printed.matches(", 0 missing |").count();
        assert_eq!((arrived, printed.contains("NaN")), (2, false), "{printed}");
    }
}

#[tokio::test]
async fn sockets_that_are_all_cut_off_at_once_come_back_and_the_others_miss_nothing() {
    if Server::start(Kind::Redis).await.is_none() {
        return;
    }
    // At each node 30 sockets come at once. With three a second, fifteen may wait.
    let size = ["--sockets", "60", "--calm", "6", "--nodes", "2", "--arrivals", "0,3"];
    let pushes = ["--rate", "100", "--before", "1", "--secs", "5"];
    let printed = tool(&[&["storm"], &size[..], &pushes[..]].concat()).await;
    let row = |what: &str| {
        let line = printed.lines().find(|line| line.contains(what)).unwrap_or_default();
        line.split(" | ").skip(1).map(|it| it.trim_end_matches(" |")).collect::<Vec<_>>()
    };
    assert_eq!(row("cut off at once, and all back"), ["60", "60"], "{printed}");
    let missing = ["600, 0 missing", "600, 0 missing"];
    assert_eq!(row("pushes to those that stayed: arrived"), missing, "{printed}");
    let missing = ["66, 0 missing", "66, 0 missing"];
    assert_eq!(row("a push to each client afterwards"), missing, "{printed}");
    let refused: Vec<u64> =
        row("tries that ended: 503").iter().map(|it| it.parse().unwrap()).collect();
    assert!(matches!(refused[..], [0, refused] if refused > 0), "{printed}");
}

#[tokio::test]
async fn growth_is_measured_and_drawn() {
    let folder = std::env::temp_dir().join(format!("pipeline-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let printed = load(&["growth", "--into", folder.to_str().unwrap()]).await;
    // A head, three curves over six numbers of sockets, one over six of topics.
    assert_eq!(printed.lines().count(), 1 + 18 + 6, "{printed}");
    let drawn = std::fs::read_to_string(folder.join("growth.svg")).unwrap();
    assert!(drawn.contains("</svg>"));
    std::fs::remove_dir_all(&folder).unwrap();
}
