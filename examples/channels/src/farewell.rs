//! `bye:*`: a channel that reports why it terminates.

use pipeline::{
    ExitReason,
    ws::{
        Channel, Payload, Topic,
        channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    },
};
use serde::Deserialize;
use serde_json::json;

use crate::socket::UserSocket;

/// Sends the reason of its termination to its client and to another topic.
#[derive(Default, Deserialize)]
pub struct Farewell {
    tell: Option<String>,
}

impl Channel for Farewell {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        _: &Topic,
        params: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        Ok(params.parse().unwrap_or_default())
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "stop" => Err(Stop::normal()),
            "crash" => panic!("crash requested"),
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn terminate(&mut self, reason: &ExitReason, cx: &ChannelContext<Self>) {
        let reason = match reason {
            ExitReason::Normal => "normal".to_owned(),
            ExitReason::ShutdownWith(why) => format!("shutdown:{why}"),
            _ => "other".to_owned(),
        };
        // The channel is ending, so an error cannot be handled.
        let _ = cx.push("farewell", json!({ "reason": reason }));
        if let Some(topic) = &self.tell {
            let farewell = json!({ "topic": cx.topic().as_str(), "reason": reason });
            let _ = cx.pubsub().broadcast(topic, "terminated", farewell);
        }
    }
}
