//! The socket, the channel, and the worker.

use std::time::{Duration, SystemTime};

use pipeline::{
    ExitReason,
    supervisor::{ChildContext, Reserved, Worker},
    timed::Timed,
    ws::{
        Channel, Endpoint, Payload, Socket, Topic,
        channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
        payload::PayloadError,
        pubsub::{BroadcastWorker, PreparedBroadcast},
        socket::{ConnectError, ConnectInfo, Params},
        token::Signer,
    },
};

use crate::push::Push;

/// A socket for clients with a signed token that has not expired.
pub struct UserSocket {
    signer: Signer,
}

impl UserSocket {
    pub fn new(signer: Signer) -> Self {
        Self { signer }
    }
}

impl Socket for UserSocket {
    /// The user's id.
    type Assigns = u64;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(self.signer.verify(params.require("token")?, SystemTime::now())?)
    }

    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("user_socket:{user}")))
    }
}

/// The channel `user:ID`, for that user only.
pub struct UserChannel;

impl Channel for UserChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(Self).ok_or(JoinError::unauthorized())
    }

    /// A client confirms a push, with `--acknowledge confirmed`.
    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ack" => Ok(cx.confirm(&payload)),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

/// Broadcasts an item to the topic of its user. The pushes of one user arrive in order: the worker
/// reserves each one's position before it runs.
pub struct PushToUser {
    worker: BroadcastWorker<Prepare>,
    delay: Duration,
}

type Prepare = fn(&Timed<Push>) -> Result<PreparedBroadcast, PayloadError>;

impl PushToUser {
    pub fn new(endpoint: &Endpoint, delay: Duration) -> Self {
        Self { worker: endpoint.pubsub().broadcast_worker(prepare as Prepare), delay }
    }
}

fn prepare(push: &Timed<Push>) -> Result<PreparedBroadcast, PayloadError> {
    let topic = format!("user:{}", push.user);
    Ok(PreparedBroadcast::new(&topic, &push.event, &push.payload)?.timed(push))
}

impl Worker<Timed<Push>> for PushToUser {
    fn reserve(&self, push: &Timed<Push>) -> Option<Reserved> {
        self.worker.reserve(push)
    }

    async fn run(&self, push: &Timed<Push>, context: ChildContext) -> Result<(), ExitReason> {
        if let Some(trace) = push.trace() {
            tracing::trace!(trace_id = %trace.trace_id(), "a worker has started");
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.worker.run(push, context).await
    }
}
