//! The replication task: it exchanges a replica's messages with the others.

use std::{
    future::pending,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};

use super::{Input, Message, OutboundMessage, To};
use crate::{
    pubsub::{AdapterError, PubSub, broadcast::Broadcast},
    telemetry::{described, log_line, shown},
};

/// The prefix of the replicas' topics. No client can join them.
pub(crate) const TRACKERS: &str = "phx_presence:";

/// The event of the replicas' messages.
const EVENT: &str = "tracker";

/// An owner of a tracker, which handles its diffs.
pub(crate) trait Replica: Send + Sync + 'static {
    /// When [`Input::Tick`] is due, since the replica has started; see `Tracker::next_tick`.
    fn next_tick(&self) -> Option<Duration>;

    /// Steps the tracker, and handles its diffs in order. Returns the messages to send.
    fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<OutboundMessage>;

    /// The messages to the others at shutdown.
    fn shutdown_message(&self) -> Vec<OutboundMessage>;
}

/// Ticks a replica, passes it the received messages, and sends its own. Ends only when the replica
/// is gone; otherwise drop it.
///
/// Replicas detect lost messages by themselves, including those lost here to a full subscription.
pub(crate) async fn replicate<R: Replica>(
    replica: Weak<R>,
    pubsub: PubSub,
    name: &str,
    started: Instant,
) {
    let topic = topic(name);
    let mut subscription = pubsub.subscribe(&topic);
    let mut fault = Fault::default();
    loop {
        let Some(next) = replica.upgrade().map(|replica| replica.next_tick()) else { return };
        let tick = async {
            match next.and_then(|next| started.checked_add(next)) {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let input = tokio::select! {
            biased;
            () = tick => Some(Input::Tick),
            received = subscription.recv() => match received {
                Ok(broadcast) => read(&broadcast),
                Err(lagged) => {
                    log_line!(DEBUG, topic, ?lagged, "replication messages dropped, will resync");
                    None
                }
            },
        };
        // Yields to other tasks when messages of other nodes come without a pause.
        consume_budget().await;
        let (Some(input), Some(replica)) = (input, replica.upgrade()) else { continue };
        let outgoing = replica.step(input, started.elapsed());
        drop(replica);
        for one in outgoing {
            fault.note(&topic, send(&pubsub, &topic, &one));
        }
    }
}

/// Sends a replica's messages to the others, such as those at shutdown.
pub(crate) fn send_all(pubsub: &PubSub, name: &str, outgoing: &[OutboundMessage]) {
    let (topic, mut fault) = (topic(name), Fault::default());
    for one in outgoing {
        fault.note(&topic, send(pubsub, &topic, one));
    }
}

/// Whether the others can be reached. Logged when that changes, and not each time.
#[derive(Default)]
struct Fault {
    is_logged: bool,
}

impl Fault {
    fn note(&mut self, topic: &str, outcome: Result<(), AdapterError>) {
        match outcome {
            Ok(()) => self.is_logged = false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_logged, true) {
                    log_line!(
                        WARN,
                        topic,
                        error = described(&error),
                        "failed to broadcast to the trackers of other nodes"
                    );
                }
            }
        }
    }
}

fn topic(name: &str) -> String {
    format!("{TRACKERS}{name}")
}

fn send(pubsub: &PubSub, topic: &str, outgoing: &OutboundMessage) -> Result<(), AdapterError> {
    let broadcast = Broadcast::new(topic, EVENT, outgoing.message.to_payload()?)?;
    match &outgoing.to {
        To::All => pubsub.send_to_others(&broadcast),
        To::Node(node) => pubsub.send_to_node(node, &broadcast),
    }
}

fn read(broadcast: &Broadcast) -> Option<Input> {
    match Message::from_payload(broadcast.payload()) {
        Ok(message) => Some(Input::Message(message)),
        Err(error) => {
            let (topic, error) = (shown(broadcast.topic()), described(&error));
            log_line!(DEBUG, topic, error, "ignored an invalid replication message");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;
    use serde_json::json;
    use tokio::{task::JoinHandle, time::sleep};

    use super::*;
    use crate::{
        endpoint::Endpoint,
        presence::tracker::{Tracker, TrackerOptions},
        pubsub::{Adapter, LocalNode},
    };

    /// Connects nodes in one process.
    type Switch = Arc<Mutex<BTreeMap<&'static str, LocalNode>>>;

    struct Cable {
        name: &'static str,
        switch: Switch,
    }

    impl Adapter for Cable {
        fn node_name(&self) -> &str {
            self.name
        }

        fn start(&self, node: LocalNode) {
            self.switch.lock().insert(self.name, node);
        }

        fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
            let nodes = self.switch.lock().clone();
            for (_, node) in nodes.iter().filter(|(name, _)| **name != self.name) {
                node.deliver(broadcast)?;
            }
            Ok(())
        }

        fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
            let node = self.switch.lock().get(node).cloned();
            Ok(node
                .ok_or_else(|| AdapterError::new("no node has this name"))?
                .deliver(broadcast)?)
        }
    }

    struct Present(Mutex<Tracker>);

    impl Replica for Present {
        fn next_tick(&self) -> Option<Duration> {
            self.0.lock().next_tick()
        }

        fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<OutboundMessage> {
            self.0.lock().step(input, now).send
        }

        fn shutdown_message(&self) -> Vec<OutboundMessage> {
            self.0.lock().shutdown_message()
        }
    }

    struct Node {
        present: Arc<Present>,
        endpoint: Endpoint,
        driver: JoinHandle<()>,
    }

    fn node(name: &'static str, switch: &Switch, options: TrackerOptions) -> Node {
        let cable = Cable { name, switch: switch.clone() };
        let endpoint = Endpoint::builder().adapter(cable).build().unwrap();
        let node = endpoint.pubsub().node_name().unwrap();
        let tracker = Tracker::replicated(node, 1, 500, options, Duration::ZERO);
        let present = Arc::new(Present(Mutex::new(tracker)));
        let (replica, pubsub) = (Arc::downgrade(&present), endpoint.pubsub().clone());
        let driver = async move { replicate(replica, pubsub, "test", Instant::now()).await };
        Node { present, endpoint, driver: tokio::spawn(driver) }
    }

    impl Node {
        fn keys(&self) -> Vec<String> {
            self.present.0.lock().list("room:1").map(|(key, _)| key.to_string()).collect()
        }

        fn track(&self, key: &str) {
            let mut tracker = self.present.0.lock();
            tracker.track(1, &"room:1".into(), &key.into(), Arc::default()).unwrap();
        }
    }

    const PERIOD: Duration = Duration::from_millis(1_500);

    #[tokio::test(start_paused = true)]
    async fn an_entry_of_one_node_is_listed_on_the_other_until_the_node_is_down() {
        let switch = Switch::default();
        let ann = node("ann", &switch, TrackerOptions::new());
        let bob = node("bob", &switch, TrackerOptions::new());
        sleep(PERIOD).await;
        ann.track("ada");
        sleep(PERIOD * 2).await;
        assert_eq!(bob.keys(), ["ada"]);
        bob.track("bea");
        sleep(PERIOD * 2).await;
        assert_eq!(ann.keys(), ["ada", "bea"]);
        ann.driver.abort();
        sleep(Duration::from_secs(14)).await;
        assert_eq!(bob.keys(), ["bea", "ada"], "the node may come back");
        sleep(Duration::from_secs(20)).await;
        assert_eq!(bob.keys(), ["bea"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_starts_later_receives_earlier_entries() {
        let switch = Switch::default();
        let ann = node("ann", &switch, TrackerOptions::new());
        ann.track("ada");
        sleep(PERIOD * 3).await;
        let bob = node("bob", &switch, TrackerOptions::new());
        sleep(PERIOD * 4).await;
        assert_eq!(bob.keys(), ["ada"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_announces_its_shutdown_is_removed_at_once() {
        let switch = Switch::default();
        let options = TrackerOptions::new().permdown_on_shutdown(true);
        let (ann, bob) = (node("ann", &switch, options.clone()), node("bob", &switch, options));
        ann.track("ada");
        sleep(PERIOD * 2).await;
        assert_eq!(bob.keys(), ["ada"]);
        ann.driver.abort();
        send_all(ann.endpoint.pubsub(), "test", &ann.present.shutdown_message());
        sleep(Duration::from_millis(1)).await;
        assert!(bob.keys().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_messages_are_ignored_and_the_task_ends_with_its_replica() {
        let switch = Switch::default();
        let ann = node("ann", &switch, TrackerOptions::new());
        let bob = node("bob", &switch, TrackerOptions::new());
        sleep(PERIOD).await;
        let of = json!({ "node": "ann", "version": 1 });
        let nonsense = json!({ "of": of, "after": 5, "upto": 2, "removed": [], "values": {} });
        let newer = json!({ "v": 2, "message": { "graceful_permdown": { "from": of } } });
        let odd = json!({ "heartbeat": { "from": of, "delta": nonsense, "clocks": [] } });
        for said in [json!({}), newer, json!({ "v": 1, "message": odd })] {
            ann.endpoint.broadcast("phx_presence:test", EVENT, said).unwrap();
        }
        let binary = crate::Payload::binary(vec![1]);
        ann.endpoint.broadcast("phx_presence:test", EVENT, binary).unwrap();
        ann.track("ada");
        sleep(PERIOD * 2).await;
        assert_eq!(bob.keys(), ["ada"]);
        drop(bob.present);
        sleep(PERIOD).await;
        assert!(bob.driver.is_finished());
    }
}
