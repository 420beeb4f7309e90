//! The mounts and their channels.

use std::time::Duration;

use pipeline::ws::{
    Endpoint, Mount, Presence,
    endpoint::EndpointBuilder,
    mount::{CheckOrigin, Drainer, LongPoll},
    token::Signer,
};

use crate::{
    dedup::Dedup,
    farewell::Farewell,
    present::{self, Present},
    room::Room,
    slow::{ParallelPing, Slow, SlowPing},
    small::{External, Kind, Role, Vip, Wild},
    socket::{Info, UserSocket},
    token::{Fresh, Token},
};

/// How often `token:*` sends a new token.
const RENEWAL: Duration = Duration::from_secs(60);

/// The endpoint with all its sockets.
pub fn endpoint(signer: &Signer) -> EndpointBuilder {
    let (presence, named) =
        (Presence::builder().tracker(present::tracker()).build(), present::named());
    let sockets = |info| mount(info, signer, &presence, &named);
    let open = || sockets(&[]).check_origin(CheckOrigin::off());
    let polled = |window| LongPoll::new().window(Duration::from_millis(window));
    let drainer = Drainer::new().batch_size(2).batch_interval(Duration::from_millis(300));
    let known = ["//localhost", "https://secure.test", "//ported.test:8443", "//*.wild.test"];
    let info = sockets(&[
        Info::PeerData,
        Info::XHeaders,
        Info::Uri,
        Info::UserAgent,
        Info::TraceContext,
        Info::Custom,
    ]);
    Endpoint::builder()
        .host("localhost")
        .presence(&presence)
        .presence(&named)
        .mount("/socket", sockets(&[]).longpoll(polled(1000)).drainer(drainer))
        .mount("/strict", sockets(&[]).longpoll(LongPoll::new()))
        .mount("/list", sockets(&[]).longpoll(polled(200)).check_origin(CheckOrigin::list(known)))
        .mount("/connorigin", sockets(&[]).check_origin(CheckOrigin::connection()))
        .mount(
            "/mfa",
            sockets(&[]).check_origin(CheckOrigin::function(|origin| {
                origin.host() == Some("allowed.test")
            })),
        )
        .mount("/limits", open().idle_timeout(Duration::from_millis(700)).max_frame_size(1024))
        .mount("/deflate", open().compress(true))
        .mount("/proto", open().subprotocols(["sip", "mqtt"]))
        .mount("/tenant/:tenant", open().path("/live/:lane"))
        .mount("/info", info.check_origin(CheckOrigin::off()))
        .mount(
            "/auth",
            sockets(&[Info::SecWebSocket, Info::AuthToken])
                .auth_token(true)
                .longpoll(polled(500))
                .check_origin(CheckOrigin::off()),
        )
        .mount("/few", open().max_channels(2))
}

/// The channels, in the order in which topics are matched.
fn mount(
    info: &'static [Info],
    signer: &Signer,
    presence: &Presence,
    named: &Presence,
) -> Mount<UserSocket> {
    Mount::new(UserSocket { info })
        .channel::<Vip>("room:vip")
        .channel::<Room>("room:*")
        .channel_with::<Kind>("late:*", "wildcard")
        // Never reached: the wildcard matches first.
        .channel::<Vip>("late:special")
        .channel_with::<Role>("role:*", "admin")
        .channel_with::<Present>("pres:*", presence.clone())
        .channel_with::<Present>("named:*", named.clone())
        .channel::<Slow>("slow:*")
        .channel::<Farewell>("bye:*")
        .channel_with::<Kind>("feed*", "feed")
        .channel_with::<Kind>("plain", "feed")
        .channel::<External>("ext:*")
        .channel::<Wild>("wild:*")
        .channel::<Dedup>("dedup:*")
        .channel::<SlowPing>("ping:slow")
        .channel::<ParallelPing>("ping:parallel")
        .channel_with::<Token>("token:*", Fresh { signer: signer.clone(), every: RENEWAL })
}
