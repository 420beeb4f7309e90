//! Sustained attacks, and the response time of a calm client during them.
//!
//! The calm client's response time is compared with its own while the same attack goes to another
//! server in the same process: two cores are shared by the server, its attackers and the calm
//! client, so the attackers' own use of them has to be in both measurements. What differs is only
//! what the attack does within the server.
//!
//! Its median may be twice, and its 99th percentile five times, what it is then, and a few turns
//! more: a task runs until its budget is used up, by 128 small frames or by fewer large ones, so a
//! question may wait for a turn of each hostile client. The time of a turn is measured in each
//! round, on the same server, by a client that sends as much and nothing else.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use pipeline_test_support::PATIENCE;
use tokio::{runtime::Builder, time::Instant};

use crate::{
    arena::{Arena, Options, ask, calm_connection, pause},
    case::ALONE,
    client::{Client, OFFER, SOCKET, heartbeat},
};

/// The number of hostile threads.
pub(crate) const HOSTILE: usize = 2;

/// How many questions the calm client asks in each measurement.
const QUESTIONS: u64 = 100;

/// How often an attack is measured at most: another program on the machine may disturb one
/// measurement, and does not disturb all of them.
const ROUNDS: usize = 6;

/// How many turns of each hostile client are allowed in addition to the factors, for the median and
/// for the 99th percentile: the turn that has begun, the next one, and one more for the time in
/// which the system runs the hostile threads, which it does more often in the worst case.
const TURNS: [u32; 2] = [3, 12];

/// The time for which the system may run other threads before one that is ready: two cores, six
/// threads of which four are always ready, and slices of three milliseconds.
const NOISE: [Duration; 2] = [Duration::from_millis(6), Duration::from_millis(30)];

/// A sustained attack.
pub(crate) struct Storm {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// The maximum of bytes in bounded buffers meanwhile.
    pub(crate) holds: usize,
    pub(crate) options: Options,
    /// The frames of one turn of a hostile client.
    pub(crate) turn: Vec<u8>,
    pub(crate) attack: Attack,
}

/// A task's budget: a frame costs one, and one more for each 8 KiB.
pub(crate) const BUDGET: usize = 128;

/// The actions of one hostile thread, again and again until they are stopped.
pub(crate) type Attack = Box<dyn Fn(SocketAddr, &Signals) -> io::Result<()> + Send + Sync>;

/// Tells hostile threads to stop, and counts their actions.
#[derive(Default)]
pub(crate) struct Signals {
    stopped: AtomicBool,
    acts: AtomicU64,
}

impl Signals {
    pub(crate) fn is_on(&self) -> bool {
        !self.stopped.load(Relaxed)
    }

    pub(crate) fn acted(&self) {
        self.acts.fetch_add(1, Relaxed);
    }

    /// Waits until the attack is stopped.
    pub(crate) fn wait(&self) {
        while self.is_on() {
            pause(Duration::from_millis(2));
        }
    }
}

/// Runs an attack while the calm client does something.
fn during<T>(attack: &Attack, address: SocketAddr, act: impl FnOnce() -> T) -> T {
    let signals = Signals::default();
    thread::scope(|scope| {
        for _ in 0..HOSTILE {
            scope.spawn(|| {
                while signals.is_on() {
                    // A client that was closed connects again.
                    if attack(address, &signals).is_err() {
                        pause(Duration::from_micros(100));
                    }
                }
            });
        }
        while signals.acts.load(Relaxed) < HOSTILE as u64 {
            pause(Duration::from_micros(100));
        }
        let done = act();
        signals.stopped.store(true, Relaxed);
        done
    })
}

/// Response times of the calm client.
#[derive(Clone, Copy)]
struct Times {
    median: Duration,
    p99: Duration,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} and {:?}", self.median, self.p99)
    }
}

/// Measures the calm client, and the most that the server holds meanwhile.
fn measure(arena: &Arena, client: &mut Client) -> Result<(Times, usize), String> {
    let (mut times, mut held) = (Vec::new(), 0);
    for n in 0..QUESTIONS {
        let begun = Instant::now();
        ask(client, n)?;
        times.push(begun.elapsed());
        held = held.max(arena.held());
        pause(Duration::from_micros(500));
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok((Times { median: at(50), p99: at(99) }, held))
}

/// The time of a turn, of a client that sends these frames and nothing else.
fn turn(address: SocketAddr, frames: &[u8]) -> Result<Duration, String> {
    let mut client = Client::open(address, SOCKET, OFFER).map_err(|error| error.to_string())?;
    let whole = [frames, &heartbeat("turned")].concat();
    let mut shortest = PATIENCE;
    for _ in 0..3 {
        let begun = Instant::now();
        client.send(&whole).map_err(|error| error.to_string())?;
        while client.next().map_err(|error| error.to_string())?.is_not(b"turned") {}
        shortest = shortest.min(begun.elapsed());
    }
    Ok(shortest)
}

impl Storm {
    /// Attacks a server with this many worker threads.
    fn attacks(&self, workers: usize) -> Result<(), String> {
        let arena = Arena::start_with(workers, &self.options);
        let other = Arena::start_with(workers, &self.options);
        let mut client = calm_connection(arena.address);
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            // The hostile clients of the round before have gone.
            arena.is_at_rest()?;
            arena.eventually("sockets stay open", |arena| arena.endpoint.open_sockets() == 1)?;
            let turn = turn(arena.address, &self.turn)?;
            let control = during(&self.attack, other.address, || measure(&arena, &mut client))?.0;
            let passed = during(&self.attack, arena.address, || {
                let (attacked, held) = measure(&arena, &mut client)?;
                if held > self.holds {
                    return Err(format!("{held} bytes are held, of {} at most", self.holds));
                }
                let turns = TURNS.map(|turns| turn * turns * u32::try_from(HOSTILE).unwrap());
                let median = control.median * 2 + turns[0] + NOISE[0];
                let p99 = control.p99 * 5 + turns[1] + NOISE[1];
                seen.push(format!("{attacked}, and {control} without, with turns of {turn:?}"));
                let passed = attacked.median <= median && attacked.p99 <= p99;
                if passed {
                    drains(&arena)?;
                }
                Ok(passed)
            })?;
            if passed {
                if std::env::var_os("HOSTILE_TIMES").is_some() {
                    println!("{} on {workers}: {}", self.id, seen.join("; "));
                }
                arena.is_at_rest()?;
                let is_empty = |arena: &Arena| arena.endpoint.open_sockets() == 0;
                return arena.eventually("sockets stay open", is_empty);
            }
        }
        Err(format!("median and p99: {}", seen.join("; ")))
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

/// The shutdown is not delayed by the attack.
fn drains(arena: &Arena) -> Result<(), String> {
    let endpoint = arena.endpoint.clone();
    let (done, drained) = mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(endpoint.drain(Duration::from_millis(200)));
        let _ = done.send(report);
    });
    drained.recv_timeout(PATIENCE).map(drop).map_err(|_| "it does not drain".to_owned())
}

/// Sends the beginning once, then the rest without a pause, and reads all answers.
#[expect(clippy::needless_pass_by_value, reason = "they are made for it")]
pub(crate) fn flood(beginning: Vec<Vec<u8>>, again: Vec<u8>) -> Attack {
    // Many at once, so that a hostile client itself costs little.
    let times = (1 << 16) / again.len().max(1) + 1;
    let (beginning, again) = (beginning.concat(), again.repeat(times));
    Box::new(move |address, signals| {
        let Client { mut stream, .. } = Client::open(address, SOCKET, OFFER)?;
        stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        let reader = read_all(&stream)?;
        let mut left = &beginning[..];
        let mut sending = || {
            while signals.is_on() {
                if left.is_empty() {
                    left = &again;
                }
                match stream.write(left) {
                    Ok(count) => left = &left[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                signals.acted();
            }
            Ok(())
        };
        let sent = sending();
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reader.join();
        sent
    })
}

/// Reads and discards answers in another thread, until the connection ends.
fn read_all(stream: &TcpStream) -> io::Result<thread::JoinHandle<()>> {
    let mut reading = stream.try_clone()?;
    Ok(thread::spawn(move || {
        let mut answers = vec![0; 1 << 16];
        while reading.read(&mut answers).is_ok_and(|count| count > 0) {}
    }))
}

/// Connects, sends these bytes, and ends the connection as told.
pub(crate) fn connects(bytes: Vec<u8>, end: End) -> Attack {
    Box::new(move |address, signals| {
        let mut client = Client::tcp(address)?;
        let sent = client.send(&bytes);
        signals.acted();
        match end {
            End::Close => {}
            End::Reset => client.resets(),
            End::Answered => {
                sent?;
                client.finish();
                let _ = client.rest();
            }
        }
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

/// Opens this many connections with these bytes, and then says nothing.
pub(crate) fn silent(count: usize, path: Option<&'static str>, bytes: Vec<u8>) -> Attack {
    Box::new(move |address, signals| {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut client = match path {
                Some(path) => Client::open(address, path, OFFER)?,
                None => Client::tcp(address)?,
            };
            client.send(&bytes)?;
            held.push(client);
        }
        signals.acted();
        signals.wait();
        Ok(())
    })
}

/// Sends a byte on each of this many connections, then the next byte on each, and so on. A byte a
/// second on each of a thousand connections arrives as often.
pub(crate) fn drips(count: usize, bytes: Vec<u8>) -> Attack {
    Box::new(move |address, signals| {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(Client::tcp(address)?);
        }
        for byte in &bytes {
            for client in &mut clients {
                if !signals.is_on() {
                    return Ok(());
                }
                let _ = client.send(&[*byte]);
                signals.acted();
                pause(Duration::from_millis(1));
            }
        }
        Ok(())
    })
}

/// A client with small buffers, which requests much and reads nothing, or a byte now and then.
pub(crate) fn deaf(beginning: Vec<u8>, again: Vec<u8>, reads: bool) -> Attack {
    Box::new(move |address, signals| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&address.into())?;
        let mut client = Client { stream: socket.into(), head: String::new() };
        client.stream.set_read_timeout(Some(PATIENCE))?;
        client.send(&crate::client::upgrade(SOCKET, ""))?;
        client.read_head()?;
        client.send(&beginning)?;
        client.stream.set_write_timeout(Some(Duration::from_millis(20)))?;
        client.stream.set_read_timeout(Some(Duration::from_millis(1)))?;
        let mut left = &again[..];
        while signals.is_on() {
            match client.stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if left.is_empty() {
                left = &again;
            }
            signals.acted();
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
