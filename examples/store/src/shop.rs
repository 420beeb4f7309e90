//! The shop: what its pages, channels and pipelines share.

use std::{
    fmt, mem,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline::{
    source::{FairQueueOptions, Queue, QueueOptions, TimedFairQueue, queue, timed_fair_queue},
    telemetry::Telemetry,
    timed::Timed,
    ws::{
        Presence, PubSub,
        presence::{PresenceDiff, TrackerOptions},
        pubsub::SubscriberId,
        token::{Signer, SignerError},
    },
};
use thiserror::Error;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::Instant,
};

use crate::{
    clock::Clock,
    database::{CheckOut, Database, DatabaseError, Order, Release, Sale},
    domain::{
        cart::CartRules,
        catalogue::{Applied, Catalogue},
        change::{Change, Row},
        ids::PresenceKeys,
    },
    inventory::Inventory,
    pages::{ItemView, ProductView},
    pipelines::Producers,
    telemetry::Metrics,
};

/// The topic on which nodes tell each other of changes.
pub const REPLICATION: &str = "inventory_replication";

/// The topic of the dashboard's presences.
pub const CART_TRACKER: &str = "admin:cart_tracker";

/// The topic of the dashboard's totals.
pub const TOTALS: &str = "admin:totals";

/// The topic of the server-driven page.
pub const DROPS_PAGE: &str = "page:drops";

/// The most rows that wait to be told. There are no more rows than this, or their news waits for the next comparison.
const MAX_ROWS: usize = 100_000;

/// The most writes that have begun and have not ended. The next one is refused, and counts as failed.
const MAX_WRITES: usize = 16_384;

/// After how long a silence the shoppers of another node are gone. What is added to it, until the next look and the diff, leaves
/// them no longer than 30 seconds.
const DOWN: Duration = Duration::from_secs(25);

/// What a shop is made with.
pub struct ShopOptions {
    /// The source of truth.
    pub database: Arc<dyn Database>,
    /// The secret that signs carts, pages and tokens.
    pub secret: String,
    /// How many items a cart may have.
    pub max_cart_items: usize,
    /// The clock.
    pub clock: Clock,
    /// Where metrics go.
    pub telemetry: Telemetry,
    /// Whether `/bench/1` and the like are pages that the dashboard shows.
    pub bench: bool,
    /// How long an open page may say nothing. One that says less is gone.
    pub idle_timeout: Duration,
    /// The addresses of proxies that say where a request comes from.
    pub trusted_proxies: Vec<IpAddr>,
}

/// The shop.
pub struct Shop {
    /// The copy of the inventory.
    pub inventory: Inventory,
    /// The source of truth.
    pub database: Arc<dyn Database>,
    /// The clock.
    pub clock: Clock,
    /// How carts are signed, and how much they hold.
    pub rules: CartRules,
    /// The signers of everything else.
    pub signers: Signers,
    /// The keys under which admins see carts.
    pub keys: PresenceKeys,
    /// The presences: who is there.
    pub presence: Presence,
    /// The metrics.
    pub metrics: Metrics,
    /// Whether `/bench/1` and the like are pages.
    pub bench: bool,
    /// How long an open page may say nothing.
    pub idle_timeout: Duration,
    /// The addresses of proxies that say where a request comes from.
    pub trusted_proxies: Vec<IpAddr>,
    news: News,
    /// Notified when the copy may miss something.
    doubt: Notify,
    network: OnceLock<Network>,
    /// The writes that have begun. They end with the shop, or in [`settled`](Self::settled).
    writes: Mutex<JoinSet<()>>,
}

/// The entrances of the pipelines.
struct News {
    levels: TimedFairQueue<Row, Tell>,
    alerts: TimedFairQueue<i64, i64>,
    totals: Queue<()>,
}

/// What shoppers are to hear of. It says what has changed and not how: that is read at the moment of telling.
#[derive(Clone, Copy, Debug)]
pub enum Tell {
    /// The stock of an item.
    Stock {
        /// The item.
        item: i64,
        /// Its product.
        product: i64,
        /// When the first of these changes was applied.
        since: Instant,
    },
    /// A product was released.
    Release(i64),
}

/// The way to clients and to other nodes.
struct Network {
    pubsub: PubSub,
    /// The own listener, which hears only others.
    own: SubscriberId,
}

/// Signers, each for one purpose.
#[derive(Debug)]
pub struct Signers {
    /// The session cookie.
    pub session: Signer,
    /// The proof of a page that it may join its cart.
    pub page: Signer,
    /// What forms send back.
    pub csrf: Signer,
    /// The admin's socket.
    pub admin: Signer,
    /// That an order was placed in this session.
    pub ordered: Signer,
}

/// A shop that cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShopError {
    /// The secret.
    #[error(transparent)]
    Secret(#[from] SignerError),
}

const DAY: Duration = Duration::from_secs(86_400);

impl Signers {
    fn new(secret: &str) -> Result<Self, SignerError> {
        Ok(Self {
            session: Signer::new(secret, "session")?.max_age(DAY.saturating_mul(365)),
            page: Signer::new(secret, "cart id")?.max_age(DAY),
            csrf: Signer::new(secret, "csrf")?.max_age(DAY),
            admin: Signer::new(secret, "admin socket")?.max_age(DAY),
            ordered: Signer::new(secret, "ordered")?.max_age(DAY),
        })
    }
}

impl fmt::Debug for ShopOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShopOptions").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Shop {
    /// A shop, and the producers of its pipelines, which are started with the endpoint.
    ///
    /// # Errors
    ///
    /// [`ShopError`] if the secret is too short.
    pub fn new(options: ShopOptions) -> Result<(Arc<Self>, Producers), ShopError> {
        let ShopOptions { database, secret, max_cart_items, clock, telemetry, bench, .. } = options;
        let ShopOptions { idle_timeout, trusted_proxies, .. } = options;
        // One entry per row: what is true is read at the moment of telling, so one stands for all changes until then.
        let one_per_row = || FairQueueOptions::new().capacity(MAX_ROWS).key_capacity(1);
        let (levels, levels_producer) = timed_fair_queue(one_per_row());
        let (alerts, alerts_producer) =
            timed_fair_queue(FairQueueOptions::new().capacity(MAX_ROWS).key_capacity(1));
        // One entry says that something has changed. What, is read from the presence.
        let (totals, totals_producer) = queue(QueueOptions::new().capacity(1));
        let changed = totals.clone();
        let presence = Presence::builder()
            .name("carts")
            .tracker(TrackerOptions::new().down_period(DOWN))
            .on_diff(move |diff: &PresenceDiff| {
                if &*diff.topic == CART_TRACKER {
                    // One that waits stands for this one too.
                    let _ = changed.try_push(());
                }
            })
            .build();
        let shop = Self {
            inventory: Inventory::default(),
            database,
            clock,
            rules: CartRules::new(&secret, max_cart_items)?,
            signers: Signers::new(&secret)?,
            keys: PresenceKeys::new(&secret),
            presence,
            metrics: Metrics::new(&telemetry),
            bench,
            idle_timeout,
            trusted_proxies,
            news: News { levels, alerts, totals },
            doubt: Notify::new(),
            network: OnceLock::new(),
            writes: Mutex::default(),
        };
        let producers =
            Producers { levels: levels_producer, alerts: alerts_producer, totals: totals_producer };
        Ok((Arc::new(shop), producers))
    }

    /// Connects the shop to its endpoint. `own` is the subscriber that hears of other nodes' changes.
    pub(crate) fn connect(&self, pubsub: PubSub, own: SubscriberId) {
        // It is connected once.
        let _ = self.network.set(Network { pubsub, own });
    }

    /// Does a write in a task of its own. A request ends with its client, and what the database has committed by then has to
    /// be told all the same.
    async fn to_its_end<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, DatabaseError>> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut writes = self.writes.lock();
            while writes.try_join_next().is_some() {}
            if writes.len() >= MAX_WRITES {
                self.metrics.failed.increment(1);
                return Err(DatabaseError::Crowded);
            }
            writes.spawn(async move {
                // The client may be gone.
                let _ = answer.send(write.await);
            });
        }
        // It may have ended after the database has stored it.
        let ended = || DatabaseError::Unknown("its task has ended".to_owned());
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Waits until all writes that have begun are done and told. Those that are not done when this is dropped are ended.
    pub async fn settled(&self) {
        loop {
            let mut writes = mem::take(&mut *self.writes.lock());
            if writes.is_empty() {
                return;
            }
            while writes.join_next().await.is_some() {}
        }
    }

    /// Releases a product: in the database, then in the copy, then on the other nodes, then for the clients.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if the database has not released it. Then nothing has changed anywhere, unless that is unknown.
    pub async fn release(self: &Arc<Self>, product: i64) -> Result<Release, DatabaseError> {
        let shop = self.clone();
        self.to_its_end(async move {
            let release = shop.database.release(product).await?;
            if let Release::Released(change) = release {
                shop.committed(&[change]);
            }
            Ok(release)
        })
        .await
    }

    /// Sets when a product is released by itself.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if the database has not noted it.
    pub async fn schedule(&self, product: i64, at_ms: i64) -> Result<bool, DatabaseError> {
        let is_noted = self.database.schedule(product, at_ms).await?;
        self.doubt();
        Ok(is_noted)
    }

    /// Sells one of an item.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if the database has sold none.
    pub async fn sell(self: &Arc<Self>, item: i64) -> Result<Sale, DatabaseError> {
        let shop = self.clone();
        self.to_its_end(async move { shop.sell_here(item).await }).await
    }

    async fn sell_here(&self, item: i64) -> Result<Sale, DatabaseError> {
        let sale = self.database.sell(item).await;
        match &sale {
            Ok(Sale::Sold(change)) => {
                self.metrics.sold.increment(1);
                self.committed(&[*change]);
            }
            Ok(Sale::OutOfStock) => self.metrics.out.increment(1),
            Ok(Sale::UnknownItem) => {}
            Err(_) => self.metrics.failed.increment(1),
        }
        sale
    }

    /// Sets how many of an item there are. Returns whether there is such an item.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if the database has not changed it.
    pub async fn stock(
        self: &Arc<Self>,
        item: i64,
        available_count: i64,
    ) -> Result<bool, DatabaseError> {
        let shop = self.clone();
        self.to_its_end(async move {
            let change = shop.database.stock(item, available_count).await?;
            shop.committed(change.as_slice());
            Ok(change.is_some())
        })
        .await
    }

    /// Buys a cart, all or nothing. The cart is emptied in all its tabs.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if the database has sold nothing.
    pub async fn check_out(self: &Arc<Self>, order: Order) -> Result<CheckOut, DatabaseError> {
        let shop = self.clone();
        self.to_its_end(async move { shop.check_out_here(order).await }).await
    }

    async fn check_out_here(&self, order: Order) -> Result<CheckOut, DatabaseError> {
        let began = Instant::now();
        let done = self.database.check_out(order.clone()).await;
        self.metrics.checkout_took(began.elapsed());
        match &done {
            Ok(CheckOut::Placed(changes)) => {
                self.metrics.sold.increment(changes.len() as u64);
                self.committed(changes);
                self.empty(&order);
            }
            Ok(CheckOut::Repeated) => self.empty(&order),
            Ok(CheckOut::Gone(_)) => self.metrics.out.increment(1),
            Ok(CheckOut::NotForSale(_) | CheckOut::OtherItems | CheckOut::BoughtBefore(_)) => {}
            Err(_) => self.metrics.failed.increment(1),
        }
        done
    }

    /// Removes what was bought from the cart's tabs, on all nodes.
    fn empty(&self, Order { key, cart, items, .. }: &Order) {
        let payload = serde_json::json!({ "added": [], "removed": items, "order": key });
        if let Some(Network { pubsub, .. }) = self.network.get() {
            // Should another node not hear of it, the queue of placed orders says it again.
            if let Err(error) = pubsub.broadcast(&format!("cart:{cart}"), "cart_updated", payload) {
                tracing::warn!(
                    error = error.to_string(),
                    "a bought cart was not emptied everywhere"
                );
            }
        }
    }

    /// Takes over what was committed: into the copy, then to the other nodes, then to the clients of this one.
    fn committed(&self, changes: &[Change]) {
        self.apply(changes);
        let Some(Network { pubsub, own }) = self.network.get() else { return };
        for change in changes {
            // The commit has decided. A node that does not hear of it finds it when it compares.
            if let Err(error) = pubsub.broadcast_from(*own, REPLICATION, "change", change) {
                tracing::warn!(
                    error = error.to_string(),
                    "a change was not sent to the other nodes"
                );
            }
        }
    }

    /// Applies changes to the copy, and turns what they have done to it into news for the clients of this node. Changes of
    /// other nodes come here, too, and are not sent on.
    pub fn apply(&self, changes: &[Change]) {
        let outcome = self.inventory.apply(changes);
        if outcome.in_doubt {
            self.doubt();
        }
        self.announce(&outcome.applied);
    }

    /// Loads the copy from the database, and tells clients what was not as they had been told.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] if it cannot be loaded. Then the copy stays as it is.
    pub async fn reload(&self) -> Result<(), DatabaseError> {
        let loaded = self.database.load().await?;
        let lost = self.inventory.lost(&loaded);
        let applied = self.inventory.replace(loaded);
        if !applied.is_empty() {
            self.metrics.copy_reloads.increment(1);
        }
        self.announce(&applied);
        if !lost.is_empty() {
            let rows = lost.len();
            tracing::warn!(rows, "the database has lost commits, and is believed: they are gone");
            // Open pages and other nodes have the lost revisions too, and take only what is above them.
            let raised = self.database.raise(lost).await?;
            self.committed(&raised);
        }
        Ok(())
    }

    /// Has everything told again, because some of it may not have been.
    pub(crate) fn announce_all(&self) {
        let Some(catalogue) = self.inventory.snapshot() else { return };
        for product in catalogue.products().filter(|product| product.released) {
            self.announce(&[Applied::Release { product: product.id, released: true }]);
        }
        for item in catalogue.items() {
            let (item, product, count) = (item.id, item.product_id, item.available_count);
            self.announce(&[Applied::Stock { item, product, before: count, after: count }]);
        }
    }

    /// Puts what has changed into the queues. Threads that have applied one change after another may come here in any order:
    /// an entry names the row and not its change, and its state is read from the copy when the entry is handled.
    fn announce(&self, applied: &[Applied]) {
        for applied in applied {
            match *applied {
                Applied::Stock { item, product, before, after } => {
                    let tell = Tell::Stock { item, product, since: Instant::now() };
                    // An entry that waits stands for what is true when its turn comes, so a second one says nothing more.
                    let _ = self.news.levels.try_push(Row::Item(item), Timed::now(tell));
                    if (before == 0) != (after == 0) {
                        let _ = self.news.alerts.try_push(item, Timed::now(item));
                    }
                }
                Applied::Release { product, released: true } => {
                    let tell = Timed::now(Tell::Release(product));
                    let _ = self.news.levels.try_push(Row::Product(product), tell);
                }
                // Nothing takes a release back.
                Applied::Release { released: false, .. } => {}
            }
        }
    }

    /// Has the copy loaded again.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until the copy is in doubt.
    pub(crate) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Has the totals counted, for an admin who has just come.
    pub(crate) fn count_totals(&self) {
        let _ = self.news.totals.try_push(());
    }

    /// The number of rows that wait to be told.
    #[must_use]
    pub fn untold(&self) -> usize {
        self.news.levels.len()
    }
}

impl fmt::Debug for Shop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shop")
            .field("is_loaded", &self.inventory.is_loaded())
            .finish_non_exhaustive()
    }
}

/// All products as pages show them.
#[must_use]
pub fn product_views(catalogue: &Catalogue) -> Vec<ProductView> {
    catalogue.products().filter_map(|product| product_view(catalogue, product.id)).collect()
}

/// A product as pages show it.
#[must_use]
pub fn product_view(catalogue: &Catalogue, id: i64) -> Option<ProductView> {
    let product = catalogue.product(id)?;
    Some(ProductView {
        id,
        sku: product.sku.clone(),
        brand: product.brand.clone(),
        name: product.name.clone(),
        color: product.color.clone(),
        price_usd: product.price_usd,
        main_image_url: product.main_image_url.clone(),
        released: product.released,
        rev: product.rev,
        items: catalogue.items_of(id).map(|item| item_view(item)).collect(),
    })
}

/// An item as pages show it.
#[must_use]
pub fn item_view(item: &crate::domain::catalogue::Item) -> ItemView {
    ItemView {
        id: item.id,
        size: item.size.clone(),
        level: item.level(),
        rev: item.rev,
        count: item.available_count,
    }
}
