//! The database in a SQLite file.

use std::{
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use futures::FutureExt;
use pipeline::sources::{Item as QueueItem, sqlite::push_in};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Answer, BoughtBefore, COMPARED, CheckOut, Database, DatabaseError, Order, PLACED_ORDERS,
    PlacedOrder, Release, Sale,
    schema::{FOR_SALE, ITEMS, PRODUCTS, RAISE_ITEM, RAISE_PRODUCT, RELEASE, SELL, STOCK, TABLES},
    turns::Turns,
};
use crate::domain::{
    catalogue::{Catalogue, Item, Product},
    change::{self, Change},
};

/// How many calls may wait for the file. More of them wait outside.
const MAX_WAITING: usize = 1024;

/// How long a call waits for other processes that write to the file.
const BUSY: Duration = Duration::from_secs(5);

/// How long a process writes before others have their turn.
const TURN: Duration = Duration::from_millis(20);

/// By when a call has to have begun. One that has waited longer is refused: its shopper may have left, and buys nothing then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the file is, and what a new one has.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The path.
    pub path: PathBuf,
    /// The products and items of a new file.
    pub seed: Catalogue,
    /// Whether a file is created if there is none. Otherwise it is waited for.
    pub creates: bool,
    /// Whether orders are put into the queue of those that are to be confirmed, which a pipeline empties.
    pub confirm_orders: bool,
}

/// The database in a SQLite file, which several processes of one machine can share. A thread has it open. Processes that
/// have much to write do so in turns.
///
/// A file that goes away and comes back is opened again, and so is one after an error. A file is created and gets its products
/// once: a [mark](mark_of) next to it says that this was done. While the mark is there, a missing file, or one without the
/// shop's tables, is a database that is away.
#[derive(Clone)]
pub struct SqliteDatabase {
    jobs: mpsc::Sender<Job>,
}

/// What the thread does next.
enum Job {
    Run(Box<dyn FnOnce(&mut File) + Send>),
    /// Closes the connection. The next job opens another.
    Disconnect,
}

/// The file, as its thread has it.
struct File {
    options: SqliteOptions,
    /// The connection, and which file it has open.
    connection: Option<(Connection, Option<u64>)>,
    /// Whether the file has to be there: it was, so it is not created anew when it is taken away.
    existed: bool,
}

impl SqliteDatabase {
    /// The database in this file. It is opened, and created if need be, by the first call.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub fn new(options: SqliteOptions) -> io::Result<Self> {
        let (jobs, mut next) = mpsc::channel(MAX_WAITING);
        let existed = !options.creates;
        let mut file = File { options, connection: None, existed };
        // It ends when the last clone is dropped.
        thread::Builder::new().name("store-sqlite".to_owned()).spawn(move || {
            let mut turns = None;
            while let Some(job) = next.blocking_recv() {
                turns = turns.or_else(|| Turns::of(&file.options.path).ok());
                let turn = turns.as_ref().and_then(Turns::take);
                let began = Instant::now();
                let mut job = Some(job);
                while let Some(now) = job {
                    match now {
                        Job::Run(run) => run(&mut file),
                        Job::Disconnect => file.connection = None,
                    }
                    // What waits is done in the same turn, for a while.
                    job = if began.elapsed() < TURN { next.try_recv().ok() } else { None };
                }
                drop(turn);
                // Another file may be in its place.
                turns = turns.filter(|_| file.connection.is_some());
            }
        })?;
        Ok(Self { jobs })
    }

    /// Closes the connection to the file, as an operator may. The next call opens another.
    pub async fn disconnect(&self) {
        // The thread ends with the last sender, so it is there.
        let _ = self.jobs.send(Job::Disconnect).await;
    }

    /// Runs a transaction on the thread.
    fn transact<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Transaction<'_>, &SqliteOptions) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let (answer, answered) = oneshot::channel();
        let asked = Instant::now();
        let job = Job::Run(Box::new(move |file| {
            let is_late = asked.elapsed() >= PATIENCE;
            let done = if is_late { Err(DatabaseError::Crowded) } else { file.transact(run) };
            // The caller may be gone. What was committed is committed.
            let _ = answer.send(done);
        }));
        async move {
            let gone = || DatabaseError::Away("its thread has ended".to_owned());
            let sent = timeout(PATIENCE, self.jobs.send(job)).await;
            sent.map_err(|_| DatabaseError::Crowded)?.map_err(|_| gone())?;
            // The thread may have ended while it stored.
            let unknown = || DatabaseError::Unknown("its thread has ended".to_owned());
            answered.await.map_err(|_| unknown())?
        }
        .boxed()
    }
}

impl File {
    fn transact<T>(
        &mut self,
        run: impl FnOnce(&Transaction<'_>, &SqliteOptions) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let now = inode(&self.options.path);
        self.existed |= mark_of(&self.options.path).exists();
        // A file that was moved away stays open, and what is written to it would be lost with it.
        if self.connection.as_ref().is_some_and(|(_, opened)| *opened != now) {
            self.connection = None;
        }
        if self.existed && now.is_none() {
            return Err(DatabaseError::Away("its file is not there".to_owned()));
        }
        let done = self.open().and_then(|(connection, options)| {
            let transact = || {
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let result = run(&transaction, options)?;
                transaction.commit()?;
                Ok(result)
            };
            transact().map_err(failed)
        });
        if done.is_err() {
            self.connection = None;
        }
        done
    }

    fn open(&mut self) -> Result<(&mut Connection, &SqliteOptions), DatabaseError> {
        let connection = match self.connection.take() {
            Some(open) => open,
            None => {
                let connection = open(&self.options, self.existed)?;
                self.existed = true;
                (connection, inode(&self.options.path))
            }
        };
        let (connection, _) = self.connection.insert(connection);
        Ok((connection, &self.options))
    }
}

/// The number by which the system knows a file.
fn inode(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    #[cfg(unix)]
    return Some(std::os::unix::fs::MetadataExt::ino(&metadata));
    #[cfg(not(unix))]
    return metadata.is_file().then_some(0);
}

/// The file that says that a database was created, and has got its products. It is removed with the database.
#[must_use]
pub fn mark_of(path: &Path) -> PathBuf {
    let mut mark: OsString = path.as_os_str().to_owned();
    mark.push(".created");
    mark.into()
}

#[expect(clippy::needless_pass_by_value, reason = "results are mapped by it")]
fn failed(error: rusqlite::Error) -> DatabaseError {
    DatabaseError::Failed(error.to_string())
}

/// Opens the file. A new one gets its tables and its products in one transaction, whichever process comes first. One that
/// existed before has them.
fn open(options: &SqliteOptions, existed: bool) -> Result<Connection, DatabaseError> {
    let mut flags = OpenFlags::default();
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, !existed);
    let mut connection = Connection::open_with_flags(&options.path, flags).map_err(failed)?;
    if existed && !has_products(&connection).map_err(failed)? {
        let why = "its file has no products, and it had some: another file is in its place";
        return Err(DatabaseError::Away(why.to_owned()));
    }
    prepare(&mut connection, &options.seed, existed).map_err(failed)?;
    let mark = mark_of(&options.path);
    if !mark.exists() {
        let text = "The database next to this file was created. It is not created again while this file is here.\n";
        if let Err(error) = fs::write(&mark, text) {
            // The shop is open all the same.
            tracing::warn!(
                error = error.to_string(),
                path = mark.display().to_string(),
                "the mark of a created database was not written: a start without its file creates it anew"
            );
        }
    }
    Ok(connection)
}

fn has_products(connection: &Connection) -> rusqlite::Result<bool> {
    let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'products')";
    connection.query_row(exists, [], |row| row.get(0))
}

fn prepare(connection: &mut Connection, seed: &Catalogue, existed: bool) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit survives the process. The last ones may not survive the machine.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    let is_empty: bool =
        transaction
            .query_row("SELECT NOT EXISTS (SELECT 1 FROM products)", [], |row| row.get(0))?;
    if is_empty && !existed {
        insert(&transaction, seed)?;
    }
    transaction.commit()
}

fn insert(transaction: &Transaction<'_>, seed: &Catalogue) -> rusqlite::Result<()> {
    for it in seed.products() {
        transaction.execute(
            "INSERT INTO products (id, position, sku, brand, name, color, price_usd, main_image_url,
             released, release_at, rev) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                it.id, it.position, it.sku, it.brand, it.name, it.color, it.price_usd,
                it.main_image_url, it.released, it.release_at, it.rev
            ],
        )?;
    }
    for it in seed.items() {
        transaction.execute(
            "INSERT INTO items (id, product_id, sku, size) VALUES (?, ?, ?, ?)",
            params![it.id, it.product_id, it.sku, it.size],
        )?;
        transaction.execute(
            "INSERT INTO item_availabilities (item_id, available_count, rev) VALUES (?, ?, ?)",
            params![it.id, it.available_count, it.rev],
        )?;
    }
    Ok(())
}

fn product(row: &Row<'_>) -> rusqlite::Result<Product> {
    Ok(Product {
        id: row.get(0)?,
        position: row.get(1)?,
        sku: row.get(2)?,
        brand: row.get(3)?,
        name: row.get(4)?,
        color: row.get(5)?,
        price_usd: row.get(6)?,
        main_image_url: row.get(7)?,
        released: row.get(8)?,
        release_at: row.get(9)?,
        rev: row.get(10)?,
    })
}

fn item(row: &Row<'_>) -> rusqlite::Result<Item> {
    Ok(Item {
        id: row.get(0)?,
        product_id: row.get(1)?,
        sku: row.get(2)?,
        size: row.get(3)?,
        available_count: row.get(4)?,
        rev: row.get(5)?,
    })
}

/// The change of an item's stock, from `available_count` and `rev`.
fn stock(id: i64) -> impl FnOnce(&Row<'_>) -> rusqlite::Result<Change> {
    move |row| Ok(Change::Item { id, available_count: row.get(0)?, rev: row.get(1)? })
}

/// Items with their prices in US dollars.
type Prices = Vec<(i64, i64)>;

/// What was sold.
struct Sold {
    changes: Vec<Change>,
    prices: Prices,
}

/// What is wrong with some items of an order.
enum Refused {
    Gone(Vec<i64>),
    NotForSale(Vec<i64>),
}

/// The items of an order with their prices, or what is wrong with them.
fn priced(
    transaction: &Transaction<'_>,
    items: &[i64],
) -> rusqlite::Result<Result<Prices, Vec<i64>>> {
    let mut prices = Vec::new();
    let mut not_for_sale = Vec::new();
    for item in items {
        let mut find = transaction.prepare_cached(FOR_SALE)?;
        let found = find.query_row([item], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            Some((price_usd, true)) => prices.push((*item, price_usd)),
            _ => not_for_sale.push(*item),
        }
    }
    Ok(if not_for_sale.is_empty() { Ok(prices) } else { Err(not_for_sale) })
}

/// Sells one of each item, in order of their ids, so that two carts never wait for each other.
fn sell_all(
    transaction: &Transaction<'_>,
    order: &Order,
) -> rusqlite::Result<Result<Sold, Refused>> {
    let items = order.distinct_items();
    let prices = match priced(transaction, &items)? {
        Ok(prices) => prices,
        Err(items) => return Ok(Err(Refused::NotForSale(items))),
    };
    let (mut changes, mut gone) = (Vec::new(), Vec::new());
    for id in items {
        let mut sell = transaction.prepare_cached(SELL)?;
        match sell.query_row([id], stock(id)).optional()? {
            Some(change) => changes.push(change),
            None => gone.push(id),
        }
    }
    Ok(if gone.is_empty() { Ok(Sold { changes, prices }) } else { Err(Refused::Gone(gone)) })
}

/// The items that the key of this order has bought for its cart, ascending, if it has.
fn bought_by(transaction: &Transaction<'_>, order: &Order) -> rusqlite::Result<Option<Vec<i64>>> {
    let find = "SELECT id FROM orders WHERE cart = ? AND key = ?";
    let placed = transaction.query_row(find, [&order.cart, &order.key], |row| row.get(0));
    let Some(id) = placed.optional()? else { return Ok(None) };
    items_of(transaction, id).map(Some)
}

/// The items of a placed order, ascending.
fn items_of(transaction: &Transaction<'_>, order: i64) -> rusqlite::Result<Vec<i64>> {
    let items = "SELECT item_id FROM order_items WHERE order_id = ? ORDER BY item_id";
    let mut items = transaction.prepare_cached(items)?;
    items.query_map([order], |row| row.get(0))?.collect()
}

/// The last orders of this order's cart that have bought some of it, unless it was drawn after them.
fn overlooked(transaction: &Transaction<'_>, order: &Order) -> rusqlite::Result<Vec<BoughtBefore>> {
    let last = "SELECT id, key FROM orders WHERE cart = ? ORDER BY id DESC LIMIT ?";
    let mut last = transaction.prepare_cached(last)?;
    let compared = i64::try_from(COMPARED).unwrap_or(i64::MAX);
    let last =
        last.query_map(params![order.cart, compared], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut overlooked = Vec::new();
    for placed in last {
        let (id, key) = placed?;
        let earlier = BoughtBefore { key, items: items_of(transaction, id)? };
        if order.overlooks(&earlier) {
            overlooked.push(earlier);
        }
    }
    Ok(overlooked)
}

/// Whether the tables of queues are there. Until the pipeline of orders has made them, an order is confirmed only by the
/// node that has taken it.
fn has_queue(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'pipeline_items')";
    transaction.query_row(exists, [], |row| row.get(0))
}

impl Database for SqliteDatabase {
    fn load(&self) -> Answer<'_, Catalogue> {
        self.transact(|transaction, _| {
            let mut products = transaction.prepare_cached(PRODUCTS)?;
            let products = products.query_map([], product)?.collect::<Result<_, _>>()?;
            let mut items = transaction.prepare_cached(ITEMS)?;
            let items = items.query_map([], item)?.collect::<Result<_, _>>()?;
            Ok(Catalogue::new(products, items))
        })
    }

    fn release(&self, product: i64) -> Answer<'_, Release> {
        self.transact(move |transaction, _| {
            let rev = transaction.query_row(RELEASE, [product], |row| row.get(0)).optional()?;
            if let Some(rev) = rev {
                return Ok(Release::Released(Change::Product { id: product, released: true, rev }));
            }
            let exists = "SELECT EXISTS (SELECT 1 FROM products WHERE id = ?)";
            let is_known: bool = transaction.query_row(exists, [product], |row| row.get(0))?;
            Ok(if is_known { Release::AlreadyReleased } else { Release::UnknownProduct })
        })
    }

    fn schedule(&self, product: i64, at_ms: i64) -> Answer<'_, bool> {
        self.transact(move |transaction, _| {
            let set =
                "UPDATE products SET release_at = ?, rev = rev + 1 WHERE id = ? AND released = 0";
            Ok(transaction.execute(set, params![at_ms, product])? == 1)
        })
    }

    fn sell(&self, item: i64) -> Answer<'_, Sale> {
        self.transact(move |transaction, _| {
            let mut sell = transaction.prepare_cached(SELL)?;
            if let Some(change) = sell.query_row([item], stock(item)).optional()? {
                return Ok(Sale::Sold(change));
            }
            let exists = "SELECT EXISTS (SELECT 1 FROM items WHERE id = ?)";
            let is_known: bool = transaction.query_row(exists, [item], |row| row.get(0))?;
            Ok(if is_known { Sale::OutOfStock } else { Sale::UnknownItem })
        })
    }

    fn stock(&self, item: i64, available_count: i64) -> Answer<'_, Option<Change>> {
        self.transact(move |transaction, _| {
            transaction.query_row(STOCK, [item, available_count], stock(item)).optional()
        })
    }

    fn raise(&self, rows: Vec<(change::Row, i64)>) -> Answer<'_, Vec<Change>> {
        self.transact(move |transaction, _| {
            let mut raised = Vec::new();
            for (row, rev) in rows {
                raised.extend(match row {
                    change::Row::Item(id) => {
                        transaction.query_row(RAISE_ITEM, [id, rev], stock(id)).optional()?
                    }
                    change::Row::Product(id) => {
                        let raise = |row: &Row<'_>| {
                            Ok(Change::Product { id, released: row.get(0)?, rev: row.get(1)? })
                        };
                        transaction.query_row(RAISE_PRODUCT, [id, rev], raise).optional()?
                    }
                });
            }
            Ok(raised)
        })
    }

    fn check_out(&self, order: Order) -> Answer<'_, CheckOut> {
        self.transact(move |transaction, options| {
            if let Some(bought) = bought_by(transaction, &order)? {
                let is_it = bought == order.distinct_items();
                return Ok(if is_it { CheckOut::Repeated } else { CheckOut::OtherItems });
            }
            let overlooked = overlooked(transaction, &order)?;
            if !overlooked.is_empty() {
                return Ok(CheckOut::BoughtBefore(overlooked));
            }
            // Items that were sold before one that is gone are given back.
            transaction.execute_batch("SAVEPOINT sale")?;
            let Sold { changes, prices } = match sell_all(transaction, &order)? {
                Ok(sold) => sold,
                Err(refused) => {
                    transaction.execute_batch("ROLLBACK TO sale; RELEASE sale")?;
                    return Ok(match refused {
                        Refused::Gone(items) => CheckOut::Gone(items),
                        Refused::NotForSale(items) => CheckOut::NotForSale(items),
                    });
                }
            };
            transaction.execute_batch("RELEASE sale")?;
            let insert = "INSERT INTO orders (key, cart, placed_at) VALUES (?, ?, ?)";
            transaction.execute(insert, params![order.key, order.cart, order.placed_at])?;
            let id = transaction.last_insert_rowid();
            for (item, price_usd) in &prices {
                let insert =
                    "INSERT INTO order_items (order_id, item_id, price_usd) VALUES (?, ?, ?)";
                transaction.execute(insert, params![id, item, price_usd])?;
            }
            if options.confirm_orders && has_queue(transaction)? {
                let items: Vec<i64> = prices.iter().map(|(item, _)| *item).collect();
                let placed =
                    json!({ "cart": order.cart, "items": items, "order": order.key }).to_string();
                push_in(transaction, PLACED_ORDERS, &QueueItem::new(placed))?;
            }
            Ok(CheckOut::Placed(changes))
        })
    }

    fn orders(&self) -> Answer<'_, Vec<PlacedOrder>> {
        self.transact(|transaction, _| {
            let mut orders =
                transaction.prepare("SELECT id, key, cart, placed_at FROM orders ORDER BY id")?;
            let placed = |row: &Row<'_>| {
                let (id, key, cart, placed_at) =
                    (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(PlacedOrder { id, key, cart, placed_at, items: Vec::new() })
            };
            let mut orders: Vec<PlacedOrder> =
                orders.query_map([], placed)?.collect::<Result<_, _>>()?;
            let items =
                "SELECT item_id, price_usd FROM order_items WHERE order_id = ? ORDER BY item_id";
            let mut items = transaction.prepare(items)?;
            for order in &mut orders {
                let bought = items.query_map([order.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
                order.items = bought.collect::<Result<_, _>>()?;
            }
            Ok(orders)
        })
    }
}

impl fmt::Debug for SqliteDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteDatabase")
    }
}
