//! The task that takes a snapshot once a second.

use std::{sync::Arc, time::Duration};

use pipeline_core::snapshot::PipelineObserver;
use pipeline_ws_sink::{PubSub, endpoint::EndpointObserver};
use tokio::{
    task::coop::consume_budget,
    time::{self, Instant, MissedTickBehavior},
};

use crate::{
    channel::{EVENT, Shown, TOPIC},
    history::History,
    model::{EndpointView, PipelineView, VERSION, View},
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
}

impl Sampler {
    pub(crate) fn new(
        pipelines: Vec<PipelineObserver>,
        endpoint: Option<EndpointObserver>,
    ) -> Self {
        Self { pipelines, endpoint, since: Instant::now(), history: History::default() }
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
        self.history.add(at, view)
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
