//! What can go wrong while a recorder is set up. Nothing can afterwards: a failing sink is counted
//! and logged, and recording cannot fail.

use std::io;

/// Why [`StatsdRecorder::udp`](crate::StatsdRecorder::udp) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The receiver's address could not be resolved.
    #[error("could not resolve the address of the statsd receiver")]
    Resolve(#[source] io::Error),

    /// The receiver's name exists and has no address.
    #[error("the name of the statsd receiver has no address")]
    NoAddress,

    /// No local socket could be had for any of the receiver's addresses.
    #[error("could not bind a local udp socket")]
    Bind(#[source] io::Error),

    /// The sink did not accept the address.
    #[error("could not set up the udp sink")]
    Sink(#[source] cadence::MetricError),
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

    /// Series are to leave after no flush at all.
    #[error("the number of flushes after which series leave is zero")]
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
