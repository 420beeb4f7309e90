//! Converts snapshots to views with totals only. Pure.

use std::{collections::BTreeMap, time::Duration};

use pipeline_core::snapshot::{
    Activity, PipelinePhase, PipelineSnapshot, StageKind, StageSnapshot,
};
use pipeline_ws_sink::endpoint::{EndpointSnapshot, MountSnapshot, RouteSnapshot};

use crate::{
    layers,
    model::{
        ActivityView, ChannelView, EdgeView, EndpointView, KindView, MountView, PhaseView,
        PipelineView, StageView,
    },
};

pub(crate) fn pipeline(snapshot: &PipelineSnapshot) -> PipelineView {
    let mut view = PipelineView {
        name: snapshot.pipeline.to_string(),
        phase: phase(snapshot.phase),
        bottleneck: None,
        stages: snapshot.stages.iter().map(stage).collect(),
        edges: snapshot.stages.iter().flat_map(edges).collect(),
    };
    layers::assign(&mut view);
    view
}

fn stage(seen: &StageSnapshot) -> StageView {
    let activity = activity(seen.activity);
    StageView {
        name: seen.stage.to_string(),
        kind: kind(seen.kind),
        activity,
        mostly: activity,
        events_in: seen.events_in,
        events_out: seen.events_out,
        queued: seen.queued,
        queue_capacity: seen.queue_capacity,
        waiting: seen.waiting,
        buffered: seen.buffered,
        buffer_capacity: seen.buffer_capacity,
        demand: seen.subscriptions.iter().map(|subscription| subscription.pending).sum(),
        discarded: seen.discarded,
        discarded_by: by_reason(&seen.discarded_by),
        restarts: seen.restarts,
        workers: seen.workers,
        worker_failures: seen.worker_failures,
        busy_seconds: seconds(seen.busy),
        waiting_for_events_seconds: seconds(seen.waiting_for_events),
        waiting_for_demand_seconds: seconds(seen.waiting_for_demand),
        ..StageView::default()
    }
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
        edge.pending += subscription.pending;
    }
    edges.into_values().collect()
}

pub(crate) fn endpoint(seen: &EndpointSnapshot) -> EndpointView {
    EndpointView {
        draining: seen.draining,
        sockets: seen.sockets.iter().map(mount).collect(),
        channels: seen.channels.iter().map(channel).collect(),
        topics: seen.topics,
        broadcasts: seen.broadcasts,
        frames_in: seen.frames_in,
        frames_out: seen.frames_out,
        frames_waiting: seen.frames_waiting,
        bytes_waiting: seen.bytes_waiting,
        dropped: by_reason(&seen.dropped),
        closed_slow: seen.closed_slow,
        ..EndpointView::default()
    }
}

fn mount(seen: &MountSnapshot) -> MountView {
    MountView {
        path: seen.path.clone(),
        socket: seen.socket.to_owned(),
        open: seen.open,
        connected: seen.connected,
        connected_per_second: 0.0,
        refused: seen.refused,
    }
}

fn channel(seen: &RouteSnapshot) -> ChannelView {
    ChannelView {
        path: seen.path.clone(),
        pattern: seen.pattern.clone(),
        channel: seen.channel.to_owned(),
        open: seen.open,
        topics: seen.topics,
        joined: seen.joined,
        joined_per_second: 0.0,
        refused: seen.refused,
    }
}

fn by_reason(counts: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    let some = counts.iter().filter(|(_, count)| *count > 0);
    some.map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn phase(phase: PipelinePhase) -> PhaseView {
    match phase {
        PipelinePhase::Starting => PhaseView::Starting,
        PipelinePhase::Draining => PhaseView::Draining,
        PipelinePhase::Ended => PhaseView::Ended,
        _ => PhaseView::Running,
    }
}

fn kind(kind: StageKind) -> KindView {
    match kind {
        StageKind::Producer => KindView::Producer,
        StageKind::ProducerConsumer => KindView::ProducerConsumer,
        StageKind::ConsumerSupervisor => KindView::ConsumerSupervisor,
        _ => KindView::Consumer,
    }
}

fn activity(activity: Activity) -> ActivityView {
    match activity {
        Activity::Starting => ActivityView::Starting,
        Activity::WaitingForEvents => ActivityView::WaitingForEvents,
        Activity::WaitingForDemand => ActivityView::WaitingForDemand,
        Activity::Paused => ActivityView::Paused,
        Activity::Ended => ActivityView::Ended,
        _ => ActivityView::Busy,
    }
}
