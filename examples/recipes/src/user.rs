//! What the recipes share: a socket whose token names the user, the channel of the user's own topic, and the
//! server.

use std::time::SystemTime;

use axum::Router;
use pipeline::{
    Pipeline, serve,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        listen,
        socket::{ConnectError, ConnectInfo, Params},
        token::{Signer, SignerError},
    },
};

use crate::Failed;

/// Signs and verifies the tokens of the recipes. A program reads its secret from the environment.
pub(crate) fn signer() -> Result<Signer, SignerError> {
    Signer::new("a secret for trying things out only", "user socket")
}

pub(crate) struct UserSocket(pub(crate) Signer);

impl Socket for UserSocket {
    type Assigns = u64;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(self.0.verify(params.require("token")?, SystemTime::now())?)
    }

    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("users_socket:{user}")))
    }
}

pub(crate) struct UserChannel;

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

/// Sockets of users, with the channel `user:*`.
pub(crate) fn mount(signer: Signer) -> Mount<UserSocket> {
    Mount::new(UserSocket(signer)).channel::<UserChannel>("user:*")
}

/// Serves a router with an endpoint, and a pipeline if there is one, until Ctrl-C, and says how to look on as user 7.
pub(crate) async fn run(
    app: Router,
    endpoint: Endpoint,
    pipeline: impl Into<Option<Pipeline>>,
) -> Result<(), Failed> {
    let token = signer()?.sign(&7, SystemTime::now())?;
    let address = "127.0.0.1:4030";
    println!(
        "look on: npx wscat --connect 'ws://{address}/socket/websocket?vsn=2.0.0&token={token}'"
    );
    println!(r#"and type: ["1","1","user:7","phx_join",{{}}]"#);
    let app = app.fallback_service(endpoint.clone());
    let mut running = serve(listen(address).await?, app).endpoint(endpoint);
    if let Some(pipeline) = pipeline.into() {
        running = running.pipeline(pipeline);
    }
    println!("{}", running.await?.into_result()?);
    Ok(())
}

/// A client of the test kit that has joined its own topic.
#[cfg(test)]
pub(crate) async fn joined(
    kit: &pipeline::ws::channel_test::TestEndpoint,
    user: u64,
) -> pipeline::ws::channel_test::TestChannel {
    let token = signer().unwrap().sign(&user, SystemTime::now()).unwrap();
    let socket = kit.connect(serde_json::json!({ "token": token })).await.unwrap();
    socket.join(&format!("user:{user}"), serde_json::json!({})).await.unwrap()
}
