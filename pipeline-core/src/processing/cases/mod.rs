//! The cases of section 4 of docs/spec/stages.md, by their numbers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod acknowledging;
mod batching;
mod draining;
mod failing;
mod handling;
mod limiting;
mod restarting;
mod starting;
mod testing;

use std::{fmt::Debug, sync::Arc, time::Duration};

use parking_lot::Mutex;

use futures::{FutureExt, future::BoxFuture};

use super::{
    Acknowledger, AsyncMut, Batch, BatchProcessor, BatchTrigger, Batcher, Failure, Message,
    Processor, Processors,
};
use crate::testkit::{Script, ScriptedProducer, scripted, settle};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What one acknowledger was told at once: its name, the handled messages, and the failed ones.
type Group = (&'static str, Vec<u64>, Vec<u64>);

/// A log of what happened, in order.
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Log<T> {
    fn add(&self, entry: T) {
        self.0.lock().push(entry);
    }

    /// What was added since the last call.
    fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// An acknowledger that writes to a log.
struct Recorder {
    name: &'static str,
    groups: Log<Group>,
    failures: Log<(u64, Failure)>,
}

impl Acknowledger for Recorder {
    type Receipt = u64;

    fn acknowledge(&self, done: Vec<u64>, failed: Vec<(u64, Failure)>) {
        assert!(self.name != "bad", "a bad acknowledger");
        self.groups.add((self.name, done, failed.iter().map(|(n, _)| *n).collect()));
        failed.into_iter().for_each(|failed| self.failures.add(failed));
    }
}

/// A scripted source, and what it was told.
struct Source {
    script: Script<Message<u64>>,
    acks: Arc<Recorder>,
}

impl Source {
    fn new() -> (ScriptedProducer<Message<u64>>, Self) {
        let (producer, script) = scripted();
        (producer, Self { script, acks: recorder("acks", &Log::default()) })
    }

    fn message(&self, n: u64) -> Message<u64> {
        Message::new(n, n, &self.acks)
    }

    /// Emits messages, and waits until nothing can go on without time.
    async fn push(&self, numbers: impl IntoIterator<Item = u64>) {
        self.script.emit(numbers.into_iter().map(|n| self.message(n))).await;
        settle().await;
    }

    /// The handled and the failed messages of each group since the last call.
    fn acks(&self) -> Vec<(Vec<u64>, Vec<u64>)> {
        self.acks.groups.take().into_iter().map(|(_, done, failed)| (done, failed)).collect()
    }

    /// The failed messages and why, since the last call.
    fn failures(&self) -> Vec<(u64, String)> {
        let failures = self.acks.failures.take().into_iter();
        failures.map(|(n, failure)| (n, failure.to_string())).collect()
    }
}

fn recorder(name: &'static str, groups: &Log<Group>) -> Arc<Recorder> {
    Arc::new(Recorder { name, groups: groups.clone(), failures: Log::default() })
}

/// A processor that calls a function, or a batch processor. It has one type for all functions of the same messages,
/// so that their stages are compiled once.
struct Calls<V, U>(Box<Function<V, U>>);

type Function<V, U> = dyn for<'a> Fn(&'a mut V) -> BoxFuture<'a, Result<U, Failure>> + Send + Sync;

impl<V, U> Calls<V, U> {
    fn new<F>(function: F) -> Self
    where
        F: for<'a> AsyncMut<'a, V, U> + Clone + Send + Sync + 'static,
    {
        Self(Box::new(move |value| function.clone()(value).boxed()))
    }
}

impl<T: Send + 'static, U: Send + 'static> Processor<T> for Calls<Message<T>, U> {
    type Output = U;

    async fn handle_message(&self, message: &mut Message<T>) -> Result<U, Failure> {
        (self.0)(message).await
    }
}

impl<T: Send + 'static, U: Send + 'static> BatchProcessor<T, U> for Calls<Batch<T, U>, ()> {
    async fn handle_batch(&self, batch: &mut Batch<T, U>) -> Result<(), Failure> {
        (self.0)(batch).await
    }
}

/// [`Processors::from_fn`], by [`Calls`].
fn processors<T, U, F>(function: F) -> Processors<T, Calls<Message<T>, U>>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Message<T>, U> + Clone + Send + Sync + 'static,
{
    Processors::new(Calls::new(function))
}

/// [`Batcher::from_fn`], by [`Calls`].
fn batcher<T, U, F>(function: F) -> Batcher<T, U, Calls<Batch<T, U>, ()>>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Batch<T, U>, ()> + Clone + Send + Sync + 'static,
{
    Batcher::new(Calls::new(function))
}

/// One processor that changes nothing.
fn pass() -> Processors<u64, impl Processor<u64, Output = u64>> {
    processors(async |n: &mut Message<u64>| Ok(**n)).concurrency(1)
}

/// A batch that was handled.
type Seen = (Vec<u64>, BatchTrigger);

/// One batch processor that keeps its batches.
fn keep(batches: &Log<Seen>) -> Batcher<u64, u64, impl BatchProcessor<u64, u64>> {
    let batches = batches.clone();
    batcher(async move |batch: &mut Batch<u64, u64>| {
        batches.add((batch.outputs().copied().collect(), batch.info().trigger));
        Ok(())
    })
}

/// Asserts equality after an ordering that the case leaves open.
fn assert_same<T: Ord + Debug>(mut left: Vec<T>, mut right: Vec<T>) {
    left.sort();
    right.sort();
    assert_eq!(left, right);
}
