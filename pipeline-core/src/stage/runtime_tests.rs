//! Cases of docs/spec/stages.md with hand-made messages that the library's own stages never send.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::sleep};

use super::{
    ProducerHandle,
    link::{DemandPort, EventPort, Ports, Subscribe, ToConsumer, ToProducer},
    slot::{Control, Message, Occupant, Origin, Subscribing, Target, next_id},
};
use crate::{
    backoff::Backoff,
    exit::ExitReason,
    graph::Graph,
    pipeline::Pipeline,
    subscription::{Cancel, Home, StageId, SubscribeOptions, Subscription, SubscriptionId},
    testkit::{Script, ScriptedProducer, recording, scripted, settle},
};

/// One end of a subscription, held by the test. It records the messages it receives.
#[derive(Clone, Default)]
struct Raw(Arc<Mutex<Vec<String>>>);

impl Raw {
    fn note(&self, line: String) {
        self.0.lock().push(line);
    }

    /// The messages since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }

    /// Subscribes to a producer under this name.
    fn subscribe(
        &self,
        producer: &ProducerHandle<ScriptedProducer<u64>>,
        id: SubscriptionId,
    ) -> Subscription {
        let producer = Arc::new(producer.slot.address().unwrap());
        let consumer = Arc::new(self.clone());
        let ports = Ports { producer: producer.clone(), consumer: consumer.clone(), line: None };
        let options = SubscribeOptions::new();
        let subscription = Subscription::new(id, &options, ports);
        let subscribe = Subscribe {
            subscription: subscription.clone(),
            replaces: None,
            stage: StageId::new(next_id()),
            name: "hand".into(),
            options,
            consumer,
        };
        send(&*producer, ToProducer::Subscribe(Box::new(subscribe)));
        subscription
    }
}

impl EventPort<u64> for Raw {
    fn send(&self, message: ToConsumer<u64>) -> Result<(), ToConsumer<u64>> {
        self.note(match message {
            ToConsumer::Events { from, events, .. } => format!("{from:?}: {events:?}"),
            ToConsumer::Cancel { from, reason } => format!("{from:?}: cancelled ({reason})"),
            ToConsumer::Down { from, reason } => format!("{from:?}: down ({reason})"),
            ToConsumer::Pause { from, paused } => format!("{from:?}: paused {paused}"),
        });
        Ok(())
    }
}

impl DemandPort<u64> for Raw {
    fn send(&self, message: ToProducer<u64>) -> Result<(), ToProducer<u64>> {
        self.note(match message {
            ToProducer::Subscribe(subscribe) => format!("{:?}: subscribe", subscribe.subscription),
            ToProducer::Ask { id, demand, .. } => format!("{id:?}: ask {demand}"),
            ToProducer::Cancel { id, reason } => format!("{id:?}: cancelled ({reason})"),
            ToProducer::Down { id, reason } => format!("{id:?}: down ({reason})"),
            ToProducer::Mode(mode) => format!("{mode:?}"),
        });
        Ok(())
    }

    fn ended(&self) -> Option<ExitReason> {
        None
    }
}

fn send(producer: &impl DemandPort<u64>, message: ToProducer<u64>) {
    assert!(producer.send(message).is_ok(), "the producer is running");
}

/// A producer, and a raw consumer subscribed under the name 1.
async fn subscribed() -> (Pipeline, Script<u64>, Raw, Subscription) {
    let (producer, script) = scripted();
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer);
    let pipeline = graph.start().unwrap();
    let raw = Raw::default();
    let subscription = raw.subscribe(&producer, SubscriptionId::new(1));
    settle().await;
    assert_eq!((script.subscribed().len(), raw.take()), (1, vec![]));
    (pipeline, script, raw, subscription)
}

#[tokio::test(start_paused = true)]
async fn s_031_a_duplicate_subscription_is_refused_and_the_first_one_stays() {
    let (_pipeline, script, raw, first) = subscribed().await;
    raw.subscribe(script.handle(), first.id());
    settle().await;
    let refused =
        "SubscriptionId(1): cancelled (failed: a subscription with this id already exists)";
    assert_eq!(raw.take(), [refused]);
    assert_eq!((script.subscribed().len(), script.cancelled().len()), (0, 0));
    first.ask(2);
    settle().await;
    script.emit([1, 2]).await;
    settle().await;
    assert_eq!(raw.take(), ["SubscriptionId(1): [1, 2]"]);
    assert_eq!(script.demands(), [2]);
}

#[tokio::test(start_paused = true)]
async fn s_032_an_ask_of_an_unknown_subscription_is_refused() {
    let (_pipeline, script, raw, first) = subscribed().await;
    let (id, consumer) = (SubscriptionId::new(2), Some(Arc::new(raw.clone()) as _));
    let ask = ToProducer::Ask { id, demand: 3, consumer };
    send(&script.handle().slot.address().unwrap(), ask);
    settle().await;
    let refused = "SubscriptionId(2): cancelled (failed: no subscription with this id)";
    assert_eq!(raw.take(), [refused]);
    assert_eq!((script.demands(), script.cancelled().len()), (vec![], 0));
    // The known subscription continues.
    first.ask(1);
    settle().await;
    assert_eq!((script.demands(), raw.take()), (vec![1], vec![]));
}

#[tokio::test(start_paused = true)]
async fn s_033_a_cancel_of_an_unknown_subscription_is_ignored() {
    let (_pipeline, script, raw, first) = subscribed().await;
    let cancel = ToProducer::Cancel { id: SubscriptionId::new(2), reason: ExitReason::Normal };
    send(&script.handle().slot.address().unwrap(), cancel);
    settle().await;
    assert_eq!((script.cancelled().len(), raw.take()), (0, vec![]));
    // The known subscription continues.
    first.ask(1);
    script.emit([1]).await;
    settle().await;
    assert_eq!(raw.take(), ["SubscriptionId(1): [1]"]);
}

#[tokio::test(start_paused = true)]
async fn s_034_events_of_an_unknown_subscription_are_refused() {
    let (consumer, recording) = recording::<u64>();
    let mut graph = Graph::new("test");
    let consumer = graph.consumer("consumer", consumer);
    let mut pipeline = graph.start().unwrap();
    let raw = Raw::default();
    let address = Arc::new(consumer.slot.address().unwrap());
    let ports = Ports { producer: Arc::new(raw.clone()), consumer: address.clone(), line: None };
    let from = SubscriptionId::new(1);
    let unheard = Some(Subscription::new(from, &SubscribeOptions::new(), ports));
    let events = ToConsumer::Events { from, events: vec![1], unheard };
    assert!(EventPort::send(&*address, events).is_ok());
    settle().await;
    let refused = "SubscriptionId(1): cancelled (failed: no subscription with this id)";
    assert_eq!(raw.take(), [refused]);
    assert_eq!(recording.chunks(), Vec::<Vec<u64>>::new());
    assert!(consumer.is_running());
    // The event is lost and counted.
    consumer.stop(ExitReason::Normal).await;
    assert_eq!(pipeline.join().await.unprocessed(), 1);
}

#[tokio::test(start_paused = true)]
async fn s_048_nothing_is_sent_to_a_dropped_consumer() {
    let (_pipeline, script, raw, subscription) = subscribed().await;
    subscription.ask(3);
    settle().await;
    subscription.down(ExitReason::Killed);
    script.emit([1, 2, 3]).await;
    settle().await;
    let cancelled = script.cancelled();
    assert_eq!(cancelled.len(), 1);
    assert_eq!(cancelled[0].0, subscription);
    assert_eq!(cancelled[0].1.to_string(), "down (killed)");
    assert_eq!(raw.take(), [""; 0]);
    assert_eq!(script.handle().estimate_buffered_count().await, Ok(3));
}

type Subscriber = (SubscriptionId, Arc<dyn EventPort<u64>>);

/// The slot of a producer that ends when it is subscribed to for the second time.
#[derive(Clone, Default)]
struct EndsAtSecond {
    consumer: Arc<Mutex<Option<Subscriber>>>,
    ended: Arc<AtomicBool>,
    name: Arc<str>,
}

impl DemandPort<u64> for EndsAtSecond {
    fn send(&self, message: ToProducer<u64>) -> Result<(), ToProducer<u64>> {
        if let ToProducer::Subscribe(subscribe) = &message {
            let mut consumer = self.consumer.lock();
            if consumer.is_some() {
                self.ended.store(true, Ordering::SeqCst);
                return Err(message);
            }
            *consumer = Some((subscribe.subscription.id(), subscribe.consumer.clone()));
        }
        Ok(())
    }

    fn ended(&self) -> Option<ExitReason> {
        self.ended.load(Ordering::SeqCst).then(|| ExitReason::failed("no route"))
    }
}

impl Target<u64> for EndsAtSecond {
    fn occupant(&self) -> Occupant<Arc<dyn DemandPort<u64>>> {
        Occupant::Running(Arc::new(self.clone()))
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn pipeline(&self) -> u64 {
        0
    }

    fn restarts(&self) -> bool {
        false
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_end_is_kept_if_the_producer_ends_while_it_is_subscribed_to_again() {
    let mut graph = Graph::new("test");
    let consumer = graph.consumer("consumer", recording::<u64>().0);
    let _pipeline = graph.start().unwrap();
    let target = EndsAtSecond::default();
    let second = Duration::from_secs(1);
    let subscribing = Subscribing {
        target: Arc::new(target.clone()),
        options: SubscribeOptions::new().cancel(Cancel::Reconnect(Backoff::new(second, second))),
        origin: Origin::handle(),
        replaces: None,
        answer: None,
    };
    let address = consumer.slot.address().unwrap();
    let message = Message::Control(Control::Subscribe(Box::new(subscribing)));
    assert!(address.send(message).is_ok());
    settle().await;
    let (from, port) = target.consumer.lock().clone().unwrap();
    assert!(port.send(ToConsumer::Cancel { from, reason: ExitReason::Normal }).is_ok());
    sleep(10 * second).await;
    assert!(target.ended.load(Ordering::SeqCst), "it was subscribed to again");
    assert!(consumer.is_running());
}

/// The slot of a producer that is being restarted all the time. It counts the tries.
#[derive(Default)]
struct Restarting {
    tries: AtomicUsize,
    name: Arc<str>,
}

impl Target<u64> for Restarting {
    fn occupant(&self) -> Occupant<Arc<dyn DemandPort<u64>>> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        Occupant::Restarting
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn pipeline(&self) -> u64 {
        0
    }

    fn restarts(&self) -> bool {
        true
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_to_a_producer_that_is_being_restarted_can_be_withdrawn() {
    for (waits, paused) in [(false, false), (false, true), (true, false)] {
        let mut graph = Graph::new("test");
        let consumer = graph.consumer("consumer", recording::<u64>().0);
        let _pipeline = graph.start().unwrap();
        let target = Arc::<Restarting>::default();
        let second = Duration::from_secs(1);
        let (answer, subscribed) = oneshot::channel();
        let backoff = Backoff::new(second, second);
        let subscribing = Subscribing {
            target: target.clone(),
            options: SubscribeOptions::new().cancel(Cancel::Reconnect(backoff)),
            origin: Origin::handle(),
            replaces: None,
            answer: Some(answer),
        };
        if paused {
            consumer.pause();
        }
        let address = consumer.slot.address().unwrap();
        let message = Message::Control(Control::Subscribe(Box::new(subscribing)));
        assert!(address.send(message).is_ok());
        let subscription = subscribed.await.unwrap().unwrap();
        if waits {
            sleep(10 * second).await;
        }
        subscription.cancel(ExitReason::Normal);
        settle().await;
        consumer.resume();
        settle().await;
        let tries = target.tries.load(Ordering::SeqCst);
        sleep(10 * second).await;
        assert_eq!(target.tries.load(Ordering::SeqCst), tries, "waits: {waits}, {paused}");
        assert!(consumer.is_running());
    }
}

#[test]
fn a_consumer_that_is_not_running_does_not_make_a_withdrawn_subscription_if_it_may_go_without() {
    let second = Duration::from_secs(1);
    for (mode, left) in
        [(Cancel::Reconnect(Backoff::new(second, second)), 0), (Cancel::Permanent, 1)]
    {
        let mut graph = Graph::new("test");
        let consumer = graph.consumer("consumer", recording::<u64>().0);
        let origin = Origin::planned();
        let options = SubscribeOptions::new().cancel(mode);
        consumer.slot.plan(Arc::<Restarting>::default(), options, origin);
        consumer.slot.cancel(origin.line(), ExitReason::Normal);
        assert_eq!(consumer.slot.subscriptions.lock().len(), left, "{mode:?}");
    }
}
