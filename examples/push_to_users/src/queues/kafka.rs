use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        kafka::{KafkaId, KafkaOptions, KafkaQueue},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, excerpt, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

/// The group of all processes of this program.
const GROUP: &str = "push_to_users";

pub fn open(address: &str, name: &str) -> KafkaQueue {
    let servers = address.trim_start_matches("kafka://").trim_end_matches('/');
    KafkaQueue::new(servers, name, GROUP, KafkaOptions::new().ordered_by_key(true))
}

fn id(text: &str) -> Result<KafkaId, String> {
    text.parse().map_err(|error| format!("\"{}\" is no id: {error}", excerpt(text)))
}

impl Durable for KafkaQueue {
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

impl Graves for KafkaQueue {
    fn list<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> Asked<'a, Vec<DeadLetter<String>>> {
        Box::pin(async move {
            let page = self.dead_letters(after.map(id).transpose()?, limit).await?;
            Ok(page.into_iter().map(with_text_id).collect())
        })
    }

    fn replay<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(Self::replay(self, self::id(id)?).await?.is_some()) })
    }

    fn replay_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(Self::replay_all(self, |_| true).await?) })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(self.drop_dead_letter(self::id(id)?).await?) })
    }

    fn remove_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(self.drop_all_dead_letters(|_| true).await?) })
    }
}
