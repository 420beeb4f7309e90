//! The spans and the metrics of pipelines of messages.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::Backoff,
    processing::{Acknowledger, Batch, Batcher, Failure, Message, Processors},
    testkit::{scripted, settle},
};
use pipeline_test_support::Recorded;
use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    field::Field,
    span::{Attributes, Id, Record},
};

/// Records when spans begin and end, among other steps.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    steps: Vec<String>,
    spans: HashMap<u64, (&'static Metadata<'static>, usize)>,
}

impl Steps {
    fn add(&self, step: impl Into<String>) {
        self.0.lock().steps.push(step.into());
    }
}

impl Subscriber for Steps {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("pipeline_core::processing")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut kept = self.0.lock();
        let metadata = span.metadata();
        kept.steps.push(format!("{}.start", metadata.name()));
        let id = kept.spans.len() as u64 + 1;
        kept.spans.insert(id, (metadata, 1));
        Id::from_u64(id)
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.0.lock().spans.get_mut(&id.into_u64()).unwrap().1 += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut kept = self.0.lock();
        let (span, handles) = kept.spans.get_mut(&id.into_u64()).unwrap();
        *handles -= 1;
        let closed = (*handles == 0).then(|| format!("{}.stop", span.name()));
        kept.steps.extend(closed.clone());
        closed.is_some()
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut kept = self.0.lock();
        let name = kept.spans[&id.into_u64()].0.name();
        values.record(&mut |field: &Field, value: &dyn Debug| {
            let value = format!("{value:?}");
            kept.steps.push(format!("{name}.{field}={}", value.trim_matches('"')));
        });
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Acknowledger for Steps {
    type Receipt = u64;

    fn acknowledge(&self, done: Vec<u64>, failed: Vec<(u64, Failure)>) {
        let failed: Vec<_> = failed.into_iter().map(|(n, _)| n).collect();
        self.add(format!("ack {done:?} {failed:?}"));
    }
}

async fn one_ok_one_panics_one_fails(n: &mut Message<u64>) -> Result<u64, Failure> {
    match **n {
        2 => panic!("at two"),
        3 => Err(Failure::new("not three")),
        n => Ok(n),
    }
}

#[tokio::test(start_paused = true)]
async fn s_229_the_spans_of_a_chunk() {
    let steps = Steps::default();
    // With a single subscriber, tracing caches the interest of the thread that is first at a call site.
    static OTHER: OnceLock<Dispatch> = OnceLock::new();
    OTHER.get_or_init(|| Dispatch::new(Steps::default()));
    let _guard = tracing::subscriber::set_default(steps.clone());
    let (producer, script) = scripted();
    let acks = Arc::new(steps.clone());
    let write = Batcher::from_fn(async |_: &mut Batch<u64, u64>| Ok(()));
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::from_fn(one_ok_one_panics_one_fails).concurrency(1))
        .batcher(write.size(3).within(Duration::from_millis(100)))
        .start()
        .unwrap();
    // The last one shows that a message does not have the failure of one before it.
    script.emit([1, 2, 3, 4].map(|n| Message::new(n, n, &acks))).await;
    settle().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let expected = "processor.start message.start message.stop message.start message.failure=panicked \
                    message.stop message.start message.failure=failed message.stop \
                    message.start message.stop processor.failed=2 handle_failed.start \
                    handle_failed.stop ack [] [2, 3] processor.stop batcher.start batcher.stop \
                    batch_processor.start batch_processor.failed=0 ack [1, 4] [] \
                    batch_processor.stop";
    assert_eq!(steps.0.lock().steps.join(" "), expected);
}

#[tokio::test(start_paused = true)]
async fn messages_and_batches_are_counted_by_outcome() {
    let (telemetry, recorded) = Recorded::new();
    let (producer, script) = scripted();
    let write =
        Batcher::from_fn(
            async |batch: &mut Batch<u64, u64>| {
                if batch.len() == 1 { Err(Failure::new("too small")) } else { Ok(()) }
            },
        );
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
    let _pipeline = Pipeline::of_messages("orders")
        .telemetry(telemetry)
        .source(producer)
        .processors(
            Processors::from_fn(one_ok_one_panics_one_fails).concurrency(1).tries(2, backoff),
        )
        .batcher(write.size(2).within(Duration::from_millis(50)))
        .start()
        .unwrap();
    script.emit([1, 2, 3, 4, 5].map(Message::unacknowledged)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let counted = |name: &str| -> Vec<String> {
        let counters = recorded.counters(name).into_iter();
        let shown = counters.map(|(labels, count)| format!("{labels}: {count}"));
        shown.map(|shown| shown.replace("pipeline=orders,", "")).collect()
    };
    let failures = ["reason=failed,stage=default: 1", "reason=failed,stage=processors: 1"];
    let panics = "reason=panicked,stage=processors: 1";
    assert_eq!(counted("pipeline.message.failures"), [failures[0], failures[1], panics]);
    assert_eq!(counted("pipeline.message.retries"), ["stage=processors: 2"]);
    assert_eq!(counted("pipeline.message.done"), ["stage=default: 2"]);
    let closed = ["stage=default,trigger=size: 1", "stage=default,trigger=timeout: 1"];
    assert_eq!(counted("pipeline.batch.closed"), closed);
    assert_eq!(counted("pipeline.batch.messages"), ["stage=default: 3"]);
}
