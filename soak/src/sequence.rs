//! The check of one client's items. Pure.

/// An item as a client receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) user: usize,
    pub(crate) from: usize,
    pub(crate) n: u64,
    pub(crate) k: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// An item arrived while the client had not joined.
    NotJoined(Received),
    /// An item of another user.
    Crossed(Received),
    /// An item arrived again, or after a later one.
    Repeated(Received, u64),
    /// Items before this one did not arrive.
    Lost(Received, u64),
    /// The last items did not arrive.
    LostAtTheEnd(u64, u64),
}

/// The sequence of one client on one user's topic, over all of its joins.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    user: usize,
    joined: bool,
    /// The last item before this join was subscribed, once the server has sent it.
    at: Option<u64>,
    /// The first item of this join.
    first: Option<u64>,
    /// The last item of all joins.
    last: u64,
    /// The last number of each source.
    last_of: [u64; 3],
}

impl Sequence {
    pub(crate) fn new(user: usize) -> Self {
        Self { user, joined: false, at: None, first: None, last: 0, last_of: [0; 3] }
    }

    /// A join begins. Items may arrive from now on.
    pub(crate) fn join(&mut self) {
        (self.joined, self.at, self.first) = (true, None, None);
    }

    /// The client has left, or its connection is over.
    pub(crate) fn leave(&mut self) {
        self.joined = false;
    }

    /// The server's message after the subscription. All items after this one have to arrive.
    pub(crate) fn subscribed(&mut self, at: u64) -> Result<(), Violation> {
        self.at = Some(at);
        match self.first {
            Some(first) if first > at + 1 => Err(Violation::LostAtTheEnd(first, at)),
            _ => Ok(()),
        }
    }

    pub(crate) fn item(&mut self, item: Received) -> Result<(), Violation> {
        if item.user != self.user {
            return Err(Violation::Crossed(item));
        }
        if !self.joined {
            return Err(Violation::NotJoined(item));
        }
        let before = self.last_of[item.from];
        if item.k <= self.last || item.n <= before {
            return Err(Violation::Repeated(item, self.last));
        }
        // The number that may not be left out: none is known before the subscription.
        let next = match (self.first, self.at) {
            (Some(_), _) => self.last + 1,
            (None, Some(at)) => at + 1,
            (None, None) => item.k,
        };
        self.first.get_or_insert(item.k);
        (self.last, self.last_of[item.from]) = (item.k, item.n);
        if item.k > next { Err(Violation::Lost(item, next)) } else { Ok(()) }
    }

    /// All items up to this one have been sent.
    pub(crate) fn end(&self, last: u64) -> Result<(), Violation> {
        let seen = match (self.joined, self.first, self.at) {
            (true, Some(_), _) => self.last,
            (true, None, Some(at)) => at,
            _ => return Ok(()),
        };
        if seen < last { Err(Violation::LostAtTheEnd(seen, last)) } else { Ok(()) }
    }

    /// The last item of the user that the client has received, or that was sent before it subscribed.
    pub(crate) fn seen(&self) -> u64 {
        self.at.unwrap_or_default().max(self.last)
    }

    /// Whether the client has joined, and has the server's message after the subscription.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.joined && self.at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(k: u64) -> Received {
        Received { user: 7, from: 0, n: k * 10, k }
    }

    /// A client that has joined after the third item.
    fn joined() -> Sequence {
        let mut sequence = Sequence::new(7);
        sequence.join();
        sequence.subscribed(3).unwrap();
        sequence
    }

    #[test]
    fn consecutive_items_are_right_over_several_joins() {
        let mut sequence = joined();
        for k in 4..8 {
            assert_eq!(sequence.item(item(k)), Ok(()), "{k}");
        }
        sequence.leave();
        sequence.join();
        // Items may arrive before the message that is sent after the subscription.
        assert_eq!(sequence.item(item(20)), Ok(()));
        assert_eq!(sequence.subscribed(19), Ok(()));
        assert_eq!(sequence.item(item(21)), Ok(()));
        assert_eq!(sequence.end(21), Ok(()));
    }

    #[test]
    fn every_fault_is_found() {
        assert_eq!(joined().item(item(5)), Err(Violation::Lost(item(5), 4)), "the first is lost");
        let mut sequence = joined();
        sequence.item(item(4)).unwrap();
        assert_eq!(sequence.clone().item(item(6)), Err(Violation::Lost(item(6), 5)));
        assert_eq!(sequence.clone().item(item(4)), Err(Violation::Repeated(item(4), 4)));
        let renumbered = Received { k: 5, ..item(4) };
        assert_eq!(
            sequence.clone().item(renumbered),
            Err(Violation::Repeated(renumbered, 4)),
            "the same item under a new number"
        );
        let of_another = Received { user: 8, ..item(5) };
        assert_eq!(sequence.clone().item(of_another), Err(Violation::Crossed(of_another)));
        assert_eq!(sequence.end(5), Err(Violation::LostAtTheEnd(4, 5)));
        assert_eq!(joined().end(4), Err(Violation::LostAtTheEnd(3, 4)), "none has arrived");
        sequence.leave();
        assert_eq!(sequence.clone().item(item(5)), Err(Violation::NotJoined(item(5))));
        sequence.join();
        assert_eq!(
            sequence.clone().item(item(4)),
            Err(Violation::Repeated(item(4), 4)),
            "from before"
        );
        sequence.item(item(9)).unwrap();
        assert_eq!(sequence.subscribed(7), Err(Violation::LostAtTheEnd(9, 7)));
    }
}
