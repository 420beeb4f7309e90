//! The batches in which the sockets of a mount are closed. Pure.

use std::{ops::Range, time::Duration};

/// The batches in which the sockets of a mount are closed when the endpoint
/// [drains](crate::Endpoint::drain), so that their clients do not all connect again at once.
///
/// The unit is the channel, as in Phoenix, because joins are the expensive part: a socket with two
/// channels counts as two. A socket is always closed as a whole, and alone if it has more channels
/// than a batch. Sockets without channels belong to the last batch. Mounts are drained
/// concurrently.
///
/// ```
/// # use pipeline_ws_sink::{
/// #     Mount, Socket,
/// #     mount::Drainer,
/// #     socket::{ConnectError, ConnectInfo, Params},
/// # };
/// # use std::time::Duration;
/// # struct UserSocket;
/// # impl Socket for UserSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
/// let drainer = Drainer::new().batch_size(500).batch_interval(Duration::from_millis(100));
/// let mount = Mount::new(UserSocket).drainer(drainer);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Drainer {
    batch_size: usize,
    batch_interval: Duration,
}

/// The drainer of a mount. Each mount has its own, which identifies its sockets.
#[derive(Debug)]
pub(crate) struct MountDrainer {
    /// The name of the mount's sockets.
    pub(crate) socket: &'static str,
    pub(crate) drainer: Drainer,
}

impl Drainer {
    /// The defaults of Phoenix: 10,000 channels every two seconds.
    pub const fn new() -> Self {
        Self { batch_size: 10_000, batch_interval: Duration::from_secs(2) }
    }

    /// How many channels are closed in one batch, with their sockets. Default 10,000.
    pub const fn batch_size(mut self, channels: usize) -> Self {
        self.batch_size = channels;
        self
    }

    /// The time from one batch to the next. Default two seconds.
    pub const fn batch_interval(mut self, interval: Duration) -> Self {
        self.batch_interval = interval;
        self
    }

    pub(crate) fn interval(&self) -> Duration {
        self.batch_interval
    }

    /// Splits a list of sockets, given by their numbers of channels, into batches. There is always
    /// one batch, for the sockets that are not in the list.
    pub(crate) fn batches(&self, channels: &[usize]) -> Vec<Range<usize>> {
        let mut batches = Vec::new();
        let (mut start, mut size) = (0, 0_usize);
        for (at, &count) in channels.iter().enumerate() {
            if at > start && size.saturating_add(count) > self.batch_size {
                batches.push(start..at);
                (start, size) = (at, 0);
            }
            size = size.saturating_add(count);
        }
        batches.push(start..channels.len());
        batches
    }
}

impl Default for Drainer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn batches_are_filled_up_to_their_size() {
        let batches = |size, channels: &[usize]| Drainer::new().batch_size(size).batches(channels);
        assert_eq!(batches(2, &[1, 1, 2, 1]), [0..2, 2..3, 3..4]);
        assert_eq!(batches(2, &[5, 1]), [0..1, 1..2], "one that is larger than a batch");
        assert_eq!(batches(3, &[1, 1, 1, 1]), [0..3, 3..4]);
        assert_eq!(batches(3, &[]), vec![0..0; 1]);
        assert_eq!(batches(0, &[1, 1]), [0..1, 1..2], "no fewer than one at a time");
    }

    proptest! {
        #[test]
        fn every_socket_is_in_one_batch_and_no_batch_is_too_large(
            channels in prop::collection::vec(1usize..5, 0..50), size in 0usize..12
        ) {
            let batches = Drainer::new().batch_size(size).batches(&channels);
            let all: Vec<usize> = batches.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..channels.len()).collect::<Vec<_>>());
            for batch in batches {
                let total: usize = channels[batch.clone()].iter().sum();
                prop_assert!(total <= size || batch.len() == 1);
            }
        }
    }
}
