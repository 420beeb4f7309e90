use std::time::Duration;

use futures::future::try_join_all;
use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        nats::{NatsError, NatsOptions, NatsQueue},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, number, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

pub fn open(address: &str, name: &str, lease: Duration) -> Result<NatsQueue, NatsError> {
    NatsQueue::with(address, name, NatsOptions::new().lease(lease))
}

pub async fn open_existing(address: &str, name: &str) -> Result<NatsQueue, NatsError> {
    NatsQueue::open_existing(address, name, NatsOptions::new()).await
}

impl Durable for NatsQueue {
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a> {
        Box::pin(async {
            // In their order, over one connection.
            try_join_all(items(pushes)?.into_iter().map(|item| self.push(item))).await?;
            Ok(())
        })
    }

    fn start(&self, pushing: Pushing) -> Started {
        // The server counts each look at a user who is not there: they are a minute apart in the end, and
        // closer after each start. Those of an earlier process are taken for deliveries without an outcome.
        let looks = u32::try_from(pushing.keep_for.as_secs() / 30).unwrap_or(u32::MAX);
        let looks = if pushing.keep_for.is_zero() { 0 } else { looks.saturating_add(20) };
        let options = SourceOptions::new().max_unfinished(looks.saturating_add(20));
        start(self.source(options), pushing)
    }
}

impl Graves for NatsQueue {
    fn list<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> Asked<'a, Vec<DeadLetter<String>>> {
        Box::pin(async move {
            let after = after.map_or(Ok(0), number)?;
            Ok(self.dead_letters(after, limit).await?.into_iter().map(with_text_id).collect())
        })
    }

    fn find<'a>(&'a self, id: &'a str) -> Asked<'a, Option<DeadLetter<String>>> {
        Box::pin(async move {
            let id: u64 = number(id)?;
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
