//! A replica among others: when it sends its messages, and how it handles theirs. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Diffs, Input, Meta, OutboundMessage, StepOutput, To, TrackerOptions,
    message::{Clock, Delta, Message, ReplicaRef},
    state::{Entry, LocalReplica, RemoteReplica},
    store::Store,
};

/// How many heartbeats in a row a new replica sends. One period after the last one, all others have
/// answered, even if one message was lost.
const STARTING_HEARTBEATS: u32 = 3;

/// A replica among others.
pub(super) struct Cluster {
    local: LocalReplica,
    /// The others, by node.
    peers: BTreeMap<Arc<str>, Peer>,
    options: TrackerOptions,
    next_tick: Duration,
    /// The number of periods without a message.
    silent: u32,
    /// The number of periods until it checks for missing changes.
    until_sample: u32,
    /// The number of periods until all others have been heard.
    starting: u32,
}

/// Another replica, as known here.
struct Peer {
    of: ReplicaRef,
    remote: RemoteReplica,
    heard: Duration,
    /// Whether its entries are hidden, because it has been silent for too long.
    down: bool,
    /// Its clocks, as of its last message.
    clocks: Vec<Clock>,
    /// The last of its changes that it has announced.
    announced: u64,
    /// Whether another replica uses its name: the node may have been restarted with an earlier
    /// clock.
    contested: bool,
}

impl Cluster {
    pub(super) fn new(
        node: &str,
        version: u64,
        seed: u64,
        options: TrackerOptions,
        now: Duration,
    ) -> Self {
        let of = ReplicaRef { node: node.into(), version };
        let local = LocalReplica::new(of, options.max_delta_sizes.clone());
        // At some moment in the first quarter of a period.
        let share = u32::try_from(seed % 1_000).unwrap_or_default();
        let next_tick = now.saturating_add(options.broadcast_period / 4 / 1_000 * share);
        let (silent, until_sample) = (options.max_silent_periods, options.clock_sample_periods);
        let (peers, starting) = (BTreeMap::new(), STARTING_HEARTBEATS + 1);
        Self { local, peers, options, next_tick, silent, until_sample, starting }
    }

    pub(super) fn added(&mut self, topic: &Arc<str>, key: &Arc<str>, meta: &Meta) -> u64 {
        self.local.added(topic, key, meta)
    }

    pub(super) fn removed(&mut self, clock: u64) {
        self.local.removed(clock);
    }

    pub(super) fn next_tick(&self) -> Duration {
        self.next_tick
    }

    /// Whether all entries of the other nodes are known here: each node that may exist has been
    /// heard recently, and none of its announced changes is missing.
    pub(super) fn knows_all(&self) -> bool {
        let known = |peer: &Peer| !peer.down && !peer.contested && !peer.is_behind();
        self.starting == 0 && self.peers.values().all(known)
    }

    pub(super) fn step(&mut self, input: Input, now: Duration, store: &mut Store) -> StepOutput {
        let mut step = StepOutput::default();
        match input {
            Input::Tick if now >= self.next_tick => self.tick(now, store, &mut step),
            Input::Tick => {}
            // The message is from this node, possibly from an earlier start of it.
            Input::Message(message) if message.from().node == self.local.of().node => {}
            Input::Message(message) => self.receive(message, now, store, &mut step),
        }
        step
    }

    pub(super) fn shutdown_message(&self) -> Vec<OutboundMessage> {
        let message = Message::GracefulPermdown { from: self.local.of().clone() };
        let announced = self.options.permdown_on_shutdown;
        announced.then_some(OutboundMessage { to: To::All, message }).into_iter().collect()
    }

    fn tick(&mut self, now: Duration, store: &mut Store, step: &mut StepOutput) {
        let period = self.options.broadcast_period;
        let next = self.next_tick.saturating_add(period);
        self.next_tick = if next > now { next } else { now.saturating_add(period) };
        self.detect_down(now, store, &mut step.diffs);
        self.heartbeat(&mut step.send);
        self.until_sample = self.until_sample.saturating_sub(1);
        if self.until_sample == 0 {
            self.until_sample = self.options.clock_sample_periods;
            self.request_missing(&mut step.send);
        }
    }

    fn detect_down(&mut self, now: Duration, store: &mut Store, diffs: &mut Diffs) {
        let (down, permdown) = (self.options.down(), self.options.permdown_period);
        self.peers.retain(|_, peer| {
            let silence = now.saturating_sub(peer.heard);
            if silence >= down && !peer.down {
                peer.mark_down(store, diffs);
            }
            silence < permdown
        });
    }

    fn heartbeat(&mut self, send: &mut Vec<OutboundMessage>) {
        let delta = self.local.take_pending_delta();
        self.silent = self.silent.saturating_add(1);
        let is_due = self.starting > 1 || self.silent >= self.options.silent_periods();
        self.starting = self.starting.saturating_sub(1);
        if delta.is_none() && !is_due {
            return;
        }
        self.silent = 0;
        let (from, clocks) = (self.local.of().clone(), self.clocks());
        let message = Message::Heartbeat { from, delta, clocks };
        send.push(OutboundMessage { to: To::All, message });
    }

    /// The clocks of all replicas, as known here.
    fn clocks(&self) -> Vec<Clock> {
        let local = Clock { of: self.local.of().clone(), clock: self.local.sent_upto() };
        let clock = |peer: &Peer| Clock { of: peer.of.clone(), clock: peer.remote.context.base() };
        std::iter::once(local).chain(self.peers.values().map(clock)).collect()
    }

    /// Requests the missing changes from as few of the others as possible.
    fn request_missing(&mut self, send: &mut Vec<OutboundMessage>) {
        // For each replica with missing changes: the nodes that know most of it.
        let mut best: BTreeMap<&Arc<str>, (u64, BTreeSet<&Arc<str>>)> = BTreeMap::new();
        for peer in self.peers.values().filter(|peer| !peer.down) {
            for Clock { of, clock } in &peer.clocks {
                let known = self.peers.get(&of.node).filter(|known| known.of == *of);
                if known.is_none_or(|known| *clock <= known.remote.context.base()) {
                    continue;
                }
                let (most, who) = best.entry(&of.node).or_default();
                if *clock > *most {
                    (*most, *who) = (*clock, BTreeSet::new());
                }
                if clock == most {
                    who.insert(&peer.of.node);
                }
            }
        }
        let mut asked = Vec::new();
        while !best.is_empty() {
            let helps =
                |node: &Arc<str>| best.values().filter(|(_, who)| who.contains(node)).count();
            // A replica knows its own changes best, and its answer is the shortest.
            let rank = |node: &&&Arc<str>| (helps(node), best.contains_key(**node));
            let candidates = best.values().flat_map(|(_, who)| who);
            let Some(node) = candidates.max_by_key(rank).copied() else { break };
            best.retain(|_, (_, who)| !who.contains(node));
            asked.push(node.clone());
        }
        let (from, clocks) = (self.local.of(), self.clocks());
        send.extend(asked.into_iter().map(|node| OutboundMessage {
            to: To::Node(node),
            message: Message::TransferReq { from: from.clone(), clocks: clocks.clone() },
        }));
    }

    fn receive(
        &mut self,
        message: Message,
        now: Duration,
        store: &mut Store,
        step: &mut StepOutput,
    ) {
        let diffs = &mut step.diffs;
        match message {
            Message::Heartbeat { from, delta, clocks } => {
                // A node whose clock was set back has an earlier version. For it to be heard, the
                // later version has to be down.
                let is_past = |known: &Peer| {
                    known.of.version < from.version || known.down && known.of != from
                };
                self.remove_if(&from.node, is_past, store, diffs);
                let peer = self.peers.entry(from.node.clone()).or_insert_with(|| Peer {
                    of: from.clone(),
                    remote: RemoteReplica::default(),
                    heard: now,
                    down: true,
                    clocks: Vec::new(),
                    announced: 0,
                    contested: false,
                });
                // The message may be late, and from before the node's restart.
                peer.contested = peer.of != from;
                if peer.contested {
                    // If the replica is new after all, it counts itself alone until it hears from this one.
                    self.silent = self.options.max_silent_periods;
                    return;
                }
                peer.heard = now;
                peer.store_clocks(clocks);
                if let Some(delta) = delta.filter(|delta| delta.of == from) {
                    peer.merge(delta, store, diffs);
                }
                if peer.down {
                    peer.mark_up(store, diffs);
                    // A replica that is new, or back, should soon hear from this one.
                    self.silent = self.options.max_silent_periods;
                }
            }
            Message::TransferReq { from, clocks } => {
                let deltas: Vec<_> = clocks.iter().filter_map(|clock| self.since(clock)).collect();
                if !deltas.is_empty() {
                    let message = Message::TransferAck { from: self.local.of().clone(), deltas };
                    step.send.push(OutboundMessage { to: To::Node(from.node), message });
                }
            }
            Message::TransferAck { deltas, .. } => {
                for delta in deltas {
                    let known = self.peers.get_mut(&delta.of.node);
                    if let Some(peer) = known.filter(|peer| peer.of == delta.of) {
                        peer.merge(delta, store, diffs);
                    }
                }
            }
            Message::GracefulPermdown { from } => {
                let is_past = |known: &Peer| known.of.version <= from.version;
                self.remove_if(&from.node, is_past, store, diffs);
            }
        }
    }

    /// The changes of a replica after this clock, as far as known.
    fn since(&self, Clock { of, clock }: &Clock) -> Option<Delta> {
        if of == self.local.of() {
            return (*clock < self.local.sent_upto()).then(|| self.local.since(*clock));
        }
        let peer = self.peers.get(&of.node).filter(|peer| peer.of == *of)?;
        (*clock < peer.remote.context.base()).then(|| peer.remote.all(of))
    }

    /// Removes a node's replica, if the condition holds.
    fn remove_if(
        &mut self,
        node: &Arc<str>,
        is_past: impl FnOnce(&Peer) -> bool,
        store: &mut Store,
        diffs: &mut Diffs,
    ) {
        if self.peers.get(node).is_some_and(is_past)
            && let Some(mut peer) = self.peers.remove(node)
        {
            peer.mark_down(store, diffs);
        }
    }

    /// The number of intervals kept beyond gaps, and of changes kept for others.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.peers.values().map(|peer| peer.remote.context.gaps()).sum(), self.local.kept())
    }
}

impl Peer {
    /// Stores its clocks, unless they are older than the known ones.
    fn store_clocks(&mut self, clocks: Vec<Clock>) {
        let of_itself = |clocks: &[Clock]| {
            clocks.iter().find(|clock| clock.of == self.of).map(|clock| clock.clock)
        };
        let announced = of_itself(&clocks);
        if announced >= of_itself(&self.clocks) {
            self.announced = announced.unwrap_or_default();
            self.clocks = clocks;
        }
    }

    /// Whether it has announced changes that have not arrived.
    fn is_behind(&self) -> bool {
        self.remote.context.base() < self.announced
    }

    fn merge(&mut self, delta: Delta, store: &mut Store, diffs: &mut Diffs) {
        let merged = self.remote.merge(delta);
        merged.leaves.into_iter().for_each(|entry| leave(entry, store, diffs));
        if !self.down {
            for clock in merged.joins {
                self.remote
                    .values
                    .get_mut(&clock)
                    .into_iter()
                    .for_each(|entry| join(entry, store, diffs));
            }
        }
    }

    fn mark_up(&mut self, store: &mut Store, diffs: &mut Diffs) {
        self.down = false;
        self.remote.values.values_mut().for_each(|entry| join(entry, store, diffs));
    }

    fn mark_down(&mut self, store: &mut Store, diffs: &mut Diffs) {
        self.down = true;
        for entry in self.remote.values.values_mut() {
            let hidden = Entry { value: entry.value.clone(), position: entry.position.take() };
            leave(hidden, store, diffs);
        }
    }
}

fn join(entry: &mut Entry, store: &mut Store, diffs: &mut Diffs) {
    let value = &entry.value;
    entry.position = Some(store.put_elsewhere(&value.topic, &value.key, &value.meta));
    let diff = diffs.entry(value.topic.clone()).or_default();
    diff.joins.push((value.key.clone(), value.meta.clone()));
}

/// Reports an entry's leave, if it was listed.
fn leave(entry: Entry, store: &mut Store, diffs: &mut Diffs) {
    let Entry { value, position } = entry;
    if position.is_some_and(|position| store.take(&value.topic, position).is_some()) {
        diffs.entry(value.topic).or_default().leaves.push((value.key, value.meta));
    }
}
