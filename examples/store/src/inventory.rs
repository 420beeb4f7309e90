//! The copy of the inventory in memory, which answers every page and every cart.
//!
//! It may be a moment behind the database, and is never asked whether something may be sold. Reading it takes no lock.

use std::{collections::BTreeMap, mem, sync::Arc};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::domain::{
    catalogue::{Applied, Catalogue},
    change::{Change, Row, newest},
};

/// The most changes that are kept before the first load. With more of them, the copy is loaded again after it.
const MAX_EARLY: usize = 10_000;

/// The copy.
#[derive(Debug, Default)]
pub struct Inventory {
    copy: ArcSwapOption<Catalogue>,
    /// One writer at a time. It holds the changes that came before the first load.
    early: Mutex<Vec<Change>>,
    /// The rows of the last comparison that the database had with a lower revision: that of the copy, and that of the database.
    behind: Mutex<BTreeMap<Row, (i64, i64)>>,
}

/// What changes have done to the copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is another now.
    pub applied: Vec<Applied>,
    /// Whether the copy may miss something, and has to be loaded again.
    pub in_doubt: bool,
}

impl Inventory {
    /// What is sold, as of this moment; `None` until it was loaded.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Catalogue>> {
        self.copy.load_full()
    }

    /// Whether it was loaded.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.copy.load().is_some()
    }

    /// Applies changes that are newer than the copy.
    pub fn apply(&self, changes: &[Change]) -> Outcome {
        let mut early = self.early.lock();
        let Some(mut copy) = self.copy.load_full() else {
            early.extend(changes);
            if early.len() > MAX_EARLY {
                *early = newest(early.drain(..));
                early.truncate(MAX_EARLY);
            }
            return Outcome::default();
        };
        let mut outcome = Outcome::default();
        // Its rows are shared, so this copies pointers.
        let catalogue = Arc::make_mut(&mut copy);
        for change in changes {
            match catalogue.apply(change) {
                Ok(applied) => outcome.applied.extend(applied),
                Err(_) => outcome.in_doubt = true,
            }
        }
        self.copy.store(Some(copy));
        outcome
    }

    /// The rows that the database has lost, with the revisions that the copy has of them. A row that two comparisons running
    /// find older than the copy, while neither has changed, is no load that was overtaken by a change: the database has lost
    /// its last commits, as one does that was restored, or whose standby has taken over.
    pub fn lost(&self, loaded: &Catalogue) -> Vec<(Row, i64)> {
        let Some(copy) = self.snapshot() else { return Vec::new() };
        let items = loaded
            .items()
            .filter_map(|new| Some((Row::Item(new.id), (copy.item(new.id)?.rev, new.rev))));
        let products = loaded
            .products()
            .filter_map(|new| Some((Row::Product(new.id), (copy.product(new.id)?.rev, new.rev))));
        let now: BTreeMap<_, _> =
            items.chain(products).filter(|(_, (copy, loaded))| loaded < copy).collect();
        let before = mem::replace(&mut *self.behind.lock(), now.clone());
        let still = now.into_iter().filter(|(row, revs)| before.get(row) == Some(revs));
        still.map(|(row, (copy, _))| (row, copy)).collect()
    }

    /// Takes over what was loaded, except where the copy is newer. Returns what is another; after the first load, nothing,
    /// because nothing was known before.
    pub fn replace(&self, loaded: Catalogue) -> Vec<Applied> {
        let mut early = self.early.lock();
        let mut copy = self.copy.load_full().unwrap_or_default();
        let is_first = !self.is_loaded();
        let catalogue = Arc::make_mut(&mut copy);
        let mut applied = catalogue.replace(loaded);
        for change in early.drain(..) {
            // A row that is unknown even now comes with the next load.
            applied.extend(catalogue.apply(&change).ok().flatten());
        }
        self.copy.store(Some(copy));
        if is_first { Vec::new() } else { applied }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, http::Request};
    use pipeline::telemetry::Telemetry;
    use tower_service::Service;

    use super::*;
    use crate::{
        admins::Admins,
        clock::Clock,
        database::{SqliteDatabase, SqliteOptions, seed::seed},
        http,
        shop::{Shop, ShopOptions},
    };

    fn stock(id: i64, available_count: i64, rev: i64) -> Change {
        Change::Item { id, available_count, rev }
    }

    #[test]
    fn changes_that_come_before_the_first_load_are_not_lost() {
        let inventory = Inventory::default();
        assert_eq!(inventory.apply(&[stock(1, 3, 9)]), Outcome::default());
        assert!(!inventory.is_loaded());
        assert_eq!(inventory.replace(seed(1)), []);
        assert_eq!(inventory.snapshot().unwrap().item(1).unwrap().available_count, 3);
    }

    #[test]
    fn a_change_of_an_unknown_row_puts_the_copy_in_doubt() {
        let inventory = Inventory::default();
        inventory.replace(seed(1));
        let outcome = inventory.apply(&[stock(999, 3, 9), stock(1, 0, 9)]);
        assert!(outcome.in_doubt);
        assert_eq!(outcome.applied.len(), 1);
    }

    /// A reader that waited for a writer would never be done here.
    #[test]
    fn a_reader_does_not_wait_for_a_writer() {
        let inventory = Arc::new(Inventory::default());
        inventory.replace(seed(1));
        let writer = inventory.early.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let reader = inventory.clone();
        std::thread::spawn(move || done.send((reader.is_loaded(), reader.snapshot())));
        let read = is_done.recv_timeout(Duration::from_secs(20));
        drop(writer);
        let (is_loaded, snapshot) = read.unwrap();
        assert!(is_loaded && *snapshot.unwrap() == seed(1));
    }

    /// A shop none of whose pipelines runs: there is no task that could be asked. And the lock of writers is held all the time.
    #[test]
    fn p_013_pages_ask_no_task_and_wait_for_no_writer() {
        let folder = tempfile::tempdir().unwrap();
        let database = SqliteDatabase::new(SqliteOptions {
            path: folder.path().join("store.db"),
            seed: seed(1),
            creates: true,
            confirm_orders: false,
        });
        let options = ShopOptions {
            database: Arc::new(database.unwrap()),
            secret: "a secret of the tests, long enough".to_owned(),
            max_cart_items: 4,
            clock: Clock::wall(),
            telemetry: Telemetry::global(),
            bench: false,
            idle_timeout: Duration::from_secs(60),
            trusted_proxies: Vec::new(),
        };
        let (shop, producers) = Shop::new(options).unwrap();
        drop(producers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(shop.reload()).unwrap();
        let writer = shop.inventory.early.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let mut pages = http::router(shop.clone(), Arc::new(Admins::new(Vec::new())));
        std::thread::spawn(move || {
            let answered = runtime.block_on(async {
                let mut answered = Vec::new();
                for path in ["/", "/drops", "/app", "/app/cart"] {
                    let request = Request::get(path).body(Body::empty()).unwrap();
                    answered.push(pages.call(request).await.unwrap().status());
                }
                answered
            });
            done.send(answered)
        });
        let answered = is_done.recv_timeout(Duration::from_secs(20));
        drop(writer);
        assert_eq!(answered.unwrap(), [200; 4]);
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let inventory = Inventory::default();
        inventory.replace(seed(1));
        let before = inventory.snapshot().unwrap();
        inventory.apply(&[stock(1, 0, 9)]);
        assert_eq!(*before, seed(1));
        assert_eq!(inventory.snapshot().unwrap().item(1).unwrap().available_count, 0);
    }
}
