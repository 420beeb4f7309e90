//! This node among the others.

use std::sync::Arc;

use pipeline::ws::endpoint::EndpointBuilder;
use store::shop::Shop;
use thiserror::Error;
use tokio::task::JoinSet;

use crate::args::Args;

/// The nodes cannot be joined.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The program was built without it.
    #[cfg_attr(
        all(feature = "redis", feature = "nats", feature = "postgres"),
        expect(dead_code, reason = "all features are there")
    )]
    #[error("this program was built without the feature {0}")]
    Missing(&'static str),
    /// The cluster.
    #[cfg(any(feature = "redis", feature = "nats"))]
    #[error(transparent)]
    Cluster(#[from] pipeline::cluster::ClusterError),
}

/// This node, alone or one of several.
pub struct Node {
    #[cfg(any(feature = "redis", feature = "nats"))]
    cluster: Option<pipeline::cluster::Cluster>,
}

/// Joins the other nodes, if the flags say how.
pub async fn join(args: &Args) -> Result<Node, NodeError> {
    #[cfg(not(feature = "redis"))]
    if args.redis.is_some() {
        return Err(NodeError::Missing("redis"));
    }
    #[cfg(not(feature = "nats"))]
    if args.nats.is_some() {
        return Err(NodeError::Missing("nats"));
    }
    #[cfg(any(feature = "redis", feature = "nats"))]
    {
        use pipeline::cluster::{Cluster, ClusterOptions};

        let options = || {
            let options = ClusterOptions::new("store");
            match &args.node {
                Some(name) => options.node(name.clone()),
                None => options,
            }
        };
        let mut cluster = None;
        #[cfg(feature = "redis")]
        if let Some(url) = &args.redis {
            cluster = Some(Cluster::redis(url, options()).await?);
        }
        #[cfg(feature = "nats")]
        if let Some(urls) = &args.nats {
            cluster = Some(Cluster::nats(urls, options()).await?);
        }
        Ok(Node { cluster })
    }
    #[cfg(not(any(feature = "redis", feature = "nats")))]
    Ok(Node {})
}

#[cfg(any(feature = "redis", feature = "nats"))]
impl Node {
    /// The endpoint with the way to the other nodes.
    pub fn adapter_of(&self, endpoint: EndpointBuilder) -> EndpointBuilder {
        match &self.cluster {
            Some(cluster) => endpoint.adapter(cluster.clone()),
            None => endpoint,
        }
    }

    /// Has the copy loaded again when messages of other nodes were lost.
    pub fn watch(&self, shop: &Arc<Shop>, tasks: &mut JoinSet<()>) {
        let Some(cluster) = &self.cluster else { return };
        let (mut gaps, shop) = (cluster.gaps(), shop.clone());
        tasks.spawn(async move {
            while gaps.next().await.is_some() {
                shop.doubt();
            }
        });
    }

    /// Sends what waits.
    pub async fn flush(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.flush(std::time::Duration::from_secs(1)).await;
        }
    }
}

#[cfg(not(any(feature = "redis", feature = "nats")))]
#[expect(clippy::unused_self, clippy::unused_async, reason = "as with a cluster")]
impl Node {
    /// The endpoint as it is.
    pub fn adapter_of(&self, endpoint: EndpointBuilder) -> EndpointBuilder {
        endpoint
    }

    /// Watches nothing.
    pub fn watch(&self, _: &Arc<Shop>, _: &mut JoinSet<()>) {}

    /// Sends nothing.
    pub async fn flush(&self) {}
}
