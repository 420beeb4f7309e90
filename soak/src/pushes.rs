//! A great number of items through a pipeline whose end acknowledges them.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline::{
    Pipeline,
    processing::{Acknowledger, Failure, FailureKind, Message, Processors},
    source::{Queue, QueueOptions, queue},
    step::for_each_batch,
    subscription::SubscribeOptions,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::Instant,
};

use crate::process::RunError;

/// Push a great number of items through a pipeline whose end acknowledges them
#[derive(Debug, clap::Args)]
pub(crate) struct Pushes {
    /// How many items are pushed; a tenth of them is offered to a queue that is full most of the time
    #[arg(long, default_value = "1e9", value_parser = count)]
    pushes: u64,
    /// Stop after this many seconds, and account for the items until then
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Instead of messages, push plain items through a pipeline that counts them at its end
    #[arg(long)]
    plain: bool,
}

/// The number of tasks that push. An item has the number of its task in the upper bits.
const PUSHERS: usize = 4;
const NUMBER_BITS: u32 = 56;

/// How long the pipeline may take for the last items.
const DRAINS_WITHIN: Duration = Duration::from_secs(60);

/// A pusher lets other tasks run after this many items.
const TURN: u64 = 256;

/// How many messages the processor asks for at once.
const DEMAND: usize = 1000;

/// The processor fails one message in this many.
const FAILS: u64 = 1000;

/// The number of an item within its pusher.
fn number(item: u64) -> u64 {
    item & ((1 << NUMBER_BITS) - 1)
}

/// Whether the processor fails an item.
fn fails(item: u64) -> bool {
    number(item).is_multiple_of(FAILS)
}

/// Mixes a number, so that the sums of different sets of items differ.
fn mixed(item: u64) -> u64 {
    let mixed = (item ^ (item >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    mixed ^ (mixed >> 33)
}

/// A set of items: how many, and the sum of their mixed numbers. Items that are missing and others that are there twice
/// do not have the same sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    mixed: u64,
}

impl Sum {
    fn add(&mut self, item: u64) {
        self.count += 1;
        self.mixed = self.mixed.wrapping_add(mixed(item));
    }

    fn and(self, other: Self) -> Self {
        let mixed = self.mixed.wrapping_add(other.mixed);
        Self { count: self.count + other.count, mixed }
    }
}

/// What the end of the pipeline has received: its acknowledgements.
#[derive(Debug, Default)]
struct Received {
    /// The last item of each pusher.
    last: [u64; PUSHERS],
    /// Items that were handled, that failed, and that were dropped.
    done: Sum,
    failed: Sum,
    dropped: Sum,
    /// Items that came after a later one, or twice.
    repeated: u64,
    /// Items that were left out.
    missing: u64,
    /// Outcomes that are not those of their items.
    wrong: u64,
}

impl Received {
    fn take(&mut self, items: &[u64]) {
        for item in items {
            self.done.add(*item);
            self.follow(*item);
        }
    }

    /// Compares an item with the one before it.
    fn follow(&mut self, item: u64) {
        let number = number(item);
        let pusher = usize::try_from(item >> NUMBER_BITS).unwrap_or_default();
        let last = &mut self.last[pusher];
        if number <= *last {
            self.repeated += 1;
        } else {
            self.missing += number - *last - 1;
            *last = number;
        }
    }

    /// The messages of one call. Each list is in the order in which they were handled.
    fn acknowledge(&mut self, done: &[u64], failed: &[(u64, Failure)]) {
        let mut handled = done.to_vec();
        for item in done {
            self.done.add(*item);
            self.wrong += u64::from(fails(*item));
        }
        for (item, failure) in failed {
            if matches!(failure.kind(), FailureKind::Dropped | FailureKind::Forgotten) {
                // The caller that made room drops it, so the order is not that of the items.
                self.dropped.add(*item);
            } else {
                self.failed.add(*item);
                self.wrong += u64::from(!fails(*item));
                handled.push(*item);
            }
        }
        // Within a call, only the order of the list is known.
        for pusher in 0..PUSHERS as u64 {
            let of = done.iter().filter(|item| **item >> NUMBER_BITS == pusher);
            self.repeated += u64::from(!of.is_sorted());
        }
        handled.sort_unstable();
        handled.iter().for_each(|item| self.follow(*item));
    }
}

/// Receives the outcomes of all messages.
#[derive(Debug, Default)]
struct Ends(Mutex<Received>);

impl Acknowledger for Ends {
    type Receipt = u64;

    fn acknowledge(&self, done: Vec<u64>, failed: Vec<(u64, Failure)>) {
        self.0.lock().acknowledge(&done, &failed);
    }
}

/// Reads a number such as `1000000` or `1e6`.
fn count(text: &str) -> Result<u64, String> {
    let (digits, zeros) = text.split_once('e').unwrap_or((text, "0"));
    let (digits, zeros) = (digits.parse::<u64>().ok(), zeros.parse().ok());
    let power = zeros.and_then(|zeros| 10_u64.checked_pow(zeros));
    let count = digits.zip(power).and_then(|(digits, power)| digits.checked_mul(power));
    count.ok_or_else(|| format!("{text} is no number of items"))
}

impl Pushes {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let total = self.pushes;
        let offered = total / 10;
        let time = Duration::from_secs(self.seconds);
        let mut faults = Vec::new();
        println!(
            "| by | items | done | failed | discarded and counted | unaccounted | doubled or out of order | million/s |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for (way, items, time) in [("push", total - offered, time), ("offer", offered, time / 10)] {
            let offers = way == "offer";
            let measured = match self.plain {
                true => measure_plain(offers, items, time).await?,
                false => measure(offers, items, time).await?,
            };
            println!("| `{way}` | {measured} |");
            faults.extend(measured.fault(offers));
        }
        if faults.is_empty() { Ok(()) } else { Err(RunError::Violated(faults.join("\n"))) }
    }
}

/// What was pushed, and what became of it.
#[derive(Debug)]
struct Measured {
    pushed: Sum,
    discarded: u64,
    received: Received,
    /// Items that the pipeline's report has as unprocessed.
    unprocessed: usize,
    took: Duration,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pushed, discarded, received, took, .. } = self;
        let rate = pushed.count as f64 / took.as_secs_f64() / 1e6;
        write!(
            f,
            "{} | {} | {} | {discarded} | {} | {} | {rate:.2}",
            pushed.count,
            received.done.count,
            received.failed.count,
            self.unaccounted(),
            received.repeated
        )
    }
}

impl Measured {
    fn unaccounted(&self) -> i128 {
        let Received { done, failed, .. } = self.received;
        i128::from(self.pushed.count) - i128::from(done.count + failed.count + self.discarded)
    }

    /// Discarded items alone may be left out. Those of messages are acknowledged as dropped, and are the ones that the
    /// queue has counted.
    fn fault(&self, offers: bool) -> Option<String> {
        let Self { pushed, discarded, received, .. } = self;
        let all = received.done.and(received.failed).and(received.dropped);
        let is_wrong = self.unaccounted() != 0
            || received.repeated > 0
            || received.wrong > 0
            || received.missing > *discarded
            || (!offers && received.missing + discarded > 0)
            || (received.dropped.count > 0 || *discarded == 0) && all != *pushed
            || self.unprocessed > 0;
        is_wrong.then(|| format!("{self:?}"))
    }
}

/// Pushes or offers messages to a pipeline that handles most of them, fails some, and acknowledges each.
async fn measure(offers: bool, items: u64, time: Duration) -> Result<Measured, RunError> {
    let ends = Arc::new(Ends::default());
    let (queue, producer) = queue(QueueOptions::new());
    let processor = async |message: &mut Message<u64>| match fails(**message) {
        true => Err(Failure::new("a planned failure")),
        false => Ok(**message),
    };
    // One processor, so that the outcomes are in order.
    let processors = Processors::from_fn(processor).concurrency(1).max_demand(DEMAND);
    let pipeline = Pipeline::of_messages("pushes")
        .source(producer)
        .processors(processors)
        .start()
        .map_err(io::Error::other)?;
    let acknowledger = ends.clone();
    let message = move |item: u64| Message::new(item, item, &acknowledger);
    let began = Instant::now();
    let pushed = push_all(&queue, message, items, offers, time).await;
    let report = pipeline.drain(DRAINS_WITHIN).await;
    let (took, discarded) = (began.elapsed(), queue.discarded());
    // The last handle to the queue: nothing else holds a message.
    drop(queue);
    let received = std::mem::take(&mut *ends.0.lock());
    Ok(Measured { pushed, discarded, received, unprocessed: report.unprocessed(), took })
}

/// Pushes or offers plain items to a pipeline that counts them.
async fn measure_plain(offers: bool, items: u64, time: Duration) -> Result<Measured, RunError> {
    let received = Arc::new(Mutex::new(Received::default()));
    let (queue, producer) = queue(QueueOptions::new());
    let end = {
        let received = received.clone();
        for_each_batch(move |items: Vec<u64>| {
            received.lock().take(&items);
            std::future::ready(())
        })
    };
    let pipeline = Pipeline::builder("pushes")
        .producer(producer)
        .map(|item: u64| item)
        .consumer(end, SubscribeOptions::new())
        .start()
        .map_err(io::Error::other)?;
    let began = Instant::now();
    let pushed = push_all(&queue, |item| item, items, offers, time).await;
    let report = pipeline.drain(DRAINS_WITHIN).await;
    let (took, discarded) = (began.elapsed(), queue.discarded());
    let received = std::mem::take(&mut *received.lock());
    Ok(Measured { pushed, discarded, received, unprocessed: report.unprocessed(), took })
}

/// Pushes from several tasks. Returns what the queue has accepted.
async fn push_all<T: Send + 'static>(
    queue: &Queue<T>,
    make: impl Fn(u64) -> T + Clone + Send + 'static,
    items: u64,
    offers: bool,
    time: Duration,
) -> Sum {
    let began = Instant::now();
    let mut pushers = JoinSet::new();
    for pusher in 0..PUSHERS as u64 {
        let (queue, make, items) = (queue.clone(), make.clone(), items / PUSHERS as u64);
        pushers.spawn(async move {
            let mut pushed = Sum::default();
            for number in 1..=items {
                let item = pusher << NUMBER_BITS | number;
                let made = make(item);
                let accepted =
                    if offers { queue.offer(made).is_ok() } else { queue.push(made).await.is_ok() };
                if !accepted {
                    break;
                }
                pushed.add(item);
                if number % TURN == 0 {
                    if began.elapsed() > time {
                        break;
                    }
                    yield_now().await;
                }
            }
            pushed
        });
    }
    pushers.join_all().await.into_iter().fold(Sum::default(), Sum::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_have_an_exponent() {
        assert_eq!(["17", "1e9", "25e2"].map(count), [17, 1_000_000_000, 2500].map(Ok));
        assert!(["", "e9", "1e30", "x"].map(count).iter().all(Result::is_err));
    }

    #[test]
    fn missing_and_repeated_items_are_counted() {
        let mut received = Received::default();
        let second = 1 << NUMBER_BITS;
        received.take(&[1, 2, second | 1, 3, second | 2, 5, 4, second | 2]);
        assert_eq!((received.done.count, received.missing, received.repeated), (8, 1, 2));
    }

    /// Two pushers pushed 1,000 messages each. The last one of each fails.
    fn measured(change: impl FnOnce(&mut Vec<u64>, &mut Vec<u64>)) -> Measured {
        let items =
            [0, 1].map(|pusher| (1..=1000).map(move |number| pusher << NUMBER_BITS | number));
        let (mut pushed, mut received) = (Sum::default(), Received::default());
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for item in items.into_iter().flatten() {
            pushed.add(item);
            if fails(item) { &mut failed } else { &mut done }.push(item);
        }
        change(&mut done, &mut failed);
        let failed: Vec<_> =
            failed.into_iter().map(|item| (item, Failure::new("planned"))).collect();
        received.acknowledge(&done, &failed);
        Measured { pushed, discarded: 0, received, unprocessed: 0, took: Duration::from_secs(1) }
    }

    #[test]
    fn a_message_without_its_outcome_or_with_two_is_a_fault() {
        assert_eq!(measured(|_, _| {}).fault(false), None);
        let missing = measured(|done, _| done.truncate(done.len() - 1));
        assert!(missing.fault(false).is_some(), "one is missing");
        assert!(measured(|done, _| done.push(17)).fault(false).is_some(), "one is there twice");
        let swapped = measured(|done, _| done[16] = 16);
        assert_eq!(swapped.unaccounted(), 0);
        assert!(swapped.fault(false).is_some(), "one is there twice, and another is not");
        let disordered = measured(|done, _| done.swap(3, 4));
        assert!(disordered.fault(false).is_some(), "out of order");
        let wrong = measured(|done, failed| done.extend(failed.pop()));
        assert!(wrong.fault(false).is_some(), "done, and it had to fail");
        let early = measured(|done, failed| failed.extend(done.pop()));
        assert!(early.fault(false).is_some(), "failed, and it had to be done");
    }
}
