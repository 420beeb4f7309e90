//! A cast, a call and an info of types that the stage does not handle.

use std::convert::Infallible;

use pipeline_core::{
    ExitReason,
    stage::{Consumer, ConsumerHandle, Emitter, HandleCast},
    subscription::Subscription,
};

struct Log;

struct Verbose(bool);

impl Consumer for Log {
    type Event = String;

    async fn handle_events(&mut self, _: Vec<String>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCast<Verbose> for Log {
    async fn handle_cast(
        &mut self,
        _: Verbose,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

async fn send(log: ConsumerHandle<Log>) {
    let _ = log.cast(true).await;
    let _ = log.call(Verbose(true)).await;
    let _ = log.async_info(Verbose(true));
}

fn main() {}
