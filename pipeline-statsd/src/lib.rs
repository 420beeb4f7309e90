//! A StatsD recorder for the [`metrics`] facade.
//!
//! Recording touches an atomic or a short lock and nothing else; a thread of its own turns what
//! was recorded into StatsD lines once per interval, packs them into as few packets as they need,
//! and sends them over [UDP](StatsdRecorder::udp), a Unix socket (`StatsdRecorder::unix`) or any
//! other [`cadence`] [sink](StatsdRecorder::sink). What goes over the wire therefore grows with the
//! number of series, not with the number of events. A flush takes its time, so that what is sent finds
//! room at its receiver; a server that is down or too slow costs what would have been sent to it, which
//! is counted, and recording never waits for it.
//!
//! ```no_run
//! use metrics::{Unit, counter, describe_histogram, histogram};
//! use pipeline_statsd::StatsdRecorder;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let _statsd = StatsdRecorder::udp("127.0.0.1:8125")?
//!     .prefix("push")
//!     .tag("region", "eu")
//!     .flush_every(Duration::from_secs(1))
//!     .install()?; // flushes on drop
//!
//! describe_histogram!("ws.push_time", Unit::Milliseconds, "enqueue to socket");
//! counter!("ws.joins", "result" => "ok").increment(1); // push.ws.joins:1|c|#region:eu,result:ok
//! histogram!("ws.push_time").record(0.75); //             push.ws.push_time:0.75|ms|#region:eu
//! # Ok(())
//! # }
//! ```
//!
//! # What is sent, and when
//!
//! | recorded as | line | sent at a flush |
//! | --- | --- | --- |
//! | counter | `name:5\|c` | what it grew by since the last flush, if it grew |
//! | gauge | `name:1.5\|g` | its value, at every flush, from the first time it has one |
//! | histogram described with a time unit | `name:0.75\|ms` | each sample, in milliseconds |
//! | any other histogram | `name:512\|h` (`\|ms` in [`Dialect::StatsD`]) | each sample, as it was recorded |
//!
//! With a [`sample_rate`](StatsdBuilder::sample_rate), few of a histogram's samples are sent, and
//! lines carry the rate. With [`per_event`](StatsdBuilder::per_event), every value is sent at once.
//!
//! Gauges are repeated because a receiver of the Datadog kind shows a gap where an interval had no
//! value, and because a value lost on the way is then only lost until the next flush. Everything
//! else is sent once: a line that the sink refuses is counted in [`FlushReport::errors`] and gone.
//!
//! Values that are not finite are ignored when they are recorded. Numbers are written without
//! exponents and with at most nine decimals, so that a nanosecond survives in seconds too.
//!
//! Time is sent in milliseconds, fractions kept. A histogram described in seconds, microseconds
//! or nanoseconds is converted.
//!
//! # Names and tags
//!
//! Labels become tags. No name and no tag can break a line or make a second one: see [`Dialect`]
//! for which characters stay in which position. A series has one value per tag key, and its tags
//! are sorted by key; a label wins over a tag given to the builder.
//!
//! # What is bounded
//!
//! A series takes constant memory: names, and keys and values of labels, are cut at 200 bytes, and end
//! in `...` then. A histogram takes at most
//! [`histogram_samples`](StatsdBuilder::histogram_samples) samples between two flushes: beyond
//! that a uniform random choice of them is kept, and lines carry a sample rate from which the
//! receiver recovers the exact count.
//!
//! There are at most [`max_series`](StatsdBuilder::max_series) series, and
//! [`max_series_per_name`](StatsdBuilder::max_series_per_name) of one name; more are refused. A series
//! that has no handle and is not recorded into leaves after
//! [`idle_after`](StatsdBuilder::idle_after).
//!
//! # Its own counters
//!
//! A flush that sends anything also tells what the flushes before it did, unless
//! [`own_counters`](StatsdBuilder::own_counters) says no. What a flush tells and the sink does not
//! take is told by the next one. The prefix and the tags are those of all series.
//!
//! | name | counts |
//! | --- | --- |
//! | `statsd.client.lines` | lines that were sent, these included |
//! | `statsd.client.packets` | packets in which they were sent; lines, where the sink gets line by line |
//! | `statsd.client.bytes` | the bytes of those packets |
//! | `statsd.client.errors` | calls to the sink that failed |
//! | `statsd.client.lines_lost` | lines that were lost with them |
//! | `statsd.client.lines_oversized` | lines longer than a packet may be |
//! | `statsd.client.samples_skipped` | samples that the dialect has no line for |
//! | `statsd.client.events_dropped` | values for which there was no room in the queue of [`per_event`](StatsdBuilder::per_event) |
//! | `statsd.client.series_refused` | how often a series was asked for and refused, by its name in the tag `metric`; beyond 64 names the others are counted as `_others` |
//! | `statsd.client.series` | a gauge: how many series there are |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Moments and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod aggregate;
mod builder;
mod common;
mod dialect;
mod error;
mod event_queue;
mod exporter;
mod flusher;
mod health;
mod histogram;
mod idle;
mod line;
mod name;
mod own;
mod pace;
mod packet;
mod per_event;
mod random;
mod recorder;
mod report;
mod sample_rate;
mod series;
mod store;
mod table;
mod time_unit;
mod udp;
#[cfg(unix)]
mod unix;

pub use crate::builder::StatsdBuilder;
pub use crate::dialect::Dialect;
pub use crate::error::{BuildError, InstallError, UdpError};
pub use crate::flusher::StatsdFlusher;
pub use crate::recorder::StatsdRecorder;
pub use crate::report::FlushReport;

/// The crate whose sinks this one writes to, in the version it was built with.
pub use cadence;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
