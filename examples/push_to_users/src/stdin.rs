//! Pushes from standard input.

use std::{io, thread};

use pipeline_example_support::complain;
use tokio::runtime::Handle;

use crate::{
    intake::Intake,
    lines::{PushLine, PushLines},
};

/// Reads standard input to its end, in a separate thread. It blocks while the queue is full, and so does
/// the writer of the pipe.
///
/// A read cannot be interrupted, so the thread ends with the process; it holds only items that are
/// already in the queue.
pub fn read(intake: Intake) {
    let runtime = Handle::current();
    thread::spawn(move || {
        let (mut accepted, mut refused) = (0_u64, 0_u64);
        for line in PushLines::new(io::stdin().lock()) {
            match line {
                Ok(PushLine { push: Ok(push), .. }) => {
                    let report = |refusal: &_| complain(format!("stdin: {refusal}, trying again"));
                    if !runtime.block_on(intake.accept_when_possible(push, report)) {
                        break;
                    }
                    accepted += 1;
                }
                Ok(PushLine { number, push: Err(fault) }) => {
                    complain(format!("stdin: line {number}: {fault}"));
                    refused += 1;
                }
                Err(error) => {
                    complain(format!("stdin: {error}"));
                    break;
                }
            }
        }
        complain(format!("stdin: ended, {accepted} accepted, {refused} refused"));
    });
}
