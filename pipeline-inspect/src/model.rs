//! What is shown, as it stands in `data.json`. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the JSON form. It goes up when something is renamed, removed or comes to mean
/// something else; new fields do not count.
pub const VERSION: u32 = 1;

/// All that is seen of a running system at one moment: what `data.json` has, and what the channel
/// sends once a second.
///
/// Totals count from the start, and go on when a stage is restarted. Rates (`.._per_second`) and
/// shares are those of the last [`window_seconds`](Self::window_seconds).
///
/// ```
/// use pipeline_inspect::View;
///
/// # let json = r#"{"version":1,"pipelines":[{"name":"push","held_up_by":"work"}]}"#;
/// let view: View = serde_json::from_str(json)?;
/// for pipeline in &view.pipelines {
///     match &pipeline.held_up_by {
///         Some(stage) => println!("{} is held up by {stage}", pipeline.name),
///         None => println!("{} keeps up", pipeline.name),
///     }
/// }
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct View {
    /// [`VERSION`] of who has written it.
    pub version: u32,
    /// Seconds since the inspector was built.
    #[serde(default)]
    pub uptime_seconds: f64,
    /// Of how many seconds rates and shares are: about 3, less at first. At 0 they are not known
    /// yet, and are 0 too.
    #[serde(default)]
    pub window_seconds: f64,
    /// The pipelines, in the order in which they were given.
    #[serde(default)]
    pub pipelines: Vec<PipelineView>,
    /// The endpoint, if one was given and it is still there.
    #[serde(default)]
    pub endpoint: Option<EndpointView>,
}

/// A pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PipelineView {
    /// Its name.
    pub name: String,
    /// How far it is on its way.
    pub phase: PhaseView,
    /// The stage that the others wait for, if there is one: see [the crate](crate#what-holds-it-up).
    pub held_up_by: Option<String>,
    /// Its stages, in the order in which they were added.
    pub stages: Vec<StageView>,
    /// Who is subscribed to whom. Two stages with several subscriptions have one edge.
    pub edges: Vec<EdgeView>,
}

/// How far a pipeline is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PhaseView {
    /// Not every stage has begun.
    #[default]
    Starting,
    /// All stages have begun.
    Running,
    /// It takes nothing new, and hands on what it has.
    Draining,
    /// Its stages have ended.
    Ended,
}

/// A stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StageView {
    /// Its name.
    pub name: String,
    /// What kind of stage it is.
    pub kind: KindView,
    /// What it does at this moment.
    pub activity: ActivityView,
    /// What it did for the longest time of the window.
    pub mostly: ActivityView,
    /// How far it is from the source: 0, or one more than the farthest stage it is subscribed to.
    pub layer: usize,
    /// Events that have arrived.
    pub events_in: u64,
    /// The same, a second.
    pub in_per_second: f64,
    /// Events that were sent; to several consumers, each counts.
    pub events_out: u64,
    /// The same, a second.
    pub out_per_second: f64,
    /// Items in the queue in front of it.
    pub queued: usize,
    /// How many have room there, if there is such a queue.
    pub queue_capacity: Option<usize>,
    /// Events that have arrived and wait to be handled.
    pub waiting: usize,
    /// Events that were emitted and wait for demand.
    pub buffered: usize,
    /// How many may, if there is a bound.
    pub buffer_capacity: Option<usize>,
    /// Events that its consumers have asked for and not been sent.
    pub demand: usize,
    /// Events that were thrown away.
    pub discarded: u64,
    /// The same by reason.
    pub discarded_by: BTreeMap<String, u64>,
    /// The same, a second, of all reasons.
    pub discarded_per_second: f64,
    /// How often it was started again.
    pub restarts: u64,
    /// Workers alive, if it is a supervisor.
    pub workers: Option<usize>,
    /// Workers that have failed.
    pub worker_failures: u64,
    /// The part of the window in which it worked, from 0 to 1. A supervisor works while it has
    /// workers.
    pub busy: f64,
    /// The part in which it waited for events.
    pub waiting_for_events: f64,
    /// The part in which it waited for demand.
    pub waiting_for_demand: f64,
    /// How long it has worked since its start, in seconds.
    pub busy_seconds: f64,
    /// How long it has waited for events, in seconds.
    pub waiting_for_events_seconds: f64,
    /// How long it has waited for demand, in seconds.
    pub waiting_for_demand_seconds: f64,
}

/// What kind of stage it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KindView {
    /// It emits.
    #[default]
    Producer,
    /// It receives and emits.
    ProducerConsumer,
    /// It receives.
    Consumer,
    /// It has a worker for every event.
    ConsumerSupervisor,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActivityView {
    /// It is not there yet, or is being started again.
    #[default]
    Starting,
    /// It works.
    Busy,
    /// It would go on if there were events.
    WaitingForEvents,
    /// It would go on if there were demand.
    WaitingForDemand,
    /// It was told to wait.
    Paused,
    /// It has ended for good.
    Ended,
}

/// What goes from one stage to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EdgeView {
    /// The stage that sends.
    pub from: String,
    /// The stage that receives. It need not be of this pipeline.
    pub to: String,
    /// Events sent, by the subscriptions that there are now.
    pub sent: u64,
    /// The same, a second.
    pub per_second: f64,
    /// Events asked for and not sent.
    pub pending: usize,
}

/// The endpoint: its sockets, channels and frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EndpointView {
    /// Whether it lets no one in any more, and closes its sockets.
    pub draining: bool,
    /// Its sockets by mount.
    pub sockets: Vec<MountView>,
    /// Its channels by pattern.
    pub channels: Vec<ChannelView>,
    /// Distinct topics that somebody listens to.
    pub topics: usize,
    /// Broadcasts so far.
    pub broadcasts: u64,
    /// The same, a second.
    pub broadcasts_per_second: f64,
    /// Frames received.
    pub frames_in: u64,
    /// The same, a second.
    pub frames_in_per_second: f64,
    /// Frames written.
    pub frames_out: u64,
    /// The same, a second.
    pub frames_out_per_second: f64,
    /// Frames that wait to be written.
    pub frames_waiting: usize,
    /// The same, in bytes.
    pub bytes_waiting: usize,
    /// Frames thrown away, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The same, a second, of all reasons.
    pub dropped_per_second: f64,
    /// Sockets that were closed because their client was too slow.
    pub closed_slow: u64,
    /// How long timed pushes took to be written.
    pub delivered: DeliveredView,
}

/// The sockets of a mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MountView {
    /// Where it is mounted.
    pub path: String,
    /// What the kind of socket is called.
    pub socket: String,
    /// Sockets open now.
    pub open: usize,
    /// Clients that were let in so far.
    pub connected: u64,
    /// The same, a second.
    pub connected_per_second: f64,
    /// Clients that were refused so far.
    pub refused: u64,
}

/// The channels of a pattern. Topics are not named: there may be one for every user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChannelView {
    /// The mount that it belongs to.
    pub path: String,
    /// The pattern: `user:*`.
    pub pattern: String,
    /// What the kind of channel is called.
    pub channel: String,
    /// Channels joined now.
    pub open: usize,
    /// Distinct topics of these.
    pub topics: usize,
    /// Joins that succeeded so far.
    pub joined: u64,
    /// The same, a second.
    pub joined_per_second: f64,
    /// Joins that were refused so far.
    pub refused: u64,
}

/// How long timed pushes took, from being enqueued until the operating system had the last byte.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DeliveredView {
    /// Deliveries since the start: one for every socket.
    pub count: u64,
    /// Those of the last 10 s, minute and 5 min.
    pub windows: Vec<PercentilesView>,
    /// Those of every 5 s, the oldest first, over the last 5 min.
    pub history: Vec<PercentilesView>,
}

/// Percentiles of a time; the values are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PercentilesView {
    /// Of how many seconds; less has been seen at first.
    pub seconds: u64,
    /// How many deliveries.
    pub count: u64,
    /// The median, unless there was none.
    pub p50: Option<f64>,
    /// 90 % took no longer.
    pub p90: Option<f64>,
    /// 99 % took no longer.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
}
