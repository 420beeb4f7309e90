use std::{future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        sqlite::{SqliteError, SqliteOptions, SqliteQueue},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, number, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

pub async fn open(file: &Path, name: &str, lease: Duration) -> Result<SqliteQueue, SqliteError> {
    let options = SqliteOptions::new().ordered_by_key(true).lease(lease);
    SqliteQueue::open_with(file, name, options).await
}

pub async fn open_existing(file: &Path, name: &str) -> Result<SqliteQueue, SqliteError> {
    SqliteQueue::open_existing(file, name).await
}

impl Durable for SqliteQueue {
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a> {
        Box::pin(async {
            self.push_all(items(pushes)?).await?;
            Ok(())
        })
    }

    fn start(&self, pushing: Pushing) -> Started {
        start(self.source(SourceOptions::new()), pushing)
    }
}

impl Graves for SqliteQueue {
    fn close(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        let queue = (*self).clone();
        drop(self);
        Box::pin(queue.close())
    }

    fn list<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> Asked<'a, Vec<DeadLetter<String>>> {
        Box::pin(async move {
            let after = after.map_or(Ok(i64::MIN), number)?;
            Ok(self.dead_letters(after, limit).await?.into_iter().map(with_text_id).collect())
        })
    }

    fn find<'a>(&'a self, id: &'a str) -> Asked<'a, Option<DeadLetter<String>>> {
        Box::pin(async move {
            let id: i64 = number(id)?;
            let found = self.dead_letters(id.saturating_sub(1), 1).await?;
            Ok(found.into_iter().find(|dead| dead.id == id).map(with_text_id))
        })
    }

    fn replay<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(Self::replay(self, number(id)?).await?.is_some()) })
    }

    fn replay_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(Self::replay_all(self, |_| true).await?) })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(self.drop_dead_letter(number(id)?).await?) })
    }

    fn remove_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(self.drop_all_dead_letters(|_| true).await?) })
    }
}
