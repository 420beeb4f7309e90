use std::time::Duration;

use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        postgres::{PostgresError, PostgresOptions, PostgresQueue},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, number, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

pub fn open(address: &str, name: &str, lease: Duration) -> Result<PostgresQueue, PostgresError> {
    let options = PostgresOptions::new().ordered_by_key(true).lease(lease);
    PostgresQueue::open_with(address, name, options)
}

pub async fn open_existing(address: &str, name: &str) -> Result<PostgresQueue, PostgresError> {
    PostgresQueue::open_existing(address, name, PostgresOptions::new()).await
}

impl Durable for PostgresQueue {
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

impl Graves for PostgresQueue {
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
