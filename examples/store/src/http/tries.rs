//! How often an address may try a password.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Wrong passwords that an address may send in an interval.
const MAX_WRONG: u32 = 10;

/// The interval.
const WITHIN: Duration = Duration::from_secs(60);

/// The most addresses that are remembered. With more of them, the one that was wrong first is forgotten.
const MAX_ADDRESSES: usize = 1024;

/// The wrong passwords of a while.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<HashMap<Option<IpAddr>, Wrong>>);

#[derive(Debug)]
struct Wrong {
    count: u32,
    since: Instant,
}

impl Tries {
    /// Whether an address may try. Otherwise, after how many seconds.
    pub(super) fn may_try(&self, address: Option<IpAddr>) -> Result<(), u64> {
        let tries = self.0.lock();
        let Some(wrong) = tries.get(&address) else { return Ok(()) };
        let left = WITHIN.saturating_sub(wrong.since.elapsed());
        if wrong.count < MAX_WRONG || left.is_zero() { Ok(()) } else { Err(left.as_secs() + 1) }
    }

    /// Notes a wrong password.
    pub(super) fn was_wrong(&self, address: Option<IpAddr>) {
        let mut tries = self.0.lock();
        if tries.len() >= MAX_ADDRESSES && !tries.contains_key(&address) {
            let first =
                tries.iter().min_by_key(|(_, wrong)| wrong.since).map(|(address, _)| *address);
            if let Some(first) = first {
                tries.remove(&first);
            }
        }
        let wrong = tries.entry(address).or_insert(Wrong { count: 0, since: Instant::now() });
        if wrong.since.elapsed() >= WITHIN {
            *wrong = Wrong { count: 0, since: Instant::now() };
        }
        wrong.count = wrong.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: u32) -> Option<IpAddr> {
        Some(Ipv4Addr::from(n).into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_many_wrong_passwords_waits() {
        let tries = Tries::default();
        for _ in 0..MAX_WRONG {
            assert_eq!(tries.may_try(address(1)), Ok(()));
            tries.was_wrong(address(1));
        }
        assert!(tries.may_try(address(1)).is_err());
        assert_eq!(tries.may_try(address(2)), Ok(()));
        tokio::time::advance(WITHIN).await;
        assert_eq!(tries.may_try(address(1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_addresses_are_remembered_than_there_is_room_for() {
        let tries = Tries::default();
        for n in 0..2 * u32::try_from(MAX_ADDRESSES).unwrap() {
            tries.was_wrong(address(n));
        }
        assert_eq!(tries.0.lock().len(), MAX_ADDRESSES);
    }
}
