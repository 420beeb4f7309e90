//! A connection to the server, with the scripts that are loaded there.

use std::{fmt, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError, ToRedisArgs,
    aio::MultiplexedConnection,
};

use super::scripts;

/// A script that the server has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Take,
    Settle,
    Renew,
    Trim,
    Push,
    Replay,
    Dead,
    Open,
    Backlog,
}

impl Script {
    /// In the order in which they are declared.
    const ALL: [Self; 9] = [
        Self::Take,
        Self::Settle,
        Self::Renew,
        Self::Trim,
        Self::Push,
        Self::Replay,
        Self::Dead,
        Self::Open,
        Self::Backlog,
    ];

    fn text(self) -> String {
        match self {
            Self::Take => scripts::TAKE.to_owned(),
            Self::Settle => scripts::SETTLE.to_owned(),
            Self::Renew => scripts::RENEW.to_owned(),
            Self::Trim => [scripts::TRIM, scripts::TRIM_NOW].concat(),
            Self::Push => [scripts::TRIM, scripts::PUSH].concat(),
            Self::Replay => scripts::REPLAY.to_owned(),
            Self::Dead => scripts::DEAD.to_owned(),
            Self::Open => scripts::OPEN.to_owned(),
            Self::Backlog => scripts::BACKLOG.to_owned(),
        }
    }
}

/// Opens a connection whose calls end after this time at the latest.
pub(super) async fn connect(
    client: &Client,
    patience: Duration,
    slowest: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(patience))
        .set_response_timeout(Some(slowest));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// A connection to the server. Cheap to clone; what its clones call is sent without waiting for answers.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The server's names of the scripts.
    scripts: [String; Script::ALL.len()],
}

impl Link {
    pub(super) async fn open(client: &Client, patience: Duration) -> Result<Self, RedisError> {
        let mut connection = connect(client, patience, patience).await?;
        let mut scripts = Script::ALL.map(|_| String::new());
        for (script, name) in Script::ALL.into_iter().zip(&mut scripts) {
            *name = redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(script.text())
                .query_async(&mut connection)
                .await?;
        }
        Ok(Self { connection, scripts })
    }

    /// Executes a command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(&mut self.connection.clone()).await
    }

    /// The call of a script with these keys. Its arguments are added by the caller.
    pub(super) fn script(&self, script: Script, keys: &[impl ToRedisArgs]) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.scripts[script as usize]).arg(keys.len()).arg(keys);
        call
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}
