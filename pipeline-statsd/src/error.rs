//! Errors of setting up a recorder. There are none afterwards: failures of the sink are counted and
//! logged, and recording cannot fail.

use std::io;

/// The error of [`StatsdRecorder::udp`](crate::StatsdRecorder::udp).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The address cannot be parsed.
    #[error(
        "the address of the statsd receiver has to be a host and a port, for example 127.0.0.1:8125"
    )]
    Invalid(#[source] io::Error),

    /// The receiver's name could not be resolved. Resolution is retried, so this is only logged.
    #[error("could not resolve the address of the statsd receiver")]
    Resolve(#[source] io::Error),

    /// The receiver's name exists but has no address. Resolution is retried, so this is only logged.
    #[error("the name of the statsd receiver resolved to no addresses")]
    NoAddress,

    /// No local socket could be bound for any of the receiver's addresses.
    #[error("could not bind a local udp socket")]
    Bind(#[source] io::Error),

    /// There is no route to the receiver. Connecting is retried, so this is only logged.
    #[error("no route to the statsd receiver")]
    Connect(#[source] io::Error),
}

impl UdpError {
    /// The error and its cause.
    pub(crate) fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// The error of [`StatsdBuilder::build`](crate::StatsdBuilder::build).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The flush interval is zero.
    #[error("the flush interval is zero")]
    ZeroInterval,

    /// The maximum size of a packet is zero.
    #[error("the maximum size of a packet is zero")]
    ZeroPacket,

    /// The maximum number of samples of a histogram is zero.
    #[error("the maximum number of histogram samples is zero")]
    ZeroSamples,

    /// A sample rate is not above 0 and at most 1.
    #[error("a sample rate is not above 0 and at most 1")]
    SampleRate,

    /// The idle time of series is zero.
    #[error("the idle time of series is zero")]
    ZeroIdle,

    /// The maximum number of series is zero.
    #[error("the maximum number of series is zero")]
    ZeroSeries,

    /// The flush thread could not be started.
    #[error("could not start the flush thread")]
    Thread(#[source] io::Error),
}

/// The error of [`StatsdBuilder::install`](crate::StatsdBuilder::install).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The recorder could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),

    /// The process already has a recorder, which cannot be replaced.
    #[error("a metrics recorder is already installed")]
    AlreadyInstalled,
}
