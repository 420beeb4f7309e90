//! Ready-made producers.

mod queue;

pub use self::queue::{Closed, Offer, Queue, QueueOptions, QueueProducer, TryPushError, queue};
