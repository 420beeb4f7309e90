//! The database in a SQLite file.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use store::{
    database::{
        BoughtBefore, CheckOut, Database, DatabaseError, Order, Release, Sale, SqliteDatabase,
        SqliteOptions,
    },
    domain::{catalogue::Catalogue, change::Change, ids},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::shoes;

struct File {
    folder: TempDir,
    database: Arc<SqliteDatabase>,
}

fn open_in(folder: &TempDir) -> SqliteDatabase {
    let path = folder.path().join("db").join("store.db");
    let options = SqliteOptions { path, seed: shoes(), creates: true, confirm_orders: true };
    SqliteDatabase::new(options).unwrap()
}

impl File {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("db")).unwrap();
        let database = Arc::new(open_in(&folder));
        for product in [1, 2] {
            database.release(product).await.unwrap();
        }
        Self { folder, database }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("db").join("store.db")
    }

    async fn count(&self, item: i64) -> i64 {
        self.database.load().await.unwrap().item(item).unwrap().available_count
    }
}

fn order(items: &[i64]) -> Order {
    let (key, cart) = (ids::cart_id().unwrap(), ids::cart_id().unwrap());
    let (items, placed_at) = (items.to_vec(), 1_700_000_000_000);
    Order { key, cart, items, placed_at, knows: Vec::new() }
}

/// Runs calls at once.
async fn at_once<T: Send + 'static, F>(calls: impl IntoIterator<Item = F>) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

#[tokio::test]
async fn a_product_is_released_once_and_only_if_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("db")).unwrap();
    let database = open_in(&folder);
    let released = Change::Product { id: 1, released: true, rev: 2 };
    assert_eq!(database.release(1).await.unwrap(), Release::Released(released));
    assert_eq!(database.release(1).await.unwrap(), Release::AlreadyReleased);
    assert_eq!(database.release(99).await.unwrap(), Release::UnknownProduct);
    let now = database.load().await.unwrap();
    assert!(now.product(1).unwrap().released && !now.product(2).unwrap().released);
    assert!(database.schedule(2, 5).await.unwrap() && !database.schedule(1, 5).await.unwrap());
    assert_eq!(database.load().await.unwrap().product(2).unwrap().release_at, Some(5));
}

#[tokio::test]
async fn a_021_sales_at_once_sell_what_there_is_and_no_more() {
    let file = File::new().await;
    let sales = (0..100).map(|_| {
        let database = file.database.clone();
        async move { database.sell(1).await.unwrap() }
    });
    let sales = at_once(sales).await;
    assert_eq!(sales.iter().filter(|sale| matches!(sale, Sale::Sold(_))).count(), 10);
    assert_eq!(sales.iter().filter(|sale| **sale == Sale::OutOfStock).count(), 90);
    assert_eq!(file.count(1).await, 0);
    assert_eq!(file.database.sell(99).await.unwrap(), Sale::UnknownItem);
}

/// Also shows T-005.
#[tokio::test]
async fn a_022_a_checkout_that_is_rolled_back_has_changed_nothing() {
    let file = File::new().await;
    file.database.stock(3, 0).await.unwrap();
    let before = file.database.load().await.unwrap();
    assert_eq!(file.database.check_out(order(&[1, 2, 3])).await.unwrap(), CheckOut::Gone(vec![3]));
    assert_eq!(file.database.load().await.unwrap(), before, "counts and revisions");
    assert!(file.database.orders().await.unwrap().is_empty());
    let placed = file.database.check_out(order(&[2, 1])).await.unwrap();
    let change = |id| Change::Item { id, available_count: 9, rev: 2 };
    assert_eq!(placed, CheckOut::Placed(vec![change(1), change(2)]));
}

#[tokio::test]
async fn a_023_counts_and_releases_survive_a_restart() {
    let file = File::new().await;
    file.database.sell(1).await.unwrap();
    let before: Catalogue = file.database.load().await.unwrap();
    let File { folder, database } = file;
    drop(database);
    let again = open_in(&folder);
    assert_eq!(again.load().await.unwrap(), before);
    again.disconnect().await;
    assert_eq!(again.load().await.unwrap(), before);
}

/// Also shows T-006.
#[tokio::test]
async fn a_095_an_order_has_its_items_and_the_prices_of_its_moment() {
    let file = File::new().await;
    let wanted = [order(&[4, 1]), order(&[1])];
    for order in &wanted {
        assert!(matches!(
            file.database.check_out(order.clone()).await.unwrap(),
            CheckOut::Placed(_)
        ));
    }
    let orders = file.database.orders().await.unwrap();
    assert_eq!(orders[0].items, [(1, 101), (4, 102)]);
    assert_eq!(
        (&orders[0].key, &orders[0].cart, orders[0].placed_at),
        (&wanted[0].key, &wanted[0].cart, 1_700_000_000_000)
    );
    for item in 1..=8 {
        let bought =
            orders.iter().flat_map(|order| &order.items).filter(|(id, _)| *id == item).count();
        assert_eq!(i64::try_from(bought).unwrap(), 10 - file.count(item).await);
    }
}

#[tokio::test]
async fn a_096_the_same_form_buys_once() {
    let file = File::new().await;
    let form = order(&[1]);
    let answers = (0..10).map(|_| {
        let (database, form) = (file.database.clone(), form.clone());
        async move { database.check_out(form).await.unwrap() }
    });
    let answers = at_once(answers).await;
    assert_eq!(answers.iter().filter(|it| matches!(it, CheckOut::Placed(_))).count(), 1);
    assert_eq!(answers.iter().filter(|it| **it == CheckOut::Repeated).count(), 9);
    assert_eq!((file.count(1).await, file.database.orders().await.unwrap().len()), (9, 1));
    let more = Order { items: vec![1, 2], ..form.clone() };
    assert_eq!(file.database.check_out(more).await.unwrap(), CheckOut::OtherItems);
    let other = Order { cart: ids::cart_id().unwrap(), ..form };
    assert!(
        matches!(file.database.check_out(other).await.unwrap(), CheckOut::Placed(_)),
        "another cart's key"
    );
}

/// Two pages have drawn the same cart, each on its own: their forms have keys of their own.
#[tokio::test]
async fn a_cart_that_two_pages_have_drawn_is_bought_once() {
    let file = File::new().await;
    let cart = ids::cart_id().unwrap();
    let form = |key: &str, items: &[i64], knows: &[&str]| {
        let knows = knows.iter().map(|it| (*it).to_owned()).collect();
        Order { key: key.to_owned(), cart: cart.clone(), knows, ..order(items) }
    };
    let forms = ["one", "two", "three"].map(|key| {
        let (database, form) = (file.database.clone(), form(key, &[1, 2], &[]));
        async move { (form.key.clone(), database.check_out(form).await.unwrap()) }
    });
    let answers = at_once(forms).await;
    let is_placed = |(_, answer): &&(String, CheckOut)| matches!(answer, CheckOut::Placed(_));
    let (placed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(is_placed);
    let [(bought, _)] = *placed else { panic!("{answers:?}") };
    let before = |key: &str, items: &[i64]| {
        CheckOut::BoughtBefore(vec![BoughtBefore { key: key.to_owned(), items: items.to_vec() }])
    };
    assert!(refused.iter().all(|(_, answer)| *answer == before(bought, &[1, 2])), "{refused:?}");
    // A part of it, and other pairs too.
    let part = file.database.check_out(form("part", &[2, 4], &[])).await.unwrap();
    assert_eq!(part, before(bought, &[1, 2]));
    assert_eq!((file.count(1).await, file.count(2).await, file.count(4).await), (9, 9, 10));
    // Other pairs alone, and the same pairs by a cart that knows of the order.
    for (key, items, knows) in [("other", [4, 5], vec![]), ("again", [1, 2], vec![&**bought])] {
        let answer = file.database.check_out(form(key, &items, &knows)).await.unwrap();
        assert!(matches!(answer, CheckOut::Placed(_)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_098_carts_in_any_order_do_not_wait_for_each_other() {
    let file = File::new().await;
    for item in [1, 2] {
        file.database.stock(item, 100).await.unwrap();
    }
    let buy = |n: usize| {
        let database = file.database.clone();
        let items = if n.is_multiple_of(2) { [1, 2] } else { [2, 1] };
        async move { database.check_out(order(&items)).await.unwrap() }
    };
    let answers = at_once((0..400).map(buy)).await;
    assert_eq!(answers.iter().filter(|it| matches!(it, CheckOut::Placed(_))).count(), 100);
    assert_eq!(answers.iter().filter(|it| matches!(it, CheckOut::Gone(_))).count(), 300);
    assert_eq!((file.count(1).await, file.count(2).await), (0, 0));
}

#[tokio::test]
async fn a_099_a_thousand_shoppers_share_a_hundred() {
    let file = File::new().await;
    file.database.stock(1, 100).await.unwrap();
    let answers = at_once((0..1000).map(|_| {
        let database = file.database.clone();
        async move { database.check_out(order(&[1])).await.unwrap() }
    }));
    let answers = answers.await;
    assert_eq!(answers.iter().filter(|it| matches!(it, CheckOut::Placed(_))).count(), 100);
    assert_eq!(answers.iter().filter(|it| **it == CheckOut::Gone(vec![1])).count(), 900);
    assert_eq!((file.count(1).await, file.database.orders().await.unwrap().len()), (0, 100));
}

/// An operator moves the folder of the file away, and back.
#[tokio::test]
async fn a_file_that_is_taken_away_is_opened_again_when_it_is_back() {
    let file = File::new().await;
    let (here, away) = (file.folder.path().join("db"), file.folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    assert!(file.database.sell(1).await.is_err());
    assert!(file.database.load().await.is_err());
    std::fs::rename(&away, &here).unwrap();
    assert!(matches!(file.database.sell(1).await, Ok(Sale::Sold(_))));
    assert_eq!(file.count(1).await, 9);
}

#[tokio::test]
async fn a_file_that_is_not_there_at_the_start_is_opened_later() {
    let folder = tempfile::tempdir().unwrap();
    let database = open_in(&folder);
    assert!(database.load().await.is_err());
    std::fs::create_dir(folder.path().join("db")).unwrap();
    assert_eq!(database.load().await.unwrap(), shoes());
}

/// A database that was there is not created anew by a start without it, or with another file in its place.
#[tokio::test]
async fn a_database_that_is_away_at_the_start_is_not_created_again() {
    let file = File::new().await;
    file.database.sell(1).await.unwrap();
    let before = file.database.load().await.unwrap();
    let (here, away) = (file.path(), file.folder.path().join("away.db"));
    let File { folder, database } = file;
    database.disconnect().await;
    drop(database);
    // The thread closes the file after its last call.
    while here.with_extension("db-wal").exists() {
        tokio::task::yield_now().await;
    }
    std::fs::rename(&here, &away).unwrap();
    let started = open_in(&folder);
    let error = started.load().await.unwrap_err();
    assert!(matches!(error, DatabaseError::Away(_)), "{error}");
    assert!(started.sell(1).await.is_err() && !here.exists(), "no file is created");
    // Something else may create it.
    std::fs::write(&here, "").unwrap();
    let error = started.load().await.unwrap_err();
    assert!(matches!(error, DatabaseError::Away(_)), "{error}");
    assert_eq!(std::fs::metadata(&here).unwrap().len(), 0, "nothing is written to it");
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(started.load().await.unwrap(), before);
}

#[tokio::test]
async fn a_database_that_may_not_be_created_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let open = |creates: bool| {
        let options =
            SqliteOptions { path: path.clone(), seed: shoes(), creates, confirm_orders: true };
        SqliteDatabase::new(options).unwrap()
    };
    let waits = open(false);
    assert!(matches!(waits.load().await, Err(DatabaseError::Away(_))));
    assert!(!path.exists());
    open(true).load().await.unwrap();
    assert_eq!(waits.load().await.unwrap(), shoes());
}

/// Two processes are two handles on one file.
#[tokio::test]
async fn two_handles_on_one_file_sell_what_there_is_and_no_more() {
    let file = File::new().await;
    let other = Arc::new(open_in(&file.folder));
    let sales = (0..60).map(|n: usize| {
        let database = if n.is_multiple_of(2) { file.database.clone() } else { other.clone() };
        async move { database.sell(1).await.unwrap() }
    });
    let sales = at_once(sales).await;
    assert_eq!(sales.iter().filter(|sale| matches!(sale, Sale::Sold(_))).count(), 10);
    assert_eq!(file.count(1).await, 0);
}

#[tokio::test]
async fn counts_below_zero_are_refused_by_the_database_itself() {
    let file = File::new().await;
    assert!(file.database.stock(1, -1).await.is_err());
    assert_eq!(file.count(1).await, 10);
}

/// Three nodes sell without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_all_have_much_to_write_all_sell() {
    const SALES: usize = 1500;
    let file = File::new().await;
    file.database.stock(1, 1_000_000).await.unwrap();
    let sold = Arc::new(AtomicUsize::new(0));
    let mut shoppers = JoinSet::new();
    for node in 0..3 {
        let database = Arc::new(open_in(&file.folder));
        for _ in 0..8 {
            let (database, sold) = (database.clone(), sold.clone());
            shoppers.spawn(async move {
                let mut own = 0;
                while sold.load(Relaxed) < SALES {
                    assert!(matches!(database.sell(1).await.unwrap(), Sale::Sold(_)));
                    sold.fetch_add(1, Relaxed);
                    own += 1;
                }
                (node, own)
            });
        }
    }
    let mut by_node = [0; 3];
    while let Some(shopper) = shoppers.join_next().await {
        let (node, own): (usize, usize) = shopper.unwrap();
        by_node[node] += own;
    }
    println!("sales by node: {by_node:?}");
    assert!(by_node.iter().all(|sales| *sales > SALES / 10), "{by_node:?}");
}

/// Each try for the lock takes seconds, so what waits would be done minutes later, for shoppers who have left.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_could_not_begin_for_long_are_refused_and_sell_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let database = SqliteDatabase::new(SqliteOptions {
        path: path.clone(),
        seed: shoes(),
        creates: true,
        confirm_orders: false,
    });
    let database = Arc::new(database.unwrap());
    assert!(database.load().await.is_ok());
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let sales: Vec<_> = (0..20)
        .map(|_| {
            let database = database.clone();
            tokio::spawn(async move { database.sell(1).await })
        })
        .collect();
    let mut crowded = 0;
    // Without a bound, the last of them has waited twenty times for the lock.
    for sale in sales {
        match sale.await.unwrap() {
            Err(DatabaseError::Crowded) => crowded += 1,
            Err(_) => {}
            Ok(sale) => panic!("{sale:?} while another process had the lock"),
        }
    }
    assert!(crowded > 10, "{crowded} of 20 were refused without a try");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(database.load().await.unwrap().item(1).unwrap().available_count, 10);
}
