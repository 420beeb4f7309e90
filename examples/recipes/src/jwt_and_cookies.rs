//! A login by JSON Web Token in a cookie. The socket cannot read cookies, because a browser sends them with requests
//! that other pages cause. So one more route, behind the login, signs a short-lived token for the socket.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{StatusCode, header::COOKIE, request::Parts},
    routing::{get, post},
};
use pipeline::ws::{
    Endpoint,
    token::{JwtAlgorithm, JwtKey, JwtVerifier, Signer},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Failed, user};

const SECRET: &[u8] = b"shared with the identity provider, 32 bytes at least";

#[derive(Clone)]
struct App {
    login: Arc<JwtVerifier>,
    signer: Signer,
    endpoint: Endpoint,
}

/// The user of the cookie `session`.
struct CurrentUser(u64);

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl FromRequestParts<App> for CurrentUser {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, StatusCode> {
        let cookies = parts.headers.get_all(COOKIE).iter().filter_map(|all| all.to_str().ok());
        let mut cookies = cookies.flat_map(|all| all.split("; "));
        let token = cookies.find_map(|cookie| cookie.strip_prefix("session="));
        let claims = app.login.verify_optional::<Claims>(token, SystemTime::now());
        let user = claims.ok().and_then(|claims| claims.sub.parse().ok());
        user.map(CurrentUser).ok_or(StatusCode::UNAUTHORIZED)
    }
}

/// The page fetches this before it connects, and from time to time.
async fn socket_token(
    user: CurrentUser,
    State(app): State<App>,
) -> Result<Json<Value>, StatusCode> {
    let token = app.signer.sign(&user.0, SystemTime::now());
    Ok(Json(json!({ "token": token.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)? })))
}

/// The end of a session ends its sockets, on all nodes.
async fn logout(user: CurrentUser, State(app): State<App>) -> StatusCode {
    app.endpoint.disconnect(&format!("users_socket:{}", user.0));
    StatusCode::NO_CONTENT
}

fn app(endpoint: Endpoint, signer: Signer) -> Result<(Router, App), Failed> {
    let key = JwtKey::secret(JwtAlgorithm::Hs256, SECRET)?;
    let login = Arc::new(JwtVerifier::new(key).issuer("https://id.example.com"));
    let app = App { login, signer, endpoint };
    let routes = Router::new().route("/socket-token", get(socket_token));
    Ok((routes.route("/logout", post(logout)).with_state(app.clone()), app))
}

pub(crate) async fn run() -> Result<(), Failed> {
    let signer = user::signer()?.max_age(Duration::from_secs(60));
    let endpoint = Endpoint::builder().mount("/socket", user::mount(signer.clone())).build()?;
    let (app, _) = app(endpoint.clone(), signer)?;
    println!("log in: curl -b session=JWT http://127.0.0.1:4030/socket-token");
    user::run(app, endpoint, None).await
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    use hmac::{Hmac, KeyInit, Mac};
    use pipeline::ws::channel_test::TestEndpoint;
    use sha2::Sha256;

    use super::*;

    /// A token as the identity provider signs it.
    fn jwt(claims: &Value) -> String {
        let parts = [json!({ "alg": "HS256" }).to_string(), claims.to_string()];
        let signed = parts.map(|part| BASE64.encode(part)).join(".");
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(SECRET).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
    }

    async fn user_of(app: &App, cookie: &str) -> Result<CurrentUser, StatusCode> {
        let (mut parts, ()) =
            Request::get("/").header(COOKIE, cookie).body(()).unwrap().into_parts();
        CurrentUser::from_request_parts(&mut parts, app).await
    }

    #[tokio::test]
    async fn a_session_gives_a_token_for_the_socket_and_its_end_closes_the_socket() {
        let signer = user::signer().unwrap();
        let kit = TestEndpoint::new(user::mount(signer.clone()));
        let (_routes, app) = app(kit.endpoint().clone(), signer).unwrap();
        let exp = 4_000_000_000_u64;
        let session = jwt(&json!({ "sub": "7", "iss": "https://id.example.com", "exp": exp }));
        let foreign = jwt(&json!({ "sub": "7", "iss": "https://evil.example.com", "exp": exp }));
        assert!(user_of(&app, &format!("session={foreign}")).await.is_err());
        assert!(user_of(&app, "other=1").await.is_err());

        let cookie = format!("theme=dark; session={session}");
        let user = user_of(&app, &cookie).await.unwrap();
        let Json(answer) = socket_token(user, State(app.clone())).await.unwrap();
        let socket = kit.connect(answer).await.unwrap();
        assert!(socket.join("user:7", json!({})).await.is_ok());
        assert!(socket.join("user:8", json!({})).await.is_err());

        let user = user_of(&app, &cookie).await.unwrap();
        assert_eq!(logout(user, State(app)).await, StatusCode::NO_CONTENT);
        assert_eq!(socket.closed().await, Some(1001));
    }
}
