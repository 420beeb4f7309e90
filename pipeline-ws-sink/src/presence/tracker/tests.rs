//! Replicas in a simulated network.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use serde_json::json;

use super::{
    message::{Delta, ReplicaRef},
    *,
};

/// The listed entries, or those expected: topic, key and a unique number.
type Listed = BTreeSet<(Arc<str>, Arc<str>, u64)>;

const TOPICS: [&str; 3] = ["room:1", "room:2", "room:3"];
const PERIOD: Duration = Duration::from_millis(1_500);

fn meta(number: u64) -> Meta {
    Arc::new(serde_json::Map::from_iter([("n".to_owned(), number.into())]))
}

fn number(meta: &Meta) -> u64 {
    meta["n"].as_u64().unwrap()
}

fn listed(tracker: &Tracker) -> Listed {
    let on = |topic: &'static str| {
        tracker.list(topic).map(move |(key, meta)| (topic.into(), key.clone(), number(meta)))
    };
    TOPICS.into_iter().flat_map(on).collect()
}

/// A node of the simulated network.
struct Node {
    name: &'static str,
    tracker: Tracker,
    /// Its own entries, by actor, topic and key.
    tracks: BTreeMap<(u64, Arc<str>, Arc<str>), u64>,
    /// The sum of its diffs.
    folded: Listed,
    alive: bool,
}

impl Node {
    fn fold(&mut self, diffs: &Diffs) {
        for (topic, diff) in diffs {
            for (key, meta) in &diff.joins {
                let new = self.folded.insert((topic.clone(), key.clone(), number(meta)));
                assert!(new, "{}: a join was doubled: {topic} {key} {meta:?}", self.name);
            }
            for (key, meta) in &diff.leaves {
                let known = self.folded.remove(&(topic.clone(), key.clone(), number(meta)));
                assert!(known, "{}: a leave without a join: {topic} {key} {meta:?}", self.name);
            }
        }
    }
}

/// An action on the nodes.
#[derive(Clone, Debug)]
enum Act {
    Track {
        node: usize,
        actor: u64,
        topic: usize,
        key: u8,
    },
    Untrack {
        node: usize,
        actor: u64,
        topic: usize,
        key: u8,
    },
    UntrackTopic {
        node: usize,
        actor: u64,
        topic: usize,
    },
    UntrackAll {
        node: usize,
        actor: u64,
    },
    Wait {
        millis: u64,
    },
    /// With an earlier clock, its version is less than all previous ones.
    Restart {
        node: usize,
        shutdown_message: bool,
        earlier: bool,
    },
    /// The node ends without an announcement, and only a restart starts it again.
    Stop {
        node: usize,
    },
    /// No message passes between this node and the others.
    Cut {
        node: usize,
    },
    Heal,
}

/// The fates of the messages, one after the other.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    After(u64),
    Twice(u64, u64),
}

struct Network {
    nodes: Vec<Node>,
    now: Duration,
    /// The messages in transit: when each arrives, and at which node.
    wire: Vec<(Duration, usize, Message)>,
    fates: Vec<Fate>,
    sent: usize,
    cut: BTreeSet<usize>,
    /// The greatest and the least version so far.
    versions: (u64, u64),
    numbers: u64,
    options: TrackerOptions,
}

impl Network {
    fn new(nodes: usize, fates: Vec<Fate>, options: TrackerOptions) -> Self {
        let mut network = Self {
            nodes: Vec::new(),
            now: Duration::from_secs(100),
            wire: Vec::new(),
            fates,
            sent: 0,
            cut: BTreeSet::new(),
            versions: (1_000_000, 1_000_000),
            numbers: 0,
            options,
        };
        for name in ["ann", "bob", "cid"].into_iter().take(nodes) {
            let tracker = network.tracker(name, false);
            let (tracks, folded) = Default::default();
            network.nodes.push(Node { name, tracker, tracks, folded, alive: true });
        }
        network
    }

    fn tracker(&mut self, name: &str, earlier: bool) -> Tracker {
        let (greatest, least) = &mut self.versions;
        let version = if earlier {
            *least -= 1;
            *least
        } else {
            *greatest += 1;
            *greatest
        };
        let seed = version * 367;
        Tracker::replicated(name, version, seed, self.options.clone(), self.now)
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Track { node, actor, topic, key } => {
                self.numbers += 1;
                let number = self.numbers;
                let topic: Arc<str> = TOPICS[topic].into();
                let key: Arc<str> = format!("user:{key}").into();
                let at = node % self.nodes.len();
                let node = &mut self.nodes[at];
                let mut diff = Diff::default();
                if node.tracker.track(actor, &topic, &key, meta(number)).is_err() {
                    let old = node.tracker.update(actor, &topic, &key, meta(number)).unwrap();
                    diff.leaves.push((key.clone(), old));
                }
                diff.joins.push((key.clone(), meta(number)));
                node.fold(&Diffs::from([(topic.clone(), diff)]));
                node.tracks.insert((actor, topic, key), number);
            }
            Act::Untrack { node, actor, topic, key } => {
                let at = node % self.nodes.len();
                let node = &mut self.nodes[at];
                let key: Arc<str> = format!("user:{key}").into();
                let gone = node.tracker.untrack(actor, TOPICS[topic], &key);
                let known = node.tracks.remove(&(actor, TOPICS[topic].into(), key.clone()));
                assert_eq!(gone.as_ref().map(number), known);
                let leaves = gone.into_iter().map(|meta| (key.clone(), meta)).collect();
                let diff = Diff { leaves, ..Diff::default() };
                node.fold(&Diffs::from([(TOPICS[topic].into(), diff)]));
            }
            Act::UntrackTopic { node, actor, topic } => {
                let at = node % self.nodes.len();
                let node = &mut self.nodes[at];
                let diff = node.tracker.untrack_topic(actor, TOPICS[topic]);
                node.tracks.retain(|(who, on, _), _| *who != actor || &**on != TOPICS[topic]);
                node.fold(&Diffs::from([(TOPICS[topic].into(), diff)]));
            }
            Act::UntrackAll { node, actor } => {
                let at = node % self.nodes.len();
                let node = &mut self.nodes[at];
                let diffs = node.tracker.untrack_all(actor);
                node.tracks.retain(|(who, ..), _| *who != actor);
                node.fold(&diffs);
            }
            Act::Wait { millis } => self.wait(Duration::from_millis(millis)),
            Act::Restart { node, shutdown_message, earlier } => {
                let at = node % self.nodes.len();
                if shutdown_message && self.nodes[at].alive {
                    let last = self.nodes[at].tracker.shutdown_message();
                    self.post(at, last);
                }
                let tracker = self.tracker(self.nodes[at].name, earlier);
                let node = &mut self.nodes[at];
                (node.tracker, node.alive) = (tracker, true);
                (node.tracks, node.folded) = Default::default();
            }
            Act::Stop { node } => {
                let at = node % self.nodes.len();
                self.nodes[at].alive = false;
            }
            Act::Cut { node } => _ = self.cut.insert(node % self.nodes.len()),
            Act::Heal => self.cut.clear(),
        }
    }

    /// Advances the time, from one event to the next.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let ticks = self.nodes.iter().filter(|node| node.alive);
            let tick = ticks.filter_map(|node| node.tracker.next_tick()).min();
            let arrival = self.wire.iter().map(|(at, ..)| *at).min();
            let next = tick.into_iter().chain(arrival).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            for at in 0..self.nodes.len() {
                if self.nodes[at].alive && self.nodes[at].tracker.next_tick() <= Some(self.now) {
                    self.step(at, Input::Tick);
                }
            }
            let now = self.now;
            let due: Vec<_> = self.wire.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, to, message) in due {
                if self.nodes[to].alive {
                    self.step(to, Input::Message(message));
                }
            }
            if next == end {
                return;
            }
        }
    }

    fn step(&mut self, at: usize, input: Input) {
        let StepOutput { diffs, send } = self.nodes[at].tracker.step(input, self.now);
        self.nodes[at].fold(&diffs);
        assert_eq!(listed(&self.nodes[at].tracker), self.nodes[at].folded, "the reported diffs");
        self.post(at, send);
    }

    fn post(&mut self, from: usize, outgoing: Vec<OutboundMessage>) {
        for OutboundMessage { to, message } in outgoing {
            // Encoded and decoded, as on the network.
            let payload = message.to_payload().unwrap();
            let message = Message::from_payload(&payload).unwrap();
            for at in 0..self.nodes.len() {
                let meant = match &to {
                    To::All => at != from,
                    To::Node(node) => &**node == self.nodes[at].name,
                };
                if !meant || self.cut.contains(&at) != self.cut.contains(&from) {
                    continue;
                }
                self.sent += 1;
                let delays = match self.fates.get(self.sent) {
                    Some(Fate::Lost) => vec![],
                    Some(Fate::After(millis)) => vec![*millis],
                    Some(Fate::Twice(first, second)) => vec![*first, *second],
                    None => vec![1],
                };
                for millis in delays {
                    let arrival = self.now + Duration::from_millis(millis);
                    self.wire.push((arrival, at, message.clone()));
                }
            }
        }
    }

    /// The entries of all live nodes.
    fn truth(&self) -> Listed {
        let living = self.nodes.iter().filter(|node| node.alive);
        let tracks = living.flat_map(|node| &node.tracks);
        tracks.map(|((_, topic, key), n)| (topic.clone(), key.clone(), *n)).collect()
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let (node, actor, topic, key) = (0usize..3, 0u64..3, 0usize..3, 0u8..3);
    let place = (node.clone(), actor.clone(), topic.clone(), key);
    let act = prop_oneof![
        8 => place.clone().prop_map(|(node, actor, topic, key)| Act::Track { node, actor, topic, key }),
        4 => place.prop_map(|(node, actor, topic, key)| Act::Untrack { node, actor, topic, key }),
        1 => (node.clone(), actor.clone(), topic)
            .prop_map(|(node, actor, topic)| Act::UntrackTopic { node, actor, topic }),
        1 => (node.clone(), actor).prop_map(|(node, actor)| Act::UntrackAll { node, actor }),
        6 => (0u64..4_000).prop_map(|millis| Act::Wait { millis }),
        1 => (20_000u64..60_000).prop_map(|millis| Act::Wait { millis }),
        1 => (150_000u64..300_000).prop_map(|millis| Act::Wait { millis }),
        1 => (node.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(node, shutdown_message, earlier)| Act::Restart { node, shutdown_message, earlier }),
        1 => node.clone().prop_map(|node| Act::Stop { node }),
        1 => node.prop_map(|node| Act::Cut { node }),
        2 => Just(Act::Heal),
    ];
    prop::collection::vec(act, 0..60)
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        3 => (0u64..50).prop_map(Fate::After),
        1 => (0u64..8_000).prop_map(Fate::After),
        1 => Just(Fate::Lost),
        1 => (0u64..50, 0u64..40_000).prop_map(|(first, second)| Fate::Twice(first, second)),
    ];
    prop::collection::vec(fate, 0..300)
}

/// Small values, so that every generation is used, and permdown comes within minutes.
fn options() -> TrackerOptions {
    TrackerOptions::new()
        .permdown_period(Duration::from_secs(120))
        .max_delta_sizes([2, 4])
        .permdown_on_shutdown(true)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn all_replicas_converge_to_the_entries_of_live_nodes(
        nodes in 2usize..=3, acts in acts(), fates in fates()
    ) {
        let mut network = Network::new(nodes, fates, options());
        for act in &acts {
            network.act(act);
        }
        network.cut.clear();
        network.fates.clear();
        // The last messages arrive, and restarted nodes are no longer confused with their former selves.
        network.wait(Duration::from_secs(200));
        let truth = network.truth();
        for node in network.nodes.iter().filter(|node| node.alive) {
            prop_assert_eq!(&listed(&node.tracker), &truth, "{}", node.name);
            prop_assert!(node.tracker.knows_all(), "{}", node.name);
            let (gaps, kept) = node.tracker.cluster.as_ref().unwrap().kept();
            prop_assert_eq!(gaps, 0);
            prop_assert!(kept <= 2 + 4, "{} are kept for others", kept);
        }
        // No node requests anything any more, and each sends only its heartbeat.
        let sent = network.sent;
        network.wait(PERIOD * 10);
        let heartbeats = nodes * (nodes - 1);
        prop_assert!(network.sent - sent <= heartbeats, "{} were sent", network.sent - sent);
    }
}

fn replica(name: &str, version: u64) -> Tracker {
    Tracker::replicated(name, version, 0, options(), Duration::ZERO)
}

fn track(tracker: &mut Tracker, actor: u64, key: &str, number: u64) {
    tracker.track(actor, &"room:1".into(), &key.into(), meta(number)).unwrap();
}

fn numbers(tracker: &Tracker) -> Vec<u64> {
    tracker.list("room:1").map(|(_, meta)| number(meta)).collect()
}

/// Ticks, and returns the messages.
fn tick(tracker: &mut Tracker) -> Vec<OutboundMessage> {
    let now = tracker.next_tick().unwrap();
    tracker.step(Input::Tick, now).send
}

fn hear(tracker: &mut Tracker, said: Vec<OutboundMessage>, now: Duration) -> StepOutput {
    let mut all = StepOutput::default();
    for OutboundMessage { message, .. } in said {
        let StepOutput { diffs, send } = tracker.step(Input::Message(message), now);
        all.diffs.extend(diffs);
        all.send.extend(send);
    }
    all
}

#[test]
fn a_lone_tracker_keeps_no_state_for_others() {
    let mut tracker = Tracker::alone();
    track(&mut tracker, 1, "ada", 1);
    assert!(tracker.cluster.is_none());
    assert_eq!(tracker.next_tick(), None);
    let mut other = replica("bob", 1);
    track(&mut other, 1, "bea", 2);
    let StepOutput { diffs, send } = hear(&mut tracker, tick(&mut other), PERIOD);
    assert!(diffs.is_empty() && send.is_empty() && tracker.shutdown_message().is_empty());
    assert_eq!((numbers(&tracker), tracker.len()), (vec![1], 1));
}

#[test]
fn entries_are_listed_in_tracking_order_also_when_updated() {
    let mut tracker = Tracker::alone();
    for number in 0..20 {
        track(&mut tracker, number, "ada", number);
    }
    assert_eq!(tracker.update(3, "room:1", "ada", meta(33)).map(|old| number(&old)), Some(3));
    assert_eq!(tracker.untrack(7, "room:1", "ada").map(|old| number(&old)), Some(7));
    let listed = numbers(&tracker);
    assert_eq!(listed[..8], [0, 1, 2, 33, 4, 5, 6, 8]);
    let metas: Vec<u64> = tracker.get_by_key("room:1", "ada").map(number).collect();
    assert_eq!(metas, listed);
    assert_eq!(tracker.get(3, "room:1", "ada").map(number), Some(33));
    assert_eq!(tracker.get_by_key("room:1", "bea").count(), 0);
}

#[test]
fn tracking_twice_or_updating_an_unknown_entry_changes_nothing() {
    let mut tracker = replica("ann", 1);
    track(&mut tracker, 1, "ada", 1);
    let again = tracker.track(1, &"room:1".into(), &"ada".into(), meta(2));
    assert_eq!(again, Err(AlreadyTracked));
    assert_eq!(tracker.update(2, "room:1", "ada", meta(2)), None);
    assert_eq!(tracker.untrack(1, "room:2", "ada"), None);
    assert_eq!((numbers(&tracker), tracker.len()), (vec![1], 1));
}

#[test]
fn all_entries_of_an_actor_leave_and_an_empty_tracker_keeps_no_topic() {
    let mut tracker = Tracker::alone();
    for (topic, key, number) in [("a", "ada", 1), ("a", "bea", 2), ("b", "ada", 3)] {
        tracker.track(1, &topic.into(), &key.into(), meta(number)).unwrap();
    }
    tracker.track(2, &"a".into(), &"ada".into(), meta(4)).unwrap();
    let diffs = tracker.untrack_all(1);
    let left = |topic| diffs[topic].leaves.iter().map(|(_, meta)| number(meta)).collect::<Vec<_>>();
    assert_eq!((left("a"), left("b"), diffs.len()), (vec![1, 2], vec![3], 2));
    assert!(tracker.has_topic("a") && !tracker.has_topic("b"));
    assert_eq!(tracker.untrack_topic(2, "a").leaves.len(), 1);
    assert!(!tracker.has_topic("a") && tracker.len() == 0);
    assert!(tracker.untrack_all(1).is_empty());
}

#[test]
fn an_update_is_one_diff_with_the_join_and_the_leave() {
    let (mut ann, mut bob) = (replica("ann", 1), replica("bob", 1));
    track(&mut ann, 1, "ada", 1);
    hear(&mut bob, tick(&mut ann), PERIOD);
    ann.update(1, "room:1", "ada", meta(2)).unwrap();
    let diffs = hear(&mut bob, tick(&mut ann), PERIOD).diffs;
    let (joins, leaves) = (vec![("ada".into(), meta(2))], vec![("ada".into(), meta(1))]);
    assert_eq!(diffs, Diffs::from([("room:1".into(), Diff { joins, leaves })]));
}

#[test]
fn a_replica_without_changes_is_silent_for_the_configured_periods() {
    let mut tracker = replica("ann", 1);
    let beats: Vec<bool> = (0..31).map(|_| !tick(&mut tracker).is_empty()).collect();
    let at: Vec<usize> = (0..31).filter(|at| beats[*at]).collect();
    assert_eq!(at, [0, 1, 2, 12, 22], "heartbeats at the start, and then silence");
}

#[test]
fn a_replica_that_restarts_with_an_earlier_clock_is_answered() {
    let (mut ann, mut bob) = (replica("ann", 2), replica("bob", 2));
    track(&mut ann, 1, "ada", 1);
    for _ in 0..5 {
        hear(&mut ann, tick(&mut bob), PERIOD);
        hear(&mut bob, tick(&mut ann), PERIOD);
    }
    assert!(tick(&mut ann).is_empty(), "it has no changes to send");
    let mut bob = replica("bob", 1);
    hear(&mut ann, tick(&mut bob), PERIOD);
    hear(&mut bob, tick(&mut ann), PERIOD);
    (0..5).for_each(|_| drop(tick(&mut bob)));
    assert!(!bob.knows_all(), "bob has heard of ann, and has not received her entries yet");
}

#[test]
fn a_silence_is_never_so_long_that_others_count_one_as_down() {
    let options = options().down_period(PERIOD * 4);
    let mut tracker = Tracker::replicated("ann", 1, 0, options, Duration::ZERO);
    let beats = (0..9).filter(|_| !tick(&mut tracker).is_empty()).count();
    assert_eq!(beats, 6);
}

#[test]
fn a_replica_that_knows_nothing_asks_one_of_many() {
    let mut network = Network::new(3, Vec::new(), options());
    for node in 0..3 {
        network.act(&Act::Track { node, actor: 1, topic: 0, key: 1 });
    }
    network.wait(PERIOD * 4);
    let mut late = Tracker::replicated("dan", 9, 0, options(), network.now);
    // It has missed all earlier messages; it hears the next heartbeats, without changes.
    let mut heard = Vec::new();
    for node in &mut network.nodes {
        node.tracker.step(Input::Message(hello()), network.now);
        heard.extend(tick(&mut node.tracker));
    }
    let heard = heard.into_iter().filter(|said| said.to == To::All).collect();
    hear(&mut late, heard, network.now);
    late.step(Input::Tick, network.now);
    let asked = tick(&mut late);
    let asked = asked.iter().filter(|said| matches!(said.message, Message::TransferReq { .. }));
    assert_eq!(asked.count(), 1);
}

/// The first heartbeat of a replica.
fn hello() -> Message {
    let from = ReplicaRef { node: "eve".into(), version: 1 };
    Message::Heartbeat { from, delta: None, clocks: Vec::new() }
}

#[test]
fn a_restarted_node_replaces_its_former_self() {
    let (mut ann, mut bob) = (replica("ann", 1), replica("bob", 1));
    track(&mut ann, 1, "ada", 1);
    let first = tick(&mut ann);
    hear(&mut bob, first.clone(), PERIOD);
    let mut again = replica("ann", 2);
    track(&mut again, 1, "ada", 2);
    let diffs = hear(&mut bob, tick(&mut again), PERIOD).diffs;
    let (joins, leaves) = (vec![("ada".into(), meta(2))], vec![("ada".into(), meta(1))]);
    assert_eq!(diffs["room:1"], Diff { joins, leaves });
    assert!(hear(&mut bob, first, PERIOD).diffs.is_empty(), "the message is late");
}

#[test]
fn a_node_restarted_with_an_earlier_clock_is_heard_once_its_former_self_is_down() {
    let (mut ann, mut bob) = (replica("ann", 7), replica("bob", 1));
    track(&mut ann, 1, "ada", 1);
    hear(&mut bob, tick(&mut ann), Duration::ZERO);
    let mut again = replica("ann", 3);
    track(&mut again, 1, "ada", 2);
    // Until then the message may be a late one, from before the later start.
    assert!(hear(&mut bob, tick(&mut again), PERIOD).diffs.is_empty());
    assert_eq!(numbers(&bob), [1]);
    bob.step(Input::Tick, Duration::from_secs(31));
    assert!(numbers(&bob).is_empty());
    track(&mut again, 1, "bea", 3);
    let heard = hear(&mut bob, tick(&mut again), Duration::from_secs(32));
    assert_eq!(heard.diffs["room:1"].joins, [("bea".into(), meta(3))]);
    // Its earlier changes are requested.
    let asked = (0..2).flat_map(|n| bob.step(Input::Tick, Duration::from_secs(40 + 2 * n)).send);
    let asked: Vec<_> = asked.filter(|said| said.to == To::Node("ann".into())).collect();
    let answers = hear(&mut again, asked, PERIOD).send;
    hear(&mut bob, answers, Duration::from_secs(45));
    assert_eq!(BTreeSet::from_iter(numbers(&bob)), BTreeSet::from([2, 3]));
}

#[test]
fn a_node_restarted_with_an_earlier_clock_is_heard_after_a_down_period_and_a_silence() {
    let options = options();
    let within = options.down() + PERIOD * options.silent_periods();
    let (mut ann, mut bob) = (replica("ann", 7), replica("bob", 1));
    track(&mut ann, 1, "ada", 1);
    hear(&mut bob, tick(&mut ann), Duration::ZERO);
    let mut again = replica("ann", 3);
    track(&mut again, 1, "bea", 2);
    // One more period, for the answer.
    let mut now = Duration::ZERO;
    while numbers(&bob) != [2] {
        now += PERIOD;
        assert!(now <= within + 3 * PERIOD, "at {now:?}: {:?}", numbers(&bob));
        let said = again.step(Input::Tick, now).send;
        let answered = hear(&mut bob, said, now).send;
        let said = bob.step(Input::Tick, now).send;
        let asked = hear(&mut again, answered.into_iter().chain(said).collect(), now).send;
        hear(&mut bob, asked, now);
    }
    assert!(now >= options.down(), "its former self was not down yet at {now:?}");
}

/// Bob has been running for long, and has heard ann.
fn settled() -> (Tracker, Tracker) {
    let (mut ann, mut bob) = (replica("ann", 1), replica("bob", 1));
    for _ in 0..4 {
        hear(&mut bob, tick(&mut ann), PERIOD);
        tick(&mut bob);
    }
    assert!(bob.knows_all());
    (ann, bob)
}

#[test]
fn a_replica_knows_all_once_others_have_had_time_to_answer() {
    let mut tracker = replica("ann", 1);
    for _ in 0..4 {
        assert!(!tracker.knows_all());
        tick(&mut tracker);
    }
    assert!(tracker.knows_all());
    assert!(Tracker::alone().knows_all());
}

#[test]
fn a_replica_that_missed_changes_does_not_know_all_until_they_arrive() {
    let (mut ann, mut bob) = settled();
    track(&mut ann, 1, "ada", 1);
    let lost = tick(&mut ann);
    track(&mut ann, 1, "bea", 2);
    hear(&mut bob, tick(&mut ann), PERIOD);
    assert!(!bob.knows_all());
    hear(&mut bob, lost, PERIOD);
    assert!(bob.knows_all());
}

#[test]
fn a_replica_does_not_know_all_while_another_is_down_or_contested() {
    let (mut ann, mut bob) = settled();
    bob.step(Input::Tick, Duration::from_secs(40));
    assert!(!bob.knows_all(), "ann is down");
    track(&mut ann, 1, "ada", 1);
    hear(&mut bob, tick(&mut ann), Duration::from_secs(41));
    assert!(bob.knows_all());
    let mut again = replica("ann", 0);
    hear(&mut bob, tick(&mut again), Duration::from_secs(42));
    assert!(!bob.knows_all(), "ann may have been restarted");
    bob.step(Input::Tick, Duration::from_secs(200));
    assert!(bob.knows_all(), "ann is removed");
}

#[test]
fn inconsistent_options_are_refused() {
    let new = TrackerOptions::new;
    assert_eq!(new().check(), Ok(()));
    assert_eq!(new().down(), Duration::from_secs(30));
    assert_eq!(new().broadcast_period(PERIOD * 2).down(), Duration::from_secs(60));
    assert_eq!(new().broadcast_period(Duration::ZERO).check(), Err(TrackerOptionsError::Zero));
    let down = new().permdown_period(Duration::from_secs(30));
    assert_eq!(down.check(), Err(TrackerOptionsError::PermdownPeriod));
    let down = new().down_period(PERIOD * 2 - Duration::from_millis(1));
    assert_eq!(down.check(), Err(TrackerOptionsError::DownPeriod));
}

#[test]
fn a_message_is_written_as_json_with_its_version() {
    let of = ReplicaRef { node: "ann".into(), version: 7 };
    let delta = Delta::after(&of, 3);
    let message = Message::Heartbeat { from: of, delta: Some(delta), clocks: Vec::new() };
    let payload = message.to_payload().unwrap();
    let written: serde_json::Value = payload.parse().unwrap();
    let of = json!({ "node": "ann", "version": 7 });
    let delta = json!({ "of": of, "after": 3, "upto": 3, "removed": [], "values": {} });
    let heartbeat = json!({ "from": of, "delta": delta, "clocks": [] });
    assert_eq!(written, json!({ "v": 1, "message": { "heartbeat": heartbeat } }));
    assert_eq!(Message::from_payload(&payload).unwrap(), message);
}
