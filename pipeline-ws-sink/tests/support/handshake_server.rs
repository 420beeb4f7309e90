//! A socket that accepts clients on request and reports them, and raw requests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests too")]

use std::net::SocketAddr;

use http::StatusCode;
use pipeline_test_support::PATIENCE;
use pipeline_ws_sink::{
    Endpoint, Mount, Socket,
    endpoint::EndpointBuilder,
    socket::{ConnectError, ConnectInfo, Params},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

/// Reports every client that calls connect.
pub struct ReportingSocket(mpsc::Sender<(Params, ConnectInfo)>);

impl Socket for ReportingSocket {
    type Assigns = bool;

    async fn connect(&self, params: &Params, info: &ConnectInfo) -> Result<bool, ConnectError> {
        self.0.try_send((params.clone(), info.clone())).unwrap();
        match params.get("reject") {
            Some("error") => return Err(ConnectError::refused()),
            Some("limit") => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                return Err(ConnectError::refused().respond(status, "Too many requests"));
            }
            Some("later") => {
                let later = http::Response::builder().status(503).header("retry-after", "60");
                return Err(ConnectError::refused().respond_with(later.body("".into()).unwrap()));
            }
            Some("switch") => {
                return Err(ConnectError::refused().respond(StatusCode::SWITCHING_PROTOCOLS, "x"));
            }
            Some("other") => return Err(ConnectError::because("other")),
            Some("number") => drop(params.require("reject")?.parse::<u8>()?),
            Some("crash") => panic!("crash requested"),
            _ => {}
        }
        Ok(params.get("id") != Some("bad"))
    }

    fn id(&self, good: &bool) -> Result<Option<String>, ConnectError> {
        if *good { Ok(None) } else { Err(ConnectError::because("no id")) }
    }
}

/// An endpoint with such sockets behind a real server.
pub struct HandshakeServer {
    seen: mpsc::Receiver<(Params, ConnectInfo)>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HandshakeServer {
    /// Mounted at `/socket`.
    pub async fn open(
        options: impl FnOnce(Mount<ReportingSocket>) -> Mount<ReportingSocket>,
    ) -> Self {
        Self::build(|mount| Endpoint::builder().mount("/socket", options(mount))).await
    }

    pub async fn build(builder: impl FnOnce(Mount<ReportingSocket>) -> EndpointBuilder) -> Self {
        let fallback = |endpoint| axum::Router::new().fallback_service(endpoint);
        Self::route(builder, fallback).await
    }

    pub async fn route(
        builder: impl FnOnce(Mount<ReportingSocket>) -> EndpointBuilder,
        router: impl FnOnce(Endpoint) -> axum::Router,
    ) -> Self {
        let (reports, seen) = mpsc::channel(100);
        let app = router(builder(Mount::new(ReportingSocket(reports))).build().unwrap());
        let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        let task = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { seen, address, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request, and reads the response.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        self.send(&format!("{request}\r\n")).await
    }

    /// Sends a request unchanged, and reads the response.
    pub async fn send(&self, request: &str) -> Response {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        timeout(PATIENCE, Response::read(&mut stream)).await.unwrap()
    }

    /// Requests a WebSocket, with version 2 of the protocol unless the path names one.
    pub async fn upgrade(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let path = match path.split_once('?') {
            Some((_, query)) if query.contains("vsn") => path.to_owned(),
            Some(_) => format!("{path}&vsn=2.0.0"),
            None => format!("{path}?vsn=2.0.0"),
        };
        let mut all = vec![
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        if !headers.iter().any(|(name, _)| *name == "sec-websocket-version") {
            all.push(("sec-websocket-version", "13"));
        }
        all.extend(headers);
        self.request("GET", &path, &all).await
    }

    /// The client that was seen last, and expects no other.
    pub fn seen(&mut self) -> (Params, ConnectInfo) {
        let seen = self.seen.try_recv().unwrap();
        self.saw_no_connection();
        seen
    }

    pub fn saw_no_connection(&mut self) {
        assert!(self.seen.try_recv().is_err(), "connect was called");
    }
}

impl Drop for HandshakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Self {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap().into());
        }
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        };
        let headers = lines.filter_map(header).collect();
        let mut response = Self { status, headers, body: String::new() };
        if status != 101 {
            let length: usize = response.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            response.body = String::from_utf8(body).unwrap();
        }
        response
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Status 403 with an empty body.
    pub fn is_forbidden(&self) -> bool {
        self.status == 403 && self.body.is_empty()
    }
}
