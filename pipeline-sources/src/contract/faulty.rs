//! A broker that a test makes unavailable.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use crate::{
    broker::{
        Ahead, Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement, Wanted,
    },
    item::Delivery,
};

/// A broker that a test makes unavailable, and that counts what is fetched.
#[derive(Debug)]
pub struct Faulty<B> {
    broker: B,
    faults: Arc<Shared>,
}

/// The test's handle of a [`Faulty`] broker.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    away: AtomicBool,
    went_away: Notify,
    came_back: Notify,
    hanging: [AtomicBool; CALLS],
    failing: [AtomicBool; CALLS],
    refusing: Mutex<Option<Refusing>>,
    settle_delay: Mutex<Duration>,
    attempts: AtomicUsize,
    fetched: AtomicUsize,
}

/// A call of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Broker::connect`].
    Connect,
    /// [`Fetch::fetch`].
    Fetch,
    /// [`Settle::settle`].
    Settle,
    /// [`Settle::renew`].
    Renew,
    /// [`Settle::backlog`].
    Backlog,
    /// [`Settle::wake`].
    Wake,
}

/// How many calls there are.
const CALLS: usize = 6;

/// How a broker refuses to store that items are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusing {
    /// Each call with such an item fails, and nothing of it is stored.
    ByErrors,
    /// The others are stored, and the call returns which are not.
    ByLists,
}

impl Shared {
    async fn call(&self, call: Call) -> Result<(), BrokerError> {
        loop {
            let came_back = self.came_back.notified();
            if !self.hanging[call as usize].load(SeqCst) {
                break;
            }
            came_back.await;
        }
        if self.away.load(SeqCst) || self.failing[call as usize].load(SeqCst) {
            self.attempts.fetch_add(1, SeqCst);
            return Err(BrokerError::new("the broker is away"));
        }
        Ok(())
    }
}

impl<B> Faulty<B> {
    /// A broker that is available until the test says otherwise.
    #[must_use]
    pub fn new(broker: B) -> (Self, Faults) {
        let faults = Arc::<Shared>::default();
        (Self { broker, faults: faults.clone() }, Faults(faults))
    }
}

impl Faults {
    /// From now on, every call fails, those that wait included.
    pub fn go_away(&self) {
        self.0.away.store(true, SeqCst);
        self.0.went_away.notify_waiters();
    }

    /// From now on, this call does not end until the broker comes back.
    pub fn hang(&self, call: Call) {
        self.0.hanging[call as usize].store(true, SeqCst);
    }

    /// From now on, this call fails.
    pub fn fail(&self, call: Call) {
        self.0.failing[call as usize].store(true, SeqCst);
    }

    /// From now on, items cannot be given up.
    pub fn refuse(&self, how: Refusing) {
        *self.0.refusing.lock() = Some(how);
    }

    /// From now on, each call that stores outcomes takes so long.
    pub fn settle_slowly(&self, delay: Duration) {
        *self.0.settle_delay.lock() = delay;
    }

    /// From now on, calls succeed again.
    pub fn come_back(&self) {
        *self.0.refusing.lock() = None;
        *self.0.settle_delay.lock() = Duration::ZERO;
        for fault in self.0.hanging.iter().chain(&self.0.failing).chain([&self.0.away]) {
            fault.store(false, SeqCst);
        }
        self.0.came_back.notify_waiters();
    }

    /// How many calls have failed.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.0.attempts.load(SeqCst)
    }

    /// How many items were fetched.
    #[must_use]
    pub fn fetched(&self) -> usize {
        self.0.fetched.load(SeqCst)
    }
}

/// The half of a session that takes items.
#[derive(Debug)]
pub struct FaultyFetch<F>(F, Arc<Shared>);

/// The half of a session that stores outcomes.
#[derive(Debug)]
pub struct FaultySettle<S>(S, Arc<Shared>);

impl<B: Broker> Broker for Faulty<B> {
    type Receipt = B::Receipt;
    type Fetch = FaultyFetch<B::Fetch>;
    type Settle = FaultySettle<B::Settle>;

    fn description(&self) -> Cow<'_, str> {
        self.broker.description()
    }

    async fn connect(&self) -> Result<(Self::Fetch, Self::Settle), BrokerError> {
        self.faults.call(Call::Connect).await?;
        let (fetch, settle) = self.broker.connect().await?;
        Ok((FaultyFetch(fetch, self.faults.clone()), FaultySettle(settle, self.faults.clone())))
    }

    fn lease(&self) -> Option<Duration> {
        self.broker.lease()
    }

    fn outlives_sessions(&self) -> bool {
        self.broker.outlives_sessions()
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}

impl<F: Fetch<Receipt: Send>> Fetch for FaultyFetch<F> {
    type Receipt = F::Receipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<F::Receipt>>, BrokerError> {
        let Self(fetch, shared) = self;
        let went_away = shared.went_away.notified();
        shared.call(Call::Fetch).await?;
        let fetched = tokio::select! {
            fetched = fetch.fetch(max) => fetched?,
            () = went_away => return Err(BrokerError::new("the broker went away")),
        };
        shared.fetched.fetch_add(fetched.len(), SeqCst);
        Ok(fetched)
    }

    fn wanted(&mut self, wanted: Wanted) {
        self.0.wanted(wanted);
    }

    async fn idle(&mut self) -> BrokerError {
        self.0.idle().await
    }

    async fn stop(&mut self) {
        self.0.stop().await;
    }
}

impl<S: Settle<Receipt: Clone + Send + Sync>> Settle for FaultySettle<S> {
    type Receipt = S::Receipt;

    const WAKES: bool = S::WAKES;

    async fn settle(
        &self,
        settlements: &[Settlement<S::Receipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let Self(settle, shared) = self;
        shared.call(Call::Settle).await?;
        let delay = *shared.settle_delay.lock();
        sleep(delay).await;
        let refusing = *shared.refusing.lock();
        let Some(refusing) = refusing else { return settle.settle(settlements).await };
        let is_refused = |it: &Settlement<_>| matches!(it.outcome, Outcome::GiveUp { .. });
        let (mut stored, mut refused) = (Vec::new(), Vec::new());
        for (index, settlement) in settlements.iter().enumerate() {
            if is_refused(settlement) {
                refused.push(NotStored::new(index, BrokerError::new("the graves are full")));
            } else {
                stored.push(settlement.clone());
            }
        }
        if refusing == Refusing::ByErrors && !refused.is_empty() {
            shared.attempts.fetch_add(1, SeqCst);
            return Err(BrokerError::new("the graves are full"));
        }
        // What the broker itself has refused comes too late to be named, and is not said to be stored.
        if let Some(refused) = settle.settle(&stored).await?.into_iter().next() {
            return Err(refused.error);
        }
        Ok(refused)
    }

    async fn wake(&self, receipts: &[S::Receipt]) -> Result<(), BrokerError> {
        self.1.call(Call::Wake).await?;
        self.0.wake(receipts).await
    }

    async fn renew(&self, receipts: &[S::Receipt]) -> Result<(), BrokerError> {
        self.1.call(Call::Renew).await?;
        self.0.renew(receipts).await
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        self.1.call(Call::Backlog).await?;
        self.0.backlog().await
    }

    fn ahead(&self) -> Ahead {
        self.0.ahead()
    }
}
