//! Ready-made producers.

mod audience;
mod end;
mod fair_queue;
#[cfg(all(test, interleavings))]
mod interleavings;
mod iter;
mod outcome;
mod push;
mod queue;
mod store;
mod stream;
mod waiting;

pub use self::{
    fair_queue::{FairQueue, FairQueueOptions, FairQueueProducer, fair_queue},
    iter::{FromIter, from_iter},
    outcome::{Closed, OfferOutcome, TryPushError},
    queue::{Queue, QueueOptions, QueueProducer, queue},
    stream::{FromStream, from_stream},
};
