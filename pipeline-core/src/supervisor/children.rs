//! The children of a supervisor: their tasks, their ends and their restarts.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    mem,
    time::Duration,
};

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::{Instrument, Span};

use super::{ChildId, ChildState, Reserved, TerminateError, adaptive::Piece, waiting::Key};
use crate::{deadline::Deadline, exit::ExitReason, stage::Caller, subscription::SubscriptionId};

/// The children of a supervisor, in any state.
pub(super) struct Children<E> {
    children: foldhash::HashMap<ChildId, Child>,
    next_id: u64,
    /// The number of children started by hand.
    manual: usize,
    /// The number of other children that have left their places.
    left: usize,
    /// The children's tasks. A task owns its event, and returns it with the outcome.
    tasks: JoinSet<Finished<E>>,
    /// The child of each task, for tasks that end without a result.
    by_task: foldhash::HashMap<Id, ChildId>,
    /// Tasks that have ended and are not processed yet.
    ended: VecDeque<Ended<E>>,
    /// Children that have failed, by the time of their restart, with the number of failures.
    restarting: BTreeMap<(Deadline, ChildId), (E, u32)>,
}

/// A child of a supervisor.
pub(super) struct Child {
    /// None for a child started by hand, which takes no slot.
    pub(super) subscription: Option<SubscriptionId>,
    /// The key of its event, if the supervisor keeps the order of keys.
    pub(super) key: Option<Key>,
    /// The worker's reservation for it, dropped when its event is done.
    pub(super) reserved: Option<Reserved>,
    pub(super) task: Option<AbortHandle>,
    /// Whether it has left its place, and occupies no slot and no key.
    pub(super) left: bool,
    /// Whether its slot was freed. Its event takes no other, also if it is restarted in a place.
    pub(super) freed: bool,
    /// The number of its last failure when it got its place.
    pub(super) restarts: u32,
    /// The child's id in the adaptive limit, if there is one.
    pub(super) piece: Option<Piece>,
    /// The callers that wait for its termination.
    pub(super) terminated: Vec<Caller<Result<(), TerminateError>>>,
}

/// How a child's task ended.
pub(super) type Ended<E> = Result<(Id, Finished<E>), JoinError>;

/// The result of a child's task.
pub(super) struct Finished<E> {
    pub(super) event: E,
    pub(super) restarts: u32,
    pub(super) outcome: Result<(), ExitReason>,
    pub(super) took: Duration,
    /// Whether it completed in its first poll.
    pub(super) at_once: bool,
}

impl<E: Send + 'static> Children<E> {
    pub(super) fn new() -> Self {
        Self {
            children: foldhash::HashMap::default(),
            next_id: 0,
            manual: 0,
            left: 0,
            tasks: JoinSet::new(),
            by_task: foldhash::HashMap::default(),
            ended: VecDeque::new(),
            restarting: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.children.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// The number of children that were not started by hand and have not left their places.
    pub(super) fn in_slots(&self) -> usize {
        self.children.len() - self.manual - self.left
    }

    /// The number of children that have not left their places.
    pub(super) fn in_places(&self) -> usize {
        self.children.len() - self.left
    }

    /// A child leaves its place. Returns the subscription whose slot is free then, and the key that is free.
    pub(super) fn leave(&mut self, id: ChildId) -> Option<(Option<SubscriptionId>, Option<Key>)> {
        let child = self.children.get_mut(&id).filter(|child| !child.left)?;
        let subscription = child.subscription?;
        let was_freed = mem::replace(&mut child.freed, true);
        child.left = true;
        self.left += 1;
        Some(((!was_freed).then_some(subscription), child.key))
    }

    /// A child that had left is in a place again.
    pub(super) fn come_back(&mut self, id: ChildId) {
        if let Some(child) = self.children.get_mut(&id).filter(|child| child.left) {
            child.left = false;
            self.left -= 1;
        }
    }

    pub(super) fn get(&self, id: ChildId) -> Option<&Child> {
        self.children.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.get_mut(&id)
    }

    /// All children, in the order of their first start.
    pub(super) fn list(&self) -> Vec<(ChildId, ChildState)> {
        let state = |child: &Child| match child.task {
            Some(_) => ChildState::Running,
            None => ChildState::Restarting,
        };
        let mut children: Vec<_> =
            self.children.iter().map(|(id, child)| (*id, state(child))).collect();
        children.sort_unstable_by_key(|(id, _)| *id);
        children
    }

    /// Adds a child without a task.
    pub(super) fn add(
        &mut self,
        subscription: Option<SubscriptionId>,
        key: Option<Key>,
        reserved: Option<Reserved>,
    ) -> ChildId {
        let id = ChildId(self.next_id);
        self.next_id += 1;
        self.manual += usize::from(subscription.is_none());
        self.children.insert(
            id,
            Child {
                subscription,
                key,
                reserved,
                task: None,
                left: false,
                freed: false,
                restarts: 0,
                piece: None,
                terminated: Vec::new(),
            },
        );
        id
    }

    pub(super) fn remove(&mut self, id: ChildId) -> Option<Child> {
        let child = self.children.remove(&id)?;
        self.manual -= usize::from(child.subscription.is_none());
        self.left -= usize::from(child.left);
        Some(child)
    }

    /// Runs a child in a task.
    pub(super) fn spawn(
        &mut self,
        id: ChildId,
        job: impl Future<Output = Finished<E>> + Send + 'static,
        piece: Option<Piece>,
    ) {
        let span = Span::current();
        // Without the span, the future is smaller.
        let task = if span.is_disabled() {
            self.tasks.spawn(job)
        } else {
            self.tasks.spawn(job.instrument(span))
        };
        self.by_task.insert(task.id(), id);
        if let Some(child) = self.children.get_mut(&id) {
            child.task = Some(task);
            child.piece = piece;
        }
    }

    /// Waits for the end of a task, and keeps it for [`next_ended`](Self::next_ended). `None` if
    /// there are no tasks.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn wait_for_end(&mut self) -> Option<()> {
        let ended = self.tasks.join_next_with_id().await?;
        self.ended.push_back(ended);
        Some(())
    }

    /// Whether the end of a task is kept.
    pub(super) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Takes the next end of a task, without waiting.
    pub(super) fn next_ended(&mut self) -> Option<Ended<E>> {
        self.ended.pop_front().or_else(|| self.tasks.try_join_next_with_id())
    }

    /// Waits for the next end of a task. `None` if there are no tasks.
    pub(super) async fn join_next(&mut self) -> Option<Ended<E>> {
        self.tasks.join_next_with_id().await
    }

    /// Takes the next end of a task that is kept.
    pub(super) fn next_kept(&mut self) -> Option<Ended<E>> {
        self.ended.pop_front()
    }

    pub(super) fn abort_all(&mut self) {
        self.tasks.abort_all();
    }

    /// Finds the child whose task has ended. A task has an end only once.
    pub(super) fn of_task(&mut self, ended: &Ended<E>) -> Option<ChildId> {
        let task = match ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        self.by_task.remove(&task)
    }

    /// Restarts a failed child at this time.
    pub(super) fn restart_at(&mut self, at: Deadline, id: ChildId, event: E, failed: u32) {
        if let Some(child) = self.children.get_mut(&id) {
            child.task = None;
        }
        self.restarting.insert((at, id), (event, failed));
    }

    /// The number of children that wait to be restarted.
    pub(super) fn restarting(&self) -> usize {
        self.restarting.len()
    }

    /// The time of the next restart.
    pub(super) fn next_restart(&self) -> Deadline {
        self.restarting.first_key_value().map_or(Deadline::NEVER, |((at, _), _)| *at)
    }

    /// Takes the child that is restarted next, with its event and the number of its failures.
    pub(super) fn pop_restarting(&mut self) -> Option<(ChildId, E, u32)> {
        let ((_, id), (event, failed)) = self.restarting.pop_first()?;
        Some((id, event, failed))
    }

    /// Takes the event of a child that waits for a place to be restarted in, with the number of its failures.
    /// `None` if it was terminated.
    pub(super) fn take_restarting(&mut self, id: ChildId) -> Option<(E, u32)> {
        self.restarting.remove(&(Deadline::NEVER, id))
    }

    /// Takes the event of a child that waits to be restarted.
    pub(super) fn cancel_restart(&mut self, id: ChildId) {
        self.restarting.retain(|(_, other), _| *other != id);
    }

    /// Drops the reservations of failed children, which are not restarted: they would block others.
    pub(super) fn release_restarting(&mut self) {
        for (_, id) in self.restarting.keys() {
            if let Some(child) = self.children.get_mut(id) {
                child.reserved = None;
            }
        }
    }

    /// The number of children that have not ended, running or not.
    pub(super) fn unfinished(&self) -> usize {
        self.tasks.len() + self.restarting.len()
    }
}
