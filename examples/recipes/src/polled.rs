//! A source of one's own: a function is asked for rows at an interval, and for no more than there is demand for. Errors
//! end no stage: the function is asked again.

use std::{fmt::Display, time::Duration};

use pipeline::{
    ExitReason, Pipeline,
    stage::{Emitter, Producer},
    step::for_each,
    subscription::SubscribeOptions,
};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A function that returns up to a number of rows.
trait Rows: Send + 'static {
    type Row: Send + 'static;
    type Error: Display + Send;

    fn next(
        &mut self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Self::Row>, Self::Error>> + Send;
}

struct Polled<R> {
    rows: R,
    every: Interval,
}

fn polled<R: Rows>(rows: R, every: Duration) -> Polled<R> {
    let mut every = interval(every);
    // After a long time without demand, it asks once, and not for each tick that was missed.
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Polled { rows, every }
}

impl<R: Rows> Producer for Polled<R> {
    type Event = R::Row;

    /// Demand stays owed.
    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, R::Row>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    /// Awaited only while there is demand. It may be dropped at any time, so it only waits.
    async fn ready(&mut self) {
        self.every.tick().await;
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, R::Row>) -> Result<(), ExitReason> {
        let limit = out.owed();
        match self.rows.next(limit).await {
            Ok(rows) => {
                // There may be more: it does not wait for the next tick.
                if rows.len() == limit {
                    self.every.reset_immediately();
                }
                out.emit_all(rows);
            }
            Err(error) => eprintln!("the rows could not be read: {error}"),
        }
        Ok(())
    }
}

/// Stands for a table. Every third query fails.
struct Table {
    rows: Vec<u32>,
    queries: u32,
}

impl Rows for Table {
    type Row = u32;
    type Error = &'static str;

    async fn next(&mut self, limit: usize) -> Result<Vec<u32>, &'static str> {
        self.queries += 1;
        if self.queries.is_multiple_of(3) {
            return Err("the database is away");
        }
        Ok(self.rows.drain(..limit.min(self.rows.len())).collect())
    }
}

pub(crate) async fn run() -> Result<(), crate::Failed> {
    let table = Table { rows: (0..100).collect(), queries: 0 };
    let print = for_each(async |row: u32| println!("row {row}"));
    let pipeline = Pipeline::builder("rows")
        .producer(polled(table, Duration::from_secs(1)))
        .consumer(print, SubscribeOptions::new().max_demand(10))
        .start()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("{}", pipeline.drain(Duration::from_secs(5)).await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use pipeline::testkit;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_rows_arrive_in_order_although_queries_fail() {
        let (consumer, recording) = testkit::recording();
        let table = Table { rows: (0..100).collect(), queries: 0 };
        let pipeline = Pipeline::builder("test")
            .producer(polled(table, Duration::from_secs(1)))
            .consumer(consumer, SubscribeOptions::new().max_demand(10))
            .start()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(recording.events(), (0..100).collect::<Vec<u32>>());
        pipeline.drain(Duration::from_secs(5)).await;
    }
}
