//! A graceful deploy. At SIGTERM the process is not ready, and serves on until the load balancer has noticed. Then it
//! handles what it has accepted, and closes its sockets with 1012, so that their clients connect to another node. The
//! exit code is 0 if nothing was left.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::post};
use pipeline::{
    Pipeline,
    health::Health,
    serve,
    serve::Serve,
    source::{QueueOptions, TimedQueue, timed_queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{Endpoint, listen},
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{Failed, user};

/// Each push takes a while, as if it asked a database first.
fn start(endpoint: &Endpoint, work: Duration) -> Result<(TimedQueue<u64>, Pipeline), Failed> {
    let (pushes, producer) = timed_queue(QueueOptions::new());
    let pubsub = endpoint.pubsub().clone();
    let push = async move |user: &Timed<u64>| {
        tokio::time::sleep(work).await;
        pubsub.broadcast_timed(user, &format!("user:{}", **user), "hello", json!({}))?;
        Ok(())
    };
    let pipeline = Pipeline::builder("pushes")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(push), SubscribeOptions::new().max_demand(10))
        .start()?;
    Ok((pushes, pipeline))
}

async fn push(State(pushes): State<TimedQueue<u64>>, user: String) -> StatusCode {
    let Ok(user) = user.trim().parse() else { return StatusCode::BAD_REQUEST };
    match pushes.try_push_timed(user) {
        Ok(()) => StatusCode::ACCEPTED,
        // Also once the pipeline drains: then the caller tries another node.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The health checks have a port of their own, which stays open until everything has stopped.
fn server(
    public: TcpListener,
    admin: TcpListener,
    endpoint: Endpoint,
    (pushes, pipeline): (TimedQueue<u64>, Pipeline),
) -> (Serve, Health) {
    let health = Health::new().pipeline(pipeline.observer()).endpoint(endpoint.observer());
    let app = Router::new().route("/push", post(push)).with_state(pushes);
    let server = serve(public, app.fallback_service(endpoint.clone()))
        .pipeline(pipeline)
        .endpoint(endpoint)
        .health(&health)
        .admin(admin, health.router())
        // The sum of these and 20 s is less than terminationGracePeriodSeconds.
        .drain_within(Duration::from_secs(20))
        .close_within(Duration::from_secs(20));
    (server, health)
}

pub(crate) async fn run() -> Result<(), Failed> {
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let work = start(&endpoint, Duration::from_millis(500))?;
    let (public, admin) = (listen("127.0.0.1:4030").await?, listen("127.0.0.1:4031").await?);
    println!(
        "push: curl -d 7 http://127.0.0.1:4030/push; ready: curl -i http://127.0.0.1:4031/readyz"
    );
    println!("stop: kill -TERM {}", std::process::id());
    let (server, _) = server(public, admin, endpoint, work);
    // Behind a load balancer that asks once a second, and acts on the second failure.
    println!("{}", server.linger(Duration::from_secs(3)).await?.into_result()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_that_was_accepted_before_the_stop_is_handled() {
        let endpoint = Endpoint::builder()
            .mount("/socket", user::mount(user::signer().unwrap()))
            .build()
            .unwrap();
        let work = start(&endpoint, Duration::from_millis(10)).unwrap();
        let pushes = work.0.clone();
        let (public, admin) =
            (listen("127.0.0.1:0").await.unwrap(), listen("127.0.0.1:0").await.unwrap());
        let (server, health) = server(public, admin, endpoint, work);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = server.until(async { drop(stopped.await) });
        let server = tokio::spawn(async move { server.await });

        for user in 0..100 {
            assert_eq!(push(State(pushes.clone()), user.to_string()).await, StatusCode::ACCEPTED);
        }
        stop.send(()).unwrap();
        let report = server.await.unwrap().unwrap().into_result().unwrap();
        assert_eq!(report.pipelines[0].unprocessed(), 0);
        assert!(health.readiness().is_err());
        assert_eq!(push(State(pushes), "7".into()).await, StatusCode::SERVICE_UNAVAILABLE);
    }
}
