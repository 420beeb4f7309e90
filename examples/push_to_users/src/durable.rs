//! Pushes in a durable queue: how they are stored, and the pipeline that reads them.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use pipeline::{
    ExitReason, Pipeline,
    processing::{Failure, Message, Processor},
    sources::{Broker, Item, Source},
    stage::Stage,
    step::map,
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Restart, Worker},
    timed::Timed,
    ws::{
        Payload,
        pubsub::{ClientsElsewhere, Expired, NoSubscribers, Push as ToTopic, PushMessages},
    },
};
use tokio::time::sleep;

use crate::{
    intake::{Pushing, Started},
    push::{Fault, Push},
};

/// The header with the time at which a push was accepted, in microseconds since 1970.
const ACCEPTED: &str = "accepted-us";

/// The text of an error and of its causes.
#[cfg(any(
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
pub fn with_cause(error: &dyn std::error::Error) -> String {
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

/// Items of a queue: the pushes as they were posted, each by its user.
pub fn items(pushes: &[Timed<Push>]) -> Result<Vec<Item>, serde_json::Error> {
    pushes.iter().map(item).collect()
}

fn item(push: &Timed<Push>) -> Result<Item, serde_json::Error> {
    let item = Item::new(push.to_json()?).key(push.user.to_string());
    let item = item.header(ACCEPTED, push.payload.at_us().to_string());
    Ok(match push.trace() {
        Some(trace) => item.trace(trace),
        None => item,
    })
}

/// Starts the pipeline: the queue, and one worker per push, one at a time for each user. A push that only waits
/// for its client leaves its worker's place to the next, and is acknowledged when it has come as far as the
/// program was told.
pub fn start<B: Broker>(source: Source<B>, pushing: Pushing) -> Started {
    let Pushing { pubsub, acknowledge, keep_for, delay, max_demand, min_demand } = pushing;
    let absent = match keep_for {
        Duration::ZERO => NoSubscribers::Done,
        keep_for => NoSubscribers::Keep { keep_for, then: Expired::Done },
    };
    let push = pubsub.push_messages(to_topic as ToPush);
    let push = push.acknowledge(acknowledge).no_subscribers(absent).in_order();
    // Its user may be at another process of the cluster, if there is one.
    let push = push.clients_elsewhere(ClientsElsewhere::GiveBack)?;
    let supervisor = ConsumerSupervisor::new(PushAccepted { push, delay })
        .restart(Restart::Temporary)
        .ordered_by_key(|accepted: &Accepted| accepted.user)
        .may_leave();
    let demand = SubscribeOptions::new().max_demand(max_demand).min_demand(min_demand);
    Ok(Pipeline::builder("push")
        .producer_with(Stage::new(source).named("source"))
        .producer_consumer_with(Stage::new(map(Accepted::new)).named("parse"), demand.clone())
        .consumer_supervisor_with(Stage::new(supervisor).named("push"), demand)
        .start()?)
}

/// A push out of a queue, with its message, which is still to be acknowledged. Dropped, it is given back
/// to the queue.
struct Accepted {
    user: Option<u64>,
    /// Taken by its worker. Nothing if it is not valid.
    message: Mutex<Option<Message<Timed<Push>>>>,
}

impl Accepted {
    fn new(message: Message<Item>) -> Self {
        let enqueued_at = message.metadata().enqueued_at;
        // Other programs may have added it, and it will never be valid.
        let parse =
            |item| parse(&item, enqueued_at).map_err(|fault| Failure::from(fault).give_up());
        let message = message.try_map(parse);
        Self { user: message.as_ref().map(|push| push.user), message: Mutex::new(message) }
    }
}

fn parse(item: &Item, enqueued_at: Option<SystemTime>) -> Result<Timed<Push>, Fault> {
    let us = item.headers.get(ACCEPTED).and_then(|us| us.parse().ok());
    let accepted = us.map(|us| SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(us)));
    let accepted = accepted.flatten().or(enqueued_at);
    let push = Push::fetched(&item.payload, accepted.unwrap_or_else(SystemTime::now))?;
    Ok(match item.trace {
        Some(trace) => push.with_trace(trace),
        None => push,
    })
}

type ToPush = fn(&Message<Timed<Push>>) -> Result<ToTopic<Payload>, Failure>;

fn to_topic(message: &Message<Timed<Push>>) -> Result<ToTopic<Payload>, Failure> {
    let push = message.data();
    let payload = Payload::new(&push.payload).map_err(|error| Failure::from(error).give_up())?;
    let topic = format!("user:{}", push.user);
    Ok(ToTopic::new(topic, push.event.clone(), payload).timed(push))
}

/// The worker of a push, which acknowledges it.
struct PushAccepted {
    push: PushMessages<ToPush>,
    delay: Duration,
}

impl Worker<Accepted> for PushAccepted {
    async fn run(&self, accepted: &Accepted, context: ChildContext) -> Result<(), ExitReason> {
        let Some(message) = accepted.message.lock().take() else { return Ok(()) };
        let mut message = message.with_place(context.place());
        if let Some(trace) = message.trace() {
            tracing::trace!(trace_id = %trace.trace_id(), "a worker has started");
        }
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        if !message.is_current() {
            // The queue delivers it again.
            return Ok(());
        }
        if let Err(failure) = self.push.handle_message(&mut message).await {
            message.fail(failure);
        }
        message.acknowledge_now();
        Ok(())
    }
}
