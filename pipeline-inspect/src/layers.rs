//! The layer of each stage: its distance from the source. Pure.

use std::collections::HashMap;

use crate::model::PipelineView;

/// Sets the layer of every stage: the length of the longest path to it. Stages in a cycle, which
/// subscriptions allow, get one as well.
pub(crate) fn assign(pipeline: &mut PipelineView) {
    let stages = &mut pipeline.stages;
    for stage in stages.iter_mut() {
        stage.layer = 0;
    }
    let names = stages.iter().enumerate().map(|(place, stage)| (stage.name(), place));
    let places: HashMap<&str, usize> = names.collect();
    let mut next = vec![Vec::new(); stages.len()];
    let mut missing = vec![0_usize; stages.len()];
    for edge in &pipeline.edges {
        let place = |name: &str| places.get(name).copied();
        if let (Some(from), Some(to)) = (place(&edge.from), place(&edge.to))
            && from != to
        {
            next[from].push(to);
            missing[to] += 1;
        }
    }

    // A stage gets its layer when all its producers have theirs.
    let mut ready: Vec<usize> = (0..stages.len()).filter(|place| missing[*place] == 0).collect();
    let mut done = vec![false; stages.len()];
    let mut in_circles = 0..stages.len();
    while let Some(place) = ready.pop().or_else(|| in_circles.find(|place| !done[*place])) {
        if std::mem::replace(&mut done[place], true) {
            continue;
        }
        for &to in next[place].iter().filter(|to| !done[**to]) {
            stages[to].layer = stages[to].layer.max(stages[place].layer + 1);
            missing[to] -= 1;
            if missing[to] == 0 {
                ready.push(to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EdgeView, StageView};

    fn layers(stages: &[&str], edges: &[(&str, &str)]) -> Vec<usize> {
        let stage = |name: &&str| {
            let mut stage = StageView::default();
            stage.snapshot.stage = (*name).into();
            stage
        };
        let edge = |(from, to): &(&str, &str)| EdgeView {
            from: (*from).into(),
            to: (*to).into(),
            ..EdgeView::default()
        };
        let mut pipeline = PipelineView {
            stages: stages.iter().map(stage).collect(),
            edges: edges.iter().map(edge).collect(),
            ..PipelineView::default()
        };
        assign(&mut pipeline);
        pipeline.stages.iter().map(|stage| stage.layer).collect()
    }

    #[test]
    fn a_chain_has_one_stage_per_layer_in_any_order() {
        assert_eq!(layers(&["a", "b", "c"], &[("a", "b"), ("b", "c")]), [0, 1, 2]);
        assert_eq!(layers(&["c", "b", "a"], &[("b", "c"), ("a", "b")]), [2, 1, 0]);
    }

    #[test]
    fn the_longest_path_sets_the_layer() {
        let edges = [("a", "b"), ("b", "d"), ("a", "d"), ("a", "c"), ("c", "d")];
        assert_eq!(layers(&["a", "b", "c", "d"], &edges), [0, 1, 1, 2]);
    }

    #[test]
    fn many_stages_with_many_paths_are_visited_once() {
        const STAGES: usize = 20_000;
        let names: Vec<_> = (0..STAGES).rev().map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        // Each stage feeds the one before it in the list, which is the worst order.
        let edges: Vec<_> = names.windows(2).map(|two| (two[1], two[0])).collect();
        let layers = layers(&names, &edges);
        assert!(layers.iter().enumerate().all(|(n, layer)| *layer == STAGES - 1 - n));
    }

    #[test]
    fn cycles_and_unknown_stages_are_tolerated() {
        let edges = [("a", "b"), ("b", "a"), ("b", "elsewhere"), ("b", "b")];
        assert!(layers(&["a", "b"], &edges).iter().all(|layer| *layer < 2));
        assert!(layers(&[], &[]).is_empty());
    }
}
