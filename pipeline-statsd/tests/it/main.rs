//! The recorder as a program sees it: record through the facade, look at what the sink is given.

mod conservation;
mod failing_sink;
mod flushing;
mod lines;
mod send_sync;
mod support;
mod udp;
