//! Section 5.12: custom dispatchers.

use std::{collections::VecDeque, fmt::Debug, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    stage::{Emitter, Producer, ProducerHandle, Stage},
    subscription::{Cancellation, SubscribeOptions, Subscription, SubscriptionId},
    testkit::{Recording, Script, recording, scripted, settle},
};

/// No demand.
const NONE: [usize; 0] = [];

/// The log of calls, in order.
type Journal = Arc<Mutex<Vec<String>>>;

fn take(journal: &Journal) -> Vec<String> {
    std::mem::take(&mut journal.lock())
}

/// A user's dispatcher: the slowest subscriber sets the pace, and the first gets all events.
#[derive(Clone, Default)]
struct Custom {
    journal: Journal,
    /// The reason for refusing all subscribers.
    refuses: Option<&'static str>,
    /// The initial demand of every subscriber.
    welcome: usize,
    outstanding: Vec<(SubscriptionId, usize)>,
}

impl Custom {
    fn note(&self, entry: impl Into<String>) {
        self.journal.lock().push(entry.into());
    }
}

impl<E: Debug + Send + 'static> Dispatcher<E> for Custom {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.note("subscribe");
        if let Some(reason) = self.refuses {
            return Err(ExitReason::failed(reason));
        }
        self.outstanding.push((subscriber.id, self.welcome));
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, _out: &mut Deliveries<E>) {
        self.note("cancel");
        self.outstanding.retain(|(other, _)| *other != id);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, _out: &mut Deliveries<E>) {
        self.note(format!("ask {demand}"));
        let asked = self.outstanding.iter_mut().find(|(other, _)| *other == id);
        asked.expect("only accepted subscribers ask").1 += demand;
    }

    fn unmet(&self) -> usize {
        self.outstanding.iter().map(|(_, outstanding)| *outstanding).min().unwrap_or(0)
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        self.note(format!("dispatch {events:?}"));
        let count = events.len().min(Dispatcher::<E>::unmet(self));
        for (_, outstanding) in &mut self.outstanding {
            *outstanding -= count;
        }
        if let Some((first, _)) = self.outstanding.first() {
            out.send(*first, events.drain(..count).collect());
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.outstanding.iter().find(|(other, _)| *other == id).map_or(0, |found| found.1)
    }
}

/// `silent` with this dispatcher, and this many hand-driven subscribers.
fn silent(dispatcher: Custom, subscribers: usize) -> (Pipeline, Script<u64>, Vec<Recording<u64>>) {
    let mut graph = Graph::new("test");
    let (producer, script) = scripted::<u64>();
    let stage = Stage::new(producer).named("producer").dispatcher(move || dispatcher.clone());
    let producer = graph.producer_with(stage);
    let recordings = (0..subscribers).map(|n| {
        let (consumer, recording) = recording();
        let consumer = graph.consumer(format!("consumer {n}"), consumer.manual());
        graph.subscribe(&consumer, &producer, SubscribeOptions::new());
        recording
    });
    let recordings = recordings.collect();
    (graph.start().unwrap(), script, recordings)
}

fn ends(cancelled: Vec<(Subscription, Cancellation)>) -> Vec<String> {
    cancelled.into_iter().map(|(_, ended)| ended.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn s_147_a_refused_subscription_ends_with_the_dispatchers_reason() {
    let dispatcher = Custom { refuses: Some("full"), ..Custom::default() };
    let journal = dispatcher.journal.clone();
    let (_pipeline, script, recordings) = silent(dispatcher, 1);
    settle().await;
    assert_eq!(ends(recordings[0].cancelled()), ["cancelled (failed: full)"]);
    assert_eq!(recordings[0].terminated().unwrap().to_string(), "failed: full");
    // The producer continues, and neither it nor its dispatcher hears of that subscription again.
    assert!(script.handle().is_running());
    assert_eq!((script.subscribed().len(), script.cancelled().len()), (0, 0));
    assert_eq!(take(&journal), ["subscribe"]);
}

#[tokio::test(start_paused = true)]
async fn s_148_demand_released_by_a_cancelled_subscriber_reaches_the_producer() {
    let (_pipeline, script, recordings) = silent(Custom::default(), 2);
    settle().await;
    recordings[0].allow(5);
    settle().await;
    assert_eq!(script.demands(), NONE, "the other subscriber has not asked");
    recordings[1].subscription().cancel(ExitReason::Normal);
    settle().await;
    assert_eq!(script.demands(), [5]);
    assert_eq!(ends(script.cancelled()), ["cancelled (normal)"]);
}

/// Records its callbacks in the dispatcher's journal.
struct RecordsInJournal(Journal);

impl Producer for RecordsInJournal {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.lock().push(format!("handle_demand {demand}"));
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        _to: &Subscription,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.lock().push("handle_subscribe".into());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn s_149_initial_demand_comes_after_the_subscription() {
    let dispatcher = Custom { welcome: 3, ..Custom::default() };
    let journal = dispatcher.journal.clone();
    let mut graph = Graph::new("test");
    let stage =
        Stage::new(RecordsInJournal(journal.clone())).dispatcher(move || dispatcher.clone());
    let producer: ProducerHandle<RecordsInJournal> = graph.producer_with(stage);
    let consumer = graph.consumer("consumer", recording::<u64>().0.manual());
    graph.subscribe(&consumer, &producer, SubscribeOptions::new());
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!(take(&journal), ["subscribe", "handle_subscribe", "handle_demand 3"]);
}

#[tokio::test(start_paused = true)]
async fn s_150_events_pass_the_dispatcher_even_without_subscribers() {
    let dispatcher = Custom::default();
    let journal = dispatcher.journal.clone();
    let (_pipeline, script, _) = silent(dispatcher, 0);
    settle().await;
    script.emit([1, 2, 3]).await;
    assert_eq!(take(&journal), ["dispatch [1, 2, 3]"]);
    assert_eq!(script.handle().estimate_buffered_count().await, Ok(3));

    let (consumer, recording) = recording();
    let mut graph = Graph::new("late");
    let consumer = graph.consumer("consumer", consumer.manual());
    graph.subscribe(&consumer, script.handle(), SubscribeOptions::new());
    let _late = graph.start().unwrap();
    settle().await;
    recording.allow(2);
    settle().await;
    assert_eq!(recording.chunks(), [[1, 2]]);
    assert_eq!(script.handle().estimate_buffered_count().await, Ok(1));
}
