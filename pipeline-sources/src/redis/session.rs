//! A session of a source: what it takes, and what became of it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use pipeline_core::Deadline;
use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout};

use super::{
    Inner, RedisQueue, RedisQueueError,
    entry::{self, Entry},
    link::{Link, Script, connect},
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

/// How many items one call of a script concerns at most, so that the server is not kept busy for long.
const AT_ONCE: usize = 1000;

/// With so many bytes a fetch has enough items, however many are asked for.
const FETCHED_BYTES: usize = 16 * 1024 * 1024;

/// How many items are read at once, of which the server tells the size with the item only.
const UNSEEN: usize = 16;

/// Of items up to this size, so many are read at once.
const SMALL: usize = FETCHED_BYTES / UNSEEN / 4;

/// How long a consumer with nothing in work is kept.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// The longest time for which the server is asked to wait, so that its clock can count it.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The end and the start of a search for items of dead consumers.
const START: &str = "0-0";

/// What identifies a delivery: the item, and which delivery of it to which consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RedisReceipt {
    pub(super) id: Arc<str>,
    pub(super) consumer: Arc<str>,
    pub(super) deliveries: u32,
}

type Taken = Vec<Delivery<RedisReceipt>>;

/// A connected consumer.
#[derive(Clone, Debug)]
struct Session {
    queue: Arc<Inner>,
    link: Link,
    consumer: Arc<str>,
    giving_back: GivingBack,
}

impl Broker for RedisQueue {
    type Receipt = RedisReceipt;
    type Fetch = RedisFetch;
    type Settle = RedisSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the stream {} in Redis", self.name()).into()
    }

    async fn connect(&self) -> Result<(RedisFetch, RedisSettle), BrokerError> {
        let Self(queue, _) = self;
        let patience = queue.options.call_timeout;
        let link = timeout(patience, Link::open(&queue.client, patience)).await;
        let link = link.map_err(|_| RedisQueueError::TimedOut)??;
        // The group is there again after a server has lost its data, and gets what was added since.
        let mut open = link.script(Script::Open, &[&queue.stream]);
        open.arg(&queue.options.group).arg(ms(FORGET_AFTER));
        link.query::<()>(&open).await?;
        // A waiting call answers after the interval at the latest.
        let slowest = queue.options.poll.saturating_add(patience);
        let mut waiting = connect(&queue.client, patience, slowest).await?;
        let id = redis::cmd("CLIENT").arg("ID").query_async(&mut waiting).await?;
        let consumer = format!("{:016x}", random_i64()).into();
        let giving_back = GivingBack::default();
        let session = Session { queue: queue.clone(), link, consumer, giving_back };
        let next_search = Deadline::from_now(Duration::ZERO);
        let fetch = RedisFetch {
            session: session.clone(),
            waiting,
            id,
            cursor: START.into(),
            next_search,
            again_first: false,
            at_once: 1,
        };
        Ok((fetch, RedisSettle { session, waiting: id }))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.0.options.lease)
    }
}

impl From<RedisError> for BrokerError {
    fn from(error: RedisError) -> Self {
        RedisQueueError::from(error).into()
    }
}

/// Takes items from a stream.
#[derive(Debug)]
pub struct RedisFetch {
    session: Session,
    /// The connection on which it waits for new items.
    waiting: MultiplexedConnection,
    /// The server's number of that connection.
    id: i64,
    /// Where the search for items of dead consumers begins next.
    cursor: String,
    next_search: Deadline,
    /// Whether of an odd number there is one more of those that are delivered again.
    again_first: bool,
    /// How many items are read at once before their sizes are known.
    at_once: usize,
}

impl Fetch for RedisFetch {
    type Receipt = RedisReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Taken, BrokerError> {
        let poll = self.session.queue.options.poll;
        loop {
            let (taken, due) = self.take(max).await?;
            if let Some(largest) = taken.iter().map(|it| it.item.bytes()).max() {
                self.at_once = if largest <= SMALL { UNSEEN } else { 1 };
                return Ok(taken);
            }
            let wait = due.map_or(poll, |due| due.min(poll));
            let wait = wait.clamp(Duration::from_millis(1), LONGEST_WAIT);
            let taken = self.wait(max.min(self.at_once), wait).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    async fn stop(&mut self) {
        self.session.giving_back.ended().await;
    }
}

impl RedisFetch {
    /// Takes what there is, and tells when the next delay is over.
    async fn take(&mut self, max: usize) -> Result<(Taken, Option<Duration>), RedisQueueError> {
        let queue = &self.session.queue;
        let lease = queue.options.lease;
        let now = Instant::now();
        let searches = self.cursor != START || self.next_search.has_passed(now);
        if searches {
            self.next_search = Deadline::after(now, lease / 4);
        }
        let mut take =
            self.session.link.script(Script::Take, &[&queue.stream, &queue.later, &queue.failures]);
        take.arg(&queue.options.group).arg(&*self.session.consumer).arg(max).arg(ms(lease));
        take.arg(if searches { &self.cursor } else { "" });
        self.again_first = !self.again_first;
        take.arg(u8::from(self.again_first)).arg(FETCHED_BYTES).arg(self.at_once);
        let session = self.session.clone();
        let call = async move {
            type Answer = (Vec<(String, u32, u32, Vec<Vec<u8>>)>, String, i64);
            let (taken, cursor, due): Answer = session.link.query(&take).await?;
            let delivery = |(id, deliveries, failures, fields): (String, u32, u32, _)| {
                entry::delivery((id, fields), deliveries, failures, &session.consumer)
            };
            Ok((taken.into_iter().map(delivery).collect(), (cursor, due)))
        };
        let (taken, (cursor, due)) = kept(&self.session, call).await?;
        if searches {
            self.cursor = cursor;
        }
        Ok((taken, u64::try_from(due).ok().map(Duration::from_millis)))
    }

    /// Waits for new items.
    async fn wait(&self, max: usize, wait: Duration) -> Result<Taken, RedisQueueError> {
        let queue = &self.session.queue;
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&queue.options.group).arg(&*self.session.consumer);
        read.arg("COUNT").arg(max).arg("BLOCK").arg(ms(wait));
        read.arg("STREAMS").arg(&queue.stream).arg(">");
        let (mut waiting, consumer) = (self.waiting.clone(), self.session.consumer.clone());
        let call = async move {
            let read: Option<Vec<(String, Vec<Entry>)>> = read.query_async(&mut waiting).await?;
            let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
            let taken = entries.map(|entry| entry::delivery(entry, 1, 0, &consumer)).collect();
            Ok((taken, ()))
        };
        let mut unblock = Unblock { session: &self.session, id: Some(self.id) };
        let (taken, ()) = kept(&self.session, call).await?;
        unblock.id = None;
        Ok(taken)
    }
}

/// Completes a call also if it is dropped, and gives back then what it has taken.
async fn kept<T: Send + 'static>(
    session: &Session,
    call: impl Future<Output = Result<(Taken, T), RedisQueueError>> + Send + 'static,
) -> Result<(Taken, T), RedisQueueError> {
    let giving_back = session.giving_back.clone();
    let session = session.clone();
    let unheard = move |result: Result<(Taken, T), _>| {
        let Ok((taken, _)) = result else { return };
        session.giving_back.clone().spawn(async move {
            let release = |taken: Delivery<_>| Settlement {
                receipt: taken.receipt,
                outcome: Outcome::Release { after: Duration::ZERO },
            };
            let taken: Vec<_> = taken.into_iter().map(release).collect();
            // If it fails, they are delivered again after their lease.
            let _ = session.settle(&taken).await;
        });
    };
    let (answer, heard) = heard(unheard);
    giving_back.spawn(async move { answer.send(call.await) });
    heard.await.unwrap_or(Err(RedisQueueError::Closed))
}

/// Ends a waiting call that is dropped, so that it takes nothing more.
struct Unblock<'a> {
    session: &'a Session,
    id: Option<i64>,
}

impl Drop for Unblock<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let link = self.session.link.clone();
            self.session.giving_back.spawn(async move {
                let mut unblock = redis::cmd("CLIENT");
                // If it fails, the call ends after its time.
                let _ = link.query::<i64>(unblock.arg("UNBLOCK").arg(id)).await;
            });
        }
    }
}

/// Stores the outcomes of a stream's items.
#[derive(Debug)]
pub struct RedisSettle {
    session: Session,
    /// The server's number of the connection on which the other half waits.
    waiting: i64,
}

impl Session {
    async fn settle(
        &self,
        settlements: &[Settlement<RedisReceipt>],
    ) -> Result<Vec<NotStored>, RedisQueueError> {
        let Inner { stream, later, failures, dead, options, .. } = &*self.queue;
        let mut not_stored = Vec::new();
        for (chunk, settlements) in settlements.chunks(AT_ONCE).enumerate() {
            let mut settle = self.link.script(Script::Settle, &[stream, later, failures, dead]);
            settle.arg(&options.group).arg(u8::from(options.shared));
            for Settlement { receipt, outcome } in settlements {
                let RedisReceipt { id, consumer, deliveries } = receipt;
                let (name, failures, more) = match outcome {
                    Outcome::Done => ("done", 0, String::new()),
                    Outcome::Retry { after, failures } => {
                        ("retry", *failures, ms(*after).to_string())
                    }
                    Outcome::Release { after } => ("release", 0, ms(*after).to_string()),
                    Outcome::GiveUp { reason } => ("give up", 0, cut(reason).to_owned()),
                };
                settle.arg(name).arg(&**id).arg(&**consumer).arg(*deliveries);
                settle.arg(failures).arg(more);
            }
            let failed: Vec<(usize, String)> = self.link.query(&settle).await?;
            not_stored.extend(failed.into_iter().map(|(index, why)| {
                let error = RedisQueueError::NotStored(why.into());
                NotStored::new(chunk * AT_ONCE + index, error)
            }));
        }
        Ok(not_stored)
    }
}

impl Settle for RedisSettle {
    type Receipt = RedisReceipt;

    const WAKES: bool = true;

    async fn settle(
        &self,
        settlements: &[Settlement<RedisReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        Ok(self.session.settle(settlements).await?)
    }

    async fn wake(&self, receipts: &[RedisReceipt]) -> Result<(), BrokerError> {
        let Session { queue, link, .. } = &self.session;
        for receipts in receipts.chunks(AT_ONCE) {
            // Those that are not there any more have no delay.
            let mut wake = redis::cmd("ZADD");
            wake.arg(&queue.later).arg("XX").arg("LT");
            for receipt in receipts {
                // Long over. Before those without a delay come only those that were given back.
                wake.arg(1).arg(&*receipt.id);
            }
            link.query::<i64>(&wake).await?;
        }
        let mut unblock = redis::cmd("CLIENT");
        // A user of the server may not have the right to it. Then they are found by polling.
        let _ = link.query::<i64>(unblock.arg("UNBLOCK").arg(self.waiting)).await;
        Ok(())
    }

    async fn renew(&self, receipts: &[RedisReceipt]) -> Result<(), BrokerError> {
        let Session { queue, link, .. } = &self.session;
        for receipts in receipts.chunks(AT_ONCE) {
            let mut renew = link.script(Script::Renew, &[&queue.stream]);
            renew.arg(&queue.options.group);
            for RedisReceipt { id, consumer, deliveries } in receipts {
                renew.arg(&**id).arg(&**consumer).arg(*deliveries);
            }
            link.query::<()>(&renew).await?;
        }
        Ok(())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let Session { queue, link, .. } = &self.session;
        if queue.options.shared {
            link.query::<()>(&link.script(Script::Trim, &[&queue.stream])).await?;
        }
        Ok(queue.backlog(link).await?)
    }
}
