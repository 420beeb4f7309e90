//! Slow channels.

use std::time::Duration;

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    payload::PayloadError,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::socket::UserSocket;

/// How long a slow ping takes.
const PING: Duration = Duration::from_secs(3);

/// `slow:*`: a join that takes the requested time.
pub struct Slow;

#[derive(Default, Deserialize)]
struct Params {
    #[serde(default)]
    delay: u64,
    reject: Option<Value>,
}

impl Channel for Slow {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        _: &Topic,
        params: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let Params { delay, reject } = params.parse().unwrap_or_default();
        sleep(Duration::from_millis(delay)).await;
        if let Some(reason) = reject {
            return Err(JoinError::with(json!({ "reason": reason })));
        }
        cx.reply(json!({ "slept": delay }));
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => Ok(Reply::ok().with(payload)),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

/// `ping:slow`: each ping occupies the channel for three seconds, so five take fifteen.
pub struct SlowPing;

impl Channel for SlowPing {
    type Socket = UserSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => {
                sleep(PING).await;
                Ok(Reply::ok().with(payload))
            }
            other => Err(Stop::unknown_event(other)),
        }
    }
}

/// `ping:parallel`: each ping is answered by its own task, so five take three seconds.
pub struct ParallelPing {
    /// The tasks. They end with the channel.
    pings: JoinSet<Result<(), PayloadError>>,
}

impl Channel for ParallelPing {
    type Socket = UserSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self { pings: JoinSet::new() })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => {
                let ping = cx.socket_ref()?;
                while self.pings.try_join_next().is_some() {}
                self.pings.spawn(async move {
                    sleep(PING).await;
                    ping.reply(Reply::ok().with(payload))
                });
                Ok(Reply::none())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }
}
