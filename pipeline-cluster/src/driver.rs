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
    packing::{Message, pack},
    queue::Outgoing,
};

/// The most frames that are sent at once, and the most bytes.
const BATCH: (usize, usize) = (512, 1 << 20);

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

    /// Sends messages in order. Returns when the server has taken all of them.
    fn publish(
        &self,
        core: &Core,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Subscribes. Returns when the subscriptions are in force.
    fn subscribe(&self, names: &[String]) -> impl Future<Output = Result<(), SessionError>> + Send;

    fn unsubscribe(
        &self,
        names: &[String],
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Whether the server answers. It may tell its time.
    fn ping(&self, core: &Core) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// How many nodes receive what is for every node, this one included. `None` if it is not known.
    fn nodes(&self, core: &Core) -> impl Future<Output = Result<Option<u64>, SessionError>> + Send;

    /// Receives until the connection ends.
    fn receive(&self, core: &Core) -> impl Future<Output = SessionError> + Send;
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
        disconnected_at: None,
        nodes: MostNodes::default(),
        core: core.clone(),
    };
    let mut running = pin!(task.run(&server));
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

struct Task {
    core: Arc<Core>,
    interest: Interest,
    /// What was given to the server, which has not confirmed it. It is sent again on the next connection,
    /// and the nodes that have it already drop the copy.
    in_flight: Vec<Message>,
    disconnected_at: Option<Instant>,
    nodes: MostNodes,
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
            let began = Instant::now();
            let error = self.session(server).await;
            self.disconnected();
            self.core.metrics.connection_errors.increment(1);
            if let Some(left_out) = self.core.log.connection.allow() {
                let error = error.to_string();
                tracing::warn!(error, left_out, "not connected to the other nodes");
            }
            let options = &self.core.options;
            // A connection that has lasted shows that the server is well.
            let lasted = Instant::now().saturating_duration_since(began) > options.ping_interval;
            failures = if lasted { 0 } else { failures + 1 };
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
        let Self { interest, in_flight, disconnected_at, nodes, core: _ } = self;
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
        let since = disconnected_at.take();
        let gone = since.map(|since| Instant::now().saturating_duration_since(since));
        if let Some(gone) = gone {
            tracing::info!(?gone, "connected to the other nodes again");
            core.report(Gap::Disconnected(gone));
        }
        let mut kept = None;
        let error = {
            let working = async {
                // The other nodes have to be there for what waits.
                if let Some(gone) = gone {
                    kept = since;
                    if let Err(error) =
                        settle(&core, &session, in_flight.is_empty(), *nodes, gone).await
                    {
                        return error;
                    }
                    kept = None;
                }
                tokio::select! {
                    error = publish(&core, &session, in_flight) => error,
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
        // What waited then waits for the other nodes on the next connection too.
        *disconnected_at = kept;
        error
    }

    fn disconnected(&mut self) {
        self.in_flight.retain(|message| !message.is_request);
        if self.core.disconnected() {
            self.disconnected_at.get_or_insert_with(Instant::now);
        }
    }
}

/// A step that the server has to answer in time.
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

/// Subscribes to the channels of this node, and to all others that it had on an earlier connection.
async fn prepare(
    core: &Core,
    session: &impl Session,
    interest: &mut Interest,
) -> Result<LocalNode, SessionError> {
    within(core, session.ping(core)).await?;
    core.state.send_modify(|state| state.has_tried = true);
    let node = loop {
        match core.node() {
            Some(node) => break node.clone(),
            None => core.started.notified().await,
        }
    };
    let own = [Channel::All, Channel::of_node(&core.name)];
    let names: Vec<String> = own.iter().map(|channel| core.channel_name(*channel)).collect();
    within(core, session.subscribe(&names)).await?;
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
        within(core, session.subscribe(&names)).await?;
        core.follow(&missing);
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
            if let Err(error) = within(core, session.unsubscribe(&names)).await {
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
) -> SessionError {
    loop {
        // Before the queue is looked at: what is taken from it is not sent yet.
        set_flushed(&core.state, false);
        if in_flight.is_empty() {
            let (taken, max) = (core.take(BATCH.0, BATCH.1), session.max_message());
            *in_flight = pack(fitting(core, taken, max), max);
        }
        let frames: usize = in_flight.iter().map(|it| it.frames).sum();
        core.metrics.waiting.set((core.waiting() + frames) as f64);
        if in_flight.is_empty() {
            if core.waiting() > 0 {
                // What was taken was too long.
                continue;
            }
            set_flushed(&core.state, true);
            core.wake.notified().await;
            continue;
        }
        match within(core, session.publish(core, in_flight)).await {
            Ok(()) => {
                sent(core, in_flight);
                in_flight.clear();
            }
            Err(SessionError::Refused(why)) => {
                core.dropped(Reason::Refused, frames);
                in_flight.clear();
                return SessionError::Refused(why);
            }
            Err(error) => return error,
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
    nothing_in_flight: bool,
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
        let requests = core.take_requests(BATCH.0, BATCH.1);
        if requests.is_empty() {
            set_flushed(&core.state, nothing_in_flight && core.waiting() == 0);
            // Also at the end of the program.
            let _ = timeout(COUNT_NODES.min(limit), core.wake.notified()).await;
            set_flushed(&core.state, false);
            continue;
        }
        let messages = pack(fitting(core, requests, session.max_message()), session.max_message());
        within(core, session.publish(core, &messages)).await?;
        sent(core, &messages);
    }
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

/// Counts what the server has taken.
fn sent(core: &Core, messages: &[Message]) {
    let frames: usize = messages.iter().map(|it| it.frames).sum();
    let bytes: usize = messages.iter().map(|it| it.bytes.len()).sum();
    core.metrics.sent.increment(frames as u64);
    core.metrics.sent_bytes.increment(bytes as u64);
}

/// Asks the server whether it answers, again and again.
async fn ping(core: &Core, session: &impl Session) -> SessionError {
    loop {
        sleep(core.options.ping_interval).await;
        if let Err(error) = within(core, session.ping(core)).await {
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
    use pipeline_core::backoff::Backoff;
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

        async fn publish(&self, _: &Core, _: &[Message]) -> Result<(), SessionError> {
            Ok(())
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

    const LONG: Duration = Duration::from_secs(60);

    fn core() -> Core {
        Core::new(ClusterOptions::new("test").settle(LONG)).unwrap()
    }

    /// How long what waits is kept back, after an outage of two seconds.
    async fn settled(core: &Core, nodes: &[u64], before: MostNodes) -> Duration {
        let (server, gone) = (Says(Mutex::new(nodes.to_vec())), Duration::from_secs(2));
        let since = Instant::now();
        settle(core, &server, true, before, gone).await.unwrap();
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

        async fn publish(&self, _: &Core, _: &[Message]) -> Result<(), SessionError> {
            Ok(())
        }

        async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
            self.ask(|subscribed| subscribed.extend(names.iter().cloned())).await
        }

        async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
            self.ask(|subscribed| subscribed.retain(|name| !names.contains(name))).await
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
