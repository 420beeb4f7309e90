//! The application: its sockets, what is pushed to them, and how. `main.rs` reads the settings and runs it, `tests/push.rs`
//! tests it.

use std::{error::Error, time::SystemTime};

use axum::{Json, extract::State, http::StatusCode};
use pipeline::{
    Pipeline,
    source::{QueueOptions, TimedQueue, timed_queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        pubsub::PreparedBroadcast,
        socket::{ConnectError, ConnectInfo, Params},
        token::Signer,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A client's connection. It decides who the client is.
pub struct UserSocket(Signer);

impl Socket for UserSocket {
    type Assigns = u64; // the user's id, for all channels of the connection

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        // Your login signs the user's id with the same signer, and gives the token to the page.
        Ok(self.0.verify(params.require("token")?, SystemTime::now())?)
    }

    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        // By this id you can disconnect a user, for example at a logout: `Endpoint::disconnect`.
        Ok(Some(format!("users_socket:{user}")))
    }
}

/// One topic that a client has joined. It decides whether the client may.
pub struct UserChannel;

impl Channel for UserChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        // `rest` is what the `*` of the pattern below stands for. Users join their own topic and no other.
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(UserChannel).ok_or(JoinError::unauthorized())
    }
}

/// Where clients connect, and which channels they may join.
pub fn sockets(signer: Signer) -> Mount<UserSocket> {
    Mount::new(UserSocket(signer)).channel::<UserChannel>("user:*")
}

/// What your other services push.
#[derive(Debug, Deserialize, Serialize)]
pub struct Push {
    pub user: u64,
    pub text: String,
}

/// The way of a push: a queue, and workers that broadcast it to its user's topic.
pub fn start(endpoint: &Endpoint) -> Result<(TimedQueue<Push>, Pipeline), Box<dyn Error>> {
    // The queue and the workers are bounded, so memory is. A timed queue measures the whole way of a push.
    let (pushes, producer) = timed_queue(QueueOptions::new().capacity(10_000));
    let worker = endpoint.pubsub().broadcast_worker(|push: &Timed<Push>| {
        let (topic, payload) = (format!("user:{}", push.user), json!({ "text": push.text }));
        Ok(PreparedBroadcast::new(&topic, "push_timed", payload)?.timed(push))
    });
    let pipeline = Pipeline::builder("pushes")
        .producer(producer)
        .consumer_supervisor(
            ConsumerSupervisor::new(worker),
            SubscribeOptions::new().max_demand(50),
        )
        .start()?;
    Ok((pushes, pipeline))
}

/// Handles `POST /push`. It does not wait for room, so that a caller knows at once when there is too much.
pub async fn push(State(pushes): State<TimedQueue<Push>>, Json(push): Json<Push>) -> StatusCode {
    match pushes.try_push_timed(push) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE, // full, or about to stop: try again
    }
}
