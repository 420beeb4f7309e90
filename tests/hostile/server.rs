//! A server in a process of its own: its memory is nothing but the server's.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    process::{self, Child, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use pipeline::ws::{Mount, mount::WhenFull};
use pipeline_test_support::{AnySocket, PATIENCE};
use tokio::{runtime::Builder, time::Instant};

use crate::arena::{Arena, Options, WAITED, pause};

/// Set in the server's process, to its options and the number of worker threads.
const INSIDE: &str = "HOSTILE_SERVER";

/// The beginning of the server's lines: the test harness writes others.
const ANSWER: &str = "server: ";

/// How often the bytes in the server's buffers are looked at.
const SAMPLED: Duration = Duration::from_millis(3);

/// The limit of a drain.
const DRAIN: Duration = Duration::from_millis(200);

/// The options of a server under a sustained attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Usual,
    /// Without the limit of frames for each client, which is then not the protection.
    Unlimited,
    /// The same with a small outbox, and with this policy.
    Disconnect,
    DropOldest,
    DropNewest,
    KeepLatest,
    Block,
}

/// The options of a mount with this policy and a small outbox.
macro_rules! policy {
    ($policy:expr) => {
        |mount: Mount<AnySocket>| {
            mount.frame_rate_limit(u32::MAX).max_outbox(64, SMALL_OUTBOX).when_full($policy)
        }
    };
}

/// The bytes in the outbox of a mount with a policy.
pub(crate) const SMALL_OUTBOX: usize = 1 << 20;

impl Kind {
    const ALL: [Self; 7] = [
        Self::Usual,
        Self::Unlimited,
        Self::Disconnect,
        Self::DropOldest,
        Self::DropNewest,
        Self::KeepLatest,
        Self::Block,
    ];

    fn options(self) -> Options {
        const BLOCK: WhenFull = WhenFull::Block { timeout: Duration::from_millis(100) };
        let mount: fn(Mount<AnySocket>) -> Mount<AnySocket> = match self {
            Self::Usual => |mount| mount,
            Self::Unlimited => |mount| mount.frame_rate_limit(u32::MAX),
            Self::Disconnect => policy!(WhenFull::Disconnect),
            Self::DropOldest => policy!(WhenFull::DropOldest),
            Self::DropNewest => policy!(WhenFull::DropNewest),
            Self::KeepLatest => policy!(WhenFull::KeepLatest),
            Self::Block => policy!(BLOCK),
        };
        Options { mount, ..Options::default() }
    }
}

/// A server in a process of its own, which ends with this.
pub(crate) struct Server {
    process: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(kind: Kind, workers: usize) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the server does not start: {error}");
        let mut process = Command::new(env::current_exe().map_err(failed)?)
            .args(["--exact", "server::a_process_may_be_a_server", "--nocapture"])
            .env(INSIDE, format!("{kind:?} {workers}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (questions, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (answered, answers) = mpsc::sync_channel(1);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    let _ = answered.send(answer.to_owned());
                }
            }
        });
        let address = ([0; 4], 0).into();
        let mut server = Self { process, questions, answers, address };
        let address = server.answer()?;
        server.address = address.parse().map_err(|_| format!("no address: {address}"))?;
        Ok(server)
    }

    fn answer(&self) -> Result<String, String> {
        // The server itself waits for no longer than half of this.
        let answer = self.answers.recv_timeout(PATIENCE * 2);
        answer.map_err(|_| "the server's process does not answer".to_owned())
    }

    fn ask(&mut self, question: &str) -> Result<String, String> {
        let asked = writeln!(self.questions, "{question}");
        asked.map_err(|error| format!("the server's process has ended: {error}"))?;
        self.answer()
    }

    fn ask_for<T: std::str::FromStr>(&mut self, question: &str) -> Result<T, String> {
        let answer = self.ask(question)?;
        answer.parse().map_err(|_| answer)
    }

    /// The most bytes that all clients together have had in the server's bounded buffers.
    pub(crate) fn held(&mut self) -> Result<usize, String> {
        self.ask_for("held")
    }

    /// The number of broadcasts that have waited for a client.
    pub(crate) fn waited(&mut self) -> Result<usize, String> {
        self.ask_for("waited")
    }

    /// Waits until this number of sockets is open and the bounded memory is free.
    pub(crate) fn comes_to_rest(&mut self, sockets: usize) -> Result<(), String> {
        self.ask_for::<usize>(&format!("rest {sockets}")).map(drop)
    }

    /// The most memory that its process has had, in bytes, as the system counts it.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak(&self) -> Result<usize, String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.map_err(|error| format!("no status of the server: {error}"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix(" kB"));
        let peak = peak.and_then(|peak| peak.trim().parse::<usize>().ok());
        peak.map(|peak| peak << 10).ok_or_else(|| format!("no peak: {status}"))
    }

    /// Other systems are not asked.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn peak(&self) -> Result<usize, String> {
        Ok(0)
    }

    /// How long its threads have run until now, and how long they have waited for a processor. Not
    /// known on other systems than Linux.
    pub(crate) fn scheduled(&self) -> [u64; 2] {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id()));
        let times = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let mut times = times.split_whitespace().filter_map(|time| time.parse::<u64>().ok());
            Some([times.next()?, times.next()?])
        });
        times.fold([0; 2], |[ran, waited]: [u64; 2], times| [ran + times[0], waited + times[1]])
    }

    /// Drains the server, and returns how long that takes.
    pub(crate) fn drains(&mut self) -> Result<Duration, String> {
        self.ask_for("drain").map(Duration::from_micros)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers the questions of the process that measures, until it ends.
fn serve(kind: Kind, workers: usize) {
    let arena = Arena::start_with(workers, &kind.options());
    println!("{ANSWER}{}", arena.address);
    let most = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                most.fetch_max(arena.held(), Relaxed);
                pause(SAMPLED);
            }
        });
        answer(&arena, &most);
        // Without waiting for the thread.
        process::exit(0);
    });
}

fn answer(arena: &Arena, most: &AtomicUsize) {
    for line in io::stdin().lines().map_while(Result::ok) {
        let answer = match line.split_once(' ') {
            Some(("rest", sockets)) => {
                let sockets: usize = sockets.parse().unwrap();
                let is_at_rest =
                    |arena: &Arena| (arena.held(), arena.endpoint.open_sockets()) == (0, sockets);
                let waited = arena.eventually("the server does not come to rest", is_at_rest);
                waited.map_or_else(|error| error, |()| sockets.to_string())
            }
            _ if line == "drain" => {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let begun = Instant::now();
                runtime.block_on(arena.endpoint.drain(DRAIN));
                begun.elapsed().as_micros().to_string()
            }
            _ if line == "waited" => WAITED.load(Relaxed).to_string(),
            _ => most.load(Relaxed).to_string(),
        };
        println!("{ANSWER}{answer}");
    }
}

/// Not a test of its own: in a process that [`Server::start`] has started, it is the server.
#[test]
fn a_process_may_be_a_server() {
    let Ok(inside) = env::var(INSIDE) else { return };
    let (name, workers) = inside.split_once(' ').unwrap();
    let kind = Kind::ALL.into_iter().find(|kind| format!("{kind:?}") == name).unwrap();
    serve(kind, workers.parse().unwrap());
}
