//! A stage with a state that is not `Send`.

use std::rc::Rc;

use pipeline_core::{ExitReason, stage::Consumer, subscription::Subscription};

struct Count(Rc<u64>);

impl Consumer for Count {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }
}

fn main() {}
