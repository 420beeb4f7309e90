//! A socket over TLS, terminated in the same process.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use http::{Request, uri::Scheme};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use pipeline_test_support::Client;
use pipeline_ws_sink::{Endpoint, mount::CheckOrigin, socket::PeerAddr};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use support::channels::endpoint_with;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    },
};
use tokio_tungstenite::{client_async, tungstenite::client::IntoClientRequest};
use tower_service::Service;

const T: &str = "room:lobby";

/// Serves an endpoint over TLS. Returns its address and the trusted certificate.
async fn serve(endpoint: Endpoint) -> (SocketAddr, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.der().clone()], key.into()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let (acceptor, endpoint) = (acceptor.clone(), endpoint.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = service_fn(|mut request: Request<Incoming>| {
                    request.extensions_mut().insert(PeerAddr(peer));
                    request.extensions_mut().insert(Scheme::HTTPS);
                    endpoint.clone().call(request)
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, cert.der().clone())
}

async fn connect(
    (address, trusted): &(SocketAddr, CertificateDer<'static>),
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_client_joins_and_gets_broadcasts_over_tls() {
    let (builder, _gate) = endpoint_with(|mount| mount);
    let endpoint = builder.build().unwrap();
    let server = serve(endpoint.clone()).await;
    let url = "wss://localhost/socket/websocket?vsn=2.0.0&name=ada";
    let mut client = Client::over(connect(&server).await, url).await;
    client.join("1", T).await;
    endpoint.broadcast(T, "news", json!({"n": 1})).unwrap();
    client.expect([json!([null, null, T, "news", {"n": 1}])]).await;
    let big = json!({"d": "x".repeat(200_000)});
    endpoint.broadcast(T, "news", &big).unwrap();
    client.expect([json!([null, null, T, "news", big])]).await;
    client.send(json!(["1", "2", T, "ping", {"a": 1}])).await;
    assert_eq!(client.receive().await[4]["response"], json!({"a": 1}));
    endpoint.disconnect("named:ada");
    assert_eq!(client.closed().await, 1001);
}

#[tokio::test]
async fn the_connections_own_origin_is_https_when_the_server_sets_it() {
    let check = CheckOrigin::connection();
    let (builder, _gate) = endpoint_with(|mount| mount.check_origin(check));
    let server = serve(builder.build().unwrap()).await;
    for (origin, allowed) in [("https://localhost", true), ("http://localhost", false)] {
        let url = "wss://localhost/socket/websocket?vsn=2.0.0&name=ada";
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("origin", origin.parse().unwrap());
        let connected = client_async(request, connect(&server).await).await;
        assert_eq!(connected.is_ok(), allowed, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_broadcasts_closes_no_client_that_reads_over_tls() {
    // Less than the system buffers, and far more than the outbox holds.
    const EVENTS: u64 = 1_000;
    let (builder, _gate) = endpoint_with(|mount| mount.max_outbox(10, 1 << 20));
    let endpoint = builder.build().unwrap();
    let server = serve(endpoint.clone()).await;
    let url = "wss://localhost/socket/websocket?vsn=2.0.0&name=ada";
    let mut client = Client::over(connect(&server).await, url).await;
    client.join("1", T).await;
    for n in 0..EVENTS {
        endpoint.broadcast(T, "news", json!({ "n": n })).unwrap();
    }
    for n in 0..EVENTS {
        client.expect([json!([null, null, T, "news", { "n": n }])]).await;
    }
}
