//! Why a subscription was not made.

use thiserror::Error;

use crate::exit::ExitReason;

/// Why a subscription was not made.
///
/// ```
/// use pipeline_core::{SubscribeError, SubscribeOptions};
///
/// let options = SubscribeOptions::new().max_demand(10).min_demand(20);
/// let error = options.check().unwrap_err();
/// assert_eq!(error, SubscribeError::MinDemand { min: 20, max: 10 });
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeError {
    /// `max_demand` is 0.
    #[error("max_demand is 0, expected at least 1")]
    MaxDemand,
    /// `min_demand` is not below `max_demand`.
    #[error("min_demand is {min}, expected at most {} with a max_demand of {max}", max - 1)]
    MinDemand {
        /// The value given.
        min: usize,
        /// The `max_demand` it was given with.
        max: usize,
    },
    /// The stage that was to subscribe has ended.
    #[error("the stage that was to subscribe has ended")]
    NoProcess,
    /// An [`EventStream`](crate::EventStream) does not subscribe again by itself.
    #[error("a stream cannot be subscribed with Cancel::Reconnect, expected another mode")]
    Reconnect,
    /// The stage that was to subscribe was asked in its own callback, which would have waited for itself
    /// for ever.
    #[error("a stage cannot wait for itself in its own callback")]
    OwnCallback,
    /// The producer knows a subscription of this id already.
    #[error("there is a subscription with this id already")]
    Duplicated,
    /// There is no subscription of this id, or no longer.
    #[error("there is no subscription with this id")]
    Unknown,
    /// The producer's dispatcher takes each stage once, and this one has subscribed before.
    #[error("the stage has subscribed already, expected once")]
    AlreadySubscribed,
    /// The selector is for events of another type than the producer's.
    #[error("the selector is for events of type {given}, expected {expected}")]
    BadSelector {
        /// The type of the events that the selector takes.
        given: &'static str,
        /// The type of the producer's events.
        expected: &'static str,
    },
    /// The partition is missing, or cannot be had.
    #[error(transparent)]
    BadPartition(#[from] BadPartition),
}

impl SubscribeError {
    pub(super) fn is_already_subscribed(reason: &ExitReason) -> bool {
        let error = reason.source().and_then(|error| error.downcast_ref());
        matches!(error, Some(Self::AlreadySubscribed))
    }
}

/// What is wrong with the partition that a subscription names, or does not name.
///
/// ```
/// use pipeline_core::{BadPartition, SubscribeError};
///
/// let taken = BadPartition::Taken { given: "eu".to_owned() };
/// let error = SubscribeError::from(taken);
/// assert_eq!(error.to_string(), "partition eu has a subscriber already, expected one at most");
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadPartition {
    /// The options name none.
    #[error("no partition was given, expected one of {expected}")]
    Missing {
        /// The partitions there are.
        expected: String,
    },
    /// There is none of this name.
    #[error("there is no partition {given}, expected one of {expected}")]
    Unknown {
        /// The name given.
        given: String,
        /// The partitions there are.
        expected: String,
    },
    /// Somebody else has it, and it is not shared.
    #[error("partition {given} has a subscriber already, expected one at most")]
    Taken {
        /// The name given.
        given: String,
    },
    /// Partitions are named by values of another type.
    #[error("partition {given} is of type {given_type}, expected {expected_type}")]
    Type {
        /// The name given.
        given: String,
        /// Its type.
        given_type: &'static str,
        /// The type of the partitions' names.
        expected_type: &'static str,
    },
}
