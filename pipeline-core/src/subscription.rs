//! One consumer's link to one producer: its identity and its options. Pure.

use std::{any::Any, fmt, sync::Arc};

use thiserror::Error;

/// Names one subscription of a pipeline: a consumer may hold several, and a pair of stages may
/// share several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

impl SubscriptionId {
    /// The `n`th subscription of a pipeline. Of use to whoever tests a dispatcher.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// Names one stage of a pipeline. A stage that is restarted keeps its name and gets a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageId(u64);

impl StageId {
    /// The `n`th stage of a pipeline. Of use to whoever tests a dispatcher.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// What happens to a consumer when one of its subscriptions ends. The modes are GenStage's.
///
/// ```
/// use pipeline_core::{Cancel, SubscribeOptions};
///
/// let options = SubscribeOptions::new().cancel(Cancel::Transient);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancel {
    /// It stops with the same reason. The default.
    #[default]
    Permanent,
    /// It goes on after a graceful end and stops with the same reason after any other.
    Transient,
    /// It goes on.
    Temporary,
}

/// How a consumer subscribes to a producer: how many events it takes, and when it asks for more.
///
/// A consumer asks for `max_demand` events when it subscribes, and again, up to `max_demand`, each
/// time no more than `min_demand` are still to come. For a
/// [`ConsumerSupervisor`](crate::ConsumerSupervisor), `max_demand` is the number of workers alive
/// at once.
///
/// ```
/// use pipeline_core::SubscribeOptions;
///
/// let options = SubscribeOptions::new().max_demand(50).min_demand(40);
/// assert!(options.check().is_ok());
///
/// let wrong = SubscribeOptions::new().max_demand(10).min_demand(10);
/// assert_eq!(
///     wrong.check().unwrap_err().to_string(),
///     "min_demand is 10, expected at most 9 with a max_demand of 10"
/// );
/// ```
#[derive(Clone)]
#[must_use]
pub struct SubscribeOptions {
    max_demand: usize,
    min_demand: Option<usize>,
    cancel: Cancel,
    /// What is meant for the producer and its dispatcher, by type.
    extras: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { max_demand: 1000, min_demand: None, cancel: Cancel::Permanent, extras: Vec::new() }
    }
}

impl SubscribeOptions {
    /// The defaults: `max_demand` 1000, `min_demand` half of it, permanent.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most events that may be on their way or in hand at once. Default 1000; at least 1.
    pub fn max_demand(mut self, events: usize) -> Self {
        self.max_demand = events;
        self
    }

    /// How few events may be left before more are asked for. Default half of `max_demand`, rounded
    /// down; less than `max_demand`.
    pub fn min_demand(mut self, events: usize) -> Self {
        self.min_demand = Some(events);
        self
    }

    /// What happens to the consumer when the subscription ends. Default [`Cancel::Permanent`].
    pub fn cancel(mut self, mode: Cancel) -> Self {
        self.cancel = mode;
        self
    }

    /// Adds something for the producer's `handle_subscribe` or for its dispatcher. There is one of
    /// each type; a second replaces the first.
    ///
    /// ```
    /// use pipeline_core::SubscribeOptions;
    ///
    /// struct Region(&'static str);
    ///
    /// let options = SubscribeOptions::new().with(Region("eu"));
    /// assert_eq!(options.get::<Region>().unwrap().0, "eu");
    /// ```
    pub fn with<T: Send + Sync + 'static>(mut self, extra: T) -> Self {
        self.extras.retain(|other| !other.is::<T>());
        self.extras.push(Arc::new(extra));
        self
    }

    /// What was added of this type, if anything.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extras.iter().find_map(|extra| extra.downcast_ref())
    }

    /// Whether the options can be subscribed with.
    ///
    /// # Errors
    ///
    /// [`SubscribeError`] says which value is wrong and what it may be.
    pub fn check(&self) -> Result<(), SubscribeError> {
        let (max, min) = (self.max_demand, self.min());
        if max == 0 {
            return Err(SubscribeError::MaxDemand);
        }
        if min >= max {
            return Err(SubscribeError::MinDemand { min, max });
        }
        Ok(())
    }

    pub(crate) fn max(&self) -> usize {
        self.max_demand
    }

    pub(crate) fn min(&self) -> usize {
        self.min_demand.unwrap_or(self.max_demand / 2)
    }

    pub(crate) fn mode(&self) -> Cancel {
        self.cancel
    }
}

impl fmt::Debug for SubscribeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscribeOptions")
            .field("max_demand", &self.max_demand)
            .field("min_demand", &self.min())
            .field("cancel", &self.cancel)
            .field("extras", &self.extras.len())
            .finish()
    }
}

/// Why a subscription was not made.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_demand_is_half_of_max_demand_unless_given() {
        let min = |max| SubscribeOptions::new().max_demand(max).min();
        assert_eq!([1, 5, 7, 1000].map(min), [0, 2, 3, 500]);
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_the_limit() {
        let error = |options: SubscribeOptions| options.check().unwrap_err().to_string();
        assert_eq!(
            error(SubscribeOptions::new().max_demand(0)),
            "max_demand is 0, expected at least 1"
        );
        assert_eq!(
            error(SubscribeOptions::new().min_demand(2000)),
            "min_demand is 2000, expected at most 999 with a max_demand of 1000"
        );
    }
}
