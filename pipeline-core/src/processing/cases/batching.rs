//! How messages are collected into batches.

use tokio::time::{Instant, sleep, timeout};

use super::{Log, Seen, Source, batcher, keep, ms, pass, processors};
use crate::{
    Pipeline,
    processing::{
        Batch, BatchMode,
        BatchTrigger::{self, *},
        Message,
    },
    testkit::settle,
};

/// Starts a pipeline with one processor and this batcher.
macro_rules! started {
    ($batcher:expr) => {{
        let (producer, source) = Source::new();
        let builder = Pipeline::of_messages("test").source(producer).processors(pass());
        (builder.batcher($batcher).start().unwrap(), source)
    }};
}

/// Emits messages of which those in `flushed` flush their batch.
async fn push_flushing(source: &Source, numbers: &[u64], flushed: &[u64]) {
    let messages = numbers.iter().map(|n| {
        let mut message = source.message(*n);
        if flushed.contains(n) {
            message.set_batch_mode(BatchMode::Flush);
        }
        message
    });
    source.script.emit(messages).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn s_188_without_batchers_a_chunk_is_acknowledged_together() {
    let (producer, source) = Source::new();
    let _pipeline =
        Pipeline::of_messages("test").source(producer).processors(pass()).start().unwrap();
    source.push(1..=12).await;
    let chunks = [(1..=5).collect(), (6..=10).collect(), vec![11, 12]];
    assert_eq!(source.acks(), chunks.map(|done: Vec<u64>| (done, vec![])));
}

#[tokio::test(start_paused = true)]
async fn s_189_without_batchers_chunks_of_one_are_acknowledged_alone() {
    let (producer, source) = Source::new();
    let processors = pass().max_demand(2).min_demand(1);
    let _pipeline =
        Pipeline::of_messages("test").source(producer).processors(processors).start().unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![1], vec![]), (vec![2], vec![])]);
}

#[tokio::test(start_paused = true)]
async fn s_190_a_batch_is_closed_by_its_size_or_its_time() {
    let batches = Log::default();
    let (_pipeline, source) = started!(keep(&batches).size(3).within(ms(100)));
    source.push(1..=7).await;
    assert_eq!(batches.take(), [(vec![1, 2, 3], Size), (vec![4, 5, 6], Size)]);
    sleep(ms(100)).await;
    assert_eq!(batches.take(), [(vec![7], Timeout)]);
    let groups = [vec![1, 2, 3], vec![4, 5, 6], vec![7]];
    assert_eq!(source.acks(), groups.map(|done| (done, vec![])));
}

#[tokio::test(start_paused = true)]
async fn s_191_the_first_message_starts_the_time() {
    let times = Log::default();
    let log = times.clone();
    let start = Instant::now();
    let batcher = batcher(async move |batch: &mut Batch<u64, u64>| {
        let at = start.elapsed().as_millis();
        log.add((batch.outputs().copied().collect::<Vec<_>>(), at, batch.info().trigger));
        Ok(())
    });
    let (_pipeline, source) = started!(batcher.size(10).within(ms(100)));
    source.script.emit([source.message(1)]).await;
    sleep(ms(60)).await;
    source.script.emit([source.message(2)]).await;
    sleep(ms(60)).await;
    source.script.emit([source.message(3)]).await;
    sleep(ms(200)).await;
    assert_eq!(times.take(), [(vec![1, 2], 100, Timeout), (vec![3], 220, Timeout)]);
}

#[tokio::test(start_paused = true)]
async fn s_192_each_key_has_its_own_batches() {
    let batches = Log::default();
    let letter = |n: u64| if n % 2 == 1 { 'a' } else { 'b' };
    let seen = batches.clone();
    let batcher = batcher(async move |batch: &mut Batch<u64, u64>| {
        let key = *batch.info().key::<char>().unwrap();
        seen.add((key, batch.outputs().copied().collect::<Vec<_>>(), batch.info().trigger));
        Ok(())
    });
    let batcher = batcher.key_by(move |row| letter(row.output)).size(2).within(ms(100));
    let (_pipeline, source) = started!(batcher);
    source.push(1..=5).await;
    sleep(ms(100)).await;
    let expected = [('a', vec![1, 3], Size), ('b', vec![2, 4], Size), ('a', vec![5], Timeout)];
    assert_eq!(batches.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn s_193_a_flush_takes_all_of_its_chunk() {
    let batches = Log::default();
    let (_pipeline, source) = started!(keep(&batches).size(10));
    push_flushing(&source, &[1, 2, 3], &[2]).await;
    assert_eq!(batches.take(), [(vec![1, 2, 3], Flush)]);
}

#[tokio::test(start_paused = true)]
async fn s_194_a_flush_takes_no_more_than_its_chunk() {
    let batches = Log::default();
    let (_pipeline, source) = started!(keep(&batches).size(2));
    push_flushing(&source, &[1, 2, 3], &[1]).await;
    assert_eq!(batches.take(), [(vec![1], Flush), (vec![2, 3], Size)]);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Parity {
    Even,
    Odd,
}

fn parity(n: &u64) -> Parity {
    if n.is_multiple_of(2) { Parity::Even } else { Parity::Odd }
}

/// Starts a pipeline with a batcher for odd and one for even numbers. Returns the logs of both.
fn by_parity(within: u64) -> (Pipeline, Source, [Log<Seen>; 2]) {
    let (producer, source) = Source::new();
    let [odd, even] = [Log::default(), Log::default()];
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass().max_demand(40))
        .route(parity)
        .batcher(Parity::Odd, keep(&odd).size(10).within(ms(within)))
        .batcher(Parity::Even, keep(&even).size(5).within(ms(within)))
        .start()
        .unwrap();
    (pipeline, source, [odd, even])
}

#[tokio::test(start_paused = true)]
async fn s_195_each_batcher_gets_its_messages() {
    let (_pipeline, source, [odd, even]) = by_parity(1000);
    source.push(1..=40).await;
    let sizes = |log: &Log<Seen>| {
        let seen = log.take().into_iter();
        seen.map(|(numbers, trigger)| (numbers.len(), trigger)).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&odd), [(10, Size); 2]);
    assert_eq!(sizes(&even), [(5, Size); 4]);
}

#[tokio::test(start_paused = true)]
async fn s_196_each_batcher_is_flushed() {
    let (_pipeline, source, [odd, even]) = by_parity(20);
    push_flushing(&source, &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]).await;
    assert_eq!(odd.take(), [(vec![1, 3, 5], Flush)]);
    assert_eq!(even.take(), [(vec![2, 4], Flush)]);
}

#[tokio::test(start_paused = true)]
async fn s_197_a_batch_is_closed_by_a_function_of_its_messages() {
    let batches = Log::default();
    let weight =
        |row: &crate::processing::Processed<u64, u64>| usize::try_from(row.output).unwrap();
    let batcher = keep(&batches).weight(10, weight).max_demand(10).within(ms(100));
    let (_pipeline, source) = started!(batcher);
    source.push([4, 4, 4, 9, 1, 3]).await;
    sleep(ms(100)).await;
    let expected: [(Vec<u64>, BatchTrigger); 3] =
        [(vec![4, 4, 4], Size), (vec![9, 1], Size), (vec![3], Timeout)];
    assert_eq!(batches.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn s_212_messages_of_a_partition_are_handled_by_one_processor_in_order() {
    let (producer, source) = Source::new();
    let handled = Log::default();
    let log = handled.clone();
    let handle = async move |n: &mut Message<u64>| {
        log.add((tokio::task::id(), **n));
        Ok(())
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .partition_by(|n| **n)
        .processors(processors(handle).concurrency(2).max_demand(4).min_demand(2))
        .start()
        .unwrap();
    source.push(0..=7).await;
    let handled = handled.take();
    let of = |parity: u64| handled.iter().filter(move |(_, n)| n % 2 == parity);
    let numbers = |parity| of(parity).map(|(_, n)| *n).collect::<Vec<_>>();
    assert_eq!([numbers(0), numbers(1)], [vec![0, 2, 4, 6], vec![1, 3, 5, 7]]);
    let task = |parity| of(parity).next().unwrap().0;
    assert!(of(0).all(|(id, _)| *id == task(0)) && of(1).all(|(id, _)| *id == task(1)));
    assert_ne!(task(0), task(1));
}

/// A batch with its partition.
type InPartition = (Vec<u64>, Option<usize>, BatchTrigger);

/// Starts a pipeline with two partitions throughout.
fn partitioned(seen: &Log<InPartition>, size: usize, key: fn(u64) -> bool) -> (Pipeline, Source) {
    let (producer, source) = Source::new();
    let log = seen.clone();
    let batcher = batcher(async move |batch: &mut Batch<u64, u64>| {
        let info = batch.info();
        log.add((batch.outputs().copied().collect(), info.partition, info.trigger));
        Ok(())
    });
    let batcher = batcher.key_by(move |row| key(row.output));
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .partition_by(|n| **n)
        .processors(pass().max_demand(20))
        .batcher(batcher.size(size).within(ms(100)).concurrency(2).max_demand(20))
        .start()
        .unwrap();
    (pipeline, source)
}

#[tokio::test(start_paused = true)]
async fn s_213_messages_of_a_partition_are_in_batches_of_their_own() {
    let seen = Log::default();
    let (_pipeline, source) = partitioned(&seen, 2, |_| true);
    source.push(0..=6).await;
    sleep(ms(100)).await;
    let (seen, expected) = (
        seen.take(),
        [
            (vec![0, 2], Some(0), Size),
            (vec![1, 3], Some(1), Size),
            (vec![4, 6], Some(0), Size),
            (vec![5], Some(1), Timeout),
        ],
    );
    let of = |partition| seen.iter().filter(move |batch| batch.1 == Some(partition));
    let wanted = |partition| expected.iter().filter(move |batch| batch.1 == Some(partition));
    assert!(of(0).eq(wanted(0)) && of(1).eq(wanted(1)) && seen.len() == 4, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn s_214_keys_and_partitions_are_never_mixed() {
    let seen = Log::default();
    let (_pipeline, source) = partitioned(&seen, 4, |n| n >= 20);
    source.push(16..=23).await;
    sleep(ms(100)).await;
    let mut seen: Vec<_> = seen.take().into_iter().map(|(ns, _, trigger)| (ns, trigger)).collect();
    seen.sort_by(|left, right| left.0.cmp(&right.0));
    let batches = [vec![16, 18], vec![17, 19], vec![20, 22], vec![21, 23]];
    assert_eq!(seen, batches.map(|numbers| (numbers, Timeout)));
}

#[tokio::test(start_paused = true)]
async fn x_046_the_oldest_batch_is_closed_when_too_many_messages_wait() {
    let batches = Log::default();
    let batcher = keep(&batches).size(2).key_by(|row| row.output).max_open(2);
    let (_pipeline, source) = started!(batcher);
    source.push(1..=3).await;
    assert_eq!(batches.take(), [(vec![1], Space)]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_may_be_larger_than_the_space_for_open_batches() {
    let batches = Log::default();
    let (_pipeline, source) = started!(keep(&batches).size(5).max_open(2));
    source.push(1..=5).await;
    assert_eq!(batches.take(), [(vec![1, 2, 3, 4, 5], Size)]);
}

#[tokio::test(start_paused = true)]
async fn open_batches_are_bounded_by_weight() {
    let batches = Log::default();
    let batcher = keep(&batches).weight(10, |_| 4).key_by(|row| row.output).max_open_weight(10);
    let (_pipeline, source) = started!(batcher);
    source.push(1..=3).await;
    assert_eq!(batches.take(), [(vec![1], Space)]);
}

#[tokio::test(start_paused = true)]
async fn a_batcher_that_is_named_by_a_text_has_its_name() {
    let (producer, source) = Source::new();
    let names = Log::default();
    let log = names.clone();
    let write = batcher(async move |batch: &mut Batch<u64, u64>| {
        log.add(batch.info().batcher.to_string());
        Ok(())
    });
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .route(|_| "audit")
        .batcher("audit", write.size(1))
        .start()
        .unwrap();
    source.push([1]).await;
    assert_eq!(names.take(), ["audit"]);
}

/// Pushes a thousand messages of eight keys, and returns in which order those of each key were seen.
async fn in_order_of_each_key(source: &Source, seen: &Log<u64>) -> Vec<Vec<u64>> {
    source.push(0..1000).await;
    let done = async {
        let (mut acknowledged, mut failed) = (0, 0);
        while acknowledged + failed < 1000 {
            for (done, not_done) in source.acks() {
                (acknowledged, failed) = (acknowledged + done.len(), failed + not_done.len());
            }
            sleep(ms(1)).await;
        }
        assert_eq!((acknowledged, failed), (1000, 0));
    };
    timeout(ms(60_000), done).await.unwrap();
    let seen = seen.take();
    (0..8).map(|key| seen.iter().copied().filter(|n| n % 8 == key).collect()).collect()
}

fn each_key_in_order() -> Vec<Vec<u64>> {
    (0..8).map(|key| (0..1000).filter(|n| n % 8 == key).collect()).collect()
}

/// Handles a message a little later, those of a key not all alike.
async fn later(n: u64) {
    for _ in 0..n % 3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processors_keep_the_order_of_their_own_partitions() {
    let ((producer, source), seen) = (Source::new(), Log::default());
    let log = seen.clone();
    let handle = async move |n: &mut Message<u64>| {
        later(**n / 8).await;
        log.add(**n);
        Ok(())
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(4).partition_by(|n| **n % 8))
        .start()
        .unwrap();
    assert_eq!(in_order_of_each_key(&source, &seen).await, each_key_in_order());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batcher_keeps_the_order_of_its_own_partitions() {
    let ((producer, source), seen) = (Source::new(), Log::default());
    let log = seen.clone();
    let batcher = batcher(async move |batch: &mut Batch<u64, u64>| {
        let numbers: Vec<_> = batch.outputs().copied().collect();
        later(numbers.len() as u64).await;
        numbers.into_iter().for_each(|n| log.add(n));
        Ok(())
    });
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(batcher.size(5).within(ms(5)).concurrency(4).partition_by(|n| **n % 8))
        .start()
        .unwrap();
    assert_eq!(in_order_of_each_key(&source, &seen).await, each_key_in_order());
}
