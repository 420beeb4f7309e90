//! The database in PostgreSQL, which nodes on several machines share.

use std::{
    error::Error as _,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use pipeline::sources::{
    Item as QueueItem,
    postgres::{
        connect, push_in,
        tokio_postgres::{
            Client, Config, Error, IsolationLevel, Row as Record, Transaction,
            types::{ToSql, Type},
        },
    },
};
use serde_json::json;
use tokio::{
    sync::{Mutex as Turn, Semaphore},
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{
    Answer, BoughtBefore, COMPARED, CheckOut, Database, DatabaseError, Order, PLACED_ORDERS,
    PlacedOrder, Release, Sale,
};
use crate::domain::{
    catalogue::{Catalogue, Item, Product},
    change::{Change, Row},
};

/// How many connections there are at most. A call that finds none waits.
const CONNECTIONS: usize = 16;

/// How many calls may wait for a connection. The next one is refused.
const MAX_WAITING: usize = 1024;

/// How long a call may take, from its connection to its commit.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may be unused before it is closed instead of used again. A network may have forgotten it by then
/// without a word, and the call that finds out has waited in vain.
const UNUSED: Duration = Duration::from_secs(60);

/// After how long a silence the system asks whether the server is there, how often it asks again, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(5), 3);

/// The time that the client of the server would wait before it asks, if the address does not say another.
const ITS_KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);

/// The tables of the shop. Revisions grow with every change of their row.
const TABLES: &str = "
CREATE TABLE products (
    id BIGINT PRIMARY KEY,
    position BIGINT NOT NULL,
    sku TEXT NOT NULL UNIQUE,
    brand TEXT NOT NULL,
    name TEXT NOT NULL,
    color TEXT NOT NULL,
    price_usd BIGINT NOT NULL CHECK (price_usd >= 0),
    main_image_url TEXT NOT NULL,
    released BOOLEAN NOT NULL DEFAULT FALSE,
    release_at BIGINT,
    rev BIGINT NOT NULL DEFAULT 1
);
CREATE TABLE items (
    id BIGINT PRIMARY KEY,
    product_id BIGINT NOT NULL REFERENCES products (id),
    sku TEXT NOT NULL UNIQUE,
    size TEXT NOT NULL
);
CREATE INDEX items_by_product ON items (product_id);
CREATE TABLE item_availabilities (
    item_id BIGINT PRIMARY KEY REFERENCES items (id),
    available_count BIGINT NOT NULL CHECK (available_count >= 0),
    rev BIGINT NOT NULL DEFAULT 1
);
CREATE TABLE orders (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key TEXT NOT NULL,
    cart TEXT NOT NULL,
    placed_at BIGINT NOT NULL,
    UNIQUE (cart, key)
);
CREATE TABLE order_items (
    order_id BIGINT NOT NULL REFERENCES orders (id),
    item_id BIGINT NOT NULL REFERENCES items (id),
    price_usd BIGINT NOT NULL,
    PRIMARY KEY (order_id, item_id)
);
";

/// Whether the tables are there.
const HAS_TABLES: &str = "SELECT to_regclass('products') IS NOT NULL";

/// The number of the lock of the process that makes the tables.
const MAKES_TABLES: &str = "SELECT pg_advisory_xact_lock(7046029254386353131)";

/// Lets one transaction at a time look at the orders of a cart, and add one.
const LOCK_CART: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 23))";

const SELL: &str = "
UPDATE item_availabilities SET available_count = available_count - 1, rev = rev + 1
WHERE item_id = $1 AND available_count > 0 RETURNING available_count, rev";

const ITEMS_OF_ORDER: &str =
    "SELECT item_id, price_usd FROM order_items WHERE order_id = $1 ORDER BY item_id";

/// Where the database is, and what a new one has.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// The address: `postgres://user:password@host/database`.
    pub url: String,
    /// The products and items of a new database.
    pub seed: Catalogue,
    /// Whether the tables are made if there are none. Otherwise they are waited for.
    pub creates: bool,
}

/// The database in PostgreSQL. Cheap to clone.
///
/// It connects when it is used, and again after an error, with TLS where the address says `sslmode=require`. The tables are made and get their products in one
/// transaction, whichever node comes first. Tables that are there get none, so a database that was emptied stays empty.
#[derive(Clone)]
pub struct PostgresDatabase(Arc<Inner>);

struct Inner {
    config: Config,
    seed: Catalogue,
    creates: bool,
    connections: Semaphore,
    waiting: Semaphore,
    idle: Mutex<Vec<Connected>>,
    /// Whether the tables were found. One call at a time looks.
    is_prepared: Turn<bool>,
}

/// A connection, which is closed when it is dropped.
struct Connected {
    client: Client,
    task: AbortHandle,
    used_at: Instant,
}

impl Connected {
    /// Whether a call may have it.
    fn is_good(&self) -> bool {
        !self.client.is_closed() && self.used_at.elapsed() < UNUSED
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        // A server that does not answer would keep the task.
        self.task.abort();
    }
}

/// Parameters of a statement, with their types.
type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// What a call does in its transaction.
type Run<T> =
    Box<dyn for<'a> FnOnce(&'a Transaction<'a>) -> BoxFuture<'a, Result<T, Error>> + Send>;

impl PostgresDatabase {
    /// The database at this address. The server need not be there yet.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Failed`] if the address cannot be read. The error does not have the address.
    pub fn new(options: PostgresOptions) -> Result<Self, DatabaseError> {
        let PostgresOptions { url, seed, creates } = options;
        let mut config: Config = url.parse().map_err(|_| {
            DatabaseError::Failed("expected postgres://user:password@host/database".to_owned())
        })?;
        config.connect_timeout(PATIENCE);
        if config.get_keepalives_idle() == ITS_KEEPALIVE {
            let (idle, interval, retries) = KEEPALIVE;
            config.keepalives_idle(idle).keepalives_interval(interval).keepalives_retries(retries);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(PATIENCE);
        }
        if config.get_options().is_none() {
            // What nothing waits for any more ends at the server too, and its connection with it.
            config.options("-c statement_timeout=9s -c lock_timeout=9s -c idle_in_transaction_session_timeout=9s");
        }
        Ok(Self(Arc::new(Inner {
            config,
            seed,
            creates,
            connections: Semaphore::new(CONNECTIONS),
            waiting: Semaphore::new(MAX_WAITING),
            idle: Mutex::default(),
            is_prepared: Turn::new(false),
        })))
    }

    /// Runs a transaction, and commits it.
    fn transact<T: Send + 'static>(&self, run: Run<T>) -> Answer<'_, T> {
        async move {
            let _waiting = self.0.waiting.try_acquire().map_err(|_| DatabaseError::Crowded)?;
            let commits = AtomicBool::new(false);
            let done = timeout(PATIENCE, self.0.transact(run, &commits)).await;
            let away = |_| Err(DatabaseError::Away("it does not answer".to_owned()));
            done.unwrap_or_else(away).map_err(|error| {
                if commits.load(Relaxed) {
                    DatabaseError::Unknown(error.to_string())
                } else {
                    error
                }
            })
        }
        .boxed()
    }
}

impl Inner {
    /// Runs a transaction. While `commits` is true, whether it was stored is known by the server alone.
    async fn transact<T>(&self, run: Run<T>, commits: &AtomicBool) -> Result<T, DatabaseError> {
        // It is closed with the database only.
        let _connection = self.connections.acquire().await.map_err(|_| DatabaseError::Crowded)?;
        let idle = {
            let mut idle = self.idle.lock();
            idle.retain(Connected::is_good);
            idle.pop()
        };
        let mut connected = match idle {
            Some(connected) => connected,
            None => self.connect().await?,
        };
        self.prepare(&mut connected.client).await?;
        // The server's default may be another one. A snapshot from before the wait for the lock of a cart would not have the
        // order of the tab that had the lock, and an item that another cart has just bought could not be bought at all.
        let begin = connected.client.build_transaction();
        let begin = begin.isolation_level(IsolationLevel::ReadCommitted);
        let transaction = begin.start().await.map_err(failed)?;
        // What fails, or is dropped, is rolled back.
        let result = run(&transaction).await.map_err(failed)?;
        commits.store(true, Relaxed);
        let committed = transaction.commit().await;
        let is_known =
            committed.as_ref().map_or_else(|error| error.as_db_error().is_some(), |()| true);
        commits.store(!is_known, Relaxed);
        committed.map_err(failed)?;
        connected.used_at = Instant::now();
        self.idle.lock().push(connected);
        Ok(result)
    }

    async fn connect(&self) -> Result<Connected, DatabaseError> {
        let away = |error: Error| DatabaseError::Away(text(&error));
        let (client, connection) = connect(&self.config).await.map_err(away)?;
        let task = tokio::spawn(async move {
            // It ends with an error or when the client is gone. Calls get the error.
            let _ = connection.await;
        });
        Ok(Connected { client, task: task.abort_handle(), used_at: Instant::now() })
    }

    /// Looks for the tables, and makes them if there are none and it may.
    async fn prepare(&self, client: &mut Client) -> Result<(), DatabaseError> {
        let mut is_prepared = self.is_prepared.lock().await;
        if *is_prepared {
            return Ok(());
        }
        let transaction = client.transaction().await.map_err(failed)?;
        transaction.execute(MAKES_TABLES, &[]).await.map_err(failed)?;
        let has_tables = transaction.query_one(HAS_TABLES, &[]).await.map_err(failed)?;
        if !has_tables.try_get::<_, bool>(0).map_err(failed)? {
            if !self.creates {
                return Err(DatabaseError::Away("it has no tables of the shop".to_owned()));
            }
            transaction.batch_execute(TABLES).await.map_err(failed)?;
            insert(&transaction, &self.seed).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        *is_prepared = true;
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "results are mapped by it")]
fn failed(error: Error) -> DatabaseError {
    // A connection that is lost has a cause that is no answer of the server.
    let is_lost = error.as_db_error().is_none()
        && error.source().is_some_and(<dyn std::error::Error>::is::<io::Error>);
    if error.is_closed() || is_lost {
        DatabaseError::Away(text(&error))
    } else {
        DatabaseError::Failed(text(&error))
    }
}

/// The text of an error, with that of its cause.
fn text(error: &Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

async fn insert(transaction: &Transaction<'_>, seed: &Catalogue) -> Result<(), Error> {
    for it in seed.products() {
        let insert = "INSERT INTO products (id, position, sku, brand, name, color, price_usd, main_image_url,
            released, release_at, rev) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        let row: [&(dyn ToSql + Sync); 11] = [
            &it.id,
            &it.position,
            &it.sku,
            &it.brand,
            &it.name,
            &it.color,
            &it.price_usd,
            &it.main_image_url,
            &it.released,
            &it.release_at,
            &it.rev,
        ];
        transaction.execute(insert, &row).await?;
    }
    for it in seed.items() {
        let insert = "INSERT INTO items (id, product_id, sku, size) VALUES ($1, $2, $3, $4)";
        transaction.execute(insert, &[&it.id, &it.product_id, &it.sku, &it.size]).await?;
        let insert =
            "INSERT INTO item_availabilities (item_id, available_count, rev) VALUES ($1, $2, $3)";
        transaction.execute(insert, &[&it.id, &it.available_count, &it.rev]).await?;
    }
    Ok(())
}

/// The first row of an answer, if it has one.
async fn first(
    transaction: &Transaction<'_>,
    statement: &str,
    parameters: Parameters<'_>,
) -> Result<Option<Record>, Error> {
    Ok(transaction.query_typed(statement, parameters).await?.into_iter().next())
}

/// Whether the first column of the first row is true.
async fn is_so(
    transaction: &Transaction<'_>,
    statement: &str,
    parameters: Parameters<'_>,
) -> Result<bool, Error> {
    first(transaction, statement, parameters).await?.map_or(Ok(false), |row| row.try_get(0))
}

fn product(row: &Record) -> Result<Product, Error> {
    Ok(Product {
        id: row.try_get(0)?,
        position: row.try_get(1)?,
        sku: row.try_get(2)?,
        brand: row.try_get(3)?,
        name: row.try_get(4)?,
        color: row.try_get(5)?,
        price_usd: row.try_get(6)?,
        main_image_url: row.try_get(7)?,
        released: row.try_get(8)?,
        release_at: row.try_get(9)?,
        rev: row.try_get(10)?,
    })
}

fn item(row: &Record) -> Result<Item, Error> {
    Ok(Item {
        id: row.try_get(0)?,
        product_id: row.try_get(1)?,
        sku: row.try_get(2)?,
        size: row.try_get(3)?,
        available_count: row.try_get(4)?,
        rev: row.try_get(5)?,
    })
}

/// The change of an item's stock, from `available_count` and `rev`.
fn stock(id: i64, row: &Record) -> Result<Change, Error> {
    Ok(Change::Item { id, available_count: row.try_get(0)?, rev: row.try_get(1)? })
}

/// The items of a placed order with their prices, ascending.
async fn items_of(transaction: &Transaction<'_>, order: i64) -> Result<Vec<(i64, i64)>, Error> {
    let rows = transaction.query_typed(ITEMS_OF_ORDER, &[(&order, Type::INT8)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// What is known of an order from those of its cart: the answer, unless it is a new one.
async fn known(transaction: &Transaction<'_>, order: &Order) -> Result<Option<CheckOut>, Error> {
    transaction.query_typed(LOCK_CART, &[(&order.cart, Type::TEXT)]).await?;
    let find = "SELECT id FROM orders WHERE cart = $1 AND key = $2";
    let by_key = [(&order.cart as &(dyn ToSql + Sync), Type::TEXT), (&order.key, Type::TEXT)];
    if let Some(row) = first(transaction, find, &by_key).await? {
        let bought = items_of(transaction, row.try_get(0)?).await?;
        let is_it = bought.into_iter().map(|(item, _)| item).eq(order.distinct_items());
        return Ok(Some(if is_it { CheckOut::Repeated } else { CheckOut::OtherItems }));
    }
    let last = "SELECT id, key FROM orders WHERE cart = $1 ORDER BY id DESC LIMIT $2";
    let compared = i64::try_from(COMPARED).unwrap_or(i64::MAX);
    let of_cart = [(&order.cart as &(dyn ToSql + Sync), Type::TEXT), (&compared, Type::INT8)];
    let mut overlooked = Vec::new();
    for row in transaction.query_typed(last, &of_cart).await? {
        let items = items_of(transaction, row.try_get(0)?).await?;
        let items = items.into_iter().map(|(item, _)| item).collect();
        let earlier = BoughtBefore { key: row.try_get(1)?, items };
        if order.overlooks(&earlier) {
            overlooked.push(earlier);
        }
    }
    Ok((!overlooked.is_empty()).then_some(CheckOut::BoughtBefore(overlooked)))
}

/// Sells one of each item, in order of their ids, so that two carts never wait for each other. If that cannot be, the
/// transaction is at its savepoint.
async fn check_out(transaction: &Transaction<'_>, order: Order) -> Result<CheckOut, Error> {
    if let Some(known) = known(transaction, &order).await? {
        return Ok(known);
    }
    let items = order.distinct_items();
    let (mut prices, mut not_for_sale) = (Vec::new(), Vec::new());
    for item in &items {
        let find = "SELECT price_usd, released FROM items JOIN products ON products.id = product_id
            WHERE items.id = $1";
        let found = first(transaction, find, &[(item, Type::INT8)]).await?;
        match found {
            Some(row) if row.try_get(1)? => prices.push((*item, row.try_get::<_, i64>(0)?)),
            _ => not_for_sale.push(*item),
        }
    }
    if !not_for_sale.is_empty() {
        return Ok(CheckOut::NotForSale(not_for_sale));
    }
    transaction.batch_execute("SAVEPOINT sale").await?;
    let (mut changes, mut gone) = (Vec::new(), Vec::new());
    for id in items {
        match first(transaction, SELL, &[(&id, Type::INT8)]).await? {
            Some(row) => changes.push(stock(id, &row)?),
            None => gone.push(id),
        }
    }
    if !gone.is_empty() {
        transaction.batch_execute("ROLLBACK TO sale").await?;
        return Ok(CheckOut::Gone(gone));
    }
    let insert = "INSERT INTO orders (key, cart, placed_at) VALUES ($1, $2, $3) RETURNING id";
    let placed = [
        (&order.key as &(dyn ToSql + Sync), Type::TEXT),
        (&order.cart, Type::TEXT),
        (&order.placed_at, Type::INT8),
    ];
    let id: i64 = transaction.query_typed_one(insert, &placed).await?.try_get(0)?;
    for (item, price_usd) in &prices {
        let insert = "INSERT INTO order_items (order_id, item_id, price_usd) VALUES ($1, $2, $3)";
        let row =
            [(&id as &(dyn ToSql + Sync), Type::INT8), (item, Type::INT8), (price_usd, Type::INT8)];
        transaction.query_typed(insert, &row).await?;
    }
    // Until the pipeline of orders has made the queue, an order is confirmed only by the node that has taken it.
    if is_so(transaction, "SELECT to_regclass('pipeline_items') IS NOT NULL", &[]).await? {
        let items: Vec<i64> = prices.iter().map(|(item, _)| *item).collect();
        let placed = json!({ "cart": order.cart, "items": items, "order": order.key }).to_string();
        push_in(transaction, PLACED_ORDERS, &QueueItem::new(placed)).await?;
    }
    Ok(CheckOut::Placed(changes))
}

async fn load(transaction: &Transaction<'_>) -> Result<Catalogue, Error> {
    // Both are of one moment.
    transaction.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    let products = "SELECT id, position, sku, brand, name, color, price_usd, main_image_url, released, release_at,
        rev FROM products";
    let products = transaction.query_typed(products, &[]).await?;
    let items = "SELECT items.id, product_id, sku, size, available_count, rev
        FROM items JOIN item_availabilities ON item_id = items.id";
    let items = transaction.query_typed(items, &[]).await?;
    let products = products.iter().map(product).collect::<Result<_, _>>()?;
    Ok(Catalogue::new(products, items.iter().map(item).collect::<Result<_, _>>()?))
}

async fn release(transaction: &Transaction<'_>, id: i64) -> Result<Release, Error> {
    let release =
        "UPDATE products SET released = TRUE, rev = rev + 1 WHERE id = $1 AND NOT released
        RETURNING rev";
    if let Some(row) = first(transaction, release, &[(&id, Type::INT8)]).await? {
        let change = Change::Product { id, released: true, rev: row.try_get(0)? };
        return Ok(Release::Released(change));
    }
    let exists = "SELECT EXISTS (SELECT 1 FROM products WHERE id = $1)";
    let is_known = is_so(transaction, exists, &[(&id, Type::INT8)]).await?;
    Ok(if is_known { Release::AlreadyReleased } else { Release::UnknownProduct })
}

async fn schedule(transaction: &Transaction<'_>, id: i64, at_ms: i64) -> Result<bool, Error> {
    let set = "UPDATE products SET release_at = $2, rev = rev + 1 WHERE id = $1 AND NOT released
        RETURNING id";
    let parameters = [(&id as &(dyn ToSql + Sync), Type::INT8), (&at_ms, Type::INT8)];
    Ok(first(transaction, set, &parameters).await?.is_some())
}

async fn sell(transaction: &Transaction<'_>, id: i64) -> Result<Sale, Error> {
    if let Some(row) = first(transaction, SELL, &[(&id, Type::INT8)]).await? {
        return Ok(Sale::Sold(stock(id, &row)?));
    }
    let exists = "SELECT EXISTS (SELECT 1 FROM items WHERE id = $1)";
    let is_known = is_so(transaction, exists, &[(&id, Type::INT8)]).await?;
    Ok(if is_known { Sale::OutOfStock } else { Sale::UnknownItem })
}

async fn set_stock(
    transaction: &Transaction<'_>,
    id: i64,
    available_count: i64,
) -> Result<Option<Change>, Error> {
    let set =
        "UPDATE item_availabilities SET available_count = $2, rev = rev + 1 WHERE item_id = $1
        RETURNING available_count, rev";
    let parameters = [(&id as &(dyn ToSql + Sync), Type::INT8), (&available_count, Type::INT8)];
    first(transaction, set, &parameters).await?.map(|row| stock(id, &row)).transpose()
}

async fn raise(transaction: &Transaction<'_>, rows: Vec<(Row, i64)>) -> Result<Vec<Change>, Error> {
    let item = "UPDATE item_availabilities SET rev = $2 + 1 WHERE item_id = $1 AND rev <= $2
        RETURNING available_count, rev";
    let product =
        "UPDATE products SET rev = $2 + 1 WHERE id = $1 AND rev <= $2 RETURNING released, rev";
    let mut raised = Vec::new();
    for (row, rev) in rows {
        let (Row::Item(id) | Row::Product(id)) = row;
        let parameters = [(&id as &(dyn ToSql + Sync), Type::INT8), (&rev, Type::INT8)];
        let is_item = matches!(row, Row::Item(_));
        let raise = if is_item { item } else { product };
        let Some(record) = first(transaction, raise, &parameters).await? else { continue };
        raised.push(if is_item {
            stock(id, &record)?
        } else {
            Change::Product { id, released: record.try_get(0)?, rev: record.try_get(1)? }
        });
    }
    Ok(raised)
}

async fn orders(transaction: &Transaction<'_>) -> Result<Vec<PlacedOrder>, Error> {
    let all = "SELECT id, key, cart, placed_at FROM orders ORDER BY id";
    let mut orders = Vec::new();
    for row in transaction.query_typed(all, &[]).await? {
        let id = row.try_get(0)?;
        let (key, cart, placed_at) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let items = items_of(transaction, id).await?;
        orders.push(PlacedOrder { id, key, cart, placed_at, items });
    }
    Ok(orders)
}

impl Database for PostgresDatabase {
    fn load(&self) -> Answer<'_, Catalogue> {
        self.transact(Box::new(|it| load(it).boxed()))
    }

    fn release(&self, product: i64) -> Answer<'_, Release> {
        self.transact(Box::new(move |it| release(it, product).boxed()))
    }

    fn schedule(&self, product: i64, at_ms: i64) -> Answer<'_, bool> {
        self.transact(Box::new(move |it| schedule(it, product, at_ms).boxed()))
    }

    fn sell(&self, item: i64) -> Answer<'_, Sale> {
        self.transact(Box::new(move |it| sell(it, item).boxed()))
    }

    fn stock(&self, item: i64, available_count: i64) -> Answer<'_, Option<Change>> {
        self.transact(Box::new(move |it| set_stock(it, item, available_count).boxed()))
    }

    fn raise(&self, rows: Vec<(Row, i64)>) -> Answer<'_, Vec<Change>> {
        self.transact(Box::new(move |it| raise(it, rows).boxed()))
    }

    fn check_out(&self, order: Order) -> Answer<'_, CheckOut> {
        self.transact(Box::new(move |it| check_out(it, order).boxed()))
    }

    fn orders(&self) -> Answer<'_, Vec<PlacedOrder>> {
        self.transact(Box::new(|it| orders(it).boxed()))
    }
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresDatabase")
    }
}
