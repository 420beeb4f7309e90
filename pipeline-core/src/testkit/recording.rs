//! A consumer that records the events it receives.

use std::{convert::Infallible, fmt, sync::Arc};

use parking_lot::Mutex;

use crate::{
    exit::ExitReason,
    stage::{Consumer, Emitter, HandleInfo},
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
};

/// Creates a consumer that records the events it receives. It is automatic, with its subscriptions'
/// options.
///
/// The [module](crate::testkit) has an example.
///
/// ```
/// use pipeline_core::{Pipeline, source::from_iter, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (consumer, recording) = testkit::recording();
/// let mut pipeline = Pipeline::builder("test")
///     .producer(from_iter(0..10))
///     .consumer(consumer, SubscribeOptions::new().max_demand(8))
///     .start()?;
/// pipeline.join().await;
/// assert_eq!(recording.chunks(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
/// # Ok(())
/// # }
/// ```
pub fn recording<E: Send + 'static>() -> (RecordingConsumer<E>, Recording<E>) {
    let shared = Arc::new(Mutex::new(Recorded {
        chunks: Vec::new(),
        subscriptions: Vec::new(),
        cancelled: Vec::new(),
        infos: Vec::new(),
        terminated: None,
    }));
    let consumer = RecordingConsumer {
        shared: shared.clone(),
        demand_control: DemandControl::Automatic,
        on_events: Box::new(|_, _| Ok(())),
        stuck: false,
    };
    (consumer, Recording { shared })
}

/// The consumer returned by [`recording`].
///
/// ```
/// use pipeline_core::{
///     ExitReason, Pipeline, source::from_iter, subscription::SubscribeOptions, testkit,
/// };
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (consumer, recording) = testkit::recording::<u64>();
/// let fragile = consumer.on_events(|events, _from| {
///     if events.contains(&3) { Err(ExitReason::failed("a three")) } else { Ok(()) }
/// });
/// let mut pipeline = Pipeline::builder("test")
///     .producer(from_iter(0..10))
///     .consumer(fragile, SubscribeOptions::new().max_demand(1))
///     .start()?;
/// pipeline.join().await;
/// assert_eq!(recording.events(), [0, 1, 2, 3]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct RecordingConsumer<E> {
    shared: Arc<Mutex<Recorded<E>>>,
    demand_control: DemandControl,
    on_events: OnEvents<E>,
    stuck: bool,
}

type OnEvents<E> = Box<dyn FnMut(&[E], &Subscription) -> Result<(), ExitReason> + Send>;

/// The test's handle of a [`RecordingConsumer`]. It returns each recorded item once: the next call
/// returns later ones.
///
/// ```
/// use pipeline_core::{Pipeline, source::from_iter, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (consumer, recording) = testkit::recording();
/// let _pipeline = Pipeline::builder("test")
///     .producer(from_iter(0..))
///     .consumer(consumer.manual(), SubscribeOptions::new())
///     .start()?;
/// testkit::settle().await;
/// recording.allow(2);
/// testkit::settle().await;
/// assert_eq!(recording.events(), [0, 1]);
/// recording.allow(1);
/// testkit::settle().await;
/// assert_eq!(recording.events(), [2]);
/// # Ok(())
/// # }
/// ```
pub struct Recording<E> {
    shared: Arc<Mutex<Recorded<E>>>,
}

struct Recorded<E> {
    chunks: Vec<Vec<E>>,
    subscriptions: Vec<Subscription>,
    cancelled: Vec<(Subscription, Cancellation)>,
    infos: Vec<String>,
    terminated: Option<ExitReason>,
}

impl<E: Send + 'static> RecordingConsumer<E> {
    /// The consumer with manual demand, which [`Recording::allow`] sends.
    pub fn manual(mut self) -> Self {
        self.demand_control = DemandControl::Manual;
        self
    }

    /// Calls a function with each chunk, after it was recorded.
    pub fn on_events(
        mut self,
        act: impl FnMut(&[E], &Subscription) -> Result<(), ExitReason> + Send + 'static,
    ) -> Self {
        self.on_events = Box::new(act);
        self
    }

    /// Never returns from its first chunk.
    pub fn stuck(mut self) -> Self {
        self.stuck = true;
        self
    }
}

impl<E> Recording<E> {
    /// Asks for events on the newest subscription.
    ///
    /// # Panics
    ///
    /// If the consumer has not subscribed.
    pub fn allow(&self, events: usize) {
        self.subscription().ask(events);
    }

    /// The newest subscription.
    ///
    /// # Panics
    ///
    /// If the consumer has not subscribed.
    #[must_use]
    pub fn subscription(&self) -> Subscription {
        self.shared.lock().subscriptions.last().expect("the consumer has subscribed").clone()
    }

    /// How often it has subscribed.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.shared.lock().subscriptions.len()
    }

    /// The chunks that were handled since the last call.
    #[must_use]
    pub fn chunks(&self) -> Vec<Vec<E>> {
        std::mem::take(&mut self.shared.lock().chunks)
    }

    /// The events that were handled since the last call.
    #[must_use]
    pub fn events(&self) -> Vec<E> {
        self.chunks().into_iter().flatten().collect()
    }

    /// The subscriptions that have ended since the last call, and how.
    #[must_use]
    pub fn cancelled(&self) -> Vec<(Subscription, Cancellation)> {
        std::mem::take(&mut self.shared.lock().cancelled)
    }

    /// The texts sent to the consumer by `sync_info` and `async_info` that have arrived since the
    /// last call.
    #[must_use]
    pub fn infos(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().infos)
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn terminated(&self) -> Option<ExitReason> {
        self.shared.lock().terminated.clone()
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> Consumer for RecordingConsumer<E> {
    type Event = E;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        let outcome = (self.on_events)(&events, from);
        self.shared.lock().chunks.push(events);
        if self.stuck {
            std::future::pending::<()>().await;
        }
        outcome
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        from: &Subscription,
    ) -> Result<DemandControl, ExitReason> {
        self.shared.lock().subscriptions.push(from.clone());
        Ok(self.demand_control)
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        self.shared.lock().cancelled.push((from.clone(), ended.clone()));
        Ok(())
    }

    async fn terminate(&mut self, reason: &ExitReason) {
        self.shared.lock().terminated = Some(reason.clone());
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> HandleInfo<String> for RecordingConsumer<E> {
    async fn handle_info(
        &mut self,
        name: String,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        self.shared.lock().infos.push(name);
        Ok(())
    }
}

impl<E> Clone for Recording<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E> fmt::Debug for RecordingConsumer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordingConsumer")
    }
}

impl<E> fmt::Debug for Recording<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}
