//! The recorder as a program sees it: record through the facade, look at what the sink is given.

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
