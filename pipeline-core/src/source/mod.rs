//! Ready-made producers.

mod audience;
mod iter;
mod queue;
mod stream;

pub use self::{
    iter::{FromIter, from_iter},
    queue::{Closed, Offer, Queue, QueueOptions, QueueProducer, TryPushError, queue},
    stream::{FromStream, from_stream},
};
