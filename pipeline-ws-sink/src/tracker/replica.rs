//! A replica: what is tracked here, and what is known of the others. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;

use super::{
    Diffs, Meta, TrackerOptions,
    entries::{Entries, Entry},
    log::Log,
    message::{From, Message, Outgoing, Says, To},
    remote::{Note, Remote},
};

/// A replica: what is tracked here, and what is known of the others.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(super) entries: Entries,
    /// Which entries each actor has.
    by_actor: HashMap<u64, BTreeMap<Place, u64>>,
    pub(super) log: Log,
    /// If there are other nodes.
    others: Option<Others>,
}

/// A topic and a key.
type Place = (Arc<str>, Arc<str>);

/// The other nodes, and what they have been told.
#[derive(Debug)]
struct Others {
    me: From,
    options: TrackerOptions,
    remotes: BTreeMap<Arc<str>, Remote>,
    /// Up to which change they have been told.
    told: u64,
    /// When that was; never, at first.
    told_at: Option<Duration>,
    next_tick: Duration,
}

/// Something that happens to a replica.
#[derive(Debug)]
pub(crate) enum Input {
    /// It is time.
    Tick,
    /// Another replica has said something.
    Message(Message),
}

/// What comes of it.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) diffs: Diffs,
    pub(crate) send: Vec<Outgoing>,
}

/// This actor tracks that key on that topic already.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("already tracked")]
pub(crate) struct AlreadyTracked;

impl Tracker {
    /// There are no other nodes.
    pub(crate) fn alone() -> Self {
        Self::new(0, None)
    }

    /// One of several. The version is a higher one at each start. The seed spreads the first messages of
    /// nodes that are started together.
    pub(crate) fn replicated(
        node: &str,
        version: u64,
        seed: u64,
        options: TrackerOptions,
        now: Duration,
    ) -> Self {
        let part = u32::try_from(seed % 1000).unwrap_or_default();
        let soon = options.broadcast_period / 4000 * part;
        let others = Others {
            me: From { node: node.into(), version },
            options,
            remotes: BTreeMap::new(),
            told: 0,
            told_at: None,
            next_tick: now + soon,
        };
        Self::new(options.max_changes, Some(others))
    }

    fn new(max_changes: usize, others: Option<Others>) -> Self {
        let (entries, by_actor) = (Entries::default(), HashMap::new());
        Self { entries, by_actor, log: Log::new(max_changes), others }
    }

    pub(crate) fn track(
        &mut self,
        actor: u64,
        topic: &Arc<str>,
        key: &Arc<str>,
        meta: Meta,
    ) -> Result<(), AlreadyTracked> {
        let own = self.by_actor.entry(actor).or_default();
        let place = (topic.clone(), key.clone());
        if own.contains_key(&place) {
            return Err(AlreadyTracked);
        }
        let number = self.log.add();
        own.insert(place, number);
        self.entries.add(number, Entry { topic: topic.clone(), key: key.clone(), meta });
        Ok(())
    }

    /// Returns what it was, or `None` if it is not tracked.
    pub(crate) fn update(
        &mut self,
        actor: u64,
        topic: &str,
        key: &str,
        meta: Meta,
    ) -> Option<Meta> {
        let number = self.by_actor.get_mut(&actor)?.get_mut(&place(topic, key))?;
        let old = self.entries.remove(*number)?;
        self.log.remove(*number);
        *number = self.log.add();
        self.entries.add(*number, Entry { meta, ..old.clone() });
        Some(old.meta)
    }

    /// Returns what it was, or `None` if it is not tracked.
    pub(crate) fn untrack(&mut self, actor: u64, topic: &str, key: &str) -> Option<Meta> {
        let own = self.by_actor.get_mut(&actor)?;
        let number = own.remove(&place(topic, key))?;
        if own.is_empty() {
            self.by_actor.remove(&actor);
        }
        self.log.remove(number);
        self.entries.remove(number).map(|entry| entry.meta)
    }

    /// Removes all that this actor tracks.
    pub(crate) fn untrack_all(&mut self, actor: u64) -> Diffs {
        let mut diffs = Diffs::new();
        for number in self.by_actor.remove(&actor).unwrap_or_default().into_values() {
            self.log.remove(number);
            if let Some(entry) = self.entries.remove(number) {
                diffs.leave(&entry);
            }
        }
        diffs
    }

    pub(crate) fn get(&self, actor: u64, topic: &str, key: &str) -> Option<&Meta> {
        let number = self.by_actor.get(&actor)?.get(&place(topic, key))?;
        self.entries.get(*number).map(|entry| &entry.meta)
    }

    /// Who is on a topic, in the order in which they came; those here first.
    pub(crate) fn list(&self, topic: &str) -> impl Iterator<Item = (&Arc<str>, &Meta)> {
        let all = self.replicas().flat_map(move |entries| entries.on(topic));
        all.map(|entry| (&entry.key, &entry.meta))
    }

    pub(crate) fn get_by_key(&self, topic: &str, key: &str) -> impl Iterator<Item = &Meta> {
        let those = self.list(topic).filter(move |(of, _)| ***of == *key);
        those.map(|(_, meta)| meta)
    }

    /// Whether anybody is on a topic.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.replicas().any(|entries| entries.has(topic))
    }

    /// How many are tracked, on all topics and nodes.
    pub(crate) fn len(&self) -> usize {
        self.replicas().map(Entries::len).sum()
    }

    /// The entries here, and those of the nodes that are up.
    fn replicas(&self) -> impl Iterator<Item = &Entries> {
        let remotes = self.others.iter().flat_map(|others| others.remotes.values());
        let up = remotes.filter(|remote| remote.is_up).map(|remote| &remote.entries);
        std::iter::once(&self.entries).chain(up)
    }

    /// When it is time for the next [`Input::Tick`]; never, if there are no other nodes.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        self.others.as_ref().map(|others| others.next_tick)
    }

    pub(crate) fn step(&mut self, input: Input, now: Duration) -> Step {
        let mut step = Step::default();
        if let Some(others) = &mut self.others {
            match input {
                Input::Tick => {
                    others.tick(&self.log, &self.entries, now, &mut step);
                }
                Input::Message(message) => {
                    others.receive(message, &self.log, &self.entries, now, &mut step);
                }
            }
        }
        step
    }

    /// What is to be said before the end.
    pub(crate) fn farewell(&mut self) -> Vec<Outgoing> {
        let others = self.others.iter().filter(|others| others.options.permdown_on_shutdown);
        others.map(|others| others.say(To::All, Says::Bye)).collect()
    }
}

impl Others {
    fn tick(&mut self, log: &Log, entries: &Entries, now: Duration, step: &mut Step) {
        let silent = |heard: Duration| now.saturating_sub(heard);
        let options = self.options;
        self.remotes.retain(|_, remote| silent(remote.heard) <= options.permdown_period);
        for remote in self.remotes.values_mut() {
            if silent(remote.heard) > options.down_after() {
                remote.down(&mut step.diffs);
            }
        }
        let is_silent = self.told_at.is_some_and(|at| silent(at) < options.silence());
        if log.last() > self.told || !is_silent {
            let changes = log.since(self.told, entries);
            step.send.push(self.say(To::All, Says::Here { count: log.last(), changes }));
            (self.told, self.told_at) = (log.last(), Some(now));
        }
        self.next_tick = now + self.options.broadcast_period;
    }

    fn receive(
        &mut self,
        message: Message,
        log: &Log,
        entries: &Entries,
        now: Duration,
        step: &mut Step,
    ) {
        let Message { v: Message::VERSION, from: From { node, version }, says } = message else {
            return;
        };
        if node == self.me.node {
            return;
        }
        let known = self.remotes.get(&node).map(|remote| remote.version);
        if known.is_some_and(|known| known > version) {
            return; // a message of a life that is over
        }
        if known != Some(version) || matches!(says, Says::Bye) {
            if let Some(mut over) = self.remotes.remove(&node) {
                over.down(&mut step.diffs);
            }
            if matches!(says, Says::Bye) {
                return;
            }
            // So that it knows of this one too, and soon.
            let here = Says::Here { count: log.last(), changes: None };
            step.send.push(self.say(To::Node(node.clone()), here));
        }
        let remote = self.remotes.entry(node.clone());
        let remote = remote.or_insert_with(|| Remote::new(version, now));
        remote.hear(now, &mut step.diffs);
        match says {
            Says::Here { count, changes } => {
                if let Some(changes) = changes {
                    remote.change(count, changes, &mut step.diffs);
                }
                if remote.count < count {
                    let missing = Says::Missing { version, count: remote.count };
                    step.send.push(self.say(To::Node(node), missing));
                }
            }
            Says::Missing { version, count } if version == self.me.version => {
                let now = log.last();
                let says = match log.since(count, entries) {
                    Some(changes) => Says::Since { count: now, changes },
                    None => Says::All { count: now, entries: all(entries) },
                };
                step.send.push(self.say(To::Node(node), says));
            }
            Says::Since { count, changes } => remote.change(count, changes, &mut step.diffs),
            Says::All { count, entries } => remote.replace(count, entries, &mut step.diffs),
            Says::Missing { .. } | Says::Bye => {}
        }
    }

    fn say(&self, to: To, says: Says) -> Outgoing {
        let message = Message { v: Message::VERSION, from: self.me.clone(), says };
        Outgoing { to, message }
    }
}

fn all(entries: &Entries) -> Vec<(u64, Entry)> {
    entries.all().map(|(number, entry)| (number, entry.clone())).collect()
}

fn place(topic: &str, key: &str) -> Place {
    (topic.into(), key.into())
}
