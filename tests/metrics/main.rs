//! docs/metrics.md lists exactly the metrics that exist, and the dashboard, its mapping and the alert rules use
//! only those.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

#[cfg(unix)]
mod prometheus;
mod system;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline::statsd::{Dialect, StatsdRecorder, cadence::MetricSink};
use pipeline_test_support::{Recorded, Series, project};
use regex::Regex;
use serde_json::Value;

use self::system::System;

/// A row of the table: a kind, and the tags, with their values where they are listed.
#[derive(Debug, PartialEq)]
struct Row {
    kind: String,
    tags: BTreeMap<String, BTreeSet<String>>,
}

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap()
}

/// All rows of all tables of the page.
fn table() -> BTreeMap<String, Row> {
    let page = read("docs/metrics.md").replace("\\|", "/");
    // Spans have a table of their own.
    let (metrics, _) = page.split_once("## Logs and spans").unwrap();
    let rows = metrics.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        assert!(!cells[3].is_empty(), "what is {}?", cells[0]);
        let tags = cells[2].split(',').map(|tag| tag.trim().trim_matches('`'));
        let tags = tags.filter(|tag| !tag.is_empty()).map(|tag| match tag.split_once(':') {
            Some((tag, values)) => (tag.to_owned(), values.split('/').map(str::to_owned).collect()),
            None => (tag.to_owned(), BTreeSet::new()),
        });
        let row = Row { kind: cells[1].to_owned(), tags: tags.collect() };
        (cells[0].trim_matches('`').to_owned(), row)
    };
    let rows: Vec<_> = rows.map(row).collect();
    let table: BTreeMap<_, _> = rows.iter().map(|(name, _)| name.clone()).zip(0..).collect();
    assert_eq!(table.len(), rows.len(), "a metric is listed twice");
    rows.into_iter().collect()
}

/// All series of a system with a stage of each kind, an endpoint and a server.
async fn registered() -> Vec<Series> {
    let (telemetry, recorded) = Recorded::new();
    let _system = System::start(telemetry).await;
    recorded.series()
}

/// A sink that accepts everything except the first line.
#[derive(Clone, Default)]
struct Sink {
    lines: Arc<Mutex<Option<Vec<String>>>>,
}

impl MetricSink for Sink {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let mut lines = self.lines.lock();
        match &mut *lines {
            Some(lines) => lines.extend(metric.split('\n').map(str::to_owned)),
            None => {
                *lines = Some(Vec::new());
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        }
        Ok(metric.len())
    }
}

/// The recorder's own metrics after every possible failure: names, kinds and tags.
fn metrics_of_the_recorder() -> BTreeMap<String, Row> {
    let sink = Sink::default();
    let builder = StatsdRecorder::sink(sink.clone()).flush_every(Duration::MAX);
    let builder = builder.dialect(Dialect::StatsD).max_series(3).packet_bytes(60);
    let (recorder, flusher) = builder.build().unwrap();
    for _ in 0..3 {
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("c").increment(1);
            metrics::histogram!("h").record(-1);
            metrics::counter!("long", "label" => "x".repeat(60)).increment(1);
            metrics::counter!("too_many").increment(1);
        });
        flusher.flush();
    }
    let lines = sink.lines.lock().take().unwrap();
    let own = lines.iter().filter(|line| line.starts_with("statsd."));
    own.map(|line| {
        let (name, rest) = line.split_once(':').unwrap();
        let kind = if rest.ends_with("|g") { "gauge" } else { "counter" };
        // In this dialect, tags are part of the name.
        let mut parts = name.split(';');
        let name = parts.next().unwrap().to_owned();
        let tags = parts.map(|tag| (tag.split_once('=').unwrap().0.to_owned(), BTreeSet::new()));
        (name, Row { kind: kind.to_owned(), tags: tags.collect() })
    })
    .collect()
}

/// All emitted metrics, in the form of the table's rows.
async fn emitted() -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for Series { kind, name, labels } in registered().await {
        let row = rows.entry(name).or_insert_with(|| Row { kind, tags: BTreeMap::new() });
        for (tag, value) in labels {
            let values = row.tags.entry(tag.clone()).or_default();
            // The values of the other tags are names chosen by the program.
            if ["status", "reason", "trigger", "outcome", "what"].contains(&&*tag) {
                values.insert(value);
            }
        }
    }
    rows.extend(metrics_of_the_recorder());
    rows
}

#[tokio::test]
async fn the_table_lists_exactly_the_emitted_metrics() {
    let (table, emitted) = (table(), emitted().await);
    let names = |rows: &BTreeMap<String, Row>| rows.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&table), names(&emitted));
    for (name, row) in &table {
        assert_eq!(row, &emitted[name], "{name}");
    }
}

/// A rule of the mapping.
struct Rule {
    matches: Regex,
    kind: String,
    name: String,
}

fn rules() -> Vec<Rule> {
    let file = read("docs/grafana/statsd-mapping.yml");
    let (_, rules) = file.split_once("mappings:").unwrap();
    let rules = rules.split("- match:").skip(1).map(|rule| {
        let mut lines = rule.lines().map(str::trim);
        let matches = lines.next().unwrap().trim_matches('\'');
        let fields: BTreeMap<_, _> = lines.filter_map(|line| line.split_once(": ")).collect();
        assert_eq!(fields["match_type"], "regex");
        Rule {
            matches: Regex::new(matches).unwrap(),
            kind: fields["match_metric_type"].to_owned(),
            name: fields["name"].trim_matches('"').to_owned(),
        }
    });
    rules.collect()
}

/// The names and labels in Prometheus after the mapping is applied to the table.
fn prometheus() -> BTreeMap<String, BTreeSet<String>> {
    let rules = rules();
    let mut known = BTreeMap::new();
    for (name, row) in table() {
        let kind = if row.kind == "ms" { "observer" } else { &row.kind };
        // With a prefix and without.
        let mapped = ["", "my.push."].map(|prefix| {
            let name = format!("{prefix}{name}");
            let rule = |rule: &&Rule| rule.kind == kind && rule.matches.is_match(&name);
            let rule = rules.iter().find(rule).unwrap_or_else(|| panic!("no rule for {name}"));
            rule.matches.replace(&name, &*rule.name).replace('.', "_")
        });
        assert_eq!(mapped[0], mapped[1]);
        let names = if row.kind == "ms" {
            // The exporter of the facade keeps milliseconds.
            let names = [mapped[0].clone(), mapped[0].replace("_seconds", "_milliseconds")];
            let suffixes = ["_bucket", "_sum", "_count"];
            names.iter().flat_map(|name| suffixes.map(|suffix| format!("{name}{suffix}"))).collect()
        } else {
            vec![mapped[0].clone()]
        };
        for name in names {
            let mut labels: BTreeSet<_> = row.tags.keys().cloned().collect();
            labels.extend(name.ends_with("_bucket").then(|| "le".to_owned()));
            assert!(known.insert(name, labels).is_none());
        }
    }
    known
}

/// All strings under this key, at any depth.
fn strings<'a>(value: &'a Value, under: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                found.extend(value.as_str().filter(|_| key == under));
                strings(value, under, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| strings(value, under, found)),
        _ => {}
    }
}

/// The metrics that a query names. It names only metrics and labels that are known.
fn named<'a>(query: &'a str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<&'a str> {
    let metric = Regex::new("(pipeline|socket|channel|http|statsd)_[a-z_]+").unwrap();
    let lists =
        Regex::new(r"by \(([^)]*)\)|\{([^}]*)\}|label_values\([a-z_]+, ([a-z]+)\)").unwrap();
    let names: Vec<_> = metric.find_iter(query).map(|name| name.as_str()).collect();
    assert!(!names.is_empty(), "{query}");
    for name in &names {
        let labels = known.get(*name).unwrap_or_else(|| panic!("unknown metric {name}: {query}"));
        for list in lists.captures_iter(query) {
            let list = list.iter().skip(1).flatten().next().unwrap().as_str();
            let asked = list.split(',').map(|label| label.split('=').next().unwrap().trim());
            // Prometheus itself adds the instance.
            for label in asked.filter(|label| *label != "instance") {
                assert!(labels.contains(label), "{name} has no label {label}: {query}");
            }
        }
    }
    names
}

/// All queries of the dashboard.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("docs/grafana/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    strings(&dashboard, "expr", &mut queries);
    strings(&dashboard, "query", &mut queries);
    queries.retain(|query| *query != "prometheus");
    queries.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_dashboard_uses_metrics_and_labels_that_the_mapping_produces() {
    let (known, mut asked) = (prometheus(), BTreeSet::new());
    for query in queries() {
        for name in named(&query, &known) {
            asked.insert(name.trim_end_matches("_bucket").trim_end_matches("_sum").to_owned());
        }
    }
    // And the dashboard shows all of them.
    let shown = |name: &str| {
        let name = name.trim_end_matches("_bucket").trim_end_matches("_sum");
        asked.contains(name) || asked.contains(name.trim_end_matches("_count"))
    };
    let missing: Vec<_> = known.keys().filter(|name| !shown(name)).collect();
    assert!(missing.is_empty(), "not on the dashboard: {missing:?}");
}

#[test]
fn the_alert_rules_use_metrics_and_labels_that_exist() {
    let (known, rules) = (prometheus(), read("docs/prometheus/alerts.yml"));
    let mut count = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let query = rule.split_once("expr: ").unwrap().1;
        let end =
            ["        for:", "        labels:"].iter().filter_map(|end| query.find(end)).min();
        named(&query[..end.unwrap()], &known);
        count += 1;
    }
    assert!(count > 5, "{count} rules");
}

#[test]
fn legends_of_the_dashboard_use_labels_that_their_queries_keep() {
    let dashboard: Value = serde_json::from_str(&read("docs/grafana/dashboard.json")).unwrap();
    let kept = Regex::new(r"by \(([^)]*)\)").unwrap();
    let named = Regex::new(r"\{\{([a-z]+)\}\}").unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let lines: Vec<_> = panels.filter_map(|panel| panel["targets"].as_array()).flatten().collect();
    assert!(lines.len() > 40, "{} lines", lines.len());
    for line in lines {
        let (query, legend) =
            (line["expr"].as_str().unwrap(), line["legendFormat"].as_str().unwrap());
        let labels = kept.captures(query).map_or("", |found| found.get(1).unwrap().as_str());
        let labels: Vec<_> =
            labels.split(", ").filter(|label| !["", "le"].contains(label)).collect();
        let names: Vec<_> =
            named.captures_iter(legend).map(|found| found.get(1).unwrap().as_str()).collect();
        assert_eq!(names, labels, "{legend}: {query}");
    }
}
