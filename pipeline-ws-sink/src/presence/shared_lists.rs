//! Lists of topics with many presences.

use std::{
    collections::HashMap,
    num::NonZero,
    sync::{Arc, Weak},
    thread::available_parallelism,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OnceCell, Semaphore},
    task::yield_now,
};

use super::PresenceList;

/// Lists of topics with many presences.
///
/// Listing, encoding and sending a long list takes long, and when many clients join at once each of
/// them is sent one. So tasks that ask for a topic at about the same time share a list, and only a
/// few tasks at a time receive theirs. The tasks of other clients run in between.
pub(super) struct SharedLists {
    /// Lists that have been requested and are not done.
    asked: Mutex<HashMap<Arc<str>, Weak<OnceCell<PresenceList>>>>,
    turns: Semaphore,
}

impl SharedLists {
    pub(super) fn new() -> Self {
        let turns = available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        Self { asked: Mutex::default(), turns: Semaphore::new(turns) }
    }

    /// The list of a topic, at least as new as this call. `listing` makes it, unless another task
    /// does.
    pub(super) async fn share(
        &self,
        topic: &str,
        listing: impl Future<Output = PresenceList>,
    ) -> PresenceList {
        let list = self.asked(topic);
        // Lets tasks that are ready to run join this request.
        yield_now().await;
        let making = async {
            // A request from now on needs a newer list.
            self.forget(topic, &list);
            listing.await
        };
        let presences = list.get_or_init(|| making).await.clone();
        let turn = self.turns.acquire().await;
        yield_now().await;
        drop(turn);
        presences
    }

    fn asked(&self, topic: &str) -> Arc<OnceCell<PresenceList>> {
        let mut asked = self.asked.lock();
        if let Some(list) = asked.get(topic).and_then(Weak::upgrade) {
            return list;
        }
        // Removes lists whose requests were all cancelled.
        asked.retain(|_, list| list.strong_count() > 0);
        let list = Arc::default();
        asked.insert(topic.into(), Arc::downgrade(&list));
        list
    }

    fn forget(&self, topic: &str, list: &Arc<OnceCell<PresenceList>>) {
        let mut asked = self.asked.lock();
        if asked.get(topic).is_some_and(|current| current.as_ptr() == Arc::as_ptr(list)) {
            asked.remove(topic);
        }
    }
}
