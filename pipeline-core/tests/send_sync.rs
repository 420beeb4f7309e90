//! The public types that may cross threads. A change here is a breaking change.

use pipeline_core::{
    ExitReason, Pipeline,
    backoff::Backoff,
    builder::StartError,
    dispatcher::{BroadcastDispatcher, DemandDispatcher, PartitionDispatcher, Refusal},
    report::PipelineReport,
    snapshot::PipelineObserver,
    source::{
        Closed, FairQueue, FairQueueOptions, FairQueueProducer, Queue, QueueProducer,
        TimedFairQueue, TimedQueue, TryPushError,
    },
    stage::RateLimit,
    subscription::{BadPartition, Cancel, SubscribeError, SubscribeOptions},
    supervisor::{Adaptive, ChildContext, ConsumerSupervisor},
    telemetry::Telemetry,
    timed::{Timed, Timeline, TraceContext},
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}

#[test]
fn public_types_are_send_and_sync() {
    macro_rules! both {
        ($($type:ty),* $(,)?) => {$( send::<$type>(); sync::<$type>(); )*};
    }
    both!(
        Adaptive,
        Backoff,
        BadPartition,
        BroadcastDispatcher<u64>,
        Cancel,
        ChildContext,
        Closed<u64>,
        ConsumerSupervisor<u64, ()>,
        DemandDispatcher,
        ExitReason,
        FairQueue<u64, u64>,
        FairQueueOptions<u64, u64>,
        FairQueueProducer<u64, u64>,
        Pipeline,
        PipelineObserver,
        PipelineReport,
        Queue<u64>,
        QueueProducer<u64>,
        RateLimit,
        Refusal,
        SubscribeError,
        SubscribeOptions,
        StartError,
        Telemetry,
        Timed<u64>,
        TimedFairQueue<u64, u64>,
        TimedQueue<u64>,
        Timeline,
        TraceContext,
        TryPushError<u64>,
    );
}

#[test]
fn a_partition_dispatcher_may_have_a_hash_that_is_only_send() {
    send::<PartitionDispatcher<std::cell::Cell<u64>, u64>>();
}

#[test]
fn a_queue_of_items_that_are_only_send_is_send_and_sync() {
    send::<Queue<std::cell::Cell<u64>>>();
    sync::<Queue<std::cell::Cell<u64>>>();
    send::<FairQueue<std::cell::Cell<u64>, std::cell::Cell<u64>>>();
    sync::<FairQueue<std::cell::Cell<u64>, std::cell::Cell<u64>>>();
}

#[test]
fn the_futures_that_callers_await_are_send() {
    fn future<F: Send>(_: &F) {}
    let _ = |queue: &Queue<u64>| future(&queue.push(1));
    let _ = |queue: &FairQueue<u64, u64>| future(&queue.push(1, 1));
    let _ = |pipeline: &mut Pipeline| future(&pipeline.join());
    let _ = |pipeline: Pipeline| future(&pipeline.drain(std::time::Duration::ZERO));
}
