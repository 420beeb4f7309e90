//! Which stage stands how far from the source. Pure.

use crate::model::PipelineView;

/// Gives every stage its layer: the length of the longest way to it. Stages in a circle, which
/// subscriptions allow, get one as well.
pub(crate) fn assign(pipeline: &mut PipelineView) {
    let stages = &mut pipeline.stages;
    for stage in stages.iter_mut() {
        stage.layer = 0;
    }
    let place = |name: &str| stages.iter().position(|stage| stage.name == name);
    let ways: Vec<(usize, usize)> = pipeline
        .edges
        .iter()
        .filter_map(|edge| Some((place(&edge.from)?, place(&edge.to)?)))
        .filter(|(from, to)| from != to)
        .collect();
    // No way without a circle is longer than there are stages.
    for _ in 1..stages.len() {
        let mut moved = false;
        for (from, to) in &ways {
            let layer = (stages[*from].layer + 1).min(stages.len() - 1);
            moved |= layer > stages[*to].layer;
            stages[*to].layer = stages[*to].layer.max(layer);
        }
        if !moved {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EdgeView, StageView};

    fn layers(stages: &[&str], edges: &[(&str, &str)]) -> Vec<usize> {
        let stage = |name: &&str| StageView { name: (*name).into(), ..StageView::default() };
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
    fn a_chain_is_one_stage_a_layer_in_whatever_order_it_was_added() {
        assert_eq!(layers(&["a", "b", "c"], &[("a", "b"), ("b", "c")]), [0, 1, 2]);
        assert_eq!(layers(&["c", "b", "a"], &[("b", "c"), ("a", "b")]), [2, 1, 0]);
    }

    #[test]
    fn where_ways_meet_the_longest_counts() {
        let edges = [("a", "b"), ("b", "d"), ("a", "d"), ("a", "c"), ("c", "d")];
        assert_eq!(layers(&["a", "b", "c", "d"], &edges), [0, 1, 1, 2]);
    }

    #[test]
    fn a_circle_and_a_stranger_do_no_harm() {
        let edges = [("a", "b"), ("b", "a"), ("b", "elsewhere"), ("b", "b")];
        assert!(layers(&["a", "b"], &edges).iter().all(|layer| *layer < 2));
        assert!(layers(&[], &[]).is_empty());
    }
}
