//! What happens when a stage of a pipeline of messages fails.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Log, Recorder, keep, ms, pass, recorder};
use crate::{
    ExitReason, Pipeline,
    processing::{
        Failure, Message, Processor, Processors, batcher_stage::BatcherStage,
        processor_stage::LastProcessorStage,
    },
    stage::{Emitter, Producer, ProducerConsumerHandle, Stage, StageHandle},
    testkit::settle,
};

/// What the incarnations of a source take their messages from.
struct Feed {
    numbers: Mutex<VecDeque<u64>>,
    added: Notify,
    acks: Arc<Recorder>,
}

impl Feed {
    fn new() -> Arc<Self> {
        let acks = recorder("acks", &Log::default());
        Arc::new(Self { numbers: Mutex::default(), added: Notify::new(), acks })
    }

    async fn add(&self, numbers: impl IntoIterator<Item = u64>) {
        self.numbers.lock().extend(numbers);
        self.added.notify_one();
        settle().await;
    }

    /// The handled and the failed messages since the last call.
    fn acks(&self) -> [Vec<u64>; 2] {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (_, of_group, failed_of_group) in self.acks.groups.take() {
            done.extend(of_group);
            failed.extend(failed_of_group);
        }
        [done, failed]
    }
}

/// The number that the source cannot convert.
const UNREADABLE: u64 = 666;

struct FromFeed(Arc<Feed>);

impl Producer for FromFeed {
    type Event = Message<u64>;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        self.0.added.notify_one();
        Ok(())
    }

    async fn ready(&mut self) {
        self.0.added.notified().await;
    }

    async fn handle_ready(
        &mut self,
        out: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        while out.owed() > 0
            && let Some(n) = { self.0.numbers.lock().pop_front() }
        {
            assert!(n != UNREADABLE, "it cannot be converted");
            out.emit(Message::new(n, n, &self.0.acks));
        }
        Ok(())
    }
}

fn source(feed: &Arc<Feed>) -> Stage<FromFeed, Message<u64>> {
    let feed = feed.clone();
    Stage::restarting(move || FromFeed(feed.clone()))
}

/// The stages that were restarted.
fn restarted(pipeline: &Pipeline) -> Vec<String> {
    let stages = pipeline.snapshot().stages.into_iter();
    stages.filter(|stage| stage.restarts > 0).map(|stage| stage.stage.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn s_225_a_source_that_fails_is_restarted_alone() {
    let feed = Feed::new();
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .processors(pass())
        .start()
        .unwrap();
    feed.add([1, 2]).await;
    pipeline.stage::<FromFeed, crate::stage::NoInput, Message<u64>>("source_0").unwrap().kill();
    settle().await;
    feed.add([3]).await;
    assert_eq!(feed.acks(), [vec![1, 2], vec![]], "the processor has not come back yet");
    sleep(ms(100)).await;
    assert_eq!(feed.acks(), [vec![3], vec![]]);
    assert_eq!(restarted(&pipeline), ["source_0"]);
}

#[tokio::test(start_paused = true)]
async fn s_228_a_source_that_cannot_convert_a_message_is_restarted() {
    let feed = Feed::new();
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .processors(pass())
        .start()
        .unwrap();
    feed.add([1, UNREADABLE, 2]).await;
    sleep(ms(200)).await;
    // What it had emitted before is acknowledged, too: as handled, or as failed.
    let [done, failed] = feed.acks();
    super::assert_same([done, failed].concat(), vec![1, 2]);
    assert_eq!(restarted(&pipeline), ["source_0"]);
}

#[tokio::test(start_paused = true)]
async fn sources_are_restarted_as_often_as_the_pipeline_says_after_they_were_added() {
    let feed = Feed::new();
    let feeds = feed.clone();
    let mut pipeline = Pipeline::of_messages("test")
        .sources(2, move |_| FromFeed(feeds.clone()))
        .max_restarts(1, ms(60_000))
        .processors(pass())
        .start()
        .unwrap();
    let kill = async || {
        let source =
            pipeline.stage::<FromFeed, crate::stage::NoInput, Message<u64>>("source_1").unwrap();
        source.kill();
        settle().await;
    };
    feed.add([1, 2, 3]).await;
    kill().await;
    sleep(ms(200)).await;
    feed.add([4]).await;
    assert_eq!(
        feed.acks(),
        [vec![1, 2, 3, 4], vec![]],
        "it was restarted, or the other one did it"
    );
    assert_eq!(restarted(&pipeline), ["source_1"]);
    kill().await;
    let ended = timeout(ms(60_000), pipeline.join()).await.unwrap();
    assert!(ended.failure().is_some(), "once is what the pipeline allows");
}

#[tokio::test(start_paused = true)]
async fn a_processor_subscribes_again_after_the_interval_of_its_pipeline() {
    let feed = Feed::new();
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .resubscribe_interval(ms(5_000))
        .processors(pass())
        .start()
        .unwrap();
    pipeline.stage::<FromFeed, crate::stage::NoInput, Message<u64>>("source_0").unwrap().kill();
    settle().await;
    feed.add([1]).await;
    sleep(ms(4_900)).await;
    assert_eq!(feed.acks(), [vec![], vec![]]);
    sleep(ms(200)).await;
    assert_eq!(feed.acks(), [vec![1], vec![]]);
}

/// Waits in the message 3 until its stage is killed.
struct StopsAtThree;

impl Processor<u64> for StopsAtThree {
    type Output = u64;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<u64, Failure> {
        if **message == 3 {
            std::future::pending::<()>().await;
        }
        Ok(**message)
    }
}

type LastStage<P> = StageHandle<LastProcessorStage<u64, P>, Message<u64>, Infallible>;

#[tokio::test(start_paused = true)]
async fn s_226_a_processor_that_fails_is_restarted_and_its_messages_have_failed() {
    let feed = Feed::new();
    let processors = Processors::new(StopsAtThree).concurrency(1).max_demand(2).min_demand(1);
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .processors(processors)
        .start()
        .unwrap();
    feed.add([1, 2, 3, 4, 5]).await;
    let stage: LastStage<StopsAtThree> = pipeline.stage("processor_0").unwrap();
    stage.kill();
    sleep(ms(200)).await;
    let [done, failed] = feed.acks();
    assert_eq!(failed.first(), Some(&3), "{failed:?}");
    super::assert_same([done, failed].concat(), vec![1, 2, 3, 4, 5]);
    assert_eq!(restarted(&pipeline), ["processor_0"]);
    feed.add([6]).await;
    assert_eq!(feed.acks(), [vec![6], vec![]]);
}

#[tokio::test(start_paused = true)]
async fn s_227_a_batcher_that_fails_is_restarted_alone_and_its_open_batches_have_failed() {
    let feed = Feed::new();
    let batches = Log::default();
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .processors(pass())
        .batcher(keep(&batches).size(3).within(ms(10_000)))
        .start()
        .unwrap();
    feed.add([1, 2]).await;
    let stage: ProducerConsumerHandle<BatcherStage<u64, u64, ()>> =
        pipeline.stage("batcher_default").unwrap();
    stage.kill();
    sleep(ms(200)).await;
    assert_eq!(feed.acks(), [vec![], vec![1, 2]]);
    feed.add([3, 4, 5]).await;
    assert_eq!(feed.acks(), [vec![3, 4, 5], vec![]]);
    assert_eq!(restarted(&pipeline), ["batcher_default"]);
}

/// Waits in every message until its stage is killed, except in odd ones.
struct WaitsInEven;

impl Processor<u64> for WaitsInEven {
    type Output = ();

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        if message.is_multiple_of(2) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn x_044_the_other_processors_are_not_touched() {
    let feed = Feed::new();
    let pipeline = Pipeline::of_messages("test")
        .source_with(source(&feed))
        .partition_by(|n| **n)
        .processors(Processors::new(WaitsInEven).concurrency(2).max_demand(2).min_demand(1))
        .start()
        .unwrap();
    feed.add([2, 1, 3]).await;
    assert_eq!(feed.acks(), [vec![1, 3], vec![]]);
    let stage: LastStage<WaitsInEven> = pipeline.stage("processor_0").unwrap();
    stage.kill();
    settle().await;
    assert_eq!(feed.acks(), [vec![], vec![2]]);
    feed.add([5]).await;
    assert_eq!(feed.acks(), [vec![5], vec![]]);
    assert_eq!(restarted(&pipeline), ["processor_0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_fails_with_a_source_that_is_not_restarted() {
    let feed = Feed::new();
    let mut pipeline = Pipeline::of_messages("test")
        .source(FromFeed(feed.clone()))
        .processors(pass())
        .start()
        .unwrap();
    feed.add([UNREADABLE]).await;
    let report = pipeline.join().await;
    assert_eq!(&*report.failure().unwrap().stage, "source_0");
}
