//! A database whose answers come late: for a drill.

use std::{fmt, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::time::sleep;

use super::{Answer, CheckOut, Database, Order, PlacedOrder, Release, Sale};
use crate::domain::{
    catalogue::Catalogue,
    change::{Change, Row},
};

/// A database whose answers come late. Each call is done as if it was not.
pub struct LateDatabase {
    database: Arc<dyn Database>,
    by: Duration,
}

impl LateDatabase {
    /// Answers so much later.
    #[must_use]
    pub fn new(database: Arc<dyn Database>, by: Duration) -> Self {
        Self { database, by }
    }

    fn late<'a, T: Send + 'a>(&self, answer: Answer<'a, T>) -> Answer<'a, T> {
        let by = self.by;
        async move {
            let answer = answer.await;
            sleep(by).await;
            answer
        }
        .boxed()
    }
}

impl Database for LateDatabase {
    fn load(&self) -> Answer<'_, Catalogue> {
        self.late(self.database.load())
    }

    fn release(&self, product: i64) -> Answer<'_, Release> {
        self.late(self.database.release(product))
    }

    fn schedule(&self, product: i64, at_ms: i64) -> Answer<'_, bool> {
        self.late(self.database.schedule(product, at_ms))
    }

    fn sell(&self, item: i64) -> Answer<'_, Sale> {
        self.late(self.database.sell(item))
    }

    fn stock(&self, item: i64, available_count: i64) -> Answer<'_, Option<Change>> {
        self.late(self.database.stock(item, available_count))
    }

    fn raise(&self, rows: Vec<(Row, i64)>) -> Answer<'_, Vec<Change>> {
        self.late(self.database.raise(rows))
    }

    fn check_out(&self, order: Order) -> Answer<'_, CheckOut> {
        self.late(self.database.check_out(order))
    }

    fn orders(&self) -> Answer<'_, Vec<PlacedOrder>> {
        self.late(self.database.orders())
    }
}

impl fmt::Debug for LateDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateDatabase").field("by", &self.by).finish_non_exhaustive()
    }
}
