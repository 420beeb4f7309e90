//! A session of a source: pulls by demand, and outcomes that are confirmed.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
    mem::{replace, take},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use async_nats::{Message, Request, Subscriber};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join, stream};
use parking_lot::Mutex;
use pipeline_core::{Deadline, shown::shown};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    Consumer, NatsError, NatsQueue, Shared,
    format::{self, Death},
    link::{Link, Stored, nanoseconds},
    share::Share,
};
use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement},
    clock::now,
    giving_back::GivingBack,
    item::Delivery,
};

/// How long the server keeps a pull open.
const WAIT: Duration = Duration::from_secs(5);

/// How long the items of a pull may be apart.
const FOLLOWS: Duration = Duration::from_secs(1);

/// How many bytes a pull of several items may have.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How many requests are under way together.
const AT_ONCE: usize = 32;

/// After how long a message that cannot be read is delivered again if there is no space for its dead letter.
/// Each time, the client library closes its connection.
const UNREADABLE_AGAIN: Duration = Duration::from_secs(60);

/// How many messages at either end of those that are not done are looked at for one that the client library
/// cannot read.
const SUSPECTS: u64 = 1000;

/// What identifies a delivery: where its outcome is sent, and in which life of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NatsReceipt {
    /// The subject of acknowledgements.
    reply: Arc<str>,
    /// A stream that was lost and made again has the same subjects for other items.
    life: u64,
}

/// What the halves of a session share.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    link: Link,
    life: u64,
    share: Mutex<Share>,
    /// The last item that the server had delivered for the first time when the backlog was counted.
    newest: Mutex<Option<u64>>,
    giving_back: GivingBack,
}

impl Broker for NatsQueue {
    type Receipt = NatsReceipt;
    type Fetch = NatsFetch;
    type Settle = NatsSettle;

    fn description(&self) -> Cow<'_, str> {
        format!("the stream {} of NATS", self.name()).into()
    }

    async fn connect(&self) -> Result<(NatsFetch, NatsSettle), BrokerError> {
        let shared = self.shared.clone();
        let link = Link::connect(&shared.servers, &shared.options).await?;
        let told = shared.prepare(&link, Consumer::Changed).await?;
        let mut life = DefaultHasher::new();
        for told in &told {
            told["created"].as_str().hash(&mut life);
        }
        let [_, consumer] = &told;
        let (share, newest) = (Mutex::default(), Mutex::default());
        let (life, giving_back) = (life.finish(), GivingBack::default());
        let session = Arc::new(Session { shared, link, life, share, newest, giving_back });
        if session.shared.suspect.load(SeqCst) {
            let all = session.give_up_what_is_unreadable(consumer).await?;
            session.shared.suspect.store(!all, SeqCst);
        }
        let fetch = NatsFetch { session: session.clone(), pulled: None };
        Ok((fetch, NatsSettle(session)))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.shared.options.lease)
    }

    fn held_back(&self) -> usize {
        usize::try_from(self.shared.options.max_pending).unwrap_or(usize::MAX)
    }
}

/// Takes items from a stream.
#[derive(Debug)]
pub struct NatsFetch {
    session: Arc<Session>,
    /// What pulls are answered on, while none is open.
    pulled: Option<Pulled>,
}

#[derive(Debug)]
struct Pulled {
    subject: String,
    messages: Subscriber,
}

impl Fetch for NatsFetch {
    type Receipt = NatsReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<NatsReceipt>>, BrokerError> {
        // A pull that waits for several items would be open when the first ones are handed on, and could
        // deliver more than there is demand for then.
        let mut no_wait = json!({ "batch": max, "no_wait": true });
        if max > 1 {
            // The sizes of the first items are not known. One that is larger is pulled alone.
            no_wait["max_bytes"] = MAX_BYTES.into();
        }
        let Pull { items: there, is_cut } = self.pull(&no_wait, max, Duration::ZERO).await?;
        let again = there.iter().filter(|delivery| delivery.deliveries > 1).count();
        let asked = if is_cut { there.len() } else { max };
        self.session.share.lock().pulled(asked, there.len(), again, Instant::now());
        if !there.is_empty() {
            return Ok(there);
        }
        let nanoseconds = u64::try_from(WAIT.as_nanos()).unwrap_or(u64::MAX);
        let one = json!({ "batch": 1, "expires": nanoseconds });
        Ok(self.pull(&one, 1, WAIT).await?.items)
    }

    async fn stop(&mut self) {
        self.session.giving_back.ended().await;
    }
}

/// What a pull has brought.
struct Pull {
    items: Vec<Delivery<NatsReceipt>>,
    /// Whether others were too large for it.
    is_cut: bool,
}

impl NatsFetch {
    async fn pull(
        &mut self,
        request: &Value,
        max: usize,
        wait: Duration,
    ) -> Result<Pull, NatsError> {
        let session = self.session.clone();
        let (link, shared) = (&session.link, &session.shared);
        let pulled = match self.pulled.take() {
            Some(pulled) => pulled,
            None => {
                let subject = link.client().new_inbox();
                let subscribed = timeout(link.timeout(), link.client().subscribe(subject.clone()));
                let subscribed =
                    subscribed.await.map_err(|_| NatsError::Timeout("pulling items"))?;
                Pulled { subject, messages: subscribed.map_err(|_| NatsError::Lost)? }
            }
        };
        let mut open = OpenPull {
            session: &session,
            pulled: Some(pulled),
            taken: Vec::new(),
            max,
            is_answered_at_once: wait.is_zero(),
        };
        let mut is_cut = false;
        let OpenPull { pulled: Some(pulled), taken, .. } = &mut open else {
            return Ok(Pull { items: Vec::new(), is_cut });
        };
        let api = format!("CONSUMER.MSG.NEXT.{}.{}", shared.stream, shared.options.consumer);
        let (api, body) = (link.api_subject(&api), Bytes::from(request.to_string()));
        let sent = link.client().publish_with_reply(api, pulled.subject.clone(), body);
        let sent = timeout(link.timeout(), sent).await;
        sent.map_err(|_| NatsError::Timeout("pulling items"))?.map_err(|_| NatsError::Lost)?;
        let patience = wait.saturating_add(link.timeout());
        // What was taken waits for what follows it, and its lease is not renewed meanwhile.
        let follows = link.timeout().min(FOLLOWS).min(shared.options.lease / 8);
        let mut all_follow = Deadline::from_now(Duration::MAX);
        let mut deadline = Deadline::from_now(patience);
        while taken.len() < max {
            let message = tokio::select! {
                message = pulled.messages.next() => message.ok_or(NatsError::Lost),
                lost = link.lost() => Err(lost),
                () = deadline.passed() => Err(NatsError::Timeout("pulling items")),
                () = all_follow.passed() => return Ok(Pull { items: take(taken), is_cut }),
            };
            if matches!(message, Err(NatsError::Lost)) {
                shared.suspect.store(true, SeqCst);
            }
            if let Err(error @ NatsError::Timeout(_)) = message {
                // A server with as many items in work as there may be says nothing to a pull that does not wait.
                if taken.is_empty() {
                    session.shared.consumer_info(link).await.map_err(|_| error)?;
                }
                // A later message would be taken for one of the next pull.
                return Ok(Pull { items: take(taken), is_cut });
            }
            let message = message?;
            match answered(&message) {
                None => {
                    if taken.is_empty() {
                        all_follow = Deadline::from_now(shared.options.lease / 4);
                    }
                    taken.push(session.delivery(message)?);
                }
                // A sign of life.
                Some(100) => {}
                // No more are there, or the time of the pull is over.
                Some(404 | 408) => break,
                Some(503) => return Err(NatsError::NotThere("pulling items")),
                Some(code) => {
                    let description = message.description.unwrap_or_default();
                    if description.contains("MaxAckPending") {
                        break;
                    }
                    if description.contains("MaxBytes") {
                        is_cut = true;
                        break;
                    }
                    return Err(NatsError::Refused {
                        what: "pulling items",
                        code: code.into(),
                        description: description.into(),
                    });
                }
            }
            deadline = Deadline::from_now(if taken.is_empty() { patience } else { follows });
        }
        let items = take(taken);
        self.pulled = open.pulled.take();
        Ok(Pull { items, is_cut })
    }
}

/// The status of an answer of the server, and none of a message of the stream. A program can store one with a
/// status as well, but only a delivery says how it is acknowledged.
fn answered(message: &Message) -> Option<u16> {
    let is_delivery = message.reply.as_deref().is_some_and(|reply| format::told(reply).is_some());
    message.status.filter(|_| !is_delivery).map(|status| status.as_u16())
}

/// A pull that is open. If it is dropped, what it has taken is given back, and so is what is on its way.
struct OpenPull<'a> {
    session: &'a Arc<Session>,
    pulled: Option<Pulled>,
    taken: Vec<Delivery<NatsReceipt>>,
    max: usize,
    is_answered_at_once: bool,
}

impl Drop for OpenPull<'_> {
    fn drop(&mut self) {
        let (pulled, taken) = (self.pulled.take(), take(&mut self.taken));
        if pulled.is_none() && taken.is_empty() {
            return;
        }
        let session = self.session.clone();
        let (left, is_answered_at_once) = (self.max - taken.len(), self.is_answered_at_once);
        let give_back = async move {
            let arriving = async {
                let Some(mut pulled) = pulled else { return };
                // The client forgets a subscription soon after it has sent that it is drained, and throws away
                // what is on its way. So what the server has answered at once is read to its end.
                if is_answered_at_once {
                    session.give_back_what_follows(&mut pulled, left).await;
                } else if pulled.messages.drain().await.is_ok() {
                    // The server does not answer a pull whose subject has no subscription.
                    session.give_back_what_follows(&mut pulled, left).await;
                }
                // A program that ends now would take them with it.
                let _ = session.link.client().flush().await;
            };
            let answers = taken.into_iter().map(|taken| (taken.receipt.reply, RELEASE)).collect();
            join(arriving, session.answer(answers)).await
        };
        let limit = self.session.link.timeout();
        self.session.giving_back.spawn(async move { drop(timeout(limit, give_back).await) });
    }
}

const DONE: Bytes = Bytes::from_static(b"+ACK");
const RELEASE: Bytes = Bytes::from_static(b"-NAK");
const GIVEN_UP: Bytes = Bytes::from_static(b"+TERM");
const IN_WORK: Bytes = Bytes::from_static(b"+WPI");

/// Stores the outcomes of a stream's items.
#[derive(Debug)]
pub struct NatsSettle(Arc<Session>);

impl Settle for NatsSettle {
    type Receipt = NatsReceipt;

    async fn settle(
        &self,
        settlements: &[Settlement<NatsReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let session = &self.0;
        // Those of another life of the stream concern other items.
        let known =
            settlements.iter().enumerate().filter(|(_, known)| known.receipt.life == session.life);
        let (mut answers, mut given_up) = (Vec::new(), Vec::new());
        for (index, Settlement { receipt, outcome }) in known {
            let answer = match outcome {
                Outcome::Done => DONE,
                Outcome::Release { after: Duration::ZERO } => RELEASE,
                Outcome::Retry { after, .. } => nak(*after),
                Outcome::Release { after } => {
                    nak(session.share.lock().postpone(*after, Instant::now()))
                }
                Outcome::GiveUp { reason } => {
                    given_up.push((index, receipt.reply.clone(), reason.clone()));
                    continue;
                }
            };
            answers.push((receipt.reply.clone(), answer));
        }
        // A stream that has no space gets some when items are done, so these do not wait for dead letters.
        session.answer(answers).await?;
        // They are dead letters before the stream forgets them.
        let buried: Vec<_> = stream::iter(given_up)
            .map(|(index, reply, reason)| async move {
                (index, session.give_up(&reply, &reason).await.map(|()| reply))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (mut forgotten, mut not_stored) = (Vec::new(), Vec::new());
        for (index, buried) in buried {
            match buried {
                Ok(reply) => forgotten.push((reply, GIVEN_UP)),
                Err(error) => not_stored.push(NotStored::new(index, error)),
            }
        }
        session.answer(forgotten).await?;
        Ok(not_stored)
    }

    async fn renew(&self, receipts: &[NatsReceipt]) -> Result<(), BrokerError> {
        let session = &self.0;
        let known = receipts.iter().filter(|receipt| receipt.life == session.life);
        let answers = known.map(|receipt| (receipt.reply.clone(), IN_WORK));
        Ok(session.answer(answers.collect()).await?)
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let (mut backlog, pending, newest) = self.0.shared.backlog(&self.0.link).await?;
        self.0.share.lock().pending(pending.unwrap_or(u64::MAX));
        // As many as may be are in work all the time where few may be.
        if replace(&mut *self.0.newest.lock(), newest) != newest {
            backlog.stalled = None;
        }
        Ok(backlog)
    }
}

impl Session {
    fn delivery(&self, message: Message) -> Result<Delivery<NatsReceipt>, NatsError> {
        let reply = message.reply.as_deref().unwrap_or_default();
        let told = format::told(reply)
            .ok_or_else(|| NatsError::Unexpected("pulling items", reply.into()))?;
        let receipt = NatsReceipt { reply: reply.into(), life: self.life };
        let item = format::to_item(message.headers.as_ref(), message.payload);
        let (item, malformed) = match item {
            Ok(item) => (item, None),
            Err((item, why)) => (item, Some(why)),
        };
        Ok(Delivery {
            receipt,
            id: told.sequence.to_string().into(),
            item,
            enqueued_at: told.enqueued_at,
            deliveries: told.deliveries,
            failures: None,
            malformed,
        })
    }

    /// Gives back the rest of a pull, up to its end, or until nothing has come for a while.
    async fn give_back_what_follows(&self, pulled: &mut Pulled, left: usize) {
        for _ in 0..left {
            let Ok(Some(message)) = timeout(FOLLOWS, pulled.messages.next()).await else { return };
            let (None, Some(reply)) = (answered(&message), message.reply) else { return };
            let _ = self.link.client().publish(reply, RELEASE).await;
        }
    }

    /// Sends answers to deliveries, and returns when the server has taken them all. It reads them in their
    /// order, so the last one alone is confirmed.
    async fn answer(&self, mut answers: Vec<(Arc<str>, Bytes)>) -> Result<(), NatsError> {
        let Some((last, answer)) = answers.pop() else { return Ok(()) };
        let sending = async {
            for (reply, answer) in answers {
                let sent = self.link.client().publish(reply.to_string(), answer).await;
                sent.map_err(|_| NatsError::Lost)?;
            }
            Ok(())
        };
        let sent = timeout(self.link.timeout(), sending).await;
        sent.map_err(|_| NatsError::Timeout("storing outcomes"))??;
        let request = Request::new().payload(answer);
        self.link.request("storing outcomes", last.to_string(), request).await?;
        Ok(())
    }

    /// Copies an item to the dead letters, unless it is gone.
    async fn give_up(&self, reply: &str, reason: &str) -> Result<(), NatsError> {
        let told = format::told(reply)
            .ok_or_else(|| NatsError::Unexpected("giving an item up", reply.into()))?;
        let wanted = json!({ "seq": told.sequence });
        let stored = self.link.stored(&self.shared.stream, &wanted).await?;
        let Some(stored) = stored else { return Ok(()) };
        self.bury(stored, reason, told.deliveries, told.enqueued_at).await
    }

    async fn bury(
        &self,
        stored: Stored,
        reason: &str,
        deliveries: u32,
        enqueued_at: Option<SystemTime>,
    ) -> Result<(), NatsError> {
        let death = |reason: &str| Death::new(reason, deliveries, enqueued_at, now());
        let mut headers = format::without_death(&format::parse_headers(&stored.headers));
        format::with_death(&mut headers, &death(reason));
        let mut payload = stored.payload;
        // An item of another program may be as large as the server allows.
        let limit = self.link.client().max_payload().saturating_sub(100);
        let size = format::size_of_headers(&headers);
        if payload.len() + size > limit || size > format::MOST_HEADERS {
            format::fit(&mut headers, &mut payload, limit, reason, death);
        }
        // If it is given up again because its outcome was not stored, there is one dead letter.
        let id = format!("{:x}.{}", self.life, stored.sequence);
        let subject = &self.shared.dead_subject;
        let publish = || self.link.publish(subject, headers.clone(), payload.clone(), Some(&id));
        match publish().await {
            // An operator has removed the stream of the dead letters.
            Err(error) if error.is_missing() => {
                self.shared.prepare(&self.link, Consumer::Changed).await?;
                publish().await?;
            }
            published => drop(published?),
        }
        Ok(())
    }

    /// Gives up messages that the client library cannot read. It closes the connection at each of them, so
    /// that they would come again and again. Returns whether there are no others now.
    async fn give_up_what_is_unreadable(&self, consumer: &Value) -> Result<bool, NatsError> {
        let sequence = |of: &str| consumer[of]["stream_seq"].as_u64().unwrap_or_default();
        let (done, delivered) = (sequence("ack_floor"), sequence("delivered"));
        let oldest = done + 1..=delivered.min(done + SUSPECTS);
        let newest = delivered.saturating_sub(SUSPECTS).max(*oldest.end()) + 1..=delivered;
        stream::iter(oldest.chain(newest))
            .map(|sequence| self.give_up_if_unreadable(sequence))
            .buffer_unordered(AT_ONCE)
            .try_fold(true, async |all, is_gone| Ok(all && is_gone))
            .await
    }

    /// Returns false if the message is unreadable and cannot be given up now.
    async fn give_up_if_unreadable(&self, sequence: u64) -> Result<bool, NatsError> {
        let wanted = json!({ "seq": sequence });
        let stored = self.link.stored(&self.shared.stream, &wanted).await?;
        let Some(stored) = stored else { return Ok(true) };
        if format::is_readable(&stored.headers) {
            return Ok(true);
        }
        let Shared { stream, options, .. } = &*self.shared;
        let is_buried = match self.bury(stored, "its headers are not valid", 1, None).await {
            Ok(()) => true,
            Err(error @ (NatsError::Lost | NatsError::Timeout(_))) => return Err(error),
            Err(error) => {
                tracing::warn!(
                    stream = shown(stream),
                    sequence,
                    error = shown(&error),
                    "a message that cannot be read could not be added to the dead letters"
                );
                false
            }
        };
        // What a delivery would have told.
        let reply = format!("$JS.ACK.{stream}.{}.1.{sequence}.{sequence}.0.0", options.consumer);
        let answer = if is_buried { GIVEN_UP } else { nak(UNREADABLE_AGAIN) };
        self.answer(vec![(reply.into(), answer)]).await?;
        Ok(is_buried)
    }
}

/// The answer after which a message is delivered again when this time is over.
fn nak(delay: Duration) -> Bytes {
    format!("-NAK {{\"delay\": {}}}", nanoseconds(delay)).into()
}
