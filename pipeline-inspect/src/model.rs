//! The JSON model of `data.json`: the snapshots, with what is computed from them. Pure.

use std::collections::BTreeMap;

use pipeline_core::snapshot::{Activity, PipelinePhase, PipelineSnapshot, StageSnapshot};
use pipeline_ws_sink::{
    endpoint::{EndpointSnapshot, MountSnapshot, RouteSnapshot},
    pubsub::AdapterSnapshot,
};
use serde::{Deserialize, Serialize};

use crate::{folding, layers};

/// The version of the JSON form. It is incremented when a field is renamed, removed or changes its
/// meaning, and not for new fields.
pub const VERSION: u32 = 1;

/// A snapshot of the running system: the contents of `data.json`, and of the channel's event once a
/// second.
///
/// The numbers of a stage, a mount, a route and the endpoint are those of their snapshots. Totals count
/// from the start, and continue when a stage is restarted. Rates (`.._per_second`) and shares cover the
/// last [`window_seconds`](Self::window_seconds).
///
/// ```
/// use pipeline_inspect::View;
///
/// # let json = r#"{"version":1,"pipelines":[{"name":"push","bottleneck":"work"}]}"#;
/// let view: View = serde_json::from_str(json)?;
/// for pipeline in &view.pipelines {
///     match &pipeline.bottleneck {
///         Some(stage) => println!("the bottleneck of {} is {stage}", pipeline.name),
///         None => println!("{} keeps up", pipeline.name),
///     }
/// }
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct View {
    /// The [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// Seconds since the inspector was built.
    #[serde(default)]
    pub uptime_seconds: f64,
    /// The window of rates and shares in seconds: about 3, less at first. While it is 0, rates and
    /// shares are 0, too.
    #[serde(default)]
    pub window_seconds: f64,
    /// The pipelines, in the order in which they were given.
    #[serde(default)]
    pub pipelines: Vec<PipelineView>,
    /// The endpoint, if one was given and it still exists.
    #[serde(default)]
    pub endpoint: Option<EndpointView>,
    /// The nodes of the cluster by name, if the endpoint has an adapter. Each has to have an inspector.
    #[serde(default)]
    pub nodes: Vec<NodeView>,
}

/// A node of a cluster, as it was when it last reported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NodeView {
    /// The name of the node.
    pub name: String,
    /// Whether it is the node of this inspector.
    pub is_this: bool,
    /// Whether it has not reported for 10 s: it has ended, or it cannot be reached. It is shown for 15
    /// minutes.
    pub is_gone: bool,
    /// Seconds since its last report; nodes report every two seconds.
    pub silent_seconds: f64,
    /// Seconds since its inspector was built.
    pub uptime_seconds: f64,
    /// Whether its endpoint [drains](pipeline_ws_sink::Endpoint::drain).
    pub is_draining: bool,
    /// Its open sockets.
    pub sockets: usize,
    /// Its joined channels.
    pub channels: usize,
    /// Frames written per second.
    pub frames_out_per_second: f64,
    /// Frames dropped per second, for all reasons.
    pub dropped_per_second: f64,
    /// The 99th percentile of delivery times in the last minute, in milliseconds.
    pub delivered_p99: Option<f64>,
    /// Its pipelines that have a bottleneck, each with the stage: `push: work`.
    pub bottlenecks: Vec<String>,
    /// What it has sent to other nodes and received from them.
    pub between: Option<BetweenView>,
}

/// What a node sends to other nodes, and receives from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BetweenView {
    /// The snapshot of the adapter.
    #[serde(flatten)]
    pub snapshot: AdapterSnapshot,
    /// Broadcasts sent per second.
    pub sent_per_second: f64,
    /// Broadcasts received per second.
    pub received_per_second: f64,
    /// Bytes sent per second.
    pub sent_bytes_per_second: f64,
    /// Bytes received per second.
    pub received_bytes_per_second: f64,
    /// The mean time from a broadcast on another node to its delivery on this one, in milliseconds, if
    /// one has arrived.
    pub lag_ms: Option<f64>,
}

/// A pipeline.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PipelineView {
    /// The pipeline's name.
    pub name: String,
    /// The pipeline's phase.
    pub phase: PipelinePhase,
    /// The bottleneck: the stage that the others wait for, if there is one. See [the
    /// crate](crate#the-bottleneck).
    pub bottleneck: Option<String>,
    /// The stages, in the order in which they were added. More than 8 that differ in the number at the end of
    /// their names, such as the processors of a pipeline of messages, are one: `processor_* (200)`.
    pub stages: Vec<StageView>,
    /// The subscriptions. Several subscriptions between two stages are one edge.
    pub edges: Vec<EdgeView>,
}

impl PipelineView {
    /// The view of a snapshot, without rates.
    pub(crate) fn new(snapshot: PipelineSnapshot) -> Self {
        let edges = snapshot.stages.iter().flat_map(edges).collect();
        let stages = snapshot.stages.into_iter().map(StageView::new).collect();
        let (stages, edges) = folding::fold(stages, edges);
        let (name, phase) = (snapshot.pipeline.to_string(), snapshot.phase);
        let mut view = Self { name, phase, bottleneck: None, stages, edges };
        layers::assign(&mut view);
        view
    }
}

/// A stage: its snapshot, and its rates.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StageView {
    /// The snapshot, without subscriptions: those are [edges](PipelineView::edges).
    #[serde(flatten)]
    pub snapshot: StageSnapshot,
    /// How many stages it stands for. Its counts are their sums, and its shares their averages.
    pub stages: usize,
    /// The activity with the largest share of the window.
    pub mostly: Activity,
    /// The distance from the source: 0, or one more than the farthest stage that it is subscribed to.
    pub layer: usize,
    /// Demand of its consumers that is not satisfied yet.
    pub demand: usize,
    /// Events received per second.
    pub in_per_second: f64,
    /// Events sent per second.
    pub out_per_second: f64,
    /// Events discarded per second, for all reasons.
    pub discarded_per_second: f64,
    /// Items at the broker of a durable source that has asked for more and gets none of them: they are in work at
    /// other processes, or wait for their key, of which one is in work, for their delay, or for the lease of a process
    /// that has ended. As many as the source has counted last; 0 for other stages. More workers here do not help.
    pub items_held_back: u64,
    /// The share of the window in which the stage was busy, from 0 to 1. A supervisor is busy while it
    /// has workers.
    pub busy: f64,
    /// The share in which the stage waited for events.
    pub waiting_for_events: f64,
    /// The share in which the stage waited for demand.
    pub waiting_for_demand: f64,
}

impl StageView {
    /// The stage's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.snapshot.stage
    }

    fn new(mut snapshot: StageSnapshot) -> Self {
        let subscriptions = std::mem::take(&mut snapshot.subscriptions);
        Self {
            stages: 1,
            mostly: snapshot.activity,
            demand: subscriptions.iter().map(|subscription| subscription.pending_demand).sum(),
            snapshot,
            ..Self::default()
        }
    }
}

/// The subscriptions of one stage to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EdgeView {
    /// The stage that sends.
    pub from: String,
    /// The stage that receives. It may belong to another pipeline.
    pub to: String,
    /// Events sent, by the current subscriptions.
    pub sent: u64,
    /// Events sent per second.
    pub per_second: f64,
    /// Events requested and not sent yet.
    pub pending_demand: usize,
}

/// One edge for every subscribed stage, ordered by name.
fn edges(stage: &StageSnapshot) -> Vec<EdgeView> {
    let mut edges: BTreeMap<&str, EdgeView> = BTreeMap::new();
    for subscription in &stage.subscriptions {
        let edge = edges.entry(&subscription.consumer).or_insert_with(|| EdgeView {
            from: stage.stage.to_string(),
            to: subscription.consumer.to_string(),
            ..EdgeView::default()
        });
        edge.sent += subscription.sent;
        edge.pending_demand += subscription.pending_demand;
    }
    edges.into_values().collect()
}

/// The endpoint: its snapshot, and its rates.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EndpointView {
    /// The snapshot, without its parts that are fields of the view.
    #[serde(flatten)]
    pub snapshot: EndpointSnapshot,
    /// Its sockets by mount.
    pub sockets: Vec<MountView>,
    /// Its channels by pattern. Topics are not listed: there may be one for every user.
    pub channels: Vec<ChannelView>,
    /// Delivery times of timed pushes.
    pub delivered: DeliveredView,
    /// What this node sends to other nodes and receives from them, if its adapter tells.
    pub between: Option<BetweenView>,
    /// Broadcasts per second.
    pub broadcasts_per_second: f64,
    /// Frames received per second.
    pub frames_in_per_second: f64,
    /// Frames written per second.
    pub frames_out_per_second: f64,
    /// Frames dropped per second, for all reasons.
    pub dropped_per_second: f64,
}

impl EndpointView {
    /// The view of a snapshot, without rates.
    pub(crate) fn new(mut snapshot: EndpointSnapshot) -> Self {
        let (sockets, channels) = (&mut snapshot.sockets, &mut snapshot.channels);
        let mount = |snapshot| MountView { snapshot, connected_per_second: 0.0 };
        let channel = |snapshot| ChannelView { snapshot, joined_per_second: 0.0 };
        let between = snapshot.adapter.take();
        let between = between.map(|snapshot| BetweenView { snapshot, ..BetweenView::default() });
        Self {
            sockets: sockets.drain(..).map(mount).collect(),
            channels: channels.drain(..).map(channel).collect(),
            between,
            snapshot,
            ..Self::default()
        }
    }
}

/// The sockets of a mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MountView {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: MountSnapshot,
    /// Clients accepted per second.
    pub connected_per_second: f64,
}

/// The channels of a pattern.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChannelView {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: RouteSnapshot,
    /// Successful joins per second.
    pub joined_per_second: f64,
}

/// Delivery times of timed pushes, from the enqueue until the operating system has the last byte.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DeliveredView {
    /// Deliveries since the start, one for every socket.
    pub count: u64,
    /// Percentiles of the last 10 s, minute and 5 min.
    pub windows: Vec<PercentilesView>,
    /// Percentiles of every 5 s, the oldest first, over the last 5 min.
    pub history: Vec<PercentilesView>,
    /// The parts of these times in the last minute, in their order: `queued`, `waited`, `worked` and
    /// `written`.
    pub legs: Vec<LegView>,
}

/// A part of the time of timed pushes, in the last minute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LegView {
    /// The metric of this part without its prefix `pipeline.push_`.
    pub leg: String,
    /// The milliseconds that it normally stays below, on a machine that is not overloaded and a network that
    /// is near. None for `worked`, which is what the program's own work takes.
    pub normal_ms: Option<f64>,
    /// Its percentiles. The count of `written` is that of sockets, those of the others are of pushes.
    #[serde(flatten)]
    pub percentiles: PercentilesView,
}

/// Percentiles of a time; the values are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PercentilesView {
    /// The length of the window in seconds; at first, less is covered.
    pub seconds: u64,
    /// The number of deliveries.
    pub count: u64,
    /// The median, unless there were no deliveries.
    pub p50: Option<f64>,
    /// The 90th percentile.
    pub p90: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The maximum.
    pub max: Option<f64>,
}

#[cfg(test)]
mod tests {
    use pipeline_core::snapshot::SourceSnapshot;
    use serde_json::{Value, json};

    use super::*;

    /// The names of an object's fields, in alphabetical order.
    fn fields(value: &Value) -> String {
        let names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.join(" ")
    }

    #[test]
    fn the_json_form_has_these_fields() {
        let endpoint = EndpointView {
            sockets: vec![MountView::default()],
            channels: vec![ChannelView::default()],
            delivered: DeliveredView { legs: vec![LegView::default()], ..DeliveredView::default() },
            ..EndpointView::default()
        };
        let mut stage = StageView::default();
        stage.snapshot.source = Some(SourceSnapshot::default());
        let pipeline = PipelineView {
            stages: vec![stage],
            edges: vec![EdgeView::default()],
            ..PipelineView::default()
        };
        let node = NodeView { between: Some(BetweenView::default()), ..NodeView::default() };
        let view = View {
            pipelines: vec![pipeline],
            endpoint: Some(endpoint),
            nodes: vec![node],
            ..View::default()
        };
        let view = json!(view);
        assert_eq!(fields(&view), "endpoint nodes pipelines uptime_seconds version window_seconds");
        let (pipeline, endpoint) = (&view["pipelines"][0], &view["endpoint"]);
        assert_eq!(fields(pipeline), "bottleneck edges name phase stages");
        assert_eq!(
            fields(&pipeline["stages"][0]),
            "activity buffer_capacity buffered busy busy_seconds demand discarded discarded_by \
             discarded_per_second events_in events_out failures given_up in_per_second items_held_back kind layer \
             mostly name out_per_second queue_capacity queued refused refused_by restarts source stages waiting waiting_for_demand \
             waiting_for_demand_seconds waiting_for_events waiting_for_events_seconds \
             worker_failures workers"
        );
        assert_eq!(
            fields(&pipeline["stages"][0]["source"]),
            "backlog broker connected connection_errors dead_letters done fetched given_up held \
             last_error oldest_age_seconds redelivered released retried set_aside"
        );
        assert_eq!(fields(&pipeline["edges"][0]), "from pending_demand per_second sent to");
        assert_eq!(
            fields(endpoint),
            "between broadcasts broadcasts_per_second bytes_waiting channels closed_slow \
             connections_refused delivered draining dropped dropped_per_second frames_in \
             frames_in_per_second frames_out frames_out_per_second frames_waiting inbox_bytes \
             outbox_bytes sockets topics"
        );
        assert_eq!(
            fields(&endpoint["sockets"][0]),
            "connected connected_per_second messages_refused open path refused socket"
        );
        assert_eq!(
            fields(&endpoint["channels"][0]),
            "channel joined joined_per_second open path pattern refused topics"
        );
        assert_eq!(fields(&endpoint["delivered"]), "count history legs windows");
        let leg = &endpoint["delivered"]["legs"][0];
        assert_eq!(fields(leg), "count leg max normal_ms p50 p90 p99 seconds");
        let node = &view["nodes"][0];
        assert_eq!(
            fields(node),
            "between bottlenecks channels delivered_p99 dropped_per_second frames_out_per_second is_draining \
             is_gone is_this name silent_seconds sockets uptime_seconds"
        );
        assert_eq!(
            fields(&node["between"]),
            "dropped gaps is_connected lag_micros lag_ms lost received received_bytes \
             received_bytes_per_second received_per_second sent sent_bytes sent_bytes_per_second \
             sent_per_second waiting"
        );
    }
}
