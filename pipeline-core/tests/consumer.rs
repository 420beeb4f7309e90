//! Custom producers and consumers: demand arithmetic with real tasks, and how stages end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use pipeline_core::{
    ExitReason, Pipeline,
    builder::StartError,
    stage::{Consumer, Emitter, Producer, ProducerHandle, StageContext},
    subscription::{Cancel, SubscribeOptions, Subscription},
};
use pipeline_test_support::{Log, Recorded};
use tokio::sync::mpsc;

/// Emits as many successive numbers as requested, up to an end, and records its demand.
struct Counter {
    next: u64,
    end: u64,
    asked: mpsc::UnboundedSender<usize>,
}

impl Producer for Counter {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.asked.send(demand)?;
        let end = self.end.min(self.next + demand as u64);
        out.emit_all(self.next..end);
        self.next = end;
        if end == self.end { Err(ExitReason::Normal) } else { Ok(()) }
    }
}

/// Records the events it handles, and fails at one event.
struct Recorder {
    batches: mpsc::UnboundedSender<Vec<u64>>,
    fail_at: Option<u64>,
}

impl Consumer for Recorder {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        if let Some(at) = self.fail_at.filter(|at| events.contains(at)) {
            assert!(at % 2 == 0, "an odd event");
            return Err(ExitReason::failed("an even event"));
        }
        self.batches.send(events)?;
        Ok(())
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        let _ = self.batches.send(Vec::new());
    }
}

/// Runs the numbers up to `end`. Returns the demands, the handled events, and the report.
async fn run(
    end: u64,
    fail_at: Option<u64>,
    options: SubscribeOptions,
) -> (Vec<usize>, Vec<Vec<u64>>, pipeline_core::report::PipelineReport) {
    #[expect(clippy::disallowed_methods, reason = "read after the end of a finite run")]
    let ((asked, mut asks), (batches, mut handled)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let mut pipeline = Pipeline::builder("test")
        .producer(Counter { next: 0, end, asked })
        .consumer(Recorder { batches, fail_at }, options)
        .start()
        .unwrap();
    let report = pipeline.join().await;
    asks.close();
    handled.close();
    let asks = std::iter::from_fn(|| asks.try_recv().ok()).collect();
    let handled = std::iter::from_fn(|| handled.try_recv().ok()).collect();
    (asks, handled, report)
}

fn batches(sizes: &[u64]) -> Vec<Vec<u64>> {
    let mut next = 0;
    let batch = |&size: &u64| {
        next += size;
        (next - size..next).collect()
    };
    sizes.iter().map(batch).collect()
}

#[tokio::test]
async fn events_are_handled_in_chunks_and_demand_is_renewed_after_each() {
    let (asks, handled, report) = run(2000, None, SubscribeOptions::new()).await;
    assert_eq!(asks, [1000, 500, 500]);
    assert_eq!(handled, batches(&[500, 500, 500, 500, 0]), "terminate records the empty batch");
    assert_eq!(report.unprocessed(), 0);

    let options = SubscribeOptions::new().max_demand(100).min_demand(20);
    let (asks, handled, _) = run(280, None, options).await;
    assert_eq!(asks, [100, 80, 100]);
    assert_eq!(handled, batches(&[80, 20, 80, 80, 20, 0]));
}

#[tokio::test]
async fn a_failing_consumer_ends_the_pipeline_with_its_reason() {
    let options = SubscribeOptions::new().max_demand(10).min_demand(8);
    let (asks, handled, report) = run(1000, Some(4), options).await;
    assert_eq!(handled, batches(&[2, 2, 0]));
    let failure = report.failure().unwrap();
    assert_eq!(&*failure.stage, "consumer");
    assert_eq!(failure.reason.to_string(), "failed: an even event");
    assert_eq!(failure.in_progress, 2, "the failed chunk");
    let emitted: usize = asks.iter().sum();
    assert_eq!(emitted, 4 + report.unprocessed(), "all other events were in transit: {report}");
}

#[tokio::test]
async fn a_consumer_that_stops_ends_the_pipeline() {
    /// Takes one chunk.
    struct Once;

    impl Consumer for Once {
        type Event = u64;

        async fn handle_events(
            &mut self,
            events: Vec<u64>,
            _from: &Subscription,
        ) -> Result<(), ExitReason> {
            assert_eq!(events, [0, 1]);
            Err(ExitReason::Normal)
        }
    }

    let (queue, producer) =
        pipeline_core::source::queue(pipeline_core::source::QueueOptions::new());
    for item in 0..5 {
        queue.push(item).await.unwrap();
    }
    let mut pipeline = Pipeline::builder("enough")
        .producer(producer)
        .consumer(Once, SubscribeOptions::new().max_demand(3).min_demand(1))
        .start()
        .unwrap();
    assert_eq!(pipeline.name(), "enough");
    let report = pipeline.join().await;
    assert_eq!(&*report.pipeline, "enough");
    assert!(report.failure().is_none());
    assert_eq!(report.unprocessed(), 3, "one in the callback, two in the queue: {report}");
    assert!(queue.is_closed());
    assert_eq!(pipeline.join().await.unprocessed(), 3, "a second call returns the same report");
}

#[tokio::test]
async fn a_panic_in_a_consumer_is_contained_and_reported() {
    let options = SubscribeOptions::new().max_demand(10).min_demand(8);
    let (_, handled, report) = run(1000, Some(5), options).await;
    assert_eq!(handled, batches(&[2, 2, 0]));
    assert_eq!(report.failure().unwrap().reason.to_string(), "panicked: an odd event");
}

#[tokio::test]
async fn a_consumer_that_is_not_permanent_drains_with_the_pipeline() {
    let options = SubscribeOptions::new().max_demand(10).cancel(Cancel::Temporary);
    #[expect(clippy::disallowed_methods, reason = "read after the end of a finite run")]
    let ((asked, _asks), (batches, mut handled)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let pipeline = Pipeline::builder("test")
        .producer(Counter { next: 0, end: 5, asked })
        .consumer(Recorder { batches, fail_at: None }, options)
        .start()
        .unwrap();
    assert_eq!(handled.recv().await, Some(vec![0, 1, 2, 3, 4]));
    let report = pipeline.drain(std::time::Duration::from_secs(3600)).await;
    assert!(report.completed);
    assert_eq!(report.unprocessed(), 0);
    assert!(report.stages.iter().all(|stage| matches!(stage.reason, ExitReason::Normal)));
}

/// Ends in a configurable way, in a configurable callback.
struct Ends {
    reason: Option<ExitReason>,
    when: When,
}

#[derive(Clone, Copy)]
enum When {
    Asked,
    Ready,
    Dropped,
}

impl Producer for Ends {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        match self.when {
            When::Asked | When::Dropped => Err(self.reason.take().unwrap()),
            When::Ready => Ok(()),
        }
    }

    async fn ready(&mut self) {
        panic!("not ready at all");
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        assert!(!matches!(self.when, When::Dropped), "a destructor that panics");
    }
}

/// The reasons of producer and consumer when the producer ends like this.
async fn ends(when: When, reason: ExitReason, cancel: Cancel) -> [String; 2] {
    #[expect(clippy::disallowed_methods, reason = "never read")]
    let (batches, _handled) = mpsc::unbounded_channel();
    let mut pipeline = Pipeline::builder("test")
        .producer(Ends { reason: Some(reason), when })
        .consumer(Recorder { batches, fail_at: None }, SubscribeOptions::new().cancel(cancel))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    ["producer", "consumer"].map(|name| {
        let stage = report.stages.iter().find(|stage| &*stage.stage == name).unwrap();
        stage.reason.to_string()
    })
}

#[tokio::test]
async fn a_consumer_reacts_to_its_producer_by_its_cancel_mode() {
    let oops = || ExitReason::failed("oops");
    let end = async |cancel| ends(When::Asked, oops(), cancel).await;
    assert_eq!(end(Cancel::Permanent).await, ["failed: oops", "failed: oops"]);
    assert_eq!(end(Cancel::Transient).await, ["failed: oops", "failed: oops"]);
    // It would continue, but the pipeline stops it.
    assert_eq!(end(Cancel::Temporary).await, ["failed: oops", "shutdown"]);
    let end =
        async |cancel| ends(When::Asked, ExitReason::ShutdownWith("enough".into()), cancel).await;
    assert_eq!(end(Cancel::Permanent).await, ["shutdown: enough", "shutdown: enough"]);
    assert_eq!(end(Cancel::Transient).await, ["shutdown: enough", "shutdown"]);
}

#[tokio::test]
async fn a_panic_outside_the_callbacks_ends_the_pipeline_too() {
    let reason = "panicked: not ready at all";
    assert_eq!(ends(When::Ready, ExitReason::Normal, Cancel::Permanent).await, [reason, reason]);
    let [producer, _] = ends(When::Dropped, ExitReason::Normal, Cancel::Temporary).await;
    assert_eq!(producer, "panicked: a destructor that panics");
}

/// Emits one event after the other while any is owed.
struct OneByOne(u64);

impl Producer for OneByOne {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        assert_eq!(out.owed(), demand);
        while out.owed() > 0 {
            out.emit(self.0);
            self.0 += 1;
        }
        if self.0 < 12 { Ok(()) } else { Err(ExitReason::Normal) }
    }
}

#[tokio::test]
async fn a_producer_sees_how_much_is_still_owed() {
    #[expect(clippy::disallowed_methods, reason = "read after the end of a finite run")]
    let (batches, mut handled) = mpsc::unbounded_channel();
    let mut pipeline = Pipeline::builder("test")
        .producer(OneByOne(0))
        .consumer(Recorder { batches, fail_at: None }, SubscribeOptions::new().max_demand(6))
        .start()
        .unwrap();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    handled.close();
    let handled: Vec<_> = std::iter::from_fn(|| handled.try_recv().ok()).flatten().collect();
    assert_eq!(handled, Vec::from_iter(0..12));
}

/// Emits far too many events on its first demand, and none later.
struct Flood(u64);

impl Producer for Flood {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(0..std::mem::take(&mut self.0));
        Ok(())
    }
}

#[tokio::test]
async fn events_beyond_demand_and_buffer_are_discarded_and_counted() {
    const EMITTED: u64 = 10_010;
    let (log, _guard) = Log::keep();
    let (telemetry, recorded) = Recorded::new();
    #[expect(clippy::disallowed_methods, reason = "no more than was emitted")]
    let (batches, mut handled) = mpsc::unbounded_channel();
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(Flood(EMITTED))
        .consumer(Recorder { batches, fail_at: None }, SubscribeOptions::new().max_demand(4))
        .start()
        .unwrap();
    // The first four are sent at once; of the rest, the last 10,000 are kept.
    let mut expected = (0..4).chain(EMITTED - 10_000..EMITTED).peekable();
    while expected.peek().is_some() {
        for event in handled.recv().await.unwrap() {
            assert_eq!(Some(event), expected.next());
        }
    }
    let report = pipeline.drain(std::time::Duration::from_secs(3600)).await;
    let producer = report.stages.iter().find(|stage| &*stage.stage == "producer").unwrap();
    assert_eq!(producer.discarded, 6);
    assert!(report.to_string().contains("6 events discarded"), "{report}");
    let labels = "pipeline=test,reason=buffer_full,stage=producer".to_owned();
    assert_eq!(recorded.counters("pipeline.events_discarded"), [(labels, 6)]);
    let full: Vec<_> = log.take().into_iter().filter(|line| line.contains("full")).collect();
    assert_eq!(full, ["WARN discarded=6 message=the buffer is full, discarding stage=producer"]);
}

/// Never starts.
struct Refuses;

impl Producer for Refuses {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        let place =
            format!("{}/{} ({:?})", context.pipeline(), context.stage(), context.telemetry());
        Err(ExitReason::failed(place))
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

#[tokio::test]
async fn an_invalid_pipeline_does_not_start() {
    let start = |options| {
        #[expect(clippy::disallowed_methods, reason = "never used")]
        let (batches, _) = mpsc::unbounded_channel();
        Pipeline::builder("test")
            .producer(Refuses)
            .consumer(Recorder { batches, fail_at: None }, options)
            .start()
            .unwrap_err()
    };
    let error = start(SubscribeOptions::new());
    assert_eq!(
        error.to_string(),
        "producer failed to start: failed: test/producer (Telemetry(global))"
    );

    let error = start(SubscribeOptions::new().max_demand(0));
    assert!(matches!(error, StartError::Subscribe { .. }), "{error}");
}

#[test]
fn a_pipeline_needs_a_runtime() {
    let (queue, producer) =
        pipeline_core::source::queue::<u64>(pipeline_core::source::QueueOptions::new());
    let worker = pipeline_core::supervisor::ConsumerSupervisor::new(async |_: &u64| Ok(()));
    let error = Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(worker, SubscribeOptions::new())
        .start()
        .unwrap_err();
    assert!(matches!(error, StartError::NoRuntime));
    assert!(queue.is_closed());
}
