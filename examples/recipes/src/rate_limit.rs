//! A rate limit for each user, over all sockets of the user. The limits of a mount are for each socket, so a user with
//! ten tabs has ten of them.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline::ws::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    token::Signer,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{Failed, user, user::UserSocket};

/// How many events a user may cause at once, and how often a further one.
const BURST: u32 = 3;
const EVERY: Duration = Duration::from_secs(1);

/// What all channels of a user share: when the bucket is full again. It is gone with the last of them.
struct Bucket(Mutex<Instant>);

impl Bucket {
    /// Takes a token, or returns the time until there is one.
    fn take(&self) -> Result<(), Duration> {
        let (mut full_at, now) = (self.0.lock(), Instant::now());
        let after = (*full_at).max(now) + EVERY;
        let wait = after.saturating_duration_since(now + EVERY * BURST);
        if !wait.is_zero() {
            return Err(wait);
        }
        *full_at = after;
        Ok(())
    }
}

/// The buckets of users with joined channels, and of some who have left.
#[derive(Default)]
struct Buckets(Mutex<HashMap<u64, Weak<Bucket>>>);

impl Buckets {
    fn of(&self, user: u64) -> Arc<Bucket> {
        let mut all = self.0.lock();
        if let Some(bucket) = all.get(&user).and_then(Weak::upgrade) {
            return bucket;
        }
        // Before the table grows, users who have left are removed: so it is bounded by the channels.
        if all.len() == all.capacity() {
            all.retain(|_, bucket| bucket.strong_count() > 0);
        }
        let bucket = Arc::new(Bucket(Mutex::new(Instant::now())));
        all.insert(user, Arc::downgrade(&bucket));
        bucket
    }
}

struct Limited(Arc<Bucket>);

impl Channel for Limited {
    type Socket = UserSocket;
    type Config = Buckets;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then(|| Limited(cx.config().of(*cx.assigns()))).ok_or(JoinError::unauthorized())
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if let Err(wait) = self.0.take() {
            let refused = json!({ "reason": "rate limited", "retry_after": wait.as_millis() });
            return Ok(Reply::error().with(refused));
        }
        cx.broadcast(event, &payload)?;
        Ok(Reply::ok())
    }
}

fn mount(signer: Signer) -> Mount<UserSocket> {
    Mount::new(UserSocket(signer)).channel_with::<Limited>("user:*", Buckets::default())
}

pub(crate) async fn run() -> Result<(), Failed> {
    let endpoint = Endpoint::builder().mount("/socket", mount(user::signer()?)).build()?;
    user::run(axum::Router::new(), endpoint, None).await
}

#[cfg(test)]
mod tests {
    use pipeline::ws::channel_test::{TestEndpoint, assert_reply};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_sockets_of_a_user_share_one_limit() {
        let kit = TestEndpoint::new(mount(user::signer().unwrap()));
        let (first, second) = (user::joined(&kit, 7).await, user::joined(&kit, 7).await);
        let other = user::joined(&kit, 8).await;

        for socket in [&first, &second, &first] {
            let said = socket.push("say", json!({}));
            assert_reply!(socket, said, "ok");
        }
        let said = second.push("say", json!({}));
        assert_reply!(second, said, "error", { "reason": "rate limited", "retry_after": 1000 });
        let said = other.push("say", json!({}));
        assert_reply!(other, said, "ok");

        tokio::time::advance(EVERY).await;
        let said = second.push("say", json!({}));
        assert_reply!(second, said, "ok");
    }
}
