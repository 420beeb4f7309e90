//! A session of a source: what it takes, and what became of it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, timeout},
};
use tokio_postgres::types::Type;

use super::{
    Inner, PostgresError, PostgresQueue,
    link::{Link, Parameters, waking},
    row, schema,
};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    giving_back::GivingBack,
    heard::heard,
    item::Delivery,
    random::random_i64,
    reason::cut,
    unix_ms::ms,
};

/// What identifies a delivery: the item, and its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PostgresReceipt {
    pub(super) id: i64,
    pub(super) lease: i64,
}

/// What was taken.
#[derive(Debug)]
struct Taken {
    items: Vec<Delivery<PostgresReceipt>>,
    looked: Looked,
}

/// How far the server has looked.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// At all that is available, or at as many as are wanted.
    Everywhere,
    /// Key by key, up to this one, or up to the last.
    Up(Option<String>),
}

/// A connected source. Its calls go over several connections, so that leases need not wait for takes to end or
/// to be renewed, and no renewal waits for an outcome.
#[derive(Debug)]
struct Session {
    queue: Arc<Inner>,
    taking: Link,
    settling: Link,
    renewing: Link,
    /// Told when items are added, or have their turn.
    added: Arc<Notify>,
    giving_back: GivingBack,
}

impl Broker for PostgresQueue {
    type Receipt = PostgresReceipt;
    type Fetch = PostgresFetch;
    type Settle = PostgresSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the queue {} in PostgreSQL", self.name()).into()
    }

    async fn connect(&self) -> Result<(PostgresFetch, PostgresSettle), BrokerError> {
        let Self(queue, _) = self;
        let added = Arc::new(Notify::new());
        let taking = queue.link(waking(&queue.name, added.clone())).await?;
        taking.execute("LISTEN pipeline_items").await?;
        let settling = queue.link(|_| {}).await?;
        let renewing = queue.link(|_| {}).await?;
        let (queue, giving_back) = (queue.clone(), GivingBack::default());
        let session = Session { queue, taking, settling, renewing, added, giving_back };
        let session = Arc::new(session);
        let fetch =
            PostgresFetch { session: session.clone(), after: None, sweep: Sweep::default() };
        Ok((fetch, PostgresSettle { session, counting: Mutex::default() }))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.0.options.lease)
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct PostgresFetch {
    session: Arc<Session>,
    /// The key after which the server looks next, key by key.
    after: Option<String>,
    sweep: Sweep,
}

/// When it is looked for items whose turn has come unnoticed.
#[derive(Debug, Default)]
struct Sweep {
    last: Option<Instant>,
    /// The key after which it looks next.
    after: Option<String>,
}

/// The shortest time between two sweeps.
const SWEEP: Duration = Duration::from_millis(100);

impl Fetch for PostgresFetch {
    type Receipt = PostgresReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<PostgresReceipt>>, BrokerError> {
        let poll = self.session.queue.options.poll;
        loop {
            if self.sweep.last.is_none_or(|last| last.elapsed() >= poll.max(SWEEP)) {
                self.sweep.last = Some(Instant::now());
                self.sweep.after = self.session.sweep(self.sweep.after.as_deref()).await?;
            }
            let taken = take(&self.session, max, self.after.clone()).await?;
            let is_everywhere = taken.looked == Looked::Everywhere;
            if let Looked::Up(key) = taken.looked {
                self.after = key;
            }
            if !taken.items.is_empty() {
                return Ok(taken.items);
            }
            // Else, there were many before their turn. They are noted, so the next look goes further.
            if is_everywhere {
                // What is available later is found by looking, and so is what was not told.
                let _ = timeout(poll, self.session.added.notified()).await;
            }
        }
    }

    async fn stop(&mut self) {
        self.session.giving_back.ended().await;
    }
}

/// Leases up to `max` items. It is completed also if it is dropped, and gives back then what it has taken.
async fn take(
    session: &Arc<Session>,
    max: usize,
    after: Option<String>,
) -> Result<Taken, PostgresError> {
    let (taking, unheard) = (session.clone(), session.clone());
    let give_back = move |result: Result<Taken, PostgresError>| {
        let Ok(taken) = result else { return };
        unheard.giving_back.clone().spawn(async move {
            let release = |taken: Delivery<_>| Settlement {
                receipt: taken.receipt,
                outcome: Outcome::Release { after: Duration::ZERO },
            };
            let taken: Vec<_> = taken.items.into_iter().map(release).collect();
            // If it fails, they are delivered again after their lease.
            let _ = unheard.settle(&taken).await;
        });
    };
    let (answer, heard) = heard(give_back);
    let giving_back = session.giving_back.clone();
    giving_back.spawn(async move { answer.send(taking.take(max, after.as_deref()).await) });
    heard.await.unwrap_or(Err(PostgresError::Closed))
}

impl Session {
    async fn take(&self, max: usize, after: Option<&str>) -> Result<Taken, PostgresError> {
        let Inner { name, options, .. } = &*self.queue;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let (lease, token) = (within_a_century(options.lease), random_i64());
        let parameters: Parameters<'_> = &[
            (name, Type::TEXT),
            (&max, Type::INT8),
            (&lease, Type::INT8),
            (&token, Type::INT8),
            (&after, Type::TEXT),
        ];
        let rows = self.taking.query(schema::TAKE, parameters).await?;
        let mut taken = Taken { items: Vec::with_capacity(rows.len()), looked: Looked::Everywhere };
        for row in &rows {
            match row::delivery(row, token)? {
                Some(item) => taken.items.push(item),
                None => taken.looked = Looked::Up(row::key(row)?),
            }
        }
        Ok(taken)
    }

    /// Frees items whose turn has come unnoticed. Returns the key after which there are more to look at.
    async fn sweep(&self, after: Option<&str>) -> Result<Option<String>, PostgresError> {
        let parameters = [(&self.queue.name as _, Type::TEXT), (&after as _, Type::TEXT)];
        let row = self.taking.one(schema::SWEEP, &parameters).await?;
        row::first_text(&row)
    }

    async fn settle(
        &self,
        settlements: &[Settlement<PostgresReceipt>],
    ) -> Result<Vec<NotStored>, PostgresError> {
        let ids: Vec<_> = settlements.iter().map(|it| it.receipt.id).collect();
        let leases: Vec<_> = settlements.iter().map(|it| it.receipt.lease).collect();
        let outcome = |it: &Settlement<_>| match it.outcome {
            Outcome::Done => "done",
            Outcome::Retry { .. } => "retry",
            Outcome::Release { .. } => "release",
            Outcome::GiveUp { .. } => "give up",
        };
        let outcomes: Vec<_> = settlements.iter().map(outcome).collect();
        let delay = |it: &Settlement<_>| match it.outcome {
            Outcome::Retry { after, .. } | Outcome::Release { after } => within_a_century(after),
            _ => 0,
        };
        let delays: Vec<_> = settlements.iter().map(delay).collect();
        let failures = |it: &Settlement<_>| match it.outcome {
            Outcome::Retry { failures, .. } => i32::try_from(failures).unwrap_or(i32::MAX),
            _ => 0,
        };
        let failures: Vec<_> = settlements.iter().map(failures).collect();
        let reason = |it: &Settlement<_>| match &it.outcome {
            // The server keeps no text with a zero in it.
            Outcome::GiveUp { reason } => cut(reason).replace('\0', "\u{fffd}"),
            _ => String::new(),
        };
        let reasons: Vec<_> = settlements.iter().map(reason).collect();
        let parameters: Parameters<'_> = &[
            (&self.queue.name, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&leases, Type::INT8_ARRAY),
            (&outcomes, Type::TEXT_ARRAY),
            (&delays, Type::INT8_ARRAY),
            (&failures, Type::INT4_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
        ];
        let mut not_stored = Vec::new();
        for row in self.settling.query(schema::SETTLE, parameters).await? {
            match row.try_get::<_, Option<i64>>(0)?.map(usize::try_from) {
                Some(Ok(place)) if place > 0 => {
                    let error = row.try_get::<_, &str>(1)?;
                    not_stored.push(NotStored::new(place - 1, BrokerError::new(error)));
                }
                // It is the turn of other items.
                _ => self.added.notify_one(),
            }
        }
        Ok(not_stored)
    }
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time in milliseconds that the server can add to another.
fn within_a_century(time: Duration) -> i64 {
    ms(time.min(CENTURY))
}

/// Stores the outcomes of a queue's items.
#[derive(Debug)]
pub struct PostgresSettle {
    session: Arc<Session>,
    /// Connected to when it is counted for the first time. A count that takes long delays nothing else.
    counting: Mutex<Option<Link>>,
}

impl Settle for PostgresSettle {
    type Receipt = PostgresReceipt;

    const WAKES: bool = true;

    async fn settle(
        &self,
        settlements: &[Settlement<PostgresReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        Ok(self.session.settle(settlements).await?)
    }

    async fn wake(&self, receipts: &[PostgresReceipt]) -> Result<(), BrokerError> {
        let ids: Vec<_> = receipts.iter().map(|receipt| receipt.id).collect();
        self.session.settling.change(schema::WAKE, &[(&ids, Type::INT8_ARRAY)]).await?;
        self.session.added.notify_one();
        Ok(())
    }

    async fn renew(&self, receipts: &[PostgresReceipt]) -> Result<(), BrokerError> {
        let ids: Vec<_> = receipts.iter().map(|receipt| receipt.id).collect();
        let leases: Vec<_> = receipts.iter().map(|receipt| receipt.lease).collect();
        let lease = within_a_century(self.session.queue.options.lease);
        let parameters: Parameters<'_> =
            &[(&ids, Type::INT8_ARRAY), (&leases, Type::INT8_ARRAY), (&lease, Type::INT8)];
        self.session.renewing.change(schema::RENEW, parameters).await?;
        Ok(())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let mut counting = self.counting.lock().await;
        // It is put back if nothing has failed.
        let link = match counting.take() {
            Some(link) => link,
            None => self.session.queue.link(|_| {}).await?,
        };
        self.session.queue.declare_again(&link).await?;
        let backlog = self.session.queue.backlog(&link).await?;
        *counting = Some(link);
        Ok(backlog)
    }
}
