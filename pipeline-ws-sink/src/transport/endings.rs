//! Limits how many sockets end at the same time.

use std::pin::pin;

use tokio::{sync::Semaphore, task::yield_now};

/// How many sockets may wake their channels at once to end them.
const AT_ONCE: usize = 16;

/// Permits for sockets that end.
///
/// The end of a socket wakes all of its channels. When thousands of sockets end at once, for
/// example when a proxy in front of them ends, the channels of all of them would be queued before
/// the tasks of live sockets. With permits, the runtime schedules those in between.
#[derive(Debug)]
pub(crate) struct Endings(Semaphore);

impl Endings {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }

    /// Ends a socket's channels once there is a permit.
    ///
    /// A permit is held until the runtime has gone through its queue once, and no longer: a slow
    /// end does not delay the ends of other sockets.
    pub(crate) async fn in_turn(&self, ending: impl Future<Output = ()>) {
        let mut ending = pin!(ending);
        let turn = self.0.acquire().await;
        tokio::select! {
            biased;
            () = &mut ending => return,
            () = yield_now() => {}
        }
        drop(turn);
        ending.await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn other_tasks_run_between_the_ends_of_many_sockets() {
        let (endings, woken) = (Arc::new(Endings::new()), Arc::new(AtomicUsize::new(0)));
        let mut ends = JoinSet::new();
        for _ in 0..100 * AT_ONCE {
            let (endings, woken) = (endings.clone(), woken.clone());
            ends.spawn(async move {
                let end = async {
                    woken.fetch_add(1, Ordering::Relaxed);
                    // The channels run after this task.
                    yield_now().await;
                };
                endings.in_turn(end).await;
            });
        }
        // Each time this task runs, it finds a few more that have ended, and never all. The
        // runtime counts what yields as run until it looks at its driver, after 61 tasks.
        let mut before = 0;
        while before < 100 * AT_ONCE {
            yield_now().await;
            let now = woken.load(Ordering::Relaxed);
            assert!(now - before <= 10 * AT_ONCE, "{} at once", now - before);
            before = now;
        }
        ends.join_all().await;
    }

    #[tokio::test]
    async fn an_end_that_never_completes_does_not_delay_others() {
        let endings = Arc::new(Endings::new());
        let mut stuck = JoinSet::new();
        for _ in 0..10 * AT_ONCE {
            let endings = endings.clone();
            stuck.spawn(async move { endings.in_turn(pending()).await });
        }
        endings.in_turn(yield_now()).await;
        assert_eq!(stuck.len(), 10 * AT_ONCE);
    }
}
