//! Replicated presences: replicas that receive any messages do not panic and report every change once, and
//! they converge when all messages arrive.
//!
//! In half of the inputs, forged messages name any sender. In the others they name nodes that do not exist,
//! and in the end all real nodes list the entries of all real nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use pipeline_ws_sink::{
    fuzzing::{PresenceDiffs, PresenceMessage, PresenceReplica},
    presence::TrackerOptions,
};
use serde_json::{Map, Value, json};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"{\"v\":1,\"message\":{\"heartbeat\":{\"from\":{\"node\":\"ann\",\"version\":1},\"delta\":null,\"clocks\":[]}}}",
    b"{\"transfer_req\":",
    b"{\"transfer_ack\":",
    b"{\"graceful_permdown\":",
    b"\"removed\":[1]",
    b"\"values\":{\"1\":{\"topic\":\"t\",\"key\":\"k\",\"meta\":{}}}",
    b"\"after\":0,\"upto\":1",
    b"18446744073709551615",
];

const NODES: [&str; 3] = ["ann", "bob", "cid"];

const TOPICS: [&str; 2] = ["t", "u"];

const KEYS: [&str; 3] = ["k", "l", "m"];

/// An entry: its topic, its key and its meta as JSON.
type Entry = (String, String, String);

struct Node {
    replica: PresenceReplica,
    /// The entries, added up from the reported changes, each with its number.
    folded: BTreeMap<Entry, usize>,
    /// Its own entries, by actor, topic and key.
    own: BTreeMap<(u64, &'static str, &'static str), String>,
}

struct Network {
    nodes: Vec<Node>,
    now: Duration,
    wire: Vec<(usize, Option<Arc<str>>, Bytes)>,
    metas: u64,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let forges_real_nodes = input.flag();
    let mut network = Network::new();
    let mut steps = 0;
    while !input.is_empty() && steps < 200 {
        steps += 1;
        let at = input.below(NODES.len());
        let (actor, topic, key) =
            (u64::from(input.flag()), input.choice(&TOPICS), input.choice(&KEYS));
        match input.below(8) {
            0 | 1 => network.track(at, actor, topic, key),
            2 => network.untrack(at, actor, topic, key),
            3 => network.deliver(input.below(8), input.below(4) == 0),
            4 => network.wait(Duration::from_millis(50 * u64::from(input.byte()))),
            5 => {
                let message = input.bytes(255);
                network.receive(at, Bytes::copy_from_slice(message), !forges_real_nodes);
            }
            _ => {
                let message = forged(&mut input, forges_real_nodes);
                network.receive(at, message, false);
            }
        }
    }
    if !forges_real_nodes {
        network.converge();
    }
}

impl Network {
    fn new() -> Self {
        let options = TrackerOptions::new()
            .permdown_period(Duration::from_secs(120))
            .max_delta_sizes([2, 4]);
        let now = Duration::from_secs(100);
        let nodes = (1..).zip(NODES).map(|(version, name)| Node {
            replica: PresenceReplica::new(name, version, options.clone(), now),
            folded: BTreeMap::new(),
            own: BTreeMap::new(),
        });
        Self { nodes: nodes.collect(), now, wire: Vec::new(), metas: 0 }
    }

    fn track(&mut self, at: usize, actor: u64, topic: &'static str, key: &'static str) {
        self.metas += 1;
        let meta = json!({ "n": self.metas });
        let Value::Object(map) = meta.clone() else { return };
        let (map, node) = (Arc::new(map), &mut self.nodes[at]);
        if !node.replica.track(actor, &topic.into(), &key.into(), map.clone()) {
            let old = node.replica.update(actor, topic, key, map).expect("the key is tracked");
            let old = Value::Object((*old).clone()).to_string();
            node.fold(&[], &[(topic.to_owned(), key.to_owned(), old)]);
        }
        let entry = (topic.to_owned(), key.to_owned(), meta.to_string());
        node.fold(&[entry], &[]);
        node.own.insert((actor, topic, key), meta.to_string());
        node.check(at);
    }

    fn untrack(&mut self, at: usize, actor: u64, topic: &'static str, key: &'static str) {
        let node = &mut self.nodes[at];
        let gone = node.replica.untrack(actor, topic, key);
        let gone = gone.map(|meta| Value::Object((*meta).clone()).to_string());
        assert_eq!(gone, node.own.remove(&(actor, topic, key)), "the untracked entry");
        if let Some(meta) = gone {
            node.fold(&[], &[(topic.to_owned(), key.to_owned(), meta)]);
        }
        node.check(at);
    }

    /// Delivers one of the messages in transit, or loses it.
    fn deliver(&mut self, which: usize, is_lost: bool) {
        if self.wire.is_empty() {
            return;
        }
        let (from, to, message) = self.wire.remove(which % self.wire.len());
        if is_lost {
            return;
        }
        for (at, name) in NODES.iter().enumerate() {
            if at != from && to.as_deref().is_none_or(|to| to == *name) {
                self.receive(at, message.clone(), false);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let ticks = self.nodes.iter().filter_map(|node| node.replica.next_tick());
            let Some(next) = ticks.min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            for at in 0..self.nodes.len() {
                if self.nodes[at].replica.next_tick() <= Some(self.now) {
                    let ticked = self.nodes[at].replica.tick(self.now).expect("it is JSON");
                    self.take(at, ticked);
                }
            }
        }
        self.now = end;
    }

    /// Receives a message; those that name a real node only if it is `genuine`.
    fn receive(&mut self, at: usize, message: Bytes, only_if_unknown: bool) {
        let names_a_node = |message: &Bytes| {
            let names = NODES.iter().any(|name| contains(message, name.as_bytes()));
            names || contains(message, b"\\")
        };
        if only_if_unknown && names_a_node(&message) {
            return;
        }
        let received = self.nodes[at].replica.receive(message, self.now).expect("it is JSON");
        if let Some(received) = received {
            self.take(at, received);
        }
    }

    fn take(&mut self, at: usize, (diffs, send): (PresenceDiffs, Vec<PresenceMessage>)) {
        let entry = |(topic, key, meta): &(Arc<str>, Arc<str>, Arc<Map<String, Value>>)| {
            let meta = Value::Object((**meta).clone()).to_string();
            (topic.to_string(), key.to_string(), meta)
        };
        let joins: Vec<Entry> = diffs.joins.iter().map(entry).collect();
        let leaves: Vec<Entry> = diffs.leaves.iter().map(entry).collect();
        if !joins.is_empty() || !leaves.is_empty() {
            self.nodes[at].fold(&joins, &leaves);
            self.nodes[at].check(at);
        }
        self.wire.extend(send.into_iter().map(|(to, message)| (at, to, message)));
        // A long list only costs time.
        let excess = self.wire.len().saturating_sub(100);
        self.wire.drain(..excess);
    }

    fn converge(mut self) {
        // Nodes that do not exist are silent, and are removed.
        for _ in 0..140 {
            self.wait(Duration::from_millis(1_500));
            while !self.wire.is_empty() {
                self.deliver(0, false);
            }
        }
        let all: BTreeSet<Entry> = self.nodes.iter().flat_map(Node::own_entries).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            let listed: BTreeSet<Entry> = node.folded.keys().cloned().collect();
            assert_eq!(listed, all, "the list of {}", NODES[at]);
            assert!(node.replica.knows_all(), "{} does not know all", NODES[at]);
        }
    }
}

impl Node {
    fn own_entries(&self) -> impl Iterator<Item = Entry> {
        let entries = self.own.iter();
        entries.map(|((_, topic, key), meta)| ((*topic).to_owned(), (*key).to_owned(), meta.clone()))
    }

    fn fold(&mut self, joins: &[Entry], leaves: &[Entry]) {
        for entry in joins {
            *self.folded.entry(entry.clone()).or_default() += 1;
        }
        for entry in leaves {
            match self.folded.get_mut(entry) {
                Some(1) => _ = self.folded.remove(entry),
                Some(count) => *count -= 1,
                None => unreachable!("{entry:?} leaves and has not joined"),
            }
        }
    }

    /// Compares the list with the reported changes.
    fn check(&self, at: usize) {
        let count: usize = self.folded.values().sum();
        assert_eq!(self.replica.len(), count, "the number of entries at {}", NODES[at]);
        for topic in TOPICS {
            let mut listed: BTreeMap<Entry, usize> = BTreeMap::new();
            for (key, meta) in self.replica.list(topic) {
                let meta = Value::Object((*meta).clone()).to_string();
                *listed.entry((topic.to_owned(), key.to_string(), meta)).or_default() += 1;
            }
            let folded = self.folded.iter().filter(|((on, ..), _)| on == topic);
            assert!(folded.eq(&listed), "the list of {topic} at {}", NODES[at]);
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A message that a node could have sent.
fn forged(input: &mut Input<'_>, names_real_nodes: bool) -> Bytes {
    let mut node = |input: &mut Input<'_>| {
        let name = if names_real_nodes {
            input.choice(&["ann", "bob", "cid", "dan"])
        } else {
            input.choice(&["dan", "eve", ""])
        };
        json!({ "node": name, "version": input.below(5) })
    };
    let from = node(input);
    let clocks = |input: &mut Input<'_>, node: &mut dyn FnMut(&mut Input<'_>) -> Value| -> Value {
        let clocks = (0..input.below(3)).map(|_| json!({ "of": node(input), "clock": clock(input) }));
        clocks.collect()
    };
    let message = match input.below(5) {
        0 | 1 => {
            let delta = if input.flag() { delta(input, &from) } else { Value::Null };
            let clocks = clocks(input, &mut node);
            json!({ "heartbeat": { "from": from, "delta": delta, "clocks": clocks } })
        }
        2 => json!({ "transfer_req": { "from": from, "clocks": clocks(input, &mut node) } }),
        3 => {
            let deltas: Value = (0..input.below(3))
                .map(|_| {
                    let of = node(input);
                    delta(input, &of)
                })
                .collect();
            json!({ "transfer_ack": { "from": from, "deltas": deltas } })
        }
        _ => json!({ "graceful_permdown": { "from": from } }),
    };
    json!({ "v": 1, "message": message }).to_string().into()
}

fn clock(input: &mut Input<'_>) -> u64 {
    if input.below(8) == 0 { input.odd_number() } else { input.below(12) as u64 }
}

fn delta(input: &mut Input<'_>, of: &Value) -> Value {
    let (a, b) = (clock(input), clock(input));
    let (after, upto) = (a.min(b), a.max(b));
    let removed: BTreeSet<u64> = (0..input.below(3)).map(|_| clock(input)).collect();
    let values = (0..input.below(4)).map(|at| {
        let value = json!({
            "topic": input.choice(&TOPICS),
            "key": input.choice(&KEYS),
            "meta": { "forged": input.below(3) },
        });
        (after.saturating_add(at as u64 + 1).to_string(), value)
    });
    let values: Map<String, Value> = values.collect();
    json!({ "of": of, "after": after, "upto": upto, "removed": removed, "values": values })
}
