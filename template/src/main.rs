//! Reads the settings from the environment, and runs it until SIGTERM or Ctrl-C.

use std::{env, error::Error, time::Duration};

use axum::{Router, routing::post};
use my_app::{push, sockets, start};
use pipeline::{
    health::Health,
    serve,
    statsd::StatsdRecorder,
    ws::{Endpoint, listen, token::Signer},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Without a subscriber, the libraries log nothing.
    tracing_subscriber::fmt::init();
    let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    // The handle sends what is left when it is dropped, so it lives until the end.
    let _statsd = StatsdRecorder::udp(setting("STATSD", "127.0.0.1:8125"))?
        .prefix("my_app")
        .install()?;

    // A secret has no default, and is the same on all nodes.
    let secret = env::var("SECRET").map_err(|_| "SECRET is missing: 20 random bytes or more")?;
    let endpoint = Endpoint::builder()
        .mount("/socket", sockets(Signer::new(&secret, "user socket")?))
        // The name in the browser's address bar. Pages of other names are refused.
        .host(&setting("HOST", "localhost"))
        .build()?;
    let (pushes, pipeline) = start(&endpoint)?;

    let health = Health::new()
        .pipeline(pipeline.observer())
        .endpoint(endpoint.observer());
    // This port is for your own services and the orchestrator, not for the world: anyone there may push.
    let inside = Router::new()
        .route("/push", post(push))
        .with_state(pushes)
        .merge(health.router());
    let outside = Router::new().fallback_service(endpoint.clone());
    let report = serve(listen(setting("LISTEN", "0.0.0.0:4000")).await?, outside)
        .pipeline(pipeline)
        .endpoint(endpoint)
        .health(&health)
        .admin(
            listen(setting("LISTEN_INSIDE", "0.0.0.0:4001")).await?,
            inside,
        )
        // At SIGTERM it is not ready, and serves on until the load balancer has noticed.
        .linger(Duration::from_secs(5))
        .await?;
    // An error, and so a failure of the process, if an accepted push was left.
    println!("{}", report.into_result()?);
    Ok(())
}
