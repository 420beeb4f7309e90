//! A connection to the server.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Row,
    types::{ToSql, Type},
};

use super::{PostgresError, schema, tls};

/// The time between two looks whether another program has changed the tables.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Parameters of a statement, with their types.
pub(super) type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// A connection, whose calls end after a time. It is closed when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    patience: Duration,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A server that does not answer would keep the task.
        self.task.abort();
    }
}

impl Link {
    /// Connects, and creates the schema if there is none and it may. Notifications go to `added`.
    pub(super) async fn open(
        config: &Config,
        patience: Duration,
        creates: bool,
        notified: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, PostgresError> {
        let connecting = timeout(patience, tls::open(config)).await;
        let (client, mut messages) = connecting.map_err(|_| PostgresError::TimedOut)??;
        let task = tokio::spawn(async move {
            // It ends with an error or when the client is gone. Calls get the error.
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    notified(notification.payload());
                }
            }
        });
        let link = Self { client, patience, task: task.abort_handle() };
        link.execute(schema::BEGIN).await?;
        // What is given up here is given up there too.
        link.execute(&format!("SET statement_timeout = {}", server_ms(patience))).await?;
        let prepared = timeout(patience, link.prepare_schema(creates)).await;
        prepared.map_err(|_| PostgresError::TimedOut)??;
        Ok(link)
    }

    /// Whether it was closed from the other side.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Looks for the schema, and creates or changes it if it may. While another program does that, it looks
    /// again.
    async fn prepare_schema(&self, creates: bool) -> Result<(), PostgresError> {
        loop {
            let (found, is_whole) = self.version().await?;
            let version = if is_whole { found } else { 0 };
            match version {
                schema::VERSION => return Ok(()),
                newer if newer > schema::VERSION => return Err(PostgresError::Version { version }),
                _ if !creates => return Err(PostgresError::Version { version }),
                _ if self.change_schema().await? => {
                    if found == schema::VERSION {
                        tracing::error!(
                            "a table, function or trigger of the queues in PostgreSQL was missing and is made again, a \
                             table empty: queues are ordered by key where their programs or an operator say so again"
                        );
                    }
                    return Ok(());
                }
                _ => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Creates or changes the schema. False if another program does it.
    async fn change_schema(&self) -> Result<bool, PostgresError> {
        // What waits for a lock here makes all others wait that use the table, and still waits when the client
        // has given up. But to change large tables may take long: the server completes it then, and a
        // later connection finds it done.
        let lock_timeout = server_ms(self.patience / 4);
        let begin = format!(
            "BEGIN; SET LOCAL lock_timeout = {lock_timeout}; SET LOCAL statement_timeout = 0"
        );
        self.execute(&begin).await?;
        if self.one(schema::MAY_CHANGE, &[]).await?.try_get(0)? {
            self.execute(schema::CHANGE).await?;
            return Ok(true);
        }
        self.execute("ROLLBACK").await?;
        Ok(false)
    }

    /// The version of the schema, or 0 if there is none, and whether all of its parts are there.
    async fn version(&self) -> Result<(i32, bool), PostgresError> {
        let has_one = self.one(schema::HAS_VERSION, &[]).await?.try_get::<_, bool>(0)?;
        if !has_one {
            return Ok((0, true));
        }
        let row = self.one(schema::READ_VERSION, &[]).await?;
        let version = row.try_get::<_, Option<i32>>(0)?.unwrap_or(0);
        // What a newer version has is not known.
        let is_whole = version > schema::VERSION || row.try_get(1)?;
        Ok((version, is_whole))
    }

    /// Executes statements without parameters.
    pub(super) async fn execute(&self, statements: &str) -> Result<(), PostgresError> {
        self.within(self.client.batch_execute(statements)).await
    }

    /// Executes a statement, and returns its rows.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, PostgresError> {
        self.within(self.client.query_typed(statement, parameters)).await
    }

    /// Executes a statement with one row.
    pub(super) async fn one(
        &self,
        statement: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, PostgresError> {
        self.within(self.client.query_typed_one(statement, parameters)).await
    }

    /// Executes a statement, and returns how many rows it has changed.
    pub(super) async fn change(
        &self,
        statement: &str,
        parameters: Parameters<'_>,
    ) -> Result<u64, PostgresError> {
        self.within(self.client.execute_typed(statement, parameters)).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PostgresError> {
        let called = timeout(self.patience, call).await;
        Ok(called.map_err(|_| PostgresError::TimedOut)??)
    }
}

/// A time in milliseconds as a setting of the server, which counts up to 24 days.
fn server_ms(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Wakes what waits for items of this queue.
pub(super) fn waking(queue: &str, added: Arc<Notify>) -> impl Fn(&str) + Send + 'static {
    // As far as the trigger sends it.
    let name: String = queue.chars().take(100).collect();
    move |payload| {
        if payload == name {
            added.notify_one();
        }
    }
}
