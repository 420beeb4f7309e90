//! Replicas on a network that delays, loses, doubles and reorders what they say, on a clock of its own.

use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::{entries::Entry, *};

/// Whom a test tracks: an actor, a topic and a key. Each is a number, so that they meet.
type Place = (u64, u8, u8);

/// What happens in a test.
#[derive(Clone, Debug)]
enum Event {
    Track(usize, Place),
    Update(usize, Place),
    Untrack(usize, Place),
    UntrackAll(usize, u64),
    /// So much time passes: in tenths of a broadcast period.
    Pass(u64),
    /// This one and the others no longer hear each other.
    Part(usize),
    Heal,
    /// It is killed and started again.
    Restart(usize),
}

fn events(nodes: usize) -> impl Strategy<Value = Vec<Event>> {
    let node = 0..nodes;
    let place = (0_u64..3, 0_u8..3, 0_u8..3);
    let event = prop_oneof![
        6 => (node.clone(), place.clone()).prop_map(|(node, place)| Event::Track(node, place)),
        2 => (node.clone(), place.clone()).prop_map(|(node, place)| Event::Update(node, place)),
        3 => (node.clone(), place).prop_map(|(node, place)| Event::Untrack(node, place)),
        1 => (node.clone(), 0_u64..3).prop_map(|(node, actor)| Event::UntrackAll(node, actor)),
        // Within a period, and some.
        6 => (0_u64..5).prop_map(Event::Pass),
        3 => (0_u64..60).prop_map(Event::Pass),
        // Long enough to be down, or to be forgotten.
        1 => prop_oneof![Just(250), Just(900)].prop_map(Event::Pass),
        1 => node.clone().prop_map(Event::Part),
        2 => Just(Event::Heal),
        1 => node.prop_map(Event::Restart),
    ];
    prop::collection::vec(event, 0..80)
}

/// Time is told in tenths of a period.
const TENTH: Duration = Duration::from_millis(150);

fn options() -> TrackerOptions {
    // Few changes are remembered, so that some have to be sent everything.
    TrackerOptions::new().permdown_period(Duration::from_secs(90)).max_changes(5)
}

/// Who a replica says is there, by what it has told of comings and goings. Metas are all different.
#[derive(Default)]
struct Seen(BTreeSet<(String, String, String)>);

impl Seen {
    fn fold(&mut self, diffs: &Diffs) {
        let shown = |topic: &Arc<str>, (key, meta): &(Arc<str>, Meta)| {
            (topic.to_string(), key.to_string(), json!(**meta).to_string())
        };
        for (topic, diff) in diffs {
            // An update is both, of two metas. Clients apply joins first, too.
            for join in &diff.joins {
                assert!(self.0.insert(shown(topic, join)), "came twice: {join:?}");
            }
            for leave in &diff.leaves {
                assert!(self.0.remove(&shown(topic, leave)), "left without having come: {leave:?}");
            }
        }
    }
}

struct Node {
    tracker: Tracker,
    seen: Seen,
    is_parted: bool,
}

/// All nodes, and what they say to each other.
struct World {
    nodes: Vec<Node>,
    now: Duration,
    /// What is on its way: when it arrives, to whom, and what.
    underway: BTreeMap<(Duration, u64), (usize, String)>,
    sent: u64,
    metas: u64,
    random: u64,
    is_reliable: bool,
}

impl World {
    fn new(nodes: usize, random: u64) -> Self {
        let underway = BTreeMap::new();
        let (now, is_reliable) = (Duration::ZERO, false);
        let mut world =
            Self { nodes: vec![], now, underway, sent: 0, metas: 0, random, is_reliable };
        for at in 0..nodes {
            let node = world.start(at);
            world.nodes.push(node);
        }
        world
    }

    fn start(&mut self, at: usize) -> Node {
        self.sent += 1;
        let (version, seed) = (self.sent, self.draw(1000));
        let tracker = Tracker::replicated(&at.to_string(), version, seed, options(), self.now);
        Node { tracker, seen: Seen::default(), is_parted: false }
    }

    /// A number below this one.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below
    }

    fn meta(&mut self) -> Meta {
        self.metas += 1;
        let Value::Object(meta) = json!({ "n": self.metas }) else { unreachable!() };
        Arc::new(meta)
    }

    fn happen(&mut self, event: &Event) {
        let names =
            |(_, topic, key): &Place| (Arc::from(topic.to_string()), Arc::from(key.to_string()));
        let (at, mut diffs) = match event {
            Event::Track(at, place) => {
                let (topic, key) = names(place);
                let meta = self.meta();
                let mut diffs = Diffs::new();
                if self.nodes[*at].tracker.track(place.0, &topic, &key, meta.clone()).is_ok() {
                    diffs.entry(topic).or_default().joins.push((key, meta));
                }
                (*at, diffs)
            }
            Event::Update(at, place) => {
                let ((topic, key), meta) = (names(place), self.meta());
                let mut diffs = Diffs::new();
                let tracker = &mut self.nodes[*at].tracker;
                if let Some(old) = tracker.update(place.0, &topic, &key, meta.clone()) {
                    let diff = diffs.entry(topic).or_default();
                    diff.joins.push((key.clone(), meta));
                    diff.leaves.push((key, old));
                }
                (*at, diffs)
            }
            Event::Untrack(at, place) => {
                let (topic, key) = names(place);
                let gone = self.nodes[*at].tracker.untrack(place.0, &topic, &key);
                let gone =
                    gone.map(|meta| (topic, Diff { joins: vec![], leaves: vec![(key, meta)] }));
                (*at, gone.into_iter().collect())
            }
            Event::UntrackAll(at, actor) => (*at, self.nodes[*at].tracker.untrack_all(*actor)),
            Event::Pass(tenths) => {
                (0..*tenths).for_each(|_| self.tenth());
                return;
            }
            Event::Part(at) => {
                self.nodes[*at].is_parted = true;
                return;
            }
            Event::Heal => {
                self.nodes.iter_mut().for_each(|node| node.is_parted = false);
                return;
            }
            Event::Restart(at) => {
                self.nodes[*at] = self.start(*at);
                return;
            }
        };
        self.nodes[at].seen.fold(&std::mem::take(&mut diffs));
    }

    fn tenth(&mut self) {
        self.now += TENTH;
        while let Some(first) = self.underway.first_entry() {
            if first.key().0 > self.now {
                break;
            }
            let (to, text) = first.remove();
            let message = serde_json::from_str(&text).unwrap();
            self.step(to, Input::Message(message));
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].tracker.next_tick().unwrap() <= self.now {
                self.step(at, Input::Tick);
            }
        }
    }

    fn step(&mut self, at: usize, input: Input) {
        let Step { diffs, send } = self.nodes[at].tracker.step(input, self.now);
        self.nodes[at].seen.fold(&diffs);
        for Outgoing { to, message } in send {
            let text = serde_json::to_string(&message).unwrap();
            let others = (0..self.nodes.len()).filter(|other| *other != at);
            let to: Vec<_> = others
                .filter(|other| to == To::All || to == To::Node(other.to_string().into()))
                .collect();
            to.into_iter().for_each(|to| self.send(at, to, &text));
        }
    }

    fn send(&mut self, from: usize, to: usize, text: &str) {
        if self.nodes[from].is_parted || self.nodes[to].is_parted {
            return;
        }
        // One in four is lost, one in four comes twice, and each in its own time.
        let copies =
            if self.is_reliable { 1 } else { [0, 1, 1, 2][usize::try_from(self.draw(4)).unwrap()] };
        for _ in 0..copies {
            let delay = if self.is_reliable { 0 } else { self.draw(30) };
            self.sent += 1;
            let at = self.now + TENTH * u32::try_from(delay).unwrap();
            self.underway.insert((at, self.sent), (to, text.to_owned()));
        }
    }

    /// Lets the network be as it should, until all have heard of all.
    fn settle(&mut self) {
        self.happen(&Event::Heal);
        self.is_reliable = true;
        // As long as a node may be silent, and some periods more.
        self.happen(&Event::Pass(150));
    }

    /// What a replica says who is there.
    fn listed(&self, at: usize) -> BTreeSet<(String, String, String)> {
        let tracker = &self.nodes[at].tracker;
        let topics = (0..3).map(|topic: u8| topic.to_string());
        let all = topics.flat_map(|topic| {
            let list = tracker.list(&topic);
            let list =
                list.map(|(key, meta)| (topic.clone(), key.to_string(), json!(**meta).to_string()));
            list.collect::<Vec<_>>()
        });
        all.collect()
    }

    /// What it tracks itself.
    fn own(&self, at: usize) -> BTreeSet<(String, String, String)> {
        let tracker = &self.nodes[at].tracker;
        let entries = tracker.entries.all().map(|(_, Entry { topic, key, meta })| {
            (topic.to_string(), key.to_string(), json!(*meta).to_string())
        });
        entries.collect()
    }
}

proptest! {
    #[test]
    fn replicas_come_to_agree_however_bad_the_network_was(
        nodes in 2_usize..4, random: u64, events in events(4),
    ) {
        let mut world = World::new(nodes, random);
        for event in &events {
            let at = match event {
                Event::Track(at, _) | Event::Update(at, _) | Event::Untrack(at, _)
                | Event::UntrackAll(at, _) | Event::Part(at) | Event::Restart(at) => *at,
                Event::Pass(_) | Event::Heal => 0,
            };
            if at < nodes {
                world.happen(event);
            }
            // What a replica has told of comings and goings is at all times what it would list.
            for at in 0..nodes {
                prop_assert_eq!(&world.nodes[at].seen.0, &world.listed(at));
            }
        }
        world.settle();
        let all: BTreeSet<_> = (0..nodes).flat_map(|at| world.own(at)).collect();
        for at in 0..nodes {
            prop_assert_eq!(&world.listed(at), &all, "node {}", at);
            prop_assert_eq!(&world.nodes[at].seen.0, &all);
            prop_assert_eq!(world.nodes[at].tracker.len(), all.len());
        }
    }
}

/// Two replicas that hear each other, and what they say is handed over by the test.
fn two() -> [Tracker; 2] {
    ["a", "b"].map(|node| Tracker::replicated(node, 1, 0, options(), Duration::ZERO))
}

fn says(from: &mut Tracker, input: Input, now: Duration) -> (Diffs, Vec<Message>) {
    let Step { diffs, send } = from.step(input, now);
    (diffs, send.into_iter().map(|outgoing| outgoing.message).collect())
}

fn track(tracker: &mut Tracker, key: &str) {
    let meta = Arc::new(Map::new());
    tracker.track(1, &"t".into(), &key.into(), meta).unwrap();
}

fn keys(tracker: &Tracker) -> Vec<&str> {
    tracker.list("t").map(|(key, _)| &**key).collect()
}

#[test]
fn what_was_learned_by_asking_and_is_gone_by_the_next_period_leaves() {
    let ([mut a, mut b], now) = (two(), Duration::from_secs(1));
    // A begins to tell; B, which is new to it, has missed something and asks.
    track(&mut a, "one");
    let (_, told) = says(&mut a, Input::Tick, now);
    drop(told);
    track(&mut a, "two");
    let (_, here) = says(&mut b, Input::Tick, now);
    let (_, answer) = says(&mut a, Input::Message(here[0].clone()), now);
    let (_, missing) = says(&mut b, Input::Message(answer[0].clone()), now);
    let missing = missing.last().unwrap().clone();
    let (_, since) = says(&mut a, Input::Message(missing), now);
    says(&mut b, Input::Message(since[0].clone()), now);
    assert_eq!(keys(&b), ["one", "two"]);
    // What A tells next begins before what B knows.
    a.untrack(1, "t", "two").unwrap();
    let (_, told) = says(&mut a, Input::Tick, now * 2);
    let (diffs, _) = says(&mut b, Input::Message(told[0].clone()), now * 2);
    assert_eq!(keys(&b), ["one"]);
    assert_eq!(diffs["t"].leaves.len(), 1);
}

#[test]
fn a_node_that_says_good_bye_is_gone_at_once_and_one_that_is_killed_after_a_while() {
    for says_so in [true, false] {
        let options = options().permdown_on_shutdown(says_so);
        let mut a = Tracker::replicated("a", 1, 0, options, Duration::ZERO);
        let [_, mut b] = two();
        track(&mut a, "ada");
        let (_, told) = says(&mut a, Input::Tick, Duration::ZERO);
        let (diffs, _) = says(&mut b, Input::Message(told[0].clone()), Duration::ZERO);
        assert_eq!(diffs["t"].joins.len(), 1);
        let farewell = a.farewell();
        assert_eq!(farewell.len(), usize::from(says_so));
        for Outgoing { message, .. } in farewell {
            b.step(Input::Message(message), Duration::ZERO);
        }
        assert_eq!(keys(&b).is_empty(), says_so);
        b.step(Input::Tick, Duration::from_secs(30));
        assert_eq!(keys(&b).is_empty(), says_so);
        b.step(Input::Tick, Duration::from_millis(30_001));
        assert!(keys(&b).is_empty());
    }
}

#[test]
fn a_node_with_nothing_to_tell_says_so_every_fifteen_seconds() {
    let mut a = two().into_iter().next().unwrap();
    let mut said = vec![];
    for period in 0..40 {
        let now = a.next_tick().unwrap();
        assert_eq!(now, Duration::from_millis(1500 * period));
        if !says(&mut a, Input::Tick, now).1.is_empty() {
            said.push(period);
        }
    }
    assert_eq!(said, [0, 10, 20, 30]);
}

#[test]
fn a_node_that_has_missed_too_much_is_sent_everything() {
    let ([mut a, mut b], now) = (two(), Duration::from_secs(1));
    for n in 0..20 {
        track(&mut a, &n.to_string());
    }
    let (_, told) = says(&mut a, Input::Tick, now);
    let (_, said) = says(&mut b, Input::Message(told[0].clone()), now);
    assert!(keys(&b).is_empty(), "it is told how much there is");
    let (_, all) = says(&mut a, Input::Message(said.last().unwrap().clone()), now);
    says(&mut b, Input::Message(all.last().unwrap().clone()), now);
    assert_eq!(keys(&b).len(), 20);
    assert_eq!((a.len(), b.len()), (20, 20));
}

#[test]
fn one_that_is_alone_keeps_nothing_for_others() {
    let mut alone = Tracker::alone();
    for n in 0..100 {
        track(&mut alone, &n.to_string());
        alone.untrack(1, "t", &n.to_string()).unwrap();
    }
    assert_eq!((alone.next_tick(), alone.len(), alone.has_topic("t")), (None, 0, false));
    assert_eq!(alone.log.len(), 0);
    assert!(alone.step(Input::Tick, Duration::ZERO).send.is_empty());
}

#[test]
fn options_that_cannot_be_kept_together_are_refused() {
    let refused = |options: TrackerOptions| options.checked().unwrap_err().to_string();
    assert_eq!(options().checked(), Ok(()));
    assert_eq!(
        refused(TrackerOptions::new().down_period(Duration::from_secs(15))),
        "a node may be silent for 15s, so it cannot be down after 15s"
    );
    assert_eq!(
        refused(TrackerOptions::new().permdown_period(Duration::from_secs(30))),
        "a node is down after 30s, so it cannot be forgotten after 30s"
    );
    let never = refused(TrackerOptions::new().broadcast_period(Duration::ZERO));
    assert!(never.contains("more than zero"), "{never}");
}
