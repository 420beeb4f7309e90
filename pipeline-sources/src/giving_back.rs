//! The tasks that give back what a dropped fetch had taken, which the end of a source waits for.

use std::{future::Future, sync::Arc};

use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinHandle};

/// The tasks of a session that give items back, and those that may begin others.
#[derive(Clone, Debug, Default)]
pub(crate) struct GivingBack(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl GivingBack {
    /// Starts a task, which has a limit of its own. Outside of a runtime there is none.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.0.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(runtime.spawn(task));
    }

    /// Waits until all have ended, also those that were started meanwhile.
    pub(crate) async fn ended(&self) {
        while let Some(task) = self.next() {
            // One that has panicked gives nothing back.
            let _ = task.await;
        }
    }

    fn next(&self) -> Option<JoinHandle<()>> {
        self.0.lock().pop()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::{sync::oneshot, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_all_also_for_those_that_others_start() {
        let tasks = GivingBack::default();
        let (begin, begun) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel::<()>();
        let others = tasks.clone();
        tasks.spawn(async move {
            let _ = begun.await;
            others.spawn(async move { drop(ended.await) });
        });
        let waiting = tasks.ended();
        tokio::pin!(waiting);
        assert_eq!((&mut waiting).now_or_never(), None);
        begin.send(()).unwrap();
        for _ in 0..10 {
            yield_now().await;
            assert_eq!((&mut waiting).now_or_never(), None);
        }
        end.send(()).unwrap();
        waiting.await;
    }
}
