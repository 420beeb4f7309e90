//! Sockets and channels for tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests too")]

use std::sync::Arc;

use pipeline_core::ExitReason;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    endpoint::EndpointBuilder,
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Accepts any client that sends a name.
pub struct NamedSocket;

impl Socket for NamedSocket {
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        match params.get("name") {
            Some("panic") => panic!("no luck"),
            Some(name) => Ok(name.to_owned()),
            None => Err(ConnectError::refused()),
        }
    }

    fn id(&self, name: &String) -> Result<Option<String>, ConnectError> {
        match &**name {
            "no-id" => Err(ConnectError::refused()),
            "panic-id" => panic!("no id"),
            "without-id" => Ok(None),
            name => Ok(Some(format!("named:{name}"))),
        }
    }
}

/// A channel that does what its client requests.
pub struct Room;

impl Channel for Room {
    type Socket = NamedSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["stamped", "cursed"];

    async fn join(
        _: &Topic,
        payload: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        if let Some(reason) = params["refuse"].as_str() {
            return Err(JoinError::reason(reason));
        }
        assert!(params["crash"].is_null(), "crash requested");
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => Ok(Reply::ok().with(payload)),
            "push" => {
                cx.push("pushed", &payload)?;
                Ok(Reply::ok())
            }
            "shout" => {
                cx.broadcast("shouted", &payload)?;
                Ok(Reply::ok())
            }
            "stamp" => {
                cx.broadcast("stamped", &payload)?;
                Ok(Reply::ok())
            }
            "curse" => {
                cx.broadcast("cursed", &payload)?;
                Ok(Reply::ok())
            }
            "stop" => Err(Stop::normal().reply(Reply::ok().with(payload))),
            "boom" => Err(Stop::because(ExitReason::failed("boom")).reply(Reply::error())),
            "crash" => panic!("crash requested"),
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn handle_out(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let payload: Value = payload.parse()?;
        match event {
            "stamped" => cx.push(event, json!({ "for": cx.assigns(), "was": payload }))?,
            _ => panic!("crash requested"),
        }
        Ok(())
    }

    async fn terminate(&mut self, reason: &ExitReason, cx: &ChannelContext<Self>) {
        let farewell = json!({ "reason": reason.to_string() });
        // Fails harmlessly if the channel ends because its socket has ended.
        let _ = cx.push("farewell", &farewell);
        cx.broadcast_from("gone", farewell).unwrap();
    }
}

/// Completes a join when the test allows it.
pub struct Slow;

impl Channel for Slow {
    type Socket = NamedSocket;
    type Config = Arc<Semaphore>;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.config().acquire().await?.forget();
        if topic.rest() == "refused" { Err(JoinError::reason("refused")) } else { Ok(Self) }
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if event == "wait" {
            // Never completes unless the socket's value says so, which it does not.
            std::future::pending::<()>().await;
        }
        let _ = cx;
        Ok(Reply::ok().with(payload))
    }
}

/// An endpoint with all of them; the semaphore completes joins of `slow:*`.
pub fn endpoint() -> (EndpointBuilder, Arc<Semaphore>) {
    endpoint_with(|mount| mount)
}

pub fn endpoint_with(
    options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>,
) -> (EndpointBuilder, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let mount = Mount::new(NamedSocket)
        .channel::<Room>("room:*")
        .channel_with::<Slow>("slow:*", gate.clone());
    (Endpoint::builder().mount("/socket", options(mount)), gate)
}
