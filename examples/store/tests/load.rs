//! The load as a program, with few shoppers. README has the figures of many.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![cfg(target_os = "linux")]

use std::process::{Command, Output};

#[cfg(feature = "redis")]
use pipeline_test_support::{
    proxies::{Backend, Balancer, Proxy},
    servers::{Kind, Server},
};

/// Runs the load. It fails if anything was not right.
fn load(arguments: &[&str]) -> String {
    let mut load = Command::new(env!("CARGO_BIN_EXE_store_load"));
    let Output { status, stdout, stderr } = load.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{said}{}", String::from_utf8_lossy(&stderr));
    said
}

/// The dashboard has to count the shoppers, their pages and the items in their carts.
#[test]
fn t_034_a_thousand_shoppers_of_four_pages_are_counted() {
    let said = load(&["--visit", "--shoppers", "1000"]);
    assert!(said.contains("the dashboard counts 1000 shoppers with 1000 tabs"), "{said}");
    let pages = ["/bench/1", "/bench/2", "/bench/3", "/bench/4"].map(|it| format!("\"{it}\":250"));
    assert!(pages.iter().all(|page| said.contains(page)), "{said}");
}

/// What a cart costs does not grow with their number, although all of them are on one topic of presences.
/// `store_load --visit --shoppers 10000` prints the figures of many.
#[test]
fn p_014_a_cart_costs_no_more_where_there_are_many() {
    let costs = |shoppers: u32| {
        let said = load(&["--visit", "--shoppers", &shoppers.to_string()]);
        ["cpu of the arrivals", "cpu of the changes"].map(|what| {
            let rest = said.split_once(what).unwrap().1.trim_start();
            let seconds: f64 = rest.split_once(' ').unwrap().0.parse().unwrap();
            seconds * 1000.0 / f64::from(shoppers)
        })
    };
    let (few, many) = (costs(200), costs(1000));
    println!(
        "P-014: ms of CPU for the arrival and for the change of a cart: {few:.2?} of 200, {many:.2?} of 1000"
    );
    for (few, many) in few.iter().zip(&many) {
        // Were each compared with all others, it would be five times as much.
        assert!(*many < 2.5 * few.max(0.1), "{few:.2} ms, and {many:.2} ms where there are more");
    }
}

/// Two nodes behind a load balancer are restarted one after the other while everything is sold.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn t_037_nodes_that_are_restarted_during_a_sale_lose_nothing() {
    let Some(redis) = Server::start(Kind::Redis).await else { return };
    let backends = [Backend::free(), Backend::free()];
    let Some(proxy) = Proxy::start(Balancer::Haproxy, &backends).await else { return };
    let ports = backends.map(|it| format!("{}:{}", it.port, it.admin_port)).join(",");
    let url = redis.url();
    let nodes = ["--nodes", "2", "--redis", &url, "--ports", &ports, "--door", &proxy.address];
    let flags = [&["--shoppers", "60", "--within", "300", "--restart"], &nodes[..]].concat();
    let said = load(&flags);
    for line in
        ["oversold             0", "lost                 0", "pages right          60 of 60"]
    {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains("dashboard            60 shoppers"), "{said}");
    assert!(said.contains("cut off"), "{said}");
}

/// Also shows T-036.
#[test]
fn a_whole_sale_is_one_command_and_everything_is_right_at_the_end() {
    let said = load(&["--shoppers", "100", "--within", "300"]);
    for line in
        ["oversold             0", "lost                 0", "pages right          100 of 100"]
    {
        assert!(said.contains(line), "{said}");
    }
}
