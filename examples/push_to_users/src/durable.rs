//! Pushes in a durable queue.

use std::{
    error::Error,
    path::Path,
    time::{Duration, SystemTime},
};

use crate::{
    intake::{Durable, Storing},
    push::{Fault, Push},
    users::PushToUser,
};
use parking_lot::Mutex;
use pipeline::{
    ExitReason, Pipeline,
    builder::StartError,
    processing::{Failure, Message},
    sources::{Broker, Item, Source, SourceOptions, sqlite::SqliteQueue},
    stage::Stage,
    step::map,
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Reserved, Worker},
    timed::Timed,
};

/// The name of the queue in its file.
pub const QUEUE: &str = "pushes";

/// The header with the time at which a push was accepted, in microseconds since 1970.
const ACCEPTED: &str = "accepted-us";

/// Opens the queue in a file.
pub async fn open(path: &Path) -> Result<SqliteQueue, String> {
    SqliteQueue::open(path, QUEUE).await.map_err(|error| with_cause(&error))
}

/// The text of an error and of its causes.
pub fn with_cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let added = error.to_string();
        if !text.contains(&added) {
            text = format!("{text}: {added}");
        }
        cause = error.source();
    }
    text
}

impl Durable for SqliteQueue {
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a> {
        Box::pin(async {
            let items = pushes.iter().map(item).collect::<Result<_, _>>()?;
            self.push_all(items).await?;
            Ok(())
        })
    }

    fn start(&self, work: PushToUser, demand: SubscribeOptions) -> Result<Pipeline, StartError> {
        start(self.source(SourceOptions::new()), work, demand)
    }
}

/// An item of the queue: the push as it was posted, by its user.
fn item(push: &Timed<Push>) -> Result<Item, serde_json::Error> {
    let item = Item::new(push.to_json()?).key(push.user.to_string());
    let item = item.header(ACCEPTED, push.payload.at_us().to_string());
    Ok(match push.trace() {
        Some(trace) => item.trace(trace),
        None => item,
    })
}

/// Starts the pipeline: the queue, and one worker per push. A push is acknowledged when its worker is
/// done.
fn start<B: Broker>(
    source: Source<B>,
    work: PushToUser,
    demand: SubscribeOptions,
) -> Result<Pipeline, StartError> {
    let supervisor = ConsumerSupervisor::new(Acknowledging(work))
        .on_given_up(|accepted: Accepted, reason| accepted.failed(reason.into()));
    Pipeline::builder("push")
        .producer_with(Stage::new(source).named("source"))
        .producer_consumer_with(Stage::new(map(Accepted::new)).named("parse"), demand.clone())
        .consumer_supervisor(supervisor, demand)
        .start()
}

/// A push out of a queue, with its message, which is still to be acknowledged. Dropped, it is given back
/// to the queue.
struct Accepted {
    push: Result<Timed<Push>, Failure>,
    message: Mutex<Message<Item>>,
}

impl Accepted {
    fn new(message: Message<Item>) -> Self {
        // Other programs may have added it, and it will never be valid.
        let push = parse(&message).map_err(|fault| Failure::from(fault).give_up());
        Self { push, message: Mutex::new(message) }
    }

    fn done(&self) {
        self.message.lock().acknowledge_now();
    }

    fn failed(&self, failure: Failure) {
        let mut message = self.message.lock();
        message.fail(failure);
        message.acknowledge_now();
    }
}

fn parse(message: &Message<Item>) -> Result<Timed<Push>, Fault> {
    let us = message.headers.get(ACCEPTED).and_then(|us| us.parse().ok());
    let accepted = us.map(|us| SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(us)));
    let accepted = accepted.flatten().or(message.metadata().enqueued_at);
    let push = Push::fetched(&message.payload, accepted.unwrap_or_else(SystemTime::now))?;
    Ok(match message.trace {
        Some(trace) => push.with_trace(trace),
        None => push,
    })
}

/// The worker of a push, which acknowledges it.
struct Acknowledging(PushToUser);

impl Worker<Accepted> for Acknowledging {
    fn reserve(&self, accepted: &Accepted) -> Option<Reserved> {
        self.0.reserve(accepted.push.as_ref().ok()?)
    }

    async fn run(&self, accepted: &Accepted, context: ChildContext) -> Result<(), ExitReason> {
        match &accepted.push {
            Ok(push) => {
                self.0.run(push, context).await?;
                accepted.done();
            }
            Err(failure) => accepted.failed(failure.clone()),
        }
        Ok(())
    }
}
