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
