use futures::future::try_join_all;
use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        rabbitmq::{RabbitError, RabbitOptions, RabbitQueue},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

pub fn open(address: &str, name: &str) -> Result<RabbitQueue, RabbitError> {
    RabbitQueue::new(address, name)
}

pub async fn open_existing(address: &str, name: &str) -> Result<RabbitQueue, RabbitError> {
    RabbitQueue::open_existing(address, name, RabbitOptions::new()).await
}

impl Durable for RabbitQueue {
    fn store<'a>(&'a self, pushes: &'a [Timed<Push>]) -> Storing<'a> {
        Box::pin(async {
            // In their order, over one connection.
            try_join_all(items(pushes)?.into_iter().map(|item| self.push(item))).await?;
            Ok(())
        })
    }

    fn start(&self, pushing: Pushing) -> Started {
        start(self.source(SourceOptions::new()), pushing)
    }
}

impl Graves for RabbitQueue {
    fn list<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> Asked<'a, Vec<DeadLetter<String>>> {
        Box::pin(async move {
            let page = self.dead_letters(after, limit).await?;
            Ok(page.into_iter().map(with_text_id).collect())
        })
    }

    fn replay<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(Self::replay(self, id).await?.is_some()) })
    }

    fn replay_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(Self::replay_all(self, |_| true).await?) })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(self.drop_dead_letter(id).await?) })
    }

    fn remove_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(self.drop_all_dead_letters(|_| true).await?) })
    }
}
