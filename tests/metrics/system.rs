//! A system that has every metric.

use axum::Router;
use pipeline::{
    Graph, Pipeline,
    cluster::{Cluster, ClusterOptions},
    processing::{Batch, Batcher, Message, Processors},
    serve,
    source::{Queue, QueueOptions, queue},
    sources::{Item, SourceOptions, sqlite::SqliteQueue},
    step::{for_each, map_async},
    supervisor::ConsumerSupervisor,
    telemetry::Telemetry,
    ws::{Endpoint, Mount, listen},
};
use pipeline_test_support::{AnyChannel, AnySocket};
use tempfile::TempDir;

/// A stage of each kind, an endpoint, a durable source and a node of a cluster.
pub(crate) struct System {
    _pushes: Queue<u64>,
    _pipelines: [Pipeline; 2],
    _cluster: Cluster,
    _endpoint: Endpoint,
    _folder: TempDir,
}

impl System {
    /// Starts it. A server has run and ended.
    pub(crate) async fn start(telemetry: Telemetry) -> Self {
        let sockets = Mount::new(AnySocket).channel::<AnyChannel>("user:*");
        let endpoint = Endpoint::builder().mount("/socket", sockets).telemetry(telemetry.clone());
        let endpoint = endpoint.build().unwrap();
        let (pushes, producer) = queue::<u64>(QueueOptions::new());
        let worker = async |_: &u64| Ok(());
        let mut graph = Graph::new("push");
        graph.telemetry(telemetry.clone());
        graph.producer("source", producer);
        graph.producer_consumer("double", map_async(2, async |n: u64| 2 * n));
        graph.consumer("print", for_each(async |n: u64| println!("{n}")));
        graph.consumer_supervisor("push", ConsumerSupervisor::new(worker));
        let pipeline = graph.start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let orders = SqliteQueue::open(folder.path().join("orders.db"), "orders").await.unwrap();
        let orders = orders.telemetry(&telemetry);
        let messages = Pipeline::of_messages("orders")
            .telemetry(telemetry.clone())
            .source(orders.source(SourceOptions::new()))
            .processors(Processors::from_fn(async |_: &mut Message<Item>| Ok(1)))
            .batcher(Batcher::from_fn(async |_: &mut Batch<Item, u64>| Ok(())))
            .start()
            .unwrap();
        // No server listens there: the node is alone.
        let cluster = ClusterOptions::new("shop").telemetry(telemetry.clone());
        let cluster = Cluster::redis("redis://127.0.0.1:1", cluster).await.unwrap();
        let listener = listen("127.0.0.1:0").await.unwrap();
        serve(listener, Router::new()).telemetry(telemetry).until(async {}).await.unwrap();
        Self {
            _pushes: pushes,
            _pipelines: [pipeline, messages],
            _cluster: cluster,
            _endpoint: endpoint,
            _folder: folder,
        }
    }
}
