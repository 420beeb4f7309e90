//! A known load with one slow stage, compared with the page, the JSON and StatsD.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::Router;
use fantoccini::Locator;
use pipeline::{
    ExitReason, Pipeline,
    inspect::{Inspector, StageView, View},
    source::{QueueOptions, TimedQueue, timed_queue},
    stage::{Emitter, ProducerConsumer},
    statsd::{StatsdFlusher, StatsdRecorder, cadence::SpyMetricSink},
    step::map,
    subscription::{SubscribeOptions, Subscription},
    supervisor::ConsumerSupervisor,
    telemetry::Telemetry,
    timed::Timed,
    ws::{Endpoint, Mount, listen, pubsub::PreparedBroadcast},
};
use pipeline_test_support::{AnyChannel, AnySocket, Client, PATIENCE, connect, get};
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{interval, sleep, timeout},
};

use crate::driver::Browser;

/// The number of items.
const MANY: u64 = 3000;

/// How many items the slow stage may handle per second, and how many of these at once.
const A_SECOND: usize = 200;
const AT_ONCE: usize = 4;

/// The tolerance of a rate. A rate covers three seconds, in which the slow stage gets 150 permits; the
/// rest is for a busy machine.
const ERROR: f64 = 0.25;

/// The slow stage: it waits for a permit for every item.
struct Render {
    permits: Arc<Semaphore>,
}

impl ProducerConsumer for Render {
    type In = Timed<u64>;
    type Out = Timed<u64>;

    async fn handle_events(
        &mut self,
        events: Vec<Timed<u64>>,
        _from: &Subscription,
        out: &mut Emitter<'_, Timed<u64>>,
    ) -> Result<(), ExitReason> {
        for event in events {
            self.permits.acquire().await?.forget();
            out.emit(event);
        }
        Ok(())
    }
}

/// From the queue through `parse` and `render` to the user.
struct System {
    pushes: TimedQueue<u64>,
    address: String,
    permits: Arc<Semaphore>,
    pipeline: Pipeline,
    statsd: StatsdFlusher,
    lines: Box<dyn Fn() -> Vec<String>>,
    _tasks: JoinSet<()>,
}

impl System {
    async fn start() -> Self {
        let (sent, sink) = SpyMetricSink::new();
        let (recorder, statsd) =
            StatsdRecorder::sink(sink).flush_every(Duration::MAX).build().unwrap();
        let lines = Box::new(move || {
            let lines = sent.try_iter().map(|line| String::from_utf8(line).unwrap());
            lines.flat_map(|lines| lines.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
        });
        let telemetry = Telemetry::with_recorder(recorder);
        let sockets = Mount::new(AnySocket).channel::<AnyChannel>("user:*");
        let endpoint = Endpoint::builder()
            .telemetry(telemetry.clone())
            .mount("/socket", sockets)
            .build()
            .unwrap();
        let to_user = endpoint.pubsub().broadcast_worker(|item: &Timed<u64>| {
            Ok(PreparedBroadcast::new("user:1", "push_timed", json!({ "n": **item }))?.timed(item))
        });
        let (pushes, producer) = timed_queue(QueueOptions::new().capacity(100));
        let permits = Arc::new(Semaphore::new(0));
        let render = Render { permits: permits.clone() };
        let few = || SubscribeOptions::new().max_demand(20);
        let pipeline = Pipeline::builder("push")
            .telemetry(telemetry)
            .producer_with(pipeline::stage::Stage::new(producer).named("source"))
            .producer_consumer_with(
                pipeline::stage::Stage::new(map(|item: Timed<u64>| item)).named("parse"),
                few(),
            )
            .producer_consumer_with(pipeline::stage::Stage::new(render).named("render"), few())
            .consumer_supervisor_with(
                pipeline::stage::Stage::new(ConsumerSupervisor::new(to_user)).named("to_user"),
                few(),
            )
            .start()
            .unwrap();
        let inspector = Inspector::builder()
            .pipeline(pipeline.observer())
            .endpoint(endpoint.observer())
            .build()
            .unwrap();
        let app = Router::new().nest_service("/inspect", inspector).fallback_service(endpoint);
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { pushes, address, permits, pipeline, statsd, lines, _tasks: tasks }
    }

    async fn user(&self) -> Client {
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0", self.address);
        let mut user = connect(&url).await.unwrap();
        user.join("1", "user:1").await;
        user
    }

    async fn view(&self) -> View {
        let json = get(&self.address, "/inspect/data.json").await.json();
        serde_json::from_value(json).unwrap()
    }

    /// Polls until the view satisfies the condition.
    async fn until(&self, shows: impl Fn(&View) -> bool) -> View {
        let asking = async {
            loop {
                let view = self.view().await;
                if shows(&view) {
                    return view;
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        match timeout(PATIENCE, asking).await {
            Ok(view) => view,
            Err(_) => panic!("not shown: {:?}", self.view().await),
        }
    }
}

fn stage<'a>(view: &'a View, name: &str) -> &'a StageView {
    view.pipelines[0].stages.iter().find(|stage| stage.name() == name).unwrap()
}

fn is_about(rate: f64, expected: usize) -> bool {
    let expected = expected as f64;
    (rate - expected).abs() <= expected * ERROR
}

/// The sum of a metric, by stage.
fn by_stage(lines: &[String], name: &str) -> HashMap<String, f64> {
    let mut sums = HashMap::new();
    for line in lines.iter().filter(|line| line.starts_with(&format!("{name}:"))) {
        let (value, rest) = line[name.len() + 1..].split_once('|').unwrap();
        let (_, stage) = rest.split_once("stage:").unwrap();
        let stage = stage.split(',').next().unwrap().to_owned();
        *sums.entry(stage).or_default() += value.parse::<f64>().unwrap();
    }
    sums
}

/// The number of sent samples of a histogram.
fn samples(lines: &[String], name: &str) -> f64 {
    let named = lines.iter().filter(|line| line.starts_with(&format!("{name}:")));
    named
        .map(|line| {
            let values = line.split('|').next().unwrap().split(':').count() - 1;
            let rate = line
                .split_once("|@")
                .map_or(1.0, |(_, rest)| rest.split('|').next().unwrap().parse().unwrap());
            values as f64 / rate
        })
        .sum()
}

fn largest(by_stage: &HashMap<String, f64>) -> &str {
    by_stage.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

#[tokio::test]
async fn the_page_the_json_and_statsd_name_the_slow_stage_and_agree_with_the_load() {
    // The browser first: it takes time to start, and the load is finite.
    let browser = Browser::start().await;
    let system = System::start().await;
    let mut user = system.user().await;
    let mut tasks = JoinSet::new();
    let pushes = system.pushes.clone();
    tasks.spawn(async move {
        for n in 0..MANY {
            pushes.push_timed(n).await.unwrap();
        }
    });
    let permits = system.permits.clone();
    tasks.spawn(async move {
        let mut pace =
            interval(Duration::from_secs(1) / u32::try_from(A_SECOND / AT_ONCE).unwrap());
        loop {
            pace.tick().await;
            permits.add_permits(AT_ONCE);
        }
    });
    let reading = tokio::spawn(async move {
        for n in 0..MANY {
            assert_eq!(user.receive().await[4], json!({ "n": n }));
        }
    });

    // The JSON, under load.
    let seen = system
        .until(|view| {
            let pipeline = &view.pipelines[0];
            pipeline.bottleneck.as_deref() == Some("render")
                && is_about(stage(view, "render").out_per_second, A_SECOND)
                && pipeline.edges.iter().all(|edge| is_about(edge.per_second, A_SECOND))
                && stage(view, "render").busy > 0.8
                && stage(view, "source").waiting_for_demand > 0.8
                && stage(view, "parse").waiting_for_demand > 0.8
                && stage(view, "to_user").waiting_for_events > 0.5
                // A background task refills the queue.
                && stage(view, "source").snapshot.queued > 50
        })
        .await;
    assert_eq!(stage(&seen, "source").snapshot.queue_capacity, Some(100));

    // The page.
    browser.client.goto(&format!("http://{}/inspect", system.address)).await.unwrap();
    let bottleneck = Locator::Css(".stage.bottleneck[data-stage=render]");
    browser.client.wait().at_most(PATIENCE).for_element(bottleneck).await.unwrap();
    let script = "
        const bottlenecks = [...document.querySelectorAll('.stage.bottleneck')].map(stage => stage.dataset.stage)
        const state = name => document.querySelector(`.stage[data-stage=${name}]`).dataset.state
        return [bottlenecks, ['source', 'parse', 'render', 'to_user'].map(state)]";
    let shown = browser.client.execute(script, vec![]).await.unwrap();
    let states = ["waiting_for_demand", "waiting_for_demand", "busy", "waiting_for_events"];
    assert_eq!(shown, json!([["render"], states]));
    let flag = browser.text(".stage.bottleneck .flag text").await;
    assert_eq!(flag, "BOTTLENECK", "not only by colour");
    // The parts of a push, the longest of which is marked.
    let longest = Locator::Css("#legs tr[data-longest=true]");
    browser.client.wait().at_most(PATIENCE).for_element(longest).await.unwrap();
    let script = "
        const rows = [...document.querySelector('#legs').tBodies[0].rows]
        return rows.map(row => [row.cells[0].textContent, row.cells[1].textContent.includes('ms')])";
    let shown = browser.client.execute(script, vec![]).await.unwrap();
    assert_eq!(
        shown,
        json!(["queued", "waited", "worked", "written"].map(|leg| json!([leg, true])))
    );
    if let Some(path) = std::env::var_os("PIPELINE_LIVE_VIEW") {
        sleep(Duration::from_secs(3)).await;
        std::fs::write(path, browser.client.screenshot().await.unwrap()).unwrap();
    }
    browser.close().await;

    // At the end, all totals equal the number of pushed items.
    timeout(PATIENCE, reading).await.unwrap().unwrap();
    let seen = system.until(|view| view.endpoint.as_ref().unwrap().delivered.count == MANY).await;
    for name in ["source", "parse", "render"] {
        assert_eq!(stage(&seen, name).snapshot.events_out, MANY, "{name}");
    }
    assert_eq!(stage(&seen, "to_user").snapshot.events_in, MANY);
    assert_eq!(stage(&seen, "source").snapshot.discarded, 0);
    assert_eq!(seen.pipelines[0].edges.iter().map(|edge| edge.sent).collect::<Vec<_>>(), [MANY; 3]);
    let seen = system.until(|view| view.pipelines[0].bottleneck.is_none()).await;
    assert_eq!(stage(&seen, "render").snapshot.waiting, 0);

    // StatsD, after the end of the pipeline.
    tasks.abort_all();
    let report = system.pipeline.drain(PATIENCE).await;
    assert_eq!(report.unprocessed(), 0, "{report}");
    system.statsd.flush();
    let lines = (system.lines)();
    let busy = by_stage(&lines, "pipeline.stage.busy_time");
    assert_eq!(largest(&busy), "render", "{busy:?}");
    let waiting = by_stage(&lines, "pipeline.stage.demand_wait_time");
    let waiting = |stage: &str| waiting.get(stage).copied().unwrap_or_default();
    assert!(waiting("source") > waiting("render") && waiting("parse") > waiting("render"));
    let sent = by_stage(&lines, "pipeline.events_out");
    let all = |stages: &[&str]| stages.iter().map(|s| ((*s).to_owned(), MANY as f64)).collect();
    assert_eq!(sent, all(&["source", "parse", "render"]));
    assert_eq!(by_stage(&lines, "pipeline.events_in"), all(&["parse", "render", "to_user"]));
    for leg in ["delivered", "queued", "waited", "worked", "written"] {
        let name = format!("pipeline.push_{leg}");
        let count = samples(&lines, &name);
        assert!((count - MANY as f64).abs() < 1.0, "{name}: {count}");
    }
}
