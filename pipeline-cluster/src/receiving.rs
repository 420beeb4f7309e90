//! Which channels arrive on this node, and the joins that wait for others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::channels::{BuildChannelHasher, Channel};

/// The channels that arrive on this node.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_connected: bool,
    arriving: HashSet<Channel, BuildChannelHasher>,
    /// What waits for a channel ends when its sender is dropped. Only channels that are waited for are
    /// here.
    waiting: HashMap<Channel, watch::Sender<()>, BuildChannelHasher>,
}

/// Whether a channel arrives.
#[derive(Debug)]
pub(crate) enum Arrives {
    Yes,
    /// The node is not connected: nothing arrives.
    No,
    /// The server is asked for it, or is about to be.
    Soon(Waiter),
}

/// Waits for a channel.
#[derive(Debug)]
pub(crate) struct Waiter {
    receiving: Arc<Receiving>,
    channel: Channel,
    /// `None` once it is dropped, which is before it is looked at whether others wait.
    changed: Option<watch::Receiver<()>>,
}

impl Receiving {
    /// These channels arrive from now on, if the node is connected.
    pub(crate) fn add(&self, channels: &[Channel]) {
        let mut state = self.0.lock();
        for channel in channels {
            state.arriving.insert(*channel);
            state.waiting.remove(channel);
        }
    }

    /// These channels may not arrive any more. A join that begins now waits for them.
    pub(crate) fn remove(&self, channels: &[Channel]) {
        let mut state = self.0.lock();
        for channel in channels {
            state.arriving.remove(channel);
        }
    }

    /// The channels that were added arrive.
    pub(crate) fn connected(&self) {
        self.0.lock().is_connected = true;
    }

    /// Nothing arrives, and nothing is waited for.
    pub(crate) fn disconnected(&self) {
        *self.0.lock() = State::default();
    }

    pub(crate) fn arrives(self: &Arc<Self>, channel: Channel) -> Arrives {
        let mut state = self.0.lock();
        if !state.is_connected {
            return Arrives::No;
        }
        if state.arriving.contains(&channel) {
            return Arrives::Yes;
        }
        let changed = state.waiting.entry(channel).or_insert_with(|| watch::Sender::new(()));
        let changed = Some(changed.subscribe());
        Arrives::Soon(Waiter { receiving: self.clone(), channel, changed })
    }

    /// Whether a channel arrives now.
    pub(crate) fn has(&self, channel: Channel) -> bool {
        let state = self.0.lock();
        state.is_connected && state.arriving.contains(&channel)
    }
}

impl Waiter {
    /// Waits until the channel arrives, or the node is not connected any more. Returns whether it arrives.
    pub(crate) async fn wait(mut self) -> bool {
        if let Some(changed) = &mut self.changed {
            // It never changes, and ends.
            while changed.changed().await.is_ok() {}
        }
        self.receiving.has(self.channel)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.changed = None;
        let mut state = self.receiving.0.lock();
        if state.waiting.get(&self.channel).is_some_and(|sender| sender.receiver_count() == 0) {
            state.waiting.remove(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Channel = Channel::Topic(1);
    const TWO: Channel = Channel::Topic(2);

    fn soon(receiving: &Arc<Receiving>, channel: Channel) -> Waiter {
        match receiving.arrives(channel) {
            Arrives::Soon(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_channel_is_waited_for_until_it_arrives_or_the_connection_ends() {
        let receiving = Arc::<Receiving>::default();
        receiving.add(&[ONE]);
        assert!(matches!(receiving.arrives(ONE), Arrives::No), "it is not connected");
        receiving.connected();
        assert!(matches!(receiving.arrives(ONE), Arrives::Yes));
        let (first, second, never) =
            (soon(&receiving, TWO), soon(&receiving, TWO), soon(&receiving, Channel::All));
        receiving.add(&[TWO]);
        assert!(first.wait().await && second.wait().await);
        receiving.remove(&[ONE]);
        let third = soon(&receiving, ONE);
        receiving.disconnected();
        assert!(!third.wait().await && !never.wait().await);
        assert!(!receiving.has(TWO));
    }

    #[tokio::test]
    async fn a_channel_that_is_waited_for_no_more_takes_no_memory() {
        let receiving = Arc::<Receiving>::default();
        receiving.connected();
        let (first, second) = (soon(&receiving, ONE), soon(&receiving, ONE));
        drop(first);
        assert_eq!(receiving.0.lock().waiting.len(), 1);
        drop(second);
        assert_eq!(receiving.0.lock().waiting.len(), 0);
    }
}
