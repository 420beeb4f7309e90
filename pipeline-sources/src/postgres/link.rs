//! A connection to the server.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio::{sync::Notify, task::AbortHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, Row,
    types::{ToSql, Type},
};

use super::{PostgresError, schema};

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
        let connecting = timeout(patience, config.connect(NoTls)).await;
        let (client, mut connection) = connecting.map_err(|_| PostgresError::TimedOut)??;
        let task = tokio::spawn(async move {
            // It ends with an error or when the client is gone. Calls get the error.
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(notification) = message {
                    notified(notification.payload());
                }
            }
        });
        let link = Self { client, patience, task: task.abort_handle() };
        link.execute(schema::BEGIN).await?;
        link.prepare_schema(creates).await?;
        // What is given up here is given up there too. To change large tables may take longer: the server
        // completes it, and a later connection finds it done.
        link.execute(&format!("SET statement_timeout = {}", patience.as_millis().max(1))).await?;
        Ok(link)
    }

    async fn prepare_schema(&self, creates: bool) -> Result<(), PostgresError> {
        let has_one = self.one(schema::HAS_VERSION, &[]).await?.try_get::<_, bool>(0)?;
        let version = if has_one {
            self.one(schema::READ_VERSION, &[]).await?.try_get::<_, Option<i32>>(0)?.unwrap_or(0)
        } else {
            0
        };
        match version {
            schema::VERSION => Ok(()),
            newer if newer > schema::VERSION => Err(PostgresError::Version { version }),
            _ if !creates => Err(PostgresError::Version { version }),
            _ => self.execute(schema::SCHEMA).await,
        }
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
