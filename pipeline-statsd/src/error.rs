//! What can go wrong while a recorder is set up. Nothing can afterwards: a failing sink is counted
//! and logged, and recording cannot fail.

use std::io;

/// Why [`StatsdRecorder::udp`](crate::StatsdRecorder::udp) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// What was given is no address.
    #[error("the address of the statsd receiver has to be a host and a port, as in 127.0.0.1:8125")]
    Invalid(#[source] io::Error),

    /// The receiver's name could not be resolved. It is tried again, so this is only logged.
    #[error("could not resolve the address of the statsd receiver")]
    Resolve(#[source] io::Error),

    /// The receiver's name exists and has no address. It is tried again, so this is only logged.
    #[error("the name of the statsd receiver has no address")]
    NoAddress,

    /// No local socket could be had for any of the receiver's addresses.
    #[error("could not bind a local udp socket")]
    Bind(#[source] io::Error),

    /// There is no way to the receiver. It is tried again, so this is only logged.
    #[error("there is no way to the statsd receiver")]
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

/// Why [`StatsdBuilder::build`](crate::StatsdBuilder::build) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The flush interval is zero.
    #[error("the flush interval is zero")]
    ZeroInterval,

    /// Packets are to be empty.
    #[error("the number of bytes of a packet is zero")]
    ZeroPacket,

    /// Histograms are to keep no samples.
    #[error("the number of histogram samples is zero")]
    ZeroSamples,

    /// A sample rate is not a number above 0 and up to 1.
    #[error("a sample rate is not above 0 and up to 1")]
    SampleRate,

    /// Series are to leave at once.
    #[error("the time after which series leave is zero")]
    ZeroIdle,

    /// There are to be no series.
    #[error("the number of series is zero")]
    ZeroSeries,

    /// The flush thread could not be started.
    #[error("could not start the flush thread")]
    Thread(#[source] io::Error),
}

/// Why [`StatsdBuilder::install`](crate::StatsdBuilder::install) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The recorder could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),

    /// The process has a recorder, and it is there to stay.
    #[error("a metrics recorder is already installed")]
    AlreadyInstalled,
}
