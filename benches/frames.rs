//! The cost of encoding a broadcast, and of reading a message and replying.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

#[path = "common/sockets.rs"]
mod sockets;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::ws::Payload;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Runtime,
};

use self::sockets::MemoryServer;

/// The number of messages that are sent before the replies are read.
const MESSAGES: usize = 100;

#[derive(Serialize)]
struct Message<'a> {
    d: &'a str,
    n: u64,
    at_us: u64,
}

/// A broadcast is encoded once for all subscribers; in version 1 only if a client uses it.
fn write(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let server = runtime.block_on(async { MemoryServer::start() });
    let mut group = c.benchmark_group("write a broadcast");
    for size in [64, 1024, 16 << 10] {
        let data = "x".repeat(size);
        let message = Message { d: &data, n: 7, at_us: 1_700_000_000_000_000 };
        let json = Payload::new(&message).unwrap();
        let bytes = Payload::binary(data.clone().into_bytes());
        group.throughput(Throughput::Bytes(size as u64));
        let broadcast = |topic, payload: &Payload| {
            server.endpoint.broadcast(topic, "msg", black_box(payload)).unwrap();
        };
        group.bench_function(BenchmarkId::new("a value", size), |b| {
            b.iter(|| server.endpoint.broadcast("room:1", "msg", black_box(&message)).unwrap());
        });
        group.bench_function(BenchmarkId::new("JSON passed on", size), |b| {
            b.iter(|| broadcast("room:1", &json));
        });
        group.bench_function(BenchmarkId::new("bytes", size), |b| {
            b.iter(|| broadcast("room:1", &bytes));
        });
        // The client reads nothing, so that only the encoding is measured.
        let join = text(br#"{"topic":"room:1","event":"phx_join","payload":{},"ref":"1"}"#);
        let _client = runtime.block_on(async {
            let mut client = server.connect("1.0.0").await;
            client.write_all(&join).await.unwrap();
            frame(&mut client).await;
            client
        });
        group.bench_function(BenchmarkId::new("JSON passed on, version 1 too", size), |b| {
            b.iter(|| broadcast("room:1", &json));
        });
    }
}

/// From the bytes of a message to the bytes of its reply.
fn read(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(async { MemoryServer::start() });
    let mut group = c.benchmark_group("read a message and answer it");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    let heartbeats = [
        ("1.0.0", text(br#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"2"}"#)),
        ("2.0.0", text(br#"[null,"2","phoenix","heartbeat",{}]"#)),
    ];
    for (version, message) in heartbeats {
        let mut client = runtime.block_on(server.connect(version));
        group.bench_function(BenchmarkId::new("heartbeat", version), |b| {
            b.iter(|| runtime.block_on(answered(&mut client, &message)));
        });
    }
    let pushes = [
        (
            "text",
            text(&[br#"["1","2","room:1","said",{"text":""#, &[b'x'; 64][..], b"\"}]"].concat()),
        ),
        ("bytes", masked(2, &[b"\0\x01\x01\x06\x0412room:1said", &[b'x'; 64][..]].concat())),
    ];
    for (kind, message) in pushes {
        let mut client = runtime.block_on(server.connect("2.0.0"));
        let join = text(br#"["1","1","room:1","phx_join",{}]"#);
        runtime.block_on(async {
            client.write_all(&join).await.unwrap();
            frame(&mut client).await;
        });
        group.bench_function(BenchmarkId::new("push to a channel", kind), |b| {
            b.iter(|| runtime.block_on(answered(&mut client, &message)));
        });
    }
}

/// Sends a message many times, and waits for all replies.
async fn answered(client: &mut DuplexStream, message: &[u8]) {
    client.write_all(&message.repeat(MESSAGES)).await.unwrap();
    for _ in 0..MESSAGES {
        frame(client).await;
    }
}

/// Reads a short frame.
async fn frame(client: &mut DuplexStream) {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.unwrap();
    assert!(head[1] < 126, "answers are short");
    let mut body = [0; 125];
    client.read_exact(&mut body[..usize::from(head[1])]).await.unwrap();
    black_box(body);
}

fn text(message: &[u8]) -> Vec<u8> {
    masked(1, message)
}

/// A client's frame. A mask of zeros leaves the message unchanged.
fn masked(opcode: u8, message: &[u8]) -> Vec<u8> {
    let length = u8::try_from(message.len()).unwrap();
    let mut frame = vec![0x80 | opcode];
    match length {
        ..126 => frame.push(0x80 | length),
        _ => frame.extend([0x80 | 126, 0, length]),
    }
    [&frame[..], &[0; 4], message].concat()
}

criterion_group!(benches, write, read);
criterion_main!(benches);
