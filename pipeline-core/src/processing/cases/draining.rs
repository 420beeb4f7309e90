//! How a pipeline of messages ends.

use std::{future::pending, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::{Log, Recorder, Seen, Source, keep, ms, pass, processors, recorder};
use crate::{
    ExitReason, Pipeline,
    processing::{BatchTrigger::*, Failure, Message, Processor, Processors},
    source::from_iter,
    stage::{Emitter, HandleInfo, Producer, ProducerHandle, RateLimit, StageContext},
};
use std::sync::Arc;

const FOREVER: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn s_220_open_batches_are_flushed() {
    let (producer, source) = Source::new();
    let batches = Log::default();
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(keep(&batches).size(10).within(ms(10_000)))
        .start()
        .unwrap();
    source.push(1..=3).await;
    let report = pipeline.drain(FOREVER).await;
    assert_eq!(report.unprocessed(), 0);
    assert_eq!(batches.take(), [(vec![1, 2, 3], Flush)]);
    assert_eq!(source.acks(), [(vec![1, 2, 3], vec![])]);
}

#[tokio::test(start_paused = true)]
async fn s_221_everything_that_was_emitted_is_acknowledged() {
    let (producer, source) = Source::new();
    let batches = Log::<Seen>::default();
    let slow = async |n: &mut Message<u64>| {
        sleep(ms(10)).await;
        Ok(**n)
    };
    let processors = processors(slow).concurrency(2).max_demand(4).min_demand(2);
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors)
        .batcher(keep(&batches).size(10))
        .start()
        .unwrap();
    source.push(1..=25).await;
    assert_eq!(pipeline.drain(FOREVER).await.unprocessed(), 0);
    let sizes: Vec<_> =
        batches.take().into_iter().map(|(all, trigger)| (all.len(), trigger)).collect();
    assert_eq!(sizes, [(10, Size), (10, Size), (5, Flush)]);
    super::assert_same(
        source.acks().into_iter().flat_map(|(done, _)| done).collect(),
        (1..=25).collect(),
    );
}

/// Emits x when it is to drain, y in a message to itself, and z a millisecond later.
struct Late {
    acks: Arc<Recorder>,
    me: Option<ProducerHandle<Self>>,
}

impl Producer for Late {
    type Event = Message<u64>;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.me = Some(context.handle().clone());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    /// A poll that never returns.
    async fn ready(&mut self) {
        pending::<()>().await;
    }

    async fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        out.emit(Message::new(1, 1, &self.acks));
        let me = self.me.clone().unwrap();
        me.async_info(2)?;
        tokio::spawn(async move {
            sleep(ms(1)).await;
            let _ = me.async_info(3);
        });
        Ok(())
    }
}

impl HandleInfo<u64, Message<u64>> for Late {
    async fn handle_info(
        &mut self,
        n: u64,
        out: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        out.emit(Message::new(n, n, &self.acks));
        // The source says itself when it has emitted everything.
        out.finish();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn s_222_what_a_source_emits_when_it_drains_is_processed() {
    let groups = Log::default();
    let acks = recorder("acks", &groups);
    let pipeline = Pipeline::of_messages("test")
        .source(Late { acks, me: None })
        .processors(pass())
        .start()
        .unwrap();
    super::settle().await;
    pipeline.drain(FOREVER).await;
    let done: Vec<_> = groups.take().into_iter().flat_map(|(_, done, _)| done).collect();
    assert_eq!(done, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn x_040_a_drain_interrupts_a_poll_and_later_messages_are_not_lost() {
    let groups = Log::default();
    let acks = recorder("acks", &groups);
    let (pipeline, handle) = Pipeline::of_messages("test")
        .source(Late { acks: acks.clone(), me: None })
        .processors(pass())
        .start_with_handle()
        .unwrap();
    super::settle().await;
    let begun = Instant::now();
    pipeline.drain(FOREVER).await;
    assert!(begun.elapsed() < FOREVER, "the poll never returns by itself");
    let late = Message::new(4, 4, &acks);
    assert!(handle.push_messages(vec![late]).await.is_err());
    assert_eq!(groups.take().last(), Some(&("acks", vec![], vec![4])));
}

#[tokio::test(start_paused = true)]
async fn s_223_what_does_not_end_in_time_is_stopped_and_has_failed() {
    let (producer, source) = Source::new();
    let never = async |n: &mut Message<u64>| {
        if **n == 2 {
            pending::<()>().await;
        }
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(never).concurrency(1))
        .start()
        .unwrap();
    source.push(1..=3).await;
    let begun = Instant::now();
    pipeline.drain(ms(1)).await;
    assert!(begun.elapsed() < ms(5000));
    // The chunk had not ended, so all of it may be delivered again.
    let failed: Vec<_> = source.acks().into_iter().flat_map(|(_, failed)| failed).collect();
    super::assert_same(failed, vec![1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn s_224_a_message_that_waits_for_the_limit_is_processed() {
    let (producer, source) = Source::new();
    let pipeline = Pipeline::of_messages("test")
        .rate_limit(RateLimit::new(1, ms(100)))
        .source(producer)
        .processors(pass())
        .start()
        .unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![1], vec![])]);
    pipeline.drain(FOREVER).await;
    assert_eq!(source.acks(), [(vec![2], vec![])]);
}

#[tokio::test(start_paused = true)]
async fn x_039_a_drain_begins_although_a_stage_is_busy() {
    let (producer, source) = Source::new();
    let slow = async |_: &mut Message<u64>| {
        sleep(ms(500)).await;
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(slow).concurrency(1))
        .start()
        .unwrap();
    source.push(1..=4).await;
    // The processor is in a callback now, and has not asked for more.
    pipeline.begin_drain(FOREVER);
    super::settle().await;
    assert!(!source.script.handle().is_running(), "the source has handed everything over");
    let mut pipeline = pipeline;
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(source.acks(), [(vec![1, 2, 3, 4], vec![])]);
}

/// Waits for a turn that never comes, until its stage drains.
struct WaitsForTurn<const ALONE: bool> {
    leaves: bool,
}

impl<const ALONE: bool> Processor<u64> for WaitsForTurn<ALONE> {
    type Output = u64;

    const ONE_AT_A_TIME: bool = ALONE;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<u64, Failure> {
        let place = message.place();
        if self.leaves {
            place.leave();
        }
        place.draining().await;
        Err(Failure::new("its turn has not come").later(Duration::ZERO))
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_sees_that_its_stage_drains_and_can_be_given_back() {
    for (leaves, has_batcher) in [(true, false), (false, false), (false, true)] {
        gives_back(WaitsForTurn::<true> { leaves }, has_batcher).await;
        gives_back(WaitsForTurn::<false> { leaves }, has_batcher).await;
    }
}

async fn gives_back(processor: impl Processor<u64, Output = u64>, has_batcher: bool) {
    let (producer, source) = Source::new();
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(processor).concurrency(2));
    let pipeline = if has_batcher {
        pipeline.batcher(keep(&Log::default())).start().unwrap()
    } else {
        pipeline.start().unwrap()
    };
    source.push(1..=10).await;
    sleep(ms(5_000)).await;
    assert_eq!(source.acks(), []);
    let report = pipeline.drain(FOREVER).await;
    assert!(report.completed);
    // What is still in the source comes to a stage that drains already.
    let failed = source.acks().into_iter().flat_map(|(_, failed)| failed).collect();
    super::assert_same(failed, (1..=10).collect());
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_ends_when_its_sources_have_ended() {
    let groups = Log::default();
    let acks = recorder("acks", &groups);
    let of = |numbers: std::ops::RangeInclusive<u64>| {
        let acks = acks.clone();
        from_iter(numbers.map(move |n| Message::new(n, n, &acks)))
    };
    let batches = Log::default();
    let mut pipeline = Pipeline::of_messages("test")
        .source(of(1..=10))
        .and_source(of(11..=13))
        .processors(pass())
        .batcher(keep(&batches).size(4))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.is_clean(), "{report}");
    let done = groups.take().into_iter().flat_map(|(_, done, _)| done).collect();
    super::assert_same(done, (1..=13).collect());
}

/// A source that stores acknowledgements for a while after its end.
struct Settles(Option<u64>);

impl Producer for Settles {
    type Event = Message<u64>;

    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
        let within = self.0.take()?;
        Some(Box::pin(sleep(ms(within))))
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        out.finish();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_waits_until_acknowledgements_are_stored() {
    let start = |within| {
        let source = Settles(Some(within));
        Pipeline::of_messages("test").source(source).processors(pass()).start().unwrap()
    };
    let begun = Instant::now();
    assert!(start(7000).join().await.is_clean());
    assert!(begun.elapsed() >= ms(7000));

    let begun = Instant::now();
    let report = start(3_600_000).drain(ms(2000)).await;
    assert!(!report.completed);
    assert!(begun.elapsed() < ms(4000));
}

/// A source that fails, and whose server takes no acknowledgements any more.
struct Dead;

impl Producer for Dead {
    type Event = Message<u64>;

    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(pending()))
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, Message<u64>>,
    ) -> Result<(), ExitReason> {
        Err(ExitReason::failed("the server is gone"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_pipeline_ends_although_acknowledgements_cannot_be_stored() {
    let begun = Instant::now();
    let mut pipeline = Pipeline::of_messages("test")
        .stop_within(ms(500))
        .source(Dead)
        .processors(pass())
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.failure().is_some() && !report.completed);
    assert!(begun.elapsed() < ms(5000));
}
