//! A real Prometheus: it scrapes a system, has data for every query of the dashboard, and takes the alert rules.

use std::{
    fs,
    process::{Command, Output},
};

use axum::{Router, routing::get};
use metrics_exporter_prometheus::PrometheusBuilder;
use pipeline::telemetry::Telemetry;
use pipeline_test_support::{PATIENCE, project, servers};
use tokio::{
    net::TcpListener,
    time::{Duration, Instant, sleep},
};

use crate::{queries, system::System};

/// The upper bounds of the buckets that docs/metrics.md proposes, in milliseconds.
const BUCKETS: [f64; 17] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3,
    1e4,
];

/// Runs promtool. None if it is not installed.
fn promtool(arguments: &[&str]) -> Option<Output> {
    let mut command = servers::tool("promtool")?;
    Some(command.args(arguments).current_dir(project().join("docs/prometheus")).output().unwrap())
}

#[test]
fn each_alert_fires_on_what_it_names_and_not_in_a_calm_system() {
    for arguments in [&["check", "rules", "alerts.yml"], &["test", "rules", "alerts_test.yml"]] {
        let Some(ran) = promtool(arguments) else { return };
        let said = [ran.stdout, ran.stderr].concat();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_that_scrapes_a_system_has_data_for_each_query_of_the_dashboard() {
    let Some(command) = servers::tool("prometheus") else { return };
    let builder = PrometheusBuilder::new().with_recommended_naming(true);
    let recorder = builder.set_buckets(&BUCKETS).unwrap().build_recorder();
    let handle = recorder.handle();
    let system = System::start(Telemetry::with_recorder(recorder)).await;
    let app = Router::new().route("/metrics", get(async move || handle.render()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, app).into_future());

    let (folder, address) = (tempfile::tempdir().unwrap(), servers::free_address());
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
         rule_files: ['{}']\n\
         scrape_configs: [{{job_name: push, static_configs: [{{targets: ['{target}']}}]}}]\n",
        project().join("docs/prometheus/alerts.yml").display(),
    );
    let file = folder.path().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    let _prometheus = start(command, &file, &address);

    let url = format!("http://{address}");
    let mut tried = 0;
    for query in queries() {
        // The recorder of StatsD is not there, and lists of labels are no queries.
        if query.contains("statsd_client") || query.starts_with("label_values") {
            continue;
        }
        let query = query.replace("$__rate_interval", "1m");
        let query = query.replace("$pipeline", ".*").replace("$stage", ".*");
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let ran = promtool(&["query", "instant", "--format=json", &url, &query]).unwrap();
            let answer = String::from_utf8(ran.stdout).unwrap();
            // Before it listens, the answer is an error. A rate needs two scrapes.
            if ran.status.success() && answer.trim() != "[]" {
                break;
            }
            let error = String::from_utf8_lossy(&ran.stderr);
            assert!(Instant::now() < end, "no data for {query}: {answer} {error}");
            sleep(Duration::from_millis(100)).await;
        }
        tried += 1;
    }
    assert!(tried > 90, "{tried} queries");
    drop(system);
    serving.abort();
}

/// A server that is killed on drop.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn start(mut command: Command, config: &std::path::Path, address: &str) -> Running {
    let data = config.with_file_name("data");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", data.display()));
    command.args([&format!("--web.listen-address={address}"), "--log.level=error"]);
    Running(command.spawn().unwrap())
}
