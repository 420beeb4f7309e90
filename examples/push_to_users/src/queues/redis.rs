use std::time::Duration;

use pipeline::{
    sources::{
        DeadLetter, SourceOptions,
        redis::{RedisOptions, RedisQueue, RedisQueueError},
    },
    timed::Timed,
};

use crate::{
    dead_letters::{Asked, Graves, excerpt, with_text_id},
    durable::{items, start},
    intake::{Durable, Pushing, Started, Storing},
    push::Push,
};

pub fn open(address: &str, name: &str, lease: Duration) -> Result<RedisQueue, RedisQueueError> {
    RedisQueue::open_with(address, name, RedisOptions::new().lease(lease))
}

pub async fn open_existing(address: &str, name: &str) -> Result<RedisQueue, RedisQueueError> {
    RedisQueue::open_existing(address, name, RedisOptions::new()).await
}

/// The two numbers of an id.
fn numbers(id: &str) -> Result<(u64, u64), String> {
    let numbers = id.split_once('-');
    let numbers = numbers.and_then(|(ms, nth)| Some((ms.parse().ok()?, nth.parse().ok()?)));
    numbers.ok_or_else(|| {
        format!("\"{}\" is no id, expected two numbers such as 1526919030474-0", excerpt(id))
    })
}

/// An id as the server writes it.
fn id((ms, nth): (u64, u64)) -> String {
    format!("{ms}-{nth}")
}

/// The id before this one, and nothing before the first.
fn before((ms, nth): (u64, u64)) -> String {
    let before = |ms: u64| ms.checked_sub(1).map(|ms| (ms, u64::MAX));
    let before = nth.checked_sub(1).map(|nth| (ms, nth)).or_else(|| before(ms));
    before.map(id).unwrap_or_default()
}

impl Durable for RedisQueue {
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

impl Graves for RedisQueue {
    fn list<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> Asked<'a, Vec<DeadLetter<String>>> {
        Box::pin(async move {
            let after = after.map(numbers).transpose()?.map(id).unwrap_or_default();
            let page = self.dead_letters(&after, limit).await?;
            Ok(page.into_iter().map(with_text_id).collect())
        })
    }

    fn find<'a>(&'a self, id: &'a str) -> Asked<'a, Option<DeadLetter<String>>> {
        Box::pin(async move {
            let numbers = numbers(id)?;
            let found = self.dead_letters(&before(numbers), 1).await?;
            Ok(found.into_iter().find(|dead| *dead.id == *self::id(numbers)).map(with_text_id))
        })
    }

    fn replay<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(Self::replay(self, &self::id(numbers(id)?)).await?.is_some()) })
    }

    fn replay_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(Self::replay_all(self, |_| true).await?) })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Asked<'a, bool> {
        Box::pin(async move { Ok(self.drop_dead_letter(&self::id(numbers(id)?)).await?) })
    }

    fn remove_all(&self) -> Asked<'_, u64> {
        Box::pin(async move { Ok(self.drop_all_dead_letters(|_| true).await?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_two_numbers_and_one_before_it() {
        assert_eq!(numbers("7-1").map(before), Ok("7-0".to_owned()));
        assert_eq!(numbers("7-0").map(before), Ok(format!("6-{}", u64::MAX)));
        assert_eq!(numbers("0-0").map(before), Ok(String::new()));
        assert_eq!(numbers("07-1").map(id), Ok("7-1".to_owned()));
        for odd in ["", "x", "7", "7-", "-", "+", "*", "7-1-1", "(7-1", "18446744073709551616-0"] {
            assert!(numbers(odd).is_err_and(|why| why.contains("is no id")), "{odd}");
        }
    }
}
