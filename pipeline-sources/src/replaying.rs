//! How all dead letters of a queue are replayed.

/// How many are read at once.
pub(crate) const PAGE: u32 = 100;

/// How many are replayed in one call at most. Their ids are kept until then.
pub(crate) const MOST: usize = 1_000_000;

/// Replays the dead letters that a function chooses among those that are there. One that fails again comes to
/// the dead letters as a new one, so all are chosen before the first is replayed.
macro_rules! replay_all {
    ($which:ident, $after:ident => $page:expr, $id:ident => $replay:expr) => {{
        let (mut last, mut ids) = (None, Vec::new());
        while ids.len() < $crate::replaying::MOST {
            let $after = last.as_ref();
            let page = $page.await?;
            let Some(end) = page.last() else { break };
            last = Some(end.id.clone());
            ids.extend(page.iter().filter(|dead| $which(dead)).map(|dead| dead.id.clone()));
        }
        let mut replayed = 0_u64;
        for $id in &ids {
            replayed += u64::from($replay.await?.is_some());
        }
        Ok(replayed)
    }};
}

pub(crate) use replay_all;
