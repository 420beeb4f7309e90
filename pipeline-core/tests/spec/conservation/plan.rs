//! Random pipelines and the operations on them.

use std::time::Duration;

use pipeline_core::{
    ExitReason,
    backoff::{Backoff, Jitter},
    stage::{BufferKeep, DemandMode, RateLimit, WhenUnsubscribed},
    subscription::{Cancel, SubscribeOptions},
};
use proptest::prelude::*;

use super::stages::{Fault, Shape, Style};

/// A pipeline with its stages, subscriptions and end. Stages are numbered: sources first, then
/// relays, sinks and supervisors.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) sources: Vec<(Frame, Style, usize)>,
    pub(super) relays: Vec<(Frame, Shape)>,
    pub(super) sinks: Vec<Frame>,
    pub(super) supervisors: Vec<(Frame, Crew)>,
    pub(super) edges: Vec<Edge>,
    /// The operations while it runs.
    pub(super) deeds: Vec<Deed>,
    /// The operations while it drains.
    pub(super) late: Vec<Deed>,
}

/// The options of every stage.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// The duration of its callbacks.
    pub(super) pace: Duration,
    pub(super) restarts: bool,
    pub(super) lanes: bool,
    pub(super) buffer: Option<usize>,
    pub(super) keep: BufferKeep,
    pub(super) when_unsubscribed: WhenUnsubscribed,
    pub(super) mode: DemandMode,
    pub(super) limit: Option<RateLimit>,
}

/// The options of a supervisor.
#[derive(Clone, Debug)]
pub(super) struct Crew {
    pub(super) failures: u32,
    pub(super) restarts: usize,
    pub(super) max_children: usize,
    pub(super) shutdown: Duration,
}

/// A subscription. The numbers are taken modulo the number of possible stages.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) max: usize,
    pub(super) min: usize,
    pub(super) cancel: Cancel,
}

impl Edge {
    pub(super) fn options(&self) -> SubscribeOptions {
        SubscribeOptions::new()
            .max_demand(self.max)
            .min_demand(self.min % self.max)
            .cancel(self.cancel)
    }
}

/// An operation on a running pipeline.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Wait(u64),
    /// Yields to the other tasks this often.
    Yield(usize),
    // These operations never lose events.
    Pause(usize, bool),
    PauseSubscription(usize, bool),
    Mode(usize, DemandMode),
    Limit(usize, Option<RateLimit>),
    Mark(usize),
    Ask(usize, usize),
    // These operations may lose events.
    Burst(usize, usize),
    Cancel(usize, ExitReason),
    Subscribe(Edge),
    Resubscribe(usize, Edge),
    Fault(usize, Fault),
    Finish(usize),
    Stop(usize, ExitReason),
    Kill(usize),
}

fn limit() -> impl Strategy<Value = RateLimit> {
    (1usize..6, 1u64..20).prop_map(|(events, ms)| RateLimit::new(events, Duration::from_millis(ms)))
}

fn mode() -> impl Strategy<Value = DemandMode> {
    prop_oneof![4 => Just(DemandMode::Forward), 1 => Just(DemandMode::Accumulate)]
}

fn pace() -> impl Strategy<Value = Duration> {
    prop_oneof![3 => Just(0), 1 => 1u64..8].prop_map(Duration::from_millis)
}

fn reason() -> impl Strategy<Value = ExitReason> {
    prop_oneof![
        Just(ExitReason::Normal),
        Just(ExitReason::Shutdown),
        Just(ExitReason::ShutdownWith("enough".into())),
        Just(ExitReason::failed("a reason")),
    ]
}

fn reconnect() -> Cancel {
    let delays = Backoff::new(Duration::from_millis(2), Duration::from_millis(16));
    Cancel::Reconnect(delays.jitter(Jitter::None))
}

fn cancel() -> impl Strategy<Value = Cancel> {
    prop_oneof![
        3 => Just(Cancel::Temporary),
        2 => Just(Cancel::Transient),
        1 => Just(Cancel::Permanent),
        2 => Just(reconnect()),
    ]
}

fn edge(cancel: impl Strategy<Value = Cancel>) -> impl Strategy<Value = Edge> {
    (any::<usize>(), any::<usize>(), 1usize..12, any::<usize>(), cancel)
        .prop_map(|(from, to, max, min, cancel)| Edge { from, to, max, min, cancel })
}

/// The options of a stage that loses no events.
fn calm_frame() -> impl Strategy<Value = Frame> {
    (pace(), mode(), prop::option::weighted(0.2, limit())).prop_map(|(pace, mode, limit)| Frame {
        pace,
        restarts: false,
        lanes: false,
        buffer: None,
        keep: BufferKeep::Last,
        when_unsubscribed: WhenUnsubscribed::Buffer,
        mode,
        limit,
    })
}

fn wild_frame() -> impl Strategy<Value = Frame> {
    let keep = prop_oneof![Just(BufferKeep::First), Just(BufferKeep::Last)];
    let when_unsubscribed =
        prop_oneof![3 => Just(WhenUnsubscribed::Buffer), 1 => Just(WhenUnsubscribed::Discard)];
    let lanes = prop::bool::weighted(0.2);
    let buffer = prop::option::of(0usize..8);
    (calm_frame(), any::<bool>(), lanes, buffer, keep, when_unsubscribed).prop_map(
        |(frame, restarts, lanes, buffer, keep, when_unsubscribed)| Frame {
            restarts,
            lanes,
            buffer,
            keep,
            when_unsubscribed,
            ..frame
        },
    )
}

fn crew() -> impl Strategy<Value = Crew> {
    let shutdown = prop_oneof![Just(0u64), 1u64..20].prop_map(Duration::from_millis);
    (0u32..3, 0usize..20, prop_oneof![Just(usize::MAX), 1usize..4], shutdown).prop_map(
        |(failures, restarts, max_children, shutdown)| Crew {
            failures,
            restarts,
            max_children,
            shutdown,
        },
    )
}

fn style(extra: std::ops::Range<usize>) -> impl Strategy<Value = Style> {
    prop_oneof![
        extra.prop_map(|extra| Style::Prompt { extra }),
        (1usize..5).prop_map(|step| Style::Slow { step }),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::Same),
        Just(Shape::Half),
        (2usize..4).prop_map(Shape::Times),
        Just(Shape::Nothing),
    ]
}

fn calm_deed() -> impl Strategy<Value = Deed> {
    let stage = any::<usize>;
    prop_oneof![
        3 => (0u64..30).prop_map(Deed::Wait),
        5 => (1usize..12).prop_map(Deed::Yield),
        1 => (stage(), prop::bool::weighted(0.3))
            .prop_map(|(stage, paused)| Deed::Pause(stage, paused)),
        1 => (stage(), prop::bool::weighted(0.3))
            .prop_map(|(subscription, paused)| Deed::PauseSubscription(subscription, paused)),
        1 => (stage(), mode()).prop_map(|(stage, mode)| Deed::Mode(stage, mode)),
        1 => (stage(), prop::option::of(limit())).prop_map(|(stage, limit)| Deed::Limit(stage, limit)),
        2 => stage().prop_map(Deed::Mark),
        1 => (stage(), 1usize..9).prop_map(|(subscription, demand)| Deed::Ask(subscription, demand)),
    ]
}

fn wild_deed() -> impl Strategy<Value = Deed> {
    let stage = any::<usize>;
    let fault = prop_oneof![
        3 => Just(Fault::Fail),
        3 => Just(Fault::Panic),
        3 => Just(Fault::Leave),
        1 => Just(Fault::Stick),
    ];
    prop_oneof![
        12 => calm_deed(),
        3 => (stage(), 1usize..20).prop_map(|(stage, count)| Deed::Burst(stage, count)),
        2 => (stage(), reason()).prop_map(|(subscription, reason)| Deed::Cancel(subscription, reason)),
        1 => edge(cancel()).prop_map(Deed::Subscribe),
        1 => (stage(), edge(cancel())).prop_map(|(old, edge)| Deed::Resubscribe(old, edge)),
        2 => (stage(), fault).prop_map(|(stage, fault)| Deed::Fault(stage, fault)),
        1 => stage().prop_map(Deed::Finish),
        1 => (stage(), reason()).prop_map(|(stage, reason)| Deed::Stop(stage, reason)),
        2 => stage().prop_map(Deed::Kill),
    ]
}

/// A plan without failures, in which all events have a receiver.
pub(super) fn calm() -> impl Strategy<Value = Plan> {
    let crew =
        crew().prop_map(|crew| Crew { restarts: usize::MAX, shutdown: Duration::MAX, ..crew });
    let mode = prop_oneof![Just(Cancel::Temporary), Just(Cancel::Transient), Just(reconnect())];
    (
        prop::collection::vec((calm_frame(), style(0..1), 0usize..50), 1..3),
        prop::collection::vec((calm_frame(), shape()), 0..3),
        prop::collection::vec(calm_frame(), 0..3),
        prop::collection::vec((calm_frame(), crew), 0..2),
        prop::collection::vec(edge(mode.clone()), 0..6),
        prop::collection::vec(calm_deed(), 0..12),
        prop::collection::vec(calm_deed(), 0..4),
        (edge(mode), calm_frame()),
    )
        .prop_map(
            |(sources, relays, mut sinks, supervisors, mut edges, deeds, late, (edge, last))| {
                sinks.push(last);
                // From all emitting stages to the last sink, and from the first source to each
                // relay.
                for from in 0..sources.len() + relays.len() {
                    edges.push(Edge { from, to: relays.len() + sinks.len() - 1, ..edge.clone() });
                }
                for to in 0..relays.len() {
                    edges.push(Edge { from: 0, to, ..edge.clone() });
                }
                Plan { sources, relays, sinks, supervisors, edges, deeds, late }
            },
        )
}

/// A plan with any operations.
pub(super) fn wild() -> impl Strategy<Value = Plan> {
    (
        prop::collection::vec((wild_frame(), style(0..4), 0usize..99), 1..4),
        prop::collection::vec((wild_frame(), shape()), 0..3),
        prop::collection::vec(wild_frame(), 1..3),
        prop::collection::vec((wild_frame(), crew()), 0..3),
        prop::collection::vec(edge(cancel()), 1..12),
        prop::collection::vec(wild_deed(), 0..20),
        prop::collection::vec(wild_deed(), 0..4),
    )
        .prop_map(|(sources, relays, sinks, supervisors, edges, deeds, late)| Plan {
            sources,
            relays,
            sinks,
            supervisors,
            edges,
            deeds,
            late,
        })
}
