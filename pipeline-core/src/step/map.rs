//! Stages that map, expand or filter single events.

use std::{fmt, marker::PhantomData};

use crate::{
    exit::ExitReason,
    stage::{Emitter, ProducerConsumer},
    subscription::Subscription,
};

/// Creates a stage that maps each event to another.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     step::{for_each, map},
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("squares")
///     .producer(from_iter(0..10))
///     .producer_consumer(map(|n| n * n), SubscribeOptions::new().max_demand(4))
///     .consumer(for_each(async |n: i32| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.join().await;
/// # Ok(())
/// # }
/// ```
pub fn map<E, T, F: FnMut(E) -> T>(function: F) -> Map<E, T, F> {
    Map { function, event: PhantomData }
}

/// The stage returned by [`map`].
#[must_use]
pub struct Map<E, T, F> {
    function: F,
    event: PhantomData<fn(E) -> T>,
}

#[diagnostic::do_not_recommend]
impl<E, T, F> ProducerConsumer for Map<E, T, F>
where
    E: Send + 'static,
    T: Send + 'static,
    F: FnMut(E) -> T + Send + 'static,
{
    type In = E;
    type Out = T;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events.into_iter().map(&mut self.function));
        Ok(())
    }
}

impl<E, T, F> fmt::Debug for Map<E, T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Map")
    }
}

/// Creates a stage that makes any number of events of each: none, one or several.
///
/// Demand stays until it is met: for events that become none the stage takes further ones, and of those
/// that become several, the ones beyond the demand wait in its buffer, while it takes no more. So it holds
/// what `max_demand` events become. The function's iterator is read to its end at once, so it must end.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     step::{flat_map, for_each},
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let words = |line: &'static str| line.split_whitespace();
/// let mut pipeline = Pipeline::builder("words")
///     .producer(from_iter(["to the", "", "screen"]))
///     .producer_consumer(flat_map(words), SubscribeOptions::new().max_demand(4))
///     .consumer(for_each(async |word| println!("{word}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.join().await;
/// # Ok(())
/// # }
/// ```
pub fn flat_map<E, I: IntoIterator, F: FnMut(E) -> I>(function: F) -> FlatMap<E, I, F> {
    FlatMap { function, event: PhantomData }
}

/// The stage returned by [`flat_map`].
#[must_use]
pub struct FlatMap<E, I, F> {
    function: F,
    event: PhantomData<fn(E) -> I>,
}

#[diagnostic::do_not_recommend]
impl<E, I, F> ProducerConsumer for FlatMap<E, I, F>
where
    E: Send + 'static,
    I: IntoIterator<Item: Send + 'static> + 'static,
    F: FnMut(E) -> I + Send + 'static,
{
    type In = E;
    type Out = I::Item;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, I::Item>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events.into_iter().flat_map(&mut self.function));
        Ok(())
    }
}

impl<E, I, F> fmt::Debug for FlatMap<E, I, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlatMap")
    }
}

/// Creates a stage that keeps the events for which the function returns `true`.
///
/// Demand for rejected events stays: the stage takes further events until it is met.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     step::{filter, for_each},
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("evens")
///     .producer(from_iter(0..10))
///     .producer_consumer(filter(|n| n % 2 == 0), SubscribeOptions::new().max_demand(4))
///     .consumer(for_each(async |n: i32| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.join().await;
/// # Ok(())
/// # }
/// ```
pub fn filter<E, F: FnMut(&E) -> bool>(function: F) -> Filter<E, F> {
    Filter { function, event: PhantomData }
}

/// The stage returned by [`filter`].
#[must_use]
pub struct Filter<E, F> {
    function: F,
    event: PhantomData<fn(E)>,
}

#[diagnostic::do_not_recommend]
impl<E, F> ProducerConsumer for Filter<E, F>
where
    E: Send + 'static,
    F: FnMut(&E) -> bool + Send + 'static,
{
    type In = E;
    type Out = E;

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        _from: &Subscription,
        out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events.into_iter().filter(&mut self.function));
        Ok(())
    }
}

impl<E, F> fmt::Debug for Filter<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}
