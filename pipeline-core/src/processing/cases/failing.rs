//! What happens to failed batches and to what `handle_failed` changes.

use super::{Log, Source, pass, processors};
use crate::{
    Pipeline,
    processing::{
        Batch, BatchProcessor, Batcher, Failure, FailureKind, Message, Processor, Processors,
    },
};

/// A batch processor that records its failed messages.
struct Fails {
    failed: Log<Vec<u64>>,
    handle: fn(&mut Batch<u64, u64>) -> Result<(), Failure>,
}

impl BatchProcessor<u64, u64> for Fails {
    async fn handle_batch(&self, batch: &mut Batch<u64, u64>) -> Result<(), Failure> {
        (self.handle)(batch)
    }

    async fn handle_failed(&self, messages: &mut [Message<u64>]) {
        self.failed.add(messages.iter().map(|message| **message).collect());
    }
}

/// Starts a pipeline whose batches of this size are handled so.
fn batches(
    size: usize,
    handle: fn(&mut Batch<u64, u64>) -> Result<(), Failure>,
) -> (Pipeline, Source, Log<Vec<u64>>) {
    let (producer, source) = Source::new();
    let failed = Log::default();
    let batcher = Batcher::new(Fails { failed: failed.clone(), handle });
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(batcher.size(size))
        .start()
        .unwrap();
    (pipeline, source, failed)
}

#[tokio::test(start_paused = true)]
async fn s_204_a_panic_fails_the_batch() {
    let (_pipeline, source, failed) = batches(2, |_| panic!("no disk"));
    source.push([1, 2]).await;
    assert_eq!(failed.take(), [[1, 2]]);
    assert_eq!(source.acks(), [(vec![], vec![1, 2])]);
    assert_eq!(source.failures()[0].1, "panicked: no disk");
}

#[tokio::test(start_paused = true)]
async fn an_error_fails_the_batch() {
    let (_pipeline, source, failed) = batches(2, |_| Err(Failure::new("no disk")));
    source.push([1, 2]).await;
    assert_eq!(failed.take(), [[1, 2]]);
    assert_eq!(source.acks(), [(vec![], vec![1, 2])]);
}

#[tokio::test(start_paused = true)]
async fn s_205_one_message_of_a_batch_fails() {
    let (_pipeline, source, failed) = batches(4, |batch| {
        batch[2].message.fail(Failure::new("a bad row"));
        Ok(())
    });
    source.push(1..=4).await;
    assert_eq!(failed.take(), [[3]]);
    assert_eq!(source.acks(), [(vec![1, 2, 4], vec![3])]);
}

/// A processor that fails all messages, and does this with them.
struct FailsAll(fn(&mut [Message<u64>]));

impl Processor<u64> for FailsAll {
    type Output = ();

    async fn handle_message(&self, _: &mut Message<u64>) -> Result<(), Failure> {
        Err(Failure::new("failed"))
    }

    async fn handle_failed(&self, messages: &mut [Message<u64>]) {
        (self.0)(messages);
    }
}

/// Pushes two messages that fail.
async fn fail_two(handle_failed: fn(&mut [Message<u64>])) -> Source {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(FailsAll(handle_failed)).concurrency(1))
        .start()
        .unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![], vec![1, 2])]);
    source
}

#[tokio::test(start_paused = true)]
async fn s_207_what_handle_failed_changes_is_acknowledged() {
    let source = fail_two(|messages| {
        messages[0].fail(Failure::new("changed").give_up());
    });
    let failures = source.await.failures();
    assert_eq!(failures, [(1, "changed".to_owned()), (2, "failed".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn s_208_handle_failed_cannot_make_a_message_succeed() {
    let source = fail_two(|messages| messages[0].recover()).await;
    assert_eq!(source.failures()[0], (1, "failed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn s_209_a_panic_in_handle_failed_changes_nothing() {
    let source = fail_two(|messages| {
        messages[0].fail(Failure::new("changed"));
        panic!("no mail");
    });
    assert_eq!(source.await.failures()[0], (1, "failed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn x_037_messages_that_the_buffer_drops_are_acknowledged_as_failed() {
    let (producer, source) = Source::new();
    let stage = crate::stage::Stage::new(producer).buffer_size(3);
    let _pipeline = Pipeline::of_messages("test")
        .source_with(stage)
        .processors(pass().max_demand(2))
        .start()
        .unwrap();
    super::settle().await;
    source.push(1..=10).await;
    let failures = source.acks.failures.take();
    let failed: Vec<_> = failures.iter().map(|(n, why)| (*n, why.kind())).collect();
    assert_eq!(failed, [3, 4, 5, 6, 7].map(|n| (n, FailureKind::Overflow)));
    let done = source.acks().into_iter().flat_map(|(done, _)| done).collect::<Vec<_>>();
    assert_eq!(done, [1, 2, 8, 9, 10]);
}

/// Data whose destructor panics for some numbers.
struct Bomb(u64);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(self.0 != 3 || std::thread::panicking(), "a destructor panics");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destructor_that_panics_costs_no_acknowledgement() {
    let (producer, script) = crate::testkit::scripted();
    let groups = Log::default();
    let acks = super::recorder("acks", &groups);
    let handle = async |bomb: &mut Message<Bomb>| {
        if bomb.0 == 2 { Err(Failure::new("two")) } else { Ok(()) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .start()
        .unwrap();
    script.emit((1..=5).map(|n| Message::new(Bomb(n), n, &acks))).await;
    super::settle().await;
    assert_eq!(groups.take(), [("acks", vec![1, 3, 4, 5], vec![2])]);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_batch_leaves_the_failures_of_its_messages() {
    let (_pipeline, source, _) = batches(2, |batch| {
        batch[0].message.fail(Failure::new("its own").give_up());
        Err(Failure::new("no disk"))
    });
    source.push([1, 2]).await;
    let failures = source.failures();
    assert_eq!(failures, [(1, "its own".to_owned()), (2, "no disk".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_handle_failed_that_never_ends_is_dropped() {
    struct Hangs;

    impl Processor<u64> for Hangs {
        type Output = ();

        async fn handle_message(&self, _: &mut Message<u64>) -> Result<(), Failure> {
            Err(Failure::new("failed"))
        }

        async fn handle_failed(&self, _: &mut [Message<u64>]) {
            std::future::pending::<()>().await;
        }
    }

    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(Hangs).concurrency(1).handle_within(super::ms(20)))
        .start()
        .unwrap();
    source.push([1]).await;
    assert_eq!(source.acks(), []);
    tokio::time::sleep(super::ms(20)).await;
    assert_eq!(source.acks(), [(vec![], vec![1])]);
}
