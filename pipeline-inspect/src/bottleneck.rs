//! Finds the bottleneck of a pipeline: the stage that the others wait for. Pure.

use std::collections::{HashMap, HashSet};

use pipeline_core::snapshot::{Activity, PipelinePhase, StageKind, StageSnapshot};

use crate::model::{PipelineView, StageView};

/// The share of the window from which a stage counts as always busy.
const OCCUPIED: f64 = 0.8;

/// The share of the window from which a stage that waits for demand counts as held back.
const HELD_BACK: f64 = 0.2;

/// The bottleneck of a pipeline whose shares are filled in, if there is one; `before` is the pipeline at
/// the beginning of the window. The documentation of the crate states the rules.
pub(crate) fn bottleneck(pipeline: &PipelineView, before: &PipelineView) -> Option<String> {
    if pipeline.phase == PipelinePhase::Ended {
        return None;
    }
    let waited = Waited::new(pipeline, before);
    let occupied = || pipeline.stages.iter().filter(|stage| is_occupied(stage));
    let pressed = occupied().filter(|stage| waited.is_pressed(stage)).max_by(|a, b| {
        (a.layer.cmp(&b.layer)).then(a.busy.total_cmp(&b.busy)).then(b.name().cmp(a.name()))
    });
    let behind = || {
        occupied().filter(|stage| waited.falls_behind(stage)).min_by(|a, b| {
            (a.layer.cmp(&b.layer)).then(b.busy.total_cmp(&a.busy)).then(a.name().cmp(b.name()))
        })
    };
    pressed.or_else(behind).map(|stage| stage.name().to_owned())
}

fn is_occupied(stage: &StageView) -> bool {
    stage.busy >= OCCUPIED && stage.snapshot.activity != Activity::Ended
}

/// Which stages are waited for.
struct Waited<'a> {
    /// The stages at the beginning of the window, by name.
    before: HashMap<&'a str, &'a StageView>,
    /// The stages that one of their producers waits for.
    pressed: HashSet<&'a str>,
}

impl<'a> Waited<'a> {
    fn new(pipeline: &'a PipelineView, before: &'a PipelineView) -> Self {
        let by_name = |pipeline: &'a PipelineView| -> HashMap<&'a str, &'a StageView> {
            pipeline.stages.iter().map(|stage| (stage.name(), stage)).collect()
        };
        let mut waited = Self { before: by_name(before), pressed: HashSet::new() };
        let stages = by_name(pipeline);
        for edge in &pipeline.edges {
            if stages.get(&*edge.from).is_some_and(|producer| waited.waits(producer)) {
                waited.pressed.insert(&edge.to);
            }
        }
        waited
    }

    /// Whether the stage waits for demand.
    fn waits(&self, stage: &StageView) -> bool {
        stage.waiting_for_demand >= HELD_BACK || self.always(stage, |stage| stage.buffered)
    }

    /// Whether a producer of this stage waits for its demand.
    fn is_pressed(&self, stage: &StageView) -> bool {
        self.pressed.contains(stage.name())
    }

    /// Whether the stage is the first that cannot do more.
    fn falls_behind(&self, stage: &StageView) -> bool {
        match stage.snapshot.kind {
            StageKind::Producer => true,
            // A single worker of many makes a supervisor busy.
            StageKind::ConsumerSupervisor => false,
            _ => self.always(stage, |stage| stage.waiting),
        }
    }

    /// Whether a count is above zero both at the beginning and at the end of the window.
    fn always(&self, stage: &StageView, count: impl Fn(&StageSnapshot) -> usize) -> bool {
        let before = self.before.get(stage.name());
        count(&stage.snapshot) > 0 && before.is_some_and(|before| count(&before.snapshot) > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{layers, model::EdgeView};

    /// Shares of busy, waiting for events and waiting for demand.
    type Shares = (f64, f64, f64);

    const SLOW: Shares = (0.99, 0.01, 0.0);
    const STARVED: Shares = (0.05, 0.95, 0.0);
    const BLOCKED: Shares = (0.05, 0.0, 0.95);

    fn kind(at: usize, length: usize) -> StageKind {
        match at {
            0 => StageKind::Producer,
            _ if at + 1 == length => StageKind::Consumer,
            _ => StageKind::ProducerConsumer,
        }
    }

    fn chain(shares: &[Shares]) -> PipelineView {
        let stage = |(at, (busy, events, demand)): (usize, &Shares)| {
            let mut stage = StageView {
                busy: *busy,
                waiting_for_events: *events,
                waiting_for_demand: *demand,
                ..StageView::default()
            };
            stage.snapshot.stage = at.to_string().into();
            (stage.snapshot.kind, stage.snapshot.activity) =
                (kind(at, shares.len()), Activity::Busy);
            stage
        };
        let edge = |at: usize| EdgeView {
            from: at.to_string(),
            to: (at + 1).to_string(),
            ..EdgeView::default()
        };
        let mut pipeline = PipelineView {
            phase: PipelinePhase::Running,
            stages: shares.iter().enumerate().map(stage).collect(),
            edges: (0..shares.len().saturating_sub(1)).map(edge).collect(),
            ..PipelineView::default()
        };
        layers::assign(&mut pipeline);
        pipeline
    }

    fn named(pipeline: &PipelineView) -> Option<usize> {
        bottleneck(pipeline, pipeline).map(|name| name.parse().unwrap())
    }

    #[test]
    fn one_slow_stage_is_named_wherever_it_is() {
        for length in 1..6 {
            for slow in 0..length {
                let shares: Vec<Shares> = (0..length)
                    .map(|at| match at {
                        _ if at < slow => BLOCKED,
                        _ if at == slow => SLOW,
                        _ => STARVED,
                    })
                    .collect();
                let expected = (length > 1 || slow == 0).then_some(slow);
                assert_eq!(named(&chain(&shares)), expected, "{slow} of {length}");
            }
        }
    }

    #[test]
    fn no_stage_is_named_when_all_wait_for_events() {
        assert_eq!(named(&chain(&[STARVED, STARVED, STARVED])), None);
        assert_eq!(named(&chain(&[])), None);
    }

    #[test]
    fn no_stage_is_named_when_all_wait_for_demand() {
        assert_eq!(named(&chain(&[BLOCKED, BLOCKED])), None);
    }

    #[test]
    fn of_two_slow_stages_that_are_waited_for_the_last_is_named() {
        assert_eq!(named(&chain(&[BLOCKED, (0.9, 0.0, 0.1), (0.7, 0.0, 0.3), SLOW])), Some(3));
        // The last stage is busy all the time, but no stage waits for it.
        assert_eq!(named(&chain(&[BLOCKED, SLOW, (0.85, 0.15, 0.0)])), Some(1));
    }

    #[test]
    fn a_supervisor_with_workers_is_named_only_if_it_is_waited_for() {
        let mut pipeline = chain(&[STARVED, SLOW]);
        pipeline.stages[1].snapshot.kind = StageKind::ConsumerSupervisor;
        assert_eq!(named(&pipeline), None, "a single worker of many makes it busy");
        pipeline.stages[0].waiting_for_events = 0.6;
        pipeline.stages[0].waiting_for_demand = 0.4;
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn a_stage_with_events_always_waiting_is_named_before_its_producer_is_held_back() {
        let mut pipeline = chain(&[STARVED, SLOW]);
        assert_eq!(named(&pipeline), None, "the stage keeps up");
        pipeline.stages[1].snapshot.waiting = 400;
        assert_eq!(named(&pipeline), Some(1));
        let mut empty = pipeline.clone();
        empty.stages[1].snapshot.waiting = 0;
        assert_eq!(bottleneck(&pipeline, &empty), None, "the events have only just arrived");
    }

    #[test]
    fn buffered_events_count_as_waiting_too() {
        let mut pipeline = chain(&[SLOW, SLOW]);
        assert_eq!(named(&pipeline), Some(0));
        pipeline.stages[0].snapshot.buffered = 10;
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn of_several_consumers_the_slow_one_is_named() {
        let mut pipeline = chain(&[BLOCKED, SLOW, STARVED]);
        pipeline.edges[1].from = "0".into();
        layers::assign(&mut pipeline);
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn an_ended_stage_is_never_named() {
        let mut pipeline = chain(&[BLOCKED, SLOW]);
        pipeline.phase = PipelinePhase::Ended;
        assert_eq!(named(&pipeline), None);
    }

    /// Simulates a chain of stages, each with its milliseconds per event, and room for `room` events
    /// between two of them. Returns the pipeline with its shares.
    fn run(times: &[u32], room: usize) -> PipelineView {
        const TICKS: u32 = 20_000;
        let length = times.len();
        // Per stage: the rest of the current event's time, whether a finished event is held, and the
        // events in between.
        let (mut left, mut done) = (vec![0u32; length], vec![false; length]);
        let mut between = vec![0usize; length];
        let mut spent = vec![(0u32, 0u32, 0u32); length];
        for _ in 0..TICKS {
            for at in (0..length).rev() {
                if done[at] && (at + 1 == length || between[at + 1] < room) {
                    done[at] = false;
                    if at + 1 < length {
                        between[at + 1] += 1;
                    }
                }
                if done[at] {
                    spent[at].2 += 1;
                    continue;
                }
                if left[at] == 0 {
                    if at > 0 && between[at] == 0 {
                        spent[at].1 += 1;
                        continue;
                    }
                    between[at] = between[at].saturating_sub(1);
                    left[at] = times[at];
                }
                spent[at].0 += 1;
                left[at] -= 1;
                done[at] = left[at] == 0;
            }
        }
        let share = |ticks: u32| f64::from(ticks) / f64::from(TICKS);
        let shares: Vec<Shares> =
            spent.iter().map(|(b, e, d)| (share(*b), share(*e), share(*d))).collect();
        chain(&shares)
    }

    proptest! {
        #[test]
        fn in_a_simulated_chain_the_slow_stage_is_named(
            mut times in prop::collection::vec(1u32..20, 2..7),
            slow in any::<prop::sample::Index>(),
            room in 1usize..50,
        ) {
            let slow = slow.index(times.len());
            times[slow] = 40;
            let pipeline = run(&times, room);
            prop_assert_eq!(named(&pipeline), Some(slow), "{:?}", pipeline.stages);
        }

        #[test]
        fn no_stage_is_named_while_all_wait_for_events_most_of_the_time(
            shares in prop::collection::vec(0.0..0.7f64, 0..7),
        ) {
            let shares: Vec<Shares> = shares.iter().map(|busy| (*busy, 1.0 - busy, 0.0)).collect();
            prop_assert_eq!(named(&chain(&shares)), None);
        }
    }
}
