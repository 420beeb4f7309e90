//! The JSON model of `data.json`. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the JSON form. It is incremented when a field is renamed, removed or changes its
/// meaning, and not for new fields.
pub const VERSION: u32 = 1;

/// A snapshot of the running system: the contents of `data.json`, and of the channel's event once a
/// second.
///
/// Totals count from the start, and continue when a stage is restarted. Rates (`.._per_second`) and
/// shares cover the last [`window_seconds`](Self::window_seconds).
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
}

/// A pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PipelineView {
    /// The pipeline's name.
    pub name: String,
    /// The pipeline's phase.
    pub phase: PhaseView,
    /// The bottleneck: the stage that the others wait for, if there is one. See [the
    /// crate](crate#the-bottleneck).
    pub bottleneck: Option<String>,
    /// The stages, in the order in which they were added.
    pub stages: Vec<StageView>,
    /// The subscriptions. Several subscriptions between two stages are one edge.
    pub edges: Vec<EdgeView>,
}

/// The phase of a pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PhaseView {
    /// Not all stages have started.
    #[default]
    Starting,
    /// All stages have started.
    Running,
    /// The pipeline accepts no new items, and processes those that it has.
    Draining,
    /// All stages have ended.
    Ended,
}

/// A stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StageView {
    /// The stage's name.
    pub name: String,
    /// The kind of stage.
    pub kind: KindView,
    /// The current activity.
    pub activity: ActivityView,
    /// The activity with the largest share of the window.
    pub mostly: ActivityView,
    /// The distance from the source: 0, or one more than the farthest stage that it is subscribed to.
    pub layer: usize,
    /// Events received.
    pub events_in: u64,
    /// Events received per second.
    pub in_per_second: f64,
    /// Events sent; an event sent to several consumers counts for each.
    pub events_out: u64,
    /// Events sent per second.
    pub out_per_second: f64,
    /// Items in the stage's queue.
    pub queued: usize,
    /// The capacity of that queue, if there is one.
    pub queue_capacity: Option<usize>,
    /// Received events that wait to be handled.
    pub waiting: usize,
    /// Emitted events that wait for demand.
    pub buffered: usize,
    /// The capacity of that buffer, if it is bounded.
    pub buffer_capacity: Option<usize>,
    /// Demand of its consumers that is not satisfied yet.
    pub demand: usize,
    /// Events discarded.
    pub discarded: u64,
    /// Events discarded, by reason.
    pub discarded_by: BTreeMap<String, u64>,
    /// Events discarded per second, for all reasons.
    pub discarded_per_second: f64,
    /// The number of restarts.
    pub restarts: u64,
    /// Live workers, if it is a supervisor.
    pub workers: Option<usize>,
    /// The number of workers that have failed.
    pub worker_failures: u64,
    /// The share of the window in which the stage was busy, from 0 to 1. A supervisor is busy while it
    /// has workers.
    pub busy: f64,
    /// The share in which the stage waited for events.
    pub waiting_for_events: f64,
    /// The share in which the stage waited for demand.
    pub waiting_for_demand: f64,
    /// Busy time since the start, in seconds.
    pub busy_seconds: f64,
    /// Time spent waiting for events since the start, in seconds.
    pub waiting_for_events_seconds: f64,
    /// Time spent waiting for demand since the start, in seconds.
    pub waiting_for_demand_seconds: f64,
}

/// The kind of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KindView {
    /// Emits events.
    #[default]
    Producer,
    /// Receives and emits events.
    ProducerConsumer,
    /// Receives events.
    Consumer,
    /// Runs a worker for every event.
    ConsumerSupervisor,
}

/// The activity of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActivityView {
    /// Not started yet, or restarting.
    #[default]
    Starting,
    /// Handling events or running workers.
    Busy,
    /// Ready, without events.
    WaitingForEvents,
    /// Ready, without demand.
    WaitingForDemand,
    /// Paused.
    Paused,
    /// Ended for good.
    Ended,
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
    pub pending: usize,
}

/// The endpoint: its sockets, channels and frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EndpointView {
    /// Whether the endpoint refuses new sockets and closes those it has.
    pub draining: bool,
    /// Its sockets by mount.
    pub sockets: Vec<MountView>,
    /// Its channels by pattern.
    pub channels: Vec<ChannelView>,
    /// Topics with subscribers.
    pub topics: usize,
    /// Broadcasts so far.
    pub broadcasts: u64,
    /// Broadcasts per second.
    pub broadcasts_per_second: f64,
    /// Frames received.
    pub frames_in: u64,
    /// Frames received per second.
    pub frames_in_per_second: f64,
    /// Frames written.
    pub frames_out: u64,
    /// Frames written per second.
    pub frames_out_per_second: f64,
    /// Frames waiting to be written.
    pub frames_waiting: usize,
    /// Bytes of the frames waiting to be written.
    pub bytes_waiting: usize,
    /// Frames dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Frames dropped per second, for all reasons.
    pub dropped_per_second: f64,
    /// Sockets closed because their client was too slow.
    pub closed_slow: u64,
    /// Delivery times of timed pushes.
    pub delivered: DeliveredView,
}

/// The sockets of a mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MountView {
    /// The path of the mount.
    pub path: String,
    /// The name of the socket type.
    pub socket: String,
    /// Sockets open now.
    pub open: usize,
    /// Clients accepted so far.
    pub connected: u64,
    /// Clients accepted per second.
    pub connected_per_second: f64,
    /// Clients refused so far.
    pub refused: u64,
}

/// The channels of a pattern. Topics are not listed: there may be one for every user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChannelView {
    /// The path of the mount.
    pub path: String,
    /// The pattern: `user:*`.
    pub pattern: String,
    /// The name of the channel type.
    pub channel: String,
    /// Channels joined now.
    pub open: usize,
    /// Distinct topics of the joined channels.
    pub topics: usize,
    /// Successful joins so far.
    pub joined: u64,
    /// Successful joins per second.
    pub joined_per_second: f64,
    /// Refused joins so far.
    pub refused: u64,
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
