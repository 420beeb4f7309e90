//! The programs of the guide, which are the documentation tests of this package, and what they share.

use std::time::SystemTime;

use pipeline::ws::{
    Channel, Payload, Socket, Topic,
    channel::{JoinContext, JoinError},
    socket::{ConnectError, ConnectInfo, Params},
    token::Signer,
};

/// The socket of the first chapter: its assigns are the user's id, from a signed token.
#[derive(Debug)]
pub struct UserSocket(pub Signer);

impl Socket for UserSocket {
    type Assigns = u64;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(self.0.verify(params.require("token")?, SystemTime::now())?)
    }

    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("users_socket:{user}")))
    }
}

/// The channel of the first chapter: a user joins the topic of the own id.
#[derive(Debug)]
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
        own.then_some(UserChannel).ok_or(JoinError::unauthorized())
    }
}

/// The guide's programs, run by `cargo test --doc`.
#[cfg(doctest)]
mod chapters {
    macro_rules! chapters {
        ($($name:ident),* $(,)?) => {
            $(#[doc = include_str!(concat!("src/", stringify!($name), ".md"))] mod $name {})*
        };
    }

    chapters!(
        axum, channels, demand, elixir, failing, first, machines, presence, security, seeing,
        sizing, slow, sources, testing,
    );
}
