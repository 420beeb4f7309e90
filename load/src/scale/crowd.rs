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
    client::{Client, Crowd as Sockets},
    error::LoadError,
};

/// How long connecting may take, and how long frames may stay away before they count as missing.
const WITHIN: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(15);

/// The official client's time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Sockets that are joined in at the same time.
const AT_ONCE: usize = 100;

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
}

/// Runs until the standard input ends. Says `joined`, and for each line with a number of frames `collecting`, and
/// then how many have arrived, and their ages in microseconds.
pub(crate) fn run(asked: &Crowd) -> Result<(), LoadError> {
    descriptors::raise();
    let topics = |n: usize| vec![format!("user:{}", asked.first + n * asked.step)];
    let sockets =
        Sockets { sockets: asked.sockets, at_once: AT_ONCE, topics: &topics, within: WITHIN };
    let mut client = Client::join(asked.address, sockets)?;
    client.send_heartbeats(HEARTBEAT);
    client.wait_at_most(PATIENCE);
    println!("joined");
    let (sender, asks) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if line.parse::<u64>().is_ok_and(|frames| sender.send(frames).is_err()) {
                return;
            }
        }
    });
    loop {
        match asks.try_recv() {
            Ok(expected) => {
                println!("collecting");
                let frames = match client.collect(expected, true) {
                    Ok(arrived) => arrived.frames,
                    Err(LoadError::Missing { arrived, .. }) => arrived,
                    Err(error) => return Err(error),
                };
                let ages: Vec<_> = client.take_ages().iter().map(u64::to_string).collect();
                println!("{frames} {}", ages.join(" "));
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
    ) -> Result<Self, LoadError> {
        let mut child = Command::new(env::current_exe()?)
            .args(["crowd", "--address", &address.to_string()])
            .args(["--first", &first.to_string(), "--step", &step.to_string()])
            .args(["--sockets", &sockets.to_string()])
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

    /// How many frames have arrived, and their ages in microseconds.
    pub(super) fn collected(&mut self) -> Result<(u64, Vec<u64>), LoadError> {
        let line = self.line()?;
        let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
        let frames = numbers.next().ok_or(LoadError::Closed)?;
        Ok((frames, numbers.collect()))
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
