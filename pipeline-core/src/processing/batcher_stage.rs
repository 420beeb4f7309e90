//! The stages of a batcher and of its batch processors.

use std::{
    hash::{BuildHasher, Hash},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument, Span, debug_span};

use super::{
    batch::{Batch, BatchInfo, BatchProcessor, KeyBy, Limits, Processed},
    batching::{BatchTrigger, Batching, Bounds, Closed},
    handling::{acknowledge_all, contained_now, contained_within, settle_failed},
    message::{BatchMode, Message},
    metrics::{BatchMetrics, MessageMetrics},
    processor::PartitionBy,
    processor_stage::Forwarded,
};
use crate::{
    exit::ExitReason,
    stage::{Consumer, Emitter, ProducerConsumer},
    subscription::Subscription,
};

/// The stage that collects messages into batches.
pub(super) struct BatcherStage<T, U, K> {
    name: Arc<str>,
    batching: Batching<(K, Option<usize>), Processed<T, U>>,
    limits: Limits<T, U>,
    key: Arc<KeyBy<T, U, K>>,
    /// The partition function, and the number of partitions.
    partition_by: Option<(PartitionBy<T>, usize)>,
    messages: MessageMetrics,
    batches: BatchMetrics,
}

impl<T, U, K: Eq + Hash + Clone> BatcherStage<T, U, K> {
    pub(super) fn new(
        name: Arc<str>,
        limits: Limits<T, U>,
        key: Arc<KeyBy<T, U, K>>,
        partition_by: Option<(PartitionBy<T>, usize)>,
        messages: MessageMetrics,
        batches: BatchMetrics,
    ) -> Self {
        let weight = limits.weight.as_ref().map_or(usize::MAX, |(limit, _)| *limit);
        let bounds = Bounds {
            size: limits.size,
            weight,
            within: limits.within,
            open: limits.open.max(limits.size),
            open_weight: limits.open_weight.max(weight),
        };
        let batching = Batching::new(bounds);
        Self { name, batching, limits, key, partition_by, messages, batches }
    }

    /// The key, the partition and the weight of a message.
    fn place(&self, processed: &Processed<T, U>) -> (K, Option<usize>, usize) {
        let key = (self.key)(processed);
        // Here a panic of the key's own code fails this message, and not the batcher.
        let _ = foldhash::fast::FixedState::default().hash_one(&key);
        let key = Clone::clone(&key);
        let partition = self.partition_by.as_ref().map(|(partition, partitions)| {
            let place = partition(&processed.message) % *partitions as u64;
            usize::try_from(place).expect("the remainder fits a usize")
        });
        let weight = self.limits.weight.as_ref().map_or(0, |(_, weight)| weight(processed));
        (key, partition, weight)
    }

    /// A closed batch as it is emitted.
    fn batch(&self, closed: Closed<(K, Option<usize>), Processed<T, U>>) -> Batch<T, U>
    where
        K: Send + Sync + 'static,
    {
        let Closed { key: (key, partition), items, trigger } = closed;
        self.batches.closed(trigger, items.len());
        let info = BatchInfo::new(self.name.clone(), key, partition, items.len(), trigger);
        Batch::new(items, info)
    }
}

impl<T, U, K> ProducerConsumer for BatcherStage<T, U, K>
where
    T: Send + Sync + 'static,
    U: Send + 'static,
    K: Eq + Hash + Clone + Send + Sync + 'static,
{
    type In = Forwarded<T, U>;
    type Out = Batch<T, U>;

    async fn handle_events(
        &mut self,
        messages: Vec<Forwarded<T, U>>,
        _from: &Subscription,
        out: &mut Emitter<'_, Batch<T, U>>,
    ) -> Result<(), ExitReason> {
        let _span =
            debug_span!("batcher", batcher = &*self.name, messages = messages.len()).entered();
        let now = Instant::now();
        for Forwarded { mut processed, .. } in messages {
            match contained_now(|| self.place(&processed)) {
                Ok((key, partition, weight)) => {
                    let flush = processed.message.batch_mode() == BatchMode::Flush;
                    let key = (key, partition);
                    let closed = self.batching.add(key, processed, weight, flush, now);
                    out.emit_all(closed.into_iter().map(|closed| self.batch(closed)));
                }
                Err(failure) => {
                    processed.message.fail(failure);
                    acknowledge_all([&mut processed.message], &self.messages);
                }
            }
        }
        for closed in self.batching.end_of_chunk() {
            out.emit(self.batch(closed));
        }
        Ok(())
    }

    async fn ready(&mut self) {
        self.batching.next_due().passed().await;
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, Batch<T, U>>) -> Result<(), ExitReason> {
        let now = Instant::now();
        while let Some(closed) = self.batching.close_due(now) {
            out.emit(self.batch(closed));
        }
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, Batch<T, U>>) -> Result<(), ExitReason> {
        while let Some(closed) = self.batching.close_oldest(BatchTrigger::Flush) {
            out.emit(self.batch(closed));
        }
        Ok(())
    }

    fn pending(&self) -> usize {
        self.batching.len()
    }
}

/// The stage that handles batches.
pub(super) struct BatchProcessorStage<T, U, B> {
    pub(super) processor: Arc<B>,
    pub(super) index: usize,
    /// The limit of each callback.
    pub(super) within: Duration,
    pub(super) messages: MessageMetrics,
    pub(super) batches: BatchMetrics,
    pub(super) types: PhantomData<fn(T, U)>,
}

impl<T, U, B: BatchProcessor<T, U>> BatchProcessorStage<T, U, B> {
    /// Handles a batch in a span, and records in it how many messages have failed.
    async fn handle(&self, mut batch: Batch<T, U>, span: &Span) {
        let begun = Instant::now();
        let handled = contained_within(self.within, "handle_batch", async {
            self.processor.handle_batch(&mut batch).await
        });
        let handled = handled.await;
        self.batches.handled(begun.elapsed());
        let (messages, outputs) = batch.into_parts();
        let (mut failed, mut done) = (Vec::new(), Vec::with_capacity(messages.len()));
        for mut message in messages {
            if let Err(failure) = &handled
                && message.failure().is_none()
            {
                message.fail(failure.clone());
            }
            if message.failure().is_some() { failed.push(message) } else { done.push(message) }
        }
        span.record("failed", failed.len());
        if !failed.is_empty() {
            let failing = debug_span!("handle_failed", messages = failed.len());
            let handle = async |failed: &mut [Message<T>]| {
                self.processor.handle_failed(failed).await;
            };
            settle_failed(&mut failed, self.within, handle).instrument(failing).await;
        }
        acknowledge_all(done.iter_mut().chain(&mut failed), &self.messages);
        // The program's destructors run when everything is acknowledged.
        drop((done, failed, outputs));
    }
}

impl<T, U, B> Consumer for BatchProcessorStage<T, U, B>
where
    T: Send + Sync + 'static,
    U: Send + 'static,
    B: BatchProcessor<T, U>,
{
    type Event = Batch<T, U>;

    async fn handle_events(
        &mut self,
        batches: Vec<Batch<T, U>>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        for batch in batches {
            let info = batch.info();
            let span = debug_span!(
                "batch_processor",
                batcher = &*info.batcher,
                index = self.index,
                messages = info.size,
                trigger = info.trigger.name(),
                failed = tracing::field::Empty,
            );
            self.handle(batch, &span).instrument(span.clone()).await;
        }
        Ok(())
    }
}
