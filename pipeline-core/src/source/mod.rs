//! Ready-made producers.

mod end;
mod fair_queue;
mod outcome;
mod push;
mod queue;
mod store;
mod waiting;

pub use self::{
    fair_queue::{FairQueue, FairQueueOptions, FairQueueProducer, fair_queue},
    outcome::{Closed, Offer, TryPushError},
    queue::{Queue, QueueOptions, QueueProducer, queue},
};
