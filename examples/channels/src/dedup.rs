//! `dedup:*`: a channel that pushes each number once.

use std::{collections::BTreeSet, time::Duration};

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
};
use serde::Deserialize;
use serde_json::json;

use crate::socket::UserSocket;

/// How long numbers are collected.
const GATHERING: Duration = Duration::from_secs(1);

/// Maximum number of collected numbers; further ones are dropped.
const MOST: usize = 10_000;

/// Collects broadcast numbers for a second, then pushes each once, in order.
#[derive(Default)]
pub struct Dedup {
    numbers: BTreeSet<i64>,
}

/// The second is over.
struct Flush;

#[derive(Deserialize)]
struct Number {
    number: i64,
}

impl Channel for Dedup {
    type Socket = UserSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["number"];

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self::default())
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "broadcast" => {
                let Number { number } = payload.parse()?;
                cx.broadcast("number", json!({ "number": number }))?;
                Ok(Reply::ok())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn handle_out(
        &mut self,
        _: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let Number { number } = payload.parse()?;
        if self.numbers.is_empty() {
            cx.send_after(GATHERING, Flush)?;
        }
        if self.numbers.len() < MOST {
            self.numbers.insert(number);
        }
        Ok(())
    }
}

impl HandleMessage<Flush> for Dedup {
    async fn handle_message(&mut self, _: Flush, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        for number in std::mem::take(&mut self.numbers) {
            cx.push("number", json!({ "number": number }))?;
        }
        Ok(())
    }
}
