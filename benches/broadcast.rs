//! The cost of a broadcast without sockets, and of verifying a client's token.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

use std::{hint::black_box, time::SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use pipeline::{
    timed::Timed,
    ws::{Endpoint, Payload, token::Signer},
};
use serde::Serialize;

#[derive(Serialize)]
struct Message<'a> {
    text: &'a str,
    n: u64,
    at_us: u64,
}

fn broadcast(c: &mut Criterion) {
    let endpoint = Endpoint::builder().build().unwrap();
    let text = "x".repeat(64);
    let message = Message { text: &text, n: 7, at_us: 1_700_000_000_000_000 };
    let mut group = c.benchmark_group("broadcast without subscribers");
    group.bench_function("a value", |b| {
        let timed = Timed::now(());
        b.iter(|| {
            endpoint.broadcast_timed(
                timed.enqueued_at(),
                "user:1",
                "push_timed",
                black_box(&message),
            )
        });
    });
    group.bench_function("JSON passed on", |b| {
        let payload = Payload::new(&message).unwrap();
        b.iter(|| endpoint.broadcast("user:1", "push_timed", black_box(&payload)));
    });
}

fn token(c: &mut Criterion) {
    let signer = Signer::new("a secret of at least 20 bytes", "user socket").unwrap();
    let token = signer.sign(&42_u64, SystemTime::now()).unwrap();
    c.bench_function("verify a token", |b| {
        b.iter(|| signer.verify::<u64>(black_box(&token), SystemTime::now()).unwrap());
    });
}

criterion_group!(benches, broadcast, token);
criterion_main!(benches);
