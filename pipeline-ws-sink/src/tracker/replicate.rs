//! The task that has a replica talk to the others.

use std::{sync::Weak, time::Duration};

use tokio::time::{self, Instant};

use super::{Input, Message, Outgoing, To};
use crate::{
    broadcast::Broadcast,
    payload::Payload,
    pubsub::{AdapterError, PubSub, Subscription},
};

/// What the topics begin with on which replicas talk.
pub(crate) const TRACKERS: &str = "phx_presence:";

/// What messages between replicas are called.
const EVENT: &str = "phx_tracker";

/// Somebody who has a tracker, and passes on what comes of it.
pub(crate) trait Replica: Send + Sync + 'static {
    fn next_tick(&self) -> Option<Duration>;
    fn step(&self, input: Input, now: Duration) -> Vec<Outgoing>;
    fn farewell(&self) -> Vec<Outgoing>;
}

/// Has a replica talk to those of the same name on other nodes, until it is gone.
///
/// What it hears is bounded as for any task that listens; what is missed is asked for later.
pub(crate) async fn replicate<R: Replica>(
    replica: Weak<R>,
    pubsub: PubSub,
    name: &str,
    started: Instant,
) {
    let topic = topic(name);
    let mut heard = pubsub.subscribe(&topic);
    let mut line = Line { pubsub, topic, is_broken: false };
    loop {
        let Some(next) = replica.upgrade().and_then(|replica| replica.next_tick()) else { return };
        let input = tokio::select! {
            () = time::sleep_until(started + next) => Input::Tick,
            message = hear(&mut heard) => Input::Message(message),
        };
        let Some(replica) = replica.upgrade() else { return };
        let said = replica.step(input, started.elapsed());
        said.into_iter().for_each(|outgoing| line.say(&outgoing));
    }
}

/// Says what is to be said before the end.
pub(crate) fn say_farewell(replica: &impl Replica, pubsub: PubSub, name: &str) {
    let mut line = Line { pubsub, topic: topic(name), is_broken: false };
    replica.farewell().iter().for_each(|outgoing| line.say(outgoing));
}

/// Where replicas of this name talk. No client can join such a topic.
fn topic(name: &str) -> String {
    format!("{TRACKERS}{name}")
}

/// The next message that can be read.
async fn hear(heard: &mut Subscription) -> Message {
    loop {
        // Who lags has missed something, as one does on a network.
        let Ok(broadcast) = heard.recv().await else { continue };
        match broadcast.payload().parse() {
            Ok(message) => return message,
            Err(error) => tracing::warn!(%error, "a message of a tracker cannot be read"),
        }
    }
}

/// The way to the other nodes.
struct Line {
    pubsub: PubSub,
    topic: String,
    /// Told once.
    is_broken: bool,
}

impl Line {
    fn say(&mut self, outgoing: &Outgoing) {
        let said = self.try_say(outgoing);
        let was_broken = std::mem::replace(&mut self.is_broken, said.is_err());
        match said {
            Err(error) if !was_broken => {
                tracing::warn!(topic = %self.topic, %error, "a tracker cannot reach the other nodes");
            }
            Ok(()) if was_broken => {
                tracing::info!(topic = %self.topic, "a tracker reaches the other nodes again");
            }
            _ => {}
        }
    }

    fn try_say(&self, Outgoing { to, message }: &Outgoing) -> Result<(), AdapterError> {
        let broadcast = Broadcast::new(&self.topic, EVENT, Payload::new(message)?)?;
        match to {
            To::All => self.pubsub.tell_others(None, &broadcast),
            To::Node(node) => self.pubsub.tell_others(Some(node), &broadcast),
        }
    }
}
