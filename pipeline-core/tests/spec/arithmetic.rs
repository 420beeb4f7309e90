//! Section 5.1: consumer arithmetic.

use pipeline_core::{
    Graph, SubscribeOptions,
    testkit::{recording, scripted, settle},
};

/// `auto(max,min)`.
fn auto(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

#[tokio::test(start_paused = true)]
async fn s_002_demand_is_renewed_after_each_chunk() {
    let ((producer, script), (consumer, recording)) = (scripted::<u64>(), recording::<u64>());
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer.from_iter(0..1020));
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, auto(100, 80));
    let _pipeline = graph.start().unwrap();
    settle().await;
    let batches = recording.batches();
    assert_eq!(batches[0], (0..20).collect::<Vec<_>>());
    assert_eq!(batches[50], (1000..1020).collect::<Vec<_>>());
    assert_eq!(script.demands()[..3], [100, 20, 20]);
}
