//! A great number of items through a pipeline whose end acknowledges them.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline::{
    Pipeline,
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
}

/// The number of tasks that push. An item has the number of its task in the upper bits.
const PUSHERS: usize = 4;
const NUMBER_BITS: u32 = 56;

/// How long the pipeline may take for the last items.
const DRAINS_WITHIN: Duration = Duration::from_secs(60);

/// A pusher lets other tasks run after this many items.
const TURN: u64 = 256;

/// What the end of the pipeline has received: its acknowledgements.
#[derive(Debug, Default)]
struct Received {
    /// The last item of each pusher.
    last: [u64; PUSHERS],
    count: u64,
    /// Items that came after a later one, or twice.
    repeated: u64,
    /// Items that were left out.
    missing: u64,
}

impl Received {
    fn take(&mut self, items: &[u64]) {
        for item in items {
            let number = item & ((1 << NUMBER_BITS) - 1);
            let pusher = usize::try_from(item >> NUMBER_BITS).unwrap_or_default();
            let last = &mut self.last[pusher];
            if number <= *last {
                self.repeated += 1;
            } else {
                self.missing += number - *last - 1;
                *last = number;
            }
            self.count += 1;
        }
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
            "| by | items | delivered | discarded and counted | unaccounted | doubled or out of order | million/s |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for (way, items, time) in [("push", total - offered, time), ("offer", offered, time / 10)] {
            let line = measure(way == "offer", items, time).await?;
            println!("| `{way}` | {} |", line.0);
            faults.extend(line.1);
        }
        if faults.is_empty() { Ok(()) } else { Err(RunError::Violated(faults.join("\n"))) }
    }
}

/// Pushes or offers items. Returns the figures, and what is wrong with them.
async fn measure(
    offers: bool,
    items: u64,
    time: Duration,
) -> Result<(String, Option<String>), RunError> {
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
    let mut pushers = JoinSet::new();
    for pusher in 0..PUSHERS as u64 {
        let items = items / PUSHERS as u64;
        pushers.spawn(push(queue.clone(), pusher, items, offers, began, time));
    }
    let pushed: u64 = pushers.join_all().await.into_iter().sum();
    let report = pipeline.drain(DRAINS_WITHIN).await;
    let rate = pushed as f64 / began.elapsed().as_secs_f64() / 1e6;
    let received = received.lock();
    let discarded = queue.discarded();
    let unaccounted = i128::from(pushed) - i128::from(received.count + discarded);
    // Only discarded items may be left out. The last ones of a pusher are not followed by another.
    let is_wrong = unaccounted != 0
        || received.repeated > 0
        || received.missing > discarded
        || (!offers && received.missing + discarded > 0)
        || report.unprocessed() > 0;
    let line = format!(
        "{pushed} | {} | {discarded} | {unaccounted} | {} | {rate:.2}",
        received.count, received.repeated
    );
    Ok((line, is_wrong.then(|| format!("{received:?}, {discarded} discarded, {report}"))))
}

/// Pushes until all items or the time are over. Returns how many items the queue has accepted.
async fn push(
    queue: Queue<u64>,
    pusher: u64,
    items: u64,
    offers: bool,
    began: Instant,
    time: Duration,
) -> u64 {
    for number in 1..=items {
        let item = pusher << NUMBER_BITS | number;
        let accepted =
            if offers { queue.offer(item).is_ok() } else { queue.push(item).await.is_ok() };
        if !accepted {
            return number - 1;
        }
        if number % TURN == 0 {
            if began.elapsed() > time {
                return number;
            }
            yield_now().await;
        }
    }
    items
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
        assert_eq!((received.count, received.missing, received.repeated), (8, 1, 2));
    }
}
