//! The sockets of one node, in a process of their own, so that the limit of open files holds for each alone.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, TryRecvError},
    thread,
    time::Duration,
};

use pipeline_load::descriptors;

use crate::{
    client::{Age, Client, Crowd as Sockets, Returned},
    error::LoadError,
};

/// How long connecting may take, and how long frames may stay away before they count as missing.
const WITHIN: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(15);

/// How long all may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(300);

/// The official client's time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Sockets that are joined in at the same time, unless it is said.
pub(super) const AT_ONCE: usize = 100;

/// Which sockets to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Crowd {
    /// The address of the node
    #[arg(long)]
    address: SocketAddr,
    /// The number of the first user, and the distance to the next
    #[arg(long)]
    first: usize,
    #[arg(long)]
    step: usize,
    /// The number of sockets
    #[arg(long)]
    sockets: usize,
    /// How many are joined in at the same time
    #[arg(long, default_value_t = AT_ONCE)]
    at_once: usize,
}

/// What the sockets are to do.
enum Task {
    /// Count frames, until this many have arrived.
    Collect(u64),
    /// Come back, after all have been cut off.
    Return,
}

/// Runs until the standard input ends. Says `joined`. For each line with a number of frames it says `collecting`, and
/// then how many have arrived, with the time at which each was made and its age, in microseconds. For a line `cut` it
/// cuts all sockets off, and says how long they were away.
pub(crate) fn run(asked: &Crowd) -> Result<(), LoadError> {
    descriptors::raise();
    let topic = |n: usize| format!("user:{}", asked.first + n * asked.step);
    let topics = |n| vec![topic(n)];
    let Crowd { sockets, at_once, .. } = *asked;
    let sockets = Sockets { sockets, at_once, topics: &topics, within: WITHIN };
    let mut client = Client::join(asked.address, sockets)?;
    client.send_heartbeats(HEARTBEAT);
    client.wait_at_most(PATIENCE);
    println!("joined");
    let (sender, asks) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let task = match line.parse() {
                Ok(frames) => Task::Collect(frames),
                Err(_) => Task::Return,
            };
            if sender.send(task).is_err() {
                return;
            }
        }
    });
    loop {
        match asks.try_recv() {
            Ok(Task::Collect(expected)) => {
                println!("collecting");
                let frames = match client.collect(expected, true) {
                    Ok(arrived) => arrived.frames,
                    Err(LoadError::Missing { arrived, .. }) => arrived,
                    Err(error) => return Err(error),
                };
                let ages = client.take_ages();
                let ages: Vec<_> =
                    ages.iter().map(|age| format!("{} {}", age.made_at, age.micros)).collect();
                println!("{frames} {}", ages.join(" "));
            }
            Ok(Task::Return) => {
                let returned = client.cut_off(&topic, BACK_WITHIN)?;
                println!("{}", serde_json::to_string(&returned)?);
            }
            Err(TryRecvError::Empty) => client.idle()?,
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

/// Such a process. It is killed on drop.
pub(super) struct CrowdProcess {
    pub(super) sockets: usize,
    child: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl CrowdProcess {
    pub(super) fn start(
        address: SocketAddr,
        first: usize,
        step: usize,
        sockets: usize,
        at_once: usize,
    ) -> Result<Self, LoadError> {
        let mut child = Command::new(env::current_exe()?)
            .args(["crowd", "--address", &address.to_string()])
            .args(["--first", &first.to_string(), "--step", &step.to_string()])
            .args(["--sockets", &sockets.to_string(), "--at-once", &at_once.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (asks, says) = (child.stdin.take(), child.stdout.take());
        let (Some(asks), Some(says)) = (asks, says) else {
            return Err(LoadError::Stage("a process of sockets has no pipes".into()));
        };
        Ok(Self { sockets, child, asks, says: BufReader::new(says) })
    }

    /// Waits until all have joined.
    pub(super) fn joined(&mut self) -> Result<(), LoadError> {
        self.says("joined")
    }

    /// Counts frames from now on, until this many have arrived.
    pub(super) fn collect(&mut self, frames: u64) -> Result<(), LoadError> {
        writeln!(self.asks, "{frames}")?;
        self.says("collecting")
    }

    /// How many frames have arrived, and their ages.
    pub(super) fn collected(&mut self) -> Result<(u64, Vec<Age>), LoadError> {
        let line = self.line()?;
        let numbers: Vec<u64> =
            line.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let (frames, ages) = numbers.split_first().ok_or(LoadError::Closed)?;
        let (ages, _) = ages.as_chunks();
        Ok((*frames, ages.iter().map(|&[made_at, micros]| Age { made_at, micros }).collect()))
    }

    /// Closes all sockets at once.
    pub(super) fn cut_off(&mut self) -> Result<(), LoadError> {
        Ok(writeln!(self.asks, "cut")?)
    }

    /// Waits until all are back.
    pub(super) fn returned(&mut self) -> Result<Returned, LoadError> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn says(&mut self, expected: &str) -> Result<(), LoadError> {
        let line = self.line()?;
        if line == expected {
            Ok(())
        } else {
            Err(LoadError::Stage(format!(
                "the sockets of a node said {line:?} instead of {expected}"
            )))
        }
    }

    fn line(&mut self) -> Result<String, LoadError> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for CrowdProcess {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
