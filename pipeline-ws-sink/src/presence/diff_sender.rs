//! Sends presence diffs to clients.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::{runtime::Handle, task::yield_now};

use super::{
    PresenceDiff,
    shared::{FEW, Shared},
};
use crate::{
    protocol::message::Encoded,
    telemetry::{described, limited, shown},
};

/// The event of a diff.
const DIFF: &str = "presence_diff";

/// How many diffs the caller of a change sends before it passes the rest to a task. So no channel's
/// callback runs for as long as others come and go.
const DIFFS_AT_ONCE: usize = 4;

/// The right to send diffs. There is at most one for each presence, so diffs are sent in the order
/// of the changes.
pub(super) struct DiffSender {
    shared: Arc<Shared>,
    /// Whether the right has not been released.
    held: bool,
}

impl DiffSender {
    /// Claims the right, if there is a change to send and no other task has the right already: that
    /// task then also sends this change.
    pub(super) fn claim(shared: &Arc<Shared>) -> Option<Self> {
        let mut state = shared.attached().ok()?.state.lock();
        if state.has_ended || state.is_sending || state.pending.next_topic().is_none() {
            return None;
        }
        state.is_sending = true;
        Some(Self { shared: shared.clone(), held: true })
    }

    /// Sends small diffs here and now, and spawns a task for the rest.
    pub(super) fn run(mut self) {
        if self.shared.fetch.is_none() {
            for _ in 0..DIFFS_AT_ONCE {
                if self.is_next_for_many() {
                    break;
                }
                let Some(diff) = self.next() else { return };
                self.send(&diff);
            }
        }
        self.hand_over();
    }

    fn hand_over(mut self) {
        let shared = self.shared.clone();
        let Ok(attached) = shared.attached() else { return };
        let Ok(runtime) = Handle::try_current() else {
            // No runtime to spawn a task on. With `fetch`, diffs wait for a change that has one.
            if shared.fetch.is_none() {
                while let Some(diff) = self.next() {
                    self.send(&diff);
                }
            }
            return;
        };
        let mut tasks = attached.tasks.lock();
        if !attached.state.lock().has_ended {
            tasks.sends = Some(runtime.spawn(self.send_all()).abort_handle());
        }
    }

    /// Sends pending diffs, one after the other, until none is left.
    async fn send_all(mut self) {
        loop {
            // Other tasks run between two diffs. Their changes on a topic go into one diff.
            yield_now().await;
            let Some(mut diff) = self.next() else { return };
            if self.shared.fetch.is_some() {
                diff.joins = self.shared.enriched(&diff.topic, diff.joins).await;
                diff.leaves = self.shared.enriched(&diff.topic, diff.leaves).await;
            }
            self.send(&diff);
        }
    }

    /// Whether the next diff goes to many clients.
    fn is_next_for_many(&self) -> bool {
        let Ok(attached) = self.shared.attached() else { return false };
        let topic = attached.state.lock().pending.next_topic().cloned();
        topic.is_some_and(|topic| attached.pubsub.table().listeners(&topic) > FEW)
    }

    /// The next diff. Without one, the right is released.
    fn next(&mut self) -> Option<PresenceDiff> {
        let mut state = self.shared.attached().ok()?.state.lock();
        let next = if state.has_ended { None } else { state.next_diff() };
        if next.is_none() {
            // Under the lock that also guards changes, so that no change is left unsent.
            state.is_sending = false;
            self.held = false;
        }
        drop(state);
        next
    }

    fn send(&self, diff: &PresenceDiff) {
        let Ok(attached) = self.shared.attached() else { return };
        match Encoded::new(&diff.topic, DIFF, diff) {
            Ok(encoded) => {
                attached.pubsub.deliver_locally(&encoded, None);
            }
            Err(error) => {
                let (lines, topic) = (&self.shared.lines, &diff.topic);
                limited!(
                    lines,
                    ERROR,
                    topic = shown(topic),
                    error = described(&error),
                    "failed to encode a presence diff"
                );
            }
        }
        if let Some(on_diff) = &self.shared.on_diff
            && catch_unwind(AssertUnwindSafe(|| on_diff(diff))).is_err()
        {
            let (lines, topic) = (&self.shared.lines, &diff.topic);
            limited!(lines, ERROR, topic = shown(topic), "on_diff callback panicked");
        }
    }
}

impl Drop for DiffSender {
    fn drop(&mut self) {
        if self.held
            && let Ok(attached) = self.shared.attached()
        {
            attached.state.lock().is_sending = false;
        }
    }
}
