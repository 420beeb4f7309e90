//! The task that takes a snapshot once a second.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use pipeline_core::snapshot::PipelineObserver;
use pipeline_ws_sink::{
    PubSub,
    endpoint::EndpointObserver,
    pubsub::{AdapterError, Broadcast, TopicSubscription},
};
use tokio::{
    task::coop::consume_budget,
    time::{self, Instant, MissedTickBehavior},
};

use crate::{
    channel::{EVENT, Shown, TOPIC},
    history::History,
    model::{EndpointView, PipelineView, VERSION, View},
    nodes::{self, Nodes},
};

/// The sampling interval.
const EVERY: Duration = Duration::from_secs(1);

/// The observed pipelines and endpoint, and the history.
#[derive(Debug)]
pub(crate) struct Sampler {
    pipelines: Vec<PipelineObserver>,
    endpoint: Option<EndpointObserver>,
    since: Instant,
    history: History,
    cluster: Option<Cluster>,
}

/// The nodes of the endpoint's cluster.
#[derive(Debug)]
struct Cluster {
    /// The name of this node.
    name: String,
    /// The reports of the others.
    reports: TopicSubscription,
    nodes: Nodes,
    /// The number of the next sample.
    sample: u64,
}

impl Cluster {
    fn of(endpoint: &EndpointObserver) -> Option<Self> {
        let pubsub = endpoint.pubsub()?;
        let (name, reports) = (pubsub.node_name()?.to_owned(), pubsub.subscribe(nodes::TOPIC));
        Some(Self { name, reports, nodes: Nodes::default(), sample: 0 })
    }

    /// Puts the nodes into a view, and tells the others about this one.
    fn exchange(&mut self, endpoint: Option<&EndpointObserver>, view: &mut View, now: Duration) {
        while let Some(report) = self.reports.recv().now_or_never() {
            // Those that were dropped are followed by others.
            let Ok(report) = report else { continue };
            if let (nodes::EVENT, Some(json)) = (report.event(), report.payload().json()) {
                self.nodes.hear(json, &self.name, now);
            }
        }
        let own = nodes::report(&self.name, view);
        if self.sample.is_multiple_of(nodes::EVERY)
            && let Some(pubsub) = endpoint.and_then(EndpointObserver::pubsub)
        {
            // The others see that this node is silent.
            let _ = Broadcast::new(nodes::TOPIC, nodes::EVENT, &own)
                .map_err(AdapterError::from)
                .and_then(|report| pubsub.send_to_others(&report));
        }
        self.sample = self.sample.wrapping_add(1);
        view.nodes = self.nodes.list(own, now);
    }
}

impl Sampler {
    pub(crate) fn new(
        pipelines: Vec<PipelineObserver>,
        endpoint: Option<EndpointObserver>,
    ) -> Self {
        let cluster = endpoint.as_ref().and_then(Cluster::of);
        Self { pipelines, endpoint, since: Instant::now(), history: History::default(), cluster }
    }

    /// Takes a snapshot.
    pub(crate) fn look(&mut self) -> View {
        let pipelines = self.pipelines.iter();
        let pipelines = pipelines.map(|observer| PipelineView::new(observer.snapshot())).collect();
        self.put_together(pipelines)
    }

    /// Takes a snapshot, and yields between pipelines.
    async fn look_politely(&mut self) -> View {
        let mut pipelines = Vec::with_capacity(self.pipelines.len());
        for observer in &self.pipelines {
            pipelines.push(PipelineView::new(observer.snapshot()));
            consume_budget().await;
        }
        self.put_together(pipelines)
    }

    fn put_together(&mut self, pipelines: Vec<PipelineView>) -> View {
        let at = self.since.elapsed();
        let endpoint = self.endpoint.as_ref().and_then(EndpointObserver::snapshot);
        let endpoint = endpoint.map(EndpointView::new);
        let view = View { version: VERSION, pipelines, endpoint, ..View::default() };
        let mut view = self.history.add(at, view);
        if let Some(cluster) = &mut self.cluster {
            cluster.exchange(self.endpoint.as_ref(), &mut view, at);
        }
        view
    }

    /// Samples periodically and broadcasts to the viewers. Never returns: the inspector aborts it.
    pub(crate) async fn run(mut self, shown: Arc<Shown>, viewers: PubSub) {
        let mut ticks = time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate, and a snapshot has just been taken.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let view = shown.show(self.look_politely().await);
            if shown.has_viewers() {
                // Cannot fail: the view is an object, and there are no other nodes.
                let _ = viewers.local_broadcast(TOPIC, EVENT, &*view);
            }
        }
    }
}
