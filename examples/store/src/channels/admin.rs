//! The channels of the dashboard.

use std::{sync::Arc, time::Duration};

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
};
use serde_json::json;

use super::sockets::AdminSocket;
use crate::{
    pipelines::totals::Totals,
    shop::{CART_TRACKER, Shop},
};

/// The channel `admin:cart_tracker`: who is there. Its topic has the presences, so diffs come by themselves.
#[derive(Debug)]
pub struct CartTrackerChannel(Arc<Shop>);

/// The channel `admin:totals`: the same as numbers.
#[derive(Debug)]
pub struct TotalsChannel(Arc<Shop>);

/// Sent to a channel after its join.
#[derive(Debug)]
pub struct Joined;

impl Channel for CartTrackerChannel {
    type Socket = AdminSocket;
    type Config = Arc<Shop>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Self(cx.config().clone()))
    }
}

impl HandleMessage<Joined> for CartTrackerChannel {
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        cx.push("presence_state", self.0.presence.list(CART_TRACKER).await)?;
        Ok(())
    }
}

impl Channel for TotalsChannel {
    type Socket = AdminSocket;
    type Config = Arc<Shop>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let shop = cx.config().clone();
        cx.reply(json!(Totals::of(&shop).await));
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Self(shop))
    }
}

impl HandleMessage<Joined> for TotalsChannel {
    /// What changed between the reply and now is counted, like any change.
    async fn handle_message(&mut self, _: Joined, _: &ChannelContext<Self>) -> Result<(), Stop> {
        self.0.count_totals();
        Ok(())
    }
}
