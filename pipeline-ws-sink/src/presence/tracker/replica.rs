//! A replica among others: when it sends its messages, and how it handles theirs. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Diffs, Input, Meta, Outgoing, Step, To, TrackerOptions,
    message::{Clock, Delta, Message, ReplicaRef},
    state::{Copy, Held, Own},
    store::Store,
};

/// How many heartbeats in a row a new replica sends. One period after the last one, all others have
/// answered, even if one message was lost.
const STARTING_HEARTBEATS: u32 = 3;

/// A replica among others.
pub(super) struct Cluster {
    own: Own,
    /// The others, by node.
    others: BTreeMap<Arc<str>, Other>,
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
struct Other {
    of: ReplicaRef,
    copy: Copy,
    heard: Duration,
    /// Whether it has been silent for so long that its entries are hidden.
    down: bool,
    /// Its clocks, as of its last message.
    clocks: Vec<Clock>,
    /// The last of its changes that it has announced.
    told: u64,
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
        let own = Own::new(of, options.max_delta_sizes.clone());
        // At some moment in the first quarter of a period.
        let share = u32::try_from(seed % 1_000).unwrap_or_default();
        let next_tick = now.saturating_add(options.broadcast_period / 4 / 1_000 * share);
        let (silent, until_sample) = (options.max_silent_periods, options.clock_sample_periods);
        let (others, starting) = (BTreeMap::new(), STARTING_HEARTBEATS + 1);
        Self { own, others, options, next_tick, silent, until_sample, starting }
    }

    pub(super) fn added(&mut self, topic: &Arc<str>, key: &Arc<str>, meta: &Meta) -> u64 {
        self.own.added(topic, key, meta)
    }

    pub(super) fn removed(&mut self, clock: u64) {
        self.own.removed(clock);
    }

    pub(super) fn next_tick(&self) -> Duration {
        self.next_tick
    }

    /// Whether all entries of the other nodes are known here: each node that may exist has been
    /// heard recently, and none of its announced changes is missing.
    pub(super) fn knows_all(&self) -> bool {
        let known = |other: &Other| !other.down && !other.contested && !other.is_behind();
        self.starting == 0 && self.others.values().all(known)
    }

    pub(super) fn step(&mut self, input: Input, now: Duration, store: &mut Store) -> Step {
        let mut step = Step::default();
        match input {
            Input::Tick if now >= self.next_tick => self.tick(now, store, &mut step),
            Input::Tick => {}
            // The message is from this node, possibly from an earlier start of it.
            Input::Message(message) if message.from().node == self.own.of().node => {}
            Input::Message(message) => self.receive(message, now, store, &mut step),
        }
        step
    }

    pub(super) fn farewell(&self) -> Vec<Outgoing> {
        let message = Message::GracefulPermdown { from: self.own.of().clone() };
        let announced = self.options.permdown_on_shutdown;
        announced.then_some(Outgoing { to: To::All, message }).into_iter().collect()
    }

    fn tick(&mut self, now: Duration, store: &mut Store, step: &mut Step) {
        let period = self.options.broadcast_period;
        let next = self.next_tick.saturating_add(period);
        self.next_tick = if next > now { next } else { now.saturating_add(period) };
        self.look_who_is_down(now, store, &mut step.diffs);
        self.heartbeat(&mut step.send);
        self.until_sample = self.until_sample.saturating_sub(1);
        if self.until_sample == 0 {
            self.until_sample = self.options.clock_sample_periods;
            self.ask_for_what_is_missing(&mut step.send);
        }
    }

    fn look_who_is_down(&mut self, now: Duration, store: &mut Store, diffs: &mut Diffs) {
        let (down, permdown) = (self.options.down(), self.options.permdown_period);
        self.others.retain(|_, other| {
            let silence = now.saturating_sub(other.heard);
            if silence >= down && !other.down {
                other.hide(store, diffs);
            }
            silence < permdown
        });
    }

    fn heartbeat(&mut self, send: &mut Vec<Outgoing>) {
        let delta = self.own.take_news();
        self.silent = self.silent.saturating_add(1);
        let is_due = self.starting > 1 || self.silent >= self.options.silent_periods();
        self.starting = self.starting.saturating_sub(1);
        if delta.is_none() && !is_due {
            return;
        }
        self.silent = 0;
        let (from, clocks) = (self.own.of().clone(), self.clocks());
        let message = Message::Heartbeat { from, delta, clocks };
        send.push(Outgoing { to: To::All, message });
    }

    /// The clocks of all replicas, as known here.
    fn clocks(&self) -> Vec<Clock> {
        let own = Clock { of: self.own.of().clone(), clock: self.own.told() };
        let clock =
            |other: &Other| Clock { of: other.of.clone(), clock: other.copy.seen.context() };
        std::iter::once(own).chain(self.others.values().map(clock)).collect()
    }

    /// Requests the missing changes from as few of the others as possible.
    fn ask_for_what_is_missing(&mut self, send: &mut Vec<Outgoing>) {
        // For each replica with missing changes: the nodes that know most of it.
        let mut best: BTreeMap<&Arc<str>, (u64, BTreeSet<&Arc<str>>)> = BTreeMap::new();
        for other in self.others.values().filter(|other| !other.down) {
            for Clock { of, clock } in &other.clocks {
                let known = self.others.get(&of.node).filter(|known| known.of == *of);
                if known.is_none_or(|known| *clock <= known.copy.seen.context()) {
                    continue;
                }
                let (most, who) = best.entry(&of.node).or_default();
                if *clock > *most {
                    (*most, *who) = (*clock, BTreeSet::new());
                }
                if clock == most {
                    who.insert(&other.of.node);
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
        let (from, clocks) = (self.own.of(), self.clocks());
        send.extend(asked.into_iter().map(|node| Outgoing {
            to: To::Node(node),
            message: Message::TransferReq { from: from.clone(), clocks: clocks.clone() },
        }));
    }

    fn receive(&mut self, message: Message, now: Duration, store: &mut Store, step: &mut Step) {
        let diffs = &mut step.diffs;
        match message {
            Message::Heartbeat { from, delta, clocks } => {
                // A node whose clock was set back has an earlier version. For it to be heard, the
                // later version has to be down.
                let is_past = |known: &Other| {
                    known.of.version < from.version || known.down && known.of != from
                };
                self.forget_if(&from.node, is_past, store, diffs);
                let other = self.others.entry(from.node.clone()).or_insert_with(|| Other {
                    of: from.clone(),
                    copy: Copy::default(),
                    heard: now,
                    down: true,
                    clocks: Vec::new(),
                    told: 0,
                    contested: false,
                });
                // The message may be late, and from before the node's restart.
                other.contested = other.of != from;
                if other.contested {
                    // If the replica is new after all, it counts itself alone until it hears from this one.
                    self.silent = self.options.max_silent_periods;
                    return;
                }
                other.heard = now;
                other.hear_clocks(clocks);
                if let Some(delta) = delta.filter(|delta| delta.of == from) {
                    other.merge(delta, store, diffs);
                }
                if other.down {
                    other.show(store, diffs);
                    // A replica that is new, or back, should soon hear from this one.
                    self.silent = self.options.max_silent_periods;
                }
            }
            Message::TransferReq { from, clocks } => {
                let deltas: Vec<_> = clocks.iter().filter_map(|clock| self.since(clock)).collect();
                if !deltas.is_empty() {
                    let message = Message::TransferAck { from: self.own.of().clone(), deltas };
                    step.send.push(Outgoing { to: To::Node(from.node), message });
                }
            }
            Message::TransferAck { deltas, .. } => {
                for delta in deltas {
                    let known = self.others.get_mut(&delta.of.node);
                    if let Some(other) = known.filter(|other| other.of == delta.of) {
                        other.merge(delta, store, diffs);
                    }
                }
            }
            Message::GracefulPermdown { from } => {
                let is_past = |known: &Other| known.of.version <= from.version;
                self.forget_if(&from.node, is_past, store, diffs);
            }
        }
    }

    /// The changes of a replica after this clock, as far as known.
    fn since(&self, Clock { of, clock }: &Clock) -> Option<Delta> {
        if of == self.own.of() {
            return (*clock < self.own.told()).then(|| self.own.since(*clock));
        }
        let other = self.others.get(&of.node).filter(|other| other.of == *of)?;
        (*clock < other.copy.seen.context()).then(|| other.copy.all(of))
    }

    /// Removes a node's replica, if the condition holds.
    fn forget_if(
        &mut self,
        node: &Arc<str>,
        is_past: impl FnOnce(&Other) -> bool,
        store: &mut Store,
        diffs: &mut Diffs,
    ) {
        if self.others.get(node).is_some_and(is_past)
            && let Some(mut other) = self.others.remove(node)
        {
            other.hide(store, diffs);
        }
    }

    /// The number of intervals kept beyond gaps, and of changes kept for others.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.others.values().map(|other| other.copy.seen.gaps()).sum(), self.own.kept())
    }
}

impl Other {
    /// Stores its clocks, unless they are older than the known ones.
    fn hear_clocks(&mut self, clocks: Vec<Clock>) {
        let of_itself = |clocks: &[Clock]| {
            clocks.iter().find(|clock| clock.of == self.of).map(|clock| clock.clock)
        };
        let told = of_itself(&clocks);
        if told >= of_itself(&self.clocks) {
            self.told = told.unwrap_or_default();
            self.clocks = clocks;
        }
    }

    /// Whether it has announced changes that have not arrived.
    fn is_behind(&self) -> bool {
        self.copy.seen.context() < self.told
    }

    fn merge(&mut self, delta: Delta, store: &mut Store, diffs: &mut Diffs) {
        let merged = self.copy.merge(delta);
        merged.leaves.into_iter().for_each(|held| leave(held, store, diffs));
        if !self.down {
            for clock in merged.joins {
                self.copy
                    .values
                    .get_mut(&clock)
                    .into_iter()
                    .for_each(|held| join(held, store, diffs));
            }
        }
    }

    fn show(&mut self, store: &mut Store, diffs: &mut Diffs) {
        self.down = false;
        self.copy.values.values_mut().for_each(|held| join(held, store, diffs));
    }

    fn hide(&mut self, store: &mut Store, diffs: &mut Diffs) {
        self.down = true;
        for held in self.copy.values.values_mut() {
            let hidden = Held { value: held.value.clone(), place: held.place.take() };
            leave(hidden, store, diffs);
        }
    }
}

fn join(held: &mut Held, store: &mut Store, diffs: &mut Diffs) {
    let value = &held.value;
    held.place = Some(store.put_elsewhere(&value.topic, &value.key, &value.meta));
    let diff = diffs.entry(value.topic.clone()).or_default();
    diff.joins.push((value.key.clone(), value.meta.clone()));
}

/// Reports an entry's leave, if it was listed.
fn leave(held: Held, store: &mut Store, diffs: &mut Diffs) {
    let Held { value, place } = held;
    if place.is_some_and(|place| store.take(&value.topic, place).is_some()) {
        diffs.entry(value.topic).or_default().leaves.push((value.key, value.meta));
    }
}
