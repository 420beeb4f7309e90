//! The nodes of a cluster, as the inspector of any of them shows them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_inspect::{Inspector, NodeView};
use pipeline_ws_sink::{
    Endpoint,
    pubsub::{Adapter, AdapterError, AdapterSnapshot, Broadcast, LocalNode},
};
use tokio::time::sleep;

/// Connects endpoints in one process.
type Switch = Arc<Mutex<BTreeMap<&'static str, LocalNode>>>;

struct Cable {
    name: &'static str,
    switch: Switch,
    is_cut: Arc<AtomicBool>,
}

impl Adapter for Cable {
    fn node_name(&self) -> &str {
        self.name
    }

    fn start(&self, node: LocalNode) {
        self.switch.lock().insert(self.name, node);
    }

    fn snapshot(&self) -> Option<AdapterSnapshot> {
        let mut snapshot = AdapterSnapshot::default();
        snapshot.is_connected = !self.is_cut.load(Relaxed);
        snapshot.gaps = 3;
        Some(snapshot)
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        assert!(broadcast.is_for_every_node(), "nodes without subscribers may be left out");
        if self.is_cut.load(Relaxed) {
            return Err(AdapterError::new("cut off"));
        }
        let nodes = self.switch.lock().clone();
        for (_, node) in nodes.iter().filter(|(name, _)| **name != self.name) {
            node.deliver(broadcast)?;
        }
        Ok(())
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

struct Node {
    inspector: Inspector,
    is_cut: Arc<AtomicBool>,
    _endpoint: Endpoint,
}

fn node(name: &'static str, switch: &Switch) -> Node {
    let is_cut = Arc::<AtomicBool>::default();
    let cable = Cable { name, switch: switch.clone(), is_cut: is_cut.clone() };
    let endpoint = Endpoint::builder().adapter(cable).build().unwrap();
    let inspector = Inspector::builder().endpoint(endpoint.observer()).build().unwrap();
    Node { inspector, is_cut, _endpoint: endpoint }
}

impl Node {
    fn nodes(&self) -> Vec<NodeView> {
        self.inspector.view().nodes.clone()
    }

    /// The names of the nodes, and whether they are gone.
    fn names(&self) -> Vec<(String, bool)> {
        self.nodes().into_iter().map(|node| (node.name, node.is_gone)).collect()
    }
}

fn named(names: [(&str, bool); 3]) -> Vec<(String, bool)> {
    names.into_iter().map(|(name, is_gone)| (name.to_owned(), is_gone)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_inspector_shows_all_nodes_and_which_are_gone() {
    let switch = Switch::default();
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| node(name, &switch));
    sleep(Duration::from_secs(4)).await;
    let all = named([("ann", false), ("bob", false), ("eve", false)]);
    for node in [&ann, &bob, &eve] {
        assert_eq!(node.names(), all);
    }
    let nodes = ann.nodes();
    assert_eq!(nodes.iter().map(|node| node.is_this).collect::<Vec<_>>(), [true, false, false]);
    let between = nodes[1].between.clone().unwrap();
    assert_eq!((between.snapshot.is_connected, between.snapshot.gaps), (true, 3));
    assert!(nodes.iter().all(|node| node.silent_seconds < 3.0));

    // One that is cut off shows the others as gone, and they show it.
    eve.is_cut.store(true, Relaxed);
    switch.lock().remove("eve");
    sleep(Duration::from_secs(14)).await;
    assert_eq!(ann.names(), named([("ann", false), ("bob", false), ("eve", true)]));
    assert_eq!(eve.names(), named([("ann", true), ("bob", true), ("eve", false)]));
    assert!(!eve.nodes()[2].between.clone().unwrap().snapshot.is_connected);
    // One that ends is gone too.
    drop(bob);
    sleep(Duration::from_secs(14)).await;
    assert_eq!(ann.names(), named([("ann", false), ("bob", true), ("eve", true)]));
    sleep(Duration::from_secs(15 * 60)).await;
    assert_eq!(ann.names().len(), 1, "it is forgotten");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_alone_has_no_nodes() {
    let endpoint = Endpoint::builder().build().unwrap();
    let inspector = Inspector::builder().endpoint(endpoint.observer()).build().unwrap();
    sleep(Duration::from_secs(4)).await;
    assert!(inspector.view().nodes.is_empty());
}
