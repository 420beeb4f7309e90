//! Section 5.3: cancel and down.

use std::time::Duration;

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    builder::StartError,
    stage::{
        Caller, Consumer, Emitter, HandleCall, HandleCast, HandleInfo, Producer, ProducerConsumer,
        ProducerHandle, Stage, StageContext,
    },
    subscription::{Cancel, Cancellation, DemandControl, SubscribeOptions, Subscription},
    testkit::{Command, assert_no_task_left, recording, scripted, settle},
};

use crate::support::{
    CallLog, LoggingConsumer, LoggingProducer, NO_CHUNK, alone, auto, automatic, ended, fate,
    four_reasons, manual, oops, silent,
};

const MODES: [Cancel; 3] = [Cancel::Permanent, Cancel::Transient, Cancel::Temporary];

/// How a subscription ends.
#[derive(Clone, Copy)]
enum End {
    Cancel,
    Down,
}

/// The fates of four consumers whose subscriptions end like this, each for its own reason.
async fn fates(mode: Cancel, end: End) -> Vec<String> {
    let mut fates = Vec::new();
    for reason in four_reasons() {
        let (producer, mut consumer) = (silent(), automatic());
        let subscription = consumer.subscribe(producer.handle(), auto(4, 2).cancel(mode)).await;
        match end {
            End::Cancel => subscription.cancel(reason.clone()),
            End::Down => producer.handle().stop(reason.clone()).await,
        }
        settle().await;
        // Each consumer is notified first.
        let (kind, runs) = match end {
            End::Cancel => ("cancelled", true),
            End::Down => ("down", false),
        };
        let expected = [(subscription, format!("{kind} ({reason})"))];
        assert_eq!(ended(consumer.cancelled()), expected);
        assert_eq!(producer.handle().is_running(), runs);
        fates.push(consumer.fate().await);
    }
    fates
}

#[tokio::test(start_paused = true)]
async fn s_040_a_permanent_consumer_stops_when_it_is_cancelled() {
    let expected = ["normal", "shutdown", "shutdown: x", "failed: oops"];
    assert_eq!(fates(Cancel::Permanent, End::Cancel).await, expected);
}

#[tokio::test(start_paused = true)]
async fn s_041_a_transient_consumer_survives_a_graceful_cancel() {
    let expected = ["alive", "alive", "alive", "failed: oops"];
    assert_eq!(fates(Cancel::Transient, End::Cancel).await, expected);
}

#[tokio::test(start_paused = true)]
async fn s_042_a_temporary_consumer_survives_every_cancel() {
    assert_eq!(fates(Cancel::Temporary, End::Cancel).await, ["alive"; 4]);
}

#[tokio::test(start_paused = true)]
async fn s_043_a_permanent_consumer_stops_when_its_producer_stops() {
    let expected = ["normal", "shutdown", "shutdown: x", "failed: oops"];
    assert_eq!(fates(Cancel::Permanent, End::Down).await, expected);
}

#[tokio::test(start_paused = true)]
async fn s_044_a_transient_consumer_survives_a_graceful_end_of_its_producer() {
    let expected = ["alive", "alive", "alive", "failed: oops"];
    assert_eq!(fates(Cancel::Transient, End::Down).await, expected);
}

#[tokio::test(start_paused = true)]
async fn s_045_a_temporary_consumer_survives_every_end_of_its_producer() {
    assert_eq!(fates(Cancel::Temporary, End::Down).await, ["alive"; 4]);
}

#[tokio::test(start_paused = true)]
async fn s_046_a_consumer_sees_that_its_producer_was_killed_before_it_stops() {
    for mode in MODES {
        let (calls, producer) = (CallLog::default(), silent());
        let (consumer, _pipeline) =
            alone(|graph| graph.consumer("consumer", LoggingConsumer(calls.clone())));
        let options = auto(4, 2).cancel(mode);
        let subscription = consumer.subscribe(producer.handle(), options).await.unwrap();
        settle().await;
        producer.handle().kill();
        settle().await;
        settle().await;
        let mut expected = vec![format!("consumer: {subscription:?} down (killed)")];
        if mode != Cancel::Temporary {
            expected.push("consumer ends: killed".to_owned());
        }
        assert_eq!(calls.take(), expected);
        assert_eq!(consumer.is_running(), mode == Cancel::Temporary);
    }
}

#[tokio::test(start_paused = true)]
async fn s_047_the_producer_sees_a_cancel_before_the_consumer_does() {
    let calls = CallLog::default();
    let (producer, _pipeline) =
        alone(|graph| graph.producer("producer", LoggingProducer(calls.clone())));
    let (consumer, _pipeline) =
        alone(|graph| graph.consumer("consumer", LoggingConsumer(calls.clone())));
    let subscription = consumer.subscribe(&producer, auto(4, 2)).await.unwrap();
    settle().await;
    subscription.cancel(oops());
    settle().await;
    settle().await;
    let expected = [
        "demand 4".to_owned(),
        format!("producer: {subscription:?} cancelled (failed: oops)"),
        format!("consumer: {subscription:?} cancelled (failed: oops)"),
        "consumer ends: failed: oops".to_owned(),
    ];
    assert_eq!(calls.take(), expected);
}

/// The unit tests of the runtime show that nothing is sent to the consumer.
#[tokio::test(start_paused = true)]
async fn s_048_a_producer_sees_that_its_consumer_was_killed() {
    let (producer, consumer) = (silent(), automatic());
    let subscription = consumer.subscribe(producer.handle(), auto(4, 2)).await;
    consumer.handle.kill();
    settle().await;
    assert_eq!(ended(producer.cancelled()), [(subscription, "down (killed)".to_owned())]);
    assert_eq!(ended(consumer.cancelled()), []);
    producer.emit([1]).await;
    assert_eq!(producer.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn s_049_a_consumer_can_subscribe_again_and_asks_for_everything_again() {
    let (producer, mut consumer) = (silent(), automatic());
    let options = auto(5, 0).cancel(Cancel::Temporary);
    let first = consumer.subscribe(producer.handle(), options.clone()).await;
    producer.emit([1, 2, 3]).await;
    assert_eq!(consumer.chunks(), [[1, 2, 3]]);
    assert_eq!(producer.demands(), [5]);
    first.cancel(oops());
    settle().await;
    assert_eq!(ended(consumer.cancelled()), [(first, "cancelled (failed: oops)".to_owned())]);

    consumer.subscribe(producer.handle(), options).await;
    // Two events are still owed.
    assert_eq!(producer.demands(), [3]);
    producer.emit([4, 5, 6, 7, 8, 9]).await;
    assert_eq!(consumer.chunks(), [vec![4, 5, 6, 7, 8], vec![9]]);
    assert_eq!(consumer.fate().await, "alive");
}

#[tokio::test(start_paused = true)]
async fn s_050_events_after_a_cancel_are_buffered() {
    let (producer, consumer) = (silent(), automatic());
    let options = auto(4, 0).cancel(Cancel::Temporary);
    let subscription = consumer.subscribe(producer.handle(), options).await;
    producer.emit([1]).await;
    assert_eq!(consumer.chunks(), [[1]]);
    subscription.cancel(oops());
    settle().await;
    producer.emit([2]).await;
    assert_eq!(consumer.chunks(), NO_CHUNK);
    assert_eq!(producer.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn s_051_events_that_were_sent_are_handled_before_the_end() {
    let (calls, producer) = (CallLog::default(), silent());
    let (consumer, _pipeline) =
        alone(|graph| graph.consumer("consumer", LoggingConsumer(calls.clone())));
    let options = auto(3, 0).cancel(Cancel::Temporary);
    let subscription = consumer.subscribe(producer.handle(), options).await.unwrap();
    settle().await;
    let last = Command::EmitAndEnd(vec![1, 2, 3], ExitReason::Normal);
    producer.execute(last).await.unwrap();
    settle().await;
    settle().await;
    settle().await;
    let expected =
        ["handle [1, 2, 3]".to_owned(), format!("consumer: {subscription:?} down (normal)")];
    assert_eq!(calls.take(), expected);
    assert!(consumer.is_running());
}

#[tokio::test(start_paused = true)]
async fn s_052_the_end_of_one_producer_reaches_the_other() {
    let (one, other, mut consumer) = (silent(), silent(), automatic());
    let to_one = consumer.subscribe(one.handle(), auto(4, 2)).await;
    let to_other = consumer.subscribe(other.handle(), auto(4, 2)).await;
    one.handle().stop(ExitReason::Normal).await;
    settle().await;
    let cancelled = "cancelled (normal)".to_owned();
    let expected = [(to_one, "down (normal)".to_owned()), (to_other.clone(), cancelled.clone())];
    assert_eq!(ended(consumer.cancelled()), expected);
    assert_eq!(consumer.fate().await, "normal");
    assert_eq!(ended(other.cancelled()), [(to_other, cancelled)]);
    assert!(other.handle().is_running());
}

/// Emits 9 when a subscription ends.
struct EmitsOnCancel;

impl ProducerConsumer for EmitsOnCancel {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        _events: Vec<u64>,
        _from: &Subscription,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _from: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit(9);
        Ok(())
    }
}

/// The fates of four producer-consumers that emit in `handle_cancel`.
async fn fates_of_parting(mode: Cancel, end: End) -> Vec<String> {
    let mut fates = Vec::new();
    for reason in four_reasons() {
        let (producer, consumer) = (silent(), manual());
        let (parting, mut pipeline) =
            alone(|graph| graph.producer_consumer("parting", EmitsOnCancel));
        consumer.subscribe(&parting, auto(4, 2).cancel(Cancel::Temporary)).await;
        consumer.ask(4).await;
        let options = auto(4, 2).cancel(mode);
        let subscription = parting.subscribe(producer.handle(), options).await.unwrap();
        settle().await;
        match end {
            End::Cancel => subscription.cancel(reason),
            End::Down => producer.handle().stop(reason).await,
        }
        settle().await;
        assert_eq!(consumer.chunks(), [[9]]);
        fates.push(fate(&parting, &mut pipeline).await);
    }
    fates
}

#[tokio::test(start_paused = true)]
async fn x_030_the_cancel_mode_applies_whatever_handle_cancel_returns() {
    for end in [End::Cancel, End::Down] {
        let stopped = ["normal", "shutdown", "shutdown: x", "failed: oops"];
        assert_eq!(fates_of_parting(Cancel::Permanent, end).await, stopped);
        let transient = ["alive", "alive", "alive", "failed: oops"];
        assert_eq!(fates_of_parting(Cancel::Transient, end).await, transient);
        assert_eq!(fates_of_parting(Cancel::Temporary, end).await, ["alive"; 4]);
    }
}

/// Ends in its `handle_cancel`, for its own reason.
struct FailsOnCancel;

impl Consumer for FailsOnCancel {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        Err(ExitReason::failed("offended"))
    }
}

#[tokio::test(start_paused = true)]
async fn x_030_a_reason_that_handle_cancel_returns_ends_the_stage() {
    for mode in MODES {
        let producer = silent();
        let (consumer, mut pipeline) = alone(|graph| graph.consumer("offended", FailsOnCancel));
        let options = auto(4, 2).cancel(mode);
        let subscription = consumer.subscribe(producer.handle(), options).await.unwrap();
        subscription.cancel(ExitReason::Normal);
        settle().await;
        assert_eq!(fate(&consumer, &mut pipeline).await, "failed: offended");
    }
}

/// Panics in the callback with this name.
struct PanicsIn(&'static str);

impl PanicsIn {
    fn enter(&self, callback: &'static str) {
        assert!(self.0 != callback, "not in {callback}");
    }
}

impl Producer for PanicsIn {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.enter("handle_demand");
        Ok(())
    }

    async fn ready(&mut self) {
        self.enter("ready");
        if self.0 != "handle_ready" {
            std::future::pending::<()>().await;
        }
    }

    async fn handle_ready(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.enter("handle_ready");
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _: &SubscribeOptions,
        _: &Subscription,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.enter("handle_subscribe");
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _: &Cancellation,
        _: &Subscription,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.enter("handle_cancel");
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.enter("handle_drain");
        out.finish();
        Ok(())
    }

    fn format_discarded(&mut self, _: usize) -> bool {
        self.enter("format_discarded");
        true
    }

    fn pending(&self) -> usize {
        self.enter("pending");
        0
    }

    async fn terminate(&mut self, _: &ExitReason) {
        self.enter("terminate");
    }
}

/// The number of events to emit.
struct Emit(u64);

impl HandleCall<Emit, u64> for PanicsIn {
    type Reply = ();

    async fn handle_call(
        &mut self,
        Emit(events): Emit,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.enter("handle_call");
        caller.reply(());
        out.emit_all(0..events);
        Ok(())
    }
}

impl HandleCast<(), u64> for PanicsIn {
    async fn handle_cast(&mut self, (): (), _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.enter("handle_cast");
        Ok(())
    }
}

impl HandleInfo<(), u64> for PanicsIn {
    async fn handle_info(&mut self, (): (), _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.enter("handle_info");
        Ok(())
    }
}

impl Consumer for PanicsIn {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        self.enter("handle_events");
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _: &SubscribeOptions,
        _: &Subscription,
    ) -> Result<DemandControl, ExitReason> {
        self.enter("handle_subscribe");
        Ok(DemandControl::Automatic)
    }

    async fn handle_cancel(
        &mut self,
        _: &Cancellation,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        self.enter("handle_cancel");
        Ok(())
    }

    async fn terminate(&mut self, _: &ExitReason) {
        self.enter("terminate");
    }
}

/// The reasons of a pipeline's stages, sorted by name.
async fn reasons(mut pipeline: Pipeline) -> Vec<(String, String)> {
    let stages = pipeline.join().await.stages;
    let mut reasons: Vec<_> =
        stages.iter().map(|stage| (stage.stage.to_string(), stage.reason.to_string())).collect();
    reasons.sort();
    reasons
}

/// Makes a producer panic in this callback: its consumer is notified of this end, a sibling is not
/// affected.
async fn producer_panics(callback: &'static str, end: &str) {
    let mut graph = Graph::new("test");
    let fragile =
        graph.producer_with(Stage::new(PanicsIn(callback)).named("fragile").buffer_size(0));
    let ((producer, script), (consumer, siblings)) = (scripted::<u64>(), recording::<u64>());
    let sibling = graph.producer("sibling", producer.from_iter(0..));
    let sibling_consumer = graph.consumer("sibling consumer", consumer.manual());
    graph.subscribe(&sibling_consumer, &sibling, SubscribeOptions::new());
    let pipeline = graph.start().unwrap();
    settle().await;

    let (watcher, leaver) = (automatic(), automatic());
    let options = auto(4, 2).cancel(Cancel::Temporary);
    let watched = watcher.subscribe(&fragile, options.clone()).await;
    let leaving = leaver.subscribe(&fragile, options).await;
    leaving.cancel(ExitReason::Normal);
    settle().await;
    // Four are asked for, so one has no room. A stage that has ended by now ignores it.
    let _ = fragile.call(Emit(5)).await;
    let _ = fragile.cast(()).await;
    let _ = fragile.sync_info(()).await;
    settle().await;
    if matches!(callback, "terminate" | "pending") {
        fragile.stop(oops()).await;
        settle().await;
    }
    assert!(!fragile.is_running(), "{callback}");
    assert_eq!(ended(watcher.cancelled()), [(watched, format!("down ({end})"))]);

    assert_eq!(siblings.events(), [0; 0]);
    siblings.allow(3);
    settle().await;
    assert_eq!(siblings.events(), [0, 1, 2]);
    assert_eq!(script.demands(), [3]);
    sibling.stop(ExitReason::Normal).await;
    let expected = [("fragile", end), ("sibling", "normal"), ("sibling consumer", "normal")];
    let expected = expected.map(|(stage, reason)| (stage.to_owned(), reason.to_owned()));
    assert_eq!(reasons(pipeline).await, expected, "{callback}");
}

#[tokio::test(start_paused = true)]
async fn x_041_a_panic_in_a_producer_ends_it_with_the_message_and_nothing_else() {
    for callback in [
        "handle_demand",
        "ready",
        "handle_ready",
        "handle_subscribe",
        "handle_cancel",
        "handle_call",
        "handle_cast",
        "handle_info",
        "format_discarded",
    ] {
        producer_panics(callback, &format!("panicked: not in {callback}")).await;
    }
    // It was already ending.
    producer_panics("terminate", "failed: oops").await;
    producer_panics("pending", "failed: oops").await;
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn x_041_a_panic_while_draining_ends_the_stage_with_the_message() {
    let (fragile, pipeline) = alone(|graph| graph.producer("fragile", PanicsIn("handle_drain")));
    let watcher = automatic();
    let options = auto(4, 2).cancel(Cancel::Temporary);
    let watched = watcher.subscribe(&fragile, options).await;
    let report = pipeline.drain(Duration::from_secs(1)).await;
    assert_eq!(report.failure().unwrap().reason.to_string(), "panicked: not in handle_drain");
    settle().await;
    let expected = [(watched, "down (panicked: not in handle_drain)".to_owned())];
    assert_eq!(ended(watcher.cancelled()), expected);
}

#[tokio::test(start_paused = true)]
async fn x_041_a_panic_in_a_consumer_ends_it_with_the_message_and_nothing_else() {
    for (callback, end) in [
        ("handle_subscribe", "panicked: not in handle_subscribe"),
        ("handle_events", "panicked: not in handle_events"),
        ("handle_cancel", "panicked: not in handle_cancel"),
        ("terminate", "failed: oops"),
    ] {
        let (producer, other, mut sibling) = (silent(), silent(), automatic());
        sibling.subscribe(other.handle(), auto(1, 0)).await;
        let (fragile, mut pipeline) =
            alone(|graph| Graph::consumer(graph, "fragile", PanicsIn(callback)));
        let options = || auto(4, 2).cancel(Cancel::Temporary);
        // A consumer that panics while subscribing does not handle the end.
        let _ = fragile.subscribe(producer.handle(), options()).await;
        let leaving = fragile.subscribe(other.handle(), options()).await;
        settle().await;
        producer.emit([1, 2]).await;
        if let Ok(leaving) = leaving {
            leaving.cancel(ExitReason::Normal);
            settle().await;
        }
        if callback == "terminate" {
            fragile.stop(oops()).await;
        }
        settle().await;
        assert_eq!(fate(&fragile, &mut pipeline).await, end);
        let seen: Vec<String> =
            ended(producer.cancelled()).into_iter().map(|(_, how)| how).collect();
        assert_eq!(seen, [format!("down ({end})")]);
        // Its producers and their other consumers continue.
        assert!(producer.handle().is_running());
        other.emit([1]).await;
        assert_eq!((sibling.chunks(), sibling.fate().await), (vec![vec![1]], "alive".to_owned()));
    }
}

/// Panics in its `init` if requested, else fails later.
struct PanicsInInit(bool);

impl Producer for PanicsInInit {
    type Event = u64;

    fn init(&mut self, _: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        assert!(!self.0, "not in init");
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Err(oops())
    }
}

#[tokio::test(start_paused = true)]
async fn x_041_a_panic_in_init_fails_the_start() {
    let mut graph = Graph::new("test");
    let unborn = graph.producer("unborn", PanicsInInit(true));
    match graph.start().unwrap_err() {
        StartError::Init { stage, reason } => {
            assert_eq!((&*stage, &*reason.to_string()), ("unborn", "panicked: not in init"));
        }
        other => panic!("{other}"),
    }
    assert!(!unborn.is_running());
    assert_no_task_left().await;
}

/// If a stage cannot be restarted, its pipeline ends gracefully.
#[tokio::test(start_paused = true)]
async fn x_041_a_panic_in_the_init_of_a_restart_is_reported_like_any_other_failure() {
    for in_factory in [false, true] {
        let mut made = 0;
        let unborn = Stage::restarting(move || {
            made += 1;
            assert!(!in_factory || made == 1, "not in the factory");
            PanicsInInit(made > 1)
        });
        let mut graph = Graph::new("test");
        let unborn = graph.producer_with(unborn.named("unborn"));
        let sibling = graph.producer("sibling", scripted::<u64>().0);
        let pipeline = graph.start().unwrap();
        let watcher = automatic();
        let options = auto(4, 2).cancel(Cancel::Temporary);
        let watched = watcher.subscribe(&unborn, options).await;
        assert_eq!(ended(watcher.cancelled()), [(watched, "down (failed: oops)".to_owned())]);
        assert!(!unborn.is_running() && !sibling.is_running());
        let expected = [("sibling", "shutdown"), ("unborn", "failed: oops")];
        let expected = expected.map(|(stage, reason)| (stage.to_owned(), reason.to_owned()));
        assert_eq!(reasons(pipeline).await, expected);
    }
}
