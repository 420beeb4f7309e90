//! A session of a source: what it takes, and what became of it.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::Notify, time::timeout};
use tokio_postgres::{Row, types::Type};

use super::{
    Inner, PostgresError, PostgresQueue, item,
    link::{Link, Parameters, waking},
    schema,
};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    heard::heard,
    item::Delivery,
    random::random_i64,
    unix_ms::{from_ms, ms},
};

/// What identifies a delivery: the item, and its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PostgresReceipt {
    id: i64,
    lease: i64,
}

type Taken = Vec<Delivery<PostgresReceipt>>;

/// A connected source. Leases end by the other connection, so that they need not wait for takes.
#[derive(Debug)]
struct Session {
    queue: Arc<Inner>,
    taking: Link,
    settling: Link,
}

impl Broker for PostgresQueue {
    type Receipt = PostgresReceipt;
    type Fetch = PostgresFetch;
    type Settle = PostgresSettle;

    async fn connect(&self) -> Result<(PostgresFetch, PostgresSettle), BrokerError> {
        let Self(queue) = self;
        let added = Arc::new(Notify::new());
        let taking = queue.link(waking(&queue.name, added.clone())).await?;
        taking.execute("LISTEN pipeline_items").await?;
        if !queue.options.ordered {
            taking.change(schema::UNBLOCK, &[(&queue.name, Type::TEXT)]).await?;
        }
        let settling = queue.link(|_| {}).await?;
        let session = Arc::new(Session { queue: queue.clone(), taking, settling });
        Ok((PostgresFetch { session: session.clone(), added }, PostgresSettle(session)))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.0.options.lease)
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct PostgresFetch {
    session: Arc<Session>,
    /// Told when items are added.
    added: Arc<Notify>,
}

impl Fetch for PostgresFetch {
    type Receipt = PostgresReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Taken, BrokerError> {
        loop {
            let taken = take(&self.session, max).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            // What is available later is found by looking, and so is what was not told.
            let _ = timeout(self.session.queue.options.poll, self.added.notified()).await;
        }
    }
}

/// Leases up to `max` items. It is completed also if it is dropped, and gives back then what it has taken.
async fn take(session: &Arc<Session>, max: usize) -> Result<Taken, PostgresError> {
    let (taking, unheard) = (session.clone(), session.clone());
    let give_back = move |result: Result<Taken, PostgresError>| {
        let (Ok(taken), Ok(runtime)) = (result, Handle::try_current()) else { return };
        runtime.spawn(async move {
            let release = |taken: Delivery<_>| Settlement {
                receipt: taken.receipt,
                outcome: Outcome::Release { after: Duration::ZERO },
            };
            let taken: Vec<_> = taken.into_iter().map(release).collect();
            // If it fails, they are delivered again after their lease.
            let _ = unheard.settle(&taken).await;
        });
    };
    let (answer, heard) = heard(give_back);
    tokio::spawn(async move { answer.send(taking.take(max).await) });
    heard.await.unwrap_or(Err(PostgresError::Closed))
}

impl Session {
    async fn take(&self, max: usize) -> Result<Taken, PostgresError> {
        let Inner { name, options, .. } = &*self.queue;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let (lease, token) = (ms(options.lease), random_i64());
        let parameters: Parameters<'_> = &[
            (name, Type::TEXT),
            (&max, Type::INT8),
            (&lease, Type::INT8),
            (&token, Type::INT8),
            (&options.ordered, Type::BOOL),
        ];
        let rows = self.taking.query(schema::TAKE, parameters).await?;
        rows.iter().map(|row| delivery(row, token)).collect()
    }

    async fn settle(
        &self,
        settlements: &[Settlement<PostgresReceipt>],
    ) -> Result<(), PostgresError> {
        let Inner { name, options, .. } = &*self.queue;
        let ids: Vec<_> = settlements.iter().map(|it| it.receipt.id).collect();
        let leases: Vec<_> = settlements.iter().map(|it| it.receipt.lease).collect();
        let outcome = |it: &Settlement<_>| match it.outcome {
            Outcome::Done => "done",
            Outcome::Retry(_) => "retry",
            Outcome::Release { .. } => "release",
            Outcome::GiveUp { .. } => "give up",
        };
        let outcomes: Vec<_> = settlements.iter().map(outcome).collect();
        let delay = |it: &Settlement<_>| match it.outcome {
            // A delay of a century is within what the server can add.
            Outcome::Retry(delay) | Outcome::Release { after: delay } => ms(delay).min(ms(CENTURY)),
            _ => 0,
        };
        let delays: Vec<_> = settlements.iter().map(delay).collect();
        let reason = |it: &Settlement<_>| match &it.outcome {
            // The server keeps no text with a zero in it.
            Outcome::GiveUp { reason } => reason.replace('\0', "\u{fffd}"),
            _ => String::new(),
        };
        let reasons: Vec<_> = settlements.iter().map(reason).collect();
        let parameters: Parameters<'_> = &[
            (name, Type::TEXT),
            (&options.ordered, Type::BOOL),
            (&ids, Type::INT8_ARRAY),
            (&leases, Type::INT8_ARRAY),
            (&outcomes, Type::TEXT_ARRAY),
            (&delays, Type::INT8_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
        ];
        self.settling.query(schema::SETTLE, parameters).await?;
        Ok(())
    }
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn delivery(row: &Row, lease: i64) -> Result<Delivery<PostgresReceipt>, PostgresError> {
    let id: i64 = row.try_get(0)?;
    let (item, malformed) = item(row)?;
    Ok(Delivery {
        receipt: PostgresReceipt { id, lease },
        id: id.to_string().into(),
        item,
        enqueued_at: from_ms(row.try_get(5)?),
        deliveries: u32::try_from(row.try_get::<_, i32>(6)?).unwrap_or_default(),
        malformed: malformed.map(Into::into),
    })
}

/// Stores the outcomes of a queue's items.
#[derive(Debug)]
pub struct PostgresSettle(Arc<Session>);

impl Settle for PostgresSettle {
    type Receipt = PostgresReceipt;

    async fn settle(
        &self,
        settlements: &[Settlement<PostgresReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        self.0.settle(settlements).await?;
        Ok(Vec::new())
    }

    async fn renew(&self, receipts: &[PostgresReceipt]) -> Result<(), BrokerError> {
        let ids: Vec<_> = receipts.iter().map(|receipt| receipt.id).collect();
        let leases: Vec<_> = receipts.iter().map(|receipt| receipt.lease).collect();
        let lease = ms(self.0.queue.options.lease);
        let parameters: Parameters<'_> =
            &[(&ids, Type::INT8_ARRAY), (&leases, Type::INT8_ARRAY), (&lease, Type::INT8)];
        self.0.settling.change(schema::RENEW, parameters).await?;
        Ok(())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        Ok(self.0.queue.backlog(&self.0.settling).await?)
    }
}
