//! Clients that connect again as the official one does, and what they miss of what was sent meanwhile.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use pipeline_test_support::{PATIENCE, get};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// At the end, a client waits for what it misses until nothing has come for this long.
const QUIET: Duration = Duration::from_secs(10);

/// The time in which a client was joined, in milliseconds since the beginning of the run.
#[derive(Debug)]
pub struct Joined {
    /// When the answer to the join came.
    from: u64,
    /// When the connection ended, or before its node was killed. `u64::MAX` if it was there to the end of the run.
    until: u64,
}

/// A broadcast that has arrived, in milliseconds since the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// When it was sent.
    pub sent: u64,
    pub at: u64,
}

impl Arrived {
    pub fn took(&self) -> u64 {
        self.at.saturating_sub(self.sent)
    }
}

/// What presence has told of a user.
#[derive(Debug)]
pub struct Told {
    pub user: String,
    /// Otherwise it has joined.
    pub has_left: bool,
}

/// What a client has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Its number.
    pub client: usize,
    pub joined: Vec<Joined>,
    /// By their numbers.
    pub arrived: HashMap<u64, Arrived>,
    /// How many have arrived more than once.
    pub twice: usize,
    /// The users that have left and joined during the run, as presence has told it, in its order.
    pub presence: Vec<Told>,
}

/// What has not arrived at a client.
#[derive(Debug, Default)]
pub struct Missed {
    /// What was sent while it was not joined.
    pub absent: usize,
    /// What was sent while it was joined, and may have been on the way when its connection ended.
    pub on_the_way: usize,
    /// What was sent while it was joined, and for long enough after that: when, by its number.
    pub lost: BTreeMap<u64, u64>,
}

impl Seen {
    /// Whether a user has left and whether it has joined, in turn, from the first time that it has left.
    pub fn comings_and_goings(&self, user: &str) -> Vec<bool> {
        let of_user = self.presence.iter().filter(|told| told.user == user);
        of_user.map(|told| told.has_left).skip_while(|has_left| !has_left).collect()
    }

    /// What has not arrived of what was sent, where the slowest takes so many milliseconds.
    pub fn missed(&self, sent: &BTreeMap<u64, u64>, slowest: u64) -> Missed {
        let mut missed = Missed::default();
        for (&n, &at) in sent.iter().filter(|(n, _)| !self.arrived.contains_key(n)) {
            match self.joined.iter().find(|joined| joined.from < at && at < joined.until) {
                None => missed.absent += 1,
                Some(joined) if at + slowest >= joined.until => missed.on_the_way += 1,
                Some(_) => {
                    missed.lost.insert(n, at);
                }
            }
        }
        missed
    }
}

/// All clients of a run.
pub struct Run {
    /// Clients come to these in turn.
    addresses: Vec<String>,
    begun: Instant,
    pub joined: AtomicUsize,
    /// When each broadcast was sent that was accepted, in milliseconds since the beginning.
    sent: Mutex<BTreeMap<u64, u64>>,
    /// A moment before a node was killed. What is sent since then does not arrive at its clients, however late its sockets
    /// are closed and they notice it.
    killed: AtomicU64,
    /// No more is broadcast.
    is_over: AtomicBool,
    /// Clients leave once everything has arrived that they are to get.
    is_ending: AtomicBool,
    /// The clients' interval of heartbeats.
    heartbeat: Duration,
    /// Whether clients are listed, and told who leaves.
    is_present: bool,
}

impl Run {
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    /// A node is about to be killed.
    pub fn kills(&self) {
        self.killed.store(self.now(), Relaxed);
    }

    pub fn sent(&self) -> BTreeMap<u64, u64> {
        self.sent.lock().clone()
    }
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn client(run: Arc<Run>, n: usize) -> Seen {
    let mut seen = Seen { client: n, ..Seen::default() };
    let address = &run.addresses[n % run.addresses.len()];
    let url = format!("ws://{address}/few/websocket?vsn=2.0.0&user_id=client-{n}");
    let mut tries = 0;
    while !run.is_ending.load(Relaxed) {
        // The official client's delays.
        let delay = [10, 50, 100, 150, 200, 250, 500, 1000, 2000].get(tries).unwrap_or(&5000);
        sleep(Duration::from_millis(*delay)).await;
        tries += 1;
        if let Ok(Ok((mut stream, _))) = timeout(PATIENCE, connect_async(&url)).await
            && join(&mut stream, "1", "room:restart").await
            && (!run.is_present || join(&mut stream, "2", "pres:restart").await)
        {
            session(&run, &mut seen, &mut tries, stream).await;
        }
    }
    seen
}

async fn join(stream: &mut Stream, reference: &str, topic: &str) -> bool {
    let join = json!([reference, reference, topic, "phx_join", {}]).to_string();
    stream.send(Message::text(join)).await.is_ok()
}

async fn session(run: &Run, seen: &mut Seen, tries: &mut usize, mut stream: Stream) {
    let mut joined_from = None;
    let (mut last, mut beat, mut is_answered) = (Instant::now(), Instant::now(), true);
    let stayed = loop {
        if run.is_ending.load(Relaxed) {
            let due = |at: u64| joined_from.is_some_and(|from| from < at);
            let is_complete =
                run.sent.lock().iter().all(|(n, at)| !due(*at) || seen.arrived.contains_key(n));
            if is_complete || last.elapsed() > QUIET {
                break true;
            }
        }
        if beat.elapsed() >= run.heartbeat {
            // The official client gives up when the last one was not answered.
            let heartbeat = json!([null, "beat", "phoenix", "heartbeat", {}]).to_string();
            if !is_answered || stream.send(Message::text(heartbeat)).await.is_err() {
                break false;
            }
            (beat, is_answered) = (Instant::now(), false);
        }
        let Ok(next) = timeout(Duration::from_millis(200), stream.next()).await else { continue };
        let Some(Ok(Message::Text(text))) = next else { break false };
        let message: Value = serde_json::from_str(&text).unwrap();
        match message[3].as_str().unwrap() {
            "phx_reply" => {
                assert_eq!(message[4]["status"], "ok", "{message}");
                match message[1].as_str().unwrap() {
                    "1" => {
                        (*tries, joined_from) = (0, Some(run.now()));
                        run.joined.fetch_add(1, Relaxed);
                    }
                    "beat" => is_answered = true,
                    _ => {}
                }
            }
            "tick" => {
                let number = |of: &str| message[4][of].as_u64().unwrap();
                let arrived = Arrived { sent: number("at"), at: run.now() };
                last = Instant::now();
                let before = seen.arrived.insert(number("n"), arrived);
                // One that was not answered was sent again, with the same number.
                if before.is_some_and(|before| before.sent == arrived.sent) {
                    seen.twice += 1;
                }
            }
            // At the end, all leave.
            "presence_diff" if !run.is_over.load(Relaxed) => {
                // The user of a client that comes back leaves and joins in one.
                let diff = &message[4];
                for (told, other) in [("leaves", "joins"), ("joins", "leaves")] {
                    let users = diff[told].as_object().unwrap().keys();
                    let users = users.filter(|user| diff[other].get(user).is_none());
                    let has_left = told == "leaves";
                    seen.presence.extend(users.map(|user| Told { user: user.clone(), has_left }));
                }
            }
            _ => {}
        }
    };
    if let Some(from) = joined_from {
        run.joined.fetch_sub(1, Relaxed);
        let killed = run.killed.load(Relaxed);
        let until = match run.now() {
            _ if stayed => u64::MAX,
            now if from < killed => now.min(killed),
            now => now,
        };
        seen.joined.push(Joined { from, until });
    }
}

/// Broadcasts through an address until the run is over: every step-th number, from the first.
pub async fn broadcast(run: Arc<Run>, address: String, first: u64, step: u64) {
    let mut n = first;
    while !run.is_over.load(Relaxed) {
        sleep(Duration::from_millis(50)).await;
        let at = run.now();
        let path = format!(
            "/ctl/broadcast?topic=room:restart&event=tick&payload=%7B%22n%22%3A{n}%2C%22at%22%3A{at}%7D"
        );
        // A node that ends just now may not answer.
        if get(&address, &path).await.status == 200 {
            run.sent.lock().insert(n, at);
            n += step;
        }
    }
}

/// Waits until this number of clients has joined.
pub async fn all_joined(run: &Run, clients: usize) -> Duration {
    let since = Instant::now();
    let joined = timeout(4 * PATIENCE, async {
        while run.joined.load(Relaxed) < clients {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let joined = joined.await;
    assert!(joined.is_ok(), "{} of {clients} have joined", run.joined.load(Relaxed));
    since.elapsed()
}

/// The clients of a run, and what broadcasts to them.
pub struct Clients {
    pub run: Arc<Run>,
    members: Vec<JoinHandle<Seen>>,
    broadcasting: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Lets clients come to these addresses in turn, and waits until all have joined.
    pub async fn arrive(addresses: &[String], clients: usize) -> Self {
        // The official client's interval.
        Self::beating(addresses, clients, Duration::from_secs(30), false).await
    }

    /// The same, with another interval of heartbeats, and, if they are to be, with presence.
    pub async fn beating(
        addresses: &[String],
        clients: usize,
        heartbeat: Duration,
        is_present: bool,
    ) -> Self {
        let run = Arc::new(Run {
            addresses: addresses.to_vec(),
            begun: Instant::now(),
            joined: AtomicUsize::new(0),
            sent: Mutex::default(),
            killed: AtomicU64::new(u64::MAX),
            is_over: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            heartbeat,
            is_present,
        });
        let members = (0..clients).map(|n| tokio::spawn(client(run.clone(), n))).collect();
        all_joined(&run, clients).await;
        Self { run, members, broadcasting: vec![] }
    }

    /// Broadcasts through each of these addresses from now on. The numbers of the first of two are even.
    pub fn broadcast_through(&mut self, addresses: &[String]) {
        let step = u64::try_from(addresses.len()).unwrap();
        for (first, address) in (0..).zip(addresses) {
            let broadcasting = broadcast(self.run.clone(), address.clone(), first, step);
            self.broadcasting.push(tokio::spawn(broadcasting));
        }
    }

    /// Broadcasts through an address 50 times, each with so many more bytes. The numbers of each step are others.
    pub async fn flood(&self, address: &str, step: u64, bytes: usize) {
        let pad = "x".repeat(bytes);
        for n in 0..50 {
            // Further numbers than others have.
            let (n, at) = (n + (step << 32) + (1 << 32), self.run.now());
            let path = format!(
                "/ctl/broadcast?topic=room:restart&event=tick&payload=%7B%22n%22%3A{n}%2C%22at%22%3A{at}%2C%22pad%22%3A%22{pad}%22%7D"
            );
            assert_eq!(get(address, &path).await.status, 200);
            self.run.sent.lock().insert(n, at);
        }
    }

    /// Ends the run. What was sent arrives before the clients leave.
    pub async fn leave(self) -> (Vec<Seen>, BTreeMap<u64, u64>) {
        self.run.is_over.store(true, Relaxed);
        for broadcasting in self.broadcasting {
            broadcasting.await.unwrap();
        }
        self.run.is_ending.store(true, Relaxed);
        let mut all = Vec::new();
        for member in self.members {
            all.push(member.await.unwrap());
        }
        (all, self.run.sent())
    }
}

/// What all clients have seen.
pub struct Summary {
    pub all: Vec<Seen>,
    pub missed: Vec<Missed>,
    /// When each was sent, in milliseconds since the beginning of the run, and the milliseconds that it took.
    pub times: Vec<(u64, u64)>,
}

impl Summary {
    /// Prints it in one line.
    pub async fn of(what: &str, clients: Clients) -> Self {
        let (all, sent) = clients.leave().await;
        let times = all.iter().flat_map(|seen| seen.arrived.values());
        let times: Vec<_> = times.map(|arrived| (arrived.sent, arrived.took())).collect();
        let sorted = sorted(times.iter().map(|(_, took)| *took));
        let quantile = |part| quantile(&sorted, part);
        let slowest = quantile(1000);
        let missed: Vec<_> = all.iter().map(|seen| seen.missed(&sent, slowest)).collect();
        let sum = |of: fn(&Missed) -> usize| missed.iter().map(of).sum::<usize>();
        println!(
            "{} clients, {} broadcasts, {what}: {} received, {} sent while their client was away, {} on the way to \
             one that left, {} lost; {} joins; p50 {} ms, p99 {} ms, most {slowest} ms",
            all.len(),
            sent.len(),
            times.len(),
            sum(|missed| missed.absent),
            sum(|missed| missed.on_the_way),
            sum(|missed| missed.lost.len()),
            all.iter().map(|seen| seen.joined.len()).sum::<usize>(),
            quantile(500),
            quantile(990),
        );
        Self { all, missed, times }
    }

    /// Checks that clients have received once what was sent while they were joined.
    pub fn is_complete(&self) {
        let lost: Vec<_> = self.missed.iter().map(|missed| &missed.lost).collect();
        let lost: Vec<_> = lost.into_iter().filter(|lost| !lost.is_empty()).collect();
        assert!(lost.is_empty(), "a client that is joined receives everything: {lost:?}");
        let twice: usize = self.all.iter().map(|seen| seen.twice).sum();
        assert_eq!(twice, 0, "nothing arrives twice");
    }
}

pub fn sorted(times: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times
}

/// A quantile, in thousandths, of sorted times.
pub fn quantile(times: &[u64], part: usize) -> u64 {
    times[(times.len() - 1) * part / 1000]
}
