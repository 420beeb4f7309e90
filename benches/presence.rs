//! Presence compared with a hand-written table: one join and leave, and a long list.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

use std::{collections::BTreeMap, hint::black_box};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use parking_lot::Mutex;
use pipeline::ws::{Endpoint, Payload, Presence, pubsub::TopicSubscription};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const T: &str = "room:lobby";

/// The hand-written equivalent for one node: metas by key, and a broadcast for each change.
#[derive(Default)]
struct Baseline {
    keys: Mutex<BTreeMap<String, Vec<Value>>>,
    count: u64,
}

impl Baseline {
    fn come(&mut self, endpoint: &Endpoint, key: &str, device: &str) -> Value {
        self.count += 1;
        let meta = json!({ "device": device, "phx_ref": self.count.to_string() });
        self.keys.lock().entry(key.to_owned()).or_default().push(meta.clone());
        let diff = json!({ "joins": { key: { "metas": [&meta] } }, "leaves": {} });
        endpoint.broadcast(T, "members_diff", diff).unwrap();
        meta
    }

    fn go(&self, endpoint: &Endpoint, key: &str, meta: &Value) {
        let mut keys = self.keys.lock();
        if let Some(metas) = keys.get_mut(key) {
            metas.retain(|other| other != meta);
            if metas.is_empty() {
                keys.remove(key);
            }
        }
        drop(keys);
        let diff = json!({ "joins": {}, "leaves": { key: { "metas": [meta] } } });
        endpoint.broadcast(T, "members_diff", diff).unwrap();
    }

    fn list(&self) -> Payload {
        let keys = self.keys.lock();
        let all = keys.iter().map(|(key, metas)| (key.clone(), json!({ "metas": metas })));
        Payload::new(&all.collect::<Value>()).unwrap()
    }
}

/// An endpoint with a presence, and this many subscribers.
fn endpoint(watching: usize) -> (Presence, Endpoint, Vec<TopicSubscription>) {
    let presence = Presence::new();
    let endpoint = Endpoint::builder().presence(&presence).build().unwrap();
    let watching = (0..watching).map(|_| endpoint.subscribe(T)).collect();
    (presence, endpoint, watching)
}

fn comes_and_goes(c: &mut Criterion) {
    let mut group = c.benchmark_group("one joins and leaves");
    for watching in [0, 100] {
        let (presence, endpoint, _watching) = endpoint(watching);
        group.bench_function(BenchmarkId::new("here", watching), |b| {
            b.iter(|| presence.track_detached(T, "ada", &json!({ "device": "phone" })).unwrap());
        });
        let mut baseline = Baseline::default();
        group.bench_function(BenchmarkId::new("baseline", watching), |b| {
            b.iter(|| {
                let meta = baseline.come(&endpoint, "ada", "phone");
                baseline.go(&endpoint, "ada", &meta);
            });
        });
    }
}

fn who_is_here(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("list of presences");
    for many in [10, 1000] {
        let (presence, endpoint, _) = endpoint(0);
        let mut baseline = Baseline::default();
        let mut entered = Vec::new();
        for n in 0..many {
            let key = format!("u{n}");
            entered.push(presence.track_detached(T, &key, &json!({ "device": "phone" })).unwrap());
            baseline.come(&endpoint, &key, "phone");
        }
        group.bench_function(BenchmarkId::new("here", many), |b| {
            b.iter(|| black_box(Payload::new(&runtime.block_on(presence.list(T))).unwrap()));
        });
        group.bench_function(BenchmarkId::new("baseline", many), |b| {
            b.iter(|| black_box(baseline.list()));
        });
    }
}

criterion_group!(benches, comes_and_goes, who_is_here);
criterion_main!(benches);
