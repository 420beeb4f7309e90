//! A complete program that pushes to users.

use std::{error::Error, time::SystemTime};

use axum::Router;
use pipeline::{
    Pipeline, serve,
    source::{QueueOptions, timed_queue},
    statsd::StatsdRecorder,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        listen,
        pubsub::PreparedBroadcast,
        socket::{ConnectError, ConnectInfo, Params},
        token::Signer,
    },
};
use serde_json::json;

struct UserSocket(Signer);

impl Socket for UserSocket {
    type Assigns = u64; // the user's id

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(self.0.verify(params.require("token")?, SystemTime::now())?)
    }
}

struct UserChannel;

impl Channel for UserChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(UserChannel).ok_or(JoinError::unauthorized())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let _statsd = StatsdRecorder::udp("127.0.0.1:8125")?.prefix("push").install()?;

    let signer = Signer::new("twenty bytes at least, and secret", "user socket")?;
    // A client that reads too slowly is disconnected, and costs other clients nothing.
    let sockets = Mount::new(UserSocket(signer)).channel::<UserChannel>("user:*");
    let endpoint = Endpoint::builder().mount("/socket", sockets).build()?;

    let (pushes, producer) = timed_queue(QueueOptions::new());
    let push_to_user = endpoint.pubsub().broadcast_worker(|item: &Timed<(u64, String)>| {
        let (user, text) = &**item;
        let broadcast =
            PreparedBroadcast::new(&format!("user:{user}"), "push_timed", json!({ "text": text }))?;
        Ok(broadcast.timed(item))
    });
    let workers = SubscribeOptions::new().max_demand(50).min_demand(40);
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(push_to_user), workers)
        .start()?;

    // Any task may push. It waits when the queue is full.
    pushes.push_timed((1, "hello".into())).await?;

    let app = Router::new().fallback_service(endpoint.clone());
    let running = serve(listen("127.0.0.1:4000").await?, app).pipeline(pipeline).endpoint(endpoint);
    println!("{}", running.await?.into_result()?); // at Ctrl-C, after the pipeline has drained
    Ok(())
}
