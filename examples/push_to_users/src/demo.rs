//! A steady trickle of pushes for a demonstration.

use std::time::Duration;

use pipeline_example_support::complain;
use serde_json::{json, value::to_raw_value};
use tokio::time::{MissedTickBehavior, interval};

use crate::{intake::Intake, push::Push};

const EVERY: Duration = Duration::from_millis(100);

/// Pushes to users 1, 2 and 3 in turn, until the queue is closed.
pub async fn trickle(intake: Intake) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0_u64.. {
        ticks.tick().await;
        let data = to_raw_value(&json!({ "n": n, "text": format!("number {n}") }));
        let data = data.expect("a literal is JSON");
        let push = Push::now(n % 3 + 1, "push_timed".to_owned(), data);
        let report = |refusal: &_| complain(format!("demo: {refusal}, trying again"));
        if !intake.accept_when_possible(push, report).await {
            return;
        }
    }
}
