//! Nodes with presences over a simulated server: ways that are slow, silent or cut, a server that ends and starts again, and
//! nodes that are killed and started again. The time is simulated too, and everything follows from a seed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    env,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use pipeline_core::backoff::Backoff;
use pipeline_ws_sink::{
    Endpoint, Presence,
    presence::{PresenceDiff, PresenceGuard, TrackerOptions},
};
use proptest::{collection::vec, prelude::*};
use serde_json::json;
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Cluster, ClusterOptions, Gap,
    channels::Channel,
    core::Core,
    driver::{Refusals, Server, Session, SessionError},
    frame::{Frame, frames},
    inbound::{Inbound, Subscription},
    packing::Message,
};

const NODES: usize = 3;

/// Every node has a subscriber of the first topic all the time.
const TOPICS: [&str; 3] = ["room:1", "room:2", "room:3"];

/// Where users are present.
const HALL: &str = "hall";

/// Longer than anything that passes may take, and than nodes count as down.
const QUIET: Duration = Duration::from_secs(60);

/// More than the starts of two lives of a node differ by chance.
const LATER: Duration = Duration::from_millis(3);

/// Numbers that look like random ones.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// The way between a node and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing passes, and nothing is closed.
    Silent,
    /// Connections are closed, and none can be made.
    Cut,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    is_up: bool,
    ways: [Way; NODES],
    lines: Vec<Arc<Line>>,
    /// The longest time that one thing takes from an end of a line to the other, in milliseconds.
    slowest: u64,
    /// One of so many messages to a node is lost, although its connection is not.
    loses: Option<u64>,
    /// How many messages were published.
    published: u64,
    /// As with NATS, the number of nodes is not known, what is unsubscribed from is not answered, and what arrives waits
    /// before it is delivered.
    is_terse: bool,
    /// The longest time that a node with such a server needs for a message that waits, in milliseconds.
    busy: u64,
    /// How many subscriptions there were.
    subscriptions: u64,
}

/// A server that passes messages on, and the ways to it.
#[derive(Debug)]
struct Network(watch::Sender<State>);

/// What a node is sent.
#[derive(Debug)]
enum Down {
    /// Something for the subscription of this number.
    Message(u64, Bytes, Sent),
    Answer(oneshot::Sender<u64>, u64),
}

/// Something that the server has sent to a life of a node on a channel to which that subscribes all the time.
#[derive(Debug)]
struct Sent {
    channel: String,
    /// A number for each publication.
    number: u64,
    at: Instant,
    fates: Arc<Mutex<Fates>>,
    has_arrived: bool,
}

/// Which channel, and of how many times in a row that a life of a node has followed it.
type Following = (String, u64);

/// The numbers of frames of a life of another node that have arrived.
#[derive(Debug, Default)]
struct Numbers {
    all: BTreeSet<u64>,
    /// One has arrived after a greater one.
    has_late: bool,
}

/// What became of what was sent to a life of a node.
#[derive(Debug, Default)]
struct Fates {
    /// How often each channel was unsubscribed from.
    followed: HashMap<String, u64>,
    /// What was delivered, by the name and the epoch of the node that has sent it.
    delivered: HashMap<Following, HashMap<(String, u64), Numbers>>,
    arrived: HashSet<u64>,
    /// When it was sent.
    discarded: Vec<(u64, Instant)>,
}

impl Fates {
    /// A message of the server is about to be delivered.
    fn deliver(&mut self, following: &Following, message: &Bytes) {
        for frame in frames(message) {
            let frame = frame.unwrap();
            let Frame { origin, epoch, sequence, .. } = Frame::decode(&frame).unwrap();
            let of_each = self.delivered.entry(following.clone()).or_default();
            let Numbers { all, has_late } = of_each.entry((origin.to_owned(), epoch)).or_default();
            *has_late |=
                all.last().is_some_and(|last| sequence < *last) && !all.contains(&sequence);
            all.insert(sequence);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut fates = self.fates.lock();
        if self.has_arrived {
            fates.arrived.insert(self.number);
        } else {
            fates.discarded.push((self.number, self.at));
        }
    }
}

/// What a node asks for. All of it passes in order.
#[derive(Debug)]
enum Up {
    Publish(Vec<(String, Bytes)>),
    /// With their numbers.
    Subscribe(Vec<(String, u64)>),
    Unsubscribe(Vec<String>),
    Ping,
    Nodes(String),
}

/// A connection.
#[derive(Debug)]
struct Line {
    node: usize,
    /// With the numbers of the subscriptions.
    subscribed: Mutex<HashMap<String, u64>>,
    /// What is on the way to the node, and when it is there.
    down: mpsc::Sender<(Instant, Down)>,
    fates: Arc<Mutex<Fates>>,
    arrives: Mutex<Instant>,
    is_lost: watch::Sender<bool>,
}

impl Line {
    fn is_lost(&self) -> bool {
        *self.is_lost.borrow()
    }

    async fn ends(&self) {
        let _ = self.is_lost.subscribe().wait_for(|lost| *lost).await.map(drop);
    }
}

impl Network {
    fn change(&self, change: impl FnOnce(&mut State)) {
        self.0.send_modify(change);
    }

    /// Changes the way of a node.
    fn way(&self, node: usize, way: Way) {
        self.change(|state| {
            state.ways[node] = way;
            if way == Way::Cut {
                state.lines.iter().filter(|line| line.node == node).for_each(|line| {
                    line.is_lost.send_replace(true);
                });
            }
        });
    }

    /// Starts or ends the server. It forgets everything.
    fn server(&self, is_up: bool) {
        self.change(|state| {
            state.is_up = is_up;
            for line in state.lines.drain(..) {
                line.is_lost.send_replace(true);
            }
        });
    }

    /// Waits until something may pass between a node and the server.
    async fn passes(&self, node: usize) {
        let _ =
            self.0.subscribe().wait_for(|state| state.ways[node] != Way::Silent).await.map(drop);
    }

    /// Waits until one thing has got from an end of a line to the other, after those before it.
    fn arrival(&self, after: Instant) -> Instant {
        let mut millis = 0;
        // No one waits for this change.
        self.0.send_if_modified(|state| {
            millis = state.chance.below(state.slowest + 1);
            false
        });
        after.max(Instant::now() + Duration::from_millis(millis))
    }

    fn send(&self, line: &Line, down: Down) {
        let mut arrives = line.arrives.lock();
        *arrives = self.arrival(*arrives);
        // The node may have closed the connection.
        let _ = line.down.try_send((*arrives, down));
    }

    /// The server's end of a connection.
    async fn serve(
        self: Arc<Self>,
        line: Arc<Line>,
        mut asked: mpsc::Receiver<(Instant, Up, oneshot::Sender<u64>)>,
    ) {
        let serving = async {
            while let Some((at, up, answer)) = asked.recv().await {
                sleep_until(at).await;
                self.passes(line.node).await;
                let says = self.handle(&line, up);
                self.send(&line, Down::Answer(answer, says));
            }
        };
        tokio::select! {
            biased;
            () = line.ends() => {}
            () = serving => {}
        }
        self.change(|state| state.lines.retain(|other| !Arc::ptr_eq(other, &line)));
    }

    fn handle(&self, line: &Line, up: Up) -> u64 {
        match up {
            Up::Publish(messages) => {
                for (channel, bytes) in messages {
                    let mut number = 0;
                    self.0.send_if_modified(|state| {
                        state.published += 1;
                        number = state.published;
                        false
                    });
                    for (line, subscription) in self.subscribers(&channel) {
                        let mut is_lost = false;
                        self.0.send_if_modified(|state| {
                            let State { chance, loses, .. } = state;
                            is_lost = loses.is_some_and(|of| chance.below(of) == 0);
                            false
                        });
                        if !is_lost {
                            let (fates, at) = (line.fates.clone(), Instant::now());
                            let has_arrived = !is_always_subscribed(&channel);
                            let channel = channel.clone();
                            let sent = Sent { channel, number, at, fates, has_arrived };
                            self.send(&line, Down::Message(subscription, bytes.clone(), sent));
                        }
                    }
                }
                0
            }
            Up::Subscribe(names) => {
                line.subscribed.lock().extend(names);
                0
            }
            Up::Unsubscribe(names) => {
                line.subscribed.lock().retain(|name, _| !names.contains(name));
                0
            }
            Up::Ping => 0,
            Up::Nodes(name) => self.subscribers(&name).len() as u64,
        }
    }

    /// The connections that are subscribed to a channel, with the numbers of their subscriptions.
    fn subscribers(&self, channel: &str) -> Vec<(Arc<Line>, u64)> {
        let state = self.0.borrow();
        let lines = state.lines.iter();
        let of = |line: &Arc<Line>| Some((line.clone(), *line.subscribed.lock().get(channel)?));
        lines.filter_map(of).collect()
    }

    /// How long a node needs for a message that waits.
    fn work(&self) -> Duration {
        let mut millis = 0;
        self.0.send_if_modified(|state| {
            millis = state.chance.below(state.busy + 1);
            false
        });
        Duration::from_millis(millis)
    }
}

/// Whether every node subscribes to a channel all the time: that for all nodes, and that of the first topic.
fn is_always_subscribed(name: &str) -> bool {
    [Channel::All, Channel::of_topic(TOPICS[0])].iter().any(|it| it.name("test") == name)
}

/// The server as a node sees it.
struct Reach {
    network: Arc<Network>,
    node: usize,
    /// Whether the process of the node lives.
    lives: watch::Receiver<bool>,
    fates: Arc<Mutex<Fates>>,
}

struct Connection {
    network: Arc<Network>,
    line: Arc<Line>,
    asks: mpsc::Sender<(Instant, Up, oneshot::Sender<u64>)>,
    sent: Mutex<Instant>,
    down: tokio::sync::Mutex<mpsc::Receiver<(Instant, Down)>>,
    lives: watch::Receiver<bool>,
    core: Arc<Core>,
    fates: Arc<Mutex<Fates>>,
    is_terse: bool,
    /// The subscription to each channel.
    subscribed: Mutex<HashMap<String, (u64, Subscription)>>,
    inbound: Inbound,
    /// What waits there, by where its bytes are in memory.
    waiting: Mutex<HashMap<usize, (Following, Sent)>>,
}

/// Waits until a process is dead.
async fn dies(mut lives: watch::Receiver<bool>) {
    let _ = lives.wait_for(|lives| !lives).await.map(drop);
}

/// Never returns.
async fn never<T>() -> T {
    std::future::pending().await
}

fn lost() -> SessionError {
    SessionError::Lost("it has ended".to_owned())
}

impl Server for Reach {
    type Session = Connection;

    async fn connect(&self, core: &Arc<Core>) -> Result<Connection, SessionError> {
        if !*self.lives.borrow() {
            return never().await;
        }
        let millis = Duration::from_millis(1);
        sleep(millis).await;
        self.network.passes(self.node).await;
        let (down, arriving) = mpsc::channel(1 << 16);
        let line = Arc::new(Line {
            node: self.node,
            subscribed: Mutex::default(),
            down,
            fates: self.fates.clone(),
            arrives: Mutex::new(Instant::now()),
            is_lost: watch::Sender::new(false),
        });
        let mut is_there = false;
        self.network.change(|state| {
            is_there = state.is_up && state.ways[self.node] == Way::Open;
            if is_there {
                state.lines.push(line.clone());
            }
        });
        if !is_there {
            return Err(lost());
        }
        let (asks, asked) = mpsc::channel(1 << 10);
        tokio::spawn(self.network.clone().serve(line.clone(), asked));
        Ok(Connection {
            network: self.network.clone(),
            line,
            asks,
            sent: Mutex::new(Instant::now()),
            down: tokio::sync::Mutex::new(arriving),
            lives: self.lives.clone(),
            core: core.clone(),
            fates: self.fates.clone(),
            is_terse: self.network.0.borrow().is_terse,
            subscribed: Mutex::default(),
            inbound: Inbound::new(),
            waiting: Mutex::default(),
        })
    }
}

impl Connection {
    /// Something has arrived for a subscription.
    fn arrives(&self, number: u64, bytes: &Bytes, mut sent: Sent) {
        let subscribed = self.subscribed.lock();
        let of = match subscribed.get(&sent.channel) {
            Some((of_now, of)) if *of_now == number => of.clone(),
            // It has ended: a client of NATS leaves it out. With Redis that is answered, and nothing comes later.
            _ => {
                assert!(self.is_terse, "it was unsubscribed from");
                return;
            }
        };
        drop(subscribed);
        let following = {
            let fates = self.fates.lock();
            let times = fates.followed.get(&sent.channel).copied().unwrap_or_default();
            (sent.channel.clone(), times)
        };
        if self.is_terse {
            let own = Bytes::copy_from_slice(bytes);
            self.waiting.lock().insert(own.as_ptr().addr(), (following, sent));
            self.inbound.push([(of, own)]);
        } else {
            sent.has_arrived = true;
            self.deliver(&following, bytes);
        }
    }

    fn unsubscribed(&self, names: &[String]) {
        let (mut fates, mut subscribed) = (self.fates.lock(), self.subscribed.lock());
        for name in names {
            *fates.followed.entry(name.clone()).or_default() += 1;
            if let Some((_, of)) = subscribed.remove(name) {
                of.end();
            }
        }
    }

    fn deliver(&self, following: &Following, message: &Bytes) {
        self.fates.lock().deliver(following, message);
        self.core.receive(message);
    }

    /// Delivers what waits.
    async fn deliver_all(&self) {
        loop {
            self.inbound.ready().await;
            sleep(self.network.work()).await;
            if let Some(message) = self.inbound.take() {
                let waited = self.waiting.lock().remove(&message.as_ptr().addr());
                let (following, mut sent) = waited.unwrap();
                sent.has_arrived = true;
                self.deliver(&following, &message);
            }
        }
    }

    async fn ask(&self, up: Up) -> Result<u64, SessionError> {
        let (answer, answered) = oneshot::channel();
        let at = {
            let mut sent = self.sent.lock();
            *sent = self.network.arrival(*sent);
            *sent
        };
        let is_answered = match &up {
            Up::Unsubscribe(_) => !self.is_terse,
            _ => true,
        };
        self.asks.send((at, up, answer)).await.map_err(|_| lost())?;
        if !is_answered {
            return Ok(0);
        }
        match answered.await {
            Ok(says) => Ok(says),
            // The node notices it where it receives.
            Err(_) => never().await,
        }
    }
}

impl Session for Connection {
    fn max_message(&self) -> usize {
        1 << 20
    }

    async fn publish(&self, core: &Core, messages: &[Message]) -> Result<Refusals, SessionError> {
        let messages = messages.iter().map(|it| (core.channel_name(it.channel), it.bytes.clone()));
        self.ask(Up::Publish(messages.collect())).await.map(|_| Refusals::default())
    }

    async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
        let mut number = 0;
        self.network.0.send_if_modified(|state| {
            state.subscriptions += 1;
            number = state.subscriptions;
            false
        });
        {
            let mut subscribed = self.subscribed.lock();
            let of = |name: &String| (name.clone(), (number, Subscription::default()));
            subscribed.extend(names.iter().map(of));
        }
        let names = names.iter().map(|name| (name.clone(), number));
        self.ask(Up::Subscribe(names.collect())).await.map(drop)
    }

    async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
        if self.is_terse {
            self.unsubscribed(names);
            return self.ask(Up::Unsubscribe(names.to_vec())).await.map(drop);
        }
        self.ask(Up::Unsubscribe(names.to_vec())).await?;
        self.unsubscribed(names);
        Ok(())
    }

    async fn ping(&self, _: &Core) -> Result<(), SessionError> {
        let asked = Instant::now();
        self.ask(Up::Ping).await?;
        self.inbound.read_until(asked);
        Ok(())
    }

    async fn nodes(&self, core: &Core) -> Result<Option<u64>, SessionError> {
        if self.is_terse {
            return Ok(None);
        }
        self.ask(Up::Nodes(core.channel_name(Channel::All))).await.map(Some)
    }

    async fn receive(&self, _: &Core) -> SessionError {
        let mut arriving = self.down.lock().await;
        let receiving = async {
            while let Some((at, down)) = arriving.recv().await {
                sleep_until(at).await;
                self.network.passes(self.line.node).await;
                match down {
                    Down::Message(number, bytes, sent) => self.arrives(number, &bytes, sent),
                    // The node may not wait for it any more.
                    Down::Answer(answer, says) => drop(answer.send(says)),
                }
            }
        };
        let ended = async {
            self.line.ends().await;
            self.network.passes(self.line.node).await;
        };
        tokio::select! {
            biased;
            () = dies(self.lives.clone()) => {}
            () = ended => return lost(),
            () = receiving => {}
            () = self.deliver_all() => {}
        }
        never().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inbound.end(&self.core);
        // What is on the way to the server still arrives there, unless the process is dead.
        if !*self.lives.borrow() {
            self.line.is_lost.send_replace(true);
        }
    }
}

/// A number that a life of a node has said on a topic.
type Said = (String, u64);

/// What a subscriber has heard, in order: of which life of which node, and the number.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(Said, u64)>>>);

struct Listener {
    heard: Heard,
    ending: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ending.abort();
    }
}

/// A life of a node.
struct Life {
    name: String,
    number: u64,
    lives: watch::Sender<bool>,
    cluster: Cluster,
    endpoint: Endpoint,
    presence: Presence,
    /// The users that are there, as the diffs have told it.
    told: Arc<Mutex<BTreeMap<String, i64>>>,
    /// When they were reported.
    gaps: Arc<Mutex<Vec<(Instant, Gap)>>>,
    fates: Arc<Mutex<Fates>>,
    listeners: [Vec<Listener>; TOPICS.len()],
    said: [u64; TOPICS.len()],
    users: Vec<(String, PresenceGuard)>,
    tasks: JoinSet<()>,
}

impl Life {
    async fn start(network: &Arc<Network>, node: usize, number: u64) -> Self {
        let (lives, name) = (watch::Sender::new(true), format!("node-{node}"));
        let fates = Arc::<Mutex<Fates>>::default();
        let lives_on = lives.subscribe();
        let reach = Reach { network: network.clone(), node, lives: lives_on, fates: fates.clone() };
        let options = ClusterOptions::new("test")
            .node(&name)
            .max_waiting(40)
            .linger(Duration::from_millis(300))
            .timeout(Duration::from_millis(500))
            .ping_interval(Duration::from_secs(1))
            .settle(Duration::from_secs(1))
            .backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(200)));
        // It returns after the first try to connect, which may take as long as the way is silent.
        let cluster = Cluster::join(reach, options).await.unwrap();
        let told = Arc::<Mutex<BTreeMap<String, i64>>>::default();
        let tells = told.clone();
        let tell = move |diff: &PresenceDiff| {
            let mut told = tells.lock();
            for key in diff.joins.keys() {
                *told.entry(key.to_owned()).or_default() += 1;
            }
            for key in diff.leaves.keys() {
                *told.entry(key.to_owned()).or_default() -= 1;
            }
        };
        let tracker = TrackerOptions::new()
            .broadcast_period(Duration::from_millis(500))
            .down_period(Duration::from_secs(5))
            .permdown_period(Duration::from_secs(20));
        let presence = Presence::builder().tracker(tracker).on_diff(tell).build();
        let builder = Endpoint::builder().adapter(cluster.clone()).presence(&presence);
        let (gaps, mut reported) = (Arc::<Mutex<Vec<_>>>::default(), cluster.gaps());
        let (keeps, mut tasks) = (gaps.clone(), JoinSet::new());
        tasks.spawn(async move {
            while let Some(gap) = reported.next().await {
                keeps.lock().push((Instant::now(), gap));
            }
        });
        let mut life = Self {
            name,
            number,
            lives,
            cluster,
            endpoint: builder.build().unwrap(),
            presence,
            told,
            gaps,
            fates,
            listeners: Default::default(),
            said: Default::default(),
            users: Vec::new(),
            tasks,
        };
        life.listen(0);
        life
    }

    /// A topic gets a subscriber.
    fn listen(&mut self, topic: usize) {
        let mut subscription = self.endpoint.subscribe(TOPICS[topic]);
        let heard = Heard::default();
        let keeps = heard.clone();
        let ending = self.tasks.spawn(async move {
            loop {
                let broadcast = subscription.recv().await.expect("it reads at once");
                let said: serde_json::Value = broadcast.payload().parse().unwrap();
                let of = |what: &str| said[what].as_u64().unwrap();
                let by = (said["node"].as_str().unwrap().to_owned(), of("life"));
                keeps.0.lock().push((by, of("n")));
            }
        });
        self.listeners[topic].push(Listener { heard, ending });
    }

    fn say(&mut self, topic: usize) {
        self.said[topic] += 1;
        let said = json!({ "node": self.name, "life": self.number, "n": self.said[topic] });
        self.endpoint.broadcast(TOPICS[topic], "said", said).unwrap();
    }

    fn come(&mut self, user: String) {
        let guard = self.presence.track_detached(HALL, &user, &json!({})).unwrap();
        self.users.push((user, guard));
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    /// All subscribers that a topic other than the first has at a node leave.
    Abandon(usize, usize),
    /// A node broadcasts so often.
    Say(usize, usize, usize),
    /// A user comes to a node.
    Come(usize),
    /// The first user of a node leaves.
    Leave(usize),
    /// So many milliseconds pass.
    Wait(u64),
    Way(usize, Way),
    /// Each thing takes up to so many milliseconds from now on.
    Slow(u64),
    /// Each message that waits at a node takes up to so many milliseconds from now on.
    Busy(u64),
    Server(bool),
    /// A node is killed, and started again at once.
    Kill(usize),
}

#[expect(clippy::disallowed_methods, reason = "it waits for the real clock")]
async fn run(seed: u64, loses: Option<u64>, is_terse: bool, steps: &[Step]) {
    let state = State {
        chance: Chance(seed),
        is_up: true,
        ways: [Way::Open; NODES],
        lines: Vec::new(),
        slowest: 5,
        loses,
        published: 0,
        is_terse,
        busy: 0,
        subscriptions: 0,
    };
    let network = Arc::new(Network(watch::Sender::new(state)));
    let mut nodes = Vec::new();
    for node in 0..NODES {
        nodes.push(Life::start(&network, node, 0).await);
    }
    sleep(Duration::from_secs(1)).await;
    let mut users = 0;
    for step in steps {
        match *step {
            Step::Subscribe(node, topic) => nodes[node].listen(topic),
            // The first one of the first topic stays.
            Step::Unsubscribe(node, topic) => {
                let listeners = &mut nodes[node].listeners[topic];
                if listeners.len() > usize::from(topic == 0) {
                    listeners.pop();
                }
            }
            Step::Abandon(node, topic) => nodes[node].listeners[topic].clear(),
            Step::Say(node, topic, count) => (0..count).for_each(|_| nodes[node].say(topic)),
            Step::Come(node) => {
                users += 1;
                nodes[node].come(format!("user {users}"));
            }
            Step::Leave(node) => {
                let here = &mut nodes[node].users;
                drop((!here.is_empty()).then(|| here.remove(0)));
            }
            Step::Wait(millis) => sleep(Duration::from_millis(millis)).await,
            Step::Way(node, way) => network.way(node, way),
            Step::Slow(slowest) => network.change(|state| state.slowest = slowest),
            Step::Busy(busy) => network.change(|state| state.busy = busy),
            Step::Server(is_up) => network.server(is_up),
            Step::Kill(node) => {
                // Its next life begins later by a clock that is not simulated.
                std::thread::sleep(LATER);
                let number = nodes[node].number + 1;
                nodes[node].lives.send_replace(false);
                nodes[node] = Life::start(&network, node, number).await;
            }
        }
    }
    for node in 0..NODES {
        network.way(node, Way::Open);
    }
    network.change(|state| {
        (state.is_up, state.slowest, state.busy, state.loses) = (true, 5, 0, None);
    });
    sleep(QUIET).await;
    for node in &mut nodes {
        (0..TOPICS.len()).for_each(|topic| node.say(topic));
    }
    sleep(Duration::from_secs(2)).await;
    for at in 0..NODES {
        is_well(&network, &nodes[at], at).await;
        hears_all(&nodes[at], &nodes);
        knows_what_is_missing(&nodes[at]);
        knows_of_no_more_than_is_missing(&nodes[at]);
        knows_when_it_was_away(&nodes[at]);
    }
    let all: BTreeSet<_> = nodes.iter().flat_map(|node| &node.users).map(|(it, _)| &**it).collect();
    for node in &nodes {
        let list = node.presence.list(HALL).await;
        let told: Vec<_> = node
            .told
            .lock()
            .iter()
            .filter(|it| *it.1 != 0)
            .map(|it| (it.0.clone(), *it.1))
            .collect();
        let expected: Vec<_> = all.iter().map(|it| ((*it).to_owned(), 1)).collect();
        assert_eq!(told, expected, "what {} was told of users", node.name);
        assert_eq!(list.keys().collect::<BTreeSet<_>>(), all, "the users at {}", node.name);
    }
}

/// The server knows what a node wants, the node has sent everything, and joins need not wait.
async fn is_well(network: &Network, node: &Life, at: usize) {
    let state = format!("{:?}", pipeline_ws_sink::pubsub::Adapter::snapshot(&node.cluster));
    assert!(node.cluster.is_connected(), "{}: {state}", node.name);
    // A heartbeat may be on the way.
    assert!(node.cluster.flush(Duration::from_secs(1)).await, "{}: {state}", node.name);
    let topics = TOPICS.iter().zip(&node.listeners).filter(|(_, it)| !it.is_empty());
    let topics: Vec<_> = topics.map(|(topic, _)| *topic).collect();
    let channels = topics.iter().map(|topic| Channel::of_topic(topic));
    let own = [Channel::All, Channel::of_node(&node.name)];
    let expected: HashSet<_> = channels.chain(own).map(|channel| channel.name("test")).collect();
    let lines = network.0.borrow().lines.clone();
    let lines: Vec<_> = lines.iter().filter(|line| line.node == at && !line.is_lost()).collect();
    assert_eq!(lines.len(), 1, "the connections of {}", node.name);
    let subscribed: HashSet<_> = lines[0].subscribed.lock().keys().cloned().collect();
    assert_eq!(subscribed, expected, "the channels of {}", node.name);
}

/// Every subscriber hears nothing twice, and what was said last by every node.
fn hears_all(at: &Life, nodes: &[Life]) {
    for (topic, listeners) in at.listeners.iter().enumerate() {
        for listener in listeners {
            let heard = listener.heard.0.lock();
            let different: HashSet<_> = heard.iter().collect();
            assert_eq!(different.len(), heard.len(), "twice at {}: {heard:?}", at.name);
            for by in nodes {
                let last = ((by.name.clone(), by.number), by.said[topic]);
                assert!(heard.contains(&last), "{} has not heard {last:?}: {heard:?}", at.name);
            }
        }
    }
}

/// What is missing between two numbers that were heard was reported, and nothing is reported if nothing is missing.
fn knows_what_is_missing(at: &Life) {
    let heard = at.listeners[0][0].heard.0.lock();
    let (mut of_each, mut grow) = (BTreeMap::<&Said, Vec<u64>>::new(), BTreeMap::new());
    for (by, n) in heard.iter() {
        let numbers = of_each.entry(by).or_default();
        *grow.entry(&by.0).or_insert(true) &= numbers.last().is_none_or(|last| last < n);
        numbers.push(*n);
    }
    let mut missing = BTreeMap::<&str, u64>::new();
    for ((name, _), numbers) in &mut of_each {
        numbers.sort_unstable();
        let between = numbers.last().unwrap() - numbers[0] + 1 - numbers.len() as u64;
        *missing.entry(name).or_default() += between;
    }
    let (gaps, channel) = (at.gaps.lock(), Channel::of_topic(TOPICS[0]));
    for (name, missing) in missing {
        let reported = gaps.iter().filter_map(|(_, gap)| match gap {
            Gap::Missing(it) if it.origin() == name && it.channel == channel => Some(it.count()),
            _ => None,
        });
        let reported: u64 = reported.sum();
        let what = format!("{missing} of {name} are missing at {}: {gaps:?}", at.name);
        assert!(reported >= missing, "only {reported} were reported: {what}");
        // What comes late was missing for a while.
        assert!(reported == missing || !grow[&name.to_owned()], "{reported} were reported: {what}");
    }
}

/// No more is reported than is missing among what has arrived while a channel was followed. What was sent between two such
/// times is not missing.
fn knows_of_no_more_than_is_missing(at: &Life) {
    let (fates, gaps) = (at.fates.lock(), at.gaps.lock());
    let (mut missing, mut has_late) = (HashMap::<_, u64>::new(), HashSet::new());
    for ((channel, _), of_each) in &fates.delivered {
        for ((name, _), Numbers { all, has_late: late }) in of_each {
            let span = all.last().unwrap() - all.first().unwrap() + 1;
            *missing.entry((&**name, channel.clone())).or_default() += span - all.len() as u64;
            if *late {
                has_late.insert((&**name, channel.clone()));
            }
        }
    }
    let mut reported = HashMap::<_, u64>::new();
    for (_, gap) in gaps.iter() {
        if let Gap::Missing(gap) = gap {
            *reported.entry((gap.origin(), gap.channel.name("test"))).or_default() += gap.count();
        }
    }
    for (of, reported) in reported {
        let missing = missing.get(&of).copied().unwrap_or_default();
        // What comes late was missing for a while.
        assert!(
            reported <= missing || has_late.contains(&of),
            "{missing} of {of:?} are missing at {}, and {reported} were reported: {gaps:?}",
            at.name
        );
    }
}

/// What was discarded with a connection was sent in a time that was reported, also where nothing has come after it.
fn knows_when_it_was_away(at: &Life) {
    let (fates, gaps) = (at.fates.lock(), at.gaps.lock());
    for (_, sent) in fates.discarded.iter().filter(|(number, _)| !fates.arrived.contains(number)) {
        let is_known = gaps.iter().any(|(until, gap)| match gap {
            Gap::Disconnected(gone) => (*until - *gone..=*until).contains(sent),
            _ => false,
        });
        assert!(is_known, "{sent:?} is in no time without a connection at {}: {gaps:?}", at.name);
    }
}

/// A "no" is as old as the time since the last period of the other node, and the way.
#[tokio::test(start_paused = true)]
async fn a_no_is_at_most_a_period_and_the_way_between_the_nodes_old() {
    const PERIOD: Duration = Duration::from_millis(1_500);
    const SLOWEST: u64 = 20;
    let state = State {
        chance: Chance(7),
        is_up: true,
        ways: [Way::Open; NODES],
        lines: Vec::new(),
        slowest: SLOWEST,
        loses: None,
        published: 0,
        is_terse: true,
        busy: 0,
        subscriptions: 0,
    };
    let network = Arc::new(Network(watch::Sender::new(state)));
    let (lives, mut nodes) = (watch::Sender::new(true), Vec::new());
    for node in 0..2 {
        let (network, lives) = (network.clone(), lives.subscribe());
        let reach = Reach { network, node, lives, fates: Arc::default() };
        let options = ClusterOptions::new("test").node(format!("node-{node}"));
        let cluster = Cluster::join(reach, options).await.unwrap();
        let synced = TrackerOptions::new().broadcast_period(PERIOD);
        let builder = Endpoint::builder().adapter(cluster).sync_subscriptions(synced);
        nodes.push(builder.build().unwrap());
    }
    let has = |n: u64| nodes[0].pubsub().has_subscribers(&format!("user:{n}"));
    let millisecond = Duration::from_millis(1);
    while has(0) {
        sleep(millisecond).await;
    }
    let (mut users, mut oldest) = (Vec::new(), Duration::ZERO);
    for n in 0..40 {
        sleep(Duration::from_millis(37 * n)).await;
        assert!(!has(n));
        users.push(nodes[1].subscribe(&format!("user:{n}")));
        let since = Instant::now();
        while !has(n) {
            sleep(millisecond).await;
        }
        oldest = oldest.max(since.elapsed());
    }
    // To the server and from it.
    let longest = PERIOD + 2 * Duration::from_millis(SLOWEST) + millisecond;
    assert!(oldest <= longest && oldest > PERIOD / 2, "{oldest:?}");
}

/// A topic other than the first is left by its subscribers at a busy node, and gets one again, while another node broadcasts
/// before, between and after that.
fn comes_back() -> impl Strategy<Value = Vec<Step>> {
    let counts = (10..30usize, 0..10usize, 1..10usize);
    (0..NODES, 1..NODES, 1..TOPICS.len(), counts, 300..600u64).prop_map(
        |(node, further, topic, (before, between, after), away)| {
            let other = (node + further) % NODES;
            let mut steps = vec![Step::Busy(100), Step::Subscribe(node, topic), Step::Wait(50)];
            // What is sent at once would be one message.
            let say = |count| (0..count).flat_map(|_| [Step::Say(other, topic, 1), Step::Wait(8)]);
            steps.extend(say(before));
            steps.extend([Step::Abandon(node, topic), Step::Wait(away)]);
            steps.extend(say(between));
            steps.push(Step::Subscribe(node, topic));
            steps.extend(say(after));
            steps
        },
    )
}

/// A node is busy with what was sent a while ago, and is cut off after the server has answered to something newer.
fn is_cut_off_behind() -> impl Strategy<Value = Vec<Step>> {
    (0..NODES, 1..NODES, 10..30usize, 300..1_000u64).prop_map(|(node, further, count, after)| {
        let other = (node + further) % NODES;
        let mut steps = vec![Step::Slow(200), Step::Busy(200)];
        steps.extend((0..count).flat_map(|_| [Step::Say(other, 0, 1), Step::Wait(20)]));
        steps.extend([Step::Wait(100), Step::Say(node, 0, 1), Step::Wait(after)]);
        steps.extend([Step::Way(node, Way::Cut), Step::Slow(5), Step::Way(node, Way::Open)]);
        steps
    })
}

fn one(step: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<Step>> {
    step.prop_map(|step| vec![step])
}

fn cases() -> ProptestConfig {
    let asked = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(24))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn nodes_agree_after_faults_and_know_what_they_have_missed(
        seed in any::<u64>(),
        loses in prop_oneof![2 => Just(None), 1 => (2..20u64).prop_map(Some)],
        is_terse in any::<bool>(),
        steps in vec(prop_oneof![
            4 => one((0..NODES, 0..TOPICS.len()).prop_map(|(node, topic)| Step::Subscribe(node, topic))),
            4 => one((0..NODES, 0..TOPICS.len()).prop_map(|(node, topic)| Step::Unsubscribe(node, topic))),
            12 => one((0..NODES, 0..TOPICS.len(), 1..30usize).prop_map(|(node, topic, n)| Step::Say(node, topic, n))),
            4 => one((0..NODES).prop_map(Step::Come)),
            2 => one((0..NODES).prop_map(Step::Leave)),
            12 => one((0..400u64).prop_map(Step::Wait)),
            2 => one((2_000..12_000u64).prop_map(Step::Wait)),
            2 => one((0..NODES, prop_oneof![Just(Way::Open), Just(Way::Silent), Just(Way::Cut)])
                .prop_map(|(node, way)| Step::Way(node, way))),
            2 => one((0..NODES).prop_map(|node| Step::Way(node, Way::Open))),
            1 => one((0..600u64).prop_map(Step::Slow)),
            1 => one((0..100u64).prop_map(Step::Busy)),
            1 => one(any::<bool>().prop_map(Step::Server)),
            1 => one(Just(Step::Server(true))),
            1 => one((0..NODES).prop_map(Step::Kill)),
            4 => comes_back(),
            2 => is_cut_off_behind(),
        ], 0..80),
    ) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(run(seed, loses, is_terse, &steps.concat()));
    }
}
