//! A broadcast of events that cannot be cloned.

use pipeline_core::{Pipeline, dispatcher::BroadcastDispatcher, source::from_iter, stage::Stage};

struct Ticket(u64);

fn main() {
    let tickets = Stage::new(from_iter((0..10).map(Ticket))).dispatcher(BroadcastDispatcher::new);
    let _ = Pipeline::builder("tickets").producer_with(tickets);
}
