//! Which stage the others wait for. Pure.

use std::collections::{HashMap, HashSet};

use crate::model::{ActivityView, KindView, PhaseView, PipelineView, StageView};

/// From which part of the window on a stage counts as busy all the time.
const OCCUPIED: f64 = 0.8;

/// From which part of the window on a stage that waits for demand is being held up.
const HELD: f64 = 0.2;

/// The stage that holds up a pipeline whose shares are filled in, if there is one; `before` is the
/// pipeline at the beginning of the window. The rules are in the documentation of the crate.
pub(crate) fn held_up_by(pipeline: &PipelineView, before: &PipelineView) -> Option<String> {
    if pipeline.phase == PhaseView::Ended {
        return None;
    }
    let waited = Waited::new(pipeline, before);
    let occupied = || pipeline.stages.iter().filter(|stage| is_occupied(stage));
    let pressed = occupied().filter(|stage| waited.is_pressed(stage)).max_by(|a, b| {
        (a.layer.cmp(&b.layer)).then(a.busy.total_cmp(&b.busy)).then(b.name.cmp(&a.name))
    });
    let behind = || {
        occupied().filter(|stage| waited.falls_behind(stage)).min_by(|a, b| {
            (a.layer.cmp(&b.layer)).then(b.busy.total_cmp(&a.busy)).then(a.name.cmp(&b.name))
        })
    };
    pressed.or_else(behind).map(|stage| stage.name.clone())
}

fn is_occupied(stage: &StageView) -> bool {
    stage.busy >= OCCUPIED && stage.activity != ActivityView::Ended
}

/// What waits for whom.
struct Waited<'a> {
    /// The stages at the beginning of the window, by their names.
    before: HashMap<&'a str, &'a StageView>,
    /// The stages that one before them waits for.
    pressed: HashSet<&'a str>,
}

impl<'a> Waited<'a> {
    fn new(pipeline: &'a PipelineView, before: &'a PipelineView) -> Self {
        let by_name = |pipeline: &'a PipelineView| -> HashMap<&'a str, &'a StageView> {
            pipeline.stages.iter().map(|stage| (&*stage.name, stage)).collect()
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

    /// Whether the stage waits for others to ask.
    fn waits(&self, stage: &StageView) -> bool {
        stage.waiting_for_demand >= HELD || self.always(stage, |stage| stage.buffered)
    }

    /// Whether a stage before this one waits for it to ask.
    fn is_pressed(&self, stage: &StageView) -> bool {
        self.pressed.contains(&*stage.name)
    }

    /// Whether the stage itself is the first that cannot do more.
    fn falls_behind(&self, stage: &StageView) -> bool {
        match stage.kind {
            KindView::Producer => true,
            // One worker of many is enough for it to be busy.
            KindView::ConsumerSupervisor => false,
            _ => self.always(stage, |stage| stage.waiting),
        }
    }

    /// Whether something waits there, at the end of the window as at its beginning.
    fn always(&self, stage: &StageView, count: impl Fn(&StageView) -> usize) -> bool {
        let before = self.before.get(&*stage.name);
        count(stage) > 0 && before.is_some_and(|before| count(before) > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{layers, model::EdgeView};

    /// Shares of working, waiting for events and waiting for demand.
    type Shares = (f64, f64, f64);

    const SLOW: Shares = (0.99, 0.01, 0.0);
    const STARVED: Shares = (0.05, 0.95, 0.0);
    const HELD_UP: Shares = (0.05, 0.0, 0.95);

    fn kind(at: usize, length: usize) -> KindView {
        match at {
            0 => KindView::Producer,
            _ if at + 1 == length => KindView::Consumer,
            _ => KindView::ProducerConsumer,
        }
    }

    fn chain(shares: &[Shares]) -> PipelineView {
        let stage = |(at, (busy, events, demand)): (usize, &Shares)| StageView {
            name: at.to_string(),
            kind: kind(at, shares.len()),
            activity: ActivityView::Busy,
            busy: *busy,
            waiting_for_events: *events,
            waiting_for_demand: *demand,
            ..StageView::default()
        };
        let edge = |at: usize| EdgeView {
            from: at.to_string(),
            to: (at + 1).to_string(),
            ..EdgeView::default()
        };
        let mut pipeline = PipelineView {
            phase: PhaseView::Running,
            stages: shares.iter().enumerate().map(stage).collect(),
            edges: (0..shares.len().saturating_sub(1)).map(edge).collect(),
            ..PipelineView::default()
        };
        layers::assign(&mut pipeline);
        pipeline
    }

    fn named(pipeline: &PipelineView) -> Option<usize> {
        held_up_by(pipeline, pipeline).map(|name| name.parse().unwrap())
    }

    #[test]
    fn one_slow_stage_is_named_wherever_it_is() {
        for length in 1..6 {
            for slow in 0..length {
                let shares: Vec<Shares> = (0..length)
                    .map(|at| match at {
                        _ if at < slow => HELD_UP,
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
    fn nobody_is_named_when_all_wait_for_events() {
        assert_eq!(named(&chain(&[STARVED, STARVED, STARVED])), None);
        assert_eq!(named(&chain(&[])), None);
    }

    #[test]
    fn nobody_is_named_when_all_wait_for_a_demand_that_nobody_has() {
        assert_eq!(named(&chain(&[HELD_UP, HELD_UP])), None);
    }

    #[test]
    fn of_two_slow_stages_that_are_waited_for_the_last_is_named() {
        assert_eq!(named(&chain(&[HELD_UP, (0.9, 0.0, 0.1), (0.7, 0.0, 0.3), SLOW])), Some(3));
        // Nobody waits for the last: it has as much as it can do.
        assert_eq!(named(&chain(&[HELD_UP, SLOW, (0.85, 0.15, 0.0)])), Some(1));
    }

    #[test]
    fn a_supervisor_with_workers_is_named_only_if_it_is_waited_for() {
        let mut pipeline = chain(&[STARVED, SLOW]);
        pipeline.stages[1].kind = KindView::ConsumerSupervisor;
        assert_eq!(named(&pipeline), None, "one worker of many is enough to be busy");
        pipeline.stages[0].waiting_for_events = 0.6;
        pipeline.stages[0].waiting_for_demand = 0.4;
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn a_stage_that_always_has_events_waiting_is_named_though_its_producer_is_not_held_up_yet() {
        let mut pipeline = chain(&[STARVED, SLOW]);
        assert_eq!(named(&pipeline), None, "it keeps up");
        pipeline.stages[1].waiting = 400;
        assert_eq!(named(&pipeline), Some(1));
        let mut empty = pipeline.clone();
        empty.stages[1].waiting = 0;
        assert_eq!(held_up_by(&pipeline, &empty), None, "they have only just come");
    }

    #[test]
    fn what_was_emitted_without_demand_presses_too() {
        let mut pipeline = chain(&[SLOW, SLOW]);
        assert_eq!(named(&pipeline), Some(0));
        pipeline.stages[0].buffered = 10;
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn where_events_are_sent_to_several_the_slow_one_is_named() {
        let mut pipeline = chain(&[HELD_UP, SLOW, STARVED]);
        pipeline.edges[1].from = "0".into();
        layers::assign(&mut pipeline);
        assert_eq!(named(&pipeline), Some(1));
    }

    #[test]
    fn what_has_ended_holds_nothing_up() {
        let mut pipeline = chain(&[HELD_UP, SLOW]);
        pipeline.phase = PhaseView::Ended;
        assert_eq!(named(&pipeline), None);
    }

    /// A chain of stages with so many milliseconds an event, and room for a few events between them,
    /// run for a while. The shares come out of it.
    fn run(times: &[u32], room: usize) -> PipelineView {
        const TICKS: u32 = 20_000;
        let length = times.len();
        // What each has left to do, whether it has a finished event, what waits between.
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
        fn of_a_chain_that_runs_the_slow_stage_is_named(
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
        fn nobody_is_named_as_long_as_all_wait_for_events_most_of_the_time(
            shares in prop::collection::vec(0.0..0.7f64, 0..7),
        ) {
            let shares: Vec<Shares> = shares.iter().map(|busy| (*busy, 1.0 - busy, 0.0)).collect();
            prop_assert_eq!(named(&chain(&shares)), None);
        }
    }
}
