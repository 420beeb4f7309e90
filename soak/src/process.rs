//! The server as a process, and requests to it.

use std::{env, io, net::SocketAddr, process::Command, time::Duration};

use pipeline_load::{error::LoadError, server::Server as Process, usage};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{error::Elapsed, timeout},
};

use crate::{
    client::{Http, PATIENCE},
    server::{Final, Options, Stats},
};

/// How long the server may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// A run that could not be completed.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// An I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server did not start.
    #[error(transparent)]
    Start(#[from] LoadError),
    /// The server took too long.
    #[error("the server did not answer in time")]
    Late(#[from] Elapsed),
    /// An answer of the server was not understood.
    #[error("the server sent {text:?}")]
    Answer {
        /// The answer.
        text: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// A request failed.
    #[error("{path} was answered with {status}")]
    Status {
        /// The path.
        path: String,
        /// The status of the answer.
        status: u16,
    },
    /// The run found broken promises.
    #[error("{0}")]
    Violated(String),
}

/// The server under test. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(options: &Options) -> Result<Self, RunError> {
        let mut command = Command::new(env::current_exe()?);
        command.args(options.arguments());
        let starting = spawn_blocking(move || Process::start(&mut command));
        let process = timeout(PATIENCE, starting).await?.map_err(io::Error::other)??;
        let address = process.address;
        Ok(Self { process, address })
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = i32::try_from(self.process.process()).ok().and_then(Pid::from_raw);
        Ok(kill_process(id.ok_or(io::ErrorKind::NotFound)?, signal)?)
    }

    pub(crate) fn resident(&self) -> io::Result<u64> {
        usage::resident(self.process.process())
    }

    pub(crate) fn descriptors(&self) -> io::Result<usize> {
        usage::descriptors(self.process.process())
    }

    /// The answer to a request on a connection of its own.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RunError> {
        let body = self.request(path).await?;
        serde_json::from_slice(&body).map_err(|source| RunError::Answer {
            text: String::from_utf8_lossy(&body).into_owned(),
            source,
        })
    }

    /// Makes a request whose answer does not matter.
    pub(crate) async fn request(&self, path: &str) -> Result<Vec<u8>, RunError> {
        let asking = async { Http::connect(self.address).await?.request("GET", path, "").await };
        let (status, body) = timeout(PATIENCE, asking).await??;
        let path = path.to_owned();
        if status == 200 { Ok(body) } else { Err(RunError::Status { path, status }) }
    }

    pub(crate) async fn stats(&self) -> Result<Stats, RunError> {
        self.get("/stats").await
    }

    /// Waits for the end of the process. Returns its last state.
    pub(crate) async fn ended(self) -> Result<Final, RunError> {
        let waiting = spawn_blocking(move || self.process.wait());
        let (status, printed) =
            timeout(ENDS_WITHIN, waiting).await?.map_err(io::Error::other)??;
        let last = printed.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .map_err(|source| RunError::Answer { text: format!("{status}: {printed}"), source })
    }
}
