//! Children of a supervisor that are controlled by a test.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason,
    supervisor::{Admission, ChildContext, Worker},
    testkit::settle,
};
use tokio::{sync::oneshot, task, time::Instant};

/// The result of a child's start.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    Run,
    Fail,
    Ignore,
    Panic,
}

/// Children that run until the test ends them, and their controller.
#[derive(Clone, Default)]
pub(crate) struct Children(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    answers: HashMap<u64, VecDeque<Answer>>,
    attempts: usize,
    started: Vec<(u64, u32)>,
    running: BTreeMap<u64, oneshot::Sender<Result<(), ExitReason>>>,
    deaf: Vec<u64>,
    notified: Vec<(u64, Instant)>,
    dropped: Vec<(u64, Instant)>,
}

impl Children {
    /// The results of the next starts for this event; the last one applies to all later starts.
    pub(crate) fn answer(&self, event: u64, answers: impl IntoIterator<Item = Answer>) {
        self.0.lock().answers.insert(event, answers.into_iter().collect());
    }

    /// Ends a child, and waits until all effects have happened.
    pub(crate) async fn end(&self, event: u64, outcome: Result<(), ExitReason>) {
        self.end_soon(event, outcome);
        settle().await;
    }

    pub(crate) fn end_soon(&self, event: u64, outcome: Result<(), ExitReason>) {
        let child = self.0.lock().running.remove(&event).expect("the child is running");
        child.send(outcome).expect("the child is waiting");
    }

    pub(crate) async fn crash(&self, event: u64) {
        self.end(event, Err(ExitReason::failed("crash"))).await;
    }

    /// The number of start attempts.
    pub(crate) fn attempts(&self) -> usize {
        self.0.lock().attempts
    }

    /// Waits for the `n`th start attempt, for a supervisor that never becomes idle.
    pub(crate) async fn attempted(&self, n: usize) {
        for _ in 0..1000 {
            if self.attempts() >= n {
                return;
            }
            task::yield_now().await;
        }
        panic!("there were {} attempts to start a child, expected {n}", self.attempts());
    }

    /// The children started since the last call: their events and restart counts.
    pub(crate) fn started(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().started)
    }

    /// The events of the running children.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.0.lock().running.keys().copied().collect()
    }

    /// Lets a child ignore the notification to stop.
    pub(crate) fn deaf(&self, event: u64) {
        self.0.lock().deaf.push(event);
    }

    /// The children that were notified to stop, and when.
    pub(crate) fn notified(&self) -> Vec<(u64, Instant)> {
        let mut notified = self.0.lock().notified.clone();
        notified.sort_unstable();
        notified
    }

    /// The children that were dropped before they completed, and when.
    pub(crate) fn dropped(&self) -> Vec<(u64, Instant)> {
        self.0.lock().dropped.clone()
    }
}

/// Records that a child was dropped before it completed.
struct Alive(Children, u64);

impl Drop for Alive {
    fn drop(&mut self) {
        let kept = &mut *self.0.0.lock();
        kept.running.remove(&self.1);
        kept.dropped.push((self.1, Instant::now()));
    }
}

impl Worker<u64> for Children {
    fn admit(&self, event: &u64, _context: &ChildContext) -> Result<Admission, ExitReason> {
        let kept = &mut *self.0.lock();
        kept.attempts += 1;
        let answer = match kept.answers.get_mut(event) {
            Some(answers) if answers.len() > 1 => answers.pop_front().unwrap(),
            Some(answers) => answers[0],
            None => Answer::Run,
        };
        match answer {
            Answer::Run => Ok(Admission::Run),
            Answer::Fail => Err(ExitReason::failed("no start")),
            Answer::Ignore => Ok(Admission::Ignore),
            Answer::Panic => panic!("no start either"),
        }
    }

    async fn run(&self, &event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        let (end, mut ended) = oneshot::channel();
        let deaf = {
            let kept = &mut *self.0.lock();
            kept.started.push((event, context.restarts()));
            kept.running.insert(event, end);
            kept.deaf.contains(&event)
        };
        let alive = Alive(self.clone(), event);
        let outcome = tokio::select! {
            outcome = &mut ended => outcome.unwrap(),
            () = context.stopping() => {
                self.0.lock().notified.push((event, Instant::now()));
                if deaf { ended.await.unwrap() } else { Err(ExitReason::Shutdown) }
            }
        };
        self.0.lock().running.remove(&event);
        std::mem::forget(alive);
        outcome
    }
}
