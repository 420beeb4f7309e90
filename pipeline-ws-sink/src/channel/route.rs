//! The routes from topics to channels.

use std::{marker::PhantomData, sync::Arc};

use async_trait::async_trait;
use pipeline_core::telemetry::Telemetry;

use super::{
    Channel,
    actor::{self, Join},
};
use crate::{
    pubsub::topic::TopicPattern,
    socket::Socket,
    telemetry::{ParamFilter, RouteMetrics},
};

/// A pattern, and the kind of channel for the topics that match it.
pub(crate) struct Route<S> {
    pub(crate) pattern: TopicPattern,
    pub(crate) channel: Arc<dyn ErasedChannel<S>>,
}

/// A kind of channel with its type erased, so that one table holds many. Each join allocates one
/// box; messages allocate none.
#[async_trait]
pub(crate) trait ErasedChannel<S: Socket>: Send + Sync {
    /// Runs one channel, from its join to its end.
    async fn run(self: Arc<Self>, join: Join<S>);

    /// Registers the metrics of this kind.
    fn register(&self, telemetry: &Telemetry, filter: &Arc<ParamFilter>) -> RouteMetrics;
}

/// A kind of channel, with its route's configuration.
pub(crate) struct ChannelRoute<C: Channel> {
    config: C::Config,
    channel: PhantomData<fn() -> C>,
}

impl<C: Channel> ChannelRoute<C> {
    pub(crate) fn new(config: C::Config) -> Self {
        Self { config, channel: PhantomData }
    }
}

#[async_trait]
impl<C: Channel> ErasedChannel<C::Socket> for ChannelRoute<C> {
    async fn run(self: Arc<Self>, join: Join<C::Socket>) {
        actor::run::<C>(join, &self.config).await;
    }

    fn register(&self, telemetry: &Telemetry, filter: &Arc<ParamFilter>) -> RouteMetrics {
        RouteMetrics::register(telemetry, C::name(), filter)
    }
}
