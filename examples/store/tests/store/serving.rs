//! Nothing that many ask waits for one.

use std::{
    hint::black_box,
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, UNIX_EPOCH},
};

use axum::{body::Body, http::Request};
use pipeline::telemetry::Telemetry;
use rusqlite::Connection;
use store::{
    admins::Admins,
    clock::Clock,
    database::{Database, Sale, SqliteDatabase, SqliteOptions, seed::seed},
    domain::change::Change,
    http,
    inventory::Inventory,
    pages::{self, ProductView},
    shop::{Shop, ShopOptions, product_views},
};
use tokio::time::Instant;
use tower_service::Service;

fn options(database: Arc<dyn Database>) -> ShopOptions {
    ShopOptions {
        database,
        secret: "a secret of the tests, long enough".to_owned(),
        max_cart_items: 4,
        clock: Clock::running_from(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        telemetry: Telemetry::global(),
        bench: false,
        idle_timeout: Duration::from_secs(60),
        trusted_proxies: Vec::new(),
    }
}

/// How much threads draw that share a copy, while it changes all the time, and how much those that have one each. It is printed
/// and not compared: how many cores two threads get, in any moment, is the machine's affair. What is tested of P-013 is in
/// `src/inventory.rs`.
#[test]
fn threads_that_share_a_copy_all_draw() {
    let (mut one, mut shared, mut own) = (0, 0, 0);
    for _ in 0..3 {
        let copy = Arc::new(loaded());
        one = one.max(drawn(slice::from_ref(&copy), &copy));
        shared = shared.max(drawn(&[copy.clone(), copy.clone()], &copy));
        own = own.max(drawn(&[Arc::new(loaded()), Arc::new(loaded())], &copy));
    }
    println!(
        "P-013: in 100 ms, one thread draws {one} cards, two {shared}, and {own} with a copy each"
    );
    assert!(one > 0 && shared > 0 && own > 0);
}

fn loaded() -> Inventory {
    let inventory = Inventory::default();
    inventory.replace(seed(23));
    inventory
}

/// How many cards a thread for each of these copies draws in a moment, while one copy changes all the time.
fn drawn(copies: &[Arc<Inventory>], changing: &Inventory) -> u64 {
    let (is_over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for copy in copies {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let snapshot = copy.snapshot().unwrap();
                    for product in product_views(&snapshot) {
                        black_box(pages::card(&product).unwrap());
                        count.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        let began = Instant::now();
        for rev in 2.. {
            if began.elapsed() > Duration::from_millis(100) {
                break;
            }
            let count = rev % 700;
            changing.apply(&[Change::Item { id: rev % 12 + 1, available_count: count, rev }]);
            thread::park_timeout(Duration::from_micros(200));
        }
        is_over.store(true, Relaxed);
    });
    count.into_inner()
}

/// There is one thread for everything here. A database that waits for the lock of its file keeps nothing else from being done.
///
/// How long the steps of drawing take is printed. They have no loop but that over the products and sizes of one page.
#[tokio::test]
async fn p_015_the_database_and_the_drawing_of_pages_keep_nothing_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let database = SqliteDatabase::new(SqliteOptions {
        path: path.clone(),
        seed: seed(23),
        creates: true,
        confirm_orders: false,
    });
    let (shop, _producers) = Shop::new(options(Arc::new(database.unwrap()))).unwrap();
    shop.reload().await.unwrap();
    let mut pages = http::router(shop.clone(), Arc::new(Admins::new(Vec::new())));
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let sale = tokio::spawn(async move { shop.sell(1).await });
    for _ in 0..50 {
        let request = Request::get("/").body(Body::empty()).unwrap();
        assert_eq!(pages.call(request).await.unwrap().status(), 200);
        tokio::task::yield_now().await;
    }
    assert!(!sale.is_finished(), "the file is locked");
    other.execute_batch("COMMIT").unwrap();
    assert!(matches!(sale.await.unwrap(), Ok(Sale::Sold(_))));

    let views = product_views(&loaded().snapshot().unwrap());
    let product: &ProductView = views.first().unwrap();
    let took = |draw: &dyn Fn() -> String| {
        let mut took: Vec<_> = (0..300)
            .map(|_| {
                let began = Instant::now();
                let length = black_box(draw()).len();
                assert!(length < 64 << 10, "a step is small");
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        [took[150], took[297]]
    };
    println!("P-015: median and p99 of a card {:?}", took(&|| pages::card(product).unwrap()));
    let sizes = took(&|| pages::size_selector(product).unwrap());
    println!("P-015: median and p99 of a size selector {sizes:?}");
    let all = took(&|| views.iter().map(|it| pages::card(it).unwrap()).collect());
    println!("P-015: median and p99 of all cards {all:?}");
}
