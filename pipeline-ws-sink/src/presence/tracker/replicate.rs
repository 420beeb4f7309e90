//! The replication task: it exchanges a replica's messages with the others.

use std::{
    collections::VecDeque,
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
    payload::Payload,
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
///
/// What a node has missed may be a long list. It is sent in parts that each fit a message of the server between the
/// nodes, with pauses, so that broadcasts have room between them.
pub(crate) async fn replicate<R: Replica>(
    replica: Weak<R>,
    pubsub: PubSub,
    name: &str,
    started: Instant,
) {
    let topic = topic(name);
    let mut subscription = pubsub.subscribe(&topic);
    let mut fault = Fault::default();
    let mut parts = Parts::default();
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
            () = parts.turn() => {
                parts.send_some(&pubsub, &topic, &mut fault);
                None
            }
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
            parts.send(one, &pubsub, &topic, &mut fault);
        }
    }
}

/// The most changes that are encoded at once.
const MOST_CHANGES: usize = 1_000;

/// The length of a message, if it can be split: a quarter of what servers take by default.
const LONGEST: usize = 256 * 1024;

/// How much is sent without a pause.
const AT_ONCE: usize = 4 * LONGEST;

/// The pause.
const PAUSE: Duration = Duration::from_millis(20);

/// The parts of answers that are to be sent: of one answer to each node at most, whose entries are those of the state
/// and not copies, and of the changes of this node that are new.
#[derive(Default)]
struct Parts {
    waiting: VecDeque<OutboundMessage>,
    /// When the next may be sent.
    next: Option<Instant>,
}

impl Parts {
    /// Returns when a part may be sent. It is pending while there is none.
    async fn turn(&self) {
        match self.next.filter(|_| !self.waiting.is_empty()) {
            Some(at) => sleep_until(at).await,
            None if self.waiting.is_empty() => pending().await,
            None => {}
        }
    }

    /// Sends a message, or stores its parts if it is long.
    fn send(&mut self, message: OutboundMessage, pubsub: &PubSub, topic: &str, fault: &mut Fault) {
        let OutboundMessage { to, message } = message;
        if matches!(message, Message::TransferAck { .. }) {
            // A node asks again before all parts of an answer have arrived.
            if !self.waiting.iter().any(|waiting| waiting.to == to) {
                self.waiting.extend(split(&to, message, MOST_CHANGES));
            }
            return;
        }
        let mut parts = split(&to, message, MOST_CHANGES).into_iter();
        if let Some(first) = parts.next() {
            self.waiting.extend(parts);
            self.send_part(first, pubsub, topic, fault);
        }
    }

    /// Sends some parts.
    fn send_some(&mut self, pubsub: &PubSub, topic: &str, fault: &mut Fault) {
        let mut sent = 0;
        while sent < AT_ONCE
            && let Some(part) = self.waiting.pop_front()
        {
            sent += self.send_part(part, pubsub, topic, fault);
        }
        self.next = Instant::now().checked_add(PAUSE);
    }

    /// Sends a part, or splits it once more if it is too long. Returns how long it was.
    fn send_part(
        &mut self,
        part: OutboundMessage,
        pubsub: &PubSub,
        topic: &str,
        fault: &mut Fault,
    ) -> usize {
        let payload = match part.message.to_payload() {
            Ok(payload) => payload,
            Err(error) => {
                fault.note(topic, Err(error.into()));
                return 0;
            }
        };
        let (length, size) = (payload.bytes().len(), part.message.size());
        if length > LONGEST && size > 1 {
            let parts = split(&part.to, part.message, size.div_ceil(2));
            parts.into_iter().rev().for_each(|part| self.waiting.push_front(part));
        } else {
            fault.note(topic, send_payload(pubsub, topic, &part.to, payload));
        }
        length
    }
}

fn split(to: &To, message: Message, most: usize) -> Vec<OutboundMessage> {
    let parts = message.split(most).into_iter();
    parts.map(|message| OutboundMessage { to: to.clone(), message }).collect()
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
    send_payload(pubsub, topic, &outgoing.to, outgoing.message.to_payload()?)
}

fn send_payload(
    pubsub: &PubSub,
    topic: &str,
    to: &To,
    payload: Payload,
) -> Result<(), AdapterError> {
    let broadcast = Broadcast::new(topic, EVENT, payload)?;
    match to {
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
    use std::{cell::RefCell, collections::BTreeMap};

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

    thread_local! {
        /// The lengths of the messages of this test.
        static SENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    struct Cable {
        name: &'static str,
        switch: Switch,
    }

    impl Cable {
        fn deliver(&self, node: &LocalNode, broadcast: &Broadcast) -> Result<(), AdapterError> {
            SENT.with_borrow_mut(|sent| sent.push(broadcast.payload().bytes().len()));
            Ok(node.deliver(broadcast)?)
        }
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
                self.deliver(node, broadcast)?;
            }
            Ok(())
        }

        fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
            let node = self.switch.lock().get(node).cloned();
            self.deliver(
                &node.ok_or_else(|| AdapterError::new("no node has this name"))?,
                broadcast,
            )
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
    async fn a_node_that_starts_later_receives_a_long_list_in_parts() {
        let switch = Switch::default();
        let ann = node("ann", &switch, TrackerOptions::new());
        for n in 0..5_000 {
            let meta = json!({"name": "x".repeat(200)}).as_object().cloned().unwrap();
            let mut tracker = ann.present.0.lock();
            tracker
                .track(n, &"room:1".into(), &format!("user:{n}").into(), Arc::new(meta))
                .unwrap();
        }
        sleep(PERIOD * 3).await;
        let bob = node("bob", &switch, TrackerOptions::new());
        sleep(PERIOD * 5).await;
        assert_eq!(bob.keys().len(), 5_000);
        // The list has more than a megabyte.
        let sent = SENT.with_borrow(Vec::clone);
        assert!(sent.iter().sum::<usize>() > 1_000_000, "{sent:?}");
        assert!(sent.iter().all(|length| *length <= LONGEST), "{sent:?}");
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
            send_payload(
                ann.endpoint.pubsub(),
                &topic("test"),
                &To::All,
                Payload::new(&said).unwrap(),
            )
            .unwrap();
        }
        let binary = Payload::binary(vec![1]);
        send_payload(ann.endpoint.pubsub(), &topic("test"), &To::All, binary).unwrap();
        ann.track("ada");
        sleep(PERIOD * 2).await;
        assert_eq!(bob.keys(), ["ada"]);
        drop(bob.present);
        sleep(PERIOD).await;
        assert!(bob.driver.is_finished());
    }
}
