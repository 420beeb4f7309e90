//! Functions as consumers.

use std::{fmt, future::Future, marker::PhantomData, vec};

use tokio::{sync::watch, task::coop};

use crate::{
    exit::ExitReason,
    stage::{Consumer, ConsumerHandle, Phase, StageContext},
    subscription::Subscription,
    wiring::Unprocessed,
};

/// The return type of a [`for_each`] function: nothing, or a `Result` whose error ends the stage.
///
/// ```
/// use pipeline_core::{ExitReason, step::Outcome};
/// # use pipeline_core::{
/// #     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
/// # };
///
/// /// The result of a mailer.
/// struct Answer(u16);
///
/// impl Outcome for Answer {
///     fn outcome(self) -> Result<(), ExitReason> {
///         match self.0 {
///             200..300 => Ok(()),
///             code => Err(ExitReason::failed(format!("the mailer says {code}"))),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let send = for_each(async |_mail: &str| Answer(503));
/// let mut pipeline = Pipeline::builder("mails")
///     .producer(from_iter(["to Ada"]))
///     .consumer(send, SubscribeOptions::new())
///     .start()?;
/// let report = pipeline.join().await;
/// let failure = report.failure().ok_or("all went well")?;
/// assert_eq!(failure.reason.to_string(), "failed: the mailer says 503");
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a function that handles events returns nothing or a `Result<(), _>`, but not `{Self}`",
    label = "returns `{Self}`",
    note = "the error of the result ends the stage; it is an `ExitReason` or can be turned into one, as any error can by `?`"
)]
pub trait Outcome {
    /// The outcome as the result of a callback.
    ///
    /// # Errors
    ///
    /// The error of the outcome.
    fn outcome(self) -> Result<(), ExitReason>;
}

impl Outcome for () {
    fn outcome(self) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl<R: Into<ExitReason>> Outcome for Result<(), R> {
    fn outcome(self) -> Result<(), ExitReason> {
        self.map_err(Into::into)
    }
}

/// Creates a consumer that calls an async function with each event, one after the other.
///
/// When the function fails, the stage ends, and the events behind the failed one are reported as
/// held. The same happens when the pipeline stops, which is checked between two events.
///
/// Each event is passed to a clone of the function, because an async closure with captures can be
/// called only once. So its captures have to be `Clone`, such as an `Arc`, a pool or a sender, and
/// changes that one call makes to them are lost: for a stage with state, implement
/// [`Consumer`](crate::stage::Consumer).
///
/// ```
/// use pipeline_core::{ExitReason, step::for_each};
///
/// let print = for_each(async |line: String| println!("{line}"));
///
/// // A function that can fail and end the stage.
/// let parse = for_each(async |line: String| {
///     let number: u64 = line.parse()?;
///     println!("{number}");
///     Ok::<_, ExitReason>(())
/// });
///
/// // A function with a capture.
/// let prefix = String::from("> ");
/// let quote = for_each(async move |line: String| println!("{prefix}{line}"));
/// # fn consumer<C: pipeline_core::stage::Consumer>(_: C) {}
/// # consumer(print); consumer(parse); consumer(quote);
/// ```
pub fn for_each<E, F, Fut>(function: F) -> ForEach<E, F>
where
    E: Send + 'static,
    F: FnOnce(E) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: Outcome> + Send,
{
    ForEach { function, rest: Vec::new().into_iter(), begun: false, phase: None }
}

/// The consumer returned by [`for_each`].
#[must_use]
pub struct ForEach<E, F> {
    function: F,
    /// The events of the chunk that are still to be handled.
    rest: vec::IntoIter<E>,
    /// Whether the function is running.
    begun: bool,
    phase: Option<watch::Receiver<Phase>>,
}

impl<E, F> ForEach<E, F> {
    /// The reason to end although there are more events, if there is one.
    fn ends_now(&self) -> Option<ExitReason> {
        let phase = self.phase.as_ref()?;
        // Checking for a change is cheaper than reading the phase.
        if phase.has_changed().unwrap_or(true) { phase.borrow().ends_now() } else { None }
    }
}

#[diagnostic::do_not_recommend]
impl<E, F, Fut> Consumer for ForEach<E, F>
where
    E: Send + 'static,
    F: FnOnce(E) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: Outcome> + Send,
{
    type Event = E;

    fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
        self.phase = Some(context.phase.clone());
        Ok(())
    }

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        self.rest = events.into_iter();
        while self.rest.len() > 0 {
            // A taken event counts as begun: the stage may be killed at any await.
            coop::consume_budget().await;
            let Some(event) = self.rest.next() else { break };
            self.begun = true;
            let outcome = (self.function.clone())(event).await.outcome();
            // After a graceful end, the event is done.
            self.begun = outcome.as_ref().is_err_and(|reason| !reason.is_graceful());
            outcome?;
            if let Some(reason) = self.ends_now() {
                return Err(reason);
            }
        }
        Ok(())
    }

    fn unprocessed(&self) -> Option<Unprocessed> {
        Some(Unprocessed { pending: self.rest.len(), in_progress: usize::from(self.begun) })
    }
}

impl<E, F> fmt::Debug for ForEach<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForEach")
    }
}

/// Creates a consumer that calls an async function with each chunk of events, one after the other.
///
/// A chunk has at most `max_demand - min_demand` events, and at least one. Each is passed to a
/// clone of the function, as with [`for_each`].
///
/// ```
/// use pipeline_core::step::for_each_batch;
///
/// let store = for_each_batch(async |rows: Vec<u64>| println!("{} rows", rows.len()));
/// # fn consumer<C: pipeline_core::stage::Consumer>(_: C) {}
/// # consumer(store);
/// ```
pub fn for_each_batch<E, F, Fut>(function: F) -> ForEachBatch<E, F>
where
    E: Send + 'static,
    F: FnOnce(Vec<E>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: Outcome> + Send,
{
    ForEachBatch { function, event: PhantomData }
}

/// The consumer returned by [`for_each_batch`].
#[must_use]
pub struct ForEachBatch<E, F> {
    function: F,
    event: PhantomData<fn(E)>,
}

#[diagnostic::do_not_recommend]
impl<E, F, Fut> Consumer for ForEachBatch<E, F>
where
    E: Send + 'static,
    F: FnOnce(Vec<E>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: Outcome> + Send,
{
    type Event = E;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        (self.function.clone())(events).await.outcome()
    }
}

impl<E, F> fmt::Debug for ForEachBatch<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForEachBatch")
    }
}
