//! The cart: a set of items, and its signed form. Pure; the time is an argument.

use std::{
    collections::{BTreeSet, VecDeque},
    time::SystemTime,
};

use pipeline::ws::token::{Signer, SignerError, TokenError};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// How long a signed cart is valid.
pub const VALID_FOR: Duration = Duration::from_secs(604_800);

/// The most bytes of a signed cart that are looked at.
pub const MAX_TOKEN: usize = 4096;

/// The orders that a cart remembers. An order is confirmed several times, and is taken out of the cart once.
pub const MAX_ORDERS: usize = 4;

/// The most changes that lead to a cart. Twenty a second for as long as a signed cart is valid are 12 million.
pub const MAX_CHANGES: u64 = 1 << 32;

/// How many items a cart may have, and how it is signed.
#[derive(Clone, Debug)]
pub struct CartRules {
    signer: Signer,
    /// The most items of a cart.
    pub max_items: usize,
}

/// A set of items, one of each size at most. It reserves nothing.
///
/// Its written form is what is signed, and what the tabs of a cart send to each other.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Cart {
    items: BTreeSet<i64>,
    /// The keys of the last orders that were taken out of it, oldest first. Carts of older versions have none.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    orders: VecDeque<String>,
    /// How many changes have led to it. Tabs that have heard the same have the same number.
    #[serde(default, skip_serializing_if = "is_zero")]
    changes: u64,
}

/// An order that was placed, as the page that says so brings it to its cart.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Ordered {
    /// The id of the cart.
    pub cart: String,
    /// The key of the order.
    pub order: String,
    /// What was bought.
    pub items: Vec<i64>,
}

/// Why a cart was not changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CartError {
    /// The item is in it.
    #[error("duplicate_item")]
    DuplicateItem,
    /// The item is not in it.
    #[error("not_found")]
    NotFound,
    /// The cart has as many items as it may have.
    #[error("cart_full")]
    Full,
}

/// Why a signed cart cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The text is too long to be one.
    #[error("the signed cart has more than {MAX_TOKEN} bytes")]
    TooLong,
    /// The text was not signed here, or is too old.
    #[error(transparent)]
    Token(#[from] TokenError),
}

fn is_zero(changes: &u64) -> bool {
    *changes == 0
}

impl CartRules {
    /// Rules with carts that this secret signs.
    ///
    /// # Errors
    ///
    /// If the secret is too short.
    pub fn new(secret: &str, max_items: usize) -> Result<Self, SignerError> {
        let signer = Signer::new(secret, "shopping cart serialization")?.max_age(VALID_FOR);
        Ok(Self { signer, max_items })
    }
}

impl Cart {
    /// An empty cart.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The items, ascending.
    pub fn item_ids(&self) -> impl Iterator<Item = i64> {
        self.items.iter().copied()
    }

    /// Whether an item is in it.
    #[must_use]
    pub fn has(&self, item: i64) -> bool {
        self.items.contains(&item)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds an item.
    ///
    /// # Errors
    ///
    /// [`CartError`] if it is in the cart, or the cart is full. The cart is unchanged.
    pub fn add(&mut self, item: i64, rules: &CartRules) -> Result<(), CartError> {
        if self.items.contains(&item) {
            return Err(CartError::DuplicateItem);
        }
        if self.items.len() >= rules.max_items {
            return Err(CartError::Full);
        }
        self.items.insert(item);
        self.count_change();
        Ok(())
    }

    /// Removes an item.
    ///
    /// # Errors
    ///
    /// [`CartError::NotFound`] if it is not in the cart.
    pub fn remove(&mut self, item: i64) -> Result<(), CartError> {
        if !self.items.remove(&item) {
            return Err(CartError::NotFound);
        }
        self.count_change();
        Ok(())
    }

    /// How many changes have led to it.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The keys of the last orders that were taken out of it, oldest first.
    pub fn orders(&self) -> impl Iterator<Item = &str> {
        self.orders.iter().map(String::as_str)
    }

    /// Whether another cart has the same items, and remembers the same orders.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.items, &self.orders) == (&other.items, &other.orders)
    }

    /// Becomes the cart of another tab, if more changes have led to that one: this one has missed some of them. Returns whether
    /// it has. The tab may be that of a node with other rules, so it is read like a cart that a shopper brings, and one with
    /// more than [`MAX_CHANGES`] is none.
    pub fn catch_up(
        &mut self,
        other: Self,
        rules: &CartRules,
        is_known: impl Fn(i64) -> bool,
    ) -> bool {
        let has_missed = other.changes > self.changes && other.changes <= MAX_CHANGES;
        if has_missed {
            *self = other.within(rules, is_known);
        }
        has_missed
    }

    /// The part of it that a cart may have: the items that are known, the lowest ids first if they are too many, and the last
    /// orders.
    fn within(self, rules: &CartRules, is_known: impl Fn(i64) -> bool) -> Self {
        let Self { items, mut orders, changes } = self;
        let items = items.into_iter().filter(|item| is_known(*item)).take(rules.max_items);
        orders.drain(..orders.len().saturating_sub(MAX_ORDERS));
        Self { items: items.collect(), orders, changes: changes.min(MAX_CHANGES) }
    }

    /// Notes a change that this tab has announced to the others.
    pub fn count_change(&mut self) {
        self.changes = self.changes.saturating_add(1).min(MAX_CHANGES);
    }

    /// Does what another tab has done. If the cart then has more items than it may have, the highest ids leave, in every
    /// tab alike; they are returned.
    pub fn follow(&mut self, added: &[i64], removed: &[i64], rules: &CartRules) -> Vec<i64> {
        for item in removed {
            self.items.remove(item);
        }
        self.items.extend(added);
        self.count_change();
        let mut left = Vec::new();
        while self.items.len() > rules.max_items {
            left.extend(self.items.pop_last());
        }
        left
    }

    /// Takes out what an order has bought, unless the order was taken out before: what is in the cart again was put back
    /// since.
    pub fn take_out(&mut self, order: &str, items: &[i64]) {
        if self.orders.iter().any(|known| known == order) {
            return;
        }
        if self.orders.len() >= MAX_ORDERS {
            self.orders.pop_front();
        }
        self.orders.push_back(order.to_owned());
        self.count_change();
        for item in items {
            self.items.remove(item);
        }
    }

    /// The signed cart, dated `now`.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if it cannot be signed.
    pub fn serialize(&self, rules: &CartRules, now: SystemTime) -> Result<String, TokenError> {
        rules.signer.sign(self, now)
    }

    /// Reads a signed cart, with all items that it has.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] if it was not signed here, is too old, or too long.
    pub fn deserialize(
        token: &str,
        rules: &CartRules,
        now: SystemTime,
    ) -> Result<Self, RestoreError> {
        if token.len() > MAX_TOKEN {
            return Err(RestoreError::TooLong);
        }
        Ok(rules.signer.verify(token, now)?)
    }

    /// The cart of a shopper who brings this signed cart. It has the items that are known, the lowest ids first if they are
    /// too many. Without a valid one, it is empty.
    #[must_use]
    pub fn restore(
        token: Option<&str>,
        rules: &CartRules,
        now: SystemTime,
        is_known: impl Fn(i64) -> bool,
    ) -> Self {
        let cart = token.and_then(|token| Self::deserialize(token, rules, now).ok());
        cart.unwrap_or_default().within(rules, is_known)
    }
}

impl FromIterator<i64> for Cart {
    fn from_iter<I: IntoIterator<Item = i64>>(items: I) -> Self {
        Self { items: items.into_iter().collect(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECRET: &str = "a secret of the tests, long enough";

    fn rules() -> CartRules {
        CartRules::new(SECRET, 4).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn ids(cart: &Cart) -> Vec<i64> {
        cart.item_ids().collect()
    }

    fn restore(token: &str, now: SystemTime) -> Vec<i64> {
        ids(&Cart::restore(Some(token), &rules(), now, |_| true))
    }

    #[test]
    fn a_050_an_item_is_added_once() {
        let mut cart = Cart::new();
        assert_eq!(cart.add(7, &rules()), Ok(()));
        assert_eq!(cart.add(7, &rules()), Err(CartError::DuplicateItem));
        assert_eq!(ids(&cart), [7]);
    }

    #[test]
    fn a_051_an_item_is_removed_once() {
        let mut cart: Cart = [7, 9].into_iter().collect();
        assert_eq!(cart.remove(7), Ok(()));
        assert_eq!(cart.remove(7), Err(CartError::NotFound));
        assert_eq!(ids(&cart), [9]);
    }

    #[test]
    fn an_order_is_taken_out_of_a_cart_once() {
        let mut cart: Cart = [7, 9].into_iter().collect();
        cart.take_out("one", &[7]);
        assert_eq!(ids(&cart), [9]);
        cart.add(7, &rules()).unwrap();
        let token = cart.serialize(&rules(), at(0)).unwrap();
        let mut cart = Cart::deserialize(&token, &rules(), at(0)).unwrap();
        cart.take_out("one", &[7]);
        assert_eq!(ids(&cart), [7, 9]);
        cart.take_out("two", &[7]);
        assert_eq!(ids(&cart), [9]);
        for n in 0..100 {
            cart.take_out(&n.to_string(), &[]);
        }
        assert_eq!(cart.orders.len(), MAX_ORDERS);
    }

    proptest! {
        #[test]
        fn a_052_a_cart_is_read_as_it_was_signed(items in prop::collection::btree_set(any::<i64>(), 0..8)) {
            let cart: Cart = items.into_iter().collect();
            let token = cart.serialize(&rules(), at(0)).unwrap();
            prop_assert_eq!(Cart::deserialize(&token, &rules(), at(1)).unwrap(), cart);
        }
    }

    #[test]
    fn a_053_a_cart_that_is_signed_twice_has_two_valid_tokens() {
        let cart: Cart = [7].into_iter().collect();
        let tokens = [0, 1].map(|second| cart.serialize(&rules(), at(second)).unwrap());
        assert_ne!(tokens[0], tokens[1]);
        assert_eq!(tokens.map(|token| restore(&token, at(2))), [[7], [7]]);
    }

    #[test]
    fn a_054_a_token_that_was_not_signed_here_is_an_empty_cart() {
        let cart: Cart = [7].into_iter().collect();
        let token = cart.serialize(&rules(), at(0)).unwrap();
        let mut wrong = vec![String::new(), "x".to_owned(), token[..token.len() - 1].to_owned()];
        for place in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            wrong.push(String::from_utf8(bytes).unwrap());
        }
        let other = CartRules::new("another secret, and long enough", 4).unwrap();
        wrong.push(cart.serialize(&other, at(0)).unwrap());
        let purpose = Signer::new(SECRET, "cart id").unwrap();
        wrong.push(purpose.sign(&json!({ "items": [7] }), at(0)).unwrap());
        for token in &wrong {
            assert!(Cart::deserialize(token, &rules(), at(0)).is_err(), "{token}");
            assert_eq!(restore(token, at(0)), [0; 0], "{token}");
        }
        assert!(Cart::restore(None, &rules(), at(0), |_| true).is_empty());
        assert_eq!(restore(&token, at(0)), [7]);
    }

    #[test]
    fn a_055_a_cart_is_valid_for_seven_days() {
        let token = [7].into_iter().collect::<Cart>().serialize(&rules(), at(0)).unwrap();
        assert_eq!(restore(&token, at(604_799)), [7]);
        assert_eq!(restore(&token, at(604_801)), [0; 0]);
    }

    #[test]
    fn a_056_a_full_cart_takes_no_more() {
        let mut cart: Cart = [1, 2, 3, 4].into_iter().collect();
        assert_eq!(cart.add(5, &rules()), Err(CartError::Full));
        assert_eq!(cart.add(4, &rules()), Err(CartError::DuplicateItem));
        assert_eq!(ids(&cart), [1, 2, 3, 4]);
    }

    #[test]
    fn a_057_a_token_that_is_too_long_is_not_looked_at() {
        let cart: Cart = (0..4000).collect();
        let token = cart.serialize(&rules(), at(0)).unwrap();
        assert!(token.len() > MAX_TOKEN);
        let read = Cart::deserialize(&token, &rules(), at(0));
        assert!(matches!(read, Err(RestoreError::TooLong)), "{read:?}");
        assert_eq!(restore(&token, at(0)), [0; 0]);
    }

    #[test]
    fn a_058_of_a_valid_token_the_known_items_with_the_lowest_ids_are_kept() {
        let signer = Signer::new(SECRET, "shopping cart serialization").unwrap().max_age(VALID_FOR);
        let token = signer.sign(&json!({ "items": [9, 3, 3, 99, 8, 1, 7, 9] }), at(0)).unwrap();
        let cart = Cart::restore(Some(&token), &rules(), at(0), |item| item != 99);
        assert_eq!(ids(&cart), [1, 3, 7, 8]);
    }

    #[test]
    fn a_cart_that_has_missed_changes_becomes_the_one_that_has_not() {
        let mut one = Cart::new();
        one.add(7, &rules()).unwrap();
        let token = one.serialize(&rules(), at(0)).unwrap();
        let mut late = Cart::restore(Some(&token), &rules(), at(0), |_| true);
        assert_eq!((late.changes(), &late), (1, &one));
        one.add(9, &rules()).unwrap();
        one.remove(7).unwrap();
        one.take_out("key", &[]);
        assert!(late.catch_up(one.clone(), &rules(), |_| true));
        assert_eq!((ids(&late), late.changes()), (vec![9], 4));
        assert!(!one.catch_up(Cart::new(), &rules(), |_| true));
        assert_eq!(one, late);
    }

    #[test]
    fn a_cart_of_a_tab_with_other_rules_is_not_taken_as_it_is() {
        let other = |changes: u64| -> Cart {
            let orders: Vec<String> = (0..100).map(|n| n.to_string()).collect();
            let written =
                json!({ "items": [1, 2, 3, 4, 5, 6, 99], "orders": orders, "changes": changes });
            serde_json::from_value(written).unwrap()
        };
        let mut cart: Cart = [7].into_iter().collect();
        for changes in [0, MAX_CHANGES + 1, u64::MAX] {
            assert!(!cart.catch_up(other(changes), &rules(), |_| true));
        }
        assert_eq!((ids(&cart), cart.changes()), (vec![7], 0));
        assert!(cart.catch_up(other(MAX_CHANGES), &rules(), |item| item != 2));
        assert_eq!(ids(&cart), [1, 3, 4, 5]);
        assert!(cart.orders().eq(["96", "97", "98", "99"]));
        cart.count_change();
        assert_eq!(cart.changes(), MAX_CHANGES);
    }

    #[test]
    fn tabs_that_follow_each_other_end_alike() {
        let mut one: Cart = [1, 2, 3, 9].into_iter().collect();
        let mut other: Cart = [1, 2, 3, 8].into_iter().collect();
        assert_eq!(one.follow(&[8], &[], &rules()), [9]);
        assert_eq!(other.follow(&[9], &[], &rules()), [9]);
        assert_eq!(one, other);
        assert_eq!(one.follow(&[5], &[1], &rules()), [0; 0]);
        assert_eq!(ids(&one), [2, 3, 5, 8]);
    }
}
