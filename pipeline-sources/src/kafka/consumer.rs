//! The thread of a consumer. It has the client's consumer, whose calls block.
//!
//! The client fetches ahead on threads of its own, as far as the options say. This thread reads what was
//! asked for, has another thread commit what is done, and answers when partitions are assigned and revoked.
//! A commit blocks until it is confirmed; the client does not tell of one that does not block.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use futures::future::{self, BoxFuture};
use parking_lot::{Condvar, Mutex};
use pipeline_core::{Deadline, shown::shown};
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{
        BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol,
        base_consumer::PartitionQueue,
    },
    error::{KafkaError as ClientError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
    topic_partition_list::TopicPartitionListElem,
    types::RDKafkaRespErr,
};
use tokio::{sync::Notify, time::Instant};

use super::{
    KafkaError,
    format::{Record, read},
    tracker::{Commit, KafkaReceipt, Next, Taken, Tracker},
};
use crate::broker::Outcome;

/// How long the thread waits at most, if nothing wakes it.
const IDLE: Duration = Duration::from_millis(200);

/// The longest delay of an item: 30 days.
const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long after a commit has failed it is tried again.
const COMMIT_AGAIN: Duration = Duration::from_millis(100);

/// What the thread needs to know.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) topic: Arc<str>,
    pub(super) max_uncommitted: usize,
    /// The most bytes of a partition's items that are not done.
    pub(super) max_bytes: usize,
    pub(super) call_timeout: Duration,
    pub(super) revoke_wait: Duration,
}

/// What the thread shares with the halves of a session.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Items can be taken, or the consumer has failed.
    pub(super) arrived: Notify,
    /// Something was committed or revoked, or the consumer has failed.
    pub(super) changed: Notify,
    /// The dead letters that are being written, of deliveries without an outcome.
    pub(super) burials: Mutex<HashMap<KafkaReceipt, Burial>>,
    wake: Wake,
    /// Held while the thread is being started.
    pub(super) starting: Mutex<()>,
}

/// Whether a dead letter was written.
pub(super) type Burial = future::Shared<BoxFuture<'static, Result<(), KafkaError>>>;

#[derive(Debug)]
pub(super) struct State {
    pub(super) tracker: Tracker<Arc<Record>>,
    /// How many items are asked for.
    pub(super) wanted: usize,
    /// Why the session has to be opened again.
    pub(super) failure: Option<KafkaError>,
    /// Whether the thread runs.
    pub(super) running: bool,
    /// Whether it has to end.
    pub(super) stopped: bool,
}

impl Shared {
    pub(super) fn new(ordered: bool) -> Self {
        let state = State {
            tracker: Tracker::new(ordered),
            wanted: 0,
            failure: None,
            running: false,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            arrived: Notify::new(),
            changed: Notify::new(),
            burials: Mutex::default(),
            wake: Wake::default(),
            starting: Mutex::new(()),
        }
    }

    /// Takes up to `max` items. The thread reads as many again, so that the next call finds them: it is woken
    /// by the outcomes of these, or by the caller if there were none.
    pub(super) fn take(&self, max: usize) -> Result<Vec<Taken<Arc<Record>>>, KafkaError> {
        let mut state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.tracker.wake(Instant::now());
        let taken = state.tracker.take(max);
        state.wanted = max;
        Ok(taken)
    }

    /// Takes note of outcomes. Returns the offsets that have to be committed then.
    pub(super) fn settle<'a>(
        &self,
        outcomes: impl Iterator<Item = (&'a KafkaReceipt, &'a Outcome)>,
    ) -> Vec<Commit> {
        let now = Instant::now();
        let at = |after: Duration| now.checked_add(after.min(LONGEST_DELAY)).unwrap_or(now);
        let mut state = self.state.lock();
        for (receipt, outcome) in outcomes {
            let next = match outcome {
                Outcome::Done | Outcome::GiveUp { .. } => Next::Done,
                Outcome::Retry { after, failures } => Next::At(at(*after), *failures),
                Outcome::Release { after: Duration::ZERO } => Next::Released,
                Outcome::Release { after } => Next::ReleasedAt(at(*after)),
            };
            state.tracker.settle(receipt, next);
        }
        let owed = state.tracker.to_commit();
        drop(state);
        self.wake();
        self.arrived.notify_one();
        owed
    }

    /// Whether offsets are committed, or are not this consumer's any more. Forgets those that are.
    pub(super) fn is_committed(&self, owed: &mut Vec<Commit>) -> Result<bool, KafkaError> {
        let state = self.state.lock();
        owed.retain(|commit| state.tracker.is_owed(commit));
        match &state.failure {
            Some(failure) if !owed.is_empty() => Err(failure.clone()),
            _ => Ok(owed.is_empty()),
        }
    }

    /// The partitions, and when the oldest of their items was added that was read and is not done.
    pub(super) fn assigned(&self) -> (Vec<i32>, Option<SystemTime>) {
        let state = self.state.lock();
        let oldest = state.tracker.oldest().filter_map(|record| record.enqueued_at).min();
        (state.tracker.assigned().collect(), oldest)
    }

    /// Has the thread end, and none begin any more.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake();
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        self.wake.call();
    }

    fn fail(&self, error: KafkaError) {
        self.state.lock().failure = Some(error);
        self.arrived.notify_one();
        self.changed.notify_waiters();
    }
}

#[derive(Debug, Default)]
struct Wake {
    called: Mutex<bool>,
    calls: Condvar,
}

impl Wake {
    fn call(&self) {
        *self.called.lock() = true;
        self.calls.notify_one();
    }

    fn wait(&self, longest: Duration) {
        let mut called = self.called.lock();
        if !*called {
            self.calls.wait_for(&mut called, longest);
        }
        *called = false;
    }
}

/// What the client has said, in its order.
#[derive(Debug)]
enum Event {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
    Committed(KafkaResult<()>),
}

/// Receives what the client says, on the thread that polls it.
#[derive(Debug, Default)]
pub(super) struct Context {
    events: Mutex<Vec<Event>>,
    count: AtomicUsize,
    closing: AtomicBool,
}

impl Context {
    fn add(&self, event: Event) {
        self.events.lock().push(event);
        self.count.fetch_add(1, SeqCst);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(error = shown(error), reason = shown(reason), "the Kafka client failed");
    }
}

/// Logs what the client says. The source logs that it connects again, so this is for debugging.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let (facility, message) = (shown(facility), shown(message));
    tracing::debug!(?level, facility, message, "the Kafka client");
}

impl ConsumerContext for Context {
    /// The thread answers when it has done what has to be done before, so this only notes it.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<_> =
            list.elements().iter().map(TopicPartitionListElem::partition).collect();
        let is_assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(SeqCst) {
            if !is_assigned {
                unassign(consumer, list);
            }
        } else if is_assigned {
            self.add(Event::Assigned(partitions));
        } else {
            self.add(Event::Revoked(partitions));
        }
    }
}

fn unassign(consumer: &BaseConsumer<Context>, list: &TopicPartitionList) {
    let result = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        RebalanceProtocol::None | RebalanceProtocol::Eager => consumer.unassign(),
    };
    if let Err(error) = result {
        tracing::debug!(error = shown(error), "partitions were not given up");
    }
}

/// Starts the thread, unless it runs.
pub(super) fn start(
    config: &ClientConfig,
    setup: Setup,
    shared: &Arc<Shared>,
) -> Result<(), KafkaError> {
    let starting = shared.starting.lock();
    let (running, stopped) = {
        let state = shared.state.lock();
        (state.running, state.stopped)
    };
    if stopped {
        return Err(KafkaError::Ended);
    }
    if running {
        return Ok(());
    }
    let mut consumer = BaseConsumer::from_config_and_context(config, Context::default())?;
    let woken = shared.clone();
    consumer.set_nonempty_callback(move || woken.wake.call());
    consumer.subscribe(&[&setup.topic])?;
    let consumer = Arc::new(consumer);
    let (commits, jobs) = sync_channel::<Vec<Commit>>(1);
    let committer = Committer {
        consumer: consumer.clone(),
        topic: setup.topic.clone(),
        shared: shared.clone(),
    };
    let thread = thread::Builder::new().name("kafka-commits".into());
    let committer = thread.spawn(move || jobs.iter().for_each(|job| committer.commit(&job)));
    let reader = Reader {
        consumer,
        commits: Some(commits),
        committer: Some(committer.map_err(no_thread)?),
        setup,
        shared: shared.clone(),
        queues: BTreeMap::new(),
        turn: 0,
        committing: None,
        commit_from: Instant::now(),
        revoking: None,
        is_dead: false,
    };
    shared.state.lock().running = true;
    let thread = thread::Builder::new().name("kafka-source".into());
    if let Err(error) = thread.spawn(move || reader.run()) {
        shared.state.lock().running = false;
        return Err(no_thread(error));
    }
    drop(starting);
    Ok(())
}

fn no_thread(error: std::io::Error) -> KafkaError {
    KafkaError::Thread(Arc::new(error))
}

/// Commits offsets, one call at a time.
struct Committer {
    consumer: Arc<BaseConsumer<Context>>,
    topic: Arc<str>,
    shared: Arc<Shared>,
}

impl Committer {
    fn commit(&self, commits: &[Commit]) {
        let mut list = TopicPartitionList::with_capacity(commits.len());
        let mut add = |commit: &Commit| {
            let offset = Offset::Offset(commit.offset);
            list.add_partition_offset(&self.topic, commit.partition, offset)
        };
        let listed = commits.iter().try_for_each(&mut add);
        let result = listed.and_then(|()| self.consumer.commit(&list, CommitMode::Sync));
        self.consumer.context().add(Event::Committed(result));
        self.shared.wake();
    }
}

/// What the thread has.
struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    /// The way to the committer, until the end.
    commits: Option<SyncSender<Vec<Commit>>>,
    committer: Option<JoinHandle<()>>,
    setup: Setup,
    shared: Arc<Shared>,
    queues: BTreeMap<i32, Queue>,
    /// The partition that was read last.
    turn: i32,
    /// The offsets that are being committed.
    committing: Option<Vec<Commit>>,
    /// When the next commit may be tried.
    commit_from: Instant,
    revoking: Option<Revoking>,
    /// Whether the client can do nothing more.
    is_dead: bool,
}

/// What the client has fetched of a partition.
struct Queue {
    messages: PartitionQueue<Context>,
    /// Whether there may be some.
    is_filled: Arc<AtomicBool>,
}

/// Partitions that are to be given up when what is in work is done.
struct Revoking {
    partitions: Vec<i32>,
    /// How long to wait for outcomes, and then for their commit.
    outcomes_until: Deadline,
    commit_until: Deadline,
    /// Whether nothing can be committed, as another consumer has the partitions.
    is_lost: bool,
}

impl Reader {
    fn run(mut self) {
        while !self.is_dead && !self.shared.state.lock().stopped {
            self.handle_events();
            self.give_up_revoked();
            self.commit();
            self.read();
            let longest = self.longest_wait();
            self.shared.wake.wait(longest);
        }
        self.close();
    }

    fn longest_wait(&self) -> Duration {
        let now = Instant::now();
        let next = self.shared.state.lock().tracker.next_wake();
        let next = next.map_or(IDLE, |at| at.saturating_duration_since(now));
        next.min(IDLE)
    }

    fn handle_events(&mut self) {
        let consumer = self.consumer.clone();
        loop {
            let before = consumer.context().count.load(SeqCst);
            let polled = consumer.poll(Duration::ZERO);
            let is_last = polled.is_none() && consumer.context().count.load(SeqCst) == before;
            match polled {
                // A message of a partition whose queue was split off after it had been fetched.
                Some(Ok(message)) => self.receive(&message),
                Some(Err(error)) => self.failed(error),
                None => {}
            }
            let events = mem::take(&mut *consumer.context().events.lock());
            for event in events {
                match event {
                    Event::Assigned(partitions) => self.assigned(&partitions),
                    Event::Revoked(partitions) => self.revoked(partitions),
                    Event::Committed(result) => self.committed(result),
                }
            }
            if is_last {
                return;
            }
        }
    }

    fn failed(&mut self, error: ClientError) {
        let code = error.rdkafka_error_code();
        // One broker of several, or an attempt that the client repeats. If none can be reached, it says so.
        let passing = [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::Resolve,
            RDKafkaErrorCode::OperationTimedOut,
        ];
        if code.is_some_and(|code| passing.contains(&code)) {
            tracing::debug!(error = shown(error), "the Kafka client connects again");
            return;
        }
        self.is_dead |= matches!(error, ClientError::MessageConsumptionFatal(_));
        self.shared.fail(error.into());
    }

    fn list(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(&self.setup.topic, *partition);
        }
        list
    }

    fn assigned(&mut self, partitions: &[i32]) {
        tracing::debug!(topic = shown(&self.setup.topic), ?partitions, "partitions were assigned");
        let mut state = self.shared.state.lock();
        for partition in partitions {
            state.tracker.assign(*partition);
        }
        drop(state);
        for partition in partitions {
            self.queues.remove(partition);
        }
        let list = self.list(partitions);
        let assigned = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            RebalanceProtocol::None | RebalanceProtocol::Eager => self.consumer.assign(&list),
        };
        if let Err(error) = assigned {
            return self.failed(error);
        }
        for partition in partitions {
            let split = self.consumer.split_partition_queue(&self.setup.topic, *partition);
            let Some(mut messages) = split else { continue };
            let is_filled = Arc::new(AtomicBool::new(true));
            let (filled, woken) = (is_filled.clone(), self.shared.clone());
            messages.set_nonempty_callback(move || {
                filled.store(true, SeqCst);
                woken.wake.call();
            });
            self.queues.insert(*partition, Queue { messages, is_filled });
        }
    }

    fn revoked(&mut self, mut partitions: Vec<i32>) {
        tracing::debug!(topic = shown(&self.setup.topic), ?partitions, "partitions are revoked");
        let mut state = self.shared.state.lock();
        for partition in &partitions {
            state.tracker.revoke(*partition);
        }
        drop(state);
        if let Some(before) = self.revoking.take() {
            partitions.extend(before.partitions);
        }
        let commit_wait = self.setup.revoke_wait.saturating_add(self.setup.call_timeout);
        self.revoking = Some(Revoking {
            partitions,
            outcomes_until: Deadline::from_now(self.setup.revoke_wait),
            commit_until: Deadline::from_now(commit_wait),
            is_lost: self.consumer.assignment_lost(),
        });
    }

    /// Gives revoked partitions up when what is in work of them is done and committed, or takes too long.
    fn give_up_revoked(&mut self) {
        let Some(revoking) = &self.revoking else { return };
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        if !revoking.is_lost {
            let in_work = revoking.partitions.iter().any(|it| state.tracker.is_in_work(*it));
            let to_commit = state.tracker.to_commit();
            let is_owed = to_commit.iter().any(|it| revoking.partitions.contains(&it.partition));
            let waits_for_outcomes = in_work && !revoking.outcomes_until.has_passed(now);
            let waits_for_commit = is_owed && !revoking.commit_until.has_passed(now);
            if waits_for_outcomes || waits_for_commit {
                return;
            }
        }
        for partition in &revoking.partitions {
            state.tracker.remove(*partition);
            self.queues.remove(partition);
        }
        drop(state);
        unassign(&self.consumer, &self.list(&revoking.partitions));
        self.revoking = None;
        self.shared.changed.notify_waiters();
    }

    fn commit(&mut self) {
        if self.committing.is_some() || Instant::now() < self.commit_from {
            return;
        }
        let commits = self.shared.state.lock().tracker.to_commit();
        if commits.is_empty() {
            return;
        }
        // The committer waits for it, as none is being committed.
        if let Some(committer) = &self.commits
            && committer.try_send(commits.clone()).is_ok()
        {
            self.committing = Some(commits);
        }
    }

    fn commit_failed(&mut self, error: &ClientError) {
        tracing::debug!(error = shown(error), "offsets were not committed");
        self.commit_from = Instant::now().checked_add(COMMIT_AGAIN).unwrap_or(self.commit_from);
        let refused = [
            RDKafkaErrorCode::RebalanceInProgress,
            RDKafkaErrorCode::IllegalGeneration,
            RDKafkaErrorCode::UnknownMemberId,
            RDKafkaErrorCode::StaleMemberEpoch,
            RDKafkaErrorCode::FencedInstanceId,
        ];
        if let (Some(revoking), Some(code)) = (&mut self.revoking, error.rdkafka_error_code()) {
            revoking.is_lost |= refused.contains(&code);
        }
    }

    fn committed(&mut self, result: KafkaResult<()>) {
        let commits = self.committing.take().unwrap_or_default();
        match result {
            Ok(()) => {
                let mut state = self.shared.state.lock();
                commits.iter().for_each(|commit| state.tracker.committed(commit));
            }
            Err(error) => self.commit_failed(&error),
        }
        self.shared.changed.notify_waiters();
    }

    fn receive(&self, message: &BorrowedMessage<'_>) {
        let record = Arc::new(read(message));
        let (key, size) = (record.item.key.clone(), record.size());
        let mut state = self.shared.state.lock();
        state.tracker.receive(message.partition(), message.offset(), key, record, size);
    }

    /// Reads as much as is asked for and was fetched.
    fn read(&mut self) {
        let mut state = self.shared.state.lock();
        state.tracker.wake(Instant::now());
        let wanted = state.wanted;
        drop(state);
        if wanted == 0 {
            return;
        }
        let after = self.queues.range(self.turn.saturating_add(1)..);
        let partitions: Vec<_> =
            after.chain(self.queues.range(..=self.turn)).map(|(number, _)| *number).collect();
        self.turn = partitions.first().copied().unwrap_or_default();
        for partition in partitions {
            self.read_from(partition, wanted);
        }
        if self.shared.state.lock().tracker.ready() > 0 {
            self.shared.arrived.notify_one();
        }
    }

    fn read_from(&mut self, partition: i32, wanted: usize) {
        loop {
            let state = self.shared.state.lock();
            let Setup { max_uncommitted, max_bytes, .. } = self.setup;
            let has_room = state.tracker.has_room(partition, max_uncommitted, max_bytes);
            if !has_room || state.tracker.ready() >= wanted {
                return;
            }
            drop(state);
            let Some(queue) = self.queues.get(&partition) else { return };
            // Before the look, so that nothing is missed.
            if !queue.is_filled.swap(false, SeqCst) {
                return;
            }
            let error = match queue.messages.poll(Duration::ZERO) {
                None => return,
                Some(Ok(message)) => {
                    self.receive(&message);
                    None
                }
                Some(Err(error)) => Some(error),
            };
            queue.is_filled.store(true, SeqCst);
            if let Some(error) = error {
                self.failed(error);
            }
        }
    }

    fn close(mut self) {
        self.consumer.context().closing.store(true, SeqCst);
        if let Some(revoking) = self.revoking.take() {
            unassign(&self.consumer, &self.list(&revoking.partitions));
        }
        self.queues.clear();
        self.commits = None;
        if let Some(committer) = self.committer.take() {
            // A panic has ended it as well.
            let _ = committer.join();
        }
        // It leaves its group, and waits for it.
        drop(self.consumer);
        let mut state = self.shared.state.lock();
        state.running = false;
        let assigned: Vec<_> = state.tracker.assigned().collect();
        for partition in assigned {
            state.tracker.remove(partition);
        }
        drop(state);
        self.shared.fail(KafkaError::Ended);
    }
}
