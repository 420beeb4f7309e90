//! Computes rates per second and shares from two views. Pure.

use std::{collections::HashMap, time::Duration};

use pipeline_core::snapshot::{Activity, StageSnapshot};

use crate::model::{EndpointView, PipelineView, StageView, View};

/// The share of the window from which a source that waits for events has asked for more than it gets.
const IDLE: f64 = 0.8;

/// Fills in the rates and shares of a view from an older one, taken `passed` before.
pub(crate) fn fill(view: &mut View, before: &View, passed: Duration) {
    let seconds = passed.as_secs_f64();
    if seconds <= 0.0 {
        return;
    }
    view.window_seconds = seconds;
    for (at, pipeline) in view.pipelines.iter_mut().enumerate() {
        if let Some(before) = before.pipelines.get(at) {
            of_pipeline(pipeline, before, seconds);
        }
    }
    if let (Some(endpoint), Some(before)) = (&mut view.endpoint, &before.endpoint) {
        of_endpoint(endpoint, before, seconds);
    }
}

fn of_pipeline(pipeline: &mut PipelineView, before: &PipelineView, seconds: f64) {
    let stages = before.stages.iter().map(|stage| (stage.name(), stage));
    let stages: HashMap<&str, &StageView> = stages.collect();
    for stage in &mut pipeline.stages {
        if let Some(before) = stages.get(stage.name()) {
            of_stage(stage, before, seconds);
        }
    }
    let edges = before.edges.iter().map(|edge| ((&*edge.from, &*edge.to), edge.sent));
    let edges: HashMap<(&str, &str), u64> = edges.collect();
    for edge in &mut pipeline.edges {
        let sent = edges.get(&(&*edge.from, &*edge.to)).copied().unwrap_or_default();
        // A new subscription counts from zero.
        edge.per_second = if edge.sent < sent {
            per_second(edge.sent, 0, seconds)
        } else {
            per_second(edge.sent, sent, seconds)
        };
    }
}

fn of_stage(stage: &mut StageView, before: &StageView, seconds: f64) {
    let (now, before) = (&stage.snapshot, &before.snapshot);
    stage.in_per_second = per_second(now.events_in, before.events_in, seconds);
    stage.out_per_second = per_second(now.events_out, before.events_out, seconds);
    stage.discarded_per_second = per_second(now.discarded, before.discarded, seconds);
    let stages = u32::try_from(stage.stages.max(1)).unwrap_or(u32::MAX);
    let share = |now: Duration, before: Duration| {
        ((now.saturating_sub(before) / stages).as_secs_f64() / seconds).clamp(0.0, 1.0)
    };
    stage.busy = share(now.busy, before.busy);
    stage.waiting_for_events = share(now.waiting_for_events, before.waiting_for_events);
    stage.waiting_for_demand = share(now.waiting_for_demand, before.waiting_for_demand);
    stage.mostly = mostly(stage);
    if stage.waiting_for_events >= IDLE {
        stage.items_held_back = not_fetched(&stage.snapshot).min(not_fetched(before));
    }
}

/// Items at the broker of a connected source that it has not fetched.
fn not_fetched(stage: &StageSnapshot) -> u64 {
    let source = stage.source.as_ref().filter(|source| source.connected);
    source.map_or(0, |source| source.backlog.unwrap_or(0).saturating_sub(source.held))
}

/// The activity with the largest share; the current one where no activity has a share.
fn mostly(stage: &StageView) -> Activity {
    use Activity::{Busy, WaitingForDemand, WaitingForEvents};
    let now = stage.snapshot.activity;
    if !matches!(now, Busy | WaitingForDemand | WaitingForEvents) {
        return now;
    }
    let shares = [
        (stage.busy, Busy),
        (stage.waiting_for_demand, WaitingForDemand),
        (stage.waiting_for_events, WaitingForEvents),
    ];
    let longest = shares.into_iter().max_by(|(a, _), (b, _)| a.total_cmp(b));
    longest.filter(|(share, _)| *share > 0.0).map_or(now, |(_, activity)| activity)
}

fn of_endpoint(endpoint: &mut EndpointView, before: &EndpointView, seconds: f64) {
    let per_second = |now, before| per_second(now, before, seconds);
    let (now, was) = (&endpoint.snapshot, &before.snapshot);
    endpoint.broadcasts_per_second = per_second(now.broadcasts, was.broadcasts);
    endpoint.frames_in_per_second = per_second(now.frames_in, was.frames_in);
    endpoint.frames_out_per_second = per_second(now.frames_out, was.frames_out);
    endpoint.dropped_per_second =
        per_second(now.dropped.values().sum(), was.dropped.values().sum());
    if let (Some(between), Some(before)) = (&mut endpoint.between, &before.between) {
        let (now, was) = (&between.snapshot, &before.snapshot);
        between.sent_per_second = per_second(now.sent, was.sent);
        between.received_per_second = per_second(now.received, was.received);
        between.sent_bytes_per_second = per_second(now.sent_bytes, was.sent_bytes);
        between.received_bytes_per_second = per_second(now.received_bytes, was.received_bytes);
        let received = now.received.saturating_sub(was.received);
        let lag = for_each_of(now.lag_micros, was.lag_micros, received);
        between.lag_ms = (received > 0).then_some(lag / 1e3);
    }
    for (mount, before) in endpoint.sockets.iter_mut().zip(&before.sockets) {
        mount.connected_per_second =
            per_second(mount.snapshot.connected, before.snapshot.connected);
    }
    for (channel, before) in endpoint.channels.iter_mut().zip(&before.channels) {
        channel.joined_per_second = per_second(channel.snapshot.joined, before.snapshot.joined);
    }
}

/// The increase for each of so many.
#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far smaller")]
fn for_each_of(now: u64, before: u64, count: u64) -> f64 {
    per_second(now, before, count as f64)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far smaller")]
fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    now.saturating_sub(before) as f64 / seconds
}

#[cfg(test)]
mod tests {
    use pipeline_core::snapshot::SourceSnapshot;

    use super::*;
    use crate::model::{BetweenView, EdgeView};

    fn stage(events: u64, busy: f64, events_wait: f64, demand_wait: f64) -> StageView {
        let mut stage = StageView::default();
        let snapshot = &mut stage.snapshot;
        (snapshot.stage, snapshot.activity) = ("work".into(), Activity::WaitingForEvents);
        (snapshot.events_in, snapshot.events_out) = (events, 2 * events);
        snapshot.discarded = events / 10;
        snapshot.busy = Duration::from_secs_f64(busy);
        snapshot.waiting_for_events = Duration::from_secs_f64(events_wait);
        snapshot.waiting_for_demand = Duration::from_secs_f64(demand_wait);
        stage
    }

    fn view(stage: StageView, sent: u64) -> View {
        let edge = EdgeView { from: "work".into(), to: "on".into(), sent, ..EdgeView::default() };
        let pipeline =
            PipelineView { stages: vec![stage], edges: vec![edge], ..PipelineView::default() };
        View { pipelines: vec![pipeline], ..View::default() }
    }

    #[test]
    fn rates_are_differences_divided_by_the_time() {
        let before = view(stage(100, 1.0, 10.0, 5.0), 7);
        let mut now = view(stage(300, 1.5, 11.0, 5.5), 47);
        fill(&mut now, &before, Duration::from_secs(2));
        let (seen, edge) = (&now.pipelines[0].stages[0], &now.pipelines[0].edges[0]);
        assert_eq!((seen.in_per_second, seen.out_per_second), (100.0, 200.0));
        assert_eq!((seen.discarded_per_second, edge.per_second), (10.0, 20.0));
        let shares = (seen.busy, seen.waiting_for_events, seen.waiting_for_demand);
        assert_eq!(shares, (0.25, 0.5, 0.25));
        assert_eq!(seen.mostly, Activity::WaitingForEvents);
        assert_eq!(now.window_seconds, 2.0);
    }

    #[test]
    fn a_source_that_waits_above_a_backlog_has_items_that_are_held_back() {
        let seen = |backlog: [u64; 2], held, connected, idle| {
            let mut views = [(0.0, backlog[0]), (idle, backlog[1])].map(|(waited, backlog)| {
                let mut stage = stage(0, 0.0, waited, 0.0);
                let source = stage.snapshot.source.insert(SourceSnapshot::default());
                (source.connected, source.backlog, source.held) = (connected, Some(backlog), held);
                view(stage, 0)
            });
            let [before, now] = &mut views;
            fill(now, before, Duration::from_secs(1));
            now.pipelines[0].stages[0].items_held_back
        };
        assert_eq!(seen([30, 50], 2, true, 0.9), 28);
        assert_eq!(seen([50, 30], 2, true, 0.9), 28);
        assert_eq!(seen([30, 50], 2, true, 0.5), 0, "it fetches");
        assert_eq!(seen([30, 2], 2, true, 1.0), 0, "all is fetched");
        assert_eq!(seen([30, 50], 2, false, 1.0), 0, "it is not connected");
    }

    #[test]
    fn a_new_subscription_counts_from_zero() {
        let before = view(stage(0, 0.0, 0.0, 0.0), 1000);
        let mut now = view(stage(0, 0.0, 0.0, 0.0), 10);
        fill(&mut now, &before, Duration::from_secs(1));
        assert_eq!(now.pipelines[0].edges[0].per_second, 10.0);
    }

    #[test]
    fn what_a_node_sends_and_receives_has_rates_and_a_mean_lag() {
        let endpoint = |times: u64| {
            let mut between = BetweenView::default();
            let snapshot = &mut between.snapshot;
            (snapshot.sent, snapshot.sent_bytes) = (10 * times, 1_000 * times);
            (snapshot.received, snapshot.received_bytes) = (4 * times, 600 * times);
            snapshot.lag_micros = 6_000 * times;
            EndpointView { between: Some(between), ..EndpointView::default() }
        };
        let view = |times| View { endpoint: Some(endpoint(times)), ..View::default() };
        let rates = |mut now: View, before: &View| {
            fill(&mut now, before, Duration::from_secs(2));
            now.endpoint.unwrap().between.unwrap()
        };
        let between = rates(view(5), &view(1));
        assert_eq!((between.sent_per_second, between.received_per_second), (20.0, 8.0));
        assert_eq!(between.sent_bytes_per_second, 2_000.0);
        assert_eq!(between.received_bytes_per_second, 1_200.0);
        assert_eq!(between.lag_ms, Some(1.5), "24 ms for 16 broadcasts");
        // Without broadcasts there is no lag, and a node that has just come has no rates.
        assert_eq!(rates(view(5), &view(5)).lag_ms, None);
        assert_eq!(rates(view(5), &View::default()), endpoint(5).between.unwrap());
    }

    #[test]
    fn without_elapsed_time_there_are_no_rates() {
        let before = view(stage(0, 0.0, 0.0, 0.0), 0);
        let mut now = view(stage(10, 0.0, 0.0, 0.0), 10);
        fill(&mut now, &before, Duration::ZERO);
        assert_eq!((now.window_seconds, now.pipelines[0].stages[0].in_per_second), (0.0, 0.0));
    }

    #[test]
    fn a_new_endpoint_has_no_rates() {
        let mut endpoint = EndpointView::default();
        endpoint.snapshot.frames_out = 10;
        let mut now = View { endpoint: Some(endpoint.clone()), ..View::default() };
        fill(&mut now, &View::default(), Duration::from_secs(1));
        assert_eq!(now.endpoint.unwrap().frames_out_per_second, 0.0);
        let before = View { endpoint: Some(EndpointView::default()), ..View::default() };
        let mut now = View { endpoint: Some(endpoint), ..View::default() };
        fill(&mut now, &before, Duration::from_secs(1));
        assert_eq!(now.endpoint.unwrap().frames_out_per_second, 10.0);
    }
}
