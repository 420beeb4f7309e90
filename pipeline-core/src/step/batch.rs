//! A stage that collects events into batches.

use std::{future::pending, time::Duration};

use crate::{
    deadline::Deadline,
    exit::ExitReason,
    stage::{Emitter, ProducerConsumer},
    subscription::Subscription,
};

/// Creates a stage that collects events into batches: a batch is emitted when it has `size` events,
/// or when its first event has waited for `within`; with [`Duration::MAX`] only the size counts.
/// The rest is emitted when the source ends.
///
/// # Panics
///
/// If the size is 0.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{
///     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("batches")
///     .producer(from_iter(0..10))
///     .batch(4, Duration::from_secs(1))
///     .consumer(for_each(async |batch: Vec<i32>| println!("{batch:?}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.join().await;
/// # Ok(())
/// # }
/// ```
pub fn batch<E>(size: usize, within: Duration) -> Batch<E> {
    assert!(size > 0, "the size of a batch must be at least 1");
    Batch { size, within, open: Vec::new(), due: None }
}

/// The stage returned by [`batch`].
#[derive(Debug)]
#[must_use]
pub struct Batch<E> {
    size: usize,
    within: Duration,
    open: Vec<E>,
    /// When the open batch has to be emitted.
    due: Option<Deadline>,
}

impl<E> Batch<E> {
    fn close(&mut self, out: &mut Emitter<'_, Vec<E>>) {
        self.due = None;
        if !self.open.is_empty() {
            out.emit(std::mem::take(&mut self.open));
        }
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> ProducerConsumer for Batch<E> {
    type In = E;
    type Out = Vec<E>;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, Vec<E>>,
    ) -> Result<(), ExitReason> {
        for event in events {
            if self.open.is_empty() {
                self.due = Some(Deadline::from_now(self.within));
            }
            self.open.push(event);
            if self.open.len() == self.size {
                self.close(out);
            }
        }
        Ok(())
    }

    async fn ready(&mut self) {
        match self.due {
            Some(due) => due.passed().await,
            None => pending().await,
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, Vec<E>>) -> Result<(), ExitReason> {
        self.close(out);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, Vec<E>>) -> Result<(), ExitReason> {
        self.close(out);
        Ok(())
    }

    fn pending(&self) -> usize {
        self.open.len()
    }
}
