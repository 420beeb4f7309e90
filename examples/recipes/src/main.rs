//! Recipes: short programs, each for one task of an application, and each with a test.
//!
//! `cargo run -p recipes -- notifications`, for instance. Each says how to try it.

mod chat;
mod dashboard;
mod graceful_deploy;
mod jwt_and_cookies;
mod notifications;
mod own_metrics;
mod polled;
mod rate_limit;
mod session;
mod spillover;
mod tenants;
mod trigger;
mod user;
mod webhooks;

use std::{env, error::Error};

/// What a recipe fails with.
type Failed = Box<dyn Error + Send + Sync>;

const HELP: &str = "\
Usage: cargo run -p recipes -- RECIPE

  notifications    a row of a table and its notification, in one transaction
  trigger          a trigger that notifies, whatever changes a row
  webhooks         signed webhooks in, pushes out, none lost
  jwt_and_cookies  a login by JSON Web Token in a cookie, a short-lived token for the socket
  session          the login that an application has, for the socket too
  chat             a chat with presence: who is there, on which devices
  rate_limit       a rate limit for each user, over all sockets of the user
  own_metrics      metrics of an application, with the library's
  tenants          a fair queue: a busy tenant delays no other
  dashboard        the latest value of each key, ten times a second
  graceful_deploy  at SIGTERM, what was accepted is handled, and clients move on
  spillover        a custom dispatcher: own workers first, then others
  polled           a custom source: a function that is asked for rows
";

#[tokio::main]
async fn main() -> Result<(), Failed> {
    match env::args().nth(1).as_deref() {
        Some("notifications") => notifications::run().await,
        Some("trigger") => trigger::run().await,
        Some("webhooks") => webhooks::run().await,
        Some("jwt_and_cookies") => jwt_and_cookies::run().await,
        Some("session") => session::run().await,
        Some("chat") => chat::run().await,
        Some("rate_limit") => rate_limit::run().await,
        Some("own_metrics") => own_metrics::run().await,
        Some("tenants") => tenants::run().await,
        Some("dashboard") => dashboard::run().await,
        Some("graceful_deploy") => graceful_deploy::run().await,
        Some("spillover") => spillover::run().await,
        Some("polled") => polled::run().await,
        _ => {
            print!("{HELP}");
            Ok(())
        }
    }
}
