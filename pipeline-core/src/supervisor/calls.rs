//! The calls of a running supervisor's handle.

use std::convert::Infallible;

use super::{ChildCount, ChildId, ChildState, Supervision, TerminateError, Worker};
use crate::{
    exit::ExitReason,
    stage::{CallError, Caller, Emitter, HandleCall, StageHandle},
};

impl<E, W> StageHandle<Supervision<E, W>, E, Infallible>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    /// Starts a child by hand. It takes no slot, and sends no demand when it ends. Returns None if
    /// the worker ignores the event.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor is not running.
    ///
    /// ```
    /// use pipeline_core::{Graph, supervisor::ConsumerSupervisor};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("greetings");
    /// let greet = async |name: &String| {
    ///     println!("hello {name}");
    ///     Ok(())
    /// };
    /// let greetings = graph.consumer_supervisor("greetings", ConsumerSupervisor::new(greet));
    /// let _pipeline = graph.start()?;
    /// assert!(greetings.spawn_child("Ada".to_owned()).await?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn_child(&self, event: E) -> Result<Option<ChildId>, CallError> {
        self.call(SpawnChild(event)).await
    }

    /// Ends a child in any state and frees its slot. Returns when it has ended.
    ///
    /// # Errors
    ///
    /// [`TerminateError`] if the child or the supervisor does not exist.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph,
    ///     supervisor::{ConsumerSupervisor, TerminateError},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("jobs");
    /// let work = async |_: &u64| std::future::pending().await;
    /// let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
    /// let _pipeline = graph.start()?;
    ///
    /// let stuck = jobs.spawn_child(7).await?.ok_or("not taken on")?;
    /// jobs.terminate_child(stuck).await?;
    /// assert_eq!(jobs.terminate_child(stuck).await, Err(TerminateError::NotFound));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn terminate_child(&self, child: ChildId) -> Result<(), TerminateError> {
        self.call(TerminateChild(child)).await.unwrap_or(Err(TerminateError::NotRunning))
    }

    /// The children and their states.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor is not running.
    pub async fn children(&self) -> Result<Vec<(ChildId, ChildState)>, CallError> {
        self.call(ListChildren).await
    }

    /// The number of children.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor is not running.
    pub async fn child_count(&self) -> Result<ChildCount, CallError> {
        let children = self.children().await?;
        let running = |(_, state): &&(ChildId, ChildState)| *state == ChildState::Running;
        let active = children.iter().filter(running).count();
        Ok(ChildCount { active, workers: children.len() })
    }
}

/// The message that starts a child by hand.
#[doc(hidden)]
#[derive(Debug)]
pub struct SpawnChild<E>(E);

/// The message that ends a child.
#[doc(hidden)]
#[derive(Debug)]
pub struct TerminateChild(ChildId);

/// The message that lists the children.
#[doc(hidden)]
#[derive(Debug)]
pub struct ListChildren;

#[diagnostic::do_not_recommend]
impl<E, W> HandleCall<SpawnChild<E>> for Supervision<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Option<ChildId>;

    async fn handle_call(
        &mut self,
        SpawnChild(event): SpawnChild<E>,
        caller: &mut Caller<Option<ChildId>>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        caller.reply(self.start(event, None, None));
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<E, W> HandleCall<TerminateChild> for Supervision<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Result<(), TerminateError>;

    async fn handle_call(
        &mut self,
        TerminateChild(id): TerminateChild,
        caller: &mut Caller<Self::Reply>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        match self.children.get_mut(id) {
            None => caller.reply(Err(TerminateError::NotFound)),
            Some(child) => {
                child.terminated.push(caller.take());
                match &child.task {
                    // Its slot is freed when it has actually ended.
                    Some(task) => task.abort(),
                    None => {
                        self.children.cancel_restart(id);
                        self.child_done(id);
                        self.slots.ask();
                    }
                }
            }
        }
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<E, W> HandleCall<ListChildren> for Supervision<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Vec<(ChildId, ChildState)>;

    async fn handle_call(
        &mut self,
        _: ListChildren,
        caller: &mut Caller<Self::Reply>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        caller.reply(self.children.list());
        Ok(())
    }
}
