//! The limit of sockets of an endpoint.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use pipeline_test_support::eventually;
use pipeline_ws_sink::{Endpoint, Mount, mount::LongPoll};
use support::{
    channels::NamedSocket,
    memory::MemoryServer,
    poller::{Poller, request},
    server::Server,
};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    time::{Instant, sleep},
};

fn small() -> Mount<NamedSocket> {
    Mount::new(NamedSocket).longpoll(LongPoll::new())
}

#[tokio::test]
async fn a_client_above_the_limit_is_refused_before_connect_and_accepted_later() {
    let server = Server::start(Endpoint::builder().mount("/socket", small()).max_sockets(2)).await;
    let [ada, bob] = [server.connect("name=ada").await, server.connect("name=bob").await];
    // `connect` would panic.
    assert_eq!(server.try_connect("vsn=2.0.0&name=panic").await.unwrap_err(), 503);
    assert_eq!(server.endpoint.snapshot().connections_refused, 1);
    assert_eq!(server.recorded.counters("socket.connections_refused"), [(String::new(), 1)]);
    drop(ada);
    server.open_sockets(1).await;
    eventually(|| server.endpoint.snapshot().sockets[0].open == 1).await;
    let _eve = server.connect("name=eve").await;
    assert_eq!(server.try_connect("vsn=2.0.0&name=joe").await.unwrap_err(), 503);
    drop(bob);
}

#[tokio::test]
async fn a_client_refused_by_connect_does_not_count() {
    let server = Server::start(Endpoint::builder().mount("/socket", small()).max_sockets(1)).await;
    for _ in 0..3 {
        assert_eq!(server.try_connect("vsn=2.0.0").await.unwrap_err(), 403);
    }
    let _ada = server.connect("name=ada").await;
}

#[tokio::test]
async fn polling_clients_count_as_well() {
    let builder = Endpoint::builder().mount("/socket", small()).max_sockets(1);
    let server = MemoryServer::start(builder);
    let _ada = Poller::connect(&server, "vsn=2.0.0&name=ada").await;
    let path = "/socket/longpoll?vsn=2.0.0&name=panic";
    let refused = request(server.stream().await, "GET", path, &[], "").await;
    assert_eq!((refused.status, refused.body.as_str()), (503, "too many connections"));
    assert_eq!(refused.header("retry-after"), Some("5"));
}

/// Requests an upgrade, and does not read the response.
async fn upgrades_unread(server: &MemoryServer) -> DuplexStream {
    let mut stream = server.stream_of(32).await;
    let request = "GET /socket/websocket?vsn=2.0.0&name=ada HTTP/1.1\r\nhost: x\r\n\
                   connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually(|| server.endpoint.snapshot().sockets[0].connected == 1).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_the_upgrade_releases_its_slot() {
    let builder = Endpoint::builder().mount("/socket", small()).max_sockets(1);
    let server = MemoryServer::start(builder);
    let _stream = upgrades_unread(&server).await;
    let path = "/socket/longpoll?vsn=2.0.0&name=bob";
    let refused = request(server.stream().await, "GET", path, &[], "").await;
    assert_eq!(refused.status, 503);
    sleep(Duration::from_secs(31)).await;
    Poller::connect(&server, "vsn=2.0.0&name=bob").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_the_upgrade_does_not_delay_the_shutdown() {
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", small()));
    let _stream = upgrades_unread(&server).await;
    let begun = Instant::now();
    let report = server.endpoint.drain(Duration::from_secs(20)).await;
    assert_eq!(report.aborted, 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
