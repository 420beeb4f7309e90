//! Ready-made producers.

mod end;
mod outcome;
mod push;
mod queue;
mod store;
mod waiting;

pub use self::{
    outcome::{Closed, Offer, TryPushError},
    queue::{Queue, QueueOptions, QueueProducer, queue},
};
