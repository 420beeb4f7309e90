//! Tests through the public API: record through the facade, check the lines in the sink.

mod arrives;
mod conservation;
mod failing_sink;
mod flushing;
mod idle;
mod lines;
mod own_counters;
mod packets;
mod per_event;
mod sample_rate;
mod send_sync;
mod series;
mod slow_server;
mod support;
mod udp;
#[cfg(unix)]
mod unix;
