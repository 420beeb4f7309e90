//! What the nodes of a cluster tell each other about themselves. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::model::{NodeView, View};

/// The topic of the nodes' reports. It has the prefix of the trackers' topics: every node receives it, and no
/// client can join it.
pub(crate) const TOPIC: &str = "phx_presence:nodes of the inspector";

/// The event of a report.
pub(crate) const EVENT: &str = "node";

/// How often a node reports, in samples.
pub(crate) const EVERY: u64 = 2;

/// A node that has not reported for this long is gone.
const GONE: Duration = Duration::from_secs(10);

/// A node that is gone is shown for this long.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// How many other nodes are remembered. Those that have been silent for longest are forgotten for new ones.
const NODES: usize = 1000;

/// The longest report, in bytes.
const LONGEST: usize = 16 << 10;

/// How many bottlenecks a report names, and the longest name, in characters.
const BOTTLENECKS: (usize, usize) = (16, 100);

/// The other nodes, and when each has reported.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    others: BTreeMap<String, (Duration, NodeView)>,
}

impl Nodes {
    /// Another node has reported. What is no report is ignored.
    pub(crate) fn hear(&mut self, json: &str, own_name: &str, now: Duration) {
        if json.len() > LONGEST {
            return;
        }
        let Ok(report) = serde_json::from_str::<NodeView>(json) else { return };
        if report.name.is_empty() || report.name == own_name {
            return;
        }
        if !self.others.contains_key(&report.name) && self.others.len() >= NODES {
            let silent = self.others.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(name) = silent.map(|(name, _)| name.clone()) {
                self.others.remove(&name);
            }
        }
        self.others.insert(report.name.clone(), (now, report));
    }

    /// All nodes by name: this one, and the others as they were when they last reported.
    pub(crate) fn list(&mut self, own: NodeView, now: Duration) -> Vec<NodeView> {
        self.others.retain(|_, (at, _)| now.saturating_sub(*at) < FORGOTTEN);
        let others = self.others.values().map(|(at, report)| {
            let silent = now.saturating_sub(*at);
            let silent_seconds = silent.as_secs_f64();
            NodeView { is_this: false, is_gone: silent >= GONE, silent_seconds, ..report.clone() }
        });
        let mut all: Vec<_> = others.chain([own]).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// What a node says about itself.
pub(crate) fn report(name: &str, view: &View) -> NodeView {
    let bottlenecks = view.pipelines.iter().filter_map(|pipeline| {
        let named = format!("{}: {}", pipeline.name, pipeline.bottleneck.as_ref()?);
        Some(named.chars().take(BOTTLENECKS.1).collect())
    });
    let mut node = NodeView {
        name: name.to_owned(),
        is_this: true,
        uptime_seconds: view.uptime_seconds,
        bottlenecks: bottlenecks.take(BOTTLENECKS.0).collect(),
        ..NodeView::default()
    };
    let Some(endpoint) = &view.endpoint else { return node };
    node.is_draining = endpoint.snapshot.draining;
    node.sockets = endpoint.sockets.iter().map(|mount| mount.snapshot.open).sum();
    node.channels = endpoint.channels.iter().map(|route| route.snapshot.open).sum();
    node.frames_out_per_second = endpoint.frames_out_per_second;
    node.dropped_per_second = endpoint.dropped_per_second;
    let minute = endpoint.delivered.windows.iter().find(|window| window.seconds == 60);
    node.delivered_p99 = minute.and_then(|window| window.p99);
    node.between = endpoint.between.clone();
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "left";

    fn json(name: &str, sockets: usize) -> String {
        let node = NodeView { name: name.into(), sockets, ..NodeView::default() };
        serde_json::to_string(&node).unwrap()
    }

    fn own() -> NodeView {
        report(OWN, &View::default())
    }

    fn seen(nodes: &mut Nodes, now: u64) -> Vec<(String, usize, bool)> {
        let list = nodes.list(own(), Duration::from_secs(now));
        list.into_iter().map(|node| (node.name, node.sockets, node.is_gone)).collect()
    }

    #[test]
    fn a_node_that_falls_silent_is_gone_and_later_forgotten() {
        let mut nodes = Nodes::default();
        let at = Duration::from_secs;
        nodes.hear(&json("right", 7), OWN, at(0));
        nodes.hear(&json("right", 8), OWN, at(5));
        let (left, right) = ((OWN.to_owned(), 0, false), |gone| ("right".to_owned(), 8, gone));
        assert_eq!(seen(&mut nodes, 14), [left.clone(), right(false)]);
        assert_eq!(seen(&mut nodes, 15), [left.clone(), right(true)]);
        assert_eq!(seen(&mut nodes, 904), [left.clone(), right(true)]);
        assert_eq!(seen(&mut nodes, 905), [left]);
    }

    #[test]
    fn what_is_no_report_and_the_own_name_are_ignored() {
        let mut nodes = Nodes::default();
        let long = json(&"x".repeat(LONGEST), 1);
        for bad in ["{}", "[", r#"{"name":7}"#, &json(OWN, 1), &long] {
            nodes.hear(bad, OWN, Duration::ZERO);
        }
        assert_eq!(nodes.list(own(), Duration::ZERO).len(), 1);
    }

    #[test]
    fn nodes_are_bounded_and_the_most_silent_is_forgotten() {
        let mut nodes = Nodes::default();
        for n in 0..NODES as u64 {
            nodes.hear(&json(&format!("node {n}"), 0), OWN, Duration::from_millis(n));
        }
        nodes.hear(&json("node 0", 0), OWN, Duration::from_secs(2));
        nodes.hear(&json("one more", 0), OWN, Duration::from_secs(2));
        assert_eq!(nodes.others.len(), NODES);
        assert!(nodes.others.contains_key("node 0") && !nodes.others.contains_key("node 1"));
    }
}
