//! How often a name may be tried with a wrong password.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Wrong passwords that may be sent for a name from an address in an interval.
const MAX_WRONG: u32 = 10;

/// The interval.
const WITHIN: Duration = Duration::from_secs(60);

/// The most names with addresses that are remembered. With more of them, one whose interval is over is forgotten, or the one
/// with the fewest wrong passwords.
const MAX_TRIED: usize = 1024;

/// The most names that are remembered of one address, so that one client does not take the table from all others. With more
/// of them, one is forgotten in the same way. The one that comes in its place inherits its wrong passwords: a name that is
/// forgotten and comes back has at least as many as it had, so others that are tried in turn with it, from the same address,
/// do not give it more tries. A name from another address inherits none.
const MAX_NAMES: usize = 64;

/// The most bytes of a name that are remembered. No admin has a longer one.
const MAX_NAME: usize = 200;

/// A name that was tried, and the address that it was tried from.
///
/// Both count. Behind a proxy that is not known, all have one address, and one of them who guesses a few names locks out no
/// other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tried {
    /// `None` if what was sent has no name.
    name: Option<String>,
    address: Option<IpAddr>,
}

impl Tried {
    pub(super) fn new(name: Option<&str>, address: Option<IpAddr>) -> Self {
        let ends = |name: &str| {
            let ends = name.char_indices().map(|(at, character)| at + character.len_utf8());
            ends.take_while(|end| *end <= MAX_NAME).last().unwrap_or(0)
        };
        let name = name.map(|name| name.get(..ends(name)).unwrap_or_default().to_owned());
        Self { name, address }
    }
}

/// The wrong passwords of a while.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<HashMap<Tried, Wrong>>);

#[derive(Debug)]
struct Wrong {
    count: u32,
    since: Instant,
}

impl Wrong {
    fn is_over(&self) -> bool {
        self.since.elapsed() >= WITHIN
    }
}

/// The one that is forgotten next.
fn least<'a>(
    tries: impl Iterator<Item = (&'a Tried, &'a Wrong)>,
) -> Option<(&'a Tried, &'a Wrong)> {
    tries.min_by_key(|(_, wrong)| (!wrong.is_over(), wrong.count, wrong.since))
}

/// The one of this address that is forgotten next, if the address has as many as it may have.
fn least_of(tries: &HashMap<Tried, Wrong>, address: Option<IpAddr>) -> Option<(&Tried, &Wrong)> {
    let of_it = || tries.iter().filter(|(tried, _)| tried.address == address);
    least(of_it()).filter(|_| of_it().count() >= MAX_NAMES)
}

impl Tries {
    /// Whether a name may be tried. Otherwise, after how many seconds.
    pub(super) fn may_try(&self, tried: &Tried) -> Result<(), u64> {
        let tries = self.0.lock();
        let inherited = || least_of(&tries, tried.address).map(|(_, wrong)| wrong);
        let Some(wrong) = tries.get(tried).or_else(inherited) else { return Ok(()) };
        let left = WITHIN.saturating_sub(wrong.since.elapsed());
        if wrong.count < MAX_WRONG || left.is_zero() { Ok(()) } else { Err(left.as_secs() + 1) }
    }

    /// Notes a wrong password.
    pub(super) fn was_wrong(&self, tried: Tried) {
        let mut tries = self.0.lock();
        let mut first = Wrong { count: 0, since: Instant::now() };
        if !tries.contains_key(&tried) {
            let of_it = least_of(&tries, tried.address).map(|(tried, _)| tried.clone());
            if let Some(inherited) = of_it.and_then(|it| tries.remove(&it)) {
                first = inherited;
            } else if tries.len() >= MAX_TRIED {
                let least = least(tries.iter()).map(|(tried, _)| tried.clone());
                least.and_then(|it| tries.remove(&it));
            }
        }
        let wrong = tries.entry(tried).or_insert(first);
        if wrong.is_over() {
            *wrong = Wrong { count: 0, since: Instant::now() };
        }
        wrong.count = wrong.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn tried(name: &str, address: u32) -> Tried {
        Tried::new(Some(name), Some(Ipv4Addr::from(address).into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_was_tried_often_waits_where_it_was_tried_from() {
        let tries = Tries::default();
        for _ in 0..MAX_WRONG {
            assert_eq!(tries.may_try(&tried("ann", 1)), Ok(()));
            tries.was_wrong(tried("ann", 1));
        }
        assert!(tries.may_try(&tried("ann", 1)).is_err());
        assert_eq!(tries.may_try(&tried("ann", 2)), Ok(()));
        assert_eq!(tries.may_try(&tried("bob", 1)), Ok(()));
        tokio::time::advance(WITHIN).await;
        assert_eq!(tries.may_try(&tried("ann", 1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_names_are_remembered_than_there_is_room_for_and_the_most_tried_are() {
        let tries = Tries::default();
        for _ in 0..MAX_WRONG {
            tries.was_wrong(tried("ann", 1));
        }
        for n in (0..).take(2 * MAX_TRIED) {
            tries.was_wrong(tried(&n.to_string(), n));
        }
        assert_eq!(tries.0.lock().len(), MAX_TRIED);
        assert!(tries.may_try(&tried("ann", 1)).is_err());
        // Those whose time is over go first.
        tokio::time::advance(WITHIN).await;
        tries.was_wrong(tried("new", 1));
        assert_eq!(tries.0.lock().len(), MAX_TRIED);
        let long = Tried::new(Some(&"é".repeat(1000)), None);
        assert_eq!(long.name.unwrap().len(), MAX_NAME);
    }

    #[tokio::test(start_paused = true)]
    async fn other_names_that_an_address_tries_in_turn_give_a_name_no_more_tries() {
        let tries = Tries::default();
        for n in 0..2 * MAX_NAMES {
            tries.was_wrong(tried(&n.to_string(), 1));
        }
        let mut tried_often = 0;
        for n in 0..20 * MAX_TRIED {
            if tries.may_try(&tried("bob", 1)).is_err() {
                break;
            }
            tried_often += 1;
            tries.was_wrong(tried("bob", 1));
            tries.was_wrong(tried(&format!("other {n}"), 1));
        }
        assert!(tried_often <= MAX_WRONG, "{tried_often} wrong passwords");
        tokio::time::advance(WITHIN).await;
        assert_eq!(tries.may_try(&tried("bob", 1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_locks_out_no_name_of_another_whatever_it_tries() {
        let tries = Tries::default();
        for n in 0..2 * MAX_TRIED {
            for _ in 0..MAX_WRONG {
                tries.was_wrong(tried(&n.to_string(), 1));
            }
        }
        assert!(tries.may_try(&tried("new", 1)).is_err(), "that one waits itself");
        for (name, address) in [("ann", 2), ("bob", 3), ("0", 4)] {
            assert_eq!(tries.may_try(&tried(name, address)), Ok(()), "{name} from {address}");
        }
        assert!(tries.0.lock().len() <= MAX_NAMES);
        // As many addresses as fill the table are no reason either.
        for address in (1..).take(MAX_TRIED) {
            for _ in 0..MAX_WRONG {
                tries.was_wrong(tried("root", address));
            }
        }
        assert_eq!(tries.may_try(&tried("ann", 5000)), Ok(()));
        tries.was_wrong(tried("ann", 5000));
        assert_eq!(
            tries.may_try(&tried("ann", 5000)),
            Ok(()),
            "it has one wrong password, not more"
        );
    }
}
