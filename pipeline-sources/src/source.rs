//! The producer of a broker's items.

use std::{
    fmt,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use pipeline_core::{
    ExitReason,
    processing::{Failure, Message},
    stage::{Emitter, Producer, ProducerHandle, StageContext},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    broker::Broker,
    demand::Demand,
    fetch_size::FetchSize,
    item::Item,
    metrics::SourceMetrics,
    options::SourceOptions,
    worker::{Worker, work},
};

/// A producer of a broker's items, as messages whose outcome the broker stores.
///
/// It fetches what its pipeline asks for and no more, so a backlog of any length costs nothing. Each
/// item is delivered at least once. It is delivered again when it failed, when its process was killed,
/// and when the outcome could not be stored; and given up when it has failed a number of times
/// ([`SourceOptions::max_deliveries`]), or was delivered a larger number of times without an outcome
/// ([`SourceOptions::max_unfinished`]).
///
/// An outcome that the broker refuses does not keep the others from being stored: it is set aside, and tried
/// again alone after growing delays.
///
/// When a call of the broker fails, the source connects again after growing delays. Meanwhile the items
/// that were fetched are still handled, and their outcomes are stored later.
///
/// When its pipeline drains, it fetches nothing more and gives back the items that no stage has begun
/// with.
pub struct Source<B: Broker, T = Item> {
    broker: Arc<B>,
    options: SourceOptions,
    decode: Arc<Decode<T>>,
    demand: Arc<Demand>,
    /// The items that were fetched. They are at most as many as were asked for.
    fetched: Option<mpsc::UnboundedReceiver<Message<Item>>>,
    received: Vec<Message<Item>>,
    /// Whether nothing more is to be fetched.
    stopped: watch::Sender<bool>,
    worker: Option<Worker<B>>,
}

/// Makes the data of a message of an item.
type Decode<T> = dyn Fn(Item) -> Result<T, Failure> + Send + Sync;

impl<B: Broker> Source<B> {
    /// A source of this broker's items.
    #[must_use]
    pub fn new(broker: B, options: SourceOptions) -> Self {
        Self {
            broker: Arc::new(broker),
            options,
            decode: Arc::new(Ok),
            demand: Arc::default(),
            fetched: None,
            received: Vec::new(),
            stopped: watch::Sender::new(false),
            worker: None,
        }
    }

    /// A source of what the payloads say in JSON. An item that is not valid is given up, with the
    /// parser's error as its reason.
    #[must_use]
    pub fn json<T: DeserializeOwned + Send + Sync + 'static>(self) -> Source<B, T> {
        self.decode(|item| {
            let read = serde_json::from_slice(&item.payload);
            read.map_err(|error| Failure::new(format!("not valid JSON: {error}")).give_up())
        })
    }

    /// A source of what a function makes of the items. An item for which it fails or panics has failed;
    /// with [`Failure::give_up`] it is given up at once.
    #[must_use]
    pub fn decode<T: Send + Sync + 'static>(
        self,
        decode: impl Fn(Item) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Source<B, T> {
        // A source has a destructor, so its fields are not moved out of it.
        Source {
            broker: self.broker.clone(),
            options: self.options,
            decode: Arc::new(decode),
            demand: Arc::default(),
            fetched: None,
            received: Vec::new(),
            stopped: watch::Sender::new(false),
            worker: None,
        }
    }
}

impl<B: Broker, T: Send + Sync + 'static> Producer for Source<B, T> {
    type Event = Message<T>;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        let metrics = SourceMetrics::register(context, &self.broker.description());
        #[expect(clippy::disallowed_methods, reason = "the demand is the bound")]
        let (sender, fetched) = mpsc::unbounded_channel();
        self.fetched = Some(fetched);
        self.worker = Some(Worker {
            broker: self.broker.clone(),
            options: self.options,
            demand: self.demand.clone(),
            fetched: sender,
            stopped: self.stopped.subscribe(),
            metrics,
            source: context.stage().into(),
            lines: Mutex::default(),
            fetch_size: Mutex::new(FetchSize::new()),
        });
        Ok(())
    }

    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
        let mut task = AbortOnDrop(tokio::spawn(work(self.worker.take()?)));
        Some(Box::pin(async move {
            // A panic of the broker is logged where it is caught.
            let _ = (&mut task.0).await;
        }))
    }

    async fn handle_demand(
        &mut self,
        demand: usize,
        _out: &mut Emitter<'_, Message<T>>,
    ) -> Result<(), ExitReason> {
        self.demand.add(demand);
        Ok(())
    }

    async fn ready(&mut self) {
        let Some(fetched) = &mut self.fetched else { return pending().await };
        if self.received.is_empty() {
            // None arrive if the task has ended.
            fetched.recv_many(&mut self.received, usize::MAX).await;
        }
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, Message<T>>) -> Result<(), ExitReason> {
        if self.received.is_empty() {
            return Err(ExitReason::failed("the task of the source has ended"));
        }
        let before = self.received.len();
        // A panic would end the stage, and its item would come again to the next one.
        let decode = |item| {
            catch_unwind(AssertUnwindSafe(|| (self.decode)(item)))
                .unwrap_or_else(|panic| Err(ExitReason::from_panic(&*panic).into()))
        };
        // What a lost session has fetched comes again.
        let current = self.received.drain(..).filter(Message::is_current);
        let messages = current.filter_map(|item| item.try_map(decode));
        let messages: Vec<_> = messages.collect();
        // An item that could not be read answers no demand.
        self.demand.add(before.saturating_sub(messages.len()));
        out.emit_all(messages);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, Message<T>>) -> Result<(), ExitReason> {
        self.stopped.send_replace(true);
        // Messages that are dropped are given back.
        self.received.clear();
        self.fetched = None;
        out.finish();
        Ok(())
    }

    fn pending(&self) -> usize {
        self.received.len()
    }
}

impl<B: Broker, T> Drop for Source<B, T> {
    fn drop(&mut self) {
        self.stopped.send_replace(true);
    }
}

impl<B: Broker + fmt::Debug, T> fmt::Debug for Source<B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("broker", &self.broker)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A task that ends when its owner is gone.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
