//! The store on one node, without a network: its channels, pages, database and pipelines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![allow(unreachable_pub, reason = "its modules are used by the tests only")]

mod admin;
mod balance;
mod cart;
mod chaos;
mod checkout;
mod inventory;
mod pages;
mod product;
mod serving;
mod sqlite;
mod support;
