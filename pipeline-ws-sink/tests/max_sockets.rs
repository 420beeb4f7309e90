//! How many sockets an endpoint may have.

mod support;

use pipeline_test_support::eventually;
use pipeline_ws_sink::{Endpoint, LongPoll, Mount};
use support::{
    channels::NamedSocket,
    memory::MemoryServer,
    poller::{Poller, request},
    server::Server,
};

fn small() -> Mount<NamedSocket> {
    Mount::new(NamedSocket).longpoll(LongPoll::new())
}

#[tokio::test]
async fn a_client_beyond_the_limit_is_refused_before_connect_and_let_in_when_there_is_room() {
    let server = Server::start(Endpoint::builder().mount("/socket", small()).max_sockets(2)).await;
    let [ada, bob] = [server.connect("name=ada").await, server.connect("name=bob").await];
    // `connect` would panic.
    assert_eq!(server.try_connect("vsn=2.0.0&name=panic").await.unwrap_err(), 503);
    assert_eq!(server.endpoint.snapshot().connects_limited, 1);
    assert_eq!(server.recorded.counters("socket.connects_limited"), [(String::new(), 1)]);
    drop(ada);
    server.open_sockets(1).await;
    eventually(|| server.endpoint.snapshot().sockets[0].open == 1).await;
    let _eve = server.connect("name=eve").await;
    assert_eq!(server.try_connect("vsn=2.0.0&name=joe").await.unwrap_err(), 503);
    drop(bob);
}

#[tokio::test]
async fn a_client_that_is_refused_by_connect_takes_nobodys_place() {
    let server = Server::start(Endpoint::builder().mount("/socket", small()).max_sockets(1)).await;
    for _ in 0..3 {
        assert_eq!(server.try_connect("vsn=2.0.0").await.unwrap_err(), 403);
    }
    let _ada = server.connect("name=ada").await;
}

#[tokio::test]
async fn clients_that_poll_count_as_well() {
    let builder = Endpoint::builder().mount("/socket", small()).max_sockets(1);
    let server = MemoryServer::start(builder);
    let _ada = Poller::connect(&server, "vsn=2.0.0&name=ada").await;
    let path = "/socket/longpoll?vsn=2.0.0&name=panic";
    let refused = request(server.stream().await, "GET", path, &[], "").await;
    assert_eq!((refused.status, refused.body.as_str()), (503, "too many connections"));
    assert_eq!(refused.header("retry-after"), Some("5"));
}
