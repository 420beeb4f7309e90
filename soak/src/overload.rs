//! Overload: more is offered than can be delivered, in three ways.

use std::{
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::ValueEnum;
use parking_lot::Mutex;
use pipeline_load::{
    chart::{Curve, Panel, chart},
    latency::Latencies,
    unix_micros,
};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    client::{Client, Ended, Http, Message, PATIENCE, RECEIVE_BUFFER, Transport},
    endings::End,
    process::{RunError, Server},
    server::{Options, Stats, WINDOWS},
};

/// Offer 1, 2, 5 and 20 times what can be delivered, and show what happens to it
#[derive(Debug, clap::Args)]
pub(crate) struct Overload {
    /// How many seconds each load lasts
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Also replace the table in this file, and draw the chart next to it
    #[arg(long)]
    write: Option<PathBuf>,
}

/// The ways in which items come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    Push,
    Pipeline,
    Broadcast,
}

/// How many times as much is offered as can be delivered.
const TIMES: [u64; 4] = [1, 2, 5, 20];

/// The number of users, each with one client.
const USERS: usize = 50;

/// The capacity of the queue, the number of workers, and the time that each takes for an item. The workers wait, so what
/// they can do hardly depends on the machine.
const QUEUE: usize = 1000;
const WORKERS: usize = 20;
const WORK_US: u64 = 10_000;

/// The items that the server may hold: in the queue, and asked for by its stages.
const HELD: usize = QUEUE + WINDOWS + WORKERS;

/// The requests per second that push by HTTP. Each has as many items as are due.
const REQUESTS: u64 = 200;

/// The most connections that wait for an answer at once. Beyond them, a request is not sent, which is a fault.
const CONNECTIONS: usize = 500;

/// A rate that is more than can be delivered, in order to measure what can.
const MORE: u64 = 20_000;

/// The clients of a broadcast, the items that each reads per second, and the bytes of an item. A connection's
/// buffers in the operating system hold about a second of them.
const LISTENERS: usize = 10;
const READS: u64 = 400;
const BYTES: usize = 8192;

/// The frames and the bytes that may wait for a client.
const OUTBOX: usize = 256;
const OUTBOX_BYTES: usize = 1 << 20;

/// The most bytes of an item in the queue, or of a frame that is none of a broadcast.
const ITEM_BYTES: usize = 1024;

/// By how much the server's memory may exceed its start and the bounds of its queues.
const SPARE_BYTES: u64 = 16 << 20;

/// How many times as long as in theory an item may wait, and the server may hold items after the load.
const MARGIN: f64 = 2.0;

/// How long the recovery may take, if the load lasts for as long as the page says. In a shorter run, on a machine that
/// does other things, only the margin counts: it is a multiple of what the same run takes for its items.
const RECOVERS_WITHIN: Duration = Duration::from_secs(2);
const LONG: u64 = 5;

/// The items that are broadcast in a second after the load, in order to see when each client is back, and how old one
/// may be to be in time.
const AFTERWARDS: u64 = 100;
const IN_TIME: Duration = Duration::from_millis(250);

/// How long the clients may take to read what the server has sent.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// The beginning and the end of the table in a file.
const BEGIN: &str = "<!-- overload -->";
const END: &str = "<!-- /overload -->";

/// What clients have received.
#[derive(Debug, Default)]
struct Received {
    items: AtomicU64,
    /// The ages of the items in microseconds.
    ages: Mutex<Vec<u64>>,
    /// For each client.
    positions: Vec<Mutex<Position>>,
    /// Connections that were closed as too slow.
    closes: AtomicU64,
    /// Connections that ended in another way.
    lost: AtomicU64,
    /// When the load was over, in microseconds since 1970; 0 until then.
    over_us: AtomicU64,
}

/// Where a client is in the sequence of its topic.
#[derive(Debug, Default)]
struct Position {
    last: u64,
    /// The first item of this connection.
    first: Option<u64>,
    /// The last item before this connection had subscribed, once the server has sent it: later ones have to arrive.
    at: Option<u64>,
    /// Items between two connections, and gaps and repetitions within one, and items that were sent to a connection and
    /// are missing.
    missed: u64,
    faults: u64,
    /// Of the missed items, those that had been broadcast when the connection before was closed. The others were while
    /// the client was away.
    by_close: u64,
    /// When it first received an item in time after the load.
    back: Option<Instant>,
}

impl Position {
    fn item(&mut self, k: u64) {
        let next = self.last + 1;
        if k < next || (self.first.is_some() && k > next) {
            self.faults += 1;
        } else {
            self.missed += k - next;
        }
        self.last = k;
        self.first.get_or_insert(k);
        self.is_complete();
    }

    /// The server's message after the subscription.
    fn subscribed(&mut self, at: u64) {
        self.at = Some(at);
        self.is_complete();
    }

    /// The first item of a connection is the next one after its subscription, or an earlier one. It is looked at once.
    fn is_complete(&mut self) {
        if let (Some(first), Some(at)) = (self.first, self.at) {
            self.faults += u64::from(first > at + 1);
            self.at = Some(u64::MAX - 1);
        }
    }

    /// The connection was closed when this item had been broadcast.
    fn closed(&mut self, broadcast: u64) {
        self.by_close += broadcast.saturating_sub(self.last);
        (self.first, self.at) = (None, None);
    }
}

/// What was offered, and what became of it by its source's account.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    items: u64,
    /// Items that the source knows to be accepted.
    accepted: u64,
    unsent: u64,
    took: Duration,
    /// How late the source was, 99th percentile, in milliseconds.
    late: f64,
}

/// The result of one load.
#[derive(Clone, Debug)]
struct Measured {
    way: Way,
    /// What can be delivered in a second.
    capacity: u64,
    offer: Offer,
    /// Items that were offered during the load. Those of a broadcast after it are in `offer` as well.
    offered: u64,
    /// Items that were delivered during the load.
    delivered: u64,
    /// Items that were delivered in all.
    received: u64,
    /// Items that clients have missed between two connections.
    missed: u64,
    /// Of these, the ones that had been broadcast when a client was closed.
    by_close: u64,
    /// Items that a client has not received at the end, behind its last one.
    tail: u64,
    /// Gaps and repetitions.
    faults: u64,
    closes: u64,
    lost: u64,
    /// The state of the server after the load.
    stats: Stats,
    p50: f64,
    p99: f64,
    /// How long an item may wait in theory, in milliseconds.
    waits: f64,
    memory: u64,
    memory_bound: u64,
    /// Until the server held nothing, and each client had received an item in time.
    recovered: Duration,
    /// Whether the load lasted for so long that the time of the recovery counts.
    is_long: bool,
}

#[derive(Deserialize)]
struct Offered {
    offered: u64,
    took_seconds: f64,
}

impl Overload {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let mut all = Vec::new();
        for way in Way::value_variants() {
            let capacity = match way {
                Way::Broadcast => READS,
                Way::Push | Way::Pipeline => {
                    let most = self.measure(*way, 1, MORE).await?;
                    let rate = u128::from(most.delivered) * 1000 / most.offer.took.as_millis();
                    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
                }
            };
            for times in TIMES {
                let measured = self.measure(*way, times, capacity).await?;
                eprintln!("measured {way:?} at {times} times {capacity} a second");
                all.push(measured);
            }
        }
        let table = table(&all);
        print!("{table}");
        if let Some(file) = &self.write {
            let text = fs::read_to_string(file)?;
            let replaced = replaced(&text, &table)
                .ok_or_else(|| RunError::Violated(format!("{} has no {BEGIN}", file.display())))?;
            fs::write(file, replaced)?;
            fs::write(file.with_file_name("overload.svg"), chart(&panels(&all)))?;
        }
        let faults: Vec<_> = all.iter().flat_map(Measured::faults).collect();
        if faults.is_empty() {
            println!("\nEvery item was delivered, or is counted by reason.");
            return Ok(());
        }
        Err(RunError::Violated(faults.join("\n")))
    }

    async fn measure(&self, way: Way, times: u64, capacity: u64) -> Result<Measured, RunError> {
        let options = Options {
            users: USERS,
            rate: 0,
            fail_millis: 0,
            idle_secs: 60,
            window_millis: 4000,
            work_us: WORK_US,
            max_demand: WORKERS,
            queue: QUEUE,
            outbox: OUTBOX,
            drain_secs: 10,
        };
        let server = Server::start(&options).await?;
        let (count, pace) = match way {
            Way::Broadcast => (LISTENERS, Some(READS)),
            Way::Push | Way::Pipeline => (USERS, None),
        };
        let positions = (0..count).map(|_| Mutex::default()).collect();
        let received = Arc::new(Received { positions, ..Received::default() });
        let mut clients = JoinSet::new();
        for client in 0..count {
            let user = if way == Way::Broadcast { 0 } else { client };
            clients.spawn(listen(server.address, user, client, pace, received.clone()));
        }
        while server.stats().await?.sockets < count {
            sleep(Duration::from_millis(20)).await;
        }
        // The joins are answered.
        sleep(Duration::from_millis(200)).await;

        let time = Duration::from_secs(self.seconds);
        let start = server.resident()?;
        let peak = Arc::new(AtomicU64::new(start));
        let load = offer(&server, way, capacity * times, time);
        let watch = async {
            loop {
                peak.fetch_max(server.resident().unwrap_or_default(), Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        };
        let offer = tokio::select! {
            load = load => load?,
            () = watch => return Err(RunError::Violated("the watch ended".to_owned())),
        };
        let delivered = received.items.load(Relaxed);
        let rate = delivered.max(1) as f64 / offer.took.as_secs_f64();
        let waits = 1000.0 * way.in_front() / rate;
        let recovering = Instant::now();
        let offered = offer.items;
        let mut items = offered;
        let recovered = match way {
            Way::Push | Way::Pipeline => recovery(&server, MARGIN * waits).await?,
            Way::Broadcast => {
                received.over_us.store(unix_micros(), Relaxed);
                items += back(&server, &received, offer.items, MARGIN * waits).await?;
                let backs = received.positions.iter().map(|position| position.lock().back);
                let last = backs.map(|back| back.unwrap_or_else(Instant::now)).max();
                last.unwrap_or(recovering) - recovering
            }
        };
        let stats = received.all_read(&server, way, items).await?;
        let offer = Offer { items, ..offer };
        let latencies = Latencies::new(std::mem::take(&mut *received.ages.lock()));
        let sum = |of: fn(&Position) -> u64| {
            received.positions.iter().map(|position| of(&position.lock())).sum()
        };
        Ok(Measured {
            way,
            capacity,
            offered,
            offer,
            delivered,
            received: received.items.load(Relaxed),
            missed: sum(|position| position.missed),
            by_close: sum(|position| position.by_close),
            tail: match way {
                Way::Broadcast => items * LISTENERS as u64 - sum(|position| position.last),
                Way::Push | Way::Pipeline => 0,
            },
            faults: sum(|position| position.faults),
            closes: received.closes.load(Relaxed),
            lost: received.lost.load(Relaxed),
            stats,
            p50: latencies.at(500),
            p99: latencies.at(990),
            waits,
            memory: peak.load(Relaxed),
            memory_bound: start + way.memory() + SPARE_BYTES,
            recovered,
            is_long: self.seconds >= LONG,
        })
    }
}

impl Way {
    /// The items that may be in front of one, for all clients together.
    fn in_front(self) -> f64 {
        match self {
            Way::Push | Way::Pipeline => HELD as f64,
            Way::Broadcast => {
                let connection =
                    OUTBOX_BYTES.min(OUTBOX * BYTES) + sent_buffer() + received_buffer();
                (connection / BYTES * LISTENERS) as f64
            }
        }
    }

    /// The bytes that the queues may hold.
    fn memory(self) -> u64 {
        let (clients, frame) = match self {
            Way::Push | Way::Pipeline => (USERS, ITEM_BYTES),
            Way::Broadcast => (LISTENERS, BYTES),
        };
        (HELD * ITEM_BYTES + clients * OUTBOX_BYTES.min(OUTBOX * frame)) as u64
    }
}

/// The bytes that the operating system keeps for a connection until they have been received.
fn sent_buffer() -> usize {
    let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    limits.split_whitespace().last().and_then(|most| most.parse().ok()).unwrap_or(4 << 20)
}

/// The bytes that it keeps until they are read: twice what the client has asked for.
fn received_buffer() -> usize {
    2 * RECEIVE_BUFFER as usize
}

impl Received {
    /// Waits until the clients have read everything that was sent to them. Returns the server's state.
    async fn all_read(&self, server: &Server, way: Way, offered: u64) -> Result<Stats, RunError> {
        let until = Instant::now() + READ_WITHIN;
        loop {
            let stats = server.stats().await?;
            let is_read = match way {
                Way::Push | Way::Pipeline => self.items.load(Relaxed) >= stats.accepted,
                Way::Broadcast => {
                    self.positions.iter().all(|position| position.lock().last == offered)
                }
            };
            if is_read && self.closes.load(Relaxed) >= stats.closed_slow || Instant::now() > until {
                return Ok(stats);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Measured {
    fn times_offered(&self) -> f64 {
        self.offered() / self.capacity as f64
    }

    fn offered(&self) -> f64 {
        self.offered as f64 / self.offer.took.as_secs_f64()
    }

    /// The share of the items that were refused, or were not received by a client.
    fn refused(&self) -> f64 {
        let (some, all) = match self.way {
            Way::Broadcast => (self.missed, self.offer.items * LISTENERS as u64),
            Way::Push | Way::Pipeline => (self.stats.refused_full, self.offer.items),
        };
        100.0 * some as f64 / all.max(1) as f64
    }

    /// Sums that differ, and bounds that are exceeded.
    fn faults(&self) -> Vec<String> {
        let Self { offer, stats, received, missed, .. } = self;
        let mut faults = Vec::new();
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                faults.push(format!("{what}: {self:?}"));
            }
        };
        expect(offer.unsent == 0, "requests were not sent");
        expect(self.faults == 0, "an item is missing on a connection, or came twice");
        expect(self.lost == 0, "a client lost its connection");
        expect(self.closes == stats.closed_slow, "clients and server count different closes");
        match self.way {
            Way::Push | Way::Pipeline => {
                let refused = stats.refused_full + stats.refused_closed;
                expect(stats.begun == offer.items, "an offered item did not reach the queue");
                expect(offer.items == stats.accepted + refused, "an offered item is in no sum");
                expect(offer.accepted == stats.accepted, "the answers have other sums");
                expect(
                    stats.accepted == received + stats.frames_dropped,
                    "an accepted item is not delivered and not counted",
                );
                expect(*missed == 0, "items are missing in front of the first");
            }
            Way::Broadcast => {
                let all = offer.items * LISTENERS as u64;
                expect(all == received + missed, "an item of a broadcast is in no sum");
                expect(self.tail == 0, "a client is not back, or has lost the last items");
                expect(
                    stats.frames_dropped <= self.by_close,
                    "more was dropped than clients have missed by their closes",
                );
                expect(
                    self.by_close <= *missed,
                    "clients have received what was sent to closed connections",
                );
            }
        }
        // Of broadcasts, slow clients decide.
        let rate = self.delivered as f64 / offer.took.as_secs_f64();
        expect(
            matches!(self.way, Way::Broadcast) || 2.0 * rate >= self.capacity as f64,
            "the load has more than halved what is delivered",
        );
        expect(self.p99 <= MARGIN * self.waits + offer.late, "items waited too long");
        expect(
            self.memory <= self.memory_bound,
            "the server's memory exceeds the bounds of its queues",
        );
        let mut recovers = Duration::from_secs_f64(MARGIN * self.waits / 1000.0);
        if self.is_long {
            recovers = recovers.min(RECOVERS_WITHIN);
        }
        expect(self.recovered <= recovers, "the server recovered late");
        faults
    }
}

/// Offers items for some time.
async fn offer(server: &Server, way: Way, rate: u64, time: Duration) -> Result<Offer, RunError> {
    let millis = time.as_millis();
    let path = match way {
        Way::Push => return Ok(push(server.address, rate, time).await?),
        Way::Pipeline => format!("/offer?rate={rate}&millis={millis}"),
        Way::Broadcast => {
            format!("/broadcast?user=0&after=0&rate={rate}&millis={millis}&pad={BYTES}")
        }
    };
    let Offered { offered, took_seconds } = server.get(&path).await?;
    let accepted = server.stats().await?.accepted;
    let took = Duration::from_secs_f64(took_seconds);
    Ok(Offer { items: offered, accepted, unsent: 0, took, late: 0.0 })
}

/// Pushes by HTTP at a rate that does not depend on the answers: each request is sent when it is due, on a connection
/// that waits for no answer. The age of its items counts from then.
async fn push(address: SocketAddr, rate: u64, time: Duration) -> io::Result<Offer> {
    #[derive(Deserialize)]
    struct Answer {
        accepted: u64,
    }
    let (began, began_us) = (Instant::now(), unix_micros());
    let mut sum = Offer::default();
    let mut late = Vec::new();
    let mut idle = Vec::new();
    let mut pending: JoinSet<io::Result<(Http, u64)>> = JoinSet::new();
    let done = |sum: &mut Offer, idle: &mut Vec<Http>, answered| -> io::Result<()> {
        let (http, accepted) = Result::<io::Result<_>, _>::map_err(answered, io::Error::other)??;
        sum.accepted += accepted;
        idle.push(http);
        Ok(())
    };
    for request in 0.. {
        let due = Duration::from_micros(request * 1_000_000 / REQUESTS);
        if due >= time {
            break;
        }
        sleep_until(began + due).await;
        late.push(u64::try_from((began.elapsed() - due).as_micros()).unwrap_or(u64::MAX));
        while let Some(answered) = pending.try_join_next() {
            done(&mut sum, &mut idle, answered)?;
        }
        let count = rate * (request + 1) / REQUESTS - rate * request / REQUESTS;
        sum.items += count;
        if pending.len() >= CONNECTIONS {
            sum.unsent += count;
            continue;
        }
        let (user, n) = (request % USERS as u64, rate * request / REQUESTS + 1);
        let at_us = began_us + request * 1_000_000 / REQUESTS;
        let path = format!("/push?user={user}&n={n}&count={count}&at_us={at_us}");
        let http = idle.pop();
        pending.spawn(async move {
            let mut http = match http {
                Some(http) => http,
                None => Http::connect(address).await?,
            };
            let (_, body) = http.request("POST", &path, "").await?;
            let Answer { accepted } = serde_json::from_slice(&body)?;
            Ok((http, accepted))
        });
    }
    sum.took = began.elapsed().max(time);
    while let Some(answered) = pending.join_next().await {
        done(&mut sum, &mut idle, answered)?;
    }
    sum.late = Latencies::new(late).at(990);
    Ok(sum)
}

/// Waits until the server holds nothing, and at most twice as long as it may take. Returns how long that took.
async fn recovery(server: &Server, within_millis: f64) -> Result<Duration, RunError> {
    let began = Instant::now();
    let within = Duration::from_secs_f64(2.0 * within_millis / 1000.0);
    loop {
        let stats = server.stats().await?;
        let is_idle = stats.held() == 0 && stats.frames_waiting == 0;
        if is_idle || began.elapsed() > within {
            return Ok(began.elapsed());
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Broadcasts a few items until each client receives them in time, and at most twice as long as that may take. Returns how
/// many.
async fn back(
    server: &Server,
    received: &Received,
    after: u64,
    within_millis: f64,
) -> Result<u64, RunError> {
    let (began, mut items) = (Instant::now(), 0);
    let within = Duration::from_secs_f64(2.0 * within_millis / 1000.0);
    while began.elapsed() <= within
        && !received.positions.iter().all(|position| position.lock().back.is_some())
    {
        let after = after + items;
        let path = format!("/broadcast?user=0&after={after}&rate={AFTERWARDS}&millis=100&pad=0");
        items += server.get::<Offered>(&path).await?.offered;
    }
    Ok(items)
}

/// Joins the topic of a user, receives items at most at a pace, and connects again when it is closed.
async fn listen(
    address: SocketAddr,
    user: usize,
    number: usize,
    pace: Option<u64>,
    received: Arc<Received>,
) {
    for visit in 0.. {
        // As one of the two clients of the first user, whose topic a broadcast has: that is the one whose items the
        // server has in the record of an end.
        let name = format!("{}.{number}-{visit}", number % 2);
        let connecting = Client::connect(address, Transport::WebSocket, &name);
        let Ok(Ok(mut client)) = timeout(PATIENCE, connecting).await else { break };
        let join = format!(r#"["1","1","user:{user}","phx_join",{{}}]"#);
        if client.send(&join).await.is_err() {
            break;
        }
        match read(&mut client, pace, number, &received).await {
            Ended::Closed(1011) | Ended::Broken => {
                let Some(end) = end_of(address, &name).await else { break };
                received.positions[number].lock().closed(end.broadcast);
                received.closes.fetch_add(1, Relaxed);
            }
            _ => break,
        }
    }
    received.lost.fetch_add(1, Relaxed);
}

/// What the server has recorded of a connection that it has closed.
async fn end_of(address: SocketAddr, name: &str) -> Option<End> {
    let path = format!("/ended?connection={name}");
    let asking = async {
        loop {
            if let Ok(mut http) = Http::connect(address).await
                && let Ok((200, body)) = http.request("GET", &path, "").await
                && let Ok(Some(end)) = serde_json::from_slice(&body)
            {
                return end;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asking).await.ok()
}

async fn read(client: &mut Client, pace: Option<u64>, number: usize, received: &Received) -> Ended {
    #[derive(Deserialize)]
    struct Item {
        k: u64,
        at_us: u64,
    }
    #[derive(Deserialize)]
    struct At {
        k: u64,
    }
    let (mut began, mut count) = (Instant::now(), 0);
    loop {
        let text = match client.receive().await {
            Ok(text) => text,
            Err(ended) => return ended,
        };
        let invalid = || Ended::Invalid(String::from_utf8_lossy(&text).into_owned());
        let Ok((_, _, _, event, payload)) = serde_json::from_slice::<Message<'_>>(&text) else {
            return invalid();
        };
        if event == "at" {
            let Ok(At { k }) = serde_json::from_str(payload.get()) else { return invalid() };
            received.positions[number].lock().subscribed(k);
        }
        if event != "item" {
            continue;
        }
        let Ok(Item { k, at_us }) = serde_json::from_str(payload.get()) else { return invalid() };
        let (age, over) = (unix_micros().saturating_sub(at_us), received.over_us.load(Relaxed));
        {
            let mut position = received.positions[number].lock();
            position.item(k);
            if over == 0 || at_us < over {
                received.ages.lock().push(age);
            } else if u128::from(age) <= IN_TIME.as_micros() {
                position.back.get_or_insert_with(Instant::now);
            }
        }
        received.items.fetch_add(1, Relaxed);
        let Some(pace) = pace else { continue };
        if count == 0 {
            began = Instant::now();
        }
        count += 1;
        // In steps of ten milliseconds, for the timer is not finer than one.
        let due = Duration::from_micros(count * 1_000_000 / pace);
        let ahead = due.saturating_sub(began.elapsed());
        if ahead > Duration::from_millis(10) {
            sleep(ahead).await;
        }
    }
}

fn table(all: &[Measured]) -> String {
    let mut text = String::from(
        "| by | offered | items offered/s | received/s | p50 | p99 | waits at most | refused | how | memory, at most | \
         recovered in |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |\n",
    );
    for row in all {
        let Measured { stats, p50, p99, waits, .. } = row;
        let delivered = row.delivered as f64 / row.offer.took.as_secs_f64();
        let (way, how) = match row.way {
            Way::Push => ("`POST /push`", format!("{} answered with 503", stats.refused_full)),
            Way::Pipeline => ("pipeline", format!("{} returned by `try_push`", stats.refused_full)),
            Way::Broadcast => (
                "broadcast",
                format!(
                    "{} times a socket was closed with 1011 and came back: {} frames dropped, {} while the client was away",
                    stats.closed_slow,
                    stats.frames_dropped,
                    row.missed.saturating_sub(stats.frames_dropped)
                ),
            ),
        };
        writeln!(
            text,
            "| {way} | {:.2} × | {:.0} | {delivered:.0} | {p50:.0} ms | {p99:.0} ms | {waits:.0} ms | {:.1} % | {how} | \
             {:.0} MiB | {:.2} s |",
            row.times_offered(),
            row.offered(),
            row.refused(),
            row.memory as f64 / 1024.0 / 1024.0,
            row.recovered.as_secs_f64()
        )
        .expect("a String takes any text");
    }
    text
}

/// The text with another table.
fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn panels(all: &[Measured]) -> [Panel; 2] {
    let panel = |title, y, value: fn(&Measured) -> f64| {
        let names =
            [(Way::Push, "POST /push"), (Way::Pipeline, "pipeline"), (Way::Broadcast, "broadcast")];
        let curves = names.map(|(way, name)| {
            let mut curve = Curve::new(name);
            let rows = all.iter().filter(|row| row.way == way);
            curve.points.extend(rows.map(|row| (row.times_offered(), value(row))));
            curve
        });
        Panel { title, x: "times what can be delivered", y, curves: curves.into() }
    };
    [
        panel("The time until delivery, 99th percentile", "milliseconds", |row| row.p99),
        panel("What is refused", "percent of what is offered", Measured::refused),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_is_replaced() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(replaced(&text, "new\n"), Some(expected));
        assert_eq!(replaced("no table", "new\n"), None);
    }

    /// Ten items were offered, of which seven were accepted and delivered.
    fn measured(way: Way) -> Measured {
        let (offer, stats) = match way {
            Way::Broadcast => {
                let stats = Stats { frames_dropped: 5, closed_slow: 2, ..Stats::default() };
                (Offer { items: 10, ..Offer::default() }, stats)
            }
            Way::Push | Way::Pipeline => {
                let stats = Stats { begun: 10, accepted: 7, refused_full: 3, ..Stats::default() };
                (Offer { items: 10, accepted: 7, ..Offer::default() }, stats)
            }
        };
        let is_broadcast = way == Way::Broadcast;
        Measured {
            way,
            capacity: 10,
            offered: 10,
            by_close: if is_broadcast { 6 } else { 0 },
            tail: 0,
            offer: Offer { took: Duration::from_secs(1), ..offer },
            delivered: 7,
            received: if is_broadcast { 92 } else { 7 },
            missed: if is_broadcast { 8 } else { 0 },
            faults: 0,
            closes: stats.closed_slow,
            lost: 0,
            stats,
            p50: 1.0,
            p99: 1000.0,
            waits: 600.0,
            memory: 20,
            memory_bound: 20,
            recovered: Duration::from_millis(600),
            is_long: false,
        }
    }

    #[test]
    fn every_sum_and_every_bound_is_checked() {
        type Change = fn(&mut Measured);
        let of_all: [Change; 7] = [
            |row| row.offer.unsent = 1,
            |row| row.faults = 1,
            |row| row.lost = 1,
            |row| row.closes += 1,
            |row| row.p99 = 1201.0,
            |row| row.memory = 21,
            |row| row.recovered = Duration::from_millis(1201),
        ];
        let of_items: [Change; 6] = [
            |row| row.stats.begun -= 1,
            |row| row.stats.refused_full -= 1,
            |row| row.offer.accepted += 1,
            |row| row.received -= 1,
            |row| row.received += 1,
            |row| row.missed = 1,
        ];
        let of_broadcasts: [Change; 4] = [
            |row| row.received -= 1,
            |row| row.tail = 1,
            |row| row.stats.frames_dropped = 7,
            |row| row.by_close = 9,
        ];
        for way in Way::value_variants() {
            assert_eq!(measured(*way).faults(), [""; 0]);
            let more: &[Change] = if *way == Way::Broadcast { &of_broadcasts } else { &of_items };
            for (index, change) in of_all.iter().chain(more).enumerate() {
                let mut row = measured(*way);
                change(&mut row);
                assert_eq!(row.faults().len(), 1, "{way:?}, {index}: {:?}", row.faults());
            }
        }
        let slow = Measured {
            waits: 1500.0,
            p99: 1.0,
            recovered: Duration::from_millis(2001),
            ..measured(Way::Push)
        };
        assert_eq!(slow.faults(), [""; 0]);
        assert_eq!(Measured { is_long: true, ..slow }.faults().len(), 1, "more than two seconds");
        let mut late = measured(Way::Push);
        (late.p99, late.offer.late) = (1300.0, 100.0);
        assert_eq!(late.faults(), [""; 0], "the source was late");
    }

    #[test]
    fn a_gap_on_a_connection_is_a_fault_and_one_between_two_is_missed() {
        let mut position = Position::default();
        position.subscribed(2);
        (3..6).for_each(|k| position.item(k));
        // 6 and 7 were dropped with the connection, and 8 was broadcast while there was none.
        position.closed(7);
        position.item(9);
        position.subscribed(8);
        assert_eq!((position.missed, position.by_close, position.faults), (2 + 3, 2, 0));
        position.item(11);
        assert_eq!((position.missed, position.faults), (2 + 3, 1), "10 is lost");
        position.item(11);
        assert_eq!((position.missed, position.faults), (2 + 3, 2), "twice");
        position.closed(11);
        position.item(10);
        assert_eq!((position.missed, position.faults), (2 + 3, 3), "again on another connection");
    }

    #[test]
    fn an_item_that_was_broadcast_after_the_subscription_has_to_arrive() {
        for first_is_the_answer in [true, false] {
            let mut position = Position::default();
            if first_is_the_answer {
                position.subscribed(4);
                position.item(6);
            } else {
                position.item(6);
                position.subscribed(4);
            }
            assert_eq!(position.faults, 1, "5 is lost");
            position.item(7);
            assert_eq!(position.faults, 1);
        }
    }
}
