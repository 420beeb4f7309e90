//! A StatsD recorder for the [`metrics`] facade.
//!
//! Recording takes an atomic operation or a short lock. A dedicated thread turns the recorded values
//! into StatsD lines once per interval, packs them into as few packets as possible, and sends them over
//! [UDP](StatsdRecorder::udp), a Unix socket (`StatsdRecorder::unix`) or any other [`cadence`]
//! [sink](StatsdRecorder::sink). The traffic therefore grows with the number of series, not with the
//! number of events. A flush spreads its packets over time, so that the receiver's buffer has room for
//! them. A server that is down or too slow loses packets, which are counted; recording never waits for
//! it.
//!
//! ```
//! use std::{net::UdpSocket, time::Duration};
//!
//! use metrics::{Unit, counter, describe_histogram, histogram};
//! use pipeline_statsd::StatsdRecorder;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let server = UdpSocket::bind("127.0.0.1:0")?; // stands for the StatsD server at port 8125
//!     let statsd = StatsdRecorder::udp(server.local_addr()?)?
//!         .prefix("push")
//!         .tag("region", "eu")
//!         .flush_every(Duration::from_secs(1))
//!         .install()?;
//!
//!     describe_histogram!("ws.push_time", Unit::Milliseconds, "enqueue to socket");
//!     counter!("ws.joins", "result" => "ok").increment(1);
//!     histogram!("ws.push_time").record(0.75);
//!     drop(statsd); // sends what is left
//!
//!     let mut packet = [0; 2000];
//!     let (bytes, _) = server.recv_from(&mut packet)?;
//!     let lines = std::str::from_utf8(&packet[..bytes])?;
//!     assert!(lines.contains("push.ws.joins:1|c|#region:eu,result:ok"));
//!     assert!(lines.contains("push.ws.push_time:0.75|ms|#region:eu"));
//!     Ok(())
//! }
//! ```
//!
//! # What is there
//!
//! All types are at the root of the crate.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`StatsdRecorder`] | the recorder, and where its lines go: [`udp`](StatsdRecorder::udp), `unix`, [`sink`](StatsdRecorder::sink) |
//! | [`StatsdBuilder`] | its options: names and tags, intervals, sampling, limits |
//! | [`StatsdFlusher`] | the thread that sends; a flush [by hand](StatsdFlusher::flush), and the last one on drop |
//! | [`FlushReport`] | what a flush has sent and lost |
//! | [`Dialect`] | DogStatsD, or the original StatsD |
//! | [`BuildError`], [`InstallError`], [`UdpError`] | why there is no recorder |
//! | [`cadence`] | the crate of the sinks |
//!
//! # What is sent, and when
//!
//! | recorded as | line | sent at a flush |
//! | --- | --- | --- |
//! | counter | `name:5\|c` | its increase since the last flush, if it grew |
//! | gauge | `name:1.5\|g` | its value, at every flush, from the first time it has one |
//! | histogram described with a time unit | `name:0.75\|ms` | each sample, in milliseconds |
//! | any other histogram | `name:512\|h` (`\|ms` in [`Dialect::StatsD`]) | each sample, as it was recorded |
//!
//! With a [`sample_rate`](StatsdBuilder::sample_rate), only that fraction of a histogram's samples is
//! sent, and lines carry the rate. With [`per_event`](StatsdBuilder::per_event), every value is sent at
//! once.
//!
//! Gauges are repeated because receivers such as the Datadog agent show a gap for an interval without a
//! value, and because a lost value is then corrected by the next flush. All other lines are sent once: a
//! line that the sink fails to send is lost, and counted in [`FlushReport::lines_lost`].
//!
//! Values that are not finite are ignored when they are recorded. Numbers are written without
//! exponents and with at most nine decimals, so that a nanosecond survives in seconds too.
//!
//! Times are sent in milliseconds with fractions. Histograms described in seconds, microseconds or
//! nanoseconds are converted.
//!
//! # Names and tags
//!
//! Labels become tags. Names and tags cannot break a line or inject a second one: see [`Dialect`] for
//! the characters that are kept in each position. A series has one value per tag key, and its tags are
//! sorted by key; a label overrides a tag of the builder.
//!
//! # Limits
//!
//! A series takes constant memory: names, and keys and values of labels, are truncated to 200 bytes and
//! then end in `...`. A histogram keeps at most [`histogram_samples`](StatsdBuilder::histogram_samples)
//! samples between two flushes: beyond that it keeps a uniform random choice of them, and lines carry a
//! sample rate from which the receiver computes the exact count.
//!
//! There are at most [`max_series`](StatsdBuilder::max_series) series, and
//! [`max_series_per_name`](StatsdBuilder::max_series_per_name) of one name; further ones are refused. An
//! unused series without a handle is removed after [`idle_after`](StatsdBuilder::idle_after).
//!
//! Section 8 of the file `docs/guarantees.md` in the repository lists what is promised, and what not.
//!
//! # Its own counters
//!
//! A flush that sends anything also sends counters of the flushes before it, unless
//! [`own_counters`](StatsdBuilder::own_counters) is off. Counters that the sink fails to send are sent
//! again with the next flush. They have the prefix and the tags of all series.
//!
//! | name | counts |
//! | --- | --- |
//! | `statsd.client.lines` | lines that the sink accepted, these included |
//! | `statsd.client.packets` | packets in which it accepted them; lines, if the sink receives one line at a time |
//! | `statsd.client.bytes` | bytes of these packets |
//! | `statsd.client.errors` | failed calls to the sink |
//! | `statsd.client.lines_lost` | lines that were lost in these calls |
//! | `statsd.client.lines_oversized` | lines that are longer than a packet may be |
//! | `statsd.client.samples_skipped` | samples for which the dialect has no line |
//! | `statsd.client.series_refused` | new series refused because there was no room, by the name of their metric in the tag `metric`; beyond 64 names, the others are counted as `_others` |
//! | `statsd.client.series` | a gauge: current series |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Instants and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod builder;
mod config;
mod error;
mod exporter;
mod flusher;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod histogram;
mod immediate;
mod line;
mod name;
mod pace;
mod packet;
mod recorder;
mod report;
mod series;
mod store;
mod table;
mod udp;
#[cfg(unix)]
mod unix;

pub use crate::builder::StatsdBuilder;
pub use crate::error::{BuildError, InstallError, UdpError};
pub use crate::flusher::StatsdFlusher;
pub use crate::line::Dialect;
pub use crate::recorder::StatsdRecorder;
pub use crate::report::FlushReport;

/// The crate of the sinks, in the version that this crate was built with.
pub use cadence;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
