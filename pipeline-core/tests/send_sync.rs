//! Which public types may cross threads. A change here is a breaking one.

use pipeline_core::{
    Adaptive, Backoff, Cancel, ChildContext, Closed, ConsumerSupervisor, ExitReason, Pipeline,
    PipelineReport, Queue, QueueProducer, RateLimit, StartError, SubscribeError, SubscribeOptions,
    Telemetry, Timed, TryPushError,
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
        Cancel,
        ChildContext,
        Closed<u64>,
        ConsumerSupervisor<u64, ()>,
        ExitReason,
        Pipeline,
        PipelineReport,
        Queue<u64>,
        QueueProducer<u64>,
        RateLimit,
        SubscribeError,
        SubscribeOptions,
        StartError,
        Telemetry,
        Timed<u64>,
        TryPushError<u64>,
    );
}

#[test]
fn a_queue_of_items_that_are_only_send_is_send_and_sync() {
    send::<Queue<std::cell::Cell<u64>>>();
    sync::<Queue<std::cell::Cell<u64>>>();
}

#[test]
fn the_futures_that_callers_await_are_send() {
    fn future<F: Send>(_: &F) {}
    let _ = |queue: &Queue<u64>| future(&queue.push(1));
    let _ = |pipeline: &mut Pipeline| future(&pipeline.ended());
    let _ = |pipeline: Pipeline| future(&pipeline.drain(std::time::Duration::ZERO));
}
