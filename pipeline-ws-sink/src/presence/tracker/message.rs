//! The messages between replicas, and their encoding. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::Meta;
use crate::payload::{Payload, PayloadError};

/// The version of the encoding. Messages of another version are ignored.
const VERSION: u32 = 1;

/// Identifies a replica: a node has a new one at each start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ReplicaRef {
    pub(crate) node: Arc<str>,
    /// Different at each start, and greater unless the node's clock was set back.
    pub(crate) version: u64,
}

/// How many of a replica's changes have been seen, without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    pub(crate) of: ReplicaRef,
    pub(crate) clock: u64,
}

/// An entry of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(crate) topic: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) meta: Meta,
}

/// The combined effect of an interval of one replica's changes. An interval from the first change
/// on is the replica's whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delta {
    pub(crate) of: ReplicaRef,
    /// The interval begins after this change.
    pub(crate) after: u64,
    /// The last change of the interval.
    pub(crate) upto: u64,
    /// The entries from before the interval that were removed in it.
    pub(crate) removed: BTreeSet<u64>,
    /// The entries that were added in the interval and not removed, by the change that added them.
    pub(crate) values: BTreeMap<u64, Value>,
}

/// A message between replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Sent at intervals, to all: the new changes, and the sender's clocks.
    Heartbeat { from: ReplicaRef, delta: Option<Delta>, clocks: Vec<Clock> },
    /// Sent to a replica that knows more about these replicas.
    TransferReq { from: ReplicaRef, clocks: Vec<Clock> },
    /// The answer: the missing changes.
    TransferAck { from: ReplicaRef, deltas: Vec<Delta> },
    /// The sender shuts down, and is removed at once.
    GracefulPermdown { from: ReplicaRef },
}

#[derive(Serialize, Deserialize)]
struct Envelope<M> {
    v: u32,
    message: M,
}

impl Message {
    /// The sender.
    pub(crate) fn from(&self) -> &ReplicaRef {
        match self {
            Self::Heartbeat { from, .. }
            | Self::TransferReq { from, .. }
            | Self::TransferAck { from, .. }
            | Self::GracefulPermdown { from } => from,
        }
    }

    pub(crate) fn to_payload(&self) -> Result<Payload, PayloadError> {
        Payload::new(&Envelope { v: VERSION, message: self })
    }

    pub(crate) fn from_payload(payload: &Payload) -> Result<Self, Unreadable> {
        // The rest of the message is parsed only if the version matches.
        let Envelope { v, message } = payload.parse::<Envelope<&RawValue>>()?;
        if v == VERSION {
            let message: Self =
                serde_json::from_str(message.get()).map_err(PayloadError::Decode)?;
            if message.deltas().all(Delta::makes_sense) {
                Ok(message)
            } else {
                Err(Unreadable::Nonsense)
            }
        } else {
            Err(Unreadable::Version(v))
        }
    }

    /// Parts with at most so many changes each, which have the effect of the whole in any order. The first is of the
    /// same kind.
    pub(crate) fn split(self, most: usize) -> Vec<Self> {
        let most = most.max(1);
        match self {
            Self::Heartbeat { from, delta: Some(delta), clocks } if delta.size() > most => {
                let mut parts = delta.split(most).into_iter();
                let first = Self::Heartbeat { from: from.clone(), delta: parts.next(), clocks };
                let answer = |delta| Self::TransferAck { from: from.clone(), deltas: vec![delta] };
                std::iter::once(first).chain(parts.map(answer)).collect()
            }
            Self::TransferAck { from, deltas } => {
                let parts = deltas.into_iter().flat_map(|delta| delta.split(most));
                let answer = |delta| Self::TransferAck { from: from.clone(), deltas: vec![delta] };
                parts.map(answer).collect()
            }
            whole => vec![whole],
        }
    }

    /// The number of changes.
    pub(crate) fn size(&self) -> usize {
        self.deltas().map(Delta::size).sum()
    }

    fn deltas(&self) -> impl Iterator<Item = &Delta> {
        let (one, many): (_, &[Delta]) = match self {
            Self::Heartbeat { delta, .. } => (delta.as_ref(), &[]),
            Self::TransferAck { deltas, .. } => (None, deltas),
            Self::TransferReq { .. } | Self::GracefulPermdown { .. } => (None, &[]),
        };
        one.into_iter().chain(many)
    }
}

impl Delta {
    /// The number of changes that it has.
    pub(crate) fn size(&self) -> usize {
        self.values.len() + self.removed.len()
    }

    /// Parts with at most so many changes each, at least one. Their intervals follow each other.
    fn split(self, most: usize) -> Vec<Self> {
        let Self { of, mut after, upto, removed, values } = self;
        let part = |after, upto| Self {
            of: of.clone(),
            after,
            upto,
            removed: BTreeSet::new(),
            values: BTreeMap::new(),
        };
        let mut parts = Vec::new();
        // What was removed belongs to no part of the interval.
        let mut removed = removed.into_iter().peekable();
        while removed.peek().is_some() {
            let removed = removed.by_ref().take(most).collect();
            parts.push(Self { removed, ..part(after, after) });
        }
        let mut values = values.into_iter().peekable();
        while values.peek().is_some() {
            let values: BTreeMap<_, _> = values.by_ref().take(most).collect();
            let last = values.last_key_value().map_or(after, |(clock, _)| *clock);
            parts.push(Self { values, ..part(after, last) });
            after = last;
        }
        match parts.last_mut() {
            // The changes after the last value have left nothing behind.
            Some(last) if last.upto > last.after => last.upto = upto,
            _ if after < upto => parts.push(part(after, upto)),
            Some(_) => {}
            None => parts.push(part(after, upto)),
        }
        parts
    }

    fn makes_sense(&self) -> bool {
        let in_row = |clock: &u64| (self.after + 1..=self.upto).contains(clock);
        self.after <= self.upto
            && self.upto < u64::MAX
            && self.values.keys().all(in_row)
            && self.removed.iter().all(|clock| (1..=self.after).contains(clock))
    }
}

/// A message cannot be decoded.
#[derive(Debug, Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("unsupported version {0}")]
    Version(u32),
    #[error("inconsistent delta")]
    Nonsense,
}
