//! Several processes: a push finds its user at any of them.

use std::error::Error;

use pipeline::ws::endpoint::EndpointBuilder;

/// Connects the endpoint with those of other processes. They tell each other where users are.
pub async fn join(
    endpoint: EndpointBuilder,
    server: &str,
) -> Result<EndpointBuilder, Box<dyn Error>> {
    #[cfg(feature = "cluster")]
    {
        use pipeline::{
            cluster::{Cluster, ClusterOptions},
            ws::presence::TrackerOptions,
        };

        let options = ClusterOptions::new("push_to_users");
        // The address may have a password, so no error quotes it.
        let cluster = match server.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "rediss") => Cluster::redis(server, options).await?,
            Some("nats") => Cluster::nats(server, options).await?,
            _ => {
                return Err(
                    "the address of --cluster begins with neither redis:// nor nats://".into()
                );
            }
        };
        Ok(endpoint.adapter(cluster).sync_subscriptions(TrackerOptions::default()))
    }
    #[cfg(not(feature = "cluster"))]
    {
        let _ = (endpoint, server);
        Err("this program was built without the feature `cluster`: build it with \
             `cargo run --release -p push_to_users --features cluster -- --cluster redis://..`"
            .into())
    }
}
