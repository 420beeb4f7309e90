//! A callback that holds a value that is not `Send` across an `.await`.

use std::{future::ready, rc::Rc};

use pipeline_core::{ExitReason, stage::Consumer, subscription::Subscription};

struct Print;

impl Consumer for Print {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        let count = Rc::new(1);
        ready(()).await;
        println!("{count}");
        Ok(())
    }
}

fn main() {}
