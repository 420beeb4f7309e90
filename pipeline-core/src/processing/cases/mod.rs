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

use super::{Acknowledger, Batch, BatchTrigger, Batcher, Failure, Message, Processors};
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

/// One processor that changes nothing.
fn pass() -> Processors<u64, impl super::Processor<u64, Output = u64>> {
    Processors::from_fn(async |n: &mut Message<u64>| Ok(**n)).concurrency(1)
}

/// A batch that was handled.
type Seen = (Vec<u64>, BatchTrigger);

/// One batch processor that keeps its batches.
fn keep(batches: &Log<Seen>) -> Batcher<u64, u64, impl super::BatchProcessor<u64, u64>> {
    let batches = batches.clone();
    Batcher::from_fn(async move |batch: &mut Batch<u64, u64>| {
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
