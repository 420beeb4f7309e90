//! From a request to a WebSocket: the cases C-001 to C-042 that need a server. The others are next to
//! the code: `protocol/version.rs`, `protocol/query.rs`, `path.rs`, `origin.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::net::SocketAddr;

use http::{HeaderName, HeaderValue};
use pipeline_test_support::{Log, connect, reply};
use pipeline_ws_sink::{
    Endpoint, Mount,
    endpoint::BuildError,
    mount::{CheckOrigin, LongPoll},
    socket::PeerAddr,
};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint},
    handshake_server::HandshakeServer,
    server::Server,
};

const SOCKET: &str = "/socket/websocket";
const EVIL: (&str, &str) = ("origin", "http://evil.test");
const OFFER: &str = "sec-websocket-protocol";

/// A host without pages, so that pages of other hosts are refused.
fn strict(
    mount: Mount<support::handshake_server::ReportingSocket>,
) -> pipeline_ws_sink::endpoint::EndpointBuilder {
    Endpoint::builder().host("localhost").mount("/socket", mount)
}

#[tokio::test]
async fn c_001_a_client_of_version_2_is_accepted() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    client.send(json!(["1", "1", "room:lobby", "phx_join", {}])).await;
    client.expect([reply("1", "1", "room:lobby", "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_007_a_version_that_is_not_a_string_is_refused() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    for query in ["vsn[]=2.0.0", "vsn[a]=2.0.0", "vsn=2.0.0&vsn[]=2.0.0"] {
        let answer = server.upgrade(&format!("{SOCKET}?{query}"), &[]).await;
        assert!(answer.is_forbidden(), "{query}: {answer:?}");
    }
    server.saw_no_connection();
}

#[tokio::test]
async fn c_008_a_post_is_answered_with_400_and_an_empty_body() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    for method in ["POST", "PUT", "OPTIONS"] {
        let answer = server.request(method, &format!("{SOCKET}?vsn=2.0.0"), &[]).await;
        assert_eq!((answer.status, &*answer.body), (400, ""), "{method}");
    }
    server.saw_no_connection();
}

#[tokio::test]
async fn c_009_a_get_without_an_upgrade_gets_an_explanation() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let answer = server.request("GET", &format!("{SOCKET}?vsn=2.0.0"), &[]).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("pgrade"), "{answer:?}");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"), "{answer:?}");
    server.saw_no_connection();
}

#[tokio::test]
async fn c_010_another_version_of_websockets_is_refused_with_400() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(SOCKET, &[("sec-websocket-version", "12"), (OFFER, "any")]).await;
    assert_eq!(answer.status, 400);
    assert!(!answer.body.is_empty());
    server.saw_no_connection();
}

#[tokio::test]
async fn c_012_a_refused_client_gets_403_and_an_empty_body() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?reject=error"), &[]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
    server.seen();
}

#[tokio::test]
async fn c_013_a_refusal_can_have_its_own_response() {
    let server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?reject=limit"), &[]).await;
    assert_eq!((answer.status, &*answer.body), (429, "Too many requests"));
    let answer = server.upgrade(&format!("{SOCKET}?reject=later"), &[]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("60")));
    let answer = server.upgrade(&format!("{SOCKET}?reject=switch"), &[]).await;
    assert!(answer.is_forbidden(), "a refusal does not switch protocols: {answer:?}");
}

#[tokio::test]
async fn c_014_a_reason_without_a_response_is_403_and_logged() {
    let (log, _guard) = Log::keep();
    let server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?reject=other"), &[]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
    let log = log.take();
    assert!(log.iter().any(|line| line.contains("error=\"refused: other\"")), "{log:?}");
}

#[tokio::test]
async fn c_015_an_error_of_another_kind_refuses() {
    let server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?reject=number"), &[]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
}

#[tokio::test]
async fn c_016_a_panic_refuses_and_is_logged() {
    let (log, _guard) = Log::keep();
    let server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?reject=crash"), &[]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
    let log = log.take();
    assert!(log.iter().any(|line| line.contains("crash requested")), "{log:?}");
    assert_eq!(server.upgrade(SOCKET, &[]).await.status, 101, "others are accepted");
}

#[tokio::test]
async fn c_017_a_client_without_a_valid_id_is_refused() {
    let server = HandshakeServer::open(|mount| mount).await;
    let answer = server.upgrade(&format!("{SOCKET}?id=bad"), &[]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
}

#[tokio::test]
async fn an_id_that_panics_refuses_and_keeps_no_place() {
    let (log, _guard) = Log::keep();
    let server = Server::start(endpoint().0.max_sockets(1)).await;
    for _ in 0..3 {
        assert_eq!(server.try_connect("vsn=2.0.0&name=panic-id").await.unwrap_err(), 403);
    }
    assert_eq!(server.endpoint.open_sockets(), 0);
    let mut client = server.connect("name=ada").await;
    client.join("1", "room:lobby").await;
    let lines = log.take();
    let refused = lines.iter().filter(|line| line.contains("panicked: no id")).count();
    assert_eq!(refused, 3, "{lines:?}");
    assert_eq!(server.endpoint.snapshot().connections_refused, 0, "no place is kept");
}

#[tokio::test]
async fn c_018_path_variables_override_the_query() {
    let tenants =
        |mount: Mount<_>| Endpoint::builder().mount("/tenant/:tenant", mount.path("/live/:lane"));
    let mut server = HandshakeServer::build(tenants).await;
    let path = "/tenant/acme/live/fast?tenant=evil&x=1&lane[a]=b";
    assert_eq!(server.upgrade(path, &[]).await.status, 101);
    let expected = json!({"tenant": "acme", "lane": "fast", "x": "1", "vsn": "2.0.0"});
    assert_eq!(json!(server.seen().0), expected);
    assert_eq!(server.upgrade("/tenant/%ff/live/fast", &[]).await.status, 400);
    assert_eq!(server.upgrade("/tenant/acme/websocket", &[]).await.status, 404);
    server.saw_no_connection();
}

#[tokio::test]
async fn c_020_only_harmless_headers_are_passed_on() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("x-forwarded-for", "1.2.3.4"),
        ("X-App", "demo"),
        ("user-agent", "golden/1.0"),
        ("traceparent", trace),
        ("cookie", "secret=1"),
        ("authorization", "Bearer z"),
    ];
    assert_eq!(server.upgrade(&format!("{SOCKET}?vsn=2.0.0&q=1"), &headers).await.status, 101);
    let (_, info) = server.seen();
    fn pairs<'a>(
        headers: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    ) -> Vec<(&'a str, &'a str)> {
        headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }
    assert_eq!(pairs(info.x_headers()), [("x-forwarded-for", "1.2.3.4"), ("x-app", "demo")]);
    assert_eq!(pairs(info.trace_context_headers()), [("traceparent", trace)]);
    assert_eq!(
        pairs(info.sec_websocket_headers()),
        [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-version", "13")]
    );
    assert_eq!(info.user_agent.as_deref(), Some("golden/1.0"));
    assert_eq!(info.auth_token, None);
    assert_eq!(info.uri.to_string(), format!("http://{}{SOCKET}?vsn=2.0.0&q=1", server.address()));
    if cfg!(feature = "axum") {
        assert!(info.peer_addr.is_some_and(|peer| peer.ip().is_loopback() && peer.port() != 0));
    }
}

#[tokio::test]
async fn c_021_without_an_origin_a_client_is_accepted() {
    let server = HandshakeServer::build(strict).await;
    assert_eq!(server.upgrade(SOCKET, &[]).await.status, 101);
}

#[tokio::test]
async fn a_foreign_origin_is_refused_and_the_expected_ones_are_logged() {
    let (log, _guard) = Log::keep();
    let mut server = HandshakeServer::build(strict).await;
    let answer = server.upgrade(SOCKET, &[EVIL]).await;
    assert!(answer.is_forbidden(), "{answer:?}");
    server.saw_no_connection();
    let log = log.take();
    let expected = "ERROR expected=\"the host localhost, set by EndpointBuilder::host\" \
                    message=refused a page from another origin \
                    origin=\"http://evil.test\" socket=\"ReportingSocket\"";
    assert!(log.iter().any(|line| line == expected), "{log:#?}");
    assert_eq!(server.upgrade(SOCKET, &[("origin", "https://localhost:9")]).await.status, 101);
}

#[tokio::test]
async fn foreign_origins_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let server = HandshakeServer::build(strict).await;
    for _ in 0..300 {
        assert!(server.upgrade(SOCKET, &[EVIL]).await.is_forbidden());
    }
    let lines = log.take();
    let written = lines.iter().filter(|line| line.contains("refused a page")).count();
    assert!((100..250).contains(&written), "{written} lines");
}

#[tokio::test]
async fn origins_are_checked_by_the_endpoints_rule_unless_the_mount_has_its_own() {
    let paths = |mount: Mount<_>| {
        let all = Mount::new(NamedSocket).check_origin(CheckOrigin::off());
        let own = Mount::new(NamedSocket).check_origin(CheckOrigin::connection());
        let broken = CheckOrigin::function(|origin| origin.host().unwrap() == "allowed.test");
        let broken = Mount::new(NamedSocket).check_origin(broken);
        Endpoint::builder()
            .check_origin(CheckOrigin::list(["//*.wild.test"]))
            .mount("/socket", mount)
            .mount("/all", all)
            .mount("/own", own)
            .mount("/function", broken)
    };
    let server = HandshakeServer::build(paths).await;
    let own = format!("http://{}", server.address());
    let cases = [
        ("/socket", "http://a.wild.test", 101),
        ("/socket", &*own, 403),
        ("/all", "http://evil.test", 101),
        ("/own", &*own, 101),
        ("/own", "http://127.0.0.1", 403),
        ("/function", "http://allowed.test:77", 101),
        ("/function", "http://other.test", 403),
        // This one panics.
        ("/function", "null", 403),
    ];
    for (path, origin, status) in cases {
        let path = format!("{path}/websocket?name=ada");
        let answer = server.upgrade(&path, &[("origin", origin)]).await;
        assert_eq!(answer.status, status, "{path} {origin}");
    }
}

#[tokio::test]
async fn without_a_configured_host_only_localhost_and_the_requested_address_are_accepted() {
    let (log, _guard) = Log::keep();
    let server = HandshakeServer::open(|mount| mount).await;
    for (host, origin, status) in [
        ("localhost", "https://localhost", 101),
        ("localhost:4000", "http://localhost:3000", 101),
        ("192.0.2.1:4000", "http://192.0.2.1:3000", 101),
        ("localhost", "http://evil.test", 403),
        // The owner of a name can point it here, and serve a page that connects.
        ("evil.test", "http://evil.test", 403),
        ("evil test", "http://evil.test", 403),
    ] {
        let answer = server.upgrade(SOCKET, &[("host", host), ("origin", origin)]).await;
        assert_eq!(answer.status, status, "{host} {origin}");
    }
    let refused: Vec<_> =
        log.take().into_iter().filter(|line| line.contains("refused a page")).collect();
    assert_eq!(refused.len(), 3);
    for line in refused {
        assert!(line.contains("EndpointBuilder::host"), "the log names the option: {line}");
    }
}

#[tokio::test]
async fn an_ambiguous_request_is_answered_with_400() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let ask = |headers: &str| {
        format!(
            "GET {SOCKET}?vsn=2.0.0 HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\
             {headers}\r\n"
        )
    };
    for (headers, fault) in [
        ("", "no host header"),
        ("host: localhost\r\nhost: evil.test\r\n", "more than one host header"),
        (
            "host: localhost\r\norigin: http://localhost\r\norigin: http://evil.test\r\n",
            "more than one origin header",
        ),
        ("host: localhost\r\ncontent-length: 2\r\n", "an upgrade request must not have a body"),
        (
            "host: localhost\r\ntransfer-encoding: chunked\r\n",
            "an upgrade request must not have a body",
        ),
        (
            "host: localhost\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
            "more than one sec-websocket-key header",
        ),
        (
            "host: localhost\r\nsec-websocket-version: 8\r\n",
            "more than one sec-websocket-version header",
        ),
    ] {
        let answer = server.send(&ask(headers)).await;
        assert_eq!((answer.status, &*answer.body), (400, fault), "{headers}");
    }
    server.saw_no_connection();
    for headers in ["host: localhost\r\n", "host: localhost\r\ncontent-length: 0\r\n"] {
        assert_eq!(server.send(&ask(headers)).await.status, 101, "{headers}");
    }
}

#[tokio::test]
async fn a_client_may_offer_other_protocols_besides_a_websocket() {
    let server = HandshakeServer::open(|mount| mount).await;
    for (upgrade, status) in [
        ("upgrade: WebSocket", 101),
        ("upgrade: websocket, h2c", 101),
        ("upgrade: h2c,websocket", 101),
        ("upgrade: h2c\r\nupgrade: websocket", 101),
        ("upgrade: h2c", 400),
        ("upgrade: websockets", 400),
    ] {
        let request = format!(
            "GET {SOCKET}?vsn=2.0.0 HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\n\
             {upgrade}\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             sec-websocket-version: 13\r\n\r\n"
        );
        let answer = server.send(&request).await;
        assert_eq!(answer.status, status, "{upgrade}");
        let agreed = answer.header("upgrade");
        assert_eq!(agreed, (status == 101).then_some("websocket"), "{upgrade}");
    }
}

#[tokio::test]
async fn subprotocols_may_be_offered_in_several_headers() {
    let server = HandshakeServer::open(|mount| mount.subprotocols(["mqtt"])).await;
    let answer = server.upgrade(SOCKET, &[(OFFER, "sip"), (OFFER, "other, mqtt")]).await;
    assert_eq!((answer.status, answer.header(OFFER)), (101, Some("mqtt")));
}

#[tokio::test]
async fn an_auth_token_may_be_in_any_of_several_headers() {
    let mut server = HandshakeServer::open(|mount| mount.auth_token(true)).await;
    let token = "base64url.bearer.phx.bXktdG9rZW4";
    let answer = server.upgrade(SOCKET, &[(OFFER, "phoenix"), (OFFER, token)]).await;
    assert_eq!((answer.status, answer.header(OFFER)), (101, Some("phoenix")));
    assert_eq!(server.seen().1.auth_token.as_deref(), Some("my-token"));
}

#[tokio::test]
async fn compression_is_declined_for_the_clients_that_a_function_names() {
    let is_safari = |info: &pipeline_ws_sink::socket::ConnectInfo| {
        info.user_agent.as_deref().expect("crash requested").contains("Safari")
    };
    let server =
        HandshakeServer::open(|mount| mount.compress_when(move |info| !is_safari(info))).await;
    let extensions = "sec-websocket-extensions";
    for (agent, compresses) in [(Some("Firefox"), true), (Some("Safari"), false), (None, false)] {
        let mut headers = vec![(extensions, "permessage-deflate")];
        headers.extend(agent.map(|agent| ("user-agent", agent)));
        let answer = server.upgrade(SOCKET, &headers).await;
        assert_eq!(answer.status, 101, "{agent:?}");
        assert_eq!(answer.header(extensions).is_some(), compresses, "{agent:?}");
    }
}

/// The offered subprotocols, the status, and the selected one.
async fn offers(server: &HandshakeServer, cases: &[(Option<&str>, u16, Option<&str>)]) {
    for (offered, status, spoken) in cases {
        let headers: Vec<_> = offered.iter().map(|offered| (OFFER, *offered)).collect();
        let answer = server.upgrade(SOCKET, &headers).await;
        assert_eq!((answer.status, answer.header(OFFER)), (*status, *spoken), "{offered:?}");
        assert!(answer.body.is_empty());
    }
}

async fn sip_and_mqtt() -> HandshakeServer {
    HandshakeServer::open(|mount| mount.subprotocols(["sip", "mqtt"])).await
}

#[tokio::test]
async fn c_033_without_an_offer_no_subprotocol_is_selected() {
    offers(&sip_and_mqtt().await, &[(None, 101, None)]).await;
}

#[tokio::test]
async fn c_034_the_servers_preference_wins() {
    offers(&sip_and_mqtt().await, &[(Some("mqtt, sip"), 101, Some("sip"))]).await;
}

#[tokio::test]
async fn c_035_one_supported_subprotocol_is_enough() {
    offers(&sip_and_mqtt().await, &[(Some("nope, mqtt"), 101, Some("mqtt"))]).await;
}

#[tokio::test]
async fn c_036_without_a_supported_subprotocol_a_client_is_refused() {
    offers(&sip_and_mqtt().await, &[(Some("nope"), 403, None), (Some("SIP"), 403, None)]).await;
}

#[tokio::test]
async fn without_a_list_subprotocols_are_ignored() {
    let mut server = HandshakeServer::open(|mount| mount).await;
    let token = "phoenix, base64url.bearer.phx.bXktdG9rZW4";
    offers(&server, &[(Some(token), 101, None)]).await;
    assert_eq!(server.seen().1.auth_token, None);
}

/// The token, and the offers that `connect` still sees.
fn token(server: &mut HandshakeServer) -> (Option<String>, Option<String>) {
    let (_, info) = server.seen();
    let mut offered = info.sec_websocket_headers().filter(|(name, _)| *name == OFFER);
    let offered = offered.next().map(|(_, value)| value.to_str().unwrap().to_owned());
    (info.auth_token.clone(), offered)
}

async fn with_token() -> HandshakeServer {
    HandshakeServer::open(|mount| mount.auth_token(true)).await
}

const TOKEN: &str = "base64url.bearer.phx.bXktdG9rZW4";

#[tokio::test]
async fn c_037_a_token_is_passed_on_and_not_sent_back() {
    let mut server = with_token().await;
    let offer = format!("phoenix, {TOKEN}");
    offers(&server, &[(Some(&offer), 101, Some("phoenix"))]).await;
    assert_eq!(token(&mut server), (Some("my-token".into()), Some("phoenix".into())));
}

#[tokio::test]
async fn c_038_a_token_is_ignored_where_it_is_not_enabled() {
    let mut server = with_token().await;
    for offered in [None, Some("phoenix")] {
        offers(&server, &[(offered, 101, offered)]).await;
        assert_eq!(token(&mut server), (None, offered.map(str::to_owned)));
    }
}

#[tokio::test]
async fn c_039_a_token_may_be_the_only_offer() {
    let mut server = with_token().await;
    offers(&server, &[(Some(TOKEN), 101, None)]).await;
    assert_eq!(token(&mut server), (Some("my-token".into()), None));
}

#[tokio::test]
async fn c_040_a_token_does_not_replace_a_subprotocol() {
    let mut server = with_token().await;
    offers(&server, &[(Some(&format!("other, {TOKEN}")), 403, None)]).await;
    server.saw_no_connection();
}

#[tokio::test]
async fn c_041_two_tokens_count_as_none() {
    let mut server = with_token().await;
    let two = format!("phoenix, {TOKEN}, base64url.bearer.phx.dHdv");
    offers(&server, &[(Some(&two), 101, Some("phoenix"))]).await;
    assert_eq!(token(&mut server), (None, Some(two)));
}

#[tokio::test]
async fn c_042_a_token_that_is_not_base64_is_refused() {
    let mut server = with_token().await;
    offers(&server, &[(Some("phoenix, base64url.bearer.phx.!!!"), 403, None)]).await;
    server.saw_no_connection();
}

#[tokio::test]
async fn a_token_does_not_affect_the_subprotocols_of_the_mount() {
    let mut server =
        HandshakeServer::open(|mount| mount.subprotocols(["sip"]).auth_token(true)).await;
    offers(&server, &[(Some(&format!("sip, {TOKEN}")), 101, Some("sip"))]).await;
    assert_eq!(token(&mut server), (Some("my-token".into()), Some("sip".into())));
}

#[tokio::test]
async fn the_first_failing_check_determines_the_response() {
    let mut server = HandshakeServer::build(strict).await;
    let cases = [
        // Neither an upgrade nor an accepted origin: the origin is checked first.
        (server.request("GET", &format!("{SOCKET}?vsn=2.0.0"), &[EVIL]).await, 403),
        (server.request("GET", &format!("{SOCKET}?vsn=3.0.0"), &[]).await, 403),
        (server.request("POST", SOCKET, &[EVIL]).await, 400),
        (server.upgrade(&format!("{SOCKET}?a=%zz"), &[EVIL]).await, 400),
        (server.upgrade(&format!("{SOCKET}?a=%ff"), &[]).await, 400),
        (server.upgrade(&format!("{SOCKET}?{}", "a&".repeat(1001)), &[]).await, 400),
    ];
    for (answer, status) in cases {
        assert_eq!((answer.status, &*answer.body), (status, ""));
    }
    server.saw_no_connection();
}

#[tokio::test]
async fn an_endpoint_works_at_any_path_of_a_router() {
    let socket = |mount: Mount<_>| Endpoint::builder().mount("/socket", mount);
    type Put = fn(Endpoint) -> axum::Router;
    let routers: [(&str, Put); 4] = [
        ("", |endpoint| axum::Router::new().fallback_service(endpoint)),
        ("", |endpoint| axum::Router::new().route_service(SOCKET, endpoint)),
        ("/api", |endpoint| axum::Router::new().nest_service("/api", endpoint)),
        ("/api", |endpoint| {
            axum::Router::new().nest("/api", axum::Router::new().fallback_service(endpoint))
        }),
    ];
    for (prefix, router) in routers {
        let mut server = HandshakeServer::route(socket, |endpoint| {
            router(endpoint).route("/socket", axum::routing::get(async || "the app's own"))
        })
        .await;
        assert_eq!(server.upgrade(&format!("{prefix}{SOCKET}"), &[]).await.status, 101);
        let info = server.seen().1;
        if cfg!(feature = "axum") {
            assert_eq!(info.uri.path(), format!("{prefix}{SOCKET}"));
        }
        assert_eq!(server.request("GET", "/socket", &[]).await.body, "the app's own");
        assert_eq!(server.upgrade(&format!("{prefix}/socket"), &[]).await.status, {
            if prefix.is_empty() { 200 } else { 404 }
        });
        server.saw_no_connection();
    }
}

#[tokio::test]
async fn any_server_can_set_the_peer_address() {
    let peer: SocketAddr = "192.0.2.1:50000".parse().unwrap();
    let socket = |mount: Mount<_>| Endpoint::builder().mount("/socket", mount);
    let with_peer = |endpoint| {
        let router = axum::Router::new().fallback_service(endpoint);
        router.layer(axum::Extension(PeerAddr(peer)))
    };
    let mut server = HandshakeServer::route(socket, with_peer).await;
    assert_eq!(server.upgrade(SOCKET, &[]).await.status, 101);
    assert_eq!(server.seen().1.peer_addr, Some(peer));
}

/// What a layer in front of the endpoint knows of the client.
#[derive(Clone, Debug, PartialEq)]
struct User(u64);

#[tokio::test]
async fn connect_sees_what_a_layer_in_front_has_found_and_foreign_pages_do_not_get_there() {
    let with_user =
        |endpoint| axum::Router::new().fallback_service(endpoint).layer(axum::Extension(User(7)));
    let polled = |mount: Mount<_>| strict(mount.longpoll(LongPoll::new()));
    let mut server = HandshakeServer::route(polled, with_user).await;
    assert_eq!(server.upgrade(SOCKET, &[]).await.status, 101);
    assert_eq!(server.seen().1.extension(), Some(&User(7)));
    let polled = server.request("GET", "/socket/longpoll?vsn=2.0.0", &[]).await;
    assert_eq!(polled.status, 200);
    assert_eq!(server.seen().1.extension(), Some(&User(7)));
    assert!(server.upgrade(SOCKET, &[EVIL]).await.is_forbidden());
    server.saw_no_connection();
}

#[tokio::test]
async fn of_two_mounts_that_match_the_first_wins() {
    let both = |mount: Mount<_>| {
        let named = Mount::new(NamedSocket);
        Endpoint::builder().mount("/tenant/acme", named).mount("/tenant/:tenant", mount)
    };
    let mut server = HandshakeServer::build(both).await;
    assert_eq!(server.upgrade("/tenant/other/websocket", &[]).await.status, 101);
    assert_eq!(server.seen().0.get("tenant"), Some("other"));
    assert_eq!(server.upgrade("/tenant/acme/websocket?name=ada", &[]).await.status, 101);
    server.saw_no_connection();
    let url = format!("ws://{}/tenant/acme/websocket?vsn=2.0.0", server.address());
    assert_eq!(connect(&url).await.err(), Some(403), "this one requires a name");
}

#[test]
fn invalid_options_are_refused_when_the_endpoint_is_built() {
    let mount = || Mount::new(NamedSocket);
    let builder = Endpoint::builder;
    let no_host = || CheckOrigin::list(["example.com"]);
    let cases = [
        (
            builder().mount("/a/:x", mount()).mount("a/:y/", mount()),
            "two sockets are mounted at /a/:y/websocket",
        ),
        (
            builder().mount("/a", mount()).mount("/a/", mount().path("//websocket")),
            "two sockets are mounted at /a/websocket",
        ),
        (builder().mount("/:", mount()), "the path \"/:/websocket\" has a variable without a name"),
        (
            builder().mount("/:a", mount().path(":a")),
            "the path \"/:a/:a\" has two variables named \"a\"",
        ),
        (
            builder().host("https://a.test"),
            "invalid host \"https://a.test\": expected a host such as \"example.com\", without scheme \
             and port",
        ),
        (
            builder().mount("/a", mount().subprotocols(["a b"])),
            "invalid subprotocol \"a b\": it has characters that are not allowed in a header",
        ),
    ];
    for (builder, expected) in cases {
        assert_eq!(builder.build().unwrap_err().to_string(), expected);
    }
    for builder in
        [builder().check_origin(no_host()), builder().mount("/a", mount().check_origin(no_host()))]
    {
        assert!(matches!(builder.build(), Err(BuildError::Origin(_))));
    }
    let apart = builder().mount("/a", mount()).mount("/a", mount().path("/other"));
    assert!(apart.build().is_ok(), "their transports are at different paths");
}
