//! What the tests of several brokers need.
#![allow(dead_code, reason = "a broker's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Processors, Wake},
};
use pipeline_sources::{Broker, DeadLetter, Item, Source, SourceOptions};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

/// How long a test waits for what has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The texts that a pipeline has handled.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Three deliveries, without much delay.
pub(crate) fn quick() -> SourceOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    SourceOptions::new().redeliver_after(backoff.jitter(Jitter::None)).max_deliveries(3)
}

/// The payloads of dead letters as texts.
pub(crate) fn payloads<Id>(dead: &[DeadLetter<Id>]) -> Vec<String> {
    dead.iter().map(|dead| String::from_utf8_lossy(&dead.item.payload).into_owned()).collect()
}

pub(crate) fn text(message: &Message<Item>) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Starts a pipeline with one processor that keeps the texts, and fails those for which the function says
/// so.
pub(crate) fn keep<B: Broker>(
    source: Source<B>,
    fails: fn(&str) -> Option<Failure>,
) -> (Pipeline, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = text(message);
        log.lock().push(text.clone());
        fails(&text).map_or(Ok(()), Err)
    };
    let pipeline = Pipeline::of_messages("test")
        .source(source)
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    (pipeline, seen)
}

/// Starts a pipeline whose handler never ends, and waits until it has begun with an item. To drop it is
/// to kill it.
pub(crate) async fn stuck<B: Broker>(source: Source<B>) -> Pipeline {
    let begun = Arc::new(tokio::sync::Notify::new());
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        std::future::pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("stuck")
        .source(source)
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(1))
        .start()
        .unwrap();
    timeout(PATIENCE, begun.notified()).await.unwrap();
    pipeline
}

/// Checks that a signal ends the delay of an item, given before or after the broker has stored the delay, and that
/// of no other item.
pub(crate) async fn a_signal_ends_a_delay<B: Broker>(source: Source<B>, push: impl AsyncFn(Item)) {
    const HOUR: Duration = Duration::from_secs(3600);
    let (wakes, done) = (Arc::<Mutex<HashMap<String, Wake>>>::default(), Seen::default());
    let (postponed, log) = (wakes.clone(), done.clone());
    let handle = async move |message: &mut Message<Item>| {
        let text = text(message);
        if postponed.lock().contains_key(&text) {
            log.lock().push(text);
            return Ok(());
        }
        let wake = Wake::new();
        if text == "early" {
            wake.wake();
        }
        let failure = Failure::new("its time has not come").later(HOUR).woken_by(&wake);
        postponed.lock().insert(text, wake);
        Err(failure)
    };
    let pipeline = Pipeline::of_messages("test")
        .source(source)
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    for text in ["never", "late", "early"] {
        push(Item::new(text)).await;
    }
    until("one is delivered again", async || *done.lock() == ["early"]).await;
    let stored = || pipeline.snapshot().stages[0].source.as_ref().map_or(0, |seen| seen.released);
    until("the delays are stored", async || stored() == 3).await;
    wakes.lock()["late"].wake();
    until("the other is delivered again", async || done.lock().len() > 1).await;
    assert_eq!(*done.lock(), ["early", "late"]);
    drop(pipeline);
}

/// Checks that all of these large dead letters are listed, and that no page has more of them than bytes fit, which are
/// 17 million at most.
pub(crate) async fn large_letters_are_listed_by_pages<Id: Clone>(
    all: usize,
    page: impl AsyncFn(Option<Id>) -> Vec<DeadLetter<Id>>,
) {
    let (mut last, mut pages) = (None, Vec::new());
    loop {
        let page = page(last.clone()).await;
        let Some(end) = page.last() else { break };
        last = Some(end.id.clone());
        pages.push(page.iter().map(|dead| dead.item.payload.len()).collect::<Vec<_>>());
    }
    assert_eq!(pages.iter().map(Vec::len).sum::<usize>(), all, "{pages:?}");
    assert!(pages.len() > 1, "{pages:?}");
    for page in &pages {
        assert!(page[1..].iter().sum::<usize>() < 17_000_000, "{pages:?}");
    }
}

/// Checks that a drop of all takes the dead letters that are there when it begins and that it is to take, and not one that
/// is given up while it chooses.
pub(crate) async fn a_drop_of_all_takes_what_was_there<B: Broker>(
    source: Source<B>,
    push: impl AsyncFn(Item),
    listed: impl AsyncFn() -> Vec<String>,
    drop_all: impl AsyncFnOnce(&mut dyn FnMut(&Item) -> bool) -> u64,
) {
    // More than are on two pages.
    const MANY: usize = 250;
    let (pipeline, _seen) = keep(source, |_| Some(Failure::new("no").give_up()));
    for n in 0..MANY {
        push(Item::new(n.to_string())).await;
    }
    until("all are given up", async || listed().await.len() == MANY).await;
    let mut calls = 0;
    let dropped = {
        let given_up = async || {
            push(Item::new("late")).await;
            until("another one is given up", async || listed().await.contains(&"late".into()))
                .await;
        };
        let mut which = |item: &Item| {
            calls += 1;
            if calls == 1 {
                tokio::task::block_in_place(|| Handle::current().block_on(given_up()));
            }
            item.payload != "203"
        };
        timeout(PATIENCE, drop_all(&mut which)).await.expect("it ends")
    };
    assert_eq!((dropped, calls), (MANY as u64 - 1, MANY));
    let mut left = listed().await;
    left.sort();
    assert_eq!(left, ["203", "late"]);
    pipeline.drain(PATIENCE).await;
}

/// Checks that a dead letter is this item, with this number of deliveries and this reason.
#[track_caller]
pub(crate) fn assert_dead<Id>(dead: &DeadLetter<Id>, item: &Item, deliveries: u32, reason: &str) {
    assert_eq!(&dead.item, item);
    assert_eq!((dead.deliveries, &*dead.reason), (deliveries, reason));
    assert!(dead.enqueued_at.unwrap() <= dead.given_up_at.unwrap());
}

/// Numbers that look random and are the same each time.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    pub(crate) fn one_of<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len())])
    }
}

/// The counters of refused items, by the broker, the queue and the reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Mutex<HashMap<[String; 3], Arc<AtomicU64>>>>);

impl Refusals {
    pub(crate) fn counted(&self, broker: &str, queue: &str, reason: &str) -> u64 {
        self.0.lock()[&[broker, queue, reason].map(str::to_owned)].load(SeqCst)
    }
}

impl Recorder for Refusals {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        assert_eq!(key.name(), "pipeline.source.refused");
        let label =
            |name: &str| key.labels().find(|label| label.key() == name).unwrap().value().to_owned();
        let labels = ["broker", "queue", "reason"].map(label);
        Counter::from_arc(self.0.lock().entry(labels).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
