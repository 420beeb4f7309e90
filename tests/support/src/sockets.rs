//! A socket and a channel that accept every client.

use pipeline_ws_sink::{
    Channel, Payload, Socket, Topic,
    channel::{JoinContext, JoinError},
    socket::{ConnectError, ConnectInfo, Params},
};

/// Accepts every client.
#[derive(Debug)]
pub struct AnySocket;

impl Socket for AnySocket {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        Ok(())
    }
}

/// Accepts every join.
#[derive(Debug)]
pub struct AnyChannel;

impl Channel for AnyChannel {
    type Socket = AnySocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}
