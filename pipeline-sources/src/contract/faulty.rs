//! A broker that a test makes unavailable.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use crate::{
    broker::{Backlog, Broker, BrokerError, Fetch, NotStored, Settle, Settlement},
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
    settles_slowly: AtomicBool,
    attempts: AtomicUsize,
    fetched: AtomicUsize,
}

impl Shared {
    fn call(&self) -> Result<(), BrokerError> {
        if self.away.load(SeqCst) {
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

    /// From now on, no outcome is stored until it comes back.
    pub fn stop_settling(&self) {
        self.0.settles_slowly.store(true, SeqCst);
    }

    /// From now on, calls succeed again.
    pub fn come_back(&self) {
        self.0.settles_slowly.store(false, SeqCst);
        self.0.away.store(false, SeqCst);
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
        self.faults.call()?;
        let (fetch, settle) = self.broker.connect().await?;
        Ok((FaultyFetch(fetch, self.faults.clone()), FaultySettle(settle, self.faults.clone())))
    }

    fn lease(&self) -> Option<Duration> {
        self.broker.lease()
    }

    fn outlives_sessions(&self) -> bool {
        self.broker.outlives_sessions()
    }
}

impl<F: Fetch<Receipt: Send>> Fetch for FaultyFetch<F> {
    type Receipt = F::Receipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<F::Receipt>>, BrokerError> {
        let Self(fetch, shared) = self;
        let went_away = shared.went_away.notified();
        shared.call()?;
        let fetched = tokio::select! {
            fetched = fetch.fetch(max) => fetched?,
            () = went_away => return Err(BrokerError::new("the broker went away")),
        };
        shared.fetched.fetch_add(fetched.len(), SeqCst);
        Ok(fetched)
    }
}

impl<S: Settle<Receipt: Sync>> Settle for FaultySettle<S> {
    type Receipt = S::Receipt;

    async fn settle(
        &self,
        settlements: &[Settlement<S::Receipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        while self.1.settles_slowly.load(SeqCst) {
            sleep(Duration::from_millis(1)).await;
        }
        self.1.call()?;
        self.0.settle(settlements).await
    }

    async fn renew(&self, receipts: &[S::Receipt]) -> Result<(), BrokerError> {
        self.1.call()?;
        self.0.renew(receipts).await
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        self.1.call()?;
        self.0.backlog().await
    }
}
