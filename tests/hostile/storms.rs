//! Sustained attacks, and the response time of a calm client during them. `docs/spec/hostile.md` has
//! the rule.
//!
//! Each server is a process of its own, and the hostile clients are threads that run when neither
//! the servers nor the calm client want to. So the calm client waits for what its server does, and
//! hardly for anything else.

use std::{
    io,
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_test_support::PATIENCE;
use tokio::time::Instant;

use crate::{
    arena::{Times, ask, calm_connection, pause},
    case::ALONE,
    client::{Client, OFFER, SOCKET, heartbeat},
    server::{Kind, Server},
};

/// The number of hostile threads.
pub(crate) const HOSTILE: usize = 2;

/// How many questions the calm client asks in each measurement, at least.
const QUESTIONS: u64 = 100;

/// How often an attack is measured at most, and how often the calm client has to be answered in
/// time: another program on the machine may disturb some measurements.
const ROUNDS: usize = 6;
const NEEDED: usize = 4;

/// A sustained attack.
pub(crate) struct Storm {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// The maximum of bytes in the server's bounded buffers meanwhile.
    pub(crate) holds: usize,
    /// The maximum of its memory for other things: connections, channels, sessions.
    pub(crate) others: usize,
    pub(crate) server: Kind,
    pub(crate) limit: Limit,
    pub(crate) attack: Attack,
}

/// The calm client's response times that are always allowed: the factors of the control are for
/// attacks that cost the server so little that these are reached.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

impl Limit {
    pub(crate) const fn new(name: &'static str, median: u64, p99: u64) -> Self {
        let (median, p99) = (Duration::from_millis(median), Duration::from_millis(p99));
        Self { name, median, p99 }
    }

    fn longer(self, factor: f64) -> Self {
        let (median, p99) = (self.median.mul_f64(factor), self.p99.mul_f64(factor));
        Self { median, p99, ..self }
    }
}

/// An attack, and how much of it has to take place.
pub(crate) struct Attack {
    /// What is counted.
    pub(crate) unit: &'static str,
    /// How many of them come before the first measurement.
    pub(crate) before: u64,
    /// How many of them come during each measurement, at least.
    pub(crate) least: u64,
    /// The actions of one hostile thread, again and again until they are stopped.
    act: Act,
}

type Act = Box<dyn Fn(SocketAddr, &Signals) -> io::Result<()> + Send + Sync>;

impl Attack {
    pub(crate) fn new(
        unit: &'static str,
        act: impl Fn(SocketAddr, &Signals) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { unit, before: HOSTILE as u64, least: 1, act: Box::new(act) }
    }

    /// The same attack, measured after this number of acts.
    pub(crate) fn after(self, before: u64) -> Self {
        Self { before, ..self }
    }

    /// The same attack, which fails with fewer acts than this during a measurement.
    pub(crate) fn at_least(self, least: u64) -> Self {
        Self { least, ..self }
    }
}

/// Tells hostile threads to stop, and counts their acts.
#[derive(Default)]
pub(crate) struct Signals {
    stopped: AtomicBool,
    acts: AtomicU64,
    last_error: Mutex<String>,
}

impl Signals {
    pub(crate) fn is_on(&self) -> bool {
        !self.stopped.load(Relaxed)
    }

    pub(crate) fn acted(&self, times: usize) {
        self.acts.fetch_add(times as u64, Relaxed);
    }

    fn acts(&self) -> u64 {
        self.acts.load(Relaxed)
    }

    /// An attack that does not take place shows nothing.
    fn too_few(&self, acts: u64, of: u64, unit: &str) -> String {
        let error = self.last_error.lock();
        format!("no attack: {acts} of {of} {unit}; the last error of a hostile client: {error}")
    }
}

/// Runs an attack until the calm client has done something, which begins after so many acts.
fn during<T>(
    attack: &Attack,
    before: u64,
    address: SocketAddr,
    act: impl FnOnce(&Signals) -> Result<T, String>,
) -> Result<T, String> {
    let signals = Signals::default();
    let hostile = || {
        // As if on other machines: where the system has to choose, the server and the calm client
        // run first. So what is measured is the server's own order.
        rustix::process::nice(10).unwrap();
        while signals.is_on() {
            // A client that was closed connects again.
            if let Err(error) = (attack.act)(address, &signals) {
                *signals.last_error.lock() = error.to_string();
                pause(Duration::from_micros(100));
            }
        }
    };
    let waits = || {
        let begun = Instant::now();
        while signals.acts() < before {
            if begun.elapsed() > PATIENCE {
                return Err(signals.too_few(signals.acts(), before, attack.unit));
            }
            pause(Duration::from_micros(100));
        }
        Ok(())
    };
    thread::scope(|scope| {
        for _ in 0..HOSTILE {
            scope.spawn(hostile);
        }
        let done = waits().and_then(|()| act(&signals));
        signals.stopped.store(true, Relaxed);
        done
    })
}

fn are_within(times: Times, limit: Limit) -> bool {
    times.median <= limit.median && times.p99 <= limit.p99
}

/// The factor by which a server is slower because its threads have to wait for a processor, which
/// other programs use: hostile threads run after it. No more than this is their fault.
const MOST_BUSY: f64 = 4.0;

fn slower_by(before: [u64; 2], after: [u64; 2]) -> f64 {
    // Threads that have ended are missing.
    let [ran, waited] = [0, 1].map(|n| after[n].saturating_sub(before[n]) as f64);
    (1.0 + waited / ran.max(1.0)).min(MOST_BUSY)
}

/// Measures the calm client, at least until this is true.
fn measure(
    client: &mut Client,
    mut may_end: impl FnMut() -> Result<bool, String>,
) -> Result<Times, String> {
    let mut times = Vec::new();
    for n in 0.. {
        let begun = Instant::now();
        ask(client, n)?;
        times.push(begun.elapsed());
        if may_end()? && n + 1 >= QUESTIONS {
            break;
        }
        pause(Duration::from_micros(500));
    }
    Ok(Times::of(times))
}

/// Measures the calm client during the attack.
fn measure_under(attack: &Attack, signals: &Signals, client: &mut Client) -> Result<Times, String> {
    let (before, begun) = (signals.acts(), Instant::now());
    measure(client, || {
        let acts = signals.acts() - before;
        if acts < attack.least && begun.elapsed() > PATIENCE {
            return Err(signals.too_few(acts, attack.least, attack.unit));
        }
        Ok(acts >= attack.least)
    })
}

/// The calm client's response times without an attack. A machine that is too busy for them is too
/// busy to measure.
fn control(
    limit: Limit,
    mut measure: impl FnMut() -> Result<Times, String>,
) -> Result<Times, String> {
    let mut times = measure()?;
    for _ in 1..ROUNDS {
        if are_within(times, limit) {
            return Ok(times);
        }
        times = measure()?;
    }
    Err(format!("the machine is too busy: median and p99 without an attack: {times}"))
}

/// How long a server without an attack takes to drain. Its clients do not answer its closes, as
/// hostile ones do not.
fn quiet_drain() -> Result<Duration, String> {
    static TOOK: OnceLock<Result<Duration, String>> = OnceLock::new();
    let drain = || {
        let mut server = Server::start(Kind::Usual, 1)?;
        let _clients = [(); HOSTILE].map(|()| calm_connection(server.address));
        server.drains()
    };
    TOOK.get_or_init(drain).clone()
}

/// The number of small frames in a turn of each hostile client.
const TURNS: usize = HOSTILE * 128;

/// The time that these take where a small frame takes 20 µs, as the limits assume.
const TURNS_TAKE: Duration = Duration::from_micros(20 * TURNS as u64);

/// How many times turns are measured.
const MEASURED: usize = 21;

/// The factor by which a turn takes longer on this machine than the limits assume, 1 at least. It is measured on a
/// quiet server of its own: a server that answers too late does not make its limits longer.
fn machine() -> Result<f64, String> {
    let server = Server::start(Kind::Unlimited, 1)?;
    let mut client = calm_connection(server.address);
    let turns = heartbeat("1").repeat(TURNS);
    let mut times = Vec::new();
    for _ in 0..MEASURED {
        let begun = Instant::now();
        client.send(&turns).map_err(|error| format!("heartbeats cannot be sent: {error}"))?;
        for _ in 0..TURNS {
            client.next().map_err(|error| format!("{error} instead of a heartbeat's reply"))?;
        }
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(factor(times[MEASURED / 2]))
}

fn factor(turns: Duration) -> f64 {
    turns.div_duration_f64(TURNS_TAKE).clamp(1.0, MOST_BUSY)
}

#[test]
fn limits_are_longer_on_a_slow_machine_up_to_a_bound() {
    assert_eq!(factor(TURNS_TAKE / 2), 1.0);
    assert_eq!(factor(TURNS_TAKE * 2), 2.0);
    assert_eq!(factor(TURNS_TAKE * 100), MOST_BUSY);
}

impl Storm {
    /// The maximum that the memory of the server's process grows by. Its allocator needs more than
    /// it gives to others.
    pub(crate) fn memory(&self) -> usize {
        (2 << 20) + self.holds * 3 / 2 + self.others
    }

    /// Attacks a server with this many worker threads.
    fn attacks(&self, workers: usize) -> Result<(), String> {
        let (attack, machine) = (&self.attack, machine()?);
        let limit = &self.limit.longer(machine);
        let quiet_drain = quiet_drain()?;
        let mut server = Server::start(self.server, workers)?;
        let mut client = calm_connection(server.address);
        let mut controls = control(*limit, || measure(&mut client, || Ok(true)))?;
        let mut seen = format!("limits × {machine:.1}; {controls} without");
        {
            let other = Server::start(self.server, workers)?;
            let elsewhere = during(attack, HOSTILE as u64, other.address, |_| {
                control(*limit, || measure(&mut client, || Ok(true)))
            })?;
            seen += &format!(", {elsewhere} with another server under attack");
            controls.median = controls.median.max(elsewhere.median);
            controls.p99 = controls.p99.max(elsewhere.p99);
        }
        let allowed = Limit {
            median: limit.median.max(controls.median * 2),
            p99: limit.p99.max(controls.p99 * 5),
            ..*limit
        };
        let at_rest = server.peak()?;
        during(attack, attack.before, server.address, |signals| {
            let (mut passed, mut failed) = (0, 0);
            while passed < NEEDED && failed <= ROUNDS - NEEDED {
                let (acts, scheduled) = (signals.acts(), server.scheduled());
                let attacked = measure_under(attack, signals, &mut client)?;
                let acts = signals.acts() - acts;
                let slower = slower_by(scheduled, server.scheduled());
                seen += &format!("; {attacked} with {acts} {}, × {slower:.1}", attack.unit);
                let is_in_time = are_within(attacked, allowed.longer(slower));
                *(if is_in_time { &mut passed } else { &mut failed }) += 1;
            }
            let (held, memory) = (server.held()?, server.peak()? - at_rest);
            let waited = server.waited()?;
            let drain = server.drains()?;
            seen += &format!(
                "; {held} bytes held, {memory} bytes of memory, {waited} broadcasts \
                 waited, drained in {drain:?}"
            );
            let faults = [
                (passed < NEEDED, "the calm client is answered too late"),
                (
                    (self.server == Kind::Block) != (waited > 0),
                    "senders wait for clients with the policy to block, and with no other",
                ),
                (held > self.holds, "the bounded buffers hold too much"),
                (memory > self.memory(), "the memory grows too much"),
                (drain > quiet_drain * 3, "the drain takes too long"),
            ];
            match faults.into_iter().find(|(is_seen, _)| *is_seen) {
                Some((_, fault)) => Err(format!("{fault}: {seen}")),
                None => Ok(()),
            }
        })?;
        if std::env::var_os("HOSTILE_TIMES").is_some() {
            println!("{} on {workers}: {seen}", self.id);
        }
        server.comes_to_rest(0)
    }

    /// Attacks a server with one worker thread, and one with two.
    pub(crate) fn run(&self) -> Result<(), String> {
        for workers in [1, 2] {
            self.attacks(workers).map_err(|seen| {
                format!("{} ({}), {workers} workers: {seen}", self.id, self.what)
            })?;
        }
        Ok(())
    }
}

/// Sends the beginning once, then the rest without a pause, and reads all answers. Counts the bytes
/// of the answers: the server has handled what it has answered.
pub(crate) fn flood(beginning: Vec<Vec<u8>>, again: Vec<u8>) -> Attack {
    let flood = Flood::new(beginning, again);
    Attack::new("bytes of answers", move |address, signals| flood.act(address, signals, true))
}

/// The same for frames that have no answers. Counts the bytes that are sent.
pub(crate) fn unanswered_flood(beginning: Vec<Vec<u8>>, again: Vec<u8>) -> Attack {
    let flood = Flood::new(beginning, again);
    Attack::new("bytes", move |address, signals| flood.act(address, signals, false))
}

struct Flood {
    beginning: Vec<u8>,
    again: Vec<u8>,
}

impl Flood {
    #[expect(clippy::needless_pass_by_value, reason = "they are made for it")]
    fn new(beginning: Vec<Vec<u8>>, again: Vec<u8>) -> Self {
        // Many at once, so that a hostile client itself costs little.
        let times = (1 << 16) / again.len().max(1) + 1;
        Self { beginning: beginning.concat(), again: again.repeat(times) }
    }

    fn act(&self, address: SocketAddr, signals: &Signals, counts_answers: bool) -> io::Result<()> {
        let Client { mut stream, .. } = Client::open(address, SOCKET, OFFER)?;
        stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        let mut reading = stream.try_clone()?;
        let read_all = move || {
            let mut answers = vec![0; 1 << 16];
            while let Ok(count @ 1..) = reading.read(&mut answers) {
                signals.acted(if counts_answers { count } else { 0 });
            }
        };
        thread::scope(|scope| {
            scope.spawn(read_all);
            let mut left = &self.beginning[..];
            let mut sending = || {
                while signals.is_on() {
                    if left.is_empty() {
                        left = &self.again;
                    }
                    let count = match stream.write(left) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                        written => written?,
                    };
                    left = &left[count..];
                    signals.acted(if counts_answers { 0 } else { count });
                }
                Ok(())
            };
            let sent = sending();
            let _ = stream.shutdown(Shutdown::Both);
            sent
        })
    }
}

/// Connects, sends these bytes, and ends the connection as told. Counts the connections.
pub(crate) fn connects(bytes: Vec<u8>, end: End) -> Attack {
    Attack::new("connections", move |address, signals| {
        let mut client = Client::tcp(address)?;
        let sent = client.send(&bytes);
        match end {
            End::Close => {}
            End::Reset => client.resets(),
            End::Answered => {
                sent?;
                client.finish();
                client.rest().map_err(io::Error::other)?;
            }
        }
        signals.acted(1);
        Ok(())
    })
}

/// How a connection ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Closed by the client without waiting for an answer.
    Close,
    /// Reset by the client.
    Reset,
    /// After all answers.
    Answered,
}

/// Opens this many connections with these bytes, and then says nothing. Counts the connections
/// again and again, for as long as all of them are open.
pub(crate) fn silent(count: usize, path: Option<&'static str>, bytes: Vec<u8>) -> Attack {
    let attack = Attack::new("open connections", move |address, signals| {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut client = match path {
                Some(path) => Client::open(address, path, OFFER)?,
                None => Client::tcp(address)?,
            };
            client.send(&bytes)?;
            client.stream.set_nonblocking(true)?;
            held.push(client);
        }
        while signals.is_on() {
            if !held.iter().all(is_open) {
                return Err(io::Error::other("a silent connection was closed"));
            }
            signals.acted(count);
            pause(Duration::from_millis(20));
        }
        Ok(())
    });
    let all = (HOSTILE * count) as u64;
    attack.after(all).at_least(all)
}

/// Whether the server has not closed this silent connection.
fn is_open(client: &Client) -> bool {
    let peeked = client.stream.peek(&mut [0]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Sends the beginning on each of this many connections, then a byte on each, the next byte on
/// each, and so on. A byte a second on each of a thousand connections arrives as often. Counts
/// these bytes.
pub(crate) fn drips(count: usize, beginning: Vec<u8>, again: Vec<u8>) -> Attack {
    // It is measured when several bytes have come on each connection, which is not delayed, and the
    // server has handled them.
    let (first, behind) = (4 * count, 200);
    let attack = Attack::new("bytes", move |address, signals| {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = Client::tcp(address)?;
            client.send(&beginning)?;
            clients.push(client);
        }
        let bytes = again.iter().cycle().flat_map(|byte| (0..count).map(|n| (n, *byte)));
        for (sent, (n, byte)) in bytes.enumerate() {
            if !signals.is_on() {
                break;
            }
            clients[n].send(&[byte])?;
            signals.acted(1);
            if sent > first {
                pause(Duration::from_millis(1));
            }
        }
        Ok(())
    });
    attack.after((HOSTILE * (first + behind)) as u64).at_least(100)
}

/// The size of a hostile client's send buffer, so that what is sent is not only stored there.
const BUFFER: usize = 1 << 16;

/// A client with small buffers, which requests much and reads nothing, or a byte now and then. A
/// client that is not read from any more connects again. Counts the bytes of its requests.
pub(crate) fn deaf(beginning: Vec<u8>, again: Vec<u8>, reads: bool) -> Attack {
    Attack::new("bytes", move |address, signals| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.set_send_buffer_size(BUFFER)?;
        socket.connect(&address.into())?;
        let mut client = Client { stream: socket.into(), head: String::new() };
        client.stream.set_read_timeout(Some(PATIENCE))?;
        client.send(&crate::client::upgrade(SOCKET, ""))?;
        client.read_head()?;
        client.send(&beginning)?;
        client.stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        client.stream.set_read_timeout(Some(Duration::from_millis(1)))?;
        let mut left = &again[..];
        while signals.is_on() {
            // It does not learn that the server has closed, because it does not read.
            let count = client.stream.write(left)?;
            left = &left[count..];
            if left.is_empty() {
                left = &again;
            }
            signals.acted(count);
            if reads {
                let _ = client.stream.read(&mut [0]);
            }
        }
        Ok(())
    })
}

/// Runs these attacks, one after the other and next to nothing else.
pub(crate) fn withstands(storms: &[Storm]) {
    let only = std::env::var("HOSTILE_ONLY").ok();
    let storms = storms.iter().filter(|storm| only.as_ref().is_none_or(|only| only == storm.id));
    let _alone = ALONE.write();
    let failed: Vec<_> = storms.filter_map(|storm| storm.run().err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
