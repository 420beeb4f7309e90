//! Section 5.2: subscribing.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph,
    builder::StartError,
    dispatcher::{Deliveries, DemandDispatcher, Dispatcher, Subscriber},
    stage::{Consumer, Emitter, ProducerConsumer, ProducerHandle},
    subscription::{
        Cancel, Cancellation, DemandControl, SubscribeError, SubscribeOptions, Subscription,
        SubscriptionId,
    },
    testkit::{ScriptedProducer, assert_no_task_left, recording, scripted, settle},
};

use crate::support::{
    CallLog, NO_CHUNK, NO_DEMAND, Source, alone, auto, automatic, ended, manual, oops, silent,
    silent_with,
};

/// A handle of a stage that was never started.
fn missing() -> ProducerHandle<ScriptedProducer<u64>> {
    Graph::new("never started").producer("missing", scripted().0)
}

async fn stopped() -> Source<u64> {
    let producer = silent();
    producer.handle().stop(ExitReason::Normal).await;
    producer
}

#[tokio::test(start_paused = true)]
async fn s_020_both_ends_see_the_same_subscription() {
    let (producer, consumer) = (silent(), automatic());
    let subscription =
        consumer.handle.subscribe(producer.handle(), SubscribeOptions::new()).await.unwrap();
    settle().await;
    assert_eq!(consumer.subscriptions(), 1);
    assert_eq!(consumer.subscription(), subscription);
    let subscribed: Vec<_> = producer.subscribed().into_iter().map(|(which, _)| which).collect();
    assert_eq!(subscribed, [subscription]);
}

/// Subscribes with invalid options; returns the error that the caller gets.
async fn refused(options: SubscribeOptions) -> String {
    let (producer, mut consumer) = (silent(), automatic());
    let error = consumer.handle.subscribe(producer.handle(), options).await.unwrap_err();
    settle().await;
    assert_eq!(consumer.fate().await, "alive");
    assert_eq!((consumer.subscriptions(), producer.subscribed().len()), (0, 0));
    assert_eq!(producer.demands(), NO_DEMAND);
    // The consumer is unaffected.
    consumer.subscribe(producer.handle(), auto(2, 0)).await;
    assert_eq!(producer.demands(), [2]);
    error.to_string()
}

#[tokio::test(start_paused = true)]
async fn s_021_a_maximum_of_zero_is_refused_to_the_caller() {
    let error = refused(SubscribeOptions::new().max_demand(0)).await;
    assert_eq!(error, "max_demand is 0, expected at least 1");
}

#[tokio::test(start_paused = true)]
async fn s_022_a_minimum_above_the_maximum_is_refused_to_the_caller() {
    let error = refused(SubscribeOptions::new().min_demand(2000)).await;
    assert_eq!(error, "min_demand is 2000, expected at most 999 with a max_demand of 1000");
    // The limit itself is valid.
    assert!(SubscribeOptions::new().min_demand(999).check().is_ok());
    assert!(SubscribeOptions::new().min_demand(1000).check().is_err());
}

#[tokio::test(start_paused = true)]
async fn s_024_a_stopped_consumer_cannot_subscribe() {
    let (producer, consumer) = (silent(), automatic());
    consumer.handle.stop(ExitReason::Normal).await;
    let error = consumer.handle.subscribe(producer.handle(), auto(2, 0)).await.unwrap_err();
    assert_eq!(error, SubscribeError::NotRunning);
    settle().await;
    assert_eq!(producer.subscribed().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn s_025_a_consumer_that_needs_a_producer_that_never_existed_stops() {
    for mode in [Cancel::Permanent, Cancel::Transient] {
        let mut consumer = automatic();
        consumer.handle.subscribe(&missing(), auto(2, 0).cancel(mode)).await.unwrap();
        settle().await;
        assert_eq!(consumer.fate().await, "a needed stage is not running");
    }
}

#[tokio::test(start_paused = true)]
async fn s_026_a_consumer_that_needs_a_stopped_producer_stops() {
    let (producer, mut consumer) = (stopped().await, automatic());
    let subscription = consumer.handle.subscribe(producer.handle(), auto(2, 0)).await.unwrap();
    settle().await;
    assert_eq!(
        ended(consumer.cancelled()),
        [(subscription, "down (a needed stage is not running)".to_owned())]
    );
    assert_eq!(consumer.fate().await, "a needed stage is not running");
}

#[tokio::test(start_paused = true)]
async fn s_027_a_temporary_consumer_of_a_producer_that_never_existed_continues() {
    let mut consumer = automatic();
    let options = auto(2, 0).cancel(Cancel::Temporary);
    consumer.handle.subscribe(&missing(), options).await.unwrap();
    settle().await;
    assert_eq!(consumer.subscriptions(), 0);
    assert_eq!(ended(consumer.cancelled()), []);
    assert_eq!(consumer.fate().await, "alive");
}

#[tokio::test(start_paused = true)]
async fn s_028_a_temporary_consumer_of_a_stopped_producer_is_notified_and_continues() {
    let (producer, mut consumer) = (stopped().await, automatic());
    let options = auto(2, 0).cancel(Cancel::Temporary);
    let subscription = consumer.handle.subscribe(producer.handle(), options).await.unwrap();
    settle().await;
    assert_eq!(consumer.subscriptions(), 1);
    assert_eq!(consumer.subscription(), subscription);
    assert_eq!(
        ended(consumer.cancelled()),
        [(subscription, "down (a needed stage is not running)".to_owned())]
    );
    assert_eq!(consumer.fate().await, "alive");
}

#[tokio::test(start_paused = true)]
async fn s_029_a_start_that_needs_a_missing_producer_fails() {
    for producer in [missing(), stopped().await.handle().clone()] {
        for mode in [Cancel::Permanent, Cancel::Transient] {
            let (consumer, recording) = recording();
            let mut graph = Graph::new("test");
            let consumer = graph.consumer("consumer", consumer);
            graph.subscribe(&consumer, &producer, auto(2, 0).cancel(mode));
            let error = graph.start().unwrap_err();
            assert!(matches!(error, StartError::NotRunning { .. }), "{error}");
            settle().await;
            assert_eq!((recording.subscriptions(), consumer.is_running()), (0, false));
        }
    }
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn s_030_a_start_that_does_not_need_a_missing_producer_succeeds() {
    let (consumer, recording) = recording::<u64>();
    let mut graph = Graph::new("test");
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &missing(), auto(2, 0).cancel(Cancel::Temporary));
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!(recording.subscriptions(), 0);
    assert_eq!(ended(recording.cancelled()), []);
    assert!(consumer.is_running());
}

#[tokio::test(start_paused = true)]
async fn s_035_a_consumer_may_subscribe_twice() {
    let (producer, consumer) = (silent(), automatic());
    let options = auto(3, 0).cancel(Cancel::Temporary);
    let first = consumer.subscribe(producer.handle(), options.clone()).await;
    let second = consumer.subscribe(producer.handle(), options).await;
    assert_ne!(first, second);
    assert_eq!(producer.demands(), [3, 3]);
    producer.emit(1..=5).await;
    assert_eq!(consumer.chunks(), [vec![1, 2, 3], vec![4, 5]]);
    // The first has asked for 3 again, the second has 1 left. One ends, the other does not.
    assert_eq!(producer.demands(), [3]);
    first.cancel(ExitReason::Normal);
    settle().await;
    assert_eq!(ended(consumer.cancelled()), [(first, "cancelled (normal)".to_owned())]);
    producer.emit([6]).await;
    assert_eq!(consumer.chunks(), [[6]]);
}

/// Asks for events automatically or manually, by the options of each subscription.
struct ControlsByOptions;

impl Consumer for ControlsByOptions {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        _from: &Subscription,
    ) -> Result<DemandControl, ExitReason> {
        Ok(*options.get_extension::<DemandControl>().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn s_036_each_subscription_is_automatic_or_manual_by_itself() {
    let (x, y) = (silent(), silent());
    let (consumer, _pipeline) = alone(|graph| graph.consumer("choosy", ControlsByOptions));
    consumer.subscribe(x.handle(), auto(7, 3).extension(DemandControl::Manual)).await.unwrap();
    consumer.subscribe(y.handle(), auto(7, 3).extension(DemandControl::Automatic)).await.unwrap();
    settle().await;
    assert_eq!((x.demands(), y.demands()), (vec![], vec![7]));
    assert_eq!((x.subscribed().len(), y.subscribed().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn s_037_a_subscription_replaces_another() {
    let (producer, mut consumer) = (silent(), automatic());
    let temporary = |max| auto(max, 0).cancel(Cancel::Temporary);
    let old = consumer.subscribe(producer.handle(), temporary(4)).await;
    assert_eq!(producer.demands(), [4]);

    let changed = ExitReason::failed("changed");
    let new =
        consumer.handle.resubscribe(&old, changed, producer.handle(), temporary(10)).await.unwrap();
    settle().await;
    assert_ne!(old, new);
    let replaced = [(old, "cancelled (failed: changed)".to_owned())];
    assert_eq!(ended(producer.cancelled()), replaced);
    // Four events were already owed.
    assert_eq!(producer.demands(), [6]);
    assert_eq!(ended(consumer.cancelled()), replaced);

    producer.emit(1..=12).await;
    assert_eq!(consumer.chunks(), [(1..=10).collect::<Vec<_>>(), vec![11, 12]]);
    // It asked for 10 again: two were in the buffer.
    assert_eq!(producer.demands(), [8]);
    assert_eq!(consumer.fate().await, "alive");
}

#[tokio::test(start_paused = true)]
async fn s_038_replacing_an_unknown_subscription_subscribes() {
    let (producer, mut consumer, mut other) = (silent(), automatic(), automatic());
    let of_other = other.subscribe(producer.handle(), auto(5, 0)).await;
    assert_eq!(producer.demands(), [5]);
    let subscribed =
        consumer.handle.resubscribe(&of_other, oops(), producer.handle(), auto(3, 0)).await;
    settle().await;
    assert_eq!(consumer.subscription(), subscribed.unwrap());
    assert_eq!(producer.demands(), [3]);
    assert_eq!(ended(producer.cancelled()), []);
    assert_eq!(ended(consumer.cancelled()), []);
    assert_eq!(ended(other.cancelled()), []);
    assert_eq!((consumer.fate().await, other.fate().await), ("alive".into(), "alive".into()));
}

/// A custom option of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Foo(u32);

/// The default dispatcher, which also records the custom options.
struct RecordsExtensions {
    inner: DemandDispatcher,
    heard: Arc<Mutex<Vec<Option<Foo>>>>,
}

impl Dispatcher<u64> for RecordsExtensions {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.heard.lock().push(subscriber.options.get_extension().copied());
        Dispatcher::<u64>::subscribe(&mut self.inner, subscriber)
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<u64>) {
        self.inner.cancel(id, out);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<u64>) {
        self.inner.ask(id, demand, out);
    }

    fn unmet(&self) -> usize {
        Dispatcher::<u64>::unmet(&self.inner)
    }

    fn dispatch(&mut self, events: &mut VecDeque<u64>, out: &mut Deliveries<u64>) {
        self.inner.dispatch(events, out);
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        Dispatcher::<u64>::outstanding(&self.inner, id)
    }
}

#[tokio::test(start_paused = true)]
async fn s_039_a_custom_option_reaches_the_producer_and_its_dispatcher() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listening = {
        let heard = heard.clone();
        move || RecordsExtensions { inner: DemandDispatcher::new(), heard: heard.clone() }
    };
    let (producer, consumer) = (silent_with(|stage| stage.dispatcher(listening)), automatic());
    consumer.subscribe(producer.handle(), auto(2, 0).extension(Foo(1))).await;
    consumer.subscribe(producer.handle(), auto(2, 0)).await;
    let extensions: Vec<Option<Foo>> =
        producer.subscribed().iter().map(|(_, options)| options.get_extension().copied()).collect();
    assert_eq!(extensions, [Some(Foo(1)), None]);
    assert_eq!(*heard.lock(), [Some(Foo(1)), None]);
}

/// Passes on its events, and logs their subscriptions.
struct LoggingStage(CallLog);

impl ProducerConsumer for LoggingStage {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        from: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.note(format_args!("{from:?}: {events:?}"));
        // There is no producer to notify.
        from.ask(1);
        out.emit_all(events);
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.note(format_args!("{from:?}: {ended}"));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn x_026_queued_events_of_a_dropped_producer_come_with_its_subscription() {
    let calls = CallLog::default();
    let (producer, consumer) = (silent(), manual());
    let (stage, _pipeline) =
        alone(|graph| graph.producer_consumer("stage", LoggingStage(calls.clone())));
    let options = auto(10, 5).cancel(Cancel::Temporary);
    let subscription = stage.subscribe(producer.handle(), options).await.unwrap();
    settle().await;
    producer.emit([1, 2, 3]).await;
    producer.handle().stop(ExitReason::Normal).await;
    consumer.subscribe(&stage, SubscribeOptions::new()).await;
    assert_eq!(calls.take(), [""; 0]);
    consumer.ask(5).await;
    let expected =
        [format!("{subscription:?}: [1, 2, 3]"), format!("{subscription:?}: down (normal)")];
    assert_eq!(calls.take(), expected);
    assert_eq!(consumer.chunks(), [[1, 2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn x_028_a_permanent_subscription_can_be_replaced() {
    let (producer, mut consumer) = (silent(), automatic());
    let old = consumer.subscribe(producer.handle(), auto(4, 0)).await;
    let new = consumer.handle.resubscribe(&old, oops(), producer.handle(), auto(4, 0)).await;
    settle().await;
    let replaced = [(old, "cancelled (failed: oops)".to_owned())];
    assert_eq!(ended(producer.cancelled()), replaced);
    assert_eq!(ended(consumer.cancelled()), replaced);
    assert_eq!(consumer.fate().await, "alive");
    producer.emit([1, 2]).await;
    assert_eq!(consumer.chunks(), [[1, 2]]);

    // By a subscription to another producer, too.
    let another = silent();
    let new = new.unwrap();
    let newest =
        consumer.handle.resubscribe(&new, oops(), another.handle(), auto(4, 0)).await.unwrap();
    settle().await;
    let replaced = [(new, "cancelled (failed: oops)".to_owned())];
    assert_eq!(ended(producer.cancelled()), replaced);
    assert_eq!(ended(consumer.cancelled()), replaced);
    assert_eq!(consumer.fate().await, "alive");
    assert_eq!(another.demands(), [4]);
    producer.emit([3]).await;
    another.emit([4]).await;
    assert_eq!(consumer.chunks(), [[4]]);

    // The consumer now needs the newest subscription.
    newest.cancel(oops());
    settle().await;
    assert_eq!(ended(consumer.cancelled()), [(newest, "cancelled (failed: oops)".to_owned())]);
    assert_eq!(consumer.fate().await, "failed: oops");
}

#[tokio::test(start_paused = true)]
async fn x_029_a_start_with_invalid_options_fails() {
    for (options, wrong) in [
        (auto(0, 0), SubscribeError::MaxDemand),
        (auto(3, 3), SubscribeError::MinDemand { min: 3, max: 3 }),
    ] {
        let ((producer, script), (consumer, recording)) = (scripted::<u64>(), recording());
        let mut graph = Graph::new("test");
        let producer = graph.producer("producer", producer);
        let consumer = graph.consumer("consumer", consumer);
        graph.subscribe(&consumer, &producer, options);
        match graph.start().unwrap_err() {
            StartError::Subscribe { stage, source } => {
                assert_eq!((&*stage, source), ("consumer", wrong));
            }
            other => panic!("{other}"),
        }
        assert_no_task_left().await;
        assert!(!producer.is_running() && !consumer.is_running());
        assert_eq!((script.demands(), recording.chunks()), (vec![], NO_CHUNK.into()));
    }
}
