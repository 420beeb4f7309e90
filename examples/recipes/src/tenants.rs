//! A fair queue for tenants: one that sends a thousand jobs delays the first job of another by one turn, and a full
//! share refuses that tenant's jobs only.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use pipeline::{
    Pipeline,
    source::{FairQueueOptions, TimedFairQueue, TryPushError, timed_fair_queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{Endpoint, pubsub::PreparedBroadcast},
};
use serde_json::json;

use crate::{Failed, user};

type Jobs = TimedFairQueue<u64, (u64, String)>;

fn start(endpoint: &Endpoint) -> Result<(Jobs, Pipeline), Failed> {
    let options = FairQueueOptions::new()
        .capacity(10_000)
        .key_capacity(100) // of one tenant
        .weight(|tenant: &u64| if *tenant < 10 { 3 } else { 1 }); // the large ones pay for three turns
    let (jobs, producer) = timed_fair_queue(options);
    let done = endpoint.pubsub().broadcast_worker(|job: &Timed<(u64, String)>| {
        let (tenant, text) = &**job;
        let broadcast =
            PreparedBroadcast::new(&format!("user:{tenant}"), "done", json!({ "job": text }))?;
        Ok(broadcast.timed(job))
    });
    let pipeline = Pipeline::builder("jobs")
        .producer(producer)
        // What has been asked for has left the queue, and waits for no turn: so few at a time.
        .consumer_supervisor(ConsumerSupervisor::new(done), SubscribeOptions::new().max_demand(4))
        .start()?;
    Ok((jobs, pipeline))
}

/// The two ways to be full are two answers: this tenant should slow down, or all should.
async fn submit(State(jobs): State<Jobs>, Path(tenant): Path<u64>, job: String) -> StatusCode {
    match jobs.try_push(tenant, Timed::now((tenant, job))) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(TryPushError::KeyFull(_)) => StatusCode::TOO_MANY_REQUESTS,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

pub(crate) async fn run() -> Result<(), Failed> {
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let (jobs, pipeline) = start(&endpoint)?;
    println!("submit: curl -d 'a job' http://127.0.0.1:4030/jobs/7");
    let app = Router::new().route("/jobs/{tenant}", post(submit)).with_state(jobs);
    user::run(app, endpoint, pipeline).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipeline::ws::channel_test::{TestEndpoint, assert_push};

    use super::*;

    #[tokio::test]
    async fn a_tenant_with_a_full_share_refuses_no_job_of_another() {
        let kit = TestEndpoint::new(user::mount(user::signer().unwrap()));
        let (jobs, pipeline) = start(kit.endpoint()).unwrap();
        let other = user::joined(&kit, 12).await;

        // No job is taken meanwhile: this test has one thread, and does not wait.
        let mut refused = 0;
        for n in 0..300 {
            let job = Timed::now((11, n.to_string()));
            refused += usize::from(matches!(jobs.try_push(11, job), Err(TryPushError::KeyFull(_))));
        }
        assert_eq!(refused, 200);
        let submitted = submit(State(jobs), Path(12), "only one".to_owned()).await;
        assert_eq!(submitted, StatusCode::ACCEPTED);
        assert_push!(other, "done", { "job": "only one" }, within: Duration::from_secs(20));
        assert_eq!(pipeline.drain(Duration::from_secs(20)).await.unprocessed(), 0);
    }
}
