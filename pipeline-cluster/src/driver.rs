//! The task of a node: it connects to the server, sends, subscribes, and connects again.

use std::{future::Future, pin::pin, sync::Arc};

use pipeline_ws_sink::pubsub::LocalNode;
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep, sleep_until, timeout},
};

use crate::{
    channels::Channel,
    core::{Core, State, random},
    gap::Gap,
    interest::Interest,
    metrics::Reason,
    pace::Pace,
    packing::{Message, pack},
    queue::Outgoing,
    sequence::ON_THE_WAY,
};

/// The most frames that are taken to be sent at once, and the most bytes. Many, so that several of each of many channels
/// are one message.
const BATCH: (usize, usize) = (ON_THE_WAY as usize, 1 << 20);

/// The most channels that are subscribed to at once.
const CHANNELS: usize = 512;

/// How long the task still sends after the cluster was dropped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A timeout that is noticed this much later means that the process stood still.
const LATE: Duration = Duration::from_secs(1);

/// How many times the timeout an answer may take behind messages that arrive.
const BEHIND: u32 = 6;

/// How often the number of nodes is asked for after an outage.
const COUNT_NODES: Duration = Duration::from_millis(50);

/// The shortest time that nodes are waited for whose number is not known.
const SHORTEST_SETTLE: Duration = Duration::from_millis(500);

/// For how long the most nodes that there were are remembered. A network that fails takes one after another.
const RECENT: Duration = Duration::from_secs(30);

/// After how long a connection on which the server answers is a good one, although it is pinged less often.
const A_WHILE: Duration = Duration::from_secs(10);

/// How often it is recorded how much waits, whatever the task does.
const OBSERVED: Duration = Duration::from_secs(1);

/// A server that can be connected to.
pub(crate) trait Server: Send + Sync + 'static {
    type Session: Session;

    /// Connects. What arrives goes to [`Core::receive`].
    fn connect(
        &self,
        core: &Arc<Core>,
    ) -> impl Future<Output = Result<Self::Session, SessionError>> + Send;
}

/// A connection to a server.
pub(crate) trait Session: Send + Sync {
    /// The longest message that the server takes.
    fn max_message(&self) -> usize;

    /// Sends messages in order. Returns when the server has answered to all of them, and which it has refused.
    fn publish(
        &self,
        core: &Core,
        messages: &[Message],
    ) -> impl Future<Output = Result<Refusals, SessionError>> + Send;

    /// Subscribes. Returns when the subscriptions are in force.
    fn subscribe(&self, names: &[String]) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Unsubscribes from one channel or more: a server may take none for all. It may return without an answer of the server.
    fn unsubscribe(
        &self,
        names: &[String],
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Returns when the server has answered. It may tell its time.
    fn ping(&self, core: &Core) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// How many nodes receive what is for every node, this one included. `None` if it is not known, perhaps without having
    /// asked the server.
    fn nodes(&self, core: &Core) -> impl Future<Output = Result<Option<u64>, SessionError>> + Send;

    /// Receives until the connection ends.
    fn receive(&self, core: &Core) -> impl Future<Output = SessionError> + Send;
}

/// The messages that a server has refused to publish, of those that it was sent. It has published the others.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Where they are among those that it was sent, in order.
    pub(crate) messages: Vec<usize>,
    /// What it has said last.
    pub(crate) error: String,
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("the server has not answered in time")]
    Timeout,
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The server has refused what it was sent. Sending it again would be of no use.
    #[error("the server has refused: {0}")]
    Refused(String),
}

/// Runs until the cluster is dropped.
pub(crate) async fn drive<S: Server>(core: Arc<Core>, server: S) {
    let mut task = Task {
        interest: Interest::new(core.options.linger),
        in_flight: Vec::new(),
        requests: Vec::new(),
        pace: Pace::new(core.options.timeout),
        outage: None,
        started: Instant::now(),
        is_well: false,
        nodes: MostNodes::default(),
        core: core.clone(),
    };
    let running = async {
        tokio::select! {
            () = task.run(&server) => {}
            () = observe(&core) => {}
        }
    };
    let mut running = pin!(running);
    tokio::select! {
        () = &mut running => return,
        () = becomes(&core, |state| state.is_ending) => {}
    }
    // The trackers have just said that this node leaves.
    tokio::select! {
        () = running => {}
        () = becomes(&core, |state| !state.is_connected) => {}
        _ = timeout(LAST_WORDS, core.flushed()) => {}
    }
}

/// Waits for a state. The guard of the state is not kept: others could not change it.
async fn becomes(core: &Core, so: impl FnMut(&State) -> bool) {
    let _ = core.state.subscribe().wait_for(so).await.map(drop);
}

/// Records how much waits to be sent, also while nothing is sent.
async fn observe(core: &Core) {
    loop {
        core.observe();
        sleep(OBSERVED).await;
    }
}

struct Task {
    core: Arc<Core>,
    interest: Interest,
    /// What was given to the server, which has not confirmed it. It is sent again on the next connection,
    /// and the nodes that have it already drop the copy.
    in_flight: Vec<Message>,
    /// Clients' requests that are given to the server while all else waits for the other nodes.
    requests: Vec<Message>,
    pace: Pace,
    outage: Option<Outage>,
    started: Instant,
    /// The server has answered on the present connection, a while after it was made.
    is_well: bool,
    nodes: MostNodes,
}

/// A time without a connection, which has not ended.
#[derive(Clone, Copy, Debug)]
struct Outage {
    /// When something was last heard of the server, or this node was started.
    since: Instant,
    /// When it was noticed.
    noticed: Instant,
}

/// How many nodes there were lately at most, if it is known.
#[derive(Clone, Copy, Debug, Default)]
struct MostNodes(Option<(u64, Instant)>);

impl MostNodes {
    fn counted(&mut self, nodes: u64, now: Instant) {
        match self.0 {
            Some((most, at)) if nodes < most && now.saturating_duration_since(at) < RECENT => {}
            _ => self.0 = Some((nodes, now)),
        }
    }
}

impl Task {
    async fn run<S: Server>(&mut self, server: &S) {
        let mut failures = 0;
        loop {
            self.is_well = false;
            let error = self.session(server).await;
            self.disconnected();
            self.core.metrics.connection_errors.increment(1);
            if let Some(left_out) = self.core.log.connection.allow() {
                let error = error.to_string();
                tracing::warn!(error, left_out, "not connected to the other nodes");
            }
            let options = &self.core.options;
            // A server that accepts connections and does not answer on them is not well, however long each lasts.
            failures = if self.is_well { 0_u32 } else { failures.saturating_add(1) };
            let share = f64::from(u32::try_from(random() >> 32).unwrap_or_default());
            let delay = options.backoff.nth_delay(failures, share / f64::from(u32::MAX));
            sleep(delay).await;
        }
    }

    /// One connection, until it ends.
    async fn session<S: Server>(&mut self, server: &S) -> SessionError {
        let core = self.core.clone();
        let connecting = within(&core, server.connect(&core)).await;
        let session = match connecting {
            Ok(session) => session,
            Err(error) => return error,
        };
        let Self { interest, in_flight, requests, pace, outage, is_well, nodes, .. } = self;
        // The server may take less than that of the last connection.
        let max = session.max_message();
        let too_long = in_flight.extract_if(.., |message| message.bytes.len() > max);
        let too_long: usize = too_long.map(|message| message.frames).sum();
        if too_long > 0 {
            core.dropped(Reason::TooLong, too_long);
        }
        let mut receiving = pin!(session.receive(&core));
        // Messages arrive while the channels are subscribed to, and none may be missed.
        let node = {
            let preparing = prepare(&core, &session, interest);
            tokio::select! {
                biased;
                error = &mut receiving => return error,
                prepared = preparing => match prepared {
                    Ok(node) => node,
                    Err(error) => return error,
                },
            }
        };
        core.connected();
        let connected = Instant::now();
        let ended = outage.take();
        if let Some(Outage { since, .. }) = ended {
            let gone = Instant::now().saturating_duration_since(since);
            tracing::info!(
                ?gone,
                "connected to the other nodes, after a time without a connection"
            );
            core.report(Gap::Disconnected(gone));
        }
        let mut kept = None;
        let error = {
            let working = async {
                // The other nodes have to be there for what waits.
                if let Some(ended) = ended {
                    kept = Some(ended);
                    let gone = Instant::now().saturating_duration_since(ended.noticed);
                    let kept_back = in_flight.iter().map(|it| it.frames).sum();
                    let settled = settle(&core, &session, kept_back, requests, pace, *nodes, gone);
                    if let Err(error) = settled.await {
                        return error;
                    }
                    kept = None;
                    // Those that were not sent within that time.
                    in_flight.append(requests);
                }
                tokio::select! {
                    error = publish(&core, &session, in_flight, pace) => error,
                    error = count(&core, &session, nodes) => error,
                }
            };
            tokio::select! {
                error = receiving => error,
                error = working => error,
                error = follow(&core, &session, interest, &node) => error,
                error = ping(&core, &session) => error,
            }
        };
        let asked = core.last_heard.get();
        *is_well = asked.checked_duration_since(connected)
            >= Some(core.options.ping_interval.min(A_WHILE));
        // The answer to anything is behind what was sent.
        let sent = if kept.is_some() { requests } else { in_flight };
        let is_late = matches!(error, SessionError::Timeout) && !sent.is_empty();
        if is_late && pace.missed(sent) {
            let given_up = sent.remove(0);
            core.dropped(Reason::TooLong, given_up.frames);
        }
        // What waited then waits for the other nodes on the next connection too.
        *outage = kept;
        error
    }

    fn disconnected(&mut self) {
        let sent = self.in_flight.extract_if(.., |it| it.is_request).chain(self.requests.drain(..));
        let requests = sent.map(|it| it.frames).sum();
        if requests > 0 {
            self.core.dropped(Reason::NotConnected, requests);
        }
        let was_connected = self.core.disconnected();
        let (since, noticed) = if was_connected {
            (self.core.last_heard.get(), Instant::now())
        } else {
            (self.started, self.started)
        };
        match &mut self.outage {
            // The node was connected meanwhile, and has reported the gap before that.
            Some(unsettled) if was_connected => unsettled.since = since,
            // Further tries that fail are part of the same outage.
            Some(_) => {}
            none => *none = Some(Outage { since, noticed }),
        }
        self.core.set_in_flight(self.in_flight.iter().map(|it| it.frames).sum());
    }
}

/// A step that has to end in time.
///
/// It has the time again if this process has stood still meanwhile, when the answer may be there and not read, and if
/// messages arrive, behind which the answer may be. Otherwise a node that is slow would lose its connection, and what
/// others send until it has a new one.
async fn within<T>(
    core: &Core,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let limit = core.options.timeout;
    let (mut step, began) = (pin!(step), Instant::now());
    loop {
        let (since, heard) = (Instant::now(), core.heard());
        if let Ok(ended) = timeout(limit, &mut step).await {
            return ended;
        }
        let now = Instant::now();
        let stood_still = now.saturating_duration_since(since) >= limit.saturating_add(LATE);
        let is_behind = core.heard() > heard
            && now.saturating_duration_since(began) < limit.saturating_mul(BEHIND);
        if !stood_still && !is_behind {
            return Err(SessionError::Timeout);
        }
    }
}

/// The same for a step that ends with an answer of the server, whatever the server is. Before it, all has arrived that the
/// server had sent when it was asked.
async fn answered<T>(
    core: &Core,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let asked = Instant::now();
    let answer = within(core, step).await?;
    core.last_heard.at(asked);
    Ok(answer)
}

/// Subscribes to the channels of this node, and to all others that it had on an earlier connection.
async fn prepare(
    core: &Core,
    session: &impl Session,
    interest: &mut Interest,
) -> Result<LocalNode, SessionError> {
    answered(core, session.ping(core)).await?;
    core.state.send_modify(|state| state.has_tried = true);
    let node = loop {
        match core.node() {
            Some(node) => break node.clone(),
            None => core.started.notified().await,
        }
    };
    let own = [Channel::All, Channel::of_node(&core.name)];
    let names: Vec<String> = own.iter().map(|channel| core.channel_name(*channel)).collect();
    answered(core, session.subscribe(&names)).await?;
    interest.reset();
    subscribe_missing(core, session, interest).await?;
    Ok(node)
}

async fn subscribe_missing(
    core: &Core,
    session: &impl Session,
    interest: &mut Interest,
) -> Result<(), SessionError> {
    loop {
        let missing = interest.take_missing(CHANNELS);
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = missing.iter().map(|it| core.channel_name(*it)).collect();
        core.follow(&missing);
        answered(core, session.subscribe(&names)).await?;
        core.arrives(&missing);
        core.metrics.channels.set(interest.subscribed() as f64);
    }
}

/// Subscribes to the channels of topics that have subscribers, and unsubscribes from the others.
async fn follow(
    core: &Core,
    session: &impl Session,
    interest: &mut Interest,
    node: &LocalNode,
) -> SessionError {
    loop {
        if let Err(error) = subscribe_missing(core, session, interest).await {
            return error;
        }
        let idle = interest.take_idle(Instant::now(), CHANNELS);
        if !idle.is_empty() {
            core.abandon(&idle);
            // A join that was answered before this has marked its topic.
            let changed = tokio::select! {
                biased;
                changed = node.changed_topics() => changed,
                () = std::future::ready(()) => None,
            };
            change(interest, node, changed.unwrap_or_default());
            let (back, idle): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|it| interest.keep(*it));
            core.arrives(&back);
            core.unfollow(&idle);
            let names: Vec<String> = idle.iter().map(|it| core.channel_name(*it)).collect();
            // All may be wanted again.
            if !names.is_empty()
                && let Err(error) = within(core, session.unsubscribe(&names)).await
            {
                return error;
            }
            core.metrics.channels.set(interest.subscribed() as f64);
            continue;
        }
        let next_idle = interest.next_idle();
        let idle = async {
            match next_idle {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = idle => {}
            changed = node.changed_topics() => match changed {
                Some(topics) => change(interest, node, topics),
                // The endpoint is gone: what it said last is still sent.
                None => std::future::pending().await,
            },
        }
    }
}

/// These topics have got subscribers or lost them.
fn change(interest: &mut Interest, node: &LocalNode, topics: Vec<Arc<str>>) {
    let now = Instant::now();
    for topic in topics {
        interest.change(&topic, node.has_subscribers(&topic), now);
    }
}

/// Sends what waits.
async fn publish(
    core: &Core,
    session: &impl Session,
    in_flight: &mut Vec<Message>,
    pace: &mut Pace,
) -> SessionError {
    loop {
        // Before the queue is looked at: what is taken from it is not sent yet.
        set_flushed(&core.state, false);
        if in_flight.is_empty() {
            let (taken, max) = (core.take(BATCH.0, BATCH.1), session.max_message());
            *in_flight = pack(fitting(core, taken, max), max);
        }
        let frames: usize = in_flight.iter().map(|it| it.frames).sum();
        core.set_in_flight(frames);
        if in_flight.is_empty() {
            if core.waiting() > 0 {
                // What was taken was too long.
                continue;
            }
            set_flushed(&core.state, true);
            core.wake.notified().await;
            continue;
        }
        if let Err(error) = send_portion(core, session, in_flight, pace).await {
            return error;
        }
    }
}

fn set_flushed(state: &watch::Sender<State>, is_flushed: bool) {
    state.send_if_modified(|state| {
        std::mem::replace(&mut state.is_flushed, is_flushed) != is_flushed
    });
}

/// After an outage: sends requests alone, until the other nodes are connected again too, as far as that can
/// be known, or the program waits until all is sent. Their clients would miss what waits.
async fn settle(
    core: &Core,
    session: &impl Session,
    in_flight: usize,
    requests: &mut Vec<Message>,
    pace: &mut Pace,
    MostNodes(before): MostNodes,
    gone: Duration,
) -> Result<(), SessionError> {
    let longest = core.options.settle;
    let unknown = gone.max(SHORTEST_SETTLE).min(longest);
    let since = Instant::now();
    let (mut limit, mut next_count) = (before.map_or(unknown, |_| longest), since);
    set_flushed(&core.state, false);
    loop {
        let now = Instant::now();
        let is_awaited = {
            let state = core.state.borrow();
            state.is_ending || state.flushes > 0
        };
        if now.saturating_duration_since(since) >= limit || is_awaited {
            return Ok(());
        }
        if let Some((before, _)) = before
            && now >= next_count
        {
            next_count = now + COUNT_NODES;
            limit = match within(core, session.nodes(core)).await? {
                Some(nodes) if nodes == before => return Ok(()),
                Some(nodes) if nodes < before => longest,
                // Too many: the server does not know yet that former connections are dead, and they may be
                // those of any node.
                Some(_) | None => unknown,
            };
        }
        if requests.is_empty() {
            let max = session.max_message();
            *requests = pack(fitting(core, core.take_requests(BATCH.0, BATCH.1), max), max);
        }
        let asked: usize = requests.iter().map(|it| it.frames).sum();
        core.set_in_flight(in_flight + asked);
        if requests.is_empty() {
            set_flushed(&core.state, in_flight == 0 && core.waiting() == 0);
            // Also at the end of the program.
            let _ = timeout(COUNT_NODES.min(limit), core.wake.notified()).await;
            set_flushed(&core.state, false);
            continue;
        }
        send_portion(core, session, requests, pace).await?;
    }
}

/// Sends the first of these messages, as many as the server takes in time.
async fn send_portion(
    core: &Core,
    session: &impl Session,
    messages: &mut Vec<Message>,
    pace: &mut Pace,
) -> Result<(), SessionError> {
    let (portion, since) = (pace.portion(messages), Instant::now());
    let refusals = answered(core, session.publish(core, &messages[..portion])).await?;
    let mut refused = refusals.messages.into_iter().peekable();
    let (mut frames, mut bytes, mut not_sent) = (0, 0, 0);
    let all = messages[..portion].iter().map(|it| it.bytes.len()).sum();
    pace.answered(all, since.elapsed());
    for (at, message) in messages.drain(..portion).enumerate() {
        if refused.next_if_eq(&at).is_some() {
            not_sent += message.frames;
        } else {
            frames += message.frames;
            bytes += message.bytes.len();
        }
    }
    core.metrics.sent.increment(frames as u64);
    core.metrics.sent_bytes.increment(bytes as u64);
    if not_sent > 0 {
        core.unpublished(not_sent, &refusals.error);
    }
    Ok(())
}

/// Counts the nodes now and then, to know how many there were if the connection is lost.
async fn count(core: &Core, session: &impl Session, nodes: &mut MostNodes) -> SessionError {
    loop {
        match within(core, session.nodes(core)).await {
            Ok(Some(counted)) => {
                nodes.counted(counted, Instant::now());
                core.metrics.nodes.set(counted as f64);
            }
            Ok(None) => {}
            Err(error) => return error,
        }
        sleep(core.options.ping_interval).await;
    }
}

/// Without what the server does not take, which is counted.
fn fitting(core: &Core, mut taken: Vec<Outgoing>, max: usize) -> Vec<Outgoing> {
    let before = taken.len();
    taken.retain(|it| it.frame.len() <= max);
    if taken.len() < before {
        core.dropped(Reason::TooLong, before - taken.len());
    }
    taken
}

/// Asks the server whether it answers, again and again.
async fn ping(core: &Core, session: &impl Session) -> SessionError {
    loop {
        sleep(core.options.ping_interval).await;
        if let Err(error) = answered(core, session.ping(core)).await {
            return error;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, HashSet},
        future::pending,
        sync::LazyLock,
    };

    use bytes::Bytes;
    use parking_lot::Mutex;
    use pipeline_core::backoff::{Backoff, Jitter};
    use pipeline_test_support::Recorded;
    use pipeline_ws_sink::{Endpoint, pubsub::Broadcast};
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;
    use tokio::{runtime::Builder, sync::Notify, time::advance};

    use super::*;
    use crate::{Cluster, ClusterOptions};

    /// A server that says these numbers of nodes one after the other, and the last one again and again.
    struct Says(Mutex<Vec<u64>>);

    impl Session for Says {
        fn max_message(&self) -> usize {
            usize::MAX
        }

        async fn publish(&self, _: &Core, _: &[Message]) -> Result<Refusals, SessionError> {
            Ok(Refusals::default())
        }

        async fn subscribe(&self, _: &[String]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn unsubscribe(&self, _: &[String]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn ping(&self, _: &Core) -> Result<(), SessionError> {
            Ok(())
        }

        async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
            let mut nodes = self.0.lock();
            Ok(if nodes.len() > 1 { Some(nodes.remove(0)) } else { nodes.first().copied() })
        }

        async fn receive(&self, _: &Core) -> SessionError {
            pending().await
        }
    }

    /// A server whose answer to a subscription comes behind this message of the channel.
    struct Early<'a>(&'a Core, Bytes);

    impl Session for Early<'_> {
        fn max_message(&self) -> usize {
            usize::MAX
        }

        async fn publish(&self, _: &Core, _: &[Message]) -> Result<Refusals, SessionError> {
            Ok(Refusals::default())
        }

        async fn subscribe(&self, _: &[String]) -> Result<(), SessionError> {
            self.0.receive(&self.1);
            Ok(())
        }

        async fn unsubscribe(&self, _: &[String]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn ping(&self, _: &Core) -> Result<(), SessionError> {
            Ok(())
        }

        async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
            Ok(None)
        }

        async fn receive(&self, _: &Core) -> SessionError {
            pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_behind_a_message_before_the_answer_is_known() {
        let [left, right] = ["left", "right"]
            .map(|name| Core::new(ClusterOptions::new("test").node(name)).unwrap());
        let frames = [1, 2, 3].map(|n| {
            left.broadcast(&Broadcast::new("room:1", "news", json!({ "n": n })).unwrap()).unwrap();
            left.take(1, usize::MAX).remove(0).frame
        });
        let mut gaps = right.gaps.subscribe();
        let mut interest = Interest::new(LONG);
        interest.change(&"room:1".into(), true, Instant::now());
        let server = Early(&right, frames[0].clone());
        subscribe_missing(&right, &server, &mut interest).await.unwrap();
        right.receive(&frames[2]);
        let gap = gaps.try_recv().unwrap();
        assert!(matches!(&gap, Gap::Missing(missing) if missing.count() == 1), "{gap:?}");
    }

    const LONG: Duration = Duration::from_secs(60);

    fn core() -> Core {
        Core::new(ClusterOptions::new("test").settle(LONG)).unwrap()
    }

    /// How long what waits is kept back, after an outage of two seconds.
    async fn settled(core: &Core, nodes: &[u64], before: MostNodes) -> Duration {
        let (server, gone) = (Says(Mutex::new(nodes.to_vec())), Duration::from_secs(2));
        let since = Instant::now();
        let mut pace = Pace::new(core.options.timeout);
        settle(core, &server, 0, &mut Vec::new(), &mut pace, before, gone).await.unwrap();
        since.elapsed()
    }

    fn most(nodes: u64) -> MostNodes {
        MostNodes(Some((nodes, Instant::now())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_the_time_in_which_what_waits_is_kept_back() {
        let core = core();
        let program = async {
            sleep(Duration::from_secs(1)).await;
            // Nothing waits, and nothing was on the way.
            timeout(Duration::ZERO, core.flush()).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            core.broadcast(&Broadcast::new("room:1", "news", json!({})).unwrap()).unwrap();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(core.waiting(), 1);
            let _ = timeout(Duration::from_secs(1), core.flush()).await;
            assert_eq!(core.state.borrow().flushes, 0, "it has ended");
        };
        let (kept, ()) = tokio::join!(settled(&core, &[1], most(2)), program);
        assert!(kept > Duration::from_secs(2) && kept < Duration::from_secs(4), "{kept:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_are_dead_do_not_count_as_nodes_that_are_back() {
        let core = core();
        let second = Duration::from_secs(1);
        assert!(settled(&core, &[3], most(3)).await < second, "all are there");
        assert!(settled(&core, &[1, 2, 3], most(3)).await < second, "they come back");
        // Three that are dead, and this one: it is not known, and others are back after as long as this one.
        let unknown = settled(&core, &[4], most(3)).await;
        assert!(unknown >= 2 * second && unknown < 3 * second, "{unknown:?}");
        assert!(settled(&core, &[2], most(3)).await >= LONG, "one is missing");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_were_cut_off_one_after_another_are_waited_for() {
        let (core, mut nodes) = (core(), MostNodes::default());
        for counted in [5, 4, 2, 1] {
            nodes.counted(counted, Instant::now());
            sleep(Duration::from_secs(2)).await;
        }
        assert!(settled(&core, &[1], nodes).await >= LONG);
        // Later, they are no nodes of this cluster any more.
        nodes.counted(1, Instant::now());
        assert!(settled(&core, &[1], nodes).await < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_has_stood_still_waits_for_its_answer_again() {
        let (core, answered) = (core(), Notify::new());
        let limit = core.options.timeout;
        let since = Instant::now();
        let never = within::<()>(&core, pending()).await;
        assert!(matches!(never, Err(SessionError::Timeout)));
        assert!(since.elapsed() < limit + LATE, "{:?}", since.elapsed());
        let step = within(&core, async {
            answered.notified().await;
            Ok(())
        });
        let suspended = async {
            advance(limit + 10 * LATE).await;
            sleep(limit / 2).await;
            answered.notify_one();
        };
        let (answer, ()) = tokio::join!(step, suspended);
        answer.unwrap();
    }

    /// The answer of a server that takes this long.
    async fn late(time: Duration) -> Result<(), SessionError> {
        sleep(time).await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_behind_messages_that_arrive_for_a_while() {
        let core = core();
        let limit = core.options.timeout;
        let messages = async {
            loop {
                core.receive(&Bytes::from_static(b"any"));
                sleep(limit / 4).await;
            }
        };
        let steps = async {
            within(&core, late(3 * limit)).await.unwrap();
            let since = Instant::now();
            let never = within::<()>(&core, pending()).await;
            assert!(matches!(never, Err(SessionError::Timeout)));
            let took = since.elapsed();
            assert!(took >= BEHIND * limit && took < (BEHIND + 1) * limit, "{took:?}");
        };
        tokio::select! {
            () = steps => {}
            () = messages => {}
        }
        let silent = within(&core, late(3 * limit)).await;
        assert!(matches!(silent, Err(SessionError::Timeout)));
    }

    /// What becomes of a try to connect.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Try {
        /// The server is not there.
        Fails,
        /// The server accepts it and says nothing.
        Hangs,
        /// The server answers for so many seconds, and says nothing then.
        Answers(u64),
    }

    /// A server of which it is known what becomes of each try to connect. The last one is that of all later tries.
    #[derive(Clone, Default)]
    struct Known {
        tries: Arc<Mutex<Vec<Try>>>,
        /// When they were.
        times: Arc<Mutex<Vec<Instant>>>,
        /// When frames were sent, and how many.
        sent: Arc<Mutex<Vec<(Instant, usize)>>>,
        /// The longest message that it takes, if that is bounded.
        max: Arc<Mutex<Option<usize>>>,
        /// The topic to whose channel it does not publish.
        refuses: Arc<Mutex<Option<&'static str>>>,
        /// Ends the connection.
        lost: Arc<Notify>,
        /// The server is not asked for the number of nodes.
        is_not_asked: bool,
    }

    /// What is well for longer than a test takes.
    const WELL: Try = Try::Answers(1_000_000);

    struct KnownSession {
        silent_from: Instant,
        /// What the server takes, as it has said at the start.
        max: usize,
        server: Known,
    }

    impl Known {
        fn new(tries: &[Try]) -> Self {
            Self { tries: Arc::new(Mutex::new(tries.to_vec())), ..Self::default() }
        }

        /// The same, and another one that is not asked for the number of nodes.
        fn both(tries: &[Try]) -> [Self; 2] {
            [Self::new(tries), Self { is_not_asked: true, ..Self::new(tries) }]
        }

        /// A node of this server. Its delays are not random.
        async fn node(&self, options: ClusterOptions) -> (Cluster, Endpoint, Recorded) {
            let (telemetry, recorded) = Recorded::new();
            let second = Duration::from_secs(1);
            let backoff = Backoff::new(second, 32 * second).jitter(Jitter::None);
            let options = options.backoff(backoff).telemetry(telemetry);
            let cluster = Cluster::join(self.clone(), options).await.unwrap();
            let endpoint = Endpoint::builder().adapter(cluster.clone()).build().unwrap();
            (cluster, endpoint, recorded)
        }

        fn max(&self) -> usize {
            self.max.lock().unwrap_or(usize::MAX)
        }

        /// The seconds between the tries.
        fn delays(&self) -> Vec<u64> {
            let times = self.times.lock();
            times.windows(2).map(|it| it[1].duration_since(it[0]).as_secs()).collect()
        }
    }

    impl Server for Known {
        type Session = KnownSession;

        async fn connect(&self, _: &Arc<Core>) -> Result<KnownSession, SessionError> {
            self.times.lock().push(Instant::now());
            let next = {
                let mut tries = self.tries.lock();
                if tries.len() > 1 { tries.remove(0) } else { tries[0] }
            };
            let answers = match next {
                Try::Fails => return Err(SessionError::Lost("it is not there".to_owned())),
                Try::Hangs => return pending().await,
                Try::Answers(seconds) => Duration::from_secs(seconds),
            };
            let (silent_from, max) = (Instant::now() + answers, self.max());
            Ok(KnownSession { silent_from, max, server: self.clone() })
        }
    }

    impl Session for KnownSession {
        fn max_message(&self) -> usize {
            self.max
        }

        async fn publish(&self, _: &Core, messages: &[Message]) -> Result<Refusals, SessionError> {
            if messages.iter().any(|it| it.bytes.len() > self.server.max()) {
                return Err(SessionError::Lost("maximum payload exceeded".to_owned()));
            }
            let refused = self.server.refuses.lock().map(Channel::of_topic);
            let is_refused = |message: &Message| refused == Some(message.channel);
            let taken = messages.iter().filter(|message| !is_refused(message));
            let frames = taken.map(|it| it.frames).sum();
            self.server.sent.lock().push((Instant::now(), frames));
            let all = messages.iter().enumerate();
            let refused = all.filter(|(_, message)| is_refused(message)).map(|(at, _)| at);
            Ok(Refusals { messages: refused.collect(), error: "no".to_owned() })
        }

        async fn subscribe(&self, _: &[String]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn unsubscribe(&self, _: &[String]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn ping(&self, _: &Core) -> Result<(), SessionError> {
            if Instant::now() < self.silent_from { Ok(()) } else { pending().await }
        }

        async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
            if self.server.is_not_asked {
                return Ok(None);
            }
            if Instant::now() < self.silent_from { Ok(Some(3)) } else { pending().await }
        }

        async fn receive(&self, _: &Core) -> SessionError {
            self.server.lost.notified().await;
            SessionError::Lost("it has ended".to_owned())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// A time-out of five seconds, and a ping each two seconds.
    fn by_default() -> ClusterOptions {
        let options = ClusterOptions::new("test").settle(Duration::ZERO);
        options.timeout(5 * SECOND).ping_interval(2 * SECOND)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_accepts_and_does_not_answer_is_tried_less_and_less_often() {
        for (hangs, lasts) in [(Try::Hangs, 5), (Try::Answers(1), 7), (Try::Fails, 0)] {
            for server in Known::both(&[hangs]) {
                let _node = server.node(by_default()).await;
                sleep(200 * SECOND).await;
                let growing = [1, 2, 4, 8, 16].map(|delay| lasts + delay);
                assert_eq!(server.delays()[..growing.len()], growing, "{hangs:?}");
            }
        }
        // One that has answered, and is lost, is tried at once.
        let server = Known::new(&[Try::Hangs, Try::Hangs, Try::Hangs, Try::Answers(7), Try::Hangs]);
        let _node = server.node(by_default()).await;
        sleep(60 * SECOND).await;
        assert_eq!(server.delays()[..5], [6, 7, 9, 14, 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_there_before_the_server_reports_it_and_lets_what_waits_wait_for_others()
     {
        let server = Known::new(&[Try::Fails, Try::Fails, Try::Fails, WELL]);
        let since = Instant::now();
        let (cluster, endpoint, _) = server.node(by_default().settle(3 * SECOND)).await;
        let mut gaps = cluster.gaps();
        endpoint.broadcast("room:1", "news", json!({})).unwrap();
        cluster.connected().await;
        let absent = since.elapsed();
        assert_eq!(absent.as_secs(), 7);
        assert_eq!(gaps.next().await, Some(Gap::Disconnected(absent)));
        let at = Instant::now();
        sleep(10 * SECOND).await;
        let sent = server.sent.lock().clone();
        assert_eq!(sent.len(), 1);
        assert!(sent[0].0 - at >= 3 * SECOND, "{:?}", sent[0].0 - at);
        // Control: a server that is there.
        let server = Known::new(&[WELL]);
        let (cluster, endpoint, _) = server.node(by_default().settle(3 * SECOND)).await;
        let mut gaps = cluster.gaps();
        endpoint.broadcast("room:1", "news", json!({})).unwrap();
        cluster.connected().await;
        let at = Instant::now();
        sleep(10 * SECOND).await;
        assert!(timeout(Duration::ZERO, gaps.next()).await.is_err(), "nothing was missed");
        assert!(server.sent.lock()[0].0 - at < SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_took_once_and_takes_no_more_is_dropped_and_the_rest_is_sent() {
        let server = Known::new(&[WELL]);
        let (cluster, endpoint, recorded) = server.node(by_default()).await;
        cluster.connected().await;
        *server.max.lock() = Some(1_000);
        for length in [10, 2_000, 10] {
            let text = "x".repeat(length);
            endpoint.broadcast("room:1", "news", json!({ "text": text })).unwrap();
            endpoint.broadcast("room:2", "news", json!({ "n": 1 })).unwrap();
        }
        sleep(60 * SECOND).await;
        let sent = server.sent.lock().iter().map(|(_, frames)| frames).sum::<usize>();
        let dropped = recorded.counters("pipeline.cluster.dropped");
        let [(reason, dropped)] = &dropped[..] else { panic!("{dropped:?}") };
        assert_eq!((reason.as_str(), sent as u64 + dropped), ("reason=too_long", 6));
        assert_eq!(server.times.lock().len(), 2, "it is connected to again once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_as_long_as_the_server_was_not_heard() {
        for server in Known::both(&[Try::Answers(5), Try::Fails, WELL]) {
            let options = by_default().linger(SECOND / 2);
            let (cluster, endpoint, _) = server.node(options).await;
            let mut gaps = cluster.gaps();
            cluster.connected().await;
            // What it answers last is what it is asked four seconds after the connection was made. Later it is asked to
            // unsubscribe, which needs no answer.
            let heard = Instant::now() + 4 * SECOND;
            let user = endpoint.subscribe("room:1");
            sleep(5 * SECOND).await;
            drop(user);
            let gap = gaps.next().await;
            let silent = heard.elapsed();
            // Until the next ping, for its time-out, and for two delays between tries.
            assert_eq!(silent.as_secs(), 2 + 5 + 1 + 1);
            assert_eq!(gap, Some(Gap::Disconnected(silent)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_late_makes_a_gap_no_shorter() {
        for server in Known::both(&[Try::Answers(5), WELL]) {
            let (telemetry, _) = Recorded::new();
            let core = Arc::new(Core::new(by_default().telemetry(telemetry)).unwrap());
            let other = Core::new(ClusterOptions::new("test").node("other")).unwrap();
            other.broadcast(&Broadcast::new("room:1", "news", json!({})).unwrap()).unwrap();
            let news = other.take(1, usize::MAX).remove(0).frame;
            let endpoint = Endpoint::builder().build().unwrap();
            core.start(LocalNode::of(endpoint.pubsub()));
            let driving = tokio::spawn(drive(core.clone(), server));
            let mut gaps = core.gaps.subscribe();
            let since = Instant::now();
            // What it is asked after four seconds is answered last. Of what it has sent since then, only the first arrive:
            // those that are behind them are lost with the connection.
            while since.elapsed() < 9 * SECOND {
                sleep(SECOND / 10).await;
                core.receive(&news);
            }
            let Gap::Disconnected(gone) = gaps.recv().await.unwrap() else {
                panic!("it was connected")
            };
            assert_eq!((gone.as_secs(), since.elapsed().as_secs()), (12, 16));
            driving.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_lost_before_what_waits_is_sent_ends_no_earlier_gap_again() {
        let server = Known::new(&[Try::Fails, Try::Fails, Try::Fails, WELL]);
        let (cluster, endpoint, _) = server.node(by_default().settle(60 * SECOND)).await;
        let mut gaps = cluster.gaps();
        endpoint.broadcast("room:1", "news", json!({})).unwrap();
        cluster.connected().await;
        // What waits is kept back for as long as the node was not connected.
        sleep(5 * SECOND / 2).await;
        server.lost.notify_one();
        sleep(60 * SECOND).await;
        let mut gone = [0; 2];
        for seconds in &mut gone {
            let Some(Gap::Disconnected(gone)) = gaps.next().await else { panic!("a gap") };
            *seconds = gone.as_secs();
        }
        assert_eq!(gone, [7, 1]);
        let sent = server.sent.lock().clone();
        assert_eq!(sent.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_pinged_seldom_counts_as_well_once_it_has_answered_for_a_while() {
        let server = Known::new(&[Try::Fails, Try::Fails, Try::Fails, WELL, Try::Hangs]);
        let (cluster, endpoint, _) = server.node(by_default().ping_interval(Duration::MAX)).await;
        cluster.connected().await;
        sleep(20 * SECOND).await;
        endpoint.broadcast("room:1", "news", json!({})).unwrap();
        sleep(SECOND).await;
        server.lost.notify_one();
        sleep(60 * SECOND).await;
        // 1, 2 and 4 s before the connection, which lasts for 21 s, and the first delay again.
        assert_eq!(server.delays()[..5], [1, 2, 4, 22, 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_refuses_is_counted_and_the_rest_of_what_was_sent_with_it_is_sent() {
        let server = Known::new(&[WELL]);
        *server.refuses.lock() = Some("room:7");
        let (cluster, endpoint, recorded) = server.node(by_default()).await;
        cluster.connected().await;
        for n in 0..100 {
            let topic = format!("room:{}", n % 10);
            endpoint.broadcast(&topic, "news", json!({ "n": n })).unwrap();
        }
        sleep(SECOND).await;
        let dropped = recorded.counters("pipeline.cluster.dropped");
        assert_eq!(dropped, [("reason=refused".to_owned(), 10)]);
        assert_eq!(recorded.counters("pipeline.cluster.sent"), [(String::new(), 90)]);
        assert!(cluster.is_connected());
    }

    #[tokio::test(start_paused = true)]
    async fn gauges_are_true_while_the_node_is_not_connected() {
        for (passed, expected) in [(1, [1.0, 0.0, 3.0, 1.0]), (20, [0.0, 7.0, 0.0, 0.0])] {
            let server = Known::new(&[Try::Answers(5), Try::Fails]);
            let (cluster, endpoint, recorded) = server.node(by_default()).await;
            let _user = endpoint.subscribe("room:1");
            cluster.receives("room:1").await;
            sleep(passed * SECOND).await;
            if !cluster.is_connected() {
                (0..7).for_each(|_| endpoint.broadcast("room:1", "news", json!({})).unwrap());
                sleep(2 * SECOND).await;
            }
            recorded.look();
            let gauge = |name| recorded.gauges(&format!("pipeline.cluster.{name}"))[0].1;
            let gauges = ["connected", "waiting", "nodes", "channels"].map(gauge);
            assert_eq!(gauges, expected, "after {passed} s");
        }
    }

    /// What becomes of a request to subscribe or to unsubscribe.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        /// The server does it, and its answer arrives, after as many milliseconds each.
        Done(u64, u64),
        /// The server refuses it.
        Refused,
        /// The server does it, and its answer is lost with the connection.
        Unanswered,
        /// The server hears nothing of it, and says nothing.
        Unheard,
    }

    /// What happens in a simulation.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A topic gets a subscriber, or one more.
        Subscribe(usize),
        /// A topic loses a subscriber, if it has one.
        Unsubscribe(usize),
        /// So many milliseconds pass.
        Wait(u64),
        /// The connection is lost.
        Break,
    }

    /// A server that knows what is subscribed to over its present connection.
    #[derive(Default)]
    struct Simulated {
        /// Of the next requests. Later ones are done at once.
        fates: Mutex<Vec<Fate>>,
        present: Mutex<Arc<Line>>,
    }

    /// A connection to it.
    #[derive(Default)]
    struct Line {
        subscribed: Mutex<HashSet<String>>,
        lost: Notify,
    }

    #[derive(Clone)]
    struct Simulation(Arc<Simulated>);

    struct SimulatedSession {
        server: Arc<Simulated>,
        line: Arc<Line>,
    }

    impl SimulatedSession {
        async fn ask(&self, change: impl FnOnce(&mut HashSet<String>)) -> Result<(), SessionError> {
            let fate = self.server.fates.lock().pop().unwrap_or(Fate::Done(0, 0));
            match fate {
                Fate::Done(there, back) => {
                    sleep(Duration::from_millis(there)).await;
                    change(&mut self.line.subscribed.lock());
                    sleep(Duration::from_millis(back)).await;
                    Ok(())
                }
                Fate::Refused => Err(SessionError::Refused("no".to_owned())),
                Fate::Unanswered => {
                    change(&mut self.line.subscribed.lock());
                    Err(SessionError::Lost("it has ended".to_owned()))
                }
                Fate::Unheard => pending().await,
            }
        }
    }

    impl Server for Simulation {
        type Session = SimulatedSession;

        async fn connect(&self, _: &Arc<Core>) -> Result<SimulatedSession, SessionError> {
            let line = Arc::<Line>::default();
            *self.0.present.lock() = line.clone();
            Ok(SimulatedSession { server: self.0.clone(), line })
        }
    }

    impl Session for SimulatedSession {
        fn max_message(&self) -> usize {
            usize::MAX
        }

        async fn publish(&self, _: &Core, _: &[Message]) -> Result<Refusals, SessionError> {
            Ok(Refusals::default())
        }

        async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
            self.ask(|subscribed| subscribed.extend(names.iter().cloned())).await
        }

        async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
            // As Redis does.
            let all = names.is_empty();
            self.ask(|subscribed| subscribed.retain(|name| !all && !names.contains(name))).await
        }

        async fn ping(&self, _: &Core) -> Result<(), SessionError> {
            Ok(())
        }

        async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
            Ok(None)
        }

        async fn receive(&self, _: &Core) -> SessionError {
            self.line.lost.notified().await;
            SessionError::Lost("it is broken".to_owned())
        }
    }

    /// Topics, of which the first two have the same channel.
    static TOPICS: LazyLock<[String; 4]> = LazyLock::new(|| {
        let topic = |n: u64| format!("user:{n}");
        let mut seen = HashMap::new();
        let (one, other) = (0..)
            .find_map(|n| seen.insert(Channel::of_topic(&topic(n)), n).map(|it| (it, n)))
            .unwrap();
        [topic(one), topic(other), "room:1".to_owned(), "room:2".to_owned()]
    });

    async fn simulate(steps: Vec<Step>, fates: Vec<Fate>) {
        let linger = Duration::from_millis(100);
        let server = Simulation(Arc::default());
        *server.0.fates.lock() = fates;
        let options = ClusterOptions::new("test")
            .node("one")
            .linger(linger)
            .timeout(Duration::from_millis(500))
            .backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(100)));
        let cluster = Cluster::join(server.clone(), options).await.unwrap();
        let endpoint = Endpoint::builder().adapter(cluster.clone()).build().unwrap();
        let mut subscribers = [(); 4].map(|()| Vec::new());
        for step in steps {
            match step {
                Step::Subscribe(topic) => {
                    subscribers[topic].push(endpoint.subscribe(TOPICS[topic].as_str()));
                }
                Step::Unsubscribe(topic) => drop(subscribers[topic].pop()),
                Step::Wait(ms) => sleep(Duration::from_millis(ms)).await,
                Step::Break => server.0.present.lock().lost.notify_one(),
            }
        }
        // Longer than it takes until each fate has come true.
        sleep(Duration::from_secs(20)).await;
        let wanted: Vec<_> =
            TOPICS.iter().zip(&subscribers).filter(|(_, it)| !it.is_empty()).collect();
        let name = |channel: Channel| channel.name("test");
        let channels = wanted.iter().map(|(topic, _)| Channel::of_topic(topic));
        let own = [Channel::All, Channel::of_node("one")];
        let expected: HashSet<_> = channels.chain(own).map(name).collect();
        let present = server.0.present.lock().clone();
        assert_eq!(*present.subscribed.lock(), expected);
        assert!(cluster.is_connected());
        for (topic, _) in wanted {
            timeout(Duration::ZERO, cluster.receives(topic)).await.expect("joins need not wait");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_is_wanted_again_when_its_time_is_over_ends_no_other_subscription() {
        use Step::{Subscribe, Unsubscribe, Wait};

        // Which of both is seen first is left to chance.
        for _ in 0..100 {
            let again =
                [Subscribe(2), Subscribe(3), Wait(50), Unsubscribe(3), Wait(100), Subscribe(3)];
            simulate(again.into(), Vec::new()).await;
        }
    }

    proptest! {
        #[test]
        fn the_server_knows_in_the_end_what_this_node_wants(
            steps in vec(prop_oneof![
                4 => (0..4usize).prop_map(Step::Subscribe),
                4 => (0..4usize).prop_map(Step::Unsubscribe),
                4 => (0..150u64).prop_map(Step::Wait),
                1 => Just(Step::Break),
            ], 0..40),
            fates in vec(prop_oneof![
                8 => (0..100u64, 0..100u64).prop_map(|(there, back)| Fate::Done(there, back)),
                1 => Just(Fate::Refused),
                1 => Just(Fate::Unanswered),
                1 => Just(Fate::Unheard),
            ], 0..12),
        ) {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(simulate(steps, fates));
        }
    }
}
