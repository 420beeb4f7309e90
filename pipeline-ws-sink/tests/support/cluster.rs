//! Nodes in one process, and a network between them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use std::{collections::HashMap, sync::Arc};

use futures::FutureExt;
use parking_lot::Mutex;
use pipeline_ws_sink::{
    Endpoint,
    pubsub::{Adapter, AdapterError, Broadcast, LocalNode, TopicSubscription},
};

/// Nodes in one process.
#[derive(Clone, Default)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, LocalNode>,
    /// Whether the network is down.
    down: bool,
    /// Messages that are late, if some are held back: how many are still in time, and the others.
    late: Option<(usize, Vec<(String, Broadcast)>)>,
    sent: Vec<String>,
    /// A subscription that is checked on every send.
    witness: Option<TopicSubscription>,
}

/// The adapter of one node.
pub struct Node {
    name: String,
    cluster: Cluster,
}

impl Cluster {
    pub fn node(&self, name: &str) -> Node {
        Node { name: name.to_owned(), cluster: self.clone() }
    }

    pub fn join(&self, name: &str) -> Endpoint {
        Endpoint::builder().adapter(self.node(name)).build().unwrap()
    }

    /// Checks on every send that this subscription has not received the broadcast yet.
    pub fn witness(&self, witness: TopicSubscription) {
        self.state.lock().witness = Some(witness);
    }

    /// Sets whether the network is down.
    pub fn down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// Holds back what is sent to one node, after this number of messages.
    pub fn hold_after(&self, messages: usize) {
        self.state.lock().late = Some((messages, Vec::new()));
    }

    /// Delivers what was held back.
    pub fn release(&self) {
        let mut state = self.state.lock();
        for (to, message) in state.late.take().unwrap().1 {
            state.nodes[&to].deliver(&message).unwrap();
        }
    }

    /// Takes a node out of the network, as when its machine fails.
    pub fn remove(&self, name: &str) {
        self.state.lock().nodes.remove(name);
    }

    /// The sent messages: source, target, and event.
    pub fn sent(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().sent)
    }

    fn send(
        &self,
        line: String,
        broadcast: &Broadcast,
        to: impl Fn(&str) -> bool,
    ) -> Result<(), AdapterError> {
        let mut state = self.state.lock();
        if let Some(witness) = &mut state.witness {
            assert_eq!(events(witness), nothing(), "received before the other nodes");
        }
        if state.down {
            return Err(AdapterError::new("the network is down"));
        }
        state.sent.push(line);
        for (_, node) in state.nodes.iter().filter(|(name, _)| to(name)) {
            node.deliver(broadcast)?;
        }
        Ok(())
    }
}

impl Adapter for Node {
    fn node_name(&self) -> &str {
        &self.name
    }

    fn start(&self, node: LocalNode) {
        self.cluster.state.lock().nodes.insert(self.name.clone(), node);
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        let line = format!("{} to all: {}", self.name, broadcast.event());
        self.cluster.send(line, broadcast, |name| name != self.name)
    }

    fn direct_broadcast(&self, to: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
        let line = format!("{} to {to}: {}", self.name, broadcast.event());
        if let Some((in_time, late)) = &mut self.cluster.state.lock().late {
            if *in_time == 0 {
                late.push((to.to_owned(), broadcast.clone()));
                return Ok(());
            }
            *in_time -= 1;
        }
        self.cluster.send(line, broadcast, |name| name == to)
    }
}

/// The events that have arrived.
pub fn events(subscription: &mut TopicSubscription) -> Vec<String> {
    let next = || subscription.recv().now_or_never();
    std::iter::from_fn(next).map(|received| received.unwrap().event().to_owned()).collect()
}

pub fn nothing() -> [String; 0] {
    []
}
