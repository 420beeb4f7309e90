//! The traits of a broker: what a durable source needs from the server or the file behind it.

use std::{
    any::type_name,
    borrow::Cow,
    error::Error,
    fmt,
    future::{Future, pending},
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::item::Delivery;

/// A server or a file that keeps items until they are done.
///
/// A [`Source`](crate::Source) makes a producer of messages of it. It connects, fetches what there is
/// demand for, settles what was acknowledged, renews leases, and connects again when a call fails or takes
/// too long. A broker only translates these calls.
pub trait Broker: Send + Sync + 'static {
    /// What identifies a delivery.
    type Receipt: Clone + Eq + Hash + Send + Sync + fmt::Debug + 'static;
    /// The half of a session that takes items.
    type Fetch: Fetch<Receipt = Self::Receipt>;
    /// The half of a session that says what became of them.
    type Settle: Settle<Receipt = Self::Receipt>;

    /// What it is called where its sources are shown, such as its kind and the name of its queue, without
    /// passwords. By default the name of its type.
    fn description(&self) -> Cow<'_, str> {
        let name = type_name::<Self>();
        let name = name.split('<').next().unwrap_or(name);
        name.rsplit("::").next().unwrap_or(name).into()
    }

    /// Opens a session. Called again, after a delay, when a call of an earlier one has failed.
    fn connect(
        &self,
    ) -> impl Future<Output = Result<(Self::Fetch, Self::Settle), BrokerError>> + Send;

    /// How long an item that was fetched is kept from others, if that has to be renewed.
    fn lease(&self) -> Option<Duration>;

    /// Whether the outcome of an item can be stored in a later session than that which has fetched it. If
    /// not, the broker delivers again what a session had fetched when it ends, and a source handles nothing
    /// more of it. By default it can.
    fn outlives_sessions(&self) -> bool {
        true
    }

    /// How many items may be postponed at one time, for a broker whose server counts each delivery, also one that was given
    /// back, and that does not keep [how often an item has failed](Delivery::failures). A source remembers so many that it
    /// has given back, since one that it has forgotten counts as delivered without an outcome. Default 4,096.
    fn held_back(&self) -> usize {
        4096
    }

    /// Gives up what the source has at the server beyond its sessions, such as its place in a group. It is the
    /// last call: the source has ended, and no outcome is left. A drain waits for it, five seconds at most. By
    /// default it does nothing.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The half of a session that takes items.
pub trait Fetch: Send + 'static {
    /// What identifies a delivery.
    type Receipt;

    /// Takes up to `max` items, and waits until there is at least one. It may return none, and is then
    /// called again.
    ///
    /// It may take any time, because it waits for items, so a source cannot tell one that waits from one
    /// whose server is gone without a word. A broker has to notice that itself: by heartbeats, or by calls
    /// that the server has to answer within a limit, such as one that looks again after some seconds.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped. Items that it had taken are delivered again later.
    fn fetch(
        &mut self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Delivery<Self::Receipt>>, BrokerError>> + Send;

    /// Takes note of what the source asks for, before each fetch, which may be for a part of it. A broker whose
    /// server sends items before they are fetched lets it send as many. By default it does nothing.
    fn wanted(&mut self, wanted: Wanted) {
        let _ = wanted;
    }

    /// Waits as long as nothing is asked for, and returns an error if the session has ended, so that the source
    /// notices it at once. By default it waits forever: the next call of the session notices it.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped, and is when something is asked for. Items that it had taken are returned by the
    /// next fetch.
    fn idle(&mut self) -> impl Future<Output = BrokerError> + Send {
        pending()
    }

    /// Gives back what it has taken from the server and has not returned, because the source fetches nothing more, and waits
    /// for what a dropped [`fetch`](Self::fetch) is giving back. It is called when the source stops, while outcomes are
    /// still stored, and the source ends five seconds after the last of these at the latest. Only [`idle`](Self::idle) is called after it. By default
    /// it does nothing.
    fn stop(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The number of items that a source asks for, and of those that its pipeline works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// How many items it asks for now, in this fetch and in those that follow at once.
    pub items: usize,
    /// How many items of this session it has that have no outcome yet. An outcome that is not stored is one.
    pub in_work: usize,
    /// How many items it has whose outcomes are tried again later, because the broker has refused them, or others
    /// just before. They keep their places at the broker, and other items are fetched meanwhile.
    pub set_aside: usize,
}

/// The half of a session that says what became of items.
///
/// Its calls are made at the same time: leases are renewed while outcomes are stored, and neither waits
/// until the backlog is counted. Of each call there is one at a time, and an item is in one of
/// [`settle`](Self::settle) and [`renew`](Self::renew) at a time. [`wake`](Self::wake) is called for deliveries that are
/// over, and the same item may be in one of the other calls meanwhile, with a later delivery. A call that takes longer than [`call_timeout`](crate::SourceOptions::call_timeout) is dropped.
pub trait Settle: Send + Sync + 'static {
    /// What identifies a delivery.
    type Receipt;

    /// Whether [`wake`](Self::wake) ends delays. If not, the receipts of items that wait are not kept for it.
    const WAKES: bool = false;

    /// Stores what became of items. A delivery that the broker no longer knows, because its lease is over or
    /// its session has ended, is not an error.
    ///
    /// It returns the outcomes that could not be stored although the session continues; all others are
    /// stored then. After an error any of them may be stored or not. In both cases what was not stored is
    /// stored again later, so a repetition has to change nothing. Items that are given up are in calls of
    /// their own.
    fn settle(
        &self,
        settlements: &[Settlement<Self::Receipt>],
    ) -> impl Future<Output = Result<Vec<NotStored>, BrokerError>> + Send;

    /// Renews the leases of items that are still being handled.
    fn renew(
        &self,
        receipts: &[Self::Receipt],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send {
        let _ = receipts;
        async { Ok(()) }
    }

    /// The items that the server has sent and no fetch has returned. Called about once a second. By default there are
    /// none.
    fn ahead(&self) -> Ahead {
        Ahead::default()
    }

    /// Makes items available now that were given back with a delay: something that they wait for has come. Those
    /// whose delay is over, and those that are gone, are no errors. An error ends no session: it is called for the same
    /// items again after a pause, five times in all. By default it does nothing, for a server that cannot end a delay.
    fn wake(
        &self,
        receipts: &[Self::Receipt],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send {
        let _ = receipts;
        async { Ok(()) }
    }

    /// What waits at the broker. Called about once a second. An error ends nothing: it is called again later.
    fn backlog(&self) -> impl Future<Output = Result<Backlog, BrokerError>> + Send {
        async { Ok(Backlog::default()) }
    }
}

/// An outcome that a broker could not store, while it has stored the others of the call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NotStored {
    /// Which of the call's settlements it was.
    pub index: usize,
    /// Why it could not be stored.
    pub error: BrokerError,
}

impl NotStored {
    /// The settlement with this index could not be stored, because of this error.
    #[must_use]
    pub fn new(index: usize, error: impl Into<BrokerError>) -> Self {
        Self { index, error: error.into() }
    }
}

/// The outcome of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement<R> {
    /// The delivery.
    pub receipt: R,
    /// The outcome.
    pub outcome: Outcome,
}

/// The outcome of an item, and what the broker does with it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The item was handled. The broker forgets it.
    Done,
    /// The item has failed, or its handling has not ended, and it is to be delivered again.
    Retry {
        /// How long it is kept back.
        after: Duration,
        /// How often it has failed now. The broker keeps this with the item, as
        /// [`Delivery::failures`](crate::Delivery::failures).
        failures: u32,
    },
    /// The item has not failed, and is to be delivered again after this delay, as if it had not been
    /// delivered: the delivery is not counted. A broker whose server counts each delivery itself, such as
    /// NATS, cannot take it back.
    Release {
        /// How long it is kept back. Zero, if it was not handled at all.
        after: Duration,
    },
    /// The item is given up. The broker moves it to its dead letters.
    GiveUp {
        /// Why it has failed the last time.
        reason: Arc<str>,
    },
}

/// The items that a server has sent before they were fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ahead {
    /// How many there are.
    pub items: usize,
    /// Their size.
    pub bytes: usize,
}

/// The items that wait at a broker. What it cannot tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Backlog {
    /// The items that are not done, whether they were delivered or not.
    pub items: Option<u64>,
    /// When the oldest of them was added.
    pub oldest: Option<SystemTime>,
    /// The items that were given up and are kept.
    pub dead_letters: Option<u64>,
    /// How many items have waited for a time that a clock had set which was ahead of the one now, and were made
    /// available when they had waited as long as they were to, since the last call.
    pub brought_forward: u64,
    /// Why the server delivers no more items although some wait, with the setting that says so. `None` if it does. A
    /// broker that knows whether the server has delivered a new item since the last call says `None` then. A source shows
    /// it when it lasts for a few samples.
    pub stalled: Option<&'static str>,
}

/// Why a call of a broker failed.
#[derive(Clone)]
pub struct BrokerError(Arc<dyn Error + Send + Sync>);

impl BrokerError {
    /// An error with a message, or with a boxed error.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(cause.into()))
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
