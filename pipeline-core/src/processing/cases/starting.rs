//! How a pipeline of messages starts.

use super::{Log, Source, keep, ms, pass, processors};
use crate::{
    Pipeline,
    builder::StartError,
    processing::Message,
    subscription::SubscribeError,
    testkit::{scripted, settle},
};

#[tokio::test(start_paused = true)]
async fn s_184_the_defaults() {
    let (producer, source) = Source::new();
    let batches = Log::default();
    let handle = async |n: &mut Message<u64>| Ok(**n);
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle))
        .batcher(keep(&batches))
        .start()
        .unwrap();
    settle().await;
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(source.script.demands(), vec![10; 2 * cores]);
    let stages = pipeline.snapshot().stages;
    let count = |prefix: &str| stages.iter().filter(|it| it.stage.starts_with(prefix)).count();
    let counts = ["source", "processor", "batcher", "batch_processor"].map(count);
    assert_eq!(counts, [1, 2 * cores, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn s_185_each_processor_asks_each_source() {
    let ((one, first), (two, second)) = (scripted::<Message<u64>>(), scripted());
    let _pipeline = Pipeline::of_messages("test")
        .source(one)
        .and_source(two)
        .processors(pass().concurrency(2).max_demand(6))
        .start()
        .unwrap();
    settle().await;
    assert_eq!(first.demands(), [6, 6]);
    assert_eq!(second.demands(), [6, 6]);
}

/// Options are methods, so an unknown one does not compile: this names the case, and
/// `processing/mod.rs` has the code that the compiler refuses.
#[tokio::test(start_paused = true)]
async fn s_186_a_wrong_option_is_named_with_what_is_expected() {
    let (producer, _source) = Source::new();
    let builder = Pipeline::of_messages("test").source(producer);
    let error = builder.processors(pass().max_demand(4).min_demand(4)).start().unwrap_err();
    let StartError::Subscribe { stage, source } = error else { panic!("{error}") };
    assert_eq!(&*stage, "processor_0");
    assert_eq!(source.to_string(), "min_demand is 4, expected at most 3 with a max_demand of 4");
}

/// A count is always a bound too, so there is a `max_demand` without an option.
#[tokio::test(start_paused = true)]
async fn s_187_a_batcher_by_weight_needs_no_demand() {
    x_047_a_batcher_by_weight_has_the_demand_of_its_size().await;
}

async fn x_047_a_batcher_by_weight_has_the_demand_of_its_size() {
    let (producer, source) = Source::new();
    let batches = Log::default();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(keep(&batches).size(8).weight(1000, |_| 1).within(ms(100)))
        .start()
        .unwrap();
    source.push(1..=8).await;
    assert_eq!(batches.take().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn x_038_a_processor_that_would_process_nothing_does_not_start() {
    for (max, min) in [(0, 0), (3, 3), (3, 4)] {
        let (producer, _source) = Source::new();
        let builder = Pipeline::of_messages("test").source(producer);
        let error = builder.processors(pass().max_demand(max).min_demand(min)).start().unwrap_err();
        let StartError::Subscribe { source, .. } = error else { panic!("{error}") };
        assert!(matches!(source, SubscribeError::MaxDemand | SubscribeError::MinDemand { .. }));
    }
}
