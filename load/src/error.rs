//! What can go wrong under load.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Why something could not be measured.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A program does not start.
    #[error("{program} does not start")]
    NoServer {
        /// The program.
        program: PathBuf,
        /// Why not, if it is known.
        #[source]
        source: Option<io::Error>,
    },
    /// The server refuses a socket, or a join.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// The server has closed a socket.
    #[error("the server has closed a socket")]
    Closed,
    /// The request that begins the load has failed.
    #[error("the request for the load has failed: {0}")]
    Request(String),
    /// Not all have joined in time.
    #[error("{joined} of {of} sockets have joined within {within:?}")]
    NotJoined {
        /// How many have.
        joined: usize,
        /// How many should have.
        of: usize,
        /// How long they had.
        within: Duration,
    },
    /// Frames are missing.
    #[error("{arrived} of {of} frames have arrived")]
    Missing {
        /// How many have.
        arrived: u64,
        /// How many should have.
        of: u64,
    },
    /// A pipeline cannot be started.
    #[error(transparent)]
    Start(#[from] pipeline_core::StartError),
    /// A stage has ended too early.
    #[error("a stage has ended: {0}")]
    Stage(String),
    /// A file has no place for a table.
    #[error("{0} has no table of this kind")]
    NoTable(PathBuf),
    /// Figures cannot be written down.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}
