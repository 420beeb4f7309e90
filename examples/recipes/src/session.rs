//! The login that an application has, for the socket too: its layer reads the cookie of the session, and `connect` takes
//! the user from the request. A browser sends cookies also with requests that other sites cause. The check of the
//! origin, which is on by default, refuses these: with cookies it has to stay on.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::header::COOKIE,
    middleware::{self, Next},
    response::Response,
};
use parking_lot::Mutex;
use pipeline::{
    serve,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        endpoint::BuildError,
        listen,
        socket::{ConnectError, ConnectInfo, Params},
    },
};

use crate::Failed;

/// The user of the request's session.
#[derive(Clone)]
struct User(u64);

/// The users by session, which an application has in its store.
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<String, u64>>>);

/// The layer that the other routes have already.
async fn session(State(sessions): State<Sessions>, mut request: Request, next: Next) -> Response {
    let cookies = request.headers().get_all(COOKIE).iter().filter_map(|all| all.to_str().ok());
    let mut cookies = cookies.flat_map(|all| all.split("; "));
    let id = cookies.find_map(|cookie| cookie.strip_prefix("session="));
    let user = id.and_then(|id| sessions.0.lock().get(id).copied());
    if let Some(user) = user {
        request.extensions_mut().insert(User(user));
    }
    next.run(request).await
}

struct SessionSocket;

impl Socket for SessionSocket {
    type Assigns = u64;

    async fn connect(&self, _: &Params, info: &ConnectInfo) -> Result<u64, ConnectError> {
        let User(id) = info.extension().ok_or("the client has no session")?;
        Ok(*id)
    }

    // A logout calls `endpoint.disconnect` with it.
    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("users_socket:{user}")))
    }
}

struct OwnTopic;

impl Channel for OwnTopic {
    type Socket = SessionSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(OwnTopic).ok_or(JoinError::unauthorized())
    }
}

fn app(sessions: Sessions) -> Result<(Endpoint, Router), BuildError> {
    let mount = Mount::new(SessionSocket).channel::<OwnTopic>("user:*");
    // The name in the browser's address bar: pages of other names may not connect.
    let endpoint = Endpoint::builder().mount("/socket", mount).host("localhost").build()?;
    let login = middleware::from_fn_with_state(sessions, session);
    // The layer comes last, so that the endpoint is behind it.
    let app = Router::new().fallback_service(endpoint.clone()).layer(login);
    Ok((endpoint, app))
}

pub(crate) async fn run() -> Result<(), Failed> {
    let sessions = Sessions::default();
    sessions.0.lock().insert("of-user-7".to_owned(), 7);
    let (endpoint, app) = app(sessions)?;
    println!(
        "look on: npx wscat -H 'cookie: session=of-user-7' --connect 'ws://localhost:4030/socket/websocket?vsn=2.0.0'"
    );
    println!("{}", serve(listen("127.0.0.1:4030").await?, app).endpoint(endpoint).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// The status of a page's request for a WebSocket.
    async fn status(app: &Router, origin: &str, cookie: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut page = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let serving = tokio::spawn(axum::serve(listener, app.clone()).into_future());
        let request = format!(
            "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
             cookie: {cookie}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        page.write_all(request.as_bytes()).await.unwrap();
        let mut line = String::new();
        BufReader::new(page).read_line(&mut line).await.unwrap();
        serving.abort();
        line.split(' ').nth(1).unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_session_connects_from_the_own_pages_only() {
        let sessions = Sessions::default();
        sessions.0.lock().insert("abc".to_owned(), 7);
        let (_endpoint, app) = app(sessions).unwrap();
        let own = "http://localhost";
        assert_eq!(status(&app, own, "theme=dark; session=abc").await, "101");
        assert_eq!(status(&app, own, "session=forged").await, "403");
        assert_eq!(status(&app, "https://evil.example.com", "session=abc").await, "403");
    }
}
