//! Channels of Redis.

use std::sync::Arc;

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    ClusterError,
    channels::Channel,
    core::Core,
    driver::{Refusals, Server, Session, SessionError},
    packing::Message,
};

/// The longest message that Redis takes (`proto-max-bulk-len`); ours are shorter anyway.
const LONGEST: usize = 512 << 20;

/// A server of Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    client: Client,
}

/// A connection to Redis, on which commands are sent and messages arrive.
pub(crate) struct RedisSession {
    connection: MultiplexedConnection,
    /// Notified when the connection ends.
    lost: Arc<Notify>,
}

impl Redis {
    pub(crate) fn new(url: &str) -> Result<Self, ClusterError> {
        // The error may quote the address, which may have a password.
        let invalid = |_| ClusterError::Address;
        let info = url.into_connection_info().map_err(invalid)?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(invalid)?;
        Ok(Self { client })
    }
}

impl Server for Redis {
    type Session = RedisSession;

    async fn connect(&self, core: &Arc<Core>) -> Result<RedisSession, SessionError> {
        let lost = Arc::new(Notify::new());
        let (receiver, ended) = (Arc::downgrade(core), lost.clone());
        let pushed = move |info: PushInfo| -> Result<(), SessionError> {
            match info.kind {
                PushKind::Message => {
                    let message = info.data.into_iter().nth(1);
                    if let (Some(Value::BulkString(bytes)), Some(core)) =
                        (message, receiver.upgrade())
                    {
                        core.receive(&bytes.into());
                    }
                }
                PushKind::Disconnection => ended.notify_one(),
                _ => {}
            }
            Ok(())
        };
        // The task limits the time of each step itself.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(pushed);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connection = connecting.await.map_err(|error| failed(&error))?;
        Ok(RedisSession { connection, lost })
    }
}

impl Session for RedisSession {
    fn max_message(&self) -> usize {
        LONGEST
    }

    async fn publish(&self, core: &Core, messages: &[Message]) -> Result<Refusals, SessionError> {
        let mut pipe = redis::pipe();
        for Message { channel, bytes, .. } in messages {
            pipe.cmd("PUBLISH").arg(core.channel_name(*channel)).arg(&**bytes);
        }
        let mut connection = self.connection.clone();
        let answers: Vec<RedisResult<u64>> = pipe
            .ignore_errors()
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(&error))?;
        let mut refusals = Refusals::default();
        for (at, answer) in answers.into_iter().enumerate() {
            match answer.map_err(|error| failed(&error)) {
                Ok(_) => {}
                // The others were published, and this one would be refused again.
                Err(SessionError::Refused(error)) => {
                    refusals.messages.push(at);
                    refusals.error = error;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refusals)
    }

    async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
        self.connection.clone().subscribe(names).await.map_err(|error| failed(&error))
    }

    async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
        self.connection.clone().unsubscribe(names).await.map_err(|error| failed(&error))
    }

    async fn ping(&self, core: &Core) -> Result<(), SessionError> {
        let (mut connection, asked) = (self.connection.clone(), Instant::now());
        let time = redis::cmd("TIME").query_async::<(u64, u64)>(&mut connection).await;
        let (seconds, micros) = time.map_err(|error| failed(&error))?;
        let time = seconds.saturating_mul(1_000_000).saturating_add(micros);
        core.clock.server_says(time, asked, Instant::now());
        Ok(())
    }

    async fn nodes(&self, core: &Core) -> Result<Option<u64>, SessionError> {
        let name = core.channel_name(Channel::All);
        let mut connection = self.connection.clone();
        let mut command = redis::cmd("PUBSUB");
        command.arg("NUMSUB").arg(&name);
        match command.query_async::<(String, u64)>(&mut connection).await {
            Ok((_, nodes)) => Ok(Some(nodes)),
            // The user of this connection may not ask.
            Err(error) if error.code().is_some() && !error.is_io_error() => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn receive(&self, _: &Core) -> SessionError {
        self.lost.notified().await;
        SessionError::Lost("the server has closed it".to_owned())
    }
}

fn failed(error: &RedisError) -> SessionError {
    // What the server answers, other than about its own state, it would answer again.
    let is_refused = error.code().is_some() && !error.is_io_error();
    let is_passing =
        error.code().is_some_and(|code| matches!(code, "LOADING" | "BUSY" | "TRYAGAIN"));
    if is_refused && !is_passing {
        SessionError::Refused(error.to_string())
    } else {
        SessionError::Lost(error.to_string())
    }
}
