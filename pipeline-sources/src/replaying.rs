//! Pages of dead letters, and how all of a queue are replayed or dropped.
#![cfg_attr(
    not(all(feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "each queue uses a part of it")
)]

use crate::item::DeadLetter;

/// How many are read at once.
pub(crate) const PAGE: u32 = 100;

/// The bytes with which a page is full.
pub(crate) const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// The bytes with which a page is full that a server sends in one answer, for which its call waits so long and no longer.
pub(crate) const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The number with which such a page is full, since the server works for each, however small it is.
pub(crate) const ANSWER_LETTERS: u32 = 1000;

/// How many are chosen before the first of them is replayed. Their ids are kept until then.
pub(crate) const CHOSEN: usize = 1_000_000;

/// Up to so many dead letters, with no more bytes than a page may have.
#[derive(Clone, Debug)]
pub(crate) struct Page<Id> {
    letters: Vec<DeadLetter<Id>>,
    limit: usize,
    bytes: usize,
    most_bytes: usize,
}

impl<Id> Page<Id> {
    /// A page of up to so many, or fewer if they are large.
    pub(crate) fn of(limit: u32) -> Self {
        Self::bounded(limit, PAGE_BYTES)
    }

    /// The same of a server that sends them in one answer.
    pub(crate) fn of_an_answer(limit: u32) -> Self {
        Self::bounded(limit.min(ANSWER_LETTERS), ANSWER_BYTES)
    }

    /// The next page of those that are replayed.
    pub(crate) fn next() -> Self {
        Self::of(PAGE)
    }

    fn bounded(limit: u32, most_bytes: usize) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { letters: Vec::new(), limit, bytes: 0, most_bytes }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    pub(crate) fn is_full(&self) -> bool {
        self.letters.len() >= self.limit || self.bytes >= self.most_bytes
    }

    /// Adds one. That with which it is full may be as large as an item can be.
    pub(crate) fn push(&mut self, letter: DeadLetter<Id>) {
        self.bytes = self.bytes.saturating_add(letter.item.bytes() + letter.reason.len());
        self.letters.push(letter);
    }

    pub(crate) fn into_letters(self) -> Vec<DeadLetter<Id>> {
        self.letters
    }
}

/// Replays the dead letters that a function chooses among those that pages have. One that
/// fails again comes to the dead letters as a new one, behind the last page, so all are chosen before the first is
/// replayed, or, if there are very many, a part of them after the other.
#[cfg(any(
    test,
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite"
))]
macro_rules! replay_all {
    ($which:ident, $after:ident => $page:expr, $id:ident => $replay:expr) => {{
        let (mut last, mut replayed) = (None, 0_u64);
        loop {
            let mut ids = Vec::new();
            let mut is_end = false;
            while ids.len() < $crate::replaying::CHOSEN {
                let $after = last.as_ref();
                let page = $page.await?;
                let Some(end) = page.last() else {
                    is_end = true;
                    break;
                };
                last = Some(end.id.clone());
                for dead in &page {
                    if $which(dead) {
                        ids.push(dead.id.clone());
                    }
                }
            }
            for $id in &ids {
                replayed += u64::from($replay.await?.is_some());
            }
            if is_end {
                break Ok(replayed);
            }
        }
    }};
}

#[cfg(any(
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite"
))]
pub(crate) use replay_all;

/// Drops the dead letters that a function chooses among those that pages have, with one call for those of a page. The
/// last page ends with what was there at the beginning.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
macro_rules! drop_all {
    ($which:ident, $after:ident => $page:expr, $chosen:ident => $drop:expr) => {{
        let (mut last, mut dropped) = (None, 0_u64);
        loop {
            let $after = last.as_ref();
            let page = $page.await?;
            let Some(end) = page.last() else { break Ok(dropped) };
            last = Some(end.id.clone());
            let chosen = page.iter().filter(|dead| $which(dead));
            let $chosen: Vec<_> = chosen.map(|dead| dead.id.clone()).collect();
            if !$chosen.is_empty() {
                dropped = dropped.saturating_add($drop.await?);
            }
        }
    }};
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) use drop_all;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Item;

    fn letter(bytes: usize) -> DeadLetter {
        DeadLetter::new(1, Item::new(vec![0; bytes]), "no")
    }

    /// Replays those that a function chooses among so many, each of which fails again at once.
    async fn replayed(letters: i64, mut which: impl FnMut(&DeadLetter) -> bool) -> u64 {
        let (last, mut others, mut replays) = (letters, letters, 0_u64);
        let page = async |after: Option<&i64>| {
            let after = after.copied().unwrap_or(0);
            let page = after..last.min(after + i64::from(PAGE));
            Ok::<_, ()>(page.map(|id| DeadLetter { id: id + 1, ..letter(0) }).collect::<Vec<_>>())
        };
        let mut replay = async |_: &i64| {
            (others, replays) = (others + 1, replays + 1);
            Ok::<_, ()>(Some(others))
        };
        let replayed: Result<u64, ()> =
            async { replay_all!(which, after => page(after), id => replay(id)) }.await;
        assert_eq!(replayed, Ok(replays));
        replays
    }

    #[tokio::test]
    async fn those_behind_a_million_others_are_replayed_too() {
        let many = i64::try_from(CHOSEN).unwrap() + 250;
        assert_eq!(replayed(many, |dead| dead.id > many - 120).await, 120);
        assert_eq!(replayed(many, |_| true).await, many.unsigned_abs());
        assert_eq!(replayed(0, |_| true).await, 0);
        assert_eq!(replayed(100, |dead| dead.id % 2 == 0).await, 50);
    }

    #[test]
    fn a_page_is_full_by_its_number_or_its_bytes() {
        let mut page = Page::next();
        for _ in 0..99 {
            page.push(letter(1));
            assert!(!page.is_full());
        }
        page.push(letter(1));
        assert!(page.is_full());

        let mut page = Page::next();
        page.push(letter(10_000_000));
        assert!(!page.is_full());
        page.push(letter(10_000_000));
        assert!(page.is_full());
        assert_eq!(page.into_letters().len(), 2);

        let mut page = Page::of_an_answer(2);
        page.push(letter(4_000_000));
        assert!(!page.is_full());
        page.push(letter(1));
        assert!(page.is_full());

        let mut page = Page::of_an_answer(2);
        page.push(letter(5_000_000));
        assert!(page.is_full());

        assert_eq!(Page::<i64>::of_an_answer(1_000_000).limit(), 1000);
    }
}
