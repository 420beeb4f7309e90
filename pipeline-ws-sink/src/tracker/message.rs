//! What replicas say to each other, and how it is written. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::Meta;
use crate::payload::{Payload, PayloadError};

/// The version of what is written. Replicas that write another are not understood.
const VERSION: u32 = 1;

/// Names a replica: a node that starts anew has a new one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ReplicaRef {
    pub(crate) node: Arc<str>,
    /// Different at each start, and greater unless the node's clock was set back.
    pub(crate) version: u64,
}

/// How many of a replica's changes somebody has seen, without a gap.
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

/// What a row of one replica's changes has come to. From the first change on, it is all that the
/// replica has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delta {
    pub(crate) of: ReplicaRef,
    /// The row begins after this change.
    pub(crate) after: u64,
    /// The last one of the row.
    pub(crate) upto: u64,
    /// Of the entries that were added before the row, those that were removed in it.
    pub(crate) removed: BTreeSet<u64>,
    /// What was added in the row, and not removed, by the change that has added it.
    pub(crate) values: BTreeMap<u64, Value>,
}

/// What replicas say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Said now and then, to all: what is new, and what the sender has seen.
    Heartbeat { from: ReplicaRef, delta: Option<Delta>, clocks: Vec<Clock> },
    /// Said to one that knows more of these replicas.
    TransferReq { from: ReplicaRef, clocks: Vec<Clock> },
    /// The answer: what is missing.
    TransferAck { from: ReplicaRef, deltas: Vec<Delta> },
    /// The sender ends, and is not to be waited for.
    GracefulPermdown { from: ReplicaRef },
}

#[derive(Serialize, Deserialize)]
struct Envelope<M> {
    v: u32,
    message: M,
}

impl Message {
    /// Who says it.
    pub(crate) fn from(&self) -> &ReplicaRef {
        match self {
            Self::Heartbeat { from, .. }
            | Self::TransferReq { from, .. }
            | Self::TransferAck { from, .. }
            | Self::GracefulPermdown { from } => from,
        }
    }

    pub(super) fn to_payload(&self) -> Result<Payload, PayloadError> {
        Payload::new(&Envelope { v: VERSION, message: self })
    }

    pub(super) fn from_payload(payload: &Payload) -> Result<Self, Unreadable> {
        // What else a later version says is not looked at.
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

/// Why a message cannot be read.
#[derive(Debug, Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("it is of version {0}")]
    Version(u32),
    #[error("it contradicts itself")]
    Nonsense,
}
