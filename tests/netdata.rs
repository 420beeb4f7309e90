//! Metrics as received by netdata, a StatsD server unrelated to the original daemon.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    env,
    ffi::OsString,
    fs,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use metrics::{Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use pipeline::statsd::{Dialect, StatsdRecorder};
use pipeline_test_support::{PATIENCE, project};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// A netdata with only its StatsD plugin enabled. Killed on drop.
struct Netdata {
    _child: Child,
    statsd: u16,
    web: u16,
    folder: PathBuf,
}

impl Netdata {
    async fn start(program: &Path) -> Self {
        let statsd = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let web = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = env::temp_dir().join(format!("netdata-{web}"));
        for name in ["etc", "cache", "lib", "log", "web", "plugins"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let file = folder.join("etc/netdata.conf");
        fs::write(&file, config(&folder, statsd, web)).unwrap();

        // Keep the user of the test: by default netdata switches to its own user.
        let user = Command::new("id").arg("-un").output().await.unwrap().stdout;
        let mut command = Command::new(program);
        command.arg("-D").arg("-c").arg(&file).arg("-P").arg(folder.join("pid"));
        command.arg("-u").arg(String::from_utf8(user).unwrap().trim());
        if program.starts_with(unpacked()) {
            command.env("LD_LIBRARY_PATH", unpacked_libraries());
        }
        command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::null());
        let netdata = Self { _child: command.spawn().unwrap(), statsd, web, folder };
        let up = async {
            while netdata.ask("/api/v1/info").await.is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.expect("netdata starts");
        netdata
    }

    /// The response of its web server. None if it is not up yet.
    async fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.ok()?.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    /// Every value of a chart's dimension, one per second, the latest first.
    async fn values(&self, chart: &str, dimension: &str) -> Vec<f64> {
        let path = format!("/api/v1/data?chart={chart}&after=-600&format=json");
        let Some(answer) = self.ask(&path).await else { return Vec::new() };
        let Some(labels) = answer["labels"].as_array() else { return Vec::new() };
        let Some(column) = labels.iter().position(|label| label == dimension) else {
            return Vec::new();
        };
        let rows = answer["data"].as_array().unwrap().iter();
        rows.filter_map(|row| row[column].as_f64()).collect()
    }

    /// Waits until it reports this many received events of a kind.
    async fn wait_for_events(&self, kind: &str, count: f64) {
        let arriving = async {
            loop {
                let values = self.values("netdata.statsd_events", kind).await;
                if !values.is_empty() && values.iter().sum::<f64>() >= count {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, arriving).await.expect("netdata reports the events");
    }

    /// The total of a counter. An increase may be reported in two parts.
    async fn total(&self, counter: &str) -> f64 {
        let values = self.values(&format!("statsd_{counter}_counter"), "counter").await;
        (values.iter().sum::<f64>() * 100.0).round() / 100.0
    }
}

impl Drop for Netdata {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn config(folder: &Path, statsd: u16, web: u16) -> String {
    let folder = folder.display();
    let off = "proc,diskspace,cgroups,tc,idlejitter,timex,apps,charts.d,python.d,go.d,node.d,fping,\
               ioping,slabinfo,perf,freeipmi,ebpf,nfacct,checks,profile,enable running new plugins";
    let off: Vec<_> = off.split(',').map(|plugin| format!("    {plugin} = no\n")).collect();
    format!(
        "[directories]
    config = {folder}/etc
    stock config = {folder}/etc
    cache = {folder}/cache
    lib = {folder}/lib
    log = {folder}/log
    web = {folder}/web
    plugins = {folder}/plugins
[logs]
    debug = none
    error = none
    access = none
[db]
    mode = ram
    update every = 1
[ml]
    enabled = no
[health]
    enabled = no
[cloud]
    enabled = no
[plugins]
    statsd = yes
    netdata monitoring = yes
{}[statsd]
    bind to = udp:127.0.0.1:{statsd}
    create private charts for metrics matching = *
    update every (flushInterval) = 1
[web]
    bind to = 127.0.0.1:{web}
    default port = {web}
",
        off.concat()
    )
}

/// The folder into which `cargo xtask setup` unpacks netdata.
fn unpacked() -> PathBuf {
    project().join("target/tools/netdata")
}

/// The folders of the libraries that are unpacked with it.
fn unpacked_libraries() -> OsString {
    let roots = ["lib", "usr/lib"].map(|root| fs::read_dir(unpacked().join(root)));
    let folders = roots.into_iter().flatten().flatten().map(|folder| folder.unwrap().path());
    env::join_paths(folders).unwrap()
}

/// The path of netdata.
fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // This folder is not always in PATH.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), unpacked().join("usr/sbin")]);
    folders.map(|folder| folder.join("netdata")).find(|program| program.is_file())
}

#[tokio::test]
async fn another_server_understands_both_dialects() {
    let Some(program) = program() else {
        assert!(
            env::var_os("CI").is_none(),
            "netdata is missing, and CI is set: `cargo xtask setup` unpacks it"
        );
        println!("SKIPPED: netdata is not installed; on Debian `cargo xtask setup` unpacks it");
        return;
    };
    let netdata = Netdata::start(&program).await;
    // It does not report counts from before its first look at its own counters.
    netdata.wait_for_events("counters", 0.0).await;
    for (prefix, dialect) in [("dog", Dialect::DogStatsD), ("etsy", Dialect::StatsD)] {
        let builder = StatsdRecorder::udp(("127.0.0.1", netdata.statsd)).unwrap();
        let builder = builder.dialect(dialect).prefix(prefix).flush_every(Duration::MAX);
        // It does not support tags within names.
        let builder =
            if dialect == Dialect::DogStatsD { builder.tag("env", "test") } else { builder };
        let (recorder, flusher) = builder.build().unwrap();
        // It treats a minus as a decrement, as the original daemon does, unless zero comes first.
        let below = if dialect == Dialect::StatsD { -3.25 } else { 3.25 };
        let sent = |record: &dyn Fn()| {
            with_local_recorder(&recorder, record);
            assert_eq!(flusher.flush().errors, 0);
        };
        sent(&|| {
            describe_histogram!("took", Unit::Milliseconds, "");
            counter!("joins").increment(2);
            gauge!("level").set(5);
            gauge!("below").set(5);
            histogram!("took").record(0.25);
            histogram!("took").record(0.75);
            histogram!("bytes").record(512.5);
            histogram!("bytes").record(3);
        });
        sent(&|| {
            counter!("joins").increment(127);
            gauge!("level").set(12.5);
            gauge!("below").set(below);
        });
        sent(&|| counter!("end").increment(1));

        let arriving = async {
            while netdata.total(&format!("{prefix}.end")).await < 1.0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, arriving).await.expect("the last counter arrives");
        assert_eq!(netdata.total(&format!("{prefix}.joins")).await, 129.0);
        for (name, level) in [("level", 12.5), ("below", below)] {
            let values = netdata.values(&format!("statsd_{prefix}.{name}_gauge"), "gauge").await;
            assert_eq!(values.first(), Some(&level), "{prefix}.{name}");
        }
        // The dialect of the original daemon has no other kind of histogram than times.
        let bytes = if dialect == Dialect::DogStatsD { "bytes_histogram" } else { "bytes_timer" };
        for (name, min, max) in [("took_timer", 0.25, 0.75), (bytes, 3.0, 512.5)] {
            for (dimension, value) in [("min", min), ("max", max), ("average", (min + max) / 2.0)] {
                let values = netdata.values(&format!("statsd_{prefix}.{name}"), dimension).await;
                assert!(values.contains(&value), "{prefix}.{name}: no {value} in {values:?}");
            }
        }
    }
    // Each dialect sent at least three lines of counters.
    netdata.wait_for_events("counters", 5.5).await;
    for complaint in ["unknown", "errors"] {
        let values = netdata.values("netdata.statsd_events", complaint).await;
        assert!(!values.is_empty() && values.iter().all(|value| *value == 0.0), "{values:?}");
    }
}
