//! Sockets that an operator looks up by their id and ends, one by one or all, or one of their channels.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use pipeline_test_support::{eventually, reply};
use pipeline_ws_sink::{
    channel_test::TestEndpoint,
    endpoint::{FoundSockets, SocketSnapshot},
    mount::LongPoll,
};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    memory::MemoryServer,
    poller::Poller,
    server::Server,
};

const ADA: &str = "named:ada";
const T: &str = "room:lobby";

/// The only socket.
fn only(found: FoundSockets) -> SocketSnapshot {
    assert_eq!((found.sockets.len(), found.more), (1, 0), "{found:?}");
    found.sockets.into_iter().next().unwrap()
}

fn topics(socket: &SocketSnapshot) -> Vec<&str> {
    socket.topics.as_ref().unwrap().iter().map(String::as_str).collect()
}

#[tokio::test]
async fn the_sockets_of_an_id_are_found_with_what_they_have_joined() {
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let operator = server.endpoint.operator();
    assert_eq!(operator.find(ADA).await, FoundSockets::default());
    let mut ada = server.connect("name=ada").await;
    let mut bob = server.connect("name=bob").await;
    bob.join("1", T).await;
    ada.join("1", T).await;
    ada.join("2", "room:attic").await;
    // A join that is not answered yet is none.
    ada.send(json!(["3", "3", "slow:1", "phx_join", {}])).await;
    let socket = only(operator.find(ADA).await);
    assert_eq!(topics(&socket), ["room:attic", T]);
    assert_eq!((&*socket.socket, &*socket.transport), ("NamedSocket", "websocket"));
    assert_eq!((socket.frames_waiting, socket.expires_in_seconds), (0, None));
    assert!(socket.open_seconds >= socket.silent_seconds && socket.silent_seconds >= 0.0);
    gate.add_permits(1);
    ada.expect([reply("3", "3", "slow:1", "ok", json!({}))]).await;
    assert_eq!(topics(&only(operator.find(ADA).await)), ["room:attic", T, "slow:1"]);
    // A second device.
    let _phone = server.connect("name=ada").await;
    server.open_sockets(3).await;
    let found = operator.find(ADA).await;
    assert_eq!(found.sockets.len(), 2);
    assert_eq!(found.sockets[0].number, socket.number, "the oldest first");
    assert!(found.sockets[1].number > socket.number);
    assert_eq!(topics(&found.sockets[1]), [""; 0]);
}

#[tokio::test]
async fn at_most_a_hundred_sockets_are_described() {
    let (builder, _gate) = endpoint();
    let server = Server::start(builder).await;
    let mut all = Vec::new();
    for _ in 0..103 {
        all.push(server.connect("name=ada").await);
    }
    server.open_sockets(103).await;
    let found = server.endpoint.operator().find(ADA).await;
    assert_eq!((found.sockets.len(), found.more), (100, 3));
    assert_eq!(server.endpoint.operator().end_sockets(ADA), 103);
}

#[tokio::test]
async fn a_channel_is_ended_alone_and_its_client_sees_a_close() {
    let (builder, _gate) = endpoint();
    let server = Server::start(builder).await;
    let operator = server.endpoint.operator();
    let mut ada = server.connect("name=ada").await;
    let mut bob = server.connect("name=bob").await;
    ada.join("1", T).await;
    ada.join("2", "room:attic").await;
    bob.join("1", T).await;
    let number = only(operator.find(ADA).await).number;
    for (id, number, topic) in
        [(ADA, number, "room:cellar"), (ADA, number + 99, T), ("named:bob", number, T)]
    {
        assert!(!operator.end_channel(id, number, topic).await, "{id} {number} {topic}");
    }
    assert!(operator.end_channel(ADA, number, T).await);
    let gone = json!({ "reason": "shutdown: ended by an operator" });
    let farewell = json!(["1", null, T, "farewell", gone]);
    ada.expect([json!(["1", "1", T, "phx_close", {}]), farewell]).await;
    bob.expect([json!([null, null, T, "gone", gone])]).await;
    // The other channel is as before, and this one can be joined again.
    ada.send(json!(["2", "3", "room:attic", "ping", {}])).await;
    ada.expect([reply("2", "3", "room:attic", "ok", json!({}))]).await;
    assert!(!operator.end_channel(ADA, number, T).await, "it has ended");
    ada.join("4", T).await;
    let once = ("what=channel".to_owned(), 1);
    assert_eq!(server.recorded.counters("socket.ended_by_operator"), [once]);
}

#[tokio::test]
async fn one_socket_or_all_of_an_id_are_closed_with_1001() {
    let (builder, _gate) = endpoint();
    let server = Server::start(builder).await;
    let operator = server.endpoint.operator();
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(server.connect("name=ada").await);
    }
    let mut bob = server.connect("name=bob").await;
    server.open_sockets(4).await;
    let first = operator.find(ADA).await.sockets[0].number;
    assert!(
        !operator.end_socket(Some("named:bob"), first)
            && !operator.end_socket(Some(ADA), first + 99)
    );
    assert!(operator.end_socket(Some(ADA), first));
    assert_eq!(devices[0].closed().await, 1001);
    eventually(|| server.endpoint.open_sockets() == 3).await;
    assert!(!operator.end_socket(Some(ADA), first), "no other has its number");
    assert_eq!(operator.end_sockets(ADA), 2);
    for device in &mut devices[1..] {
        assert_eq!(device.closed().await, 1001);
    }
    bob.expect_nothing_else().await;
    let ended = ["what=id", "what=socket"].map(|what| (what.to_owned(), 1));
    assert_eq!(server.recorded.counters("socket.ended_by_operator"), ended);
}

#[tokio::test]
async fn a_socket_without_an_id_is_closed_by_its_number() {
    let (builder, _gate) = endpoint();
    let server = Server::start(builder).await;
    let operator = server.endpoint.operator();
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let number = only(operator.find(ADA).await).number;
    let mut other = server.connect("name=without-id").await;
    server.open_sockets(2).await;
    assert!(!operator.end_socket(None, number), "it has an id");
    assert!(!operator.end_socket(None, number + 2), "no such socket");
    assert!(operator.end_socket(None, number + 1));
    assert_eq!(other.closed().await, 1001);
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn a_polling_client_is_found_and_ended_as_well_and_so_is_a_client_of_the_kit() {
    let (builder, _gate) = endpoint_with(|mount| mount.longpoll(LongPoll::new()));
    let server = MemoryServer::start(builder);
    let operator = server.endpoint.operator();
    let poller = Poller::connect(&server, "vsn=2.0.0&name=ada").await;
    poller.join(T).await;
    let socket = only(operator.find(ADA).await);
    assert_eq!((&*socket.transport, topics(&socket)), ("longpoll", vec![T]));
    assert!(operator.end_channel(ADA, socket.number, T).await);
    let messages = poller.messages().await;
    assert_eq!(messages.first().map(|message| &message[3]), Some(&Value::from("phx_close")));
    assert!(operator.end_socket(Some(ADA), socket.number));
    eventually(|| server.endpoint.open_sockets() == 0).await;

    let (builder, _gate) = endpoint();
    let kit = TestEndpoint::of(builder.build().unwrap());
    let operator = kit.endpoint().operator();
    let socket = kit.socket::<NamedSocket>(ADA, "ada".to_owned());
    let _room = socket.join(T, json!({})).await.unwrap();
    assert_eq!(topics(&only(operator.find(ADA).await)), [T]);
    drop((kit, socket));
}

#[tokio::test]
async fn more_questions_at_once_than_may_wait_are_answered_or_left_and_later_ones_are_answered() {
    let (builder, _gate) = endpoint();
    let server = Server::start(builder).await;
    let operator = server.endpoint.operator();
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    // More at once than may wait: each gets an answer, or none.
    let asked = (0..50).map(|_| operator.find(ADA));
    let found = futures::future::join_all(asked).await;
    assert!(found.iter().all(|found| found.sockets.len() == 1));
    assert!(found.iter().any(|found| found.sockets[0].topics.is_some()));
    assert_eq!(topics(&only(operator.find(ADA).await)), [T], "it answers again");
}

#[tokio::test]
async fn the_sockets_for_which_the_most_bytes_wait_are_listed_in_order() {
    let (builder, _gate) = endpoint();
    let server = MemoryServer::start(builder);
    let operator = server.endpoint.operator();
    // Each client's stream holds a kilobyte, and the third reads.
    let mut slow = server.connect(1024).await;
    let mut slower = server.connect(1024).await;
    let mut reads = server.connect(1 << 20).await;
    slow.join("1", "room:slow").await;
    slower.join("1", "room:slower").await;
    reads.join("1", "room:reads").await;
    assert_eq!(operator.most_waiting(10).await, []);

    let text = "x".repeat(512);
    for (topic, count) in [("room:slow", 5), ("room:slower", 20), ("room:reads", 5)] {
        for _ in 0..count {
            server.endpoint.broadcast(topic, "said", json!({ "text": text })).unwrap();
        }
    }
    let waiting = loop {
        let waiting = operator.most_waiting(10).await;
        if waiting.len() == 2 && waiting[0].frames_waiting >= 16 {
            break waiting;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!([topics(&waiting[0]), topics(&waiting[1])], [["room:slower"], ["room:slow"]]);
    assert!(waiting[0].bytes_waiting > waiting[1].bytes_waiting);
    assert_eq!(waiting[0].id.as_deref(), Some(ADA));
    let first = operator.most_waiting(1).await;
    assert_eq!((first.len(), first[0].number), (1, waiting[0].number));
    drop((slow, slower, reads));
}
