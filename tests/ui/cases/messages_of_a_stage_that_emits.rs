//! A handler without the type that its stage emits, which makes it a consumer's.

use std::convert::Infallible;

use pipeline_core::{
    ExitReason,
    stage::{Caller, Emitter, HandleCall, Producer, ProducerHandle},
};

struct Counter(u64);

struct Get;

impl Producer for Counter {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCall<Get> for Counter {
    type Reply = u64;

    async fn handle_call(
        &mut self,
        _: Get,
        caller: &mut Caller<u64>,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        caller.reply(self.0);
        Ok(())
    }
}

async fn ask(counter: ProducerHandle<Counter>) {
    let _ = counter.call(Get).await;
}

fn main() {}
