//! `token:*`: a channel that keeps its user's token fresh.

use std::time::{Duration, SystemTime};

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
    token::Signer,
};
use serde_json::json;

use crate::socket::UserSocket;

/// Signs tokens, at an interval.
pub struct Fresh {
    pub signer: Signer,
    pub every: Duration,
}

/// Pushes a new token after the join and after each interval.
pub struct Token {
    signer: Signer,
    every: Duration,
}

/// The interval is over.
struct Renew;

impl Channel for Token {
    type Socket = UserSocket;
    type Config = Fresh;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        if cx.assigns().user_id.as_deref() != Some(topic.rest()) {
            return Err(JoinError::unauthorized());
        }
        cx.send_after(Duration::ZERO, Renew)?;
        let Fresh { signer, every } = cx.config();
        Ok(Self { signer: signer.clone(), every: *every })
    }
}

impl HandleMessage<Renew> for Token {
    async fn handle_message(&mut self, _: Renew, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let token = self.signer.sign(&cx.topic().rest(), SystemTime::now())?;
        cx.push("token", json!({ "token": token }))?;
        Ok(cx.send_after(self.every, Renew)?)
    }
}
