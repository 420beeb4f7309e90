//! A consumer that emits, without consumers of its own.

use std::convert::Infallible;

use pipeline_core::{
    ExitReason,
    stage::{Consumer, Emitter, HandleCast},
    subscription::Subscription,
};

struct Last;

impl Consumer for Last {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<Vec<u64>, ExitReason> {
        Ok(events)
    }
}

struct Another;

impl Consumer for Another {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCast<u64> for Another {
    async fn handle_cast(
        &mut self,
        message: u64,
        out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        out.emit(message);
        Ok(())
    }
}

fn main() {}
