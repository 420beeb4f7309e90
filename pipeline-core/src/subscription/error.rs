//! Errors of subscriptions.

use thiserror::Error;

use crate::exit::ExitReason;

/// Why a subscription was not made.
///
/// ```
/// use pipeline_core::subscription::{SubscribeError, SubscribeOptions};
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
    /// The subscribing stage has ended.
    #[error("the subscribing stage has ended")]
    NotRunning,
    /// An [`EventStream`](crate::stage::EventStream) cannot subscribe again by itself.
    #[error("a stream cannot be subscribed with Cancel::Reconnect, expected another mode")]
    Reconnect,
    /// The stage subscribed itself in its own callback, which would have waited forever.
    #[error("a stage cannot wait for itself in its own callback")]
    OwnCallback,
    /// The producer already has a subscription with this id.
    #[error("a subscription with this id already exists")]
    Duplicated,
    /// The producer has no subscription with this id, or no longer.
    #[error("no subscription with this id")]
    Unknown,
    /// The producer's dispatcher accepts each stage once, and this one has already subscribed.
    #[error("the stage has already subscribed, expected once")]
    AlreadySubscribed,
    /// The selector is for another event type than the producer's.
    #[error("the selector is for events of type {given}, expected {expected}")]
    BadSelector {
        /// The event type of the selector.
        given: &'static str,
        /// The event type of the producer.
        expected: &'static str,
    },
    /// The partition is missing, invalid or taken.
    #[error(transparent)]
    BadPartition(#[from] BadPartition),
}

impl SubscribeError {
    pub(super) fn is_already_subscribed(reason: &ExitReason) -> bool {
        let error = reason.source().and_then(|error| error.downcast_ref());
        matches!(error, Some(Self::AlreadySubscribed))
    }
}

/// Why the partition of a subscription is invalid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadPartition {
    /// The options name no partition.
    #[error("no partition was given, expected one of {expected}")]
    Missing {
        /// The existing partitions.
        expected: String,
    },
    /// The named partition does not exist.
    #[error("there is no partition {given}, expected one of {expected}")]
    Unknown {
        /// The name given.
        given: String,
        /// The existing partitions.
        expected: String,
    },
    /// The partition has a subscriber and is not shared.
    #[error("partition {given} already has a subscriber, expected at most one")]
    Taken {
        /// The name given.
        given: String,
    },
    /// The partitions are named by values of another type.
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
