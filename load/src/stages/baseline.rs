//! The hand-written equivalents: channels of batches, and tasks behind a semaphore.

use std::{hint::black_box, sync::Arc};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{Count, Window};

/// The capacity of a channel in batches: as many as two stages have in flight.
const CAPACITY: usize = 2;

/// The size of a batch for several consumers.
const BATCH: usize = 500;

/// Batches of this size, from one task to another.
pub(crate) async fn two_stages(batch: usize, window: Window) -> f64 {
    let (count, mut tasks) = (Count::default(), JoinSet::new());
    let (sender, receiver) = mpsc::channel(CAPACITY);
    tasks.spawn(counted(receiver, count.clone()));
    tasks.spawn(for_ever(batch, async move |events| sender.send(events).await.is_ok()));
    count.per_second(window).await
}

/// The same, with a task in between.
pub(crate) async fn three_stages(batch: usize, window: Window) -> f64 {
    let (count, mut tasks) = (Count::default(), JoinSet::new());
    let (first, mut between) = mpsc::channel(CAPACITY);
    let (second, receiver) = mpsc::channel(CAPACITY);
    tasks.spawn(counted(receiver, count.clone()));
    tasks.spawn(async move {
        while let Some(events) = between.recv().await {
            // A stage allocates a new batch for its events, too.
            let events: Vec<u64> = Vec::into_iter(events).map(black_box).collect();
            if second.send(events).await.is_err() {
                return;
            }
        }
    });
    tasks.spawn(for_ever(batch, async move |events| first.send(events).await.is_ok()));
    count.per_second(window).await
}

/// A task for each event, up to `at_once` at the same time.
pub(crate) async fn workers(at_once: usize, window: Window) -> f64 {
    let (count, mut tasks) = (Count::default(), JoinSet::new());
    let (permits, counting) = (Arc::new(Semaphore::new(at_once)), count.clone());
    tasks.spawn(async move {
        for event in 0.. {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let count = counting.clone();
            tokio::spawn(async move {
                count.add_one(event);
                drop(permit);
            });
        }
    });
    count.per_second(window).await
}

/// A channel with single sends and batched receives.
pub(crate) async fn pushes(events: u64) -> f64 {
    let (sender, mut receiver) = mpsc::channel(10_000);
    let receiving = tokio::spawn(async move {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, BATCH).await > 0 {
            batch.drain(..).for_each(|event: u64| {
                black_box(event);
            });
        }
    });
    let began = Instant::now();
    for event in 0..events {
        // The receiver lives longer than the sender.
        let _ = sender.send(event).await;
    }
    drop(sender);
    // The task returns no error.
    let _ = receiving.await;
    events as f64 / began.elapsed().as_secs_f64()
}

/// A clone of each batch for each consumer. All deliveries are counted.
pub(crate) async fn broadcast(consumers: u64, window: Window) -> f64 {
    let (count, mut tasks) = (Count::default(), JoinSet::new());
    let senders = consumers_of(consumers, &count, &mut tasks);
    tasks.spawn(for_ever(BATCH, async move |events| {
        for sender in &senders {
            if sender.send(events.clone()).await.is_err() {
                return false;
            }
        }
        true
    }));
    count.per_second(window).await
}

/// Each batch split among the consumers, by key.
pub(crate) async fn partition(consumers: u64, window: Window) -> f64 {
    let (count, mut tasks) = (Count::default(), JoinSet::new());
    let senders = consumers_of(consumers, &count, &mut tasks);
    tasks.spawn(for_ever(BATCH, async move |events| {
        let mut parts = vec![Vec::with_capacity(BATCH.div_ceil(senders.len())); senders.len()];
        for event in events {
            let part = usize::try_from(event % consumers).unwrap_or_default();
            parts[part].push(event);
        }
        for (part, sender) in parts.into_iter().zip(&senders) {
            if sender.send(part).await.is_err() {
                return false;
            }
        }
        true
    }));
    count.per_second(window).await
}

fn consumers_of(
    consumers: u64,
    count: &Count,
    tasks: &mut JoinSet<()>,
) -> Vec<mpsc::Sender<Vec<u64>>> {
    let channels = (0..consumers).map(|_| {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        tasks.spawn(counted(receiver, count.clone()));
        sender
    });
    channels.collect()
}

/// Sends numbers in batches until the receiver is dropped.
async fn for_ever(batch: usize, send: impl AsyncFn(Vec<u64>) -> bool) {
    let mut next = 0;
    loop {
        let end = next + batch as u64;
        if !send((next..end).collect()).await {
            return;
        }
        next = end;
    }
}

async fn counted(mut batches: mpsc::Receiver<Vec<u64>>, count: Count) {
    while let Some(events) = batches.recv().await {
        count.add(events);
    }
}
