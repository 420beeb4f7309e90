//! A custom dispatcher: events go to the first consumer while it has demand, and what it cannot take to the next one,
//! such as machines of one's own before rented ones.

use std::{collections::VecDeque, time::Duration};

use pipeline::{
    ExitReason, Graph, Pipeline,
    dispatcher::{Deliveries, Dispatcher, Subscriber},
    source::{Queue, QueueOptions, queue},
    stage::Stage,
    subscription::{SubscribeOptions, SubscriptionId},
    supervisor::ConsumerSupervisor,
};

use crate::Failed;

/// The rank of a consumer, in the options of its subscription: 0 is served first.
#[derive(Clone, Copy)]
struct Rank(u8);

/// The consumers by rank, each with its outstanding demand.
#[derive(Default)]
struct Spillover(Vec<(u8, SubscriptionId, usize)>);

impl<E> Dispatcher<E> for Spillover {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        let rank = subscriber.options.get_extension::<Rank>().map_or(u8::MAX, |rank| rank.0);
        let place = self.0.partition_point(|(other, ..)| *other <= rank);
        self.0.insert(place, (rank, subscriber.id, 0));
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, _: &mut Deliveries<E>) {
        self.0.retain(|(_, other, _)| *other != id);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, _: &mut Deliveries<E>) {
        if let Some((.., outstanding)) = self.0.iter_mut().find(|(_, other, _)| *other == id) {
            *outstanding = outstanding.saturating_add(demand);
        }
    }

    fn unmet(&self) -> usize {
        self.0.iter().fold(0, |sum, (.., outstanding)| sum.saturating_add(*outstanding))
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        for (_, id, outstanding) in &mut self.0 {
            let count = events.len().min(*outstanding);
            *outstanding -= count;
            out.send(*id, events.drain(..count).collect());
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.0.iter().find(|(_, other, _)| *other == id).map_or(0, |(.., outstanding)| *outstanding)
    }
}

/// Two jobs at a time here, and up to ten more there.
fn start(work: Duration) -> Result<(Queue<u32>, Pipeline), Failed> {
    let (jobs, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("jobs");
    let jobs_stage = Stage::new(producer).named("jobs").dispatcher(Spillover::default);
    let producer = graph.producer_with(jobs_stage);
    for (rank, name, at_once) in [(0, "own", 2), (1, "rented", 10)] {
        let job = async move |job: &u32| {
            tokio::time::sleep(work).await;
            println!("{name}: job {job}");
            Ok(())
        };
        let workers = graph.consumer_supervisor(name, ConsumerSupervisor::new(job));
        let options = SubscribeOptions::new().max_demand(at_once).extension(Rank(rank));
        graph.subscribe(&workers, &producer, options);
    }
    Ok((jobs, graph.start()?))
}

pub(crate) async fn run() -> Result<(), Failed> {
    let (jobs, pipeline) = start(Duration::from_millis(500))?;
    for job in 0..30 {
        jobs.push(job).await?;
    }
    println!("{}", pipeline.drain(Duration::from_secs(20)).await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use pipeline::testkit;

    use super::*;

    #[test]
    fn the_contract_of_dispatchers_is_kept() {
        testkit::check_dispatcher(Spillover::default);
    }

    #[tokio::test(start_paused = true)]
    async fn few_jobs_stay_here_and_many_spill_over() {
        let (jobs, pipeline) = start(Duration::from_secs(1)).unwrap();
        testkit::settle().await;
        let workers = || {
            pipeline.snapshot().stages[1..].iter().filter_map(|it| it.workers).collect::<Vec<_>>()
        };
        jobs.push(0).await.unwrap();
        testkit::settle().await;
        assert_eq!(workers(), [1, 0]);
        for job in 1..5 {
            jobs.push(job).await.unwrap();
        }
        testkit::settle().await;
        assert_eq!(workers(), [2, 3]);
        assert_eq!(pipeline.drain(Duration::from_secs(20)).await.unprocessed(), 0);
    }
}
