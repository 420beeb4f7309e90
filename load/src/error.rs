//! Errors of a measurement.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Why a measurement failed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// An I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A program did not start.
    #[error("cannot start {program}")]
    NoServer {
        /// The program.
        program: PathBuf,
        /// The cause, if known.
        #[source]
        source: Option<io::Error>,
    },
    /// The server refused a socket or a join.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server closed a socket.
    #[error("the server closed a socket")]
    Closed,
    /// The request that starts the load failed.
    #[error("the request that starts the load failed: {0}")]
    Request(String),
    /// Not all sockets joined in time.
    #[error("{joined} of {of} sockets joined within {within:?}")]
    NotJoined {
        /// The number of joined sockets.
        joined: usize,
        /// The expected number.
        of: usize,
        /// The time limit.
        within: Duration,
    },
    /// Frames are missing.
    #[error("{arrived} of {of} frames arrived")]
    Missing {
        /// The number of arrived frames.
        arrived: u64,
        /// The expected number.
        of: u64,
    },
    /// A pipeline could not be started.
    #[error(transparent)]
    Start(#[from] pipeline_core::builder::StartError),
    /// A stage ended too early.
    #[error("a stage ended: {0}")]
    Stage(String),
    /// A durable source failed.
    #[error("a durable source failed")]
    Broker(#[source] pipeline_sources::BrokerError),
    /// A file has no table to replace.
    #[error("{0} has no table of this kind")]
    NoTable(PathBuf),
    /// Targets are not met.
    #[error("{missed} of {of} targets are not met")]
    NotMet {
        /// The number of rows whose targets are not met.
        missed: usize,
        /// The number of rows with a target.
        of: usize,
    },
    /// The figures could not be serialized.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}
